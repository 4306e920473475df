"""Continuous laws with an exactly solvable diffusion: Gaussian mixtures, and Gaussian random
fields as mixtures of one mode.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logsumexp, ndtr

from uturn.core.checks import checked_integer, checked_noise, checked_numbers, expect
from uturn.core.random import NOISE, normals, streams, uniforms

if TYPE_CHECKING:
    import torch

# Sub-streams of a sample, distinct from STRINGS and NOISE in uturn.random.
MODE = 2**63 + 10
VALUES = 2**63 + 11
POSTERIOR_MODE = 2**63 + 12
POSTERIOR_VALUES = 2**63 + 13

Seed = int | np.ndarray
"""A seed of all vectors, or one uint64 key per vector (`uturn.random.keys`)."""


Numbers = Any  # a number, an array, or a tensor


class Observation(NamedTuple):
    """What is known of x_0: z = signal x_0 + sqrt(noise) xi, with xi standard normal. Numbers, or
    arrays or tensors that broadcast with vectors (batch, dimension).
    """

    signal: Numbers
    square: Numbers
    """signal^2."""
    noise: Numbers
    """Variance of the noise."""

    @classmethod
    def at(cls, t: np.ndarray) -> Observation:
        """The noisy datum x_t at times t."""
        abar = np.exp(-2 * t)
        return cls(np.sqrt(abar), abar, -np.expm1(-2 * t))

    def rows(self, chosen: np.ndarray) -> Observation:
        """The observations of the chosen vectors, where these have several."""
        return Observation(*(_of_rows(values, chosen) for values in self))

    def weight(self, variance: Numbers) -> Numbers:
        """w in E[x_0 | z] = m + w (z - signal m), for x_0 normal with mean m and variances
        (dimension,).
        """
        return self.signal * variance / self.total(variance)

    def spread(self, variance: Numbers) -> Numbers:
        """Standard deviation of x_0 given z, for x_0 normal with variances (dimension,)."""
        return np.sqrt(variance * self.noise / self.total(variance))

    def total(self, variance: Numbers) -> Numbers:
        """Variance of z, for x_0 normal with variances (dimension,)."""
        return self.square * variance + self.noise


def _of_rows(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    return values if len(values) == 1 else values[chosen]


_NOTHING = Observation(np.zeros((1, 1)), np.zeros((1, 1)), np.ones((1, 1)))


class Sample(NamedTuple):
    """Vectors, float64 (batch, dimension), and their modes, int64 (batch,)."""

    values: np.ndarray
    modes: np.ndarray


class GaussianMixture:
    """A mixture of Gaussians with a common covariance, diagonal in an orthonormal basis, under
    Gaussian diffusion.

    The law is `sum_k w_k N(x; mu_k, C)`. The noisy datum is `x_t = sqrt(abar) x_0 + sqrt(1 - abar)
    xi`, `abar = exp(-2t)`, with `noise` = t in [0, inf], scalar or one per vector: the process of
    `uturn.Gaussian`.

    `means` (modes, dimension). `weights` (modes,): positive, with sum 1; equal by default.
    `variance`: positive, one number, or (dimension,) along the basis. `grid`: the vectors are
    raveled fields on a periodic grid of this shape, and the basis is the real Fourier basis:
    component k is the projection on `(cos(k.x) + sin(k.x)) / sqrt(d)`, in the order of
    `numpy.fft.fftn`. By default the basis is the standard one.
    """

    def __init__(
        self,
        means: ArrayLike,
        weights: ArrayLike | None = None,
        variance: ArrayLike = 1.0,
        grid: tuple[int, ...] | None = None,
    ) -> None:
        self.means = checked_numbers("means", means)
        K, d = self.means.shape
        self.weights = np.full(K, 1 / K)
        if weights is not None:
            self.weights = checked_numbers("weights", weights)
        are_positive = self.weights.shape == (K,) and (self.weights > 0).all()
        is_law = are_positive and abs(self.weights.sum() - 1) <= 1e-9
        expect(is_law, "weights", weights, f"{K} positive numbers that add up to 1, one per mode")
        variances = checked_numbers("variance", variance)
        are_positive = variances.shape in ((), (d,)) and (variances > 0).all()
        expected = f"a positive number, or one per component, ({d},)"
        expect(are_positive, "variance", variance, expected)
        self.variance = np.broadcast_to(variances, d).copy()
        self.grid = None if grid is None else _checked_grid(grid)
        fits = self.grid is None or math.prod(self.grid) == d
        expect(fits, "grid", grid, f"the {d} components of the vectors")
        self._means = self.to_basis(self.means)

    @property
    def dimension(self) -> int:
        """Number of components of a vector."""
        return int(self.means.shape[1])

    @property
    def num_modes(self) -> int:
        """Number of modes."""
        return int(self.means.shape[0])

    @property
    def mean(self) -> np.ndarray:
        """Mean over all modes, (dimension,)."""
        return np.asarray(self.weights @ self.means)

    @property
    def power(self) -> np.ndarray:
        """Variance of each component in the basis, over all modes, (dimension,)."""
        between = self.weights @ (self._means - self.to_basis(self.mean)) ** 2
        return np.asarray(self.variance + between)

    @property
    def covariance(self) -> np.ndarray:
        """Covariance C of a mode, (dimension, dimension)."""
        return self.to_basis(self.to_basis(np.eye(self.dimension)) * self.variance)

    def to_basis(self, values: ArrayLike) -> np.ndarray:
        """Components (..., dimension) in the basis. The map (discrete Hartley transform) is its
        own inverse.
        """
        vectors = np.asarray(values, float)
        if self.grid is None:
            return vectors
        axes = tuple(range(-len(self.grid), 0))
        spectrum = np.fft.fftn(vectors.reshape(*vectors.shape[:-1], *self.grid), axes=axes)
        components = (spectrum.real - spectrum.imag) / np.sqrt(self.dimension)
        return np.asarray(components.reshape(vectors.shape))

    # -- drawing -----------------------------------------------------------------------------------
    def sample(self, count: int, seed: Seed = 0) -> Sample:
        """Draw `count` vectors. `seed`: an integer, or one uint64 key per vector
        (`uturn.random.keys`).
        """
        count = checked_integer("count", count, 0)
        u = uniforms(streams(seed, count, MODE), 1)
        modes = np.searchsorted(np.cumsum(self.weights)[:-1], u[:, 0], side="right")
        nothing = np.zeros((1, self.dimension))
        values = self._drawn(modes, nothing, _NOTHING, streams(seed, count, VALUES))
        return Sample(values, modes)

    def diffuse(self, values: ArrayLike, noise: ArrayLike, seed: Seed = 0) -> np.ndarray:
        """Noisy data x_t of vectors (batch, dimension) at time `noise`, float64 of the same
        shape.
        """
        x, t = self._checked(values, noise)
        xi = normals(streams(seed, len(x), NOISE), self.dimension, np.float64)
        return np.asarray(np.exp(-t) * x + np.sqrt(-np.expm1(-2 * t)) * xi)

    def sample_posterior(self, observed: ArrayLike, noise: ArrayLike, seed: Seed = 0) -> Sample:
        """Draw from p(x_0 | x_t): first the mode from its responsibilities, then the vector given
        mode and x_t.

        x_0 and the draw are exchangeable. At t = 0 the draw is x_t; at t = inf it is independent of
        x_t.
        """
        x, t = self._checked(observed, noise)
        u = uniforms(streams(seed, len(x), POSTERIOR_MODE), 1)
        below = np.cumsum(self.responsibilities(x, noise), axis=1)[:, :-1]
        modes = (below <= u).sum(axis=1)
        stream = streams(seed, len(x), POSTERIOR_VALUES)
        drawn = self._drawn(modes, x, Observation.at(t), stream)
        return Sample(np.where(t == 0, x, drawn), modes)

    def _drawn(
        self, modes: np.ndarray, x: np.ndarray, observation: Observation, keys: np.ndarray
    ) -> np.ndarray:
        """Draws of x_0 given the modes and the observed vectors x, (batch or 1, dimension)."""
        m = self._means[modes]
        v = self.variance
        xi = normals(keys, self.dimension, np.float64)
        centre = m + observation.weight(v) * (self.to_basis(x) - observation.signal * m)
        return self.to_basis(centre + observation.spread(v) * xi)

    def log_density(self, values: ArrayLike) -> np.ndarray:
        """log p(x) in nats of vectors (batch, dimension), float64 (batch,)."""
        return np.asarray(logsumexp(self._log_joint(values, 0.0), axis=1))

    def share_outside(self, low: float = 0.0, high: float = 1.0) -> float:
        """Share of the values of the law that are outside [low, high]; samplers that clip to
        this range are wrong for them.
        """
        spread = np.sqrt(np.diagonal(self.covariance, axis1=-2, axis2=-1))
        below = ndtr((low - self.means) / spread)
        above = ndtr((self.means - high) / spread)
        return float(self.weights @ (below + above).mean(axis=1))

    # -- denoising ---------------------------------------------------------------------------------
    def denoise(self, noisy: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        """The exact denoiser, E[x | x + sigma n] with n standard normal, in torch and
        differentiable.

        In the basis, with variances v of the modes, it is sum_k p_k (m_k + v / (v + sigma^2) (z -
        m_k)) with the posterior probabilities p_k of the modes. `noisy`: (batch, ...), vectors in
        any shape; the result has the same shape, dtype and device. `sigma`: a number >= 0, or a
        tensor (batch,).

        >>> import torch
        >>> law = GaussianMixture(means=[[-3.0, 0.0], [3.0, 0.0]])
        >>> law.denoise(torch.tensor([[6.0, 1.0]]), 1.0)
        tensor([[4.5000, 0.5000]])
        """
        import torch

        x = noisy.reshape(len(noisy), -1).double()
        sigmas = torch.as_tensor(sigma, dtype=torch.float64, device=x.device).reshape(-1, 1)
        logits, means = self._given(x, Observation(1.0, 1.0, sigmas**2))
        clean = (torch.softmax(logits, 1)[:, :, None] * means).sum(1)
        return self._to_torch_basis(clean).reshape(noisy.shape).to(noisy.dtype)

    def _given(
        self, x: torch.Tensor, observation: Observation
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probability of each mode given x, up to a constant, and the mean of x_0 in it,
        (batch, modes, dimension).
        """
        means = x.new_tensor(self._means)
        v = x.new_tensor(self.variance)
        weights = x.new_tensor(self.weights)
        difference = self._to_torch_basis(x)[:, None] - means
        square = (difference**2 / observation.total(v)[:, None]).sum(2)
        return weights.log() - 0.5 * square, means + observation.weight(v)[:, None] * difference

    def _to_torch_basis(self, values: torch.Tensor) -> torch.Tensor:
        """`to_basis` of tensors (batch, dimension)."""
        if self.grid is None:
            return values
        return hartley(values.reshape(-1, *self.grid), len(self.grid)).reshape(values.shape)

    # -- modes given x_t ---------------------------------------------------------------------------
    def responsibilities(self, observed: ArrayLike, noise: ArrayLike = 0.0) -> np.ndarray:
        """Posterior probability of each mode given x_t, (batch, modes)."""
        log_joint = self._log_joint(observed, noise)
        shifted = np.exp(log_joint - log_joint.max(axis=1, keepdims=True))
        return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))

    def classify(self, values: ArrayLike) -> np.ndarray:
        """The most probable mode of vectors without noise (Bayes classifier), int64 (batch,)."""
        return np.asarray(self._log_joint(values, 0.0).argmax(axis=1))

    def _log_joint(self, observed: ArrayLike, noise: ArrayLike) -> np.ndarray:
        """log of w_k p(x_t | mode k), (batch, modes)."""
        x, t = self._checked(observed, noise)
        observation = Observation.at(t)
        total = observation.total(self.variance)
        z = self.to_basis(x)
        m = self._means
        # |z - sqrt(abar) m_k|^2 / total is expanded, which avoids an array of batch x modes x
        # dimension.
        of_z = (z * z / total).sum(1, keepdims=True)
        of_both = 2 * observation.signal * (z / total) @ m.T
        of_means = observation.square * ((1 / total) @ (m * m).T)
        square = of_z - of_both + of_means
        normaliser = np.broadcast_to(np.log(2 * np.pi * total), z.shape).sum(1, keepdims=True)
        return np.asarray(np.log(self.weights) - 0.5 * (square + normaliser))

    def _checked(self, values: ArrayLike, noise: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Vectors as float64 and noise as (batch or 1, 1), or a ValueError."""
        vectors = checked_numbers("the vectors", values)
        fits = vectors.ndim == 2 and vectors.shape[1] == self.dimension
        expect(fits, "shape of the vectors", vectors.shape, f"(batch, {self.dimension})")
        return vectors, checked_noise(noise, np.inf, len(vectors)).reshape(-1, 1)


class _Mode(NamedTuple):
    """A Gaussian with variances along a basis of its own. Arrays, or tensors."""

    mean: Numbers
    """(dimension,)."""
    variance: Numbers
    """(dimension,)."""
    basis: Numbers
    """The vectors of the basis in columns, (dimension, dimension)."""

    def components(self, x: Numbers, observation: Observation) -> Numbers:
        """Components z of observed vectors (batch, dimension) minus those of the mean."""
        return (x - observation.signal * self.mean) @ self.basis


class CorrelatedMixture(GaussianMixture):
    """The mixture `sum_k w_k N(x; mu_k, C_k)` under Gaussian diffusion, with any covariances C_k.

    It is a `GaussianMixture` on the standard basis, whose formulas are evaluated in the eigenbasis
    of each C_k. `covariances` (modes, dimension, dimension), or (dimension, dimension) if the modes
    share it, are symmetric and positive definite.

    >>> law = CorrelatedMixture([[10.0, 0.0], [-10.0, 0.0]], [[[4.0, 1.9], [1.9, 1.0]], [[1.0, 0.0], [0.0, 1.0]]], [0.25, 0.75])
    >>> round(law.share_outside(-8.0, 12.0), 3)
    0.386
    """

    def __init__(
        self, means: ArrayLike, covariances: ArrayLike, weights: ArrayLike | None = None
    ) -> None:
        super().__init__(means, weights)
        K, d = self.means.shape
        C = checked_numbers("covariances", covariances)
        expected = f"({d}, {d}), or one for each mode"
        expect(C.shape in ((d, d), (K, d, d)), "shape of covariances", C.shape, expected)
        self._covariance = C[0] if C.ndim == 3 and K == 1 else C
        self._variances_of, self._bases = np.linalg.eigh(np.broadcast_to(C, (K, d, d)))
        is_symmetric = np.abs(C - C.swapaxes(-1, -2)).max() <= 1e-9 * np.abs(C).max()
        is_positive = self._variances_of.min() > 1e-12 * self._variances_of.max()
        expected = "symmetric matrices with positive eigenvalues"
        expect(is_symmetric and is_positive, "covariances", covariances, expected)
        variances = np.diagonal(C, axis1=-2, axis2=-1)
        self.variance = self.weights @ np.broadcast_to(variances, (K, d))

    @property
    def covariance(self) -> np.ndarray:
        """Covariances C_k, (modes, dimension, dimension), or (dimension, dimension) if the modes
        share one.
        """
        return self._covariance

    def _modes(self) -> Iterator[_Mode]:
        for mode in zip(self.means, self._variances_of, self._bases, strict=True):
            yield _Mode(*mode)

    def _drawn(
        self, modes: np.ndarray, x: np.ndarray, observation: Observation, keys: np.ndarray
    ) -> np.ndarray:
        xi = normals(keys, self.dimension, np.float64)
        drawn = np.empty_like(xi)
        for k, mode in enumerate(self._modes()):
            rows = modes == k
            if not rows.any():
                continue
            of_rows = observation.rows(rows)
            v = mode.variance
            z = mode.components(_of_rows(x, rows), of_rows)
            components = of_rows.weight(v) * z + of_rows.spread(v) * xi[rows]
            drawn[rows] = mode.mean + components @ mode.basis.T
        return drawn

    def _given(
        self, x: torch.Tensor, observation: Observation
    ) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        logits = []
        clean = []
        for weight, arrays in zip(self.weights, self._modes(), strict=True):
            mode = _Mode(*map(x.new_tensor, arrays))
            z = mode.components(x, observation)
            total = observation.total(mode.variance)
            logits.append(np.log(weight) - 0.5 * (z**2 / total + total.log()).sum(1))
            clean.append(mode.mean + (observation.weight(mode.variance) * z) @ mode.basis.T)
        return torch.stack(logits, 1), torch.stack(clean, 1)

    def _log_joint(self, observed: ArrayLike, noise: ArrayLike) -> np.ndarray:
        x, t = self._checked(observed, noise)
        observation = Observation.at(t)
        of_modes = []
        for weight, mode in zip(self.weights, self._modes(), strict=True):
            z = mode.components(x, observation)
            total = observation.total(mode.variance)
            log_density = -0.5 * (z**2 / total + np.log(2 * np.pi * total)).sum(1)
            of_modes.append(np.log(weight) + log_density)
        return np.stack(of_modes, axis=1)


def hartley(values: torch.Tensor, axes: int = 2) -> torch.Tensor:
    """Orthonormal Hartley transform of the last `axes` axes, its own inverse: (Re F - Im F) /
    sqrt(points).
    """
    import torch

    last = tuple(range(-axes, 0))
    spectrum: torch.Tensor = torch.fft.fftn(values, dim=last, norm="ortho")
    return spectrum.real - spectrum.imag


def simplex(num_modes: int, dimension: int, distance: float, seed: Seed = 0) -> np.ndarray:
    """Means (num_modes, dimension) at equal distances from each other, in random directions,
    with their centre at 0.
    """
    K = checked_integer("num_modes", num_modes, 1)
    d = checked_integer("dimension", dimension, 1)
    expect(K <= d, "num_modes", K, f"1 .. {d}, the dimension")
    directions, _ = np.linalg.qr(normals(streams(seed, K), d, np.float64).T)
    centred = directions - directions.mean(axis=1, keepdims=True)
    return np.asarray(centred.T * (distance / np.sqrt(2)))


def wave_numbers(grid: tuple[int, ...]) -> np.ndarray:
    """|k| of the components of the Fourier basis, in waves per grid length, (points,)."""
    frequencies = [np.fft.fftfreq(n, 1 / n) for n in _checked_grid(grid)]
    axes = np.meshgrid(*frequencies, indexing="ij")
    squares = np.add.reduce([axis**2 for axis in axes])
    return np.asarray(np.sqrt(squares).ravel())


def power_law(grid: tuple[int, ...], exponent: float) -> np.ndarray:
    """Variances (points,) `~ |k|^-exponent` of the components of a field, with mean 1; k = 0 has
    the variance of |k| = 1.
    """
    power = np.maximum(wave_numbers(grid), 1.0) ** -float(exponent)
    return np.asarray(power / power.mean())


def _checked_grid(grid: Iterable[int]) -> tuple[int, ...]:
    return tuple(checked_integer("grid", n, 1) for n in grid)
