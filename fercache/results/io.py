"""Reads the file of predictions (`preds.csv`, `.csv.gz`, `.parquet`) a clip at a time, so that memory stays flat."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import re
import zlib
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from fercache.config import fingerprint_of
from fercache.data import tables
from fercache.errors import InputError, MissingExtra
from fercache.oof import OofLogits
from fercache.runtime.atomic_io import replacing

COLUMNS = ("clip", "frame", "time_s", "valid", "label", "prediction")
PROBABILITY = "p_"
READ_ENDINGS = (".csv", ".csv.gz", ".parquet")
OFF_BY = 1e-3
"""Probabilities of a row may miss a sum of 1 by so much."""
POOLED = "a clip's class is that of the mean probability over its frames with a face (over all frames if it has none)"
ROWS_A_BATCH = 16_384
AGAIN = "the file is cut off or edited; write it again with `fercache stack`"


@dataclass(frozen=True, kw_only=True)
class ClipPredictions:
    """All rows of one clip, ascending by frame.

    Attributes
    ----------
    name : the trial's name.
    frame : (T,) int64, from 1; time_s : (T,) float64; valid : (T,) bool; label : (T,) int64, -1 unknown.
    label_pred : (T,) int64, the predicted class; probs : (T, C) float64, probabilities.
    """

    name: str
    frame: NDArray[np.int64]
    time_s: NDArray[np.float64]
    valid: NDArray[np.bool_]
    label: NDArray[np.int64]
    label_pred: NDArray[np.int64]
    probs: NDArray[np.float64]

    def pooled(self, probs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the mean of ``(T, C)`` over the frames with a face, ``(C,)``; over all frames if there is none."""
        return np.asarray(probs[self.valid if self.valid.any() else slice(None)].mean(0))


def open_predictions(clip: str, wanted: Container[str]) -> str:
    """Return which of the clips `wanted` a predicted one stands for: itself, or, of `CLIP#1`, its main person, CLIP."""
    return clip if clip in wanted else clip.removesuffix("#1")


class PredictionsFile:
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
        if not path.name.endswith(READ_ENDINGS):
            raise InputError("unknown kind of file", where=path, hint=f"predictions end in {', '.join(READ_ENDINGS)}")
        header = next(self._rows(), [])
        missing = [name for name in COLUMNS if name not in header]
        probs = [name for name in header if name.startswith(PROBABILITY)]
        if missing or len(probs) < 2 or len(set(header)) != len(header):
            what = f"columns {', '.join(missing)} are missing" if missing else "no two columns p_<Class>" if len(
                probs) < 2 else "a column appears twice"
            raise InputError(f"no table of predictions: {what}", where=path,
                             hint="give a file that `fercache stack` wrote")
        self.classes = tuple(name[len(PROBABILITY):] for name in probs)
        self._pick = itemgetter(*(header.index(name) for name in (*COLUMNS, *probs)))
        self._width = len(header)

    def clips(self) -> Iterator[ClipPredictions]:
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

    def _clip(self, name: str, rows: Iterator[tuple[str, ...]], start: int) -> ClipPredictions:
        """Return one clip's rows as arrays; text becomes numbers a batch at a time, since it takes ten times the room.
        """
        try:
            parts = [_numbers(batch) for batch in iter(lambda: list(islice(rows, ROWS_A_BATCH)), [])]
        except ValueError as error:
            raise InputError(f"clip {name!r}, from line {start} on: {error}", where=self.path, hint=AGAIN) from error
        clip = ClipPredictions(name=name, **{key: np.concatenate([part[key] for part in parts]) for key in parts[0]})
        wrong = _wrong(clip, len(self.classes))
        if wrong:
            raise InputError(f"line {start + wrong[0]}: {wrong[1]}", where=self.path, hint=AGAIN)
        return clip

    def _rows(self) -> Iterator[Sequence[str]]:
        """Yield every row as text, the header first."""
        try:
            if self.path.name.endswith(".parquet"):
                yield from tables.table_rows(self.path)
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
            "label_pred": np.array(columns[5], np.int64), "probs": np.array(columns[6:], np.float64).T}


def _wrong(clip: ClipPredictions, classes: int) -> tuple[int, str] | None:
    """Return the first damaged row of a clip (from 0) and what is wrong with it; None where all are well."""
    apart = np.abs(clip.probs.sum(1) - 1)
    checks = ((np.diff(clip.frame, prepend=0) < 1, "its frame is not above the row before (frames count from 1)"),
              ((clip.label_pred < 0) | (clip.label_pred >= classes), f"its prediction is none of 0 to {classes - 1}"),
              ((clip.label < -1) | (clip.label >= classes), f"its label is none of 0 to {classes - 1}"),
              (~(apart <= OFF_BY) | (clip.probs < 0).any(1), "its probabilities do not sum to 1"))
    for wrong, what in checks:
        if wrong.any():
            return int(np.argmax(wrong)), what
    return None


# What was told of each clip, as those who draw want it; `preds` reads it, one clip in memory at a time.

@dataclass(frozen=True, kw_only=True)
class ClipSeries:
    """The rows of one clip in `preds.csv`.

    Attributes
    ----------
    time_s, valid : (T,); label : (T,) int, -1 unknown; label_pred : (T,) int; probs : (T, C).
    """

    time_s: NDArray[np.float64]
    valid: NDArray[np.bool_]
    label: NDArray[np.int64]
    label_pred: NDArray[np.int64]
    probs: NDArray[np.float64]

    def digest(self, more: Sequence[Any]) -> str:
        """Return the sha256 (hex) over all rows and over `more` (JSON values)."""
        rows = [hashlib.sha256(np.ascontiguousarray(column).data).hexdigest()
                for column in (self.time_s, self.valid, self.label, self.label_pred, self.probs)]
        return fingerprint_of([rows, list(more)])

    @property
    def wrong(self) -> NDArray[np.bool_]:
        """Which rows are annotated and told otherwise, ``(T,)``."""
        return np.asarray((self.label >= 0) & (self.label != self.label_pred))


def metrics_file(preds: Path) -> Path:
    """Return where the metrics stand beside the predictions: ``preds.csv.gz`` -> ``preds.metrics.json``."""
    ending = next((ending for ending in READ_ENDINGS if preds.name.endswith(ending)), "")
    return preds.with_name(preds.name.removesuffix(ending) + ".metrics.json")


LONGEST_NAME = 220
"""Bytes of a clip's name in a file's name: digest and ending come behind it, and file systems end at 255."""


def file_name(clip: str, ending: str) -> str:
    """Return a file name for something drawn of a clip: its name where that is plain, else with a digest, so that no
    two meet."""
    plain = re.sub(r"[^\w.-]", "_", clip)[:150]
    plain = plain.encode()[:LONGEST_NAME].decode(errors="ignore")  # 150 letters may be 600 bytes
    return f"{plain}{ending}" if plain == clip else f"{plain}-{fingerprint_of(clip)[:8]}{ending}"


def classes(preds: Path) -> tuple[str, ...]:
    """Return the class names of a table of predictions.

    Raises
    ------
    InputError
        `preds` is absent or no table of predictions.
    """
    return PredictionsFile(preds).classes


def each_clip(preds: Path) -> Iterator[tuple[str, ClipSeries]]:
    """Yield each clip of a table with its rows.

    Raises
    ------
    InputError
        `preds` is absent or no table of predictions; a row is damaged; the rows of a clip do not stand together.
    """
    for clip in PredictionsFile(preds).clips():
        yield clip.name, ClipSeries(time_s=clip.time_s, valid=clip.valid, label=clip.label, label_pred=clip.label_pred,
                              probs=clip.probs)


def read_clips(preds: Path) -> tuple[tuple[str, ...], dict[str, ClipSeries]]:
    """Return the classes, and the rows of each clip, of a table that fits into memory."""
    return classes(preds), dict(each_clip(preds))


# The file of final predictions: a row a frame, as .csv, .csv.gz or .parquet by its ending.

FIXED = ("clip", "frame", "time_s", "valid", "label", "prediction")
WRITE_ENDINGS = (".csv", ".csv.gz", ".parquet")


def prediction_columns(classes: Sequence[str]) -> list[str]:
    """Return the names of the columns."""
    return [*FIXED, *(f"p_{name}" for name in classes)]


def check_ending(path: Path) -> str:
    """Return the ending that says how `path` is written.

    Raises
    ------
    InputError
        Another ending.
    MissingExtra
        A .parquet is asked for and pyarrow is not installed.
    """
    found = [ending for ending in WRITE_ENDINGS if path.name.endswith(ending)]
    if not found:
        raise InputError("unknown kind of file", where=path, hint=f"end --out in {', '.join(WRITE_ENDINGS)}")
    if found[0] == ".parquet":
        _pyarrow(path)
    return found[0]


def metrics_path(path: Path) -> Path:
    """Return where the metrics stand beside the predictions at `path`: ``preds.csv.gz`` -> ``preds.metrics.json``."""
    check_ending(path)
    return metrics_file(path)


def write_predictions(book: OofLogits, units: NDArray[np.int32], path: Path) -> None:
    """Put the predictions at `path`, whole or not at all.

    Parameters
    ----------
    units : (R, C) probabilities in millionths.

    Raises
    ------
    InputError
        The ending is unknown, or nothing can be written there.
    MissingExtra
        A .parquet is asked for and pyarrow is not installed.
    """
    ending = check_ending(path)
    with replacing(path) as temporary:
        if ending == ".parquet":
            _write_parquet(book, units, temporary)
        else:
            with temporary.open("wb") as file:
                _write_csv(book, units, file, packed=ending == ".csv.gz")


def _write_csv(book: OofLogits, units: NDArray[np.int32], file: BinaryIO, packed: bool) -> None:
    """Write text; packed text names no file and no time, so that the same predictions are the same bytes."""
    out: Any = gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=file, mtime=0) if packed else file
    out.write(_line(prediction_columns(book.classes)).encode())
    for text in _texts(book, units):
        out.write(text.encode())
    if packed:
        out.close()


def _texts(book: OofLogits, units: NDArray[np.int32]) -> Iterator[str]:
    """Yield the lines of each trial, in order of name."""
    tail = ",%d,%.6f,%d,%s,%d" + ",%.6f" * len(book.classes) + "\n"
    for trial in order(book):
        rows = book.rows(trial)
        label = ["" if value < 0 else value for value in book.label[rows].tolist()]
        ppm = units[rows]
        line = _line([book.trials[trial]])[:-1].replace("%", "%%") + tail
        table = zip(book.index[rows].tolist(), book.time_s[rows].tolist(), book.valid[rows].tolist(), label,
                    ppm.argmax(1).tolist(), *(ppm / 1e6).T.tolist(), strict=True)
        yield "".join([line % row for row in table])


def order(book: OofLogits) -> list[int]:
    """Return the positions of the trials in order of name."""
    return sorted(range(len(book.trials)), key=lambda i: book.trials[i])


def _line(fields: Sequence[str]) -> str:
    """Return one line of CSV, quoted where it must be."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(fields)
    return text.getvalue()


def _write_parquet(book: OofLogits, units: NDArray[np.int32], path: Path) -> None:
    pyarrow = _pyarrow(path)
    from pyarrow import parquet  # the extra: asked for a line above

    trials = order(book)
    rows = np.concatenate([np.arange(book.offsets[i], book.offsets[i + 1]) for i in trials])
    names = np.repeat([book.trials[i] for i in trials], np.diff(book.offsets)[trials])
    label = book.label[rows]
    columns = {"clip": names, "frame": book.index[rows], "time_s": book.time_s[rows], "valid": book.valid[rows],
            "label": pyarrow.array(label, mask=label < 0), "prediction": units[rows].argmax(1).astype(np.int16)}
    probs = {f"p_{name}": units[rows, c] / 1e6 for c, name in enumerate(book.classes)}
    parquet.write_table(pyarrow.table({**columns, **probs}), path)


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise MissingExtra("parquet files need pyarrow", where=path,
                           hint="pip install 'fercache[parquet]', or end --out in .csv or .csv.gz") from error
    return pyarrow
