"""Mixtures of Gaussians whose modes have covariance matrices of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from uturn.core.checks import checked_integer, checked_numbers, expect
from uturn.core.random import normals, streams, uniforms
from uturn.exact.laws import MODE, POSTERIOR_MODE, POSTERIOR_VALUES, VALUES, GaussianMixture, Sample

if TYPE_CHECKING:
    import torch


class CorrelatedMixture(GaussianMixture):
    """The mixture `sum_k w_k N(x; mu_k, C_k)` under Gaussian diffusion, with any covariances C_k.

    It is a `GaussianMixture` on the standard basis, whose formulas are evaluated in the eigenbasis of each C_k. `covariances`
    (modes, dimension, dimension), or (dimension, dimension) if the modes share it, are symmetric and positive definite.

    >>> law = CorrelatedMixture([[10.0, 0.0], [-10.0, 0.0]], [[[4.0, 1.9], [1.9, 1.0]], [[1.0, 0.0], [0.0, 1.0]]], [0.25, 0.75])
    >>> round(law.share_outside(-8.0, 12.0), 3)
    0.386
    """

    def __init__(self, means: Any, covariances: Any, weights: Any = None) -> None:
        super().__init__(means, weights)
        K, d = self.means.shape
        C = checked_numbers("covariances", covariances)
        expect(C.shape in ((d, d), (K, d, d)), "shape of covariances", C.shape, f"({d}, {d}), or one for each mode")
        self._covariance = C if C.ndim == 2 else C[0] if K == 1 else C
        self._variances_of, self._bases = np.linalg.eigh(np.broadcast_to(C, (K, d, d)))
        is_symmetric = np.abs(C - C.swapaxes(-1, -2)).max() <= 1e-9 * np.abs(C).max()
        is_positive = self._variances_of.min() > 1e-12 * self._variances_of.max()
        expect(is_symmetric and is_positive, "covariances", covariances, "symmetric matrices with positive eigenvalues")
        self.variance = self.weights @ np.broadcast_to(np.diagonal(C, axis1=-2, axis2=-1), (K, d))

    @property
    def covariance(self) -> np.ndarray:
        """Covariances C_k, (modes, dimension, dimension), or (dimension, dimension) if the modes share one."""
        return self._covariance

    def sample(self, count: int, seed: Any = 0) -> Sample:
        count = checked_integer("count", count, 0)
        u = uniforms(streams(seed, count, MODE), 1)
        modes = np.searchsorted(np.cumsum(self.weights)[:-1], u[:, 0], side="right")
        nothing = np.zeros((count, 1))
        return Sample(
            self._drawn(modes, np.zeros((count, self.dimension)), nothing, nothing + 1, streams(seed, count, VALUES)), modes
        )

    def sample_posterior(self, observed: Any, noise: Any, seed: Any = 0) -> Sample:
        x, t = self._checked(observed, noise)
        u = uniforms(streams(seed, len(x), POSTERIOR_MODE), 1)
        modes = (np.cumsum(self.responsibilities(x, noise), axis=1)[:, :-1] <= u).sum(axis=1)
        abar, rest = (np.broadcast_to(values, (len(x), 1)) for values in (np.exp(-2 * t), -np.expm1(-2 * t)))
        drawn = self._drawn(modes, x, abar, rest, streams(seed, len(x), POSTERIOR_VALUES))
        return Sample(np.where(t == 0, x, drawn), modes)

    def _drawn(self, modes: np.ndarray, x: np.ndarray, abar: np.ndarray, rest: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Draws given the modes and x_t, whose signal and noise have variances abar and rest, (batch, 1)."""
        xi, drawn = normals(keys, self.dimension, np.float64), np.empty_like(x)
        for k in np.unique(modes):
            rows, v, basis = modes == k, self._variances_of[k], self._bases[k]
            total = abar[rows] * v + rest[rows]
            z = (x[rows] - np.sqrt(abar[rows]) * self.means[k]) @ basis
            drawn[rows] = (
                self.means[k] + (np.sqrt(abar[rows]) * v / total * z + np.sqrt(v * rest[rows] / total) * xi[rows]) @ basis.T
            )
        return drawn

    def denoise(self, noisy: torch.Tensor, sigma: Any) -> torch.Tensor:
        import torch

        x = noisy.reshape(len(noisy), -1).double()

        def constant(values: Any) -> torch.Tensor:
            return torch.as_tensor(values, dtype=torch.float64, device=x.device)

        logits, clean = [], []
        for weight, mean, v, basis in zip(self.weights, self.means, self._variances_of, self._bases, strict=True):
            m, v, basis = constant(mean), constant(v), constant(basis)
            z, total = (x - m) @ basis, v + constant(sigma).reshape(-1, 1) ** 2
            logits.append(np.log(weight) - 0.5 * (z**2 / total + total.log()).sum(1))
            clean.append(m + (v / total * z) @ basis.T)
        probability = torch.softmax(torch.stack(logits, 1), 1)
        return (probability[:, :, None] * torch.stack(clean, 1)).sum(1).reshape(noisy.shape).to(noisy.dtype)

    def _log_joint(self, observed: Any, noise: Any) -> np.ndarray:
        x, t = self._checked(observed, noise)
        abar, rest = np.exp(-2 * t), -np.expm1(-2 * t)
        of_modes = []
        for weight, mean, v, basis in zip(self.weights, self.means, self._variances_of, self._bases, strict=True):
            z, total = (x - np.sqrt(abar) * mean) @ basis, abar * v + rest
            of_modes.append(np.log(weight) - 0.5 * (z**2 / total + np.log(2 * np.pi * total)).sum(1))
        return np.stack(of_modes, axis=1)
