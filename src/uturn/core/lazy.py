"""Names and modules that are imported on first use, so that importing a package, or the help of a command, is fast."""

from __future__ import annotations

import ast
import builtins
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any


def lazy(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], dict[str, str]]:
    """`__getattr__` and `__dir__` of a package, and its public names, {name: import path, with dots and without "uturn."}.

    Public names are those that the package imports under `if TYPE_CHECKING`; they are imported here on first use.
    """
    tree = ast.parse(Path(str(sys.modules[package].__file__)).read_text(encoding="utf-8"))
    blocks = [node.body for node in tree.body if isinstance(node, ast.If)]
    imports = [node for block in blocks for node in block if isinstance(node, ast.ImportFrom)]
    homes = {alias.name: str(node.module) for node in imports for alias in node.names}

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = homes[name]
        own = home == package  # a module of the package itself
        value = importlib.import_module(f"{home}.{name}") if own else getattr(__import__(home, fromlist=[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    paths = {name: f"{home}.{name}".removeprefix("uturn.") for name, home in homes.items()}
    return get, lambda: sorted({*vars(sys.modules[package]), *homes}), paths


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
