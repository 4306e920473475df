"""The noise levels of a model's scheduler, and the image-to-image `strength` that gives each of
them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from uturn.core.checks import checked_path, expect
from uturn.core.files import read_table
from uturn.core.messages import one_line
from uturn.measures.strengths import strength_of
from uturn.networks.images.families import family_of
from uturn.networks.libraries import reading

_WANTED = (
    "expected 'fashion_mnist', a pipeline's folder or a scheduler_config.json, a hub id, or a"
    " guided-diffusion file"
)


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
    from uturn.corruption import schedulers

    stored, pipeline = read_scheduler(model, preset)
    made = schedulers.scheduler_like(stored, scheduler)
    schedulers.check_schedule(made)
    made = made if timestep_spacing is None else schedulers.with_spacing(made, timestep_spacing)
    most = int(made.config.get("num_train_timesteps", 1000))
    expect(
        1 <= steps <= most, "steps", steps, f"1 .. {most}, the timesteps of the training schedule"
    )
    expect(
        size > 0 and size % 16 == 0, "size", size, "a multiple of 16 pixels, two pixels of latents"
    )
    family = family_of(pipeline)
    counts_down = family.counts_down or (not pipeline and schedulers.is_flow(stored))
    try:
        timesteps = schedulers.PipelineTimesteps(family.even_sigmas, (size // 16) ** 2)
        shift = timesteps.set(made, steps)
        ks = np.arange(1, steps + 1)
        times = torch.as_tensor(made.timesteps)
        firsts = (steps - ks) * made.order  # index at which the pipelines cut the list of timesteps
        signal, noise = schedulers.amplitudes(made, times[torch.from_numpy(firsts)])
    except (
        RuntimeError,
        AttributeError,
        TypeError,
        KeyError,
        IndexError,
        NotImplementedError,
    ) as error:
        where = (
            f"{type(made).__name__} with steps = {steps}: it makes no list of timesteps that can be"
            f" cut ({one_line(error)})"
        )
        raise ValueError(f"{where}; take scheduler 'ddpm' or 'ancestral'") from None
    columns = {
        "calls": np.append(0, len(times) - firsts),
        "timestep": np.append(np.nan, times[firsts].double().numpy()),
        "t_over_T": np.arange(steps + 1) / steps,
        "strength": np.append(0.0, [strength_of(int(k), steps, counts_down) for k in ks]),
        **schedulers.strengths(np.append(1.0, signal), np.append(0.0, noise)),
    }
    return xr.Dataset(
        {name: ("step", values) for name, values in columns.items()},
        coords={"step": np.arange(steps + 1)},
        attrs={
            "model": str(model),
            "pipeline": pipeline,
            "scheduler": type(made).__name__,
            "steps": steps,
            "timestep_spacing": made.config.get("timestep_spacing") or "",
            "rule": "k = N - int(N - N strength)" if counts_down else "k = int(N strength)",
            "shift": shift,
        },
    )


def read_scheduler(model: str, preset: str | None = None) -> tuple[Any, str]:
    """The scheduler of a model, and the class of its pipeline ("" if none). Weights are neither
    read nor fetched.
    """
    from huggingface_hub import snapshot_download

    from uturn.networks.images.guided_diffusion import CHECKPOINTS, guided_diffusion_scheduler
    from uturn.networks.images.pipelines import is_hub_name, load_scheduler
    from uturn.networks.libraries import check_hub, fetching
    from uturn.sources.fashion_mnist import generator_folder

    path = generator_folder() if model == "fashion_mnist" else Path(checked_path("model", model))
    if path.suffix in CHECKPOINTS and not path.is_dir():
        return guided_diffusion_scheduler(preset or path.stem), ""
    expect(preset is None, "preset", preset, "None: it is only for checkpoints of guided-diffusion")
    if path.name == "scheduler_config.json":
        path = path.parent
    # Its index and scheduler are fetched, without weights.
    if not path.exists() and is_hub_name(model):
        check_hub(model)
        with fetching(model):
            patterns = ["model_index.json", "scheduler/*.json", "scheduler_config.json"]
            path = Path(snapshot_download(model, allow_patterns=patterns))
    where = next(
        (
            place
            for place in (path / "scheduler", path)
            if (place / "scheduler_config.json").is_file()
        ),
        None,
    )
    if where is None:
        raise ValueError(
            f"model = {str(model)!r}: no such folder or file with a scheduler_config.json;"
            f" {_WANTED}"
        )
    with reading(str(path), "fetch or write it again"):
        files = (where / "scheduler_config.json", path / "model_index.json")
        kind, pipeline = (
            str(read_table(file)["_class_name"]) if file.is_file() else "" for file in files
        )
    return load_scheduler(where, kind), pipeline
