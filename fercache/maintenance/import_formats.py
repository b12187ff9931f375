"""Formats that `import` reads: each clip is checked and turned into float16 with one row a frame, by segments."""

from __future__ import annotations

import json
import logging
import math
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePath
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.lib import format as npy
from numpy.typing import NDArray
from pyarrow import parquet

from fercache.data import tables
from fercache.errors import ClipError, InputError
from fercache.runtime.progress import format_bytes
from fercache.store.layout import FRAME_COLUMNS, FRAME_TABLE, SEGMENT

log = logging.getLogger(__name__)

WIDEST = 1 << 17  # most values of one frame of one tap
LONGEST = 5_000_000  # most frames of a clip: 46 hours at 30 frames a second
# Most frames of a clip per row in the file, beyond SPARSE_FROM frames: a typo in a frame number must not fill the disk.
SPARSEST = 1000
SPARSE_FROM = 200_000
LARGEST_INDEX = WIDEST * 256  # most values of an array of frame numbers, or of a frame table; these are read whole
FEATURES = "features"  # name of the tap where a file names none
FRAME_KEYS = ("frames", "frame", "index")  # names of an array of frame numbers beside the features
NO_TRACK, TRACK = -1.0, 0.0
UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError,
              SyntaxError, KeyError, MemoryError, OverflowError)
"""What numpy, zipfile and h5py raise at malformed files."""


@dataclass(frozen=True, kw_only=True)
class IncomingClip:
    """One clip of a file."""

    frames: NDArray[np.int64]  # (n,) int64, the frame number of each row of the file, from 1, ascending
    arrays: dict[str, Any]  # tap -> (n, ...), sliced in ascending order
    frame_table: NDArray[np.float64] | None = None  # (T, 9) where the file has one

    @property
    def taps(self) -> dict[str, tuple[int, ...]]:
        """The shape of one row of each tap."""
        return {tap: tuple(array.shape[1:]) or (1,) for tap, array in self.arrays.items()}

    def check(self, name: str) -> None:
        """Refuse a clip that no store takes.

        Raises ClipError if it has no rows, its frames do not count up from 1, or a tap has an impossible name or shape.
        """
        frames = self.frames
        if not len(frames):
            raise ClipError("holds no frame", where=name)
        if frames[0] < 1:
            raise ClipError(f"has a frame {frames[0]}", where=name,
                            hint=f"frames count from 1: add 1 to each, or of a table --first-frame {frames[0]}")
        steps = np.diff(frames)
        if (steps <= 0).any():
            what = "twice" if (steps == 0).any() else "out of order"
            raise ClipError(f"has frame {frames[1:][steps <= 0][0]} {what}", where=name,
                            hint="give each frame once, in ascending order; of several faces, name each in a column "
                                 "face_id")
        if frames[-1] > LONGEST or frames[-1] > max(SPARSE_FROM, SPARSEST * len(frames)):
            raise ClipError(f"has a frame {frames[-1]}, but only {len(frames)} rows", where=name,
                            hint="check the frame numbers")
        if not self.taps or FRAME_TABLE in self.taps or "" in self.taps:
            raise ClipError(f"its arrays are {', '.join(map(repr, self.taps)) or 'none'}", where=name,
                            hint=f"give each array a name other than {FRAME_TABLE!r}")
        for tap, shape in self.taps.items():
            if min(shape) < 1 or math.prod(shape) > WIDEST:
                raise ClipError(f"{tap!r} has rows of shape {shape}", where=name,
                                hint=f"a row has 1 to {WIDEST} values")
        if self.frame_table is not None:
            self._check_frame_table(self.frame_table, name)

    def _check_frame_table(self, table: NDArray[np.float64], name: str) -> None:
        if table.shape != (len(self.frames), len(FRAME_COLUMNS)):
            raise ClipError(f"a frame table of shape {table.shape} does not fit {len(self.frames)} frames", where=name)
        counted = np.arange(1, len(table) + 1)
        if not ((self.frames == counted) & (table[:, 0] == counted) & np.isfinite(table[:, 1])).all():
            raise ClipError("its frame table does not count 1, 2, 3, ... or lacks times", where=name,
                            hint="leave the frame table out, and give frame numbers alone")

    def full_frame_table(self, fps: float) -> NDArray[np.float64]:
        """Return the frame table, ``(T, 9)``: the file's, or `fps` frames a second, valid where the file has a row."""
        if self.frame_table is not None:
            return self.frame_table
        count = int(self.frames[-1])
        valid = np.zeros(count, bool)
        valid[self.frames - 1] = True
        return np.column_stack([np.arange(1, count + 1), np.arange(count) / fps, valid, np.full((count, 5), np.nan),
                                np.where(valid, TRACK, NO_TRACK)])

    def segments(self, start: int, name: str) -> Iterator[dict[str, NDArray[np.float16]]]:
        """Yield the features of segments from row `start` on; frames that the file does not have are zeros.

        Raises ClipError if values are not numbers, NaN, infinite, or beyond float16.
        """
        length = int(self.frames[-1])
        for first in range(start, length, SEGMENT):
            stop = min(first + SEGMENT, length)
            # Rows of the file that fall into this segment; frames are ascending, so they are one slice.
            low, high = np.searchsorted(self.frames, [first + 1, stop + 1])
            segment = {tap: np.zeros((stop - first, *shape), np.float16) for tap, shape in self.taps.items()}
            for tap, rows in segment.items() if high > low else ():
                frames = self.frames[low:high]
                rows[frames - 1 - first] = _to_half(np.asarray(self.arrays[tap][low:high]).reshape(
                    len(frames), *rows.shape[1:]), tap, frames, name)
            yield segment


ClipEntries = Iterator[tuple[str, AbstractContextManager[IncomingClip] | ClipError]]
"""(name, clip to be opened, which may raise a ClipError), or the error of a clip that could not be read."""


def _to_half(values: NDArray[Any], tap: str, frames: NDArray[np.int64], name: str) -> NDArray[np.float16]:
    """Return rows as float16; raises ClipError where they are not numbers, NaN, infinite, or beyond float16."""
    if values.dtype.kind not in "fiu":
        raise ClipError(f"{tap!r} holds {values.dtype}, not numbers", where=name)
    with np.errstate(over="ignore", invalid="ignore"):  # checked below, with the frame in the error
        halves = values.astype(np.float16)
    bad = ~np.isfinite(halves).reshape(len(halves), -1).all(axis=1)
    if bad.any():
        row = int(np.argmax(bad))
        overflow = np.isfinite(values[row]).all()
        why = "beyond 65504, the largest number of float16" if overflow else "NaN or infinite"
        raise ClipError(f"{tap!r} has a value that is {why}, in frame {frames[row]}", where=name,
                        hint="scale the features" if overflow else "leave out frames without features")
    return halves


def _clip_from_arrays(arrays: dict[str, Any], name: str) -> IncomingClip:
    """Return the clip of one array a tap (HDF5 datasets are read later), with a frame table, numbers, or neither."""
    table = arrays.pop(FRAME_TABLE, None)
    index = table
    key = next((key for key in FRAME_KEYS if key in arrays), None)
    if table is None and key is not None and len(arrays) > 1:
        index = arrays.pop(key)
    # A header may claim any shape; these arrays are the only ones that are read whole.
    if index is not None and index.size > LARGEST_INDEX:
        raise ClipError(f"an array of shape {index.shape} is too large for frame numbers", where=name)
    lengths = {array.shape[:1] for array in arrays.values()} | ({index.shape[:1]} if index is not None else set())
    if len(lengths) != 1 or () in lengths:
        raise ClipError(f"its arrays have {sorted(lengths)} rows", where=name, hint="one row a frame in each of them")
    frames = np.arange(1, lengths.pop()[0] + 1, dtype=np.int64)
    if index is not None and table is None:
        numbers = np.asarray(index[()])
        if numbers.ndim != 1 or numbers.dtype.kind not in "iuf" or not (
                (np.floor(numbers) == numbers) & (np.abs(numbers.astype(np.float64)) <= tables.MAX_EXACT_INT)).all():
            raise ClipError(f"its frame numbers are {numbers.dtype} {numbers.shape}, not a list of whole numbers",
                            where=name)
        frames = numbers.astype(np.int64)
    return IncomingClip(frames=frames, arrays=arrays,
                        frame_table=None if table is None else np.asarray(table[()], np.float64))


@contextmanager
def _file_errors(path: Path) -> Iterator[None]:
    """Turn a library's error about a malformed file into a ClipError with the file's name."""
    try:
        yield
    except ClipError as error:
        raise ClipError(error.what, where=error.where or path, hint=error.hint) from error
    except UNREADABLE as error:
        raise ClipError(f"cannot be read ({type(error).__name__}: {str(error)[:200]})", where=path, hint=(
            "the file is cut off, damaged or of another kind, or it holds Python objects, which can run code when they "
            "are loaded and are never read: save plain arrays of numbers")) from error


CLIP_NAME = "clip.json"  # member of an exported npz with the clip's name


# numpy maps the arrays into memory, which needs no memory for a long clip and refuses Python objects.
@contextmanager
def _npy(path: Path, name: str) -> Iterator[IncomingClip]:
    with _file_errors(path):
        yield _clip_from_arrays({FEATURES: npy.open_memmap(path, mode="r")}, name)


def array_entries(root: Path, paths: Iterable[Path]) -> ClipEntries:
    """Yield the clips of npy and npz files, one each, under the name in an exported file or the file's own."""
    for path in paths:
        name = path.stem if root == path else path.relative_to(root).with_suffix("").as_posix()
        if path.suffix.lower() == ".npy":
            yield name, _npy(path, name)
            continue
        try:
            with zipfile.ZipFile(path) as file, file.open(CLIP_NAME) as member:
                stated = json.loads(member.read(1 << 16))
            name = stated if isinstance(stated, str) else name
        except (*UNREADABLE, RecursionError):
            pass  # made by another tool, or damaged, which opening reports
        yield name, _npz(path, name)


@contextmanager
def _npz(path: Path, name: str) -> Iterator[IncomingClip]:
    with _file_errors(path), zipfile.ZipFile(path) as file, tempfile.TemporaryDirectory() as folder:
        members = [member for member in file.infolist() if member.filename != CLIP_NAME]
        if not members or not all(member.filename.endswith(".npy") for member in members):
            raise ClipError(f"is not an npz ({', '.join(m.filename for m in members[:3]) or 'nothing'} in it)",
                            hint="save arrays of numbers with np.savez; a pickle is never loaded")
        size, free = sum(member.file_size for member in members), shutil.disk_usage(folder).free
        if size > free // 2:  # a few kilobytes may unpack to terabytes
            raise ClipError(f"unpacks to {format_bytes(size)}, and {format_bytes(free)} are free for temporary files",
                            hint="set TMPDIR to a larger disk")
        arrays: dict[str, Any] = {}
        for i, member in enumerate(members):
            # A packed array cannot be mapped. Unpacking also compares the checksums before anything is imported.
            with file.open(member) as source, Path(folder, str(i)).open("wb") as unpacked:
                shutil.copyfileobj(source, unpacked, 1 << 20)
            # `export` writes a tap's own name as the comment, since not every name can be that of a member.
            tap = (str(json.loads(member.comment)) if member.comment.startswith(b'"')
                   else member.filename.removesuffix(".npy"))
            if tap in arrays:
                raise ClipError(f"holds {tap!r} twice")
            arrays[tap] = npy.open_memmap(Path(folder, str(i)), mode="r")
        yield _clip_from_arrays(arrays, name)


# The attribute that holds names as JSON: HDF5's own texts end at a zero byte.
OURS = "fercache"
DEEPEST = 8
FILTERS = {307: "bzip2", 32001: "Blosc", 32004: "LZ4", 32008: "Bitshuffle", 32013: "ZFP", 32015: "Zstandard",
           32017: "SZ", 32026: "Blosc2"}
"""Names of registered HDF5 filters that h5py does not bring along."""


def hdf5_entries(path: Path) -> ClipEntries:
    """Yield the clips of a file: from `export`, ``file[clip]['00001'] -> vector``, or ``file[clip] -> (T, D)``.

    Raises InputError if it is not an HDF5 file, or is cut off.
    """
    try:
        with h5py.File(path, "r") as file:
            found = list(_find_clips(file, "", 0, set()))
    except UNREADABLE as error:
        raise InputError(f"is not a readable HDF5 file ({str(error)[:200]})", where=path,
                         hint="the file is cut off, damaged, or of another kind") from error
    for key, name in found:
        yield name, _hdf5(path, key, name)


@contextmanager
def _hdf5(path: Path, key: str, name: str) -> Iterator[IncomingClip]:
    with _file_errors(path), h5py.File(path, "r") as file:
        item = file[key]
        if isinstance(item, h5py.Dataset):
            yield _clip_from_arrays({FEATURES: _checked(item, name)}, name)
            return
        datasets = {key: _checked(one, name) for key, one in _items(item) if isinstance(one, h5py.Dataset)}
        # Exported taps may have numbers for names, so the attribute decides.
        if OURS not in item.attrs and any(key.partition(".")[0].isdigit() for key in datasets):
            yield _clip_of_frames(datasets, name)
            return
        yield _clip_from_arrays({_own_name(one, key): one for key, one in datasets.items()}, name)


def _find_clips(group: Any, key: str, depth: int, seen: set[Any]) -> Iterator[tuple[str, str]]:
    """Yield key and name of each clip: a group of datasets, or a dataset on its own."""
    address = h5py.h5o.get_info(group.id).addr
    if depth > DEEPEST or address in seen:  # a group may contain itself
        return
    seen.add(address)
    items = dict(_items(group))
    if key and any(isinstance(item, h5py.Dataset) for item in items.values()):
        yield key, _own_name(group, key)
        return
    for name, item in items.items():
        inner = f"{key}/{name}" if key else name
        if isinstance(item, h5py.Dataset):
            yield inner, _own_name(item, inner)
        elif isinstance(item, h5py.Group):
            yield from _find_clips(item, inner, depth + 1, seen)


def _items(group: Any) -> Iterator[tuple[str, Any]]:
    """Yield the members of a group, except links to other places and other files."""
    for name in group:
        # A soft or external link could read any file that the user may read, and put it into the store.
        if isinstance(group.get(name, getlink=True), h5py.HardLink):
            yield name, group[name]


def _own_name(item: Any, key: str) -> str:
    """Return the name that `export` wrote into a group or dataset, or its key."""
    try:
        name = json.loads(item.attrs[OURS])["name"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return key
    return name if isinstance(name, str) else key


def _checked(dataset: Any, name: str) -> Any:
    """Return a dataset whose numbers are in this file."""
    if dataset.external is not None or dataset.is_virtual:
        raise ClipError(f"{dataset.name!r} refers to another file, and is not read", where=name,
                        hint="copy the numbers into this file")
    if dataset.dtype.kind not in "fiu":
        raise ClipError(f"{dataset.name!r} holds {dataset.dtype}, not numbers", where=name,
                        hint="save arrays of numbers; Python objects are never loaded")
    plist = dataset.id.get_create_plist()
    missing = [code for i in range(plist.get_nfilters()) if not h5py.h5z.filter_avail(code := plist.get_filter(i)[0])]
    if missing:
        raise ClipError(f"{dataset.name!r} is compressed with {FILTERS.get(missing[0], f'HDF5 filter {missing[0]}')}, "
                        "which is not installed", where=name, hint="pip install hdf5plugin")
    # HDF5 reads an array of any size that was declared and never written as zeros.
    if dataset.size and not dataset.id.get_storage_size():
        raise ClipError(f"{dataset.name!r} of shape {dataset.shape} was declared and never written", where=name)
    return dataset


@dataclass(frozen=True)
class StackedFrames:
    """One dataset a frame, sliced as one array of shape `shape`."""

    datasets: list[Any]
    shape: tuple[int, ...]

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        return np.stack([np.reshape(dataset[()], self.shape[1:]) for dataset in self.datasets[rows]])


def _clip_of_frames(datasets: dict[str, Any], name: str) -> IncomingClip:
    """Return the clip of one dataset a frame, with keys such as ``00001`` or ``00001.jpg``."""
    numbered: dict[int, str] = {}
    shape = next(iter(datasets.values())).shape or (1,)
    for key, dataset in datasets.items():
        stem = key.partition(".")[0]
        if not (stem.isascii() and stem.isdigit() and len(stem) < 12):
            raise ClipError(f"has a frame called {key!r}", where=name, hint="frames are numbers: 00001, 00002, ...")
        if numbered.setdefault(int(stem), key) != key:
            raise ClipError(f"has frame {int(stem)} twice", where=name, hint="give each frame once")
        if (dataset.shape or (1,)) != shape:
            raise ClipError(f"frame {key} has shape {dataset.shape}, other frames have {shape}", where=name)
    frames = sorted(numbered)
    stacked = StackedFrames([datasets[numbered[frame]] for frame in frames], (len(frames), *shape))
    return IncomingClip(frames=np.array(frames, np.int64), arrays={FEATURES: stacked})


NOT_FEATURES = frozenset((*FRAME_COLUMNS, "valid", "label", "prediction", "split", "group", "subject", "fold",
                          "success", "approx_time", "frameheight", "framewidth", "", "unnamed: 0"))
"""Columns that are never taken for features: a label among them would be learned from itself."""
# What other tools call the columns (OpenFace 2, py-feat, scripts around MediaPipe), in lower case; the first one that
# is there counts.
CLIP_NAMES = ("clip", "input", "video", "video_name", "video_id", "filename", "file_name", "file")
FRAME_NAMES = ("frame", "frame_number", "frame_num", "frame_no", "frame_idx", "frame_index", "frame_id")
TIME_NAMES = {"time_s": 1.0, "timestamp": 1.0, "timestamp_s": 1.0, "time": 1.0, "timestamp_ms": 1e-3, "time_ms": 1e-3}
"""Columns of times -> seconds of one unit."""
PERSON_NAMES = ("person", "person_id", "face_id", "faceid", "face_idx", "face_index", "track_id", "identity")
MOST_PEOPLE = 64
TAPS = b"fercache"  # key of the parquet schema's metadata in which `export` describes its columns
ColumnTaps = dict[str, tuple[str, tuple[int, ...]]]
"""Column -> tap and shape of its rows, as `export` wrote them; empty for tables made by other tools."""


@dataclass(frozen=True, kw_only=True)
class TableColumns:
    """Where a table of features has what."""

    # `clip`, `person`, `success`: names of columns, "" where there is none; without `clip`, the file is one clip
    clip: str
    person: str
    success: str
    frame: str  # column of frame numbers, or of times where `unit_s` is not 0
    unit_s: float
    fps: float
    first_frame: int  # number of a clip's first frame
    features: list[str]
    exported: ColumnTaps

    @classmethod
    def of(cls, header: Sequence[str], exported: ColumnTaps, path: Path, fps: float,
           first_frame: int | None) -> TableColumns:
        """Return the columns of a table; raises InputError where it is no table of features."""
        if exported and {"clip", "frame"} <= set(header):
            return cls(clip="clip", person="", success="", frame="frame", unit_s=0.0, fps=fps, first_frame=1,
                       features=list(exported), exported=exported)
        names = {name.casefold(): name for name in header}
        clip, frame, time, person, success = (
            next((names[name] for name in known if name in names), "")
            for known in (CLIP_NAMES, FRAME_NAMES, TIME_NAMES, PERSON_NAMES, ("success",)))
        if not (frame or time) or len(names) < len(header):
            raise InputError(f"has columns {', '.join(header[:6]) or 'none'}", where=path,
                             hint="a table of features has columns clip, frame (or time_s) and one for each feature, "
                                  "all different; without clip, the file is one clip")
        used = {clip, frame, time, person}
        # OpenFace's own columns of a row; another table's column of this name is a feature.
        other = {"confidence"} if success else set()
        features = [name for name in header if name not in used and name.casefold() not in NOT_FEATURES | other]
        if not features or len(features) > WIDEST:
            raise InputError(f"has {len(features)} columns of features", where=path,
                             hint="one column for each feature, beside clip, frame, label, ...")
        if first_frame is None:  # py-feat counts from 0
            first_frame = 0 if {"input", "facerectx"} & names.keys() else 1
        return cls(clip=clip, person=person, success=success, frame=frame or time, fps=fps, first_frame=first_frame,
                   unit_s=0.0 if frame else TIME_NAMES[time.casefold()], features=features, exported={})

    def frames(self, batch: Any) -> NDArray[np.int64]:
        """Return the frame number of each row, from 1; raises ValueError where a cell is none."""
        if self.unit_s:
            return np.rint(tables.to_floats(batch.column(self.frame)) * self.unit_s * self.fps).astype(np.int64) + 1
        return tables.to_ints(batch.column(self.frame)) + 1 - self.first_frame

    def clip_name(self, cell: str, path: Path) -> str:
        """Return a clip's name from a cell: other tools write the path of the video."""
        if self.clip.casefold() == "clip":
            return cell
        return PurePath(cell.strip().replace("\\", "/")).stem if self.clip else path.stem

    def without_face(self, batch: Any, cells: dict[str, NDArray[Any]]) -> NDArray[np.bool_]:
        """Return which rows another tool wrote for a frame without a face: no success, or no feature at all."""
        if self.clip.casefold() == "clip" and not (self.success or self.person):
            return np.zeros(len(batch), bool)
        empty: NDArray[np.bool_] = np.all([np.isnan(rows).all(axis=1) for rows in cells.values()], axis=0)
        return empty | (tables.to_floats(batch.column(self.success), 1) == 0) if self.success else empty


def table_entries(path: Path, fps: float = 30.0, first_frame: int | None = None) -> ClipEntries:
    """Yield the clips of a table with columns clip, frame and features: numbers, or lists of one length.

    `fps`: frames a second, for a table of times without frame numbers. `first_frame`: number of a clip's first frame;
    None: 0 for a table of py-feat, else 1. Each clip has to be opened before the next one is asked for, since the table
    is read once. The person with the most rows has the name of the clip, others are CLIP#2, CLIP#3, ... Raises
    InputError if it is not such a table.
    """
    header = tables.read_header(path)
    exported: ColumnTaps = {}
    if path.suffix.lower() == ".parquet":
        try:
            record = json.loads((parquet.read_schema(path).metadata or {}).get(TAPS, b'{"taps": {}}'))["taps"]
            exported = {str(name): (str(one["tap"]), tuple(int(n) for n in one["shape"]))
                        for name, one in record.items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError("its description of the columns is damaged", where=path, hint="export again") from error
    columns = TableColumns.of(header, exported, path, fps, first_frame)
    if path.suffix.lower() != ".parquet":
        with path.open("rb") as file:  # half a number reads as another number
            file.seek(-1, 2)
            if file.read() not in (b"\n", b"\r", b"\0"):  # UTF-16 ends with a zero byte
                raise InputError("does not end with the end of a line", where=path,
                                 hint="it may be cut off; if it is whole, add a line end")
    for clip, pieces in groupby(tables.read_pieces(path, key=columns.clip),
                                key=lambda piece: columns.clip_name(piece[0], path)):
        yield from _people_of(clip, pieces, columns)


class _PersonRows:
    """The rows of one person of a clip: frame numbers, and a temporary file for each tap."""

    def __init__(self) -> None:
        self.frames: list[NDArray[np.int64]] = []
        self.frame_tables: list[NDArray[np.float64]] = []
        self.files: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}

    def add(self, frames: NDArray[np.int64], arrays: dict[str, NDArray[Any]], clip: str, stack: ExitStack) -> None:
        """Add rows; raises ClipError where they do not fit."""
        self.frames.append(frames)
        for tap, rows in arrays.items():
            if tap not in self.files:
                file = tempfile.TemporaryFile()  # noqa: SIM115 - the stack closes it
                self.files[tap], self.shapes[tap] = stack.enter_context(file), rows.shape[1:]
            if rows.shape[1:] != self.shapes[tap]:
                raise ClipError(f"has lists of {rows.shape[1]} and {self.shapes[tap][0]} values", where=clip,
                                hint="lists of one length")
            # float16 is what the store holds, and a quarter of float64 on disk.
            self.files[tap].write(_to_half(rows, tap, frames, clip).tobytes())

    @contextmanager
    def open(self) -> Iterator[IncomingClip]:
        """Yield the clip."""
        for file in self.files.values():
            file.flush()  # the map reads the file, not Python's buffer
        yield IncomingClip(
            frames=np.concatenate(self.frames),
            frame_table=np.concatenate(self.frame_tables) if self.frame_tables else None,
            arrays={tap: np.memmap(file, np.float16, "r", shape=(sum(map(len, self.frames)), *self.shapes[tap]))
                    for tap, file in self.files.items()})


def _people_of(clip: str, pieces: Iterable[tuple[str, int, Any]], columns: TableColumns) -> ClipEntries:
    with ExitStack() as stack:
        people: dict[str, _PersonRows] = {}
        try:
            for _, line, batch in pieces:
                _add_batch(people, clip, line, batch, columns, stack)
            if not people:
                raise ClipError("has no row with a face", where=clip)
        except ClipError as error:
            yield clip, error
            return
        ranked = sorted(people, key=lambda person: -sum(map(len, people[person].frames)))
        names = {person: clip if i == 1 else f"{clip}#{i}" for i, person in enumerate(ranked, 1)}
        if len(people) > 1:
            log.info("%s: %s", clip, ", ".join(f"{columns.person} {person} is {name}"
                                               for person, name in names.items()))
        for person, name in names.items():
            yield name, people[person].open()


def _add_batch(people: dict[str, _PersonRows], clip: str, line: int, batch: Any, columns: TableColumns,
               stack: ExitStack) -> None:
    try:
        numbers = columns.frames(batch)
        cells = {name: _cells(batch.column(name)) for name in columns.features}
    except ValueError as error:
        raise ClipError(f"from line {line} on: {error}", where=clip,
                        hint="numbers, or lists of one length; leave out frames without features") from error
    seen = ~columns.without_face(batch, cells)
    ids = np.array([cell.strip() for cell in tables.to_text(batch.column(columns.person))] if columns.person
                   else [""] * len(batch))
    for person in dict.fromkeys(ids[seen].tolist()):
        if len(people) >= MOST_PEOPLE and person not in people:
            raise ClipError(f"has more than {MOST_PEOPLE} people by {columns.person!r}", where=clip,
                            hint="drop the column if it does not name people")
        rows = seen & (ids == person)
        own = {name: values[rows] for name, values in cells.items()}
        if columns.exported:
            arrays = {columns.exported[name][0]: values.reshape(len(values), *columns.exported[name][1])
                      for name, values in own.items()}
        elif all(values.shape[1] == 1 for values in own.values()):
            arrays = {FEATURES: np.concatenate(list(own.values()), axis=1)}
        else:
            arrays = own
        added = people.setdefault(person, _PersonRows())
        added.add(numbers[rows], arrays, clip, stack)
        if columns.exported:
            added.frame_tables.append(np.column_stack([numbers, *(tables.to_floats(batch.column(name))
                                                                  for name in FRAME_COLUMNS[1:])]))


def _cells(column: Any) -> NDArray[Any]:
    """Return a column of numbers, ``(n, 1)``, or of lists of one length, ``(n, D)``."""
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
            or pa.types.is_fixed_size_list(column.type)):
        return tables.to_floats(column)[:, None]
    lengths = pc.unique(pc.list_value_length(column)).to_pylist()
    if len(lengths) != 1 or not lengths[0]:
        raise ValueError(f"lists of {sorted(map(str, lengths))[:3]} values")
    # `flatten` respects the slice, `values` would return the whole batch.
    values = column.flatten().to_numpy(zero_copy_only=False)
    if values.dtype.kind not in "fiu":
        raise ValueError(f"a column of {column.type}")
    return np.asarray(values.reshape(len(column), -1))
