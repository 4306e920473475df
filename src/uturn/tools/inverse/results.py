"""The results of `uturn inverse`: one table over samplers and kinds of originals, its numbers,
and pictures of what is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas
import xarray as xr

from uturn.core.csv_text import csv_of
from uturn.core.files import named_errors, whole_file, whole_folder, write_json
from uturn.measures.estimates import with_interval
from uturn.pages.results import check_pictures, write_figures
from uturn.store.outputs import OutputFolder, output_folder, write_dataset
from uturn.studies.headline import headline_of
from uturn.studies.plotting.curves import evenly_spaced
from uturn.studies.runs import NAMES as NAMES_OF_ITEMS
from uturn.studies.runs import item_names, kept_images
from uturn.tools.inverse.at_level import levels_of
from uturn.tools.inverse.figure import draw_posterior_tests
from uturn.tools.inverse.kinds import KINDS
from uturn.tools.inverse.options import Run
from uturn.tools.inverse.posteriors import posterior_tests
from uturn.tools.inverse.readings import POSTERIOR, label_of
from uturn.tools.inverse.sampler import PosteriorSampler
from uturn.tools.inverse.section import ERRORS, FORMAT, error_names

RESULTS = ("inverse.json", "inverse.csv", ERRORS, "samplers.zarr")
# memory of the pictures of a page, and levels with pictures
_MOST_BYTES = 2**27
_MOST_LEVELS = 10


def check_folder(out: str) -> None:
    """ValueError before a run if a folder or URL holds files of others where pictures are
    written, which replace them.
    """
    with output_folder("out", out) as folder:
        if not (folder.path / ERRORS).is_symlink():  # a link is replaced, and not its target
            check_pictures(folder, ERRORS, r"\..*|.+-[\d.e+-]+\.(png|pdf)")


def calls_of(runs: Sequence[Run]) -> dict[str, int]:
    """Largest number of calls of the network for a reconstruction, by run.

    A reconstruction is drawn at the first and the last level, with a denoiser that only counts, so
    that samplers that do not fit the operator, or whose calls with one seed differ, end before
    anything is measured.
    """
    calls = {}
    for run in runs:
        backward = run.experiment.parts.backward
        backward.missing(run.experiment)  # before any run, since those of many samplers take long
        levels = {run.experiment.noise[0], run.experiment.noise[-1]}
        counts = (
            [backward.calls(run.experiment, level) for level in levels]
            if isinstance(backward, PosteriorSampler)
            else [0]
        )
        calls[run.name] = max(counts)
    return calls


def write_inverse(
    runs: Sequence[Run],
    readings: Mapping[str, xr.Dataset],
    studies: Mapping[str, xr.Dataset],
    calls: Mapping[str, int],
    folder: OutputFolder,
) -> dict[str, Any]:
    """Test all runs, write the table over them, its numbers and the pictures, and return the
    content of `inverse.json`.

    `readings`, `studies`, `calls`: dataset, study, and calls of the network for a reconstruction,
    by the name of the run.
    """
    tests = {run.name: posterior_tests(readings[run.name]) for run in runs}
    entries = [_entry(run, tests[run.name], studies[run.name], calls[run.name]) for run in runs]
    frame = pandas.concat(map(_tidy, entries), ignore_index=True)
    content = {
        "format": FORMAT,
        "version": 1,
        **_words(runs, tests),
        "measurement": runs[0].experiment.to_dict()["corruption"],
        "table": _table(entries, frame, len({run.data for run in runs}) > 1),
        "tables": [table for run in runs for table in _tables_of(run.name, tests[run.name])],
        "runs": entries,
    }
    with named_errors(folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)
    write_json(folder.path / "inverse.json", content)
    with whole_file(folder.path / "inverse.csv") as file:
        file.write(csv_of(frame).encode())
    drawn = {
        name: partial(draw_posterior_tests, tests[run.name], k)
        for run in runs
        for k, name in enumerate(error_names(run.store, tests[run.name].noise.values))
    }
    with whole_folder(folder.path / ERRORS) as errors:
        write_figures(errors, drawn)
    write_dataset(_pictures(runs, readings), folder.path / "samplers.zarr")
    folder.push(*RESULTS)
    return content


def _tables_of(name: str, tests: xr.Dataset) -> list[dict[str, Any]]:
    """The tables of a run, one for each strength."""
    tables = []
    for level_tests in levels_of(tests):
        table = level_tests.table(name)
        tables.append({"title": table.title, "heads": table.heads, "rows": table.rows})
    return tables


def _entry(run: Run, tests: xr.Dataset, study: xr.Dataset, calls: int) -> dict[str, Any]:
    headline = headline_of(study)
    kept = (
        str(study.reading.values[0])
        if headline is None or not headline.reading
        else headline.reading
    )

    def numbers(of: xr.Dataset, *names: str) -> dict[str, Any]:
        return {name: of[name].values.tolist() for name in names}

    of_reading = (
        "reading",
        "family",
        "effect",
        "effect_unit",
        "p",
        "p_holm",
        "rank_p",
        "rank_p_holm",
    )
    return {
        **{key: getattr(run, key) for key in ("name", "sampler", "data", "judges", "store")},
        "calls": calls,
        **{
            key: tests.attrs[key]
            for key in ("items", "clones", "level", "passed", "passed_beside", "remark")
        },
        "kinds": kinds_in_words(tests),
        "coverage_expected": float(tests.coverage_expected),
        "kept": {
            "reading": kept,
            "strength": study.noise.values,
            **numbers(study.sel(reading=kept), "curve"),
        },
        "t_star": study.half_life.sel(reading=kept, axis=study.axis.values[0]).values.tolist(),
        "tests": [
            {
                "strength": level_tests.noise,
                **numbers(tests.isel(noise=k), "kind", "decided", "residual"),
                "readings": [
                    numbers(tests.isel(noise=k, reading=reading), *of_reading)
                    for reading in range(tests.sizes["reading"])
                ],
                **{untested.variable: list(untested.value) for untested in level_tests.untested},
            }
            for k, level_tests in enumerate(levels_of(tests))
        ],
    }


def _tidy(entry: Mapping[str, Any]) -> pandas.DataFrame:
    """The numbers of a run, a row for each strength and reading."""
    rows = []
    for at in entry["tests"]:
        beside = [
            {"reading": name, "effect": at[name]}
            for name in ("coverage", "z_squared")
            if name in at
        ]
        for of in (*at["readings"], *beside):
            effect = dict(zip(("effect", "effect_low", "effect_high"), of["effect"], strict=True))
            rows.append({"strength": at["strength"], "kind": at["kind"], **of, **effect})
    of_run = {
        key: entry[key] for key in ("name", "sampler", "data", "judges", "calls", "items", "clones")
    }
    return pandas.DataFrame([{**of_run, **row} for row in rows])


def _words(runs: Sequence[Run], tests: Mapping[str, xr.Dataset]) -> dict[str, Any]:
    """What was found in a sentence for each run, what was measured, and how to read it."""
    experiment = runs[0].experiment
    first = tests[runs[0].name]
    items, clones, level = (first.attrs[key] for key in ("items", "clones", "level"))
    kinds = [kind for kind in KINDS if any(kind in some.kind.values for some in tests.values())]
    unit = experiment.parts.corruption.unit
    judged = "; ".join(
        f"{run.data}: the tests judge {run.judges}"
        for run in {run.data: run for run in runs}.values()
    )
    return {
        "words": " ".join(f"{run.name}: {kinds_in_words(tests[run.name])}." for run in runs),
        "caption": (
            f"{clones} draws for each measurement of {items} originals, by {unit}. {judged}."
        ),
        "notes": [
            *(f"{kind} means: {KINDS[kind]}" for kind in kinds),
            (
                "a kind of error is named where a test rejects; exact draws are rejected with a"
                f" probability of {level:g} for each family of tests. None seen is no proof: each"
                " test is blind to some errors (in the numbers with intervals)"
            ),
            *dict.fromkeys(some.attrs["remark"] for some in tests.values() if some.attrs["remark"]),
        ],
    }


def kinds_in_words(tests: xr.Dataset) -> str:
    """The kinds of error of a run, with the strengths at which they are seen unless it is one
    kind at all of them.
    """
    at: dict[str, list[str]] = {}
    for kind, noise in zip(tests.kind.values.tolist(), tests.noise.values, strict=True):
        at.setdefault(kind, []).append(f"{noise:.3g}")
    return ", ".join(
        f"{kind} at {', '.join(levels)}" if len(at) > 1 else kind for kind, levels in at.items()
    )


def _table(
    entries: Sequence[Mapping[str, Any]], frame: pandas.DataFrame, several_data: bool
) -> dict[str, Any]:
    """The table over runs as texts: {title, heads, rows}."""
    tested = frame.reading[frame.family == POSTERIOR].unique()
    strength = frame.strength.iloc[-1]
    rows = []
    for entry in entries:
        of_run = frame[frame.name == entry["name"]].set_index("reading")
        gaps = (
            of_run.loc[["distance"]]
            .sort_values("effect", key=abs, ascending=False)
            .sort_values("p_holm", kind="stable")
        )
        p_values = [
            of_run.loc[of_run.index == name, ["p_holm", "rank_p_holm"]].min(axis=None)
            for name in tested
        ]
        decided = dict.fromkeys(label_of(at["decided"]) for at in entry["tests"] if at["decided"])
        row = {
            "sampler": entry["sampler"],
            "judged (originals)": f"{entry['judges']} ({entry['data']})",
            "kind of error": entry["kinds"],
            "decided by": ", ".join(decided),
            **{
                f"p, {label_of(name)}": "" if np.isnan(p) else f"{p:.2g}"
                for name, p in zip(tested, p_values, strict=True)
            },
            "gap of the distance, relative": (
                f"{with_interval(gaps[['effect', 'effect_low', 'effect_high']].iloc[0], '+.2g')} at"
                f" {gaps.strength.iloc[0]:.3g}"
            ),
            f"{label_of(entries[0]['kept']['reading'])} at {strength:.3g}": with_interval(
                entry["kept"]["curve"][-1]
            ),
            "half-life": with_interval(entry["t_star"]),
            "calls": f"{entry['calls']}",
        }
        rows.append(
            {
                head: cell
                for head, cell in row.items()
                if several_data or head != "judged (originals)"
            }
        )
    return {
        "title": (
            "samplers, with 95 % intervals; p by Holm, the smallest over strengths, means and"
            " ranks; decided by means, or by ranks if no mean rejects"
        ),
        "heads": tuple(rows[0]),
        "rows": [tuple(row.values()) for row in rows],
    }


def _pictures(runs: Sequence[Run], readings: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Originals, measurements and clones of trajectory 0 of the items with stored images, by run,
    for the page.

    `original` (run, item, channel, row, column), `observation` (run, noise, item, ..), `image`
    (run, noise, item, clone, ..).
    """
    runs = [run for run in runs if kept_images(readings[run.name])] or list(runs)
    first = readings[runs[0].name]
    labels = {
        key: ("run", [getattr(run, key) for run in runs]) for key in ("name", "sampler", "data")
    }
    named = xr.Dataset(
        coords={"run": range(len(runs)), **labels},
        attrs={"format": FORMAT, "items": first.sizes["item"]},
    )
    count = kept_images(first)
    if not count:
        return named.assign_coords(noise=first.noise)
    levels = evenly_spaced(first.sizes["noise"], _MOST_LEVELS)
    of_item = first.image.isel(item=0, noise=0).nbytes * len(levels) * len(runs)
    items = np.arange(min(count, max(4, _MOST_BYTES // of_item)))
    shown = []
    for run in runs:
        source = run.experiment.parts.source
        experiment = run.experiment
        blocks = list(source.blocks(items, experiment.seed, experiment.items))
        some = readings[run.name][["image", "observation"]].isel(
            noise=levels, item=items, trajectory=0, drop=True
        )
        words = item_names(readings[run.name], items, dict(enumerate(source.class_names() or [])))
        originals = np.concatenate([block.data for block in blocks])
        dims = ("item", "channel", "row", "column")
        some = some.transpose("noise", "item", "clone", *dims[1:], missing_dims="ignore")
        some = some.drop_vars(["label", *NAMES_OF_ITEMS], errors="ignore")
        shown.append(
            some.assign(original=(dims, originals), item_name=("item", np.array(words, str)))
        )
    return named.merge(
        xr.concat(shown, "run", combine_attrs="drop").set_coords("item_name"),
        combine_attrs="override",
    )
