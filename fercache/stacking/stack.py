"""Stage two, b: the book of out-of-fold logits -> final predictions, and the table of who is right how often."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import RenderableType

from fercache.config import StackConfig
from fercache.errors import InputError
from fercache.oof import LogitBook
from fercache.results import predictions_part
from fercache.runtime import atomic_io
from fercache.stacking import ahead_part, calibration, candidates, inputs, kept_part, nested_cv, pool_part, report
from fercache.stacking.spoken_part import Spoken
from fercache.stacking.table_part import table as _table

log = logging.getLogger(__name__)


FORMAT = 6
"""Raised whenever the code changes what a stack run gives."""


@dataclass(frozen=True, kw_only=True)
class StackResult:
    """What a stack run found.

    Attributes
    ----------
    units : (R, C) int32, the final column's probabilities in millionths.
    report : the metrics, as they stand in ``preds.metrics.json``.
    folder : where the run lies in the cache.
    cached : whether an earlier run was found.
    """

    book: LogitBook
    units: NDArray[np.int32]
    report: dict[str, Any]
    folder: Path
    cached: bool
    seconds: float

    @property
    def final(self) -> str:
        """The column that the predictions are."""
        return kept_part.final_column(self.report)


def run(book: LogitBook, config: StackConfig, folder: Path) -> StackResult:
    """Return the predictions of every column for a book; a run that was done before is not done again.

    Parameters
    ----------
    folder : where stack runs are kept (``cache/stack``).

    Raises
    ------
    InputError
        The book has no out-of-fold rows, or the final column that was asked for is not there.
    """
    started = time.monotonic()
    if not ((book.spread(book.fold) >= 0) & (book.label >= 0)).any():
        raise InputError("the book has no labelled out-of-fold rows to learn from", where=book.dataset,
                         hint="run `fercache train-heads` on a data set with labels")
    print_ = fingerprint(book, config)
    book = _ready(book, config)
    home = folder / book.dataset / print_[:12]
    with atomic_io.lock(home.with_suffix(".lock"), wait=True):
        found = kept_part.load(home, (len(book.label), len(book.classes)))
        units, said = found or _compute(book, config, home, print_)
    log.info("stack %s: %s (%.0f s)", print_[:12], "nothing to do, done before" if found else "computed",
             time.monotonic() - started)
    return StackResult(book=book, units=units, report=said, folder=home, cached=found is not None,
                       seconds=time.monotonic() - started)


def fingerprint(book: LogitBook, config: StackConfig) -> str:
    """Return the sha256 (hex) over all that changes a run's numbers; its first 12 digits name the run's folder."""
    return config.fingerprint(book=kept_part.digest(book), format=FORMAT)


def out_of_fold(book: LogitBook, config: StackConfig) -> dict[str, NDArray[np.float32]]:
    """Return what the learnt columns say of every row, ``(R, C)`` each; nothing is kept. Empty: nothing to learn from.
    """
    return nested_cv.run(book, config).columns


def _ready(book: LogitBook, config: StackConfig) -> LogitBook:
    """Return the book as the stacker reads it: refused, pooled to clips, without heads that look ahead."""
    inputs.refuse_in_sample(book, config.force)
    book = pool_part.pooled(book) if config.level == "clip" else book
    return ahead_part.without(book) if config.causal else book


def _compute(book: LogitBook, config: StackConfig, home: Path,
             print_: str) -> tuple[NDArray[np.int32], dict[str, Any]]:
    """Return the final predictions and the metrics, and keep them."""
    learnt = nested_cv.run(book, config)
    filling = candidates.Filling.of(book, config.gaps, causal=config.causal)
    held = candidates.gather(book, learnt, filling)
    final = candidates.choose(book, held, config.final, config.metric or book.metric)
    temperatures = calibration.by_fold(book, held[final.column])
    tempered = calibration.apply(book, held[final.column], temperatures)
    units = candidates.millionths(filling.again(tempered))
    found = report.Run(book=book, config=config, nested=learnt, columns=held, final=final, temperatures=temperatures)
    said = {**report.build(found), "fingerprint": print_}
    kept_part.save(home, units, learnt.members, said)
    return units, said


def write(result: StackResult, out: Path) -> list[Path]:
    """Put the predictions at `out` (.csv, .csv.gz, .parquet) and the metrics beside it; return both paths.

    Raises
    ------
    InputError
        Another ending, or nothing can be written there.
    MissingExtra
        A .parquet is asked for and pyarrow is not installed.
    """
    beside = predictions_part.metrics_path(out)
    predictions_part.write(result.book, result.units, out)
    atomic_io.write_json(beside, result.report)
    return [out, beside]


def table(result: StackResult) -> RenderableType:
    """Return the scores of every column, to be printed by rich; it fits 80 columns."""
    return _table(result.report)


def speak(folder: Path, book: LogitBook) -> NDArray[np.int32]:
    """Return what the final column of the run in `folder` says of a book of new trials, ``(R, C)`` in millionths.

    Raises
    ------
    StoreError
        The run's models are not there or damaged.
    """
    then = atomic_io.read_json(folder / kept_part.METRICS)
    return Spoken.of(folder, then, book).units(book)
