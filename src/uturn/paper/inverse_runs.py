"""Posterior samplers on trial: the experiments of the figure `inverse`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import xarray as xr

from uturn.core.experiment import Experiment
from uturn.paper.inverse_parts import SEED, WORLDS
from uturn.paper.specs import Part, experiment_of
from uturn.paper.workshop import Scale, Workshop, file_name

_OWN = "uturn.paper.inverse_parts"
MASK = [[1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]]
OPERATORS: dict[str, dict[str, Any]] = {
    "inpainting": {"operator": "inpainting", "options": {"mask": MASK}},
    "blur": {"operator": "blur", "options": {"width": 1.0}},
    "downsampling": {"operator": "downsampling", "options": {"factor": 2}},
}
NOISE = [0.02, 0.05]
"""Standard deviations of the noise of the measurement."""
CLONES = 4
SETTINGS: dict[Scale, dict[str, Any]] = {
    "smoke": {"items": 128, "steps": 100},
    "paper": {"items": 1024, "steps": 200},
}


def samplers(world: str, scale: Scale) -> dict[str, dict[str, Any]]:
    """The samplers on trial by label, as tables of a spec."""
    items = SETTINGS[scale]["items"]

    def sampler(name: str, **options: Any) -> dict[str, Any]:
        return {"type": "sampler", "sampler": name, "options": options, "batch": items}

    def own(name: str, **options: Any) -> dict[str, Any]:
        return sampler(f"{_OWN}:{name}", world=world, **options)

    return {
        "exact": {"type": "exact"},
        "exact score": own("conditional_score", steps=500),
        "posterior mean": own("posterior_mean"),
        "DDRM": sampler("deepinv:DDRM"),
        "ΠGDM": sampler("deepinv:PiGDM"),
        "DPS": sampler("deepinv:DPS"),
        "DiffPIR": sampler("deepinv:DiffPIR"),
        "ULA": sampler("deepinv:ULA"),
        "DDRM full": sampler(f"{_OWN}:ddrm_of_full_noise", steps=100),
        "20 steps": own("conditional_score", steps=20),
        "sigma_max .2": own("conditional_score", steps=500, largest=.2),
        "sigma_max .1": own("conditional_score", steps=500, largest=.1),
        "sigma .7": own("conditional_score", steps=500, told=0.7),
    }


def experiments(scale: Scale) -> dict[str, Experiment]:
    items = SETTINGS[scale]["items"]
    table = {}
    for world, source in WORLDS.items():
        for operator, options in OPERATORS.items():
            corruption = {"type": "operator", **options, "swept": "sigma"}
            for label, backward in samplers(world, scale).items():
                table[world, operator, label] = experiment_of(
                    source, corruption, NOISE, "posterior", f"{_OWN}:TrueDistance", backward=backward,
                    items=items, clones=CLONES, chunk=items, seed=SEED,
                )
    return table
