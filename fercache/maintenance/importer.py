"""Import: features made by other tools become a store with the same frame numbers; a clip is complete or absent."""

from __future__ import annotations

import re
import shutil
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fercache import __version__
from fercache.config import fingerprint_of
from fercache.errors import ClipError, InputError
from fercache.maintenance import import_formats
from fercache.maintenance.import_formats import ClipEntries, IncomingClip
from fercache.media.source import check_content
from fercache.runtime.atomic_io import file_sha256
from fercache.runtime.progress import progress_bar
from fercache.runtime.uri import Location, Url
from fercache.store.embedding_store import EmbeddingStore
from fercache.store.locks import work_folder
from fercache.store.multi_store import IMPORTED
from fercache.store.remote import files_at
from fercache.workspace import store_name

FORMAT = 1  # increment this when the same file would give other numbers
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
PICKLES = (".pkl", ".pickle", ".p", ".pt", ".pth", ".joblib", ".dill")
ENDINGS = {".h5": "h5", ".hdf5": "h5", ".hdf": "h5", ".npz": "npz", ".npy": "npy", ".csv": "csv", ".tsv": "csv",
           ".parquet": "parquet"}


@dataclass(kw_only=True)
class ImportReport:
    """What `import_features` did; `failed` is clip -> reason."""

    store: Location
    taps: dict[str, tuple[int, ...]] = field(default_factory=dict)
    clips: list[str] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    frames: int = 0


def import_features(path: Path, name: str, folder: Location, *, fps: float = 30.0,
                    first_frame: int | None = None) -> ImportReport:
    """Return the result for each clip of a file or folder of features.

    Raises InputError if nothing can be read at all; nothing is left behind.

    Values become float16. The fingerprint covers the bytes of what is imported: other features are another store.

    Parameters
    ----------
    name : of the store, ``<name>-<fingerprint>.zarr``; `train-heads --join` takes it.
    folder : where stores of the data set are.
    fps : frames a second where the file has no frame table.
    first_frame : number of a clip's first frame in a table; None: 0 for a table of py-feat, else 1.
    """
    if NAME.fullmatch(name) is None:
        raise InputError(f"{name!r} cannot name a store", hint="letters, digits, and _ . - inside; at most 64")
    kind = kind_of(path)
    settings = {"backbone": name, IMPORTED: kind, "content": _content_digest(path), "format": FORMAT, "fps": fps}
    if first_frame is not None:
        settings["first_frame"] = first_frame
    place = folder / store_name(name, fingerprint_of(settings))
    running = _Import(settings, ImportReport(store=place))
    report = running.report
    # The name has the fingerprint of the content, so a second import of the same file goes on in the same store.
    existed = files_at(place).get("zarr.json") is not None
    try:
        with progress_bar("import", 0, "clips") as bar:
            for clip, opened in _entries(path, kind, fps, first_frame):
                bar.note(clip)
                running.add(clip, opened)
    finally:
        if not existed and not (report.clips or report.cached):
            _remove_empty_store(place)
    if not report.clips and not report.cached:
        first = next(iter(report.failed.values()), "it holds no clip")
        raise InputError(f"nothing could be imported: {first}", where=path,
                         hint="see `fercache import --help` for what can be read")
    return report


@dataclass
class _Import:
    """A running import."""

    settings: dict[str, Any]
    report: ImportReport
    store: EmbeddingStore | None = None
    seen: set[str] = field(default_factory=set)

    def add(self, name: str, opened: AbstractContextManager[IncomingClip] | ClipError) -> None:
        """Import one clip; an error is recorded."""
        try:
            if name in self.seen:
                raise ClipError("comes twice, with other clips between", where=name,
                                hint="sort the table by clip and frame")
            self.seen.add(name)
            if isinstance(opened, ClipError):
                raise opened
            with opened as clip:
                clip.check(name)
                self._write(name, clip)
        except ClipError as error:
            message = str(error) if error.where == name else f"{name}: {error}"
            self.report.failed[name] = message
            # A clip that comes twice may be committed already, and either half of it would be wrong.
            for names in (self.report.clips, self.report.cached):
                if name in names:
                    names.remove(name)
            if self.store is not None:
                self.store.remove(name)

    def _write(self, name: str, clip: IncomingClip) -> None:
        # The first clip decides the taps; a store has one shape for each.
        store = self.store = self.store or EmbeddingStore.create(self.report.store, self.settings, clip.taps)
        self.report.taps = store.taps
        if clip.taps != store.taps:
            raise ClipError(f"has arrays {clip.taps}, the clips before it had {store.taps}", where=name,
                            hint="import features of one shape at a time")
        provenance = {"imported": self.settings[IMPORTED], "fercache": __version__}
        with store.writer(name, source={"content": self.settings["content"]}, provenance=provenance) as writer:
            if writer is None:  # committed by an earlier import
                self.report.cached.append(name)
                return
            writer.set_frame_table(clip.full_frame_table(self.settings["fps"]))
            for segment in clip.segments(writer.written, name):  # an import that was killed goes on at a segment
                writer.write(writer.written, segment)
            self.report.frames += writer.commit().frames
        self.report.clips.append(name)


def kind_of(path: Path) -> str:
    """Return what a path holds: h5, npz, npy, csv, parquet.

    Raises InputError if it is nothing that is read; pickles are refused by name and by content.
    """
    if not path.exists():
        raise InputError("does not exist", where=path, hint="check the path")
    if path.is_dir():
        kinds = {file.suffix.lower() for file in _files(path)} & {".npz", ".npy", ".csv", *PICKLES}
        if len(kinds) != 1:
            raise InputError(f"holds {' and '.join(sorted(kinds)) or 'no features'}", where=path,
                             hint="a folder holds one .npz, one .npy or one .csv a clip")
        suffix = kinds.pop()
    else:
        suffix = path.suffix.lower()
        try:
            check_content(path)
        except ClipError as error:
            raise InputError(error.what, where=path, hint=error.hint) from error
    # A pickle may have any ending, .npy included.
    if suffix in PICKLES or (path.is_file() and _is_pickle(path)):
        raise InputError("is a pickle, which can run code when it is loaded, and is never loaded", where=path,
                         hint="in the tool that wrote it: np.savez('features/<clip>.npz', features=np.stack(rows), "
                              "frames=numbers), then import the folder")
    if suffix not in ENDINGS:
        raise InputError(f"no features are read from {suffix or 'a file without an ending'}", where=path,
                         hint=f"known: {', '.join(ENDINGS)}")
    return ENDINGS[suffix]


def _entries(path: Path, kind: str, fps: float, first_frame: int | None) -> ClipEntries:
    if kind == "h5":
        return import_formats.hdf5_entries(path)
    paths = [path] if path.is_file() else [file for file in _files(path) if ENDINGS.get(file.suffix.lower()) == kind]
    if kind in ("csv", "parquet"):
        return (entry for one in paths for entry in import_formats.table_entries(one, fps, first_frame))
    return import_formats.array_entries(path, paths)


def _content_digest(path: Path) -> str:
    """Return the sha256 (hex) over the bytes of a file, or over names and bytes of a folder's files."""
    if path.is_dir():
        return fingerprint_of([[file.relative_to(path).as_posix(), _content_digest(file)] for file in _files(path)])
    return file_sha256(path)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _is_pickle(path: Path) -> bool:
    """Return whether a file begins as a pickle of protocol 2 or later does."""
    with path.open("rb") as file:
        head = file.read(2)
    return len(head) == 2 and head[0] == 0x80 and 2 <= head[1] <= 5


def _remove_empty_store(place: Location) -> None:
    files_at(place).remove_tree("")
    if isinstance(place, Url):
        return
    shutil.rmtree(work_folder(place), ignore_errors=True)
    with suppress(OSError):  # other stores are in it
        place.parent.rmdir()
