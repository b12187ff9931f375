"""Trained heads as predictors: log-probabilities of every frame, for cross-validation and for new trials."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fercache.backbones.taps import TapSlice, is_audio
from fercache.data.base import Trial
from fercache.errors import InputError
from fercache.heads.base import Head
from fercache.heads.registry import FRAME, HEADS, HeadSettings
from fercache.oof import HeadRecord
from fercache.results.smoothing import nearest_row
from fercache.store.multi_store import ReadableStore
from fercache.training import checkpoints
from fercache.training.checkpoints import RunKey, TrainedHead
from fercache.training.data import FrameDataset, WindowSampler, load_features

# Temporal heads read out-of-fold log-probabilities of the frame head. A net is overconfident on frames that it was
# trained on, and a temporal head that trains on such values learns to trust single frames. So each member of the frame
# head predicts only the part of the training groups that it was not trained on, and the temporal heads train on values
# that are as uncertain as those of new clips. This is the rule of stacking (out of fold, by group), one level down.

OOF_TAP = "oof_logits"
MAX_ROWS = 2048
FRAMES_PER_BATCH = 4096


def oof_features(log_probs: NDArray[np.float32], features: FrameDataset, *, with_change: bool = True) -> FrameDataset:
    """Return features of the same frames: log-probabilities of the frame head, (R, C), and the change between frames.

    `with_change`: False leaves the change at 0 (to measure how long a step takes).
    """
    change = frame_change(features) if with_change else np.zeros(len(log_probs), np.float32)
    rows = np.column_stack([log_probs, change]) * features.valid[:, None]
    moved = rows.shape[1] - features.x.shape[1]
    layout = (TapSlice(tap=OOF_TAP, start=0, stop=rows.shape[1], shape=(rows.shape[1],)),
              *(replace(part, start=part.start + moved, stop=part.stop + moved) for part in features.layout
                if part.start >= features.x.shape[1]))  # heads of logits read the sound itself beside them
    return replace(features, layout=layout, x=rows.astype(np.float16),
                   augmentations=np.zeros((0, *rows.shape), np.float16))


def frame_change(features: FrameDataset) -> NDArray[np.float32]:
    """Return each frame's distance to the previous one with a face, ``(R,)``: log2, relative to the clip's median."""
    # Large values mark cuts and moving faces, where an expression may begin or end. Frames without a face, and the
    # first one of a clip, get 0.
    change = np.zeros(len(features.valid), np.float32)
    for trial in range(len(features.offsets) - 1):
        rows = features.rows(trial)
        seen = rows[features.valid[rows]]
        if len(seen) > 2:
            distances = _distances(features.x, seen)
            change[seen[1:]] = np.clip(np.log2((distances + 1e-6) / (float(np.median(distances)) + 1e-6)), -4, 4)
    return change


def _distances(x: NDArray[np.float16], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the distance of each row to the next, ``(len(rows) - 1,)``, without a float32 copy of a long clip."""
    distances = []
    for i in range(0, len(rows) - 1, MAX_ROWS):
        part = x[rows[i:i + MAX_ROWS + 1]].astype(np.float32)  # one row more: blocks overlap by a row
        distances.append(np.sqrt(np.square(np.diff(part, axis=0)).sum(1)))
    return np.concatenate(distances)


def input_of(head: str, features: FrameDataset) -> FrameDataset:
    """Return what a head reads of the features: picture, sound, or both; raise InputError if they are not there."""
    reads = HEADS[head].sound
    if reads == "joins":
        return features
    chosen = features.only_sound() if reads == "only" else features.without_sound()
    if not chosen.layout or is_audio(chosen.layout[0].tap) != (reads == "only"):
        raise InputError(f"the head {head} reads {'sound' if reads == 'only' else 'pictures'}, and the taps are "
                         f"{', '.join(part.tap for part in features.layout)}", where="--heads",
                         hint="join a store of sound with --join (`fercache extract --modality audio` makes one), or "
                              "name other heads")
    return chosen


# One head over every frame: overlapping windows, blended.

def make_sampler(features: FrameDataset, trials: Sequence[int], settings: HeadSettings,
                 device: str = "cpu") -> WindowSampler:
    """Return the windows that a head of these settings reads, at the data set's median frame rate."""
    frame_s = features.frame_s()
    step = max(1, round(settings.step_s / frame_s)) if settings.window_s else 1
    return WindowSampler(features, trials, max(1, round(settings.window_s / frame_s / step)), device, step)


@torch.inference_mode()
def predict_head(head: Head, settings: HeadSettings, features: FrameDataset, trials: Sequence[int], device: str, *,
                 subsample: bool = False) -> dict[int, NDArray[np.float32]]:
    """Return the head's log-probabilities of every frame: trial -> (T, C).

    `subsample`: predict only frames `step_s` apart, the others stay 0: enough to choose an epoch by.
    """
    # Windows overlap by half and are averaged with weights that fall towards their ends, where context is one-sided. A
    # frame-level head cannot predict a frame without a face: such frames get the values of the nearest frame with one.
    # A clip-level head predicts the same for every frame.
    head.eval()
    sampler = make_sampler(features, trials, settings, device)
    window = sampler.window
    if not subsample:
        starts = sampler.covering_starts()
    elif window > 1:
        starts = sampler.covering_starts(phases=1)
    else:
        starts = sampler.starts(1)[::max(1, round(settings.step_s / features.frame_s()))]
    # bartlett is 0 at both ends: two points more, cut off, leave a positive weight for each frame.
    weight: NDArray[np.float32] = np.bartlett(window + 2)[1:-1, None].astype(np.float32)
    total = np.zeros((len(features.label), head.classes), np.float32)
    total_weight = np.zeros((len(features.label), 1), np.float32)
    for batch in sampler.batches(starts, max(1, FRAMES_PER_BATCH // window)):
        log_probs = head(batch.x, batch.seen, batch.time_s).float().log_softmax(-1).cpu().numpy()
        if window == 1:
            total[batch.rows[:, 0]], total_weight[batch.rows[:, 0]] = log_probs[:, 0], 1
            continue
        for rows, values in zip(batch.rows, log_probs, strict=True):
            inside = rows[rows >= 0]  # padding is always at the end of a window
            total[inside] += (values * weight)[:len(inside)]
            total_weight[inside] += weight[:len(inside)]
    blended: NDArray[np.float32] = (total / np.maximum(total_weight, 1e-12)).astype(np.float32)
    by_trial = {t: blended[features.rows(t)] for t in trials}
    if subsample:
        return by_trial
    if settings.clip_level:
        return {t: np.broadcast_to(values.mean(0), values.shape).copy() for t, values in by_trial.items()}
    return {t: _fill(values, features, t) for t, values in by_trial.items()} if window == 1 else by_trial


def _fill(log_probs: NDArray[np.float32], features: FrameDataset, trial: int) -> NDArray[np.float32]:
    """Return the values with those of the nearest frame with a face where there is none; uniform in a faceless clip."""
    seen = features.valid[features.rows(trial)]
    if not seen.any():
        return np.full_like(log_probs, -math.log(log_probs.shape[1]))
    return log_probs[nearest_row(np.arange(len(seen), dtype=float), seen)]


@dataclass(frozen=True, kw_only=True)
class HeadFolder:
    """A complete folder of trained heads, and the record of one of them: taps, classes and store are those of all."""

    folder: Path
    record: HeadRecord

    @property
    def taps(self) -> tuple[str, ...]:
        """The taps to load, in order."""
        return tuple(part.tap for part in self.record.taps)

    def load_features(self, store: ReadableStore, trials: Sequence[Trial]) -> FrameDataset:
        """Return the features of new trials, read in the same way as those that the heads were trained on."""
        return load_features(store, trials, self.taps, normalize=self.record.normalize)


def load_trained(folder: Path) -> HeadFolder:
    """Return the description of a folder of trained heads; raises InputError if one of them is missing."""
    files = checkpoints.record_files(folder)
    if not files:
        raise InputError("no trained heads", where=folder, hint="run `fercache train-heads` first")
    record = checkpoints.load_record(files[0])
    requested = record.requested
    keys = [RunKey(head=h, fold=k, member=m) for h in requested.needs for k in range(requested.folds)
            for m in range(requested.ensemble)]
    missing = [key.path(folder).name for key in keys if not key.path(folder).is_file()]
    if missing:
        raise InputError(f"the training was not finished ({missing[0]} and {len(missing) - 1} more are missing)",
                         where=folder, hint=checkpoints.RETRAIN_HINT)
    return HeadFolder(folder=folder, record=record)


def predict_new(trained: HeadFolder, features: FrameDataset, device: str = "cpu") -> dict[str, NDArray[np.float32]]:
    """Return head -> (R, C) log-probabilities of new trials' features, the mean over the folds' models."""
    record, requested = trained.record, trained.record.requested
    if features.layout != record.taps:
        loaded = ", ".join(part.tap for part in features.layout)
        raise InputError(f"the heads were trained on {', '.join(trained.taps)}, the features are {loaded}",
                         where=trained.folder, hint="load the taps that the heads were trained on")
    total = {head: np.zeros((len(features.label), len(record.classes)), np.float32) for head in requested.heads}
    for fold in range(requested.folds):
        oof: FrameDataset | None = None
        # The frame head comes first: temporal heads of the same fold read its log-probabilities.
        for head in sorted(requested.needs, key=lambda name: name != FRAME):
            members = [checkpoints.load_checkpoint(RunKey(head=head, fold=fold, member=m).path(trained.folder), device)
                       for m in range(requested.ensemble)]
            inputs = oof if members[0].record.settings.temporal_input and oof else input_of(head, features)
            log_probs = mean_log_probs(members, inputs, range(len(features.offsets) - 1), device)
            if head == FRAME and len(requested.needs) > 1:
                oof = oof_features(log_probs, features)
            if head in total:
                total[head] += log_probs / requested.folds
    return total


def mean_log_probs(members: Sequence[TrainedHead], features: FrameDataset, trials: Sequence[int],
                   device: str) -> NDArray[np.float32]:
    """Return (R, C): the members' mean log-probabilities of the trials' rows, 0 elsewhere."""
    total = np.zeros((len(features.label), len(members[0].record.classes)), np.float32)
    for member in members:
        for trial, log_probs in predict_head(member.head, member.record.settings, features, trials, device).items():
            if HEADS[member.record.head].sound == "only" and not features.valid[features.rows(trial)].any():
                # Without any sound the head would predict its own bias, which the stack would take for evidence.
                log_probs = np.full_like(log_probs, -math.log(log_probs.shape[1]))
            total[features.rows(trial)] += log_probs / len(members)
    return total
