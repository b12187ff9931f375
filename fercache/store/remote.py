"""The files of a store beyond this machine's disk (S3, GCS, memory, HTTP to read): whatever fsspec opens."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from fercache.errors import FercacheError, InputError, MissingExtra, StoreError
from fercache.runtime import atomic_io
from fercache.runtime.uri import Location, Url, as_location
from fercache.store.clip import Clip
from fercache.store.layout import FRAME_TABLE
from fercache.store.local import FileStamp, LocalStoreFiles, StoreFiles, StoreSize
from fercache.store.manifest import LARGEST, parse

if TYPE_CHECKING:
    from fercache.store.embedding_store import EmbeddingStore


# A far store read in a known order: the next clips are on their way while this one is used.

PREFETCH_BYTES = 256 << 20
"""Bytes that may be on their way or waiting; one clip may be larger."""
CLIPS = 16
"""Most clips on their way: small ones are all latency."""

Values = dict[str, NDArray[np.float16]]
T = TypeVar("T")


class PrefetchQueue(Generic[T]):
    """What is read of each clip, in order: the next ones are under way."""

    def __init__(self, names: Sequence[str], read: Callable[[str], T], size: Callable[[str], int]) -> None:
        self.order = {name: i for i, name in enumerate(names)}
        self.names, self.read, self.size = list(self.order), read, size
        self.under_way: dict[str, Future[T]] = {}
        self.pool = ThreadPoolExecutor(CLIPS, "fercache-ahead")

    def take(self, clip: str) -> T:
        """Return what is read of a clip; those before it are let go, those after it are sent for."""
        at = self.order[clip]
        for other in [name for name in self.under_way if self.order[name] < at]:
            self.under_way.pop(other).cancel()
        ahead = 0
        for name in self.names[at:at + CLIPS]:
            ahead += self.size(name)
            if name != clip and ahead > PREFETCH_BYTES:
                break
            if name not in self.under_way:
                self.under_way[name] = self.pool.submit(self.read, name)
        return self.under_way[clip].result()


class PrefetchingStore:
    """The store as `EmbeddingStore` shows it to a reader of whole clips, who takes them in the order of `names`.

    Notes
    -----
    Another order is served too, without reading ahead. Clocks are read apart from the taps: some readers want all of
    them first.
    """

    def __init__(self, store: EmbeddingStore, names: Sequence[str], taps: Sequence[str]) -> None:
        self.store, self.wanted = store, tuple(taps)
        self.path: Location = store.path
        self.settings, self.taps = store.settings, store.taps
        held = list(dict.fromkeys(names))
        self._manifests = dict(zip(held, store.files.in_parallel(store.manifest, held), strict=True))
        self.frame_tables = PrefetchQueue(held, lambda clip: self._clip(clip).frame_table,
                                    lambda clip: self._bytes(clip, [FRAME_TABLE]))
        self.values = PrefetchQueue(held, self._values, lambda clip: self._bytes(clip, self.wanted))

    def __contains__(self, clip: object) -> bool:
        return clip in self._manifests or clip in self.store

    def __getitem__(self, clip: str) -> PrefetchedClip | Clip:
        return PrefetchedClip(self, clip, self._manifests[clip].frames) if clip in self._manifests else self.store[clip]

    def digest(self) -> str:
        """Return the store's digest."""
        return self.store.digest()

    def prefetch(self, names: Sequence[str], taps: Sequence[str]) -> PrefetchingStore:
        """Return the store read in another order."""
        return PrefetchingStore(self.store, names, taps)

    def _clip(self, clip: str) -> Clip:
        return Clip(self.store.files, self._manifests[clip])

    def _values(self, clip: str) -> Values:
        held = self._clip(clip)
        return {tap: held.read(tap) for tap in self.wanted}

    def _bytes(self, clip: str, names: Sequence[str]) -> int:
        arrays = self._manifests[clip].arrays
        return sum(arrays[name].grid.row_bytes * arrays[name].shape[0] for name in names)


class PrefetchedClip:
    """One clip of a store that is read ahead: length, clock and whole taps."""

    def __init__(self, ahead: PrefetchingStore, name: str, frames: int) -> None:
        self._store, self.name, self.frames = ahead, name, frames

    @property
    def frame_table(self) -> NDArray[np.void]:
        """The clock, ``(T,)`` with named columns."""
        return self._store.frame_tables.take(self.name)

    def read(self, tap: str, out: NDArray[Any] | None = None) -> NDArray[np.float16]:
        """Return the whole of a tap, ``(T, ...) float16``, in `out` if it is given."""
        held = self._store.values.take(self.name)
        made = held[tap] if tap in held else self._store.store[self.name].read(tap)
        if out is None:
            return made
        out[...] = made
        return out


FLIGHTS = 32
"""Requests under way at the same time: a request waits for its answer for some 30 ms, whatever its size."""
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "http": "http", "https": "http"}
"""The extra of fercache's that brings what a protocol needs."""

U = TypeVar("U")


class RemoteStoreFiles:
    """Files under a URL, by keys; see `fercache.store.files.LocalFiles` for what each method means.

    Notes
    -----
    An object appears whole or not at all, so nothing is renamed. Uploads are under way side by side until `settle`.
    Nothing is cached. A forked process opens connections of its own.
    """

    is_remote = True

    def __init__(self, root: Url) -> None:
        self.root = root
        self.guards: dict[str, Callable[[], None]] = {}
        """Folder -> what is asked before a file in it is written: raises where another machine has taken it over."""
        self._opened: tuple[int, Any, ThreadPoolExecutor] | None = None
        self._turns: list[Future[None]] = []
        _ = self._fs

    def _here(self) -> tuple[int, Any, ThreadPoolExecutor]:
        """Return process, file system and threads, opened anew in a forked process."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), _connect(self.root), ThreadPoolExecutor(FLIGHTS, "fercache-remote")
            self._turns = []
        return self._opened

    @property
    def _fs(self) -> Any:
        return self._here()[1]

    def _path(self, key: str) -> str:
        return str(self._fs._strip_protocol(str(self.root / key)))

    @contextmanager
    def _asking(self, key: str) -> Iterator[None]:
        """Turn what the storage answers, or does not answer, into an error a user can act on."""
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, FercacheError):
            raise
        except Exception as error:
            denied = isinstance(error, PermissionError)
            what = "access was denied" if denied else "the storage does not answer as it should"
            raise StoreError(f"{what} ({type(error).__name__}: {_first_line(error)})", where=self.root / key,
                             hint="check the URL, the credentials (AWS_PROFILE, AWS_ENDPOINT_URL, "
                                  "GOOGLE_APPLICATION_CREDENTIALS) and the network, and run again: "
                                  "what is committed stays") from error

    def in_parallel(self, function: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
        """Yield ``function(item)`` in the order of the items, many under way at once."""
        with ThreadPoolExecutor(FLIGHTS) as pool:  # threads of its own: the function waits for others of ours
            yield from pool.map(function, items)

    def stat(self, key: str) -> FileStamp | None:
        """Return the stamp of an object, None where there is none."""
        try:
            with self._asking(key):
                info = self._fs.info(self._path(key))
        except (FileNotFoundError, NotADirectoryError):
            return None
        if info.get("type") == "directory":
            return None
        named = hashlib.sha256(repr(sorted((k, str(v)) for k, v in info.items())).encode()).digest()
        return FileStamp(0, int(info.get("size") or 0), int.from_bytes(named[:8], "big"))

    def get(self, key: str) -> bytes | None:
        """Return the bytes of a small object (at most LARGEST + 1 of them), None where there is none."""
        stamp = self.stat(key)
        if stamp is None:
            return None
        data = bytearray(min(stamp.bytes, LARGEST + 1))
        return bytes(data) if self.fill(key, memoryview(data)) else None

    def fill_all(self, parts: Iterable[tuple[str, memoryview, int]]) -> str | None:
        """Fill many views at once; return the key of the first that failed, None if none did."""
        held = list(parts)
        done = list(self._here()[2].map(lambda part: self.fill(*part), held))
        return next((key for (key, _, _), filled in zip(held, done, strict=True) if not filled), None)

    def fill(self, key: str, view: memoryview, offset: int = 0) -> bool:
        """Fill `view` from an object's bytes at `offset`; return whether the object is there and long enough."""
        if not len(view):
            return True
        try:
            with self._asking(key):
                data = _ranged(self._fs, self._path(key), offset, offset + len(view))
        except (FileNotFoundError, IsADirectoryError):
            return False
        if len(data) > len(view):  # a server that knows no ranges
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
        try:
            with self._asking(key):
                found = self._fs.ls(self._path(key), detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        here = self._path(key).rstrip("/")
        return [entry for entry in found if str(entry["name"]).rstrip("/") != here]

    def make_folders(self, keys: Iterable[str]) -> None:
        """Do nothing: object stores have no folders."""

    def write(self, key: str, data: memoryview) -> None:
        """Begin to upload an object that nothing relies on yet; `settle` waits for it."""
        self._turns.append(self._here()[2].submit(self._put, key, data))

    def _put(self, key: str, data: memoryview | bytes) -> None:
        guard = self.guards.get(key.partition("/")[0])
        if guard is not None:
            guard()
        try:
            with self._asking(key):
                self._fs.pipe_file(self._path(key), bytes(data))
        except FileNotFoundError as error:
            raise StoreError(f"cannot be written ({_first_line(error)})", where=self.root / key,
                             hint="check the bucket's name; a bucket is never made by fercache") from error

    def fsync(self, keys: Iterable[str], *others: Path) -> None:
        """Return when every upload has arrived and `others`, which are local, have reached the disk."""
        turns, self._turns = self._turns, []
        wait(turns)
        for turn in turns:
            turn.result()
        if others:
            atomic_io.fsync_all(others)

    @contextmanager
    def fsyncing(self) -> Iterator[Callable[[Location], None]]:
        """Yield a function that takes places to settle; when the block ends, all of them and all uploads are."""
        local: list[Path] = []

        def settle(place: Location) -> None:
            if isinstance(place, Path):
                local.append(place)

        try:
            yield settle
        except BaseException:
            wait(self._turns)
            self._turns = []
            raise
        self.fsync((), *local)

    def replace(self, key: str, data: bytes) -> None:
        """Put `data` at `key`, whole or not at all."""
        self._put(key, data)

    def remove(self, key: str) -> None:
        """Remove one object; nothing happens where there is none."""
        try:
            with self._asking(key):
                self._fs.rm_file(self._path(key))
        except FileNotFoundError:
            return

    def remove_tree(self, key: str) -> None:
        """Remove every object under a folder."""
        try:
            with self._asking(key):
                found = self._fs.find(self._path(key))
                if found:
                    self._fs.rm(found)
        except FileNotFoundError:
            return

    def size(self, key: str = "") -> StoreSize:
        """Return bytes and number of all objects under a folder."""
        try:
            with self._asking(key):
                found = self._fs.find(self._path(key), detail=True)
        except FileNotFoundError:
            return StoreSize(0, 0)
        return StoreSize(sum(int(entry.get("size") or 0) for entry in found.values()), len(found))


def files_at(place: str | Location) -> StoreFiles:
    """Return the files of a folder, wherever it is.

    Raises
    ------
    InputError
        A URL of a protocol that nobody knows.
    MissingExtra
        What its protocol needs is not installed.
    """
    there = as_location(place)
    return RemoteStoreFiles(there) if isinstance(there, Url) else LocalStoreFiles(there)


def read_json(place: Location) -> Any:
    """Return the JSON value at a path or URL, None where there is nothing.

    Raises
    ------
    InputError
        It is no JSON.
    """
    data = files_at(place.parent).get(place.name)
    try:
        return None if data is None else parse(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not readable as JSON ({error})", where=place, hint="remove it and run again") from error


def write_json(place: Location, value: Any) -> None:
    """Put `value` at a path or URL as JSON, whole or not at all."""
    files_at(place.parent).replace(place.name, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def _connect(root: Url) -> Any:
    """Return fsspec's file system of a URL, which takes its settings from the environment."""
    from fsspec.core import url_to_fs  # only stores that are far need it

    scheme = str(root).partition("://")[0]
    try:
        return url_to_fs(str(root), use_listings_cache=False)[0]
    except ImportError as error:
        extra = EXTRAS.get(scheme)
        raise MissingExtra(f"{scheme}:// needs a package that is not installed ({_first_line(error)})", where=root,
                           hint=f"pip install 'fercache[{extra}]'" if extra else "install what it names") from error
    except ValueError as error:
        raise InputError(f"no such kind of storage ({_first_line(error)})", where=root,
                         hint="give a folder, or a URL such as s3://bucket/folder or gs://bucket/folder") from error


def _ranged(fs: Any, path: str, start: int, end: int) -> bytes:
    """Return bytes `start` to `end` of an object, nothing where it ends before `start`."""
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
