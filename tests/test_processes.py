"""Work shared out among processes: their threads, their errors."""

import operator
import os

import pytest

from uturn.core.processes import cores, in_processes

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def test_processes_have_their_share_of_threads_and_leave_no_trace():
    before = {name: os.environ.get(name) for name in THREADS}
    assert (
        list(in_processes(os.getenv, [(name,) for name in THREADS], workers=2, threads=3))
        == ["3"] * 3
    )
    assert list(in_processes(os.getenv, [THREADS[:1]], workers=1)) == [str(cores())]
    assert {name: os.environ.get(name) for name in THREADS} == before


def test_error_is_raised_here():
    before = {name: os.environ.get(name) for name in THREADS}
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        list(in_processes(operator.truediv, [(1, 0), (1, 1)], workers=1))
    assert {name: os.environ.get(name) for name in THREADS} == before


class TwoArguments(Exception):
    """An error that cannot be unpickled: its class is called with one argument."""

    def __init__(self, number, unit):
        super().__init__(f"{number} {unit}")


def failing():
    raise TwoArguments(3, "cats")


def test_an_error_that_cannot_be_sent_is_told_in_words():
    with pytest.raises(RuntimeError, match="TwoArguments: 3 cats"):
        list(in_processes(failing, [()], workers=1))


def test_a_process_that_ends_is_an_error():
    with pytest.raises(RuntimeError, match=r"^a process ended before its task: .*workers=1"):
        list(in_processes(os._exit, [(3,)], workers=1))
