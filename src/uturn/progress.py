"""Progress of long computations: a bar on terminals, lines in logs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Logs get a line after each tenth of the tasks, but at most one in ten seconds.
_TENTHS = 10
_SECONDS = 10.0


@contextmanager
def progress_bar(wanted: bool, title: str, total: int, done: int) -> Iterator[Callable[[], None]]:
    """Context whose value is a function to call after each task; if `wanted`, it shows the progress on stderr."""
    if not wanted:
        yield lambda: None
    elif sys.stderr.isatty():
        with _bar(title, total, done) as advance:
            yield advance
    else:
        yield _lines(title, total, done)


@contextmanager
def _bar(title: str, total: int, done: int) -> Iterator[Callable[[], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total, completed=done)
        yield lambda: bar.advance(task)


def _lines(title: str, total: int, done: int) -> Callable[[], None]:
    start = last = time.monotonic()
    count, told = done, _TENTHS * done // total if total else 0

    def advance() -> None:
        nonlocal last, count, told
        count += 1
        now, tenths = time.monotonic(), _TENTHS * count // total
        if tenths > told and now - last >= _SECONDS:
            last, told = now, tenths
            left = (now - start) * (total - count) / (count - done)
            print(f"{title}: {count} of {total}" + (f", about {left:.0f} s left" if left else ""), file=sys.stderr, flush=True)

    return advance
