"""The command line: `uturn reproduce`, `run`, `check`, `status`, `images`, `theory`, `convert`, `report`."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uturn.paper import FIGURES

if TYPE_CHECKING:
    from uturn.experiment import Experiment

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


_Workers = Annotated[int | None, typer.Option(min=1, help="Processes; the results do not depend on it.", show_default="by task")]

_Shard = Annotated[
    str, typer.Option(help="i/n: do the i-th of n shares; the others go to other GPUs or hosts, into the same store.")
]


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False) -> None:
    if version:
        import uturn

        typer.echo(f"uturn {uturn.__version__}")
        raise typer.Exit


@app.command()
def reproduce(
    figures: Annotated[list[str] | None, typer.Argument(help=f"{', '.join(FIGURES)}; or all (default)")] = None,
    scale: Annotated[_Scale, typer.Option(help="smoke: minutes on two cores; paper: the paper's parameters.")] = _Scale.smoke,
    out: Annotated[Path, typer.Option(help="Folder for figures, data and the page.")] = Path("results"),
    workers: _Workers = None,
) -> None:
    """Reproduce figures of arXiv:2402.16991 and what goes beyond them, with a verdict for each of their claims.

    Measures where the class of a datum is lost when diffusion is reversed from a growing noise: in the exactly solvable
    hierarchical model, on images (fig2), in networks trained on the model (fig8, learning), and in data without a hierarchy (s9,
    controls). Writes PNG, PDF, data (zarr) and `index.html`; exit code 1 if a verdict fails. Stop it at any time: the same
    command goes on where it was.

    Example: `uturn reproduce fig6 fig7 --out results`
    """
    from rich.table import Table
    from rich.text import Text

    from uturn.paper import ORDER
    from uturn.paper import reproduce as reproduce_figures

    names = list(figures or ["all"])
    names = [figure for name in names for figure in (ORDER if name == "all" else (name,))]
    console = _console()
    with _resumable(f"run the same command again to go on (raw runs are in {out / scale.value})"):
        results = reproduce_figures(
            names,
            out,
            scale.value,
            workers,
            progress=True,
            announce=lambda text: console.print(text, style="bold"),
        )
    table = Table(title=f"Verdicts, scale {scale.value}", title_justify="left", show_lines=False)
    for heading in ("figure", "quantity", "measured", "expected", ""):
        table.add_column(heading, overflow="fold")
    for result in results:
        for verdict in result.verdicts:
            mark = Text("pass", "green") if verdict.passed else Text("FAIL", "bold red")
            expected = f"{verdict.expected}" + (f" ({verdict.rule})" if verdict.rule else "")
            table.add_row(result.figure, verdict.quantity, verdict.measured, expected, mark)
    console.print(table)
    failed = sum(not verdict.passed for result in results for verdict in result.verdicts)
    total = sum(len(result.verdicts) for result in results)
    console.print(f"{total - failed} of {total} verdicts passed; page: {out / 'index.html'}")
    if failed:
        raise typer.Exit(1)


@app.command()
def run(
    spec: Annotated[Path, typer.Argument(help="Description of the experiment, TOML or JSON.")],
    store: Annotated[str, typer.Option(help="Folder of the zarr store to fill.")],
    workers: _Workers = None,
    resume: Annotated[bool, typer.Option(help="Go on with an existing store of the same, or of a smaller, experiment.")] = True,
    shard: _Shard = "1/1",
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Go on although the code of a part of your own has changed.")
    ] = False,
) -> None:
    """Run an experiment from a file into a store, or what is left of it.

    Measures, at every noise level, what U-turns change: the share of unchanged latents per tree level, or the similarity per
    network layer. The store opens with `xarray.open_zarr(DIR)`. A store of the same experiment with fewer items, noise levels or
    trajectories is extended: only what is new is measured.

    Example: `uturn run examples/epsilon.toml --store runs/epsilon`
    """
    from uturn.experiment import Experiment

    experiment = Experiment.from_file(spec)
    ds = _run(experiment, store, resume, workers, shard, accept_changes)
    console = _console()
    done = "complete" if ds.attrs["complete"] else f"share {shard} done, {ds.attrs['missing_tasks']} tasks missing"
    console.print(f"{store}: {done}, spec {experiment.hash[:12]}")
    for name in ds.attrs["variables"]:
        dims = ", ".join(f"{dim} {size}" for dim, size in ds[name].sizes.items())
        console.print(f"  {name} ({dims}): {ds[name].attrs['long_name']}")


@app.command()
def check(spec: Annotated[Path, typer.Argument(help="Description of an experiment, TOML or JSON.")]) -> None:
    """Try a spec before its run: build its parts, and run two items through all of them.

    Measures the two items at the first and the last noise level, together and one by one, and says what is wrong: parts that lack
    a member or give something else than they should, and readings that depend on the batch or change when they are repeated.

    Example: `uturn check examples/epsilon.toml`
    """
    from uturn.experiment import Experiment
    from uturn.experiment import check as check_experiment

    console = _console()
    for line in check_experiment(Experiment.from_file(spec)):
        console.print(line, markup=False)
    console.print(f"{spec}: nothing wrong was found")


@app.command()
def status(store: Annotated[str, typer.Argument(help="Folder of a store.")]) -> None:
    """Print what of a run is done, missing and damaged, and its spec. Every reading is looked at; nothing is changed.

    Example: `uturn status runs/epsilon`
    """
    from uturn.store import Store

    opened = Store.open(store)
    states = {task: state for task, (state, _) in opened.states().items()}
    console = _console()
    counts = {state: sum(found == state for found in states.values()) for state in ("done", "part", "missing", "damaged")}
    words = [f"{counts['done']} of {len(states)} tasks done", f"{counts['missing']} missing", f"{counts['damaged']} damaged"]
    if counts["part"]:
        words.insert(1, f"{counts['part']} with fewer trajectories than wanted")
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
def images(
    out: Annotated[Path, typer.Option(help="Folder for the run, numbers and figures.")],
    model: Annotated[str, typer.Option(help="Folder or hub id of a diffusers model, or a guided-diffusion checkpoint.")] = (
        "fashion_mnist"
    ),
    data: Annotated[str, typer.Option(help="Folder of images (sub-folders are classes), or a .npy file.")] = "fashion_mnist",
    classifier: Annotated[
        list[str] | None,
        typer.Option(
            help="torchvision:NAME, timm:NAME, module:function, or a file of uturn.networks; can be given several times.",
            show_default="fashion_mnist, for that data",
        ),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(help="Weights of the classifiers, in their order: a name, a file, or '' for the usual ones."),
    ] = None,
    preset: Annotated[str | None, typer.Option(help="Which guided-diffusion model the checkpoint is.")] = None,
    scheduler: Annotated[
        str,
        typer.Option(help="Reverse process: ddpm, ddim, euler_ancestral, .., a class of diffusers, or 'stored'."),
    ] = "ddpm",
    steps: Annotated[int, typer.Option(min=1, help="Reverse steps of the whole chain.")] = 100,
    eta: Annotated[float | None, typer.Option(help="Noise of ddim, 0 .. 1.")] = None,
    timestep_spacing: Annotated[str | None, typer.Option(help="linspace, leading or trailing.")] = None,
    pure_noise: Annotated[bool, typer.Option(help="Start the whole chain from pure noise, not from its first level.")] = False,
    levels: Annotated[
        str, typer.Option(help="Number of noise levels, evenly spaced up to the whole chain; or 0.2,0.5,1.0")
    ] = "10",
    items: Annotated[int, typer.Option(min=1, help="Number of originals.")] = 40,
    trajectories: Annotated[int, typer.Option(min=1, help="U-turns of each original at each level.")] = 1,
    size: Annotated[int | None, typer.Option(help="Resize and crop the images of a folder to this size.")] = None,
    channels: Annotated[int | None, typer.Option(help="1 (grey) or 3 (RGB), for a folder.", show_default="3")] = None,
    classes: Annotated[Path | None, typer.Option(help="Class folders in the classifier's order, one a line.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Labels for a .npy file: another one, of integers.")] = None,
    compare_labels: Annotated[
        bool, typer.Option(help="Compare with the labels of the images too, which must be the classifiers' classes.")
    ] = True,
    dtype: Annotated[str, typer.Option(help="What the model computes in: float32, bfloat16, float16.")] = "float32",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps, ..", show_default="the fastest there is")] = None,
    batch_size: Annotated[str, typer.Option(help="Images in a call of the model: auto, or a number.")] = "auto",
    compile: Annotated[bool, typer.Option(help="Compile the model with torch.compile first.")] = False,
    shard: _Shard = "1/1",
    keep: Annotated[int, typer.Option(min=0, help="Keep the reconstructions of the first so many originals.")] = 16,
    save_images: Annotated[bool, typer.Option(help="Write the kept reconstructions as PNG too.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all noise.")] = 0,
    resume: Annotated[bool, typer.Option(help="Go on with what is in the folder.")] = True,
    workers: _Workers = None,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Go on although the code of a classifier of your own has changed.")
    ] = False,
    finished: Annotated[
        str | None,
        typer.Option(
            "--run",
            help="Analyse and draw this finished store instead; other options than --out and --save-images do not count.",
        ),
    ] = None,
) -> None:
    """Measure where U-turns of images lose their class, in the layers of classifiers: Figs. 1, 2 and 16 for your own model.

    Images are noised to a fraction t/T of a diffusion chain and denoised back. Measured at every t/T: the share that keeps the
    predicted class, and the cosine similarity to the original, layer by layer. Found, with 95 % intervals: t\\*, where half of
    the class is lost, and the width of its fall; where logits fall below the first layer; the half-life of every layer. Writes
    `transition.json`, `layers.png`, `grid.png`, `analysis.zarr`, and the run itself, `run.zarr`. Stop it at any time: the same
    command goes on. Without options it runs the Fashion-MNIST model that comes with the package, in a few minutes.

    Example: `uturn images --out results/fashion`

    Example: `uturn images --model google/ddpm-cifar10-32 --data photos --size 32 --classifier torchvision:resnet50
    --no-compare-labels --out results/cifar`
    """
    from uturn.store import Store
    from uturn.workflows.images import (
        PICTURES,
        RESULTS,
        check_folder,
        image_experiment,
        missing_tasks,
        parsed_levels,
        summary,
        write_results,
    )

    console = _console()
    if finished is not None:
        ds = Store.open(finished).dataset()
    else:
        experiment = image_experiment(
            model,
            data,
            classifier,
            weights=weights,
            preset=preset,
            scheduler=scheduler,
            steps=steps,
            eta=eta,
            timestep_spacing=timestep_spacing,
            pure_noise=pure_noise,
            levels=parsed_levels(levels),
            items=items,
            trajectories=trajectories,
            size=size,
            channels=channels,
            classes=None if classes is None else str(classes),
            labels=None if labels is None else str(labels),
            compare_labels=compare_labels,
            dtype=dtype,
            device=device,
            batch_size=int(batch_size) if batch_size.isdecimal() else batch_size,
            compile=compile,
            keep=keep,
            seed=seed,
        )
        check_folder(out, save_images, keep)
        store = out / "run.zarr"
        ds = _run(experiment, store, resume, workers, shard, accept_changes)
        missing = missing_tasks(ds)
        if missing:
            left = f"{missing} {'task' if missing == 1 else 'tasks'} of other shares left"
            console.print(f"{store}: share {shard} done, {left}; the share that ends last draws the figures")
            return
    analysis = write_results(ds, out, save_images=save_images)
    for table in summary(analysis):
        console.print(table)
    written = ", ".join(name for name in (*RESULTS, *([PICTURES] if save_images else [])) if (out / name).exists())
    console.print(f"{analysis.attrs['description']}\nwritten to {out}: {written}")


@app.command()
def theory(
    vocab_size: Annotated[int, typer.Option("--vocab-size", "-v", help="Symbols of a level.")] = 32,
    multiplicity: Annotated[int, typer.Option("--multiplicity", "-m", help="Rules of a symbol.")] = 8,
    branching: Annotated[int, typer.Option("--branching", "-s", help="Children of a node.")] = 2,
    depth: Annotated[int, typer.Option("--depth", "-L", min=1, help="Levels of the tree, for finite-depth numbers.")] = 10,
    plot: Annotated[Path | None, typer.Option(help="Draw the upward map to this file (PNG, PDF, ..).")] = None,
) -> None:
    """Print the mean-field theory of a grammar: phase, threshold ε*, exponent ν, fixed points; and draw its map.

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
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of guided-diffusion, .pt or .safetensors.")],
    folder: Annotated[Path, typer.Argument(help="Folder to write; must not exist.")],
    preset: Annotated[
        str | None,
        typer.Option(
            help="Name of the published model, or flags of the original code, such as '--image_size 64 --num_heads 4'.",
            show_default="the name of the file",
        ),
    ] = None,
) -> None:
    """Write a checkpoint of OpenAI's guided-diffusion (ADM) as a folder in diffusers' layout: UNet2DModel and DDPMScheduler.

    Measures nothing: the network computes the same as before. Checkpoints can also be used as they are, with their preset; those
    with a fixed number of heads (128x128_diffusion) or a narrow first level (512x512_diffusion) must be.

    Example: `uturn convert 256x256_diffusion_uncond.pt adm256 --preset 256x256_diffusion_uncond`
    """
    from uturn.networks.guided_diffusion import convert_guided_diffusion

    model = convert_guided_diffusion(checkpoint, folder, preset)
    told = "unconditional" if model.num_classes is None else f"conditioned on the class ({model.num_classes} classes)"
    _console().print(f"written: {folder} (UNet2DModel, {told}, images of {model.options['image_size']} pixels)")


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="Output folder of `uturn reproduce`.")]) -> None:
    """Write `index.html` for the figures found in a folder: pictures, captions, verdicts.

    Example: `uturn report results`
    """
    from uturn.paper.page import write_report

    _console().print(f"written: {write_report(folder)}")


def _picture(path: Path) -> Path:
    """The file of a picture: PNG unless its ending says otherwise; checked before anything is drawn."""
    endings = ("png", "pdf", "svg", "eps", "jpg", "jpeg", "tif", "tiff", "webp")
    path = path if path.suffix or not path.name else path.with_name(f"{path.name}.png")
    if path.is_dir() or path.suffix[1:].lower() not in endings:
        raise ValueError(f"plot = {str(path)!r}: expected a file that ends in .{', .'.join(endings)}")
    return path


def _run(experiment: Experiment, store: str | Path, resume: bool, workers: int | None, shard: str, accept_changes: bool) -> Any:
    """The dataset of an experiment, run into a store with a bar on terminals; a stopped run says how to go on."""
    from uturn.experiment import run as run_experiment

    with _resumable(f"what is done is in {store}; run the same command again to go on"):
        return run_experiment(
            experiment,
            store,
            resume,
            workers=workers,
            progress=True,
            shard=_shard(shard),
            accept_changes=accept_changes,
        )


def _shard(text: str) -> tuple[int, int]:
    """ "2/8" as numbers; `run` checks them."""
    number, slash, shares = text.partition("/")
    if not (slash and number.isdecimal() and shares.isdecimal()):
        raise ValueError(f"shard = {text!r}: expected i/n, such as 2/8")
    return int(number), int(shares)


def _console() -> Any:
    from rich.console import Console

    # Piped output has no width of its own; do not squeeze tables into 80 columns then.
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
    except Exception as error:
        # Mistakes in options are exceptions of click, or of typer's own copy of it: told by what they can do.
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
