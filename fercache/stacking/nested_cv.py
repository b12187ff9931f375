"""Nested cross-validation of the stacker: fitting, out-of-fold prediction, and the files of a finished run."""
# The model of fold k learns from the out-of-fold rows of the other folds and predicts fold k. One further model learns
# from all folds and predicts the trials that no fold holds out. Everything that is chosen by score (smoothing widths,
# number of trees) is chosen on the rows of the other folds too. So a label of fold k reaches the predictions of fold k
# only through the heads whose logits the other folds hold, as in any stacking.

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from fercache.config import StackConfig
from fercache.errors import StoreError
from fercache.oof import OofLogits
from fercache.runtime import atomic_io
from fercache.runtime.progress import ProgressBar, progress_bar
from fercache.stacking import features, models, smoothed_mean
from fercache.stacking.features import ClipView, FeatureColumns, TrainingSample, draw_sample
from fercache.stacking.models import LinearModel
from fercache.stacking.run_metrics import FoldRecord, StackMetrics, read_metrics, write_metrics
from fercache.workspace import METRICS

Probs = NDArray[np.float32]

ROWS_PER_CALL = 65_536  # trials are collected up to this many rows, because each call of LightGBM has a fixed cost
LEARNED = ("smoothed-mean", "logistic", "geometric-mean", "stack")  # from the simplest to the most flexible


@dataclass(frozen=True, kw_only=True)
class FoldModel:
    """The models fitted without one fold (-1: on all folds); the smoothed mean is in the record."""

    record: FoldRecord
    trees: lightgbm.Booster
    linear: LinearModel


@dataclass(frozen=True, kw_only=True)
class NestedResult:
    """The models by fold, and their predictions of every row: column -> probabilities, ``(R, C)`` float32.

    Both are empty if some fold leaves no row to learn from.
    """

    fold_models: dict[int, FoldModel] = field(default_factory=dict)
    columns: dict[str, Probs] = field(default_factory=dict)


def run_nested_cv(oof: OofLogits, config: StackConfig) -> NestedResult:
    """Fit a model for each fold and one for all folds, and return their predictions of every row."""
    k, columns = int(oof.fold.max()) + 1, features.feature_columns(oof, config.causal)
    with progress_bar("stack", 2 * len(oof.trials) + k + 1, "steps") as bar:
        sample = draw_sample(oof, columns, config.refit == "all", bar)
        if not all(len(sample.without(fold).rows) for fold in range(max(k, 1))):
            return NestedResult()
        metric = config.metric or oof.metric
        fold_models = {fold: _fit_fold(sample, columns, metric, fold, config, bar) for fold in [*range(k), ALL]}
        return NestedResult(fold_models=fold_models, columns=_predict(oof, columns, fold_models, config.threads, bar))


def predict_new(oof: OofLogits, fold_model: FoldModel, causal: bool) -> NestedResult:
    """Return the predictions of one model for the rows of its fold; new trials have fold -1, the model of all folds."""
    with progress_bar("stack", len(oof.trials), "trials") as bar:
        fold_models = {fold_model.record.fold: fold_model}
        columns = features.feature_columns(oof, causal)
        return NestedResult(fold_models=fold_models, columns=_predict(oof, columns, fold_models, 0, bar))


def _fit_fold(every: TrainingSample, columns: FeatureColumns, metric: str, fold: int, config: StackConfig,
              bar: ProgressBar) -> FoldModel:
    bar.note(f"without fold {fold}" if fold >= 0 else "all folds")
    sample, groups = every.without(fold), len(np.unique(every.group[every.fold >= 0]))
    base = smoothed_mean.fit_smoothed_mean(sample, columns.smoothings, metric)
    start = base.log_probs(sample.smoothed[:, columns.smoothings.index(base.smoothing)])
    trees, rounds, val_groups = models.fit_trees(sample, start, config, base.balance)
    linear = models.fit_linear(sample, base.balance, columns, groups)
    bar.advance()
    record = FoldRecord(fold=fold, many_groups=groups >= models.MANY_GROUPS, groups=len(np.unique(sample.group)),
                        rows=len(sample.rows), smoothed_mean=base, rounds=rounds, validation_groups=val_groups)
    return FoldModel(record=record, trees=trees, linear=linear)


def _predict(oof: OofLogits, columns: FeatureColumns, fold_models: dict[int, FoldModel], threads: int,
             bar: ProgressBar) -> dict[str, Probs]:
    """Return the learned columns, ``(R, C)`` each: rows by the model of their fold, others by that of all folds."""
    outputs = {name: np.zeros((len(oof.label), len(oof.classes)), np.float32)
               for name in ("start", "correction", "logistic")}
    for fold, fold_model in fold_models.items():
        waiting: list[tuple[int, ClipView, Probs, Probs]] = []
        trials = np.flatnonzero((oof.fold == fold) & (np.diff(oof.offsets) > 0)).tolist()
        for trial, view in zip(trials, ClipView.each(oof, trials, columns.causal), strict=True):
            smoothed = columns.smoothed(view, (fold_model.record.smoothed_mean.smoothing,))[:, 0]
            waiting.append((trial, view, columns.build(view), smoothed))
            if trial == trials[-1] or sum(len(x) for _, _, x, _ in waiting) >= ROWS_PER_CALL:
                _fill(outputs, oof, fold_model, waiting, threads)
                waiting = []
            bar.advance()
    start, logistic = outputs["start"], outputs["logistic"]
    mean_log = ((features.log_softmax(start) + features.log_softmax(logistic)) / 2).astype(np.float32)
    # Macro F1 out of fold on photo streams (164 groups) and film clips (367): .680 and .353; the trees alone .670 and
    # .322, `geometric-mean` .673 and .352. On ten groups `logistic` takes .28 off the trees' .80.
    many = any(fold_model.record.many_groups for fold_model in fold_models.values())
    logits = {"smoothed-mean": start, "logistic": logistic, "geometric-mean": mean_log,
              "stack": mean_log + outputs["correction"] / 2 if many else start + outputs["correction"]}
    return {name: softmax(logits[name], axis=1).astype(np.float32) for name in LEARNED}


def _fill(outputs: dict[str, Probs], oof: OofLogits, fold_model: FoldModel,
          waiting: Sequence[tuple[int, ClipView, Probs, Probs]], threads: int) -> None:
    """Predict the rows of the waiting trials; gaps get the values of the nearest frame with a face."""
    x, smoothed = (np.concatenate([one[part] for one in waiting]) for part in (2, 3))
    predicted: dict[str, NDArray[Any]] = {
        "start": fold_model.record.smoothed_mean.log_probs(smoothed), "logistic": fold_model.linear.logits(x),
        "correction": models.correction(fold_model.trees, x, threads)}
    ends = np.cumsum([len(one) for _, _, one, _ in waiting])
    for (trial, view, one, _), end in zip(waiting, ends.tolist(), strict=True):
        for name, values in predicted.items():
            outputs[name][oof.rows(trial)] = view.spread_to_gaps(values[end - len(one):end].astype(np.float32))


# What a stack run leaves in the cache: final predictions, metrics, and the learnt models as text.

FINAL = "final.npy"
FOLD_RECORD = "fold-model-all.json"
ALL = -1  # the key of the model that is fitted on all folds and predicts new clips
LINEAR = ("mean", "scale", "weights", "bias")


def digest(oof: OofLogits) -> str:
    """Return the sha256 (hex) of everything in `oof` that a stack reads."""
    state = hashlib.sha256(repr((oof.fingerprint, oof.classes, oof.metric, oof.heads, oof.trials, oof.group,
                                 oof.split, oof.notice, oof.epochs_fixed, oof.clips,
                                 sorted(oof.declared.items()))).encode())
    for values in (oof.fold, oof.offsets, oof.index, oof.time_s, oof.valid, oof.label,
                   *(oof.logits[head] for head in oof.heads),
                   *(oof.pooled[head] for head in oof.heads if oof.pooled)):
        state.update(np.ascontiguousarray(values).tobytes())
    return state.hexdigest()


def save_stack(folder: Path, ppm: NDArray[np.int32], fold_models: dict[int, FoldModel], report: StackMetrics) -> None:
    """Write a finished run into `folder`."""
    for fold, fold_model in fold_models.items():
        atomic_io.write_bytes(folder / f"trees-{_name(fold)}.txt", fold_model.trees.model_to_string().encode())
    if ALL in fold_models:
        with atomic_io.replacing(folder / "linear-all.npz") as temporary, temporary.open("wb") as file:
            np.savez(file, **{name: getattr(fold_models[ALL].linear, name) for name in LINEAR})
        atomic_io.write_json(folder / FOLD_RECORD, fold_models[ALL].record)
    with atomic_io.replacing(folder / FINAL) as temporary, temporary.open("wb") as file:
        np.save(file, ppm, allow_pickle=False)
    # Last: after a crash before this line, `load_stack` returns None and the run is repeated.
    write_metrics(folder / METRICS, report)


def load_stack(folder: Path, shape: tuple[int, int]) -> tuple[NDArray[np.int32], StackMetrics] | None:
    """Return the predictions in parts per million and the metrics of a finished run; None if absent or damaged."""
    if not (folder / METRICS).is_file() or not (folder / FINAL).is_file():
        return None
    try:
        ppm, metrics = np.load(folder / FINAL, allow_pickle=False), read_metrics(folder / METRICS)
    except (ValueError, EOFError, OSError):  # InputError of the metrics is a ValueError
        return None
    return (ppm, metrics) if ppm.shape == shape and ppm.dtype == np.int32 else None


def load_fold_model(folder: Path) -> FoldModel:
    """Return the model that was fitted on all folds; raises StoreError if the run has none, or a damaged one."""
    try:
        record = atomic_io.read_record(folder / FOLD_RECORD, FoldRecord)
        trees = lightgbm.Booster(model_file=str(folder / f"trees-{_name(ALL)}.txt"))
        with np.load(folder / "linear-all.npz", allow_pickle=False) as file:
            linear = LinearModel(**{name: file[name] for name in LINEAR})
    except (OSError, KeyError, ValueError, lightgbm.basic.LightGBMError) as error:
        raise StoreError(f"the model of all folds is missing or damaged ({error})", where=folder,
                         hint="run `fercache stack`") from error
    return FoldModel(record=record, trees=trees, linear=linear)


def _name(fold: int) -> str:
    return "all" if fold == ALL else f"without{fold}"
