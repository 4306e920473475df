"""Names and modules that are imported on first use, so that importing a package, or the help of a command, is fast."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader
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

    >>> with later():
    ...     from uturn.studies import figure
    >>> figure.draw_study.__name__  # loads the module
    'draw_study'
    """
    sys.meta_path.insert(0, _Later)
    try:
        yield
    finally:
        sys.meta_path.remove(_Later)


class _Later:
    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name.startswith("uturn.") else None
        if spec is not None and spec.loader is not None and spec.submodule_search_locations is None:  # packages are loaded
            spec.loader = LazyLoader(spec.loader)
        return spec
