"""Progress of long computations, also within a task: a bar on terminals and in notebooks, lines in logs.

Work is counted in tasks. Code that computes a task opens the context `begun`. Loops inside it report by `steps`, `part` or `add`,
which advance the current work of the thread and do nothing if there is none. `in_progress` sums the unfinished work.
"""

from __future__ import annotations

import contextlib
import math
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

from uturn.core.display import bar

T = TypeVar("T")

# Logs get a line after each tenth of the tasks, at most every ten seconds, and after each minute without a line.
_TENTHS = 10
_SECONDS = 10.0
_MINUTE = 60.0
_LOOK = {True: 0.2, False: 1.0}  # seconds between updates, for bars and for logs


# -- reports from inside a task ----------------------------------------------------------------------------------------------
class Unfinished:
    """Unfinished work in tasks: `done`, the `end` of the current part, and the `unit` of `add`."""

    def __init__(self, done: float, end: float, unit: float = 0.0) -> None:
        self.done, self.end, self.unit = done, end, unit

    def finished(self, tasks: float) -> None:
        """Remove finished tasks from this work."""
        self.done, self.end = max(0.0, self.done - tasks), max(0.0, self.end - tasks)
        _publish()


class _Here(threading.local):
    """The current work of this thread."""

    work: Unfinished = Unfinished(0.0, 0.0)  # a placeholder that is not counted


_here = _Here()
_all: list[Callable[[], float]] = []  # functions: progress of the unfinished work of each thread and of other processes
_put: Callable[[float], None] | None = None  # see `publish_to`


def in_progress() -> float:
    """Work done on unfinished tasks, in tasks, in this process and in the processes that it listens to.

    It can be called from any thread.
    """
    return math.fsum(done() for done in list(_all))


@contextmanager
def begun(tasks: float, done: float = 0.0, unit: float = 0.0) -> Iterator[Unfinished]:
    """Context in which this thread works on `tasks` tasks, `done` of which were done before.

    At its end the work leaves `in_progress`; finished tasks are then counted by the function of `progress_bar`. `unit`: size in
    tasks of one unit of `add`.
    """
    outer, work = _here.work, Unfinished(done, tasks, unit)
    _here.work = work
    try:
        with listening(lambda: work.done):
            yield work
    finally:
        _here.work = outer
        _publish()


@contextmanager
def _until(end: float) -> Iterator[None]:
    """Context for a part of the work that ends when `end` tasks are done."""
    work = _here.work
    outer, work.end = work.end, end
    try:
        yield
        work.done = max(work.done, end)
    finally:
        work.end = outer
        _publish()


def part(share: float) -> AbstractContextManager[None]:
    """Context for a part of the work that counts as this share of the remaining work of the enclosing part."""
    work = _here.work
    return _until(work.done + share * max(0.0, work.end - work.done))


def portion(count: float) -> AbstractContextManager[None]:
    """Context for a part of the work that counts as a number of units of `add`."""
    work = _here.work
    return _until(work.done + count * work.unit)


def steps(items: Collection[T]) -> Iterator[T]:
    """Iterate over items; each counts as an equal part of the remaining work of the enclosing part."""
    work = _here.work
    begin, outer = work.done, work.end
    width = max(0.0, outer - begin) / max(1, len(items))
    try:
        for number, item in enumerate(items, 1):
            work.end = min(begin + number * width, outer)
            yield item
            work.done = max(work.done, work.end)
            _publish()
    finally:
        work.end = outer


@contextmanager
def units(count: float) -> Iterator[None]:
    """Context for a part of the work that is reported only by `add`, in `count` units."""
    work = _here.work
    end, unit = work.end, work.unit
    work.unit, work.end = max(0.0, end - work.done) / max(count, 1), work.done
    try:
        yield
    finally:
        work.end, work.unit = end, unit


def add(number: float = 1.0) -> None:
    """Report that units of the work are done."""
    work = _here.work
    work.done += number * work.unit
    _publish()


@contextmanager
def listening(ask: Callable[[], float]) -> Iterator[None]:
    """Context in which `in_progress` includes the work of other processes.

    `ask()` returns the work done on their unfinished tasks, in tasks. It must exclude a task as soon as that is counted as
    finished.
    """
    _all.append(ask)
    try:
        yield
    finally:
        _all.remove(ask)


def publish_to(put: Callable[[float], None]) -> None:
    """Call `put(in_progress())` whenever work advances in this process, for another process to read."""
    global _put
    _put = put


def _publish() -> None:
    if _put is not None:
        _put(in_progress())


# -- display -------------------------------------------------------------------------------------------------------------------
@contextmanager
def progress_bar(wanted: bool, title: str, total: int, done: int, note: Callable[[], str] = str) -> Iterator[Callable[[], None]]:
    """Context whose value is a function to call after each task; if `wanted`, progress is shown on stderr or in a notebook.

    Between two tasks, the bar follows the work begun inside this context. `note()` returns a text that follows the title.
    """
    if not wanted or sys.stderr is None:
        yield lambda: None
        return
    draw = _cell if _in_notebook() else _bar if sys.stderr.isatty() else _lines
    with draw(title, total, done, note) as count:
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(_LOOK[draw is not _lines]):
                with contextlib.suppress(OSError, ValueError):  # stderr was closed
                    count.tell()

        watcher = threading.Thread(target=look, daemon=True)
        watcher.start()
        try:
            yield count.advance
        finally:
            ended.set()
            watcher.join()


class _Count:
    """The count of finished tasks, displayed by `show(done, finished)`."""

    def __init__(self, total: int, finished: int, show: Callable[[float, int], None]) -> None:
        self.total, self.finished, self._show = total, finished, show
        self.shown, self._outside, self._lock = float(finished), list(_all), threading.Lock()

    def advance(self) -> None:
        """Count one more finished task."""
        with self._lock:
            self.finished += 1
        self.tell()

    def tell(self) -> None:
        """Show the progress; it never decreases or exceeds the total."""
        with self._lock:
            inside = math.fsum(done() for done in list(_all) if done not in self._outside)
            self.shown = max(self.shown, min(self.finished + inside, self.total))
            self._show(self.shown, self.finished)


@contextmanager
def _bar(title: str, total: int, done: int, note: Callable[[], str]) -> Iterator[_Count]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    text, columns = TextColumn("{task.description}"), (MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(text, BarColumn(), TaskProgressColumn(), *columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(title, total=total, completed=done)
        yield _Count(total, done, lambda now, finished: bars.update(task, description=title + note(), completed=now))


def _in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return getattr(shell, "kernel", None) is not None


@contextmanager
def _cell(title: str, total: int, done: int, note: Callable[[], str]) -> Iterator[_Count]:
    """A bar below the cell of a notebook, redrawn in place and left there at the end."""
    from IPython.display import display

    start, drawn = time.monotonic(), -math.inf

    def picture(now: float, finished: int, rate: str = "") -> dict[str, str]:
        text = f"{title}{note()}: {finished} of {total}{rate}"
        return {"text/html": bar(now / total if total else 1.0, text).text, "text/plain": text}

    def show(now: float, finished: int) -> None:
        nonlocal drawn
        clock = time.monotonic()
        if clock - drawn >= _LOOK[True]:
            drawn, rate = clock, _rate(now - done, total - now, clock - start) if now > done else ""
            place.update(picture(now, finished, rate), raw=True)

    place, count = display(picture(done, done), raw=True, display_id=True), _Count(total, done, show)
    try:
        yield count
    finally:
        place.update(picture(count.finished, count.finished), raw=True)


@contextmanager
def _lines(title: str, total: int, done: int, note: Callable[[], str]) -> Iterator[_Count]:
    start = last = time.monotonic()
    last_tenths = _TENTHS * done // total if total else 0

    def show(now: float, finished: int) -> None:
        nonlocal last, last_tenths
        clock, tenths = time.monotonic(), math.floor(_TENTHS * now / max(total, 1))
        quiet = clock - last
        if (tenths > last_tenths and quiet >= _SECONDS) or (quiet >= _MINUTE and finished < total):
            last, last_tenths = clock, tenths
            count, rate = f"{finished}" if now == finished else f"{now:.2f}", _rate(now - done, total - now, clock - start)
            print(f"{title}{note()}: {count} of {total}{rate}", file=sys.stderr, flush=True)

    yield _Count(total, done, show)


def _rate(done: float, left: float, seconds: float) -> str:
    """Rate and remaining time, as text that follows the number of tasks."""
    if not left:
        return ""
    if done <= 0:
        return f", nothing new after {duration(seconds)}"
    rate = 60 * done / max(seconds, 1e-9)
    pace = f"{rate:.3g} a minute" if rate >= 1 else f"{60 * rate:.3g} an hour"
    return f", {pace}, about {duration(left * seconds / done)} left"


def duration(seconds: float) -> str:
    """A time as text.

    >>> [duration(t) for t in (0.23, 42, 90, 200, 4000, 400_000)]
    ['0.23 s', '42 s', '90 s', '3.3 min', '67 min', '4.6 days']
    """
    unit, size = "days", 86400
    if seconds < 48 * 3600:
        unit, size = ("s", 1) if seconds < 100 else ("min", 60) if seconds < 6000 else ("h", 3600)
    value = seconds / size
    return f"{value:.0f} {unit}" if value >= 10 else f"{value:.2g} {unit}"
