"""A U-turn is U = Backward ∘ Corruption. An experiment repeats it for many originals and noise levels.

An experiment is one sentence: source, corruption, backward, probes, noise levels, items, trajectories, clones, a seed.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import os
import time
import tomllib
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import fields, is_dataclass, replace
from functools import cached_property, lru_cache, partial
from itertools import groupby, islice
from pathlib import Path
from types import EllipsisType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from uturn.checks import checked_integer, checked_noise, checked_path, one_line, plain, shown
from uturn.contracts import (
    Declared,
    checked_axes,
    checked_blocks,
    checked_item_coordinates,
    checked_readings,
    checked_reconstructions,
    checked_stream,
    checked_text,
    declared_by,
    joined,
    undoes,
)
from uturn.objects import is_url
from uturn.own_parts import code_digest, is_own, misfits_named, missing_members_named, unwrapped
from uturn.places import place_of
from uturn.processes import cores, in_processes
from uturn.progress import begun, listening, part, progress_bar, steps
from uturn.protocols import UTurns, Variable
from uturn.random import Streams, checked_seed
from uturn.resume import open_store
from uturn.spec import build, check_fit, validation_words
from uturn.store import Coordinates, MemoryStore, Store, Task
from uturn.tasks import Tasks

if TYPE_CHECKING:
    import xarray as xr

    _Task = tuple[Any, int, np.ndarray]  # name, index of the noise level, items

_JOINED_BYTES = 2**24  # noisy data of tasks that are measured together
_BATCH = 256  # images that a network on a GPU has at once, where the spec does not say
_SEEN_SECONDS = 90.0  # until a host sees what another one has written on a network file system; NFS takes up to 60
_RECONSTRUCTED = 0.8  # share of a U-turn that is done before the probes read it, for progress
_PART = 2**20  # numbers of the noisy data of one original in memory together, where trajectories are read in parts


def u_turn(
    originals: Any, corruption: Any, backward: Any, noise: float, streams: Streams | int = 0, *, clones: int = 1
) -> UTurns:
    """Corrupt originals up to a noise level, and reconstruct them.

    The parts of an experiment fit together: `source, corruption, backward, probes = experiment.parts`. The corruption of a
    diffusion model is its forward process, `backward.undone(Diffusion(), source)`.

    Parameters
    ----------
    originals : block of a source
        For example `next(source.blocks(items, seed, num_items))`, or `uturn.sources.Strings(items, rhm, draw)`.
    corruption : Corruption
    backward : Backward
        It must undo the process of the corruption.
    noise : float
        Noise level in the unit of the corruption, 0 .. `corruption.max_noise`.
    streams : Streams, or int
        Random streams of the items and trajectories at this noise level. An integer is a seed, for one trajectory of each item.
    clones : int >= 1
        Reconstructions of each noisy datum. Clone 0 equals the reconstruction of a U-turn with `clones=1`.

    Returns
    -------
    UTurns
        `originals`, `noisy`, and `reconstructions` of shape (items, trajectories * clones, ...); for strings
        {tree_level: int64 (items, trajectories * clones, nodes)}.

    Raises
    ------
    ValueError
        If an argument is of a wrong kind, the noise is out of range, or `streams` has other items or another noise level.

    Examples
    --------
    >>> import uturn as ut
    >>> rhm = ut.RandomHierarchyModel(vocab_size=8, multiplicity=2, branching=2, depth=3, seed=0)
    >>> originals = ut.sources.Strings(np.arange(5), rhm, rhm.sample(5, seed=0))
    >>> found = u_turn(originals, ut.Masking(), ut.backward.ExactPosterior(), noise=0.3, clones=4)
    >>> found.reconstructions[0].shape
    (5, 4, 8)
    """
    _check_arguments(originals, corruption, backward, noise)
    streams = _checked_streams(streams, originals.items, noise)
    clones = checked_integer("clones", clones, 1)
    noisy = corruption.observe(originals, noise, streams)
    reconstructions = backward.reconstruct(noisy, streams, clones)
    checked_reconstructions(backward, reconstructions, len(originals.items), streams.count * clones)
    return UTurns(originals, noisy, reconstructions, clones)


class Parts(NamedTuple):
    """The parts of an experiment, which fit together."""

    source: Any
    corruption: Any
    backward: Any
    probes: list[Any]


class Experiment(BaseModel):
    """Description of a U-turn experiment: plain data, so that it can be hashed, stored, resumed and sent elsewhere.

    Attributes
    ----------
    source, corruption, backward : table with a `type`, and its options
        `corruption` holds the grid `noise` too. A type is a built-in name, or "module:Class" for any class with the methods of
        the protocols in `uturn.protocols`; the other keys of its table are its arguments.
    probes : sequence of such tables, at least one
    items : int
        Number of originals x0.
    trajectories : int
        Noisy data of each original at each noise level, drawn independently. The ε-process draws nothing: its trajectories are
        draws from one posterior.
    clones : int
        Reconstructions of each noisy datum. With more than one, results have the dim `clone`, and `clone_<name>` compares each
        clone with the others.
    chunk : int
        Items in a task, the unit of storage. A killed run loses its unfinished tasks: one for each process; with exact inference
        in one process, the neighbouring tasks that are measured together, up to 16 MB of noisy data; with a diffusion model, all
        tasks with images in the network.
    seed : int
        All randomness is keyed by (seed, item, trajectory, clone, noise level).

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
    clones: int = Field(default=1, strict=True, ge=1)
    chunk: int = Field(default=16, strict=True, ge=1)
    source: dict[str, Any]
    corruption: dict[str, Any]
    backward: dict[str, Any]
    probes: tuple[dict[str, Any], ...] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, spec: Any) -> Any:
        return plain(spec)  # numpy arrays and numbers become lists and numbers

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
        levels, chunk, draws = len(self.corruption["noise"]), min(self.chunk, self.items), self.trajectories * self.clones
        of_each = "trajectories" if self.clones == 1 else "trajectories * clones"
        for what, number, most, lower in (
            (f"chunk * {of_each}", chunk * draws, 2**24, "U-turns in a task, which are in memory together"),
            ("items * noise levels / chunk", -(-self.items // chunk) * levels, 2**24, "tasks, which are files"),
            (f"items * {of_each} * noise levels", self.items * draws * levels, 2**32, "U-turns"),
        ):
            if number > most:
                raise ValueError(f"{what} = {shown(number)}: expected at most {most} {lower}; lower one of them")
        return self

    @classmethod
    def from_dict(cls, spec: Mapping[str, Any]) -> Experiment:
        """Check a description and fill in its defaults; a ValueError names the field that is wrong."""
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
        """Read a description from a TOML or (by the suffix .json) JSON file; a ValueError names the file and the field."""
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
        """The fields that determine the results: the spec without execution-only options such as the device."""
        source, corruption, backward, probes = self.parts
        spec = self.to_dict()

        def kept(part: Any, table: dict[str, Any]) -> dict[str, Any]:
            return {key: value for key, value in table.items() if key not in part.execution}

        spec["source"], spec["corruption"] = kept(source, spec["source"]), kept(corruption, spec["corruption"])
        spec["backward"] = kept(backward, spec["backward"])
        spec["probes"] = [kept(probe, table) for probe, table in zip(probes, spec["probes"], strict=True)]
        if self.clones == 1:
            del spec["clones"]  # the identity of a spec without this field stays the same
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
    def parts(self) -> Parts:
        """(source, corruption, backward, probes) as objects; the corruption is what `Backward.undone` returns."""
        source, backward = build("source", self.source), build("backward", self.backward)
        corruption = build("corruption", {k: v for k, v in self.corruption.items() if k != "noise"})
        probes = [build(f"probes[{i}]", probe) for i, probe in enumerate(self.probes)]
        check_fit(self.to_dict(), source, corruption, backward, probes)
        with missing_members_named([("backward", backward), ("source", source), ("corruption", corruption)]):
            source = source.made_by(backward, self.seed)
            undone = backward.undone(corruption, source)
        if not hasattr(undone, "observe"):
            raise ValueError(f"{backward!r}.undone gave {shown(undone)}; expected a corruption")
        return Parts(source, corruption if undone is unwrapped(corruption) else undone, backward, probes)

    def labelled(self) -> list[tuple[str, Any]]:
        """All parts with their names in the spec."""
        source, corruption, backward, probes = self.parts
        named = [(f"probes[{i}]", probe) for i, probe in enumerate(probes)]
        return [("backward", backward), *named, ("source", source), ("corruption", corruption)]

    def _normalised(self) -> dict[str, Any]:
        """The tables with the defaults of built-in types filled in. This builds the parts and checks that they fit together."""
        source, corruption, backward, probes = self.parts

        def full(part: Any, table: dict[str, Any]) -> dict[str, Any]:
            if is_own(part):
                return table
            options = part.model_dump(mode="json") if isinstance(part, BaseModel) else {}
            if is_dataclass(part):
                options = {field.name: getattr(part, field.name) for field in fields(part)}
            return {**options, "type": table["type"]}

        return {
            "source": full(source, self.source),
            "corruption": {**full(corruption, self.corruption), "noise": self.noise},
            "backward": full(backward, self.backward),
            "probes": tuple(full(part, table) for part, table in zip(probes, self.probes, strict=True)),
        }

    @cached_property
    def declared(self) -> list[Declared]:
        """The variables and coordinates that each probe declares, checked."""
        with missing_members_named(self.labelled()):
            return declared_by(self.parts.probes, self.parts.source, self.clones)

    def variables(self) -> dict[str, Variable]:
        """What the run measures: {name: Variable}."""
        return {name: variable for one in self.declared for name, variable in one.variables.items()}

    def coordinates(self) -> Coordinates:
        """Coordinates of the results: {name: (dims, values, attributes)}."""
        source, corruption, _, _ = self.parts
        levels = checked_noise(self.noise, corruption.max_noise)
        found: Coordinates = {
            "item": (("item",), np.arange(self.items), {}),
            "trajectory": (("trajectory",), np.arange(self.trajectories), {}),
            **({"clone": (("clone",), np.arange(self.clones), {})} if self.clones > 1 else {}),
            "noise": (("noise",), levels, {"long_name": corruption.unit}),
        }
        with missing_members_named(self.labelled()):
            axes = checked_axes(corruption, corruption.axes(levels, source), len(levels))
            items = checked_item_coordinates(source, source.coordinates(self.seed, self.items), self.items)
        found = joined(found, "corruption", {name: (("noise",), *entry) for name, entry in axes.items()})
        found = joined(found, "source", {name: (("item",), values, {}) for name, values in items.items()})
        for one in self.declared:
            found = joined(found, one.label, {dim: ((dim,), values, {}) for dim, values in one.dims.items()})
        for name in self.variables():
            if name in found:
                raise ValueError(f"probes: the variable {name!r} has the name of a coordinate; choose another name")
        return found

    def models(self) -> dict[str, str]:
        """Fingerprints of weights and data, and digests of the code of user-defined parts (keys that end in ".code")."""
        found = {}
        with missing_members_named(self.labelled()):
            for name, part in self.labelled():
                found[name] = checked_text(f"{part!r}.fingerprint" if is_own(part) else name, part.fingerprint())
            for k, probe in enumerate(self.parts.probes):
                if taken := getattr(probe, "taken_from", lambda source: "")(self.parts.source):
                    found[f"probes[{k}].taken_from_source"] = taken
        return found | {f"{name}.code": code_digest(code) for name, code in self.own_code().items()}

    def own_code(self) -> dict[str, Any]:
        """User-defined parts, and user-defined networks of built-in parts."""
        own = {name: part if is_own(part) else getattr(part, "own_code", lambda: None)() for name, part in self.labelled()}
        return {name: code for name, code in own.items() if code is not None}

    # -- measurement ---------------------------------------------------------------------------------------------
    def measure(self, noise_index: int, items: np.ndarray, first: int = 0) -> dict[str, np.ndarray]:
        """Readings of some items at one noise level, from trajectory `first` on: {variable: array (items, ...)}."""
        return next(self.measurements([(None, noise_index, items)], first))[1]

    def measurements(self, tasks: Iterable[_Task], first: int = 0) -> Iterator[tuple[Any, dict[str, np.ndarray]]]:
        """Readings of tasks `(name, noise_index, items)`: `(name, readings)` as in `measure`, in the order of completion.

        `first` is the first trajectory to measure; values above 0 need `adds_trajectories`.
        """
        shared = self.parts.backward.shares_batches
        u_turns = self._shared_u_turns if shared else self._u_turns
        with missing_members_named(self.labelled()):
            for names, found in u_turns(self._joined(tasks), range(first, self.trajectories)):
                with begun(len(names), done=_RECONSTRUCTED * len(names) if shared else 0) as work:
                    readings, start = self._read(found, self.trajectories - first), 0
                    for name, count in names:
                        work.finished(1)
                        yield name, {variable: values[start : start + count] for variable, values in readings.items()}
                        start += count

    def _joined(self, tasks: Iterable[_Task]) -> Iterator[tuple[tuple[tuple[Any, int], ...], int, np.ndarray]]:
        """Neighbouring tasks of one noise level, joined where that changes no bit: `(((name, count), ..), noise_index, items)`.

        Many small tasks are faster together. They are joined up to 16 MB of noisy data, each counted once for every clone.
        """
        size = self.tasks_together
        for noise_index, group in groupby(tasks, key=lambda task: task[1]):
            while some := list(islice(group, size)):
                items = np.concatenate([items for _, _, items in some])
                yield tuple((name, len(items)) for name, _, items in some), noise_index, items

    @property
    def tasks_together(self) -> int:
        """How many neighbouring tasks of one noise level are measured together in a process."""
        task_bytes = self.parts.source.item_bytes * self.trajectories * self.clones * min(self.chunk, self.items)
        invariant = all(part.batch_invariant and not is_own(part) for _, part in self.labelled())
        return max(1, _JOINED_BYTES // task_bytes) if invariant and task_bytes else 1

    def _u_turns(self, tasks: Iterable[_Task], trajectories: range) -> Iterator[tuple[Any, Iterable[Iterable[UTurns]]]]:
        """U-turns of one task after the other, block by block, each block in one or more parts of its trajectories."""
        for name, noise_index, items in tasks:
            of_block = partial(self._u_turns_of_block, noise=self.noise[noise_index], trajectories=trajectories)
            yield name, map(of_block, steps(self._blocks(items)))

    def _u_turns_of_block(self, originals: Any, noise: float, trajectories: range) -> Iterator[UTurns]:
        source, corruption, backward, _ = self.parts
        size = self.trajectories_together(originals)
        for start in steps(range(0, len(trajectories), size)):
            streams = Streams(self.seed, originals.items, noise, trajectories[start : start + size])
            with part(_RECONSTRUCTED), misfits_named("backward.reconstruct", backward, (source, corruption)):
                found = u_turn(originals, corruption, backward, noise, streams, clones=self.clones)
            yield found

    def trajectories_together(self, originals: Any) -> int:
        """How many trajectories of each original are in memory together: all, unless all probes read them in parts."""
        source, _, backward, probes = self.parts
        if backward.adds_trajectories and not is_own(backward) and all(probe.reads_in_parts for probe in probes):
            # The same for every chunk, since other parts would change the rounding.
            return max(1, _PART // (np.size(originals.data[0]) * max(source.num_symbols, 1) * self.clones))
        return self.trajectories

    def _shared_u_turns(self, tasks: Iterable[_Task], trajectories: range) -> Iterator[tuple[Any, Iterable[list[UTurns]]]]:
        """U-turns of tasks in the order of completion, for a backward that reconstructs the batches of all tasks together."""
        pending: dict[int, list[Any]] = {}  # U-turns of the blocks of each unfinished task, with reconstructions where done

        def batches() -> Iterator[tuple[Any, Any, Streams]]:
            for number, (name, noise_index, items) in enumerate(tasks):
                noise, blocks = self.noise[noise_index], self._blocks(items)
                pending[number] = [None] * len(blocks)
                for k, originals in enumerate(blocks):
                    streams = Streams(self.seed, originals.items, noise, trajectories)
                    noisy = self.parts.corruption.observe(originals, noise, streams)
                    pending[number][k] = UTurns(originals, noisy, None, self.clones)
                    yield (number, k, name), noisy, streams

        # Images of many tasks are in the network at once; each of them is an equal part of a task.
        draws = len(trajectories) * self.clones
        unit = _RECONSTRUCTED / (min(self.chunk, self.items) * draws)
        with begun(0, unit=unit) as work:
            for (number, k, name), reconstructions in checked_stream(self.parts.backward, batches(), self.clones):
                known = pending[number]
                known[k] = replace(known[k], reconstructions=reconstructions)
                if all(u_turns is not None and u_turns.reconstructions is not None for u_turns in known):
                    work.finished(unit * draws * sum(count for _, count in name))
                    yield name, steps([[u_turns] for u_turns in pending.pop(number)])

    def _blocks(self, items: np.ndarray) -> list[Any]:
        source = self.parts.source
        return checked_blocks(source, source.blocks(items.copy(), self.seed, self.items), items)

    def _read(self, blocks: Iterable[Iterable[UTurns]], trajectories: int) -> dict[str, np.ndarray]:
        """Readings of all probes from the U-turns of a task, given block by block: {variable: array (items, ...)}."""
        source, _, backward, probes = self.parts
        sizes = {dim: len(values) for one in self.declared for dim, values in one.dims.items()}
        sizes |= {"trajectory": trajectories, "clone": self.clones}
        found = []
        for parts in blocks:
            kept: list[Any] = [None] * len(probes)
            for u_turns in parts:
                items = len(u_turns.originals.items)
                for k, (probe, one) in steps(list(enumerate(zip(probes, self.declared, strict=True)))):
                    with misfits_named(f"{one.label}.read", probe, (source, backward)):
                        kept[k] = probe.accumulate(kept[k], u_turns, source)
            readings: dict[str, np.ndarray] = {}
            for probe, one, value in zip(probes, self.declared, kept, strict=True):
                given = probe.readings(value, source)
                readings |= checked_readings(one.label, given, one.variables, sizes, items)
            found.append(readings)
        return {name: np.concatenate([piece[name] for piece in found]) for name in found[0]}

    @property
    def adds_trajectories(self) -> bool:
        """Whether further trajectories can be measured alone: the backward allows it, and no variable pools trajectories."""
        pooled = any("trajectory" not in variable.dims and variable.pooled for variable in self.variables().values())
        return self.parts.backward.adds_trajectories and not is_own(self.parts.backward) and not pooled


def run(
    experiment: Experiment,
    store: str | Path | None = None,
    resume: bool = True,
    *,
    workers: int | EllipsisType | None = ...,
    progress: bool = False,
    shard: tuple[int, int] = (1, 1),
    accept_changes: bool = False,
    cluster: str | None = None,
    cpus_per_worker: float | None = None,
    gpus_per_worker: float | None = None,
) -> xr.Dataset:
    """Measure the tasks of an experiment that its store does not hold yet.

    Parameters
    ----------
    experiment : Experiment
    store : path or URL, optional
        The zarr store that is filled task by task: a folder, or a URL of object storage (s3://bucket/run, gs://.., az://..) as
        text; in memory if not given.
    resume : bool
        Whether to complete an existing store of the same experiment; if False, an existing store is an error. An experiment with
        more items, noise levels, trajectories or clones extends the store. Stored readings are kept, except those of a last block
        of items that was not full, those that pool trajectories if trajectories are added, and those that compare clones with
        each other if clones are added: these are measured again.
    workers : int or None
        Number of processes, which share the cores; by default 1. None chooses one process for exact inference, whose kernels
        use all cores, and one for each core for networks on the CPU. Several processes need a store, and a script guarded by
        `if __name__ == "__main__":`, since they import it.
    progress : bool
        Show a progress bar on stderr.
    shard : (i, n)
        Measure the i-th of n shares of the tasks, i = 1 .. n. Other processes, GPUs or hosts can measure the other shares into
        the same store at the same time. Missing readings are NaN.
    accept_changes : bool
        Resume although the code or the fingerprint of a user-defined part has changed since the store was made.
    cluster : "local", "auto", "ray://host:port" or "host:port", optional
        Ray cluster that measures the tasks: one started on this machine, the one that runs here, or that at an address. It needs
        a store that all nodes reach. `workers` is then the largest number of workers, by default as many as there is room for.
    cpus_per_worker, gpus_per_worker : float, optional
        Resources of a worker on a cluster. Networks take a GPU each where there are some; otherwise a worker has one core.

    Returns
    -------
    xarray.Dataset
        Raw readings per item with labelled dims; attributes `spec` (JSON), `spec_hash`, `seed`, `models`, `versions`, `complete`
        (bool) and `missing_tasks` (int). The readings depend on the experiment alone, not on the order of tasks or on
        interruptions. `chunk` and `workers` change no bit for exact inference, and only float rounding for networks.

    Raises
    ------
    ValueError
        If the store holds another experiment (the message names the difference) or cannot be read. The store stays unchanged.
    TasksFailed
        On a cluster, if some tasks raised three times, or were alone on three workers that died. All other tasks are done.
    """
    if not isinstance(experiment, Experiment):
        raise ValueError(f"experiment = {shown(experiment)}: expected an Experiment (Experiment.from_dict makes one)")
    if workers is ...:
        workers = None if cluster is not None else 1
    workers = None if workers is None else checked_integer("workers", workers, 1)
    place = None if store is None else place_of("store", store)
    if cluster is not None and place is None:
        raise ValueError(f"cluster = {shown(cluster)}: a cluster needs a store, on a file system that its nodes share; give one")
    number, shares = _checked_shard(shard, store)
    experiment = Experiment.from_dict(experiment.to_dict())  # defaults filled in, parts checked, however it was made
    backward = experiment.parts.backward
    opened = open_store(experiment, place, resume, accept_changes)
    tasks = sorted(opened.tasks(), key=lambda task: task.noise_index)  # neighbours of one noise level are measured together
    if shares > 1 or workers != 1 or backward.shares_batches:
        # Long U-turns first, so that all processes, and all images of the last batches, end at about the same time. Round-robin
        # assignment balances the shards.
        tasks = sorted(tasks, key=lambda task: -experiment.noise[task.noise_index])[number - 1 :: shares]
    work = Tasks(experiment, opened)
    left = work.left(tasks)
    if workers is None and cluster is None:
        workers = cores() if backward.wants_processes else 1
    words: list[str] = [""]
    bar = progress_bar(progress, opened.where, len(tasks), len(tasks) - len(left), lambda: words[0])
    with bar as advance, opened.finishing() as call:
        if not left:
            pass
        elif cluster is not None:
            states = _on_cluster(experiment, opened, left, cluster, workers, cpus_per_worker, gpus_per_worker)
            with closing(states):  # also after Ctrl-C in this loop, the cluster is freed
                for count, words[0] in states:
                    for _ in range(count):
                        advance()
        elif min(workers or 1, len(left)) <= 1 or store is None:
            for _ in work.measure(sorted(left.items(), key=lambda pair: pair[1]), call=call):
                advance()
        else:
            spec = json.dumps(experiment.to_dict())
            jobs = [(spec, str(store), task, first) for task, first in left.items()]
            for _ in in_processes(_run_task, jobs, min(workers or 1, len(jobs))):
                advance()
    # The spec is the caller's: figures build parts from it, and the text in a store is not trusted.
    return opened.dataset(look=False).assign_attrs(spec=json.dumps(experiment.to_dict()), spec_hash=experiment.hash)


def _check_arguments(originals: Any, corruption: Any, backward: Any, noise: float) -> None:
    strings = "a block of a source, such as uturn.sources.Strings(items, rhm, draw)"
    for name, value, members, example in (
        ("originals", originals, ("items", "observed_by"), strings),
        ("corruption", corruption, ("observe", "max_noise"), "a corruption, such as uturn.Masking()"),
        ("backward", backward, ("reconstruct", "undoes"), "a backward, such as uturn.backward.ExactPosterior()"),
    ):
        if isinstance(value, type) or not all(hasattr(value, member) for member in members):
            raise ValueError(f"{name} = {shown(value)}: expected {example}")
    checked_noise(noise, corruption.max_noise)
    if not undoes(backward, corruption):
        raise ValueError(
            f"backward = {shown(backward)} undoes the process {' or '.join(map(repr, backward.undoes))}, but that of "
            f"{corruption!r} is {corruption.process!r}"
        )


def _checked_streams(streams: Any, items: np.ndarray, noise: float) -> Streams:
    if not isinstance(streams, Streams):
        return Streams(checked_seed(streams, "streams"), items, noise)
    if streams.noise != noise or not np.array_equal(streams.items, items):
        raise ValueError(
            f"streams are those of items {shown(streams.items.tolist())} at noise {streams.noise}; expected "
            f"{shown(items.tolist())} at {noise}"
        )
    return streams


def _checked_shard(shard: Any, store: str | Path | None) -> tuple[int, int]:
    try:
        number, shares = (checked_integer("shard", part, 0) for part in shard)
    except (TypeError, ValueError):
        raise ValueError(f"shard = {shown(shard)}: expected (i, n) with 1 <= i <= n") from None
    if not 1 <= number <= shares:
        raise ValueError(f"shard = {number}/{shares}: expected i/n with 1 <= i <= n")
    if shares > 1 and store is None:
        raise ValueError(f"shard = {number}/{shares}: shares meet in one store; give its folder")
    return number, shares


def _on_cluster(
    experiment: Experiment,
    opened: Store | MemoryStore,
    left: Mapping[Task, int],
    address: str,
    workers: int | None,
    cpus: float | None,
    gpus: float | None,
) -> Generator[tuple[int, str]]:
    """Measure tasks on a Ray cluster; yields the number of those that are newly done, and words on the workers."""
    from uturn.cluster import on_cluster

    assert isinstance(opened, Store)
    for name, code in experiment.own_code().items():
        if (code if inspect.isfunction(code) else type(unwrapped(code))).__module__ == "__main__":
            raise ValueError(
                f"{name} stands in the script, which workers cannot import; move it to a file of its own, and import it"
            )
    work = Tasks(experiment, opened)
    opened.forget(work.wrongly_recorded(left))  # workers look at the records alone
    backward = experiment.parts.backward
    networks = backward.shares_batches or backward.wants_processes
    exact = all(part.batch_invariant for _, part in experiment.labelled())
    groups = {level: [task for task in left if task.noise_index == level] for level in {task.noise_index for task in left}}
    highest = max(experiment.noise) or 1.0
    u_turns = experiment.chunk * experiment.trajectories * experiment.clones
    where = opened.where if is_url(opened.where) else os.path.abspath(opened.where)
    states = on_cluster(
        address,
        f"{experiment.hash} {where}",
        partial(_tasks_of, json.dumps(experiment.to_dict()), where),
        [(1.0 if exact else 0.1 + experiment.noise[level] / highest, tasks) for level, tasks in groups.items()],
        label=lambda task: (
            f"noise {experiment.noise[task.noise_index]:g}, items {opened.items(task)[0]}..{opened.items(task)[-1]}"
        ),
        cpus=cpus,
        gpus=gpus,
        wants_gpu=networks,
        # Enough tasks that the batches of a network are full while the next ones are on their way.
        slots_on_gpu=2 + 2 * _batch_of(backward) // u_turns if backward.shares_batches else 1,
        most_workers=workers,
        own_code=bool(experiment.own_code()),
    )
    before, unfinished = len(left), 0.0
    with closing(states), listening(lambda: unfinished):
        for state in states:
            unfinished = state.unfinished
            yield max(0, before - state.left), f", {state.alive} {'worker' if state.alive == 1 else 'workers'}"
            before = min(before, state.left)
    until = time.monotonic() + _SEEN_SECONDS
    while (lost := work.recorded_left(list(left))) and time.monotonic() < until:
        time.sleep(1)
    if lost:
        raise ValueError(
            f"{len(lost)} tasks were measured, but are not in {opened.where} as this host sees it; give a store on a file system "
            f"that all nodes share, or on object storage"
        )


def _batch_of(backward: Any) -> int:
    size = getattr(backward, "batch_size", None)
    return size if isinstance(size, int) else _BATCH


def _tasks_of(spec: str, store: str) -> Tasks:
    """What a worker of a cluster measures; it may be on another host."""
    try:
        opened = Store.open(store)
    except ValueError as error:
        raise ValueError(
            f"it does not see the store, which must be on a file system that all nodes share, or on object storage: {error}"
        ) from None
    return Tasks(Experiment.from_dict(json.loads(spec)), opened)


def _run_task(spec: str, store: str, task: Task, first: int) -> None:
    for _ in Tasks(*_reopened(spec, store)).measure([(task, first)]):
        pass


@lru_cache(maxsize=1)
def _reopened(spec: str, store: str) -> tuple[Experiment, Store]:
    return Experiment.from_dict(json.loads(spec)), Store.open(store)
