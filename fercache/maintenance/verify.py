"""Verify every byte of a store against its digests, and compare two stores by their manifests."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fercache.errors import StoreError
from fercache.runtime.progress import progress_bar
from fercache.runtime.uri import Location, Url
from fercache.store.embedding_store import EmbeddingStore
from fercache.store.integrity import StoreFault, check_clip, check_root, unfinished
from fercache.store.layout import META
from fercache.store.manifest import ClipManifest
from fercache.store.remote import files_at

log = logging.getLogger(__name__)


# Differences of two stores: settings, taps, clips.

ABSENT = "(absent)"


@dataclass(frozen=True, kw_only=True)
class ClipDiff:
    """A clip that both stores hold and that is not the same in both.

    Attributes
    ----------
    frames : in the one and in the other.
    arrays : those whose bytes differ.
    provenance : what differs of device, versions and threads: key -> one and other.
    """

    clip: str
    frames: tuple[int, int]
    arrays: tuple[str, ...]
    provenance: dict[str, tuple[Any, Any]]


@dataclass(frozen=True, kw_only=True)
class DiffReport:
    """What `diff` found; `settings` and `taps` are key -> value in the one and in the other."""

    stores: tuple[Location, Location]
    settings: dict[str, tuple[Any, Any]]
    taps: dict[str, tuple[Any, Any]]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    differ: tuple[ClipDiff, ...]
    same: int

    @property
    def equal(self) -> bool:
        """Whether settings, taps and the bytes of every clip agree."""
        return not (self.settings or self.taps or self.only_first or self.only_second or self.differ)


def diff_stores(first: Location, second: Location) -> DiffReport:
    """Return which settings, taps and clips two stores differ in; from their manifests, without reading the arrays.

    Raises
    ------
    StoreError
        One of them is no store.
    """
    one, other = EmbeddingStore.open(first), EmbeddingStore.open(second)
    left, right = set(one), set(other)
    found = [_diff_clip(one.manifest(clip), other.manifest(clip)) for clip in sorted(left & right)]
    differ = tuple(entry for entry in found if entry is not None)
    return DiffReport(stores=(one.path, other.path), settings=_values(one.settings, other.settings),
                      taps=_values(one.taps, other.taps), only_first=tuple(sorted(left - right)),
                      only_second=tuple(sorted(right - left)), differ=differ, same=len(found) - len(differ))


def _diff_clip(one: ClipManifest, other: ClipManifest) -> ClipDiff | None:
    digests = [{name: array.digest for name, array in mark.arrays.items()} for mark in (one, other)]
    arrays = tuple(_values(*digests))
    if one.frames == other.frames and not arrays:
        return None
    return ClipDiff(clip=one.clip, frames=(one.frames, other.frames), arrays=arrays,
                    provenance=_values(one.provenance, other.provenance))


def _values(one: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return what differs, with keys of dictionaries in dictionaries joined by dots."""
    left, right = _flat(one), _flat(other)
    return {key: (left.get(key, ABSENT), right.get(key, ABSENT)) for key in sorted(left.keys() | right.keys())
            if left.get(key, ABSENT) != right.get(key, ABSENT)}


def _flat(value: dict[str, Any], head: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= _flat(inner, f"{head}{key}.") if isinstance(inner, dict) and inner else {f"{head}{key}": inner}
    return found


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What `verify` found.

    Attributes
    ----------
    clips : committed clips that were read.
    frames : of those that are whole.
    unfinished : names of folders of clips on their way or given up; no reader sees them.
    faults : what is wrong.
    dropped : clips that a repair removed: the next `extract` does them again.
    cleared : stray files that a repair removed.
    """

    store: Location
    clips: int
    frames: int
    unfinished: tuple[str, ...]
    faults: tuple[StoreFault, ...]
    dropped: tuple[str, ...] = ()
    cleared: tuple[Location, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether what a reader sees is what was written."""
        return all(fault.stray for fault in self.faults)


def verify_store(path: Location, *, repair: bool = False) -> VerifyReport:
    """Return what is wrong with a store, after reading every byte of it.

    Parameters
    ----------
    repair : drop the clips that are harmed, and files that are none of the store's.

    Raises
    ------
    StoreError
        There is no store, or a harmed clip is just being written.

    Notes
    -----
    An unreadable root is the only fault reported: without it no clip can be checked. `extract` rewrites it.
    Finds any changed bit of arrays and metadata, a missing chunk, a torn file, a clip of another store. Others may
    read and write meanwhile.
    """
    try:
        store = EmbeddingStore.open(path, mode="a" if repair else "r")
    except StoreError as error:
        if not EmbeddingStore.exists(path):
            raise
        root = StoreFault(folder="", clip="", where=path / META, what=f"{error.what}; {error.hint}")
        return VerifyReport(store=path, clips=0, frames=0, unfinished=(), faults=(root,))
    faults = check_root(store)
    folders = store.files.folders()
    clips = frames = 0
    with progress_bar("verify", len(folders), "clips") as bar:
        for folder in folders:
            found = _settled(store, folder)
            bar.advance()
            if found is None:
                continue
            clips += 1
            faults += found
            frames += 0 if any(not fault.stray for fault in found) else _frames(store, folder)
    dropped = _drop(store, faults) if repair else ()
    return VerifyReport(store=store.path, clips=clips, frames=frames, unfinished=tuple(sorted(unfinished(store))),
                        faults=tuple(faults), dropped=dropped, cleared=_clear(faults) if repair else ())


def _frames(store: EmbeddingStore, folder: str) -> int:
    mark = store.read_manifest(folder)
    return 0 if mark is None else mark.frames


def _settled(store: EmbeddingStore, folder: str) -> list[StoreFault] | None:
    """Return a clip's faults; check twice, since another process may have just replaced it."""
    found = check_clip(store, folder)
    return check_clip(store, folder) if found else found


def _drop(store: EmbeddingStore, faults: list[StoreFault]) -> tuple[str, ...]:
    """Remove the harmed clips; return their names."""
    harmed = {fault.folder: fault.clip for fault in faults if not fault.stray and fault.folder}
    for folder, clip in harmed.items():
        log.warning("%s: dropped; the next extract computes it again", clip)
        store.remove_folder(folder)
    return tuple(sorted(harmed.values()))


def _clear(faults: list[StoreFault]) -> tuple[Location, ...]:
    """Remove stray files; return those that were there."""
    gone: list[Location] = []
    for fault in faults:
        if fault.stray and isinstance(fault.where, Url):
            files_at(fault.where.parent).remove_tree(fault.where.name)
            files_at(fault.where.parent).remove(fault.where.name)
            gone.append(fault.where)
        elif fault.stray and isinstance(fault.where, Path) and (fault.where.exists() or fault.where.is_symlink()):
            gone.append(fault.where)
            folder = fault.where.is_dir() and not fault.where.is_symlink()  # what a link leads to is not the store's
            try:
                shutil.rmtree(fault.where) if folder else fault.where.unlink()
            except OSError as error:
                raise StoreError(f"cannot be removed ({error.strerror})", where=fault.where,
                                 hint="check the permissions of the store") from error
    return tuple(gone)
