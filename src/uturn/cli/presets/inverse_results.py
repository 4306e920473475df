"""The results of `uturn inverse`: one table over samplers and kinds of originals, its numbers, and pictures of what is drawn."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from uturn.core.checks import plain
from uturn.core.files import named_errors, whole_file
from uturn.pages.results import write_figures
from uturn.pages.samplers import FORMAT
from uturn.store.datasets import write_dataset
from uturn.studies.curves import with_interval
from uturn.studies.headline import headline_of
from uturn.studies.plotting.curves import evenly_spaced
from uturn.studies.runs import kept_images

if TYPE_CHECKING:
    import pandas
    import xarray as xr
    from rich.table import Table

    from uturn.cli.presets.inverse import Run
    from uturn.store.outputs import OutputFolder

RESULTS = ("inverse.json", "inverse.csv", "samplers.png", "samplers.pdf", "samplers.zarr")
_MOST_BYTES, _MOST_LEVELS = 2**27, 10  # memory of the pictures of a page, and levels with pictures


def calls_of(runs: Sequence[Run]) -> dict[str, int]:
    """Largest number of calls of the network for a reconstruction, by run.

    A reconstruction is drawn at the first and the last level, with a denoiser that only counts, so that samplers that do not
    fit the operator end before anything is measured.
    """
    calls = {}
    for run in runs:
        source, corruption, backward, _ = run.experiment.parts
        levels = {run.experiment.noise[0], run.experiment.noise[-1]}
        calls[run.name] = max(backward.network_calls(level, corruption, source)[0] for level in levels)
    return calls


def write_inverse(
    runs: Sequence[Run],
    readings: Mapping[str, xr.Dataset],
    studies: Mapping[str, xr.Dataset],
    calls: Mapping[str, int],
    folder: OutputFolder,
) -> dict[str, Any]:
    """Write the table over all runs, its numbers and the pictures, and return the content of `inverse.json`.

    Parameters
    ----------
    runs : the runs of `InverseOptions.runs`
    readings, studies : {name of a run: its dataset, its study}
    calls : {name of a run: calls of the network for a reconstruction}
    folder : the folder of results
    """
    entries = [_entry(run, readings[run.name], studies[run.name], calls[run.name]) for run in runs]
    content = {
        "format": FORMAT,
        "version": 1,
        **_words(runs, entries),
        "measurement": runs[0].experiment.to_dict()["corruption"],
        "table": _table(entries),
        "pictures": [{"file": "samplers", "words": "the kind of error of each sampler, and the ranks of originals among clones"}],
        "runs": entries,
    }
    with named_errors(folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)
    texts = {
        "inverse.json": json.dumps(plain(content), indent=1, ensure_ascii=False),
        "inverse.csv": _tidy(entries).to_csv(index=False),
    }
    for name, text in texts.items():
        with whole_file(folder.path / name) as file:
            file.write(text.encode())
    write_figures(folder.path, {"samplers": lambda: None})
    write_dataset(_pictures(runs, readings), folder.path / "samplers.zarr")
    folder.push(*RESULTS)
    return content


def _entry(run: Run, ds: xr.Dataset, study: xr.Dataset, calls: int) -> dict[str, Any]:
    """The numbers of a run."""
    headline = headline_of(study)
    reading = "distance" if headline is None or not headline.reading else headline.reading
    return {
        "name": run.name,
        "sampler": run.sampler,
        "data": run.data,
        "judges": run.judges,
        "store": run.store,
        "calls": calls,
        "reading": reading,
        "strength": study.noise.values.tolist(),
        "kept": study.curve.sel(reading=reading).values.tolist(),
        "t_star": None if headline is None else headline.place[0].tolist(),
    }


def _words(runs: Sequence[Run], entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    spec = runs[0].experiment
    return {"words": "", "caption": "", "notes": []}


def _table(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The table over runs as texts: {title, heads, rows}."""
    rows = []
    for entry in entries:
        rows.append((entry["sampler"], entry["judges"], with_interval(entry["t_star"] or [np.nan] * 3), str(entry["calls"])))
    return {"title": "samplers", "heads": ("sampler", "judged", "t* [95 % interval]", "calls"), "rows": rows}


def _tidy(entries: Sequence[Mapping[str, Any]]) -> pandas.DataFrame:
    import pandas

    return pandas.DataFrame([{key: value for key, value in entry.items() if not isinstance(value, list)} for entry in entries])


def _pictures(runs: Sequence[Run], readings: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Originals, measurements and clones of trajectory 0 of the items with stored images, by run, for the page.

    `original` (run, item, channel, row, column), `observation` (run, noise, item, ..), `image` (run, noise, item, clone, ..).
    """
    import xarray as xr

    first = readings[runs[0].name]
    labels = {key: ("run", [getattr(run, key) for run in runs]) for key in ("name", "sampler", "data")}
    named = xr.Dataset(coords={"run": range(len(runs)), **labels}, attrs={"format": FORMAT, "items": first.sizes["item"]})
    count = kept_images(first)
    if not count:
        return named
    levels = evenly_spaced(first.sizes["noise"], _MOST_LEVELS)
    of_item = first.image.isel(item=0, noise=0).nbytes * len(levels) * len(runs)
    items = np.arange(min(count, max(4, _MOST_BYTES // of_item)))
    shown = []
    for run in runs:
        source, experiment = run.experiment.parts.source, run.experiment
        blocks = list(source.blocks(items, experiment.seed, experiment.items))
        some = readings[run.name][["image", "observation"]].isel(noise=levels, item=items, trajectory=0, drop=True)
        names, classes = source.class_names(), np.concatenate([block.labels for block in blocks])
        words = [f"{item}: {names[label]}" if names and label >= 0 else f"item {item}" for item, label in zip(items, classes)]
        originals = np.concatenate([block.data for block in blocks])
        dims = ("item", "channel", "row", "column")
        some = some.transpose("noise", "item", "clone", *dims[1:], missing_dims="ignore").drop_vars("label", errors="ignore")
        shown.append(some.assign(original=(dims, originals), item_name=("item", np.array(words, str))))
    return named.merge(xr.concat(shown, "run", combine_attrs="drop"), combine_attrs="override")


def overview(content: Mapping[str, Any]) -> Table:
    """The table over runs for a terminal."""
    from rich.table import Table

    table = Table(*content["table"]["heads"], title=content["table"]["title"])
    for row in content["table"]["rows"]:
        table.add_row(*row)
    return table
