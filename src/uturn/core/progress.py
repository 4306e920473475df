"""Progress of long computations, also within a task: a bar on terminals, a text in notebooks, lines
in logs.

Work is counted in tasks. Code that computes tasks opens the context `begun`; loops in it report by
`steps`, `part`, `portion`, `units` or `add`, which do nothing if there is no work.
"""

from __future__ import annotations

import ctypes
import math
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import Any, TypeVar

T = TypeVar("T")

# Logs get a line after each tenth of the tasks, at most every ten seconds, and after each minute
# without a line.
_TENTHS = 10
_SECONDS = 10.0
_MINUTE = 60.0
_LOOK = 0.2  # seconds between updates


class _Work:
    """Unfinished work of this process in tasks: what is `done`, the `end` of the current part,
    and the `unit` of `add`.
    """

    done: Any = ctypes.c_double()  # in a worker process, memory that its parent reads
    end = unit = 0.0


_work = _Work()
# Functions: progress of the unfinished work of other processes.
_others: list[Callable[[], float]] = []


def in_progress() -> float:
    """Work done on unfinished tasks, in tasks, in this process and in the processes that it
    listens to.
    """
    return math.fsum((_work.done.value, *(done() for done in list(_others))))


@contextmanager
def _inside(end: float, unit: float) -> Iterator[None]:
    outer = _work.end, _work.unit
    _work.end = end
    _work.unit = unit
    try:
        yield
    finally:
        _work.end, _work.unit = outer


@contextmanager
def begun(tasks: float, unit: float = 0.0) -> Iterator[None]:
    """Context of work on `tasks` tasks, which leaves `in_progress` at its end. `unit`: size in
    tasks of one unit of `add`.
    """
    before = _work.done.value
    with _inside(before + tasks, unit):
        try:
            yield
        finally:
            _work.done.value = before


@contextmanager
def _until(end: float) -> Iterator[None]:
    """Context for a part of the work that ends when `end` tasks are done."""
    with _inside(end, _work.unit):
        yield
        _work.done.value = max(_work.done.value, end)


def part(share: float) -> AbstractContextManager[None]:
    """Context for a part of the work that counts as this share of the remaining work of the
    enclosing part.
    """
    return _until(_work.done.value + share * max(0.0, _work.end - _work.done.value))


def portion(count: float) -> AbstractContextManager[None]:
    """Context for a part of the work that counts as a number of units of `add`."""
    return _until(_work.done.value + count * _work.unit)


def steps(items: Collection[T]) -> Iterator[T]:
    """Iterate over items; each counts as an equal part of the remaining work of the enclosing
    part.
    """
    for number, item in enumerate(items):
        with part(1 / (len(items) - number)):
            yield item


def units(count: float) -> AbstractContextManager[None]:
    """Context for the remaining work of the enclosing part, which is reported only by `add`, in
    `count` units.
    """
    return _inside(_work.done.value, max(0.0, _work.end - _work.done.value) / max(count, 1))


def add(number: float = 1.0) -> None:
    """Report that units of the work are done; a negative number takes away those of finished
    tasks.
    """
    _work.done.value += number * _work.unit


@contextmanager
def listening(ask: Callable[[], float]) -> Iterator[None]:
    """Context in which `in_progress` includes the work of other processes: `ask()`, on their
    unfinished tasks, in tasks.
    """
    _others.append(ask)
    try:
        yield
    finally:
        _others.remove(ask)


def write_to(cell: Any) -> None:  # noqa: ANN401 - of ctypes, whose type is not public
    """Keep the work done in `cell.value`, a number in memory that another process reads."""
    _work.done = cell


@contextmanager
def progress_bar(
    wanted: bool,
    title: str,
    total: int,
    done: int,
    note: Callable[[], str] = str,
    unit: str = "tasks",
) -> Iterator[Callable[[], None]]:
    """Context whose value is a function to call after each task; if `wanted`, progress is shown.
    `note()` follows the title; `unit` is what is counted.
    """
    if not wanted or sys.stderr is None:
        yield lambda: None
        return
    count = _Count(title, total, done, note, unit)
    ended = threading.Event()
    with ExitStack() as stack:
        show = _display(count, stack)

        def look() -> None:
            is_over = False
            while not is_over:
                is_over = ended.wait(_LOOK)
                with suppress(OSError, ValueError):  # stderr was closed
                    count.look()
                    show()

        watcher = threading.Thread(target=look, daemon=True)
        watcher.start()
        try:
            yield count.advance
        finally:
            ended.set()
            watcher.join()


class _Count:
    """The number of finished tasks, and `shown`, with the unfinished ones."""

    def __init__(
        self,
        title: str,
        total: int,
        done: int,
        note: Callable[[], str] = str,
        unit: str = "tasks",
    ) -> None:
        self.title = title
        self.unit = unit
        self.total = total
        self.done = done
        self.note = note
        self.finished = done
        self.shown = float(done)
        self._outside = in_progress()
        self._start = time.monotonic()

    def advance(self) -> None:
        self.finished += 1

    def look(self) -> None:
        """Update what is shown; it never decreases or exceeds the total."""
        self.shown = max(self.shown, min(self.finished + in_progress() - self._outside, self.total))

    def text(self) -> str:
        """The count in one line, with the rate and the remaining time."""
        return f"{self.heading}: {self.numbers()}"

    @property
    def heading(self) -> str:
        return f"{self.title}{self.note()}"

    def numbers(self) -> str:
        """What is done and left, the rate, and the remaining time."""
        left = self.total - self.shown
        seconds = time.monotonic() - self._start
        rate = _rate(self.shown - self.done, left, seconds)
        return in_words(self.shown, self.total, self.unit) + rate


def _display(count: _Count, stack: ExitStack) -> Callable[[], None]:
    """What shows a count: a bar on a terminal, a text that is replaced in a notebook, lines in a
    log.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if getattr(shell, "kernel", None) is not None:
        return _in_a_notebook(count)
    if sys.stderr.isatty():
        return _on_a_terminal(count, stack)
    return _Log(count).line


def _in_a_notebook(count: _Count) -> Callable[[], None]:
    from IPython.display import display

    place = display({"text/plain": count.text()}, raw=True, display_id=True)
    return lambda: place.update({"text/plain": count.text()}, raw=True)


def _on_a_terminal(count: _Count, stack: ExitStack) -> Callable[[], None]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Column

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[numbers]}", markup=False, table_column=Column(no_wrap=False)),
    )
    bars = Progress(*columns, console=Console(stderr=True), transient=True)
    stack.enter_context(bars)
    task = bars.add_task(
        count.heading, total=count.total, completed=count.done, numbers=count.numbers()
    )

    def show() -> None:
        bars.update(task, description=count.heading, completed=count.shown, numbers=count.numbers())

    return show


class _Log:
    """Lines of a log: one after each tenth of the tasks, and one after each quiet minute."""

    def __init__(self, count: _Count) -> None:
        self.count = count
        self.time_of_line = time.monotonic()
        self.tenths = _TENTHS * count.done // max(count.total, 1)

    def line(self) -> None:
        """Print a line if it is due."""
        now = time.monotonic()
        quiet = now - self.time_of_line
        tenths = math.floor(_TENTHS * self.count.shown / max(self.count.total, 1))
        is_further = tenths > self.tenths and quiet >= _SECONDS
        is_waiting = quiet >= _MINUTE and self.count.finished < self.count.total
        if is_further or is_waiting:
            self.time_of_line = now
            self.tenths = tenths
            print(self.count.text(), file=sys.stderr, flush=True)


def in_words(done: float, total: int, unit: str = "tasks") -> str:
    """How much is done and left, as all commands say it.

    >>> in_words(3, 8), in_words(3.25, 8), in_words(8, 8, "steps")
    ('3 of 8 tasks done, 5 left', '3.25 of 8 tasks done, 4.75 left', '8 of 8 steps done')
    >>> in_words(1030.4, 1400)
    '1,030 of 1,400 tasks done, 370 left'
    """
    if total >= _MANY:
        done = math.floor(done)
    form = ",.0f" if done == int(done) else ",.2f"
    left = f", {total - done:{form}} left" if done < total else ""
    return f"{done:{form}} of {total:,} {unit} done{left}"


def _rate(done: float, left: float, seconds: float) -> str:
    """The rate and the remaining time, after a comma; empty when nothing is left."""
    if not left:
        return ""
    if done <= 0:
        return f", nothing new after {duration(seconds)}" if seconds >= _SECONDS else ""
    time_left = duration(left * seconds / done)
    return f", {_pace(done / max(seconds, 1e-9))}, about {time_left} left"


def _pace(a_second: float) -> str:
    """A rate in words, a second, a minute or an hour, so that it is not a small fraction."""
    if a_second >= 10:
        rate = a_second
        unit = "a second"
    elif 60 * a_second >= 1:
        rate = 60 * a_second
        unit = "a minute"
    else:
        rate = 3600 * a_second
        unit = "an hour"
    return f"{rate:,.0f} {unit}" if rate >= 100 else f"{rate:.3g} {unit}"


_MANY = 100
"""From this number of tasks on, only whole tasks are counted."""
_UNITS_OF_TIME = (
    ("s", 1, 100.0),
    ("min", 60, 6000.0),
    ("h", 3600, 48 * 3600.0),
    ("days", 86400, math.inf),
)
"""Name and seconds of each unit, and the seconds from which the next one is used."""


def duration(seconds: float) -> str:
    """A time as text.

    >>> [duration(t) for t in (0.23, 42, 90, 200, 4000, 400_000)]
    ['0.23 s', '42 s', '90 s', '3.3 min', '67 min', '4.6 days']
    """
    unit, size, _ = next(row for row in _UNITS_OF_TIME if seconds < row[2])
    value = seconds / size
    return f"{value:.0f} {unit}" if value >= 10 else f"{value:.2g} {unit}"
