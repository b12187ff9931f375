"""Stage two, b: the book of out-of-fold logits -> final predictions, and the table of who is right how often."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import RenderableType

from fercache.config import StackConfig
from fercache.errors import InputError
from fercache.oof import LogitBook
from fercache.results import io
from fercache.runtime import atomic_io
from fercache.stacking import calibration, candidates, inputs, nested_cv, report
from fercache.stacking.candidates import Filling
from fercache.stacking.nested_cv import Nested, Shares
from fercache.stacking.report import table as _table

log = logging.getLogger(__name__)


# New trials as a finished run reads them, and what each of its columns says of them.

@dataclass(frozen=True, kw_only=True)
class Spoken:
    """What a run says of a book of new trials.

    Attributes
    ----------
    then : the metrics of the run.
    book : the trials, as the run reads them.
    columns : every column, ``(R, C)`` each; where the run learnt nothing there are no learnt ones.
    learnt : the member that spoke.
    """

    then: dict[str, Any]
    book: LogitBook
    columns: dict[str, Shares]
    learnt: Nested
    filling: Filling

    @classmethod
    def of(cls, folder: Path, then: dict[str, Any], book: LogitBook) -> Spoken:
        """Return what the run in `folder`, whose metrics are `then`, says of a book.

        Raises
        ------
        StoreError
            The run's models are not there or damaged.
        """
        causal, learnt = bool(then["causal"]), Nested(members={}, columns={})
        book = inputs.pooled(book) if then["level"] == "clip" else book
        book = candidates.without(book) if causal else book
        if isinstance(then["learnt"], list):
            learnt = nested_cv.speak(book, nested_cv.load_member(folder), causal)
        filling = Filling.of(book, then["config"].get("gaps", "nearest"), causal=causal)
        return cls(then=then, book=book, columns=candidates.gather(book, learnt, filling), learnt=learnt,
                   filling=filling)

    def units(self, whole: LogitBook) -> NDArray[np.int32]:
        """Return the final column at the run's temperature, ``(R, C)`` in millionths, of every row of the `whole` book.

        Notes
        -----
        Of a run at clip level every frame has what is said of its clip.
        """
        tempered = calibration.temper(self.columns[nested_cv.final_column(self.then)],
                                      float(self.then["final"]["temperature"]))
        units = candidates.millionths(self.filling.again(tempered))
        return units[inputs.frames_of(whole, self.book)] if self.then["level"] == "clip" else units


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
        return nested_cv.final_column(self.report)


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
        found = nested_cv.load(home, (len(book.label), len(book.classes)))
        units, said = found or _compute(book, config, home, print_)
    log.info("stack %s: %s (%.0f s)", print_[:12], "nothing to do, done before" if found else "computed",
             time.monotonic() - started)
    return StackResult(book=book, units=units, report=said, folder=home, cached=found is not None,
                       seconds=time.monotonic() - started)


def fingerprint(book: LogitBook, config: StackConfig) -> str:
    """Return the sha256 (hex) over all that changes a run's numbers; its first 12 digits name the run's folder."""
    return config.fingerprint(book=nested_cv.digest(book), format=FORMAT)


def out_of_fold(book: LogitBook, config: StackConfig) -> dict[str, NDArray[np.float32]]:
    """Return what the learnt columns say of every row, ``(R, C)`` each; nothing is kept. Empty: nothing to learn from.
    """
    return nested_cv.run(book, config).columns


def _ready(book: LogitBook, config: StackConfig) -> LogitBook:
    """Return the book as the stacker reads it: refused, pooled to clips, without heads that look ahead."""
    inputs.refuse_in_sample(book, config.force)
    book = inputs.pooled(book) if config.level == "clip" else book
    return candidates.without(book) if config.causal else book


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
    nested_cv.save(home, units, learnt.members, said)
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
    beside = io.metrics_path(out)
    io.write(result.book, result.units, out)
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
    then = atomic_io.read_json(folder / nested_cv.METRICS)
    return Spoken.of(folder, then, book).units(book)


# What a finished stack run says of new trials: every column, scored where there are labels.

def judge(folder: Path, book: LogitBook, config: StackConfig) -> StackResult:
    """Return the predictions of the run in `folder` for a book of new trials, and every column's scores on them.

    Parameters
    ----------
    config : the draws of the bootstrap and its seed; what is final and what fills gaps was chosen by the run.

    Raises
    ------
    StoreError
        The run's models are damaged.

    Notes
    -----
    The learnt columns are those of the model of all folds; a run on too few groups has none.
    """
    started = time.monotonic()
    then = atomic_io.read_json(folder / nested_cv.METRICS)
    final = candidates.Final(column=nested_cv.final_column(then),
                             why=f"as in the run {folder.name}: {then['final']['why']}")
    spoken = Spoken.of(folder, then, book)
    ready = spoken.book
    temperature = float(then["final"]["temperature"])
    found = report.Run(book=ready, config=_as_then(then, config), nested=spoken.learnt,
                       columns=spoken.columns, final=final,
                       temperatures=dict.fromkeys([*range(int(ready.fold.max(initial=-1)) + 1), -1], temperature))
    said = {**report.build(found), "fingerprint": then["fingerprint"]}
    return StackResult(book=book, units=spoken.units(book), report=said, folder=folder, cached=False,
                       seconds=time.monotonic() - started)


def _as_then(then: dict[str, Any], config: StackConfig) -> StackConfig:
    """Return the run's choices with the draws of another bootstrap; new trials were fitted by no refit."""
    known = {entry.name for entry in fields(StackConfig)}
    chosen: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in then["config"].items()
                              if name in known}
    return replace(StackConfig(**chosen), bootstrap=config.bootstrap, seed=config.seed, refit="none")
