"""Four parts of one's own: time series, their noise, a model that denoises them, and what is compared."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from uturn.backward import UTurns
from uturn.random import keys, normals
from uturn.store import Variable

DRAW, NOISE, PRIOR = 100, 101, 102  # what random streams are for: numbers above 99 are free


@dataclass
class Block:
    """Some originals: their item numbers (batch,), the series (batch, length), and the law they are drawn from."""

    items: np.ndarray
    data: np.ndarray
    law: "Series"

    @staticmethod
    def data_of(reconstructions):
        """What a network reads of reconstructions: (batch, trajectories, length)."""
        return reconstructions


@dataclass
class Series:
    """Source: stationary Gaussian series, the sum of a slow and a fast process of equal variance."""

    length: int = 64
    slow: float = 40.0
    fast: float = 2.0

    @cached_property
    def covariance(self):
        lag = np.abs(np.subtract.outer(np.arange(self.length), np.arange(self.length)))
        return 0.5 * np.exp(-lag / self.slow) + 0.5 * np.exp(-lag / self.fast)

    def draw(self, streams):
        """Series, one a random stream: float64 (streams, length)."""
        root = np.linalg.cholesky(self.covariance)
        return normals(streams, self.length, np.float64) @ root.T

    def blocks(self, items, seed, num_items):
        yield Block(items, self.draw(keys(seed, DRAW, items)), self)

    def coordinates(self, seed, num_items):
        return {}


class Diffusing:
    """Corruption: x_t = sqrt(abar) x_0 + sqrt(1 - abar) xi, with abar = exp(-2 t)."""

    unit = "diffusion time t"
    max_noise = np.inf

    def corrupt(self, values, noise, streams):
        abar = np.exp(-2 * noise)
        return np.sqrt(abar) * values + np.sqrt(1 - abar) * normals(streams, values.shape[1], np.float64)


class Wiener:
    """Backward: draws from the exact posterior of Gaussian series.

    A draw from the prior and its noisy version are moved by what the noisy original differs from the latter (Matheron's rule).
    """

    def u_turn(self, originals, corruption, noise, seed, trajectories, outputs):
        law, level = originals.law, np.float64(noise).view(np.uint64)  # by its value: a finer grid repeats the old numbers
        items = np.repeat(originals.items, trajectories)
        numbers = np.tile(np.arange(trajectories), len(originals.items))
        streams = [keys(seed, purpose, items, numbers, level) for purpose in (NOISE, PRIOR, PRIOR + 1)]
        noisy = corruption.corrupt(np.repeat(originals.data, trajectories, axis=0), noise, streams[0])
        prior = law.draw(streams[1])
        abar = np.exp(-2 * noise)
        total = abar * law.covariance + (1 - abar) * np.eye(law.length)
        gain = np.sqrt(abar) * np.linalg.solve(total, law.covariance)
        rebuilt = prior + (noisy - corruption.corrupt(prior, noise, streams[2])) @ gain
        return UTurns(originals, rebuilt.reshape(len(originals.items), trajectories, -1))

    def noise_coordinates(self, corruption, noise, source):
        return {"noise": (np.array(noise), {"long_name": corruption.unit})}

    def fingerprint(self):
        return ""


@dataclass
class Scales:
    """Probe: correlation of original and reconstruction in moving averages, and whether the sign of the mean is kept."""

    windows: tuple = (1, 4, 16)
    outputs = ()

    def variables(self, source):
        dims = ("noise", "item", "trajectory")
        return {
            "similarity": Variable((*dims, "window"), "correlation of moving averages"),
            "same_sign": Variable(dims, "sign of the mean is kept"),
        }

    def coordinates(self, source):
        return {"window": np.array(self.windows)}

    def read(self, u_turns, source):
        before, after = u_turns.originals.data[:, None], u_turns.reconstructions
        smooth = [[_average(x, window) for x in (before, after)] for window in self.windows]
        cosines = [(a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1)) for a, b in smooth]
        return {
            "similarity": np.stack(cosines, axis=-1),
            "same_sign": np.sign(before.mean(-1)) == np.sign(after.mean(-1)),
        }

    def fingerprint(self):
        return ""


def _average(series, window):
    """Means of neighbouring points, (.., length // window)."""
    length = series.shape[-1] // window * window
    return series[..., :length].reshape(*series.shape[:-1], -1, window).mean(-1)
