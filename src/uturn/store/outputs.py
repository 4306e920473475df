"""Folders of results, and datasets in them. For a URL they are made in a working copy; stores of
runs do not pass through it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numcodecs.zstd import decompress
from zarr.codecs import ZstdCodec
from zarr.registry import register_codec

from uturn.core.caches import digest_of_file
from uturn.core.checks import expect
from uturn.core.files import named_errors, whole_folder
from uturn.core.messages import one_line
from uturn.store.folders import DATASET_ROOT, checked_location, each, folder_at, is_url, replace
from uturn.store.reading import open_run

ROOT = DATASET_ROOT
_MOST_TEXT = 2**28  # bytes of the labels of a coordinate
_NO_FILE = re.compile(r"[\\:]|(^|/)\.{0,2}(/|$)")  # a key that would leave the folder


@dataclass(frozen=True)
class OutputFolder:
    """A folder of results."""

    location: str
    """The given path or URL."""
    path: Path
    """The local folder: the location itself, or a working copy of a URL."""

    @classmethod
    def of(cls, folder: OutputFolder | str | os.PathLike[str]) -> OutputFolder:
        """The output folder for a local path; an `OutputFolder` is returned unchanged."""
        return folder if isinstance(folder, OutputFolder) else cls(os.fspath(folder), Path(folder))

    @property
    def is_remote(self) -> bool:
        return is_url(self.location)

    def inside(self, name: str) -> OutputFolder:
        return OutputFolder(self.location_of(name), self.path / name)

    def location_of(self, name: str) -> str:
        """The path or URL of the entry of this name."""
        return f"{self.location}/{name}" if self.is_remote else os.path.join(self.location, name)

    def fetch(self, name: str) -> Path:
        """The path of a file or folder, after updating the working copy from the URL."""
        path = self.path / name
        if self.is_remote:
            shutil.rmtree(path, ignore_errors=True)
            path.unlink(missing_ok=True)
            folder = folder_at(self.location)
            keys = [name, *folder.names(f"{name}/")]
            outside = [key for key in keys if _NO_FILE.search(key)]
            if outside:
                raise ValueError(
                    f"{self.location} holds {outside[0]!r}, which is not a name of a file; remove it"
                )
            contents = each(self.location, folder.read, keys)
            for key, content in zip(keys, contents, strict=True):
                if content is not None:
                    (self.path / key).parent.mkdir(parents=True, exist_ok=True)
                    (self.path / key).write_bytes(content)
        return path

    def push(self, *names: str) -> None:
        """Update the URL from the working copy: files and folders of these names are written or
        removed there.
        """
        if not self.is_remote:
            return
        folder = folder_at(self.location)
        for name in names:
            path = self.path / name
            if path.is_file():
                folder.write(name, path.read_bytes())
            else:
                folder.remove(name)
                replace(self.location_of(name), contents_of(path))

    def remove(self, name: str) -> None:
        """Remove a file or folder, here and at the URL."""
        path = self.path / name
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)
        self.push(name)

    def names(self, name: str) -> list[str]:
        """Names of the files and folders in a subfolder ("" is the folder itself)."""
        if not self.is_remote:
            return sorted(path.name for path in (self.path / name).glob("*"))
        prefix = f"{name}/" if name else ""
        keys = folder_at(self.location).names(prefix)
        return sorted({key.removeprefix(prefix).split("/")[0] for key in keys})


@contextmanager
def output_folder(name: str, value: object, *, kept: bool = False) -> Iterator[OutputFolder]:
    """The folder of results at a path or URL. The working copy of a URL is removed at the end,
    unless `kept` in a cache.
    """
    location = checked_location(name, value)
    if not is_url(location):
        yield OutputFolder.of(location)
    elif kept:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        # Always the same, since specs name networks in it.
        path = cache / "uturn" / hashlib.sha256(location.encode()).hexdigest()[:16]
        with named_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        yield OutputFolder(location, path)
    else:
        with tempfile.TemporaryDirectory(prefix="uturn-") as folder:
            copy = Path(folder, location.rpartition("/")[2])  # pages show its name
            copy.mkdir()
            yield OutputFolder(location, copy)


def contents_of(folder: Path) -> dict[str, bytes]:
    """The contents of all files in a folder, by their paths in it."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def write_dataset(data: xr.Dataset, path: str | Path) -> None:
    """Write a dataset to a zarr folder, replacing an existing one; ValueError if it cannot be
    written.
    """
    # zarr does not specify numpy's fixed-length text, nor lone surrogates, which file names may
    # contain.
    valid = np.vectorize(
        lambda text: str(text).encode(errors="backslashreplace").decode(), otypes=[object]
    )
    text = {
        key: values.copy(data=valid(values.values).astype(np.dtypes.StringDType()))
        for key, values in data.variables.items()
        if values.dtype.kind == "U"
    }
    # Written in one step: an unfinished folder would be read as missing values.
    with whole_folder(path) as unfinished, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        data.assign(text).to_zarr(unfinished, mode="w", zarr_format=3, consolidated=True)
        root = json.loads((unfinished / ROOT).read_bytes())
        root["attributes"]["digest"] = digest_of_dataset(unfinished)
        (unfinished / ROOT).write_text(json.dumps(root, indent=2))


def export_run(location: str | Path, path: Path) -> None:
    """Write a run as one dataset: a folder of zarr, or a file of NetCDF by the suffix .nc.

    ValueError for another suffix, or if the path exists.
    """
    suffix = path.suffix.lower()
    expect(suffix in (".zarr", ".nc"), "FILE", str(path), "a name that ends in .zarr or .nc")
    expect(not path.exists(), "FILE", str(path), "a new file; this one exists")
    data = open_run(location)
    if suffix == ".zarr":
        write_dataset(data, path)
        return
    # NetCDF has no booleans and no numpy strings of variable length.
    del data.attrs["variables"]  # scipy has an own attribute of this name; the file lists them
    data.attrs = {name: _netcdf_attribute(value) for name, value in data.attrs.items()}
    texts = {}
    for name, labels in data.variables.items():
        if labels.dtype.kind == "T":
            texts[name] = labels.copy(data=labels.values.astype(object))
    unfinished = path.with_name(f".{path.name}.unfinished")
    with named_errors(path):
        try:
            data.assign(texts).to_netcdf(unfinished, engine="scipy")
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)


def _netcdf_attribute(value: object) -> object:
    """An attribute in the types of NetCDF: numbers of 32 bits, and text."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, list):
        return json.dumps(value)
    if isinstance(value, int) and not -(2**31) <= value < 2**31:
        return str(value)
    return value


def digest_of_dataset(folder: Path) -> str:
    """Digest of the files of a dataset, without that in its attributes: a chunk that is not
    there would be read as a number.
    """
    root = json.loads((folder / ROOT).read_bytes())
    root["attributes"].pop("digest", None)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / ROOT)
    digests = [(path.relative_to(folder).as_posix(), digest_of_file(str(path))) for path in files]
    return hashlib.sha256(json.dumps([root, digests], sort_keys=True).encode()).hexdigest()


class _Bounded(ZstdCodec):
    """Decodes a chunk if it has no more bytes than its array says.

    A few compressed kilobytes can expand to gigabytes.
    """

    def _decode_sync(self, chunk_bytes: Any, chunk_spec: Any) -> Any:  # noqa: ANN401 - as in zarr
        dtype = chunk_spec.dtype.to_native_dtype()
        size = _MOST_TEXT
        if dtype.kind in "biuf":
            size = math.prod(chunk_spec.shape) * dtype.itemsize
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
    """Context for opening arrays: a chunk is decoded only if it has no more bytes than its array
    says.
    """
    bounded: AbstractContextManager[Any] = zarr.config.set(
        {"codecs.zstd": f"{__name__}.{_Bounded.__name__}"}
    )
    return bounded
