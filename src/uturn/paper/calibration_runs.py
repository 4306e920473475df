"""The runs of the figure `calibration`: exact and wrong samplers of strings and of a Gaussian
mixture.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from uturn.core.experiment import Experiment
from uturn.corruption import Gaussian, Noisy
from uturn.paper.specs import Part, experiment_of, rhm
from uturn.paper.workshop import Scale, Workshop
from uturn.sources import RHMSource

CLONES = 8
ITEMS = 200
TREE = rhm(32, 8, 2, 7)
SMALL = rhm(4, 2, 2, 2)
LEARNED = rhm(8, 2, 2, 3)
MIXTURE: dict[str, Any] = {
    "type": "gaussian_mixture",
    "dimension": 256,
    "num_modes": 2,
    "separation": 0.5,
}
NOISE = {"gaussian": (0.07, 0.15, 0.3), "masking": (0.1, 0.2, 0.3), "uniform": (0.05, 0.15, 0.3)}
WORDS = {"gaussian": "Gaussian", "masking": "masking", "uniform": "replacement"}
STRINGS = 64  # of the training set of the denoiser
STEPS = {"smoke": 250, "paper": 500}  # of reverse diffusion
TRAINING: dict[str, Any] = {
    "width": 32,
    "steps": 250,
    "batch_size": 64,
    "learning_rate": 2.5e-3,
    "every": 50,
    "held_out": 512,
}


Kind = Literal["exact", "wrong", "blind", "sites"]
"""Kind of a sampler on trial. "exact": it draws from the posterior. "wrong": it does not, and
the test has to detect it. "sites": it draws every site from its own marginal, which only joint
readings detect. "blind": it ignores the noisy datum, which the test cannot detect.
"""


class ScaledEvidence(Gaussian):
    """Gaussian diffusion whose log-evidence is multiplied by a factor. All strings of a grammar
    are equally probable, so this is the exact posterior raised to that power.
    """

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __repr__(self) -> str:
        return f"ScaledEvidence({self.factor:g})"

    def log_evidence(self, noisy: Noisy, dtype: Any = None) -> np.ndarray:
        right = super().log_evidence(noisy, dtype)
        return right * right.dtype.type(self.factor)


def string_experiment(
    source: dict[str, Any], corruption: Part, noise: Any, backward: Part = "exact", **sizes: int
) -> Experiment:
    """Strings whose clones are compared by parsed tree levels, or vectors by class and cosine."""
    probe = "scales" if source["type"] == "gaussian_mixture" else "parsed_levels"
    sizes = {"items": ITEMS, "clones": CLONES, "chunk": 200, **sizes}
    return experiment_of(source, corruption, noise, probe, backward=backward, **sizes)


def samplers(scale: Scale, denoiser: Path) -> dict[str, tuple[Experiment, Kind]]:
    """Samplers on trial by label, with their kinds; `denoiser`: file of a denoiser trained on a
    few strings.
    """
    tree = {**TREE, "grammars": 8}
    exact = {
        f"belief propagation, {WORDS[kind]}": string_experiment(tree, kind, noise)
        for kind, noise in NOISE.items()
    }
    exact["exact posterior of a mixture"] = string_experiment(MIXTURE, "gaussian", (0.5, 1.5, 2.5))

    def scored(
        scheduler: str, eta: float | None = None, kind: Kind = "wrong"
    ) -> tuple[Experiment, Kind]:
        backward = {"type": "score", "scheduler": scheduler, "steps": STEPS[scale]}
        backward |= {} if eta is None else {"eta": eta}
        return string_experiment(SMALL, "diffusion", (0.2, 0.3, 0.4), backward, clones=4), kind

    def denoised(
        model: str, kind: Kind, steps: int = 64, clones: int = 2
    ) -> tuple[Experiment, Kind]:
        backward = {"type": "denoiser", "model": model, "steps": steps}
        return string_experiment(LEARNED, "gaussian", (0.1, 0.2), backward, clones=clones), kind

    def scaled(factor: float, kind: Kind = "wrong") -> tuple[Experiment, Kind]:
        corruption = {"type": f"{__name__}:ScaledEvidence", "factor": factor}
        return string_experiment(tree, corruption, NOISE["gaussian"]), kind

    return {
        **{label: (experiment, "exact") for label, experiment in exact.items()},
        "DDPM with the exact score": scored("ddpm", kind="exact"),
        "exact denoiser, 64 steps": denoised("exact", "exact"),
        "DDIM, η = 1/2": scored("ddim", 0.5),
        "DDIM, η = 0": scored("ddim", 0.0),
        "flow matching, stochastic": scored("flow_match_stochastic"),
        "evidence times 1.1": scaled(1.1),
        "posterior to the power 1.5": scaled(1.5),
        f"denoiser of {STRINGS} strings": denoised(str(denoiser), "wrong"),
        "every leaf from its marginal": denoised("exact", "sites", steps=1, clones=8),
        "draws that ignore the noisy datum": scaled(0.0, "blind"),
    }


def repeated(kind: str, scale: Scale) -> Experiment:
    """200 small experiments in one: each grammar has its own strings, noise and clones."""
    noise = (0.2, 0.5) if kind == "masking" else (0.15, 0.4)
    each = 50 if scale == "smoke" else 200
    return string_experiment(
        {**SMALL, "grammars": 200}, kind, noise, items=200 * each, clones=2, chunk=2500
    )


def trained_denoiser(workshop: Workshop) -> Path:
    """File of a denoiser of Gaussian noise that is trained on 64 strings of the grammar of
    `LEARNED`, stopped early.
    """
    grammar = RHMSource(**LEARNED).grammar(0, 0)
    names = ["calibration-denoiser"]
    recipe = {"grammar": LEARNED, "strings": STRINGS, "training": TRAINING}
    workshop.denoisers(
        names,
        recipe,
        grammar,
        "gaussian",
        lambda: grammar.sample(STRINGS, seed=1).leaves,
        **TRAINING,
    )
    return workshop.files(names)[0]
