"""The files of a store: the one place that knows it lies on a local disk (fsync, direct reads into arrays)."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from fercache.runtime import atomic_io
from fercache.runtime.uri import Location
from fercache.store.manifest import LARGEST

TEMPORARY = ".tmp-"
"""What durable's temporary siblings begin with."""

SYNCS = 8
"""Files that are synced at the same time."""


class StoreSize(NamedTuple):
    """What a store takes on disk."""

    bytes: int
    files: int


class FileStamp(NamedTuple):
    """What changes when a file is replaced."""

    mtime_ns: int
    bytes: int
    inode: int


T = TypeVar("T")
U = TypeVar("U")


class StoreFiles(Protocol):
    """What a store asks of the place it lies in; `LocalFiles` says what each of it means.

    Attributes
    ----------
    far : each call travels: many are worth being under way at once, and a file appears whole or not at all.
    """

    @property
    def root(self) -> Location: ...
    @property
    def is_remote(self) -> bool: ...
    def in_parallel(self, function: Callable[[T], U], items: Iterable[T]) -> Iterator[U]: ...
    def stat(self, key: str) -> FileStamp | None: ...
    def get(self, key: str) -> bytes | None: ...
    def fill_all(self, parts: Iterable[tuple[str, memoryview, int]]) -> str | None: ...
    def fill(self, key: str, view: memoryview, offset: int = 0) -> bool: ...
    def sizes(self, key: str) -> dict[str, int]: ...
    def folders(self, key: str = "") -> list[str]: ...
    def make_folders(self, keys: Iterable[str]) -> None: ...
    def write(self, key: str, data: memoryview) -> None: ...
    def fsync(self, keys: Iterable[str], *others: Path) -> None: ...
    def fsyncing(self) -> AbstractContextManager[Callable[[Location], None]]: ...
    def replace(self, key: str, data: bytes) -> None: ...
    def remove(self, key: str) -> None: ...
    def remove_tree(self, key: str) -> None: ...
    def size(self, key: str = "") -> StoreSize: ...


@dataclass(frozen=True)
class LocalStoreFiles:
    """Files under a folder, by keys such as ``clip/block8/c.0.0``."""

    root: Path

    @property
    def is_remote(self) -> bool:
        """Not far."""
        return False

    def in_parallel(self, function: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
        """Yield ``function(item)`` in the order of the items, one after the other: there is nothing to wait for."""
        return map(function, items)

    def stat(self, key: str) -> FileStamp | None:
        """Return the stamp of a file, None where there is none."""
        try:
            status = (self.root / key).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return FileStamp(status.st_mtime_ns, status.st_size, status.st_ino)

    def get(self, key: str) -> bytes | None:
        """Return the bytes of a small file (at most LARGEST + 1 of them), None where there is none."""
        try:
            with (self.root / key).open("rb") as file:
                return file.read(LARGEST + 1)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def fill_all(self, parts: Iterable[tuple[str, memoryview, int]]) -> str | None:
        """Fill many views as `fill` does; return the key of the first that failed, None if none did.

        Notes
        -----
        Straight into place. Tried, in processor time on a kernel 6.18, warm: a raw memory map is copied at 9.4 GB/s,
        this reads 6.1, through a buffer that the cache holds 4.3 to 4.6, a map of each file 5.1 to 5.3 (and a map ends
        the process by a signal where the disk fails).
        """
        return next((key for key, view, offset in parts if not self.fill(key, view, offset)), None)

    def fill(self, key: str, view: memoryview, offset: int = 0) -> bool:
        """Fill `view` from a file's bytes at `offset`; return whether the file is there and long enough."""
        try:
            handle = os.open(f"{self.root}/{key}", os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return False
        try:
            return _read_all(handle, view, offset)
        except IsADirectoryError:
            return False
        finally:
            os.close(handle)

    def sizes(self, key: str) -> dict[str, int]:
        """Return name -> bytes of all but the folders directly in a folder (links too); nothing without a folder."""
        return {entry.name: _bytes_of(entry) for entry in self._entries(key)
                if not entry.is_dir(follow_symlinks=False)}

    def folders(self, key: str = "") -> list[str]:
        """Return the names of the folders directly in a folder, sorted."""
        return sorted(entry.name for entry in self._entries(key) if entry.is_dir(follow_symlinks=False))

    def make_folders(self, keys: Iterable[str]) -> None:
        """Make folders; `settle` makes them last."""
        for key in keys:
            atomic_io.make_folder(self.root / key)

    def write(self, key: str, data: memoryview) -> None:
        """Write a file that nothing relies on yet; `settle` makes it last."""
        with (self.root / key).open("wb", buffering=0) as file:
            half = len(data) // 2
            _write_all(file.fileno(), data[:half])
            atomic_io.durable_step("chunk.torn")
            _write_all(file.fileno(), data[half:])

    def fsync(self, keys: Iterable[str], *others: Path) -> None:
        """Return when these files or folders, and the folders that hold them, have reached the disk.

        Parameters
        ----------
        others : files elsewhere, for the same turn.

        Notes
        -----
        Asked for all at once, so that the file system answers many with one turn of its journal (16 files: 2 ms, one
        after the other 60 ms).
        """
        with self.fsyncing() as settle:
            for path in {*others, *(self.root / key for key in keys)}:
                settle(path)

    @contextmanager
    def fsyncing(self) -> Iterator[Callable[[Location], None]]:
        """Yield a function that begins to sync a file; when the block ends all of them, and their folders, are synced.
        """
        with ThreadPoolExecutor(SYNCS) as pool:
            turns, folders = [], set()

            def settle(place: Location) -> None:
                path = Path(str(place))
                turns.append(pool.submit(atomic_io.fsync, path))
                folders.add(path.parent)

            yield settle
            turns += [pool.submit(atomic_io.fsync, folder) for folder in folders]
            for turn in turns:
                turn.result()

    def replace(self, key: str, data: bytes) -> None:
        """Put `data` at `key`, whole or not at all."""
        atomic_io.write_bytes(self.root / key, data)

    def remove(self, key: str) -> None:
        """Remove one file for good; nothing happens where there is none."""
        path = self.root / key
        if path.exists():
            path.unlink()
            atomic_io.fsync(path.parent)

    def remove_tree(self, key: str) -> None:
        """Remove a folder and all that is in it; nothing happens where there is none."""
        path = self.root / key
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
            atomic_io.fsync(path.parent)

    def size(self, key: str = "") -> StoreSize:
        """Return bytes and number of all files under a folder."""
        found = [os.lstat(os.path.join(folder, name)).st_size  # noqa: PTH118 - a million short strings
                 for folder, _, names in os.walk(self.root / key) for name in names]
        return StoreSize(sum(found), len(found))

    def _entries(self, key: str) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(self.root / key) as entries:
                yield from entries
        except (FileNotFoundError, NotADirectoryError):
            return


def _bytes_of(entry: os.DirEntry[str]) -> int:
    """Return the bytes that a reader finds behind an entry; none behind a link that leads nowhere or to a folder."""
    try:
        status = entry.stat()
    except OSError:  # gone meanwhile, or a link that leads nowhere
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _read_all(handle: int, view: memoryview, offset: int) -> bool:
    """Fill `view` from `offset` on; return False where the file ends before."""
    done = 0
    while done < len(view):
        got = os.preadv(handle, [view[done:]], offset + done)
        if not got:
            return False
        done += got
    return True


def _write_all(handle: int, data: memoryview) -> None:
    """Write all of `data` (one call writes at most 2 GB)."""
    while data:
        data = data[os.write(handle, data):]
