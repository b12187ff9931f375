"""Verify every byte of a store against its digests, and compare two stores by their manifests."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from typing import Any

from fercache.data.base import Issue
from fercache.errors import StoreError
from fercache.runtime.progress import progress_bar
from fercache.runtime.uri import Location, Url, as_location
from fercache.store.embedding_store import EmbeddingStore
from fercache.store.integrity import STRAY, check_clip, check_root, unfinished
from fercache.store.layout import META
from fercache.store.manifest import ClipManifest
from fercache.store.remote import files_at

log = logging.getLogger(__name__)

ABSENT = "(absent)"


@dataclass(frozen=True, kw_only=True)
class ClipDiff:
    """A clip that differs between two stores that both have it.

    Attributes
    ----------
    frames : in the first and in the second store.
    arrays : those whose bytes differ.
    provenance : differences in device, versions and threads: key -> values in the first and in the second.
    """

    clip: str
    frames: tuple[int, int]
    arrays: tuple[str, ...]
    provenance: dict[str, tuple[Any, Any]]


@dataclass(frozen=True, kw_only=True)
class DiffReport:
    """The differences of two stores; `settings` and `taps` are key -> values in the first and in the second."""

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
    return DiffReport(stores=(one.path, other.path), settings=_differences(one.settings, other.settings),
                      taps=_differences(one.taps, other.taps), only_first=tuple(sorted(left - right)),
                      only_second=tuple(sorted(right - left)), differ=differ, same=len(found) - len(differ))


def _diff_clip(one: ClipManifest, other: ClipManifest) -> ClipDiff | None:
    digests = [{name: array.digest for name, array in manifest.arrays.items()} for manifest in (one, other)]
    arrays = tuple(_differences(*digests))
    if one.frames == other.frames and not arrays:
        return None
    return ClipDiff(clip=one.clip, frames=(one.frames, other.frames), arrays=arrays,
                    provenance=_differences(one.provenance, other.provenance))


def _differences(one: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the values that differ; keys of nested dictionaries are joined by dots."""
    left, right = _flat(one), _flat(other)
    return {key: (left.get(key, ABSENT), right.get(key, ABSENT)) for key in sorted(left.keys() | right.keys())
            if left.get(key, ABSENT) != right.get(key, ABSENT)}


def _flat(value: dict[str, Any], head: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{head}{key}.") if isinstance(inner, dict) and inner else {f"{head}{key}": inner}
    return flat


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """The result of `verify_store`.

    Attributes
    ----------
    clips : committed clips that were read.
    frames : of those that are intact.
    unfinished : folders of clips that are being written or were abandoned; no reader sees them.
    issues : the damage and the stray files.
    dropped : clips that a repair removed: the next `extract` computes them again.
    cleared : stray files that a repair removed.
    """

    store: Location
    clips: int
    frames: int
    unfinished: tuple[str, ...]
    issues: tuple[Issue, ...]
    dropped: tuple[str, ...] = ()
    cleared: tuple[Location, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether a reader gets the bytes that were written."""
        return not any(issue.is_error for issue in self.issues)


def verify_store(path: Location, *, repair: bool = False) -> VerifyReport:
    """Return the issues of a store, after reading every byte of it.

    Parameters
    ----------
    repair : remove damaged clips, and files that do not belong to the store.

    Raises
    ------
    StoreError
        There is no store, or another process is writing a damaged clip.

    Notes
    -----
    An unreadable root is the only issue reported: without it no clip can be checked. `extract` rewrites it.
    Finds any changed bit of arrays and metadata, a missing chunk, a torn file, a clip of another store. Others may
    read and write meanwhile.
    """
    try:
        store = EmbeddingStore.open(path, mode="a" if repair else "r")
    except StoreError as error:
        if not EmbeddingStore.exists(path):
            raise
        root = Issue(kind="damage", where=str(path / META), message=f"{error.what}; {error.hint}")
        return VerifyReport(store=path, clips=0, frames=0, unfinished=(), issues=(root,))
    issues = check_root(store)
    damaged: dict[str, str] = {}
    folders = store.files.folders()
    clips = frames = 0
    with progress_bar("verify", len(folders), "clips") as bar:
        for folder in folders:
            # Another process may have replaced the clip during the first reading: only a second one proves damage.
            found = check_clip(store, folder) and check_clip(store, folder)
            bar.advance()
            if found is None:
                continue
            clips += 1
            issues += found
            if any(issue.is_error for issue in found):
                damaged[folder] = found[0].details[0]
            elif (manifest := store.read_manifest(folder)) is not None:
                frames += manifest.frames
    for folder, clip in damaged.items() if repair else ():
        log.warning("%s: dropped; the next extract computes it again", clip)
        store.remove_folder(folder)
    return VerifyReport(store=store.path, clips=clips, frames=frames, unfinished=tuple(sorted(unfinished(store))),
                        issues=tuple(issues),
                        dropped=tuple(sorted(damaged.values())) if repair else (),
                        cleared=_clear(issues) if repair else ())


def _clear(issues: list[Issue]) -> tuple[Location, ...]:
    """Remove stray files and return them."""
    removed: list[Location] = []
    for place in [as_location(issue.where) for issue in issues if issue.kind == STRAY]:
        if isinstance(place, Url):
            files_at(place.parent).remove_tree(place.name)
            files_at(place.parent).remove(place.name)
            removed.append(place)
        elif place.exists() or place.is_symlink():
            removed.append(place)
            # A link is removed, never what it leads to: that is not the store's.
            folder = place.is_dir() and not place.is_symlink()
            try:
                shutil.rmtree(place) if folder else place.unlink()
            except OSError as error:
                raise StoreError(f"cannot be removed ({error.strerror})", where=place,
                                 hint="check the permissions of the store") from error
    return tuple(removed)
