"""`uturn schedule` and `convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from uturn.cli.app import MODELS, command
from uturn.cli.completion import completing
from uturn.cli.options import OUTPUT, Plot
from uturn.cli.printing import console, draw_to, picture, say_next, show


@command(MODELS)
def schedule(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            help="Folder or hub id of a diffusers model (only its configuration is read), a scheduler_config.json, a "
            "guided-diffusion checkpoint, or fashion_mnist; several are drawn together.",
            autocompletion=completing("models"),
        ),
    ],
    steps: Annotated[int, typer.Option(metavar="N", help="Steps of the whole chain.")] = 50,
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="ddpm, ancestral, euler, .., or a class of diffusers.",
            show_default="the stored one",
            autocompletion=completing("scheduler"),
        ),
    ] = None,
    timestep_spacing: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="linspace (as in uturn images), leading or trailing.",
            show_default="the stored one, as in pipelines",
            autocompletion=completing("timestep_spacing"),
        ),
    ] = None,
    size: Annotated[
        int, typer.Option(metavar="N", help="Pixels of the images, for schedules that are shifted by resolution.")
    ] = 1024,
    preset: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Name or flags of the guided-diffusion model.", autocompletion=completing("preset")),
    ] = None,
    plot: Plot = None,
    csv: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write the tables to this file, one row for each model and step.", rich_help_panel=OUTPUT
        ),
    ] = None,
) -> None:
    """Print which noise a number of steps, or the `strength` of an image-to-image pipeline, stands for.

    Measures, for every number of steps k of N: the timestep at which the reverse steps begin, t/T = k/N, the strength that makes
    k steps in diffusers' image-to-image pipelines, signal power abar, log-SNR (nats), and sigma, noise over signal. No weights
    are read. docs/schedules.md says what strength means in other tools.

    Example: `uturn schedule stable-diffusion-v1-5/stable-diffusion-v1-5 --steps 30 --plot schedule.png`
    """
    from uturn.cli.presets.schedules import schedule as noise_levels
    from uturn.cli.presets.schedules import table
    from uturn.core.files import whole_file

    plot = None if plot is None else picture(plot)
    if csv is not None and csv.is_dir():
        raise ValueError(f"csv = {str(csv)!r}: expected a file")
    options: dict[str, Any] = {"timestep_spacing": timestep_spacing, "size": size, "preset": preset}
    found = [noise_levels(model, steps, scheduler, **options) for model in models]
    for ds in found:
        show(table(ds))
    if csv is not None:
        import pandas

        rows = pandas.concat([ds.to_dataframe().assign(model=ds.attrs["model"]) for ds in found])
        with whole_file(csv) as file:
            file.write(rows.reset_index().set_index(["model", "step"]).to_csv().encode())
        console().print(f"written: {csv}")
    if plot is None:
        chosen = {"--steps": str(steps), "--scheduler": scheduler, "--timestep-spacing": timestep_spacing, "--preset": preset}
        given = [word for name, value in chosen.items() if value is not None for word in (name, value)]
        say_next(run=("schedule", *models, *given, "--size", str(size), "--plot", "schedule.png"))
    else:
        from uturn.studies.plotting.schedules import draw_schedules

        draw_to(plot, lambda: draw_schedules(found, [Path(model).name for model in models]))


@command(MODELS)
def convert(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="Checkpoint of guided-diffusion, .pt or .safetensors.")
    ],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to write; it must not exist.")],
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name of the published model, or flags of the original code, such as '--image_size 64 --num_heads 4'.",
            show_default="the name of the file",
            autocompletion=completing("preset"),
        ),
    ] = None,
) -> None:
    """Write a checkpoint of OpenAI's guided-diffusion (ADM) as a folder in diffusers' layout: UNet2DModel and DDPMScheduler.

    Measures nothing; the network computes the same as before. Checkpoints can also be used without conversion, with their preset.
    Those with a fixed number of heads (128x128_diffusion) or a narrow first level (512x512_diffusion) cannot be converted.

    Example: `uturn convert 256x256_diffusion_uncond.pt adm256 --preset 256x256_diffusion_uncond`
    """
    from uturn.networks.images.guided_diffusion import convert_guided_diffusion

    model = convert_guided_diffusion(checkpoint, folder, preset)
    condition = "unconditional" if model.num_classes is None else f"conditioned on the class ({model.num_classes} classes)"
    console().print(f"written: {folder} (UNet2DModel, {condition}, images of {model.options['image_size']} pixels)")
    say_next(run=("images", "--model", str(folder), "--data", "FOLDER", "--classifier", "NETWORK", "--out", "FOLDER"))
