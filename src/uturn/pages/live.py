"""The page of a folder while a study fills it: what is done so far, written again at intervals, and how far the study is."""

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

_FIRST, _LEAST = 2.0, 10.0  # seconds until the page is written for the first time, and between two times
_SHARE = 0.02  # largest share of the time that is spent on the page


@dataclass(frozen=True)
class RunningStudy:
    """A study that is filling the folder of a page, or was stopped.

    `words`: what it is doing. `parts`: finished parts of the study, all of them, and what they are, such as (2, 25, "figures").
    `tasks`: tasks of this part that are done, and all of them. `began`, `written`: when the study began, and when this page was
    written, in seconds since 1970. `every`: seconds until the next page. `stopped`: whether it has ended early.
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
        """The finished parts and tasks in words."""
        parts = ["{} of {} {}".format(*self.parts)] if self.parts else []
        return parts + ([f"{self.tasks[0]:.0f} of {self.tasks[1]} tasks"] if self.tasks else [])


class LivePage:
    """The page `index.html` of a folder while a study runs.

    A thread writes it, so that the study goes on meanwhile. What it costs is measured, and the time between two pages is chosen
    so that pages take at most 2 % of the time of one core.
    """

    def __init__(self, folder: Path, study: str) -> None:
        self.folder, self.study, self.every = folder, study, _LEAST
        self._words = ""
        self._parts: Any = None
        self._began, self._lock = time.time(), threading.Lock()

    def says(self, words: str, *parts: Any) -> None:
        """What the study is doing, for the next page; `parts`: finished parts, all of them, and their name."""
        self._words, self._parts = words, parts or None

    def write(self, stopped: bool = False) -> None:
        """Write the page as it is now."""
        with self._lock:
            start = time.thread_time()
            times = self._began, time.time(), self.every
            write_page(self.folder, RunningStudy(self.study, self._words, self._parts, current(), *times, stopped))
            self.every = max(_LEAST, (time.thread_time() - start) / _SHARE)

    def follow(self, ended: threading.Event) -> None:
        """Write the page at intervals until the study ends. A page that cannot be written now is left to the next time."""
        wait = _FIRST
        while not ended.wait(wait):
            with suppress(Exception):  # a store that is being written may be read in any state
                self.write()
            wait = self.every


@contextmanager
def live_page(folder: OutputFolder, study: str) -> Iterator[LivePage]:
    """Context in which a study fills a folder, and its page follows. Whoever opens the page sees it refresh itself.

    At the end the page says nothing of the study, or, after an error or Ctrl-C, that it was stopped. On object storage pages are
    written only when the study asks for it.
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
            with suppress(Exception):  # the error of the study is the one to report
                page.write(stopped=True)
