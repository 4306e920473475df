"""The noise levels of a model's scheduler, and the image-to-image `strength` that gives each of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr

from uturn.core.checks import checked_path, one_line
from uturn.core.files import read_table
from uturn.core.strength import strength_of

if TYPE_CHECKING:
    from rich.table import Table

COUNTED_DOWN = ("StableDiffusion3", "Flux", "QwenImage", "Chroma", "ZImage", "Sana")
"""Prefixes of pipelines whose image-to-image makes k = N - int(N - N strength) steps; other pipelines make int(N strength)."""
_WANTED = (
    "expected 'fashion_mnist', a folder in diffusers' layout or a scheduler_config.json, a hub id, or a guided-diffusion file"
)


class Stored(NamedTuple):
    """A scheduler, and the class of the pipeline that it was stored with ("" if none)."""

    scheduler: Any
    pipeline: str


def schedule(
    model: str,
    steps: int = 50,
    scheduler: str | None = None,
    *,
    timestep_spacing: str | None = None,
    size: int = 1024,
    preset: str | None = None,
) -> xr.Dataset:
    """Noise levels of all numbers of reverse steps k = 0 .. N, as an image-to-image pipeline of diffusers makes them.

    Parameters
    ----------
    model
        "fashion_mnist", a folder in diffusers' layout or with a scheduler_config.json, a hub id (no weights are fetched), or a
        guided-diffusion checkpoint with its `preset` (the file is not read).
    steps
        Number of steps N of the whole chain (`num_inference_steps`).
    scheduler
        As in `ReverseDiffusion.from_pretrained`; by default the stored scheduler.
    timestep_spacing
        By default the stored spacing, as in the pipelines; `uturn images` uses "linspace" ("trailing" for DDIM).
    size
        Height and width of the images in pixels, for schedules that depend on resolution (`use_dynamic_shifting`).

    Returns
    -------
    Dataset
        By step k: `calls` of the model, first `timestep`, `t_over_T` = k/N, `strength` that gives k steps (with 4 digits, the
        nearest to k/N; NaN where there is none), `abar`, `log_snr` in nats, `sigma` = noise over signal. Attributes: `model`,
        `pipeline`, `scheduler`, `steps`, `timestep_spacing`, `rule` (of k from strength), `shift`.

    Raises
    ------
    ValueError
        If the scheduler cannot be read, does not match the model, or cannot make this number of steps.
    """
    import torch

    from uturn.corruption.noising import amplitudes
    from uturn.corruption.schedulers import PipelineTimesteps, check_schedule, is_flow, scheduler_like, with_spacing

    stored = read_scheduler(model, preset)
    made = scheduler_like(stored.scheduler, scheduler)
    check_schedule(made)
    made = made if timestep_spacing is None else with_spacing(made, timestep_spacing)
    most = int(made.config.get("num_train_timesteps", 1000))
    if not 1 <= steps <= most:
        raise ValueError(f"steps = {steps}: expected 1 .. {most}, the timesteps of the training schedule")
    if size < 16 or size % 16:
        raise ValueError(f"size = {size}: expected a multiple of 16 pixels, two pixels of latents")
    counts_down = stored.pipeline.startswith(COUNTED_DOWN) or (not stored.pipeline and is_flow(stored.scheduler))
    try:
        shift = PipelineTimesteps(stored.pipeline, (size // 16) ** 2).set(made, steps)
        ks = np.arange(1, steps + 1)
        times = torch.as_tensor(made.timesteps)
        firsts = (steps - ks) * made.order  # index at which the pipelines cut the list of timesteps
        signal, noise = amplitudes(made, times[torch.from_numpy(firsts)])
    except (RuntimeError, AttributeError, TypeError, KeyError, IndexError, NotImplementedError) as error:
        raise ValueError(
            f"{type(made).__name__} with steps = {steps}: it makes no list of timesteps that can be cut ({one_line(error)}); "
            f"take scheduler 'ddpm' or 'ancestral'"
        ) from None
    a, s = np.append(1.0, signal), np.append(0.0, noise)
    with np.errstate(divide="ignore"):
        columns = {
            "calls": np.append(0, len(times) - firsts),
            "timestep": np.append(np.nan, times[firsts].double().numpy()),
            "t_over_T": np.arange(steps + 1) / steps,
            "strength": np.append(0.0, [strength_of(int(k), steps, counts_down) for k in ks]),
            "abar": a**2 / (a**2 + s**2),
            "log_snr": 2 * (np.log(a) - np.log(s)),
            "sigma": np.divide(s, a),
        }
    spacing = made.config.get("timestep_spacing") if "timestep_spacing" in made.config else None
    return xr.Dataset(
        {name: ("step", values) for name, values in columns.items()},
        coords={"step": np.arange(steps + 1)},
        attrs={
            "model": str(model),
            "pipeline": stored.pipeline,
            "scheduler": type(made).__name__,
            "steps": steps,
            "timestep_spacing": spacing or "",
            "rule": "k = N - int(N - N strength)" if counts_down else "k = int(N strength)",
            "shift": shift,
        },
    )


# --- files -----------------------------------------------------------------------------------------------------------


def read_scheduler(model: str, preset: str | None = None) -> Stored:
    """The scheduler of a model, and its pipeline; ValueError if there is none. Weights are neither read nor fetched."""
    from uturn.networks.images.pretrained import CHECKPOINTS
    from uturn.sources.fashion_mnist import generator_folder

    path = generator_folder() if model == "fashion_mnist" else Path(checked_path("model", model))
    if path.suffix in CHECKPOINTS and not path.is_dir():
        from uturn.networks.images.guided_diffusion import guided_diffusion_scheduler

        return Stored(guided_diffusion_scheduler(preset or path.stem), "")
    if preset is not None:
        raise ValueError(f"preset = {preset!r}: only for checkpoints of guided-diffusion; leave it out")
    if path.name == "scheduler_config.json":
        path = path.parent
    if not path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(model)):
        path = _fetched(str(model))
    if not path.is_dir():
        raise ValueError(f"model = {str(model)!r}: no such folder or file; {_WANTED}")
    where = next((place for place in (path / "scheduler", path) if (place / "scheduler_config.json").is_file()), None)
    if where is None:
        raise ValueError(f"{path}: there is no scheduler_config.json, neither in it nor in its folder scheduler/; {_WANTED}")
    index = _json(path / "model_index.json") if (path / "model_index.json").is_file() else {}
    from uturn.networks.images.pipelines import load_scheduler

    scheduler = load_scheduler(where, str(_json(where / "scheduler_config.json").get("_class_name", "")))
    return Stored(scheduler, str(index.get("_class_name", "")))


def _json(path: Path) -> dict[str, Any]:
    try:
        table = read_table(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({one_line(error)}); fetch or write it again") from None
    if not isinstance(table, dict):
        raise ValueError(f"{path} holds {table!r:.60}; expected an object with options")
    return table


def _fetched(name: str) -> Path:
    """The index and the scheduler of a model on a hub, without its weights."""
    from huggingface_hub import snapshot_download

    from uturn.networks.images.pipelines import check_hub, fetching

    check_hub(name)
    with fetching(name):
        return Path(snapshot_download(name, allow_patterns=["model_index.json", "scheduler/*.json", "scheduler_config.json"]))


# --- output ----------------------------------------------------------------------------------------------------------


def table(ds: xr.Dataset) -> Table:
    """The levels k = 0 .. N as a table; its title names model, scheduler and rule."""
    from rich.table import Column, Table

    attrs = ds.attrs
    parts = [attrs["scheduler"], f"{attrs['steps']} steps"]
    if attrs["timestep_spacing"]:
        parts.append(f"timestep spacing {attrs['timestep_spacing']}")
    if attrs["shift"] != 1:
        parts.append(f"shift {attrs['shift']:.3g}")
    rule = f"strength as in the image-to-image variant of {attrs['pipeline'] or 'pipelines of this kind'}, {attrs['rule']}"
    headings = ("k", "calls", "timestep", "t/T", "strength", "abar", "log-SNR", "sigma")
    rows = Table(
        *(Column(heading, justify="right") for heading in headings), title=f"{attrs['model']}: {', '.join(parts)}; {rule}"
    )
    for k in range(attrs["steps"] + 1):
        level = {name: float(ds[name][k]) for name in ds}
        rows.add_row(
            str(k),
            f"{level['calls']:.0f}",
            "" if k == 0 else f"{level['timestep']:.5g}",
            f"{level['t_over_T']:.4g}",
            "none" if k == 0 or np.isnan(level["strength"]) else f"{level['strength']:.4g}",
            f"{level['abar']:.4g}",
            f"{level['log_snr']:+.2f}",
            f"{level['sigma']:.4g}",
        )
    return rows
