"""A message to the user while numba compiles the kernels."""

from __future__ import annotations

import multiprocessing
import sys
from typing import Any

from numba.core import event


class _Announcement(event.Listener):
    """Prints one line, on terminals and in notebooks, when a kernel of this package is missing in numba's cache on disk."""

    said = False

    def on_start(self, event: Any) -> None:
        ours = event.data["dispatcher"].py_func.__module__.startswith("uturn.")
        if ours and not self.said and ((sys.stderr and sys.stderr.isatty()) or "ipykernel" in sys.modules):
            self.said = True
            print("uturn: compiling kernels for this machine, once (10 to 30 s)", file=sys.stderr, flush=True)

    def on_end(self, event: Any) -> None:
        pass


def announce() -> None:
    """Register the message, except in worker processes."""
    if multiprocessing.parent_process() is None:
        event.register("numba:compile", _Announcement())
