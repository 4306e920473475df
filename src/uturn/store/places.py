"""Where stores and results are: a folder, or a prefix of object storage; both are opened as
stores of zarr.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from zarr.abc.store import Store as Files
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore, ObjectStore, WrapperStore

from uturn.core.checks import checked_path, expect
from uturn.core.errors import StoreError
from uturn.core.files import whole_folder
from uturn.core.messages import one_line, shown

ROOT = "zarr.json"  # what every reader of a store opens first; it is written last, in one step
AT_ONCE = 16  # requests to object storage at the same time
PATIENCE = 120.0  # seconds for a request to object storage with all its repetitions
REQUEST_SECONDS = 60.0  # for one request, and one more for each megabyte that is sent
_FIRST_WAIT = 0.1  # seconds between two repetitions, which double up to 15 s
_MAY_PASS = re.compile(
    r"HTTP error|body error|timed? ?out|status code: (5\d\d|408|429)", re.IGNORECASE
)
_OBSTORE = ("s3", "s3a", "gs", "az", "azure", "adl", "abfs", "abfss")
# In a URL: a user, a query, or parts that are empty, "." or "..".
_NO_PATH = re.compile(r"[?#%*\\@\s\0]|(^|/)\.{0,2}(/|$)")

_T = TypeVar("_T")
_R = TypeVar("_R")


def is_url(value: Any) -> bool:
    """Whether a path has a scheme, as in s3://bucket/run (a single letter is a drive)."""
    return isinstance(value, str) and re.match(r"[A-Za-z][\w+.-]+:/", value) is not None


def place_of(name: str, value: Any) -> str:
    """`value` as a path, or as a URL of object storage without a slash at its end; ValueError
    for other values.
    """
    if not is_url(value):
        return checked_path(name, value)
    scheme, _, rest = value.rstrip("/").partition("://")
    if scheme == "file":
        return checked_path(name, rest)
    if _NO_PATH.search(rest) or len(rest) > 900 or scheme in ("http", "https", "memory"):
        raise ValueError(
            f"{name} = {'a URL with a user' if '@' in rest else shown(value)}: expected"
            " s3://bucket/runs/x, gs://.. or az://.., as text; credentials and the address of a"
            " server of your own (AWS_ENDPOINT_URL) belong into the environment"
        )
    return f"{scheme}://{rest}"


def files_at(where: str) -> _Files:
    """The files or objects at a place, as a store of zarr; keys are relative to the place."""
    if not is_url(where):
        # Zarr removes a relative path from keys wherever it occurs.
        return _Files(LocalStore(os.path.abspath(where)))
    try:
        if where.partition("://")[0] in _OBSTORE:
            from obstore.store import from_url

            # obstore does not read client options from the environment if one of them is given.
            options: Any = {"timeout": "1h", "connect_timeout": "10s"}
            options |= {
                name: True
                for name in ("allow_http", "allow_invalid_certificates")
                if _is_on(f"AWS_{name.upper()}")
            }
            return _Patient(
                ObjectStore(
                    from_url(where, retry_config={"max_retries": 0}, client_options=options)
                )
            )
        from zarr.storage import FsspecStore

        return _Patient(FsspecStore.from_url(where))
    except ImportError as error:
        raise ValueError(
            f"{where} needs a package that is missing ({error.name}); pip install 'uturn[cluster]'"
        ) from None
    except Exception as error:  # obstore and fsspec raise many kinds
        raise ValueError(
            f"{where} cannot be opened ({one_line(error)}); check the URL and the credentials"
        ) from None


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes", "on")


class _Files(WrapperStore[Any]):
    """Files whose size is compared with `largest` before they are read: a file with holes may
    promise terabytes.
    """

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        # Bytes of a chunk of each array, and of other files by "".
        self.largest: dict[str, int] = {"": sys.maxsize}
        self.kept: dict[str, bytes] = {}  # contents that are not read again

    def _with_store(self, store: Any) -> _Files:
        files = type(self)(store)
        files.largest, files.kept = self.largest, self.kept
        return files

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        if key in self.kept:
            return prototype.buffer.from_bytes(self.kept[key])
        try:
            if isinstance(self._store, ObjectStore) and byte_range is None:
                import obstore

                # The head of an answer has the size, so that no request of its own is needed.
                answer = await obstore.get_async(self._store.store, key)
                self._check_size(key, answer.meta["size"])
                return prototype.buffer.from_bytes(await answer.bytes_async())
            self._check_size(key, await self._store.getsize(key))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return await self._store.get(key, prototype, byte_range)

    def _check_size(self, key: str, size: int) -> None:
        most = self.largest.get(key.partition("/c/")[0], self.largest[""])
        expect(size <= most, f"{key}: bytes", size, f"at most {most}")


class _Patient(_Files):
    """Object storage whose requests are repeated after errors that may pass. obstore alone does
    not repeat after all of them.
    """

    patience: float | None = None

    async def _again(self, request: Callable[[], Awaitable[_T]], size: int = 0) -> _T:
        start, wait = time.monotonic(), _FIRST_WAIT
        while True:
            try:
                return await asyncio.wait_for(request(), REQUEST_SECONDS + size / 1e6)
            except Exception as error:
                text, ends = (
                    str(error).partition("Debug source")[0],
                    start + (self.patience or PATIENCE),
                )
                if (
                    not _MAY_PASS.search(f"{type(error).__name__} {text}")
                    or time.monotonic() + wait > ends
                ):
                    raise
            await asyncio.sleep(wait * random.uniform(0.5, 1.0))
            wait = min(2 * wait, 15)

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        return await self._again(lambda: _Files.get(self, key, prototype, byte_range))

    async def exists(self, key: str) -> bool:
        return await self._again(lambda: self._store.exists(key))

    async def set(self, key: str, value: Any) -> None:
        await self._again(lambda: self._store.set(key, value), len(value))

    async def set_if_not_exists(self, key: str, value: Any) -> None:
        await self._again(lambda: self._store.set_if_not_exists(key, value), len(value))

    async def delete(self, key: str) -> None:
        await self._again(lambda: self._store.delete(key))

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        async def collected() -> list[str]:
            return [key async for key in self._store.list_prefix(prefix)]

        for key in await self._again(collected):
            yield key


def read(files: Files, key: str) -> bytes | None:
    """The bytes of a file; None if there is none."""
    content = sync(files.get(key, default_buffer_prototype()))
    return None if content is None else content.to_bytes()


def write(files: Files, key: str, data: bytes) -> None:
    """Write a file, in one step."""
    sync(files.set(key, default_buffer_prototype().buffer.from_bytes(data)))


def listed(files: Files, prefix: str = "") -> list[str]:
    """The keys below a prefix."""

    async def collected() -> list[str]:
        return [key async for key in files.list_prefix(prefix)]

    return sync(collected())


def at_once(where: str, function: Callable[[_T], _R], values: Iterable[_T]) -> Sequence[_R]:
    """`function` of every value; in threads for object storage, where calls wait for the
    network.
    """
    if not is_url(where):
        return list(map(function, values))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(function, values))


def is_store(where: str) -> bool:
    """Whether a place is a group of zarr."""
    with failures_named(where, "read it"):
        return sync(files_at(where).exists(ROOT))


def is_empty(where: str) -> bool:
    """Whether a store can be created at a place."""
    if is_url(where):
        return not is_store(where)
    path = Path(where)
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


@contextmanager
def whole(where: str) -> Iterator[Path]:
    """An empty folder whose content replaces that of a place at the end, by `replace` at a URL."""
    if not is_url(where):
        # A store behind a link stays where it is.
        with whole_folder(os.path.realpath(where)) as folder:
            yield folder
        return
    with tempfile.TemporaryDirectory(prefix="uturn-") as name:
        yield Path(name)
        replace(where, Path(name))


def replace(where: str, folder: Path) -> None:
    """Replace the objects at a URL by the files of a folder.

    `zarr.json` is deleted first and written last, so a process that is killed in between leaves a
    place without a store.
    """
    files, new = (
        files_at(where),
        [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()],
    )
    with failures_named(where, "write it"):
        old = listed(files)
        if ROOT in old:
            sync(files.delete(ROOT))
        at_once(where, lambda key: sync(files.delete(key)), set(old) - {ROOT, *new})
        at_once(
            where,
            lambda key: write(files, key, (folder / key).read_bytes()),
            [key for key in new if key != ROOT],
        )
        if ROOT in new:
            write(files, ROOT, (folder / ROOT).read_bytes())


def failures() -> tuple[type[Exception], ...]:
    """Errors of a disk or of object storage, after which the data may be intact."""
    obstore = sys.modules.get("obstore.exceptions")
    return (OSError, obstore.BaseError) if obstore else (OSError,)


@contextmanager
def failures_named(where: str, what: str) -> Iterator[None]:
    """Turn an error of a disk or of object storage into a `StoreError` of one line."""
    try:
        yield
    except failures() as error:
        text = str(error).partition("Debug source")[0]
        found = re.findall(r"<Code>(\w+)</Code>|status code: (\d{3}[ \w]*)", text)
        reason = getattr(error, "strerror", None) or ", ".join(
            code or f"status {status.strip()}" for code, status in found
        )
        raise StoreError(
            f"{where}: cannot {what} ({reason or one_line(type(error)(text))}); what was written"
            " before is safe: free some space, give access, or wait for the storage, and run it"
            " again to resume"
        ) from None
