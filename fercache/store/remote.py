"""The files of a store at a URL (S3, GCS, memory, HTTP to read), through fsspec."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from fercache.errors import FercacheError, InputError, MissingExtra, StoreError
from fercache.runtime import atomic_io
from fercache.runtime.uri import Location, Url, as_location
from fercache.store.local import FileStamp, LocalStoreFiles, StoreSize
from fercache.store.manifest import MAX_METADATA_BYTES, parse_json
from fercache.workspace import CurrentStore

T = TypeVar("T")
U = TypeVar("U")

CONCURRENT_REQUESTS = 32
"""A request waits for its answer for some 30 ms, whatever its size, so many are sent at the same time."""
CONCURRENT_CLIPS = 16  # clips that are read at once: for small ones, latency is all the time
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "http": "http", "https": "http"}
"""Protocol -> the extra of fercache that installs what it needs."""


class RemoteStoreFiles:
    """Files under a URL, by keys; see `fercache.store.local.LocalStoreFiles` for what each method does."""
    # An object appears whole or not at all, so nothing is renamed. Uploads run in parallel until `fsync`. Nothing is
    # cached. The first request connects.

    is_remote, readers = True, CONCURRENT_CLIPS

    def __init__(self, root: Url) -> None:
        self.root = root
        self.guards: dict[str, Callable[[], None]] = {}
        """Folder -> check before each write into it; raises if another machine has taken the folder over."""
        self._opened: tuple[int, Any, ThreadPoolExecutor] | None = None
        self._uploads: list[Future[None]] = []

    def connect(self) -> tuple[int, Any, ThreadPoolExecutor]:
        """Return process, file system and threads; connect on first use."""
        # A forked process inherits sockets and locks of threads that it does not have, so it connects anew.
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), _connect(self.root), ThreadPoolExecutor(CONCURRENT_REQUESTS, "fercache-remote")
            self._uploads = []
        return self._opened

    @property
    def _fs(self) -> Any:
        return self.connect()[1]

    def _path(self, key: str) -> str:
        return str(self._fs._strip_protocol(str(self.root / key)))

    def _request(self, key: str, function: Callable[[Any, str], U], absent: U) -> U:
        """Return ``function(file system, path)``, or `absent` without such an object; errors are those of a user."""
        try:
            return function(self._fs, self._path(key))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return absent
        except FercacheError:
            raise
        except Exception as error:
            what = "access denied" if isinstance(error, PermissionError) else "the storage request failed"
            raise StoreError(f"{what} ({type(error).__name__}: {_first_line(error)})", where=self.root / key,
                             hint="check the URL, the credentials (AWS_PROFILE, AWS_ENDPOINT_URL, "
                                  "GOOGLE_APPLICATION_CREDENTIALS) and the network, and run again: "
                                  "committed clips stay") from error

    def in_parallel(self, function: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
        """Yield ``function(item)`` in the order of the items, many at the same time."""
        # Threads of its own: `function` itself waits for the threads of `connect`, which could deadlock.
        with ThreadPoolExecutor(CONCURRENT_REQUESTS) as pool:
            yield from pool.map(function, items)

    def stat(self, key: str) -> FileStamp | None:
        """Return the stamp of an object, None if it is absent."""
        info: dict[str, Any] = self._request(key, lambda fs, path: fs.info(path), {"type": "directory"})
        if info.get("type") == "directory":
            return None
        # Storages differ in what they report (ETag, version, time), so the stamp covers all of it.
        identity = hashlib.sha256(repr(sorted((k, str(v)) for k, v in info.items())).encode()).digest()
        return FileStamp(0, int(info.get("size") or 0), int.from_bytes(identity[:8], "big"))

    def get(self, key: str) -> bytes | None:
        """Return the bytes of a small object (at most MAX_METADATA_BYTES + 1 of them), None if it is absent."""
        stamp = self.stat(key)
        if stamp is None:
            return None
        data = bytearray(min(stamp.bytes, MAX_METADATA_BYTES + 1))
        return bytes(data) if self.fill(key, memoryview(data)) else None

    def fill_all(self, parts: Iterable[tuple[str, memoryview, int]], size: int) -> str | None:
        """Fill many views at once; return the key of the first that failed, None if none did."""
        views = list(parts)
        done = list(self.connect()[2].map(lambda part: self.fill(*part), views))
        return next((key for (key, _, _), filled in zip(views, done, strict=True) if not filled), None)

    def fill(self, key: str, view: memoryview, offset: int = 0) -> bool:
        """Fill `view` from an object's bytes at `offset`; return whether the object exists and is long enough."""
        if not len(view):
            return True
        data = self._request(key, lambda fs, path: _ranged(fs, path, offset, offset + len(view)), b"")
        if len(data) > len(view):  # some HTTP servers ignore ranges
            data = data[offset:offset + len(view)]
        if len(data) != len(view):
            return False
        view[:] = data
        return True

    def sizes(self, key: str) -> dict[str, int]:
        """Return name -> bytes of the objects directly in a folder."""
        return {_name(entry): int(entry.get("size") or 0) for entry in self._list(key) if entry["type"] == "file"}

    def folders(self, key: str = "") -> list[str]:
        """Return the names of the folders directly in a folder, sorted."""
        return sorted(_name(entry) for entry in self._list(key) if entry["type"] == "directory")

    def _list(self, key: str) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = self._request(key, lambda fs, path: fs.ls(path, detail=True), [])
        # Some file systems list the folder itself as an entry.
        folder = self._path(key).rstrip("/")
        return [entry for entry in entries if str(entry["name"]).rstrip("/") != folder]

    def make_folders(self, keys: Iterable[str]) -> None:
        """Do nothing: object stores have no folders."""

    def write(self, key: str, data: memoryview) -> None:
        """Start to upload an object that nothing relies on yet; `fsync` waits for it."""
        self._uploads.append(self.connect()[2].submit(self._put, key, data))

    def _put(self, key: str, data: memoryview | bytes) -> None:
        guard = self.guards.get(key.partition("/")[0])
        if guard is not None:
            guard()
        if not self._request(key, lambda fs, path: fs.pipe_file(path, bytes(data)) or True, False):
            raise StoreError("cannot be written: there is no such place", where=self.root / key,
                             hint="check the name of the bucket: fercache does not create buckets")

    def fsync(self, keys: Iterable[str]) -> None:
        """Return when every upload has finished."""
        uploads, self._uploads = self._uploads, []
        wait(uploads)
        for upload in uploads:
            upload.result()

    @contextmanager
    def fsyncing(self) -> Iterator[Callable[[Location], None]]:
        """Yield a function that takes files; at the end of the block local ones are synced and uploads finished."""
        local: list[Path] = []

        def start_sync(place: Location) -> None:
            if isinstance(place, Path):
                local.append(place)

        try:
            yield start_sync
        except BaseException:
            # An upload that finished later could overwrite what a second writer of the clip puts there.
            wait(self._uploads)
            self._uploads = []
            raise
        self.fsync(())
        atomic_io.fsync_all(local)

    def replace(self, key: str, data: bytes) -> None:
        """Upload `data` to `key`, completely or not at all."""
        self._put(key, data)

    def remove(self, key: str) -> None:
        """Remove one object; do nothing if it is absent."""
        self._request(key, lambda fs, path: fs.rm_file(path), None)

    def remove_tree(self, key: str) -> None:
        """Remove every object under a folder."""
        self._request(key, lambda fs, path: fs.rm(names) if (names := fs.find(path)) else None, None)

    def size(self, key: str = "") -> StoreSize:
        """Return bytes and number of all objects under a folder."""
        entries: dict[str, Any] = self._request(key, lambda fs, path: fs.find(path, detail=True), {})
        return StoreSize(sum(int(entry.get("size") or 0) for entry in entries.values()), len(entries))


StoreFiles = LocalStoreFiles | RemoteStoreFiles


def files_at(place: str | Location) -> StoreFiles:
    """Return the files of a folder or URL, connected.

    Raises InputError if a URL has an unknown protocol; MissingExtra if the package for its protocol is not installed.
    """
    location = as_location(place)
    if not isinstance(location, Url):
        return LocalStoreFiles(location)
    files = RemoteStoreFiles(location)
    files.connect()  # a mistyped protocol is reported here, not in the middle of a run
    return files


def read_pointer(place: Location) -> Location | None:
    """Return the store that the pointer at a path or URL names; None without a pointer.

    Raises InputError if the pointer is damaged.
    """
    data = files_at(place.parent).get(place.name)
    try:
        value = None if data is None else parse_json(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not readable as JSON ({error})", where=place, hint="remove it and run again") from error
    return None if data is None else place.parent / atomic_io.convert_record(value, CurrentStore, place).store


def write_pointer(place: Location, store: Location) -> None:
    """Make the pointer at a path or URL name a store beside it, completely or not at all."""
    files_at(place.parent).replace(place.name, atomic_io.json_bytes(CurrentStore(store.name)))


def _connect(root: Url) -> Any:
    from fsspec.core import url_to_fs  # only remote stores need it

    scheme = str(root).partition("://")[0]
    try:
        # No cache of listings: locks and resumption need to see what other machines wrote.
        return url_to_fs(str(root), use_listings_cache=False)[0]
    except ImportError as error:
        extra = EXTRAS.get(scheme)
        raise MissingExtra(f"{scheme}:// needs a package that is not installed ({_first_line(error)})", where=root,
                           hint=f"pip install 'fercache[{extra}]'" if extra else "install that package") from error
    except ValueError as error:
        raise InputError(f"unknown kind of storage ({_first_line(error)})", where=root,
                         hint="use a folder, or a URL such as s3://bucket/folder or gs://bucket/folder") from error


def _ranged(fs: Any, path: str, start: int, end: int) -> bytes:
    """Return bytes `start` to `end` of an object; fewer if it ends before."""
    try:
        data: bytes = fs.cat_file(path, start=start, end=end)
    except OSError as error:
        if error.errno == errno.EINVAL:  # the range lies beyond the object
            return b""
        raise
    return data


def _name(entry: dict[str, Any]) -> str:
    return str(entry["name"]).rstrip("/").rpartition("/")[2]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0][:300]
