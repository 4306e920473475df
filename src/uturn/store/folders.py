"""Where runs and results are: a folder on disk, a prefix of object storage, or the memory.

A folder holds named contents. Each is read whole and written in one step, so that no reader sees a
part of it.
"""

from __future__ import annotations

import os
import random
import re
import secrets
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from uturn.core.checks import expect
from uturn.core.errors import StoreError
from uturn.core.files import checked_path
from uturn.core.messages import one_line, shown

RUN_ROOT = "run.json"
DATASET_ROOT = "zarr.json"
ROOTS = (RUN_ROOT, DATASET_ROOT)
"""What every reader of a run or of a dataset opens first. It is deleted first and written last."""
AT_ONCE = 16
"""Requests to object storage at the same time."""
PATIENCE = 120.0
"""Seconds for a request to object storage with all its repetitions."""
INTERRUPTED_PATIENCE = 5.0
"""`PATIENCE` after an interruption."""
REQUEST_SECONDS = 60.0
"""Seconds for one request, and one more for each megabyte."""
_FIRST_WAIT = 0.1  # seconds between two repetitions, which double
_LONGEST_WAIT = 15.0
_UNFINISHED = ".unfinished"
_TRIES = 10  # of writing a file that another process, which cleans up, removes meanwhile
_MAY_PASS = re.compile(
    r"HTTP error|body error|timed? ?out|status code: (5\d\d|408|429)",
    re.IGNORECASE,
)
# In a URL: a user, a query, or parts that are empty, "." or "..".
_NO_PATH = re.compile(r"[?#%*\\@\s\0]|(^|/)\.{0,2}(/|$)")
_LONGEST_PATH = 900  # characters of the path in a URL
_SCHEMES = ("s3", "s3a", "gs", "az", "azure", "adl", "abfs", "abfss")

Value = TypeVar("Value")
Result = TypeVar("Result")


class Folder(ABC):
    """Named contents at a location. Failures of the disk or of the storage are `StoreError`."""

    location: str
    """Path or URL."""
    patience: float | None = None
    """Seconds after which a request that fails is given up; by default `PATIENCE`."""

    @abstractmethod
    def read(self, name: str, most: int = sys.maxsize) -> bytes | None:
        """A content, or None if there is none; ValueError if it has more than `most` bytes."""

    @abstractmethod
    def write(self, name: str, content: bytes) -> None:
        """Write or replace a content, in one step."""

    @abstractmethod
    def create(self, name: str, content: bytes) -> bool:
        """Write a content unless there is one; whether it is then this one."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a content, if it exists."""

    @abstractmethod
    def has(self, name: str) -> bool:
        """Whether a content exists."""

    @abstractmethod
    def names(self, prefix: str = "") -> list[str]:
        """The names of all contents below a prefix that ends in a slash."""

    def clean(self) -> None:
        """Remove what killed processes have left unfinished; by default nothing can be."""
        return


def is_url(value: object) -> bool:
    """Whether a path has a scheme, as in s3://bucket/run (a single letter is a drive)."""
    return isinstance(value, str) and re.match(r"[A-Za-z][\w+.-]+:/", value) is not None


def checked_location(name: str, value: object) -> str:
    """`value` as a path, or as a URL of object storage without a slash at its end; ValueError
    for other values.
    """
    if not (isinstance(value, str) and is_url(value)):
        return checked_path(name, value)
    scheme, _, path = value.rstrip("/").partition("://")
    if scheme == "file":
        return checked_path(name, path)
    if scheme not in _SCHEMES or len(path) > _LONGEST_PATH or _NO_PATH.search(path):
        given = "a URL with a user" if "@" in path else shown(value)
        raise ValueError(
            f"{name} = {given}: expected s3://bucket/runs/x, gs://.. or az://.., as text;"
            " credentials and the address of a server of your own (AWS_ENDPOINT_URL) belong into"
            " the environment"
        )
    return f"{scheme}://{path}"


def folder_at(location: str | os.PathLike[str]) -> Folder:
    """The folder at a path or a URL."""
    if is_url(location):
        return ObjectFolder(str(location))
    return LocalFolder(location)


class LocalFolder(Folder):
    """A folder on disk."""

    def __init__(self, location: str | os.PathLike[str]) -> None:
        self.location = os.fspath(location)
        self.path = Path(os.path.abspath(self.location))

    def read(self, name: str, most: int = sys.maxsize) -> bytes | None:
        path = self.path / name
        with failures_named(self.location, f"read {name}"):
            try:
                size = path.stat().st_size
                expect(size <= most, f"{name}: bytes", size, f"at most {most}")
                return path.read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def write(self, name: str, content: bytes) -> None:
        def put(unfinished: Path) -> None:
            os.replace(unfinished, self.path / name)

        self._put(name, content, put)

    def create(self, name: str, content: bytes) -> bool:
        def put(unfinished: Path) -> None:
            try:
                os.link(unfinished, self.path / name)
            except (FileExistsError, FileNotFoundError):
                raise
            except OSError:  # a file system without links
                if not self.has(name):
                    os.replace(unfinished, self.path / name)

        with suppress(FileExistsError):
            self._put(name, content, put)
        return self.read(name) == content

    def _put(self, name: str, content: bytes, put: Callable[[Path], None]) -> None:
        """Write a file under another name, and `put` it in its place.

        The other name is new each time, and another process may remove it (`clean`). It is then
        written again.
        """
        path = self.path / name
        action = f"write {name}"
        for attempt in range(_TRIES):
            unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_UNFINISHED}")
            try:
                with failures_named(self.location, action):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    unfinished.write_bytes(content)
                with failures_named(self.location, action, FileExistsError, FileNotFoundError):
                    put(unfinished)
                return
            except FileNotFoundError as error:
                if attempt == _TRIES - 1:
                    raise failure(self.location, action, error) from None
            finally:
                with suppress(OSError):
                    unfinished.unlink()

    def remove(self, name: str) -> None:
        with failures_named(self.location, f"remove {name}"):
            (self.path / name).unlink(missing_ok=True)

    def has(self, name: str) -> bool:
        return (self.path / name).exists()

    def names(self, prefix: str = "") -> list[str]:
        with failures_named(self.location, "list it"):
            return sorted(name for name in self._all(prefix) if not name.endswith(_UNFINISHED))

    def clean(self) -> None:
        with failures_named(self.location, "list it"):
            names = list(self._all(""))
        for name in names:
            if name.endswith(_UNFINISHED):
                self.remove(name)

    def _all(self, prefix: str) -> Iterator[str]:
        """The names of all files below a prefix, finished or not."""
        try:
            entries = list(os.scandir(self.path / prefix))
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from self._all(f"{prefix}{entry.name}/")
            else:
                yield f"{prefix}{entry.name}"


class MemoryFolder(Folder):
    """A folder in the memory of this process."""

    location = "memory"

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}

    def read(self, name: str, most: int = sys.maxsize) -> bytes | None:
        return self.contents.get(name)

    def write(self, name: str, content: bytes) -> None:
        self.contents[name] = content

    def create(self, name: str, content: bytes) -> bool:
        return self.contents.setdefault(name, content) == content

    def remove(self, name: str) -> None:
        self.contents.pop(name, None)

    def has(self, name: str) -> bool:
        return name in self.contents

    def names(self, prefix: str = "") -> list[str]:
        return sorted(name for name in self.contents if name.startswith(prefix))


class ObjectFolder(Folder):
    """Objects below a prefix. Requests are repeated after errors that may pass."""

    def __init__(self, location: str) -> None:
        self.location = location
        try:
            import obstore
        except ImportError as error:
            raise ValueError(
                f"{location} needs a package that is missing ({error.name}); pip install"
                " 'uturn[cluster]'"
            ) from None
        self._requests = obstore
        self._absent = obstore.exceptions.NotFoundError
        self._present = obstore.exceptions.AlreadyExistsError
        self._clients: dict[float, Any] = {}  # by the seconds that they have for a request
        self._objects(0)  # a ValueError for a URL that cannot be opened

    def _objects(self, size: int) -> Any:  # noqa: ANN401 - obstore has a type for each service
        """The objects, with time for requests of so many bytes."""
        minutes = -(-size // 60_000_000)
        seconds = REQUEST_SECONDS + 60.0 * minutes
        if seconds not in self._clients:
            self._clients[seconds] = _client(self.location, seconds)
        return self._clients[seconds]

    def read(self, name: str, most: int = sys.maxsize) -> bytes | None:
        def request() -> bytes | None:
            try:
                # The head of the answer has the size, so that no request of its own is needed.
                answer = self._requests.get(self._objects(0), name)
            except (self._absent, FileNotFoundError):
                return None
            size = answer.meta["size"]
            expect(size <= most, f"{name}: bytes", size, f"at most {most}")
            return bytes(answer.bytes())

        return self._repeated(f"read {name}", request)

    def write(self, name: str, content: bytes) -> None:
        objects = self._objects(len(content))

        def request() -> None:
            self._requests.put(objects, name, content)

        self._repeated(f"write {name}", request)

    def create(self, name: str, content: bytes) -> bool:
        objects = self._objects(len(content))

        def request() -> None:
            with suppress(self._present):
                self._requests.put(objects, name, content, mode="create")

        self._repeated(f"write {name}", request)
        return self.read(name) == content

    def remove(self, name: str) -> None:
        def request() -> None:
            with suppress(self._absent, FileNotFoundError):
                self._requests.delete(self._objects(0), name)

        self._repeated(f"remove {name}", request)

    def has(self, name: str) -> bool:
        def request() -> bool:
            try:
                self._requests.head(self._objects(0), name)
            except (self._absent, FileNotFoundError):
                return False
            return True

        return self._repeated(f"read {name}", request)

    def names(self, prefix: str = "") -> list[str]:
        def request() -> list[str]:
            names: list[str] = []
            for page in self._requests.list(self._objects(0), prefix):
                names += [entry["path"] for entry in page]
            return sorted(names)

        return self._repeated("list it", request)

    def _repeated(self, action: str, request: Callable[[], Result]) -> Result:
        end = time.monotonic() + (PATIENCE if self.patience is None else self.patience)
        wait = _FIRST_WAIT
        while True:
            try:
                return request()
            except (OSError, self._requests.exceptions.BaseError) as error:
                text = _without_source(error)
                may_pass = _MAY_PASS.search(f"{type(error).__name__} {text}")
                has_time = time.monotonic() + wait < end
                if not (may_pass and has_time):
                    raise failure(self.location, action, error) from None
            time.sleep(wait * random.uniform(0.5, 1.0))
            wait = min(2 * wait, _LONGEST_WAIT)


def _client(location: str, seconds: float) -> Any:  # noqa: ANN401 - as in `ObjectFolder`
    """The objects at a URL, with a limit of time for each request."""
    from obstore.store import from_url

    # obstore does not read client options from the environment if one of them is given.
    options: Any = {"timeout": f"{seconds}s", "connect_timeout": "10s"}
    for option in ("allow_http", "allow_invalid_certificates"):
        if os.environ.get(f"AWS_{option.upper()}", "").lower() in ("1", "true", "yes", "on"):
            options[option] = True
    try:
        return from_url(location, retry_config={"max_retries": 0}, client_options=options)
    except Exception as error:  # obstore raises many kinds
        raise ValueError(
            f"{location} cannot be opened ({one_line(error)}); check the URL and the credentials"
        ) from None


def _without_source(error: Exception) -> str:
    """The text of an error of obstore without its debugging part."""
    return str(error).partition("Debug source")[0]


def failure(location: str, action: str, error: Exception) -> StoreError:
    """An error of a disk or of object storage, after which the data may be intact, in one line."""
    text = _without_source(error)
    codes = []
    for code, status in re.findall(r"<Code>(\w+)</Code>|status code: (\d{3}[ \w]*)", text):
        codes.append(code or f"status {status.strip()}")
    reason = getattr(error, "strerror", None) or ", ".join(codes) or one_line(type(error)(text))
    return StoreError(
        f"{location}: cannot {action} ({reason}); what was written before is safe: free some space,"
        " give access, or wait for the storage, and run it again to resume"
    )


@contextmanager
def failures_named(location: str, action: str, *others: type[OSError]) -> Iterator[None]:
    """Turn an error of a disk into a `StoreError` of one line; `others` stay as they are."""
    try:
        yield
    except others:
        raise
    except OSError as error:
        raise failure(location, action, error) from None


def each(
    location: str, function: Callable[[Value], Result], values: Iterable[Value]
) -> Sequence[Result]:
    """`function` of every value; in threads for object storage, where calls wait for the
    network.
    """
    if not is_url(location):
        return list(map(function, values))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(function, values))


def is_run(location: str) -> bool:
    """Whether there is a run at a location."""
    return folder_at(location).has(RUN_ROOT)


def existing_part(path: Path) -> Path:
    """A path if it exists, otherwise the innermost of its folders that does."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def check_no_file(name: str, location: str) -> None:
    """ValueError if a path, or one that it lies in, is a file and so cannot be a folder."""
    path = Path(location).absolute()
    existing = existing_part(path)
    words = "it is a file" if existing == path else f"{existing} is a file"
    expect(not existing.is_file(), name, location, f"a folder; {words}")


def is_empty(location: str) -> bool:
    """Whether a run can be created at a location; ValueError if that is a file."""
    if is_url(location):
        folder = folder_at(location)
        return not any(folder.has(root) for root in ROOTS)
    check_no_file("store", location)
    path = Path(location)
    if not path.exists():
        return True
    if not path.is_dir():
        return False
    return all(entry.name.endswith(_UNFINISHED) for entry in path.iterdir())


def replace(location: str, contents: Mapping[str, bytes]) -> None:
    """Replace the objects at a URL by others.

    A process that is killed in between leaves a place without a root, which no reader opens.
    """
    folder = folder_at(location)
    old = set(folder.names())
    new = set(contents)

    def write(name: str) -> None:
        folder.write(name, contents[name])

    for root in old.intersection(ROOTS):
        folder.remove(root)
    each(location, folder.remove, old.difference(ROOTS, new))
    each(location, write, new.difference(ROOTS))
    for root in new.intersection(ROOTS):
        write(root)
