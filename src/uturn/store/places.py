"""Places of stores: a folder, or a prefix of object storage, with the same interface.

A folder is replaced in one step by a rename. Object storage has no rename, so a prefix is replaced in four steps:

1. The new objects are written beside the old ones, under `.unfinished/<id>/`.
2. `zarr.json`, which every reader opens first, is replaced by a mark that holds the id. This write succeeds only if `zarr.json`
   has not changed since step 1 began, so only one of several processes succeeds. From now on the old store cannot be opened.
3. The new objects are copied to their places, and old ones that are not among them are deleted.
4. The new `zarr.json` replaces the mark, and the objects under `.unfinished/<id>/` are deleted.

A process that dies in step 1 changes nothing. After step 2, the next process that opens the store does steps 3 and 4.
"""

from __future__ import annotations

import json
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol, TypeVar

from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore

from uturn.core.checks import checked_path
from uturn.core.files import check_plain, locked_folder, remove_unfinished_folders, whole_folder
from uturn.store.objects import AT_ONCE, INTERRUPTED_SECONDS, UNFINISHED, Objects, StorageError, Tagged, checked_url, is_url

ROOT = "zarr.json"
_UNFINISHED, _MARK = f"{UNFINISHED}/", "uturn_replaced_by"
_WAIT_SECONDS = 10.0  # seconds to wait for another process to finish steps 3 and 4
_LEFT_SECONDS = 86_400  # age in seconds at which objects in .unfinished/ are abandoned

_T = TypeVar("_T")
_R = TypeVar("_R")


class Place(Protocol):
    """The place of a store."""

    where: str

    def is_empty(self) -> bool:
        """Whether a store can be created here."""

    def target(self) -> Any:
        """The argument with which zarr and xarray open the store."""

    def check_plain(self) -> None:
        """ValueError if the store holds anything but files and folders, such as a pipe, which could be read for ever."""

    def whole(self, *, replace: bool = True) -> AbstractContextManager[Path]:
        """An empty folder whose content replaces that of this place at the end, completely or not at all."""

    def locked(self) -> AbstractContextManager[None]:
        """Context in which no other process replaces the store, if the place has locks."""

    def remove_unfinished(self) -> None:
        """Remove files left by processes killed in `whole`."""

    def identity(self) -> Any:
        """A value that changes when the store is replaced by a larger one."""

    def change_root(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Change the content of `zarr.json` in one step."""

    def at_once(self, function: Callable[[_T], _R], values: Iterable[_T]) -> list[_R]:
        """`function` of every value, in several threads if calls wait for a network."""

    def in_background(self) -> AbstractContextManager[Callable[..., None]]:
        """Context whose value calls a function: immediately, or in threads if calls wait for a network.

        An error of a call in a thread is raised by a later call, or at the end, when all calls have ended.
        """


def place_of(name: str, value: Any) -> Place:
    """The place at a path or URL; a `Place` is returned unchanged. ValueError for other values."""
    if isinstance(value, LocalFolder | ObjectPrefix):
        return value
    if not is_url(value):
        return LocalFolder(checked_path(name, value))
    if value.startswith("file://"):
        return LocalFolder(checked_path(name, value.removeprefix("file://")))
    return ObjectPrefix(checked_url(name, value))


def called(function: Callable[..., Any], *args: Any) -> None:
    """Call a function."""
    function(*args)


class LocalFolder:
    """A folder of a mounted file system."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.where = os.fspath(path)

    def is_empty(self) -> bool:
        path = Path(self.where)
        return not path.exists() or (path.is_dir() and not any(path.iterdir()))

    def target(self) -> str:
        # Absolute, because zarr removes a relative path from chunk names wherever it occurs ("s/" in "tasks/..").
        return os.path.abspath(self.where)

    def check_plain(self) -> None:
        check_plain(os.path.realpath(self.where))

    def whole(self, *, replace: bool = True) -> AbstractContextManager[Path]:
        return whole_folder(self.where, replace=replace)

    def locked(self) -> AbstractContextManager[None]:
        return locked_folder(Path(self.where).resolve().parent)

    def remove_unfinished(self) -> None:
        remove_unfinished_folders(self.where)

    def identity(self) -> int:
        return os.stat(self.where).st_ino

    def change_root(self, change: Callable[[dict[str, Any]], None]) -> None:
        store, prototype = LocalStore(self.target()), default_buffer_prototype()
        stored = sync(store.get(ROOT, prototype))
        assert stored is not None
        content = json.loads(stored.to_bytes())
        change(content)
        sync(store.set(ROOT, prototype.buffer.from_bytes(_as_bytes(content))))

    def at_once(self, function: Callable[[_T], _R], values: Iterable[_T]) -> list[_R]:
        return [function(value) for value in values]

    def in_background(self) -> AbstractContextManager[Callable[..., None]]:
        return nullcontext(called)


class ObjectPrefix:
    """A prefix of object storage. Content without `zarr.json`, such as pictures, is written file by file."""

    def __init__(self, url: str) -> None:
        self.where = url
        self.objects = Objects.at(url)

    def is_empty(self) -> bool:
        return self._settled() is None and not self._keys()

    def target(self) -> Objects:
        self._settled()
        return self.objects

    def check_plain(self) -> None:
        pass

    @contextmanager
    def whole(self, *, replace: bool = True) -> Iterator[Path]:
        seen = self._settled()
        if seen is not None and not replace:
            raise ValueError(f"{self.where} exists already; choose another place")
        with tempfile.TemporaryDirectory(prefix="uturn-") as folder:
            path = Path(folder, "unfinished")
            path.mkdir()
            yield path
            if (path / ROOT).exists():
                self._replace(path, seen)
            else:
                self._write_files(path)

    def locked(self) -> AbstractContextManager[None]:
        return nullcontext()  # no locks: if several processes replace a store, one succeeds

    def remove_unfinished(self) -> None:
        names = {key: key.split("/")[1] for key in self.objects.listed(_UNFINISHED)}
        self.objects.remove(key for key, name in names.items() if time.time() - int(name.partition("-")[0], 16) > _LEFT_SECONDS)

    def identity(self) -> Any:
        root = self.objects.read(ROOT)
        return None if root is None else json.loads(root).get("attributes", {}).get("identity")

    def fetch(self, folder: Path) -> None:
        """Copy the objects into a new folder, which is not created if there are no objects."""
        self._settled()
        keys = self._keys()
        for key in keys:
            if any(part in ("", ".", "..") or "\\" in part or ":" in part for part in key.split("/")):
                raise ValueError(f"{self.where} holds {key!r}, which is no name of a file; remove it")
        prototype = default_buffer_prototype()
        for start in range(0, len(keys), AT_ONCE):
            some = keys[start : start + AT_ONCE]
            for key, content in zip(some, self.objects.at_once(self.objects.get(key, prototype) for key in some), strict=True):
                if content is not None:
                    (folder / key).parent.mkdir(parents=True, exist_ok=True)
                    (folder / key).write_bytes(content.to_bytes())

    def change_root(self, change: Callable[[dict[str, Any]], None]) -> None:
        while True:
            seen = self.objects.read_tagged(ROOT)
            content = None if seen is None else json.loads(seen.data)
            if content is None or _MARK in content:
                raise ValueError(f"{self.where}: another process replaces the store; run it again to resume")
            change(content)
            if self.objects.swap(ROOT, _as_bytes(content), seen):
                return

    def at_once(self, function: Callable[[_T], _R], values: Iterable[_T]) -> list[_R]:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(function, values))

    @contextmanager
    def in_background(self) -> Iterator[Callable[..., None]]:
        pending: set[Future[None]] = set()

        def call(function: Callable[..., Any], *args: Any) -> None:
            enough = len(pending) >= AT_ONCE
            for done in wait(pending, None if enough else 0, FIRST_COMPLETED).done:
                pending.remove(done)
                done.result()
            pending.add(pool.submit(function, *args))

        with ThreadPoolExecutor(AT_ONCE) as pool:
            try:
                yield call
                for call_in_thread in pending:
                    call_in_thread.result()
            except BaseException:
                self.objects.patience = INTERRUPTED_SECONDS
                raise

    # -- replacing -----------------------------------------------------------------------------------------------------
    def _replace(self, folder: Path, seen: Tagged | None) -> None:
        """Steps 1 to 4 above, for the content of a folder. `seen`: what `zarr.json` was before."""
        name = f"{int(time.time()):x}-{secrets.token_hex(8)}"
        paths = {f"{_UNFINISHED}{name}/{path.relative_to(folder).as_posix()}": path for path in _files(folder)}
        self._upload(paths)
        mark = json.dumps({_MARK: name}).encode()
        if not self.objects.swap(ROOT, mark, seen):
            self.objects.remove(paths)
            raise ValueError(f"{self.where}: another process has made or replaced the store in the meantime; run it again")
        self._finish(name)

    def _write_files(self, folder: Path) -> None:
        """Replace the objects by the files of a folder without `zarr.json`, one by one."""
        before, paths = set(self._keys()), {path.relative_to(folder).as_posix(): path for path in _files(folder)}
        self._upload(paths)
        self.objects.remove(before.difference(paths))

    def _upload(self, paths: Mapping[str, Path]) -> None:
        make, keys = default_buffer_prototype().buffer.from_bytes, list(paths)
        for start in range(0, len(keys), AT_ONCE):  # in groups, to limit memory
            some = keys[start : start + AT_ONCE]
            self.objects.at_once(self.objects.set(key, make(paths[key].read_bytes())) for key in some)

    def _settled(self) -> Tagged | None:
        """The content of `zarr.json`; if it is a mark, waits for the replacing process, and finishes its work if it has died."""
        until = time.monotonic() + _WAIT_SECONDS
        while True:
            seen = self.objects.read_tagged(ROOT)
            name = _marked(seen)
            if name is None:
                return seen
            if time.monotonic() >= until:
                self._finish(name)
            else:
                time.sleep(min(1.0, _WAIT_SECONDS))

    def _finish(self, name: str) -> None:
        """Steps 3 and 4; other processes may do them at the same time."""
        objects, source = self.objects, f"{_UNFINISHED}{name}/"
        new = {key.removeprefix(source) for key in objects.listed(source)}
        old = set(self._keys())
        mark = objects.read_tagged(ROOT)
        if _marked(mark) != name:
            return  # another process has done it
        if ROOT not in new:
            raise StorageError(f"{self.where}: {source} is incomplete, so the store cannot be restored; choose another place")
        objects.remove(old - new - {ROOT})
        copies = sorted(new - {ROOT})
        for start in range(0, len(copies), 16 * AT_ONCE):
            if _marked(objects.read_tagged(ROOT)) != name:
                return
            try:
                objects.at_once(objects.copy(source + key, key) for key in copies[start : start + 16 * AT_ONCE])
            except StorageError:
                if _marked(objects.read_tagged(ROOT)) != name:
                    return  # another process has done it, and removed the source
                raise
        root = objects.read(source + ROOT)
        if root is not None and objects.swap(ROOT, root, mark):
            objects.remove(source + key for key in new)

    def _keys(self) -> list[str]:
        return [key for key in self.objects.listed() if not key.startswith(_UNFINISHED)]


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def _marked(seen: Tagged | None) -> str | None:
    """The id in a mark; None if `zarr.json` is not a mark."""
    if seen is None:
        return None
    try:
        content = json.loads(seen.data)
    except ValueError:
        return None
    name = content.get(_MARK) if isinstance(content, dict) else None
    return name if isinstance(name, str) and name.replace("-", "").isalnum() else None


def _as_bytes(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=2, default=str).encode()
