"""The runs of the figure `calibration`: exact and wrong samplers of strings, a model of images, clones of Gaussian data."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from uturn.corruption import Gaussian, Noisy
from uturn.experiment import Experiment
from uturn.paper.workshop import Scale, Workshop
from uturn.rhm import RandomHierarchyModel
from uturn.sources import RHMSource

CLONES, ITEMS = 8, 200
TREE = {"type": "rhm", "vocab_size": 32, "multiplicity": 8, "branching": 2, "depth": 7}
SMALL = {"type": "rhm", "vocab_size": 4, "multiplicity": 2, "branching": 2, "depth": 2}
LEARNED = {"type": "rhm", "vocab_size": 8, "multiplicity": 2, "branching": 2, "depth": 3}
MIXTURE = {"type": "gaussian_mixture", "dimension": 256, "num_modes": 2, "separation": 0.5}
NOISE = {"gaussian": (0.07, 0.15, 0.3), "masking": (0.1, 0.2, 0.3), "uniform": (0.05, 0.15, 0.3)}
STRINGS = 64  # of the training set of the denoiser
STEPS = {"smoke": 100, "paper": 400}  # of reverse diffusion
TRAINING = {"width": 32, "steps": 600, "batch_size": 64, "learning_rate": 2.5e-3, "every": 50, "held_out": 512}
IMAGE_STEPS: dict[Scale, tuple[int, ...]] = {"smoke": (10, 40), "paper": (10, 25, 100)}
SCHEDULERS = ("ddpm", "ddim")


class Sampler(NamedTuple):
    """A sampler on trial: its experiment, and whether it draws from the posterior."""

    experiment: Experiment
    exact: bool


class ScaledEvidence(Gaussian):
    """Gaussian diffusion whose log-evidence is multiplied by a factor: a wrong posterior on purpose.

    All strings of the Random Hierarchy Model are equally probable, so this is the exact posterior raised to that power.
    """

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __repr__(self) -> str:
        return f"ScaledEvidence({self.factor:g})"

    def log_evidence(self, noisy: Noisy, dtype: Any = None) -> np.ndarray:
        right = super().log_evidence(noisy, dtype)
        return right * right.dtype.type(self.factor)


def string_experiment(source: dict[str, Any], corruption: dict[str, Any], backward: dict[str, Any], **sizes: Any) -> Experiment:
    """Strings whose clones are compared by parsed tree levels, or vectors by class and cosine."""
    probe = "scales" if source["type"] == "gaussian_mixture" else "parsed_levels"
    sizes = {"items": ITEMS, "clones": CLONES, "chunk": 200, **sizes}
    return Experiment.from_dict(
        {"source": source, "corruption": corruption, "backward": backward, "probes": [{"type": probe}], **sizes}
    )


def samplers(scale: Scale, denoiser: Path) -> dict[str, Sampler]:
    """Samplers on trial by label; `denoiser`: file of a denoiser trained on a few strings."""
    tree, exact = {**TREE, "grammars": 8}, {"type": "exact"}
    words = {"gaussian": "Gaussian", "masking": "masking", "uniform": "replacement"}
    found = {
        f"belief propagation, {words[kind]}": Sampler(
            string_experiment(tree, {"type": kind, "noise": list(noise)}, exact), exact=True
        )
        for kind, noise in NOISE.items()
    }
    found["exact posterior of a mixture"] = Sampler(
        string_experiment(MIXTURE, {"type": "gaussian", "noise": [0.5, 1.5, 2.5]}, exact), exact=True
    )

    def scored(scheduler: str, eta: float | None = None, exact: bool = False) -> Sampler:
        backward = {"type": "score", "scheduler": scheduler, "steps": STEPS[scale]}
        backward |= {} if eta is None else {"eta": eta}
        diffusion = {"type": "diffusion", "noise": [0.2, 0.3, 0.4]}
        return Sampler(string_experiment(SMALL, diffusion, backward, clones=4), exact)

    def denoised(model: str, exact: bool) -> Sampler:
        gaussian = {"type": "gaussian", "noise": [0.1, 0.2, 0.4]}
        return Sampler(string_experiment(LEARNED, gaussian, {"type": "denoiser", "model": model, "steps": 64}), exact)

    def scaled(factor: float) -> Sampler:
        corruption = {"type": f"{__name__}:ScaledEvidence", "factor": factor, "noise": list(NOISE["gaussian"])}
        return Sampler(string_experiment(tree, corruption, exact), exact=False)  # type: ignore[arg-type]

    return {
        **found,
        "DDPM with the exact score": scored("ddpm", exact=True),
        "exact denoiser, 64 steps": denoised("exact", True),
        "DDIM, η = 1/2": scored("ddim", 0.5),
        "DDIM, η = 0": scored("ddim", 0.0),
        "flow matching, stochastic": scored("flow_match_stochastic"),
        "evidence times 1.1": scaled(1.1),
        "posterior to the power 1.5": scaled(1.5),
        f"denoiser of {STRINGS} strings": denoised(str(denoiser), False),
    }


def repeated(kind: str, scale: Scale) -> Experiment:
    """200 small experiments in one: each grammar has its own strings, noise and clones."""
    noise = {"gaussian": [0.15, 0.4], "masking": [0.2, 0.5], "uniform": [0.15, 0.4]}[kind]
    source = {**SMALL, "grammars": 200}
    each = 50 if scale == "smoke" else 200
    return string_experiment(source, {"type": kind, "noise": noise}, {"type": "exact"}, items=200 * each, clones=2, chunk=2500)


def trained_denoiser(workshop: Workshop) -> Path:
    """File of a denoiser of Gaussian noise that is trained on 64 strings of the grammar of `LEARNED`, stopped early."""
    from uturn.networks.denoisers import train_denoiser

    rhm = RHMSource(**LEARNED).grammar(0, 0)
    recipe = {"grammar": LEARNED, "strings": STRINGS, "training": TRAINING}
    strings = rhm.sample(STRINGS, seed=1).leaves

    def trained(checkpoint: Path) -> tuple[list[Any], Any]:
        best, _, history = train_denoiser(rhm, "gaussian", strings, **TRAINING, checkpoint=checkpoint, progress=workshop.progress)  # type: ignore[arg-type]
        return [best], history

    return workshop.train(["calibration-denoiser"], recipe, trained)[0]


def image_experiments(scale: Scale) -> dict[str, Experiment]:
    """The embedded model of Fashion-MNIST with two clones, with and without noise in its reverse steps."""
    items, noise = (40, [0.3, 0.6]) if scale == "smoke" else (200, [0.2, 0.4, 0.6, 0.8])
    return {
        f"{scheduler}-{steps}": Experiment.from_dict(
            {
                "items": items,
                "clones": 2,
                "chunk": 40,
                "source": {"type": "fashion_mnist"},
                "corruption": {"type": "diffusion", "noise": noise},
                "backward": {"type": "diffusion", "scheduler": scheduler, "steps": steps, "timestep_spacing": "trailing"},
                "probes": [{"type": "network_layers"}],
            }
        )
        for scheduler in SCHEDULERS
        for steps in IMAGE_STEPS[scale]
    }
