"""An experiment in one sentence, and its run: source, corruption, backward, probes, noise levels, items, a seed."""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from uturn.backward import BACKWARDS
from uturn.checks import checked_integer, checked_path, plain, shown
from uturn.corruption import CORRUPTIONS
from uturn.image_sources import ImageSource
from uturn.probes import PROBES
from uturn.processes import cores, in_processes
from uturn.progress import progress_bar
from uturn.sources import SOURCES, RHMSource, _VectorSource
from uturn.store import Store, Task, Variable

if TYPE_CHECKING:
    import xarray as xr


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
            raise ValueError(f"noise = {shown(noise)}: expected a list of different numbers, at least one")
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
            raise ValueError(f"spec = {_short(spec)}: expected a table with source, corruption, backward, probes, items, ..")
        try:
            experiment = cls.model_validate(dict(spec))
        except ValidationError as error:
            raise ValueError(_one_line(error)) from None
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
            _build("source", SOURCES, self.source),
            _build("corruption", CORRUPTIONS, {k: v for k, v in self.corruption.items() if k != "noise"}),
            _build("backward", BACKWARDS, self.backward),
            [_build(f"probes[{i}]", PROBES, probe) for i, probe in enumerate(self.probes)],
        )

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

        def full(part: Any, table: dict[str, Any]) -> dict[str, Any]:
            return part.model_dump(mode="json") if isinstance(part, BaseModel) else table

        return {
            "source": full(source, self.source),
            "corruption": {**full(corruption, self.corruption), "noise": self.noise},
            "backward": full(backward, self.backward),
            "probes": tuple(full(part, table) for part, table in zip(probes, self.probes, strict=True)),
        }

    def variables(self) -> dict[str, Variable]:
        """What the run measures: {name: Variable}."""
        source, _, _, probes = self.parts
        found: dict[str, Variable] = {}
        for probe in probes:
            for name, variable in probe.variables(source).items():
                if name in found:
                    raise ValueError(f"probes: two of them measure {name!r}; drop one, or put it in an experiment of its own")
                found[name] = variable
        return found

    def coordinates(self) -> dict[str, tuple[tuple[str, ...], Any, dict[str, Any]]]:
        """Coordinates of the results: {name: (dims, values, attributes)}."""
        source, corruption, backward, probes = self.parts
        found: dict[str, tuple[tuple[str, ...], Any, dict[str, Any]]] = {
            name: (("noise",), values, attrs)
            for name, (values, attrs) in backward.noise_coordinates(corruption, self.noise, source).items()
        }
        found["item"] = (("item",), np.arange(self.items), {})
        found["trajectory"] = (("trajectory",), np.arange(self.trajectories), {})
        for name, values in source.coordinates(self.seed, self.items).items():
            found[name] = (("item",), values, {})
        for probe in probes:
            for dim, values in probe.coordinates(source).items():
                found[dim] = ((dim,), values, {})
        return found

    def measure(self, noise_index: int, items: np.ndarray) -> dict[str, np.ndarray]:
        """Readings of some items at one noise level: {variable: array (items, ...)}. The heart of `run`."""
        return next(self.measurements([(None, noise_index, items)]))[1]

    def measurements(self, tasks: Iterable[tuple[Any, int, np.ndarray]]) -> Iterator[tuple[Any, dict[str, np.ndarray]]]:
        """Readings of tasks `(name, noise_index, items)`: `(name, readings)` as in `measure`, in the order in which they end.

        A backward with a method `u_turns` gets all tasks in one stream, so that they can share batches.
        """
        source, corruption, backward, probes = self.parts
        outputs = sorted({output for probe in probes for output in probe.outputs})

        def read(pieces: Iterable[Any]) -> dict[str, np.ndarray]:
            found = [{k: v for probe in probes for k, v in probe.read(u_turns, source).items()} for u_turns in pieces]
            return {name: np.concatenate([piece[name] for piece in found]) for name in found[0]}

        if hasattr(backward, "u_turns"):
            done: dict[int, list[Any]] = {}  # of tasks whose originals come in several blocks

            def batches() -> Iterator[tuple[Any, Any, float]]:
                for number, (name, noise_index, items) in enumerate(tasks):
                    blocks = list(source.blocks(items, self.seed, self.items))
                    done[number] = [None] * len(blocks)
                    for k, originals in enumerate(blocks):
                        yield (number, k, name), originals, self.noise[noise_index]

            for (number, k, name), u_turns in backward.u_turns(batches(), self.seed, self.trajectories):
                done[number][k] = u_turns
                if all(piece is not None for piece in done[number]):
                    yield name, read(done.pop(number))
            return
        for name, noise_index, items in tasks:
            noise = self.noise[noise_index]
            blocks = source.blocks(items, self.seed, self.items)
            yield name, read(backward.u_turn(x, corruption, noise, self.seed, self.trajectories, outputs) for x in blocks)


def run(
    experiment: Experiment,
    store: str | Path | None = None,
    resume: bool = True,
    *,
    workers: int | None = 1,
    progress: bool = False,
    shard: tuple[int, int] = (1, 1),
) -> xr.Dataset:
    """Run an experiment, or what is left of it.

    Parameters
    ----------
    experiment : Experiment
    store : path, optional
        Folder of the zarr store that is filled task by task; in memory if not given.
    resume : bool
        Go on with an existing store of the same experiment (the default), or refuse to touch it.
    workers : int or None
        Processes, which share the cores. None chooses: one for exact inference, whose kernels use all cores by themselves, and
        one a core for networks on the CPU, which do not. Several need a store, and a script guarded by
        `if __name__ == "__main__":`, since the processes import it.
    progress : bool
        Show a progress bar on stderr.
    shard : (i, n)
        Do the i-th of n shares of the tasks, i = 1 .. n, and leave the others to other processes, GPUs or hosts that fill the
        same store, perhaps at the same time; readings that are not done are NaN.

    Returns
    -------
    xarray.Dataset
        Raw readings per item with labelled dims; attributes `spec` (JSON), `spec_hash`, `seed`, `models`, `versions`. Numbers
        depend on the experiment alone, not on the order of tasks or on interruptions; nor on `chunk` and `workers`, for exact
        inference in a single bit, for networks up to float rounding.

    Raises
    ------
    ValueError
        If the store holds another experiment (the message names the difference) or cannot be read. Nothing in it is touched.
    """
    if not isinstance(experiment, Experiment):
        raise ValueError(f"experiment = {_short(experiment)}: expected an Experiment (Experiment.from_dict makes one)")
    workers = None if workers is None else checked_integer("workers", workers, 1)
    store = None if store is None else checked_path("store", store)
    try:
        number, shares = (checked_integer("shard", part, 1) for part in shard)
    except (TypeError, ValueError):
        raise ValueError(f"shard = {shown(shard)}: expected (i, n) with 1 <= i <= n") from None
    if number > shares:
        raise ValueError(f"shard = {number}/{shares}: expected i/n with 1 <= i <= n")
    if shares > 1 and store is None:
        raise ValueError(f"shard = {number}/{shares}: shares meet in one store; give its folder")
    experiment = Experiment.from_dict(experiment.to_dict())  # defaults filled in, parts checked, however it was made
    opened = _open(experiment, store, resume)
    tasks = list(opened.tasks())
    if shares > 1 or workers != 1 or hasattr(experiment.parts[2], "u_turns"):
        # Long U-turns first: processes, and the places of a batch, end at about the same time. Dealt out, shares are alike.
        tasks = sorted(tasks, key=lambda task: -experiment.noise[task.noise_index])[number - 1 :: shares]
    todo = [task for task in tasks if not opened.is_done(task)]
    with progress_bar(progress, opened.where, len(tasks), len(tasks) - len(todo)) as advance:
        if workers is None:
            workers = cores() if getattr(experiment.parts[2], "wants_processes", False) else 1
        workers = min(workers, len(todo))
        if workers <= 1 or store is None:
            named = ((task, task.noise_index, opened.items(task)) for task in todo)
            for task, readings in experiment.measurements(named):
                opened.write(task, readings)
                advance()
        else:
            spec = json.dumps(experiment.to_dict())
            for _ in in_processes(_run_task, [(spec, str(store), task) for task in todo], workers):
                advance()
    return opened.dataset()


def _open(experiment: Experiment, store: str | Path | None, resume: bool) -> Store:
    source, _, backward, probes = experiment.parts
    models = {"backward": backward.fingerprint()} | {f"probes[{i}]": probe.fingerprint() for i, probe in enumerate(probes)}
    if hasattr(source, "fingerprint"):
        models["source"] = source.fingerprint()
    attributes = {
        "spec": json.dumps(experiment.to_dict()),
        "identity": json.dumps(experiment.identity()),
        "spec_hash": experiment.hash,
        "seed": experiment.seed,
        "models": json.dumps(models),
        "versions": json.dumps(_versions()),
    }
    if hasattr(backward, "describe"):
        attributes["description"] = backward.describe()
    if store is None or not Path(store).exists() or (Path(store).is_dir() and not any(Path(store).iterdir())):
        if hasattr(source, "skipped"):  # files that cannot be read
            attributes["skipped"] = json.dumps(source.skipped(experiment.items))
        opened = Store.create(store, experiment.variables(), experiment.coordinates(), experiment.chunk, attributes)
        if opened is not None:
            return opened
    elif not resume:
        raise ValueError(f"{store} exists already; choose another folder, or go on with it (resume=True)")
    assert store is not None
    opened = Store.open(store)
    for what, mine, stored in [
        ("spec", experiment.identity(), json.loads(opened.attributes["identity"])),
        ("models", models, json.loads(opened.attributes["models"])),
    ]:
        differences = _differences(stored, mine, what)
        if differences:
            raise ValueError(f"{store} holds another experiment: {'; '.join(differences[:4])}; choose another folder")
    opened.restore(experiment.variables(), experiment.coordinates())
    return opened


def _run_task(spec: str, store: str, task: Task) -> None:
    experiment, opened = _reopened(spec, store)
    opened.write(task, experiment.measure(task.noise_index, opened.items(task)))


@lru_cache(maxsize=1)
def _reopened(spec: str, store: str) -> tuple[Experiment, Store]:
    return Experiment.from_dict(json.loads(spec)), Store.open(store)


_MEMBERS = {
    "source": ("blocks", "coordinates"),
    "corruption": ("unit", "max_noise"),
    "backward": ("u_turn", "noise_coordinates", "fingerprint"),
    "probes": ("outputs", "variables", "coordinates", "read", "fingerprint"),
}


def _build(name: str, known: Mapping[str, type], table: Mapping[str, Any]) -> Any:
    """The object that a table of the spec describes."""
    kind = table.get("type")
    options = {key: value for key, value in table.items() if key != "type"}
    if isinstance(kind, str) and ":" in kind:
        module, _, attribute = kind.partition(":")
        try:
            cls = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"{name}.type = {kind!r} cannot be imported ({error}); expected 'module:Class'") from None
    elif isinstance(kind, str) and kind in known:
        cls = known[kind]
    else:
        raise ValueError(f"{name}.type = {kind!r}: expected one of {list(known)}, or 'module:Class'")
    try:
        part = cls(**options)
        missing = [member for member in _MEMBERS[name.partition("[")[0]] if not hasattr(part, member)]
        if missing:
            raise ValueError(f"{name}.type = {kind!r} has no {missing[0]!r}; see the protocols in docs/experiments.md")
        return part
    except ValidationError as error:
        raise ValueError(f"{name}: {_one_line(error)}") from None
    except TypeError as error:
        raise ValueError(f"{name}: {error}") from None


def _one_line(error: ValidationError) -> str:
    def words(entry: Any) -> str:
        where = ".".join(str(part) for part in entry["loc"])
        message = entry["msg"].removeprefix("Value error, ")
        value = "" if entry["type"] in ("missing", "value_error") else f" = {entry['input']!r}"
        return f"{where}{value}: {message}" if where else message

    return "; ".join(words(entry) for entry in error.errors())


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
    return [] if same else [f"{where} is {_short(stored)} in the store, {_short(mine)} here"]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("uturn", "numpy", "numba", "torch", "diffusers", "zarr"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
