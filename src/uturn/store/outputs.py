"""Folders of results, and datasets in them. For a URL they are made in a working copy; stores of
runs do not pass through it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from zarr.core.sync import sync

from uturn.core.caches import digest_of_file
from uturn.core.files import named_errors, whole_folder
from uturn.store.places import (
    ROOT,
    at_once,
    failures_named,
    files_at,
    is_url,
    listed,
    place_of,
    read,
    replace,
    write,
)

_NO_FILE = re.compile(r"[\\:]|(^|/)\.{0,2}(/|$)")  # a key that would leave the folder


@dataclass(frozen=True)
class OutputFolder:
    """A folder of results: `where` is the given path or URL, `path` the local folder (the same,
    or a working copy).
    """

    where: str
    path: Path

    @classmethod
    def of(cls, folder: OutputFolder | str | os.PathLike[str]) -> OutputFolder:
        """The output folder for a local path; an `OutputFolder` is returned unchanged."""
        return folder if isinstance(folder, OutputFolder) else cls(os.fspath(folder), Path(folder))

    @property
    def is_remote(self) -> bool:
        return is_url(self.where)

    def inside(self, name: str) -> OutputFolder:
        return OutputFolder(self.place(name), self.path / name)

    def place(self, name: str) -> str:
        """The path or URL of the entry of this name."""
        return f"{self.where}/{name}" if self.is_remote else os.path.join(self.where, name)

    def fetch(self, name: str) -> Path:
        """The path of a file or folder, after updating the working copy from the URL."""
        path = self.path / name
        if self.is_remote:
            shutil.rmtree(path, ignore_errors=True)
            path.unlink(missing_ok=True)
            files = files_at(self.where)
            with failures_named(self.where, f"read {name}"):
                keys = [name, *listed(files, f"{name}/")]
                if outside := [key for key in keys if _NO_FILE.search(key)]:
                    raise ValueError(
                        f"{self.where} holds {outside[0]!r}, which is no name of a file; remove it"
                    )
                for key, content in zip(
                    keys, at_once(self.where, lambda key: read(files, key), keys), strict=True
                ):
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
        files = files_at(self.where)
        for name in names:
            path = self.path / name
            with failures_named(self.where, f"write {name}"):
                (
                    write(files, name, path.read_bytes())
                    if path.is_file()
                    else sync(files.delete(name))
                )
            if not path.is_file():
                replace(self.place(name), path)

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
        with failures_named(self.where, "list it"):
            return sorted(
                {
                    key.removeprefix(prefix).split("/")[0]
                    for key in listed(files_at(self.where), prefix)
                }
            )


@contextmanager
def output_folder(name: str, value: Any, *, kept: bool = False) -> Iterator[OutputFolder]:
    """The folder of results at a path or URL. The working copy of a URL is removed at the end,
    unless `kept` in a cache.
    """
    where = place_of(name, value)
    if not is_url(where):
        yield OutputFolder.of(where)
    elif kept:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        # Always the same, since specs name networks in it.
        path = cache / "uturn" / hashlib.sha256(where.encode()).hexdigest()[:16]
        with named_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        yield OutputFolder(where, path)
    else:
        with tempfile.TemporaryDirectory(prefix="uturn-") as folder:
            copy = Path(folder, where.rpartition("/")[2])  # pages show the name of their folder
            copy.mkdir()
            yield OutputFolder(where, copy)


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


def digest_of_dataset(folder: Path) -> str:
    """Digest of the files of a dataset, without that in its attributes: a chunk that is not
    there would be read as a number.
    """
    root = json.loads((folder / ROOT).read_bytes())
    root["attributes"].pop("digest", None)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / ROOT)
    digests = [(path.relative_to(folder).as_posix(), digest_of_file(str(path))) for path in files]
    return hashlib.sha256(json.dumps([root, digests], sort_keys=True).encode()).hexdigest()
