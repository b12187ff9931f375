"""`fercache check`: compare a data set with its clips, in seconds and without the CNN, before a long extraction."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil, prod
from pathlib import Path
from typing import Any

import numpy as np

from fercache import run_log
from fercache.backbones import weights
from fercache.config import FAST, FAST_TIME, ExtractConfig
from fercache.data.base import Dataset, FrameTable, Issue, Trial
from fercache.diagnostics import check_issues
from fercache.diagnostics.check_issues import ClipFacts, ClipIndex, LengthComparison
from fercache.faces import crops
from fercache.faces.interpolation import embedded_share
from fercache.runtime.progress import format_bytes, format_duration
from fercache.store.layout import FRAME_COLUMNS, Grid


@dataclass(frozen=True, kw_only=True)
class ExtractionCost:
    """Disk space and time that extraction will need."""

    faces: str
    # `clips`, `frames`: counted ones; the `unknown` clips have no stated length and are in no figure
    clips: int
    frames: int
    unknown: int
    # `bytes_a_frame`, `bytes`: taps and frame table; `bytes` includes the padding of each clip's last chunk. None if
    # the CNN's outputs are not known without opening it.
    bytes_a_frame: int | None
    bytes: int | None
    seconds: float | None  # None if no rate is known; `basis` is the source of the rate, or why there is none
    basis: str
    # bytes and seconds of `fercache extract --fast`, None where they are not known or --fast is no choice
    fast: tuple[int | None, float | None] | None = None


def _estimate_cost(dataset: Dataset, tables: Sequence[FrameTable], config: ExtractConfig, cache: Path,
                   rate: float) -> ExtractionCost:
    """Return the cost of extracting these trials; `rate`: assumed frames per second, 0 for the measured rate."""
    from fercache.backbones.taps import tap_shapes  # imports torch, which takes seconds: only where it is needed

    faces = dataset.faces if config.faces == "auto" else config.faces
    lengths = [table.stored for table in tables if table.stored]
    frames = sum(lengths)
    row: int | None = None
    total: int | None = None
    if weights.is_facenet(config.weights):  # others have taps of their own, known once the net is opened
        shapes = crops.with_views(tap_shapes(config.taps), config.augmentations).values()
        share, columns = embedded_share(config.embed_every), len(FRAME_COLUMNS) + (config.embed_every != "1")
        row = round(2 * sum(map(prod, shapes)) * share) + 8 * columns
        # The last chunk of a clip is as long as the others, so a clip takes more than its frames.
        grids = [grid for length in lengths
                 for grid in (*(Grid((ceil(length * share), *shape), "float16") for shape in shapes),
                              Grid((length, columns), "float64"))]
        total = sum(grid.count * grid.chunk_bytes for grid in grids)
    measured = run_log.latest_rate(cache, faces, config) if faces and not rate else None
    if rate:
        seconds, basis = frames / rate, f"assuming {rate:g} frames/s (--rate)"
    elif measured:
        seconds, basis = frames / measured.per_second, (
            f"at {measured.per_second:.1f} frames/s, measured here over {measured.frames:,} frames ({measured.faces}, "
            f"{measured.backbone}, {measured.precision}, {measured.device}, {measured.threads} threads)")
    else:
        seconds, basis = None, ("no rate was measured in this cache yet: `fercache extract` measures it with "
                                f"{run_log.MIN_FRAMES} frames or more; --rate assumes one")
    fast = None
    if (config.precision, config.embed_every, rate) == ("float32", "1", 0) and weights.is_facenet(config.weights):
        quick = _estimate_cost(dataset, tables, replace(config, **FAST), cache, 0.0)
        fast = quick.bytes, quick.seconds or (seconds and seconds * FAST_TIME)
    return ExtractionCost(faces=faces, clips=len(lengths), frames=frames, unknown=len(tables) - len(lengths),
                          bytes_a_frame=row, bytes=total, seconds=seconds, basis=basis, fast=fast)


@dataclass(frozen=True, kw_only=True)
class SplitCount:
    """Counts of one split."""

    trials: int
    labelled_trials: int
    groups: int
    frames: int  # rows of the frame tables; `labelled` of them have a label
    labelled: int
    # `no_crop`, `no_crop_labelled`: rows without a crop, and how many of these have a label
    no_crop: int
    no_crop_labelled: int
    counts: dict[str, int]  # class -> labelled frames (of a set with one label a clip: clips)


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """Result of a check."""

    dataset: str
    layout: str
    metric: str
    folds: int
    fold: int
    by_clip: bool  # the classes are counted in clips, not in frames
    splits: dict[str, SplitCount]
    # of each trial its name and so on, the `rows` of its frame table, `pictures`, annotation `lines`, frames in the
    # header of its `video`, and rows without a crop, some of them labelled
    clips: tuple[dict[str, Any], ...]
    lengths: tuple[LengthComparison, ...]
    issues: tuple[Issue, ...]
    cost: ExtractionCost
    # `clips_read`, `clips_known`: clips whose files were read, and whose facts an earlier check had read
    clips_read: int
    clips_known: int
    seconds: float

    @property
    def lost(self) -> bool:
        """Whether an issue loses data or spoils a score."""
        return any(issue.is_error for issue in self.issues)

    def json(self) -> dict[str, Any]:
        """Return the report as a JSON value."""
        return asdict(self) | {"lost": self.lost}


def check_dataset(dataset: Dataset, config: ExtractConfig, cache: Path, *, fresh: bool = False,
                  rate: float = 0.0) -> CheckReport:
    """Return counts and issues of a data set's clips and labels, and the cost of extracting them.

    Reads names and sizes of crops, and header and first frame of videos. ``cache/index/<dataset>.json`` stores them
    with the modification time of each folder, so a second check reads only what changed, unless `fresh`. `rate`:
    assumed frames per second; 0: as measured by earlier runs of `extract`.
    """
    started = time.monotonic()
    index, tables = _index_and_tables(dataset, cache, fresh)
    # Clip-level sets have one label per clip: their classes are counted in clips.
    by_clip = all(trial.labels is None for trial in dataset.trials)
    by_split = {split: [table for table in tables if table.trial.split == split]
                for split in ("train", "validation", "test")}
    return CheckReport(dataset=dataset.name, layout=dataset.layout, metric=dataset.metric, folds=dataset.folds,
                       fold=dataset.fold, by_clip=by_clip,
                       splits={split: _count(own, dataset.classes, by_clip) for split, own in by_split.items() if own},
                       clips=tuple(_clip(table) for table in tables), lengths=check_issues.compare_lengths(tables),
                       issues=tuple(check_issues.find_issues(dataset, tables, index.facts)),
                       cost=_estimate_cost(dataset, tables, config, cache, rate), clips_read=index.read,
                       clips_known=index.reused, seconds=time.monotonic() - started)


def predict_cost(dataset: Dataset, config: ExtractConfig, cache: Path) -> ExtractionCost:
    """Return the cost of extracting a data set; updates the index, as `check_dataset` does."""
    return _estimate_cost(dataset, _index_and_tables(dataset, cache, False)[1], config, cache, 0.0)


def _index_and_tables(dataset: Dataset, cache: Path, fresh: bool) -> tuple[ClipIndex, list[FrameTable]]:
    """Return the up-to-date index of the data set's files, and the frame tables of its trials."""
    index = ClipIndex.load(cache, dataset.name)
    index.refresh([*((trial.path, trial.kind) for trial in dataset.trials),
                   *((trial.video, "video") for trial in dataset.trials if trial.video)], fresh)
    return index, [frame_table_of(trial, index.facts) for trial in dataset.trials]


def frame_table_of(trial: Trial, facts: Mapping[str, ClipFacts]) -> FrameTable:
    """Return the frame table of a trial from the indexed facts of its clip and video."""
    own = facts[str(trial.path)]
    video = own if trial.kind == "video" else facts[str(trial.video)] if trial.video else None
    return FrameTable(trial=trial, crops=own.numbers() if trial.kind == "crops" else None,
                      lines=0 if trial.labels is None else len(trial.labels), video=video.frames if video else 0)


def _clip(table: FrameTable) -> dict[str, Any]:
    return {key: getattr(table.trial, key) for key in ("name", "kind", "split", "group")} | {
        key: getattr(table, key) for key in ("rows", "pictures", "lines", "video")} | dict(
        zip(("no_crop", "no_crop_labelled"), table.without_crop(), strict=True))


def _count(tables: Sequence[FrameTable], classes: Sequence[str], by_clip: bool) -> SplitCount:
    no_crop = [table.without_crop() for table in tables]
    frames = np.concatenate([table.labelled() for table in tables])
    clips = np.array([table.trial.clip_label for table in tables if table.trial.clip_label >= 0], np.int64)
    counts = np.bincount(clips if by_clip else frames, minlength=len(classes))
    return SplitCount(trials=len(tables), labelled_trials=sum(table.trial.labelled for table in tables),
                      groups=len({table.trial.group for table in tables}), frames=sum(table.rows for table in tables),
                      labelled=len(frames), no_crop=sum(rows for rows, _ in no_crop),
                      no_crop_labelled=sum(labelled for _, labelled in no_crop),
                      counts=dict(zip(classes, counts.tolist(), strict=True)))


WIDTH = 80
MAX_DIFFERENCES = 5


def report_lines(report: CheckReport) -> Iterator[str]:
    """Yield the lines of the report."""
    fold = f", fold {report.fold or 'none chosen'} of {report.folds}" if report.folds else ""
    yield f"{report.dataset}: {report.layout}{fold}, metric {report.metric}"
    yield ""
    yield f"{'':12}{'clips':>8}{'labelled':>9}{'groups':>8}{'frames':>12}{'labelled':>11}{'no crop':>9}{'labelled':>10}"
    for name, split in report.splits.items():
        yield (f"{name:12}{split.trials:>8,}{split.labelled_trials:>9,}{split.groups:>8,}{split.frames:>12,}"
               f"{split.labelled:>11,}{split.no_crop:>9,}{split.no_crop_labelled:>10,}")
    yield ""
    unit = "clips" if report.by_clip else "frames"
    yield f"{unit + ' of':16}" + "".join(f"{name:>12}" for name in report.splits)
    for label in next(iter(report.splits.values())).counts:
        yield f"  {label[:13]:14}" + "".join(f"{split.counts[label]:>12,}" for split in report.splits.values())
    for compared in report.lengths:
        yield from _length_lines(compared)
    yield ""
    yield from cost_lines(report.cost)
    yield ""
    for issue in report.issues:
        # Without breaks at hyphens: a wrapped file name could not be copied.
        yield from textwrap.wrap(f"{'LOST' if issue.is_error else 'note'}  {issue.message}: {issue.where}", WIDTH,
                                 subsequent_indent="      ", break_on_hyphens=False)
        if issue.hint:
            yield from textwrap.wrap(f"next: {issue.hint}", WIDTH, initial_indent="      ", subsequent_indent="      ",
                                     break_on_hyphens=False)
    lost = sum(issue.is_error for issue in report.issues)
    yield (f"{lost} issues that lose data or spoil a score, {len(report.issues) - lost} notes" if report.issues
           else "no issues found")
    yield (f"{report.clips_read} clips read, {report.clips_known} unchanged since an earlier check, "
           f"{report.seconds:.1f} s")


def _length_lines(compared: LengthComparison) -> Iterator[str]:
    yield ""
    yield f"{compared.name}: {compared.trials:,} trials"
    yield (f"  {compared.equal:,} equal, {compared.more:,} more (by {compared.extra:,} in all), "
           f"{compared.fewer:,} fewer ({compared.missing:,} missing)")
    for one in compared.differences[:MAX_DIFFERENCES]:
        sign = f"{one.missing:,} missing" if one.missing > 0 else f"{-one.missing:,} too many"
        yield f"    {one.trial[:40]:40} {one.there:>7,} of {one.expected:>7,}  {sign}"
    if len(compared.differences) > MAX_DIFFERENCES:
        yield f"    and {len(compared.differences) - MAX_DIFFERENCES:,} more (--json lists all)"


def cost_lines(cost: ExtractionCost) -> Iterator[str]:
    """Yield the cost of extraction as text."""
    unknown = f"; {cost.unknown} clips state no length and are not counted" if cost.unknown else ""
    faces = cost.faces or "mixed kinds: set --faces"
    yield f"extraction: {cost.clips:,} clips, {cost.frames:,} frames ({faces}){unknown}"
    if cost.bytes is not None and cost.bytes_a_frame is not None:
        yield (f"  disk: {format_bytes(cost.bytes)} ({cost.bytes_a_frame:,} bytes a frame, "
               "and the padding of last chunks)")
    else:
        yield "  disk: not known before the model is opened"
    time = "not known" if cost.seconds is None else format_duration(cost.seconds)
    yield from textwrap.wrap(f"time: {time}; {cost.basis}", WIDTH, initial_indent="  ", subsequent_indent="        ")
    if cost.fast and cost.fast[0] is not None:
        seconds = f"{format_duration(cost.fast[1])}" if cost.fast[1] else f"about {FAST_TIME:.0%} of the time"
        yield f"  extract --fast: {format_bytes(cost.fast[0])}, {seconds}; a little less exact"
