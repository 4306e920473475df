"""Public names of a package that are imported on first use, so that importing the package is
fast.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any


def lazy(
    package: str, names: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], dict[str, str]]:
    """`__getattr__` and `__dir__` of a package, and its public names, {name: import path, with dots
    and without "uturn."}.

    `names`: {module: names}, imported from there on first use; modules of the package itself are
    the names of the package. Names that tools add (`uturn.core.tools.Tool`) are found as those of
    all tools.
    """
    homes = {name: module for module, of_module in names.items() for name in of_module}

    def get(name: str) -> Any:
        if name in homes:
            home = homes[name]
            own = home == package  # a module of the package itself
            value = (
                importlib.import_module(f"{home}.{name}")
                if own
                else getattr(__import__(home, fromlist=[name]), name)
            )
        else:
            module = f"{package}.{name}"
            is_none = name.startswith("_") or module in sys.modules or find_spec(module)
            path = None if is_none else names_of_tools(package).get(name)
            if path is None:
                raise AttributeError(f"module {package!r} has no attribute {name!r}")
            # Not before it is needed: this module is the first that is imported.
            from uturn.core.imports import import_object

            value = import_object(path, f"{package}.{name} = {path!r}", "'module:name'")
        setattr(sys.modules[package], name, value)
        return value

    paths = {name: f"{home}.{name}".removeprefix("uturn.") for name, home in homes.items()}
    return (
        get,
        lambda: sorted({*vars(sys.modules[package]), *homes, *names_of_tools(package)}),
        paths,
    )


def names_of_tools(package: str) -> dict[str, str]:
    """{name: import path} of what tools add to a package."""
    from uturn.core.tools import named

    paths = {f"uturn.{name}".rpartition(".")[::2]: path for name, path in named("names").items()}
    return {name: path for (home, name), path in paths.items() if home == package}
