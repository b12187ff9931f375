"""Trains all heads x folds x ensemble members on one copy of the features; finished heads are not retrained."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from fercache import oof
from fercache.backbones import weights
from fercache.backbones.weights import files
from fercache.config import HEAD_KEYS, TEMPORAL_KEYS, TrainConfig
from fercache.data.base import Dataset, Trial
from fercache.data.labels import canonical_class_name
from fercache.errors import InputError
from fercache.heads.base import build_head
from fercache.heads.registry import FRAME, HEADS, HeadSettings, with_shape_of
from fercache.oof import MIN_GROUPS_TO_CHOOSE, HeadRecord, RequestedHeads, StarterInit, assign_folds, inner_groups
from fercache.runtime.devices import resolve_device, set_torch_threads
from fercache.runtime.fork_pool import ForkPool, ReportProgress
from fercache.runtime.progress import ProgressBar, format_duration, progress_bar
from fercache.store.multi_store import ReadableStore
from fercache.training import checkpoints, inference
from fercache.training.checkpoints import RunKey
from fercache.training.data import FrameDataset, load_features
from fercache.training.fit import FitTask, estimate_s, fit
from fercache.training.inference import mean_log_probs
from fercache.workspace import FEATURES

log = logging.getLogger(__name__)

FEW_GROUPS_EPOCHS = 0.5  # share of the usual epochs where groups are too few to choose the epoch
STARTER_LR = 1e-4  # peak of the learning rate of a head that begins with starter weights: a tenth of the usual one
FINETUNE_MIN_GROUPS = 5  # with fewer training groups the starter's weights stay as they are, unless they lack a class


def settings_for(head: str, config: TrainConfig, device: str, *, oof_input: bool, few_groups: bool,
                 starter: HeadSettings | None = None) -> HeadSettings:
    """Return the settings to train a head with: those of the recipe, else the head's own.

    `oof_input`: there are out-of-fold logits that temporal heads can read. `few_groups`: too few to choose the number
    of epochs. `starter`: settings of the starter that the head begins with.
    """
    spec = HEADS[head]
    settings = spec.settings
    if settings.temporal_input and not oof_input:
        settings = replace(settings, temporal_input=False, **spec.on_features)
    keys = HEAD_KEYS + (TEMPORAL_KEYS if settings.window_s else ())
    changed: dict[str, Any] = {key: value for key in keys
                               if (value := getattr(config, key)) != getattr(TrainConfig, key)}
    if starter is not None:
        settings = replace(with_shape_of(settings, starter), lr=STARTER_LR, dropout=starter.dropout)
        changed.pop("width", None)
    # bfloat16 is faster on GPUs only.
    precision = config.precision if config.precision != "auto" else "float32" if device == "cpu" else "bf16"
    settings = replace(settings, **changed, precision=precision)
    if settings.window_s:
        settings = replace(settings, clip_level=config.level == "clip" and spec.pools_clips)
    elif spec.finetunes:
        settings = replace(settings, finetune_tap=config.finetune_tap)
    return replace(settings, epochs=max(1, round(settings.epochs * FEW_GROUPS_EPOCHS))) if few_groups else settings


MIN_VAL_PARTS = 2
VAL_FRACTION = 0.2  # share of a fold's training groups that serve to choose the epoch


class Splits:
    """Folds by group, and within each fold a partition of its training groups, also by group."""

    def __init__(self, trials: Sequence[Trial], counts: NDArray[np.int64], config: TrainConfig) -> None:
        training = np.array([t.split in config.learns_from for t in trials])
        counts = counts * training[:, None]
        self.groups = [t.group if trains else "" for t, trains in zip(trials, training, strict=True)]
        # (N,) the fold that holds each trial out, -1 in none.
        self.fold = np.where(training, assign_folds(self.groups, counts, config.folds, config.seed), -1
                             ).astype(np.int16)
        self.k = int(self.fold.max()) + 1  # number of folds
        training_groups = {g for g, f in zip(self.groups, self.fold, strict=True) if f >= 0}
        self.epochs_fixed = len(training_groups) < MIN_GROUPS_TO_CHOOSE
        self._part = [self._assign_parts(k, counts, config) for k in range(self.k)]
        # With several parts in every fold, each part can be predicted by members that were not trained on it.
        self.partitioned = all(self.parts(k) >= MIN_VAL_PARTS for k in range(self.k))

    def _assign_parts(self, k: int, counts: NDArray[np.int64], config: TrainConfig) -> NDArray[np.int16]:
        """Return the part of each of the fold's training trials, (N,), -1 elsewhere."""
        inside = np.flatnonzero((self.fold >= 0) & (self.fold != k))
        names = [self.groups[i] for i in inside]
        seed = config.seed * 1000 + k  # each fold draws its own parts
        part = np.full(len(self.fold), -1, np.int16)
        if config.validation == "none" or (config.ensemble > 1 and len(set(names)) < MIN_VAL_PARTS):
            part[inside] = 0
        elif config.ensemble == 1:
            # A single member needs one validation part only; most groups are left to train on.
            validation = inner_groups(names, VAL_FRACTION, seed)
            part[inside] = [0 if name in validation else 1 for name in names]
        else:
            part[inside] = assign_folds(names, counts[inside], config.ensemble, seed)
        return part

    def parts(self, k: int) -> int:
        """Return the number of parts of a fold's training groups."""
        return int(self._part[k].max()) + 1

    def part(self, k: int, part: int) -> list[int]:
        """Return the trials of a part."""
        return [int(i) for i in np.flatnonzero(self._part[k] == part)]

    def outside(self, k: int) -> list[int]:
        """Return the trials that a fold's members are never trained on: those held out, and those of no fold."""
        return [int(i) for i in np.flatnonzero((self.fold < 0) | (self.fold == k))]

    def member_trials(self, k: int, member: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the training trials of a member, and its validation trials (none where the epochs are fixed)."""
        inside = np.flatnonzero(self._part[k] >= 0)
        if self.parts(k) < MIN_VAL_PARTS:
            return tuple(map(int, inside)), ()
        in_validation = self._part[k][inside] == member % self.parts(k)
        train, validation = tuple(map(int, inside[~in_validation])), tuple(map(int, inside[in_validation]))
        # With fixed epochs the part is still left out of training: out-of-fold logits of it need such a member.
        return train, () if self.epochs_fixed else validation


def load_starter(config: TrainConfig, classes: Sequence[str]) -> tuple[list[dict[str, torch.Tensor]], HeadSettings]:
    """Return the weights of each starter head for these classes, in float32, and the starter's settings."""
    starters = []
    for path in checkpoints.starter_files(config.init_from):
        trained = checkpoints.load_checkpoint(path)
        weights, theirs = trained.head.state_dict(), [canonical_class_name(name) for name in trained.record.classes]
        torch.manual_seed(0)  # classes that the starter lacks begin at random weights, the same in every run
        fresh, wider = (build_head(FRAME, trained.record.input_taps, n, trained.record.settings).state_dict()
                        for n in (len(classes), len(theirs) + 1))
        for name, values in weights.items():
            if values.shape != wider[name].shape:  # a tensor with a row for each class
                rows = fresh[name].clone()
                for row, canonical in enumerate(map(canonical_class_name, classes)):
                    if canonical in theirs:
                        rows[row] = values[theirs.index(canonical)]
                weights[name] = rows
        starters.append(weights)
    return starters, trained.record.settings


class CrossValidatedTraining:
    """The heads of one data set: assigns folds, and trains each head of each fold that is missing."""

    def __init__(self, dataset: Dataset, trials: Sequence[Trial], store: ReadableStore, config: TrainConfig,
                 folder: Path, weights_folder: Path, features: FrameDataset, pool: ForkPool,
                 init: StarterInit | None = None) -> None:
        self.weights_folder = weights_folder
        self.dataset, self.trials, self.store, self.config, self.folder = dataset, trials, store, config, folder
        self.features, self.pool, self.device = features, pool, pool.device
        self.splits = Splits(trials, oof.class_counts(features.label, features.offsets, len(dataset.classes)), config)
        self.init, starter = init, None
        if init is not None:
            self.starters, starter = load_starter(config, dataset.classes)
        oof_input = config.temporal_input == "oof-logits" and config.ensemble > 1 and self.splits.partitioned
        self.settings: dict[str, HeadSettings] = {
            head: settings_for(head, config, self.device, oof_input=oof_input, few_groups=self.splits.epochs_fixed,
                               starter=starter if head == FRAME else None) for head in {*config.heads, FRAME}}
        few = len({*self.splits.groups} - {""}) < FINETUNE_MIN_GROUPS
        if init is not None and few and not config.epochs and init.classes == dataset.classes:
            # Temporal heads that read the frame head's logits begin as moving averages of them. Trained on so few
            # groups, they would unlearn the classes that only the held-out group shows.
            self.settings |= {head: replace(settings, epochs=0) for head, settings in self.settings.items()
                              if head == FRAME or settings.temporal_input}
        self._check_finetune_tap()
        first = [head for head in config.heads if not self.settings[head].temporal_input]
        self.second_stage = [head for head in config.heads if self.settings[head].temporal_input]
        self.first_stage = [FRAME, *first] if self.second_stage and FRAME not in first else first
        self.inputs = {head: inference.input_of(head, features) for head in (*self.first_stage, *self.second_stage)}
        self.oof_features: dict[int, FrameDataset] = {}
        self.records: list[HeadRecord] = []  # of each head
        self.trained = 0  # number of heads trained by this run; the others were finished before
        self.cost_s: dict[str, float] = {}

    @classmethod
    def prepare(cls, dataset: Dataset, trials: Sequence[Trial], store: ReadableStore, config: TrainConfig,
                folder: Path, weights_folder: Path, init: StarterInit | None = None) -> Self:
        """Set torch's threads and determinism, read the features, and return the training."""
        device = resolve_device(config.device)
        pool = ForkPool(device, set_torch_threads(config.threads))
        # On a GPU some layers have no deterministic kernel: a warning there, an error on the CPU.
        torch.use_deterministic_algorithms(True, warn_only=device != "cpu")
        features = load_features(store, trials, config.taps, augmentations=config.augmentations == "draw",
                                 normalize=config.normalize, memory=config.memory, mmap_dir=folder.parent / FEATURES)
        return cls(dataset, trials, store, config, folder, weights_folder, features, pool, init)

    def _check_finetune_tap(self) -> None:
        """Refuse a finetune_tap that no head uses: it would be ignored silently."""
        tap = self.config.finetune_tap
        if tap and tap not in self.config.taps:
            raise InputError(f"{tap} is not among the taps that are read ({', '.join(self.config.taps)})",
                             where="finetune_tap", hint=f"add it: --taps {','.join((tap, *self.config.taps))}")
        if tap and not any(HEADS[head].finetunes or self.settings[head].temporal_input for head in self.config.heads):
            raise InputError("no head uses finetune_tap", where="finetune_tap",
                             hint="add the frame head: --heads frame,...")

    def run(self) -> dict[str, NDArray[np.float32]]:
        """Return head -> (R, C) log-probabilities: out of fold if a fold holds the trial out, else the mean."""
        log_probs: dict[str, NDArray[np.float32]] = {}
        missing = self._missing()
        self.trained = len(missing)
        self.cost_s = {head: self._cost_s(head) for head in {key.head for key in missing}}
        work_s = sum(self.cost_s[key.head] for key in missing)
        if missing:
            log.info("%d trainings to do, %d at a time: about %s if none stops early", len(missing), self.pool.at_once,
                     format_duration(work_s / self.pool.at_once))
        with progress_bar("train heads", work_s, "s of work") as bar:
            # Temporal heads train on predictions of the frame head, so all of its folds must be finished first.
            for heads in (self.first_stage, self.second_stage):
                self.pool.run(self._fit_and_save, [key for key in self._missing() if key.head in heads], bar)
                for head in heads:
                    log_probs[head] = self._predictions(head, bar)
        self.records = [checkpoints.load_record(key.path(self.folder)) for key in self._keys()]
        return {head: log_probs[head] for head in self.config.heads}

    def run_without_sound(self, log_probs: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """Return the same as `run` as if no clip had sound, for the stack of such clips; {} where no head reads any."""
        heads = [head for head in self.config.heads if HEADS[head].sound != "only"]
        if not heads or (len(heads) == len(self.config.heads) and not self.features.audio.shape[1]):
            return {}
        zeros = np.broadcast_to(np.float16(0), self.features.audio.shape)  # takes no memory
        self.inputs = {head: replace(self.inputs[head], audio=zeros) if HEADS[head].sound else self.inputs[head]
                       for head in heads}
        self.oof_features = {k: replace(features, audio=zeros) for k, features in self.oof_features.items()}
        with progress_bar("predict without sound", 0) as bar:
            return {head: self._predictions(head, bar) if HEADS[head].sound else log_probs[head] for head in heads}

    def _cost_s(self, head: str) -> float:
        """Return about how long one training of the head takes on one core: its weight in the progress bar."""
        features = self.inputs[head]
        if self.settings[head].temporal_input:
            zeros = np.zeros((len(features.label), len(self.dataset.classes)), np.float32)
            features = inference.oof_features(zeros, features, with_change=False)
        # Workers of the pool run one thread each, so the estimate must too.
        torch.set_num_threads(1)
        try:
            return max(estimate_s(self._task(RunKey(head=head, fold=0, member=0)), features), 1e-3)
        finally:
            torch.set_num_threads(self.pool.threads)

    def _keys(self) -> list[RunKey]:
        return [RunKey(head=head, fold=k, member=m) for head in (*self.first_stage, *self.second_stage)
                for k in range(self.splits.k) for m in range(self.config.ensemble)]

    def _missing(self) -> list[RunKey]:
        return [key for key in self._keys() if not key.path(self.folder).is_file()]

    def _predictions(self, head: str, bar: ProgressBar) -> NDArray[np.float32]:
        """Return a head's log-probabilities, (R, C); those of the frame head also become the temporal heads' input."""
        by_fold = self.pool.run(lambda k, report: self._predict_fold(head, k), range(self.splits.k), bar)
        if head == FRAME and self.second_stage:
            self.oof_features = {k: inference.oof_features(log_probs, self.features)
                                 for k, log_probs in enumerate(by_fold)}
        result = np.zeros_like(by_fold[0])
        for trial, fold in enumerate(self.splits.fold):
            rows = self.features.rows(trial)
            result[rows] = by_fold[fold][rows] if fold >= 0 else sum(values[rows] for values in by_fold) / len(by_fold)
        return result

    def _predict_fold(self, head: str, k: int) -> NDArray[np.float32]:
        """Return (R, C): log-probabilities by a fold's members of trials not trained on, 0 for others."""
        # Outside the fold's training trials it is the members' mean. Inside, only the frame head predicts, and each
        # part is predicted by the members that have it as validation part.
        members = [checkpoints.load_checkpoint(key.path(self.folder), self.device) for key in self._keys()
                   if (key.head, key.fold) == (head, k)]
        log_probs = mean_log_probs(members, self._input(head, k), self.splits.outside(k), self.device)
        if head != FRAME or not self.second_stage:
            return log_probs
        for part in range(self.splits.parts(k)):
            untrained = [member for m, member in enumerate(members) if m % self.splits.parts(k) == part]
            log_probs += mean_log_probs(untrained, self.inputs[FRAME], self.splits.part(k, part), self.device)
        return log_probs

    def _input(self, head: str, k: int) -> FrameDataset:
        return self.oof_features[k] if self.settings[head].temporal_input else self.inputs[head]

    def _task(self, key: RunKey) -> FitTask:
        """Return the training task: trials of the other folds, with one part of their groups for validation."""
        train, validation = self.splits.member_trials(key.fold, key.member)
        settings = self.settings[key.head]
        # Seeds of all runs differ, and depend on nothing but the run: a resumed training gives the same heads.
        # Each member of a fold begins with another starter head.
        start = None if self.init is None or key.head != FRAME else self.starters[
            (key.fold * self.config.ensemble + key.member) % len(self.starters)]
        return FitTask(head=key.head, settings=settings, classes=len(self.dataset.classes), train=train,
                       val_trials=validation, seed=(self.config.seed * 1000 + key.fold) * 100 + key.member,
                       device=self.device, tensors=self._backbone_tensors() if settings.finetune_tap else None,
                       start=start)

    def _backbone_tensors(self) -> dict[str, NDArray[np.float32]]:
        """Return the weights of the backbone that the store was made with."""
        settings = self.store.settings
        if "card" in settings or "weights" not in settings:
            raise InputError("features of this net, or imported features, have no blocks to train",
                             where="finetune_tap", hint="leave --finetune-tap out")
        return files.read_tensors(weights.by_sha256(str(settings["weights"]), self.weights_folder))

    def _fit_and_save(self, key: RunKey, report: ReportProgress) -> None:
        task, features = self._task(key), self._input(key.head, key.fold)
        cost_s = remaining_s = self.cost_s[key.head]

        def advance(share: float) -> None:
            nonlocal remaining_s
            remaining_s -= share * cost_s
            report(share * cost_s)

        fitted = fit(task, features, advance)
        report(remaining_s)  # of a training that stopped early
        record = HeadRecord(
            head=key.head, fold=key.fold, member=key.member, seed=task.seed, epoch=fitted.epoch,
            # JSON has no NaN.
            val_macro_f1=fitted.validation_f1 if isfinite(fitted.validation_f1) else None,
            requested=RequestedHeads(heads=self.config.heads, needs=(*self.first_stage, *self.second_stage),
                                     folds=self.splits.k, ensemble=self.config.ensemble),
            classes=tuple(self.dataset.classes), settings=task.settings, taps=self.features.layout,
            input_taps=features.layout, normalize=self.config.normalize, frame_s=self.features.frame_s(),
            train_groups=tuple(sorted({self.trials[i].group for i in task.train})),
            val_groups=tuple(sorted({self.trials[i].group for i in task.val_trials})),
            store=dict(self.store.settings), store_digest=self.store.digest(),
            init=self.init if self.init and key.head == FRAME else msgspec.UNSET)
        checkpoints.save_checkpoint(fitted.head, record, key.path(self.folder))
