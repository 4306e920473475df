"""Labelled, resumable results: one zarr group for a run, one chunk of every variable for a task.

A task is one noise level and one block of items. It writes only its own chunks, each in one atomic step and with a checksum, and
then a record: the numbers of trajectories and clones that are done, and for every variable a digest of its values, its noise
level and its items. Therefore workers need no locks, and a chunk in the wrong place is detected. Only `Store.states` decides
which tasks are done; the attributes `complete` and `missing_tasks` store its result.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, groupby, islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import zarr
from numcodecs.zstd import decompress
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.sync import sync
from zarr.registry import register_codec

from uturn.core.checks import StoreError, checked_integer, one_line, shown
from uturn.core.files import named_errors
from uturn.core.protocols import Coordinates
from uturn.core.protocols import Variable as Variable
from uturn.store.objects import AT_ONCE, StorageError
from uturn.store.places import Place, called, place_of

if TYPE_CHECKING:
    import xarray as xr

FORMAT, VERSION = "uturn.store", 5
_READABLE = (3, 4, VERSION)  # version 3 lacks reading instructions; specs up to version 4 contain defaults
State = Literal["done", "part", "missing", "damaged"]
_RECORDS = "tasks/records"  # a separate group, which xarray does not read with the results
_MOST_TASKS = 2**24
_MOST_LABELS = 2**25  # of a coordinate; a few kilobytes may promise gigabytes
_MOST_TEXT = 2**28  # bytes of the labels of a coordinate
_MOST_WARNINGS, _LONGEST_WARNING = 50, 1000  # shown; characters
_CODECS = {"bytes", "vlen-utf8", "zstd", "crc32c"}  # of the arrays of a store
_CLONES_AT = 32  # bit of the first number of a record where the number of clones begins; 0 stands for all clones
_TOLERANCE = 1e-7  # tolerance of coordinates, since versions may use different quadratures
_T = TypeVar("_T")


class _Bounded(ZstdCodec):
    """Decodes a chunk if it has no more bytes than its array says: a few kilobytes may promise gigabytes."""

    def _decode_sync(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        dtype = chunk_spec.dtype.to_native_dtype()
        size = math.prod(chunk_spec.shape) * dtype.itemsize if dtype.kind in "biuf" else _MOST_TEXT
        try:  # what does not fit is found before it is decoded
            decompress(chunk_bytes.as_numpy_array(), np.empty(max(size - 1, 0), np.uint8))
        except ValueError as error:
            if f"at least {size}," not in str(error):
                raise
        return super()._decode_sync(chunk_bytes, chunk_spec)


register_codec("zstd", _Bounded, qualname=f"{__name__}.{_Bounded.__name__}")


@dataclass(frozen=True)
class Task:
    """One noise level and one block of items: the unit of work, of storage and of resuming."""

    noise_index: int
    item_block: int


@dataclass(eq=False, repr=False)
class Blocks:
    """Noise levels and items of a run, cut into tasks."""

    chunk: int
    num_items: int
    noise: Any

    def tasks(self) -> Iterator[Task]:
        """All tasks, block by block."""
        for block in range(-(-self.num_items // self.chunk)):
            for level in range(len(self.noise)):
                yield Task(level, block)

    def items(self, task: Task) -> np.ndarray:
        """Item numbers of a task."""
        start = task.item_block * self.chunk
        return np.arange(start, min(start + self.chunk, self.num_items))

    def words(self, task: Task) -> str:
        """A task as text: its noise level and its items."""
        items = self.items(task)
        return f"noise {self.noise[task.noise_index]:g}, items {items[0]}..{items[-1]}"

    def _region(self, task: Task) -> tuple[slice, slice]:
        start = task.item_block * self.chunk
        return slice(task.noise_index, task.noise_index + 1), slice(start, start + self.chunk)


class MemoryStore(Blocks):
    """The results of a run in memory, with the methods of `Store` that a run needs."""

    where = "memory"

    def __init__(
        self, variables: Mapping[str, Variable], coordinates: Coordinates, chunk: int, attributes: Mapping[str, Any]
    ) -> None:
        self.noise, self.num_items, self.chunk = list(coordinates["noise"][1]), len(coordinates["item"][1]), chunk
        self.variables, self.coordinates, self.attributes = variables, coordinates, attributes
        self.dims = {name: variable.dims for name, variable in variables.items()}
        shapes = {name: _shape(variable, coordinates) for name, variable in variables.items()}
        self.values = {name: np.full(shape, np.nan, np.float32) for name, shape in shapes.items()}
        self.missing = set(self.tasks())

    def done(self, tasks: Iterable[Task]) -> dict[Task, int]:
        """Number of trajectories done of each task: none at the start of a run."""
        return dict.fromkeys(tasks, 0)

    def write(self, task: Task, arrays: Mapping[str, np.ndarray]) -> None:
        """Store the readings of a task, {variable: array (items, ...)}."""
        for name, values in self.values.items():
            values[self._region(task)] = arrays[name][None]
        self.missing.discard(task)

    def update(self, **attributes: Any) -> None:
        """Set attributes."""
        self.attributes = {**self.attributes, **attributes}

    def finishing(self) -> AbstractContextManager[Callable[..., None]]:
        """Context whose value calls a function; nothing is left to write at the end."""
        return nullcontext(called)

    def dataset(self, look: bool = False) -> xr.Dataset:
        """The run as a labelled dataset."""
        import xarray as xr

        about = _about(self.chunk, self.variables, len(self.missing))
        return xr.Dataset(
            {name: (self.dims[name], values, attributes_of(self.variables[name])) for name, values in self.values.items()},
            coords={name: (dims, as_read(values), attrs) for name, (dims, values, attrs) in self.coordinates.items()},
            attrs={**about, **self.attributes},
        )


class Store(Blocks):
    """The results of a run in a folder or on object storage: created once, filled task by task.

    `xarray.open_zarr` reads them.
    """

    def __init__(self, group: zarr.Group, place: Place) -> None:
        self.group, self.place, self.where = group, place, place.where
        self.chunk = int(group.attrs["chunk"])  # type: ignore[arg-type]
        self.variables = [str(name) for name in group.attrs["variables"]]  # type: ignore[union-attr]
        self._arrays: dict[str, Any] = {}
        self._array(_RECORDS)  # opened here, like the variables, because zarr's settings are not thread-safe
        self.dims = {name: tuple(self._array(name).metadata.dimension_names) for name in self.variables}
        self.num_items = int(self._array("item").shape[0])
        self.trajectories = int(self._array("trajectory").shape[0])
        self.clones = int(self._array("clone").shape[0]) if "clone" in group else 1
        self._identity = place.identity()

    @classmethod
    def create(
        cls,
        path: str | Path | Place,
        variables: Mapping[str, Variable],
        coordinates: Coordinates,
        chunk: int,
        attributes: Mapping[str, Any],
    ) -> Store | None:
        """Create an empty store at a place.

        The store appears there in one step, so an interruption leaves no store or a complete one. Returns None if another
        process has created a store there in the meantime.
        """
        place = place_of("store", path)
        try:
            with place.whole(replace=False) as unfinished:
                _laid_out(str(unfinished), variables, coordinates, chunk, attributes)
        except StorageError:
            raise
        except ValueError:
            if not place.is_empty():
                return None
            raise
        return cls.open(place)

    @classmethod
    def open(cls, path: str | Path | Place) -> Store:
        """Open an existing store at a path or URL; ValueError if there is none, or if its layout is damaged."""
        place = place_of("store", path)
        path = place.where
        if place.is_empty():
            raise ValueError(f"no store at {path}; `uturn run SPEC --store {path}` makes one")
        advice = "if it was cut short while being copied, copy it again; else choose another folder"
        try:
            place.check_plain()
            target = place.target()
            group = zarr.open_group(target, mode="r+", use_consolidated=False, zarr_format=3)
            form, version = (group.attrs.get(key) for key in ("format", "version"))
            if form != FORMAT or version not in _READABLE:
                advice = "another version of uturn or another program made it"
                raise ValueError(f"it has format {shown(form)} and version {shown(version)}, not {FORMAT!r} and {VERSION}")
            if _RECORDS not in group:
                advice = "copy it again; if Dataset.to_zarr wrote it, give `store` to uturn.run or uturn.readings instead"
                raise ValueError("its readings have no digests")
            _check_layout(group, zarr.open_group(target, mode="r", use_consolidated=True, zarr_format=3))
            return cls(group, place)
        except StorageError:
            raise
        except Exception as error:
            raise ValueError(f"{path} is not a readable store: {_reason(error)}; {advice}") from None

    def restore(self, variables: Mapping[str, Variable], coordinates: Coordinates) -> None:
        """Check the layout against the spec, and rewrite damaged coordinates.

        Real coordinates may differ by 1e-7 (absolute plus relative). Noise levels must be equal, since the digests of readings
        contain them.
        """
        layout = {name: (variable.dims, _shape(variable, coordinates)) for name, variable in variables.items()}
        stored_layout = {name: (self.dims[name], self._array(name).shape) for name in self.variables}
        different = [name for name in {**stored_layout, **layout} if stored_layout.get(name) != layout.get(name)]
        shapes = {name: np.shape(values) for name, (_, values, _) in coordinates.items()}
        different += [name for name in shapes if _decoded(lambda name: self._array(name).shape, name) != shapes[name]]
        if different:
            raise ValueError(
                f"{self.where} was made by another version of uturn: {different[0]!r} is not as here; choose another folder"
            )
        for name, (_, values, _) in coordinates.items():
            expected, stored = _writable(values), self._stored(name)
            if stored is None or not _agree(stored, expected, 0 if name == "noise" else _TOLERANCE):
                warnings.warn(f"{self.where}: the coordinate {name} is damaged; it is written again", stacklevel=3)
                with named_errors(self.where):
                    self._array(name)[...] = expected
        self.noise = [float(x) for x in coordinates["noise"][1]]

    @cached_property
    def noise(self) -> list[float]:
        """The noise levels in the store."""
        return [float(x) for x in np.asarray(self.coordinate("noise")).ravel()]

    def coordinate(self, name: str) -> np.ndarray | None:
        """Values of a coordinate in the store; None if there is no coordinate of this name."""
        if _decoded(self.group.__contains__, name) is False:
            return None
        values = self._stored(name)
        if values is None:
            raise ValueError(
                f"{self.where}: the coordinate {name} is damaged; `uturn run` with the same spec writes it again, else copy the "
                f"store again"
            )
        return values

    def _stored(self, name: str) -> np.ndarray | None:
        """Values of a coordinate; None if they cannot be read. Up to version 4 stores have no chunks of zeros."""
        array = _decoded(self._array, name)
        if array is None or array.size > _MOST_LABELS:
            return None
        chunks = 0 if not array.size or self.group.attrs["version"] in (3, 4) else _decoded(lambda: array.nchunks)
        if chunks is None or len(_keys_under(self.group.store, f"{name}/c/")) < chunks:
            return None
        values = _decoded(array.__getitem__, ...)
        return None if values is None else np.asarray(values)

    def check_coordinates(self) -> None:
        """ValueError if a coordinate cannot be read: one that a variable, the consolidated metadata or a folder names."""
        written = zarr.open_group(self.group.store, mode="r", use_consolidated=True, zarr_format=3)
        named = {*chain(*self.dims.values()), *written.array_keys()}
        for names in (lambda: named, lambda: set(self.group.array_keys()) - named):
            if (found := _decoded(names)) is None:
                raise ValueError(f"{self.where}: a coordinate is damaged; copy the store again")
            for name in found.difference(self.variables):
                if self.coordinate(name) is None:
                    raise ValueError(f"{self.where}: the coordinate {name} is missing; copy the store again")
                # Another store in the same folder may have left a further axis of noise, or other metadata.
                if name not in written or written[name].metadata.to_dict() != self._array(name).metadata.to_dict():
                    raise ValueError(
                        f"{self.where}: the coordinate {name} is not of this store; copy the store into an empty folder"
                    )

    @property
    def attributes(self) -> dict[str, Any]:
        """A copy of the attributes."""
        return dict(self.group.attrs)

    @property
    def is_made_elsewhere(self) -> bool:
        """Whether it holds readings that `uturn.readings` stored."""
        return json.loads(self.attributes["identity"]).get("backward") == {"type": "readings"}

    def update(self, **attributes: Any) -> None:
        """Write attributes, in one atomic step."""
        with named_errors(self.where):  # keep the consolidated metadata, which zarr's own update drops
            self.place.change_root(lambda layout: layout["attributes"].update(attributes))
        self.group.metadata.attributes.update(attributes)

    # -- tasks ---------------------------------------------------------------------------------------------------------
    def states(self, tasks: Iterable[Task] | None = None, *, look: bool = True) -> dict[Task, tuple[State, int]]:
        """State of each task, and its number of finished trajectories.

        "done": all trajectories and clones. "part": fewer, since some were added to the run. "missing": no record, or no
        chunk. "damaged": the record or the values cannot be read, or the values do not match the digests in the record. The
        number of trajectories is 0 for "missing", "damaged", and tasks with fewer clones, which are measured again completely.

        Parameters
        ----------
        tasks
            All tasks by default.
        look
            Whether to read all readings. If False, damaged values are not detected.
        """
        written = set().union(*(_keys_under(self.group.store, f"{name}/c/") for name in self.variables))
        records, tasks = self._records(), list(self.tasks() if tasks is None else tasks)

        def state(task: Task) -> tuple[State, int]:
            record = records[task.noise_index, task.item_block]
            count, clones = self._held(record)
            if count == 0 or not written.issuperset(self._chunk_key(name, task) for name in self.variables):
                return "missing", 0
            if count > self.trajectories or clones > self.clones or (look and not self._is_sound(task, record)):
                return "damaged", 0
            if clones < self.clones:
                return "part", 0
            return ("done" if count == self.trajectories else "part"), count

        return dict(zip(tasks, self.place.at_once(state, tasks), strict=True))

    def done(self, tasks: Iterable[Task]) -> dict[Task, int]:
        """Number of trajectories done of each task, as in `states`; warns of damaged tasks, which count as missing."""
        return {task: count for task, (_, count) in self._checked(tasks).items()}

    def recorded(self, tasks: Sequence[Task]) -> dict[Task, int]:
        """Number of trajectories done of each task according to its record; damaged readings are not detected.

        Tasks with damaged records count as missing.
        """
        counts: dict[Task, int] = {}
        for level, group in groupby(sorted(tasks, key=lambda task: task.noise_index), key=lambda task: task.noise_index):
            blocks = [task.item_block for task in group]
            # One read for the whole span, since the records of a bundle are close together.
            records = self._records_in(slice(level, level + 1), slice(min(blocks), max(blocks) + 1))[0]
            for block in blocks:
                count, clones = self._held(records[block - min(blocks)])
                counts[Task(level, block)] = count if clones == self.clones else 0
        return counts

    def forget(self, tasks: Iterable[Task]) -> None:
        """Clear the records of tasks with damaged readings."""
        for task in tasks:
            self._array(_RECORDS)[task.noise_index, task.item_block] = 0

    def _checked(self, tasks: Iterable[Task]) -> dict[Task, tuple[State, int]]:
        """States of tasks; warns of damaged tasks."""
        states = self.states(tasks)
        for task in (task for task, (state, _) in states.items() if state == "damaged"):
            self._check_still_there()
            chunk = self._chunk_key(self.variables[0], task)
            warnings.warn(
                f"{self.where}: the chunk {chunk} ({self.words(task)}) is damaged: it cannot be read, or holds the values of "
                f"another noise level or other items; it is computed again",
                stacklevel=2,
            )
        return states

    def _held(self, record: np.ndarray) -> tuple[int, int]:
        """Numbers of trajectories and clones stored for a task with this record."""
        clones, trajectories = divmod(int(record[0]), 2**_CLONES_AT)
        return trajectories, clones or self.clones

    def _is_sound(self, task: Task, record: np.ndarray) -> bool:
        """Whether the readings of a task match the digests of its record."""
        values = _decoded(self.read, task, *self._held(record))
        digests = None if values is None else [self._digest(name, task, values[name]) for name in self.variables]
        return digests == record[1:].tolist()

    def read(self, task: Task, trajectories: int, clones: int | None = None) -> dict[str, np.ndarray]:
        """Stored readings of the first trajectories and clones (by default all) of a task, {variable: float32 (items, ...)}."""
        stored = {name: self._array(name)[self._region(task)][0] for name in self.variables}
        return {name: self._first(name, values, trajectories, clones) for name, values in stored.items()}

    def write(
        self, task: Task, arrays: Mapping[str, np.ndarray], trajectories: int | None = None, clones: int | None = None
    ) -> None:
        """Store the readings of the first trajectories and clones of a task (by default all), {variable: array (items, ...)}.

        Readings that compare clones with each other are stored only if all clones are present.
        """
        count = self.trajectories if trajectories is None else trajectories
        fewer_clones = clones is not None and clones < self.clones
        record = [count + (clones << _CLONES_AT if clones is not None and fewer_clones else 0)]
        name, chunks = _RECORDS, {}
        try:
            self._check_still_there()
            for name in self.variables:
                if (count < self.trajectories or fewer_clones) and "trajectory" in self.dims[name]:
                    full = np.full((len(self.items(task)), *self._array(name).shape[2:]), np.nan, np.float32)
                    values = self._first(name, full, count, clones)
                    if values.size:
                        values[...] = arrays[name]
                else:
                    values = full = np.ascontiguousarray(arrays[name], np.float32)
                record.append(self._digest(name, task, values))
                chunks[name] = full[None]
            self.place.at_once(lambda name: self._array(name).__setitem__(self._region(task), chunks[name]), chunks)
            name = _RECORDS
            self._array(_RECORDS)[task.noise_index, task.item_block] = np.array(record, np.uint64)
        except OSError as error:
            raise StoreError(
                f"{self.where}: cannot write {name} ({error.strerror or error}); what was written before is safe: free some "
                f"space, or give access, and run it again to resume"
            ) from None

    def with_kept_clones(self, task: Task, readings: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Readings of a task to which clones were added, with the stored readings of its first clones put in their places."""
        record = _decoded(self._array(_RECORDS).__getitem__, (task.noise_index, task.item_block))
        joined = dict(readings)
        if record is None:  # damaged
            return joined
        trajectories, clones = self._held(record)
        if trajectories and clones < self.clones and self._is_sound(task, record):
            for name, values in self.read(task, trajectories, clones).items():
                if "clone" in self.dims[name] and values.size:
                    joined[name] = np.array(joined[name], np.float32)
                    self._first(name, joined[name], trajectories, clones)[...] = values
        return joined

    @contextmanager
    def finishing(self) -> Iterator[Callable[..., None]]:
        """Context that writes the number of missing tasks to the attributes at its end, also after an interruption.

        Its value calls a function that writes, as in `Place.in_background`.
        """
        try:
            with self.place.in_background() as call:
                yield call
        except BaseException as error:
            if not isinstance(error, StorageError):  # a storage that does not answer cannot be written to
                with suppress(ValueError):  # on a full disk, the first error is the one to report
                    self._finish()
            raise
        self._finish()

    def _finish(self) -> None:
        while self.attributes.get("missing_tasks") != (missing := self._num_missing(look=False)):  # others may write too
            self.update(complete=missing == 0, missing_tasks=missing)

    def _num_missing(self, look: bool) -> int:
        levels, blocks, _ = self._array(_RECORDS).shape
        done = sum(state == "done" for state, _ in self.states(self._recorded_tasks(), look=look).values())
        return levels * blocks - done

    def dataset(self, look: bool = True) -> xr.Dataset:
        """The run as a labelled dataset, read lazily.

        The attributes `complete` and `missing_tasks` are computed by reading all readings; if `look` is False, they are the
        values written by the last process at its end.
        """
        import xarray as xr

        if look:
            self.check_coordinates()
        # Attributes in a store that would rescale values or convert them to dates are ignored.
        try:
            ds = xr.open_zarr(
                self.group.store, zarr_format=3, consolidated=False, chunks=None, mask_and_scale=False, decode_times=False
            )
            ds = ds.set_coords(set(ds.data_vars).difference(self.variables))  # CF has no names with blanks
        except StorageError:
            raise
        except Exception as error:  # xarray raises many kinds for metadata of coordinates that are damaged
            raise ValueError(f"{self.where} is not a readable store: {_reason(error)}; copy it again") from None
        if not look:
            return ds
        missing = self._num_missing(look=True)
        return ds.assign_attrs(complete=missing == 0, missing_tasks=missing)

    # -- a larger run --------------------------------------------------------------------------------------------------
    def extend(
        self, variables: Mapping[str, Variable], coordinates: Coordinates, chunk: int, attributes: Mapping[str, Any]
    ) -> Store:
        """Replace this store by the store of a larger run, with the present readings; returns the new store.

        The larger run contains all noise levels, items, trajectories and clones of this run. Its store is filled in another
        folder and replaces this store in one step, so an interruption leaves the old store or the new one.
        """
        with self.place.whole() as unfinished:
            _laid_out(str(unfinished), variables, coordinates, chunk, attributes)
            larger = Store.open(unfinished)
            held, tasks = self._held_by(self._checked(self.tasks())), larger.tasks()
            while some := list(islice(tasks, AT_ONCE)):  # in groups, to limit memory
                stored = self.place.at_once(
                    lambda task: self._readings_of(larger.noise[task.noise_index], larger.items(task), held), some
                )
                for task, (readings, count, clones) in zip(some, stored, strict=True):
                    for name in readings:
                        if "clone" in larger.dims[name] and "clone" not in self.dims[name]:
                            readings[name] = np.expand_dims(readings[name], larger.dims[name].index("clone") - 1)
                    if count:
                        larger.write(task, readings, count, clones)
            larger._finish()
        return Store.open(self.place)

    def _readings_of(
        self, noise: float, items: np.ndarray, held: Mapping[Task, tuple[int, int]]
    ) -> tuple[dict[str, np.ndarray], int, int]:
        """Readings of items at a noise level, and numbers of their trajectories and clones, 0 unless all items are stored.

        `held`: numbers of trajectories and clones of each task that can be read.
        """
        tasks, count, clones = self._tasks_with(noise, items, held)
        if not tasks:
            return {}, 0, 0
        stored = [self.read(task, count, clones) for task in tasks]
        first = items[0] - tasks[0].item_block * self.chunk
        joined = {name: np.concatenate([values[name] for values in stored]) for name in self.variables}
        return {name: values[first : first + len(items)] for name, values in joined.items()}, count, clones

    def _tasks_with(self, noise: float, items: np.ndarray, held: Mapping[Task, tuple[int, int]]) -> tuple[list[Task], int, int]:
        """The tasks that hold items at a noise level, and the numbers of trajectories and clones of all of them.

        None unless all items are held.
        """
        if noise not in self.noise or items[-1] >= self.num_items:
            return [], 0, 0
        blocks = range(items[0] // self.chunk, items[-1] // self.chunk + 1)
        tasks = [Task(self.noise.index(noise), block) for block in blocks]
        if not held.keys() >= set(tasks):
            return [], 0, 0
        count, clones = (min(held[task][k] for task in tasks) for k in (0, 1))
        return tasks, count, clones

    def held_of(self, blocks: Blocks, clones: int) -> dict[Task, int]:
        """Numbers of stored trajectories of the tasks of a run, which may be larger; readings are not checked."""
        held, counts = self._held_by(self.states(look=False)), {}
        for task in blocks.tasks():
            _, count, of_each = self._tasks_with(blocks.noise[task.noise_index], blocks.items(task), held)
            counts[task] = count if of_each == clones else 0
        return counts

    def _held_by(self, states: Mapping[Task, tuple[State, int]]) -> dict[Task, tuple[int, int]]:
        """Numbers of stored trajectories and clones of the readable tasks."""
        records = self._records()
        sound = [task for task, (state, _) in states.items() if state in ("done", "part")]
        return {task: self._held(records[task.noise_index, task.item_block]) for task in sound}

    def _check_still_there(self) -> None:
        """ValueError if another process has replaced this store by that of a larger run."""
        if self.place.identity() != self._identity:
            raise StoreError(f"{self.where}: another process has extended the store in the meantime; run it again to resume")

    # -- arrays --------------------------------------------------------------------------------------------------------
    def _array(self, name: str) -> Any:
        if name not in self._arrays:
            # By default zarr does not write chunks that hold only NaN (unknown labels, images that are not kept), and their tasks
            # would stay missing. This setting of the opened array is not stored.
            bounded = f"{__name__}.{_Bounded.__name__}"
            with zarr.config.set({"array.write_empty_chunks": True, "codecs.zstd": bounded}):
                array: Any = self.group[name]
            if not {codec["name"] for codec in array.metadata.to_dict()["codecs"]} <= _CODECS:
                raise ValueError(f"{name}: its codecs are not those of a store")
            self._arrays[name] = array
        return self._arrays[name]

    def _first(self, name: str, values: np.ndarray, trajectories: int, clones: int | None = None) -> np.ndarray:
        """Values (items, ...) of the first trajectories and clones; all values if the variable has no dim "trajectory".

        No values for a variable that compares clones with each other, unless `clones` is the number of all clones.
        """
        dims = self.dims[name]
        if "trajectory" not in dims:
            return values
        clones = self.clones if clones is None else clones
        if clones < self.clones and name.removeprefix("clone_") in self.dims and name.startswith("clone_"):
            clones = 0
        several = (slice(clones),) if "clone" in dims else ()
        return values[(slice(None),) * (dims.index("trajectory") - 1) + (slice(trajectories), *several)]

    def _digest(self, name: str, task: Task, values: np.ndarray) -> int:
        """64-bit digest of values, variable, noise level and items."""
        items = self.items(task)
        about = f"{name} {self.noise[task.noise_index].hex()} {items[0]}..{items[-1]} {values.shape} "
        values = np.ascontiguousarray(values, np.float32)
        return int.from_bytes(hashlib.blake2b(about.encode() + values.tobytes(), digest_size=8).digest(), "little")

    def _records(self) -> np.ndarray:
        """Records of all tasks. Where most are missing, those are not requested: a forged shape may promise millions."""
        records, tasks = np.zeros(self._array(_RECORDS).shape, np.uint64), self._recorded_tasks()
        if 8 * len(tasks) >= records.shape[0] * records.shape[1]:  # reading all is faster
            return self._records_in(slice(None), slice(None))
        for task, record in zip(tasks, self.place.at_once(self._record_of, tasks), strict=True):
            records[task.noise_index, task.item_block] = record
        return records

    def _recorded_tasks(self) -> list[Task]:
        """The tasks that have a record, sound or damaged."""
        levels, blocks, _ = self._array(_RECORDS).shape
        keys = (re.fullmatch(rf"{_RECORDS}/c/(\d+)/(\d+)/0", key) for key in _keys_under(self.group.store, f"{_RECORDS}/c/"))
        tasks = sorted((int(key[1]), int(key[2])) for key in keys if key)
        return [Task(level, block) for level, block in tasks if level < levels and block < blocks]

    def _record_of(self, task: Task) -> np.ndarray:
        level, block = task.noise_index, task.item_block
        return self._records_in(slice(level, level + 1), slice(block, block + 1))[0, 0]

    def _records_in(self, levels: slice, blocks: slice) -> np.ndarray:
        """Number of trajectories done and digests of all variables, uint64 (noise levels, blocks of items, 1 + variables).

        Zero for missing tasks, and the largest uint64 for damaged records.
        """
        array = self._array(_RECORDS)
        records = _decoded(array.__getitem__, (levels, blocks))
        if records is not None:
            return records
        rows, columns = range(array.shape[0])[levels], range(array.shape[1])[blocks]
        records = np.full((len(rows), len(columns), array.shape[2]), np.iinfo(np.uint64).max)
        for (i, row), (j, column) in product(enumerate(rows), enumerate(columns)):
            record = _decoded(array.__getitem__, (row, column))
            if record is not None:
                records[i, j] = record
        return records

    def _chunk_key(self, name: str, task: Task) -> str:
        rest = self._array(name).ndim - 2
        return "/".join([name, "c", str(task.noise_index), str(task.item_block), *["0"] * rest])


def open_run(path: str | Path) -> xr.Dataset:
    """The run in a folder or at a URL, read lazily; ValueError if there is none, or if it is damaged."""
    store = Store.open(path)
    ds = store.dataset()
    if store.is_made_elsewhere and (missing := ds.attrs["missing_tasks"]):
        raise ValueError(f"{store.where}: {missing} chunks of readings are missing or damaged; copy the store again")
    return ds


def write_run(place: Place, run: MemoryStore) -> None:
    """Write a finished run to a place in one step, as `run` stores its results."""
    with place.whole() as unfinished:
        _laid_out(str(unfinished), run.variables, run.coordinates, run.chunk, run.attributes)
        store = Store.open(unfinished)
        fill(store, run.values)
        store._finish()


def fill(store: MemoryStore | Store, arrays: Mapping[str, np.ndarray]) -> None:
    """Write all tasks of a store from the readings of a whole run, {variable: array (noise, items, ..)}."""
    for task in store.tasks():
        store.write(task, {name: values[store._region(task)][0] for name, values in arrays.items()})


def warnings_of(attributes: Mapping[str, Any]) -> list[str]:
    """The sentences in the attribute `warnings` of a run, a JSON list, cut to a readable length; empty if it is damaged."""
    try:
        texts = json.loads(str(attributes.get("warnings", "[]")))
    except (ValueError, RecursionError):
        return []
    texts = [text for text in texts if isinstance(text, str)][:_MOST_WARNINGS] if isinstance(texts, list) else []
    return [text if len(text) <= _LONGEST_WARNING else f"{text[:_LONGEST_WARNING]} .." for text in texts]


def _decoded(read: Callable[..., _T], *args: Any) -> _T | None:
    """The result of a function that reads; None if zarr cannot decode the data, for which it raises many kinds of errors."""
    try:
        return read(*args)
    except StorageError:  # the storage failed; the chunks may be intact
        raise
    except Exception:
        return None


def _keys_under(store: Any, prefix: str) -> list[str]:
    async def collected() -> list[str]:
        return [key async for key in store.list_prefix(prefix)]

    return sync(collected())


def _reason(error: Exception) -> str:
    """The reason for which a store cannot be opened, as text."""
    if isinstance(error, FileNotFoundError | FileExistsError):
        return "it is no folder with a zarr.json"
    if isinstance(error, json.JSONDecodeError):
        return f"its metadata are not valid JSON ({one_line(error)})"
    return f"it has no {error}" if isinstance(error, KeyError) else one_line(error)


def _check_layout(group: zarr.Group, consolidated: zarr.Group) -> None:
    """ValueError, KeyError or TypeError if attributes, arrays and the consolidated metadata do not agree."""
    attrs: Any = dict(group.attrs)
    arrays: Any = group
    names, chunk = attrs["variables"], checked_integer("chunk", attrs["chunk"], 1)
    identity, *others = (json.loads(attrs[name]) for name in ("identity", "spec", "models"))
    levels, items = (arrays[dim].shape[0] for dim in ("noise", "item"))
    sizes = {"items": items, "trajectories": arrays["trajectory"].shape[0], "chunk": chunk}
    sizes["clones"] = arrays["clone"].shape[0] if "clone" in group else 1
    agree = {
        "variables": isinstance(names, list) and len(names) > 0,
        "spec and models": all(isinstance(table, dict) for table in others),
        "coordinates": not {"noise", "item", "trajectory", *names} & set(str(attrs.get("coordinates")).split()),
        "identity": {"clones": 1, **identity} | sizes == {"clones": 1, **identity}
        and len(identity["corruption"]["noise"]) == levels,
        "dims": all(
            arrays[dim].metadata.dimension_names == (dim,) for dim in ("noise", "item", "trajectory", "clone") if dim in group
        ),
        "number of tasks": levels * items <= _MOST_TASKS * chunk,  # a forged shape could exhaust the memory
        _RECORDS: arrays[_RECORDS].shape == (levels, -(-items // chunk), 1 + len(names)) and arrays[_RECORDS].fill_value == 0,
    }
    for name in names:
        array = arrays[name]
        shape = sum((arrays[dim].shape for dim in array.metadata.dimension_names), ())
        agree[name] = (
            array.shape == shape
            and shape[:2] == (levels, items)
            and array.chunks == (1, min(chunk, items), *shape[2:])
            and array.dtype == np.float32
            and np.isnan(array.fill_value)
            and set(array.attrs) - {"reading"} == {"long_name"}
            and consolidated[name].metadata.to_dict() == array.metadata.to_dict()
        )
    for name, agrees in agree.items():
        if not agrees:
            raise ValueError(f"{name}: its layout does not agree with the others")


def _laid_out(
    target: Any,
    variables: Mapping[str, Variable],
    coordinates: Coordinates,
    chunk: int,
    attributes: Mapping[str, Any],
) -> zarr.Group:
    """Create the arrays and attributes of an empty store in an empty zarr group."""
    group = zarr.open_group(target, mode="w", zarr_format=3)
    compressors = (ZstdCodec(level=3), Crc32cCodec())
    for name, (dims, values, attrs) in coordinates.items():
        array = _writable(values)
        made = group.create_array(
            name,
            shape=array.shape,
            dtype=str if array.dtype == object else array.dtype,
            dimension_names=dims,
            compressors=compressors,  # with a checksum, since no digest protects labels
            attributes=attrs,
            config={"write_empty_chunks": True},  # write every chunk, so that a missing file is detected
        )
        if array.size:
            made[...] = array
    for name, variable in variables.items():
        shape = _shape(variable, coordinates)
        group.create_array(
            name,
            shape=shape,
            chunks=(1, min(chunk, shape[1]), *shape[2:]),
            dtype="float32",
            fill_value=float("nan"),
            dimension_names=variable.dims,
            compressors=compressors,
            attributes=attributes_of(variable),
        )
    levels, blocks = len(coordinates["noise"][1]), -(-len(coordinates["item"][1]) // chunk)
    group.create_array(
        _RECORDS,
        shape=(levels, blocks, 1 + len(variables)),
        chunks=(1, 1, 1 + len(variables)),
        dtype="uint64",
        fill_value=0,
        compressors=compressors,
        attributes={"long_name": "trajectories (and clones) done, then a digest of every variable"},
    )
    # CF convention: names of the coordinates that are not dims, separated by blanks.
    others = " ".join(name for name, (dims, _, _) in coordinates.items() if dims != (name,) and not any(map(str.isspace, name)))
    about = _about(chunk, variables, levels * blocks)
    group.attrs.update({**about, "coordinates": others, **attributes})
    _consolidate(target)
    return group


def _about(chunk: int, variables: Iterable[str], missing: int) -> dict[str, Any]:
    about = {"format": FORMAT, "version": VERSION, "chunk": chunk, "variables": list(variables)}
    return {**about, "complete": missing == 0, "missing_tasks": missing}


def attributes_of(variable: Variable) -> dict[str, Any]:
    """The attributes of the array of a variable: its description and its reading instructions."""
    instructions = variable.instructions()
    return {"long_name": variable.long_name, **({"reading": json.dumps(instructions)} if instructions else {})}


def _writable(values: Any) -> np.ndarray:
    """Values of a coordinate in the types of zarr: text as objects."""
    array = np.asarray(values)
    return array.astype(object) if array.dtype.kind == "U" else array


def as_read(values: Any) -> np.ndarray:
    """Values of a coordinate in the types in which zarr reads them."""
    array = _writable(values)
    return array.astype(np.dtypes.StringDType()) if array.dtype == object else array


def _agree(stored: np.ndarray, wanted: np.ndarray, tolerance: float) -> bool:
    """Whether two coordinates agree: text and integers exactly, real numbers up to a tolerance; NaN equals NaN."""
    if stored.dtype.kind == wanted.dtype.kind == "f" and stored.shape == wanted.shape:
        return bool(np.allclose(stored, wanted, rtol=tolerance, atol=tolerance, equal_nan=True))
    return np.array_equal(stored, wanted)


def _shape(variable: Variable, coordinates: Coordinates) -> tuple[int, ...]:
    return tuple(len(coordinates[dim][1]) for dim in variable.dims)


def _consolidate(where: Any) -> None:
    """Collect the metadata of all arrays in the file that readers open first."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        zarr.consolidate_metadata(where, zarr_format=3)


class Scratch:
    """An empty store in memory, to compute the sizes of files."""

    def __init__(
        self, variables: Mapping[str, Variable], coordinates: Coordinates, chunk: int, attributes: Mapping[str, Any]
    ) -> None:
        self._files: dict[str, Any] = {}
        group = _laid_out(zarr.storage.MemoryStore(self._files), variables, coordinates, chunk, attributes)
        with zarr.config.set({"array.write_empty_chunks": True}):
            self._arrays: dict[str, Any] = {name: group[name] for name in (*variables, _RECORDS)}
        self.files, self.size = len(self._files), sum(map(len, self._files.values()))

    def sizes_of(self, readings: Mapping[str, np.ndarray]) -> dict[str, int]:
        """Bytes of the files of a task with these readings (items, ...), and of its record (under the name "")."""
        sizes = {
            name: self._written(name, (slice(1), *map(slice, values.shape)), np.asarray(values, np.float32)[None])
            for name, values in readings.items()
        }
        digests = np.random.default_rng(0).integers(2**63, size=len(readings), dtype=np.uint64)
        return {**sizes, "": self._written(_RECORDS, (0, 0), np.r_[np.uint64(1), digests])}

    def _written(self, name: str, place: Any, values: np.ndarray) -> int:
        before = set(self._files)
        self._arrays[name][place] = values
        (new,) = set(self._files) - before
        return len(self._files.pop(new))
