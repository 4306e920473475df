"""What the tests of a knob see: distances and readings of all outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from uturn.core.checks import expect
from uturn.tools.check_knob.kinds import Comparison, Form, Pairs, Reading
from uturn.tools.check_knob.outputs import Outputs

EQUAL = 1e-6
"""Distance, in units of that of two originals, up to which two data are equal."""


@dataclass(frozen=True, eq=False)
class Shift:
    """How far a reading of the outputs has moved from that of the originals."""

    reading: Reading
    values: np.ndarray
    """Mean over seeds, (knob, original): log ratios, or shifts in standard deviations."""


@dataclass(frozen=True, eq=False)
class Repeated:
    """Distances of calls made again, in units of the distance of two originals, (calls,)."""

    of_passes: np.ndarray
    """Of the first call, in random order, from the last repetition."""
    of_memory: np.ndarray
    """Of the first repetition, after a call with another value, from the last one."""
    of_seed: np.ndarray
    """Of the last two repetitions."""
    allowed: np.ndarray
    """Distances up to which calls agree."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """Distances of all outputs in units of `apart`, and readings of them."""

    knobs: np.ndarray
    """From the value that changes least on, (knob,)."""
    apart: float
    """Mean distance of two originals, in the unit of the distance."""
    change: np.ndarray
    """Distance of each output from its original, (knob, original, seed)."""
    start: int | None
    """Index of the value that should change nothing."""
    end: int | None
    """Index of the value that should forget the original."""
    apart_of_each: np.ndarray
    """Mean distance of each original from the others, (original,)."""
    from_floor: np.ndarray | None = None
    """Distance at the start from what codec or autoencoder alone give, (original, seed)."""
    twins: np.ndarray | None = None
    """Distance of the outputs of the first two seeds, (knob, original)."""
    neighbours: np.ndarray | None = None
    """Distance of the outputs at neighbouring values, (knob - 1, original, seed)."""
    shifts: tuple[Shift, ...] = ()
    repeated: Repeated | None = None
    kinds: tuple[str, ...] = ()
    """Names of the distances along the first axis of `gains` and `to_originals`."""
    gains: np.ndarray | None = None
    """At the largest change, distances of outputs of two originals with two seeds less those with
    one, (kind, original, original).
    """
    with_two: np.ndarray | None = None
    """The distances with two seeds, (kind, original, original)."""
    to_originals: np.ndarray | None = None
    """At the end, mean distance of outputs from each original, (kind, output, original)."""
    labels: np.ndarray | None = None
    """What the pipeline is told of each original, such as its class, (original,)."""

    @property
    def curve(self) -> np.ndarray:
        """Change of each original, the mean over seeds, (knob, original)."""
        return np.asarray(self.change.mean(2))

    @property
    def means(self) -> np.ndarray:
        """Mean change at each value, (knob,)."""
        return np.asarray(self.change.mean((1, 2)))

    @property
    def top(self) -> int:
        """Index of the value with the largest change."""
        return int(np.argmax(self.means))

    @property
    def inner(self) -> list[int]:
        """Indices of all values but the start, which programs treat as a special case."""
        return [k for k in range(len(self.knobs)) if k != self.start]


@dataclass(frozen=True)
class Ends:
    """The two ends of a knob."""

    start: float | None = 0.0
    """Value that should change nothing; None if there is none."""
    end: float | None = 1.0
    """Value that should forget the original; None if there is none."""

    @property
    def is_descending(self) -> bool:
        """Whether larger values change less."""
        return self.start is not None and self.end is not None and self.start > self.end


def index_of(knobs: np.ndarray, value: float | None) -> int | None:
    """Index of a value among those of the knob; None if it is not one of them."""
    if value is None:
        return None
    found = np.flatnonzero(np.isclose(knobs, value))
    return int(found[0]) if len(found) else None


def evidence_of(
    outputs: Outputs,
    comparison: Comparison,
    ends: Ends,
    floor: Sequence[np.ndarray] | None = None,
    labels: np.ndarray | None = None,
) -> Evidence:
    """All distances and readings of outputs. `floor`: the originals after codec or autoencoder
    alone, with which outputs are compared in place of the originals.
    """
    pairs = comparison.measures[0].pairs
    knobs = outputs.knobs
    base = outputs.originals if floor is None else tuple(floor)
    start = index_of(knobs, ends.start)
    end = index_of(knobs, ends.end)
    raw = _changes(pairs, outputs, outputs.originals)
    between = None
    if outputs.are_alike:
        stacked = np.stack(outputs.originals)
        between = matrix(pairs, stacked, stacked).sum(1) / (len(stacked) - 1)
        expect(between.min() > 0, "distance of two originals", 0.0, "originals that differ")
    apart = float(raw.mean((1, 2)).max()) if between is None else float(between.mean())
    expect(apart > 0, "largest mean change", apart, "outputs that change at some value")
    each = np.ones(len(base)) if between is None else between / apart
    change = raw / apart
    top = int(np.argmax(change.mean((1, 2))))
    at_start = None if start is None else _from(pairs, outputs, base, start) / apart
    twins = _twins(pairs, outputs) / apart if outputs.seeds > 1 else None
    gains = None
    with_two = None
    if outputs.are_alike and twins is not None:
        gains, with_two = _shared(comparison, outputs, top)
    return Evidence(
        knobs,
        apart,
        change,
        start,
        end,
        each,
        from_floor=at_start,
        twins=twins,
        neighbours=_neighbours(pairs, outputs) / apart,
        shifts=_shifts(comparison, outputs, base),
        repeated=_repeated(pairs, outputs, apart, twins),
        kinds=tuple(measure.name for measure in comparison.measures),
        gains=gains,
        with_two=with_two,
        to_originals=_to_originals(comparison, outputs, end),
        labels=labels,
    )


def matrix(pairs: Pairs, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distances of all data in a from all in b, (a, b)."""
    rows = [pairs(np.broadcast_to(x, (len(b), *x.shape)), b) for x in a]
    return np.array(rows)


def _flattened(of_original: np.ndarray) -> np.ndarray:
    """Outputs of an original (knob, seed, ...) as (knob * seed, ...)."""
    return of_original.reshape(-1, *of_original.shape[2:])


def _from(pairs: Pairs, outputs: Outputs, base: Sequence[np.ndarray], k: int) -> np.ndarray:
    """Distances of the outputs at a value from data, (original, seed)."""
    rows = []
    for datum, of_original in zip(base, outputs.outputs, strict=True):
        made = of_original[k]
        rows.append(pairs(np.broadcast_to(datum, made.shape), made))
    return np.array(rows)


def _changes(pairs: Pairs, outputs: Outputs, base: Sequence[np.ndarray]) -> np.ndarray:
    levels = range(len(outputs.knobs))
    return np.stack([_from(pairs, outputs, base, k) for k in levels])


def _twins(pairs: Pairs, outputs: Outputs) -> np.ndarray:
    columns = [pairs(of_original[:, 0], of_original[:, 1]) for of_original in outputs.outputs]
    return np.stack(columns, axis=1)


def _neighbours(pairs: Pairs, outputs: Outputs) -> np.ndarray:
    columns = []
    for of_original in outputs.outputs:
        form = of_original[1:].shape[:2]
        before = _flattened(of_original[:-1])
        columns.append(pairs(before, _flattened(of_original[1:])).reshape(form))
    return np.stack(columns, axis=1)


def _shifts(
    comparison: Comparison, outputs: Outputs, base: Sequence[np.ndarray]
) -> tuple[Shift, ...]:
    shifts = []
    for reading in comparison.readings:
        columns = []
        for datum, of_original in zip(base, outputs.outputs, strict=True):
            moved = reading.shifts(_flattened(of_original), datum)
            columns.append(moved.reshape(of_original.shape[:2]).mean(1))
        shifts.append(Shift(reading, np.stack(columns, axis=1)))
    return tuple(shifts)


def _repeated(
    pairs: Pairs, outputs: Outputs, apart: float, twins: np.ndarray | None
) -> Repeated | None:
    if not outputs.repeats:
        return None
    distances = []
    allowed = []
    for repeat in outputs.repeats:
        k, i, s = repeat.place
        last = repeat.outputs[2]
        calls = np.stack([outputs.outputs[i][k, s], repeat.outputs[0], repeat.outputs[1]])
        distances.append(pairs(calls, np.broadcast_to(last, calls.shape)) / apart)
        allowed.append(EQUAL + (0.01 * float(twins[k].mean()) if twins is not None else 0.0))
    first, memory, seed = np.array(distances).T
    return Repeated(first, memory, seed, np.array(allowed))


def _shared(comparison: Comparison, outputs: Outputs, top: int) -> tuple[np.ndarray, np.ndarray]:
    """`gains` and `with_two` of `Evidence`."""
    first, second = (np.stack([y[top, s] for y in outputs.outputs]) for s in (0, 1))
    others = ~np.eye(len(first), dtype=bool)
    gains = []
    with_two = []
    for measure in comparison.measures:
        apart = matrix(measure.pairs, first, second)
        two = (apart + apart.T) * others
        one = matrix(measure.pairs, first, first) + matrix(measure.pairs, second, second)
        gains.append(two - one * others)
        with_two.append(two)
    return np.array(gains), np.array(with_two)


def _to_originals(comparison: Comparison, outputs: Outputs, end: int | None) -> np.ndarray | None:
    if end is None or not outputs.are_alike:
        return None
    stacked = np.stack(outputs.originals)
    distances = []
    for measure in comparison.measures:
        of_seeds = []
        for s in range(outputs.seeds):
            made = np.stack([of_original[end, s] for of_original in outputs.outputs])
            of_seeds.append(matrix(measure.pairs, made, stacked))
        distances.append(np.mean(of_seeds, axis=0))
    return np.array(distances)


def in_words(reading: Reading, value: float) -> float:
    """A shift as it is printed: a ratio, or a number of standard deviations."""
    return float(np.exp(value)) if reading.form is Form.RATIO else value
