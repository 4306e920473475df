"""Labelled, resumable results: one zarr group for a run, one chunk of every variable for a task,
then the record of the task.

Only `Store.states` decides which tasks are done. `zarr.json` has all metadata that are read, and is
written last. Its attribute `levels` has the noise levels in the order in which they were appended;
`Store.dataset` gives them in that of the spec.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import zarr
from numcodecs.zstd import decompress
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.registry import register_codec

from uturn.core.checks import expect
from uturn.core.errors import StoreError
from uturn.core.files import check_plain, whole_folder
from uturn.core.messages import one_line, shown
from uturn.core.protocols import Coordinate, Coordinates
from uturn.core.protocols import Variable as Variable
from uturn.store.places import (
    AT_ONCE,
    ROOT,
    at_once,
    failures,
    failures_named,
    files_at,
    is_empty,
    is_url,
    listed,
    place_of,
    read,
    whole,
    write,
)

if TYPE_CHECKING:
    import xarray as xr

FORMAT, VERSION = "uturn.store", 6
State = Literal["done", "part", "missing", "damaged"]
GROWING = ("noise", "item", "trajectory")
"""Dims along which a store grows."""
_RECORDS = "tasks/records"  # a separate group, which xarray does not read with the results
# Entries of a chunk of a coordinate along a growing dim, so that the chunk stays as it is when the
# run grows.
_ROOM = 4096
_MOST_TASKS, _MOST_ARRAYS = 2**21, 2**11
# Of a task, which are in memory together: chunks without a file promise any number.
_MOST_READINGS = 2**29
_AT_ONCE = 2**22  # numbers of a task that are digested at once, to limit memory
_MOST_PIECES = 2**16  # chunks that are read at once
_MOST_LABELS = 2**25  # of a coordinate; a few kilobytes may promise gigabytes
_MOST_TEXT = 2**28  # bytes of the labels of a coordinate
_LARGEST_ROOT = 2**26  # bytes of zarr.json
_MOST_WARNINGS, _LONGEST_WARNING = 50, 1000  # shown; characters
_CODECS = {"bytes", "vlen-utf8", "zstd", "crc32c"}  # of the arrays of a store
_NUMBERS = {
    "bool",
    *(f"{kind}{bits}" for kind in ("int", "uint", "float") for bits in (8, 16, 32, 64)),
}
# Of labels; one entry of another type may take gigabytes.
_TYPES = {"string", "numpy.datetime64", "numpy.timedelta64", *_NUMBERS}
_OWN = ("digest", "labels", "levels", "key")  # attributes that only this module uses
# For a request to object storage with all its repetitions, after an interruption.
_INTERRUPTED_SECONDS = 5.0
_T = TypeVar("_T")


class _Bounded(ZstdCodec):
    """Decodes a chunk if it has no more bytes than its array says: a few kilobytes may promise
    gigabytes.
    """

    def _decode_sync(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        dtype = chunk_spec.dtype.to_native_dtype()
        size = math.prod(chunk_spec.shape) * dtype.itemsize if dtype.kind in "biuf" else _MOST_TEXT
        try:  # what does not fit is found before it is decoded
            decompress(chunk_bytes.as_numpy_array(), np.empty(max(size - 1, 0), np.uint8))
        except ValueError as error:
            if f"at least {size}," not in str(error):
                raise
        except RuntimeError as error:  # for bytes that zstd has not written
            raise ValueError(f"a chunk cannot be decoded: {one_line(error)}") from None
        return super()._decode_sync(chunk_bytes, chunk_spec)


register_codec("zstd", _Bounded, qualname=f"{__name__}.{_Bounded.__name__}")


def bounded_chunks() -> AbstractContextManager[Any]:
    """Context in which arrays are opened whose chunks are decoded only if they have no more
    bytes than the arrays say.
    """
    return zarr.config.set({"codecs.zstd": f"{__name__}.{_Bounded.__name__}"})


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
        for block in range(-(-self.num_items // self.chunk)):
            for level in range(len(self.noise)):
                yield Task(level, block)

    def span(self, task: Task) -> slice:
        start = task.item_block * self.chunk
        return slice(start, min(start + self.chunk, self.num_items))

    def items(self, task: Task) -> np.ndarray:
        return np.arange(*self.span(task).indices(self.num_items))

    def place(self, task: Task) -> tuple[float, int, int]:
        """Noise level, first and last item of a task."""
        span = self.span(task)
        return float(self.noise[task.noise_index]), span.start, span.stop - 1

    def words(self, task: Task) -> str:
        """A task as text: its noise level and its items."""
        return "noise {:g}, items {}..{}".format(*self.place(task))


class MemoryStore(Blocks):
    """The results of a run in memory, with the methods of `Store` that a run needs."""

    where = "memory"

    def __init__(
        self,
        variables: Mapping[str, Variable],
        coordinates: Coordinates,
        chunk: int,
        attributes: Mapping[str, Any],
    ) -> None:
        super().__init__(chunk, len(coordinates["item"][1]), coordinates["noise"][1])
        self.variables, self.coordinates, self.attributes = variables, coordinates, attributes
        shapes = {
            name: [len(coordinates[dim][1]) for dim in one.dims] for name, one in variables.items()
        }
        self.values = {name: np.full(shape, np.nan, np.float32) for name, shape in shapes.items()}
        self.missing = set(self.tasks())

    def done(self, tasks: Iterable[Task]) -> dict[Task, int]:
        return dict.fromkeys(tasks, 0)

    def write(self, task: Task, arrays: Mapping[str, np.ndarray]) -> None:
        for name, values in self.values.items():
            values[task.noise_index, self.span(task)] = arrays[name]
        self.missing.discard(task)

    def update(self, **attributes: Any) -> None:
        self.attributes = {**self.attributes, **attributes}

    def finishing(self) -> AbstractContextManager[Callable[..., None]]:
        return nullcontext(called)

    def dataset(self, look: bool = False) -> xr.Dataset:
        import xarray as xr

        return xr.Dataset(
            {
                name: (one.dims, self.values[name], attributes_of(one))
                for name, one in self.variables.items()
            },
            coords={
                name: (dims, as_read(values), attrs)
                for name, (dims, values, attrs) in self.coordinates.items()
            },
            attrs={**_about(self.chunk, self.variables, len(self.missing)), **self.attributes},
        )


class Store(Blocks):
    """The results of a run in a folder or on object storage: created once, filled task by task.
    `xarray.open_zarr` reads them.
    """

    def __init__(self, where: str) -> None:
        self.where, self.files = where, files_at(where)
        self.files.largest = {"": _LARGEST_ROOT}
        if not is_url(where):
            check_plain(os.path.realpath(where))
        root = self._root()
        # What is checked here is what zarr reads.
        self.files.kept = {ROOT: json.dumps(root).encode()}
        self.attributes: dict[str, Any] = root["attributes"]
        form, version = self.attributes.get("format"), self.attributes.get("version")
        if form == FORMAT and version != VERSION:
            raise StoreError(_of_another_version(str(self.where), version))
        is_a_run = (form, version) == (FORMAT, VERSION)
        expected = f"{FORMAT!r} and {VERSION}"
        expect(is_a_run, "its format and version", (form, version), expected)
        digest, writers = (
            self.attributes.get("digest"),
            "uturn.run or uturn.readings, not by Dataset.to_zarr",
        )
        expect(
            digest == _digest(root),
            f"{ROOT}: digest",
            digest,
            f"that of a store written by {writers}",
        )
        spec, models, self.spec = (
            json.loads(self.attributes[name]) for name in ("identity", "models", "spec")
        )
        self.identity, self.models = spec, models
        expect(isinstance(models, dict), "its attribute models", models, "a table")
        self.key, self.random_version = self.attributes["key"], self.attributes["random_version"]
        Blocks.__init__(
            self, spec["chunk"], spec["items"], list(map(float, spec["corruption"]["noise"]))
        )
        self.trajectories, self.clones, self.variables = (
            spec["trajectories"],
            spec.get("clones", 1),
            self.attributes["variables"],
        )
        arrays = {
            name: about
            for name, about in root["consolidated_metadata"]["metadata"].items()
            if "shape" in about
        }
        self.labels: dict[str, str] = dict(json.loads(self.attributes["labels"]))
        self._check_sizes(arrays)
        # The settings of zarr are not thread-safe, so all arrays are opened here.
        with bounded_chunks():
            group: Any = zarr.open_group(
                self.files, mode="r+", use_consolidated=True, zarr_format=3
            )
            self.arrays: dict[str, Any] = {name: group[name] for name in arrays}
        self.dims = {
            name: tuple(arrays[name]["dimension_names"]) for name in (*self.variables, *self.labels)
        }
        self.levels: list[float] = json.loads(self.attributes["levels"])
        row = {level: k for k, level in enumerate(self.levels)}
        expect(
            len(row) == len(self.levels) == len(self.noise),
            "its levels",
            self.levels,
            "each noise level once",
        )
        self._rows = [row[level] for level in self.noise]

    def _check_sizes(self, arrays: Mapping[str, Any]) -> None:
        """ValueError for codecs that could run code, and for types and sizes that could exhaust
        the memory.
        """
        sizes = {
            "noise": len(self.noise),
            "item": self.num_items,
            "trajectory": self.trajectories,
            "clone": self.clones,
        }
        counts = (self.chunk, self.num_items, self.trajectories, self.clones)
        expect(
            all(type(count) is int and count > 0 for count in counts),
            "its sizes",
            counts,
            "whole numbers above 0",
        )
        blocks = -(-self.num_items // self.chunk)
        expect(
            len(self.noise) * blocks <= _MOST_TASKS,
            "tasks",
            len(self.noise) * blocks,
            f"at most {_MOST_TASKS}",
        )
        known = {*self.variables, *self.labels, _RECORDS}
        expect(
            set(arrays) == known,
            "its arrays",
            sorted(arrays),
            "those in its attributes variables and labels",
        )
        expect(
            len(arrays) <= _MOST_ARRAYS,
            "its number of arrays",
            len(arrays),
            f"at most {_MOST_ARRAYS}",
        )
        promised = 0
        for name, about in arrays.items():
            codecs = {codec["name"] for codec in about["codecs"]}
            expect(codecs <= _CODECS, f"{name}: codecs", codecs, "those of a store")
            expect(
                "dtype" not in about["attributes"],
                f"{name}: attribute",
                "dtype",
                "none, since xarray would follow it",
            )
            kind = about["data_type"]
            types = (
                _TYPES if name in self.labels else {"uint64"} if name == _RECORDS else {"float32"}
            )
            expect(
                (kind["name"] if isinstance(kind, dict) else kind) in types,
                f"{name}: type",
                kind,
                "that of a store",
            )
            shape, chunk = about["shape"], about["chunk_grid"]["configuration"]["chunk_shape"]
            if name == _RECORDS:
                fits = (shape, chunk) == ([len(self.noise), blocks, 3], [1, 1, 3])
            else:
                fits = all(
                    sizes.get(dim, size) == size
                    for dim, size in zip(about["dimension_names"], shape, strict=True)
                )
            expect(fits, f"{name}: shape", shape, "that of the run")
            at_once = (
                shape if name in self.labels else [1, min(self.chunk, self.num_items), *shape[2:]]
            )
            most = _MOST_LABELS if name in self.labels else _MOST_READINGS
            size = max(math.prod(at_once), math.prod(chunk))
            expect(size <= most, f"{name}: numbers that are read at once", size, f"at most {most}")
            promised += size if name in self.variables else 0
            expect(
                promised <= _MOST_READINGS,
                "numbers of a task",
                promised,
                f"at most {_MOST_READINGS}",
            )
            pieces = math.prod(
                -(-whole // part) for whole, part in zip(at_once, chunk, strict=True)
            )
            expect(
                0 <= pieces <= _MOST_PIECES,
                f"{name}: chunks that are read at once",
                pieces,
                f"at most {_MOST_PIECES}",
            )
            stored = _MOST_TEXT if about["data_type"] == "string" else 8 * math.prod(chunk)
            # Zstd adds less to data that it cannot compress.
            self.files.largest[name] = stored + stored // 64 + 1024

    @classmethod
    def create(
        cls,
        place: str | Path,
        variables: Mapping[str, Variable],
        coordinates: Coordinates,
        chunk: int,
        attributes: Mapping[str, Any],
    ) -> Store | None:
        """Create an empty store at a place, completely or not at all; None if another process
        has done so in the meantime.
        """
        where, new = place_of("store", place), _laid_out(variables, coordinates, chunk, attributes)
        if is_url(where):
            files, root = files_at(where), new.pop(ROOT)
            with failures_named(where, "make the store"):
                at_once(where, lambda key: write(files, key, new[key]), new)
                sync(
                    files.set_if_not_exists(
                        ROOT, default_buffer_prototype().buffer.from_bytes(root)
                    )
                )
                if read(files, ROOT) != root:
                    return None
            return cls.open(where)
        try:
            with whole_folder(where, replace=False) as folder:
                _write_into(folder, new)
        except ValueError:
            if is_empty(where):
                raise
            return None
        return cls.open(where)

    @classmethod
    def open(cls, place: str | Path) -> Store:
        """Open an existing store at a path or URL; ValueError if there is none, or if its
        metadata are damaged.
        """
        where = place_of("store", place)
        with _readable(where):
            if is_url(where) or not is_empty(where):
                return cls(where)
        raise ValueError(f"no store at {where}; `uturn run SPEC --store {where}` makes one")

    def grow(
        self,
        variables: Mapping[str, Variable],
        coordinates: Coordinates,
        chunk: int,
        attributes: Mapping[str, Any],
    ) -> Store:
        """The store of a larger run, which contains all noise levels, items and trajectories of
        this one. Stored labels stay.
        """
        self._check_alike(variables, coordinates)
        levels = [
            *self.levels,
            *(level for level in coordinates["noise"][1] if level not in self.levels),
        ]
        in_rows = {}
        for name, (dims, _, attrs) in coordinates.items():
            labels, stored = _in_rows(coordinates[name], coordinates, levels), self._stored(name)
            if stored is not None and _agree(stored, labels):
                labels[tuple(map(slice, stored.shape))] = stored
            in_rows[name] = Coordinate(dims, labels, attrs)
        chunks = {name: array.chunks for name, array in self.arrays.items()}
        new = _laid_out(variables, in_rows, chunk, {**attributes, "key": self.key}, chunks)
        with failures_named(self.where, "extend the store"):
            root = new.pop(ROOT)
            at_once(self.where, lambda key: write(self.files, key, new[key]), new)
            self._current_root()
            write(self.files, ROOT, root)
        return Store.open(self.where)

    def mend(self, variables: Mapping[str, Variable], coordinates: Coordinates) -> None:
        """Write damaged coordinates again. Real numbers may differ by 1e-7, since versions may
        use different quadratures.
        """
        self._check_alike(variables, coordinates)
        for name in self.labels:
            expected, stored = (
                _in_rows(coordinates[name], coordinates, self.levels),
                self._stored(name),
            )
            if stored is None or stored.shape != expected.shape or not _agree(stored, expected):
                warnings.warn(
                    f"{self.where}: the coordinate {name} is damaged; it is written again",
                    stacklevel=3,
                )
                with failures_named(self.where, f"write {name}"):
                    self.arrays[name][...] = _writable(expected)
                self.labels[name] = _digest_of_labels(expected)
                self.update(labels=json.dumps(self.labels))

    def _check_alike(self, variables: Mapping[str, Variable], coordinates: Coordinates) -> None:
        """ValueError unless variables and coordinates have the dims that are stored, and sizes
        along dims that do not grow.
        """
        layout = {name: variable.dims for name, variable in variables.items()}
        layout |= {name: dims for name, (dims, _, _) in coordinates.items()}
        different = [
            name for name in {**self.dims, **layout} if self.dims.get(name) != layout.get(name)
        ]
        fixed = [
            name
            for name in self.labels
            if name in layout and name not in GROWING and self.dims[name] == (name,)
        ]
        different += [
            name for name in fixed if self.arrays[name].shape != np.shape(coordinates[name][1])
        ]
        where = f"{self.where} was made by another version of uturn: what differs"
        expect(
            not different,
            where,
            different,
            "the variables and coordinates of this one; choose another folder",
        )

    def coordinate(self, name: str) -> np.ndarray | None:
        """Labels of a coordinate, in the order of the arrays; None if there is no coordinate of
        this name.
        """
        if name not in self.labels:
            return None
        values = self._stored(name)
        if values is None:
            way = (
                "copy the store again"
                if self.is_made_elsewhere
                else "`uturn run` with the same spec writes it again"
            )
            raise ValueError(f"{self.where}: the coordinate {name} is damaged; {way}")
        return values

    def _stored(self, name: str) -> np.ndarray | None:
        """Labels of a coordinate; None unless they are those that were written."""
        with failures_named(self.where, f"read {name}"):
            values = _decoded(self.arrays[name].__getitem__, ...)
        sound = values is not None and _digest_of_labels(np.asarray(values)) == self.labels[name]
        return np.asarray(values) if sound else None

    @property
    def is_made_elsewhere(self) -> bool:
        """Whether it holds readings that `uturn.readings` stored."""
        return self.identity.get("backward") == {"type": "readings"}

    def update(self, **attributes: Any) -> None:
        """Write attributes, in one step; StoreError if another process has extended the store in
        the meantime.
        """
        with failures_named(self.where, f"write {ROOT}"):
            root = self._current_root()
            root["attributes"] |= attributes
            write(self.files, ROOT, _signed(root))
        self.files.kept[ROOT] = json.dumps(root).encode()
        self.attributes = root["attributes"]

    def _root(self) -> Any:
        """The content of `zarr.json` at this moment."""
        self.files.kept.pop(ROOT, None)
        content = read(self.files, ROOT)
        if content is None:
            raise ValueError(f"it has no {ROOT}")
        return json.loads(content)

    def _current_root(self) -> Any:
        """The content of `zarr.json`, in which another process may have changed attributes but
        not the run.
        """
        root = self._root()
        if root["attributes"]["identity"] != self.attributes["identity"]:
            raise StoreError(
                f"{self.where}: another process has extended the store in the meantime; run it"
                " again to resume"
            )
        return root

    # -- tasks -------------------------------------------------------------------------------------
    def states(
        self, tasks: Iterable[Task] | None = None, *, look: bool = True
    ) -> dict[Task, tuple[State, int]]:
        """State of each task (by default of all), and its number of trajectories done, 0 for
        "missing" and "damaged".

        "part": trajectories were added to the run. "missing": no record, or one of fewer items.
        "damaged": the record or the readings cannot be read, or do not match; `look`: whether all
        readings are read to see this.
        """
        records = self._records(list(self.tasks() if tasks is None else tasks))

        def state(task: Task) -> tuple[State, int]:
            count, items, digest = records[task]
            if count == 0 or items < len(self.items(task)):
                return "missing", 0
            if count > self.trajectories or items > len(self.items(task)):
                return "damaged", 0
            if look and (
                (values := _decoded(self.read, task, count)) is None
                or self._digest(task, values) != digest
            ):
                return "damaged", 0
            return ("done" if count == self.trajectories else "part"), count

        with failures_named(self.where, "read the readings"):
            return dict(zip(records, at_once(self.where, state, records), strict=True))

    def done(self, tasks: Iterable[Task]) -> dict[Task, int]:
        """Number of trajectories done of each task, as in `states`; warns of damaged tasks, and
        clears their records.
        """
        states = self.states(tasks)
        damaged = [task for task, (state, _) in states.items() if state == "damaged"]
        for task in damaged:
            warnings.warn(
                f"{self.where}: a chunk of {self.words(task)} is damaged: it cannot be read, or"
                " holds the values of another noise level or other items; it is computed again",
                stacklevel=2,
            )
        self.forget(damaged)
        return {task: count for task, (_, count) in states.items()}

    def recorded(self, tasks: Iterable[Task]) -> dict[Task, int]:
        """Number of trajectories done of each task according to its record, which is fast;
        damaged readings are not noticed.
        """
        return {task: count for task, (_, count) in self.states(tasks, look=False).items()}

    def forget(self, tasks: Iterable[Task]) -> None:
        with failures_named(self.where, "clear records"):
            for task in tasks:
                self.arrays[_RECORDS][self._rows[task.noise_index], task.item_block] = 0

    def read(self, task: Task, trajectories: int) -> dict[str, np.ndarray]:
        """Stored readings of the first trajectories of a task, {variable: float32 (items, ...)}."""
        return {
            name: self.arrays[name][self._region(name, task, trajectories)]
            for name in self.variables
        }

    def write(self, task: Task, readings: Mapping[str, np.ndarray]) -> None:
        """Store the readings of a task, {variable: array (items, ...)}, and then its record."""
        values = {name: np.ascontiguousarray(readings[name], np.float32) for name in self.variables}
        record = np.array(
            [self.trajectories, len(self.items(task)), self._digest(task, values)], np.uint64
        )
        with failures_named(self.where, f"write {self.words(task)}"):
            at_once(
                self.where,
                lambda name: self.arrays[name].__setitem__(self._region(name, task), values[name]),
                values,
            )
            self.arrays[_RECORDS][self._rows[task.noise_index], task.item_block] = record

    @contextmanager
    def finishing(self) -> Iterator[Callable[..., Any]]:
        """Context whose value calls a function that writes. Its end, also by an interruption,
        counts the missing tasks.
        """
        pending: deque[Future[Any]] = deque()

        def in_background(function: Callable[..., Any], *args: Any) -> None:
            pending.append(pool.submit(function, *args))
            if len(pending) > AT_ONCE:
                pending.popleft().result()

        try:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                try:
                    yield in_background if is_url(self.where) else called
                    for future in pending:
                        future.result()
                except BaseException:
                    self.files.patience = _INTERRUPTED_SECONDS  # type: ignore[attr-defined]
                    raise
        except BaseException as error:
            # A disk or a storage that failed cannot be written to.
            if not isinstance(error, StoreError):
                with suppress(ValueError):
                    self._finish()
            raise
        self._finish()

    def _finish(self) -> None:
        # Others may write too.
        while self.attributes.get("missing_tasks") != (missing := self._num_missing(look=False)):
            self.update(complete=missing == 0, missing_tasks=missing)

    def _num_missing(self, look: bool) -> int:
        return sum(state != "done" for state, _ in self.states(look=look).values())

    def dataset(self, look: bool = True) -> xr.Dataset:
        """The run as a labelled dataset, read lazily; without `look`, `complete` and
        `missing_tasks` are those last written.
        """
        import xarray as xr

        for name in self.labels if look else ():
            self.coordinate(name)
        # Attributes that would change types or values are ignored.
        with _readable(self.where), bounded_chunks():
            ds = xr.open_zarr(
                self.files, zarr_format=3, consolidated=True, chunks=None, decode_cf=False
            )
            ds = ds.set_coords(set(ds.data_vars).difference(self.variables))
            ds = ds if self._rows == list(range(len(self.levels))) else ds.isel(noise=self._rows)
            ds.attrs = {
                name: value
                for name, value in ds.attrs.items()
                if name not in (*_OWN, "coordinates")
            }
        if not look:
            return ds
        missing = self._num_missing(look=True)
        return ds.assign_attrs(complete=missing == 0, missing_tasks=missing)

    # -- places ------------------------------------------------------------------------------------
    def _region(
        self, name: str, task: Task, trajectories: int | None = None
    ) -> tuple[int | slice, ...]:
        """Indices of the readings of a task in the array of a variable."""
        first = slice(self.trajectories if trajectories is None else trajectories)
        rest = (first if dim == "trajectory" else slice(None) for dim in self.dims[name][2:])
        return self._rows[task.noise_index], self.span(task), *rest

    def _digest(self, task: Task, values: Mapping[str, np.ndarray]) -> int:
        """64-bit digest of the readings of a task, its noise level, its items and the experiment
        for which the store was made.
        """
        digest = hashlib.blake2b(f"{self.key} {self.place(task)}".encode(), digest_size=8)
        for name in self.variables:
            digest.update(f" {name} {values[name].shape} ".encode())
            flat = np.ascontiguousarray(values[name]).reshape(-1)
            for start in range(0, flat.size, _AT_ONCE):
                part = flat[start : start + _AT_ONCE]
                # Zarr stores no chunk of NaN.
                digest.update(np.where(np.isnan(part), np.float32(np.nan), part).tobytes())
        return int.from_bytes(digest.digest(), "little")

    def _records(self, tasks: Sequence[Task]) -> dict[Task, tuple[int, int, int]]:
        """Trajectories, items and digest of each task; 0 for missing records, 2^64 - 1 for
        damaged ones.
        """
        found: dict[Task, tuple[int, int, int]] = dict.fromkeys(tasks, (0, 0, 0))
        at = {task: (self._rows[task.noise_index], task.item_block) for task in tasks}
        with failures_named(self.where, "read the records"):
            # Records that do not exist are not requested: a forged shape may promise millions.
            if len(at) > AT_ONCE:
                keys = set(listed(self.files, f"{_RECORDS}/c/"))
                at = {
                    task: (row, block)
                    for task, (row, block) in at.items()
                    if f"{_RECORDS}/c/{row}/{block}/0" in keys
                }
            if not at:
                return found
            array, low, high = (
                self.arrays[_RECORDS],
                np.min(list(at.values()), 0),
                np.max(list(at.values()), 0) + 1,
            )
            small = np.prod(high - low) <= 8 * len(at)
            span = (
                _decoded(array.__getitem__, tuple(map(slice, low.tolist(), high.tolist())))
                if small
                else None
            )
            for task, place in at.items():
                record = (
                    _decoded(array.__getitem__, place) if span is None else span[tuple(place - low)]
                )
                found[task] = (2**64 - 1,) * 3 if record is None else tuple(record.tolist())
        return found


def open_run(path: str | Path) -> xr.Dataset:
    """The run in a folder or at a URL, read lazily; ValueError if there is none, or if it is
    damaged.
    """
    store = Store.open(path)
    ds = store.dataset()
    if store.is_made_elsewhere and (missing := ds.attrs["missing_tasks"]):
        raise ValueError(
            f"{store.where}: {missing} chunks of readings are missing or damaged; copy the store"
            " again"
        )
    return ds


def write_run(place: str, run: MemoryStore) -> None:
    """Write a finished run to a place, whose content it replaces at the end, as `run` stores its
    results.
    """
    with whole(place) as folder:
        _write_into(folder, _laid_out(run.variables, run.coordinates, run.chunk, run.attributes))
        store = Store.open(folder)
        fill(store, run.values)
        store._finish()


def fill(store: MemoryStore | Store, arrays: Mapping[str, np.ndarray]) -> None:
    """Write all tasks of a store from the readings of a whole run, {variable: array (noise,
    items, ..)}.
    """
    for task in store.tasks():
        store.write(
            task,
            {name: values[task.noise_index, store.items(task)] for name, values in arrays.items()},
        )


def warnings_of(attributes: Mapping[str, Any]) -> list[str]:
    """The sentences in the attribute `warnings` of a run, a JSON list, cut to a readable length;
    empty if it is damaged.
    """
    try:
        texts = json.loads(str(attributes.get("warnings", "[]")))
    except (ValueError, RecursionError):
        return []
    texts = (
        [text for text in texts if isinstance(text, str)][:_MOST_WARNINGS]
        if isinstance(texts, list)
        else []
    )
    return [
        text if len(text) <= _LONGEST_WARNING else f"{text[:_LONGEST_WARNING]} .." for text in texts
    ]


def called(function: Callable[..., Any], *args: Any) -> None:
    function(*args)


def _decoded(function: Callable[..., _T], *args: Any) -> _T | None:
    """The result of a function that reads; None if zarr cannot decode the data, for which it
    raises many kinds of errors.
    """
    try:
        return function(*args)
    except failures():  # the storage failed; the data may be intact
        raise
    except Exception:
        return None


def _of_another_version(where: str, version: object) -> str:
    """What to do with a store of another version of the format."""
    words = f"{where}: the store has version {shown(version)} of the format"
    if isinstance(version, int) and version > VERSION:
        return f"{words}; a newer uturn wrote it: update uturn"
    return f"{words}, and this uturn reads version {VERSION}; make the run again in a new store"


@contextmanager
def _readable(where: str) -> Iterator[None]:
    """Context that turns all errors of damaged metadata, of which zarr and xarray raise many
    kinds, into a ValueError.
    """
    try:
        with failures_named(where, "open the store") if is_url(where) else nullcontext():
            yield
    except StoreError:
        raise
    except Exception as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else one_line(error)
        raise ValueError(
            f"{where} is not a readable store: {reason}; copy it again, or choose another folder"
        ) from None


def _divisor(number: int, least: int) -> int:
    """The smallest divisor of a number that is at least `least`."""
    low = [k for k in range(1, math.isqrt(number) + 1) if number % k == 0]
    return min(k for k in (*low, *(number // k for k in low)) if k >= least)


def _laid_out(
    variables: Mapping[str, Variable],
    coordinates: Coordinates,
    chunk: int,
    attributes: Mapping[str, Any],
    chunks: Mapping[str, tuple[int, ...]] | None = None,
) -> dict[str, bytes]:
    """The files of an empty store, {key: bytes}. `chunks`: shapes of the chunks of a smaller
    run.
    """
    made: dict[str, Any] = {}
    group: Any = zarr.open_group(zarr.storage.MemoryStore(made), mode="w", zarr_format=3)
    sizes = {dim: len(values) for dim, (_, values, _) in coordinates.items()}
    new = partial(group.create_array, compressors=(ZstdCodec(level=3), Crc32cCodec()))
    for name, (dims, values, attrs) in coordinates.items():
        array, room = _writable(values), _ROOM if len(dims) == 1 else _ROOM // 64
        parts = tuple(
            room if dim in GROWING else max(size, 1)
            for dim, size in zip(dims, array.shape, strict=True)
        )
        dtype = str if array.dtype == object else array.dtype
        new(
            name,
            shape=array.shape,
            chunks=parts,
            dtype=dtype,
            dimension_names=dims,
            attributes=attrs,
        )[...] = array
    # A task has chunks of its own, also after the run has grown: a number of items that divides
    # `chunk` and holds all.
    block = _divisor(chunk, min(chunk, sizes["item"]))
    for name, one in variables.items():
        shape = tuple(sizes[dim] for dim in one.dims)
        parts = chunks[name] if chunks else (1, block, *shape[2:])
        about: dict[str, Any] = {"dimension_names": one.dims, "attributes": attributes_of(one)}
        new(name, shape=shape, chunks=parts, dtype="float32", fill_value=float("nan"), **about)
    shape = (sizes["noise"], -(-sizes["item"] // chunk), 3)
    about = {
        "attributes": {"long_name": "trajectories and items done, and a digest of their readings"}
    }
    new(_RECORDS, shape=shape, chunks=(1, 1, 3), dtype="uint64", **about)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        zarr.consolidate_metadata(group.store, zarr_format=3)
    files = {key: content.to_bytes() for key, content in made.items()}
    root = json.loads(files[ROOT])
    root["attributes"] = {
        **_about(chunk, variables, shape[0] * shape[1]),
        # CF convention: names of the coordinates that are not dims, separated by blanks.
        "coordinates": " ".join(
            name
            for name, (dims, _, _) in coordinates.items()
            if dims != (name,) and len(name.split()) == 1
        ),
        "levels": json.dumps(np.asarray(coordinates["noise"][1]).tolist()),
        "labels": json.dumps(
            {
                name: _digest_of_labels(np.asarray(values))
                for name, (_, values, _) in coordinates.items()
            }
        ),
        # Binds records to the run.
        "key": _sha256([attributes[name] for name in ("identity", "models", "random_version")])[
            :16
        ],
        **attributes,
    }
    return {**files, ROOT: _signed(root)}


def _sha256(plain: Any) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _about(chunk: int, variables: Iterable[str], missing: int) -> dict[str, Any]:
    about = {"format": FORMAT, "version": VERSION, "chunk": chunk, "variables": list(variables)}
    return {**about, "complete": missing == 0, "missing_tasks": missing}


def _signed(root: Any) -> bytes:
    """The content of `zarr.json`, with its digest."""
    root["attributes"]["digest"] = _digest(root)
    return json.dumps(root, indent=2).encode()


def _digest(root: Any) -> str:
    """Digest of all metadata in `zarr.json`, which decide how readings are read, without this
    digest.
    """
    attributes = {name: value for name, value in root["attributes"].items() if name != "digest"}
    return _sha256({**root, "attributes": attributes})


def _digest_of_labels(values: np.ndarray) -> str:
    if values.dtype.kind in "biufmM":
        data = values.dtype.str.encode() + np.ascontiguousarray(values).tobytes()
    else:
        data = json.dumps(values.tolist()).encode()
    return hashlib.sha256(f"{values.shape} ".encode() + data).hexdigest()[:16]


def _write_into(folder: Path, files: Mapping[str, bytes]) -> None:
    for key, content in files.items():
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(content)


def _in_rows(coordinate: Any, coordinates: Coordinates, levels: Sequence[float]) -> np.ndarray:
    """A copy of the values of a coordinate, with its noise levels in the order of the arrays."""
    dims, values, _ = coordinate
    noise = np.asarray(coordinates["noise"][1]).tolist()
    rows = [noise.index(level) for level in levels]
    values = as_read(values)
    return values.take(rows, axis=dims.index("noise")) if "noise" in dims else values.copy()


def attributes_of(variable: Variable) -> dict[str, Any]:
    """The attributes of the array of a variable: its description and its reading instructions."""
    instructions = variable.instructions()
    return {
        "long_name": variable.long_name,
        **({"reading": json.dumps(instructions)} if instructions else {}),
    }


def _writable(values: Any) -> np.ndarray:
    """Values of a coordinate in the types of zarr: text as objects."""
    array = np.asarray(values)
    return array.astype(object) if array.dtype.kind in "UT" else array


def as_read(values: Any) -> np.ndarray:
    """Values of a coordinate in the types in which zarr reads them."""
    array = _writable(values)
    return array.astype(np.dtypes.StringDType()) if array.dtype == object else array


def _agree(stored: np.ndarray, expected: np.ndarray) -> bool:
    """Whether labels agree with the first ones of those expected; real numbers up to 1e-7, and
    NaN equals NaN.
    """
    first = expected[tuple(map(slice, stored.shape))]
    if stored.dtype.kind == first.dtype.kind == "f" and stored.shape == first.shape:
        return bool(np.allclose(stored, first, rtol=1e-7, atol=1e-7, equal_nan=True))
    return np.array_equal(stored, first)
