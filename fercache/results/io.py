"""Reads the file of predictions (`preds.csv`, `.csv.gz`, `.parquet`) a clip at a time, so that memory stays flat."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from fercache.data import parquet_part
from fercache.errors import InputError

COLUMNS = ("clip", "frame", "time_s", "valid", "label", "prediction")
SHARE = "p_"
ENDINGS = (".csv", ".csv.gz", ".parquet")
OFF_BY = 1e-3
"""Probabilities of a row may miss a sum of 1 by so much."""
POOLED = "a clip's class is that of the mean probability over its frames with a face (over all frames if it has none)"
ROWS_A_BATCH = 16_384
AGAIN = "the file is cut off or edited; write it again with `fercache stack`"


@dataclass(frozen=True, kw_only=True)
class Clip:
    """All rows of one clip, ascending by frame.

    Attributes
    ----------
    name : the trial's name.
    frame : (T,) int64, from 1; time_s : (T,) float64; valid : (T,) bool; label : (T,) int64, -1 unknown.
    said : (T,) int64, the predicted class; shares : (T, C) float64, probabilities.
    """

    name: str
    frame: NDArray[np.int64]
    time_s: NDArray[np.float64]
    valid: NDArray[np.bool_]
    label: NDArray[np.int64]
    said: NDArray[np.int64]
    shares: NDArray[np.float64]

    def pooled(self, shares: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the mean of ``(T, C)`` over the frames with a face, ``(C,)``; over all frames if there is none."""
        return np.asarray(shares[self.valid if self.valid.any() else slice(None)].mean(0))


def asked_for(clip: str, wanted: Container[str]) -> str:
    """Return which of the clips `wanted` a predicted one stands for: itself, or, of `CLIP#1`, its main person, CLIP."""
    return clip if clip in wanted else clip.removesuffix("#1")


class Predictions:
    """A file of predictions, open for reading once or often.

    Parameters
    ----------
    path : a file that `fercache stack` or `predict` wrote, or one with the same columns; more columns do no harm.

    Attributes
    ----------
    classes : class names, in the order of the columns ``p_<Class>``.

    Raises
    ------
    InputError
        There is no such file, it is no table, or columns are missing.
    MissingExtra
        A parquet file without pyarrow.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise InputError("no such predictions", where=path, hint="run `fercache stack --out preds.csv` first")
        if not path.name.endswith(ENDINGS):
            raise InputError("unknown kind of file", where=path, hint=f"predictions end in {', '.join(ENDINGS)}")
        header = next(self._rows(), [])
        missing = [name for name in COLUMNS if name not in header]
        shares = [name for name in header if name.startswith(SHARE)]
        if missing or len(shares) < 2 or len(set(header)) != len(header):
            what = f"columns {', '.join(missing)} are missing" if missing else "no two columns p_<Class>" if len(
                shares) < 2 else "a column stands there twice"
            raise InputError(f"no table of predictions: {what}", where=path,
                             hint="give a file that `fercache stack` wrote")
        self.classes = tuple(name[len(SHARE):] for name in shares)
        self._pick = itemgetter(*(header.index(name) for name in (*COLUMNS, *shares)))
        self._width = len(header)

    def clips(self) -> Iterator[Clip]:
        """Yield each clip with all its rows.

        Raises
        ------
        InputError
            A row is damaged, a clip stands in two places, or its frames do not ascend; says which line.
        """
        done: set[str] = set()
        rows = self._rows()
        next(rows)
        start = 2
        for name, found in groupby(self._whole(rows), key=itemgetter(0)):
            if name in done:
                raise InputError(f"line {start}: clip {name!r} stands in two places", where=self.path,
                                 hint="sort the rows by clip and frame")
            done.add(name)
            clip = self._clip(name, found, start)
            yield clip
            start += len(clip.frame)

    def lengths(self) -> dict[str, int]:
        """Return how many rows each clip has; nothing but the names is looked at."""
        rows = self._rows()
        clip = next(rows).index("clip")
        return dict(Counter(row[clip] for row in rows if len(row) > clip))

    def _whole(self, rows: Iterator[Sequence[str]]) -> Iterator[tuple[str, ...]]:
        """Yield the columns that are read, in order; refuse rows of another length."""
        for line, row in enumerate(rows, 2):
            if len(row) != self._width:
                raise InputError(f"line {line} has {len(row)} values for {self._width} columns", where=self.path,
                                 hint=AGAIN)
            yield cast("tuple[str, ...]", self._pick(row))

    def _clip(self, name: str, rows: Iterator[tuple[str, ...]], start: int) -> Clip:
        """Return one clip's rows as arrays; text becomes numbers a batch at a time, since it takes ten times the room.
        """
        try:
            parts = [_numbers(batch) for batch in iter(lambda: list(islice(rows, ROWS_A_BATCH)), [])]
        except ValueError as error:
            raise InputError(f"clip {name!r}, from line {start} on: {error}", where=self.path, hint=AGAIN) from error
        clip = Clip(name=name, **{key: np.concatenate([part[key] for part in parts]) for key in parts[0]})
        wrong = _wrong(clip, len(self.classes))
        if wrong:
            raise InputError(f"line {start + wrong[0]}: {wrong[1]}", where=self.path, hint=AGAIN)
        return clip

    def _rows(self) -> Iterator[Sequence[str]]:
        """Yield every row as text, the header first."""
        try:
            if self.path.name.endswith(".parquet"):
                yield from parquet_part.rows(self.path)
                return
            packed = self.path.name.endswith(".gz")
            with cast("IO[str]", gzip.open(self.path, "rt", encoding="utf-8", newline="")) if packed else (
                    self.path.open(encoding="utf-8", newline="")) as file:
                yield from csv.reader(file, strict=True)
        except (UnicodeDecodeError, EOFError, OSError, csv.Error, zlib.error) as error:
            raise InputError(f"not readable ({error})", where=self.path, hint=AGAIN) from error


def _numbers(rows: Sequence[tuple[str, ...]]) -> dict[str, Any]:
    """Return the fields of a `Clip` but its name, from rows of text."""
    columns = list(zip(*rows, strict=True))
    return {"frame": np.array(columns[1], np.int64), "time_s": np.array(columns[2], np.float64),
            "valid": np.array([value in ("1", "True", "true") for value in columns[3]]),
            "label": np.array([int(value or -1) for value in columns[4]]),
            "said": np.array(columns[5], np.int64), "shares": np.array(columns[6:], np.float64).T}


def _wrong(clip: Clip, classes: int) -> tuple[int, str] | None:
    """Return the first damaged row of a clip (from 0) and what is wrong with it; None where all are well."""
    apart = np.abs(clip.shares.sum(1) - 1)
    checks = ((np.diff(clip.frame, prepend=0) < 1, "its frame is not above the row before (frames count from 1)"),
              ((clip.said < 0) | (clip.said >= classes), f"its prediction is none of 0 to {classes - 1}"),
              ((clip.label < -1) | (clip.label >= classes), f"its label is none of 0 to {classes - 1}"),
              (~(apart <= OFF_BY) | (clip.shares < 0).any(1), "its probabilities do not sum to 1"))
    for wrong, what in checks:
        if wrong.any():
            return int(np.argmax(wrong)), what
    return None
