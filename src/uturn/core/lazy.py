"""Names and modules that are imported on first use, so that importing a package, or the help of a command, is fast."""

from __future__ import annotations

import builtins
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from types import MappingProxyType, SimpleNamespace
from typing import Any


def lazy(package: str, homes: Mapping[str, str] = MappingProxyType({})) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The functions `__getattr__` and `__dir__` for a package whose public names are in other modules, or in tools.

    `homes`: {public name: module, without "uturn."}. An entry with "." at the end refers to the module itself. Names that are
    neither there nor modules of the package are those of tools (`uturn.core.tools.Tool`).
    """

    def get(name: str) -> Any:
        if name in homes:
            home = homes[name]
            module = importlib.import_module(f"uturn.{home.removesuffix('.')}")
            value = module if home.endswith(".") else getattr(module, name)
        else:
            is_module = f"{package}.{name}" in sys.modules
            path = None
            if not (name.startswith("_") or is_module or find_spec(f"{package}.{name}")):
                path = names_of_tools(package).get(name)
            if path is None:
                raise AttributeError(f"module {package!r} has no attribute {name!r}")
            from uturn.core.imports import import_object  # not before it is needed: this module is the first that is imported

            value = import_object(path, f"{package}.{name} = {path!r}", "'module:name'")
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted({*vars(sys.modules[package]), *homes, *names_of_tools(package)})


def names_of_tools(package: str) -> dict[str, str]:
    """{name: import path} of what tools add to a package."""
    from uturn.core.tools import named

    paths = {f"uturn.{name}".rpartition(".")[::2]: path for name, path in named("names").items()}
    return {name: path for (home, name), path in paths.items() if home == package}


@contextmanager
def later() -> Iterator[None]:
    """Modules of this package that are imported within the context are loaded when one of their names is first used.

    >>> with later():
    ...     from uturn.studies import figure
    >>> figure.draw_study.__name__  # loads the module
    'draw_study'
    """
    regular = builtins.__import__

    def imported(package: str, globals: Any = None, locals: Any = None, names: Any = (), level: int = 0) -> Any:
        if not package.startswith("uturn."):
            return regular(package, globals, locals, names, level)
        return SimpleNamespace(**{name: _Later(f"{package}.{name}") for name in names})

    builtins.__import__ = imported  # type: ignore[assignment]
    try:
        yield
    finally:
        builtins.__import__ = regular


class _Later:
    """A module that is loaded when one of its names is used."""

    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # libraries ask all objects for these
            raise AttributeError(name)
        return getattr(importlib.import_module(self._module), name)
