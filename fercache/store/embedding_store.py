"""The embedding store: clip name -> features on the frame clock, each clip complete or absent."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fercache.config import fingerprint_of
from fercache.errors import InputError, NotInStore, StoreError
from fercache.runtime import atomic_io
from fercache.runtime.uri import Location
from fercache.store.clip import Clip
from fercache.store.journal import Journal
from fercache.store.layout import FRAME_TABLE, META, VERSION, encode_name
from fercache.store.local import TEMPORARY, FileStamp, StoreFiles, StoreSize
from fercache.store.locks import hold_lease, lock_gate, work_folder
from fercache.store.manifest import (
    EXTRACT_AGAIN_HINT,
    ClipManifest,
    damaged,
    plain,
    read_manifest,
    same_source,
    verify_checksum,
    with_checksum,
)
from fercache.store.remote import PrefetchingStore, files_at
from fercache.store.writer import ClipWriter, WriterJob, check_case_collision

log = logging.getLogger(__name__)


# The root of a store: what every clip in it was made by.

REBUILD_HINT = "run `fercache extract` with the settings it was made by: it writes the root anew and keeps the clips"


def root_document(settings: dict[str, Any], taps: dict[str, tuple[int, ...]]) -> bytes:
    """Return the `zarr.json` of a store's root."""
    return with_checksum({"version": VERSION, "settings": settings, "fingerprint": fingerprint_of(settings),
                   "taps": {name: list(shape) for name, shape in taps.items()}})


def read_root(data: bytes, where: Location) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Return settings and taps from the root's `zarr.json`."""
    try:
        body = verify_checksum(data, where / META)
        taps = {name: tuple(int(n) for n in shape) for name, shape in body["taps"].items()}
        check_taps(taps)
        return dict(body["settings"]), taps
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise StoreError("is no embedding store of fercache's", where=where / META,
                         hint=REBUILD_HINT) from error
    except StoreError as error:
        hint = error.hint if error.hint == EXTRACT_AGAIN_HINT else REBUILD_HINT  # no clip of another format is kept
        raise StoreError(error.what, where=where / META, hint=hint) from error


def settings_of_any_version(path: Location) -> dict[str, Any]:
    """Return a store's settings whatever its format version, so that `forget` also reaches older stores.

    Raises
    ------
    StoreError
        There is no intact root.
    """
    settings = verify_checksum(files_at(path).get(META) or b"", path / META, any_version=True).get("settings")
    if not isinstance(settings, dict):
        raise damaged("the root holds no settings", path / META)
    return settings


def is_root(data: bytes, where: Location) -> bool:
    """Return whether a store's root can be read."""
    try:
        read_root(data, where)
    except StoreError:
        return False
    return True


def check_taps(taps: dict[str, tuple[int, ...]]) -> None:
    """Refuse taps that no array can be made for."""
    if not taps:
        raise InputError("a store needs at least one tap")
    for name, shape in taps.items():
        if name == FRAME_TABLE or not shape or min(shape) < 1:
            raise InputError(f"tap {name!r} of shape {shape} cannot be stored",
                             hint=f"shapes are positive, and {FRAME_TABLE!r} is the clock's name")


JOURNAL = ".journal"


class EmbeddingStore(Mapping[str, Clip]):
    """Features of one setting, clip by clip. Make one with `open` or `create`.

    Attributes
    ----------
    path : of the Zarr group, or its URL.
    settings : everything that changes numbers.
    taps : tap -> shape of one frame.
    mode : ``"r"`` or ``"a"``.

    Notes
    -----
    Any number of processes, and of machines on a remote store, may read and write at once. A clip whose mark is
    damaged, or was made for another store, counts as absent (the log says so): the next `extract` does it again.
    """

    def __init__(self, files: StoreFiles, mode: str) -> None:
        self.files, self.mode, self.path = files, mode, files.root
        data = files.get(META)
        if data is None:
            raise StoreError("holds no embedding store", where=self.path,
                             hint="check the path, or run `fercache extract`")
        self.settings, self.taps = read_root(data, self.path)
        self.fingerprint = fingerprint_of(self.settings)
        self._manifests: dict[str, tuple[FileStamp, ClipManifest | None]] = {}
        self._digest: str | None = None

    @classmethod
    def open(cls, path: str | Location, *, mode: str = "r") -> EmbeddingStore:
        """Return the store at `path`, a folder or any URL that fsspec opens.

        Parameters
        ----------
        mode : ``"r"`` to read, ``"a"`` to write too. Of a remote store opened to read, marks are read once.

        Raises
        ------
        StoreError
            There is none, or its root is damaged.
        """
        if mode not in ("r", "a"):
            raise InputError(f"mode {mode!r} is neither 'r' nor 'a'", where=path)
        return cls(files_at(path), mode)

    @classmethod
    def exists(cls, path: str | Location) -> bool:
        """Return whether a store's root was written at `path`: a folder alone is what a killed `create` leaves."""
        return files_at(path).get(META) is not None

    @classmethod
    def create(cls, path: str | Location, settings: dict[str, Any], taps: dict[str, tuple[int, ...]], *,
               mend: bool = False) -> EmbeddingStore:
        """Return the store at `path`, open for writing; it is made if there is none.

        Parameters
        ----------
        mend : write a damaged root anew. What it said is known, and no clip of other settings passes for one of these
            (each mark names the fingerprint it was made for).

        Raises
        ------
        StoreError
            The store there has other settings or taps.
        InputError
            The settings are no JSON, or a tap has no shape.
        """
        files, settings = files_at(path), plain(settings, "settings")
        check_taps(taps)
        with lock_gate(work_folder(files.root)):
            held = files.get(META)
            if held is None or (mend and not is_root(held, files.root)):
                files.replace(META, root_document(settings, taps))
        atomic_io.durable_step("store.created")
        store = cls(files, "a")
        store.sweep()
        if (store.settings, store.taps) != (settings, taps):
            differ = [key for key in sorted({*settings, *store.settings})
                      if settings.get(key) != store.settings.get(key)]
            raise StoreError(f"was made with other {', '.join(differ) or 'taps'}", where=path,
                             hint="another setting is another store: choose another path")
        return store

    def __repr__(self) -> str:
        return f"<EmbeddingStore {self.path}: {', '.join(self.taps)}>"

    def __iter__(self) -> Iterator[str]:
        """Yield the names of the committed clips, sorted."""
        found = list(self.files.in_parallel(self._manifest, self.files.folders()))
        return iter(sorted(mark.clip for mark in found if mark is not None))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, clip: object) -> bool:
        return isinstance(clip, str) and self._manifest(encode_name(clip)) is not None

    def __getitem__(self, clip: str) -> Clip:
        return Clip(self.files, self.manifest(clip))

    def manifest(self, clip: str) -> ClipManifest:
        """Return what was committed of a clip.

        Raises
        ------
        NotInStore
            Nothing was, or its mark is damaged.
        """
        mark = self._manifest(encode_name(clip))
        if mark is None:
            raise NotInStore(f"no clip {clip!r}", where=self.path, hint="run `fercache extract`, or check the name")
        return mark

    def _manifest(self, folder: str) -> ClipManifest | None:
        """Return the mark in a folder, None where there is none that can be trusted."""
        key, held = f"{folder}/{META}", self._manifests.get(folder)
        if held is not None and self.files.is_remote and self.mode == "r":
            return held[1]
        stamp = self.files.stat(key)
        if stamp is None:
            return None
        if held is not None and held[0] == stamp:
            return held[1]
        try:
            mark = self.read_manifest(folder)
        except StoreError as error:
            log.warning("%s", error)
            mark = None
        self._manifests[folder] = stamp, mark
        return mark

    def read_manifest(self, folder: str) -> ClipManifest | None:
        """Return the mark in a folder, None where the clip is not committed.

        Raises
        ------
        StoreError
            The mark is damaged, or belongs to another clip or store.
        """
        where = self.path / folder
        data = self.files.get(f"{folder}/{META}")
        if data is None:
            return None
        mark = read_manifest(data, where)
        shapes = {name: array.shape[1:] for name, array in mark.arrays.items() if name != FRAME_TABLE}
        if encode_name(mark.clip) != folder or mark.fingerprint != self.fingerprint or shapes != self.taps:
            raise damaged(f"is a foreign clip ({mark.clip!r} of a store {mark.fingerprint[:12]})", where)
        return mark

    def document(self) -> bytes:
        """Return the `zarr.json` of the store's root."""
        return root_document(self.settings, self.taps)

    def digest(self) -> str:
        """Return the sha256 (hex) over clips, frames and arrays: equal features give equal digests.

        Notes
        -----
        Sorted by clip, so the order of work is not in it; nor are provenance, source or time stamps. Of a far store
        that is open to read it is asked once, as the marks are: forked processes need not ask at all.
        """
        if self._digest is None or self.mode == "a" or not self.files.is_remote:
            self._digest = fingerprint_of([self.manifest(clip).identity() for clip in self])
        return self._digest

    def prefetch(self, names: Sequence[str], taps: Sequence[str]) -> EmbeddingStore | PrefetchingStore:
        """Return the store for a reader who takes these taps of whole clips, in this order: read ahead if it is far."""
        return PrefetchingStore(self, names, taps) if self.files.is_remote else self

    def size(self) -> StoreSize:
        """Return bytes and number of files on disk."""
        return self.files.size()

    @contextmanager
    def writer(self, clip: str, *, source: dict[str, Any], provenance: dict[str, Any]) -> Iterator[ClipWriter | None]:
        """Yield a writer for a clip, or None where another live writer holds it or has just committed it.

        Parameters
        ----------
        source : what tells the source from others; a committed clip of another source is done again.
        provenance : what float noise depends on.

        Raises
        ------
        StoreError
            The store is open for reading only.
        ClipError
            The file system takes the clip's name for that of another clip.

        Notes
        -----
        What a dead writer left is taken over if source and provenance are equal (time stamps apart), else discarded.
        What this one leaves without `commit` waits for the next.
        """
        self._check_writable()
        job = WriterJob(clip=clip, fingerprint=self.fingerprint, taps=self.taps, source=plain(source, "source"),
                  provenance=plain(provenance, "provenance"))
        with hold_lease(self.files, job.folder) as mine:
            held = self._manifest(job.folder) if mine else None
            if held is not None and same_source(held.source, job.source):
                self._journal(job.folder).remove()
                mine = False
            if not mine:
                yield None
                return
            if self.files.stat(f"{job.folder}/{META}") is not None:
                check_case_collision(self.files, job)
                self._discard(job.folder)
            yield ClipWriter(self.files, self._journal(job.folder), job)

    def remove(self, clip: str) -> None:
        """Remove a clip, committed or half done; nothing happens where there is none.

        Raises
        ------
        StoreError
            The store is open for reading only, or another process is writing the clip.
        """
        self._check_writable()
        self.remove_folder(encode_name(clip))

    def remove_folder(self, folder: str) -> None:
        """Remove what is in a clip's folder, whatever it is."""
        with hold_lease(self.files, folder) as mine:
            if not mine:
                raise StoreError("is being written by another process", where=self.path / folder,
                                 hint="wait for it to end, or stop it")
            self._discard(folder)

    def sweep(self) -> None:
        """Remove what was left by writers killed between a clip's commit and its journal's end, or at the root."""
        with lock_gate(self.work):
            for name in self.files.sizes(""):
                if name.startswith(TEMPORARY):
                    self.files.remove(name)
        for path in self.work.glob("*" + JOURNAL):
            folder = path.name.removesuffix(JOURNAL)
            if self._manifest(folder) is not None:
                with hold_lease(self.files, folder) as mine:
                    if mine:
                        path.unlink(missing_ok=True)

    def _discard(self, folder: str) -> None:
        """Take a clip out of the store: the mark first, so that it is absent from the first moment on."""
        self.files.remove(f"{folder}/{META}")
        atomic_io.durable_step("discard.unmarked")
        self._journal(folder).remove()
        self.files.remove_tree(folder)
        atomic_io.durable_step("discard.gone")
        self._manifests.pop(folder, None)

    @property
    def work(self) -> Path:
        """The local folder of claims and journals."""
        return work_folder(self.path)

    def _journal(self, folder: str) -> Journal:
        return Journal(self.work / (folder + JOURNAL))

    def _check_writable(self) -> None:
        if self.mode != "a":
            raise StoreError("is open for reading only", where=self.path, hint="open it with mode='a'")
