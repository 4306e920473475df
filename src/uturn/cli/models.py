"""`uturn schedule`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uturn.cli.app import MODELS, command
from uturn.cli.options import OUTPUT, Plot, option, option_of, typed
from uturn.cli.printing import console, draw_to, picture, say_next, show
from uturn.core.checks import expect
from uturn.core.files import whole_file
from uturn.core.lazy import later
from uturn.presets.images import ImageOptions

with later():
    from uturn.networks.images import schedules as noise_schedules
    from uturn.studies import tables
    from uturn.studies.plotting import schedules as drawing

if TYPE_CHECKING:
    import xarray as xr

_Preset = Annotated[str | None, option_of(ImageOptions, "preset")]


@command(MODELS)
def schedule(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            help="Folder or hub id of a diffusers model (only its configuration is read), a scheduler_config.json, a "
            "guided-diffusion checkpoint, or fashion_mnist; several models share one figure.",
            autocompletion=lambda: ["fashion_mnist"],
        ),
    ],
    steps: Annotated[int, typer.Option(help="Number of reverse steps of the whole chain.")] = 50,
    scheduler: Annotated[str | None, option_of(ImageOptions, "scheduler", show_default="stored")] = None,
    timestep_spacing: Annotated[
        str | None,
        typer.Option(
            help="Spacing of the timesteps: linspace (as in uturn images), leading or trailing; by default as stored, "
            "as in the pipelines.",
            autocompletion=lambda: ["linspace", "leading", "trailing"],
        ),
    ] = None,
    size: Annotated[int, typer.Option(help="Side of the images in pixels, for schedules that depend on resolution.")] = 1024,
    preset: _Preset = None,
    plot: Plot = None,
    csv: Annotated[
        Path | None,
        option(OUTPUT, "Write the tables to this file, one row for each model and step.", metavar="FILE"),
    ] = None,
) -> None:
    """Print the noise level of each number of reverse steps, and of each `strength` of an image-to-image pipeline.

    For each number of steps k of N: the timestep at which the reverse steps begin, t/T = k/N, the strength that makes k steps in
    diffusers' image-to-image pipelines, the signal power abar, log-SNR (nats), and sigma, noise over signal. No weights are read.
    docs/noise.md explains strength in other tools.

    Example:

    ```
    uturn schedule stable-diffusion-v1-5/stable-diffusion-v1-5 --steps 30
    uturn schedule fashion_mnist --plot schedule.png
    ```
    """
    plot = None if plot is None else picture(plot)
    expect(csv is None or not csv.is_dir(), "csv", str(csv), "a file")
    options: dict[str, Any] = {"timestep_spacing": timestep_spacing, "size": size, "preset": preset}
    schedules = [noise_schedules.schedule(model, steps, scheduler, **options) for model in models]
    for ds in schedules:
        show(tables.for_terminal(_levels(ds)))
    if csv is not None:
        frames = [ds.to_dataframe().reset_index() for ds in schedules]
        for frame, ds in zip(frames, schedules, strict=True):
            frame.insert(0, "model", ds.attrs["model"])
        with whole_file(csv) as file:
            file.write(tables.csv_of(*frames).encode())
        console().print(f"written: {csv}")
    if plot is None:
        chosen = {"scheduler": scheduler, "timestep_spacing": timestep_spacing, "preset": preset, "size": size}
        say_next(run=("schedule", *models, *typed(steps=steps, **chosen, plot="schedule.png")))
    else:
        draw_to(plot, lambda: drawing.draw_schedules(schedules, [Path(model).name for model in models]))


def _levels(ds: xr.Dataset) -> tables.TextTable:
    """The levels k = 0 .. N as a table; its title names model, scheduler and rule."""
    attrs = ds.attrs
    parts = [attrs["scheduler"], f"{attrs['steps']} steps"]
    if attrs["timestep_spacing"]:
        parts.append(f"timestep spacing {attrs['timestep_spacing']}")
    if attrs["shift"] != 1:
        parts.append(f"shift {attrs['shift']:.3g}")
    rule = f"strength as in the image-to-image variant of {attrs['pipeline'] or 'pipelines of this kind'}, {attrs['rule']}"
    forms = {"t_over_T": ".4g", "strength": ".4g", "abar": ".4g", "log_snr": "+.2f", "sigma": ".4g"}
    rows = []
    for k in range(attrs["steps"] + 1):
        at = {name: format(float(ds[name][k]), form) for name, form in forms.items()}
        at |= {"strength": "none"} if k == 0 or at["strength"] == "nan" else {}
        rows.append((str(k), f"{float(ds['calls'][k]):.0f}", "" if k == 0 else f"{float(ds['timestep'][k]):.5g}", *at.values()))
    heads = ("k", "calls", "timestep", "t/T", "strength", "abar", "log-SNR", "sigma")
    return tables.TextTable(f"{attrs['model']}: {', '.join(parts)}; {rule}", heads, rows)
