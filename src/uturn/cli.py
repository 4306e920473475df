"""The command line: reproduce, run, check, plan, status, images, text, atlas, theory, schedule, convert, report, explore."""

from __future__ import annotations

import inspect
import json
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from uturn.checks import TasksFailed
from uturn.paper import FIGURES
from uturn.workflows.image_options import ImageOptions
from uturn.workflows.options import Options
from uturn.workflows.text_options import TextOptions

if TYPE_CHECKING:
    from rich.table import Table

    from uturn.experiment import Experiment
    from uturn.paper import Result

_Chosen = TypeVar("_Chosen", bound=Options)

app = typer.Typer(
    name="uturn",
    help="Forward-backward experiments on diffusion models: corrupt a datum, denoise it back, measure what changed.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


class _Scale(StrEnum):
    smoke = "smoke"
    paper = "paper"


_Workers = Annotated[
    int | None, typer.Option(min=1, help="Number of processes; the results do not depend on it.", show_default="by task")
]

_Shard = Annotated[
    str, typer.Option(help="i/n: run the i-th of n shares; other GPUs or hosts run the others, into the same store.")
]


_CLUSTER = "On a Ray cluster"
_Cluster = Annotated[
    str | None,
    typer.Option(
        help="Measure on a Ray cluster: local (start Ray on this machine), auto (the one that runs here), or its address, "
        "ray://host:port or host:port. Needs uturn[cluster].",
        rich_help_panel=_CLUSTER,
    ),
]
_Cpus = Annotated[float | None, typer.Option(help="Cores of a worker.", show_default="1", rich_help_panel=_CLUSTER)]
_Gpus = Annotated[
    float | None,
    typer.Option(help="GPUs of a worker.", show_default="1 for networks where there are some", rich_help_panel=_CLUSTER),
]


_Out = Annotated[str, typer.Option(help="Folder, or URL of object storage, for the run, numbers and figures.")]
_File = Annotated[
    Path | None,
    typer.Option(help="TOML file of options of the experiment, such as items = 50; the command line takes precedence."),
]
_Resume = Annotated[bool, typer.Option(help="Continue the run that is in the folder.")]
_AcceptChanges = Annotated[
    bool, typer.Option("--accept-changes", help="Continue although the code of a network of your own has changed.")
]


def _with_fields(model: type[BaseModel], **flags: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command with `**fields` one option for each field of a model; `flags`: names of options that are not the field's."""

    def with_fields(command: Callable[..., None]) -> Callable[..., None]:
        *own, _ = inspect.signature(command, eval_str=True).parameters.values()
        fields = [
            _option(name, field, flags.get(name, f"--{name.replace('_', '-')}")) for name, field in model.model_fields.items()
        ]
        parameters = [*(parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in own), *fields]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return command

    return with_fields


def _option(name: str, field: FieldInfo, flag: str) -> inspect.Parameter:
    """A field of a model as an option with its type, default and description; fields of several types are given as text."""
    kinds = [kind for kind in get_args(field.annotation) or (field.annotation,) if kind is not NoneType]
    kind, default = (field.annotation, field.default) if len(kinds) == 1 else (str, str(field.default))
    switch = f"{flag}/--no-{flag[2:]}" if kinds == [bool] else flag
    words = f"{field.description}{' Can be given several times.' if default == [] else ''}"
    option = typer.Option(switch, help=words, rich_help_panel="Experiment (also in the file of --options)")
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


def _given(context: typer.Context, values: dict[str, Any]) -> dict[str, Any]:
    """Those values of options that stand on the command line."""
    sources = {name: context.get_parameter_source(name) for name in values}
    return {name: value for name, value in values.items() if getattr(sources[name], "name", "") == "COMMANDLINE"}


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        import uturn

        typer.echo(f"uturn {uturn.__version__}")
        raise typer.Exit


@app.command()
def reproduce(
    figures: Annotated[list[str] | None, typer.Argument(help=f"{', '.join(FIGURES)}; or all (default)")] = None,
    scale: Annotated[
        _Scale, typer.Option(help="smoke: small sizes, minutes on two cores; paper: the sizes of the paper.")
    ] = _Scale.smoke,
    out: Annotated[str, typer.Option(help="Folder, or URL of object storage, for figures, data and the page.")] = "results",
    workers: _Workers = None,
    cluster: _Cluster = None,
    cpus_per_worker: _Cpus = None,
    gpus_per_worker: _Gpus = None,
) -> None:
    """Reproduce the figures of arXiv:2402.16991 and further ones, with a verdict for each of their claims.

    Measures at which noise the class of a datum is lost when diffusion is reversed: in the exactly solvable hierarchical model,
    in images (fig2), in networks trained on the model (fig8, learning), and in data without a hierarchy (s9, controls). Writes
    PNG, PDF, data (zarr) and the page `index.html`. The exit code is 1 if a verdict fails. The command can be stopped at any
    time; the same command continues.

    Example: `uturn reproduce fig6 fig7 --out results`
    """
    from uturn.paper import ORDER
    from uturn.paper import reproduce as reproduce_figures

    names = list(figures or ["all"])
    names = [figure for name in names for figure in (ORDER if name == "all" else (name,))]
    console = _console()
    with _resumable(f"run the same command again to resume (raw runs are in {_inside(out, scale.value)})"):
        results = reproduce_figures(
            names,
            out,
            scale.value,
            workers,
            progress=True,
            announce=lambda text: console.print(text, style="bold"),
            cluster=_on_cluster(cluster, cpus_per_worker, gpus_per_worker),
        )
    console.print(_verdict_table(results, scale.value))
    failed = sum(not verdict.passed for result in results for verdict in result.verdicts)
    total = sum(len(result.verdicts) for result in results)
    console.print(f"{total - failed} of {total} verdicts passed; page: {_inside(out, 'index.html')}")
    if failed:
        raise typer.Exit(1)


def _verdict_table(results: list[Result], scale: str) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"Verdicts, scale {scale}", title_justify="left", show_lines=False)
    for heading in ("figure", "quantity", "measured", "expected", ""):
        table.add_column(heading, overflow="fold")
    for result in results:
        for verdict in result.verdicts:
            mark = Text("pass", "green") if verdict.passed else Text("FAIL", "bold red")
            expected = f"{verdict.expected}" + (f" ({verdict.rule})" if verdict.rule else "")
            table.add_row(result.figure, verdict.quantity, verdict.measured, expected, mark)
    return table


@app.command()
def run(
    spec: Annotated[Path, typer.Argument(help="Description of the experiment, TOML or JSON.")],
    store: Annotated[str, typer.Option(help="Folder of the zarr store to fill, or URL such as s3://bucket/run.")],
    workers: _Workers = None,
    resume: Annotated[bool, typer.Option(help="Continue an existing store of the same experiment, or of a smaller one.")] = True,
    shard: _Shard = "1/1",
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Continue although the code of a part of your own has changed.")
    ] = False,
    cluster: _Cluster = None,
    cpus_per_worker: _Cpus = None,
    gpus_per_worker: _Gpus = None,
) -> None:
    """Run an experiment from a file into a store; readings that the store has already are not measured again.

    Measures, at every noise level, what U-turns change: the share of unchanged latents at each tree level, or the similarity in
    each network layer. `xarray.open_zarr(STORE)` opens the results. A store of the same experiment with fewer items, noise
    levels, trajectories or clones is extended.

    Example: `uturn run examples/epsilon.toml --store runs/epsilon`
    """
    from uturn.experiment import Experiment

    experiment = Experiment.from_file(spec)
    on_cluster = _on_cluster(cluster, cpus_per_worker, gpus_per_worker)
    ds = _run(experiment, store, resume, workers, shard, accept_changes, on_cluster)
    console = _console()
    done = "complete" if ds.attrs["complete"] else f"share {shard} done, {ds.attrs['missing_tasks']} tasks missing"
    console.print(f"{store}: {done}, spec {experiment.hash[:12]}")
    for name in ds.attrs["variables"]:
        dims = ", ".join(f"{dim} {size}" for dim, size in ds[name].sizes.items())
        console.print(f"  {name} ({dims}): {ds[name].attrs['long_name']}")


@app.command()
def check(spec: Annotated[Path, typer.Argument(help="Description of an experiment, TOML or JSON.")]) -> None:
    """Try a spec before its run: build its parts, and run two items through all of them.

    Measures the two items at the first and the last noise level, together and one by one. Reports parts that lack a member or
    return values of a wrong kind, and readings that depend on the batch or change when they are repeated.

    Example: `uturn check examples/epsilon.toml`
    """
    from uturn.experiment import Experiment
    from uturn.trial import check as check_experiment

    console = _console()
    for line in check_experiment(Experiment.from_file(spec)):
        console.print(line, markup=False)
    console.print(f"{spec}: nothing wrong was found")


@app.command()
def plan(
    spec: Annotated[Path, typer.Argument(help="Description of an experiment, TOML or JSON.")],
    store: Annotated[str | None, typer.Option(help="Folder of the store to fill: only what it does not hold is counted.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Largest number of processes to give the time for.", show_default="8")
    ] = None,
) -> None:
    """Say what a run will take: tasks, calls of networks, memory, disk, time. Writes nothing.

    Counts the tasks and the calls exactly, and times a few U-turns on this machine for some seconds. Times of more processes than
    it has cores are those of a cluster of such machines.

    Example: `uturn plan examples/epsilon.toml`
    """
    since = time.perf_counter()
    from uturn.experiment import Experiment
    from uturn.plan import plan as plan_experiment

    found = plan_experiment(Experiment.from_file(spec), store, workers=workers, since=since)
    assert found is not None
    for line in found.lines():
        _console().print(line, markup=False)


@app.command()
def status(store: Annotated[str, typer.Argument(help="Folder or URL of a store.")]) -> None:
    """Print how many tasks of a run are done, missing and damaged, and the spec. Measures nothing and changes nothing.

    Reads every stored reading, so that damaged files are found.

    Example: `uturn status runs/epsilon`
    """
    from uturn.store import Store

    opened = Store.open(store)
    states = {task: state for task, (state, _) in opened.states().items()}
    console = _console()
    counts = {state: sum(found == state for found in states.values()) for state in ("done", "part", "missing", "damaged")}
    words = [f"{counts['done']} of {len(states)} tasks done", f"{counts['missing']} missing", f"{counts['damaged']} damaged"]
    if counts["part"]:
        words.insert(1, f"{counts['part']} with fewer trajectories or clones than the spec asks for")
    console.print(f"{store}: {', '.join(words)}", markup=False)
    for task, state in states.items():
        if state == "damaged":
            items = opened.items(task)
            place = f"noise {opened.noise[task.noise_index]:g}, items {items[0]} to {items[-1]}"
            console.print(f"  damaged: {place}; `uturn run` with the same spec measures it again", markup=False)
    sizes = f"{len(opened.noise)} noise levels, {opened.num_items} items, {opened.trajectories} trajectories"
    console.print(f"  {', '.join(opened.variables)}: {sizes}", markup=False)
    console.print(json.dumps(json.loads(opened.attributes["spec"]), indent=1, ensure_ascii=False), markup=False)


@app.command()
@_with_fields(ImageOptions, classifiers="--classifier")
def images(
    context: typer.Context,
    out: _Out,
    options: _File = None,
    shard: _Shard = "1/1",
    save_images: Annotated[bool, typer.Option(help="Write the kept reconstructions as PNG files too.")] = False,
    resume: _Resume = True,
    workers: _Workers = None,
    accept_changes: _AcceptChanges = False,
    finished: Annotated[
        str | None,
        typer.Option("--run", help="Analyse and draw this finished store instead; only --out and --save-images apply."),
    ] = None,
    cluster: _Cluster = None,
    cpus_per_worker: _Cpus = None,
    gpus_per_worker: _Gpus = None,
    **fields: Any,
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
        image_options = _options(ImageOptions, options, context, fields)
        with output_folder("out", out) as folder:
            check_folder(folder, save_images, image_options.keep)
            store, originals = folder.place("run.zarr"), None if folder.is_remote else os.path.abspath(folder.place("originals"))
        on_cluster = _on_cluster(cluster, cpus_per_worker, gpus_per_worker)
        experiment = image_options.experiment(originals)
        with _live_page(out, "uturn images", shard):
            ds = _run(experiment, store, resume, workers, shard, accept_changes, on_cluster)
        if _is_unfinished(ds, out, store, shard):
            return
    analysis = write_results(ds, out, save_images=save_images)
    _print_study(summary(analysis), analysis, out, written(out, save_images))


@app.command()
@_with_fields(TextOptions, segments="--segment")
def text(
    context: typer.Context,
    out: _Out,
    options: _File = None,
    shard: _Shard = "1/1",
    resume: _Resume = True,
    workers: _Workers = None,
    accept_changes: _AcceptChanges = False,
    finished: Annotated[
        str | None, typer.Option("--run", help="Analyse and draw this finished store instead; only --out applies.")
    ] = None,
    cluster: _Cluster = None,
    cpus_per_worker: _Cpus = None,
    gpus_per_worker: _Gpus = None,
    **fields: Any,
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
        text_options = _options(TextOptions, options, context, fields)
        with output_folder("out", out) as folder:
            check_results(folder)
            store = folder.place("run.zarr")
        experiment = text_options.experiment()
        on_cluster = _on_cluster(cluster, cpus_per_worker, gpus_per_worker)
        with _live_page(out, "uturn text", shard):
            ds = _run(experiment, store, resume, workers, shard, accept_changes, on_cluster)
        if _is_unfinished(ds, out, store, shard):
            return
        source = experiment.parts.source
    analysis = write_text_results(ds, out, source)
    _print_study(text_summary(analysis), analysis, out, named_in(out, RESULTS))


@app.command()
def atlas(
    file: Annotated[Path, typer.Argument(metavar="ATLAS.toml", help="Description of the models, one table [[models]] a row.")],
    out: Annotated[
        str | None, typer.Option(help="Folder, or URL of object storage, for the stores, the table and the figure.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Name of a row; the others are left out. Can be given several times.")
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="Print the rows and the facts about them; run nothing.")] = False,
    workers: _Workers = None,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Continue although the code of a network of your own has changed.")
    ] = False,
    cluster: _Cluster = None,
    cpus_per_worker: _Cpus = None,
    gpus_per_worker: _Gpus = None,
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

    console = _console()
    rows = chosen_rows(read_atlas(file), only or [])
    if listing:
        console.print(listed(rows))
        return
    if out is None:
        raise ValueError("out: missing; expected --out FOLDER, or --list to run nothing")
    with _resumable(f"what is done is in {out}; run the same command again to resume"):
        found = measure_atlas(
            rows,
            out,
            announce=lambda text: console.print(text, style="bold"),
            workers=workers,
            progress=True,
            accept_changes=accept_changes,
            **_on_cluster(cluster, cpus_per_worker, gpus_per_worker),
        )
    for part in summary(found):
        console.print(part)
    console.print(f"written to {out}: {', '.join(RESULTS)}")
    failed = [row.name for row in rows if found.failure.values[found.name.values == row.name].any()]
    if failed:
        console.print(f"{len(failed)} of {len(rows)} rows failed: {', '.join(failed)}")
        raise typer.Exit(1)


@app.command()
def theory(
    vocab_size: Annotated[int, typer.Option("--vocab-size", "-v", help="Symbols at each level.")] = 32,
    multiplicity: Annotated[int, typer.Option("--multiplicity", "-m", help="Rules for each symbol.")] = 8,
    branching: Annotated[int, typer.Option("--branching", "-s", help="Children of each node.")] = 2,
    depth: Annotated[
        int, typer.Option("--depth", "-L", min=1, help="Levels of the tree, for the numbers that depend on it.")
    ] = 10,
    plot: Annotated[Path | None, typer.Option(help="Draw the upward map to this file (PNG, PDF, ..).")] = None,
) -> None:
    """Print the mean-field theory of a grammar, and draw its map.

    Computes the phase, the threshold ε\\*, the exponent ν, and the fixed points of the map from level to level with their slopes.

    Example: `uturn theory -v 32 -m 8 -s 2 --plot map.png`
    """
    from rich.table import Table

    from uturn.files import whole_file
    from uturn.theory import MeanField

    if plot is not None:
        plot = _picture(plot)
    mf = MeanField(vocab_size, multiplicity, branching)
    table = Table(
        title=f"Mean field, v = {vocab_size}, m = {multiplicity}, s = {branching}", title_justify="left", show_header=False
    )
    crossing = mf.class_crossing(depth)

    def number(value: float | None) -> str:
        return "none" if value is None else f"{value:.6g}"

    for words, text in [
        ("phase", mf.phase),
        ("critical noise ε*", number(mf.critical_noise)),
        ("repulsive fixed point p*", number(mf.fixed_point)),
        ("slope F'(p*)", number(mf.slope)),
        ("slope F'(1)", number(mf.slope_at_one)),
        ("slope F'(1/v)", number(float(mf.slope_at(1 / vocab_size)))),
        ("correlation exponent ν", number(mf.correlation_exponent)),
        (f"ε at which class and leaves cross, L = {depth}", number(crossing)),
    ]:
        table.add_row(words, text)
    console = _console()
    console.print(table)
    if plot is not None:
        from uturn.plotting.style import style
        from uturn.plotting.theory import draw

        with style() as plt, whole_file(plot) as file:
            figure = draw(mf)
            figure.savefig(file, format=plot.suffix[1:].lower())
            plt.close(figure)
        console.print(f"drawn: {plot}")


@app.command()
def schedule(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Folder or hub id of a diffusers model (only its configuration is read), a scheduler_config.json, a "
            "guided-diffusion checkpoint, or fashion_mnist; several are drawn together.",
        ),
    ],
    steps: Annotated[int, typer.Option(help="Steps of the whole chain.")] = 50,
    scheduler: Annotated[
        str | None, typer.Option(help="ddpm, ancestral, euler, .., or a class of diffusers.", show_default="the stored one")
    ] = None,
    timestep_spacing: Annotated[
        str | None,
        typer.Option(
            help="linspace (as in `uturn images`), leading or trailing.", show_default="the stored one, as in pipelines"
        ),
    ] = None,
    size: Annotated[int, typer.Option(help="Pixels of the images, for schedules that are shifted by resolution.")] = 1024,
    preset: Annotated[str | None, typer.Option(help="Name or flags of the guided-diffusion model.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the levels to this file (PNG, PDF, SVG, ..).")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the tables to this file, one row for each model and step.")] = None,
) -> None:
    """Print which noise a number of steps, or the `strength` of an image-to-image pipeline, stands for.

    Measures, for every number of steps k of N: the timestep at which the reverse steps begin, t/T = k/N, the strength that makes
    k steps in diffusers' image-to-image pipelines, signal power abar, log-SNR (nats), and sigma, noise over signal. No weights
    are read. docs/schedules.md says what strength means in other tools.

    Example: `uturn schedule stable-diffusion-v1-5/stable-diffusion-v1-5 --steps 30 --plot schedule.png`
    """
    from uturn.files import whole_file
    from uturn.workflows.schedules import schedule as noise_levels
    from uturn.workflows.schedules import table

    plot = None if plot is None else _picture(plot)
    options: dict[str, Any] = {"timestep_spacing": timestep_spacing, "size": size, "preset": preset}
    found = [noise_levels(model, steps, scheduler, **options) for model in models]
    console = _console()
    for ds in found:
        console.print(table(ds))
    if csv is not None:
        import pandas

        rows = pandas.concat([ds.to_dataframe().assign(model=ds.attrs["model"]) for ds in found])
        with whole_file(csv) as file:
            file.write(rows.reset_index().set_index(["model", "step"]).to_csv().encode())
        console.print(f"written: {csv}")
    if plot is not None:
        from uturn.plotting.schedules import draw_schedules
        from uturn.plotting.style import style

        with style() as plt, whole_file(plot) as file:
            figure = draw_schedules(found, [Path(model).name for model in models])
            figure.savefig(file, format=plot.suffix[1:].lower())
            plt.close(figure)
        console.print(f"drawn: {plot}")


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of guided-diffusion, .pt or .safetensors.")],
    folder: Annotated[Path, typer.Argument(help="Folder to write; it must not exist.")],
    preset: Annotated[
        str | None,
        typer.Option(
            help="Name of the published model, or flags of the original code, such as '--image_size 64 --num_heads 4'.",
            show_default="the name of the file",
        ),
    ] = None,
) -> None:
    """Write a checkpoint of OpenAI's guided-diffusion (ADM) as a folder in diffusers' layout: UNet2DModel and DDPMScheduler.

    Measures nothing; the network computes the same as before. Checkpoints can also be used without conversion, with their preset.
    Those with a fixed number of heads (128x128_diffusion) or a narrow first level (512x512_diffusion) cannot be converted.

    Example: `uturn convert 256x256_diffusion_uncond.pt adm256 --preset 256x256_diffusion_uncond`
    """
    from uturn.networks.guided_diffusion import convert_guided_diffusion

    model = convert_guided_diffusion(checkpoint, folder, preset)
    condition = "unconditional" if model.num_classes is None else f"conditioned on the class ({model.num_classes} classes)"
    _console().print(f"written: {folder} (UNet2DModel, {condition}, images of {model.options['image_size']} pixels)")


@app.command()
def report(
    folders: Annotated[list[str], typer.Argument(metavar="DIR...", help="Folders or stores of results; or one URL.")],
    out: Annotated[
        str | None, typer.Option(help="File to write.", show_default="DIR/index.html; report.html here for a store or several")
    ] = None,
) -> None:
    """Write one page for results of `reproduce`, `images`, `text`, `atlas` and `run`. Measures nothing.

    The page is one HTML file that opens without a network: t\\* with its interval, verdicts with a filter, and curves, images and
    texts at the noise of one slider. Files that cannot be read are named, and the rest is shown.

    Example: `uturn report results/fashion`

    Example: `uturn report results results/fashion runs/epsilon --out all.html`
    """
    from uturn.pages import report as write_page

    path, problems = write_page(folders, out)
    console = _console()
    for line in problems:
        console.print(f"not shown in full: {line}")
    console.print(f"written: {path}")


@app.command()
def explore(
    out: Annotated[Path, typer.Option(help="File of the page.")] = Path("uturn-laboratory.html"),
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Write the laboratory: a page that shows U-turns of the exactly solvable model in a browser, without server or network.

    Measures, for the grammar and the noise that are chosen in the page, the exact belief in every symbol of the tree, and what
    U-turns change at every tree level, against mean-field theory.

    Example: `uturn explore --open`
    """
    from uturn.lab import write_laboratory

    path = write_laboratory(out)
    _console().print(f"written: {path}")
    if open_page:
        import webbrowser

        if not webbrowser.open(path.resolve().as_uri()):
            typer.echo(f"uturn: no browser was found; open {path} in one", err=True)


def _picture(path: Path) -> Path:
    """The file of a picture, checked before anything is drawn: PNG unless its ending says otherwise."""
    endings = ("png", "pdf", "svg", "eps", "jpg", "jpeg", "tif", "tiff", "webp")
    path = path if path.suffix or not path.name else path.with_name(f"{path.name}.png")
    if path.is_dir() or path.suffix[1:].lower() not in endings:
        raise ValueError(f"plot = {str(path)!r}: expected a file that ends in .{', .'.join(endings)}")
    return path


def _run(
    experiment: Experiment,
    store: str | Path,
    resume: bool,
    workers: int | None,
    shard: str,
    accept_changes: bool,
    on_cluster: Mapping[str, Any],
) -> Any:
    """The dataset of an experiment, run into a store; a run that is stopped says how to continue."""
    from uturn.running import run as run_experiment

    with _resumable(f"what is done is in {store}; run the same command again to resume"):
        if shard == "1/1" and on_cluster["cluster"] is None:
            _announce(experiment, store, workers)
        return run_experiment(
            experiment,
            store,
            resume,
            workers=workers,
            progress=True,
            shard=_shard(shard),
            accept_changes=accept_changes,
            **on_cluster,
        )


def _options(kind: type[_Chosen], file: Path | None, context: typer.Context, fields: dict[str, Any]) -> _Chosen:
    """Options of a study from a file and from the command line."""
    chosen = {} if file is None else kind.from_file(file).model_dump(exclude_unset=True)
    return kind.from_dict(chosen | _given(context, fields))


@contextmanager
def _live_page(out: str, study: str, shard: str) -> Iterator[None]:
    """Context in which the page of a study follows its run."""
    from uturn.outputs import output_folder
    from uturn.pages import live_page

    with output_folder("out", out) as folder, live_page(folder, study) as page:
        if shard != "1/1":
            page.says(f"share {shard} of the tasks")
        yield


def _is_unfinished(ds: Any, out: str, store: str, shard: str) -> bool:
    """Whether other shares have tasks left; says so, here and on the page."""
    from uturn.objects import is_url
    from uturn.pages import write_page
    from uturn.workflows.runs import missing_tasks

    missing = missing_tasks(ds)
    if missing:
        if not is_url(out):
            with suppress(ValueError):  # nothing to show yet
                write_page(out)
        left = f"{missing} {'task' if missing == 1 else 'tasks'} of other shares left"
        _console().print(f"{store}: share {shard} done, {left}; the share that ends last draws the figures")
    return bool(missing)


def _print_study(tables: Iterator[Any], analysis: Any, out: str, names: list[str]) -> None:
    """The tables of a study, and where its results are."""
    console = _console()
    for table in tables:
        console.print(table)
    console.print(f"{analysis.attrs['description']}\nwritten to {out}: {', '.join(names)}")


def _on_cluster(cluster: str | None, cpus: float | None, gpus: float | None) -> dict[str, Any]:
    """Arguments of `run` for a cluster."""
    if cluster is None and (cpus, gpus) != (None, None):
        raise ValueError("--cpus-per-worker and --gpus-per-worker need --cluster")
    return {"cluster": cluster, "cpus_per_worker": cpus, "gpus_per_worker": gpus}


def _announce(experiment: Experiment, store: str | Path, workers: int | None) -> None:
    """Write to stderr what a run of more than a minute will take."""
    from uturn.plan import plan as plan_experiment

    with suppress(ValueError):  # the run itself reports it
        found = plan_experiment(experiment, store, workers=workers, budget=3.0, least=60.0)
        for line in found.lines() if found is not None else []:
            typer.echo(f"uturn: {line}", err=True)


def _shard(text: str) -> tuple[int, int]:
    """ "2/8" as numbers; `run` checks them."""
    number, slash, shares = text.partition("/")
    if not (slash and number.isdecimal() and shares.isdecimal()):
        raise ValueError(f"shard = {text!r}: expected i/n, such as 2/8")
    return int(number), int(shares)


def _inside(folder: str, name: str) -> str:
    """A path or URL in a folder."""
    return f"{folder.rstrip('/')}/{name}"


def _console() -> Any:
    from rich.console import Console

    # Piped output has no width of its own, and 80 columns would be too few for some tables.
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False)  # names may hold brackets


@contextmanager
def _resumable(advice: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as stop:
        typer.echo(f"\nstopped; {advice}", err=True)
        raise typer.Exit(_exit_code(stop)) from None


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does."""


def _on_sigterm(*_: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Slurm sends it to a job's script, which passes it on, and to its processes
    raise _Terminated


def _exit_code(stop: BaseException | None) -> int:
    """128 plus the number of the signal that stopped a command, as shells have it."""
    return 128 + (signal.SIGTERM if isinstance(stop, _Terminated) else signal.SIGINT)


def main() -> None:
    """Entry point: user mistakes end in one line on stderr and exit code 2, never in a traceback."""
    signal.signal(signal.SIGTERM, _on_sigterm)
    log = logging.StreamHandler()
    log.setFormatter(logging.Formatter("uturn: %(message)s"))
    logging.getLogger("uturn").addHandler(log)
    logging.getLogger("uturn").setLevel(logging.INFO)
    sys.path.append("")  # user-defined parts are imported from the working directory, where no file can replace a library
    for library in ("DIFFUSERS", "HF_HUB"):  # their errors come back as exceptions
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    warnings.formatwarning = lambda message, *_, **__: f"uturn: warning: {message}\n"
    try:
        code = app(standalone_mode=False)
    except KeyboardInterrupt as stop:
        sys.exit(_exit_code(stop))
    except TasksFailed as error:
        typer.echo(f"uturn: error: {error}", err=True)
        sys.exit(1)
    except Exception as error:
        # Mistakes in options are exceptions of click, or of typer's own copy of it; both have `format_message`.
        usage = getattr(error, "format_message", None)
        if type(error).__name__ in ("Abort", "NoArgsIsHelpError"):
            sys.exit(_exit_code(error.__cause__) if type(error).__name__ == "Abort" else 2)
        if usage is None and not isinstance(error, ValueError | OSError | MemoryError | BrokenExecutor):
            raise
        text = str(error) if usage is None else usage()
        typer.echo(f"uturn: error: {' '.join((text or type(error).__name__).split())}", err=True)
        sys.exit(2)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
