"""A short trial of an experiment before its run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from uturn.core.contracts import checked_blocks
from uturn.core.experiment import Experiment
from uturn.core.messages import shown
from uturn.core.own_parts import is_own, name_of
from uturn.core.random import Streams
from uturn.core.u_turns import u_turn
from uturn.engine.measuring import measure


def check(experiment: Experiment) -> Iterator[str]:
    """Measure two items of an experiment at the first and the last noise level; yields a line for
    each check that passed.

    ValueError if a part lacks a member or returns data of a wrong kind or shape, if the readings of
    an item depend on its batch or on earlier measurements, or if clone 0 depends on the number of
    clones. Nothing is stored.
    """
    experiment = Experiment.from_dict(experiment.to_dict())
    for slot, part in experiment.slots().items():
        yield f"{name_of(part, f'{slot} ({type(part).__name__})')}: was built"
    coordinates = experiment.coordinates()
    for name, variable in experiment.variables().items():
        sizes = ", ".join(f"{dim} {len(coordinates[dim][1])}" for dim in variable.dims)
        yield f"measured: {name} ({sizes}): {variable.long_name}"
    recorded = ", ".join(sorted(name for name, digest in experiment.models().items() if digest))
    experiment.parts.backward.describe()
    dict(experiment.parts.source.skipped(experiment.items))
    yield from map(str, experiment.model_check())
    if recorded:
        yield f"a store is resumed only with the same weights, data and code of: {recorded}"
    items = np.arange(min(2, experiment.items))
    empty = set(experiment.variables())
    for level in sorted({0, len(experiment.noise) - 1}):
        noise = experiment.noise[level]
        together = measure(experiment, level, items)
        for item in items:
            alone = measure(experiment, level, items[item : item + 1])
            for name, values in together.items():
                if not np.allclose(
                    values[item], alone[name][0], rtol=1e-3, atol=1e-4, equal_nan=True
                ):
                    raise ValueError(
                        f"{name} of item {item} at noise {noise:g} is"
                        f" {shown(values[item].tolist())} in a batch of {len(items)},"
                        f" {shown(alone[name][0].tolist())} by itself; draw random numbers from one"
                        " stream an item, trajectory and noise level (uturn.random.keys)"
                    )
        if is_own(experiment.parts.backward):
            _check_clones(experiment, level, items)
        there = {name: values[np.isfinite(values)] for name, values in together.items()}
        empty -= {name for name, values in there.items() if values.size}
        means = ", ".join(
            f"{name} {values.mean(dtype=float) if values.size else np.nan:.3g}"
            for name, values in there.items()
        )
        yield f"noise {noise:g}: means over items {items.tolist()}: {means}"
    for name in sorted(empty):
        yield f"warning: all readings of {name} are NaN"


def _check_clones(experiment: Experiment, level: int, items: np.ndarray) -> None:
    """ValueError if a backward gives other reconstructions as clone 0 with two clones than with
    one.
    """
    source, corruption, backward, _ = experiment.parts
    for originals in checked_blocks(
        source, source.blocks(items.copy(), experiment.seed, experiment.items), items
    ):
        streams = Streams(
            experiment.seed,
            originals.items,
            experiment.noise[level],
            range(experiment.trajectories),
        )
        one, two = (
            u_turn(
                originals, corruption, backward, streams.noise, streams, clones=n
            ).reconstructions
            for n in (1, 2)
        )
        pairs = [(one[key], two[key]) for key in one] if isinstance(one, Mapping) else [(one, two)]
        for alone, first in ((np.asarray(a), np.asarray(b)[:, ::2]) for a, b in pairs):
            if (
                alone.size
                and np.isclose(first, alone, rtol=1e-3, atol=1e-4, equal_nan=True).mean() < 0.95
            ):
                raise ValueError(
                    f"{name_of(backward, 'backward')}.reconstruct: clone 0 of 2 is not the"
                    " reconstruction with fewer clones; draw each clone from a stream of its own,"
                    " streams.keys(purpose, clones)"
                )
