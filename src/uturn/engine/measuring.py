"""Measures the tasks of an experiment: the stream of their U-turns, read by all probes.

Tasks are joined for speed before the stream. Trajectories that are read in parts are combined
after it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from uturn.core.contracts import checked_blocks, checked_readings
from uturn.core.data import Originals
from uturn.core.errors import noted
from uturn.core.experiment import Experiment
from uturn.core.own_parts import is_own
from uturn.core.progress import add, begun, portion
from uturn.core.protocols import FromFiles, UTurns, Variable
from uturn.core.random import Streams
from uturn.core.u_turns import u_turns

_JOINED_BYTES = 2**24
"""Bytes of noisy data of tasks that are measured together."""
_READING = 0.25
"""Assumed time of the probes over the time of the reconstruction, for the progress."""
_NUMBERS_OF_PART = 2**20
"""Numbers of the noisy data of one original in memory together, where trajectories are read in
parts."""

Readings = dict[str, np.ndarray]
"""Readings of some items, {variable: array (items, ..)}."""
Name = TypeVar("Name", bound=Hashable)


class Wanted(NamedTuple, Generic[Name]):
    """Items to measure at a noise level, under a name with which their readings come back."""

    name: Name
    noise_index: int
    items: np.ndarray


@dataclass(frozen=True)
class _Joined(Generic[Name]):
    """Items of neighbouring tasks, which are measured together."""

    names: list[Name]
    counts: list[int]
    """Number of items of each task."""
    noise_index: int
    items: np.ndarray


class _Key(NamedTuple):
    """Place of a block in the stream of U-turns."""

    joined: int
    block: int
    part: int
    """Of the trajectories."""


def measure(
    experiment: Experiment, noise_index: int, items: np.ndarray, first: int = 0
) -> Readings:
    """Readings of some items at one noise level, from trajectory `first` on."""
    wanted = Wanted(None, noise_index, items)
    _, readings = next(measurements(experiment, [wanted], first))
    return readings


def measurements(
    experiment: Experiment, tasks: Iterable[Wanted[Name]], first: int = 0
) -> Iterator[tuple[Name, Readings]]:
    """The name and the readings of each task, in the order of completion.

    `first` is the first trajectory to measure; values above 0 need `Experiment.adds_trajectories`.
    """
    yield from _Measurement[Name](experiment, range(first, experiment.trajectories)).run(tasks)


class _Measurement(Generic[Name]):
    """The measurement of some tasks, from a first trajectory on."""

    def __init__(self, experiment: Experiment, trajectories: range) -> None:
        self.experiment = experiment
        self.trajectories = trajectories
        self.draws = len(trajectories) * experiment.clones  # of an item
        self.joined: dict[int, _Joined[Name]] = {}
        self.readers: dict[int, list[_Reader]] = {}
        """For each block of the joined tasks with this number."""

    def run(self, tasks: Iterable[Wanted[Name]]) -> Iterator[tuple[Name, Readings]]:
        experiment = self.experiment
        parts = experiment.parts
        # One reconstruction is this share of a task; probes take the rest.
        items = min(experiment.chunk, experiment.items)
        unit = 1 / ((1 + _READING) * items * self.draws)
        stream = u_turns(
            self._blocks(tasks), parts.corruption, parts.backward, clones=experiment.clones
        )
        with begun(0, unit=unit), noted():
            for key, turned in stream:
                readers = self.readers[key.joined]
                readers[key.block].read(turned)
                del turned  # reconstructions may be large
                if all(reader.is_done for reader in readers):
                    yield from self._split(key.joined)

    def _blocks(
        self, tasks: Iterable[Wanted[Name]]
    ) -> Iterator[tuple[_Key, Originals, float, Streams]]:
        """Blocks of originals, one for each part of the trajectories."""
        experiment = self.experiment
        source = experiment.parts.source
        items = np.empty(0, int)
        originals: list[Originals] = []
        for number, joined in enumerate(_joined(experiment, tasks)):
            # The last tasks may have had the same originals, at another noise level.
            if not np.array_equal(joined.items, items):
                items = joined.items
                blocks = source.blocks(items.copy(), experiment.seed, experiment.items)
                originals = checked_blocks(source, blocks, items)
            noise = experiment.noise[joined.noise_index]
            size = _trajectories_together(experiment, originals[0])
            starts = range(0, len(self.trajectories), size)
            parts = [self.trajectories[start : start + size] for start in starts]
            self.joined[number] = joined
            self.readers[number] = [
                _Reader(experiment, len(self.trajectories), len(parts)) for _ in originals
            ]
            for index, block in enumerate(originals):
                for part, trajectories in enumerate(parts):
                    streams = Streams(experiment.seed, block.items, noise, trajectories)
                    yield _Key(number, index, part), block, noise, streams

    def _split(self, number: int) -> Iterator[tuple[Name, Readings]]:
        """The readings of each of the joined tasks with this number."""
        joined = self.joined.pop(number)
        readers = self.readers.pop(number)
        whole = {}
        for variable in readers[0].readings:
            whole[variable] = np.concatenate([reader.readings[variable] for reader in readers])
        end = 0
        for name, count in zip(joined.names, joined.counts, strict=True):
            start = end
            end += count
            add(-(1 + _READING) * self.draws * count)
            yield name, {variable: values[start:end] for variable, values in whole.items()}


class _Reader:
    """Reads the U-turns of a block of originals, whose trajectories arrive in several parts."""

    def __init__(self, experiment: Experiment, trajectories: int, parts: int) -> None:
        self.experiment = experiment
        self.trajectories = trajectories
        self.parts = parts
        self.readings: Readings = {}
        """After the last part."""
        self._parts_left = parts
        self._states: list[Any] = [None] * len(experiment.parts.probes)
        self._missing: list[np.ndarray] = []
        """Missing reconstructions of the parts read so far, bool (items, draws)."""

    @property
    def is_done(self) -> bool:
        return self._parts_left == 0

    def read(self, turned: UTurns) -> None:
        """Read a part of the trajectories."""
        experiment = self.experiment
        items = len(turned.originals.items)
        if isinstance(experiment.parts.backward, FromFiles):
            turned = self._without_gaps(turned)
        u_turns_of_part = items * self.trajectories * experiment.clones / self.parts
        with portion(_READING * u_turns_of_part):
            for index, probe in enumerate(experiment.parts.bound_probes):
                self._states[index] = probe.accumulate(
                    self._states[index], turned, experiment.parts.source
                )
        self._parts_left -= 1
        if self.is_done:
            self._finish(items)

    def _without_gaps(self, turned: UTurns) -> UTurns:
        """U-turns whose missing reconstructions are the original; their readings are removed at
        the end.
        """
        items = len(turned.originals.items)
        is_nan = np.isnan(turned.reconstructions)
        missing = is_nan.reshape(items, -1, turned.originals.data[0].size).all(axis=2)
        self._missing.append(missing)
        if not missing.any():
            return turned
        filled = np.array(turned.reconstructions)
        filled[missing] = turned.originals.data[np.nonzero(missing)[0]]
        return replace(turned, reconstructions=filled)

    def _finish(self, items: int) -> None:
        """The readings of all parts, from the states of the probes."""
        experiment = self.experiment
        source = experiment.parts.source
        sizes = {"trajectory": self.trajectories, "clone": experiment.clones}
        for declaration in experiment.declared:
            sizes |= {dim: len(labels) for dim, labels in declaration.dims.items()}
        probes = zip(experiment.parts.bound_probes, experiment.declared, self._states, strict=True)
        for probe, declaration, state in probes:
            readings = checked_readings(
                declaration.label,
                probe.readings(state, source),
                declaration.variables,
                sizes,
                items,
            )
            if self._missing:
                missing = np.concatenate(self._missing, axis=1)
                missing = missing.reshape(items, -1, experiment.clones)
                readings |= _without(missing, readings, declaration.variables)
            self.readings |= readings
        self._states = []
        self._missing = []


def _without(
    missing: np.ndarray, readings: Mapping[str, np.ndarray], variables: Mapping[str, Variable]
) -> Readings:
    """Readings that are NaN where they rest on a missing reconstruction, bool (items,
    trajectories, clones).
    """
    import xarray as xr

    mask = xr.DataArray(missing, dims=("item", "trajectory", "clone"))
    removed = {}
    for name, variable in variables.items():
        if variable.twin == "original":
            continue
        dims = variable.dims[1:]
        # What compares a clone with the other clones rests on all of them.
        rests_on_one = "clone" in dims and variable.twin != "clones"
        is_gone = mask if rests_on_one else mask.any("clone")
        if "trajectory" not in dims:
            is_gone = is_gone.any("trajectory") & variable.pooled
        values = xr.DataArray(readings[name].astype(float), dims=dims)
        removed[name] = values.where(~is_gone).transpose(*dims).values
    return removed


def _trajectories_together(experiment: Experiment, originals: Originals) -> int:
    """Number of trajectories of each original in memory together: all, unless all probes read
    them in parts.
    """
    parts = experiment.parts
    backward = parts.backward
    if not backward.adds_trajectories or backward.shares_batches or is_own(backward):
        return experiment.trajectories
    if not all(probe.reads_in_parts for probe in parts.probes):
        return experiment.trajectories
    # Independent of the chunk, since the size of the parts affects rounding.
    values = np.size(originals.data[0]) * max(parts.source.num_symbols, 1)
    return max(1, _NUMBERS_OF_PART // (values * experiment.clones))


def _joined(experiment: Experiment, tasks: Iterable[Wanted[Name]]) -> Iterator[_Joined[Name]]:
    """Neighbouring tasks of one noise level, joined for speed if results are bit-identical."""
    size = _tasks_together(experiment)
    for noise_index, level in groupby(tasks, key=lambda task: task.noise_index):
        while group := list(islice(level, size)):
            items = [task.items for task in group]
            yield _Joined(
                names=[task.name for task in group],
                counts=[len(items_of_task) for items_of_task in items],
                noise_index=noise_index,
                items=np.concatenate(items),
            )


def _tasks_together(experiment: Experiment) -> int:
    """Number of tasks that are measured together."""
    for part in experiment.slots().values():
        if not part.batch_invariant or is_own(part):
            return 1
    draws = experiment.trajectories * experiment.clones
    items = min(experiment.chunk, experiment.items)
    bytes_of_task = experiment.parts.source.item_bytes * draws * items
    if bytes_of_task == 0:
        return 1
    return max(1, _JOINED_BYTES // bytes_of_task)
