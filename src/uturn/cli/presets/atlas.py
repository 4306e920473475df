"""An atlas: U-turns of many models of images, with their transitions on one axis, log-SNR.

rows = read_atlas("examples/atlas/here.toml")       # a file describes the models, one row each (`AtlasRow`)
found = measure_atlas(rows, "results/atlas")        # each row is a run of `uturn images` in a store of its own
found.transition                                    # (entry, estimate), in nats
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uturn.cli.presets.atlas_numbers import Entry, largest_eigenvalue_of, numbers_of, table_of, to_csv
from uturn.cli.presets.atlas_rows import AtlasRow, chosen, read_atlas
from uturn.core.checks import one_line
from uturn.core.files import clear_caches, named_errors, whole_file
from uturn.core.progress import duration
from uturn.pages import live_page, write_page
from uturn.pages.results import check_results, write_figures
from uturn.store.datasets import write_dataset
from uturn.store.outputs import OutputFolder, output_folder

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["RESULTS", "AtlasRow", "chosen", "measure_atlas", "read_atlas"]

RESULTS = ("index.html", "atlas.zarr", "atlas.csv", "atlas.png", "atlas.pdf")


def measure_atlas(
    rows: Sequence[AtlasRow], out: str | Path, *, announce: Callable[[str], object] = lambda text: None, **options: Any
) -> xr.Dataset:
    """Run the rows of an atlas, one after the other, each into its own store, and write the table and the figure.

    Row NAME is run into `OUT/NAME.zarr`. What is in the stores is not measured again. A row that fails is reported, and the
    others go on. Writes `atlas.zarr`, the returned dataset, `atlas.csv`, and `atlas.png`, `.pdf`.

    Parameters
    ----------
    rows
        Of `read_atlas`.
    out
        Folder or URL of object storage.
    announce
        Called with a line of text when a row begins, ends or fails.
    options
        Of `uturn.run`: workers, progress, cluster, ..

    Returns
    -------
    Dataset
        As in `uturn.cli.presets.atlas_numbers.table_of`. Rows that failed have numbers that are NaN, and the error in `failure`.

    Raises
    ------
    ValueError
        If nothing can be written to `out`.
    """
    entries: list[Entry] = []
    with output_folder("out", out) as folder:
        check_results(folder)
        _check_results(folder)
        with live_page(folder, "uturn atlas") as page:
            for number, row in enumerate(rows, 1):
                announce(f"{row.name} ({number} of {len(rows)})")
                page.says(row.name, number - 1, len(rows), "models")
                began = time.monotonic()
                try:
                    entries += _measured(row, folder, options)
                    announce(f"{row.name}: done, {duration(time.monotonic() - began)}")
                except Exception as error:  # a foreign model can fail in any way
                    words = (
                        f"{'' if isinstance(error, ValueError) else f'{type(error).__name__}: '}{' '.join(str(error).split())}"
                    )
                    entries.append(Entry(row, failure=words or one_line(error)))
                    announce(f"{row.name}: failed: {words}")
                clear_caches()  # the next model needs the memory
                found = table_of(entries)
                _write_table(found, folder)
        _write_figure(found, folder)
    return found


def _check_results(folder: OutputFolder) -> None:
    """ValueError if `atlas.zarr` in the folder is no table of an atlas: it would be replaced."""
    if not folder.is_remote and (path := folder.path / "atlas.zarr").exists() and not (path / "transition").is_dir():
        raise ValueError(f"{path} is no table of an atlas, and would be replaced; choose another folder")


def _measured(row: AtlasRow, folder: OutputFolder, options: dict[str, Any]) -> list[Any]:
    """The numbers of a row, after what its store lacks has been measured."""
    from uturn.engine.run import run

    experiment = row.experiment(None if folder.is_remote else os.path.abspath(folder.place("originals")))
    ds = run(experiment, folder.place(f"{row.name}.zarr"), **options)
    return numbers_of(row, ds, largest_eigenvalue_of(experiment))


def _write_table(found: xr.Dataset, folder: OutputFolder) -> None:
    with named_errors(folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)
    write_dataset(found, folder.path / "atlas.zarr")
    with whole_file(folder.path / "atlas.csv") as file:
        file.write(to_csv(found).encode())


def _write_figure(found: xr.Dataset, folder: OutputFolder) -> None:
    from uturn.studies.plotting.atlas import draw_atlas

    write_figures(folder.path, {"atlas": lambda: draw_atlas(found)})
    write_page(folder.path)
    folder.push(*RESULTS)
