"""One deliberate error in the package."""

from __future__ import annotations

import ast
import importlib
import inspect
import linecache
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Assigned:
    """An edit of a syntax tree: the only assignment to the variable `name` gives it the
    expression `value`.
    """

    name: str
    value: str

    def __str__(self) -> str:
        return f"{self.name} = {self.value}"

    def edited(self, tree: ast.Module) -> ast.Module:
        found = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and self._is_target(node)
        ]
        assert len(found) == 1, f"{len(found)} assignments to {self.name}; expected one"
        found[0].value = _expression(self.value)
        return tree

    def _is_target(self, node: ast.Assign) -> bool:
        return any(
            isinstance(target, ast.Name) and target.id == self.name for target in node.targets
        )


@dataclass(frozen=True)
class Replaced:
    """An edit of a syntax tree: the only occurrence of the expression `old`, however it is laid
    out, becomes `new`.
    """

    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.old}\n-> {self.new}"

    def edited(self, tree: ast.Module) -> ast.Module:
        editor = _Replacing(_expression(self.old), _expression(self.new))
        tree = editor.visit(tree)
        assert editor.count == 1, f"{self.old!r} stands {editor.count} times; expected once"
        return tree


class _Replacing(ast.NodeTransformer):
    def __init__(self, old: ast.expr, new: ast.expr) -> None:
        self.old, self.new = ast.dump(old), new
        self.count = 0

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, ast.expr) and ast.dump(node) == self.old:
            self.count += 1
            return self.new
        return self.generic_visit(node)


def _expression(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


@dataclass(frozen=True)
class Mutation:
    """The package with one deliberate error.

    `target`: "module:function" or "module:Class.method". It is changed in one of three ways: in its
    source the text `old` is replaced by `new`; its syntax tree is edited by `edit`; or `wrong`, a
    function of the right object, gives the object that takes its place. With `wrong`, a name that
    the module imports from another one is replaced in this module alone. `figures`: the figures
    that have to notice at smoke scale, each with the beginning of the verdict that fails. `tests`:
    tests that have to fail, as "module::function" with the arguments that are no fixtures.
    """

    name: str
    target: str
    old: str = ""
    new: str = ""
    figures: dict[str, str] = field(default_factory=dict)
    tests: tuple[tuple[str, dict[str, Any]], ...] = ()
    edit: Assigned | Replaced | None = None
    wrong: Callable[[Any], Any] | None = None

    @property
    def change(self) -> str:
        """What is changed, as text."""
        if self.wrong is not None:
            return f"{self.target} is another object"
        return str(self.edit or f"{self.old}\n-> {self.new}")

    @contextmanager
    def applied(self) -> Iterator[None]:
        module_name, _, path = self.target.partition(":")
        module: Any = importlib.import_module(module_name)
        *inside, name = path.split(".")
        owner = getattr(module, inside[0]) if inside else module
        right = owner.__dict__[name]
        wrong = self._compiled(right, owner, name) if self.wrong is None else self.wrong(right)
        places = [(owner, name)]
        is_imported = (
            self.wrong is not None and getattr(right, "__module__", module_name) != module_name
        )
        if not inside and not is_imported:  # other modules, and tests, may have imported it by name
            loaded = [
                m
                for key, m in list(sys.modules.items())
                if key.startswith(("uturn", "test_")) and m is not module
            ]
            places += [
                (m, key) for m in loaded for key, value in list(vars(m).items()) if value is right
            ]
        for place, key in places:
            setattr(place, key, wrong)
        try:
            yield
        finally:
            for place, key in places:
                setattr(place, key, right)

    def _compiled(self, right: Any, owner: Any, name: str) -> Any:
        """The function of the changed source, in the module of the right one."""
        source = textwrap.dedent(
            inspect.getsource(getattr(right, "fget", None) or getattr(right, "func", None) or right)
        )
        if self.edit is None:
            count = source.count(self.old)
            assert count == 1, f"{self.target} holds {self.old!r} {count} times; expected once"
            source = source.replace(self.old, self.new)
        else:
            source = ast.unparse(ast.fix_missing_locations(self.edit.edited(ast.parse(source))))
        file = f"<mutation: {self.name}>"
        text = "from __future__ import annotations\n" + source
        linecache.cache[file] = (len(text), None, text.splitlines(True), file)
        module = importlib.import_module(self.target.partition(":")[0])
        made: dict[str, Any] = {}
        exec(compile(text, file, "exec"), module.__dict__, made)
        wrong = made[name]
        if hasattr(wrong, "__set_name__"):
            wrong.__set_name__(owner, name)
        return wrong
