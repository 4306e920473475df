"""Measures the tasks of an experiment: U-turns of some items at one noise level, read by all probes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import groupby, islice
from typing import Any

import numpy as np

from uturn.core.contracts import checked_blocks, checked_readings, checked_stream, observed
from uturn.core.experiment import Experiment, u_turn
from uturn.core.own_parts import SLIPS, is_own, misfits_named
from uturn.core.progress import begun, part, steps
from uturn.core.protocols import UTurns
from uturn.core.random import Streams

_JOINED_BYTES = 2**24  # noisy data of tasks that are measured together
_RECONSTRUCTED = 0.8  # share of a U-turn that is done before the probes read it, for progress
_PART = 2**20  # numbers of the noisy data of one original in memory together, where trajectories are read in parts

_Task = tuple[Any, int, np.ndarray]  # name, index of the noise level, items


def measure(experiment: Experiment, noise_index: int, items: np.ndarray, first: int = 0) -> dict[str, np.ndarray]:
    """Readings of some items at one noise level, from trajectory `first` on: {variable: array (items, ...)}."""
    return next(measurements(experiment, [(None, noise_index, items)], first))[1]


def measurements(experiment: Experiment, tasks: Iterable[_Task], first: int = 0) -> Iterator[tuple[Any, dict[str, np.ndarray]]]:
    """Readings of tasks `(name, noise_index, items)`: `(name, readings)` as in `measure`, in the order of completion.

    `first` is the first trajectory to measure; values above 0 need `Experiment.adds_trajectories`.
    """
    shared = experiment.parts.backward.shares_batches
    u_turns = _shared_u_turns if shared else _u_turns
    with misfits_named("a U-turn", None, experiment.parts[:3], SLIPS):
        for names, found in u_turns(experiment, _joined(experiment, tasks), range(first, experiment.trajectories)):
            with begun(len(names), done=_RECONSTRUCTED * len(names) if shared else 0) as work:
                readings, start = _read(experiment, found, experiment.trajectories - first), 0
                for name, count in names:
                    work.finished(1)
                    yield name, {variable: values[start : start + count] for variable, values in readings.items()}
                    start += count


def tasks_together(experiment: Experiment) -> int:
    """How many neighbouring tasks of one noise level are measured together in a process."""
    source, draws = experiment.parts.source, experiment.trajectories * experiment.clones
    task_bytes = source.item_bytes * draws * min(experiment.chunk, experiment.items)
    invariant = all(part.batch_invariant and not is_own(part) for _, part in experiment.labelled())
    return max(1, _JOINED_BYTES // task_bytes) if invariant and task_bytes else 1


def trajectories_together(experiment: Experiment, originals: Any) -> int:
    """How many trajectories of each original are in memory together: all, unless all probes read them in parts."""
    source, _, backward, probes = experiment.parts
    if backward.adds_trajectories and not is_own(backward) and all(probe.reads_in_parts for probe in probes):
        # The same for every chunk, since other parts would change the rounding.
        return max(1, _PART // (np.size(originals.data[0]) * max(source.num_symbols, 1) * experiment.clones))
    return experiment.trajectories


def _joined(experiment: Experiment, tasks: Iterable[_Task]) -> Iterator[tuple[tuple[tuple[Any, int], ...], int, np.ndarray]]:
    """Neighbouring tasks of one noise level, joined where that changes no bit: `(((name, count), ..), noise_index, items)`.

    Many small tasks are faster together. They are joined up to 16 MB of noisy data, each counted once for every clone.
    """
    size = tasks_together(experiment)
    for noise_index, group in groupby(tasks, key=lambda task: task[1]):
        while some := list(islice(group, size)):
            items = np.concatenate([items for _, _, items in some])
            yield tuple((name, len(items)) for name, _, items in some), noise_index, items


def _u_turns(
    experiment: Experiment, tasks: Iterable[_Task], trajectories: range
) -> Iterator[tuple[Any, Iterable[Iterable[UTurns]]]]:
    """U-turns of one task after the other, block by block, each block in one or more parts of its trajectories."""
    for name, noise_index, items in tasks:
        of_block = partial(_u_turns_of_block, experiment, noise=experiment.noise[noise_index], trajectories=trajectories)
        yield name, map(of_block, steps(_blocks(experiment, items)))


def _u_turns_of_block(experiment: Experiment, originals: Any, noise: float, trajectories: range) -> Iterator[UTurns]:
    source, corruption, backward, _ = experiment.parts
    size = trajectories_together(experiment, originals)
    for start in steps(range(0, len(trajectories), size)):
        streams = Streams(experiment.seed, originals.items, noise, trajectories[start : start + size])
        with part(_RECONSTRUCTED), misfits_named("backward.reconstruct", backward, (source, corruption)):
            found = u_turn(originals, corruption, backward, noise, streams, clones=experiment.clones)
        yield found


def _shared_u_turns(
    experiment: Experiment, tasks: Iterable[_Task], trajectories: range
) -> Iterator[tuple[Any, Iterable[list[UTurns]]]]:
    """U-turns of tasks in the order of completion, for a backward that reconstructs the batches of all tasks together."""
    clones, corruption = experiment.clones, experiment.parts.corruption
    pending: dict[int, list[Any]] = {}  # U-turns of the blocks of each unfinished task, with reconstructions where done

    def batches() -> Iterator[tuple[Any, Any, Streams]]:
        for number, (name, noise_index, items) in enumerate(tasks):
            noise, blocks = experiment.noise[noise_index], _blocks(experiment, items)
            pending[number] = [None] * len(blocks)
            for k, originals in enumerate(blocks):
                streams = Streams(experiment.seed, originals.items, noise, trajectories)
                noisy = observed(originals, corruption, noise, streams)
                pending[number][k] = UTurns(originals, noisy, None, clones)
                yield (number, k, name), noisy, streams

    # Images of many tasks are in the network at once; each of them is an equal part of a task.
    draws = len(trajectories) * clones
    unit = _RECONSTRUCTED / (min(experiment.chunk, experiment.items) * draws)
    with begun(0, unit=unit) as work:
        for (number, k, name), reconstructions in checked_stream(experiment.parts.backward, batches(), clones):
            known = pending[number]
            known[k] = replace(known[k], reconstructions=reconstructions)
            if all(u_turns is not None and u_turns.reconstructions is not None for u_turns in known):
                work.finished(unit * draws * sum(count for _, count in name))
                yield name, steps([[u_turns] for u_turns in pending.pop(number)])


def _blocks(experiment: Experiment, items: np.ndarray) -> list[Any]:
    source = experiment.parts.source
    return checked_blocks(source, source.blocks(items.copy(), experiment.seed, experiment.items), items)


def _read(experiment: Experiment, blocks: Iterable[Iterable[UTurns]], trajectories: int) -> dict[str, np.ndarray]:
    """Readings of all probes from the U-turns of a task, given block by block: {variable: array (items, ...)}."""
    source, _, backward, probes = experiment.parts
    sizes = {dim: len(values) for one in experiment.declared for dim, values in one.dims.items()}
    sizes |= {"trajectory": trajectories, "clone": experiment.clones}
    found = []
    for parts in blocks:
        kept: list[Any] = [None] * len(probes)
        for u_turns in parts:
            items = len(u_turns.originals.items)
            for k, (probe, one) in steps(list(enumerate(zip(probes, experiment.declared, strict=True)))):
                with misfits_named(f"{one.label}.read", probe, (source, backward)):
                    kept[k] = probe.accumulate(kept[k], u_turns, source)
        readings: dict[str, np.ndarray] = {}
        for probe, one, value in zip(probes, experiment.declared, kept, strict=True):
            given = probe.readings(value, source)
            readings |= checked_readings(one.label, given, one.variables, sizes, items)
        found.append(readings)
    return {name: np.concatenate([piece[name] for piece in found]) for name in found[0]}
