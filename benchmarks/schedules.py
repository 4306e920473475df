"""What strength 1/2 means in published models: the picture and the table of docs/noise.md.

    python benchmarks/schedules.py docs/images/schedules.png

The configurations are those that the models are published with; no weights are needed.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from uturn.networks.images.schedules import schedule
from uturn.studies.plotting.schedules import draw_schedules
from uturn.studies.plotting.style import style

STABLE_DIFFUSION = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}
SHIFTED = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
MODELS = {  # name: (pipeline, configuration of the scheduler, image size)
    "Stable Diffusion 1.5": (
        "StableDiffusionPipeline",
        {"_class_name": "PNDMScheduler", "skip_prk_steps": True, **STABLE_DIFFUSION},
        512,
    ),
    "SDXL": (
        "StableDiffusionXLPipeline",
        {"_class_name": "EulerDiscreteScheduler", **STABLE_DIFFUSION},
        1024,
    ),
    "SD3": ("StableDiffusion3Pipeline", SHIFTED, 1024),
    "FLUX.1-dev, 512 pixels": ("FluxPipeline", {**SHIFTED, "use_dynamic_shifting": True}, 512),
    "FLUX.1-dev, 1024 pixels": ("FluxPipeline", {**SHIFTED, "use_dynamic_shifting": True}, 1024),
    "DDPM, linear": ("DDPMPipeline", {"_class_name": "DDPMScheduler"}, 1024),
    "ADM-64, cosine": (
        "DDPMPipeline",
        {"_class_name": "DDPMScheduler", "beta_schedule": "squaredcos_cap_v2"},
        1024,
    ),
}


def main(picture: str, steps: int = 50) -> None:
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (pipeline, config, size) in MODELS.items():
            where = Path(folder) / name
            (where / "scheduler").mkdir(parents=True)
            (where / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
            (where / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
            found.append(schedule(str(where), steps, size=size))
    for name, ds in zip(MODELS, found, strict=True):
        cells = [
            f"{float(ds.abar[k]) ** 0.5:.2f}, {float(ds.log_snr[k]):+.1f}"
            for k in (steps // 4, steps // 2, 3 * steps // 4)
        ]
        print(f"| {name} | {' | '.join(cells)} |")
    with style() as plt:
        figure = draw_schedules(found, list(MODELS))
        figure.savefig(picture)
        plt.close(figure)


if __name__ == "__main__":
    main(*sys.argv[1:])
