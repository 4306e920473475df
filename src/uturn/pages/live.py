"""The page of a folder while a study fills it: results so far and progress, rewritten at intervals."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uturn.core.progress import current
from uturn.pages.page import write_page
from uturn.store.outputs import OutputFolder

_FIRST, _LEAST = 2.0, 10.0  # seconds until the first page, and least seconds between pages
_SHARE = 0.02  # largest share of the time spent on pages


@dataclass(frozen=True)
class RunningStudy:
    """A study that is filling the folder of a page, or was stopped.

    `words`: its current activity. `parts`: number of finished parts of the study, number of all parts, and their name, such as
    (2, 25, "figures"). `tasks`: numbers of finished and of all tasks of the current part. `began`, `written`: times at which the
    study began and the page was written, in seconds since 1970. `every`: seconds until the next page. `stopped`: whether the
    study ended early.
    """

    study: str
    words: str
    parts: tuple[int, int, str] | None
    tasks: tuple[float, int] | None
    began: float
    written: float
    every: float
    stopped: bool = False

    @property
    def share(self) -> float | None:
        """Share of the study that is done, 0 .. 1; None if it is unknown."""
        of_part = None if self.tasks is None else self.tasks[0] / max(self.tasks[1], 1)
        if self.parts is None:
            return of_part
        finished, total, _ = self.parts
        return min(1.0, (finished + (of_part or 0.0)) / max(total, 1))

    @property
    def counts(self) -> list[str]:
        """The finished parts and tasks as text."""
        parts = ["{} of {} {}".format(*self.parts)] if self.parts else []
        return parts + ([f"{self.tasks[0]:.0f} of {self.tasks[1]} tasks"] if self.tasks else [])


class LivePage:
    """The page `index.html` of a folder while a study runs.

    A thread writes the page while the study goes on. The interval between pages follows from their measured cost, so that pages
    take at most 2 % of the time of one core.
    """

    def __init__(self, folder: Path, study: str) -> None:
        self.folder, self.study, self.every = folder, study, _LEAST
        self._words = ""
        self._parts: Any = None
        self._began, self._lock = time.time(), threading.Lock()

    def says(self, activity: str, *parts: Any) -> None:
        """Set the activity shown on the next page; `parts`: number of finished parts, of all parts, and their name."""
        self._words, self._parts = activity, parts or None

    def write(self, stopped: bool = False) -> None:
        """Write the page as it is now."""
        with self._lock:
            start = time.thread_time()
            times = self._began, time.time(), self.every
            write_page(self.folder, RunningStudy(self.study, self._words, self._parts, current(), *times, stopped))
            self.every = max(_LEAST, (time.thread_time() - start) / _SHARE)

    def follow(self, ended: threading.Event) -> None:
        """Write the page at intervals until the study ends. A failed write is repeated at the next interval."""
        wait = _FIRST
        while not ended.wait(wait):
            with suppress(Exception):  # the store may be read in the middle of a write
                self.write()
            wait = self.every


@contextmanager
def live_page(folder: OutputFolder, study: str) -> Iterator[LivePage]:
    """Context in which a study fills a folder and the page is updated. An open page refreshes itself.

    The final page does not mention the study, except that it was stopped, after an error or Ctrl-C. On object storage, pages are
    written only when the study calls `write`.
    """
    page, ended, finished = LivePage(folder.path, study), threading.Event(), False
    thread = threading.Thread(target=page.follow, args=[ended], daemon=True)
    if not folder.is_remote:
        thread.start()
    try:
        yield page
        finished = True
    finally:
        ended.set()
        if not folder.is_remote:
            thread.join()
        if not finished:
            with suppress(Exception):  # report the error of the study, not of the page
                page.write(stopped=True)
