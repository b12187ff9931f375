"""Stage two, b: out-of-fold logits -> final predictions and the scores of every candidate."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rich.console import RenderableType

from fercache.config import StackConfig
from fercache.errors import InputError, MissingExtra, StoreError
from fercache.heads.registry import HEADS
from fercache.oof import IN_SAMPLE, OofLogits, without_sound
from fercache.results import io
from fercache.runtime import atomic_io
from fercache.stacking import calibration, candidates, inputs, nested_cv, report
from fercache.stacking.candidates import GapFiller
from fercache.stacking.nested_cv import NestedResult, Probs
from fercache.stacking.report import as_text, score_table
from fercache.stacking.run_metrics import FORMAT, FinalRecord, StackMetrics, read_metrics, write_metrics
from fercache.workspace import METRICS, Workspace

if TYPE_CHECKING:
    from pandas import DataFrame

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StackInference:
    """The predictions of a finished run for new trials."""

    metrics: StackMetrics  # of the run
    oof: OofLogits  # the logits of the trials, prepared as the run prepares them
    columns: dict[str, Probs]  # of every candidate, (R, C) each; without learned ones if the run fitted no models
    nested: NestedResult  # the model of all folds, with its predictions
    filler: GapFiller

    @classmethod
    def of(cls, folder: Path, oof: OofLogits) -> StackInference:
        """Return the predictions of the run in `folder`."""
        run_metrics = read_metrics(folder / METRICS)
        if run_metrics.version != FORMAT:
            raise StoreError(f"the run has format {run_metrics.version}; this version reads {FORMAT}",
                             where=folder, hint="run `fercache stack` again")
        causal, nested = run_metrics.causal, NestedResult()
        oof = _ready(oof, msgspec.convert(run_metrics.config, StackConfig))
        if isinstance(run_metrics.fold_models, tuple):
            nested = nested_cv.predict_new(oof, nested_cv.load_fold_model(folder), causal)
        filler = GapFiller.of(oof, run_metrics.config["missing_faces"], causal=causal)
        columns = candidates.gather_candidates(oof, nested, filler)
        return cls(metrics=run_metrics, oof=oof, columns=columns, nested=nested, filler=filler)

    def probs_ppm(self, whole: OofLogits) -> NDArray[np.int32]:
        """Return the final column at the run's temperature, ``(R, C)`` in parts per million, for every row of `whole`.

        At clip level every frame gets the prediction of its clip.
        """
        tempered = calibration.apply_temperature(self.columns[self.metrics.final.column],
                                                 self.metrics.final.temperature)
        ppm = candidates.to_ppm(self.filler.refill(tempered))
        if self.metrics.level != "clip":
            return ppm
        place = {name: i for i, name in enumerate(self.oof.trials)}
        return np.asarray(ppm[whole.per_row([place[name] for name in whole.clips])])


@dataclass(frozen=True, kw_only=True)
class StackResult:
    """The result of a stack run."""

    oof: OofLogits
    ppm: NDArray[np.int32]  # (R, C) int32, the final column's probabilities in parts per million
    report: StackMetrics  # the metrics, as ``preds.metrics.json`` holds them
    folder: Path  # of the run in the cache
    cached: bool  # whether the result of an earlier run was reused
    seconds: float

    @property
    def final(self) -> str:
        """The name of the final column."""
        return self.report.final.column

    @property
    def frame(self) -> DataFrame:
        """The rows of `to_arrow` as a pandas DataFrame. Raises MissingExtra if pandas is not installed."""
        try:
            import pandas  # noqa: F401  (an extra: pyarrow, which fercache needs, converts to it)
        except ImportError as error:
            raise MissingExtra("a data frame needs pandas", where="frame", hint="run `pip install 'fercache[pandas]'`, "
                               "or use to_arrow(), which returns the same rows as a pyarrow table") from error
        return self.to_arrow().to_pandas()

    def to_arrow(self) -> pa.Table:
        """Return one row per frame: the columns of `preds.csv`, and `expression`, the name of the predicted class."""
        rows = io.to_arrow(self.oof, self.ppm)
        names = pa.DictionaryArray.from_arrays(rows["prediction"].combine_chunks(), pa.array(self.oof.classes))
        return rows.add_column(rows.column_names.index("prediction") + 1, "expression", names)

    def series(self, clip: str) -> io.ClipPredictions:
        """Return the rows of one clip, as plots need them."""
        rows = self.oof.rows(self.oof.trials.index(clip))
        return io.ClipPredictions(name=clip, frame=self.oof.index[rows].astype(np.int64), time_s=self.oof.time_s[rows],
                                  valid=self.oof.valid[rows], label=self.oof.label[rows].astype(np.int64),
                                  label_pred=self.ppm[rows].argmax(1), probs=self.ppm[rows] / 1e6)

    def save(self, path: str | PathLike[str]) -> list[Path]:
        """Write the predictions to `path` (.csv, .csv.gz, .parquet) and the metrics beside it; return both paths.

        Raises InputError if the ending is unknown, or `path` cannot be written.
        """
        out = Path(path)
        io.write_predictions(self.oof, self.ppm, out)
        write_metrics(io.metrics_path(out), self.report)
        return [out, io.metrics_path(out)]

    def __rich__(self) -> RenderableType:
        return score_table(self.report)

    def __repr__(self) -> str:
        return as_text(score_table(self.report))


def run_stack(oof: OofLogits, config: StackConfig, cache: Path) -> StackResult:
    """Fit and predict with every candidate, or load the result of an equal earlier run.

    Raises InputError if there are no labeled out-of-fold rows, or `config.select` names no candidate.
    """
    started = time.monotonic()
    run_without_sound(oof, config, cache)
    if not oof.scored.any():
        raise InputError("no labeled out-of-fold rows to learn from", where=oof.dataset,
                         hint="run `fercache train-heads` on a data set with labels")
    fingerprint = config.fingerprint(book=nested_cv.digest(oof), format=FORMAT)
    if oof.leaky_heads and not config.force:
        raise InputError(f"declared {IN_SAMPLE}: {', '.join(oof.leaky_heads)} saw the labels of the training rows, so "
                         "the stacker would learn from leaked labels", where="stack, logits",
                         hint="leave it out of --logits, or import out-of-fold logits of that model; --force learns "
                              "from it nevertheless, excludes it from `--select auto` and flags it in the output")
    if config.causal and any("embed_every" in record.store for record in oof.provenance.records):
        log.warning("the heads were trained on features that are interpolated between embedded frames, so their logits "
                    "use frames that are a few tenths of a second later; for a strictly causal stack, extract with "
                    "--embed-every 1 and train again")
    oof = _ready(oof, config)
    run_folder = Workspace(cache).stack_run(oof.dataset, fingerprint)
    # The lock makes two equal runs at the same time compute once; the second one loads.
    with atomic_io.lock(run_folder.with_suffix(".lock"), wait=True):
        earlier = nested_cv.load_stack(run_folder, (len(oof.label), len(oof.classes)))
        ppm, record = earlier or _compute(oof, config, run_folder, fingerprint)
    log.info("stack %s: %s (%.0f s)", fingerprint[:12], "nothing to do, done before" if earlier else "computed",
             time.monotonic() - started)
    return StackResult(oof=oof, ppm=ppm, report=record, folder=run_folder, cached=earlier is not None,
                       seconds=time.monotonic() - started)


def run_without_sound(oof: OofLogits, config: StackConfig, cache: Path) -> Path | None:
    """Return the folder of the run with the same settings for clips without sound; None if these heads read none."""
    # Weights of columns and widths of smoothing that were chosen on clips with sound do not fit clips without.
    settings = oof.provenance.settings
    if not settings or oof.provenance.merged:
        return None
    path = without_sound(Workspace(cache).logits_file(oof.dataset, oof.fingerprint), settings)[1]
    if not path.is_file() or path.stem == oof.fingerprint[:12]:
        return None
    other = OofLogits.load(path)
    gone = config.select in set(oof.heads) - set(other.heads)
    return run_stack(other, replace(config, select="auto") if gone else config, cache).folder


def _ready(oof: OofLogits, config: StackConfig) -> OofLogits:
    """Return the logits as the stacker reads them: aggregated to clips, without lookahead heads."""
    oof = inputs.aggregate_clips(oof) if config.level == "clip" else oof
    return candidates.drop_lookahead_heads(oof) if config.causal else oof


def _compute(oof: OofLogits, config: StackConfig, run_folder: Path,
             fingerprint: str) -> tuple[NDArray[np.int32], StackMetrics]:
    nested = nested_cv.run_nested_cv(oof, config)
    filler = candidates.GapFiller.of(oof, config.missing_faces, causal=config.causal)
    by_candidate = candidates.gather_candidates(oof, nested, filler)
    metric = config.metric or oof.metric
    rejected = candidates.find_contradictions(oof, nested, by_candidate, metric, causal=config.causal)
    final = candidates.choose_final(oof, by_candidate, config.select, metric, rejected)
    temperatures = calibration.temperature_by_fold(oof, by_candidate[final.column])
    tempered = calibration.apply_by_fold(oof, by_candidate[final.column], temperatures)
    ppm = candidates.to_ppm(filler.refill(tempered))
    run = report.StackRun(oof=oof, config=config, nested=nested, columns=by_candidate, final=final,
                            temperatures=temperatures, rejected=rejected)
    record = report.build_report(run, fingerprint)
    nested_cv.save_stack(run_folder, ppm, nested.fold_models, record)
    return ppm, record


def evaluate(folder: Path, oof: OofLogits, config: StackConfig, *, mute: Path | None = None,
             silent: Collection[str] = ()) -> StackResult:
    """Return the predictions of the run in `folder` for new trials, with the scores of every candidate on them.

    The learned columns come from the model of all folds; a run on too few groups has none. Of `config` only bootstrap
    draws and seed are used. `mute`, `silent`: folder of the run for clips without sound, and the trials it predicts.
    """
    started = time.monotonic()
    inference = StackInference.of(folder, oof)
    run_metrics, ready = inference.metrics, inference.oof
    final = FinalRecord(column=run_metrics.final.column, why=f"as in the run {folder.name}: {run_metrics.final.why}")
    ppm, columns = inference.probs_ppm(oof), inference.columns
    if mute is not None and silent:
        heads = tuple(head for head in oof.heads if head not in HEADS or HEADS[head].sound != "only")
        without = replace(oof, heads=heads, logits={head: oof.logits[head] for head in heads})
        other = StackInference.of(mute, without)
        rows = [one.per_row(np.isin(one.trials, list(silent)))[:, None] for one in (oof, ready)]
        ppm = np.where(rows[0], other.probs_ppm(without), ppm)
        sources = {name: other.metrics.final.column if name == final.column else name for name in columns}
        columns = {name: np.where(rows[1], other.columns[sources[name]], values)
                   if sources[name] in other.columns else values for name, values in columns.items()}
    # Without refit: no model saw the new trials.
    trained = replace(msgspec.convert(run_metrics.config, StackConfig), bootstrap=config.bootstrap, seed=config.seed,
                      refit="none")
    run = report.StackRun(oof=ready, config=trained, nested=inference.nested, columns=columns, final=final,
                       temperatures=dict.fromkeys([*range(int(ready.fold.max(initial=-1)) + 1), -1],
                                                  run_metrics.final.temperature),
                       rejected=run_metrics.rejected)
    return StackResult(oof=oof, ppm=ppm, folder=folder, cached=False,
                       report=report.build_report(run, run_metrics.fingerprint), seconds=time.monotonic() - started)
