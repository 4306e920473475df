"""Requests to object storage, with timeouts and repetition after transient failures.

`Objects` is a zarr store over obstore (S3, Google Cloud Storage, Azure) or, for other schemes, over fsspec.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import WrapperStore

from uturn.core.checks import StoreError, one_line, shown

UNFINISHED = ".unfinished"
"""Name of the folder for unfinished writes, which is not part of a store."""
AT_ONCE = 16
"""Number of requests at the same time."""
REQUEST_SECONDS = 60.0  # seconds for a request, plus one second for each megabyte sent
PATIENCE_SECONDS = 120.0  # seconds for a request with all its repetitions
INTERRUPTED_SECONDS = 5.0  # the same after an interruption
_FIRST_WAIT, _LONGEST_WAIT = 0.25, 15.0  # seconds between two repetitions, which double
_TOLD_EVERY = 30.0  # seconds between two messages
_OBSTORE = {"s3", "s3a", "gs", "az", "azure", "adl", "abfs", "abfss"}
_METADATA_SERVICE = "169.254.169.254"  # where clouds give the credentials of a machine, asked if there are no others
_EXTRA = "`pip install 'uturn[cluster]'`"

_log = logging.getLogger("uturn")
_T = TypeVar("_T")


class StorageError(StoreError):
    """Object storage refuses a request or does not answer; the objects may be intact."""


class Tagged(NamedTuple):
    """The bytes of an object and the tag of this version (None if the storage has no tags)."""

    data: bytes
    version: dict[str, str] | None


def is_url(value: Any) -> bool:
    """Whether a path has a scheme, as in s3://bucket/run (a single letter is a drive)."""
    return isinstance(value, str) and re.match(r"[A-Za-z][\w+.-]+:/", value) is not None


def checked_url(name: str, value: str) -> str:
    """A URL of object storage, scheme://bucket/path without a slash at the end, or a ValueError."""
    scheme, _, rest = value.partition("://")
    example = "expected a URL such as s3://bucket/runs/x, gs://.. or az://.., or the path of a folder"
    if not rest:
        raise ValueError(f"{name} = {shown(value)}: {example} (as text: a `Path` joins the two slashes)")
    if "@" in rest.split("/")[0]:
        raise ValueError(f"{name}: a URL of {scheme}:// with a user or a password; credentials belong into the environment")
    if scheme in ("http", "https"):
        raise ValueError(f"{name} = {shown(value)}: {example}; the address of a server of your own is AWS_ENDPOINT_URL")
    if scheme == "memory":
        raise ValueError(f"{name} = {shown(value)}: it would vanish with the process; {example}")
    parts = rest.rstrip("/").split("/")
    if re.search(r"[?#%*\\\s\0]", rest) or any(part in ("", ".", "..") for part in parts) or len(rest) > 900:
        raise ValueError(f"{name} = {shown(value)}: {example}, without spaces, '?', '#', '%', '*', '//' and '..'")
    return f"{scheme}://{'/'.join(parts)}"


class Objects(WrapperStore[Any]):
    """The objects under a URL, as a zarr store. Keys are relative to the URL."""

    _told = -_TOLD_EVERY  # time of this process's last message about a failed request

    def __init__(self, store: Any, where: str) -> None:
        super().__init__(store)
        self.where = where
        self.patience = PATIENCE_SECONDS
        self._answered = False

    @classmethod
    def at(cls, url: str) -> Objects:
        """The objects under a URL; no request is made yet."""
        for variable in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT"):
            endpoint = os.environ.get(variable, "https://")
            if not endpoint.startswith(("http://", "https://")):
                raise ValueError(f"{variable} = {shown(endpoint)}: expected an address such as https://host:port")
        try:
            if url.partition("://")[0] in _OBSTORE:
                return cls(_obstore(url), url)
            import fsspec  # noqa: F401
            from zarr.storage import FsspecStore

            return cls(FsspecStore.from_url(url), url)
        except ImportError as error:
            missing = error.name or one_line(error)
            raise ValueError(
                f"{url} needs a package that is missing ({missing}); {_EXTRA} installs those for s3, gs, az"
            ) from None
        except Exception as error:  # obstore and fsspec raise many kinds of exceptions
            raise ValueError(f"{url} cannot be opened ({one_line(error)}); check the URL and the credentials") from None

    def _with_store(self, store: Any) -> Objects:
        return Objects(store, self.where)

    # -- requests of zarr ----------------------------------------------------------------------------------------------
    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        return await self._until_done(f"reading {key}", lambda: self._store.get(key, prototype, byte_range))

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        ranges = list(key_ranges)
        return await self._until_done("reading parts", lambda: self._store.get_partial_values(prototype, ranges))

    async def exists(self, key: str) -> bool:
        return await self._until_done(f"looking for {key}", lambda: self._store.exists(key))

    async def set(self, key: str, value: Buffer) -> None:
        await self._until_done(f"writing {key}", lambda: self._store.set(key, value), len(value))

    async def delete(self, key: str) -> None:
        await self._until_done(f"deleting {key}", lambda: self._store.delete(key))

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        for key in await self._collected(prefix):
            yield key

    def list(self) -> AsyncIterator[str]:
        return self.list_prefix("")

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        for key in await self._listing(prefix, lambda: self._store.list_dir(prefix)):
            if key != UNFINISHED:
                yield key

    async def _collected(self, prefix: str) -> Sequence[str]:
        return await self._listing(prefix, lambda: self._store.list_prefix(prefix))

    async def _listing(self, prefix: str, keys: Callable[[], AsyncIterator[str]]) -> Sequence[str]:
        async def collected() -> Sequence[str]:
            try:
                return [key async for key in keys()]
            except FileNotFoundError:  # fsspec
                return []

        return await self._until_done(f"listing {prefix}", collected)

    # -- requests of stores and folders, which wait for the answer -----------------------------------------------------
    def listed(self, prefix: str = "") -> Sequence[str]:
        """All keys that begin with a prefix (a folder, which ends in a slash)."""
        return sync(self._collected(prefix))

    def names(self, folder: str) -> Sequence[str]:
        """Names of the objects and folders in a folder."""
        keys = sync(self._listing(folder, lambda: self._store.list_dir(folder)))
        return [key for key in keys if key != UNFINISHED]

    def read(self, key: str) -> bytes | None:
        """The bytes of an object; None if there is none."""
        content = sync(self.get(key, default_buffer_prototype()))
        return None if content is None else content.to_bytes()

    def write(self, key: str, data: bytes) -> None:
        """Write an object."""
        sync(self.set(key, default_buffer_prototype().buffer.from_bytes(data)))

    def remove(self, keys: Iterable[str]) -> None:
        """Delete objects, many in one request if the storage supports it."""
        keys = sorted(keys)
        if not keys:
            return
        many = self._upstream
        if many is None:
            self.at_once(self.delete(key) for key in keys)
            return
        import obstore

        def parts() -> Iterable[Coroutine[Any, Any, None]]:
            for start in range(0, len(keys), 1000):
                some = keys[start : start + 1000]
                yield self._until_done(f"deleting {some[0]}", lambda some=some: obstore.delete_async(many, some))  # type: ignore[misc]

        self.at_once(parts())

    def copy(self, key: str, target: str) -> Coroutine[Any, Any, None]:
        """Request that copies an object inside the storage, for `at_once`."""

        async def request() -> None:
            import obstore

            await obstore.copy_async(self._upstream, key, target)

        async def through_here() -> None:
            content = await self.get(key, default_buffer_prototype())
            if content is None:
                raise StorageError(f"{self.where}: {key} is missing")
            await self.set(target, content)

        return through_here() if self._upstream is None else self._until_done(f"copying {key}", request)

    def at_once(self, requests: Iterable[Coroutine[Any, Any, _T]]) -> Sequence[_T]:
        """The answers to several requests, `AT_ONCE` of them at the same time."""

        async def limited() -> Sequence[_T]:
            free = asyncio.Semaphore(AT_ONCE)

            async def one(request: Coroutine[Any, Any, _T]) -> _T:
                async with free:
                    return await request

            return await asyncio.gather(*map(one, requests))

        return sync(limited())

    def read_tagged(self, key: str) -> Tagged | None:
        """The bytes of an object with its version; None if there is none."""
        upstream = self._upstream
        if upstream is None:
            data = self.read(key)
            return None if data is None else Tagged(data, None)
        import obstore

        async def request() -> Tagged | None:
            try:
                answer = await obstore.get_async(upstream, key)
                known = {name: answer.meta[name] for name in ("e_tag", "version")}  # gone once the bytes are read
                data = bytes(await answer.bytes_async())
            except FileNotFoundError:
                return None
            return Tagged(data, {name: value for name, value in known.items() if value is not None})

        return sync(self._until_done(f"reading {key}", request))

    def swap(self, key: str, data: bytes, seen: Tagged | None) -> bool:
        """Write an object if it is still the version `seen` (None: if it does not exist); returns whether it then holds `data`.

        If the storage does not support conditions, the object is read before and after.
        """
        for mode in _modes(seen) if self._upstream is not None else ():
            if sync(self._until_done(f"writing {key}", lambda mode=mode: self._put_if(key, data, mode), len(data))):  # type: ignore[misc]
                return True
            stored = self.read_tagged(key)
            if stored is not None and stored.data == data:
                return True  # a repeated request found its own first write, whose answer was lost
            if stored != seen:
                return False
            # The object is unchanged but the condition failed, so the storage does not support conditions.
        if self.read(key) != (None if seen is None else seen.data):
            return False
        self.write(key, data)
        return self.read(key) == data

    async def _put_if(self, key: str, data: bytes, mode: Any) -> bool:
        """Whether an object was written on a condition."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, NotSupportedError, PreconditionError

        try:
            await obstore.put_async(self._upstream, key, data, mode=mode)
            return True
        except (AlreadyExistsError, PreconditionError, NotSupportedError):
            return False
        except Exception as error:
            if _status(error) in (409, 501):  # a conflict with another process, or an unsupported operation
                return False
            raise

    @property
    def _upstream(self) -> Any:
        """The store of obstore; None for one of fsspec."""
        return getattr(self._store, "store", None)

    # -- repetition ----------------------------------------------------------------------------------------------------
    async def _until_done(self, doing: str, request: Callable[[], Awaitable[_T]], size: int = 0) -> _T:
        """The answer to a request, repeated after transient errors for at most two minutes."""
        start, wait, attempt = time.monotonic(), _FIRST_WAIT, 1
        while True:
            try:
                answer = await asyncio.wait_for(request(), REQUEST_SECONDS + size / 1e6)
                self._answered = True
                return answer
            except StorageError:
                raise
            except Exception as error:
                self._check_may_pass(doing, error)
                now = time.monotonic()
                if now - start + wait > min(self.patience, PATIENCE_SECONDS):
                    raise StorageError(
                        f"{self.where}: {doing} failed {attempt} times in {now - start:.0f} s ({_words(error)}); what was "
                        f"written before is safe, run the same again to resume"
                    ) from None
                if now - self._told >= _TOLD_EVERY:
                    _log.warning(
                        f"{self.where}: {doing} failed ({_words(error)}), attempt {attempt}; requests that fail are repeated, "
                        f"this one in {wait:.1f} s, for {PATIENCE_SECONDS:.0f} s at most"
                    )
                    Objects._told = now
            await asyncio.sleep(wait * random.uniform(0.5, 1.0))
            wait, attempt = min(2 * wait, _LONGEST_WAIT), attempt + 1

    def _check_may_pass(self, doing: str, error: Exception) -> None:
        """StorageError if a request with this error would fail again."""
        text, status = str(error), _status(error)
        if "NoSuchBucket" in text:
            why, way_out = "there is no such bucket", "make it, or choose another one"
        elif _METADATA_SERVICE in text and not self._answered:
            why, way_out = "no credentials were found", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or those of your cloud"
        elif type(error).__name__ in ("PermissionDeniedError", "UnauthenticatedError", "PermissionError") or status in (401, 403):
            why, way_out = f"access is denied ({_words(error)})", "check the credentials and what they permit"
        elif (status is not None and 300 <= status < 400) or "redirect" in text:
            why, way_out = f"the bucket is elsewhere ({_words(error)})", "check AWS_REGION and AWS_ENDPOINT_URL"
        elif status is not None and 400 <= status < 500 and status not in (408, 409, 425, 429) and "RequestTimeout" not in text:
            why, way_out = f"the request is refused ({_words(error)})", "check the URL and AWS_ENDPOINT_URL"
        elif isinstance(error, FileNotFoundError | NotImplementedError | TypeError | AttributeError | ValueError | LookupError):
            why, way_out = one_line(error), "check the URL"
        elif "BadScheme" in text or "URL scheme is not allowed" in text:
            why, way_out = "the endpoint is plain http", "set AWS_ALLOW_HTTP=true to allow that"
        else:
            return
        raise StorageError(f"{self.where}: {doing} failed: {why}; {way_out}") from None


def _modes(seen: Tagged | None) -> list[Any]:
    """Conditions of obstore that an object is the version `seen`. Ceph compares tags without their quotes."""
    if seen is None:
        return ["create"]
    version = seen.version or {}
    plain = {name: value.strip('"') for name, value in version.items()}
    return [tags for tags in (version, plain) if tags]


def _status(error: Exception) -> int | None:
    """The HTTP status in the text of an error."""
    status = re.search(r"status code: (\d{3})", str(error))
    return int(status[1]) if status else None


def _words(error: Exception) -> str:
    """The text of an error, without the request, the XML answer and obstore's debugging output."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    text = str(error).split("\n\nDebug source")[0]
    code, status = re.search(r"<Code>(\w+)</Code>", text), re.search(r"status code: (\d{3}[ \w]*)", text)
    if status:
        return status[1].strip() + (f", {code[1]}" if code else "")
    return one_line(ValueError(re.split(r"\w*s - ", text, maxsplit=1)[-1]))


def _obstore(url: str) -> Any:
    from obstore.store import from_url
    from zarr.storage import ObjectStore

    # Repetitions and time limits are handled here, to report them. obstore does not read the environment for client options
    # if one of them is given.
    options: Any = {"timeout": "1h", "connect_timeout": "10s"}
    for name in ("allow_http", "allow_invalid_certificates"):
        if os.environ.get(f"AWS_{name.upper()}", "").lower() in ("1", "true", "yes", "on"):
            options[name] = True
    return ObjectStore(from_url(url, retry_config={"max_retries": 0}, client_options=options))
