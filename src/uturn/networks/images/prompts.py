"""The prompts of text-conditioned models: one for all items, or one for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from uturn.core.checks import one_line, shown

_MOST, _MOST_BYTES = 2**20, 2**26  # prompts in a file, and its size


class Prompts(NamedTuple):
    """The prompts of a run.

    `texts`: the different ones, in the order of their first item. `rows`: the number of its text for each item, or None if all
    items have the same. `encoders`: digest of what encodes the texts. `given`: the prompt, or the file, as the user gave it.
    """

    texts: tuple[str, ...]
    rows: tuple[int, ...] | None
    encoders: str = ""
    given: str = ""

    def rows_of(self, items: Any) -> np.ndarray:
        """Rows of the texts of items, int64; ValueError if the file has no line for one of them."""
        items = np.asarray(items)
        if self.rows is None:
            return np.zeros(len(items), np.int64)
        if len(items) and int(items.max()) >= len(self.rows):
            raise ValueError(
                f"prompt = {shown(self.given)}: the file has {len(self.rows)} prompts, but the run has an item "
                f"{int(items.max())}; expected one line for each item"
            )
        return np.array(self.rows, np.int64)[items]

    @property
    def words(self) -> str:
        """The prompts in a description."""
        if self.rows is not None:
            return f"{len(self.rows)} prompts of {Path(self.given).name}"
        return f"the prompt {shown(self.given)}" if self.given else "the empty prompt"


def read_prompts(prompt: str) -> Prompts:
    """The prompts that the option `prompt` stands for: a text, or a file NAME.txt with the prompt of one item in each line.

    >>> read_prompts("a cat").texts
    ('a cat',)
    """
    if not isinstance(prompt, str):
        raise ValueError(f"prompt = {shown(prompt)}: expected a text, or the name of a .txt file with one prompt a line")
    if not prompt.endswith(".txt"):
        return Prompts((prompt,), None, given=prompt)
    try:
        if Path(prompt).exists() and not Path(prompt).is_file():
            raise ValueError("it is no file")
        if Path(prompt).stat().st_size > _MOST_BYTES:
            raise ValueError(f"it has more than {_MOST_BYTES // 2**20} MB")
        lines = Path(prompt).read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise ValueError(
            f"prompt = {shown(prompt)} cannot be read ({reason}); expected a text file with one prompt a line"
        ) from None
    if len(lines) > _MOST:
        raise ValueError(f"prompt = {shown(prompt)}: the file has {len(lines)} lines; expected at most {_MOST}")
    texts = dict.fromkeys(line.removesuffix("\r") for line in lines)
    numbers = {text: row for row, text in enumerate(texts)}
    return Prompts(tuple(texts), tuple(numbers[line.removesuffix("\r")] for line in lines), given=prompt)
