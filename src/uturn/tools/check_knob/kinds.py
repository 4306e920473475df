"""How data are compared: distances of two data, and readings that noise should keep, for each
kind of data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

Pairs = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Distances of pairs of data, (pairs, ...) and (pairs, ...) to float64 (pairs,)."""
OfData = Callable[[np.ndarray], np.ndarray]
"""A number of each datum, (data, ...) to float64 (data,)."""
_SHORT = 3
"""Axes with at most so many entries have no order: colours, coordinates."""


class Kind(StrEnum):
    """The kinds of data whose distance is built in."""

    IMAGES = "images"
    """Numbers in order along two or three axes."""
    SERIES = "series"
    """Numbers in order along one axis: sounds, series."""
    TOKENS = "tokens"
    """Symbols or words."""
    STRUCTURES = "structures"
    """Coordinates of atoms, (atoms, 3), which are compared after superposition."""


@dataclass(frozen=True)
class Measure:
    """A distance of two data."""

    name: str
    pairs: Pairs


class Form(StrEnum):
    """How a reading of an output is compared with that of its original."""

    RATIO = "times"
    """By the logarithm of their ratio."""
    SHIFT = "sd from"
    """By their difference, in units of the standard deviation within a datum."""


@dataclass(frozen=True)
class Reading:
    """A number of each datum that noise and denoising should keep."""

    name: str
    values: OfData
    form: Form
    rise: float
    """Tolerated rise: 0.05 is 5 % of a ratio, or 0.05 standard deviations."""
    fall: float | None
    """Tolerated fall; None if no fall is judged."""
    far_fall: float | None = None
    """Tolerated fall where outputs have changed by more than half of the largest change; by
    default `fall`. Samplers of few steps lose contrast there.
    """

    def shifts(self, outputs: np.ndarray, original: np.ndarray) -> np.ndarray:
        """Shift of each output from one original, (outputs,)."""
        before = self.values(original[None])
        after = self.values(outputs)
        if self.form is Form.SHIFT:
            return (after - before) / max(float(flat(original[None]).std()), 1e-12)
        return np.asarray(np.log(np.maximum(after, 1e-12) / np.maximum(before, 1e-12)))


@dataclass(frozen=True)
class Comparison:
    """How data of one kind are compared."""

    measures: tuple[Measure, ...]
    """The first is the distance of all tests. Those of independence use the others too."""
    readings: tuple[Reading, ...] = ()


def flat(data: np.ndarray) -> np.ndarray:
    """Data (data, ...) as float64 (data, numbers)."""
    return data.reshape(len(data), -1).astype(float)


# --- distances ------------------------------------------------------------------------------------


def root_mean_square(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Root mean square difference."""
    return np.asarray(np.sqrt(((flat(a) - flat(b)) ** 2).mean(1)))


def share_that_differs(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Share of positions that differ, the Hamming distance."""
    return np.asarray((a != b).reshape(len(a), -1).mean(1))


def edge_difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Root mean square distance of the differences between neighbours, summed over axes.

    It has more independent parts than the distance of the data, whose variance lies in few smooth
    ones. A weak leak of the original shows in it first.
    """
    total = np.zeros(len(a))
    difference = a.astype(float) - b.astype(float)
    for axis in ordered_axes(difference):
        total += np.sqrt((flat(np.diff(difference, axis=axis)) ** 2).mean(1))
    return total


def superposed(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Root mean square distance of atoms after the best superposition, by the singular values of
    the covariance (Kabsch 1976, Acta Cryst. A 32, 922): float64 (pairs,) of (pairs, atoms, 3).
    """
    first = centred(a)
    second = centred(b)
    u, singular, v = np.linalg.svd(np.einsum("pai,paj->pij", first, second))
    singular[:, -1] *= np.sign(np.linalg.det(u) * np.linalg.det(v))
    squares = (first**2).sum((1, 2)) + (second**2).sum((1, 2)) - 2 * singular.sum(1)
    # The rounding of equal structures, which differ by nothing.
    is_equal = squares < 1e-12 * (first**2).sum((1, 2))
    return np.asarray(np.where(is_equal, 0, np.sqrt(np.maximum(squares, 0) / a.shape[1])))


def pair_by_pair(distance: Callable[[np.ndarray, np.ndarray], float]) -> Pairs:
    """A user's distance of two data as one of pairs."""

    def pairs(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.array([float(distance(x, y)) for x, y in zip(a, b, strict=True)])

    return pairs


# --- readings -------------------------------------------------------------------------------------


def ordered_axes(data: np.ndarray) -> list[int]:
    """Axes of data (data, ...) along which neighbours are near."""
    return [axis for axis in range(1, data.ndim) if data.shape[axis] > _SHORT]


def contrast(data: np.ndarray) -> np.ndarray:
    """Standard deviation within each datum."""
    return np.asarray(flat(data).std(1))


def mean(data: np.ndarray) -> np.ndarray:
    return np.asarray(flat(data).mean(1))


def roughness(data: np.ndarray) -> np.ndarray:
    """Root mean square difference of neighbours in units of the contrast."""
    values = data.astype(float)
    axes = ordered_axes(values)
    squares = np.zeros(len(data))
    for axis in axes:
        squares += (flat(np.diff(values, axis=axis)) ** 2).mean(1)
    return np.asarray(np.sqrt(squares / max(len(axes), 1)) / np.maximum(contrast(data), 1e-12))


def colour(channel: int) -> OfData:
    """Mean of one channel less that of all, of images (images, 3, height, width)."""

    def values(data: np.ndarray) -> np.ndarray:
        return np.asarray(flat(data[:, channel]).mean(1) - flat(data).mean(1))

    return values


def centred(structures: np.ndarray) -> np.ndarray:
    """Coordinates (structures, atoms, 3) from the centre of their structure."""
    coordinates = structures.astype(float)
    return np.asarray(coordinates - coordinates.mean(1, keepdims=True))


def radius(structures: np.ndarray) -> np.ndarray:
    """Radius of gyration."""
    return np.asarray(np.sqrt((centred(structures) ** 2).sum(2).mean(1)))


def bond(structures: np.ndarray) -> np.ndarray:
    """Root mean square distance of neighbours along the chain."""
    steps = np.diff(structures.astype(float), axis=1)
    return np.asarray(np.sqrt((steps**2).sum(2).mean(1)))


_SIGNALS = (
    Reading("contrast", contrast, Form.RATIO, rise=0.05, fall=0.05, far_fall=0.3),
    Reading("mean", mean, Form.SHIFT, rise=0.05, fall=0.05),
    # Few steps and autoencoders smooth.
    Reading("roughness", roughness, Form.RATIO, rise=0.05, fall=None),
)
_STRUCTURES = (
    Reading("radius", radius, Form.RATIO, rise=0.05, fall=0.05),
    Reading("bond length", bond, Form.RATIO, rise=0.05, fall=0.05),
)


def comparison_of(kind: Kind, shape: tuple[int, ...]) -> Comparison:
    """The distances and readings of data of a kind. `shape`: of an original."""
    if kind is Kind.TOKENS:
        return Comparison((Measure("positions", share_that_differs),))
    if kind is Kind.STRUCTURES:
        return Comparison((Measure("RMSD", superposed),), _STRUCTURES)
    readings = list(_SIGNALS)
    if len(shape) == 3 and shape[0] == _SHORT:
        for channel, name in enumerate(("red", "green", "blue")):
            readings.append(Reading(name, colour(channel), Form.SHIFT, rise=0.05, fall=0.05))
    measures = [Measure("rms", root_mean_square)]
    if any(size > _SHORT for size in shape):
        measures.append(Measure("edges", edge_difference))
    return Comparison(tuple(measures), tuple(readings))


def guessed_kind(original: np.ndarray) -> Kind:
    """The kind of an original by its type and axes; structures are never guessed.

    >>> guessed_kind(np.array([3, 1])), guessed_kind(np.zeros(9)), guessed_kind(np.zeros((8, 8)))
    (<Kind.TOKENS: 'tokens'>, <Kind.SERIES: 'series'>, <Kind.IMAGES: 'images'>)
    """
    if original.dtype.kind in "iuUSb" and original.dtype != np.uint8:
        return Kind.TOKENS
    return Kind.SERIES if original.ndim == 1 else Kind.IMAGES
