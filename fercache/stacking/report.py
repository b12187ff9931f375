"""The metrics of a stack run: the JSON value beside `preds.csv`, and its table for the terminal."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from fercache import __version__, metrics
from fercache.config import StackConfig
from fercache.metrics import Scores
from fercache.oof import OofLogits
from fercache.results import missing_faces
from fercache.stacking import calibration, features, models, run_metrics
from fercache.stacking.candidates import DESCRIPTIONS, leaky_heads
from fercache.stacking.nested_cv import LEARNED, NestedResult, Probs
from fercache.stacking.run_metrics import Calibration, FinalRecord, FoldGroups, RefitRecord, SplitMetrics, StackMetrics

OUT_OF_FOLD = "out of fold: by models that saw nothing of the frame's group"
HELD_OUT = "by models of the training groups only"
SPLITS = ("train", "validation", "test")
FEW_LEARNT = "nothing was learned: without one of the folds, no labeled frame has a face"
OUT_OF_FOLD_TOO = ("the heads were refitted on train and validation (refit = all): folds go over both, and every score "
                   "is out of fold")
REFITTED = "fitted on this split too (refit = all), so it has no score"


@dataclass(frozen=True, kw_only=True)
class StackRun:
    """The results that a report describes: all columns, the final one, its temperatures, and the rejected ones."""

    oof: OofLogits
    config: StackConfig
    nested: NestedResult
    columns: dict[str, Probs]
    final: FinalRecord  # without its temperature
    temperatures: dict[int, float]
    rejected: dict[str, str]

    @property
    def metric(self) -> str:
        """The metric that selects the final column."""
        return self.config.metric or self.oof.metric


def build_report(run: StackRun, fingerprint: str) -> StackMetrics:
    """Return all scores of all columns, and the inputs and settings of the run with this fingerprint."""
    oof, config = run.oof, run.config
    splits = {split: scores for split in SPLITS if (scores := _split(run, split)) is not None}
    leaky = leaky_heads(oof, run.columns)
    return StackMetrics(
        version=run_metrics.FORMAT, fingerprint=fingerprint, fercache=__version__, dataset=oof.dataset,
        notice=oof.notice, classes=oof.classes, metric=run.metric, level=config.level, causal=config.causal,
        refit=_refit(run),
        final=msgspec.structs.replace(run.final, temperature=run.temperatures[-1]),
        temperatures={str(fold): t for fold, t in run.temperatures.items()},
        warnings=_losing(splits["train"], run.metric) if "train" in splits else (),
        flags=tuple(f"{name}: {why}" for name, why in (*leaky.items(), *run.rejected.items())), rejected=run.rejected,
        order=tuple(run.columns), columns={name: DESCRIPTIONS.get(name, "head") for name in run.columns},
        gap_policy=(f"{config.missing_faces}: {missing_faces.POLICIES[config.missing_faces]}; "
                    f"{missing_faces.FACELESS_CLIP}"),
        frames_without_face=int((~oof.valid).sum()),
        splits=splits, folds=_folds(oof), declared=oof.declared,
        fold_models=tuple(model.record for model in run.nested.fold_models.values()) or FEW_LEARNT,
        importances=_importances(run), frames=len(oof.label), trials=len(oof.trials), config=config.settings(),
        logits=run_metrics.LogitsRecord(fingerprint=oof.fingerprint, provenance=oof.provenance))


def _losing(train: SplitMetrics, metric: str) -> tuple[str, ...]:
    scores = {name: one.official for name, one in train.all_frames.items()}
    mine = scores.get("stack", float("inf"))
    return tuple(f"the stacker loses out of fold: {name} has {score:.4f} {metric}, stack {mine:.4f}"
                 for name, score in scores.items() if score > mine)


def _folds(oof: OofLogits) -> tuple[FoldGroups, ...]:
    fold, found = oof.per_row(oof.fold), []
    for k in range(int(oof.fold.max()) + 1):
        label = oof.label[(fold == k) & (oof.label >= 0)]
        count = np.bincount(label, minlength=len(oof.classes)).tolist()
        found.append(FoldGroups(fold=k, groups=tuple(sorted(oof.fold_groups(k))),
                                labelled=dict(zip(oof.classes, count, strict=True))))
    return tuple(found)


def _refit(run: StackRun) -> RefitRecord:
    """Return which parts were fitted on the validation split as well, and what that means for its scores."""
    heads = run.oof.provenance.setting("refit") == "all"
    stacker = run.config.refit == "all"
    out_of_fold = heads and bool((run.oof.fold[np.array(run.oof.split) == "validation"] >= 0).any())
    return RefitRecord(stacker=stacker or out_of_fold, heads=heads,
                       why=OUT_OF_FOLD_TOO if out_of_fold else REFITTED if stacker or heads else "")


def _split(run: StackRun, split: str) -> SplitMetrics | None:
    """Return the scores on one split; None if it has no labeled frame."""
    oof, config = run.oof, run.config
    rows = (oof.label >= 0) & oof.per_row(np.array(oof.split) == split)
    if not rows.any():
        return None
    out_of_fold, refitted = bool((oof.per_row(oof.fold)[rows] >= 0).all()), _refit(run).heads
    # A column that was fitted on the validation rows has no honest score there.
    predicted = {name: values.argmax(1).astype(np.int16) for name, values in run.columns.items()
                 if out_of_fold or split != "validation"
                 or not (refitted or (config.refit == "all" and name in LEARNED))}
    if not predicted:
        return SplitMetrics(predicted=REFITTED, all_frames={}, frames_with_face={}, paired={},
                            calibration=Calibration())
    everywhere, seen = ({name: oof.confusions(column, some) for name, column in predicted.items()}
                        for some in (rows, rows & oof.valid))
    # The same draws for every column: their differences are paired.
    samplers = [metrics.Resampler(len(next(iter(m.values()))), config.bootstrap, config.seed) for m in
                (everywhere, seen)]
    return SplitMetrics(
        predicted=OUT_OF_FOLD if out_of_fold else HELD_OUT,
        title=f"{split}, out of fold" if out_of_fold and split != "train" else "",
        all_frames={name: metrics.score_predictions(m, oof.classes, run.metric, samplers[0])
                    for name, m in everywhere.items()},
        frames_with_face={name: metrics.score_predictions(m, oof.classes, run.metric, samplers[1])
                          for name, m in seen.items()},
        paired=samplers[0].pairs(everywhere, run.metric), calibration=_calibration(run, rows, predicted))


def _calibration(run: StackRun, rows: NDArray[np.bool_], names: Iterable[str]) -> Calibration:
    """Return the calibration error of each column, and the final one's reliability before and after its temperature."""
    label, final = run.oof.label[rows], run.final.column
    found = {name: calibration.reliability(run.columns[name][rows], label) for name in names}
    if final not in found:
        return Calibration(ece={name: one.ece for name, one in found.items()})
    tempered = calibration.apply_by_fold(run.oof, run.columns[final], run.temperatures)[rows]
    after = calibration.reliability(tempered, label)
    return Calibration(ece={name: one.ece for name, one in found.items()},
                       final=run_metrics.TemperedReliability(before=found[final], after=after))


def _importances(run: StackRun) -> tuple[tuple[str, float], ...]:
    """Return each used feature's fraction of the gain, the largest first, in the model of all folds."""
    if -1 not in run.nested.fold_models:
        return ()
    names = features.feature_columns(run.oof, run.config.causal).names
    named = zip(names, models.gains(run.nested.fold_models[-1].trees).tolist(), strict=True)
    return tuple((name, round(gain, 6)) for name, gain in sorted(named, key=lambda pair: -pair[1]) if gain > 0)


# The table of scores for the terminal.

TITLES = {"train": "train, out of fold", "validation": "validation", "test": "test"}
# A fourth column with an interval does not fit 80 characters.
SHOWN = ("macro_f1", "accuracy", "abaw2")
CLASS_WIDTH = 7


def score_table(report: StackMetrics) -> RenderableType:
    """Return the metrics of a run as a rich table, at most 80 columns wide."""
    final = report.final
    parts: list[RenderableType] = []
    for split, title in TITLES.items():
        scores = report.splits.get(split)
        if scores is not None and scores.all_frames:
            parts += [_scores(report, scores, scores.title or title), _classes(report, scores)]
        elif scores is not None:
            parts.append(Text(f"{title}: {scores.predicted}", "yellow"))
    parts += [_gain(report, report.splits[split], title) for split, title in TITLES.items()
              if split in report.splits and report.splits[split].paired]
    parts.append(Text.assemble(("final: ", "bold"), (final.column, "bold green"), f"  ({final.why})"))
    parts += [Text(line, "yellow") for line in report.warnings]
    parts += [Text(f"FLAG  {flag}", "bold red") for flag in report.flags]
    parts.append(Text.assemble(("gaps: ", "bold"), report.config["missing_faces"], (
        f"  (of {report.frames:,} frames {report.frames_without_face:,} have no face)", "dim")))
    if report.notice:
        parts.append(Text(report.notice, "yellow"))
    return Group(*parts)


def as_text(shown: RenderableType) -> str:
    """Return what rich would print on a terminal of 80 columns, without colors."""
    text = io.StringIO()
    Console(file=text, width=80).print(shown)
    return text.getvalue().rstrip()


def _scores(report: StackMetrics, split: SplitMetrics, title: str) -> Table:
    any_ = next(iter(split.all_frames.values()))  # frames, groups and reason are the same for every column
    note = any_.why_none and f"no intervals: {any_.why_none}"
    grid = Table(title=f"{title}: {any_.frames:,} {report.level}s of {any_.groups} groups",
                 box=box.SIMPLE_HEAD, title_justify="left", title_style="bold",
                 caption=note or "brackets: 95 % by bootstrap over groups", caption_justify="left",
                 padding=(0, 1, 0, 0), pad_edge=False)
    grid.add_column("")
    last = metrics.METRICS["uar"].title if report.level == "clip" else "with face"
    for heading in (*(metrics.METRICS[name].title for name in SHOWN), last):
        grid.add_column(heading, justify="right")
    for name, scores in _ordered(report, split.all_frames):
        style = "bold green" if name == report.final.column else ""
        value = scores.figures["uar"] if report.level == "clip" else split.frames_with_face[name].figures["macro_f1"]
        grid.add_row(name, *(_figure(scores, key) for key in SHOWN), f"{value:.3f}", style=style)
    return grid


def _ordered(report: StackMetrics, rows: dict[str, Scores]) -> list[tuple[str, Scores]]:
    """Return (column, scores) in the columns' order, which a JSON file does not keep."""
    return [(name, rows[name]) for name in report.order if name in rows]


def _gain(report: StackMetrics, split: SplitMetrics, title: str) -> Text:
    """Return the gain of the final column over the best head and the plain mean, with paired intervals."""
    final = report.final.column
    # Against the best single head and the plain mean: a stack that beats neither is not worth its cost.
    heads = [name for name, what in report.columns.items() if what == "head"]
    best = max(heads, key=lambda name: split.all_frames[name].official)
    lines = []
    for other in dict.fromkeys([best, "mean"]):
        pair = split.paired.get(f"{final} - {other}")
        if pair:
            found = pair.official
            span = "[{:+.3f}, {:+.3f}]".format(*found.interval) if found.interval else "no interval"
            lines.append(f"{split.title or title}: {final} - {other}  {found.difference:+.3f} {report.metric} {span} "
                         "paired")
    return Text("\n".join(lines), "dim")


def _figure(scores: Scores, key: str) -> Text:
    span = (scores.intervals or {}).get(key)
    around = Text(" {:.3f}-{:.3f}".format(*span).replace("0.", "."), "dim") if span else Text()
    return Text(f"{scores.figures[key]:.3f}") + around


def _classes(report: StackMetrics, split: SplitMetrics) -> Table:
    support = next(iter(split.all_frames.values())).support
    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    grid.add_column("F1 by class")
    for name in report.classes:
        short = name if len(name) <= CLASS_WIDTH else name[:CLASS_WIDTH - 1] + "."
        grid.add_column(short, justify="right", no_wrap=True)
    for column, scores in _ordered(report, split.all_frames):
        style = "bold green" if column == report.final.column else ""
        grid.add_row(column, *(f"{scores.f1[name]:.3f}" for name in report.classes), style=style)
    grid.add_row("frames", *(f"{support[name]}" for name in report.classes), style="dim")
    return grid
