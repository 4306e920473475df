"""An experiment in one sentence, and its run: source, corruption, backward, probes, noise levels, items, a seed."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from uturn.checks import checked_folder, checked_integer, checked_noise, checked_path, one_line, plain, shown
from uturn.corruption import CORRUPTIONS
from uturn.files import locked_folder
from uturn.parts import (
    STRING_CHANNEL,
    build,
    checked_blocks,
    checked_dims,
    checked_item_coordinates,
    checked_noise_coordinates,
    checked_readings,
    checked_stream,
    checked_text,
    checked_u_turns,
    checked_variables,
    code_digest,
    is_own,
    misfits_named,
    missing_members_named,
    validation_words,
)
from uturn.processes import cores, in_processes
from uturn.progress import progress_bar
from uturn.sources import RHMSource, _VectorSource
from uturn.sources.images import ImageSource
from uturn.store import Store, Task, Variable

if TYPE_CHECKING:
    import xarray as xr


_log = logging.getLogger("uturn")


class Experiment(BaseModel):
    """Description of a U-turn experiment: plain data, so that it can be hashed, stored, resumed and sent elsewhere.

    Attributes
    ----------
    source, corruption, backward : table with a `type`, and its options
        `corruption` holds the grid `noise` too. A type is a built-in name, or "module:Class" for any class with the methods of
        the protocols `uturn.sources.Source`, `uturn.corruption.Corruption`, `uturn.backward.Backward`,
        `uturn.probes.Probe`; the other keys of its table are its arguments.
    probes : list of such tables
    items : int
        Number of originals x0.
    trajectories : int
        U-turns of each original at each noise level.
    chunk : int
        Items a task: what is stored at once. A killed run loses the tasks in flight: one for each process, and for diffusion
        models those of the images in the network.
    seed : int
        All randomness is keyed by (seed, item, trajectory, noise level).

    Examples
    --------
    >>> experiment = Experiment.from_dict({
    ...     "items": 4,
    ...     "source": {"type": "rhm", "vocab_size": 8, "multiplicity": 2, "branching": 2, "depth": 3},
    ...     "corruption": {"type": "epsilon", "noise": [0.0, 1.0]},
    ...     "backward": {"type": "exact"},
    ...     "probes": [{"type": "tree_levels"}],
    ... })
    >>> run(experiment).unchanged.isel(noise=0).min().item()
    1.0
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(default=0, strict=True, ge=0, lt=2**64)
    items: int = Field(strict=True, ge=1)
    trajectories: int = Field(default=1, strict=True, ge=1)
    chunk: int = Field(default=16, strict=True, ge=1)
    source: dict[str, Any]
    corruption: dict[str, Any]
    backward: dict[str, Any]
    probes: tuple[dict[str, Any], ...] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, spec: Any) -> Any:
        return plain(spec)  # arrays and numbers of numpy are as good as lists and numbers

    @field_validator("corruption")
    @classmethod
    def _has_levels(cls, table: dict[str, Any]) -> dict[str, Any]:
        noise = table.get("noise")
        levels: list[float] = []
        if isinstance(noise, list | tuple) and all(isinstance(x, int | float) and not isinstance(x, bool) for x in noise):
            with suppress(OverflowError):
                levels = [float(x) for x in noise]
        if not levels or any(map(math.isnan, levels)) or len(set(levels)) < len(levels):
            raise ValueError(
                f"noise = {shown(noise)}: expected a list of different numbers, at least one, none of them NaN or too large"
            )
        return {**table, "noise": levels}

    @model_validator(mode="after")
    def _fits(self) -> Experiment:
        levels, chunk = len(self.corruption["noise"]), min(self.chunk, self.items)
        for what, number, most, lower in (
            ("chunk * trajectories", chunk * self.trajectories, 2**24, "U-turns in a task, which are in memory together"),
            ("items * noise levels / chunk", -(-self.items // chunk) * levels, 2**24, "tasks, which are files"),
            ("items * trajectories * noise levels", self.items * self.trajectories * levels, 2**32, "U-turns"),
        ):
            if number > most:
                raise ValueError(f"{what} = {shown(number)}: expected at most {most} {lower}; lower one of them")
        return self

    @classmethod
    def from_dict(cls, spec: Mapping[str, Any]) -> Experiment:
        """Check a description and fill in its defaults; ValueError that names what is wrong with it."""
        if not isinstance(spec, Mapping):
            raise ValueError(f"spec = {shown(spec)}: expected a table with source, corruption, backward, probes, items, ..")
        try:
            experiment = cls.model_validate(dict(spec))
        except ValidationError as error:
            raise ValueError(validation_words(error)) from None
        try:
            json.dumps(experiment.to_dict())
        except (TypeError, ValueError) as error:
            raise ValueError(f"spec: {one_line(error)}; expected plain data: numbers, text, lists, tables") from None
        return experiment.model_copy(update=experiment._normalised())

    @classmethod
    def from_file(cls, path: str | Path) -> Experiment:
        """Read a description from a TOML or JSON file."""
        path = Path(checked_path("path", path))
        try:
            text = path.read_text(encoding="utf-8")
            spec = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        except OSError as error:
            raise ValueError(f"cannot read the spec {path}: {error.strerror or error}") from None
        except ValueError as error:  # JSONDecodeError, TOMLDecodeError, UnicodeDecodeError
            raise ValueError(f"{path} is not a valid {'JSON' if path.suffix == '.json' else 'TOML'} file: {error}") from None
        try:
            return cls.from_dict(spec)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """The full description, defaults filled in."""
        return self.model_dump(mode="python") | {"probes": list(self.probes)}

    def identity(self) -> dict[str, Any]:
        """What the results depend on: the description without options that say only how they are computed (the device, ..)."""
        source, corruption, backward, probes = self.parts
        spec = self.to_dict()

        def kept(part: Any, table: dict[str, Any]) -> dict[str, Any]:
            return {key: value for key, value in table.items() if key not in getattr(part, "execution", ())}

        spec["source"], spec["corruption"] = kept(source, spec["source"]), kept(corruption, spec["corruption"])
        spec["backward"] = kept(backward, spec["backward"])
        spec["probes"] = [kept(probe, table) for probe, table in zip(probes, spec["probes"], strict=True)]
        return spec

    @cached_property
    def hash(self) -> str:
        """SHA-256 of `identity` (hexadecimal)."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()

    # -- the objects described -----------------------------------------------------------------------------------
    @cached_property
    def noise(self) -> list[float]:
        """The grid of noise levels."""
        return list(self.corruption["noise"])

    @cached_property
    def parts(self) -> tuple[Any, Any, Any, list[Any]]:
        """(source, corruption, backward, probes) as objects."""
        return (
            build("source", self.source),
            build("corruption", {k: v for k, v in self.corruption.items() if k != "noise"}),
            build("backward", self.backward),
            [build(f"probes[{i}]", probe) for i, probe in enumerate(self.probes)],
        )

    def labelled(self) -> list[tuple[str, Any]]:
        """All parts with their names in the spec."""
        source, corruption, backward, probes = self.parts
        named = [(f"probes[{i}]", probe) for i, probe in enumerate(probes)]
        return [("backward", backward), *named, ("source", source), ("corruption", corruption)]

    def _normalised(self) -> dict[str, Any]:
        """Tables with the defaults of the built-in types filled in; also checks that the parts fit together."""
        source, corruption, backward, probes = self.parts
        images = isinstance(source, ImageSource)
        if isinstance(source, RHMSource | ImageSource | _VectorSource):
            scored = self.backward["type"] == "score"  # strings with the forward process of a scheduler
            kind = "images" if images else "strings, backward 'score'" if scored else "strings"
            allowed = {
                "corruption": ["diffusion"] if images or scored else [name for name in CORRUPTIONS if name != "diffusion"],
                "backward": ["diffusion"] if images else ["exact", "denoiser", "score"],
                "probes": ["network_layers", "images"] if images else ["tree_levels", "messages", "network_layers"],
            }
            if isinstance(source, _VectorSource):
                kind = "vectors"
                allowed = {"corruption": ["gaussian"], "backward": ["exact"], "probes": ["network_layers", "scales"]}
            tables = [("corruption", self.corruption), ("backward", self.backward), *(("probes", probe) for probe in self.probes)]
            for name, table in tables:
                if ":" not in table["type"] and table["type"] not in allowed[name]:
                    raise ValueError(f"{name}: type {table['type']!r} does not go with {kind}; expected one of {allowed[name]}")
        if is_own(corruption) and self.backward["type"] in ("exact", "denoiser"):
            lacks = [member for member in STRING_CHANNEL if not hasattr(corruption, member)]
            if lacks:
                raise ValueError(f"{corruption!r} has no {lacks[0]!r}, which the backward {self.backward['type']!r} asks for")

        def full(part: Any, table: dict[str, Any]) -> dict[str, Any]:
            return part.model_dump(mode="json") if isinstance(part, BaseModel) and not is_own(part) else table

        return {
            "source": full(source, self.source),
            "corruption": {**full(corruption, self.corruption), "noise": self.noise},
            "backward": full(backward, self.backward),
            "probes": tuple(full(part, table) for part, table in zip(probes, self.probes, strict=True)),
        }

    @cached_property
    def _declared(self) -> list[tuple[str, dict[str, Variable], dict[str, np.ndarray]]]:
        """Of every probe: its name in messages, its variables, and the values along its dims; checked."""
        source, _, _, probes = self.parts
        found, taken = [], set()
        with missing_members_named(self.labelled()):
            for i, probe in enumerate(probes):
                label = repr(probe) if is_own(probe) else f"probes[{i}]"
                dims = checked_dims(label, probe.coordinates(source))
                variables = checked_variables(label, probe.variables(source), dims)
                for name in variables:
                    if name in taken:
                        raise ValueError(f"probes: two of them measure {name!r}; drop one, or put it in an experiment of its own")
                taken |= set(variables)
                found.append((label, variables, dims))
        return found

    def variables(self) -> dict[str, Variable]:
        """What the run measures: {name: Variable}."""
        return {name: variable for _, variables, _ in self._declared for name, variable in variables.items()}

    def coordinates(self) -> dict[str, tuple[tuple[str, ...], Any, dict[str, Any]]]:
        """Coordinates of the results: {name: (dims, values, attributes)}."""
        source, corruption, backward, _ = self.parts
        with missing_members_named(self.labelled()):
            levels = backward.noise_coordinates(corruption, self.noise, source)
            items = checked_item_coordinates(source, source.coordinates(self.seed, self.items), self.items)
        if is_own(backward):
            checked_noise(self.noise, corruption.max_noise)
        levels = checked_noise_coordinates(backward, levels, self.noise)
        found: dict[str, tuple[tuple[str, ...], Any, dict[str, Any]]] = {
            "item": (("item",), np.arange(self.items), {}),
            "trajectory": (("trajectory",), np.arange(self.trajectories), {}),
        }
        groups: list[tuple[str, dict[str, Any]]] = [
            ("backward", {name: (("noise",), values, attrs) for name, (values, attrs) in levels.items()}),
            ("source", {name: (("item",), values, {}) for name, values in items.items()}),
            *((label, {dim: ((dim,), values, {}) for dim, values in dims.items()}) for label, _, dims in self._declared),
        ]
        for label, group in groups:
            for name, entry in group.items():
                if name in found and not (found[name][0] == entry[0] and np.array_equal(found[name][1], entry[1])):
                    raise ValueError(f"{label}: the coordinate {name!r} is there already, with other values; choose another name")
                found[name] = entry
        for name in self.variables():
            if name in found:
                raise ValueError(f"probes: the variable {name!r} has the name of a coordinate; choose another name")
        return found

    def models(self) -> dict[str, str]:
        """Fingerprints of weights and data, and digests of the code of user-defined parts (keys that end in ".code")."""
        found = {}
        with missing_members_named(self.labelled()):
            for name, part in self.labelled():
                if hasattr(part, "fingerprint"):
                    found[name] = checked_text(f"{part!r}.fingerprint" if is_own(part) else name, part.fingerprint())
                code = part if is_own(part) else part.own_code() if hasattr(part, "own_code") else None
                if code is not None:
                    found[f"{name}.code"] = code_digest(code)
        return found

    def measure(self, noise_index: int, items: np.ndarray, first: int = 0) -> dict[str, np.ndarray]:
        """Readings of some items at one noise level: {variable: array (items, ...)}. The heart of `run`."""
        return next(self.measurements([(None, noise_index, items)], first))[1]

    def measurements(
        self, tasks: Iterable[tuple[Any, int, np.ndarray]], first: int = 0
    ) -> Iterator[tuple[Any, dict[str, np.ndarray]]]:
        """Readings of tasks `(name, noise_index, items)`: `(name, readings)` as in `measure`, in the order in which they end.

        `first` is the first trajectory to measure; other than 0 it needs `adds_trajectories`. A backward with a method `u_turns`
        gets all tasks in one stream, so that they can share batches.
        """
        with missing_members_named(self.labelled()):
            yield from self._measurements(tasks, first)

    def _measurements(
        self, tasks: Iterable[tuple[Any, int, np.ndarray]], first: int
    ) -> Iterator[tuple[Any, dict[str, np.ndarray]]]:
        source, corruption, backward, probes = self.parts
        outputs = sorted({output for probe in probes for output in probe.outputs})
        count = self.trajectories - first
        trajectories: Any = self.trajectories if first == 0 else range(first, self.trajectories)
        sizes = {dim: len(values) for _, _, dims in self._declared for dim, values in dims.items()} | {"trajectory": count}

        def blocks(items: np.ndarray) -> list[Any]:
            return checked_blocks(source, source.blocks(items.copy(), self.seed, self.items), items)

        def read(pieces: Iterable[Any]) -> dict[str, np.ndarray]:
            found = []
            for u_turns in pieces:
                readings: dict[str, np.ndarray] = {}
                for probe, (label, variables, _) in zip(probes, self._declared, strict=True):
                    with misfits_named(f"{label}.read", probe, (source, backward)):
                        given = probe.read(u_turns, source)
                    readings |= checked_readings(label, given, variables, sizes, len(u_turns.originals.items))
                found.append(readings)
            return {name: np.concatenate([piece[name] for piece in found]) for name in found[0]}

        if hasattr(backward, "u_turns"):
            done: dict[int, list[Any]] = {}  # of tasks whose originals come in several blocks

            def batches() -> Iterator[tuple[Any, Any, float]]:
                for number, (name, noise_index, items) in enumerate(tasks):
                    found = blocks(items)
                    done[number] = [None] * len(found)
                    for k, originals in enumerate(found):
                        yield (number, k, name), originals, self.noise[noise_index]

            stream = checked_stream(backward, batches(), self.seed, trajectories, count)
            for (number, k, name), u_turns in stream:
                done[number][k] = u_turns
                if all(piece is not None for piece in done[number]):
                    yield name, read(done.pop(number))
            return

        def u_turns_of(items: np.ndarray, noise: float) -> Iterator[Any]:
            for originals in blocks(items):
                with misfits_named("backward.u_turn", backward, (source, corruption)):
                    u_turns = backward.u_turn(originals, corruption, noise, self.seed, trajectories, outputs)
                yield checked_u_turns(backward, u_turns, originals, count)

        for name, noise_index, items in tasks:
            yield name, read(u_turns_of(items, self.noise[noise_index]))

    @property
    def adds_trajectories(self) -> bool:
        """Whether further trajectories can be measured by themselves: no variable pools those of an item."""
        pooled = any("trajectory" not in variable.dims and variable.pooled for variable in self.variables().values())
        return getattr(self.parts[2], "adds_trajectories", False) and not is_own(self.parts[2]) and not pooled


def run(
    experiment: Experiment,
    store: str | Path | None = None,
    resume: bool = True,
    *,
    workers: int | None = 1,
    progress: bool = False,
    shard: tuple[int, int] = (1, 1),
    accept_changes: bool = False,
) -> xr.Dataset:
    """Run an experiment, or what is left of it.

    Parameters
    ----------
    experiment : Experiment
    store : path, optional
        Folder of the zarr store that is filled task by task; in memory if not given.
    resume : bool
        Go on with an existing store of the same experiment (the default), or refuse to touch it. An experiment with more items,
        noise levels or trajectories than the stored one extends the store: only what is new is measured, and again the last block
        of items if it was not full, and means over trajectories.
    workers : int or None
        Processes, which share the cores. None chooses: one for exact inference, whose kernels use all cores by themselves, and
        one a core for networks on the CPU, which do not. Several need a store, and a script guarded by
        `if __name__ == "__main__":`, since the processes import it.
    progress : bool
        Show a progress bar on stderr.
    shard : (i, n)
        Do the i-th of n shares of the tasks, i = 1 .. n, and leave the others to other processes, GPUs or hosts that fill the
        same store, perhaps at the same time; readings that are not done are NaN.
    accept_changes : bool
        Go on although the code or the fingerprint of a user-defined part has changed since the store was made.

    Returns
    -------
    xarray.Dataset
        Raw readings per item with labelled dims; attributes `spec` (JSON), `spec_hash`, `seed`, `models`, `versions`, `complete`
        (bool) and `missing_tasks` (int). Numbers
        depend on the experiment alone, not on the order of tasks or on interruptions; nor on `chunk` and `workers`, for exact
        inference in a single bit, for networks up to float rounding.

    Raises
    ------
    ValueError
        If the store holds another experiment (the message names the difference) or cannot be read. Nothing in it is touched.
    """
    if not isinstance(experiment, Experiment):
        raise ValueError(f"experiment = {shown(experiment)}: expected an Experiment (Experiment.from_dict makes one)")
    workers = None if workers is None else checked_integer("workers", workers, 1)
    store = None if store is None else checked_folder("store", store)
    try:
        number, shares = (checked_integer("shard", part, 0) for part in shard)
    except (TypeError, ValueError):
        raise ValueError(f"shard = {shown(shard)}: expected (i, n) with 1 <= i <= n") from None
    if not 1 <= number <= shares:
        raise ValueError(f"shard = {number}/{shares}: expected i/n with 1 <= i <= n")
    if shares > 1 and store is None:
        raise ValueError(f"shard = {number}/{shares}: shares meet in one store; give its folder")
    experiment = Experiment.from_dict(experiment.to_dict())  # defaults filled in, parts checked, however it was made
    opened = _open(experiment, store, resume, accept_changes)
    tasks = list(opened.tasks())
    if shares > 1 or workers != 1 or hasattr(experiment.parts[2], "u_turns"):
        # Long U-turns first: processes, and the places of a batch, end at about the same time. Dealt out, shares are alike.
        tasks = sorted(tasks, key=lambda task: -experiment.noise[task.noise_index])[number - 1 :: shares]
    counts = opened.done(tasks)
    todo = [task for task, count in counts.items() if count < experiment.trajectories]
    first = {task: counts[task] if experiment.adds_trajectories else 0 for task in todo}
    with opened.finishing(), progress_bar(progress, opened.where, len(tasks), len(tasks) - len(todo)) as advance:
        if workers is None:
            workers = cores() if getattr(experiment.parts[2], "wants_processes", False) else 1
        workers = min(workers, len(todo))
        if workers <= 1 or store is None:
            for start in sorted(set(first.values())):
                named = ((task, task.noise_index, opened.items(task)) for task in todo if first[task] == start)
                for task, readings in experiment.measurements(named, start):
                    _write(opened, task, readings, start)
                    advance()
        else:
            spec = json.dumps(experiment.to_dict())
            for _ in in_processes(_run_task, [(spec, str(store), task, first[task]) for task in todo], workers):
                advance()
    # The spec is what was asked for: figures build parts from it, and a store could say anything.
    return opened.dataset(look=False).assign_attrs(spec=json.dumps(experiment.to_dict()), spec_hash=experiment.hash)


def check(experiment: Experiment) -> Iterator[str]:
    """Run two items of an experiment through all of its parts, at the first and the last noise level; nothing is stored.

    Yields
    ------
    str
        What was looked at and found in order, a line each.

    Raises
    ------
    ValueError
        If a part lacks a member or gives something else than it should, and if readings of an item depend on the batch or on what
        was measured before.
    """
    experiment = Experiment.from_dict(experiment.to_dict())
    for name, part in experiment.labelled():
        yield f"{repr(part) if is_own(part) else f'{name} ({type(part).__name__})'}: was built"
    coordinates = experiment.coordinates()
    for name, variable in experiment.variables().items():
        sizes = ", ".join(f"{dim} {len(coordinates[dim][1])}" for dim in variable.dims)
        yield f"measured: {name} ({sizes}): {variable.long_name}"
    yield f"recorded with the results: fingerprints and code of {', '.join(sorted(experiment.models()))}"
    items = np.arange(min(2, experiment.items))
    for level in sorted({0, len(experiment.noise) - 1}):
        noise = experiment.noise[level]
        together = experiment.measure(level, items)
        for item in items:
            alone = experiment.measure(level, items[item : item + 1])
            for name, values in together.items():
                if not np.allclose(values[item], alone[name][0], rtol=1e-3, atol=1e-4, equal_nan=True):
                    raise ValueError(
                        f"{name} of item {item} at noise {noise:g} is {shown(values[item].tolist())} in a batch of {len(items)}, "
                        f"{shown(alone[name][0].tolist())} by itself; draw random numbers from one stream an item, trajectory "
                        f"and noise level (uturn.random.keys)"
                    )
        means = ", ".join(f"{name} {np.nanmean(values, dtype=float):.3g}" for name, values in together.items())
        yield f"noise {noise:g}: means over items {items.tolist()}: {means}"


def _write(opened: Store, task: Task, readings: dict[str, np.ndarray], first: int) -> None:
    """Store the readings of a task, after those of its first trajectories that are there already."""
    if first:
        before = opened.read(task, first)
        axes = {name: variable.index("trajectory") - 1 for name, variable in opened.dims.items() if "trajectory" in variable}
        readings = {
            name: np.concatenate([before[name], values], axis=axes[name]) if name in axes else values
            for name, values in readings.items()
        }
    opened.write(task, readings)


def _open(experiment: Experiment, store: str | Path | None, resume: bool, accept_changes: bool) -> Store:
    """The store of an experiment: a new one, the one that is there, or that one extended."""
    source, _, backward, _ = experiment.parts
    models = experiment.models()
    attributes = {
        "spec": json.dumps(experiment.to_dict()),
        "identity": json.dumps(experiment.identity()),
        "spec_hash": experiment.hash,
        "seed": experiment.seed,
        "models": json.dumps(models),
        "versions": json.dumps(_versions()),
    }
    if hasattr(backward, "describe"):
        attributes["description"] = checked_text("backward.describe", backward.describe())
    if hasattr(source, "skipped"):  # files that cannot be read
        attributes["skipped"] = json.dumps(source.skipped(experiment.items))
    coordinates = experiment.coordinates()
    layout = experiment.variables(), coordinates, experiment.chunk, attributes
    if store is None or not Path(store).exists() or (Path(store).is_dir() and not any(Path(store).iterdir())):
        opened = Store.create(store, *layout)
        if opened is not None:
            return opened
    elif not resume:
        raise ValueError(f"{store} exists already; choose another folder, or go on with it (resume=True)")
    assert store is not None
    with locked_folder(Path(store).resolve().parent):  # one process at a time extends it
        opened = Store.open(store)
        opened.remove_unfinished()
        stored = json.loads(opened.attributes["identity"])
        added = _added(stored, experiment.identity())
        changes = _changes(experiment, opened, stored, models, bool(added))
        if changes and not accept_changes:
            words = [
                f"the {'code' if key.endswith('.code') else 'fingerprint'} of {key.removesuffix('.code')} has changed since the "
                f"store was made ({shown(old)} in the store, {shown(models.get(key))} here)"
                for key, old in changes.items()
            ]
            raise ValueError(
                f"{store}: {'; '.join(words)}; choose another folder, bring the old code back, or go on regardless with "
                f"accept_changes=True (--accept-changes)"
            )
        if added:
            _check_originals(experiment, opened, stored)
            opened = opened.extend(*layout)
            _log.info(f"{store} is extended by {', '.join(added)}")
        opened.restore(*layout[:2])
        if changes:
            before = json.loads(opened.attributes.get("accepted_changes", "[]"))
            opened.update(models=json.dumps(models), accepted_changes=json.dumps([*before, changes]))
    return opened


def _changes(
    experiment: Experiment, opened: Store, stored: dict[str, Any], models: dict[str, str], larger: bool
) -> dict[str, str | None]:
    """Code and fingerprints of user-defined parts that differ in a store, {name: what they were}.

    ValueError for any other difference.
    """
    mine, known = experiment.identity(), json.loads(opened.attributes["models"])
    own = {name for name, part in experiment.labelled() if is_own(part)}
    changed = {key for key in known.keys() | models.keys() if known.get(key) != models.get(key)}
    acceptable = sorted(key for key in changed if key.endswith(".code") or key in own)
    weights = [{key: m[key] for key in changed.difference(acceptable) if key in m} for m in (known, models)]
    differences = _differences(_with_size_of(mine, stored) if larger else stored, mine, "spec")
    differences += _differences(weights[0], weights[1], "models")
    if differences:
        raise ValueError(f"{opened.where} holds another experiment: {'; '.join(differences[:4])}; choose another folder")
    return {key: known.get(key) for key in acceptable}


def _added(stored: dict[str, Any], mine: dict[str, Any]) -> list[str]:
    """What a larger spec adds to a stored one, in words; empty if it is not larger."""
    try:
        old_noise, noise = stored["corruption"]["noise"], mine["corruption"]["noise"]
        if any(mine[key] < stored[key] for key in ("items", "trajectories")) or not set(old_noise) <= set(noise):
            return []
    except (KeyError, TypeError):  # no spec of an experiment
        return []
    words = [f"{key} {stored[key]} -> {mine[key]}" for key in ("items", "trajectories") if mine[key] > stored[key]]
    new = [f"{x:g}" for x in noise if x not in old_noise]
    if new:
        words.append(f"noise {', '.join(new[:6])}{', ..' if len(new) > 6 else ''}")
    return words


def _with_size_of(mine: dict[str, Any], stored: dict[str, Any]) -> dict[str, Any]:
    """A stored spec with the size of the larger one: items, trajectories, chunk, noise levels, and grammars in proportion."""
    sizes = {key: mine[key] for key in ("items", "trajectories", "chunk")}
    found = {**stored, **sizes, "corruption": {**stored["corruption"], "noise": mine["corruption"]["noise"]}}
    before, source = stored["source"], mine["source"]
    countable = isinstance(before, dict) and isinstance(before.get("grammars"), int) and before["grammars"] > 0
    if countable and isinstance(source.get("grammars"), int) and mine["items"] > stored["items"]:
        found["source"] = {**before, "grammars": source["grammars"]}  # see _check_originals
    return found


def _check_originals(experiment: Experiment, opened: Store, stored: dict[str, Any]) -> None:
    """ValueError if the items of a stored run would have other originals in a larger one."""
    old, new, store = stored["items"], experiment.items, opened.where
    if new == old:
        return
    source, table = experiment.parts[0], experiment.source
    before = source
    if isinstance(source, RHMSource):
        grammars = stored["source"]["grammars"]
        wanted, rest = (1, 0) if grammars == 1 else divmod(grammars * new, old)
        if table["grammars"] != wanted or rest:
            way_out = (
                f"grammars = {wanted}" if not rest else "items in a multiple of those in the store, and grammars in proportion"
            )
            raise ValueError(
                f"{store} cannot be extended to items = {new} with grammars = {table['grammars']}: the first {old} items would "
                f"be of other grammars; expected {way_out}"
            )
        before = build("source", {**table, "grammars": grammars})
    for name, values in source.coordinates(experiment.seed, new).items():
        known: Any = opened.coordinate(name)
        if not np.array_equal(known, np.asarray(values)[:old]):
            raise ValueError(f"{store} cannot be extended to items = {new}: {name} of the first {old} items would change")
    # The items of built-in sources depend on nothing else; a few are looked at all the same.
    items = np.arange(old) if is_own(source) else np.unique(np.linspace(0, old - 1, 16).astype(int))
    for some in np.array_split(items, -(-len(items) // 1024)):
        data = [_data_of(one, some, experiment.seed, count, store) for one, count in ((before, old), (source, new))]
        different = [item for item, a, b in zip(some, *data, strict=True) if not np.array_equal(a, b)]
        if different:
            raise ValueError(
                f"{store} cannot be extended to items = {new}: its source gives item {different[0]} another original than before"
                "; choose another folder"
            )


def _data_of(source: Any, items: np.ndarray, seed: int, num_items: int, store: str) -> list[Any]:
    """The originals of items, one each."""
    blocks = checked_blocks(source, source.blocks(items.copy(), seed, num_items), items)
    if not all(hasattr(block, "data") for block in blocks):
        raise ValueError(f"{store} cannot get more items: the blocks of {source!r} have no `data` that shows that old ones stay")
    return [original for block in blocks for original in block.data]


def _run_task(spec: str, store: str, task: Task, first: int) -> None:
    experiment, opened = _reopened(spec, store)
    _write(opened, task, experiment.measure(task.noise_index, opened.items(task), first), first)


@lru_cache(maxsize=1)
def _reopened(spec: str, store: str) -> tuple[Experiment, Store]:
    return Experiment.from_dict(json.loads(spec)), Store.open(store)


def _differences(stored: Any, mine: Any, where: str) -> list[str]:
    if isinstance(stored, dict) and isinstance(mine, dict):
        return [
            text
            for key in sorted(set(stored) | set(mine))
            for text in _differences(stored.get(key), mine.get(key), f"{where}.{key}")
        ]
    if isinstance(stored, list) and isinstance(mine, list) and len(stored) == len(mine):
        pairs = enumerate(zip(stored, mine, strict=True))
        return [text for k, (old, new) in pairs for text in _differences(old, new, f"{where}[{k}]")]
    same = json.dumps(stored) == json.dumps(mine)
    return [] if same else [f"{where} is {shown(stored)} in the store, {shown(mine)} here"]


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("uturn", "numpy", "numba", "torch", "diffusers", "zarr"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
