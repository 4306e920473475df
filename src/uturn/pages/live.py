"""The page of a folder while a study fills it: what is done so far, written again at intervals, and how far the study is."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from uturn.core.progress import current
from uturn.pages.page import write_page
from uturn.pages.running import RunningStudy
from uturn.store.outputs import OutputFolder

_FIRST, _LEAST = 2.0, 10.0  # seconds until the page is written for the first time, and between two times
_SHARE = 0.02  # largest share of the time that is spent on the page


class LivePage:
    """The page `index.html` of a folder while a study runs.

    A thread writes it, so that the study goes on meanwhile. What it costs is measured, and the time between two pages is chosen
    so that pages take at most 2 % of the time of one core.
    """

    def __init__(self, folder: Path, study: str) -> None:
        self.folder, self.study, self.every = folder, study, _LEAST
        self._words = ""
        self._parts: Any = None
        self._began, self._ended, self._lock = time.time(), threading.Event(), threading.Lock()

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

    def follow(self) -> None:
        """Write the page at intervals until the study ends. A page that cannot be written now is left to the next time."""
        wait = _FIRST
        while not self._ended.wait(wait):
            with suppress(Exception):  # a store that is being written may be read in any state
                self.write()
            wait = self.every

    def end(self) -> None:
        self._ended.set()


@contextmanager
def live_page(folder: OutputFolder, study: str) -> Iterator[LivePage]:
    """Context in which a study fills a folder, and its page follows. Whoever opens the page sees it refresh itself.

    At the end the page says nothing of the study, or, after an error or Ctrl-C, that it was stopped. On object storage pages are
    written only when the study asks for it.
    """
    page = LivePage(folder.path, study)
    thread = threading.Thread(target=page.follow, daemon=True)
    if not folder.is_remote:
        thread.start()
    try:
        yield page
    except BaseException:
        _join(page, thread)
        with suppress(Exception):  # the error of the study is the one to report
            page.write(stopped=True)
        raise
    _join(page, thread)


def _join(page: LivePage, thread: threading.Thread) -> None:
    page.end()
    if thread.is_alive():
        thread.join()
