"""Every file of a store against what its marks say of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from fercache.errors import StoreError
from fercache.runtime.uri import Location
from fercache.store.embedding_store import JOURNAL, EmbeddingStore
from fercache.store.layout import META, array_document, decode_name, encode_name
from fercache.store.manifest import ArrayManifest, ClipManifest
from fercache.store.remote import FLIGHTS

READERS = 4
"""Chunks that are read and hashed at the same time."""


@dataclass(frozen=True, kw_only=True)
class StoreFault:
    """Something in a store that is not as it was written.

    Attributes
    ----------
    folder : of the clip; empty for the store's root.
    clip : its name, as far as it is known.
    where : the file.
    stray : a file that no reader sees: it can go, and the clip can stay.
    """

    folder: str
    clip: str
    where: Location
    what: str
    stray: bool = False

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def check_root(store: EmbeddingStore) -> list[StoreFault]:
    """Return what is wrong with a store's own metadata, and what lies beside it."""
    found = []
    if store.files.get(META) != store.document():
        found.append(StoreFault(folder="", clip="", where=store.path / META, what="the store's metadata was altered"))
    return found + [StoreFault(folder="", clip="", where=store.path / name, what="no file of the store's", stray=True)
                    for name in sorted(store.files.sizes("")) if name != META]


def check_clip(store: EmbeddingStore, folder: str) -> list[StoreFault] | None:
    """Return what is wrong with the clip in a folder; None where no clip was committed there.

    Notes
    -----
    Reads every byte. Two numbers a chunk tell on it: its file's length, its sha256.
    """
    where = store.path / folder
    try:
        mark = store.read_manifest(folder)
    except StoreError as error:
        return [StoreFault(folder=folder, clip=decode_name(folder) or folder, where=where / META, what=error.what)]
    if mark is None:
        return None
    found = [StoreFault(folder=folder, clip=mark.clip, where=where / META, what="the commit mark was altered")
             ] if store.files.get(f"{folder}/{META}") != mark.document() else []
    for name, array in mark.arrays.items():
        found += _check_array(store, folder, mark, name, array)
    return found + [StoreFault(folder=folder, clip=mark.clip, where=path, what="no file of the clip's", stray=True)
                    for path in _strays(store, folder, mark)]


def _check_array(store: EmbeddingStore, folder: str, mark: ClipManifest, name: str,
                 array: ArrayManifest) -> list[StoreFault]:
    key = f"{folder}/{encode_name(name)}"
    found = []
    if store.files.get(f"{key}/{META}") != array_document(name, array.grid):
        found.append(("the array's metadata was altered", f"{key}/{META}"))
    keys = [f"{key}/{file}" for file in array.grid.files()]
    with ThreadPoolExecutor(FLIGHTS if store.files.is_remote else READERS) as pool:
        problems = pool.map(lambda key, digest: _check_chunk(store, key, array.grid.chunk_bytes, digest), keys,
                        array.chunks)
        found += [(what, key) for key, what in zip(keys, problems, strict=True) if what]
    return [StoreFault(folder=folder, clip=mark.clip, where=store.path / key, what=what) for what, key in found]


def _check_chunk(store: EmbeddingStore, key: str, size: int, digest: str) -> str:
    """Return what is wrong with a chunk, nothing where nothing is."""
    stamp = store.files.stat(key)
    if stamp is None:
        return "a chunk is missing"
    if stamp.bytes != size:
        return f"a chunk is torn ({stamp.bytes} of {size} bytes)"
    data = bytearray(size)
    if not store.files.fill(key, memoryview(data)) or hashlib.sha256(data).hexdigest() != digest:
        return "a chunk's bytes have changed"
    return ""


def _strays(store: EmbeddingStore, folder: str, mark: ClipManifest) -> Iterator[Location]:
    """Yield files and folders of a clip that are none of its own."""
    held = {encode_name(name): array for name, array in mark.arrays.items()}
    yield from (store.path / folder / name for name in sorted(store.files.sizes(folder)) if name != META)
    for name in store.files.folders(folder):
        if name not in held:
            yield store.path / folder / name
            continue
        files = {*held[name].grid.files(), META}
        yield from (store.path / folder / name / file for file in sorted(store.files.sizes(f"{folder}/{name}"))
                    if file not in files)


def unfinished(store: EmbeddingStore) -> dict[str, bool]:
    """Return the folders of clips that are not committed, and whether work on them can go on (a journal is there)."""
    found = {folder: False for folder in store.files.folders() if store.files.stat(f"{folder}/{META}") is None}
    journals = [path.name.removesuffix(JOURNAL) for path in store.work.glob("*" + JOURNAL)]
    return found | {folder: True for folder in journals if store.files.stat(f"{folder}/{META}") is None}
