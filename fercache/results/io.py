"""Prediction tables (`.csv`, `.csv.gz`, `.parquet`, one row per frame): reading and writing.

`PredictionsFile` reads one clip at a time, so memory stays flat. `write_predictions` writes what a stack predicts.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import re
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from fercache.config import fingerprint_of
from fercache.data import tables
from fercache.errors import InputError
from fercache.oof import OofLogits
from fercache.runtime.atomic_io import replacing

COLUMNS = ("clip", "frame", "time_s", "valid", "label", "prediction")
PROB_PREFIX = "p_"
ENDINGS = (".csv", ".csv.gz", ".parquet")  # file formats, for reading and for writing
SUM_TOLERANCE = 1e-3  # the probabilities of a row sum to 1 within this
POOLED = "a clip's class is that of the mean probability over its frames with a face (over all frames if it has none)"
REWRITE_HINT = "the file is cut off or edited; write it again with `fercache stack`"


@dataclass(frozen=True, kw_only=True)
class ClipPredictions:
    """All rows of one clip in `preds.csv`, ascending by frame."""

    name: str  # the trial's name
    frame: NDArray[np.int64]  # (T,), from 1
    time_s: NDArray[np.float64]  # (T,)
    valid: NDArray[np.bool_]  # (T,)
    label: NDArray[np.int64]  # (T,), -1 unknown
    label_pred: NDArray[np.int64]  # (T,), the predicted class
    probs: NDArray[np.float64]  # (T, C), probabilities

    def digest(self, more: Sequence[Any]) -> str:
        """Return the sha256 (hex) over all rows and over `more` (JSON values)."""
        rows = [hashlib.sha256(np.ascontiguousarray(column).data).hexdigest()
                for column in (self.time_s, self.valid, self.label, self.label_pred, self.probs)]
        return fingerprint_of([rows, list(more)])

    @property
    def wrong(self) -> NDArray[np.bool_]:
        """The annotated rows whose predicted class differs from the label, ``(T,)``."""
        return np.asarray((self.label >= 0) & (self.label != self.label_pred))

    def pooled(self, probs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the mean of ``(T, C)`` over the frames with a face, ``(C,)``; over all frames if there is none."""
        return np.asarray(probs[self.valid if self.valid.any() else slice(None)].mean(0))


def match_clip(clip: str, names: Container[str]) -> str:
    """Return the entry of `names` that a predicted clip belongs to: its own name, or CLIP for main person `CLIP#1`."""
    return clip if clip in names else clip.removesuffix("#1")


class PredictionsFile:
    """Reads a prediction table; `classes` are in the order of its columns ``p_<Class>``.

    `path`: a table that `fercache stack` or `predict` wrote, or one with the same columns; further columns are ignored.
    Raises InputError if the file is absent, not a table, or lacks columns.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise InputError("predictions not found", where=path, hint="run `fercache stack --out preds.csv` first")
        if not path.name.endswith(ENDINGS):
            raise InputError("unknown file format", where=path, hint=f"predictions end in {', '.join(ENDINGS)}")
        header = tables.read_header(path)
        missing = [name for name in COLUMNS if name not in header]
        probs = [name for name in header if name.startswith(PROB_PREFIX)]
        if missing or len(probs) < 2 or len(set(header)) != len(header):
            what = (f"columns {', '.join(missing)} are missing" if missing
                    else "fewer than two columns p_<Class>" if len(probs) < 2 else "duplicate column")
            raise InputError(f"not a prediction table: {what}", where=path,
                             hint="use a file that `fercache stack` wrote")
        self.classes = tuple(name[len(PROB_PREFIX):] for name in probs)

    def clips(self) -> Iterator[ClipPredictions]:
        """Yield each clip with all its rows.

        Raises InputError if a row is damaged, the rows of a clip are not adjacent, or its frames do not ascend.
        """
        done: set[str] = set()
        columns = [*COLUMNS, *(PROB_PREFIX + name for name in self.classes)]
        # A second run of rows under one name would be read as another clip and silently replace the first.
        for name, pieces in groupby(tables.read_pieces(self.path, columns), key=itemgetter(0)):
            start = 0
            parts: list[dict[str, Any]] = []
            for _, line, batch in pieces:
                start = start or line
                try:
                    parts.append(_parse(batch, self.classes))
                except ValueError as error:
                    raise InputError(f"clip {name!r}, from line {line} on: {error}", where=self.path,
                                     hint=REWRITE_HINT) from error
            if name in done:
                raise InputError(f"line {start}: clip {name!r} is in two places", where=self.path,
                                 hint="sort the rows by clip and frame")
            done.add(name)
            clip = ClipPredictions(name=name, **{key: np.concatenate([part[key] for part in parts])
                                                 for key in parts[0]})
            problem = _first_problem(clip, len(self.classes))
            if problem:
                raise InputError(f"line {start + problem[0]}: {problem[1]}", where=self.path, hint=REWRITE_HINT)
            yield clip

    def lengths(self) -> dict[str, int]:
        """Return the number of rows of each clip. Only the clip column is read."""
        counts = Counter[str]()
        for name, _, piece in tables.read_pieces(self.path, ["clip"]):
            counts[name] += len(piece)
        return dict(counts)


def _parse(batch: Any, classes: Sequence[str]) -> dict[str, Any]:
    """Return the fields of `ClipPredictions`, except the name, from rows of a table."""
    # `valid` is 0 or 1 in a CSV and boolean in parquet; an empty label means that nobody annotated the frame.
    valid = tables.to_text(batch.column("valid"))
    return {"frame": tables.to_ints(batch.column("frame")), "time_s": tables.to_floats(batch.column("time_s")),
            "valid": np.array([value in ("1", "True", "true") for value in valid], bool),
            "label": tables.to_ints(batch.column("label"), missing=-1),
            "label_pred": tables.to_ints(batch.column("prediction")),
            "probs": np.column_stack([tables.to_floats(batch.column(PROB_PREFIX + name)) for name in classes])}


def _first_problem(clip: ClipPredictions, classes: int) -> tuple[int, str] | None:
    """Return the first damaged row of a clip (from 0) and its problem; None if all rows are valid."""
    deviation = np.abs(clip.probs.sum(1) - 1)  # NaN for a NaN, hence the negated comparison below
    checks = ((np.diff(clip.frame, prepend=0) < 1, "its frame is not above the row before (frames count from 1)"),
              ((clip.label_pred < 0) | (clip.label_pred >= classes), f"its prediction is not in 0 to {classes - 1}"),
              ((clip.label < -1) | (clip.label >= classes), f"its label is not in 0 to {classes - 1}"),
              (~(deviation <= SUM_TOLERANCE) | (clip.probs < 0).any(1), "its probabilities do not sum to 1"))
    for rows, problem in checks:
        if rows.any():
            return int(np.argmax(rows)), problem
    return None


def metrics_path(preds: Path) -> Path:
    """Return the path of the metrics of a prediction table: ``preds.csv.gz`` -> ``preds.metrics.json``."""
    ending = next((ending for ending in ENDINGS if preds.name.endswith(ending)), "")
    return preds.with_name(preds.name.removesuffix(ending) + ".metrics.json")


# Bytes of a clip's name in a file name: digest and ending follow, and file systems allow 255 in all.
LONGEST_NAME = 220


def file_name(clip: str, ending: str) -> str:
    """Return the file name of a clip's picture or video; a digest keeps names unique where characters were replaced."""
    plain = re.sub(r"[^\w.-]", "_", clip)[:150]
    plain = plain.encode()[:LONGEST_NAME].decode(errors="ignore")  # 150 letters may be 600 bytes
    return f"{plain}{ending}" if plain == clip else f"{plain}-{fingerprint_of(clip)[:8]}{ending}"


def write_predictions(oof: OofLogits, ppm: NDArray[np.int32], path: Path) -> None:
    """Write the predictions to `path`, atomically; the ending of the name selects the format.

    `ppm`: (R, C) probabilities in parts per million. Raises InputError if the ending is unknown, or `path` cannot be
    written.
    """
    ending = next((ending for ending in ENDINGS if path.name.endswith(ending)), None)
    if ending is None:
        raise InputError("unknown file format", where=path, hint=f"end --out in {', '.join(ENDINGS)}")
    with replacing(path) as temporary:  # atomic: a reader never meets half a table
        if ending == ".parquet":
            parquet.write_table(to_arrow(oof, ppm), temporary)
        else:
            with temporary.open("wb") as file:
                _write_csv(oof, ppm, file, compress=ending == ".csv.gz")


def _write_csv(oof: OofLogits, ppm: NDArray[np.int32], file: BinaryIO, compress: bool) -> None:
    # Without a file name and a time in gzip's header, equal predictions give equal bytes.
    out: Any = gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=file, mtime=0) if compress else file
    out.write(_line([*COLUMNS, *(f"{PROB_PREFIX}{name}" for name in oof.classes)]).encode())
    row_format = ",%d,%.6f,%d,%s,%d" + ",%.6f" * len(oof.classes) + "\n"
    # pyarrow writes the shortest digits of a float and quotes every text; the bytes of this file must not change.
    for trial in sorted(range(len(oof.trials)), key=lambda i: oof.trials[i]):
        rows = oof.rows(trial)
        label = ["" if value < 0 else value for value in oof.label[rows].tolist()]
        # A percent sign in a clip's name would be read as part of the format.
        line = _line([oof.trials[trial]])[:-1].replace("%", "%%") + row_format
        table = zip(oof.index[rows].tolist(), oof.time_s[rows].tolist(), oof.valid[rows].tolist(), label,
                    ppm[rows].argmax(1).tolist(), *(ppm[rows] / 1e6).T.tolist(), strict=True)
        out.write("".join([line % row for row in table]).encode())
    if compress:
        out.close()


def _line(fields: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(fields)
    return text.getvalue()


def to_arrow(oof: OofLogits, ppm: NDArray[np.int32]) -> pa.Table:
    """Return the rows that `write_predictions` writes to a parquet file."""
    trials = sorted(range(len(oof.trials)), key=lambda i: oof.trials[i])
    rows = oof.rows_of(trials)
    names = np.repeat([oof.trials[i] for i in trials], np.diff(oof.offsets)[trials])
    label = oof.label[rows]
    columns = {"clip": names, "frame": oof.index[rows], "time_s": oof.time_s[rows], "valid": oof.valid[rows],
            "label": pa.array(label, mask=label < 0), "prediction": ppm[rows].argmax(1).astype(np.int16)}
    probs = {f"{PROB_PREFIX}{name}": ppm[rows, c] / 1e6 for c, name in enumerate(oof.classes)}
    return pa.table({**columns, **probs})

