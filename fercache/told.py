"""The predictions of a run, read back clip by clip: one clip in memory at a time, however long the table is."""

from __future__ import annotations

import csv
import gzip
import hashlib
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from fercache.config import digest
from fercache.errors import InputError

ENDINGS = (".csv.gz", ".csv", ".parquet")
NEEDED = ("frame", "time_s", "valid", "label", "prediction")
NO_TABLE = "give a .csv or .csv.gz that `fercache stack` wrote"
BROKEN = (UnicodeDecodeError, EOFError, OSError, csv.Error, zlib.error)


@dataclass(frozen=True, kw_only=True)
class Told:
    """The rows of one clip in `preds.csv`.

    Attributes
    ----------
    time_s, valid : (T,); label : (T,) int, -1 unknown; said : (T,) int; shares : (T, C).
    """

    time_s: NDArray[np.float64]
    valid: NDArray[np.bool_]
    label: NDArray[np.int64]
    said: NDArray[np.int64]
    shares: NDArray[np.float64]

    def digest(self, more: Sequence[Any]) -> str:
        """Return the sha256 (hex) over all rows and over `more` (JSON values)."""
        rows = [hashlib.sha256(np.ascontiguousarray(column).data).hexdigest()
                for column in (self.time_s, self.valid, self.label, self.said, self.shares)]
        return digest([rows, list(more)])

    @property
    def wrong(self) -> NDArray[np.bool_]:
        """Which rows are annotated and told otherwise, ``(T,)``."""
        return np.asarray((self.label >= 0) & (self.label != self.said))


def metrics_path(preds: Path) -> Path:
    """Return where the metrics stand beside the predictions: ``preds.csv.gz`` -> ``preds.metrics.json``."""
    name = preds.name
    for ending in ENDINGS:
        name = name.removesuffix(ending)
    return preds.with_name(name + ".metrics.json")


def classes(preds: Path) -> tuple[str, ...]:
    """Return the class names of a table of predictions.

    Raises
    ------
    InputError
        `preds` is absent or no table of predictions.
    """
    with _opened(preds) as file:
        return _classes(_header(preds, file))


def each(preds: Path) -> Iterator[tuple[str, Told]]:
    """Yield each clip of a table with its rows.

    Raises
    ------
    InputError
        `preds` is absent or no table of predictions; a row is torn; the rows of a clip do not stand together.
    """
    with _opened(preds) as file:
        header = _header(preds, file)
        done: set[str] = set()
        try:
            for clip, rows in groupby(csv.reader(file), key=lambda row: row[0] if row else ""):
                if clip in done:
                    raise InputError(f"the rows of clip {clip!r} do not stand together", where=preds,
                                     hint="sort the table by clip and frame, as `fercache stack` writes it")
                done.add(clip)
                yield clip, _told(preds, clip, list(rows), header)
        except BROKEN as error:
            raise InputError(f"not readable ({error})", where=preds, hint=NO_TABLE) from error


def lengths(preds: Path) -> dict[str, int]:
    """Return how many rows each clip of a table has."""
    with _opened(preds) as file:
        _header(preds, file)
        try:
            return dict(Counter(row[0] for row in csv.reader(file) if row))
        except BROKEN as error:
            raise InputError(f"not readable ({error})", where=preds, hint=NO_TABLE) from error


def read(preds: Path) -> tuple[tuple[str, ...], dict[str, Told]]:
    """Return the classes, and the rows of each clip, of a table that fits into memory."""
    return classes(preds), dict(each(preds))


@contextmanager
def _opened(preds: Path) -> Iterator[TextIO]:
    if not preds.is_file():
        raise InputError("no such predictions", where=preds, hint="run `fercache stack --out preds.csv` first")
    with (gzip.open(preds, "rt", encoding="utf-8", newline="") if preds.suffix == ".gz"
          else preds.open(encoding="utf-8", newline="")) as file:
        yield file


def _header(preds: Path, file: TextIO) -> list[str]:
    """Return the column names of a table that holds what is needed, its clip first."""
    try:
        names = next(csv.reader(file), [])
    except BROKEN as error:
        raise InputError(f"not readable ({error})", where=preds, hint=NO_TABLE) from error
    if names[:1] != ["clip"] or not set(NEEDED) <= set(names) or not _classes(names):
        raise InputError("no table of predictions", where=preds, hint=NO_TABLE)
    return names


def _classes(header: Sequence[str]) -> tuple[str, ...]:
    return tuple(name[2:] for name in header if name.startswith("p_"))


def _told(preds: Path, clip: str, rows: Sequence[Sequence[str]], header: Sequence[str]) -> Told:
    """Return the rows of a clip; all cells but the first are numbers, an empty label is -1."""
    cells = [cell or "-1" for row in rows for cell in row[1:]]
    try:
        values = np.array(cells, dtype=np.float64).reshape(len(rows), len(header) - 1)
    except ValueError as error:
        raise InputError(f"clip {clip!r}: a row is torn or holds no number ({error})", where=preds,
                         hint="make the table again with `fercache stack`") from error
    column = dict(zip(header[1:], values.T, strict=True))
    return Told(time_s=column["time_s"], valid=column["valid"] == 1, label=column["label"].astype(np.int64),
                said=column["prediction"].astype(np.int64),
                shares=np.column_stack([column[f"p_{name}"] for name in _classes(header)]))
