"""The embedding store: clip name -> features of every frame; each clip is complete or absent."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from fercache.config import fingerprint_of
from fercache.errors import InputError, NotInStore, StoreError
from fercache.runtime import atomic_io
from fercache.runtime.uri import Location
from fercache.store.clip import Clip
from fercache.store.journal import Journal
from fercache.store.layout import FRAME_TABLE, META, encode_name
from fercache.store.local import FileStamp, StoreSize
from fercache.store.locks import hold_lease, lock_gate, work_folder
from fercache.store.manifest import ClipManifest, StoreRoot, damaged, normalize_json, read_manifest, same_source
from fercache.store.remote import StoreFiles, files_at
from fercache.store.writer import ClipWriter, WriterJob, check_case_collision

log = logging.getLogger(__name__)

JOURNAL_SUFFIX = ".journal"
INDEX = "manifests.index"
"""File in a local store's work folder: the manifests that were read, so that the next process reads one file, not one
per clip."""
INDEX_AFTER = 8
"""Manifests that are read one by one first: a reader of a clip or two need not read the index of thousands."""
DIGEST_BYTES = hashlib.sha256().digest_size


def read_index(path: Path) -> dict[str, tuple[FileStamp, ClipManifest]]:
    """Return the manifests in an index by folder, each with the stamp that its file had.

    Raises StoreError if the index is damaged or has another format.
    """
    data = path.read_bytes()
    try:
        if hashlib.sha256(data[DIGEST_BYTES:]).digest() == data[:DIGEST_BYTES]:
            return msgspec.msgpack.decode(data[DIGEST_BYTES:], type=dict[str, tuple[FileStamp, ClipManifest]])
    except ValueError:
        pass
    raise StoreError("is damaged or of another format", where=path, hint="remove it")


class EmbeddingStore(Mapping[str, Clip]):
    """The features of all clips, computed with the same settings; open it with `open` or `create`.

    Any number of processes, and of machines on a remote store, may read and write at once. A clip whose manifest is
    damaged or belongs to another store counts as absent, with a warning: the next `extract` computes it again.

    Attributes
    ----------
    path : of the Zarr group, or its URL.
    settings : everything that changes numbers.
    taps : tap -> shape of one frame.
    mode : ``"r"`` or ``"a"``.
    causal : whether a frame that is not embedded repeats the last one that is, instead of being interpolated.
    """

    def __init__(self, files: StoreFiles, mode: str, root: StoreRoot, causal: bool = False) -> None:
        self.files, self.mode, self.causal, self.path = files, mode, causal, files.root
        self.settings, self.taps = root.settings, root.taps
        self.fingerprint = fingerprint_of(root.settings)
        self._manifests: dict[str, tuple[FileStamp, ClipManifest | None]] = {}
        self._indexed: dict[str, tuple[FileStamp, ClipManifest | None]] | None = None  # what the index file holds
        self._digest: str | None = None

    @classmethod
    def open(cls, path: str | Location, *, mode: str = "r", causal: bool = False) -> EmbeddingStore:
        """Return the store at `path`, a folder or any URL that fsspec opens.

        `mode`: ``"r"`` to read, ``"a"`` to write too; ``"r"`` reads each manifest of a remote store only once.
        `causal`: use no later frame where ``embed_every`` left frames out: repeat the last embedded one. Raises
        StoreError if there is no store, or its root is damaged.
        """
        if mode not in ("r", "a"):
            raise InputError(f"mode {mode!r} is neither 'r' nor 'a'", where=path)
        files = files_at(path)
        data = files.get(META)
        if data is None:
            raise StoreError("holds no embedding store", where=files.root,
                             hint="check the path, or run `fercache extract`")
        return cls(files, mode, StoreRoot.read(data, files.root / META), causal)

    @classmethod
    def open_or_none(cls, path: str | Location, *, causal: bool = False, log_level: int = logging.DEBUG
                     ) -> EmbeddingStore | None:
        """Return the store at `path` for reading, or None without one that can be read; logs why at `log_level`."""
        try:
            return cls.open(path, causal=causal)
        except StoreError as error:
            log.log(log_level, "%s", error)
            return None

    @classmethod
    def exists(cls, path: str | Location) -> bool:
        """Return whether there is a store's root at `path`; a killed `create` may leave a folder without one."""
        return files_at(path).get(META) is not None

    @classmethod
    def create(cls, path: str | Location, settings: dict[str, Any], taps: dict[str, tuple[int, ...]], *,
               repair: bool = False) -> EmbeddingStore:
        """Return the store at `path`, open for writing; a missing one is created.

        `repair`: write a damaged root anew. That is safe: the settings are given, and each manifest has the fingerprint
        of its settings, so a clip of other settings counts as absent.

        Raises StoreError if the store there has other settings or taps; InputError if the settings cannot be written as
        JSON, or a tap has no shape.
        """
        files, settings = files_at(path), normalize_json(settings, "settings")
        root = StoreRoot(settings=settings, fingerprint=fingerprint_of(settings), taps=taps)
        with lock_gate(work_folder(files.root)):
            if files.get(META) is None or (repair and cls.open_or_none(files.root) is None):
                files.replace(META, root.document())
        atomic_io.durable_step("store.created")
        store = cls.open(files.root, mode="a")
        store.sweep()
        if (store.settings, store.taps) != (settings, taps):
            differ = [key for key in sorted({*settings, *store.settings})
                      if settings.get(key) != store.settings.get(key)]
            raise StoreError(f"was created with other {', '.join(differ) or 'taps'}", where=path,
                             hint="a store has one setting: choose another path")
        return store

    def __repr__(self) -> str:
        return f"<EmbeddingStore {self.path}: {', '.join(self.taps)}>"

    def __iter__(self) -> Iterator[str]:
        """Yield the names of the committed clips, sorted."""
        manifests = list(self.files.in_parallel(self._manifest, self.files.folders()))
        return iter(sorted(manifest.clip for manifest in manifests if manifest is not None))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, clip: object) -> bool:
        return isinstance(clip, str) and self._manifest(encode_name(clip)) is not None

    def __getitem__(self, clip: str) -> Clip:
        return Clip(self.files, self.manifest(clip), self.causal)

    def manifest(self, clip: str) -> ClipManifest:
        """Return the manifest of a committed clip.

        Raises NotInStore if the clip is not committed, or its manifest is damaged.
        """
        manifest = self._manifest(encode_name(clip))
        if manifest is None:
            raise NotInStore(f"no clip {clip!r}", where=self.path, hint="run `fercache extract`, or check the name")
        return manifest

    def _manifest(self, folder: str) -> ClipManifest | None:
        """Return the manifest in a folder, None if there is no intact one."""
        key, cached = f"{folder}/{META}", self._manifests.get(folder)
        # A reader of a remote store would pay a request per clip to notice that another process replaced it.
        if cached is not None and self.files.is_remote and self.mode == "r":
            return cached[1]
        stamp = self.files.stat(key)
        if stamp is None:
            return None
        if cached is not None and cached[0] == stamp:
            return cached[1]
        if self._indexed is None and len(self._manifests) >= INDEX_AFTER:
            self.load_index()
            return self._manifest(folder)
        try:
            manifest = self.read_manifest(folder)
        except StoreError as error:
            log.warning("%s", error)
            manifest = None
        self._manifests[folder] = stamp, manifest
        return manifest

    def read_manifest(self, folder: str) -> ClipManifest | None:
        """Return the manifest in a folder, None if the clip is not committed.

        Raises StoreError if the manifest is damaged, or belongs to another clip or store.
        """
        data = self.files.get(f"{folder}/{META}")
        if data is None:
            return None
        manifest = read_manifest(data, self.path / folder)
        shapes = {name: array.shape[1:] for name, array in manifest.arrays.items() if name != FRAME_TABLE}
        # A folder copied from another store, or renamed, is intact in itself, but its features are not this clip's.
        if encode_name(manifest.clip) != folder or manifest.fingerprint != self.fingerprint or shapes != self.taps:
            raise damaged(f"belongs to the clip {manifest.clip!r} of the store {manifest.fingerprint[:12]}",
                          self.path / folder)
        return manifest

    def load_index(self) -> None:
        """Take the manifests from the index; each counts only while the stamp of its file is the same."""
        if self._indexed is not None:
            return
        self._indexed = {}
        with suppress(OSError, StoreError):  # without an index the manifests themselves are read
            if not self.files.is_remote:
                self._indexed = {**read_index(self.work / INDEX)}
                self._manifests = self._indexed | self._manifests

    def accept_stamp(self, clip: str, stamp: dict[str, int]) -> None:
        """Use the time stamp of a copy of a clip's source, so that the index saves comparing its bytes again."""
        folder = encode_name(clip)
        file, manifest = self._manifests[folder]
        if manifest is not None and not stamp.items() <= manifest.source.items():
            changed = msgspec.structs.replace(manifest, source={**manifest.source, **stamp})
            self._manifests[folder] = file, changed

    def write_index(self) -> None:
        """Write the index anew if this process read manifests that it lacks."""
        self.load_index()
        if self.files.is_remote or (self._indexed and self._manifests == self._indexed):
            return
        committed = {folder: self._manifests[folder] for folder in self.files.folders() if self._manifest(folder)}
        # A name that is no valid text cannot be encoded, and a full or read-only disk must not fail a finished run.
        with suppress(ValueError, OverflowError, OSError, InputError):
            data = msgspec.msgpack.encode(committed)
            atomic_io.write_bytes(self.work / INDEX, hashlib.sha256(data).digest() + data)

    def document(self) -> bytes:
        """Return the `zarr.json` of the store's root."""
        return StoreRoot(settings=self.settings, fingerprint=self.fingerprint, taps=self.taps).document()

    def digest(self) -> str:
        """Return the sha256 (hex) over clips, frames and arrays: equal features give equal digests.

        It does not depend on the order of work, provenance, source or time stamps.
        """
        # Once for a reader of a remote store, as its manifests: forked processes then need no request at all.
        if self._digest is None or self.mode == "a" or not self.files.is_remote:
            self._digest = fingerprint_of([self.manifest(clip).identity() for clip in self])
        return self._digest

    @property
    def readers(self) -> int:
        """The number of threads that read whole clips fastest."""
        return self.files.readers

    def size(self) -> StoreSize:
        """Return bytes and number of files on disk."""
        return self.files.size()

    @contextmanager
    def writer(self, clip: str, *, source: dict[str, Any], provenance: dict[str, Any]) -> Iterator[ClipWriter | None]:
        """Yield a writer for a clip, or None if another live process is writing it or has just committed it.

        The work of a dead writer is resumed if source and provenance are equal (except time stamps), and discarded
        otherwise. The next writer resumes what this one leaves without `commit`.

        `source`: identifies the source file; a committed clip of another source is computed again. `provenance`: what
        float noise depends on. Raises StoreError if the store is open for reading only; ClipError if the file system
        ignores case, and the clip's name differs from another one's in case only.
        """
        self._check_writable()
        # Faces were detected, and their crops are aligned.
        landmarks = (self.settings.get("card") or {}).get("crop") == "aligned" and "detector" in self.settings
        job = WriterJob(clip=clip, fingerprint=self.fingerprint, taps=self.taps, landmarks=landmarks,
                        source=normalize_json(source, "source"),
                        provenance=normalize_json(provenance, "provenance"), sparse="embed_every" in self.settings)
        with hold_lease(self.files, job.folder) as mine:
            # Under the lock: another process may have committed the clip since the caller found it absent.
            committed = self._manifest(job.folder) if mine else None
            if committed is not None and same_source(committed.source, job.source):
                self._journal(job.folder).remove()
                mine = False
            if not mine:
                yield None
                return
            if self.files.stat(f"{job.folder}/{META}") is not None:
                check_case_collision(self.files, job)
                self._discard(job.folder)
            yield ClipWriter.open(self.files, self._journal(job.folder), job)

    def remove(self, clip: str) -> None:
        """Remove a clip, committed or unfinished; do nothing if it is absent.

        Raises StoreError if the store is open for reading only, or another process is writing the clip.
        """
        self._check_writable()
        self.remove_folder(encode_name(clip))

    def remove_folder(self, folder: str) -> None:
        """Remove a clip's folder, whatever it contains."""
        with hold_lease(self.files, folder) as mine:
            if not mine:
                raise StoreError("is being written by another process", where=self.path / folder,
                                 hint="wait for it to end, or stop it")
            self._discard(folder)

    def sweep(self) -> None:
        """Remove journals of committed clips and temporary files of the root, which killed writers left."""
        with lock_gate(self.work):
            for name in self.files.sizes(""):
                if name.startswith(atomic_io.TEMPORARY):
                    self.files.remove(name)
        for path in self.work.glob("*" + JOURNAL_SUFFIX):
            folder = path.name.removesuffix(JOURNAL_SUFFIX)
            if self._manifest(folder) is not None:
                with hold_lease(self.files, folder) as mine:
                    if mine:
                        path.unlink(missing_ok=True)

    def _discard(self, folder: str) -> None:
        (self.work / INDEX).unlink(missing_ok=True)  # it may name the clip
        # The manifest first: a crash in between leaves an absent clip, never one with missing chunks.
        self.files.remove(f"{folder}/{META}")
        atomic_io.durable_step("discard.unmarked")
        self._journal(folder).remove()
        self.files.remove_tree(folder)
        atomic_io.durable_step("discard.gone")
        self._manifests.pop(folder, None)

    @property
    def work(self) -> Path:
        """The local folder with locks and journals."""
        return work_folder(self.path)

    def _journal(self, folder: str) -> Journal:
        return Journal.open(self.work / (folder + JOURNAL_SUFFIX))

    def _check_writable(self) -> None:
        if self.mode != "a":
            raise StoreError("is open for reading only", where=self.path, hint="open it with mode='a'")
