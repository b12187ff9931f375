"""Verify every byte of a store against its digests, and compare two stores by their manifests."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from fercache.data.base import Issue
from fercache.errors import StoreError
from fercache.runtime.progress import progress_bar
from fercache.runtime.uri import Location, as_location
from fercache.store.embedding_store import JOURNAL_SUFFIX, EmbeddingStore
from fercache.store.layout import META, array_document, decode_name, encode_name
from fercache.store.local import READERS
from fercache.store.manifest import ArrayManifest, ClipManifest
from fercache.store.remote import CONCURRENT_REQUESTS, files_at

log = logging.getLogger(__name__)

STRAY = "stray"  # kind of an issue about a file that no reader opens: it can be deleted, and the clip stays


def _damage(path: Location, message: str, *clip: str) -> Issue:
    return Issue(kind="damage", where=str(path), message=message, details=clip)


def check_root(store: EmbeddingStore) -> list[Issue]:
    """Return the issues of a store's own metadata, and the stray files beside it."""
    found = []
    if store.files.get(META) != store.document():
        found.append(_damage(store.path / META, "the store's metadata was altered"))
    return found + [Issue(kind=STRAY, where=str(store.path / name), message="not a file of the store", severity="note")
                    for name in sorted(store.files.sizes("")) if name != META]


def check_clip(store: EmbeddingStore, folder: str) -> list[Issue] | None:
    """Return the issues of the clip in a folder, its name in their `details`; None where no clip was committed."""
    # Reads every byte: the manifest has the length and the sha256 of each chunk.
    try:
        manifest = store.read_manifest(folder)
    except StoreError as error:
        name = decode_name(folder)
        return [_damage(store.path / folder / META, error.what, folder if name is None else name)]
    if manifest is None:
        return None
    found = [] if store.files.get(f"{folder}/{META}") == manifest.document() else [
        _damage(store.path / folder / META, "the clip's manifest was altered", manifest.clip)]
    for name, array in manifest.arrays.items():
        found += _check_array(store, folder, manifest, name, array)
    return found + [Issue(kind=STRAY, where=str(path), message="not a file of the clip", severity="note",
                          details=(manifest.clip,)) for path in _strays(store, folder, manifest)]


def _check_array(store: EmbeddingStore, folder: str, manifest: ClipManifest, name: str,
                 array: ArrayManifest) -> list[Issue]:
    key = f"{folder}/{encode_name(name)}"
    found = []
    if store.files.get(f"{key}/{META}") != array_document(name, array.grid):
        found.append(_damage(store.path / key / META, "the array's metadata was altered", manifest.clip))
    keys = [f"{key}/{file}" for file in array.grid.files()]
    with ThreadPoolExecutor(CONCURRENT_REQUESTS if store.files.is_remote else READERS) as pool:
        messages = pool.map(lambda key, digest: _check_chunk(store, key, array.grid.chunk_bytes, digest), keys,
                            array.chunks)
        return found + [_damage(store.path / key, message, manifest.clip)
                        for key, message in zip(keys, messages, strict=True) if message]


def _check_chunk(store: EmbeddingStore, key: str, size: int, digest: str) -> str:
    stamp = store.files.stat(key)
    if stamp is None:
        return "a chunk is missing"
    if stamp.bytes != size:
        return f"a chunk is torn ({stamp.bytes} of {size} bytes)"
    data = bytearray(size)
    if not store.files.fill(key, memoryview(data)) or hashlib.sha256(data).hexdigest() != digest:
        return "a chunk's bytes have changed"
    return ""


def _strays(store: EmbeddingStore, folder: str, manifest: ClipManifest) -> Iterator[Location]:
    """Yield files and folders of a clip that are not its own."""
    arrays = {encode_name(name): array for name, array in manifest.arrays.items()}
    yield from (store.path / folder / name for name in sorted(store.files.sizes(folder)) if name != META)
    for name in store.files.folders(folder):
        if name not in arrays:
            yield store.path / folder / name
            continue
        files = {*arrays[name].grid.files(), META}
        yield from (store.path / folder / name / file for file in sorted(store.files.sizes(f"{folder}/{name}"))
                    if file not in files)


def unfinished(store: EmbeddingStore) -> dict[str, bool]:
    """Return the folders of clips that are not committed, and whether work on them can go on (a journal is there)."""
    found = {folder: False for folder in store.files.folders() if store.files.stat(f"{folder}/{META}") is None}
    journals = [path.name.removesuffix(JOURNAL_SUFFIX) for path in store.work.glob("*" + JOURNAL_SUFFIX)]
    return found | {folder: True for folder in journals if store.files.stat(f"{folder}/{META}") is None}


ABSENT = "(absent)"


@dataclass(frozen=True, kw_only=True)
class ClipDiff:
    """A clip that differs between two stores that both have it."""

    clip: str
    frames: tuple[int, int]  # in the first and in the second store
    arrays: tuple[str, ...]  # those whose bytes differ
    # differences in device, versions and threads: key -> values in the first and in the second
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

    Raises StoreError if one of them is no store.
    """
    one, other = EmbeddingStore.open(first), EmbeddingStore.open(second)
    left, right = set(one), set(other)
    differ = []
    for clip in sorted(left & right):
        manifests = one.manifest(clip), other.manifest(clip)
        arrays = tuple(_differences(*({name: array.digest for name, array in manifest.arrays.items()}
                                      for manifest in manifests)))
        if arrays or manifests[0].frames != manifests[1].frames:
            differ.append(ClipDiff(clip=clip, frames=(manifests[0].frames, manifests[1].frames), arrays=arrays,
                                   provenance=_differences(*(manifest.provenance for manifest in manifests))))
    return DiffReport(stores=(one.path, other.path), settings=_differences(one.settings, other.settings),
                      taps=_differences(one.taps, other.taps), only_first=tuple(sorted(left - right)),
                      only_second=tuple(sorted(right - left)), differ=tuple(differ),
                      same=len(left & right) - len(differ))


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
    """The result of `verify_store`."""

    store: Location
    clips: int  # committed clips that were read
    frames: int  # of those that are intact
    unfinished: tuple[str, ...]  # folders of clips that are being written or were abandoned; no reader sees them
    issues: tuple[Issue, ...]  # the damage and the stray files
    dropped: tuple[str, ...] = ()  # clips that a repair removed: the next `extract` computes them again
    cleared: tuple[Location, ...] = ()  # stray files that a repair removed

    @property
    def whole(self) -> bool:
        """Whether a reader gets the bytes that were written."""
        return not any(issue.is_error for issue in self.issues)


def verify_store(path: Location, *, repair: bool = False) -> VerifyReport:
    """Return the issues of a store, after reading every byte of it.

    `repair`: remove damaged clips, and files that do not belong to the store. Raises StoreError if there is no store,
    or another process is writing a damaged clip.

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
    """Remove the stray files and folders of a store, and return them; of a link, never what it leads to."""
    strays = [as_location(issue.where) for issue in issues if issue.kind == STRAY]
    for place in strays:
        files = files_at(place.parent)
        try:
            files.remove_tree(place.name)
            files.remove(place.name)
        except OSError as error:
            raise StoreError(f"cannot be removed ({error.strerror})", where=place,
                             hint="check the permissions of the store") from error
    return tuple(strays)
