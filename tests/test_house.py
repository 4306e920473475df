"""Imports inside the package: a module imports from layers below its own, or from its own, and
never in a circle.
"""

import ast
import importlib
import re
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import uturn
from uturn.core.tools import STUB, stub

ROOT = Path(uturn.__file__).parent
PAGE = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
# From the top floor to the cellar: the table of the page. The rooms of one line do not import each
# other.
_ROW = re.compile(r"\| `\w+/`")
FLOORS = [
    re.findall(r"`(\w+)/`", line.split("|")[1]) for line in PAGE.splitlines() if _ROW.match(line)
]
PARTS = {"sources", "corruption", "backward", "probes"}


@cache
def modules(with_types=True):
    """{module: the modules of the package that it imports, anywhere in its text}; with or without
    what type checkers alone import. The names that a package serves on first use are not counted.
    """
    names = {
        path: ".".join(("uturn", *path.relative_to(ROOT).with_suffix("").parts))
        for path in ROOT.rglob("*.py")
    }
    names = {path: name.removesuffix(".__init__") for path, name in names.items()}
    found = {}
    for path, name in names.items():
        tree, imported = ast.parse(path.read_text(encoding="utf-8")), set()
        typing_only = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        ]
        skipped = set()
        if path.name == "__init__.py" or not with_types:
            skipped = {id(inner) for node in typing_only for inner in ast.walk(node)}
        for node in ast.walk(tree):
            if id(node) in skipped or not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            for alias in node.names:
                whole = (
                    f"{node.module}.{alias.name}"
                    if isinstance(node, ast.ImportFrom)
                    else alias.name
                )
                imported.add(whole if whole in names.values() else whole.rpartition(".")[0])
        found[name] = {other for other in imported if other in names.values() and other != name}
    return found


def room(module):
    return [*module.split("."), "__init__"][1]


def test_no_module_imports_from_a_floor_above():
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    rooms = {room(module) for module in modules()} - {"__init__"}
    assert rooms == set(floor), "every room has a floor"
    upward = [
        f"{module} imports {other}"
        for module, imported in modules().items()
        for other in imported
        if room(module) != room(other)
        and "__init__" not in (room(module), room(other))
        and not floor[room(module)] < floor[room(other)]
    ]
    assert upward == []


def test_studies_stores_and_the_engine_import_no_part():
    """They know parts by their protocols, and readings by what is stored; a study of texts names
    their source to type checkers alone.
    """
    found = [
        (module, other)
        for module, imported in modules(with_types=False).items()
        for other in imported
        if room(other) in PARTS
    ]
    assert [pair for pair in found if room(pair[0]) in ("core", "engine", "store", "studies")] == []


def test_no_circles():
    graph = {module: imported - {"uturn"} for module, imported in modules().items()}
    # A package stands for what it exports; its own modules may import each other, but not the
    # package.
    assert list(TopologicalSorter(graph).static_order())


def test_only_commands_and_tools_import_figures():
    figures = [
        module
        for module, imported in modules().items()
        if any(room(other) == "paper" for other in imported)
    ]
    assert {room(module) for module in figures} <= {"paper", "cli", "tools"}


def test_the_package_names_no_tool():
    """So that type checkers accept it without one; their names stand in a file that the tools
    write.
    """
    naming = [
        path.relative_to(ROOT).as_posix()
        for path in ROOT.rglob("*.py")
        if re.search(r"(from|import) uturn\.tools", path.read_text())
        and path.relative_to(ROOT).parts[0] != "tools"
    ]
    assert naming == []
    assert STUB.read_text() == stub()


def test_no_tool_imports_another():
    def tool(module):
        return module.split(".")[2] if room(module) == "tools" and module != "uturn.tools" else ""

    pairs = [
        (module, other)
        for module, imported in modules().items()
        for other in imported
        if tool(module) and tool(other)
    ]
    assert [pair for pair in pairs if tool(pair[0]) != tool(pair[1])] == []


@pytest.mark.parametrize(
    "package",
    sorted(
        path.parent for path in ROOT.rglob("__init__.py") if "lazy(__name__" in path.read_text()
    ),
)
def test_lazy_names_are_those_that_type_checkers_read(package):
    """Both lists stand in the `__init__.py`; names of tools are found as those of all tools."""
    tree = ast.parse((package / "__init__.py").read_text())
    typed = {}
    for block in tree.body:
        if isinstance(block, ast.If):
            for node in block.body:
                for alias in node.names:
                    if node.module != "uturn._tool_names":
                        typed.setdefault(node.module, set()).add(alias.name)
    name = ".".join(("uturn", *package.relative_to(ROOT).parts))
    served = {
        module: set(names)
        for module, names in getattr(importlib.import_module(name), "_NAMES", {}).items()
    }
    assert served == typed
