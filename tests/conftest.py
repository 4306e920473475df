"""Tests are shared out among processes, one a core, so each of them computes with one thread."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # before anything that reads them is imported
    os.environ.update(dict.fromkeys(("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
