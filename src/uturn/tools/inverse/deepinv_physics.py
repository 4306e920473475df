"""Operators of deepinv, and the laws of their noise."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import numpy as np

from uturn.core.checks import expect
from uturn.core.messages import one_line
from uturn.core.random import globally_seeded
from uturn.tools.inverse.operators import GaussianNoise, Operator, OtherNoise, PoissonNoise

Shape = tuple[int, ...]
DEEPINV = "deepinv:"
"""How the names of deepinv's classes begin in specs."""


def deepinv(what: str) -> Any:
    """The library deepinv; ValueError names the option `what` that needs it, and the way to
    install it.
    """
    try:
        return importlib.import_module("deepinv")
    except ImportError as error:
        raise ValueError(
            f"{what} needs deepinv ({one_line(error)}); pip install 'uturn[inverse]'"
        ) from None


def of_physics(physics: Any, shape: Shape) -> Operator:
    """The operator of a deepinv physics, with its noise."""
    import torch

    from_deepinv = deepinv("the operator").physics
    with torch.no_grad():
        clean = physics.A(torch.zeros(1, *shape))
    is_real = isinstance(clean, torch.Tensor) and not clean.is_complex()
    found = getattr(clean, "dtype", type(clean).__name__)
    expect(
        is_real, f"the physics {type(physics).__name__}: A(x)", found, "a tensor of real numbers"
    )
    measured = None
    if hasattr(physics, "mask"):  # physics of masks add no noise to what they hide
        model = physics.noise_model
        physics.noise_model = torch.nn.Identity()
        with torch.no_grad():
            measured = (physics.noise(torch.ones_like(clean))[0] != 0).numpy()
        physics.noise_model = model
        measured = None if measured.all() else measured
    is_mask = isinstance(physics, from_deepinv.Inpainting) and measured is not None
    return Operator(
        physics.A,
        _noise_of(physics),
        hidden=~measured if is_mask else None,  # type: ignore[operator]
        is_linear=isinstance(physics, from_deepinv.LinearPhysics),
        measured=measured,
        physics=physics,
    )


def with_noise(operator: Operator, noise: Any) -> Operator:
    """The operator with another noise, a law of `operators`. Its physics gets the noise, too."""
    if operator.physics is not None:
        operator.physics.set_noise_model(noise_model_of(noise))
    return replace(operator, noise=noise)


def noise_model_of(noise: Any) -> Any:
    """The noise model of deepinv with the law of an `Operator`; no noise, if the law is not
    known.
    """
    models = deepinv("the noise").physics
    if isinstance(noise, GaussianNoise):
        return models.GaussianNoise(noise.sigma)
    return (
        models.PoissonNoise(noise.gain, clip_positive=True)
        if isinstance(noise, PoissonNoise)
        else models.ZeroNoise()
    )


def _noise_of(physics: Any) -> Any:
    """The law of the noise of a physics; its draws, if there is a sensor or the law is not
    known.
    """
    import torch

    values = torch.linspace(-2, 2, 9)
    law = _law_of(physics.noise_model) if torch.equal(physics.sensor(values), values) else None
    return law or _draws_of(lambda clean: physics.sensor(physics.noise(clean)))


def _law_of(model: Any) -> Any:
    """The law of a noise model of deepinv; None if it is not known here."""
    models = deepinv("the noise").physics
    kind = type(model)
    if kind is models.ZeroNoise:
        return GaussianNoise(0.0)
    if kind is models.GaussianNoise and model.sigma.numel() == 1:
        return GaussianNoise(float(model.sigma))
    if kind is models.PoissonNoise and bool(model.normalize) and model.gain.numel() == 1:
        return PoissonNoise(float(model.gain))
    return None


def _draws_of(noisy: Any) -> OtherNoise:
    """Noise drawn by code of deepinv, (tensor) -> tensor, from torch's global generator."""
    import torch

    def draw(clean: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        with torch.no_grad(), globally_seeded(int(generator.integers(2**63))):
            return noisy(torch.from_numpy(np.array(clean))[None])[0].numpy()

    return OtherNoise(draw)
