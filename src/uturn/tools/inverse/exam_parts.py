"""Parts of the figure `inverse`, named in its specs: laws of the data, samplers that know them,
the probe of the distance.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar
from unittest.mock import patch

import numpy as np
import torch

from uturn.core.protocols import Probe, UTurns, Variable
from uturn.core.random import Purpose, keys
from uturn.core.registry import build
from uturn.tools.inverse.deepinv_samplers import DeepinvSampler
from uturn.tools.inverse.linear import LinearPosterior

if TYPE_CHECKING:
    from uturn.tools.inverse.operators import Operator

# Nearly all values lie in [0, 1], where samplers expect them.
_UNITS = {"exponent": 2.0, "centre": 0.5, "scale": 0.125}
WORLDS: dict[str, dict[str, Any]] = {
    "mixture": {
        "type": "gaussian_mixture",
        "dimension": 16,
        "num_modes": 3,
        "separation": 1.0,
        **_UNITS,
    },
    "field": {"type": "gaussian_field", "size": 4, **_UNITS},
}
"""Sources of images of 4 x 4 pixels whose posterior is known."""
SEED = 0
"""Seed of the experiments, which the law of a mixture depends on."""
# sub-streams of Purpose.FRESH
_REFERENCE = 1
_NULL = 2


@lru_cache(maxsize=8)
def law_of(world: str) -> Any:
    return build("source", WORLDS[world]).law(SEED)


# -- samplers --------------------------------------------------------------------------------------


def conditional_score(
    observed: torch.Tensor,
    operator: Operator,
    generator: torch.Generator,
    *,
    world: str,
    steps: int,
    largest: float = 5.0,
    smallest: float = 1e-3,
    told: float = 1.0,
) -> torch.Tensor:
    """Ancestral steps with the exact conditional score (E[x_0 | x_t, y] - x_t) / sigma_t^2, where
    x_t = x_0 + sigma_t n.

    The noise levels are geometric from `largest`, where x is noise around the mean of the data, to
    `smallest`, and then 0. `told`: the standard deviation of the noise that the sampler assumes,
    over the true one. Values other than 1 are a deliberate error.

    Given y, x_0 is a mixture of Gaussians of one covariance P. In the eigenbasis of P, with
    eigenvalues e, x_0 given x_t and a mode has the mean m_k + e / (e + sigma_t^2) (x_t - m_k), and
    the mode has a weight ~ w_k N(x_t; m_k, P + sigma_t^2).
    """
    posterior, e, basis, shape = _given(world, operator, told)
    y = operator.vectors(observed.numpy())
    start = torch.from_numpy(law_of(world).mean @ basis)
    log_weights = torch.from_numpy(np.log(np.maximum(posterior.weights(y), 1e-300)))
    m = torch.from_numpy(posterior.means(y) @ basis)
    x = start + largest * torch.randn(m[:, 0].shape, generator=generator, dtype=m.dtype)
    levels = np.append(np.geomspace(largest, smallest, steps), 0.0)
    for sigma, lower in pairwise(levels):
        total = torch.from_numpy(e + sigma**2)
        residual = x[:, None] - m
        weights = torch.softmax(log_weights - 0.5 * (residual**2 / total).sum(-1), 1)
        mean = x - sigma**2 * (weights[..., None] * residual / total).sum(1)
        r = (lower / sigma) ** 2
        x = (
            mean
            + r * (x - mean)
            + lower * np.sqrt(1 - r) * torch.randn(x.shape, generator=generator, dtype=x.dtype)
        )
    return (x @ torch.from_numpy(basis.T)).reshape(-1, *shape)


def posterior_mean(
    observed: torch.Tensor, operator: Operator, generator: torch.Generator, *, world: str
) -> torch.Tensor:
    """E[x_0 | y], the reconstruction of least squared error; every draw is the same."""
    posterior, _, _, shape = _given(world, operator, 1.0)
    return torch.from_numpy(posterior.mean(operator.vectors(observed.numpy()))).reshape(-1, *shape)


def ddrm_of_full_noise(
    observed: torch.Tensor,
    operator: Operator,
    generator: torch.Generator,
    *,
    denoiser: Any,
    steps: int,
) -> torch.Tensor:
    """deepinv's DDRM with its noise multiplied by sqrt 2: version 0.5 divides the noise of all
    steps by sqrt 2.
    """
    normal = torch.randn_like
    ddrm = DeepinvSampler("DDRM", {"steps": steps})
    with patch.object(torch, "randn_like", lambda x: 2**0.5 * normal(x)):
        return ddrm(observed, operator, generator, denoiser, tuple(observed.shape[1:]))


@lru_cache(maxsize=32)
def _given(
    world: str, operator: Operator, told: float
) -> tuple[LinearPosterior, np.ndarray, np.ndarray, tuple[int, ...]]:
    """The posterior, eigenvalues and eigenvectors of the covariance of its modes, which does not
    depend on y, and their shape.
    """
    law = law_of(world)
    shape = (1, *law.grid)
    sigma = told * operator.noise.sigma
    posterior = LinearPosterior(
        law.means, law.covariance, law.weights, operator.matrix(shape), sigma**2
    )
    return posterior, *np.linalg.eigh(posterior.covariances[0]), shape


# -- the true distance -----------------------------------------------------------------------------


class TrueDistance(Probe):
    """Energy distance of the clones of a measurement to exact draws from its posterior, measurement
    by measurement.

    For clones x̂_k and exact draws z_j, the reading of clone k is 2 E|x̂_k - z| - E|x̂_k - x̂_l| -
    E|z - z'|, with means over l != k, z and z' != z. Its mean over clones is an unbiased estimate
    of the energy distance (Székely & Rizzo 2013), which is 0 only if the laws are equal. |.|:
    Euclidean norm of all values.

    - `energy`: of the clones.
    - `null_energy`: of as many exact draws instead of the clones.
    """

    kinds: ClassVar[tuple[str, ...]] = ("vectors",)

    def __init__(self, draws: int = 32) -> None:
        self.draws = draws

    def variables(self, source: Any) -> dict[str, Variable]:
        dims = ("noise", "item", "trajectory")
        names = {
            "energy": "energy distance to the posterior",
            "null_energy": "energy distance of exact draws",
        }
        return {
            name: Variable(dims, long_name, group="energy distance")
            for name, long_name in names.items()
        }

    def read(self, u_turns: UTurns, source: Any) -> dict[str, np.ndarray]:
        noisy = u_turns.noisy
        items = u_turns.originals.items
        clones = u_turns.clones
        x = np.asarray(u_turns.reconstructions, float)
        exact, others = (
            _exact_draws(noisy, items, number, use)
            for number, use in ((self.draws, _REFERENCE), (clones, _NULL))
        )
        return {"energy": energy(x, exact), "null_energy": energy(others, exact)}


def energy(x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Readings of `TrueDistance`, (items, clones), of draws x (items, clones, dimension) and z
    (items, draws, dimension).
    """
    own, exact = (_distances(a, a).sum(2) / (a.shape[1] - 1) for a in (x, z))
    return 2 * _distances(x, z).mean(2) - own - exact.mean(1, keepdims=True)


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.linalg.norm(a[:, :, None] - b[:, None], axis=-1)


def _exact_draws(noisy: Any, items: np.ndarray, number: int, use: int) -> np.ndarray:
    """Draws from the exact posterior of each measurement, (items, number, dimension): the same
    for all samplers.
    """
    streams = keys(SEED, Purpose.FRESH, use, items[:, None], np.arange(number)).reshape(-1)
    operators = dict.fromkeys(noisy.operators)
    if len(operators) > 1:
        raise ValueError(
            "TrueDistance: the measurements have different operators; expected one for all"
        )
    y = np.repeat(next(iter(operators)).vectors(noisy.values), number, axis=0)
    return noisy.posterior(0).sample(y, streams).reshape(len(items), number, -1)
