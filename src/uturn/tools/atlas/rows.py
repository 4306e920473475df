"""The loop that measures the rows of an atlas."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from uturn.core.caches import clear_caches
from uturn.core.checks import expect
from uturn.core.csv_text import csv_of
from uturn.core.errors import described
from uturn.core.files import whole_file
from uturn.engine.run import run
from uturn.pages import write_page
from uturn.pages.results import check_results, write_figures
from uturn.store.outputs import output_folder, write_dataset
from uturn.tools.atlas.figure import draw_atlas
from uturn.tools.atlas.file import AtlasRow
from uturn.tools.atlas.numbers import Entry, entries_of, frame_of, table_of

RESULTS = ("index.html", "atlas.zarr", "atlas.csv", "atlas.png", "atlas.pdf")


def measure_atlas(
    rows: Sequence[AtlasRow],
    out: str | Path,
    *,
    announce: Callable[[str], object] = lambda text: None,
    **options: Any,
) -> xr.Dataset:
    """Run the rows of an atlas, one after the other, each into its own store, and write the table
    and the figure.

    Row NAME is run into `NAME` in `out`, a folder or URL, with `options` of `uturn.run`. A row
    that fails is reported to `announce`, has NaN and the error in `failure`, and the others go on.
    Returns and writes the dataset `atlas.zarr`.
    """
    entries: list[Entry] = []
    with output_folder("out", out) as folder:
        check_results(folder)
        is_own = "transition" in folder.names("atlas.zarr") or "atlas.zarr" not in folder.names("")
        expect(
            is_own,
            "atlas.zarr in out",
            folder.location,
            "another folder; it is not a table of an atlas, and would be replaced",
        )
        originals = None if folder.is_remote else os.path.abspath(folder.location_of("originals"))
        for number, row in enumerate(rows, 1):
            announce(f"{row.name} ({number} of {len(rows)})")
            try:
                dataset = run(row.experiment(originals), folder.location_of(row.name), **options)
                entries += entries_of(row, dataset)
            except Exception as error:  # a user's model can raise any exception
                entries.append(
                    Entry(row, remark=f"failed: {described(error, 1000)}", is_failed=True)
                )
                announce(f"{row.name}: {entries[-1].remark}")
            clear_caches()  # free memory for the next model
            table = table_of(entries)
            folder.path.mkdir(parents=True, exist_ok=True)
            write_dataset(table, folder.path / "atlas.zarr")
            with whole_file(folder.path / "atlas.csv") as file:
                file.write(csv_of(frame_of(table)).encode())
        write_figures(folder.path, {"atlas": lambda: draw_atlas(table)})
        write_page(folder.path)
        folder.push(*RESULTS)
    return table
