"""A short trial of an experiment before its run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from uturn.core.contracts import checked_blocks, checked_reasons
from uturn.core.data import Originals, Reconstructions
from uturn.core.experiment import Experiment
from uturn.core.messages import shown
from uturn.core.own_parts import is_own, name_of
from uturn.core.random import Streams
from uturn.core.u_turns import u_turn
from uturn.engine.measuring import Readings, Wanted, measure, measurements

_ITEMS = 2
_LEAST_EQUAL = 0.95
"""Share of the values of a reconstruction that must not depend on the number of clones."""


@dataclass(frozen=True)
class Checked:
    """A line of a check."""

    line: str
    is_doubt: bool = False
    """Whether the line reports a possible mistake."""

    def __str__(self) -> str:
        return self.line


def check(experiment: Experiment) -> Iterator[Checked]:
    """Measure two items of an experiment at the first and the last noise level; yields a line for
    each check that passed.

    ValueError if a part lacks a member or returns data of a wrong kind or shape, if the readings of
    an item depend on its batch or on earlier measurements, or if clone 0 depends on the number of
    clones. Nothing is stored.
    """
    for slot, part in experiment.slots().items():
        yield Checked(f"{name_of(part, f'{slot} ({type(part).__name__})')}: was built")
    coordinates = experiment.coordinates()
    for name, variable in experiment.variables().items():
        sizes = ", ".join(f"{dim} {len(coordinates[dim].values)}" for dim in variable.dims)
        yield Checked(f"measured: {name} ({sizes}): {variable.long_name}")
    experiment.parts.backward.describe()
    source = experiment.parts.source
    checked_reasons(f"{name_of(source, 'source')}.skipped", source.skipped(experiment.items))
    for finding in experiment.model_check():
        yield Checked(str(finding), is_doubt=True)
    recorded = ", ".join(sorted(name for name, digest in experiment.models().items() if digest))
    if recorded:
        yield Checked(
            f"a store is resumed only with the same weights, data and code of: {recorded}"
        )
    items = np.arange(min(_ITEMS, experiment.items))
    empty = set(experiment.variables())
    levels = sorted({0, len(experiment.noise) - 1})
    by_level: dict[int, Readings] = {}
    for level in levels:
        if is_own(experiment.parts.corruption):
            _check_noisy(experiment, level, items)
        readings = measure(experiment, level, items)
        by_level[level] = readings
        _check_batches(experiment, level, items, readings)
        if is_own(experiment.parts.backward):
            _check_clones(experiment, level, items)
        means = []
        for name, values in readings.items():
            finite = values[np.isfinite(values)]
            mean = np.nan
            if finite.size:
                empty.discard(name)
                mean = finite.mean(dtype=float)
            means.append(f"{name} {mean:.3g}")
        noise = experiment.noise[level]
        yield Checked(f"noise {noise:g}: means over items {items.tolist()}: {', '.join(means)}")
    if is_own(experiment.parts.backward):
        _check_stream(experiment, items, by_level)
    for name in sorted(empty):
        yield Checked(f"warning: all readings of {name} are NaN", is_doubt=True)


def _check_batches(
    experiment: Experiment, level: int, items: np.ndarray, readings: Readings
) -> None:
    """ValueError if the readings of an item depend on the other items of its batch."""
    for item in items:
        alone = measure(experiment, level, items[item : item + 1])
        for name, values in readings.items():
            reading = values[item]
            if np.allclose(reading, alone[name][0], rtol=1e-3, atol=1e-4, equal_nan=True):
                continue
            in_batch = shown(reading.tolist())
            by_itself = shown(alone[name][0].tolist())
            raise ValueError(
                f"{name} of item {item} at noise {experiment.noise[level]:g} is {in_batch} in a"
                f" batch of {len(items)}, {by_itself} by itself; draw random numbers from one"
                " stream an item, trajectory and noise level (uturn.random.keys)"
            )


def _check_noisy(experiment: Experiment, level: int, items: np.ndarray) -> None:
    """ValueError if noisy data depend on more than their random streams."""
    corruption = experiment.parts.corruption
    noise = experiment.noise[level]
    for originals, streams in _blocks(experiment, noise, items):
        first = corruption.observe(originals, noise, streams).values
        second = corruption.observe(originals, noise, streams).values
        if not np.array_equal(first, second, equal_nan=first.dtype.kind == "f"):
            raise ValueError(
                f"{name_of(corruption, 'corruption')}.corrupt: two calls with the same data,"
                f" noise {noise:g} and keys give different noisy data; draw random numbers from"
                " `keys` (uturn.random.uniforms, uturn.random.normals)"
            )


def _check_stream(
    experiment: Experiment, items: np.ndarray, by_level: Mapping[int, Readings]
) -> None:
    """ValueError if the readings of a level depend on the other blocks that a backward reads."""
    tasks = [Wanted(level, level, items) for level in by_level]
    for level, together in measurements(experiment, tasks):
        for name, values in together.items():
            if np.allclose(values, by_level[level][name], rtol=1e-3, atol=1e-4, equal_nan=True):
                continue
            raise ValueError(
                f"{name_of(experiment.parts.backward, 'backward')}.reconstruct_stream: {name} at"
                f" noise {experiment.noise[level]:g} depends on the other blocks of the stream; give"
                " each reconstruction the key of its own block"
            )


def _check_clones(experiment: Experiment, level: int, items: np.ndarray) -> None:
    """ValueError if a backward gives other reconstructions as clone 0 with two clones than with
    one.
    """
    corruption = experiment.parts.corruption
    backward = experiment.parts.backward
    noise = experiment.noise[level]
    for originals, streams in _blocks(experiment, noise, items):
        alone = u_turn(originals, corruption, backward, noise, streams)
        both = u_turn(originals, corruption, backward, noise, streams, clones=2)
        for expected, clones in _pairs(alone.reconstructions, both.reconstructions):
            first = clones[:, ::2]
            is_equal = np.isclose(first, expected, rtol=1e-3, atol=1e-4, equal_nan=True)
            if expected.size and is_equal.mean() < _LEAST_EQUAL:
                raise ValueError(
                    f"{name_of(backward, 'backward')}.reconstruct: clone 0 of 2 is not the"
                    " reconstruction with fewer clones; draw each clone from a stream of its own,"
                    " streams.keys(purpose, clones)"
                )


def _blocks(
    experiment: Experiment, noise: float, items: np.ndarray
) -> Iterator[tuple[Originals, Streams]]:
    """Blocks of originals, each with the random streams of its U-turns at a noise level."""
    source = experiment.parts.source
    trajectories = range(experiment.trajectories)
    blocks = source.blocks(items.copy(), experiment.seed, experiment.items)
    for originals in checked_blocks(source, blocks, items):
        yield originals, Streams(experiment.seed, originals.items, noise, trajectories)


def _pairs(
    first: Reconstructions, second: Reconstructions
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The arrays of two reconstructions, in pairs."""
    if isinstance(first, Mapping):
        for key in first:
            yield np.asarray(first[key]), np.asarray(second[key])
    else:
        yield np.asarray(first), np.asarray(second)
