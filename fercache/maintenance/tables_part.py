"""Tables of one row a frame (CSV, parquet), read once from the front; a clip's rows wait in a temporary file."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import groupby, islice, pairwise
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from fercache.errors import ClipError, InputError, MissingExtra
from fercache.maintenance.import_formats import FEATURES, WIDEST, Entry, Incoming, ascending, to_half
from fercache.store.layout import CLOCK

ROWS = 1024
"""Rows that are turned into numbers at once."""
NOT_FEATURES = ("clip", "frame", *CLOCK, "valid", "label", "prediction", "split", "group", "subject", "fold")
"""Columns that are never taken for features: a label among them would be learnt from itself."""
LONGEST_FIELD = 1 << 16


@dataclass
class Piece:
    """Some rows of one clip, one after the other in the table."""

    clip: str
    frames: NDArray[np.int64]
    taps: dict[str, NDArray[Any]]
    clock: NDArray[np.float64] | None = None
    wrong: ClipError | None = None


@dataclass
class Spool:
    """The rows of one clip, as float16 in temporary files."""

    name: str
    held: ExitStack
    frames: list[NDArray[np.int64]] = field(default_factory=list)
    clock: list[NDArray[np.float64]] = field(default_factory=list)
    files: dict[str, IO[bytes]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def add(self, piece: Piece) -> None:
        """Take rows in."""
        if piece.wrong is not None:
            raise piece.wrong
        self.frames.append(piece.frames)
        if piece.clock is not None:
            self.clock.append(piece.clock)
        for tap, rows in piece.taps.items():
            if tap not in self.files:
                self.files[tap] = self.held.enter_context(TemporaryFile())  # noqa: SIM115 - the stack closes it
                self.shapes[tap] = rows.shape[1:]
            self.files[tap].write(to_half(rows, (len(rows), *self.shapes[tap]), tap, piece.frames, self.name).tobytes())

    def incoming(self) -> Incoming:
        """Return the clip."""
        return Incoming(frames=np.concatenate(self.frames), taps=self.shapes, read=self._rows,
                        clock=np.concatenate(self.clock) if self.clock else None)

    def _rows(self, tap: str, start: int, stop: int) -> NDArray[Any]:
        size = int(np.prod(self.shapes[tap])) * 2
        self.files[tap].seek(start * size)
        data = self.files[tap].read((stop - start) * size)
        return np.frombuffer(data, np.float16).reshape(stop - start, *self.shapes[tap])


def entries(pieces: Iterable[Piece]) -> Iterator[Entry]:
    """Yield the clips of a table; each has to be opened before the next one is asked for."""
    for clip, rows in groupby(pieces, key=lambda piece: piece.clip):
        with ExitStack() as held:
            spool, wrong = Spool(clip, held), None
            for piece in rows:
                try:
                    if wrong is None:
                        spool.add(piece)
                except ClipError as error:
                    wrong = error

            @contextmanager
            def opened(spool: Spool = spool, wrong: ClipError | None = wrong) -> Iterator[Incoming]:
                if wrong is not None:
                    raise wrong
                yield spool.incoming()
            yield Entry(clip, opened)


def csv_pieces(path: Path) -> Iterator[Piece]:
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
               width: int) -> Piece:
    none = np.zeros(0, np.int64)
    if clip is None:
        name = block[0][where[0]] if len(block[0]) > where[0] else ""
        return Piece(name, none, {}, wrong=ClipError(f"has a row of {len(block[0])} fields, not {width}", where=place,
                                                     hint="the file may be cut off"))
    try:
        frames = np.array([int(row[where[1]].partition(".")[0]) for row in block], np.int64)
        values = np.array([[row[i] for i in columns] for row in block]).astype(np.float64)
    except (ValueError, OverflowError) as error:
        return Piece(clip, none, {}, wrong=ClipError(f"has something that is no number ({str(error)[:120]})",
                                                     where=place, hint="leave frames without features out"))
    return Piece(clip, frames, {FEATURES: values})


def parquet_pieces(path: Path) -> Iterator[Piece]:
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
        said = json.loads(metadata[TAPS])["taps"]
        return {str(column): (str(one["tap"]), tuple(int(n) for n in one["shape"])) for column, one in said.items()}
    return {name: (FEATURES, None) for name in names if name not in NOT_FEATURES}


def _split(batch: Any, taps: dict[str, Any], path: Path) -> Iterator[Piece]:
    """Yield a batch, cut where another clip begins."""
    clips = batch.column("clip").to_pylist()
    cuts = [0, *(i for i in range(1, len(clips)) if clips[i] != clips[i - 1]), len(clips)]
    for start, stop in pairwise(cuts):
        if stop > start:
            yield _parquet_piece(str(clips[start]), batch.slice(start, stop - start), taps, path)


def _parquet_piece(clip: str, part: Any, taps: dict[str, Any], path: Path) -> Piece:
    try:
        frames = ascending(part.column("frame").to_numpy(zero_copy_only=False), clip)
        arrays = {column: _cells(part.column(column), shape, clip) for column, (_, shape) in taps.items()}
    except ClipError as error:
        return Piece(clip, np.zeros(0, np.int64), {}, wrong=error)
    clock = None
    if set(CLOCK[1:]) <= set(part.schema.names) and TAPS in (part.schema.metadata or {}):
        clock = np.column_stack([frames, *(part.column(name).to_numpy(zero_copy_only=False) for name in CLOCK[1:])])
    if all(shape is None for _, shape in taps.values()) and all(rows.shape[1:] == (1,) for rows in arrays.values()):
        return Piece(clip, frames, {FEATURES: np.concatenate(list(arrays.values()), axis=1)}, clock)
    named = {column if shape is None else tap: rows for (column, rows), (tap, shape)
             in zip(arrays.items(), taps.values(), strict=True)}
    return Piece(clip, frames, named, clock)


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
