"""Continuous laws with an exactly solvable diffusion: Gaussian mixtures, and Gaussian random
fields as mixtures of one mode.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.special import logsumexp, ndtr

from uturn.core.checks import checked_integer, checked_noise, checked_numbers, expect
from uturn.core.random import NOISE, normals, streams, uniforms

if TYPE_CHECKING:
    import torch

# Sub-streams of a sample, distinct from STRINGS and NOISE in uturn.random.
MODE, VALUES, POSTERIOR_MODE, POSTERIOR_VALUES = (2**63 + k for k in range(10, 14))


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
        means: Any,
        weights: Any = None,
        variance: Any = 1.0,
        grid: tuple[int, ...] | None = None,
    ) -> None:
        self.means = checked_numbers("means", means)
        K, d = self.means.shape
        self.weights = np.full(K, 1 / K) if weights is None else checked_numbers("weights", weights)
        is_law = (
            self.weights.shape == (K,)
            and (self.weights > 0).all()
            and abs(self.weights.sum() - 1) <= 1e-9
        )
        expect(is_law, "weights", weights, f"{K} positive numbers that add up to 1, one per mode")
        variances = checked_numbers("variance", variance)
        is_positive = variances.shape in ((), (d,)) and (variances > 0).all()
        expect(
            is_positive, "variance", variance, f"a positive number, or one per component, ({d},)"
        )
        self.variance = np.broadcast_to(variances, d).copy()
        self.grid = None if grid is None else _checked_grid(grid)
        expect(
            self.grid is None or math.prod(self.grid) == d,
            "grid",
            grid,
            f"the {d} components of the vectors",
        )
        self._means = self.to_basis(self.means)

    @property
    def dimension(self) -> int:
        return self.means.shape[1]

    @property
    def num_modes(self) -> int:
        return self.means.shape[0]

    @property
    def mean(self) -> np.ndarray:
        return self.weights @ self.means

    @property
    def power(self) -> np.ndarray:
        """Variance of each component in the basis, over all modes, (dimension,)."""
        return self.variance + self.weights @ (self._means - self.to_basis(self.mean)) ** 2

    @property
    def covariance(self) -> np.ndarray:
        """Covariance C of a mode, (dimension, dimension)."""
        return self.to_basis(self.to_basis(np.eye(self.dimension)) * self.variance)

    def to_basis(self, values: Any) -> np.ndarray:
        """Components (..., dimension) in the basis. The map (discrete Hartley transform) is its
        own inverse.
        """
        values = np.asarray(values, float)
        if self.grid is None:
            return values
        axes = tuple(range(-len(self.grid), 0))
        spectrum = np.fft.fftn(values.reshape(*values.shape[:-1], *self.grid), axes=axes)
        return ((spectrum.real - spectrum.imag) / np.sqrt(self.dimension)).reshape(values.shape)

    # -- drawing -----------------------------------------------------------------------------------
    def sample(self, count: int, seed: Any = 0) -> Sample:
        """Draw `count` vectors. `seed`: an integer, or one uint64 key per vector
        (`uturn.random.keys`).
        """
        count = checked_integer("count", count, 0)
        u = uniforms(streams(seed, count, MODE), 1)
        modes = np.searchsorted(np.cumsum(self.weights)[:-1], u[:, 0], side="right")
        nothing, no_signal = np.zeros((1, self.dimension)), np.zeros((1, 1))
        return Sample(
            self._drawn(modes, nothing, no_signal, no_signal + 1, streams(seed, count, VALUES)),
            modes,
        )

    def diffuse(self, values: Any, noise: Any, seed: Any = 0) -> np.ndarray:
        """Noisy data x_t of vectors (batch, dimension) at time `noise`, float64 of the same
        shape.
        """
        values, t = self._checked(values, noise)
        xi = normals(streams(seed, len(values), NOISE), self.dimension, np.float64)
        return np.exp(-t) * values + np.sqrt(-np.expm1(-2 * t)) * xi

    def sample_posterior(self, observed: Any, noise: Any, seed: Any = 0) -> Sample:
        """Draw from p(x_0 | x_t): first the mode from its responsibilities, then the vector given
        mode and x_t.

        x_0 and the draw are exchangeable. At t = 0 the draw is x_t; at t = inf it is independent of
        x_t.
        """
        x, t = self._checked(observed, noise)
        u = uniforms(streams(seed, len(x), POSTERIOR_MODE), 1)
        modes = (np.cumsum(self.responsibilities(x, noise), axis=1)[:, :-1] <= u).sum(axis=1)
        drawn = self._drawn(
            modes, x, np.exp(-2 * t), -np.expm1(-2 * t), streams(seed, len(x), POSTERIOR_VALUES)
        )
        return Sample(np.where(t == 0, x, drawn), modes)

    def _drawn(
        self, modes: np.ndarray, x: np.ndarray, abar: np.ndarray, rest: np.ndarray, keys: np.ndarray
    ) -> np.ndarray:
        """Draws given the modes and x_t, whose signal and noise have variances abar and rest,
        (batch or 1, 1).
        """
        m, v, xi = self._means[modes], self.variance, normals(keys, self.dimension, np.float64)
        total = abar * v + rest
        centre = m + np.sqrt(abar) * v / total * (self.to_basis(x) - np.sqrt(abar) * m)
        return self.to_basis(centre + np.sqrt(v * rest / total) * xi)

    def log_density(self, values: Any) -> np.ndarray:
        """log p(x) in nats of vectors (batch, dimension), float64 (batch,)."""
        return logsumexp(self._log_joint(values, 0.0), axis=1)

    def share_outside(self, low: float = 0.0, high: float = 1.0) -> float:
        """Share of the values of the law that are outside [low, high]; samplers that clip to
        this range are wrong for them.
        """
        spread = np.sqrt(np.diagonal(self.covariance, axis1=-2, axis2=-1))
        below, above = ndtr((low - self.means) / spread), ndtr((self.means - high) / spread)
        return float(self.weights @ (below + above).mean(axis=1))

    # -- denoising ---------------------------------------------------------------------------------
    def denoise(self, noisy: torch.Tensor, sigma: Any) -> torch.Tensor:
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
        logits, means = self._given(
            x, torch.as_tensor(sigma, dtype=torch.float64, device=x.device).reshape(-1, 1)
        )
        clean = (torch.softmax(logits, 1)[:, :, None] * means).sum(1)
        return self._to_torch_basis(clean).reshape(noisy.shape).to(noisy.dtype)

    def _given(self, x: torch.Tensor, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probability of each mode given x, up to a constant, and the mean of x_0 in it,
        (batch, modes, dimension).
        """
        means, v, weights = map(x.new_tensor, (self._means, self.variance, self.weights))
        difference = self._to_torch_basis(x)[:, None] - means
        total = (v + sigma**2)[:, None]
        return weights.log() - 0.5 * (difference**2 / total).sum(2), means + v / total * difference

    def _to_torch_basis(self, values: torch.Tensor) -> torch.Tensor:
        """`to_basis` of tensors (batch, dimension)."""
        if self.grid is None:
            return values
        return hartley(values.reshape(-1, *self.grid), len(self.grid)).reshape(values.shape)

    # -- modes given x_t ---------------------------------------------------------------------------
    def responsibilities(self, observed: Any, noise: Any = 0.0) -> np.ndarray:
        """Posterior probability of each mode given x_t, (batch, modes)."""
        log_joint = self._log_joint(observed, noise)
        shifted = np.exp(log_joint - log_joint.max(axis=1, keepdims=True))
        return shifted / shifted.sum(axis=1, keepdims=True)

    def classify(self, values: Any) -> np.ndarray:
        """The most probable mode of vectors without noise (Bayes classifier), int64 (batch,)."""
        return self._log_joint(values, 0.0).argmax(axis=1)

    def _log_joint(self, observed: Any, noise: Any) -> np.ndarray:
        """log of w_k p(x_t | mode k), (batch, modes)."""
        x, t = self._checked(observed, noise)
        abar = np.exp(-2 * t)
        total, z, m = abar * self.variance - np.expm1(-2 * t), self.to_basis(x), self._means
        # |z - sqrt(abar) m_k|^2 / total is expanded, which avoids an array of batch x modes x
        # dimension.
        square = (
            (z * z / total).sum(1, keepdims=True)
            - 2 * np.sqrt(abar) * (z / total) @ m.T
            + abar * ((1 / total) @ (m * m).T)
        )
        normaliser = np.broadcast_to(np.log(2 * np.pi * total), z.shape).sum(1, keepdims=True)
        return np.log(self.weights) - 0.5 * (square + normaliser)

    def _checked(self, values: Any, noise: Any) -> tuple[np.ndarray, np.ndarray]:
        """Vectors as float64 and noise as (batch or 1, 1), or a ValueError."""
        values = checked_numbers("the vectors", values)
        fits = values.ndim == 2 and values.shape[1] == self.dimension
        expect(fits, "shape of the vectors", values.shape, f"(batch, {self.dimension})")
        return values, checked_noise(noise, np.inf, len(values)).reshape(-1, 1)


class CorrelatedMixture(GaussianMixture):
    """The mixture `sum_k w_k N(x; mu_k, C_k)` under Gaussian diffusion, with any covariances C_k.

    It is a `GaussianMixture` on the standard basis, whose formulas are evaluated in the eigenbasis
    of each C_k. `covariances` (modes, dimension, dimension), or (dimension, dimension) if the modes
    share it, are symmetric and positive definite.

    >>> law = CorrelatedMixture([[10.0, 0.0], [-10.0, 0.0]], [[[4.0, 1.9], [1.9, 1.0]], [[1.0, 0.0], [0.0, 1.0]]], [0.25, 0.75])
    >>> round(law.share_outside(-8.0, 12.0), 3)
    0.386
    """

    def __init__(self, means: Any, covariances: Any, weights: Any = None) -> None:
        super().__init__(means, weights)
        K, d = self.means.shape
        C = checked_numbers("covariances", covariances)
        expect(
            C.shape in ((d, d), (K, d, d)),
            "shape of covariances",
            C.shape,
            f"({d}, {d}), or one for each mode",
        )
        self._covariance = C if C.ndim == 2 else C[0] if K == 1 else C
        self._variances_of, self._bases = np.linalg.eigh(np.broadcast_to(C, (K, d, d)))
        is_symmetric = np.abs(C - C.swapaxes(-1, -2)).max() <= 1e-9 * np.abs(C).max()
        is_positive = self._variances_of.min() > 1e-12 * self._variances_of.max()
        expect(
            is_symmetric and is_positive,
            "covariances",
            covariances,
            "symmetric matrices with positive eigenvalues",
        )
        self.variance = self.weights @ np.broadcast_to(np.diagonal(C, axis1=-2, axis2=-1), (K, d))

    @property
    def covariance(self) -> np.ndarray:
        """Covariances C_k, (modes, dimension, dimension), or (dimension, dimension) if the modes
        share one.
        """
        return self._covariance

    def _drawn(
        self, modes: np.ndarray, x: np.ndarray, abar: np.ndarray, rest: np.ndarray, keys: np.ndarray
    ) -> np.ndarray:
        """Draws given the modes and x_t, whose signal and noise have variances abar and rest,
        (batch or 1, 1).
        """
        xi = normals(keys, self.dimension, np.float64)
        x, abar, rest = (
            np.broadcast_to(values, (len(xi), values.shape[1])) for values in (x, abar, rest)
        )
        drawn = np.empty_like(xi)
        for k in np.unique(modes):
            rows, v, basis = modes == k, self._variances_of[k], self._bases[k]
            total = abar[rows] * v + rest[rows]
            z = (x[rows] - np.sqrt(abar[rows]) * self.means[k]) @ basis
            drawn[rows] = (
                self.means[k]
                + (np.sqrt(abar[rows]) * v / total * z + np.sqrt(v * rest[rows] / total) * xi[rows])
                @ basis.T
            )
        return drawn

    def _given(self, x: torch.Tensor, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        logits, clean = [], []
        for weight, *mode in zip(
            self.weights, self.means, self._variances_of, self._bases, strict=True
        ):
            m, v, basis = map(x.new_tensor, mode)
            z, total = (x - m) @ basis, v + sigma**2
            logits.append(np.log(weight) - 0.5 * (z**2 / total + total.log()).sum(1))
            clean.append(m + (v / total * z) @ basis.T)
        return torch.stack(logits, 1), torch.stack(clean, 1)

    def _log_joint(self, observed: Any, noise: Any) -> np.ndarray:
        x, t = self._checked(observed, noise)
        abar, rest = np.exp(-2 * t), -np.expm1(-2 * t)
        of_modes = []
        for weight, mean, v, basis in zip(
            self.weights, self.means, self._variances_of, self._bases, strict=True
        ):
            z, total = (x - np.sqrt(abar) * mean) @ basis, abar * v + rest
            of_modes.append(
                np.log(weight) - 0.5 * (z**2 / total + np.log(2 * np.pi * total)).sum(1)
            )
        return np.stack(of_modes, axis=1)


def hartley(values: torch.Tensor, axes: int = 2) -> torch.Tensor:
    """Orthonormal Hartley transform of the last `axes` axes, its own inverse: (Re F - Im F) /
    sqrt(points).
    """
    import torch

    spectrum = torch.fft.fftn(values, dim=tuple(range(-axes, 0)), norm="ortho")
    return spectrum.real - spectrum.imag


def simplex(num_modes: int, dimension: int, distance: float, seed: Any = 0) -> np.ndarray:
    """Means (num_modes, dimension) at equal distances from each other, in random directions,
    with their centre at 0.
    """
    K, d = checked_integer("num_modes", num_modes, 1), checked_integer("dimension", dimension, 1)
    expect(K <= d, "num_modes", K, f"1 .. {d}, the dimension")
    directions, _ = np.linalg.qr(normals(streams(seed, K), d, np.float64).T)
    return (directions - directions.mean(axis=1, keepdims=True)).T * (distance / np.sqrt(2))


def wave_numbers(grid: tuple[int, ...]) -> np.ndarray:
    """|k| of the components of the Fourier basis, in waves per grid length, (points,)."""
    axes = np.meshgrid(*(np.fft.fftfreq(n, 1 / n) for n in _checked_grid(grid)), indexing="ij")
    return np.sqrt(sum(axis**2 for axis in axes)).ravel()


def power_law(grid: tuple[int, ...], exponent: float) -> np.ndarray:
    """Variances (points,) `~ |k|^-exponent` of the components of a field, with mean 1; k = 0 has
    the variance of |k| = 1.
    """
    power = np.maximum(wave_numbers(grid), 1.0) ** -float(exponent)
    return power / power.mean()


def _checked_grid(grid: Any) -> tuple[int, ...]:
    return tuple(checked_integer("grid", n, 1) for n in grid)
