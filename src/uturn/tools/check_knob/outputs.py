"""The outputs of a pipeline at several values of its knob."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from uturn.core.checks import expect
from uturn.core.messages import counted


@dataclass(frozen=True, eq=False)
class Repeat:
    """One call that was made again, three times in a row, after a call with another value."""

    place: tuple[int, int, int]
    """Indices of the value, the original and the seed."""
    outputs: np.ndarray
    """The three outputs, (3, ...)."""


@dataclass(frozen=True, eq=False)
class Outputs:
    """Originals, and what a pipeline made of them at several values of its knob."""

    knobs: np.ndarray
    """Values of the knob from the one that changes least on, float64 (knob,)."""
    originals: tuple[np.ndarray, ...]
    """Data (...). Their shapes may differ, as those of proteins do."""
    outputs: tuple[np.ndarray, ...]
    """Of each original, (knob, seed, ...)."""
    names: tuple[str, ...]
    """Of the originals."""
    repeats: tuple[Repeat, ...] = ()
    """Calls made again; none if the outputs were recorded."""

    @property
    def seeds(self) -> int:
        """Number of outputs of an original at a value."""
        return int(self.outputs[0].shape[1])

    @property
    def are_alike(self) -> bool:
        """Whether all originals have one shape, so that they can be compared with each other."""
        return len({original.shape for original in self.originals}) == 1

    @classmethod
    def of(
        cls,
        knobs: Sequence[float] | np.ndarray,
        originals: Sequence[np.ndarray] | np.ndarray,
        outputs: np.ndarray | Sequence[np.ndarray],
        repeats: tuple[Repeat, ...] = (),
        names: Sequence[str] | None = None,
        is_descending: bool = False,
    ) -> Outputs:
        """Outputs (knob, original, seed, ...), or of each original (knob, seed, ...); ValueError
        for wrong shapes and numbers that are not finite.
        """
        values = checked_knobs(knobs)
        data = tuple(np.asarray(original) for original in originals)
        expect(len(data) > 0, "originals", 0, "at least 13 data")
        if isinstance(outputs, np.ndarray):
            form = outputs.shape[:2] + outputs.shape[3:]
            expected = (len(values), len(data), *data[0].shape)
            words = (
                f"{expected}: knob, original, then the axes of a datum; seeds are the third axis"
            )
            expect(form == expected, "shape of outputs without seeds", form, words)
            outputs = [outputs[:, i] for i in range(len(data))]
        made = tuple(np.asarray(of_original) for of_original in outputs)
        labels = tuple(names or map(str, range(len(data))))
        expect(len(made) == len(data), "originals with outputs", len(made), f"{len(data)}")
        for name, original, of_original in zip(labels, data, made, strict=True):
            _check(name, original, of_original, len(values))
        order = np.argsort(-values if is_descending else values)
        ranks = np.argsort(order)
        moved = [Repeat((int(ranks[r.place[0]]), *r.place[1:]), r.outputs) for r in repeats]
        ordered = tuple(of_original[order] for of_original in made)
        return cls(values[order], data, ordered, labels, tuple(moved))


def _check(name: str, original: np.ndarray, outputs: np.ndarray, levels: int) -> None:
    """ValueError for outputs that are no data of the shape of their original."""
    form = outputs.shape[:1] + outputs.shape[2:]
    expected = (levels, *original.shape)
    where = f"original {name}: shape of its outputs"
    way_out = f"{expected[1:]} at each of {levels} values, the shape of the original"
    expect(form == expected and outputs.ndim > 1, where, form[1:], way_out)
    expect(outputs.shape[1] >= 1, f"original {name}: seeds", 0, "at least one")
    for what, data in (("original", original), ("outputs of original", outputs)):
        is_finite = data.dtype.kind not in "fc" or bool(np.isfinite(data).all())
        expect(is_finite, f"{what} {name}", "not finite", "numbers without NaN and infinity")


def checked_knobs(knobs: Sequence[float] | np.ndarray) -> np.ndarray:
    """Values of a knob as float64; ValueError for fewer than three, equal and other ones."""
    try:
        values = np.asarray(knobs, float)
    except (TypeError, ValueError):
        raise ValueError(f"knobs = {knobs!r}: expected numbers such as 0, .1, .5, 1") from None
    is_list = values.ndim == 1 and bool(np.isfinite(values).all())
    expect(is_list, "knobs", knobs, "a list of finite numbers")
    different = len(np.unique(values))
    few = f"three or more different values; a curve of {counted(different, 'value')} has no shape"
    expect(different == len(values) > 2, "knobs", values.tolist(), few)
    return values
