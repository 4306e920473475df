"""Folders of results, on a mounted file system or on object storage.

Figures and files are always made in a local folder. For a URL this folder is a working copy: results of earlier calls are
fetched into it, and new results are pushed to the URL. Stores of runs do not pass through it; they are written directly to the
URL.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uturn.core.checks import checked_path
from uturn.core.files import named_errors
from uturn.store.objects import Objects, checked_url, is_url
from uturn.store.places import ObjectPrefix


@dataclass(frozen=True)
class OutputFolder:
    """A folder of results: `where` is the given path or URL, `path` the local folder (the same, or a working copy)."""

    where: str
    path: Path

    @classmethod
    def of(cls, folder: OutputFolder | str | os.PathLike[str]) -> OutputFolder:
        """The output folder for a local path; an `OutputFolder` is returned unchanged."""
        return folder if isinstance(folder, OutputFolder) else cls(os.fspath(folder), Path(folder))

    @property
    def is_remote(self) -> bool:
        """Whether the folder is on object storage."""
        return is_url(self.where)

    def inside(self, name: str) -> OutputFolder:
        """The subfolder of this name."""
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
            if "." in name and not name.endswith(".zarr"):
                content = Objects.at(self.where).read(name)
                if content is not None:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(content)
            else:
                ObjectPrefix(self.place(name)).fetch(path)
        return path

    def push(self, *names: str) -> None:
        """Update the URL from the working copy: files and folders of these names are written or removed there."""
        if not self.is_remote:
            return
        objects = Objects.at(self.where)
        for name in names:
            path = self.path / name
            if path.is_dir():
                with ObjectPrefix(self.place(name)).whole() as folder:
                    shutil.copytree(path, folder, dirs_exist_ok=True)
            elif path.exists():
                objects.write(name, path.read_bytes())
            else:
                objects.remove([name, *objects.listed(f"{name}/")])

    def names(self, name: str) -> list[str]:
        """Names of the files and folders in a subfolder ("" is the folder itself)."""
        if self.is_remote:
            return sorted(Objects.at(self.where).names(name))
        return sorted(path.name for path in (self.path / name).glob("*"))


@contextmanager
def output_folder(name: str, value: Any, *, kept: bool = False) -> Iterator[OutputFolder]:
    """The folder of results at a path or URL. The working copy of a URL is removed at the end, unless `kept`.

    A kept copy is always the same folder in the user's cache, because specs contain the paths of networks in it.
    """
    if not is_url(value):
        yield OutputFolder.of(checked_path(name, value))
        return
    url = checked_url(name, value)
    if kept:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        path = cache / "uturn" / hashlib.sha256(url.encode()).hexdigest()[:16]
        with named_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        yield OutputFolder(url, path)
        return
    with tempfile.TemporaryDirectory(prefix="uturn-") as folder:
        copy = Path(folder, url.rstrip("/").rpartition("/")[2])  # pages show the name of their folder
        copy.mkdir()
        yield OutputFolder(url, copy)
