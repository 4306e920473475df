"""An experiment repeats U-turns for many originals and noise levels."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_serializer,
    model_validator,
)

from uturn.core import display
from uturn.core.checks import checked_noise, expect
from uturn.core.contracts import (
    Declared,
    bound_probe,
    checked_axes,
    checked_blocks,
    checked_coordinates,
    declared_by,
    joined,
)
from uturn.core.data import N, Noisy, O, Originals
from uturn.core.errors import noted, origin
from uturn.core.files import checked_path, read_table
from uturn.core.findings import DATA_CHECK, Finding
from uturn.core.inputs import Table, plain
from uturn.core.messages import one_line, shown, validation_words
from uturn.core.own_parts import code_digest, is_own, name_of
from uturn.core.protocols import Backward, Corruption, Part, Probe, Source
from uturn.core.registry import Slot, as_part, check_fit, table_of
from uturn.core.variables import Coordinate, Coordinates, Variable

_CHECKED = 10  # originals on which networks are checked


@dataclass(frozen=True)
class Parts(Generic[O, N]):
    """The mutually compatible parts of an experiment, for originals O and noisy data N: `source,
    corruption, backward, probes = experiment.parts`.
    """

    source: Source[O]
    given: Corruption[O, N]
    """The corruption of the spec."""
    backward: Backward[N]
    probes: list[Probe[O, N]]

    @cached_property
    def corruption(self) -> Corruption[O, N]:
        """The forward process of the backward, whose model is loaded on first use, or the given
        corruption.
        """
        forward = self.backward.forward_process(self.source, self.given)
        if forward is None:
            return self.given
        where = f"{name_of(self.backward, 'backward')}.forward_process"
        expect(isinstance(forward, Corruption), where, forward, "a uturn.Corruption, or None")
        return forward

    @cached_property
    def bound_probes(self) -> list[Probe[O, N]]:
        """The probes with what they prepare for the source, whose networks are loaded on first
        use.
        """
        return [bound_probe(probe, self.source, k) for k, probe in enumerate(self.probes)]

    def __iter__(self) -> Iterator[Any]:  # parts of four types
        yield from (self.source, self.corruption, self.backward, self.probes)


class Experiment(BaseModel):
    """Description of a U-turn experiment: plain data, so that it can be hashed, stored, resumed and
    sent elsewhere.

    Examples
    --------
    >>> import uturn as ut
    >>> source = ut.sources.RHMSource(vocab_size=8, multiplicity=2, branching=2, depth=3)
    >>> parts = {"source": source, "corruption": ut.EpsilonBelief(), "backward": ut.backward.ExactPosterior()}
    >>> experiment = ut.Experiment(**parts, probes=[ut.probes.TreeLevels()], noise=[0.0, 1.0], items=4)
    >>> experiment.to_dict()["corruption"]
    {'type': 'epsilon', 'noise': [0.0, 1.0]}
    >>> ut.run(experiment).unchanged.isel(noise=0).min().item()
    1.0
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(default=0, strict=True, ge=0, lt=2**64)
    """All randomness is keyed by (seed, item, trajectory, clone, noise level)."""
    items: int = Field(strict=True, ge=1)
    """Number of originals x0."""
    trajectories: int = Field(default=1, strict=True, ge=1)
    """Independent noisy data of each original at each noise level. The ε-process is
    deterministic: its trajectories are draws from one posterior.
    """
    clones: int = Field(default=1, strict=True, ge=1)
    """Reconstructions of each noisy datum. With several, results have the dim `clone`, and
    `clone_<name>` compares each with the others.
    """
    chunk: int = Field(default=16, strict=True, ge=1, le=2**24)
    """Items in a task, the unit of storage. A killed run loses its unfinished tasks."""
    source: Any
    """A part, or a table with its `type` and options, as `corruption`, `backward` and each of
    the `probes`. A type is a built-in name, or "module:Class" for any class with the methods of
    a protocol in `uturn.protocols`.
    """
    corruption: Any
    backward: Any
    probes: tuple[Any, ...] = Field(min_length=1)
    noise: list[float]
    """The grid of noise levels. In a table of the corruption it is the key `noise`."""

    def __init__(self, /, **spec: Any) -> None:
        spec = _with_noise(plain(spec))  # numpy arrays and numbers become lists and numbers
        try:
            super().__init__(**spec)
        except ValidationError as error:
            raise ValueError(validation_words(error)) from None
        with noted():
            self._build_parts()
            self.parts  # noqa: B018 - a ValueError unless they fit together
        try:
            json.dumps(self.to_dict())
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"spec: {one_line(error)}; expected plain data: numbers, text, lists, tables"
            ) from None

    def _build_parts(self) -> None:
        """Build the parts that are given as tables, in the place of the tables."""
        parts: Table = {}
        for role in ("source", "corruption", "backward"):
            parts[role] = as_part(role, getattr(self, role))
        parts["probes"] = tuple(
            as_part("probes", probe, index) for index, probe in enumerate(self.probes)
        )
        self.__dict__.update(parts)  # the fields are frozen

    @model_validator(mode="after")
    def _fits(self) -> Experiment:
        levels = len(self.noise)
        chunk = min(self.chunk, self.items)
        draws = self.trajectories * self.clones
        draws_of_item = "trajectories" if self.clones == 1 else "trajectories * clones"
        _check_size(
            f"chunk * {draws_of_item}",
            chunk * draws,
            2**24,
            "U-turns in a task, which are in memory together",
        )
        tasks = -(-self.items // chunk) * levels
        _check_size("items * noise levels / chunk", tasks, 2**21, "tasks, which are files")
        u_turns = self.items * draws * levels
        _check_size(f"items * {draws_of_item} * noise levels", u_turns, 2**32, "U-turns")
        return self

    @classmethod
    def from_dict(cls, spec: Mapping[str, Any]) -> Experiment:
        """The experiment of a description, tables of plain data; a ValueError names the wrong
        field.
        """
        expected = "a table with source, corruption, backward, probes, items, .."
        expect(isinstance(spec, Mapping), "spec", spec, expected)
        return cls(**spec)

    @classmethod
    def from_file(cls, path: str | Path) -> Experiment:
        """Read a description from a TOML or (by the suffix .json) JSON file; a ValueError names
        the file and the field.
        """
        path = Path(checked_path("path", path))
        try:
            spec = read_table(path)
        except FileNotFoundError:
            raise FileNotFoundError(f"cannot read the experiment {path}: no such file") from None
        except ValueError as error:  # JSONDecodeError, TOMLDecodeError, UnicodeDecodeError
            language = "JSON" if path.suffix == ".json" else "TOML"
            raise ValueError(f"{path} is not a valid {language} file: {error}") from None
        try:
            return cls.from_dict(spec)
        except ValueError as error:
            if origin(error):  # user-defined code, which the note names
                raise
            raise ValueError(f"{path}: {error}") from None

    def model_copy(
        self, *, update: Mapping[str, Any] | None = None, deep: bool = False
    ) -> Experiment:
        """The experiment with other values of some fields, checked as a new one."""
        return type(self)(**{**self.to_dict(), **(update or {})})

    def __repr__(self) -> str:
        types = [shown(table["type"]) for table in self._tables().values()]
        u_turn = " -> ".join(types[:3])
        probes = ", ".join(types[3:])
        return f"Experiment({self._sizes()};\n  {u_turn}, read by {probes})"

    __str__ = __repr__

    def _sizes(self) -> str:
        """Numbers of items, noise levels, trajectories and clones as text."""
        numbers = {
            "items": self.items,
            "noise levels": len(self.noise),
            "trajectories": self.trajectories,
            "clones": self.clones,
        }
        sizes = ", ".join(f"{name} {number}" for name, number in numbers.items())
        return f"{sizes}, seed {self.seed}"

    def _repr_html_(self) -> str:
        rows = []
        for name, table in self._tables().items():
            options = [
                f"{key} = {shown(value)}"
                for key, value in table.items()
                if key != "type" and value is not None
            ]
            rows.append((name, table["type"], ", ".join(options)))
        lowest = min(self.noise)
        highest = max(self.noise)
        u_turns = self.items * len(self.noise) * self.trajectories * self.clones
        note = f"Noise from {lowest:g} to {highest:g}; {u_turns:,} U-turns."
        shown_parts = display.table(("idea", "type", "options"), rows)
        return display.page(f"Experiment: {self._sizes()}", shown_parts, note=note)

    def _given(self) -> Table:
        probes = {f"probes[{k}]": probe for k, probe in enumerate(self.probes)}
        return {
            "source": self.source,
            "corruption": self.corruption,
            "backward": self.backward,
            **probes,
        }

    def _tables(self) -> dict[str, Table]:
        return {name: table_of(part) for name, part in self._given().items()}

    def _spec(self, tables: Mapping[str, Table]) -> Table:
        source, corruption, backward, *probes = tables.values()
        return {
            "seed": self.seed,
            "items": self.items,
            "trajectories": self.trajectories,
            "clones": self.clones,
            "chunk": self.chunk,
            "source": source,
            "corruption": {**corruption, "noise": list(self.noise)},
            "backward": backward,
            "probes": probes,
        }

    @model_serializer
    def to_dict(self) -> Table:
        """The description as plain data, without options of built-in parts that equal their
        defaults.
        """
        return self._spec(self._tables())

    def identity(self) -> Table:
        """The fields that determine the results: the spec without execution-only options such as
        the device.
        """
        parts = {str(slot): part for slot, part in self.slots().items()}
        tables = {}
        for name, table in self._tables().items():
            tables[name] = _without_execution(parts[name], table)
        return self._spec(tables)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of `identity` (hexadecimal)."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()

    @cached_property
    def parts(self) -> Parts[Originals, Noisy]:
        """Source, corruption, backward and probes as objects; ValueError unless they fit
        together.
        """
        check_fit(self.source, self.corruption, self.backward, self.probes, self.trajectories)
        source = self.source.made_by(self.backward.single_u_turn, self.seed)
        self.backward.check(source, self.corruption)
        return Parts(source, self.corruption, self.backward, list(self.probes))

    def slots(self) -> dict[Slot, Part]:
        """All parts by their places in the spec; the source is that of the run
        (`Source.made_by`).
        """
        parts = self.parts
        slots: dict[Slot, Part] = {
            Slot("source"): parts.source,
            Slot("corruption"): parts.given,
            Slot("backward"): parts.backward,
        }
        for index, probe in enumerate(parts.probes):
            slots[Slot("probes", index)] = probe
        return slots

    @cached_property
    def declared(self) -> list[Declared]:
        """The variables and coordinates that each probe declares, checked."""
        return declared_by(self.parts.bound_probes, self.parts.source, self.clones)

    def variables(self) -> dict[str, Variable]:
        """The measured variables: {name: Variable}."""
        variables: dict[str, Variable] = {}
        for declaration in self.declared:
            variables |= declaration.variables
        return variables

    def coordinates(self) -> Coordinates:
        """Coordinates of the results: {name: (dims, values, attributes)}."""
        source = self.parts.source
        corruption = self.parts.corruption
        levels = checked_noise(self.noise, corruption.max_noise)
        about_noise: Table = {"long_name": corruption.unit}
        if math.isfinite(corruption.max_noise):
            about_noise["max"] = float(corruption.max_noise)
        of_run = {
            "item": Coordinate(("item",), np.arange(self.items)),
            "trajectory": Coordinate(("trajectory",), np.arange(self.trajectories)),
        }
        if self.clones > 1:
            of_run["clone"] = Coordinate(("clone",), np.arange(self.clones))
        of_run["noise"] = Coordinate(("noise",), levels, about_noise)

        axes = checked_axes(corruption, corruption.axes(levels, source), len(levels))
        of_noise = {name: Coordinate(("noise",), *axis) for name, axis in axes.items()}
        coordinates = joined(of_run, "corruption", of_noise)

        labels = source.coordinates(self.seed, self.items)
        where = f"{name_of(source, 'source')}.coordinates"
        labels = checked_coordinates(where, labels, self.items)
        of_items = {name: Coordinate(("item",), values) for name, values in labels.items()}
        coordinates = joined(coordinates, "source", of_items)

        for declaration in self.declared:
            of_probe = {dim: Coordinate((dim,), values) for dim, values in declaration.dims.items()}
            coordinates = joined(coordinates, declaration.label, of_probe)
        for name in self.variables():
            expected = "another name, since it is that of a coordinate"
            expect(name not in coordinates, "probes: variable", name, expected)
        return coordinates

    def models(self) -> dict[str, str]:
        """Fingerprints of weights and data, and digests of the code of user-defined parts (keys
        that end in ".code").
        """
        source = self.parts.source
        identities = {str(slot): part.fingerprint() for slot, part in self.slots().items()}
        for k, probe in enumerate(self.parts.probes):
            if taken := probe.taken_from(source):
                identities[f"probes[{k}].taken_from_source"] = taken
        return identities | {
            f"{name}.code": code_digest(code) for name, code in self.own_code().items()
        }

    def own_code(self) -> dict[str, object]:
        """User-defined parts, and user-defined networks of built-in parts."""
        own: dict[str, object] = {}
        for slot, part in self.slots().items():
            code = part if is_own(part) else part.own_code()
            if code is not None:
                own[str(slot)] = code
        return own

    def model_check(self) -> list[Finding]:
        """Suspected faults of networks and images, found on the first originals, and of data
        that the backward reads.
        """
        findings = []
        backward = self.parts.backward
        doubts = backward.doubts(self)
        is_list = isinstance(doubts, Sequence) and not isinstance(doubts, str)
        expect(is_list, f"{name_of(backward, 'backward')}.doubts", doubts, "a list of sentences")
        for sentence in doubts:
            findings.append(Finding(sentence, check=DATA_CHECK))
        checks = [
            part
            for part in self.slots().values()
            if not is_own(part) and hasattr(part, "model_check")
        ]
        if checks:
            source = self.parts.source
            items = np.arange(min(_CHECKED, self.items))
            blocks = source.blocks(items.copy(), self.seed, self.items)
            originals = checked_blocks(source, blocks, items)
            for part in checks:
                findings += part.model_check(source, originals)
        return findings

    @property
    def adds_trajectories(self) -> bool:
        """Whether further trajectories can be measured separately: the backward allows it, and
        no variable pools trajectories.
        """
        backward = self.parts.backward
        if is_own(backward) or not backward.adds_trajectories:
            return False
        return not any(
            variable.pooled and "trajectory" not in variable.dims
            for variable in self.variables().values()
        )


def _check_size(quantity: str, number: int, most: int, units: str) -> None:
    expect(number <= most, quantity, number, f"at most {most} {units}; lower one of them")


def _with_noise(spec: Table) -> Table:
    """A spec with its noise levels in the field `noise`, from the table of the corruption if they
    stand there.
    """
    spec = dict(spec)
    corruption = spec.get("corruption")
    if isinstance(corruption, dict) and "noise" in corruption:
        if "noise" in spec:
            raise ValueError("give noise levels in one place, `noise` or corruption.noise")
        spec["noise"] = corruption["noise"]
        spec["corruption"] = {key: corruption[key] for key in corruption if key != "noise"}
    if "noise" in spec or isinstance(corruption, dict):
        spec["noise"] = _levels(spec.get("noise"))
    return spec


def _levels(noise: object) -> list[float]:
    levels: list[float] = []
    if isinstance(noise, list) and all(_is_number(level) for level in noise):
        with suppress(OverflowError):
            levels = [float(level) + 0.0 for level in noise]  # -0.0 is 0.0
    has_nan = any(map(math.isnan, levels))
    are_different = levels and not has_nan and len(set(levels)) == len(levels)
    expected = "a list of different numbers, at least one, none of them NaN or too large"
    expect(are_different, "corruption: noise", noise, expected)
    return levels


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _without_execution(part: Part, table: Mapping[str, Any]) -> Table:
    """The table of a part without its execution-only options; `of` is the table of a part in it."""
    fixed = {name: value for name, value in table.items() if name not in part.execution}
    inner = table.get("of")
    if isinstance(inner, Mapping):
        fixed["of"] = _without_execution(part.of, inner)  # type: ignore[attr-defined]
    return fixed


def checked_experiment(value: object) -> Experiment:
    """The argument `experiment` of a function, or a ValueError."""
    if not isinstance(value, Experiment):
        raise ValueError(
            f"experiment = {shown(value)}: expected an Experiment (Experiment.from_dict makes one)"
        )
    return value
