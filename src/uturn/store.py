"""Labelled, resumable results: one zarr group a run, one chunk a task.

A task is one noise level times one block of items. It writes only its own chunks, each in one atomic step and with a
checksum, so workers need no locks, and what is left to do after an interruption is the chunks that are missing.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

if TYPE_CHECKING:
    import xarray as xr

FORMAT, VERSION = "uturn.store", 2


@dataclass(frozen=True)
class Variable:
    """Shape and meaning of a measured variable; its dims start with ("noise", "item")."""

    dims: tuple[str, ...]
    long_name: str


@dataclass(frozen=True)
class Task:
    """One noise level and one block of items: the unit of work, of storage and of resuming."""

    noise_index: int
    item_block: int


class Store:
    """A run on disk (or in memory): created once, filled chunk by chunk, opened by `xarray.open_zarr`."""

    def __init__(self, group: zarr.Group, where: str) -> None:
        self.group, self.where = group, where
        self.chunk = int(group.attrs["chunk"])  # type: ignore[arg-type]
        self.variables = [str(name) for name in group.attrs["variables"]]  # type: ignore[union-attr]
        self._arrays: dict[str, Any] = {}

    @classmethod
    def create(
        cls,
        path: str | Path | None,
        variables: Mapping[str, Variable],
        coordinates: Mapping[str, tuple[tuple[str, ...], Any, dict[str, Any]]],
        chunk: int,
        attributes: Mapping[str, Any],
    ) -> Store | None:
        """Lay out an empty run. `coordinates`: {name: (dims, values, attributes)}; those named like a dim give its length.

        The layout appears under `path` in one rename, so an interruption leaves either no store or a whole one. None if another
        process was faster.
        """
        if path is None:
            return cls(_laid_out(zarr.storage.MemoryStore(), variables, coordinates, chunk, attributes), "memory")
        place = Path(path).absolute()
        target = None
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            target = Path(tempfile.mkdtemp(prefix=f"{place.name}.", suffix=".partial", dir=place.parent))
            _laid_out(str(target), variables, coordinates, chunk, attributes)
            target.chmod(0o777 & ~_umask())
            with suppress(OSError):
                place.rmdir()  # an empty folder, made in advance
            target.rename(place)
        except OSError as error:
            if target is not None and place.is_dir() and any(place.iterdir()):
                return None
            raise ValueError(f"cannot make a store at {path} ({error.strerror or error}); choose another folder") from None
        finally:
            if target is not None:
                shutil.rmtree(target, ignore_errors=True)
        return cls.open(path)

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """Open an existing run; ValueError if there is none, or if its layout is damaged."""
        if not Path(path).exists():
            raise ValueError(f"no store at {path}; `uturn run SPEC --store {path}` makes one")
        try:
            group = zarr.open_group(str(path), mode="r+", use_consolidated=False)
            attrs = dict(group.attrs)
            found = attrs.get("format"), attrs.get("version")
            if found == (FORMAT, VERSION):
                for name in attrs["variables"]:  # type: ignore[union-attr]
                    group[str(name)]
                return cls(group, str(path))
        except Exception as error:
            raise ValueError(
                f"{path} is not a readable store ({type(error).__name__}: {error}); if it was cut short while being copied, "
                f"copy it again; else choose another folder"
            ) from None
        raise ValueError(
            f"{path} is not a {FORMAT} version {VERSION} store (found format {found[0]!r}, version {found[1]!r}); choose "
            f"another folder"
        )

    def restore(self, variables: Mapping[str, Variable], coordinates: Mapping[str, Any]) -> None:
        """Check the layout against what the run should have, and write coordinates again that are damaged.

        Only chunks of variables hold results; coordinates are known beforehand.
        """
        for name, variable in variables.items():
            if name not in self.variables or self._array(name).shape != _shape(variable, coordinates):
                raise ValueError(f"{self.where}: the variable {name!r} is not as the spec says; choose another folder")
        for name, (_, values, _) in coordinates.items():
            wanted = _writable(values)
            if name not in self.group:
                raise ValueError(f"{self.where} was made by another version of uturn, without {name!r}; choose another folder")
            try:
                found = self._array(name)[...]
                same = found.shape == wanted.shape and bool(np.all((found == wanted) | ((found != found) & (wanted != wanted))))
            except Exception:
                same = False
            if not same:
                warnings.warn(f"{self.where}: the coordinate {name} is damaged; it is written again", stacklevel=3)
                try:
                    self._array(name)[...] = wanted
                except Exception as error:
                    raise ValueError(
                        f"{self.where}: the coordinate {name} cannot be mended ({error}); copy the store again"
                    ) from None

    @property
    def attributes(self) -> dict[str, Any]:
        return dict(self.group.attrs)

    def tasks(self) -> Iterator[Task]:
        """All tasks, in the order in which they are run."""
        num_noise, num_items = self._array(self.variables[0]).shape[:2]
        for block in range(-(-num_items // self.chunk)):
            for level in range(num_noise):
                yield Task(level, block)

    def items(self, task: Task) -> np.ndarray:
        """Item numbers of a task."""
        start = task.item_block * self.chunk
        return np.arange(start, min(start + self.chunk, self._array(self.variables[0]).shape[1]))

    def is_done(self, task: Task) -> bool:
        """Whether every chunk of the task is there and sound; a damaged one is reported and counts as missing."""
        for name in self.variables:
            array = self._array(name)
            if not self._exists(name, task):
                return False
            try:
                array[self._region(task)]
            except Exception as error:
                warnings.warn(
                    f"{self.where}: the chunk {self._chunk_key(name, task)} is damaged ({type(error).__name__}); it is "
                    f"computed again",
                    stacklevel=2,
                )
                return False
        return True

    def write(self, task: Task, arrays: Mapping[str, np.ndarray]) -> None:
        """Store the readings of a task: {variable: array (items, ...)}."""
        for name in self.variables:
            try:
                self._array(name)[self._region(task)] = arrays[name][None].astype(np.float32)
            except OSError as error:
                raise ValueError(
                    f"{self.where}: cannot write {name} ({error.strerror or error}); what was written before is safe: free some "
                    f"space, or give access, and run it again to go on"
                ) from None

    def dataset(self) -> xr.Dataset:
        """The run as a labelled dataset, read lazily."""
        import xarray as xr

        return xr.open_zarr(self.group.store, consolidated=False, chunks=None)

    def _array(self, name: str) -> Any:
        if name not in self._arrays:
            # A chunk of nothing but NaN (labels that are unknown, images that are not kept) is a result too; without this it
            # would not be written, and be missing for ever. It holds for the array as it is opened, not for what is stored.
            with zarr.config.set({"array.write_empty_chunks": True}):
                self._arrays[name] = self.group[name]
        return self._arrays[name]

    def _region(self, task: Task) -> tuple[slice, slice]:
        start = task.item_block * self.chunk
        return slice(task.noise_index, task.noise_index + 1), slice(start, start + self.chunk)

    def _chunk_key(self, name: str, task: Task) -> str:
        rest = self._array(name).ndim - 2
        return "/".join([name, "c", str(task.noise_index), str(task.item_block), *["0"] * rest])

    def _exists(self, name: str, task: Task) -> bool:
        from zarr.core.sync import sync

        return bool(sync(self.group.store.exists(self._chunk_key(name, task))))


def _laid_out(
    target: Any,
    variables: Mapping[str, Variable],
    coordinates: Mapping[str, tuple[tuple[str, ...], Any, dict[str, Any]]],
    chunk: int,
    attributes: Mapping[str, Any],
) -> zarr.Group:
    """An empty run in an empty place."""
    group = zarr.open_group(target, mode="w")
    for name, (dims, values, attrs) in coordinates.items():
        array = _writable(values)
        dtype = str if array.dtype == object else array.dtype
        made = group.create_array(name, shape=array.shape, dtype=dtype, dimension_names=dims, attributes=attrs)
        if array.size:
            made[...] = array
    for name, variable in variables.items():
        shape = _shape(variable, coordinates)
        chunks = (1, min(chunk, shape[1]), *shape[2:])
        group.create_array(
            name,
            shape=shape,
            chunks=chunks,
            dtype="float32",
            fill_value=float("nan"),
            dimension_names=variable.dims,
            compressors=(ZstdCodec(level=3), Crc32cCodec()),
            attributes={"long_name": variable.long_name},
        )
    # By the CF convention, what readers shall take for coordinates although it is not named like a dim.
    others = " ".join(name for name, (dims, _, _) in coordinates.items() if dims != (name,))
    about: dict[str, Any] = {"format": FORMAT, "version": VERSION, "chunk": chunk, "variables": list(variables)}
    group.attrs.update({**about, "coordinates": others, **attributes})
    _consolidate(target)
    return group


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _writable(values: Any) -> np.ndarray:
    """Values of a coordinate as zarr takes them: text as objects."""
    array = np.asarray(values)
    return array.astype(object) if array.dtype.kind == "U" else array


def _shape(variable: Variable, coordinates: Mapping[str, tuple[tuple[str, ...], Any, dict[str, Any]]]) -> tuple[int, ...]:
    return tuple(len(coordinates[dim][1]) for dim in variable.dims)


def _consolidate(where: Any) -> None:
    """Gather the metadata in one file, which is what readers look for first."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        zarr.consolidate_metadata(where)
