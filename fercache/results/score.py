"""Predictions against a set's labels, also where the set has other classes than the predictions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fercache import metrics
from fercache.config import ScoreConfig
from fercache.data import labels
from fercache.data.base import Dataset, Trial
from fercache.errors import InputError, shorten_list
from fercache.results import io

SHOWN = 10
Counts = NDArray[np.int64]


def score_file(dataset: Dataset, preds: io.PredictionsFile, config: ScoreConfig) -> dict[str, Any]:
    """Return every figure as a JSON value.

    Raises InputError if the set has no labels in that split, no class or no clip in common with the predictions, or the
    predictions are damaged.

    ``all`` counts every class of the set; those that the predictions lack have an F1 of 0. ``shared`` counts only the
    classes that both have, and rows of these. ``without_copies`` is there if photos are copies of photos in another
    split, and leaves these out.
    """
    trials = {t.name: t for t in dataset.trials if t.labelled and config.split in ("all", t.split)}
    if not trials:
        raise InputError(f"no labelled trial in the split {config.split}", where=dataset.name,
                         hint="choose another --split or data set")
    names = labels.map_class_names(preds.classes, dataset.classes, labels.parse(config.map))
    only_clips = all(trial.labels is None for trial in trials.values())
    level = config.level if config.level != "auto" else "clip" if only_clips else "frame"
    matrices: dict[str, Counts] = {}  # group -> (C, C)
    unscored, scored = 0, set[str]()
    for clip in preds.clips():
        name = io.match_clip(clip.name, trials)
        if name in trials:
            label, predicted, without_row = _compared(trials[name], clip, names, level)
            matrix = metrics.confusion(label, predicted, len(dataset.classes))
            matrices[trials[name].group] = matrices.get(trials[name].group, np.zeros_like(matrix)) + matrix
            unscored += without_row
            scored.add(name)
    if not scored:
        raise InputError(f"none of the {len(trials):,} labelled trials of {dataset.name} has a prediction",
                         where=preds.path, hint="check --preds, --split and the data set")
    lost = [name for name in trials if name not in scored]
    shared = [i for i, name in enumerate(dataset.classes) if name not in names.target_only]
    every = range(len(dataset.classes))
    copied = {trials[name].group for name in scored if trials[name].copied}
    original = [matrix for group, matrix in matrices.items() if group not in copied]
    second = {"without_copies": _figures(original, dataset, every, config)} if copied and np.any(original) else {}
    return {"predictions": str(preds.path), "dataset": dataset.name, "split": config.split, "level": level,
            "rule": io.POOLED if level == "clip" else "every labelled frame", "metric": dataset.metric,
            "notice": dataset.notice, "classes": list(dataset.classes), "map": names.describe(),
            "lost": list(names.source_only), "never": list(names.target_only), "unscored_frames": unscored,
            "trials": len(scored), "trials_without_prediction": lost, "config": config.settings(),
            "all": _figures(matrices.values(), dataset, every, config),
            "shared": _figures(matrices.values(), dataset, shared, config)} | second


def _compared(trial: Trial, clip: io.ClipPredictions, names: labels.LabelMap, level: str
              ) -> tuple[NDArray[Any], NDArray[Any], int]:
    """Return the labels and predictions to compare, ``(n,)``, and the number of labelled frames without a row."""
    if level == "clip":
        if trial.clip_label < 0:
            raise InputError("it has frame labels but no clip label", where=trial.name,
                             hint="score it with --level frame")
        return np.array([trial.clip_label]), np.array([clip.pooled(names.probs(clip.probs)).argmax()]), 0
    labels_by_frame = trial.frame_labels(int(clip.frame[-1]))
    label = labels_by_frame[clip.frame - 1]
    without_row = int((labels_by_frame >= 0).sum() - (label >= 0).sum())
    return label, names.predicted(clip.probs, clip.label_pred), without_row


def _figures(by_group: Iterable[Counts], dataset: Dataset, keep: Sequence[int], config: ScoreConfig
             ) -> dict[str, Any]:
    """Return the scores over the classes to `keep`, with the recall of each, of confusion matrices ``(C, C)``."""
    classes = [dataset.classes[i] for i in keep]
    matrices = np.array([matrix for each in by_group if (matrix := each[np.ix_(keep, keep)]).any()], np.int64)
    matrices = matrices.reshape(-1, len(keep), len(keep))
    sampler = metrics.Resampler(len(matrices), config.bootstrap, config.seed)
    total = matrices.sum(0)
    recall = np.diag(total) / np.maximum(total.sum(1), 1)
    return {**metrics.score_predictions(matrices, classes, dataset.metric, sampler).json(),
            "recall": dict(zip(classes, recall.tolist(), strict=True)), "confusion": total.tolist()}


def score_table_lines(report: dict[str, Any]) -> RenderableType:
    """Return the figures as a table of at most 80 columns, to be printed by rich."""
    whole, shared = report["all"], report["shared"]
    unit = "clips" if report["level"] == "clip" else "labelled frames"
    title = f"{report['dataset']}, {report['split']}: {whole['frames']:,} {unit} of {whole['groups']:,} groups"
    parts: list[RenderableType] = [Text(title, "bold"), _scores(report, whole, shared), _classes(report, whole)]
    for title, words in (("classes", report["map"]), ("scored", report["rule"]), ("note", report["notice"])):
        if words:
            parts.append(Text.assemble((f"{title}: ", "bold"), words))
    parts += [Text(words, "yellow") for words in score_warnings(report)]
    return Group(*parts)


def score_warnings(report: dict[str, Any]) -> list[str]:
    """Return what could not be scored, in words."""
    lost = report["trials_without_prediction"]
    predicted = []
    if lost:
        predicted.append(f"{len(lost):,} labelled trials have no prediction: {shorten_list(lost, SHOWN)}")
    if report["unscored_frames"]:
        predicted.append(f"{report['unscored_frames']:,} labelled frames have no prediction")
    return predicted


def _scores(report: dict[str, Any], whole: dict[str, Any], shared: dict[str, Any]) -> Table:
    why_none = whole["why_none"]
    table = Table(caption=f"no intervals: {why_none}" if why_none else "brackets: 95 % by bootstrap over groups",
                 box=box.SIMPLE_HEAD, caption_justify="left", pad_edge=False)
    table.add_column("")
    table.add_column("all classes", justify="right")
    if report["never"]:
        table.add_column(f"the {len(shared['f1'])} shared ones", justify="right")
    columns = [whole, shared][:1 + bool(report["never"])]
    if "without_copies" in report:
        columns.append(report["without_copies"])
        table.add_column(f"without {whole['frames'] - columns[-1]['frames']:,} copies", justify="right")
    for key in metrics.DISTINCT:
        style = "bold green" if key == report["metric"] else ""
        table.add_row(metrics.METRICS[key].title, *(_figure(one, key) for one in columns), style=style)
    return table


def _figure(scores: dict[str, Any], key: str) -> str:
    low, high = (scores["intervals"] or {}).get(key, (None, None))
    return f"{scores[key]:.3f}" + (f" ({low:.3f}-{high:.3f})" if low is not None else "")


def _classes(report: dict[str, Any], whole: dict[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("class", "F1", "recall", "clips" if report["level"] == "clip" else "frames"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for name in report["classes"]:
        table.add_row(name, f"{whole['f1'][name]:.3f}", f"{whole['recall'][name]:.3f}", f"{whole['support'][name]:,}",
                     style="dim" if name in report["never"] else "")
    return table
