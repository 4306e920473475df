"""Posterior samplers on trial: the experiments of the figure `inverse`."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
import xarray as xr

from uturn.core.experiment import Experiment
from uturn.paper.specs import experiment_of
from uturn.paper.workshop import Scale, Workshop
from uturn.tools.inverse.exam_parts import SEED, WORLDS
from uturn.tools.inverse.sampler import PosteriorSampler

_OWN = "uturn.tools.inverse.exam_parts"
MASK = [[1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]]
OPERATORS: dict[str, dict[str, Any]] = {
    "inpainting": {"operator": "inpainting", "options": {"mask": MASK}},
    "blur": {"operator": "blur", "options": {"width": 1.0}},
    "downsampling": {"operator": "downsampling", "options": {"factor": 2}},
}
NOISE = [0.02, 0.05]
"""Standard deviations of the noise of a measurement."""
CLONES = 4
EXACT = {"exact": "exact draws", "score": "exact conditional score"}
"""Samplers of the posterior: their names in stores, and their labels."""
OTHERS = {
    "ddrm": "DDRM",
    "pigdm": "ΠGDM",
    "dps": "DPS",
    "diffpir": "DiffPIR",
    "ula": "ULA",
    "mean": "posterior mean",
}
"""Samplers of deepinv with its defaults, and the deterministic one."""
ERRORS = {
    "told": "score, noise told × 0.7",
    "few": "score, 20 steps",
    "late": "score, from σ = 0.1",
}
"""The exact conditional score with an error of normalisation, and with two of schedule, put in
on purpose.
"""
REPAIRED = {"ddrm_full": "DDRM without its 1/√2"}
LABELS = {**EXACT, **OTHERS, **ERRORS, **REPAIRED}
_ALL = list(product(WORLDS, OPERATORS))
SETTINGS: dict[Scale, dict[str, Any]] = {
    "smoke": {
        "pairs": [*_ALL[:3], ("field", "blur")],
        "items": 320,
        "score_steps": 500,
        "chain_steps": 400,
    },
    "paper": {"pairs": _ALL, "items": 1024, "score_steps": 2000, "chain_steps": 4000},
}
"""`pairs` of a world and an operator; steps of the exact conditional score, and of the Markov
chain of ULA.
"""


def backwards(world: str, scale: Scale) -> dict[str, dict[str, Any]]:
    """The samplers on trial by name, as tables of a spec."""
    plan = SETTINGS[scale]

    def sampler(name: str, **options: Any) -> dict[str, Any]:
        return {"type": "sampler", "sampler": name, "options": options, "batch": plan["items"]}

    def score(steps: int = plan["score_steps"], **options: Any) -> dict[str, Any]:
        return sampler(f"{_OWN}:conditional_score", world=world, steps=steps, **options)

    return {
        "exact": {"type": "exact"},
        "score": score(),
        "ddrm": sampler("deepinv:DDRM"),
        "pigdm": sampler("deepinv:PiGDM"),
        "dps": sampler("deepinv:DPS"),
        "diffpir": sampler("deepinv:DiffPIR"),
        "ula": sampler("deepinv:ULA", steps=plan["chain_steps"]),
        "mean": sampler(f"{_OWN}:posterior_mean", world=world),
        "told": score(told=0.7),
        "few": score(steps=20),
        "late": score(largest=0.1),
        "ddrm_full": sampler(f"{_OWN}:ddrm_of_full_noise", steps=100),
    }


def experiments(scale: Scale) -> dict[str, Experiment]:
    """All experiments, "world-operator-sampler"."""
    items = SETTINGS[scale]["items"]
    table = {}
    probes = ("posterior", f"{_OWN}:TrueDistance")
    sizes = {"items": items, "clones": CLONES, "chunk": items, "seed": SEED}
    for world, operator in SETTINGS[scale]["pairs"]:
        corruption = {"type": "operator", **OPERATORS[operator], "swept": "sigma"}
        for name, backward in backwards(world, scale).items():
            experiment = experiment_of(
                WORLDS[world], corruption, NOISE, *probes, backward=backward, **sizes
            )
            table[f"{world}-{operator}-{name}"] = experiment
    return table


def measure(workshop: Workshop) -> dict[str, xr.Dataset]:
    """The runs by "world-operator-sampler", and "calls": calls of the network for a
    reconstruction, by sampler.
    """
    made = experiments(workshop.scale)
    first = "-".join(SETTINGS[workshop.scale]["pairs"][0])
    runs = workshop.runs("inverse", made, apart=True)
    named = {name: made[f"{first}-{name}"] for name in LABELS}
    return {**runs, "calls": workshop.keep("inverse-calls", calls_of, named=named)}


def calls_of(named: Mapping[str, Experiment]) -> xr.Dataset:
    """Calls of the denoiser, counted; of a sampler that knows the score, its steps."""
    calls = []
    for experiment in named.values():
        backward = experiment.parts.backward
        if isinstance(backward, PosteriorSampler):
            calls.append(backward.calls(experiment, NOISE[0]) or backward.options.get("steps", 0))
        else:
            calls.append(0)
    return xr.Dataset({"calls": ("sampler", np.array(calls))}, {"sampler": list(named)})
