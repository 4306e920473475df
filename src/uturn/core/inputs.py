"""What a part reads besides its options: files, networks, functions of the user. Their digests are the identity of the part."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, get_args

from uturn.core.files import digest_of_file


class Input:
    """Something that a part reads; by default it has no files, no code of the user, and no weights."""

    def files(self) -> Sequence[Any]:
        """Paths on which cached results depend; some may be names of other things."""
        return []

    def own_code(self) -> Any:
        """A function of the user, a digest of whose code is recorded with the results; None if there is none."""
        return None

    def fingerprint(self) -> str:
        """Identity of the weights or of the content; empty if there are none."""
        return ""


@dataclass(frozen=True)
class Content(Input):
    """A file that is read as a whole, if there is one; an option may also take other words than paths."""

    path: str | Path

    def files(self) -> list[Path]:
        return [Path(self.path)]

    def fingerprint(self) -> str:
        return digest_of_file(os.fspath(self.path)) if os.path.isfile(self.path) else ""


File = Annotated[str, Content]
"""Type of a field of a spec: the path of a file. A change of its content is a change of the part."""


@lru_cache(maxsize=256)
def marked(cls: type) -> dict[str, Any]:
    """The fields of a spec whose types are inputs, such as `File`: {name: the input, made from the value of the field}."""
    kinds = {name: next(_marks((field.annotation, *field.metadata)), None) for name, field in cls.model_fields.items()}  # type: ignore[attr-defined]
    return {name: kind for name, kind in kinds.items() if kind is not None}


def _marks(types: Sequence[Any]) -> Iterator[Any]:
    for one in types:
        if isinstance(one, type) and issubclass(one, Input):
            yield one
        yield from _marks(get_args(one))
