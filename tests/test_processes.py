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
