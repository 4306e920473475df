"""`uturn images`, `text`, `inverse` and `atlas`."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uturn.cli.app import STUDIES, command
from uturn.cli.locating import checked_reading, locate_into
from uturn.cli.options import (
    OUTPUT,
    AcceptChanges,
    AnyShape,
    Machines,
    OptionalOut,
    Out,
    Reading,
    Running,
    Share,
    Until,
)
from uturn.cli.presets.images import ImageOptions
from uturn.cli.presets.inverse import InverseOptions
from uturn.cli.presets.texts import TextOptions
from uturn.cli.printing import console, inside, say_next, show
from uturn.cli.running import resumable, run_into

if TYPE_CHECKING:
    from uturn.core.experiment import Experiment


@command(STUDIES)
def images(
    out: Out,
    save_images: Annotated[
        bool, typer.Option(help="Also write the stored reconstructions as PNG files.", rich_help_panel=OUTPUT)
    ] = False,
    until: Until = None,
    reading: Reading = None,
    share: Share = 0.5,
    any_shape: AnyShape = False,
    *,
    chosen: ImageOptions,
    running: Running,
) -> None:
    """Measure where U-turns of images lose their class, in the layers of classifiers: Figs. 1, 2 and 16 for your own model.

    Images are noised to a fraction t/T of a diffusion chain and denoised back. At each t/T the command measures the share of
    reconstructions that keep the predicted class, and the cosine similarity of reconstruction and original in each layer of the
    classifier.

    The study gives, with 95 % intervals: t\\*, where half of the class is lost; the width of this transition; the half-life of
    each layer; and the t/T at which the logits fall below the first layer. With --clones 2 or more, it tests whether
    reconstructions are draws from the posterior. --recorded studies images that another program has noised and denoised.

    Writes the page `index.html`, `study.png`, `grid.png`, `curves.csv`, `numbers.csv`, `items.csv` (a row for each
    image) and the run, `run.zarr`. The command can be stopped at any time; running it again resumes. Larger numbers of items,
    levels or trajectories extend the run. Without options, the command runs the package's Fashion-MNIST model, in a few
    minutes.

    Example:

    ```
    uturn images --out results/fashion
    uturn images --model google/ddpm-cifar10-32 --data photos --size 32 \\
      --classifier torchvision:resnet50 --no-compare-labels --out results/cifar
    uturn images --recorded 'out/strength_{noise}/{item}_{trajectory}.png' --unit strength \\
      --data originals --classifier torchvision:resnet50 --no-compare-labels --out results/recorded
    uturn images --until 0.05 --out results/located
    ```
    """
    if until is not None:
        from uturn.store.places import is_url

        originals = None if is_url(out) else os.path.abspath(os.path.join(out, "originals"))
        return locate_into(out, chosen.experiment(originals), running, until, reading or "same_class", share, any_shape, out)
    looks: Any = {"title": "U-turns of images", "groups": ("class", "layers")}
    _study(out, chosen.experiment, running, chosen.keep, save_images=save_images, **looks)


@command(STUDIES)
def text(
    out: Out,
    until: Until = None,
    reading: Reading = None,
    share: Share = 0.5,
    any_shape: AnyShape = False,
    *,
    chosen: TextOptions,
    running: Running,
) -> None:
    """Measure the share of tokens that U-turns of texts keep and how many tokens change together, for your masked language model.

    A share of the tokens of each text is masked (or replaced), and the model draws them again, one at a time. At each noise level
    the command measures: the share of tokens that are kept, alone and in runs of 2, 4, 8, ..; the susceptibility chi, which is
    the number of tokens that change together, and the noise of its peak; the correlation C(r) of changes at distance r, and its
    length xi. Options add the unchanged share of regions and segments, and the readings of other models (--layers, --encoder,
    --likelihood), or the share of texts that keep their predicted class (--classifier), whose half-life is called t\\*. With
    --clones 2 or more, the study tests whether reconstructions are draws from the posterior. Numbers have 95 % intervals.

    --audit also asks the masked model itself: does the probability of two tokens depend on which is drawn first (nats a pair),
    how many nats of a text's likelihood depend on the order, and what does each of twelve decoders cost (calls, kept tokens,
    calibration gap, entropy, repetition)? It adds `audit.json`, `audit.png` and a section of the page.

    Writes the page `index.html`, `study.png`, `tokens.html` (originals and reconstructions with changes marked),
    `curves.csv`, `numbers.csv`, `items.csv` and the run, `run.zarr`. The command can be stopped at any time;
    running it again resumes. Larger numbers of items, levels or trajectories extend the run. Without options, the command
    runs the package's character model, in a few minutes.

    Example:

    ```
    uturn text --out results/text
    uturn text --model google-bert/bert-base-uncased --data sentences.txt \\
      --items 100 --out results/bert
    uturn text --model out/reactions --split smiles --data out/reactions.txt \\
      --segment . --segment ">>" --clones 2 --out results/reactions
    uturn text --audit --out results/audit
    uturn text --until 0.05 --reading "kept, span = 1" --out results/located
    ```
    """
    if until is not None:
        if chosen.audit:
            raise ValueError("audit: measures all of its noise levels; leave out --audit or --until")
        return locate_into(out, chosen.experiment(), running, until, checked_reading(reading), share, any_shape, out)
    if chosen.audit:
        from uturn.cli.auditing import audit_into

        return audit_into(out, chosen, running)
    looks: Any = {"title": "U-turns of texts", "groups": ("tokens",)}
    _study(out, lambda originals: chosen.experiment(), running, chosen.keep, **looks)


@command(STUDIES)
def inverse(out: Out, *, chosen: InverseOptions, running: Running) -> None:
    """Test whether posterior samplers of an inverse problem draw from the posterior, without ground truth about it.

    Images are measured, y = A(x) + noise, at several strengths of the operator A. Each sampler draws several reconstructions of
    each measurement. Given y, the original and exact draws from p(x | y) are exchangeable, so any reading that tells them apart
    shows an error. The command tests the distance of two images, their class, the likelihood log p(y | x) and the ranks of the
    original among its reconstructions, and says which kind of error it is: too sure, not sure enough, shifted, wrong modes, deaf
    to the data. Beside the tests stand what reconstructions keep of the class, t\\*, and calls of the network.

    With real images, sampler and model are judged together; --data generated, originals drawn by the model, judges the sampler
    alone, as do vectors of a law of your own, which need no model. Several can be given. Samplers and operators are those of
    deepinv by name, or your own: module:function. A function without a denoiser needs no model either.

    Writes the page `index.html` (truth, measurement, reconstructions and their spread at each strength), `inverse.json`,
    `inverse.csv`, `errors/`, the files of `uturn images`, and a store for each sampler. The command can be stopped at any
    time; running it again resumes. More samplers, items or levels extend the results. Without options, it tests two
    samplers of deepinv on the package's Fashion-MNIST model, behind hidden boxes, in five minutes. Needs uturn[inverse].

    Example:

    ```
    uturn inverse --out results/inverse
    uturn inverse --data fashion_mnist --data generated --sampler deepinv:DPS --out results/inverse
    uturn inverse --model google/ddpm-cifar10-32 --data photos --size 32 --operator blur --levels 0.5,1,2 \\
      --sampler 'deepinv:DiffPIR steps=50 zeta=0.3' --sampler own:langevin --out results/blur
    ```
    """
    from uturn.cli.presets.inverse_results import RESULTS, calls_of, write_inverse
    from uturn.pages import report, write_page
    from uturn.pages.results import check_folder, write_study, written
    from uturn.store.outputs import output_folder
    from uturn.studies.runs import missing_tasks
    from uturn.studies.tables import TextTable, for_terminal

    with output_folder("out", out) as folder:
        check_folder(folder)
        runs = chosen.runs(None if folder.is_remote else os.path.abspath(folder.place("originals")))
        calls, readings = calls_of(runs), {}
        for run in runs:
            readings[run.name] = run_into(folder.place(run.store), run.experiment, running)
            if not folder.is_remote and run is not runs[-1]:
                write_page(out)
        if missing := sum(map(missing_tasks, readings.values())):
            console().print(f"{out}: share {running.shard} done, {missing} tasks of other shares left")
            return
        title = "Posterior samplers" if len(runs) > 1 else f"Posterior sampler {runs[0].name}"
        studied = readings if len(runs) > 1 else readings[runs[0].name]
        studies = write_study(studied, out, title=title, groups=("class", "distance"), page=False)
        results = write_inverse(runs, readings, studies if len(runs) > 1 else {runs[0].name: studies}, calls, folder)
        report([out])
    show(for_terminal(TextTable(**results["table"])))
    for line in results["notes"]:
        console().print(line)
    console().print(f"written to {out}: {', '.join([*RESULTS, *written(out)])}")
    say_next(open=inside(out, "index.html"))


@command(STUDIES)
def atlas(
    file: Annotated[Path, typer.Argument(metavar="ATLAS", help="TOML file with one table [[models]] for each row.")],
    out: OptionalOut = None,
    only: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Run only this row. Can be given several times.")] = None,
    listing: Annotated[
        bool, typer.Option("--list", rich_help_panel=OUTPUT, help="Print the rows and the facts about them; run nothing.")
    ] = False,
    accept_changes: AcceptChanges = False,
    *,
    machines: Machines,
) -> None:
    """Measure where many models of images lose their class, on one axis: log-SNR.

    Each row of the file is a run of `uturn images`, with the same options, in a store of its own, NAME.zarr. The atlas gives for
    each row: t\\* and its width in each classifier; the half-life of each layer, and the log-SNR at which the logits fall below
    the first layer; with 2 or more trajectories, how many patches of pixels change together (chi) and over which distance (xi);
    with 2 or more clones, the calibration gap; and the speciation, abar = 1/Lambda, from the covariance of the data.

    Writes `atlas.csv`, `atlas.zarr` and `atlas.png`. The command can be stopped at any time; running it again resumes without
    repeating measurements. A row that fails is reported, the others go on, and the exit code is 1.

    Example:

    ```
    uturn atlas examples/atlas/here.toml --out results/atlas
    uturn atlas examples/atlas/public.toml --list
    ```
    """
    from uturn.cli.presets.atlas import RESULTS, listed, measure_atlas, read_atlas
    from uturn.cli.presets.atlas import chosen as chosen_rows
    from uturn.cli.presets.atlas_numbers import summary
    from uturn.studies.tables import for_terminal

    rows = chosen_rows(read_atlas(file), only or [])
    if listing:
        show(for_terminal(listed(rows)))
        return say_next(run=("atlas", str(file), "--out", "FOLDER"))
    if out is None:
        raise ValueError("out: missing; expected --out FOLDER, or --list to run nothing")
    with resumable(f"what is done is in {out}; run the same command again to resume"):
        table = measure_atlas(
            rows,
            out,
            announce=lambda text: console().print(text, style="bold"),
            workers=machines.workers,
            progress=True,
            accept_changes=accept_changes,
            **machines.on_cluster(),
        )
    for part in summary(table):
        show(part)
    console().print(f"written to {out}: {', '.join(RESULTS)}")
    failed = [row.name for row in rows if table.failure.values[table.name.values == row.name].any()]
    if failed:
        console().print(f"{len(failed)} of {len(rows)} rows failed: {', '.join(failed)}")
    say_next(open=inside(out, "index.html"))
    if failed:
        raise typer.Exit(1)


def _study(
    out: str,
    experiment_with: Callable[[str | None], Experiment],
    running: Running,
    keep: int,
    *,
    save_images: bool = False,
    **looks: Any,
) -> None:
    """Run an experiment into OUT/run.zarr and study it.

    Nothing is studied while other shares have unfinished tasks.
    """
    from uturn.pages import write_page
    from uturn.pages.results import check_folder, write_study, written
    from uturn.store.outputs import output_folder
    from uturn.studies import summary
    from uturn.studies.runs import missing_tasks

    with output_folder("out", out) as folder:
        check_folder(folder, save_images, keep)
        store, originals = folder.place("run.zarr"), None if folder.is_remote else os.path.abspath(folder.place("originals"))
        experiment = experiment_with(originals)
        ds = run_into(store, experiment, running)
    if missing := missing_tasks(ds):
        if not folder.is_remote:
            with suppress(ValueError):  # nothing to show yet
                write_page(out)
        left = f"{missing} {'task' if missing == 1 else 'tasks'} of other shares left"
        console().print(f"{store}: share {running.shard} done, {left}; the share that ends last draws the figures")
        return
    study = write_study(ds, out, source=experiment.parts.source, save_images=save_images, **looks)
    for table in summary(study, width=console().width):
        show(table)
    console().print(f"{study.attrs['description']}\nwritten to {out}: {', '.join(written(out, save_images))}")
    say_next(open=inside(out, "index.html"))
