"""Studies of runs: curves of all readings, the places on them, tables and figures.

found = ut.study(run)              # or study(xr.open_zarr("run.zarr")): a dataset that prints as its table
frames = tidy(found)               # pandas: frames.curves, frames.numbers
figure = draw_study(found)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uturn.studies.analysis import study as study
    from uturn.studies.analysis import study_of as study_of
    from uturn.studies.figure import draw_studies as draw_studies
    from uturn.studies.figure import draw_study as draw_study
    from uturn.studies.names import named_runs as named_runs
    from uturn.studies.records import records_of as records_of
    from uturn.studies.tables import Study as Study
    from uturn.studies.tables import as_data as as_data
    from uturn.studies.tables import summary as summary
    from uturn.studies.tables import tidy as tidy

# Public name -> module. Modules are imported on first use, so that commands start fast.
_HOME = {
    "Study": "tables",
    "as_data": "tables",
    "draw_studies": "figure",
    "draw_study": "figure",
    "named_runs": "names",
    "records_of": "records",
    "study": "analysis",
    "study_of": "analysis",
    "summary": "tables",
    "tidy": "tables",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'uturn.studies' has no attribute {name!r}")
    return getattr(importlib.import_module(f"uturn.studies.{_HOME[name]}"), name)
