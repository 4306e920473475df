"""Four parts of one's own: time series, their noise, a model that denoises them, and what is
compared.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from uturn import Backward, Corruption, Noisy, Originals, Source, Variable
from uturn.core.random import Purpose, keys, normals, streams
from uturn.probes import Comparison

DRAW = 100  # what a random stream is for: numbers above 99 are free


@dataclass
class Block(Originals):
    """Some originals: their item numbers (batch,), the series (batch, length), and the law they
    are drawn from.
    """

    items: np.ndarray
    data: np.ndarray
    law: "Series"

    def observed_by(self, corruption, noise, streams):
        """Every series once a trajectory, noisy, with its law, which the way back needs."""
        noisy = super().observed_by(corruption, noise, streams)
        return NoisySeries(noisy.values, noisy.noise, law=self.law)


@dataclass(frozen=True)
class NoisySeries(Noisy):
    """Noisy series (batch, length) and the law of the originals."""

    law: "Series" = None


@dataclass
class Series(Source):
    """Source: stationary Gaussian series, the sum of a slow and a fast process of equal
    variance.
    """

    kind = "series"
    length: int = 64
    slow: float = 40.0
    fast: float = 2.0

    @cached_property
    def covariance(self):
        lag = np.abs(np.subtract.outer(np.arange(self.length), np.arange(self.length)))
        return 0.5 * np.exp(-lag / self.slow) + 0.5 * np.exp(-lag / self.fast)

    def draw(self, keys):
        """Series, one for each random stream: float64 (keys, length)."""
        root = np.linalg.cholesky(self.covariance)
        return normals(keys, self.length, np.float64) @ root.T

    def blocks(self, items, seed, num_items):
        yield Block(items, self.draw(keys(seed, DRAW, items)), self)


class Diffusing(Corruption):
    """Corruption: x_t = sqrt(abar) x_0 + sqrt(1 - abar) xi, with abar = exp(-2 t)."""

    kinds = ("series",)
    process = "diffusing series"
    unit = "diffusion time t"
    max_noise = np.inf

    def corrupt(self, values, noise, keys):
        abar = np.exp(-2 * noise)
        noisy = np.sqrt(abar) * values + np.sqrt(1 - abar) * normals(
            keys, values.shape[1], np.float64
        )
        return Noisy(noisy, np.full(len(noisy), noise))


class Wiener(Backward):
    """Backward: draws from the exact posterior of Gaussian series.

    A draw from the prior is moved by the gain times the difference of the noisy original and its
    own noisy version (Matheron).
    """

    kinds = ("series",)
    undoes = ("diffusing series",)

    def reconstruct(self, noisy, streams, clones=1):
        law, abar = noisy.law, np.exp(-2 * streams.noise)
        prior_keys, noise_keys = (
            split(streams.keys(Purpose.RECONSTRUCTION, clones), part) for part in (0, 1)
        )
        prior = law.draw(prior_keys)
        total = abar * law.covariance + (1 - abar) * np.eye(law.length)
        gain = np.sqrt(abar) * np.linalg.solve(total, law.covariance)
        observed = np.repeat(noisy.values, clones, axis=0)
        moved = (
            prior + (observed - Diffusing().corrupt(prior, streams.noise, noise_keys).values) @ gain
        )
        return moved.reshape(len(streams.items), -1, law.length)


def split(keys, part):
    """Sub-streams of random streams, for a second use of the same ones."""
    return streams(keys, len(keys), part)


@dataclass
class Scales(Comparison):
    """Probe: cosine of original and reconstruction in block averages, and whether the sign of
    the mean is kept.
    """

    kinds = ("series",)
    windows: tuple = (1, 4, 16)

    def variables(self, source):
        dims = ("noise", "item", "trajectory")
        return {
            "similarity": Variable(
                (*dims, "window"),
                "cosine of block averages",
                start=1,  # without noise
                chance=0,  # of two independent series
                bounds=(-1, 1),
                order="window",
                symmetric=True,
            ),
            "same_sign": Variable(
                dims,
                "sign of the mean is kept",
                start=1,
                chance=0.5,
                bounds=(0, 1),
                group="class",
                symmetric=True,
            ),
        }

    def coordinates(self, source):
        return {"window": np.array(self.windows)}

    def compare(self, first, second):
        a = first["data"]  # series (items, draws, length)
        b = second["data"]
        cosines = [cosine(a, b, window) for window in self.windows]
        return {"similarity": np.stack(cosines, axis=-1), "same_sign": same_sign(a, b)}


def cosine(a, b, window):
    """Cosine of two series in block averages."""
    a, b = average(a, window), average(b, window)
    return (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))


def same_sign(a, b):
    return np.sign(a.mean(-1)) == np.sign(b.mean(-1))


def average(series, window):
    """Means of neighbouring points, (.., length // window)."""
    length = series.shape[-1] // window * window
    return series[..., :length].reshape(*series.shape[:-1], -1, window).mean(-1)
