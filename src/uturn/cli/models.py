"""`uturn theory`, `explore` and `schedule`."""

from __future__ import annotations

import math
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from uturn.cli.app import MODELS, SOLVABLE, command
from uturn.cli.options import OUTPUT, Plot, option, option_of, typed
from uturn.cli.printing import console, draw_to, picture, say_next, show
from uturn.core.files import whole_file
from uturn.presets.images import ImageOptions

if TYPE_CHECKING:
    import xarray as xr

    from uturn.studies.tables import TextTable


@command(SOLVABLE)
def theory(
    vocab_size: Annotated[
        int, typer.Option("--vocab-size", "-v", help="Symbols at each level.")
    ] = 32,
    multiplicity: Annotated[
        int, typer.Option("--multiplicity", "-m", help="Rules for each symbol.")
    ] = 8,
    branching: Annotated[int, typer.Option("--branching", "-s", help="Children of each node.")] = 2,
    depth: Annotated[
        int,
        typer.Option(
            "--depth",
            "-L",
            metavar="N",
            min=1,
            help="Levels of the tree; only the ε at which class and leaves cross depends on it.",
        ),
    ] = 10,
    plot: Plot = None,
) -> None:
    """Print the mean-field theory of a grammar, and draw its map.

    Computes the phase, the threshold ε\\*, the exponent ν, and the fixed points of the map from
    level to level with their slopes.

    Example:

    ```
    uturn theory -v 32 -m 8 -s 2 --plot map.png
    ```
    """
    from uturn.exact.theory import MeanField
    from uturn.studies.plotting.theory import draw
    from uturn.studies.tables import TextTable, for_terminal

    plot = None if plot is None else picture(plot)
    mf = MeanField(vocab_size, multiplicity, branching)
    rows: list[tuple[str, ...]] = [("phase", mf.phase)]
    for quantity, value in [
        ("critical noise ε*", mf.critical_noise),
        ("repulsive fixed point p*", mf.fixed_point),
        ("slope F'(p*)", mf.slope),
        ("slope F'(1)", mf.slope_at_one),
        ("slope F'(1/v)", float(mf.slope_at(1 / vocab_size))),
        ("correlation exponent ν", mf.correlation_exponent),
        (f"ε at which class and leaves cross, L = {depth}", mf.class_crossing(depth)),
    ]:
        rows.append((quantity, "none" if value is None else f"{value:.6g}"))
    title = f"Mean field, v = {vocab_size}, m = {multiplicity}, s = {branching}"
    show(for_terminal(TextTable(title, ("quantity", "value"), rows)))
    if plot is None:
        grammar = ("-v", str(vocab_size), "-m", str(multiplicity), "-s", str(branching))
        say_next(run=("theory", *grammar, "--plot", "map.png"))
    else:
        draw_to(plot, lambda: draw(mf))


@command(SOLVABLE)
def explore(
    out: Annotated[Path, option(OUTPUT, "File of the page.", metavar="FILE")] = Path(
        "uturn-laboratory.html"
    ),
    open_page: Annotated[bool, option(OUTPUT, "Open the page in the browser.", "--open")] = False,
) -> None:
    """Write the laboratory: a page that shows U-turns of the exactly solvable model in a browser,
    without server or network.

    For the grammar and the noise chosen on the page, it computes the exact belief in every symbol
    of the tree and the changes made by U-turns at each tree level, beside mean-field theory. It
    also shows precomputed U-turns of images.

    Example:

    ```
    uturn explore --open
    ```
    """
    from uturn.pages.laboratory import write_laboratory

    path = write_laboratory(out)
    say_next(open=path)
    if open_page and not webbrowser.open(path.resolve().as_uri()):
        typer.echo("uturn: no browser was found", err=True)


@command(MODELS)
def schedule(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            help=(
                "Folder or hub id of a diffusers model (only its configuration is read), a"
                " scheduler_config.json, a "
                "guided-diffusion checkpoint, or fashion_mnist; several models share one figure."
            ),
            autocompletion=lambda: ["fashion_mnist"],
        ),
    ],
    steps: Annotated[int, typer.Option(help="Number of reverse steps of the whole chain.")] = 50,
    scheduler: Annotated[
        str | None, option_of(ImageOptions, "scheduler", show_default="stored")
    ] = None,
    timestep_spacing: Annotated[
        str | None,
        typer.Option(
            help=(
                "Spacing of the timesteps: linspace (as in uturn images), leading or trailing; by"
                " default as stored, "
                "as in the pipelines."
            ),
            autocompletion=lambda: ["linspace", "leading", "trailing"],
        ),
    ] = None,
    size: Annotated[
        int,
        typer.Option(help="Side of the images in pixels, for schedules that depend on resolution."),
    ] = 1024,
    preset: Annotated[str | None, option_of(ImageOptions, "preset")] = None,
    plot: Plot = None,
    csv: Annotated[
        Path | None,
        option(
            OUTPUT,
            "Write the tables to this file, one row for each model and step.",
            metavar="FILE",
        ),
    ] = None,
) -> None:
    """Print the noise level of each number of reverse steps, and of each `strength` of an
    image-to-image pipeline.

    For each number of steps k of N: the timestep at which the reverse steps begin, t/T = k/N, the
    strength that makes k steps in diffusers' image-to-image pipelines, the signal power abar,
    log-SNR (nats), and sigma, noise over signal. No weights are read. docs/noise.md explains
    strength in other tools.

    Example:

    ```
    uturn schedule stable-diffusion-v1-5/stable-diffusion-v1-5 --steps 30
    uturn schedule fashion_mnist --plot schedule.png
    ```
    """
    from uturn.core.csv_text import csv_of
    from uturn.networks.images.schedules import schedule
    from uturn.studies.plotting.schedules import draw_schedules
    from uturn.studies.tables import for_terminal

    plot = None if plot is None else picture(plot)
    schedules = []
    for model in models:
        levels = schedule(
            model, steps, scheduler, timestep_spacing=timestep_spacing, size=size, preset=preset
        )
        schedules.append(levels)
    for levels in schedules:
        show(for_terminal(_levels(levels)))
    if csv is not None:
        frames = []
        for levels in schedules:
            frame = levels.to_dataframe().reset_index()
            frame.insert(0, "model", levels.attrs["model"])
            frames.append(frame)
        with whole_file(csv) as file:
            file.write(csv_of(*frames).encode())
        console().print(f"written: {csv}")
    if plot is not None:
        names = [Path(model).name for model in models]
        draw_to(plot, lambda: draw_schedules(schedules, names))
        return
    words = typed(
        steps=steps,
        scheduler=scheduler,
        timestep_spacing=timestep_spacing,
        preset=preset,
        size=size,
        plot="schedule.png",
    )
    say_next(run=("schedule", *models, *words))


def _levels(schedule: xr.Dataset) -> TextTable:
    """The levels k = 0 .. N as a table; its title names model, scheduler and rule."""
    from uturn.studies.tables import TextTable

    attrs = schedule.attrs
    parts = [attrs["scheduler"], f"{attrs['steps']} steps"]
    if attrs["timestep_spacing"]:
        parts.append(f"timestep spacing {attrs['timestep_spacing']}")
    if attrs["shift"] != 1:
        parts.append(f"shift {attrs['shift']:.3g}")
    pipeline = attrs["pipeline"] or "pipelines of this kind"
    rule = f"strength as in the image-to-image variant of {pipeline}, {attrs['rule']}"
    rows = [_row(schedule, k) for k in range(attrs["steps"] + 1)]
    heads = ("k", "calls", "timestep", "t/T", "strength", "abar", "log-SNR", "sigma")
    return TextTable(f"{attrs['model']}: {', '.join(parts)}; {rule}", heads, rows)


def _row(schedule: xr.Dataset, k: int) -> tuple[str, ...]:
    """The level of k steps as text. At k = 0 there is neither a timestep nor a strength."""
    level = schedule.isel(step=k)
    timestep = ""
    strength = "none"
    if k > 0:
        timestep = f"{float(level.timestep):.5g}"
        if not math.isnan(level.strength):
            strength = f"{float(level.strength):.4g}"
    return (
        str(k),
        f"{float(level.calls):.0f}",
        timestep,
        f"{float(level.t_over_T):.4g}",
        strength,
        f"{float(level.abar):.4g}",
        f"{float(level.log_snr):+.2f}",
        f"{float(level.sigma):.4g}",
    )
