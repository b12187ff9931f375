"""Checks of every file of a store against its manifests."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from fercache.data.base import Issue
from fercache.errors import StoreError
from fercache.runtime.uri import Location
from fercache.store.embedding_store import JOURNAL_SUFFIX, EmbeddingStore
from fercache.store.layout import META, array_document, decode_name, encode_name
from fercache.store.manifest import ArrayManifest, ClipManifest
from fercache.store.remote import CONCURRENT_REQUESTS

READERS = 4
"""Chunks that are read and hashed at the same time."""


STRAY = "stray"
"""Kind of an issue about a file that no reader opens: it can be deleted, and the clip stays."""


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
    """Return what is wrong with a chunk, or ""."""
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
