"""`fercache check`: a data set against its clips, in seconds and without the CNN, before hours are spent."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fercache.config import ExtractConfig
from fercache.data.base import Dataset, Trial
from fercache.data.frame_table import FrameClock
from fercache.diagnostics import check_issues, lengths_part
from fercache.diagnostics.check_issues import Finding
from fercache.diagnostics.cost_part import Cost, estimate
from fercache.diagnostics.index_part import Facts, Index
from fercache.diagnostics.lengths_part import Comparison


@dataclass(frozen=True, kw_only=True)
class SplitCount:
    """What one split holds.

    Attributes
    ----------
    frames : rows of the clocks; `labelled` of them have a label.
    bare, bare_labelled : rows without a crop, and how many of these have a label.
    counts : class -> labelled frames (of a set with one label a clip: clips).
    """

    trials: int
    labelled_trials: int
    groups: int
    frames: int
    labelled: int
    bare: int
    bare_labelled: int
    counts: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class ClipCount:
    """One trial's lengths: `rows` of its clock, `pictures` there are, annotation `lines`, frames its `video` states,
    and rows without a crop, of which some are labelled."""

    name: str
    kind: str
    split: str
    group: str
    rows: int
    pictures: int
    lines: int
    video: int
    bare: int
    bare_labelled: int


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a check found; `by_clip` says whether the classes are counted in clips."""

    dataset: str
    layout: str
    metric: str
    folds: int
    fold: int
    by_clip: bool
    splits: dict[str, SplitCount]
    clips: tuple[ClipCount, ...]
    lengths: tuple[Comparison, ...]
    findings: tuple[Finding, ...]
    cost: Cost
    clips_read: int
    clips_known: int
    seconds: float

    @property
    def lost(self) -> bool:
        """Whether something was found that loses data or spoils a score."""
        return any(one.lost for one in self.findings)

    def json(self) -> dict[str, Any]:
        """Return the report as a JSON value."""
        return asdict(self) | {"lost": self.lost}


def run(dataset: Dataset, config: ExtractConfig, cache: Path, *, fresh: bool = False, rate: float = 0.0) -> Report:
    """Return what is right and wrong with a data set's clips and labels, and what extracting them will cost.

    Parameters
    ----------
    fresh : read every folder again, whatever an earlier check found.
    rate : frames a second to assume (0: as measured by earlier runs of `extract`).

    Notes
    -----
    Reads the names and sizes of crops and the header and first frame of videos, once: they are kept in
    ``cache/index/<dataset>.json`` with each folder's time of change, and a second check reads only what changed.
    """
    started = time.monotonic()
    index, clocks = _looked(dataset, cache, fresh)
    compared = lengths_part.all_of(clocks)
    return Report(dataset=dataset.name, layout=dataset.layout, metric=dataset.metric, folds=dataset.folds,
                  fold=dataset.fold, by_clip=_by_clip(dataset), splits=_splits(dataset, clocks),
                  clips=tuple(_clip(clock) for clock in clocks), lengths=compared,
                  findings=tuple(check_issues.all_of(dataset, clocks, index.facts, compared)),
                  cost=estimate(clocks, _faces(dataset, config), config, cache, rate), clips_read=index.read,
                  clips_known=index.kept, seconds=time.monotonic() - started)


def cost_ahead(dataset: Dataset, config: ExtractConfig, cache: Path) -> Cost:
    """Return what extracting a data set's clips will cost; what was found in the clips is kept, as by `run`."""
    return estimate(_looked(dataset, cache, fresh=False)[1], _faces(dataset, config), config, cache, 0.0)


def _looked(dataset: Dataset, cache: Path, fresh: bool) -> tuple[Index, list[FrameClock]]:
    """Return what is known of the set's files, read where it is new, and the trials' clocks."""
    index = Index.load(cache, dataset.name)
    index.refresh([*((trial.path, trial.kind) for trial in dataset.trials),
                   *((trial.video, "video") for trial in dataset.trials if trial.video)], fresh)
    return index, [clock_of(trial, index.facts) for trial in dataset.trials]


def _faces(dataset: Dataset, config: ExtractConfig) -> str:
    return dataset.faces if config.faces == "auto" else config.faces


def clock_of(trial: Trial, facts: Mapping[str, Facts]) -> FrameClock:
    """Return the frame clock of a trial from what the index knows of its clip and of its video."""
    own = facts[str(trial.path)]
    video = own if trial.kind == "video" else facts[str(trial.video)] if trial.video else None
    return FrameClock(trial=trial, crops=own.numbers() if trial.kind == "crops" else None,
                      lines=0 if trial.labels is None else len(trial.labels), video=video.frames if video else 0)


def _clip(clock: FrameClock) -> ClipCount:
    bare, labelled = clock.without_crop()
    trial = clock.trial
    return ClipCount(name=trial.name, kind=trial.kind, split=trial.split, group=trial.group, rows=clock.rows,
                     pictures=clock.pictures, lines=clock.lines, video=clock.video, bare=bare, bare_labelled=labelled)


def _by_clip(dataset: Dataset) -> bool:
    return all(trial.labels is None for trial in dataset.trials)


def _splits(dataset: Dataset, clocks: Sequence[FrameClock]) -> dict[str, SplitCount]:
    """Return what each split that occurs holds."""
    counted = {}
    for split in ("train", "validation", "test"):
        own = [clock for clock in clocks if clock.trial.split == split]
        if own:
            counted[split] = _count(own, dataset.classes, _by_clip(dataset))
    return counted


def _count(clocks: Sequence[FrameClock], classes: Sequence[str], by_clip: bool) -> SplitCount:
    bare = [clock.without_crop() for clock in clocks]
    frames = np.concatenate([clock.labelled() for clock in clocks])
    clips = np.array([clock.trial.clip_label for clock in clocks if clock.trial.clip_label >= 0], np.int64)
    counts = np.bincount(clips if by_clip else frames, minlength=len(classes))
    return SplitCount(trials=len(clocks), labelled_trials=sum(clock.trial.labelled for clock in clocks),
                      groups=len({clock.trial.group for clock in clocks}), frames=sum(clock.rows for clock in clocks),
                      labelled=len(frames), bare=sum(rows for rows, _ in bare),
                      bare_labelled=sum(labelled for _, labelled in bare),
                      counts=dict(zip(classes, counts.tolist(), strict=True)))
