"""All heads x folds x members from one copy of the features; what is trained is kept and not redone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fercache.backbones import weights
from fercache.backbones.weights import files
from fercache.config import TrainConfig
from fercache.data import folds
from fercache.data.base import Dataset, Trial
from fercache.errors import InputError
from fercache.heads.base import DEFAULTS, DIRECT, HeadSettings
from fercache.runtime import atomic_io
from fercache.runtime.devices import resolve_device, use_threads
from fercache.runtime.fork_pool import ForkPool, ReportProgress
from fercache.runtime.progress import ProgressBar, format_duration, progress_bar
from fercache.store.multi_store import ReadableStore
from fercache.training import checkpoints, inference
from fercache.training.checkpoints import RunKey
from fercache.training.data import FrameDataset, load_features
from fercache.training.fit import FitTask, estimate_s, fit
from fercache.training.inference import mean_log_probs

log = logging.getLogger(__name__)


# From the recipe to what each head is trained with.

FEW_GROUPS_EPOCHS = 0.5
"""Share of the usual epochs that is run where too few groups leave nothing to choose the epoch by."""
OWN = {"loss": "", "label_smoothing": -1, "epochs": 0, "patience": -1, "width": 0, "dropout": -1, "lr": 0, "ema": -1,
       "mixup": -1, "noise": -1}
"""Keys of the recipe that every head has, and the value by which the recipe leaves it to the head."""
TEMPORAL = {"window_s": 0, "step_s": -1, "time_mask_s": -1}


def settings_for(head: str, config: TrainConfig, device: str, *, evidence: bool, fixed: bool) -> HeadSettings:
    """Return what a head is trained with: the recipe's word, else the head's own settings.

    Parameters
    ----------
    evidence : whether there is held-out evidence for temporal heads to read.
    fixed : whether there are too few groups to choose the number of epochs.
    """
    own = DEFAULTS[head]
    if own.temporal_input and not evidence:
        own = replace(own, temporal_input=False, **DIRECT[head])
    keys = OWN | (TEMPORAL if own.window_s else {})
    said: dict[str, Any] = {key: value for key, left in keys.items() if (value := getattr(config, key)) != left}
    made = replace(own, **said, precision=_precision(config.precision, device))
    if own.window_s:
        made = replace(made, clip_level=config.level == "clip" and not head.startswith("paper-"))
    elif head == "frame":
        made = replace(made, finetune_tap=config.finetune_tap)
    return replace(made, epochs=max(1, round(made.epochs * FEW_GROUPS_EPOCHS))) if fixed else made


def _precision(asked: str, device: str) -> str:
    return asked if asked != "auto" else "float32" if device == "cpu" else "bf16"


# Who learns from whom: the folds, and within each fold's training groups the part that watches a member.

MIN_VAL_PARTS = 2
VAL_FRACTION = 0.2
"""Share of a fold's training groups kept aside to choose the epoch by."""


class Splits:
    """Folds by group, and parts by group within them.

    Attributes
    ----------
    fold : (N,) int16, the fold that holds each trial out, -1 in none.
    k : how many folds.
    epochs_fixed : whether there are too few groups to choose an epoch by.
    parted : whether in each fold the training groups fall into parts, so that each can be told by members that did not
        learn from it.
    """

    def __init__(self, trials: Sequence[Trial], counts: NDArray[np.int64], config: TrainConfig) -> None:
        training = np.array([t.split in config.learns_from for t in trials])
        counts = counts * training[:, None]
        self.groups = [t.group if one else "" for t, one in zip(trials, training, strict=True)]
        self.fold = np.where(training, folds.assign_folds(self.groups, counts, config.folds, config.seed), -1
                             ).astype(np.int16)
        self.k = int(self.fold.max()) + 1
        learnt = {g for g, f in zip(self.groups, self.fold, strict=True) if f >= 0}
        self.epochs_fixed = len(learnt) < folds.MIN_GROUPS_TO_CHOOSE
        self._part = [self._parts_of(k, counts, config) for k in range(self.k)]
        self.parted = all(self.parts(k) >= MIN_VAL_PARTS for k in range(self.k))

    def _parts_of(self, k: int, counts: NDArray[np.int64], config: TrainConfig) -> NDArray[np.int16]:
        """Return the part of each of the fold's training trials, (N,), -1 elsewhere."""
        inside = np.flatnonzero((self.fold >= 0) & (self.fold != k))
        names = [self.groups[i] for i in inside]
        seed = config.seed * 1000 + k
        part = np.full(len(self.fold), -1, np.int16)
        if config.ensemble == 1:
            watch = folds.inner_groups(names, VAL_FRACTION, seed)
            part[inside] = [0 if name in watch else 1 for name in names]
        elif len(set(names)) < MIN_VAL_PARTS:
            part[inside] = 0
        else:
            part[inside] = folds.assign_folds(names, counts[inside], config.ensemble, seed)
        return part

    def parts(self, k: int) -> int:
        """Return how many parts a fold's training groups fall into."""
        return int(self._part[k].max()) + 1

    def part(self, k: int, part: int) -> list[int]:
        """Return the trials of a part."""
        return [int(i) for i in np.flatnonzero(self._part[k] == part)]

    def outside(self, k: int) -> list[int]:
        """Return the trials that a fold's members never learn from: those held out, and those of no fold."""
        return [int(i) for i in np.flatnonzero((self.fold < 0) | (self.fold == k))]

    def of(self, k: int, member: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the trials that a member learns from, and those that it is watched by (none: its epochs are fixed)."""
        inside = np.flatnonzero(self._part[k] >= 0)
        if self.parts(k) < MIN_VAL_PARTS:
            return tuple(map(int, inside)), ()
        own = self._part[k][inside] == member % self.parts(k)
        train, watch = tuple(map(int, inside[~own])), tuple(map(int, inside[own]))
        return train, () if self.epochs_fixed else watch


class CrossValidatedTraining:
    """The heads of one data set: folds decided, features read, each head of each fold trained or found.

    Attributes
    ----------
    records : what the JSON of each head says.
    trained : heads trained by this run; the others were found.
    """

    def __init__(self, dataset: Dataset, trials: Sequence[Trial], store: ReadableStore, config: TrainConfig,
                 folder: Path) -> None:
        self.dataset, self.trials, self.store, self.config, self.folder = dataset, trials, store, config, folder
        self.device = resolve_device(config.device)
        self.pool = ForkPool(self.device, use_threads(config.threads))
        torch.use_deterministic_algorithms(True, warn_only=self.device != "cpu")
        self.features: FrameDataset = load_features(store, trials, config.taps, views=config.augmentations == "draw",
                                          standardise=config.normalize, memory=config.memory,
                                          spool=folder.parent / "features")
        self.splits = Splits(trials, self.features.counts(len(dataset.classes)), config)
        honest = config.temporal_input == "oof-logits" and config.ensemble > 1 and self.splits.parted
        self.settings: dict[str, HeadSettings] = {
            head: settings_for(head, config, self.device, evidence=honest, fixed=self.splits.epochs_fixed)
            for head in {*config.heads, "frame"}}
        self._check_finetune_tap()
        first = [head for head in config.heads if not self.settings[head].temporal_input]
        self.second_stage = [head for head in config.heads if self.settings[head].temporal_input]
        self.first_stage = ["frame", *first] if self.second_stage and "frame" not in first else first
        self.oof_features: dict[int, FrameDataset] = {}
        self.records: list[dict[str, Any]] = []
        self.trained = 0
        self.cost_s: dict[str, float] = {}

    def _check_finetune_tap(self) -> None:
        """Refuse a tail that no head would have: it would be left out without a word."""
        tail = self.config.finetune_tap
        if tail and tail not in self.config.taps:
            raise InputError(f"{tail} is not among the taps that are read ({', '.join(self.config.taps)})",
                             where="finetune_tap", hint=f"add it: --taps {','.join((tail, *self.config.taps))}")
        if tail and not any(head == "frame" or self.settings[head].temporal_input for head in self.config.heads):
            raise InputError("no head uses finetune_tap", where="finetune_tap",
                             hint="add the frame head: --heads frame,...")

    def run(self) -> dict[str, NDArray[np.float32]]:
        """Return head -> (R, C) log-probabilities: out of fold where a fold holds the trial, else the folds' mean."""
        said: dict[str, NDArray[np.float32]] = {}
        missing = self._missing()
        self.trained = len(missing)
        self.cost_s = {head: self._cost_s(head) for head in {part.head for part in missing}}
        work_s = sum(self.cost_s[part.head] for part in missing)
        if missing:
            log.info("%d trainings to do, %d at a time: about %s if none stops early", len(missing), self.pool.at_once,
                     format_duration(work_s / self.pool.at_once))
        with progress_bar("train heads", work_s, "s of work") as bar:
            for heads in (self.first_stage, self.second_stage):
                self.pool.run(self._fit_and_save, [p for p in self._missing() if p.head in heads], bar)
                for head in heads:
                    said[head] = self._predictions(head, bar)
        self.records = [atomic_io.read_json(part.path(self.folder)) for part in self._parts()]
        return {head: said[head] for head in self.config.heads}

    def _cost_s(self, head: str) -> float:
        """Return about how long one training of the head takes on one core, by which the meter weighs them."""
        part = RunKey(head=head, fold=0, member=0)
        features = self.features
        if self.settings[head].temporal_input:
            said = np.zeros((len(features.label), len(self.dataset.classes)), np.float32)
            features = inference.oof_features(said, features, with_change=False)
        torch.set_num_threads(1)
        try:
            return max(estimate_s(self._task(part), features), 1e-3)
        finally:
            torch.set_num_threads(self.pool.threads)

    def _parts(self) -> list[RunKey]:
        return [RunKey(head=head, fold=k, member=m) for head in (*self.first_stage, *self.second_stage)
                for k in range(self.splits.k) for m in range(self.config.ensemble)]

    def _missing(self) -> list[RunKey]:
        return [part for part in self._parts() if not part.path(self.folder).is_file()]

    def _predictions(self, head: str, bar: ProgressBar) -> NDArray[np.float32]:
        """Return a head's row in the book; of the frame head also keep the evidence that others read."""
        by_fold = self.pool.run(lambda k, tell: self._fold(head, k), range(self.splits.k), bar)
        if head == "frame" and self.second_stage:
            self.oof_features = {k: inference.oof_features(said, self.features) for k, said in enumerate(by_fold)}
        whole = np.zeros_like(by_fold[0])
        for trial, fold in enumerate(self.splits.fold):
            rows = self.features.rows(trial)
            whole[rows] = by_fold[fold][rows] if fold >= 0 else sum(said[rows] for said in by_fold) / len(by_fold)
        return whole

    def _fold(self, head: str, k: int) -> NDArray[np.float32]:
        """Return (R, C): what a fold's members say of trials they did not learn from, 0 for others.

        Notes
        -----
        Outside the fold's training trials it is the members' mean; inside, the frame head alone is asked, each member
        for the part that it was watched by.
        """
        members = [checkpoints.load_checkpoint(p.path(self.folder), self.device) for p in self._parts()
                   if (p.head, p.fold) == (head, k)]
        said = mean_log_probs(members, self._input(head, k), self.splits.outside(k), self.device)
        if head != "frame" or not self.second_stage:
            return said
        for part in range(self.splits.parts(k)):
            others = [one for m, one in enumerate(members) if m % self.splits.parts(k) == part]
            said += mean_log_probs(others, self.features, self.splits.part(k, part), self.device)
        return said

    def _input(self, head: str, k: int) -> FrameDataset:
        return self.oof_features[k] if self.settings[head].temporal_input else self.features

    def _task(self, part: RunKey) -> FitTask:
        """Return what is trained: the trials of the other folds, one part of their groups watched."""
        train, watch = self.splits.of(part.fold, part.member)
        settings = self.settings[part.head]
        return FitTask(head=part.head, settings=settings, classes=len(self.dataset.classes), train=train,
                       val_trials=watch,
                    seed=(self.config.seed * 1000 + part.fold) * 100 + part.member, device=self.device,
                    tensors=self._tail_tensors() if settings.finetune_tap else None)

    def _tail_tensors(self) -> dict[str, NDArray[np.float32]]:
        """Return the tensors of the backbone that the store was made with."""
        made = self.store.settings
        if made.get("backbone") == "onnx" or "weights" not in made:
            raise InputError("features of an ONNX model, or from elsewhere, have no blocks to train",
                             where="finetune_tap",
                             hint="leave --finetune-tap out")
        return files.read_tensors(weights.by_sha256(str(made["weights"]), self.folder.parents[2] / "weights"))

    def _fit_and_save(self, part: RunKey, tell: ReportProgress) -> None:
        """Train one head and keep it."""
        task, reads = self._task(part), self._input(part.head, part.fold)
        whole = left = self.cost_s[part.head]

        def count(share: float) -> None:
            nonlocal left
            left -= share * whole
            tell(share * whole)

        fitted = fit(task, reads, count)
        tell(left)  # of a training that stopped early
        checkpoints.save_checkpoint(fitted.head, self._record(part, task, reads) | {
            "epoch": fitted.epoch, "watched_macro_f1": fitted.validation_f1 if isfinite(fitted.validation_f1) else None},
            part.path(self.folder))

    def _record(self, part: RunKey, task: FitTask, reads: FrameDataset) -> dict[str, Any]:
        """Return what the JSON beside a head's weights says."""
        asked = {"heads": list(self.config.heads), "needs": [*self.first_stage, *self.second_stage],
                 "folds": self.splits.k,
                 "ensemble": self.config.ensemble}
        return {"head": part.head, "fold": part.fold, "member": part.member, "seed": task.seed, "asked": asked,
                "classes": list(self.dataset.classes), "settings": asdict(task.settings),
                "taps": [asdict(tap) for tap in self.features.layout], "reads": [asdict(tap) for tap in reads.layout],
                "normalize": self.config.normalize, "frame_s": self.features.frame_s(),
                "trained_on": sorted({self.trials[i].group for i in task.train}),
                "watched": sorted({self.trials[i].group for i in task.val_trials}),
                "store": self.store.settings, "store_digest": self.store.digest()}
