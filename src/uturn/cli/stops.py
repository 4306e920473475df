"""Ctrl-C and SIGTERM, which end a command: what is done is kept. Later signals do not interrupt the
exit.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
import time
from typing import Any


class Stops:
    """The handler of both signals.

    The first signal raises KeyboardInterrupt. Libraries may turn that into another error on its way
    out, such as "release unlocked lock" of a condition that was waited for. After a signal, any
    error that ends the command is therefore a stop.

    Further signals are ignored: Slurm may send SIGTERM twice, to the script of a job, which
    forwards it, and to the processes. A second Ctrl-C after `PATIENCE` seconds ends the process at
    once, in case the way out takes long; what is in a store is safe.

    Attributes
    ----------
    number : the signal that stops the command, or None.
    """

    PATIENCE = 2.0

    def __init__(self) -> None:
        self.number: signal.Signals | None = None
        self.time = 0.0

    def watch(self) -> None:
        """Receive the signals of this process from now on."""
        self.number = None
        self.hook = sys.unraisablehook
        sys.unraisablehook = self.dropped
        signal.signal(signal.SIGTERM, self.received)
        # It is ignored in the background of a shell.
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, self.received)

    def received(self, number: int, _: object) -> None:
        now = time.monotonic()
        if self.number is None:
            self.number = signal.Signals(number)
            self.time = now
            raise KeyboardInterrupt
        if number == signal.SIGINT and now - self.time > self.PATIENCE:
            os._exit(128 + number)

    def dropped(self, event: Any) -> None:  # noqa: ANN401 - only stubs have its class
        """Raise again where Python has dropped the exception, as in a method `__del__`, which is
        printed and goes no further.
        """
        if not isinstance(event.exc_value, KeyboardInterrupt):
            if self.number is None:
                self.hook(event)
            return  # after a signal, libraries complain of what it has interrupted
        number = self.number or signal.SIGINT
        self.number = None
        # From a thread, since a signal in this function would be dropped too.
        threading.Timer(0.01, _thread.interrupt_main, (number,)).start()

    def ended_by(self, error: BaseException) -> bool:
        """Whether a command that ends with this error was stopped."""
        return isinstance(error, KeyboardInterrupt) or self.number is not None

    @property
    def exit_code(self) -> int:
        """128 plus the number of the signal, as in shells."""
        return 128 + (self.number or signal.SIGINT)

    def end(self) -> None:
        """Ignore signals while Python shuts down, if one has ended the command: Python would
        give them back to the system.
        """
        if self.number is not None:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGINT, signal.SIG_IGN)


stops = Stops()
"""The signal handler of this process."""
