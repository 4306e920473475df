"""Operators of inverse problems, y = A(x) with noise, and the laws of their noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from uturn.core.random import NOISE, normals, streams

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class GaussianNoise:
    """y = A(x) + sigma n, n standard normal."""

    sigma: float

    @property
    def is_known(self) -> bool:
        """Whether log-densities are finite."""
        return self.sigma > 0

    def draw(self, clean: np.ndarray, key: np.ndarray) -> np.ndarray:
        """A noisy measurement of `clean` (...), from the random stream `key`, uint64 (1,)."""
        return clean + self.sigma * normals(streams(key, 1, NOISE), clean.size, clean.dtype).reshape(clean.shape)

    def log_density(self, observed: np.ndarray, clean: np.ndarray) -> np.ndarray:
        """log p(y | A(x)) in nats, float64 (batch,), of one measurement (...) for several A(x), (batch, ...)."""
        residual = (np.asarray(clean, float) - observed).reshape(len(clean), -1) / self.sigma
        return -0.5 * (residual**2).sum(1) - residual.shape[1] * np.log(self.sigma * np.sqrt(2 * np.pi))


@dataclass(frozen=True)
class PoissonNoise:
    """y = gain * Poisson(A(x) / gain); negative A(x) count as 0."""

    gain: float
    is_known = True

    def draw(self, clean: np.ndarray, key: np.ndarray) -> np.ndarray:
        """A noisy measurement of `clean` (...), from the random stream `key`, uint64 (1,)."""
        counts = generator_of(key).poisson(np.maximum(clean, 0) / self.gain)
        return (self.gain * counts).astype(clean.dtype)

    def log_density(self, observed: np.ndarray, clean: np.ndarray) -> np.ndarray:
        """log p(y | A(x)) in nats, float64 (batch,), of one measurement (...) for several A(x), (batch, ...)."""
        from scipy.stats import poisson

        counts = np.rint(np.asarray(observed, float) / self.gain)
        rates = np.maximum(np.asarray(clean, float), 0) / self.gain
        return poisson.logpmf(counts, rates).reshape(len(clean), -1).sum(1)


@dataclass(frozen=True)
class OtherNoise:
    """Noise of unknown law, drawn by `noisy(clean, generator)`; posteriors and likelihoods are refused."""

    noisy: Callable[[np.ndarray, np.random.Generator], np.ndarray]
    is_known = False

    def draw(self, clean: np.ndarray, key: np.ndarray) -> np.ndarray:
        """A noisy measurement of `clean` (...), from the random stream `key`, uint64 (1,)."""
        return np.asarray(self.noisy(clean, generator_of(key)), clean.dtype)


@dataclass(frozen=True, eq=False)
class Operator:
    """The forward operator of an inverse problem, and the law of its noise.

    Attributes
    ----------
    forward : (tensor (batch, channels, height, width)) -> tensor (batch, ...)
        A, in torch, so that samplers can differentiate it. Images are in [0, 1]; vectors keep their values.
    noise : number, GaussianNoise, PoissonNoise or OtherNoise
        A number is the standard deviation of Gaussian noise, in the units of A(x).
    hidden : bool array (channels, height, width), optional
        The values on which A(x) does not depend, if the operator hides some and leaves the others as they are.
    is_linear : bool
    physics : deepinv.physics.Physics, optional
        The operator in deepinv, where it was made from one.
    """

    forward: Callable[[torch.Tensor], torch.Tensor]
    noise: Any
    hidden: np.ndarray | None = None
    is_linear: bool = True
    physics: Any = None

    def __post_init__(self) -> None:
        if not hasattr(self.noise, "draw"):
            object.__setattr__(self, "noise", GaussianNoise(float(self.noise)))

    def clean(self, data: np.ndarray) -> np.ndarray:
        """A(x) of data (batch, channels, height, width), float32 (batch, ...)."""
        import torch

        with torch.no_grad():
            return np.asarray(self.forward(torch.from_numpy(np.asarray(data, np.float32))))

    def measure(self, datum: np.ndarray, key: np.ndarray) -> np.ndarray:
        """y of one datum (channels, height, width), float32 (...), with the noise of the random stream `key`, uint64 (1,)."""
        return self.noise.draw(self.clean(datum[None])[0], key)

    def log_likelihood(self, observed: np.ndarray, data: np.ndarray) -> np.ndarray:
        """log p(y | x) in nats, float64 (batch,), of one measurement (...) for data (batch, channels, height, width)."""
        return self.noise.log_density(observed, self.clean(data))

    def back_projection(self, observed: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """alpha A^T y of one measurement (...), float32 of a shape; alpha = |A^T y|^2 / |A A^T y|^2 brings A(alpha A^T y) nearest to y."""
        import torch

        _, transposed = torch.func.vjp(self.forward, torch.zeros(1, *shape))
        back = transposed(torch.from_numpy(np.asarray(observed, np.float32))[None])[0].detach()
        again = self.clean(back.numpy())
        square = float((again**2).sum())
        return back[0].numpy() * (float((back**2).sum()) / square if square > 0 else 0.0)

    def matrix(self, shape: tuple[int, ...]) -> np.ndarray:
        """The matrix H of a linear operator, float64 (measurements, values), for data of a shape (channels, height, width)."""
        size = int(np.prod(shape))
        return self.clean(np.eye(size, dtype=np.float32).reshape(size, *shape)).reshape(size, -1).T.astype(float)


def generator_of(key: np.ndarray) -> np.random.Generator:
    """numpy's generator with the random stream `key`, uint64 (1,)."""
    return np.random.Generator(np.random.Philox(key=int(key[0])))
