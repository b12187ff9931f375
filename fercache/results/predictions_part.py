"""The file of final predictions: a row a frame, as .csv, .csv.gz or .parquet by its ending."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fercache.errors import InputError, MissingExtra
from fercache.oof import LogitBook
from fercache.results import told_part
from fercache.runtime.atomic_io import replacing

FIXED = ("clip", "frame", "time_s", "valid", "label", "prediction")
ENDINGS = (".csv", ".csv.gz", ".parquet")


def columns(classes: Sequence[str]) -> list[str]:
    """Return the names of the columns."""
    return [*FIXED, *(f"p_{name}" for name in classes)]


def check(path: Path) -> str:
    """Return the ending that says how `path` is written.

    Raises
    ------
    InputError
        Another ending.
    MissingExtra
        A .parquet is asked for and pyarrow is not installed.
    """
    found = [ending for ending in ENDINGS if path.name.endswith(ending)]
    if not found:
        raise InputError("unknown kind of file", where=path, hint=f"end --out in {', '.join(ENDINGS)}")
    if found[0] == ".parquet":
        _pyarrow(path)
    return found[0]


def metrics_path(path: Path) -> Path:
    """Return where the metrics stand beside the predictions at `path`: ``preds.csv.gz`` -> ``preds.metrics.json``."""
    check(path)
    return told_part.metrics_path(path)


def write(book: LogitBook, units: NDArray[np.int32], path: Path) -> None:
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
    ending = check(path)
    with replacing(path) as temporary:
        if ending == ".parquet":
            _write_parquet(book, units, temporary)
        else:
            with temporary.open("wb") as file:
                _write_csv(book, units, file, packed=ending == ".csv.gz")


def _write_csv(book: LogitBook, units: NDArray[np.int32], file: BinaryIO, packed: bool) -> None:
    """Write text; packed text names no file and no time, so that the same predictions are the same bytes."""
    out: Any = gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=file, mtime=0) if packed else file
    out.write(_line(columns(book.classes)).encode())
    for text in _texts(book, units):
        out.write(text.encode())
    if packed:
        out.close()


def _texts(book: LogitBook, units: NDArray[np.int32]) -> Iterator[str]:
    """Yield the lines of each trial, in order of name."""
    tail = ",%d,%.6f,%d,%s,%d" + ",%.6f" * len(book.classes) + "\n"
    for trial in order(book):
        rows = book.rows(trial)
        label = ["" if value < 0 else value for value in book.label[rows].tolist()]
        said = units[rows]
        line = _line([book.trials[trial]])[:-1].replace("%", "%%") + tail
        table = zip(book.index[rows].tolist(), book.time_s[rows].tolist(), book.valid[rows].tolist(), label,
                    said.argmax(1).tolist(), *(said / 1e6).T.tolist(), strict=True)
        yield "".join([line % row for row in table])


def order(book: LogitBook) -> list[int]:
    """Return the positions of the trials in order of name."""
    return sorted(range(len(book.trials)), key=lambda i: book.trials[i])


def _line(fields: Sequence[str]) -> str:
    """Return one line of CSV, quoted where it must be."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(fields)
    return text.getvalue()


def _write_parquet(book: LogitBook, units: NDArray[np.int32], path: Path) -> None:
    pyarrow = _pyarrow(path)
    from pyarrow import parquet  # the extra: asked for a line above

    trials = order(book)
    rows = np.concatenate([np.arange(book.offsets[i], book.offsets[i + 1]) for i in trials])
    names = np.repeat([book.trials[i] for i in trials], np.diff(book.offsets)[trials])
    label = book.label[rows]
    said = {"clip": names, "frame": book.index[rows], "time_s": book.time_s[rows], "valid": book.valid[rows],
            "label": pyarrow.array(label, mask=label < 0), "prediction": units[rows].argmax(1).astype(np.int16)}
    shares = {f"p_{name}": units[rows, c] / 1e6 for c, name in enumerate(book.classes)}
    parquet.write_table(pyarrow.table({**said, **shares}), path)


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise MissingExtra("parquet files need pyarrow", where=path,
                           hint="pip install 'fercache[parquet]', or end --out in .csv or .csv.gz") from error
    return pyarrow
