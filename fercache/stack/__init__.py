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

from fercache import durable
from fercache.config import StackConfig
from fercache.errors import InputError
from fercache.logits import LogitBook
from fercache.stack import ahead, calibration, columns, join, kept, nested, pool, predictions, report
from fercache.stack.table import table as _table

__all__ = ["StackResult", "out_of_fold", "run", "speak", "spoken", "table", "write"]

log = logging.getLogger(__name__)

FORMAT = 3
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
        return kept.final_column(self.report)


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
    print_ = config.fingerprint(book=kept.digest(book), format=FORMAT)
    book = _ready(book, config)
    home = folder / book.dataset / print_[:12]
    with durable.lock(home.with_suffix(".lock"), wait=True):
        found = kept.load(home, (len(book.label), len(book.classes)))
        units, said = found or _compute(book, config, home, print_)
    log.info("stack %s: %s (%.0f s)", print_[:12], "nothing to do, done before" if found else "computed",
             time.monotonic() - started)
    return StackResult(book=book, units=units, report=said, folder=home, cached=found is not None,
                       seconds=time.monotonic() - started)


def out_of_fold(book: LogitBook, config: StackConfig) -> dict[str, NDArray[np.float32]]:
    """Return what the learnt columns say of every row, ``(R, C)`` each; nothing is kept. Empty: nothing to learn from.
    """
    return nested.run(book, config).columns


def _ready(book: LogitBook, config: StackConfig) -> LogitBook:
    """Return the book as the stacker reads it: refused, pooled to clips, without heads that look ahead."""
    join.refuse_in_sample(book, config.force)
    book = pool.pooled(book) if config.level == "clip" else book
    return ahead.without(book) if config.causal else book


def _compute(book: LogitBook, config: StackConfig, home: Path,
             print_: str) -> tuple[NDArray[np.int32], dict[str, Any]]:
    """Return the final predictions and the metrics, and keep them."""
    learnt = nested.run(book, config)
    held = columns.gather(book, learnt, config.gaps, causal=config.causal)
    final = columns.choose(book, held, config.final, config.metric or book.metric)
    temperatures = calibration.by_fold(book, held[final.column])
    tempered = calibration.apply(book, held[final.column], temperatures)
    units = columns.millionths(columns.refilled(book, tempered, config.gaps, causal=config.causal))
    found = report.Run(book=book, config=config, nested=learnt, columns=held, final=final, temperatures=temperatures)
    said = {**report.build(found), "fingerprint": print_}
    kept.save(home, units, learnt.members, said)
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
    beside = predictions.metrics_path(out)
    predictions.write(result.book, result.units, out)
    durable.write_json(beside, result.report)
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

    Notes
    -----
    Of a run at clip level every frame has what is said of its clip.
    """
    then = durable.read_json(folder / kept.METRICS)
    ready, held, _ = spoken(folder, then, book)
    units = final_units(then, ready, held[kept.final_column(then)])
    return units[pool.frames_of(book, ready)] if then["level"] == "clip" else units


def final_units(then: dict[str, Any], ready: LogitBook, shares: NDArray[np.float32]) -> NDArray[np.int32]:
    """Return the final column of new trials, ``(R, C)`` in millionths, at the temperature of the run `then`."""
    tempered = calibration.temper(shares, float(then["final"]["temperature"]))
    policy = then["config"].get("gaps", "nearest")
    return columns.millionths(columns.refilled(ready, tempered, policy, causal=bool(then["causal"])))


def spoken(folder: Path, then: dict[str, Any], book: LogitBook) -> tuple[LogitBook, dict[str, NDArray[np.float32]],
                                                                        nested.Nested]:
    """Return a book of new trials as a run reads it, every column of it, ``(R, C)`` each, and the member that spoke.

    Parameters
    ----------
    then : the metrics of the run in `folder`. Where it learnt nothing there are no learnt columns.
    """
    causal, learnt = bool(then["causal"]), nested.Nested(members={}, columns={})
    book = pool.pooled(book) if then["level"] == "clip" else book
    book = ahead.without(book) if causal else book
    if isinstance(then["learnt"], list):
        learnt = nested.speak(book, kept.load_member(folder), causal)
    return book, columns.gather(book, learnt, then["config"].get("gaps", "nearest"), causal=causal), learnt
