"""Tasks of a run on a cluster: the choice of a worker's next tasks, and the search for tasks that make workers die."""

from __future__ import annotations

import logging
import random
from collections import Counter, deque
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

_log = logging.getLogger("uturn")
MOST_TRIES = 3  # largest number of tries of a task that raises, or whose worker dies
_GROWTH = 8  # largest ratio of the sizes of two bundles
_SPREAD = 0.25  # share of the cost by which the order of tasks is random


@dataclass(eq=False)
class Bundle:
    """Tasks given to a worker together.

    `suspect`: a worker died with these tasks, or one of them raised, so they are measured separately from others. `alone`: their
    worker had no other bundle.
    """

    tasks: list[Any]
    suspect: bool = False
    alone: bool = True


class Bundles:
    """The tasks of a run, in bundles of about the desired duration.

    Parameters
    ----------
    groups
        Pairs (cost, tasks). Costly tasks come first. Tasks of a group are neighbours, which are efficiently measured together.
    seconds
        Desired duration of a bundle.
    label
        Function that describes a task in messages.
    """

    def __init__(self, groups: Collection[tuple[float, Sequence[Hashable]]], seconds: float, label: Callable[[Any], str]) -> None:
        self.groups = [(cost, list(tasks)) for cost, tasks in groups]
        self.seconds, self.label = seconds, label
        self.returned: deque[Bundle] = deque()
        self.left: set[Hashable] = {task for _, tasks in self.groups for task in tasks}
        self.tries: Counter[Hashable] = Counter()
        self.failed: dict[Hashable, str] = {}
        self.size, self.any_done = 1, False

    def next_for(self, busy: Collection[Bundle], slots: int) -> Bundle | None:
        """The next bundle for a worker that already has others; None if there is none for it.

        `slots`: number of bundles that all workers together hold at the same time.
        """
        if any(bundle.suspect for bundle in busy):
            return None
        if self.returned and not (busy and self.returned[0].suspect):
            return self.returned.popleft()
        tasks = self._neighbours(slots)
        return Bundle(tasks) if tasks else None

    def _neighbours(self, slots: int) -> list[Any]:
        """Some neighbours of one group: costly groups first, partly at random, so that other clusters take other tasks."""
        self.groups = [(cost, tasks) for cost, tasks in self.groups if tasks]
        if not self.groups:
            return []
        _, tasks = max(self.groups, key=lambda group: (1 - _SPREAD * random.random()) * group[0])
        if self.tries and not self.any_done:
            _, tasks = random.choice(self.groups)  # in case only the costly tasks fail
        # The last bundles are smaller, so that all workers end at about the same time.
        size = max(1, min(self.size, sum(len(waiting) for _, waiting in self.groups) // (2 * slots)))
        first = max(0, min(random.randrange(len(tasks)), len(tasks) - size))
        neighbours = tasks[first : first + size]
        del tasks[first : first + size]
        return neighbours

    def finished(self, bundle: Bundle, measured: int, seconds: float) -> None:
        """Record that the tasks of a bundle are done; `measured` of them were new, and took `seconds`."""
        self.left.difference_update(bundle.tasks)
        self.any_done = True
        if measured:
            fitting = int(self.seconds / max(seconds / measured, 1e-4))  # with all slots busy
            self.size = max(1, min(fitting, _GROWTH * len(bundle.tasks), _GROWTH * self.size))

    def died(self, bundles: Sequence[Bundle], host: str, reason: str) -> None:
        """Record the death of a worker that had these bundles."""
        count = sum(len(bundle.tasks) for bundle in bundles)
        if count != 1:
            _log.warning(f"a worker on {host} died ({reason}); its {count} tasks are handed out again")
        for bundle in bundles:
            self.blame(bundle, f"the worker died ({reason})", f"was alone on {host}")

    def blame(self, bundle: Bundle, error: str, what: str) -> None:
        """Retry tasks after an error or a death: without others if they had company, else in halves, else a single task again.

        ValueError if the first tasks all fail, since the others would probably fail, too.
        """
        if bundle.alone and len(bundle.tasks) == 1:
            (task,) = bundle.tasks
            self.tries[task] += 1
            _log.warning(f"{self.label(task)} {what}, time {self.tries[task]} of {MOST_TRIES}: {error}")
            if self.tries[task] >= MOST_TRIES:
                self.failed[task] = error
                self.left.discard(task)
                if len(self.failed) == MOST_TRIES and not self.any_done:
                    raise ValueError(f"the first {MOST_TRIES} tasks failed, and none is done: {error}")
                return
        middle = -(-len(bundle.tasks) // 2) if bundle.alone else len(bundle.tasks)
        self.returned.extend(Bundle(tasks, suspect=True) for tasks in (bundle.tasks[:middle], bundle.tasks[middle:]) if tasks)
