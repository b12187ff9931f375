"""Import: features made elsewhere become a store beside ours, on the same frame clock; a clip is whole or absent."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fercache import __version__
from fercache.config import fingerprint_of
from fercache.errors import ClipError, InputError
from fercache.maintenance import import_formats
from fercache.maintenance.import_formats import ImportEntry, IncomingClip
from fercache.runtime.progress import progress_bar
from fercache.runtime.uri import Location, Url
from fercache.store.embedding_store import EmbeddingStore
from fercache.store.locks import work_folder
from fercache.store.remote import files_at

log = logging.getLogger(__name__)


FORMAT = 1
"""Raised whenever the same file would give other numbers."""
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
PICKLES = (".pkl", ".pickle", ".p", ".pt", ".pth", ".joblib", ".dill")
ENDINGS = {".h5": "h5", ".hdf5": "h5", ".hdf": "h5", ".npz": "npz", ".npy": "npy", ".csv": "csv", ".parquet": "parquet"}


@dataclass(kw_only=True)
class ImportReport:
    """What `import_features` did; `failed` is clip -> why."""

    store: Location
    taps: dict[str, tuple[int, ...]] = field(default_factory=dict)
    clips: list[str] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    frames: int = 0


def import_features(path: Path, name: str, folder: Location, *, fps: float = 30.0) -> ImportReport:
    """Return what became of each clip of a file or folder of features.

    Parameters
    ----------
    name : of the store, ``<name>-<fingerprint>.zarr``; `train-heads --join` takes it.
    folder : where stores of the data set lie.
    fps : frames a second where the file holds no clock.

    Raises
    ------
    InputError
        Nothing can be read at all; nothing is left behind.

    Notes
    -----
    Values become float16. The fingerprint covers the bytes of what is imported: other features are another store.
    """
    if NAME.fullmatch(name) is None:
        raise InputError(f"{name!r} is no name for a store", hint="letters, digits, and _ . - inside; at most 64")
    kind = kind_of(path)
    settings = {"backbone": name, "imported": kind, "content": content_of(path), "format": FORMAT, "fps": fps}
    place = folder / f"{name}-{fingerprint_of(settings)[:12]}.zarr"
    taking = _Import(place, settings, ImportReport(store=place), fps)
    begun = files_at(place).get("zarr.json") is not None
    try:
        with progress_bar("import", 0, "clips") as bar:
            for entry in entries_of(path, kind):
                bar.note(entry.name)
                taking.take(entry)
    finally:
        if not begun and not (taking.report.clips or taking.report.cached):
            _leave_nothing(place)
    if not taking.report.clips and not taking.report.cached:
        first = next(iter(taking.report.failed.values()), "it holds no clip")
        raise InputError(f"nothing could be imported: {first}", where=path,
                         hint="see `fercache import --help` for what can be read")
    return taking.report


@dataclass
class _Import:
    """One import on its way."""

    place: Location
    settings: dict[str, Any]
    report: ImportReport
    fps: float
    store: EmbeddingStore | None = None
    seen: set[str] = field(default_factory=set)

    def take(self, entry: ImportEntry) -> None:
        """Import one clip; what is wrong with it is recorded."""
        try:
            if entry.name in self.seen:
                raise ClipError("comes twice, with other clips between", where=entry.name,
                                hint="sort the table by clip and frame")
            self.seen.add(entry.name)
            with entry.open() as clip:
                clip.check(entry.name)
                self._put(entry.name, clip)
        except ClipError as error:
            message = str(error) if error.where == entry.name else f"{entry.name}: {error}"
            log.error("%s", message)
            self.report.failed[entry.name] = message
            self._drop(entry.name)

    def _put(self, name: str, clip: IncomingClip) -> None:
        store = self.store = self.store or EmbeddingStore.create(self.place, self.settings, clip.taps)
        self.report.taps = store.taps
        if clip.taps != store.taps:
            raise ClipError(f"has arrays {clip.taps}, the clips before it had {store.taps}", where=name,
                            hint="import features of one shape at a time")
        made = {"imported": self.settings["imported"], "fercache": __version__}
        with store.writer(name, source={"content": self.settings["content"]}, provenance=made) as writer:
            if writer is None:
                self.report.cached.append(name)
                return
            writer.set_frame_table(clip.on_clock(self.fps))
            for segment in clip.segments(writer.written, name):
                writer.write(writer.written, segment)
            self.report.frames += writer.commit().frames
        self.report.clips.append(name)

    def _drop(self, name: str) -> None:
        """Leave nothing of a clip."""
        for done in (self.report.clips, self.report.cached):
            if name in done:
                done.remove(name)
        if self.store is not None:
            self.store.remove(name)


def kind_of(path: Path) -> str:
    """Return what a path holds: h5, npz, npy, npy-export, csv, parquet.

    Raises
    ------
    InputError
        Nothing that is read; pickles are refused by name and by content.
    """
    if not path.exists():
        raise InputError("is not there", where=path, hint="check the path")
    if path.is_dir():
        if (path / import_formats.CLIPS).is_file():
            return "npy-export"
        kinds = {found.suffix.lower() for found in _files(path)} & {".npz", ".npy", *PICKLES}
        if len(kinds) != 1:
            raise InputError(f"holds {' and '.join(sorted(kinds)) or 'no features'}", where=path,
                             hint="a folder holds one .npz or one .npy a clip")
        suffix = kinds.pop()
    else:
        suffix = path.suffix.lower()
    if suffix in PICKLES or (path.is_file() and _pickled(path)):
        raise InputError("is a pickle, which can run code when it is loaded, and is never loaded", where=path,
                         hint="where it was made: np.savez('features/<clip>.npz', features=np.stack(rows), "
                              "frames=numbers), then import the folder")
    if suffix not in ENDINGS:
        raise InputError(f"no features are read from {suffix or 'a file without an ending'}", where=path,
                         hint=f"known: {', '.join(ENDINGS)}")
    return ENDINGS[suffix]


def entries_of(path: Path, kind: str) -> Iterator[ImportEntry]:
    """Return the clips of a path."""
    if kind == "h5":
        return import_formats.hdf5_entries(path)
    if kind == "npy-export":
        return import_formats.exported_entries(path)
    if kind == "csv":
        return import_formats.table_entries(import_formats.csv_pieces(path))
    if kind == "parquet":
        return import_formats.table_entries(import_formats.parquet_pieces(path))
    found = [path] if path.is_file() else [one for one in _files(path) if one.suffix.lower() == f".{kind}"]
    return import_formats.npz_entries(path, found) if kind == "npz" else import_formats.npy_entries(path, found)


def content_of(path: Path) -> str:
    """Return the sha256 (hex) over the bytes of a file, or over names and bytes of a folder's files."""
    if path.is_file():
        return _sha256(path)
    return fingerprint_of([[one.relative_to(path).as_posix(), _sha256(one)] for one in _files(path)])


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pickled(path: Path) -> bool:
    """Return whether a file begins as a pickle of protocol 2 or later does."""
    with path.open("rb") as file:
        head = file.read(2)
    return len(head) == 2 and head[0] == 0x80 and 2 <= head[1] <= 5


def _leave_nothing(place: Location) -> None:
    """Remove a store in which nothing was committed."""
    files = files_at(place)
    files.remove_tree("")
    if isinstance(place, Url):
        return
    work = work_folder(place)
    if work.is_dir():
        for path in work.iterdir():
            path.unlink()
        work.rmdir()
    if place.parent.is_dir() and not os.listdir(place.parent):  # noqa: PTH208 - is it empty
        place.parent.rmdir()
