"""Public names of a package that are imported on first use, so that it is imported fast."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple


class Lazy(NamedTuple):
    """What a package with lazy names assigns in its `__init__.py`."""

    get: Callable[[str], Any]
    """Its `__getattr__`."""
    list_names: Callable[[], list[str]]
    """Its `__dir__`."""
    paths: dict[str, str]
    """Its public names: {name: import path, with dots and without "uturn."}."""


def lazy(package: str, names: Mapping[str, Sequence[str]]) -> Lazy:
    """The lazy names of a package.

    `names`: {module: names}, imported from there on first use. Modules of the package itself are
    the names of the package. Names that tools add (`uturn.core.tools.Tool`) are those of all tools.
    """
    homes = {name: module for module, of_module in names.items() for name in of_module}

    def get(name: str) -> object:
        if name in homes:
            value = _imported(package, homes[name], name)
        else:
            value = _of_a_tool(package, name)
        setattr(sys.modules[package], name, value)
        return value

    def list_names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes, *names_of_tools(package)})

    paths = {name: f"{home}.{name}".removeprefix("uturn.") for name, home in homes.items()}
    return Lazy(get, list_names, paths)


def _imported(package: str, home: str, name: str) -> object:
    """A name of a module, or a module of a package."""
    if home != package:
        module = importlib.import_module(home)
        if hasattr(module, name):
            return getattr(module, name)
    return importlib.import_module(f"{home}.{name}")


def _of_a_tool(package: str, name: str) -> object:
    """What a tool adds to a package under a name, or an AttributeError."""
    module = f"{package}.{name}"
    path = None
    if not (name.startswith("_") or module in sys.modules or find_spec(module)):
        path = names_of_tools(package).get(name)
    if path is None:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    # Not before it is needed, because this module is the first that is imported.
    from uturn.core.imports import import_object

    return import_object(path, f"{package}.{name} = {path!r}", "'module:name'")


def names_of_tools(package: str) -> dict[str, str]:
    """{name: import path} of what tools add to a package."""
    from uturn.core.tools import named

    paths = {}
    for dotted, path in named("names").items():
        home, _, name = f"uturn.{dotted}".rpartition(".")
        if home == package:
            paths[name] = path
    return paths
