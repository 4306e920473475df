"""`uturn images`, `text` and `atlas`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uturn.cli.app import STUDIES, command
from uturn.cli.options import OUTPUT, AcceptChanges, Finished, Machines, Out, Running
from uturn.cli.presets.images import ImageOptions
from uturn.cli.presets.texts import TextOptions
from uturn.cli.printing import console, inside, say_next, show
from uturn.cli.running import followed, is_unfinished, opened, resumable, run_into

if TYPE_CHECKING:
    from uturn.core.experiment import Experiment


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
    the page `index.html`, `study.png`, `grid.png`, `study.json`, `curves.csv`, `numbers.csv`, and the run itself, `run.zarr`.
    With --clones 2 or more also whether reconstructions are draws from the posterior. It can be stopped at any time; the same
    command continues, and larger numbers of items, levels, trajectories or clones extend the run. Without options it runs the
    Fashion-MNIST model that comes with the package, in a few minutes.

    Example: `uturn images --out results/fashion`

    Example: `uturn images --model google/ddpm-cifar10-32 --data photos --size 32 --classifier torchvision:resnet50
    --no-compare-labels --out results/cifar`
    """
    _, ds = _run(out, "uturn images", finished, chosen.experiment, running, save_images=(save_images, chosen.keep))
    if ds is not None:
        _write(ds, out, title="U-turns of images", groups=("class", "layers"), save_images=save_images)


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
    are draws from the posterior. Numbers have 95 % intervals. Writes the page `index.html`, `study.png`, `tokens.html` and
    `tokens.png` (originals and reconstructions, with changes marked), `study.json`, `curves.csv`, `numbers.csv`, and the run
    itself, `run.zarr`. It can be stopped at any
    time; the same command continues, and larger numbers of items, levels, trajectories or clones extend the run. Without options
    it runs the model of characters that comes with the package, in a few minutes.

    Example: `uturn text --out results/text`

    Example: `uturn text --model google-bert/bert-base-uncased --data sentences.txt --items 100 --out results/bert`

    Example: `uturn text --model out/reactions --split smiles --data out/reactions.txt --segment . --segment ">>" --clones 2
    --layers same --out results/reactions`
    """
    experiment, ds = _run(out, "uturn text", finished, lambda originals: chosen.experiment(), running)
    if ds is not None:
        source = None if experiment is None else experiment.parts.source
        _write(ds, out, title="U-turns of texts", groups=("tokens",), source=source)


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
    from uturn.cli.presets.atlas import RESULTS, listed, measure_atlas, read_atlas
    from uturn.cli.presets.atlas import chosen as chosen_rows
    from uturn.cli.presets.atlas_numbers import summary

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


def _run(
    out: str,
    study: str,
    finished: str | None,
    described: Callable[[str | None], Experiment],
    running: Running,
    save_images: tuple[bool, int] = (False, 0),
) -> tuple[Experiment | None, Any]:
    """The experiment of a study and its dataset: of a finished store, or run into OUT/run.zarr; None while shares are left."""
    from uturn.pages.results import check_folder
    from uturn.store.outputs import output_folder

    if finished is not None:
        return None, opened(finished)
    with output_folder("out", out) as folder:
        check_folder(folder, *save_images)
        store, originals = folder.place("run.zarr"), None if folder.is_remote else os.path.abspath(folder.place("originals"))
    experiment = described(originals)
    with followed(out, study, running.shard):
        ds = run_into(store, experiment, running)
    return experiment, None if is_unfinished(ds, out, store, running.shard) else ds


def _write(ds: Any, out: str, *, save_images: bool = False, **options: Any) -> None:
    """Write the study of a run; print its tables, and where its results are."""
    from uturn.pages.results import write_study, written
    from uturn.studies import summary

    study = write_study(ds, out, save_images=save_images, **options)
    for table in summary(study):
        show(table)
    console().print(f"{study.attrs['description']}\nwritten to {out}: {', '.join(written(out, save_images))}")
    say_next(open=inside(out, "index.html"))
