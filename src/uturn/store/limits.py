"""Size limits for runs of unknown origin, so that reading one ends soon and fits into memory."""

from __future__ import annotations

MOST_TASKS = 2**21
MOST_VARIABLES = 2**10
MOST_READINGS = 2**29
"""Numbers of a task, which are in memory together."""
MOST_BYTES_OF_RUN = 2**28
"""Bytes of `run.json`, which lists the labels of all coordinates."""
MOST_BYTES_BESIDE_READINGS = 2**20
"""Bytes of the file of a task beside its readings."""
MOST_WARNINGS = 50
MOST_CHARACTERS_OF_WARNING = 1000
