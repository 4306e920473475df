"""An experiment repeats U-turns for many originals and noise levels."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

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
from uturn.core.checks import checked_noise, checked_path, expect, plain
from uturn.core.contracts import (
    Declared,
    bound_probe,
    checked_axes,
    checked_blocks,
    checked_coordinates,
    declared_by,
    joined,
)
from uturn.core.errors import noted, origin
from uturn.core.files import read_table
from uturn.core.findings import DATA_CHECK, Finding
from uturn.core.messages import one_line, shown, validation_words
from uturn.core.own_parts import code_digest, is_own, name_of
from uturn.core.protocols import Backward, Corruption, Part, Probe, Source
from uturn.core.registry import Slot, as_part, check_fit, table_of
from uturn.core.variables import Coordinate, Coordinates, Variable

_CHECKED = 10  # originals on which networks are checked


@dataclass(frozen=True)
class Parts:
    """The mutually compatible parts of an experiment: `source, corruption, backward, probes =
    experiment.parts`.
    """

    source: Source
    given: Corruption
    """The corruption of the spec."""
    backward: Backward
    probes: list[Probe]

    @cached_property
    def corruption(self) -> Corruption:
        """The forward process of the backward, whose model is loaded on first use, or the given
        corruption.
        """
        forward = self.backward.forward_process(self.source, self.given)
        return self.given if forward is None else forward

    @cached_property
    def bound_probes(self) -> list[Probe]:
        """The probes with what they prepare for the source, whose networks are loaded on first
        use.
        """
        return [bound_probe(probe, self.source, k) for k, probe in enumerate(self.probes)]

    def __iter__(self) -> Iterator[Any]:
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
        spec = plain(spec)  # numpy arrays and numbers become lists and numbers
        if isinstance(table := spec.get("corruption"), dict):
            once = "noise" not in spec or "noise" not in table
            expect(
                once, "noise", spec.get("noise"), "levels in one place, here or in corruption.noise"
            )
            spec["noise"] = table.pop("noise", spec.get("noise"))
        if "noise" in spec:
            spec["noise"] = _levels(spec["noise"])
        try:
            super().__init__(**spec)
        except ValidationError as error:
            raise ValueError(validation_words(error)) from None
        with noted():
            built = {
                idea: as_part(idea, getattr(self, idea))
                for idea in ("source", "corruption", "backward")
            }
            built["probes"] = tuple(
                as_part("probes", probe, i) for i, probe in enumerate(self.probes)
            )
            self.__dict__.update(built)
            self.parts  # noqa: B018 - a ValueError unless they fit together
        try:
            json.dumps(self.to_dict())
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"spec: {one_line(error)}; expected plain data: numbers, text, lists, tables"
            ) from None

    @model_validator(mode="after")
    def _fits(self) -> Experiment:
        levels, chunk, draws = (
            len(self.noise),
            min(self.chunk, self.items),
            self.trajectories * self.clones,
        )
        of_each = "trajectories" if self.clones == 1 else "trajectories * clones"
        for what, number, most, lower in (
            (
                f"chunk * {of_each}",
                chunk * draws,
                2**24,
                "U-turns in a task, which are in memory together",
            ),
            (
                "items * noise levels / chunk",
                -(-self.items // chunk) * levels,
                2**21,
                "tasks, which are files",
            ),
            (f"items * {of_each} * noise levels", self.items * draws * levels, 2**32, "U-turns"),
        ):
            expect(number <= most, what, number, f"at most {most} {lower}; lower one of them")
        return self

    @classmethod
    def from_dict(cls, spec: Mapping[str, Any]) -> Experiment:
        """The experiment of a description, tables of plain data; a ValueError names the wrong
        field.
        """
        expect(
            isinstance(spec, Mapping),
            "spec",
            spec,
            "a table with source, corruption, backward, probes, items, ..",
        )
        return cls(**spec)

    @classmethod
    def from_file(cls, path: str | Path) -> Experiment:
        """Read a description from a TOML or (by the suffix .json) JSON file; a ValueError names
        the file and the field.
        """
        path = Path(checked_path("path", path))
        try:
            spec = read_table(path)
        except ValueError as error:  # JSONDecodeError, TOMLDecodeError, UnicodeDecodeError
            raise ValueError(
                f"{path} is not a valid {'JSON' if path.suffix == '.json' else 'TOML'} file:"
                f" {error}"
            ) from None
        try:
            return cls.from_dict(spec)
        except ValueError as error:
            if origin(error):  # user-defined code, which the note names
                raise
            raise ValueError(f"{path}: {error}") from None

    def __repr__(self) -> str:
        source, corruption, backward, *types = (
            shown(table["type"]) for table in self._tables().values()
        )
        probes = ", ".join(types)
        return (
            f"Experiment({self._sizes()};\n  {source} -> {corruption} -> {backward}, read by"
            f" {probes})"
        )

    __str__ = __repr__

    def _sizes(self) -> str:
        """Numbers of items, noise levels, trajectories and clones as text."""
        numbers = {
            "items": self.items,
            "noise levels": len(self.noise),
            "trajectories": self.trajectories,
            "clones": self.clones,
        }
        return (
            ", ".join(f"{name} {number}" for name, number in numbers.items())
            + f", seed {self.seed}"
        )

    def _repr_html_(self) -> str:
        def options(table: Mapping[str, Any]) -> str:
            return ", ".join(
                f"{key} = {shown(value)}"
                for key, value in table.items()
                if key != "type" and value is not None
            )

        rows = [(name, table["type"], options(table)) for name, table in self._tables().items()]
        lowest, highest = min(self.noise), max(self.noise)
        u_turns = self.items * len(self.noise) * self.trajectories * self.clones
        note = f"Noise from {lowest:g} to {highest:g}; {u_turns:,} U-turns."
        table = display.table(("idea", "type", "options"), rows)
        return display.page(f"Experiment: {self._sizes()}", table, note=note)

    def _given(self) -> dict[str, Any]:
        probes = {f"probes[{k}]": probe for k, probe in enumerate(self.probes)}
        return {
            "source": self.source,
            "corruption": self.corruption,
            "backward": self.backward,
            **probes,
        }

    def _tables(self) -> dict[str, dict[str, Any]]:
        return {name: table_of(part) for name, part in self._given().items()}

    def _spec(self, tables: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        sizes = {
            name: getattr(self, name)
            for name in ("seed", "items", "trajectories", "clones", "chunk")
        }
        source, corruption, backward, *probes = tables.values()
        corruption = {**corruption, "noise": list(self.noise)}
        return {
            **sizes,
            "source": source,
            "corruption": corruption,
            "backward": backward,
            "probes": probes,
        }

    @model_serializer
    def to_dict(self) -> dict[str, Any]:
        """The description as plain data, without options of built-in parts that equal their
        defaults.
        """
        return self._spec(self._tables())

    def identity(self) -> dict[str, Any]:
        """The fields that determine the results: the spec without execution-only options such as
        the device.
        """

        def fixed(part: Any, table: Mapping[str, Any]) -> dict[str, Any]:
            inner = (
                {"of": fixed(part.of, table["of"])} if isinstance(table.get("of"), Mapping) else {}
            )
            return {
                name: value for name, value in table.items() if name not in part.execution
            } | inner

        parts = {str(slot): part for slot, part in self.slots().items()}
        return self._spec(
            {name: fixed(parts[name], table) for name, table in self._tables().items()}
        )

    @cached_property
    def hash(self) -> str:
        """SHA-256 of `identity` (hexadecimal)."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()

    @cached_property
    def parts(self) -> Parts:
        """Source, corruption, backward and probes as objects; ValueError unless they fit
        together.
        """
        check_fit(self.source, self.corruption, self.backward, self.probes, self.trajectories)
        source = self.source.made_by(self.backward, self.seed)
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
        return {
            name: variable
            for declared in self.declared
            for name, variable in declared.variables.items()
        }

    def coordinates(self) -> Coordinates:
        """Coordinates of the results: {name: (dims, values, attributes)}."""
        source, corruption = self.parts.source, self.parts.corruption
        levels = checked_noise(self.noise, corruption.max_noise)
        end = {"max": float(corruption.max_noise)} if math.isfinite(corruption.max_noise) else {}
        coordinates: Coordinates = {
            "item": Coordinate(("item",), np.arange(self.items)),
            "trajectory": Coordinate(("trajectory",), np.arange(self.trajectories)),
            **(
                {"clone": Coordinate(("clone",), np.arange(self.clones))} if self.clones > 1 else {}
            ),
            "noise": Coordinate(("noise",), levels, {"long_name": corruption.unit, **end}),
        }
        axes = checked_axes(corruption, corruption.axes(levels, source), len(levels))
        labels = source.coordinates(self.seed, self.items)
        items = checked_coordinates(f"{name_of(source, 'source')}.coordinates", labels, self.items)
        coordinates = joined(
            coordinates,
            "corruption",
            {name: Coordinate(("noise",), *axis) for name, axis in axes.items()},
        )
        coordinates = joined(
            coordinates,
            "source",
            {name: Coordinate(("item",), values) for name, values in items.items()},
        )
        for label, _, dims in self.declared:
            coordinates = joined(
                coordinates,
                label,
                {dim: Coordinate((dim,), values) for dim, values in dims.items()},
            )
        for name in self.variables():
            expect(
                name not in coordinates,
                "probes: variable",
                name,
                "another name, since it is that of a coordinate",
            )
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

    def own_code(self) -> dict[str, Any]:
        """User-defined parts, and user-defined networks of built-in parts."""
        own = {
            str(slot): part if is_own(part) else part.own_code()
            for slot, part in self.slots().items()
        }
        return {name: code for name, code in own.items() if code is not None}

    def model_check(self) -> list[Finding]:
        """Suspected faults of networks and images, found on the first originals, and of data
        that the backward reads.
        """
        source = self.parts.source
        checks = [
            part
            for part in self.slots().values()
            if not is_own(part) and hasattr(part, "model_check")
        ]
        items = np.arange(min(_CHECKED, self.items) if checks else 0)
        originals = (
            checked_blocks(source, source.blocks(items.copy(), self.seed, self.items), items)
            if checks
            else []
        )
        findings = [
            Finding(sentence, check=DATA_CHECK) for sentence in self.parts.backward.doubts(self)
        ]
        for part in checks:
            findings += part.model_check(source, originals)
        return findings

    @property
    def adds_trajectories(self) -> bool:
        """Whether further trajectories can be measured separately: the backward allows it, and
        no variable pools trajectories.
        """
        pooled = any(
            "trajectory" not in variable.dims and variable.pooled
            for variable in self.variables().values()
        )
        return (
            self.parts.backward.adds_trajectories and not is_own(self.parts.backward) and not pooled
        )


def _levels(noise: Any) -> list[float]:
    levels: list[float] = []
    if isinstance(noise, list) and all(
        isinstance(x, int | float) and not isinstance(x, bool) for x in noise
    ):
        with suppress(OverflowError):
            levels = [float(x) + 0.0 for x in noise]  # -0.0 is 0.0
    distinct = levels and not any(map(math.isnan, levels)) and len(set(levels)) == len(levels)
    expect(
        distinct,
        "corruption: noise",
        noise,
        "a list of different numbers, at least one, none of them NaN or too large",
    )
    return levels


def checked_experiment(value: Any) -> Experiment:
    """The argument `experiment` of a function, or a ValueError."""
    if not isinstance(value, Experiment):
        raise ValueError(
            f"experiment = {shown(value)}: expected an Experiment (Experiment.from_dict makes one)"
        )
    return value
