"""npy and npz: headers are read and distrusted, data are streamed, and nothing is ever unpickled."""

from __future__ import annotations

import io
import json
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from fercache.errors import ClipError, InputError
from fercache.maintenance.import_formats import FEATURES, Entry, Incoming, ascending
from fercache.runtime import atomic_io
from fercache.store.layout import CLOCK_NAME

CLIPS = "__clips.json"
"""In a folder that `export` wrote: which clip lies in which file; written last. No clip's folder begins with ``__``."""
CLIP_NAME = "clip"
FRAME_KEYS = ("frames", "frame", "index")
TURNED = 1 << 30
"""Bytes of the largest array in column order, which has to be read at once."""
UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError,
              SyntaxError, KeyError, MemoryError, OverflowError)


@dataclass
class Stream:
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


def header_of(file: IO[bytes]) -> Stream:
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
    stream = Stream(file, shape, dtype, turned and len(shape) > 1)
    if stream.turned and math.prod(shape) * dtype.itemsize > TURNED:
        raise ClipError("is in column order and too large to be turned", hint="save np.ascontiguousarray of it")
    return stream


def small(stream: Stream, limit: int = 512 << 20) -> NDArray[Any]:
    """Return a whole array that is expected to be small."""
    if math.prod(stream.shape) * stream.dtype.itemsize > limit:
        raise ClipError(f"an array of {stream.shape} is too large for a clock or for frame numbers")
    return stream.rows(0, stream.shape[0]).copy() if stream.shape else np.frombuffer(
        _exactly(stream.file, stream.dtype.itemsize), stream.dtype)[0]


def incoming_of(open_: dict[str, Callable[[], Stream]], name: str) -> Incoming:
    """Return the clip of arrays of equal length; `open_` gives each of them from its front."""
    taps = {tap: make for tap, make in open_.items() if tap != CLOCK_NAME}
    clock = small(open_[CLOCK_NAME]()).astype(np.float64) if CLOCK_NAME in open_ else None
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
    return Incoming(frames=frames, taps={tap: shape[1:] for tap, shape in shapes.items()}, read=read, clock=clock)


def npz_entries(root: Path, paths: list[Path]) -> Iterator[Entry]:
    """Yield the clips of npz files."""
    for path in paths:
        yield _named_entry(path, _stem(root, path), _npz)


def _named_entry(path: Path, name: str, opener: Callable[[Path, str, ExitStack], Incoming]) -> Entry:
    said = _npz_name(path)
    chosen = name if said is None else said

    @contextmanager
    def opened() -> Iterator[Incoming]:
        with ExitStack() as held, telling(path):
            yield opener(path, chosen, held)
    return Entry(chosen, opened)


def _npz_name(path: Path) -> str | None:
    """Return the clip's name that an exported file carries."""
    try:
        with zipfile.ZipFile(path) as file, file.open(CLIP_NAME + ".json") as member:
            name = json.loads(member.read(1 << 16))
    except (*UNREADABLE, RecursionError):
        return None
    return name if isinstance(name, str) else None


def _npz(path: Path, name: str, held: ExitStack) -> Incoming:
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


def npy_entries(root: Path, paths: list[Path]) -> Iterator[Entry]:
    """Yield the clips of npy files, one each."""
    for path in paths:
        @contextmanager
        def opened(path: Path = path) -> Iterator[Incoming]:
            with ExitStack() as held, telling(path):
                yield incoming_of({FEATURES: lambda: header_of(held.enter_context(path.open("rb")))}, _stem(root, path))
        yield Entry(_stem(root, path), opened)


def exported_entries(root: Path) -> Iterator[Entry]:
    """Yield the clips of a folder that `export --to npy` wrote.

    Raises
    ------
    InputError
        Its list of clips is none, or names files outside the folder.
    """
    said = atomic_io.read_json(root / CLIPS)
    try:
        clips = {str(folder): (str(one["clip"]), {str(k): str(v) for k, v in one["arrays"].items()})
                 for folder, one in said["clips"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError("is no list of exported clips", where=root / CLIPS, hint="export again") from error
    for folder, (name, arrays) in clips.items():
        inside = [folder, *arrays.values()]
        if any("/" in part or "\\" in part or part in ("", ".", "..") for part in inside):
            raise InputError(f"names a file outside the folder ({folder!r})", where=root / CLIPS,
                             hint="do not use this file")

        @contextmanager
        def opened(folder: str = folder, name: str = name, arrays: dict[str, str] = arrays) -> Iterator[Incoming]:
            with ExitStack() as held, telling(root / folder):
                yield incoming_of({tap: lambda file=file: header_of(  # type: ignore[misc]
                    held.enter_context((root / folder / file).open("rb"))) for tap, file in arrays.items()}, name)
        yield Entry(name, opened)


@contextmanager
def telling(path: Path) -> Iterator[None]:
    """Turn what a library says of a malformed file into the error of one clip, with the file's name."""
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
