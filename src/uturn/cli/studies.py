"""`uturn images`, `text` and `atlas`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from uturn.cli.app import STUDIES, command
from uturn.cli.options import OUTPUT, AcceptChanges, Finished, Machines, Out, Running
from uturn.cli.printing import console, inside, say_next, show
from uturn.cli.running import followed, is_unfinished, resumable, run_into
from uturn.workflows.image_options import ImageOptions
from uturn.workflows.text_options import TextOptions


@command(STUDIES)
def images(
    out: Out,
    save_images: Annotated[
        bool, typer.Option(help="Write the kept reconstructions as PNG files too.", rich_help_panel=OUTPUT)
    ] = False,
    finished: Finished = None,
    *,
    chosen: ImageOptions,
    running: Running,
) -> None:
    """Measure where U-turns of images lose their class, in the layers of classifiers: Figs. 1, 2 and 16 for your own model.

    Images are noised to a fraction t/T of a diffusion chain and denoised back. Measured at every t/T: the share that keeps the
    predicted class, and the cosine similarity to the original, layer by layer. Found, with 95 % intervals: t\\*, where half of
    the class is lost, and the width of its fall; where logits fall below the first layer; the half-life of every layer. Writes
    `transition.json`, `layers.png`, `grid.png`, `analysis.zarr`, and the run itself, `run.zarr`. With --clones 2 or more also
    `calibration.png`: whether reconstructions are draws from the posterior. It can be stopped at any time; the same command
    continues, and larger numbers of items, levels, trajectories or clones extend the run. Without options it runs the
    Fashion-MNIST model that comes with the package, in a few minutes.

    Example: `uturn images --out results/fashion`

    Example: `uturn images --model google/ddpm-cifar10-32 --data photos --size 32 --classifier torchvision:resnet50
    --no-compare-labels --out results/cifar`
    """
    from uturn.outputs import output_folder
    from uturn.store import Store
    from uturn.workflows.results import check_folder, summary, write_results, written

    if finished is not None:
        ds = Store.open(finished).dataset()
    else:
        with output_folder("out", out) as folder:
            check_folder(folder, save_images, chosen.keep)
            store, originals = folder.place("run.zarr"), None if folder.is_remote else os.path.abspath(folder.place("originals"))
        experiment = chosen.experiment(originals)
        with followed(out, "uturn images", running.shard):
            ds = run_into(store, experiment, running)
        if is_unfinished(ds, out, store, running.shard):
            return
    analysis = write_results(ds, out, save_images=save_images)
    _show_study(summary(analysis), analysis, out, written(out, save_images))


@command(STUDIES)
def text(
    out: Out,
    finished: Finished = None,
    *,
    chosen: TextOptions,
    running: Running,
) -> None:
    """Measure what U-turns of texts keep, and how many tokens change together, for a masked language model of your own.

    A share of the tokens of a text is masked (or replaced), and the model draws them again, one at a time. Measured at every
    noise: the share of tokens kept, alone and in runs of 2, 4, 8, ..; the susceptibility chi, the number of tokens that change
    together, and t\\*, where it peaks; the correlation C(r) of changes at distance r and its length xi; with regions and segments
    what they keep; with --layers, --encoder, --likelihood what other models say; with --clones 2 or more whether reconstructions
    are draws from the posterior. Numbers have 95 % intervals. Writes `curves.png`, `tokens.html` and `tokens.png` (originals and
    reconstructions, with changes marked), `text.json`, `analysis.zarr`, and the run itself, `run.zarr`. It can be stopped at any
    time; the same command continues, and larger numbers of items, levels, trajectories or clones extend the run. Without options
    it runs the model of characters that comes with the package, in a few minutes.

    Example: `uturn text --out results/text`

    Example: `uturn text --model google-bert/bert-base-uncased --data sentences.txt --items 100 --out results/bert`

    Example: `uturn text --model out/reactions --split smiles --data out/reactions.txt --segment . --segment ">>" --clones 2
    --layers same --out results/reactions`
    """
    from uturn.outputs import output_folder
    from uturn.store import Store
    from uturn.workflows.text_results import RESULTS, text_summary, write_text_results
    from uturn.workflows.writing import check_results, named_in

    source = None
    if finished is not None:
        ds = Store.open(finished).dataset()
    else:
        with output_folder("out", out) as folder:
            check_results(folder)
            store = folder.place("run.zarr")
        experiment = chosen.experiment()
        with followed(out, "uturn text", running.shard):
            ds = run_into(store, experiment, running)
        if is_unfinished(ds, out, store, running.shard):
            return
        source = experiment.parts.source
    analysis = write_text_results(ds, out, source)
    _show_study(text_summary(analysis), analysis, out, named_in(out, RESULTS))


@command(STUDIES)
def atlas(
    file: Annotated[Path, typer.Argument(metavar="ATLAS.toml", help="Description of the models, one table [[models]] a row.")],
    out: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder, or URL of object storage, for the stores, the table and the figure.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Name of a row; the others are left out. Can be given several times."),
    ] = None,
    listing: Annotated[
        bool, typer.Option("--list", rich_help_panel=OUTPUT, help="Print the rows and the facts about them; run nothing.")
    ] = False,
    accept_changes: AcceptChanges = False,
    *,
    machines: Machines,
) -> None:
    """Measure where many models of images lose their class, on one axis: log-SNR.

    Each row of the file is a run of `uturn images`, with the same options, in a store of its own, OUT/NAME.zarr. Measured for
    each: t\\* and its width in each classifier, the half-life of every layer, where logits fall below the first layer; with
    trajectories of 2 or more, how many patches of pixels change together (chi) and over what distance (xi); with clones of 2 or
    more, the calibration gap; and speciation, abar = 1/Lambda, from the covariance of the data. Writes `atlas.csv`, `atlas.zarr`
    and `atlas.png`. It can be stopped at any time; the same command continues; what is stored is not measured again. A row that
    fails is reported, the others go on, and the exit code is 1.

    Example: `uturn atlas examples/atlas/here.toml --out results/atlas`

    Example: `uturn atlas examples/atlas/public.toml --list`
    """
    from uturn.workflows.atlas import RESULTS, measure_atlas, read_atlas
    from uturn.workflows.atlas import chosen as chosen_rows
    from uturn.workflows.atlas_numbers import listed, summary

    rows = chosen_rows(read_atlas(file), only or [])
    if listing:
        show(listed(rows))
        return say_next(run=("atlas", str(file), "--out", "FOLDER"))
    if out is None:
        raise ValueError("out: missing; expected --out FOLDER, or --list to run nothing")
    with resumable(f"what is done is in {out}; run the same command again to resume"):
        found = measure_atlas(
            rows,
            out,
            announce=lambda text: console().print(text, style="bold"),
            workers=machines.workers,
            progress=True,
            accept_changes=accept_changes,
            **machines.on_cluster(),
        )
    for part in summary(found):
        show(part)
    console().print(f"written to {out}: {', '.join(RESULTS)}")
    failed = [row.name for row in rows if found.failure.values[found.name.values == row.name].any()]
    if failed:
        console().print(f"{len(failed)} of {len(rows)} rows failed: {', '.join(failed)}")
    say_next(open=inside(out, "index.html"))
    if failed:
        raise typer.Exit(1)


def _show_study(tables: Iterator[Any], analysis: Any, out: str, names: list[str]) -> None:
    """The tables of a study, and where its results are."""
    for table in tables:
        show(table)
    console().print(f"{analysis.attrs['description']}\nwritten to {out}: {', '.join(names)}")
    say_next(open=inside(out, "index.html"))
