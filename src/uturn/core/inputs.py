"""What has an identity: parts, and what they read besides their options, such as files,
networks, functions of the user.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np

from uturn.core.caches import digest_of_file

Table = dict[str, Any]
"""A table of a spec: plain data, as in a JSON file."""


def plain(value: Any) -> Any:  # noqa: ANN401 - a table of any shape
    """Tables and lists with numpy arrays and numbers replaced by Python types, for JSON."""
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value


class Input:
    """A part, or something that a part reads; by default it has no files, no code of the user,
    and no weights.
    """

    def files(self) -> Sequence[str | Path]:
        """Paths of the files and folders that are read. Results cached from them are computed
        again when they change.
        """
        return []

    def own_code(self) -> object:
        """A user-defined function among the options, a digest of whose code is recorded with the
        results; None without one.
        """
        return None

    def fingerprint(self) -> str:
        """Identity of weights or data files, recorded with the results; empty if there are none."""
        return ""


@dataclass(frozen=True)
class Content(Input):
    """A file that is read as a whole, if there is one; an option may also take other words than
    paths.
    """

    path: str | Path

    def files(self) -> list[Path]:
        return [Path(self.path)]

    def fingerprint(self) -> str:
        return digest_of_file(os.fspath(self.path)) if os.path.isfile(self.path) else ""


File = Annotated[str, Content]
"""Type of a field of a spec: the path of a file. A change of its content is a change of the
part.
"""


@lru_cache(maxsize=256)
def marked(cls: type) -> dict[str, Any]:
    """The fields of a spec whose types are inputs, such as `File`: {name: the input, made from
    the value of the field}.
    """
    fields = cls.model_fields.items()  # type: ignore[attr-defined]  # of a pydantic model
    kinds = {name: next(_marks((of.annotation, *of.metadata)), None) for name, of in fields}
    return {name: kind for name, kind in kinds.items() if kind is not None}


def _marks(types: Sequence[Any]) -> Iterator[Any]:
    for one in types:
        if isinstance(one, type) and Input in one.__mro__:
            yield one
        yield from _marks(get_args(one))
