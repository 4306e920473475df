"""The order of the tasks of a run: which share of them, in which order, and which belong together.

On a Ray cluster, `executors` says which neighbours stay together, and `cluster` makes bundles of
about ten seconds and divides those that fail. In each process, `tasks` begins with tasks that have
no stored trajectories, and `measuring` joins neighbours of one noise level if that changes no bit.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

from uturn.core.protocols import Hints
from uturn.store.blocks import Task

T = TypeVar("T")


@dataclass(frozen=True)
class Left:
    """A task that is left to measure."""

    task: Task
    first: int = 0
    """The first trajectory to measure; the trajectories before it are stored."""


@dataclass(frozen=True)
class Bundle:
    """Tasks that one process measures together."""

    tasks: tuple[Left, ...]


@dataclass(frozen=True)
class Share:
    """One of several shares of the tasks of a run, which other calls measure."""

    number: int = 1
    """1 .. `count`."""
    count: int = 1


def ordered(
    tasks: Iterable[Task],
    noise: Sequence[float],
    hints: Hints,
    share: Share,
    in_turn: bool,
) -> list[Task]:
    """A share of the tasks, in the order in which they are begun.

    Neighbours of one noise level, or of one block of items, are measured together. With several
    processes, or a backward that shares its batches, U-turns of much noise come first, since they
    take longest. All processes, and all images of the last batches, then end at about the same
    time. `in_turn`: whether one process measures all tasks, one after the other.
    """
    if hints.by_items:
        by_block = sorted(tasks, key=lambda task: (task.item_block, task.noise_index))
        return [task for task in by_block if task.item_block % share.count == share.number - 1]
    by_level = sorted(tasks, key=lambda task: task.noise_index)
    if in_turn and not hints.shares_batches and share.count == 1:
        return by_level
    longest_first = sorted(by_level, key=lambda task: -noise[task.noise_index])
    return longest_first[share.number - 1 :: share.count]  # alike in the time that they take


def bundled(left: Sequence[Left], hints: Hints) -> list[Bundle]:
    """Tasks in their order, in bundles for several processes: one task each, or the neighbours of
    one block of items.
    """
    if not hints.by_items:
        return [Bundle((entry,)) for entry in left]
    blocks = groupby(left, key=lambda entry: entry.task.item_block)
    return [Bundle(tuple(block)) for _, block in blocks]


def rotated(tasks: Sequence[Task], hints: Hints) -> list[Task]:
    """Tasks with a random beginning, so that other clusters on the same run begin with others.

    The order of noise levels stays, and with `by_items` what belongs together.
    """
    if hints.by_items:
        blocks = [list(block) for _, block in groupby(tasks, key=lambda task: task.item_block)]
        return [task for block in _from_a_random_place(blocks) for task in block]
    begun: list[Task] = []
    for _, level in groupby(tasks, key=lambda task: task.noise_index):
        begun += _from_a_random_place(list(level))
    return begun


def _from_a_random_place(entries: list[T]) -> list[T]:
    circle = deque(entries)
    circle.rotate(random.randrange(len(circle)))
    return list(circle)
