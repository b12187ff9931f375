"""What the report and the card show: the records of the runs, and one pass over the predictions, clip by clip."""

from __future__ import annotations

import base64
import csv
import heapq
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from fercache import metrics, run_log
from fercache.data import tables
from fercache.errors import FercacheError, InputError
from fercache.extraction import thumbnails
from fercache.oof import OofLogits, Provenance
from fercache.results import io, smoothing
from fercache.results.io import ClipPredictions, PredictionsFile
from fercache.runtime import atomic_io
from fercache.stacking import calibration, inputs
from fercache.stacking.run_metrics import LogitsRecord, SplitMetrics, StackMetrics, read_metrics
from fercache.store.embedding_store import EmbeddingStore
from fercache.workspace import FAILURES_OF_ANY_PART, Workspace

STAGES = ("extract", "train-heads", "stack")


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """The records of the runs behind a table of predictions."""

    preds: Path
    cache: Path
    metrics: StackMetrics | None  # ``preds.metrics.json``; None if there is no such file
    # `store`, `oof`: the features and the logits file behind the predictions; None if they are not in this cache
    store: EmbeddingStore | None
    oof: Path | None
    imported: tuple[Path, ...] = ()  # files of the imported logits that the stack merged with those at `oof`
    # stage -> seconds, frames and runs behind its result
    durations: dict[str, dict[str, float]] = field(default_factory=dict)
    # `check`, `ablation`: JSON values that those commands wrote; None if not given
    check: Any = None
    ablation: Any = None
    failures: tuple[tuple[str, str], ...] = ()  # (clip, error) of the last `extract`

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in order."""
        return self.metrics.classes if self.metrics else ()

    @property
    def final(self) -> str:
        """Name of the column that the predictions are from."""
        return self.metrics.final.column if self.metrics else ""

    @property
    def splits(self) -> dict[str, SplitMetrics]:
        """The scores by split."""
        return self.metrics.splits if self.metrics else {}

    @property
    def faces_stored(self) -> bool:
        """Whether stage one stored any picture of a face."""
        return self.store is not None and thumbnails.any_stored(self.cache, self.store)


def gather_run_info(preds: Path, cache: Path, check: Path | None = None, ablation: Path | None = None) -> RunInfo:
    """Return the records of the runs behind `preds`.

    `check`: file with the output of ``fercache check --json``; `ablation`: table of ``fercache ablation``, JSON or CSV.
    """
    path = io.metrics_path(preds)
    recorded = read_metrics(path) if path.is_file() else None
    dataset = recorded.dataset if recorded else ""
    logits = recorded.logits if recorded else LogitsRecord(fingerprint="", provenance=Provenance())
    store, store_path = None, Workspace(cache).features(dataset) / logits.provenance.store
    # A damaged store must not stop the report of the rest.
    with suppress(FercacheError):
        store = EmbeddingStore.open(store_path) if store_path.suffix == ".zarr" and store_path.is_dir() else None
    oof, imported = Workspace(cache).logits_file(dataset, logits.fingerprint), list[Path]()
    if recorded and not oof.is_file():
        # The fingerprint depends on the order of merging, which is that of --logits. A run on imported logits alone
        # merged all of them, sorted.
        names = recorded.config.get("logits") or sorted(logits.provenance.merged)
        merged = [name for name in names if name in logits.provenance.merged]
        oof, *imported = inputs.find_logits_files(cache, dataset, logits.fingerprint, merged) or (oof,)
    results = {"extract": store.path.name if store else "", "train-heads": oof.name,
               "stack": recorded.fingerprint[:12] if recorded else ""}
    runs = run_log.recorded_runs(cache, dataset) if dataset else []
    failures: dict[str, str] = {}
    # One file for a whole run, or one for each part of it.
    for path in sorted(Workspace(cache).features(dataset).glob(FAILURES_OF_ANY_PART)) if store else ():
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            failures |= {row[0]: row[1] for row in list(csv.reader(file))[1:] if len(row) == 2}
    return RunInfo(preds=preds, cache=cache, metrics=recorded, store=store, oof=oof if oof.is_file() else None,
                   imported=tuple(imported), check=_table(check), ablation=_table(ablation),
                   durations={stage: run_log.total_seconds(runs, stage, results[stage]) for stage in STAGES},
                   failures=tuple(failures.items()))


def _table(path: Path | None) -> Any:
    if path is None:
        return None
    if not path.is_file():
        raise InputError("no such file", where=path)
    if path.suffix != ".csv":
        return atomic_io.read_json(path)
    header = tables.read_header(path)
    return [dict(zip(header, row, strict=True)) for _, row in tables.read_rows(path)]


WIDTHS_S = (0.0, 0.1, 0.25, 0.5, 1.0, 1.5, 2.5, 5.0, 10.0, 20.0)  # half-widths to try, in seconds


class SmoothingCurve:
    """Confusion matrices by half-width, summed over the trials of the folds."""

    def __init__(self, classes: Sequence[str], metric: str) -> None:
        self.metric = metric
        self.counts = np.zeros((len(WIDTHS_S), len(classes), len(classes)), np.int64)

    def add(self, oof: OofLogits, trial: int) -> None:
        """Count one trial; one without a label, a face or a fold is skipped."""
        rows = oof.rows(trial)
        label, valid, time_s = oof.label[rows].astype(np.int64), oof.valid[rows], oof.time_s[rows]
        if oof.fold[trial] < 0 or not (label >= 0).any() or not valid.any():
            return
        mean = np.mean([log_softmax(values[rows].astype(float), axis=1) for values in oof.logits.values()], axis=0)
        for i, width_s in enumerate(WIDTHS_S):
            smooth = smoothing.moving_mean(mean, valid, smoothing.window_reach(time_s, width_s, width_s))
            self.counts[i] += metrics.confusion(label, smooth.argmax(1), len(self.counts[i]))

    def scores(self) -> NDArray[np.float64]:
        """Return the data set's own metric at each half-width, ``(len(WIDTHS_S),)``."""
        return np.asarray(metrics.official(self.metric)(self.counts), float)


# Steps of a drawn probability: it fits one byte, and half a step (.002) is less than a pixel.
STEPS = 250
UNKNOWN = 255  # class of an interval without labels in a strip
BYTES_FIXED = 6
"""Bytes per point, before base64, beside two lines a class and one strip for labels, predictions and each head: time,
and fractions of wrong frames and of frames without a face."""
Bytes = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class ThinnedSeries:
    """A drawn clip: N points, each for an interval of one or more frames, so that no peak is lost."""

    frames: int
    time_s: NDArray[np.float32]  # (N + 1,) float32, start of each interval, and end of the last one
    # `low`, `high`: (N, C) smallest and largest probability in each interval, in 1 / STEPS
    low: Bytes
    high: Bytes
    strips: dict[str, Bytes]  # name -> (N,) most frequent class of each interval, UNKNOWN if most frames have no label
    # `wrong`, `gap`: (N,) fraction of wrong frames, and of frames without a face, in 1 / STEPS, rounded up so that a
    # single frame shows
    wrong: Bytes
    gap: Bytes

    @property
    def whole(self) -> bool:
        """Whether every frame is drawn."""
        return len(self.wrong) == self.frames

    def packed(self) -> str:
        """Return the arrays one after the other, in base64: time, low, high (unless `whole`), strips, wrong, gap."""
        lines = [self.low] if self.whole else [self.low, self.high]
        arrays = [self.time_s.astype("<f4"), *lines, *self.strips.values(), self.wrong, self.gap]
        return base64.b64encode(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).decode()


def thin_series(series: ClipPredictions, heads: dict[str, NDArray[np.integer]], most: int) -> ThinnedSeries:
    """Return a clip drawn with at most `most` points. `heads`: name -> (T,) predicted class of each head."""
    frames, classes = series.probs.shape
    # Intervals differ by at most one frame in length.
    border = np.linspace(0, frames, min(frames, most) + 1).astype(np.int64)
    start, number = border[:-1], np.diff(border)
    strips = {"truth": series.label, "prediction": series.label_pred, **heads}
    # The last frame takes as long as the median frame, so that it is as wide as the others.
    time_s = series.time_s
    end_s = time_s[-1] + (float(np.median(np.diff(time_s))) if len(time_s) > 1 else 0.04)
    return ThinnedSeries(frames=frames, time_s=np.append(time_s[start], end_s).astype(np.float32),
                         low=_rounded(np.minimum.reduceat(series.probs, start)),
                         high=_rounded(np.maximum.reduceat(series.probs, start)),
                         strips={name: _most_frequent(values, start, classes) for name, values in strips.items()},
                         wrong=_fraction(series.wrong, start, number), gap=_fraction(~series.valid, start, number))


def points(lengths: Sequence[int], bytes_each: int, budget: int, most: int, least: int) -> int:
    """Return the largest number of points per clip, in `least` to `most`, with which all clips fit `budget` bytes."""
    frames = np.array(lengths, np.int64)
    # The size of the page grows with the number of points.
    return least + bisect_right(range(least + 1, most + 1), budget,
                                key=lambda number: np.minimum(frames, number).sum() * bytes_each * 4 / 3)


def _rounded(fractions: NDArray[np.float64]) -> Bytes:
    return np.asarray(np.clip(np.rint(fractions * STEPS), 0, STEPS), np.uint8)


def _fraction(mask: NDArray[np.bool_], start: NDArray[np.int64], number: NDArray[np.int64]) -> Bytes:
    # Rounded up, so that a single wrong frame of a long interval shows.
    return np.asarray(np.ceil(np.add.reduceat(mask.astype(np.int64), start) / number * STEPS), np.uint8)


def _most_frequent(values: NDArray[np.integer], start: NDArray[np.int64], classes: int) -> Bytes:
    """Return the most frequent class in each interval; the first of equal ones."""
    each = np.where(values < 0, classes, values)[:, None] == np.arange(classes + 1)
    found = np.add.reduceat(each.astype(np.int32), start).argmax(1)
    return np.asarray(np.where(found == classes, UNKNOWN, found), np.uint8)


BUDGET = 14_000_000  # bytes of the page for timelines; with plotly (4.8 MB) and pictures the page stays under 30 MB
MOST_POINTS, LEAST_POINTS = 4000, 24
MISTAKES = 24
MISTAKES_A_CLIP = 2
# Frames of the shortest shown mistake: a shorter one is a border that is a few frames off.
SHORTEST = 5
ALL = "all"  # name of the split of clips whose split is unknown


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """An interval of a clip in which one class is predicted for another."""

    clip: str
    start_s: float
    end_s: float
    frames: int
    truth: int
    label_pred: int
    prob: float
    split: str


@dataclass(frozen=True, kw_only=True)
class ClipSummary:
    """One clip of the list: its counts, its most frequent mistake (truth, prediction, frames), and its timeline."""

    name: str
    split: str
    group: str
    frames: int
    seconds: float
    seen: int
    labelled: int
    wrong: int
    top_mistake: tuple[int, int, int] | None
    drawn: ThinnedSeries | None

    def rank(self) -> tuple[float, int, str]:
        """Return the sort key of the list: the most wrong first, clips without labels last."""
        return (-self.wrong / self.labelled if self.labelled else 1.0, -self.wrong, self.name)


@dataclass
class ReportData:
    """What one pass over the predictions collects."""

    classes: tuple[str, ...]
    heads: tuple[str, ...] = ()
    clips: list[ClipSummary] = field(default_factory=list)
    matrix: dict[str, metrics.Counts] = field(default_factory=dict)  # split -> (C, C) counts
    bins: dict[str, NDArray[np.float64]] = field(default_factory=dict)  # split -> `calibration.bin_counts`
    mistakes: list[Mistake] = field(default_factory=list)
    # score of the heads' mean against the half-width of smoothing; None without a logits file
    curve: SmoothingCurve | None = None
    most: int = MOST_POINTS

    @property
    def frames(self) -> int:
        """Frames of all clips."""
        return sum(clip.frames for clip in self.clips)

    @property
    def undrawn(self) -> int:
        """Number of clips without a timeline."""
        return sum(clip.drawn is None for clip in self.clips)


def collect_report_data(preds: Path, logits_file: Path | None, imported: Sequence[Path] = ()) -> ReportData:
    """Return the results of one pass over `preds` and its logits file, after one that counts rows.

    `imported`: files of imported logits that the stack merged with it.
    """
    table = PredictionsFile(preds)
    lengths = table.lengths()
    with inputs.open_merged(logits_file, imported) if logits_file else nullcontext() as oof:
        found = ReportData(classes=table.classes, heads=oof.heads if oof else ())
        each = BYTES_FIXED + 2 * len(found.classes) + 2 + len(found.heads)
        found.most = points(list(lengths.values()), each, BUDGET, MOST_POINTS, LEAST_POINTS)
        found.curve = SmoothingCurve(found.classes, oof.metric) if oof else None
        place = {name: i for i, name in enumerate(oof.trials)} if oof else {}
        found.clips = [_clip(found, rows, oof, place.get(rows.name)) for rows in table.clips()]
    found.clips.sort(key=ClipSummary.rank)
    # With very many clips even the fewest points exceed the budget: the last in the list lose their timeline.
    bytes_left = BUDGET * 3 / 4  # base64 makes four bytes of three
    for i, clip in enumerate(found.clips):
        bytes_left -= len(clip.drawn.wrong) * each if clip.drawn else 0
        if bytes_left < 0:
            found.clips[i] = replace(clip, drawn=None)
    found.mistakes = sorted(found.mistakes, key=lambda m: (-m.prob, m.clip, m.start_s))[:MISTAKES]
    return found


def _clip(found: ReportData, rows: ClipPredictions, oof: OofLogits | None, trial: int | None) -> ClipSummary:
    """Count one clip and return its line of the list."""
    name, split, group, heads = rows.name, ALL, "", dict[str, Any]()
    # With another number of rows the table is of another run.
    if oof is not None and trial is not None and len(rows.label) == np.diff(oof.offsets)[trial]:
        split, group = oof.split[trial], oof.group[trial]
        heads = {head: values[oof.rows(trial)].argmax(1) for head, values in oof.logits.items()}
        if found.curve is not None:
            found.curve.add(oof, trial)
    _count(found, split, rows)
    # A few per clip, so that one bad clip does not fill the list.
    found.mistakes += heapq.nlargest(MISTAKES_A_CLIP, _mistakes(name, split, rows), key=lambda m: m.prob)
    # Pruned now and then, so that memory does not grow with the number of clips.
    if len(found.mistakes) > 100 * MISTAKES:
        found.mistakes = heapq.nlargest(MISTAKES, found.mistakes, key=lambda m: m.prob)
    wrong = rows.wrong
    pairs = Counter(zip(rows.label[wrong].tolist(), rows.label_pred[wrong].tolist(), strict=True)).most_common(1)
    return ClipSummary(name=name, split=split, group=group, frames=len(wrong), seconds=float(rows.time_s[-1]),
                       seen=int(rows.valid.sum()), labelled=int((rows.label >= 0).sum()), wrong=int(wrong.sum()),
                       top_mistake=(*pairs[0][0], pairs[0][1]) if pairs else None,
                       drawn=thin_series(rows, heads, found.most))


def _count(found: ReportData, split: str, rows: ClipPredictions) -> None:
    known = rows.label >= 0
    if not known.any():
        return
    classes = len(found.classes)
    counts = metrics.confusion(rows.label, rows.label_pred, classes)
    found.matrix[split] = found.matrix.get(split, np.zeros((classes, classes), np.int64)) + counts
    more = calibration.bin_counts(rows.probs[known].max(1), (rows.label == rows.label_pred)[known])
    found.bins[split] = found.bins.get(split, np.zeros_like(more)) + more


def _mistakes(name: str, split: str, rows: ClipPredictions) -> Iterator[Mistake]:
    """Yield the intervals of at least SHORTEST frames in which one class is predicted for another."""
    pair = np.where(rows.wrong, rows.label * len(rows.probs[0]) + rows.label_pred, -1)
    border = np.flatnonzero(np.diff(pair, prepend=-2, append=-2))
    for start, stop in zip(border[:-1].tolist(), border[1:].tolist(), strict=True):
        if pair[start] >= 0 and stop - start >= SHORTEST:
            predicted = int(rows.label_pred[start])
            yield Mistake(clip=name, start_s=float(rows.time_s[start]), end_s=float(rows.time_s[stop - 1]),
                          frames=stop - start, truth=int(rows.label[start]), label_pred=predicted, split=split,
                          prob=float(rows.probs[start:stop, predicted].mean()))
