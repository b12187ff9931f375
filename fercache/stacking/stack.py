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
from fercache.oof import OofLogits
from fercache.results import io
from fercache.runtime import atomic_io
from fercache.stacking import calibration, candidates, inputs, nested_cv, report
from fercache.stacking.candidates import GapFiller
from fercache.stacking.nested_cv import NestedResult, Probs
from fercache.stacking.report import score_table as _table

log = logging.getLogger(__name__)


# New trials as a finished run reads them, and what each of its columns says of them.

@dataclass(frozen=True, kw_only=True)
class StackInference:
    """What a run says of a book of new trials.

    Attributes
    ----------
    then : the metrics of the run.
    book : the trials, as the run reads them.
    columns : every column, ``(R, C)`` each; where the run learnt nothing there are no learnt ones.
    learnt : the member that spoke.
    """

    metrics: dict[str, Any]
    oof: OofLogits
    columns: dict[str, Probs]
    learnt: NestedResult
    filling: GapFiller

    @classmethod
    def of(cls, folder: Path, then: dict[str, Any], book: OofLogits) -> StackInference:
        """Return what the run in `folder`, whose metrics are `then`, says of a book.

        Raises
        ------
        StoreError
            The run's models are not there or damaged.
        """
        causal, learnt = bool(then["causal"]), NestedResult(members={}, columns={})
        book = inputs.aggregate_clips(book) if then["level"] == "clip" else book
        book = candidates.drop_lookahead_heads(book) if causal else book
        if isinstance(then["learnt"], list):
            learnt = nested_cv.predict_new(book, nested_cv.load_fold_model(folder), causal)
        filling = GapFiller.of(book, then["config"].get("missing_faces", "nearest"), causal=causal)
        return cls(metrics=then, oof=book, columns=candidates.gather_candidates(book, learnt, filling), learnt=learnt,
                   filling=filling)

    def probs_ppm(self, whole: OofLogits) -> NDArray[np.int32]:
        """Return the final column at the run's temperature, ``(R, C)`` in millionths, of every row of the `whole` book.

        Notes
        -----
        Of a run at clip level every frame has what is said of its clip.
        """
        tempered = calibration.apply_temperature(self.columns[nested_cv.final_column(self.metrics)],
                                      float(self.metrics["final"]["temperature"]))
        units = candidates.to_ppm(self.filling.refill(tempered))
        return units[inputs.rows_of_clips(whole, self.oof)] if self.metrics["level"] == "clip" else units


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

    oof: OofLogits
    units: NDArray[np.int32]
    report: dict[str, Any]
    folder: Path
    cached: bool
    seconds: float

    @property
    def final(self) -> str:
        """The column that the predictions are."""
        return nested_cv.final_column(self.report)


def run_stack(book: OofLogits, config: StackConfig, folder: Path) -> StackResult:
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
    if not ((book.per_row(book.fold) >= 0) & (book.label >= 0)).any():
        raise InputError("the book has no labelled out-of-fold rows to learn from", where=book.dataset,
                         hint="run `fercache train-heads` on a data set with labels")
    print_ = fingerprint(book, config)
    book = _ready(book, config)
    home = folder / book.dataset / print_[:12]
    with atomic_io.lock(home.with_suffix(".lock"), wait=True):
        found = nested_cv.load_stack(home, (len(book.label), len(book.classes)))
        units, record = found or _compute(book, config, home, print_)
    log.info("stack %s: %s (%.0f s)", print_[:12], "nothing to do, done before" if found else "computed",
             time.monotonic() - started)
    return StackResult(oof=book, units=units, report=record, folder=home, cached=found is not None,
                       seconds=time.monotonic() - started)


def fingerprint(book: OofLogits, config: StackConfig) -> str:
    """Return the sha256 (hex) over all that changes a run's numbers; its first 12 digits name the run's folder."""
    return config.fingerprint(book=nested_cv.digest(book), format=FORMAT)


def oof_columns(book: OofLogits, config: StackConfig) -> dict[str, NDArray[np.float32]]:
    """Return what the learnt columns say of every row, ``(R, C)`` each; nothing is kept. Empty: nothing to learn from.
    """
    return nested_cv.run_nested_cv(book, config).columns


def _ready(book: OofLogits, config: StackConfig) -> OofLogits:
    """Return the book as the stacker reads it: refused, pooled to clips, without heads that look ahead."""
    inputs.refuse_in_sample(book, config.force)
    book = inputs.aggregate_clips(book) if config.level == "clip" else book
    return candidates.drop_lookahead_heads(book) if config.causal else book


def _compute(book: OofLogits, config: StackConfig, home: Path,
             print_: str) -> tuple[NDArray[np.int32], dict[str, Any]]:
    """Return the final predictions and the metrics, and keep them."""
    learnt = nested_cv.run_nested_cv(book, config)
    filling = candidates.GapFiller.of(book, config.missing_faces, causal=config.causal)
    held = candidates.gather_candidates(book, learnt, filling)
    final = candidates.choose_final(book, held, config.select, config.metric or book.metric)
    temperatures = calibration.temperature_by_fold(book, held[final.name])
    tempered = calibration.apply_by_fold(book, held[final.name], temperatures)
    units = candidates.to_ppm(filling.refill(tempered))
    found = report.StackRun(oof=book, config=config, nested=learnt, columns=held, final=final,
                            temperatures=temperatures)
    record = {**report.build_report(found), "fingerprint": print_}
    nested_cv.save_stack(home, units, learnt.members, record)
    return units, record


def write_stack(result: StackResult, out: Path) -> list[Path]:
    """Put the predictions at `out` (.csv, .csv.gz, .parquet) and the metrics beside it; return both paths.

    Raises
    ------
    InputError
        Another ending, or nothing can be written there.
    MissingExtra
        A .parquet is asked for and pyarrow is not installed.
    """
    beside = io.metrics_path(out)
    io.write_predictions(result.oof, result.units, out)
    atomic_io.write_json(beside, result.report)
    return [out, beside]


def table(result: StackResult) -> RenderableType:
    """Return the scores of every column, to be printed by rich; it fits 80 columns."""
    return _table(result.report)


def predict_new(folder: Path, book: OofLogits) -> NDArray[np.int32]:
    """Return what the final column of the run in `folder` says of a book of new trials, ``(R, C)`` in millionths.

    Raises
    ------
    StoreError
        The run's models are not there or damaged.
    """
    then = atomic_io.read_json(folder / nested_cv.METRICS)
    return StackInference.of(folder, then, book).probs_ppm(book)


# What a finished stack run says of new trials: every column, scored where there are labels.

def evaluate(folder: Path, book: OofLogits, config: StackConfig) -> StackResult:
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
    final = candidates.FinalCandidate(name=nested_cv.final_column(then),
                             why=f"as in the run {folder.name}: {then['final']['why']}")
    inference = StackInference.of(folder, then, book)
    ready = inference.oof
    temperature = float(then["final"]["temperature"])
    found = report.StackRun(oof=ready, config=_as_trained(then, config), nested=inference.learnt,
                       columns=inference.columns, final=final,
                       temperatures=dict.fromkeys([*range(int(ready.fold.max(initial=-1)) + 1), -1], temperature))
    record = {**report.build_report(found), "fingerprint": then["fingerprint"]}
    return StackResult(oof=book, units=inference.probs_ppm(book), report=record, folder=folder, cached=False,
                       seconds=time.monotonic() - started)


def _as_trained(then: dict[str, Any], config: StackConfig) -> StackConfig:
    """Return the run's choices with the draws of another bootstrap; new trials were fitted by no refit."""
    known = {entry.name for entry in fields(StackConfig)}
    chosen: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in then["config"].items()
                              if name in known}
    return replace(StackConfig(**chosen), bootstrap=config.bootstrap, seed=config.seed, refit="none")
