"""Garbage collection: list the parts of the cache that no recipe or data set needs, and remove them on request."""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fercache.errors import StoreError
from fercache.runtime import atomic_io
from fercache.store.embedding_store import EmbeddingStore
from fercache.store.integrity import unfinished
from fercache.store.layout import META, decode_name, encode_name
from fercache.store.local import TEMPORARY, LocalStoreFiles, StoreSize
from fercache.store.locks import locked_clips, work_folder
from fercache.workspace import LOCK_SUFFIX, MAPPED_FEATURES, STORE_SUFFIX, WORK_SUFFIX, Workspace

UNNAMED, LOST, UNKNOWN = "no recipe names it", "left half done, and cannot go on", "not in the data set"
TORN, ORPHAN, OF_CLIP = "left by a run that was killed", "of a store that is gone", "of a clip that is gone"
PICTURES = ".npz"
"""Ending of a clip's thumbnails."""
SETTLED_S = 3600.0
"""Age from which a temporary file is abandoned: writing one file never takes this long."""


@dataclass(frozen=True, kw_only=True)
class Unreferenced:
    """Something that can be removed.

    Attributes
    ----------
    path : a store, a book, a folder of heads or of a stack run; or the store that holds `folder`.
    folder : of one clip in the store at `path`; empty for all of `path`.
    clip : its name, as far as it is known.
    """

    path: Path
    reason: str
    size: StoreSize
    folder: str = ""
    clip: str = ""


def find_unreferenced(cache: Path, keep: Iterable[Path], clips: Mapping[Path, Collection[str]]) -> tuple[Unreferenced,
                                                                                                         ...]:
    """Return what can go, sorted by path; nothing is touched.

    Parameters
    ----------
    keep : stores, books, folders of heads and of stack runs that a recipe names.
    clips : store -> the clips that its data set names; a store that is not in it keeps all its clips.

    Notes
    -----
    What a live process is writing is never in the list.
    """
    kept = {path.resolve() for path in keep} | {path.resolve() for path in clips}
    found = [item for path in Workspace(cache).results()
             if path.resolve() not in kept and (item := _whole(path)) is not None]
    for path, named in clips.items():
        found += _clips(path, named)
    found += _pictures(cache, found)
    return tuple(sorted(found, key=lambda unreferenced: (unreferenced.path, unreferenced.folder)))


def remove_unreferenced(unreferenced: Iterable[Unreferenced]) -> StoreSize:
    """Remove what `find_unreferenced` listed; return the freed size.

    Raises
    ------
    StoreError
        Somebody began to write it meanwhile.
    """
    freed = []
    for item in unreferenced:
        if item.folder:
            store = EmbeddingStore.open(item.path, mode="a")
            if item.reason == LOST and store.files.stat(f"{item.folder}/{META}") is not None:
                continue  # another process has committed the clip in the meantime
            store.remove_folder(item.folder)
        else:
            _remove(item.path)
        freed.append(item.size)
    return StoreSize(sum(size.bytes for size in freed), sum(size.files for size in freed))


def _pictures(cache: Path, unreferenced: Sequence[Unreferenced]) -> list[Unreferenced]:
    """Return the pictures of stores and clips that are gone, or that go."""
    going = {(item.path.resolve(), item.folder) for item in unreferenced}
    found = []
    for folder, store in Workspace(cache).thumbnail_folders():
        if not store.exists() or (store.resolve(), "") in going:
            found.append(Unreferenced(path=folder, reason=ORPHAN, size=LocalStoreFiles(folder).size()))
            continue
        for path in sorted(folder.glob(f"*{PICTURES}")):
            clip = path.name.removesuffix(PICTURES)
            if (store.resolve(), clip) in going or not (store / clip).exists():
                found.append(Unreferenced(path=path, reason=OF_CLIP, size=StoreSize(path.stat().st_size, 1)))
    return found


def _whole(path: Path) -> Unreferenced | None:
    """Return why a result that no recipe names can go; None where it belongs to something that stays or is at work."""
    why = UNNAMED
    if path.suffix == WORK_SUFFIX:
        if path.with_suffix(STORE_SUFFIX).exists():
            return None
        why = ORPHAN
    elif path.name.startswith(TEMPORARY):
        if time.time() - path.stat().st_mtime < SETTLED_S:
            return None
        why = TORN
    if _at_work(path):
        return None
    linked = path.is_symlink()
    size = LocalStoreFiles(path).size() if path.is_dir() and not linked else StoreSize(path.lstat().st_size, 1)
    return Unreferenced(path=path, reason=why, size=size)


def _at_work(path: Path) -> bool:
    """Return whether a live process is making or reading a result: it holds a clip's claim, or a lock of the result."""
    if path.suffix in (STORE_SUFFIX, WORK_SUFFIX):
        return bool(locked_clips(path.with_suffix(STORE_SUFFIX)))
    if path.match(MAPPED_FEATURES):  # any training of the data set may map them: which one, their name does not say
        return any(_held(lock) for folder in (path.parent, path) for lock in folder.glob(f"*{LOCK_SUFFIX}"))
    return _held(path.with_suffix(LOCK_SUFFIX))


def _held(lock: Path) -> bool:
    if not lock.is_file():
        return False
    with atomic_io.lock(lock) as free:
        return not free


def _clips(path: Path, named: Collection[str]) -> Iterator[Unreferenced]:
    """Yield clips that the data set does not name, and half-done ones that nobody can go on with."""
    store, folders = EmbeddingStore.open(path), {encode_name(clip) for clip in named}
    live = locked_clips(path)
    open_ends = unfinished(store)
    for folder in sorted({*store.files.folders(), *open_ends} - live):
        lost = not open_ends.get(folder, True)
        if folder not in folders or lost:
            yield Unreferenced(path=path, folder=folder, clip=decode_name(folder) or folder, reason=LOST if lost
                               else UNKNOWN,
                        size=store.files.size(folder))


def _remove(path: Path) -> None:
    """Remove a result; a store's root first, so that nobody opens a half-removed store. Of a link, only the link."""
    if _at_work(path):
        raise StoreError("is being written by another process", where=path, hint="wait for it to end")
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        if path.suffix == STORE_SUFFIX:
            LocalStoreFiles(path).remove(META)
            shutil.rmtree(work_folder(path), ignore_errors=True)
        shutil.rmtree(path)
    atomic_io.fsync(path.parent)
