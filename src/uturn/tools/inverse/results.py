"""The files of `uturn inverse`: numbers, tables and pictures in a folder of results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from pydantic import JsonValue

from uturn.core.csv_text import csv_of
from uturn.core.files import named_errors, whole_file, whole_folder, write_json
from uturn.measures.report import Report
from uturn.pages.results import check_pictures, write_figures
from uturn.store.outputs import OutputFolder, output_folder, write_dataset
from uturn.studies.tables import TextTable
from uturn.tools.inverse.at_level import LevelTests
from uturn.tools.inverse.figure import draw_posterior_tests
from uturn.tools.inverse.judged import Judged, caption, notes
from uturn.tools.inverse.pictures import pictures
from uturn.tools.inverse.readings import TestedReading
from uturn.tools.inverse.section import ERRORS, FORMAT, error_names
from uturn.tools.inverse.tables import samplers_frame, samplers_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPORT = "inverse-report"
RESULTS = (
    "inverse.json",
    "inverse.csv",
    f"{REPORT}.json",
    f"{REPORT}.csv",
    ERRORS,
    "samplers.zarr",
)
_PICTURES = r"\..*|.+-[\d.e+-]+\.(png|pdf)"
"""Names of the files in the folder `ERRORS`."""


def check_folder(out: str) -> None:
    """ValueError before a run if a folder or URL holds files of others where pictures are
    written, which replace them.
    """
    with output_folder("out", out) as folder:
        if not (folder.path / ERRORS).is_symlink():  # a link is replaced, and not its target
            check_pictures(folder, ERRORS, _PICTURES)


def write_results(runs: Sequence[Judged], report: Report, folder: OutputFolder) -> None:
    """Write the numbers, the report and the pictures of all runs."""
    with named_errors(folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)
    write_json(folder.path / "inverse.json", content(runs))
    with whole_file(folder.path / "inverse.csv") as file:
        file.write(csv_of(samplers_frame(runs)).encode())
    report.to_json(folder.path / f"{REPORT}.json")
    report.to_csv(folder.path / f"{REPORT}.csv")
    with whole_folder(folder.path / ERRORS) as errors:
        write_figures(errors, _figures(runs))
    write_dataset(pictures(runs), folder.path / "samplers.zarr")
    folder.push(*RESULTS)


def _figures(runs: Sequence[Judged]) -> Mapping[str, Callable[[], Figure]]:
    """The picture of the errors of each run at each strength, by the name of its file."""
    figures = {}
    for judged in runs:
        names = error_names(judged.run.store, judged.tests.noise.values)
        for k, name in enumerate(names):
            figures[name] = partial(draw_posterior_tests, judged.tests, k)
    return figures


# --- inverse.json ---------------------------------------------------------------------------------


def content(runs: Sequence[Judged]) -> dict[str, JsonValue]:
    """The content of `inverse.json`: what was found, the tables, and the numbers of each run."""
    tables: list[JsonValue] = []
    for judged in runs:
        tables += [_table(level.table(judged.run.name)) for level in judged.levels]
    return {
        "format": FORMAT,
        "version": 1,
        "words": " ".join(f"{judged.run.name}: {judged.kinds}." for judged in runs),
        "caption": caption(runs),
        "notes": [*notes(runs)],
        "measurement": runs[0].run.experiment.to_dict()["corruption"],
        "table": _table(samplers_table(runs)),
        "tables": tables,
        "runs": [_numbers(judged) for judged in runs],
    }


def _table(table: TextTable) -> JsonValue:
    rows: list[JsonValue] = [[*row] for row in table.rows]
    return {"title": table.title, "heads": [*table.heads], "rows": rows}


def _numbers(judged: Judged) -> JsonValue:
    run = judged.run
    attributes = judged.tests.attrs
    return {
        "name": run.name,
        "sampler": run.sampler,
        "data": run.data,
        "judges": run.judges,
        "store": run.store,
        "calls": judged.calls,
        "items": attributes["items"],
        "clones": attributes["clones"],
        "level": attributes["level"],
        "passed": attributes["passed"],
        "passed_beside": attributes["passed_beside"],
        "remark": attributes["remark"],
        "kinds": judged.kinds,
        "coverage_expected": float(judged.tests.coverage_expected),
        "kept": {
            "reading": judged.kept_reading,
            "strength": judged.study.noise.values.tolist(),
            "curve": [[*estimate] for estimate in judged.kept],
        },
        "t_star": [*judged.half_life],
        "tests": [_level(level) for level in judged.levels],
    }


def _level(level: LevelTests) -> JsonValue:
    numbers: dict[str, JsonValue] = {
        "strength": level.noise,
        "kind": str(level.kind),
        "decided": level.decided,
        "residual": level.residual,
        "readings": [_reading(tested) for tested in level.readings],
    }
    for untested in level.untested:
        numbers[untested.variable] = [*untested.value]
    return numbers


def _reading(tested: TestedReading) -> JsonValue:
    return {
        "reading": tested.variable,
        "family": tested.reading.family,
        "effect": [*tested.effect],
        "effect_unit": tested.unit,
        "p": tested.p,
        "p_holm": tested.p_holm,
        "rank_p": tested.rank_p,
        "rank_p_holm": tested.rank_p_holm,
    }
