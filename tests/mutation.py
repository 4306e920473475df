"""One deliberate error in the package."""

from __future__ import annotations

import importlib
import inspect
import linecache
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Mutation:
    """The package with one deliberate error.

    `target`: "module:function" or "module:Class.method", in whose source `old` is replaced by `new`. `figures`: the figures
    that have to notice at smoke scale, each with the beginning of the verdict that fails. `tests`: tests that have to fail,
    as "module::function" with the arguments that are no fixtures.
    """

    name: str
    target: str
    old: str
    new: str
    figures: dict[str, str] = field(default_factory=dict)
    tests: tuple[tuple[str, dict[str, Any]], ...] = ()

    @contextmanager
    def applied(self) -> Iterator[None]:
        module_name, _, path = self.target.partition(":")
        module: Any = importlib.import_module(module_name)
        *inside, name = path.split(".")
        owner = getattr(module, inside[0]) if inside else module
        right = owner.__dict__[name]
        source = textwrap.dedent(inspect.getsource(getattr(right, "fget", None) or getattr(right, "func", None) or right))
        assert source.count(self.old) == 1, f"{self.target} holds {self.old!r} {source.count(self.old)} times; expected once"
        file = f"<mutation: {self.name}>"
        text = "from __future__ import annotations\n" + source.replace(self.old, self.new)
        linecache.cache[file] = (len(text), None, text.splitlines(True), file)
        made: dict[str, Any] = {}
        exec(compile(text, file, "exec"), module.__dict__, made)
        wrong = made[name]
        if hasattr(wrong, "__set_name__"):
            wrong.__set_name__(owner, name)
        places = [(owner, name)]
        if not inside:  # other modules, and tests, may have imported it by name
            loaded = [m for key, m in list(sys.modules.items()) if key.startswith(("uturn", "test_")) and m is not module]
            places += [(m, key) for m in loaded for key, value in list(vars(m).items()) if value is right]
        for place, key in places:
            setattr(place, key, wrong)
        try:
            yield
        finally:
            for place, key in places:
                setattr(place, key, right)
