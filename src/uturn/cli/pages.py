"""`uturn study` and `uturn report`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from uturn import pages, studies
from uturn.cli.app import PAGES, command
from uturn.cli.options import OUTPUT, OfTable, OptionalOut, option, typed
from uturn.cli.printing import console, say_next, show
from uturn.cli.running import Printed, end, opened
from uturn.core.checks import expect

if TYPE_CHECKING:
    import xarray as xr
    from rich.table import Table

    from uturn.studies.tables import Study


@command(PAGES)
def study(
    stores: Annotated[
        list[str],
        typer.Argument(
            metavar="STORE",
            help=(
                "Finished stores of any command that runs U-turns, folders with a `run`, or"
                " tables of readings (.csv, "
                ".tsv, .parquet)."
            ),
        ),
    ],
    out: OptionalOut = None,
    centre: Annotated[
        str,
        typer.Option(
            metavar="mean|median",
            help=(
                "Curves of readings beyond [0, 1]: means or, for heavy tails, medians over"
                " originals."
            ),
        ),
    ] = "mean",
    difference: Annotated[
        bool,
        option(OUTPUT, "Of two stores, second minus first: paired over originals.", "--difference"),
    ] = False,
    save_images: Annotated[
        bool, option(OUTPUT, "Also write the stored reconstructions as PNG files.", "--save-images")
    ] = False,
    theory: Annotated[
        bool,
        option(
            OUTPUT,
            "Add the mean field to the curves of a run of the ε-process on a grammar.",
            "--theory",
        ),
    ] = False,
    *,
    table: OfTable,
) -> None:
    """Study finished runs: the curve of each reading, the noise at which it changes, correlated
    changes, calibration.

    For each reading, the study locates the noise at which the reading has gone a quarter, half and
    three quarters of the way from its value without noise to chance, with 95 % intervals and on all
    noise axes of the run. For ordered readings, such as the layers of a network, it locates the
    noise at which the last falls below the first. For changes of sites, it computes the
    susceptibility and the correlation length. With clones, it tests whether reconstructions are
    draws from the posterior. Strings, vectors, images, texts and your own data are studied in the
    same way: reading instructions are stored with the readings. Several stores share one chart for
    each reading; the names of the curves are the spec fields that differ.

    A table holds readings of U-turns made elsewhere: a row for each U-turn with the columns noise,
    item (the original), perhaps trajectory (its noisy versions) and clone (reconstructions of one
    noisy version), and a column for each reading.

    With --difference, two runs on the same originals are also compared: the second minus the first,
    for the curves at each noise level that both have and for half-lives, with intervals paired over
    originals, which are matched by their names.

    With --out, writes `index.html`, `study.png`, `curves.csv`, `numbers.csv`, `items.csv` (a row
    for each original) and `study.zarr` to the folder; for several stores the tables have the column
    run and the spec fields that differ. Measures nothing.

    Example:

    ```
    uturn study runs/epsilon --theory --out results/epsilon
    uturn study runs/m4 runs/m6 runs/m8 --out results/sweep
    uturn study runs/ddpm runs/ddim --difference --out results/both
    uturn study rmsd.csv --noise-unit "added noise (Å)" --start rmsd=0 --out results/rmsd
    ```
    """
    _check_places(stores, out)
    settings = table.settings(stores)
    runs = studies.named_runs({place: opened(place, **settings) for place in stores})
    several = len(runs) > 1
    expected = "two, A and B for B minus A"
    expect(len(runs) == 2 or not difference, "difference: stores", len(runs), expected)
    has_images = not several and out is not None
    expect(has_images or not save_images, "save_images", save_images, "one store, and --out")
    studied: dict[str, Study] = {}
    if out is not None:
        studied = pages.write_study(
            runs,
            out,
            save_images=save_images,
            centre=centre,
            difference=difference,
            theory=theory,
        )
    else:
        for name, run in runs.items():
            studied[name] = studies.study(run, centre)
            if theory:
                studied[name] = studies.with_theory(studied[name], run)
    for name, data in studied.items():
        if several:
            console().print(name, style="bold")
        for part in studies.summary(data, width=console().width):
            show(part)
        console().print(data.attrs["description"])
    parts = _difference(runs, centre) if difference else []
    if out is not None:
        return end(out, Printed(parts), save_images=save_images)
    for part in parts:
        show(part)
    options = {"difference": difference, "theory": theory, **asdict(table)}
    if centre != "mean":
        options["centre"] = centre
    say_next(run=("study", *stores, *typed(**options), "--out", "FOLDER"))


def _check_places(stores: Sequence[str], out: str | None) -> None:
    """ValueError for a store that is given twice, or one that the results would replace."""
    from uturn.pages.results import RESULTS
    from uturn.store.folders import is_url

    places = [place if is_url(place) else os.path.realpath(place) for place in stores]
    twice = [place for k, place in enumerate(places) if place in places[:k]]
    expect(not twice, "stores given twice", twice, "each once")
    if out is None:
        return
    folder = os.path.realpath(out)
    replaced = sorted({os.path.join(folder, name) for name in RESULTS} & set(places))
    expect(not replaced, "out", out, f"another folder; {replaced} would be replaced")


def _difference(runs: Mapping[str, xr.Dataset], centre: str) -> list[Table | str]:
    """The second of two runs minus the first, as a table and remarks."""
    from uturn.studies.paired import remarks_of, table_of
    from uturn.studies.tables import for_terminal

    data = studies.difference(runs, centre)
    return [for_terminal(table_of(data)), *remarks_of(data)]


@command(PAGES)
def report(
    folders: Annotated[
        list[str], typer.Argument(metavar="DIR", help="Folders or stores of results; or one URL.")
    ],
    out: Annotated[
        str | None,
        option(
            OUTPUT,
            "File to write; by default DIR/index.html, or ./report.html for a store or several"
            " places.",
            metavar="FILE",
        ),
    ] = None,
) -> None:
    """Write one page for results of `reproduce`, `run`, `images`, `text` and of all tools. Measures
    nothing.

    The page is one HTML file that opens without a network. It shows t\\* with its interval,
    verdicts with a filter, and curves, images and texts at the noise selected by a slider.
    Unreadable files are named; the rest is shown.

    Example:

    ```
    uturn report results/fashion
    uturn report results results/fashion runs/epsilon --out all.html
    ```
    """
    path, problems = pages.report(folders, out)
    for line in problems:
        console().print(f"not shown in full: {line}")
    say_next(open=path)
