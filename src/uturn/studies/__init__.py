"""Studies of runs: curves of all readings, the places on them, tables and figures.

results = ut.study(run)            # or study(xr.open_dataset("runs/x", engine="uturn")): a dataset that prints as its table
choice = ut.choose(run, "same_class", keep=0.95)   # the largest noise that keeps the class, guaranteed
frames = tidy(results)             # pandas: frames.curves, frames.numbers
figure = draw_study(results)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uturn.core.lazy import lazy

if TYPE_CHECKING:
    from uturn.studies.analysis import study as study
    from uturn.studies.analysis import study_of as study_of
    from uturn.studies.choice import Choice as Choice
    from uturn.studies.choice import choose as choose
    from uturn.studies.figure import draw_studies as draw_studies
    from uturn.studies.figure import draw_study as draw_study
    from uturn.studies.paired import difference as difference
    from uturn.studies.records import records_of as records_of
    from uturn.studies.runs import named_runs as named_runs
    from uturn.studies.tables import Study as Study
    from uturn.studies.tables import summary as summary
    from uturn.studies.tables import tidy as tidy
    from uturn.studies.theory import with_theory as with_theory

_NAMES = {
    "uturn.studies.analysis": ["study", "study_of"],
    "uturn.studies.choice": ["Choice", "choose"],
    "uturn.studies.figure": ["draw_studies", "draw_study"],
    "uturn.studies.paired": ["difference"],
    "uturn.studies.records": ["records_of"],
    "uturn.studies.runs": ["named_runs"],
    "uturn.studies.tables": ["Study", "summary", "tidy"],
    "uturn.studies.theory": ["with_theory"],
}
"""{module: its public names}, imported on first use. Type checkers read the same above."""
__getattr__, __dir__, _HOMES = lazy(__name__, _NAMES)
