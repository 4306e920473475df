"""Tasks: the noise levels and the items of a run, cut into pieces that are measured and stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True)
class Task:
    """One noise level and one block of items: the unit of work, of storage and of resuming."""

    noise_index: int
    item_block: int


class Extent(NamedTuple):
    """What a task measures."""

    noise: float
    first_item: int
    last_item: int


@dataclass(eq=False, repr=False)
class Blocks:
    """Noise levels and items of a run, cut into tasks."""

    chunk: int
    """Items of a task."""
    num_items: int
    noise: Sequence[float]

    def tasks(self) -> Iterator[Task]:
        for block in range(-(-self.num_items // self.chunk)):
            for level in range(len(self.noise)):
                yield Task(level, block)

    def span(self, task: Task) -> slice:
        """The items of a task as a slice of all items."""
        start = task.item_block * self.chunk
        return slice(start, min(start + self.chunk, self.num_items))

    def items(self, task: Task) -> np.ndarray:
        """Numbers of the items of a task."""
        span = self.span(task)
        return np.arange(span.start, span.stop)

    def extent(self, task: Task) -> Extent:
        """Noise level, first and last item of a task."""
        span = self.span(task)
        return Extent(float(self.noise[task.noise_index]), span.start, span.stop - 1)

    def words(self, task: Task) -> str:
        """A task as text: its noise level and its items."""
        extent = self.extent(task)
        return f"noise {extent.noise:g}, items {extent.first_item}..{extent.last_item}"
