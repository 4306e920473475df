"""Names and modules that are imported on first use, so that importing a package, or the help of a command, is fast."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


def lazy(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The functions `__getattr__` and `__dir__` for a package (`__name__`) whose public names are in other modules.

    `homes`: {public name: module, without "uturn."}. An entry with "." at the end refers to the module itself.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = homes[name]
        module = importlib.import_module(f"uturn.{home.removesuffix('.')}")
        value = module if home.endswith(".") else getattr(module, name)
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted([*vars(sys.modules[package]), *homes])


@contextmanager
def later() -> Iterator[None]:
    """Modules of this package that are imported within the context are loaded when one of their names is first used.

    They are not in `sys.modules` before, since libraries look through all modules there, which would load them.

    >>> with later():
    ...     from uturn.studies import figure
    >>> figure.draw_study.__name__  # loads the module
    'draw_study'
    """
    sys.meta_path.insert(0, _Finder)
    try:
        yield
    finally:
        sys.meta_path.remove(_Finder)
        for module in [*sys.modules.values()]:
            if isinstance(module, _Later):
                module.forget()


class _Later(ModuleType):
    """A module that is not loaded yet."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import itself asks for these
            raise AttributeError(name)
        self.forget()
        finders = sys.meta_path
        sys.meta_path = [finder for finder in finders if finder is not _Finder]
        try:
            return getattr(importlib.import_module(self.__name__), name)
        finally:
            sys.meta_path = finders

    def forget(self) -> None:
        """Leave the place of the module to the module itself."""
        package, _, child = self.__name__.rpartition(".")
        for names, key in ((sys.modules, self.__name__), (vars(sys.modules[package]), child)):
            if names.get(key) is self:
                del names[key]


class _Finder:
    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name.startswith("uturn.") else None
        is_module = spec is not None and spec.submodule_search_locations is None  # packages are loaded
        return ModuleSpec(name, _Finder) if is_module else None  # type: ignore[arg-type] # loads modules as a class

    @staticmethod
    def create_module(spec: ModuleSpec) -> ModuleType:
        return _Later(spec.name)

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        """Nothing is executed before a name is used."""
