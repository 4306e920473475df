"""Operators of inverse problems, y = A(x) with noise, and the laws of their noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from uturn.core.checks import expect
from uturn.core.random import NOISE, normals, streams

if TYPE_CHECKING:
    import torch


# Spacings of A(x) in float32 that the noise has to have, so that rounding adds a hundredth to its
# variance.
_ROUNDED = 4


@dataclass(frozen=True)
class GaussianNoise:
    """y = A(x) + sigma n, n standard normal."""

    sigma: float

    def __post_init__(self) -> None:
        expect(0 <= self.sigma < np.inf, "sigma", self.sigma, "a finite number >= 0")

    @property
    def is_known(self) -> bool:
        """Whether log-densities are finite."""
        return self.sigma > 0

    def draw(self, clean: np.ndarray, key: np.ndarray) -> np.ndarray:
        """A noisy measurement of `clean` (...), from the random stream `key`, uint64 (1,)."""
        return clean + self.sigma * normals(
            streams(key, 1, NOISE), clean.size, clean.dtype
        ).reshape(clean.shape)

    def log_density(self, observed: np.ndarray, clean: np.ndarray) -> np.ndarray:
        """log p(y | A(x)) in nats, float64 (batch,), of one measurement (...) for several A(x),
        (batch, ...).
        """
        residual = (np.asarray(clean, float) - observed).reshape(len(clean), -1) / self.sigma
        return -0.5 * (residual**2).sum(1) - residual.shape[1] * np.log(
            self.sigma * np.sqrt(2 * np.pi)
        )


@dataclass(frozen=True)
class PoissonNoise:
    """y = gain * Poisson(A(x) / gain); negative A(x) count as 0."""

    gain: float
    is_known = True

    def __post_init__(self) -> None:
        expect(0 < self.gain < np.inf, "gain", self.gain, "a finite number > 0")

    def draw(self, clean: np.ndarray, key: np.ndarray) -> np.ndarray:
        counts = generator_of(key).poisson(np.maximum(clean, 0) / self.gain)
        return (self.gain * counts).astype(clean.dtype)

    def log_density(self, observed: np.ndarray, clean: np.ndarray) -> np.ndarray:
        from scipy.stats import poisson

        counts = np.rint(np.asarray(observed, float) / self.gain)
        rates = np.maximum(np.asarray(clean, float), 0) / self.gain
        return poisson.logpmf(counts, rates).reshape(len(clean), -1).sum(1)


@dataclass(frozen=True)
class OtherNoise:
    """Noise of unknown law, drawn by `noisy(clean, generator)`; posteriors and likelihoods are
    refused.
    """

    noisy: Callable[[np.ndarray, np.random.Generator], np.ndarray]
    is_known = False

    def draw(self, clean: np.ndarray, key: np.ndarray) -> np.ndarray:
        return np.asarray(self.noisy(clean, generator_of(key)), clean.dtype)


@dataclass(frozen=True, eq=False)
class Operator:
    """The forward operator of an inverse problem, and the law of its noise.

    `forward`: A, from (batch, channels, height, width) to (batch, ...), in torch, so that samplers
    can differentiate it. Images are in [0, 1]; vectors keep their values. `noise`: `GaussianNoise`,
    `PoissonNoise` or `OtherNoise`; a number is the standard deviation of Gaussian noise, in the
    units of A(x). `hidden`, bool (channels, height, width): the values on which A(x) does not
    depend, if the operator hides some and leaves the others as they are. `measured`, bool in the
    form of y: its entries that are measured, by default all; the others are 0 and carry no noise.
    `physics`: the operator in deepinv, where it was made from one.
    """

    forward: Callable[[torch.Tensor], torch.Tensor]
    noise: Any
    hidden: np.ndarray | None = None
    is_linear: bool = True
    measured: np.ndarray | None = None
    physics: Any = None

    def __post_init__(self) -> None:
        if not hasattr(self.noise, "draw"):
            object.__setattr__(self, "noise", GaussianNoise(float(self.noise)))
        for name in ("hidden", "measured"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, np.asarray(getattr(self, name), bool))

    def clean(self, data: np.ndarray) -> np.ndarray:
        """A(x) of data (batch, channels, height, width), float32 (batch, ...)."""
        import torch

        with torch.no_grad():
            clean = self.forward(torch.from_numpy(np.array(data, np.float32)))
        is_tensor = isinstance(clean, torch.Tensor)
        fits = (
            is_tensor
            and not clean.is_complex()
            and clean.ndim > 1
            and len(clean) == len(data)
            and clean.numel() >= len(data)
        )
        found = (tuple(clean.shape), clean.dtype) if is_tensor else clean
        expect(
            fits,
            f"A(x) of {len(data)} data",
            found,
            f"a tensor ({len(data)}, ..) of real numbers, at least one for each",
        )
        values = clean.detach().cpu().numpy().astype(np.float32)
        expect(np.isfinite(values).all(), "A(x)", values, "finite numbers")
        return values

    def measure(self, datum: np.ndarray, key: np.ndarray) -> np.ndarray:
        """y of one datum (channels, height, width), float32 (...), with the noise of the random
        stream `key`, uint64 (1,).
        """
        clean = self.clean(datum[None])[0]
        noisy = self.noise.draw(clean, key)
        fits = noisy.shape == clean.shape and np.isfinite(noisy).all()
        expect(fits, "noisy(A(x))", noisy, f"finite numbers of the shape {clean.shape}")
        return noisy if self.measured is None else np.where(self.measured, noisy, np.float32(0))

    def check(self, data: np.ndarray, again: Operator) -> None:
        """ValueError if it does not fit data (2, channels, height, width), or differs from the
        same operator made `again`.
        """
        clean = self.clean(data)
        alone = self.clean(data[:1])
        expect(
            _is_close(clean[:1], alone),
            "A(x) of a datum beside another",
            clean[:1],
            "A(x) of the datum alone",
        )
        shape = data.shape[1:]
        if self.measured is not None:
            fits = self.measured.shape == clean.shape[1:]
            expect(fits, "shape of measured", self.measured.shape, f"{clean.shape[1:]}, as of y")
        if isinstance(self.noise, GaussianNoise) and self.noise.is_known:
            # Else rounding tells originals from draws.
            least = _ROUNDED * float(np.spacing(np.abs(clean).max(initial=0)))
            expect(
                self.noise.sigma >= least,
                "sigma",
                self.noise.sigma,
                f"0, or at least {least:.2g}, as A(x) is rounded",
            )
        key = np.zeros(1, np.uint64)
        is_same = _is_close(self.measure(data[0], key), again.measure(data[0], key))
        expected = (
            "random numbers from the given `generator` alone, a parameter of the function and of"
            " the noise"
        )
        expect(is_same, "y of a datum", "another at each call", expected)
        if self.hidden is not None:  # numpy refuses a shape that does not fit
            other = self.clean(np.where(np.broadcast_to(self.hidden, shape), data[::-1], data))
            expected = "A(x) unchanged; correct `hidden`, or leave it out"
            expect(_is_close(other, clean), "A(x) with other hidden values", other, expected)
        if self.is_linear:
            self.back_projection(clean, shape)  # fails for an A without a derivative

    def vectors(self, observed: np.ndarray) -> np.ndarray:
        """The measured entries of measurements (batch, ...): (batch, measurements)."""
        observed = observed.reshape(len(observed), -1)
        return observed if self.measured is None else observed[:, self.measured.reshape(-1)]

    def log_likelihood(self, observed: np.ndarray, data: np.ndarray) -> np.ndarray:
        """log p(y | x) in nats, float64 (batch,), of one measurement (...) for data (batch,
        channels, height, width).
        """
        expect(
            self.noise.is_known,
            "noise for log p(y | x)",
            self.noise,
            "Gaussian noise, sigma > 0, or Poisson noise",
        )
        return self.noise.log_density(
            self.vectors(observed[None])[0], self.vectors(self.clean(data))
        )

    def back_projection(self, observed: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """alpha A^T y of measurements (batch, ...), float32 (batch, *shape): alpha = |A^T y|^2 /
        |A A^T y|^2 is the best fit.
        """
        import torch

        # One row at a time, so that rounding does not depend on the number of rows.
        transposed = torch.func.vjp(self.forward, torch.zeros(1, *shape))[1]
        rows = torch.from_numpy(np.array(observed, np.float32)).split(1)
        back = np.concatenate(
            [
                np.zeros((0, *shape), np.float32),
                *(transposed(row)[0].detach().numpy() for row in rows),
            ]
        )
        again = np.concatenate([observed[:0], *(self.clean(row[None]) for row in back)])
        square, of_again = (
            np.square(values.reshape(len(back), -1)).sum(1) for values in (back, again)
        )
        alpha = np.divide(square, of_again, out=np.zeros_like(square), where=of_again > 0)
        return alpha.reshape(-1, *(1 for _ in shape)) * back

    def matrix(self, shape: tuple[int, ...], data: Any = ()) -> np.ndarray:
        """The matrix H of a linear operator, float64 (measurements, values), for data of a shape
        (channels, height, width).

        ValueError if A(x) differs from H x for an x drawn at random, or for some of the given data
        (batch, ..).
        """
        size = int(np.prod(shape))
        H = self.vectors(self.clean(np.eye(size, dtype=np.float32).reshape(size, *shape))).T.astype(
            float
        )
        for x in (np.random.default_rng(0).normal(size=shape), *np.reshape(data, (-1, *shape))):
            expected = H @ x.reshape(-1)
            difference = self.vectors(self.clean(x[None]))[0] - expected
            is_linear = np.abs(difference).max(initial=0) <= 1e-3 * max(
                1e-6, np.abs(expected).max(initial=0)
            )
            expect(
                is_linear,
                "A(x) - H x",
                difference,
                "0, with H made of A(e_i), as A is_linear; or give is_linear=False",
            )
        return H


def _is_close(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether arrays are equal up to rounding of float32."""
    return a.shape == b.shape and bool(
        np.abs(a - b).max(initial=0) <= 1e-4 * max(1.0, float(np.abs(b).max(initial=0)))
    )


def generator_of(key: np.ndarray) -> np.random.Generator:
    """numpy's generator with the random stream `key`, uint64 (1,)."""
    return np.random.Generator(np.random.Philox(key=int(key[0])))
