"""Which test of `uturn.posterior_tests` sees which wrong posterior sampler, how often its kind of error is right, and false alarms.

    python benchmarks/posteriors.py [--clones 4] [--experiments 200] [--items 100]

The law is a mixture of three Gaussians of different covariances in 16 dimensions; every fourth value is measured with Gaussian
noise of standard deviation .1. The exact posterior is known (`uturn.exact.linear`), and wrong samplers are made from it. Power is
the share of experiments in which a test, or the family by Holm, has p <= .05; for the exact sampler it is the false-alarm rate.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import xarray as xr
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

import uturn as ut
from uturn.core.protocols import UTurns
from uturn.corruption.measurement import Measured
from uturn.corruption.operators import Operator
from uturn.exact.linear import LinearPosterior
from uturn.probes.posterior import Posterior

DIMENSION, MODES, SIGMA, LEVEL = 16, 3, 0.1, 0.05
KINDS = {
    "exact": "none seen",
    "spread x .3": "too sure",
    "spread x .85": "too sure",
    "spread x 1.15": "not sure enough",
    "spread x 1.5": "not sure enough",
    "shifted by .3 sd": "shifted",
    "shifted by 1 sd": "shifted",
    "ignores y": "deaf to the data",
    "noise taken 3 times": "not sure enough",
    "noise taken 1/3": "too sure",
    "values one by one": "unlike the data",
    "weights^.3": "wrong modes",
    "weights^3": "wrong modes",
    "likeliest mode alone": "wrong modes",
    "deterministic": "too sure",
}
"""Kind of the error of each sampler."""


class Mixture:
    """The law of the originals: means, covariances and equal weights, with what the probe asks of a law."""

    dimension, grid = DIMENSION, None

    def __init__(self, rng: np.random.Generator) -> None:
        self.weights = np.full(MODES, 1 / MODES)
        self.means = 0.5 + 0.12 * rng.standard_normal((MODES, DIMENSION))
        factors = 0.06 * rng.standard_normal((MODES, DIMENSION, 4))
        self.covariances = factors @ factors.transpose(0, 2, 1) + 0.0009 * np.eye(DIMENSION)

    def sample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        modes, roots = rng.integers(MODES, size=count), np.linalg.cholesky(self.covariances)
        return self.means[modes] + np.einsum("nij,nj->ni", roots[modes], rng.standard_normal((count, DIMENSION)))

    def _of_modes(self, values: Any) -> np.ndarray:
        laws = zip(self.means, self.covariances, strict=True)
        return np.stack([multivariate_normal(mean, covariance).logpdf(values) for mean, covariance in laws])

    def log_density(self, values: Any) -> np.ndarray:
        return logsumexp(self._of_modes(values), axis=0) - np.log(MODES)

    def classify(self, values: Any, law: Any = None) -> np.ndarray:
        return self._of_modes(values).argmax(axis=0)

    law = True  # as a source, it has a law


def samplers(law: Mixture, observed: np.ndarray, clones: int, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Wrong samplers by name, and their clones (items, clones, dimension) of measurements (items, measurements)."""
    items, rng, streams = len(observed), np.random.default_rng(seed), iter(range(100))
    H = np.eye(DIMENSION)[::4]

    def drawn(count: int, sigma: float = SIGMA, weights: Callable[[np.ndarray], np.ndarray] | None = None) -> np.ndarray:
        posterior = LinearPosterior(law.means, law.covariances, law.weights, H, sigma**2)
        if weights is not None:
            of_modes, modes = posterior.means(observed), weights(posterior.weights(observed))
            chosen = (rng.random((items, count, 1)) > modes.cumsum(1)[:, None]).sum(2).clip(max=MODES - 1)
            noise, roots = rng.standard_normal((items, count, DIMENSION)), np.linalg.cholesky(posterior.covariances + 1e-12 * np.eye(16))
            return of_modes[np.arange(items)[:, None], chosen] + np.einsum("nkij,nkj->nki", roots[chosen], noise)
        keys = ut.random.keys(seed, 100 + next(streams), np.arange(items * count))
        return posterior.sample(np.repeat(observed, count, axis=0), keys).reshape(items, count, DIMENSION)

    def flattened(weights: np.ndarray, power: float) -> np.ndarray:
        return weights**power / (weights**power).sum(1, keepdims=True)

    exact = drawn(clones)
    posterior = LinearPosterior(law.means, law.covariances, law.weights, H, SIGMA**2)
    mean, sd = posterior.mean(observed)[:, None], np.sqrt(posterior.variance(observed))[:, None]
    yield "exact", exact
    for factor in (0.3, 0.85, 1.15, 1.5):
        yield f"spread x {factor:g}".replace("0.", "."), mean + factor * (exact - mean)
    for shift in (0.3, 1.0):
        yield f"shifted by {shift:g} sd".replace("0.", "."), exact + shift * sd
    yield "ignores y", law.sample(items * clones, rng).reshape(items, clones, DIMENSION)
    yield "noise taken 3 times", drawn(clones, 3 * SIGMA)
    yield "noise taken 1/3", drawn(clones, SIGMA / 3)
    one_by_one = np.empty_like(exact)
    for value in range(DIMENSION):
        one_by_one[..., value] = drawn(clones)[..., value]
    yield "values one by one", one_by_one
    yield "weights^.3", drawn(clones, weights=lambda weights: flattened(weights, 0.3))
    yield "weights^3", drawn(clones, weights=lambda weights: flattened(weights, 3))
    yield "likeliest mode alone", drawn(clones, weights=lambda weights: np.eye(MODES)[weights.argmax(1)])
    yield "deterministic", np.repeat(mean, clones, axis=1)


def measured(law: Mixture, data: np.ndarray, rng: np.random.Generator) -> Measured:
    """Every fourth value of data (items, dimension), with noise."""
    seen = np.arange(DIMENSION) % 4 == 0
    operator = Operator(lambda x: x[..., ::4], SIGMA, hidden=~seen.reshape(1, 1, -1))
    values = (data[:, ::4] + SIGMA * rng.standard_normal((len(data), DIMENSION // 4))).reshape(len(data), 1, 1, -1)
    return Measured(
        values.astype(np.float32), np.full(len(data), SIGMA), operators=(operator,) * len(data), shape=(1, 1, DIMENSION), law=law
    )


def runs(items: int, clones: int, seed: int) -> Iterator[tuple[str, xr.Dataset]]:
    """The readings of each sampler of `KINDS` as a run of many items."""
    rng = np.random.default_rng(seed)
    law = Mixture(np.random.default_rng(5))
    data = law.sample(items, rng).astype(np.float32)
    noisy = measured(law, data, rng)
    originals = ut.sources.Vectors(np.arange(items), law, data, law.classify(data))
    for name, draws in samplers(law, noisy.values.reshape(items, -1).astype(float), clones, seed):
        read = Posterior().read(UTurns(originals, noisy, draws.astype(np.float32), clones), law)
        shaped = {
            key: values.reshape(1, items, 1, clones)
            if key.removeprefix("clone_") in ("distance", "same_component") or f"original_{key}" in read
            else values.reshape(1, items, *[1] * (values.ndim - 1))
            for key, values in read.items()
        }
        yield name, ut.readings(shaped, [SIGMA], unit="noise of the measurement")
