"""Measures the tasks of an experiment: the stream of their U-turns, read by all probes.

Tasks are joined for speed before the stream; trajectories read in parts are combined after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby, islice
from typing import Any

import numpy as np

from uturn.core.contracts import checked_blocks, checked_readings
from uturn.core.errors import noted
from uturn.core.experiment import Experiment
from uturn.core.own_parts import is_own
from uturn.core.progress import add, begun, portion
from uturn.core.protocols import FromFiles, UTurns, Variable
from uturn.core.random import Streams
from uturn.core.u_turns import u_turns

_JOINED_BYTES = 2**24  # bytes of noisy data of tasks measured together
# Assumed ratio of the time of the probes to that of the reconstruction, for progress.
_READING = 0.25
# Numbers of the noisy data of one original in memory together, where trajectories are read in
# parts.
_PART = 2**20

_Task = tuple[Any, int, np.ndarray]  # name, index of the noise level, items
_Names = list[tuple[Any, int]]  # of tasks that are measured together, with their numbers of items


def measure(
    experiment: Experiment, noise_index: int, items: np.ndarray, first: int = 0
) -> dict[str, np.ndarray]:
    """Readings of some items at one noise level, from trajectory `first` on: {variable: array
    (items, ...)}.
    """
    return next(measurements(experiment, [(None, noise_index, items)], first))[1]


def measurements(
    experiment: Experiment, tasks: Iterable[_Task], first: int = 0
) -> Iterator[tuple[Any, dict[str, np.ndarray]]]:
    """Readings of tasks `(name, noise_index, items)`: `(name, readings)` as in `measure`, in the
    order of completion.

    `first` is the first trajectory to measure; values above 0 need `Experiment.adds_trajectories`.
    """
    source, corruption, backward, _ = experiment.parts
    trajectories, groups = (
        range(first, experiment.trajectories),
        dict[int, tuple[_Names, list[_Block]]](),
    )

    def blocks() -> Iterator[tuple[tuple[int, int, int], Any, float, Streams]]:
        made, originals = np.empty(0, int), list[Any]()
        for number, (names, noise_index, items) in enumerate(_joined(experiment, tasks)):
            noise = experiment.noise[noise_index]
            # Else those of the last task, at another noise level.
            if not np.array_equal(items, made):
                drawn = source.blocks(items.copy(), experiment.seed, experiment.items)
                made, originals = items, checked_blocks(source, drawn, items)
            size = _trajectories_together(experiment, originals[0])
            parts = [
                trajectories[start : start + size] for start in range(0, len(trajectories), size)
            ]
            groups[number] = (
                names,
                [_Block(experiment, len(trajectories), len(parts), len(parts)) for _ in originals],
            )
            for k, block in enumerate(originals):
                for p, some in enumerate(parts):
                    yield (
                        (number, k, p),
                        block,
                        noise,
                        Streams(experiment.seed, block.items, noise, some),
                    )

    # One reconstruction is this share of a task; probes take the rest.
    draws = len(trajectories) * experiment.clones
    unit = 1 / ((1 + _READING) * min(experiment.chunk, experiment.items) * draws)
    with begun(0, unit=unit), noted():
        for (number, k, _), turned in u_turns(
            blocks(), corruption, backward, clones=experiment.clones
        ):
            names, of_group = groups[number]
            of_group[k].read(turned)
            del turned
            if not any(block.left for block in of_group):
                del groups[number]
                whole = {
                    name: np.concatenate([block.readings[name] for block in of_group])
                    for name in of_group[0].readings
                }
                end = 0
                for name, count in names:
                    end += count
                    add(-(1 + _READING) * draws * count)
                    yield (
                        name,
                        {variable: values[end - count : end] for variable, values in whole.items()},
                    )


@dataclass
class _Block:
    """A block of originals whose trajectories arrive in several parts, and the running readings
    of the probes.
    """

    experiment: Experiment
    trajectories: int
    parts: int
    left: int
    # State of the probes after the parts read so far.
    states: list[Any] = field(default_factory=list)
    # Of the parts read so far, bool (items, draws).
    missing: list[np.ndarray] = field(default_factory=list)
    readings: dict[str, np.ndarray] = field(default_factory=dict)  # after all parts

    def read(self, turned: UTurns) -> None:
        source, _, backward, _ = self.experiment.parts
        probes = self.experiment.parts.bound_probes
        items, declared = len(turned.originals.items), self.experiment.declared
        self.states = self.states or [None] * len(probes)
        if isinstance(backward, FromFiles):
            missing = (
                np.isnan(turned.reconstructions)
                .reshape(items, -1, turned.originals.data[0].size)
                .all(axis=2)
            )
            self.missing.append(missing)
            # Probes read the original instead, and the readings are removed below.
            if missing.any():
                filled = np.array(turned.reconstructions)
                filled[missing] = turned.originals.data[np.nonzero(missing)[0]]
                turned = replace(turned, reconstructions=filled)
        with portion(_READING * items * self.trajectories * self.experiment.clones / self.parts):
            for k, probe in enumerate(probes):
                self.states[k] = probe.accumulate(self.states[k], turned, source)
        self.left -= 1
        if self.left == 0:
            sizes = {dim: len(values) for names in declared for dim, values in names.dims.items()}
            sizes |= {"trajectory": self.trajectories, "clone": self.experiment.clones}
            for probe, names, state in zip(probes, declared, self.states, strict=True):
                self.readings |= checked_readings(
                    names.label, probe.readings(state, source), names.variables, sizes, items
                )
                if self.missing:
                    missing = np.concatenate(self.missing, axis=1).reshape(
                        items, -1, self.experiment.clones
                    )
                    self.readings |= _without(missing, self.readings, names.variables)
            self.states, self.missing = [], []


def _without(
    missing: np.ndarray, readings: Mapping[str, np.ndarray], variables: Mapping[str, Variable]
) -> dict[str, np.ndarray]:
    """Readings that are NaN where they rest on a missing reconstruction, bool (items,
    trajectories, clones).
    """
    import xarray as xr

    mask, removed = xr.DataArray(missing, dims=("item", "trajectory", "clone")), {}
    for name, variable in variables.items():
        dims = variable.dims[1:]
        if variable.twin == "original":
            continue
        # What compares a clone with the other clones rests on all of them.
        is_of_one = "clone" in dims and variable.twin != "clones"
        gone = mask if is_of_one else mask.any("clone")
        if "trajectory" not in dims:
            gone = gone.any("trajectory") & variable.pooled
        values = xr.DataArray(readings[name].astype(float), dims=dims)
        removed[name] = values.where(~gone).transpose(*dims).values
    return removed


def _trajectories_together(experiment: Experiment, originals: Any) -> int:
    """Number of trajectories of each original in memory together: all, unless all probes read
    them in parts.
    """
    source, _, backward, probes = experiment.parts
    in_parts = backward.adds_trajectories and not backward.shares_batches and not is_own(backward)
    if in_parts and all(probe.reads_in_parts for probe in probes):
        # Independent of the chunk, since the size of the parts affects rounding.
        return max(
            1,
            _PART // (np.size(originals.data[0]) * max(source.num_symbols, 1) * experiment.clones),
        )
    return experiment.trajectories


def _joined(
    experiment: Experiment, tasks: Iterable[_Task]
) -> Iterator[tuple[_Names, int, np.ndarray]]:
    """Neighbouring tasks of one noise level, joined for speed if results are bit-identical:
    `(names, noise_index, items)`.
    """
    draws = experiment.trajectories * experiment.clones
    task_bytes = (
        experiment.parts.source.item_bytes * draws * min(experiment.chunk, experiment.items)
    )
    invariant = all(
        part.batch_invariant and not is_own(part) for part in experiment.slots().values()
    )
    size = max(1, _JOINED_BYTES // task_bytes) if invariant and task_bytes else 1
    for noise_index, group in groupby(tasks, key=lambda task: task[1]):
        while some := list(islice(group, size)):
            items = np.concatenate([items for _, _, items in some])
            yield [(name, len(items)) for name, _, items in some], noise_index, items
