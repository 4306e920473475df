"""The exact posterior of a mixture of Gaussians given a linear measurement with Gaussian noise."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from scipy.special import logsumexp

from uturn.core.checks import checked_numbers
from uturn.core.random import normals, streams, uniforms

# sub-streams of a draw
_MODE = 2**63 + 14
_VALUES = 2**63 + 15


class LinearPosterior:
    """p(x | y) for y = H x + n, n normal with covariance R, and x from the mixture sum_k w_k
    N(mu_k, C_k).

    With S_k = H C_k H^T + R and G_k = C_k H^T S_k^-1, the posterior is the mixture with weights w_k
    N(y; H mu_k, S_k) / p(y), means mu_k + G_k (y - H mu_k) and covariances C_k - G_k H C_k (Bishop,
    Pattern Recognition and Machine Learning, Eqs. 2.113 to 2.117), in float64. ValueError if S_k is
    singular: measurements without noise that are linearly dependent. `means` (modes, dimension);
    `covariances` (modes, dimension, dimension), or (dimension, dimension) if the modes share it;
    `weights` (modes,); `H` (measurements, dimension); `R` (measurements, measurements), or a
    number, the variance of white noise.

    Examples
    --------
    >>> posterior = LinearPosterior([[0.0, 0.0]], np.eye(2), [1.0], H=[[1.0, 0.0]], R=1.0)
    >>> posterior.mean([[1.0]]).round(9).tolist(), posterior.covariances[0].round(9).tolist()
    ([[0.5, 0.0]], [[0.5, 0.0], [0.0, 1.0]])
    """

    def __init__(self, means: Any, covariances: Any, weights: Any, H: Any, R: Any) -> None:
        self.prior_means = checked_numbers("means", means)
        self.prior_weights = checked_numbers("weights", weights)
        self.H = checked_numbers("H", H)
        C = checked_numbers("covariances", covariances)
        C = C.reshape(-1, *C.shape[-2:])
        m, d = self.H.shape
        R = checked_numbers("R", R) * (np.eye(m) if np.ndim(R) == 0 else 1.0)
        HC = self.H @ C
        S = HC @ self.H.T + R
        variances = np.diagonal(S, axis1=1, axis2=2)
        if np.linalg.eigvalsh(S).min(initial=np.inf) <= 1e-13 * variances.max(initial=0):
            raise ValueError(
                f"H, R: the covariance of the {m} measurements is singular; expected noise above 0,"
                " or measurements that are linearly independent"
            )
        root = np.linalg.cholesky(S)
        self._whiten = np.linalg.inv(root)  # (modes or 1, measurements, measurements)
        self._log_det = 2 * np.log(np.diagonal(root, axis1=1, axis2=2)).sum(1)
        self.gains = (self._whiten.transpose(0, 2, 1) @ (self._whiten @ HC)).transpose(0, 2, 1)
        # (I - G H) C (I - G H)^T + G R G^T equals C - G H C, and rounding leaves it symmetric and
        # positive.
        rest = np.eye(d) - self.gains @ self.H
        self.covariances = rest @ C @ rest.transpose(
            0, 2, 1
        ) + self.gains @ R @ self.gains.transpose(0, 2, 1)
        """Covariances of the modes given y, which do not depend on y: (modes or 1, dimension,
        dimension).
        """
        self._margin = 1e-13 * np.trace(C, axis1=1, axis2=2)[:, None, None] * np.eye(d)

    def weights(self, observed: Any) -> np.ndarray:
        """Probabilities of the modes given measurements (batch, measurements): (batch, modes)."""
        return np.exp(self._log_weights(self._checked(observed)))

    def means(self, observed: Any) -> np.ndarray:
        """Means of the modes given measurements (batch, measurements): (batch, modes,
        dimension).
        """
        residuals = self._residuals(self._checked(observed))
        return (self.prior_means[:, None] + residuals @ self.gains.transpose(0, 2, 1)).transpose(
            1, 0, 2
        )

    def mean(self, observed: Any) -> np.ndarray:
        """E[x | y] of measurements (batch, measurements): (batch, dimension)."""
        return (self.weights(observed)[:, :, None] * self.means(observed)).sum(1)

    def variance(self, observed: Any) -> np.ndarray:
        """Variance of each component of x given y, (batch, dimension)."""
        weights = self.weights(observed)[:, :, None]
        means = self.means(observed)
        within = np.diagonal(self.covariances, axis1=1, axis2=2)
        return (weights * (within + means**2)).sum(1) - (weights * means).sum(1) ** 2

    def sample(self, observed: Any, seed: Any = 0) -> np.ndarray:
        """A draw from p(x | y) for each measurement (batch, measurements), float64 (batch,
        dimension).

        `seed`: an integer, or one uint64 key for each measurement (`uturn.random.keys`).
        """
        observed = self._checked(observed)
        u = uniforms(streams(seed, len(observed), _MODE), 1)
        modes = (np.cumsum(self.weights(observed), axis=1)[:, :-1] <= u).sum(axis=1)
        draws = self.means(observed)[np.arange(len(observed)), modes]
        xi = normals(streams(seed, len(observed), _VALUES), draws.shape[1], np.float64)
        for mode in np.unique(modes):
            draws[modes == mode] += xi[modes == mode] @ self._roots[mode % len(self._roots)].T
        return draws

    def log_density(self, values: Any, observed: Any) -> np.ndarray:
        """log p(x | y) in nats, (batch,), of vectors (batch, dimension) given measurements,
        (batch or 1, measurements).
        """
        observed = self._checked(observed)
        centred = checked_numbers("values", values) - self.means(observed).transpose(1, 0, 2)
        white = np.linalg.solve(self._roots, centred.transpose(0, 2, 1))
        log_det = 2 * np.log(np.diagonal(self._roots, axis1=1, axis2=2)).sum(1)[:, None]
        of_modes = -0.5 * ((white**2).sum(1) + log_det + self.H.shape[1] * np.log(2 * np.pi))
        return logsumexp(self._log_weights(observed).T + of_modes, axis=0)

    @cached_property
    def _roots(self) -> np.ndarray:
        """Cholesky factors of the covariances.

        A margin far below the prior variance keeps the variance of exactly measured directions
        positive.
        """
        return np.linalg.cholesky(self.covariances + self._margin)

    def _residuals(self, observed: np.ndarray) -> np.ndarray:
        return observed - (self.prior_means @ self.H.T)[:, None]  # (modes, batch, measurements)

    def _log_weights(self, observed: np.ndarray) -> np.ndarray:
        white = self._residuals(observed) @ self._whiten.transpose(0, 2, 1)
        log_joint = np.log(self.prior_weights)[:, None] - 0.5 * (
            (white**2).sum(2) + self._log_det[:, None]
        )
        return (log_joint - logsumexp(log_joint, axis=0)).T

    def _checked(self, observed: Any) -> np.ndarray:
        observed = np.atleast_2d(checked_numbers("the measurements", observed))
        if observed.shape[1] != len(self.H):
            raise ValueError(
                f"the measurements have shape {observed.shape}; expected (batch, {len(self.H)})"
            )
        return observed
