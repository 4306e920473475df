"""Calls of a pipeline: every original at every value of the knob with every seed, in random
order.

Each original has seeds of its own, which are the same at all values. Some calls are then made
again, three times in a row, after a call with another value: the first repetition, compared with
the third, shows memory of the call before; the other two show whether a seed repeats its output.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from uturn.core.checks import expect
from uturn.core.errors import noted
from uturn.core.files import read_array, whole_file, write_json
from uturn.core.imports import import_function
from uturn.core.progress import duration, progress_bar
from uturn.core.random import Purpose, keys
from uturn.tools.check_knob.outputs import Outputs, Repeat, checked_knobs

Turn = Callable[[np.ndarray, float, int], object]
"""The pipeline: (original, knob, seed) to an output."""
REPEATED = 12
"""Calls that are made again."""
_IN_A_ROW = 3
_TIMED = 3
"""Calls after which the time of all is told."""
_CALLS_FILE = "calls.json"
_FORM = "a function (original, knob, seed) -> output of the same shape"


class Call(NamedTuple):
    """One call, by the indices of its value, original and seed."""

    knob: int
    original: int
    seed: int
    repetition: int = 0
    """0 for the first call; above it for those made again."""


@dataclass(frozen=True)
class Plan:
    """The calls of a check."""

    knobs: np.ndarray
    originals: tuple[np.ndarray, ...]
    names: tuple[str, ...]
    seeds: int
    """Seeds of an original."""
    seed: int = 0
    """Of the order of the calls and of the seeds."""

    @property
    def numbers(self) -> np.ndarray:
        """The seeds, int64 (original, seed) below 2^31."""
        originals = np.arange(len(self.originals))[:, None]
        made = keys(self.seed, Purpose.KNOB, 0, originals, np.arange(self.seeds))
        return np.asarray(made >> np.uint64(33), np.int64)

    @property
    def first(self) -> list[Call]:
        """All values, originals and seeds, in random order."""
        shape = (len(self.knobs), len(self.originals), self.seeds)
        order = self._generator(1).permutation(int(np.prod(shape)))
        return [Call(*map(int, np.unravel_index(number, shape))) for number in order]

    @property
    def again(self) -> list[Call]:
        """The calls made again. Values take turns, so that the call before each three has another
        value.
        """
        generator = self._generator(2)
        calls = []
        for number in range(REPEATED):
            knob = 1 + number % (len(self.knobs) - 1)
            original = int(generator.integers(len(self.originals)))
            seed = int(generator.integers(self.seeds))
            repetitions = range(_IN_A_ROW * number + 1, _IN_A_ROW * (number + 1) + 1)
            calls += [Call(knob, original, seed, repetition) for repetition in repetitions]
        return calls

    def _generator(self, number: int) -> np.random.Generator:
        return np.random.default_rng(int(keys(self.seed, Purpose.KNOB, number)))

    @property
    def words(self) -> str:
        count = len(self.first) + len(self.again)
        sizes = (
            f"{len(self.originals)} originals x {len(self.knobs)} values x {self.seeds} seeds,"
            f" and {len(self.again)} again"
        )
        return f"{count} calls: {sizes}"

    @property
    def identity(self) -> dict[str, object]:
        """What outputs on disk depend on, beside the pipeline."""
        digest = hashlib.sha256()
        for original in self.originals:
            digest.update(str((original.dtype, original.shape)).encode() + original.tobytes())
        return {
            "knobs": self.knobs.tolist(),
            "seeds": self.numbers.tolist(),
            "originals": digest.hexdigest(),
        }


@dataclass(frozen=True)
class Kept:
    """Outputs that are made, in memory or in a folder KNOB/ORIGINAL/SEED.npy, as recorded outputs
    are.
    """

    plan: Plan
    folder: Path | None = None
    made: dict[Call, np.ndarray] = field(default_factory=dict)

    def open(self, pipeline: str) -> None:
        """Read what a stopped check has left; ValueError for outputs of other calls."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / _CALLS_FILE
        mine = {"function": pipeline, **self.plan.identity}
        if file.exists():
            stored = json.loads(file.read_text())
            for key, value in mine.items():
                words = "as before; choose another folder"
                expect(stored.get(key) == value, f"{self.folder}: {key}", value, words)
        else:
            write_json(file, mine)
            write_originals(self.plan, self.folder)
        for call in (*self.plan.first, *self.plan.again):
            path = self.path(call)
            if path.exists():
                self.made[call] = read_array(path)

    def add(self, call: Call, output: np.ndarray) -> None:
        self.made[call] = output
        if self.folder is None:
            return
        path = self.path(call)
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            np.save(file, output)

    def path(self, call: Call) -> Path:
        """The file of a call."""
        assert self.folder is not None
        seed = int(self.plan.numbers[call.original, call.seed])
        knob = f"{float(self.plan.knobs[call.knob])!r}"
        name = self.plan.names[call.original]
        if call.repetition:
            return self.folder / "again" / f"{call.repetition}.npy"
        return self.folder / knob / name / f"{seed}.npy"

    def outputs(self, is_descending: bool) -> Outputs:
        """All outputs."""
        plan = self.plan
        of_originals = []
        for i in range(len(plan.originals)):
            by_knob = []
            for k in range(len(plan.knobs)):
                by_knob.append([self.made[Call(k, i, s)] for s in range(plan.seeds)])
            of_originals.append(np.array(by_knob))
        repeats = []
        for number in range(0, len(plan.again), _IN_A_ROW):
            calls = plan.again[number : number + _IN_A_ROW]
            place = (calls[0].knob, calls[0].original, calls[0].seed)
            repeats.append(Repeat(place, np.array([self.made[call] for call in calls])))
        return Outputs.of(
            plan.knobs, plan.originals, of_originals, tuple(repeats), plan.names, is_descending
        )


def write_originals(plan: Plan, folder: Path) -> None:
    """Write the originals beside their outputs."""
    place = folder / "originals"
    place.mkdir(exist_ok=True)
    for name, original in zip(plan.names, plan.originals, strict=True):
        with whole_file(place / f"{name}.npy") as file:
            np.save(file, original)


def called(
    turn: Turn,
    plan: Plan,
    name: str,
    *,
    folder: Path | None = None,
    progress: bool = False,
    is_descending: bool = False,
) -> Outputs:
    """The outputs of all calls of a plan. With a `folder`, they are kept there, and a second call
    makes those that are missing.
    """
    checked_knobs(plan.knobs)
    kept = Kept(plan, folder)
    kept.open(name)
    left = [call for call in plan.first if call not in kept.made]
    again = plan.again
    if any(call not in kept.made for call in again):
        left += again
    total = len(plan.first) + len(again)
    if progress:
        print(plan.words, flush=True)
    begin = time.monotonic()
    with progress_bar(progress, "check-knob", total, total - len(left), unit="calls") as advance:
        for number, call in enumerate(left):
            kept.add(call, _output(turn, plan, call, name))
            advance()
            if progress and number + 1 == min(_TIMED, len(left)):
                seconds = (time.monotonic() - begin) / (number + 1)
                expected = duration(seconds * len(left))
                print(f"{duration(seconds)} a call, about {expected} for {len(left)}", flush=True)
    return kept.outputs(is_descending)


def _output(turn: Turn, plan: Plan, call: Call, name: str) -> np.ndarray:
    """The output of one call; ValueError unless it has the shape of its original."""
    original = plan.originals[call.original]
    knob = float(plan.knobs[call.knob])
    with noted(f"function = {name!r}"):
        made = turn(original.copy(), knob, int(plan.numbers[call.original, call.seed]))
    return as_output(made, original, f"function = {name!r} at knob {knob:g}")


def as_output(made: object, original: np.ndarray, where: str) -> np.ndarray:
    """What a function returned as an array: of numpy, torch, Pillow, or words of a text."""
    if isinstance(made, str):
        return as_words(made, len(original))
    detach = getattr(made, "detach", None)
    if detach is not None:
        made = detach().cpu().numpy()
    if hasattr(made, "getbands"):
        pixels = np.asarray(made, np.float32) / 127.5 - 1
        made = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
    output = np.asarray(made)
    expect(output.shape == original.shape, f"{where}: shape", output.shape, f"{original.shape}")
    is_finite = output.dtype.kind not in "fc" or bool(np.isfinite(output).all())
    expect(is_finite, f"{where}: result", output, "finite numbers")
    return output.astype(np.float32) if output.dtype == np.float64 else output


def as_words(text: str, length: int) -> np.ndarray:
    """The words of a text, cut or filled with empty words to a length."""
    words = text.split()[:length]
    return np.array([*words, *[""] * (length - len(words))])


def function_of(path: str) -> Turn:
    """The pipeline with an import path."""
    return import_function(path, f"function = {path!r}", f"module:function, {_FORM}", _FORM)


def names_of(originals: Sequence[np.ndarray]) -> tuple[str, ...]:
    """Names of originals by their numbers, in alphabetical order too."""
    digits = len(str(max(len(originals) - 1, 1)))
    return tuple(f"{number:0{digits}d}" for number in range(len(originals)))
