"""The noise levels of a model's scheduler, and the image-to-image `strength` that gives each of
them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from uturn.core.checks import expect
from uturn.core.files import checked_path, read_table
from uturn.core.messages import one_line
from uturn.corruption.schedulers import (
    PipelineTimesteps,
    Scheduler,
    amplitudes,
    check_schedule,
    is_flow,
    scheduler_like,
    strengths,
    with_spacing,
)
from uturn.measures.strengths import strength_of
from uturn.networks.images.families import family_of
from uturn.networks.libraries import check_hub, fetching, reading

_CONFIG = "scheduler_config.json"
_EXPECTED = (
    f"expected 'fashion_mnist', a pipeline's folder or a {_CONFIG}, a hub id, or a guided-diffusion"
    " file"
)
# What schedulers raise that cannot list the timesteps.
_NO_LIST = (RuntimeError, AttributeError, TypeError, KeyError, IndexError, NotImplementedError)


def schedule(
    model: str,
    steps: int = 50,
    scheduler: str | None = None,
    *,
    timestep_spacing: str | None = None,
    size: int = 1024,
    preset: str | None = None,
) -> xr.Dataset:
    """Noise levels of all numbers of reverse steps k = 0 .. N, as an image-to-image pipeline of
    diffusers makes them.

    `model`: "fashion_mnist", a folder in diffusers' layout or with a scheduler_config.json, a hub
    id (no weights are fetched), or a guided-diffusion checkpoint with its `preset` (the file is not
    read). `steps`: number of steps N of the whole chain (`num_inference_steps`). `scheduler`,
    `timestep_spacing`: as in `ReverseDiffusion.from_pretrained`; by default those stored. `size`:
    height and width of the images in pixels, for schedules that depend on resolution
    (`use_dynamic_shifting`).

    The Dataset has, by step k, `calls` of the model, first `timestep`, `t_over_T` = k/N, `strength`
    that gives k steps (with 4 digits, the nearest to k/N; NaN where there is none), `abar`,
    `log_snr` in nats, `sigma` = noise over signal. Attributes: `model`, `pipeline`, `scheduler`,
    `steps`, `timestep_spacing`, `rule` (of k from strength), `shift`.
    """
    stored = read_scheduler(model, preset)
    made = _like(stored.scheduler, scheduler, timestep_spacing)
    num_timesteps = int(made.config.get("num_train_timesteps", 1000))
    expected = f"1 .. {num_timesteps}, the timesteps of the training schedule"
    expect(1 <= steps <= num_timesteps, "steps", steps, expected)
    expected = "a multiple of 16 pixels, two pixels of latents"
    expect(size > 0 and size % 16 == 0, "size", size, expected)
    family = family_of(stored.pipeline)
    counts_down = family.counts_down
    if not stored.pipeline:
        counts_down = counts_down or is_flow(stored.scheduler)
    ks = np.arange(1, steps + 1)
    try:
        rule = PipelineTimesteps(family.even_sigmas, tokens=(size // 16) ** 2)
        shift = rule.set(made, steps)
        timesteps = torch.as_tensor(made.timesteps)
        firsts = (steps - ks) * made.order  # where the pipelines cut the list of timesteps
        signal, noise = amplitudes(made, timesteps[torch.from_numpy(firsts)])
    except _NO_LIST as error:
        reason = f"it makes no list of timesteps that can be cut ({one_line(error)})"
        where = f"{type(made).__name__} with steps = {steps}: {reason}"
        raise ValueError(f"{where}; take scheduler 'ddpm' or 'ancestral'") from None
    strength = [strength_of(int(k), steps, counts_down) for k in ks]
    columns = {
        "calls": np.append(0, len(timesteps) - firsts),
        "timestep": np.append(np.nan, timesteps[firsts].double().numpy()),
        "t_over_T": np.arange(steps + 1) / steps,
        "strength": np.append(0.0, strength),
        **strengths(np.append(1.0, signal), np.append(0.0, noise)),
    }
    attributes = {
        "model": str(model),
        "pipeline": stored.pipeline,
        "scheduler": type(made).__name__,
        "steps": steps,
        "timestep_spacing": made.config.get("timestep_spacing") or "",
        "rule": "k = N - int(N - N strength)" if counts_down else "k = int(N strength)",
        "shift": shift,
    }
    variables = {name: ("step", values) for name, values in columns.items()}
    return xr.Dataset(variables, {"step": np.arange(steps + 1)}, attributes)


def _like(stored: Scheduler, name: str | None, timestep_spacing: str | None) -> Scheduler:
    """A scheduler with the noise schedule of the stored one."""
    made = scheduler_like(stored, name)
    check_schedule(made)
    if timestep_spacing is None:
        return made
    return with_spacing(made, timestep_spacing)


@dataclass(frozen=True)
class StoredScheduler:
    """The scheduler stored with a model."""

    scheduler: Scheduler
    pipeline: str = ""
    """The class of the model's pipeline; empty if there is none."""


def read_scheduler(model: str, preset: str | None = None) -> StoredScheduler:
    """The scheduler of a model; weights are neither read nor fetched."""
    from uturn.networks.images.guided_diffusion import CHECKPOINTS, guided_diffusion_scheduler
    from uturn.networks.images.pipelines import load_scheduler
    from uturn.sources.fashion_mnist import generator_folder

    path = generator_folder() if model == "fashion_mnist" else Path(checked_path("model", model))
    if path.suffix in CHECKPOINTS and not path.is_dir():
        return StoredScheduler(guided_diffusion_scheduler(preset or path.stem))
    expect(preset is None, "preset", preset, "None: it is only for checkpoints of guided-diffusion")
    if path.name == "scheduler_config.json":
        path = path.parent
    folder = _fetched(path, model)
    holders = [place for place in (folder / "scheduler", folder) if (place / _CONFIG).is_file()]
    if not holders:
        missing = f"model = {str(model)!r}: no such folder or file with a {_CONFIG}"
        raise ValueError(f"{missing}; {_EXPECTED}")
    holder = holders[0]
    index = folder / "model_index.json"
    with reading(str(folder), "fetch or write it again"):
        kind = str(read_table(holder / _CONFIG)["_class_name"])
        pipeline = ""
        if index.is_file():
            pipeline = str(read_table(index)["_class_name"])
    return StoredScheduler(load_scheduler(holder, kind), pipeline)


def _fetched(path: Path, model: str) -> Path:
    """The folder of a model, or a folder with its index and its scheduler, fetched from a hub."""
    from huggingface_hub import snapshot_download

    from uturn.networks.images.pipelines import is_hub_name

    if path.exists() or not is_hub_name(model):
        return path
    check_hub(model)
    with fetching(model):
        patterns = ["model_index.json", "scheduler/*.json", _CONFIG]
        return Path(snapshot_download(model, allow_patterns=patterns))
