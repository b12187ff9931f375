"""Formats that `import` reads: each clip is checked and turned into float16 on a frame clock, segment by segment."""

from __future__ import annotations

import csv
import io
import json
import math
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import groupby, islice, pairwise
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import h5py
import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from fercache.errors import ClipError, InputError, MissingExtra
from fercache.runtime import atomic_io
from fercache.store.layout import FRAME_COLUMNS, FRAME_TABLE, SEGMENT

WIDEST = 1 << 17
"""Most values of one frame of one tap."""
LONGEST = 5_000_000
"""Most frames of a clip: 46 hours at 30 frames a second."""
SPARSEST = 1000
"""Most frames of a clip for each frame that is given, past SPARSE_FROM of them: a slip of a digit fills no disk."""
SPARSE_FROM = 200_000
FEATURES = "features"
"""Name of the tap where a file names none."""
NO_TRACK, TRACK = -1.0, 0.0


@dataclass(frozen=True, kw_only=True)
class IncomingClip:
    """One clip of a file.

    Attributes
    ----------
    frames : (n,) int64, the frame number of each row that the file gives, from 1, ascending.
    taps : shape of one row of each.
    read : tap, first row, last row + 1 -> those rows; asked for in ascending order.
    clock : (T, 9) where the file holds one.
    """

    frames: NDArray[np.int64]
    taps: dict[str, tuple[int, ...]]
    read: Callable[[str, int, int], NDArray[Any]]
    frame_table: NDArray[np.float64] | None = None

    def length(self) -> int:
        """Return T, the highest frame."""
        return int(self.frames[-1]) if self.frame_table is None else len(self.frame_table)

    def check(self, name: str) -> None:
        """Refuse what makes no clip.

        Raises
        ------
        ClipError
            No rows, frames that are no numbering, values that no store can hold.
        """
        if not len(self.frames):
            raise ClipError("holds no frame", where=name)
        check_frames(self.frames, name)
        if not self.taps or FRAME_TABLE in self.taps or "" in self.taps:
            raise ClipError(f"its arrays are {', '.join(map(repr, self.taps)) or 'none'}", where=name,
                            hint=f"give each array a name other than {FRAME_TABLE!r}")
        for tap, shape in self.taps.items():
            check_shape(tap, shape, name)
        if self.frame_table is not None:
            check_clock(self.frame_table, self.frames, name)

    def on_clock(self, fps: float) -> NDArray[np.float64]:
        """Return the clock, ``(T, 9)``: the file's, else frames `fps` a second, valid where a row is given."""
        if self.frame_table is not None:
            return self.frame_table
        count = self.length()
        given = np.zeros(count, bool)
        given[self.frames - 1] = True
        blank = np.full((count, 4), np.nan)
        return np.column_stack([np.arange(1, count + 1), np.arange(count) / fps, given, blank,
                                np.full(count, np.nan), np.where(given, TRACK, NO_TRACK)]).astype(np.float64)

    def segments(self, start: int, name: str) -> Iterator[dict[str, NDArray[np.float16]]]:
        """Yield the features of segments from row `start` of the clock on; zeros where no row is given."""
        for first in range(start, self.length(), SEGMENT):
            stop = min(first + SEGMENT, self.length())
            low, high = np.searchsorted(self.frames, [first + 1, stop + 1])
            made = {tap: np.zeros((stop - first, *shape), np.float16) for tap, shape in self.taps.items()}
            for tap, rows in made.items():
                if high > low:
                    given = self.read(tap, int(low), int(high))
                    rows[self.frames[low:high] - 1 - first] = to_half(given, (int(high - low), *self.taps[tap]), tap,
                                                                      self.frames[low:high], name)
            yield made


@dataclass(frozen=True)
class ImportEntry:
    """A clip's name, and how to open it; opening may raise a ClipError."""

    name: str
    open: Callable[[], AbstractContextManager[IncomingClip]]


def check_frames(frames: NDArray[np.int64], name: str) -> None:
    """Refuse frame numbers that are not ascending from 1 on, or far beyond what is given."""
    first, last = int(frames[0]), int(frames[-1])
    steps = np.diff(frames)
    if first < 1:
        raise ClipError(f"has a frame {first}", where=name, hint="frames count from 1: add 1 to each")
    if (steps <= 0).any():
        at = int(frames[1:][steps <= 0][0])
        what = "twice" if (steps == 0).any() else "out of order"
        raise ClipError(f"has frame {at} {what}", where=name, hint="give each frame once, in ascending order")
    if last > LONGEST or last > max(SPARSE_FROM, SPARSEST * len(frames)):
        raise ClipError(f"has a frame {last}, but only {len(frames)} frames are given", where=name,
                        hint="check the frame numbers")


def check_shape(tap: str, shape: tuple[int, ...], name: str) -> None:
    """Refuse a shape of a row that no store takes."""
    if not shape or min(shape) < 1 or math.prod(shape) > WIDEST:
        raise ClipError(f"{tap!r} has rows of shape {shape}", where=name,
                        hint=f"rows hold 1 to {WIDEST} values each")


def check_clock(clock: NDArray[np.float64], frames: NDArray[np.int64], name: str) -> None:
    """Refuse a clock that does not count the frames."""
    if clock.ndim != 2 or clock.shape[1] != len(FRAME_COLUMNS) or len(clock) != len(frames):
        raise ClipError(f"a clock of shape {clock.shape} does not fit {len(frames)} frames", where=name)
    counted = np.arange(1, len(frames) + 1)
    if not (frames == counted).all() or not (clock[:, 0] == counted).all() or not np.isfinite(clock[:, 1]).all():
        raise ClipError("its clock does not count 1, 2, 3, ... or lacks times", where=name,
                        hint="leave the clock out, and give frame numbers alone")


def to_half(given: NDArray[Any], shape: tuple[int, ...], tap: str, frames: NDArray[np.int64],
            name: str) -> NDArray[np.float16]:
    """Return rows as float16.

    Raises
    ------
    ClipError
        They have another shape, are no numbers, NaN, infinite, or beyond what float16 can hold.
    """
    if given.shape != shape or given.dtype.kind not in "fiu":
        raise ClipError(f"{tap!r} gives {given.dtype} {given.shape}, not numbers {shape}", where=name)
    with np.errstate(over="ignore", invalid="ignore"):
        made = given.astype(np.float16)
    bad = ~np.isfinite(made).reshape(len(made), -1).all(axis=1)
    if bad.any():
        row = int(np.argmax(bad))
        why = "beyond 65504, the largest number of float16" if np.isfinite(given[row]).all() else "NaN or infinite"
        raise ClipError(f"{tap!r} has a value that is {why}, in frame {int(frames[row])}", where=name,
                        hint="scale the features" if "float16" in why else "leave frames without features out")
    return made


def numbers_of(keys: list[str], name: str) -> tuple[NDArray[np.int64], list[str]]:
    """Return frame numbers and keys such as ``00001`` or ``00001.jpg``, ascending."""
    found = []
    for key in keys:
        stem = key.partition(".")[0]
        if not (stem.isascii() and stem.isdigit() and len(stem) < 12):
            raise ClipError(f"has a frame called {key!r}", where=name, hint="frames are numbers: 00001, 00002, ...")
        found.append((int(stem), key))
    found.sort()
    return np.array([number for number, _ in found], np.int64), [key for _, key in found]


def ascending(given: NDArray[Any], name: str) -> NDArray[np.int64]:
    """Return frame numbers that a file gives as an array."""
    if given.ndim != 1 or given.dtype.kind not in "iuf" or (given.dtype.kind == "f" and (given % 1 != 0).any()):
        raise ClipError(f"its frame numbers are {given.dtype} {given.shape}, not a list of whole numbers", where=name)
    if len(given) and (given.min() < -2**53 or given.max() > 2**53):
        raise ClipError("its frame numbers are beyond all bounds", where=name)
    return given.astype(np.int64)


# npy and npz: headers are read and distrusted, data are streamed, and nothing is ever unpickled.

CLIPS = "__clips.json"
"""In a folder that `export` wrote: which clip lies in which file; written last. No clip's folder begins with ``__``."""
CLIP_NAME = "clip"
FRAME_KEYS = ("frames", "frame", "index")
TURNED = 1 << 30
"""Bytes of the largest array in column order, which has to be read at once."""
UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError,
              SyntaxError, KeyError, MemoryError, OverflowError)


@dataclass
class NpyStream:
    """An array in an open file, read row by row from the front."""

    file: IO[bytes]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    turned: bool
    at: int = 0
    whole: NDArray[Any] | None = None

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Return rows `start` to `stop`; never before rows that were read."""
        if self.turned and self.whole is None:
            self.whole = np.frombuffer(_exactly(self.file, math.prod(self.shape) * self.dtype.itemsize), self.dtype
                                       ).reshape(self.shape, order="F")
        if self.whole is not None:
            return self.whole[start:stop]
        size = math.prod(self.shape[1:]) * self.dtype.itemsize
        _exactly(self.file, (start - self.at) * size)
        data = _exactly(self.file, (stop - start) * size)
        self.at = stop
        if stop == self.shape[0] and self.file.read(1):
            raise ClipError("is longer than its header says")
        return np.frombuffer(data, self.dtype).reshape(stop - start, *self.shape[1:])


def header_of(file: IO[bytes]) -> NpyStream:
    """Return the array that begins here.

    Raises
    ------
    ClipError
        It is no npy, or holds Python objects.
    """
    version = npy.read_magic(file)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read is None:
        raise ClipError(f"is an npy of version {version}", hint="save plain arrays of numbers")
    shape, turned, dtype = read(file)
    if dtype.hasobject:
        raise ClipError("holds Python objects, which can run code when they are loaded, and is not read",
                        hint="save it again as an array of numbers: np.save(path, np.stack(rows).astype('float32'))")
    stream = NpyStream(file, shape, dtype, turned and len(shape) > 1)
    if stream.turned and math.prod(shape) * dtype.itemsize > TURNED:
        raise ClipError("is in column order and too large to be turned", hint="save np.ascontiguousarray of it")
    return stream


def small(stream: NpyStream, limit: int = 512 << 20) -> NDArray[Any]:
    """Return a whole array that is expected to be small."""
    if math.prod(stream.shape) * stream.dtype.itemsize > limit:
        raise ClipError(f"an array of {stream.shape} is too large for a clock or for frame numbers")
    return stream.rows(0, stream.shape[0]).copy() if stream.shape else np.frombuffer(
        _exactly(stream.file, stream.dtype.itemsize), stream.dtype)[0]


def incoming_of(open_: dict[str, Callable[[], NpyStream]], name: str) -> IncomingClip:
    """Return the clip of arrays of equal length; `open_` gives each of them from its front."""
    taps = {tap: make for tap, make in open_.items() if tap != FRAME_TABLE}
    clock = small(open_[FRAME_TABLE]()).astype(np.float64) if FRAME_TABLE in open_ else None
    frames = None
    for key in FRAME_KEYS if clock is None else ():
        if key in taps and len(taps) > 1:
            frames = ascending(small(taps.pop(key)()), name)
            break
    streams = {tap: make() for tap, make in taps.items()}
    shapes = {tap: stream.shape if len(stream.shape) > 1 else (*stream.shape, 1) for tap, stream in streams.items()}
    lengths = {shape[0] for shape in shapes.values()}
    if len(lengths) != 1 or (frames is not None and lengths != {len(frames)}):
        raise ClipError(f"its arrays have {sorted(lengths)} rows", where=name, hint="one row a frame in each of them")
    count = lengths.pop()
    frames = np.arange(1, count + 1, dtype=np.int64) if frames is None else frames

    def read(tap: str, start: int, stop: int) -> NDArray[Any]:
        return streams[tap].rows(start, stop).reshape(stop - start, *shapes[tap][1:])
    return IncomingClip(frames=frames, taps={tap: shape[1:] for tap, shape in shapes.items()}, read=read,
                        frame_table=clock)


def npz_entries(root: Path, paths: list[Path]) -> Iterator[ImportEntry]:
    """Yield the clips of npz files."""
    for path in paths:
        yield _named_entry(path, _stem(root, path), _npz)


def _named_entry(path: Path, name: str, opener: Callable[[Path, str, ExitStack], IncomingClip]) -> ImportEntry:
    metadata = _npz_name(path)
    chosen = name if metadata is None else metadata

    @contextmanager
    def opened() -> Iterator[IncomingClip]:
        with ExitStack() as held, file_errors(path):
            yield opener(path, chosen, held)
    return ImportEntry(chosen, opened)


def _npz_name(path: Path) -> str | None:
    """Return the clip's name that an exported file carries."""
    try:
        with zipfile.ZipFile(path) as file, file.open(CLIP_NAME + ".json") as member:
            name = json.loads(member.read(1 << 16))
    except (*UNREADABLE, RecursionError):
        return None
    return name if isinstance(name, str) else None


def _npz(path: Path, name: str, held: ExitStack) -> IncomingClip:
    file = held.enter_context(zipfile.ZipFile(path))
    members = [member for member in file.namelist() if member != CLIP_NAME + ".json"]
    if any(member.endswith(".pkl") for member in members):
        raise ClipError("holds a pickle, which can run code when it is loaded, and is not read",
                        hint="save arrays of numbers with np.savez")
    if not members or not all(member.endswith(".npy") for member in members) or len(set(members)) < len(members):
        raise ClipError(f"is no npz ({', '.join(members[:3]) or 'nothing'} in it)", hint="save it with np.savez")
    return incoming_of({_tap(file, member): lambda member=member: header_of(  # type: ignore[misc]
        held.enter_context(file.open(member))) for member in members}, name)


def _tap(file: zipfile.ZipFile, member: str) -> str:
    """Return the name of an array: the export's own in the member's comment, else that of the member."""
    comment = file.getinfo(member).comment
    return str(json.loads(comment)) if comment.startswith(b'"') else member.removesuffix(".npy")


def npy_entries(root: Path, paths: list[Path]) -> Iterator[ImportEntry]:
    """Yield the clips of npy files, one each."""
    for path in paths:
        @contextmanager
        def opened(path: Path = path) -> Iterator[IncomingClip]:
            with ExitStack() as held, file_errors(path):
                yield incoming_of({FEATURES: lambda: header_of(held.enter_context(path.open("rb")))}, _stem(root, path))
        yield ImportEntry(_stem(root, path), opened)


def exported_entries(root: Path) -> Iterator[ImportEntry]:
    """Yield the clips of a folder that `export --to npy` wrote.

    Raises
    ------
    InputError
        Its list of clips is none, or names files outside the folder.
    """
    metadata = atomic_io.read_json(root / CLIPS)
    try:
        clips = {str(folder): (str(one["clip"]), {str(k): str(v) for k, v in one["arrays"].items()})
                 for folder, one in metadata["clips"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError("is no list of exported clips", where=root / CLIPS, hint="export again") from error
    for folder, (name, arrays) in clips.items():
        inside = [folder, *arrays.values()]
        if any("/" in part or "\\" in part or part in ("", ".", "..") for part in inside):
            raise InputError(f"names a file outside the folder ({folder!r})", where=root / CLIPS,
                             hint="do not use this file")

        @contextmanager
        def opened(folder: str = folder, name: str = name, arrays: dict[str, str] = arrays) -> Iterator[IncomingClip]:
            with ExitStack() as held, file_errors(root / folder):
                yield incoming_of({tap: lambda file=file: header_of(  # type: ignore[misc]
                    held.enter_context((root / folder / file).open("rb"))) for tap, file in arrays.items()}, name)
        yield ImportEntry(name, opened)


@contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """Turn a library's error about a malformed file into a ClipError with the file's name."""
    try:
        yield
    except ClipError as error:
        raise ClipError(error.what, where=error.where or path, hint=error.hint) from error
    except UNREADABLE as error:
        raise ClipError(f"cannot be read ({type(error).__name__}: {str(error)[:200]})", where=path,
                        hint="the file is cut off, damaged, or of another kind") from error


def _stem(root: Path, path: Path) -> str:
    """Return the clip's name that a file's path says."""
    return path.stem if root == path else path.relative_to(root).with_suffix("").as_posix()


def _exactly(file: IO[bytes], size: int) -> bytes:
    """Return so many bytes; a file that declares more than it holds costs no more than it holds."""
    if size < 0:
        raise ClipError("is read backwards")
    parts = io.BytesIO()
    while size:
        part = file.read(min(size, 16 << 20))
        if not part:
            raise ClipError("is cut off")
        parts.write(part)
        size -= len(part)
    return parts.getvalue()


# HDF5: what `export` wrote, ``file[trial]['00001'] -> vector``, ``file[trial] -> (T, D)``; no link is followed.

OURS = "fercache"
"""The attribute that holds names as JSON: HDF5's own texts end at a zero byte."""
DEEPEST = 8


def hdf5_entries(path: Path) -> Iterator[ImportEntry]:
    """Yield the clips of a file.

    Raises
    ------
    InputError
        It is no HDF5 file, or is cut off.
    """
    try:
        with h5py.File(path, "r") as file:
            found = list(_find(file, "", 0, set()))
    except UNREADABLE as error:
        raise InputError(f"is no readable HDF5 file ({str(error)[:200]})", where=path,
                         hint="the file is cut off, damaged, or of another kind") from error
    for key, name in found:
        @contextmanager
        def opened(key: str = key, name: str = name) -> Iterator[IncomingClip]:
            with file_errors(path), h5py.File(path, "r") as file:
                yield _clip(file[key], name)
        yield ImportEntry(name, opened)


def _find(group: Any, key: str, depth: int, seen: set[Any]) -> Iterator[tuple[str, str]]:
    """Yield key and name of each clip: a group of datasets, or a dataset on its own with more than one axis."""
    address = h5py.h5o.get_info(group.id).addr
    if depth > DEEPEST or address in seen:
        return
    seen.add(address)
    held = dict(_hard(group))
    datasets = [name for name, item in held.items() if isinstance(item, h5py.Dataset)]
    if datasets and key:
        yield key, _name(group, key)
        return
    for name, item in held.items():
        inner = f"{key}/{name}" if key else name
        if isinstance(item, h5py.Dataset):
            yield inner, _name(item, inner)
        elif isinstance(item, h5py.Group):
            yield from _find(item, inner, depth + 1, seen)


def _hard(group: Any) -> Iterator[tuple[str, Any]]:
    """Yield what lies in a group itself; links into other places and other files are left out."""
    for name in group:
        if isinstance(group.get(name, getlink=True), h5py.HardLink):
            yield name, group[name]


def _name(item: Any, key: str) -> str:
    metadata = item.attrs.get(OURS)
    if isinstance(metadata, str):
        try:
            name = json.loads(metadata)["name"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return key
        return name if isinstance(name, str) else key
    return key


def _clip(item: Any, name: str) -> IncomingClip:
    if isinstance(item, h5py.Dataset):
        return _of_arrays({FEATURES: _safe(item, name)}, name)
    held = {key: _safe(one, name) for key, one in _hard(item) if isinstance(one, h5py.Dataset)}
    if OURS not in item.attrs and any(key.partition(".")[0].isdigit() for key in held):
        return _of_frames(held, name)
    return _of_arrays({_name(one, key): one for key, one in held.items()}, name)


def _safe(dataset: Any, name: str) -> Any:
    """Return a dataset whose numbers lie in this file.

    Raises
    ------
    ClipError
        They lie elsewhere, or are no numbers.
    """
    if dataset.external is not None or dataset.is_virtual:
        raise ClipError(f"{dataset.name!r} refers to another file, and is not read", where=name,
                        hint="copy the numbers into this file")
    if dataset.dtype.kind not in "fiu":
        raise ClipError(f"{dataset.name!r} holds {dataset.dtype}, not numbers", where=name,
                        hint="save arrays of numbers; Python objects are never loaded")
    if dataset.size and not dataset.id.get_storage_size():
        raise ClipError(f"{dataset.name!r} of shape {dataset.shape} was declared and never written", where=name)
    return dataset


def _of_frames(held: dict[str, Any], name: str) -> IncomingClip:
    """Return the clip of one dataset a frame."""
    frames, keys = numbers_of(list(held), name)
    shape = held[keys[0]].shape or (1,)
    for key in keys:
        if (held[key].shape or (1,)) != shape:
            raise ClipError(f"frame {key} has shape {held[key].shape}, frame {keys[0]} has {shape}", where=name)

    def read(_: str, start: int, stop: int) -> NDArray[Any]:
        return np.stack([np.reshape(held[key][()], shape) for key in keys[start:stop]])
    return IncomingClip(frames=frames, taps={FEATURES: shape}, read=read)


def _of_arrays(held: dict[str, Any], name: str) -> IncomingClip:
    """Return the clip of one dataset a tap, ``(T, ...)``."""
    clock = held.pop(FRAME_TABLE, None)
    frames = None
    for key in FRAME_KEYS if clock is None else ():
        if key in held and len(held) > 1:
            frames = ascending(np.asarray(_few(held.pop(key), name)), name)
            break
    lengths = {one.shape[:1] for one in held.values()}
    if len(lengths) != 1 or not next(iter(lengths)) or (frames is not None and lengths != {(len(frames),)}):
        raise ClipError(f"its arrays have {sorted(lengths)} rows", where=name, hint="one row a frame in each of them")
    count = lengths.pop()[0]
    frames = np.arange(1, count + 1, dtype=np.int64) if frames is None else frames

    def read(tap: str, start: int, stop: int) -> NDArray[Any]:
        return np.asarray(held[tap][start:stop]).reshape(stop - start, *(held[tap].shape[1:] or (1,)))
    return IncomingClip(frames=frames, taps={tap: one.shape[1:] or (1,) for tap, one in held.items()}, read=read,
                    frame_table=None if clock is None else np.asarray(_few(clock, name), np.float64))


def _few(dataset: Any, name: str) -> Any:
    if dataset.size > WIDEST * 256:
        raise ClipError(f"{dataset.name!r} of shape {dataset.shape} is too large for a clock", where=name)
    return dataset[()]


# Tables of one row a frame (CSV, parquet), read once from the front; a clip's rows wait in a temporary file.

ROWS = 1024
"""Rows that are turned into numbers at once."""
NOT_FEATURES = ("clip", "frame", *FRAME_COLUMNS, "valid", "label", "prediction", "split", "group", "subject", "fold")
"""Columns that are never taken for features: a label among them would be learnt from itself."""
LONGEST_FIELD = 1 << 16


@dataclass
class TablePiece:
    """Some rows of one clip, one after the other in the table."""

    clip: str
    frames: NDArray[np.int64]
    taps: dict[str, NDArray[Any]]
    frame_table: NDArray[np.float64] | None = None
    wrong: ClipError | None = None


@dataclass
class TableSpool:
    """The rows of one clip, as float16 in temporary files."""

    name: str
    held: ExitStack
    frames: list[NDArray[np.int64]] = field(default_factory=list)
    frame_table: list[NDArray[np.float64]] = field(default_factory=list)
    files: dict[str, IO[bytes]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def add(self, piece: TablePiece) -> None:
        """Take rows in."""
        if piece.wrong is not None:
            raise piece.wrong
        self.frames.append(piece.frames)
        if piece.frame_table is not None:
            self.frame_table.append(piece.frame_table)
        for tap, rows in piece.taps.items():
            if tap not in self.files:
                self.files[tap] = self.held.enter_context(TemporaryFile())  # noqa: SIM115 - the stack closes it
                self.shapes[tap] = rows.shape[1:]
            self.files[tap].write(to_half(rows, (len(rows), *self.shapes[tap]), tap, piece.frames, self.name).tobytes())

    def incoming(self) -> IncomingClip:
        """Return the clip."""
        return IncomingClip(frames=np.concatenate(self.frames), taps=self.shapes, read=self._rows,
                        frame_table=np.concatenate(self.frame_table) if self.frame_table else None)

    def _rows(self, tap: str, start: int, stop: int) -> NDArray[Any]:
        size = int(np.prod(self.shapes[tap])) * 2
        self.files[tap].seek(start * size)
        data = self.files[tap].read((stop - start) * size)
        return np.frombuffer(data, np.float16).reshape(stop - start, *self.shapes[tap])


def table_entries(pieces: Iterable[TablePiece]) -> Iterator[ImportEntry]:
    """Yield the clips of a table; each has to be opened before the next one is asked for."""
    for clip, rows in groupby(pieces, key=lambda piece: piece.clip):
        with ExitStack() as held:
            spool, wrong = TableSpool(clip, held), None
            for piece in rows:
                try:
                    if wrong is None:
                        spool.add(piece)
                except ClipError as error:
                    wrong = error

            @contextmanager
            def opened(spool: TableSpool = spool, wrong: ClipError | None = wrong) -> Iterator[IncomingClip]:
                if wrong is not None:
                    raise wrong
                yield spool.incoming()
            yield ImportEntry(clip, opened)


def csv_pieces(path: Path) -> Iterator[TablePiece]:
    """Yield the rows of a CSV table with columns clip, frame and one for each feature.

    Raises
    ------
    InputError
        It is no such table.
    """
    csv.field_size_limit(LONGEST_FIELD)
    _check_end(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.reader(file)
            header = next(table, [])
            columns = _columns(header, path)
            where = header.index("clip"), header.index("frame")
            for clip, rows in groupby(table, key=lambda row: row[where[0]] if len(row) == len(header) else None):
                while block := list(islice(rows, ROWS)):
                    yield _csv_piece(clip, block, where, columns, f"{path}, up to line {table.line_num}", len(header))
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"is no readable CSV table ({error})", where=path,
                         hint="save it as UTF-8, with commas") from error


def _check_end(path: Path) -> None:
    """Refuse a table whose last line may be cut: half a number reads as another number."""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 1, 0))
        if file.read(1) not in (b"\n", b"\r"):
            raise InputError("does not end with the end of a line", where=path,
                             hint="it may be cut off; if it is whole, add a line end")


def _columns(header: list[str], path: Path) -> list[int]:
    """Return the positions of the features."""
    if "clip" not in header or "frame" not in header or len(set(header)) < len(header):
        raise InputError(f"has columns {', '.join(header[:6]) or 'none'}", where=path,
                         hint="a table of features has columns clip, frame and one for each feature, all different")
    found = [i for i, name in enumerate(header) if name not in NOT_FEATURES]
    if not found or len(found) > WIDEST:
        raise InputError(f"has {len(found)} columns of features", where=path,
                         hint=f"one column for each feature, beside {', '.join(NOT_FEATURES[:4])}, ...")
    return found


def _csv_piece(clip: str | None, block: list[list[str]], where: tuple[int, int], columns: list[int], place: str,
               width: int) -> TablePiece:
    none = np.zeros(0, np.int64)
    if clip is None:
        name = block[0][where[0]] if len(block[0]) > where[0] else ""
        return TablePiece(name, none, {},
                          wrong=ClipError(f"has a row of {len(block[0])} fields, not {width}", where=place,
                                                     hint="the file may be cut off"))
    try:
        frames = np.array([int(row[where[1]].partition(".")[0]) for row in block], np.int64)
        values = np.array([[row[i] for i in columns] for row in block]).astype(np.float64)
    except (ValueError, OverflowError) as error:
        return TablePiece(clip, none, {}, wrong=ClipError(f"has something that is not a number ({str(error)[:120]})",
                                                     where=place, hint="leave frames without features out"))
    return TablePiece(clip, frames, {FEATURES: values})


def parquet_pieces(path: Path) -> Iterator[TablePiece]:
    """Yield the rows of a parquet table with columns clip, frame and features: numbers, or lists of one length.

    Raises
    ------
    InputError
        It is no such table.
    MissingExtra
        pyarrow is not installed.
    """
    pa = need_pyarrow()
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            taps = _parquet_taps(schema.names, schema.metadata or {}, path)
            for batch in file.iter_batches(ROWS):
                yield from _split(batch, taps, path)
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"is no readable parquet table ({str(error)[:200]})", where=path,
                         hint="the file is cut off, damaged, or of another kind") from error


def need_pyarrow() -> Any:
    """Return pyarrow.

    Raises
    ------
    MissingExtra
        It is not installed.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise MissingExtra("parquet needs pyarrow", hint="pip install 'fercache[parquet]'") from error
    return pyarrow


TAPS = b"fercache"
"""Key of the schema's metadata in which `export` says what its columns are."""


def _parquet_taps(names: list[str], metadata: dict[bytes, bytes], path: Path) -> dict[str, Any]:
    """Return how columns make taps: column -> tap and shape as the export says, or all columns -> one tap."""
    _columns(names, path)
    if TAPS in metadata:
        taps = json.loads(metadata[TAPS])["taps"]
        return {str(column): (str(one["tap"]), tuple(int(n) for n in one["shape"])) for column, one in taps.items()}
    return {name: (FEATURES, None) for name in names if name not in NOT_FEATURES}


def _split(batch: Any, taps: dict[str, Any], path: Path) -> Iterator[TablePiece]:
    """Yield a batch, cut where another clip begins."""
    clips = batch.column("clip").to_pylist()
    cuts = [0, *(i for i in range(1, len(clips)) if clips[i] != clips[i - 1]), len(clips)]
    for start, stop in pairwise(cuts):
        if stop > start:
            yield _parquet_piece(str(clips[start]), batch.slice(start, stop - start), taps, path)


def _parquet_piece(clip: str, part: Any, taps: dict[str, Any], path: Path) -> TablePiece:
    try:
        frames = ascending(part.column("frame").to_numpy(zero_copy_only=False), clip)
        arrays = {column: _cells(part.column(column), shape, clip) for column, (_, shape) in taps.items()}
    except ClipError as error:
        return TablePiece(clip, np.zeros(0, np.int64), {}, wrong=error)
    clock = None
    if set(FRAME_COLUMNS[1:]) <= set(part.schema.names) and TAPS in (part.schema.metadata or {}):
        clock = np.column_stack([frames,
                                 *(part.column(name).to_numpy(zero_copy_only=False) for name in FRAME_COLUMNS[1:])])
    if all(shape is None for _, shape in taps.values()) and all(rows.shape[1:] == (1,) for rows in arrays.values()):
        return TablePiece(clip, frames, {FEATURES: np.concatenate(list(arrays.values()), axis=1)}, clock)
    named = {column if shape is None else tap: rows for (column, rows), (tap, shape)
             in zip(arrays.items(), taps.values(), strict=True)}
    return TablePiece(clip, frames, named, clock)


def _cells(column: Any, shape: tuple[int, ...] | None, clip: str) -> NDArray[Any]:
    """Return a column as ``(n, ...)``."""
    if column.null_count:
        raise ClipError("has empty cells", where=clip, hint="leave frames without features out")
    flat = column.flatten() if hasattr(column, "flatten") and str(column.type).find("list") >= 0 else column
    values = flat.to_numpy(zero_copy_only=False)
    rows = len(column)
    if values.dtype.kind not in "fiu" or len(values) % max(rows, 1):
        raise ClipError(f"has a column of {column.type}", where=clip, hint="numbers, or lists of one length")
    if flat is not column and hasattr(column, "value_lengths"):
        lengths = set(column.value_lengths().to_pylist())
        if len(lengths) > 1:
            raise ClipError(f"has lists of {sorted(lengths)[:3]} values", where=clip, hint="lists of one length")
    made: NDArray[Any] = values.reshape(rows, *(shape or (-1,)))
    return made
