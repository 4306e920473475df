"""Public names of a package that are imported on first use, so that importing the package is fast."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def lazy(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], dict[str, str]]:
    """`__getattr__` and `__dir__` of a package, and its public names, {name: import path, with dots and without "uturn."}.

    Public names are those that the package imports under `if TYPE_CHECKING`; they are imported here on first use. Names that
    tools add (`uturn.core.tools.Tool`) may stand there for type checkers, and are found as those of all tools.
    """
    tree = ast.parse(Path(str(sys.modules[package].__file__)).read_text(encoding="utf-8"))
    blocks = [node.body for node in tree.body if isinstance(node, ast.If)]
    imports = [node for block in blocks for node in block if isinstance(node, ast.ImportFrom)]
    homes = {alias.name: str(node.module) for node in imports for alias in node.names}
    homes = {name: home for name, home in homes.items() if not home.startswith("uturn.tools.")}

    def get(name: str) -> Any:
        if name in homes:
            home = homes[name]
            own = home == package  # a module of the package itself
            value = importlib.import_module(f"{home}.{name}") if own else getattr(__import__(home, fromlist=[name]), name)
        else:
            module = f"{package}.{name}"
            is_none = name.startswith("_") or module in sys.modules or find_spec(module)
            path = None if is_none else names_of_tools(package).get(name)
            if path is None:
                raise AttributeError(f"module {package!r} has no attribute {name!r}")
            from uturn.core.imports import import_object  # not before it is needed: this module is the first that is imported

            value = import_object(path, f"{package}.{name} = {path!r}", "'module:name'")
        setattr(sys.modules[package], name, value)
        return value

    paths = {name: f"{home}.{name}".removeprefix("uturn.") for name, home in homes.items()}
    return get, lambda: sorted({*vars(sys.modules[package]), *homes, *names_of_tools(package)}), paths


def names_of_tools(package: str) -> dict[str, str]:
    """{name: import path} of what tools add to a package."""
    from uturn.core.tools import named

    paths = {f"uturn.{name}".rpartition(".")[::2]: path for name, path in named("names").items()}
    return {name: path for (home, name), path in paths.items() if home == package}
