"""Trained heads out of their folder, and what they say of trials that they have never seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fercache.backbones.taps import TapSlice
from fercache.data.base import Trial
from fercache.errors import InputError
from fercache.heads import classes_of
from fercache.heads.base import Head, HeadSettings
from fercache.runtime import atomic_io
from fercache.training import checkpoints
from fercache.training.checkpoints import RunKey, TrainedHead
from fercache.training.data import FeatureSource, FrameDataset, WindowSampler, load_features

# What the frame head says of frames it did not learn from: what the temporal heads read.
#
# Notes
# -----
# A net that learnt a frame is sure of it, and a temporal head fed with such certainty learns to trust single frames.
# Each
# member of the frame head therefore speaks only of the part of the training groups that it did not see, and the
# temporal
# heads learn on that how much a single frame is worth: what they will meet on new clips. It is the rule of stacking
# (out
# of fold, by group), one level down.

OOF_TAP = "oof_logits"
MOST_ROWS = 2048


def oof_features(said: NDArray[np.float32], features: FrameDataset, *, with_change: bool = True) -> FrameDataset:
    """Return features of the same frames whose rows are the frame head's log-probabilities and how much changes.

    Parameters
    ----------
    said : (R, C) log-probabilities.
    with_change : False leaves what changes at 0 (to try how long a step takes).
    """
    moved = change(features) if with_change else np.zeros(len(said), np.float32)
    rows = np.column_stack([said, moved]) * features.valid[:, None]
    layout = (TapSlice(tap=OOF_TAP, start=0, stop=rows.shape[1], shape=(rows.shape[1],)),)
    return replace(features, layout=layout, x=rows.astype(np.float16),
                   views=np.zeros((0, *rows.shape), np.float16))


def change(features: FrameDataset) -> NDArray[np.float32]:
    """Return how far each frame is from the seen one before it, ``(R,)``: log2 of the distance over the clip's median.

    Notes
    -----
    A cut, or a face that moves: where an expression may begin or end. 0 for frames without a face and the first one.
    """
    told = np.zeros(len(features.valid), np.float32)
    for trial in range(len(features.offsets) - 1):
        rows = features.rows(trial)
        seen = rows[features.valid[rows]]
        if len(seen) > 2:
            far = _distances(features.x, seen)
            told[seen[1:]] = np.clip(np.log2((far + 1e-6) / (float(np.median(far)) + 1e-6)), -4, 4)
    return told


def _distances(x: NDArray[np.float16], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the distance of each row to the next, ``(len(rows) - 1,)``, without a float32 copy of a long clip."""
    found = []
    for i in range(0, len(rows) - 1, MOST_ROWS):
        part = x[rows[i:i + MOST_ROWS + 1]].astype(np.float32)
        found.append(np.sqrt(np.square(np.diff(part, axis=0)).sum(1)))
    return np.concatenate(found)


# What a trained head says of every frame: overlapping windows, blended.

FRAMES_A_STEP = 4096

PredictWindow = dict[int, NDArray[np.float32]]
"""Trial -> (T, C) log-probabilities."""


def windows(features: FrameDataset, trials: Sequence[int], settings: HeadSettings,
            device: str = "cpu") -> WindowSampler:
    """Return the windows that a head of these settings sees, at the data set's usual frame rate."""
    step = max(1, round(settings.step_s / features.frame_s())) if settings.window_s else 1
    return WindowSampler(features, trials, window_frames(settings, features, step), device, step)


def window_frames(settings: HeadSettings, features: FrameDataset, step: int = 1) -> int:
    """Return how many frames, `step` apart, a window holds."""
    return max(1, round(settings.window_s / features.frame_s() / step))


@torch.inference_mode()
def predict_head(head: Head, settings: HeadSettings, features: FrameDataset, trials: Sequence[int], device: str, *,
            thin: bool = False) -> PredictWindow:
    """Return what the head says of every frame: trial -> (T, C) log-probabilities.

    Parameters
    ----------
    thin : only frames `step_s` apart are asked, the others stay 0: enough to choose an epoch by.

    Notes
    -----
    Windows overlap by half and are blended with weights that fall to their ends, where the context is one-sided. A
    frame-level head says nothing of a frame without a face: such frames get the nearest seen frame's values. A
    clip-level head says the same of every frame.
    """
    head.eval()
    source = windows(features, trials, settings, device)
    window = source.window
    weight: NDArray[np.float32] = np.bartlett(window + 2)[1:-1, None].astype(np.float32)
    total = np.zeros((len(features.label), classes_of(head)), np.float32)
    mass = np.zeros((len(features.label), 1), np.float32)
    for batch in source.batches(_asked(source, settings, thin), max(1, FRAMES_A_STEP // window)):
        said = head(batch.x, batch.seen, batch.time_s).float().log_softmax(-1).cpu().numpy()
        if window == 1:
            total[batch.rows[:, 0]], mass[batch.rows[:, 0]] = said[:, 0], 1
            continue
        for rows, one in zip(batch.rows, said, strict=True):
            own = rows[rows >= 0]
            total[own] += (one * weight)[:len(own)]
            mass[own] += weight[:len(own)]
    blended: NDArray[np.float32] = (total / np.maximum(mass, 1e-12)).astype(np.float32)
    out = {t: blended[features.rows(t)] for t in trials}
    if thin:
        return out
    if settings.clip_level:
        return {t: np.broadcast_to(said.mean(0), said.shape).copy() for t, said in out.items()}
    return {t: _fill(said, features, t) for t, said in out.items()} if window == 1 else out


def _asked(source: WindowSampler, settings: HeadSettings, thin: bool) -> NDArray[np.int64]:
    if not thin:
        return source.everywhere()
    if source.window > 1:
        return source.everywhere(phases=1)
    return source.starts(1)[::max(1, round(settings.step_s / source.features.frame_s()))]


def _fill(said: NDArray[np.float32], features: FrameDataset, trial: int) -> NDArray[np.float32]:
    """Return the values with frames without a face taken from the nearest seen one; even odds where none was seen."""
    rows = features.rows(trial)
    seen = np.flatnonzero(features.valid[rows])
    if not len(seen):
        return np.full_like(said, -math.log(said.shape[1]))
    middle = (seen[:-1] + seen[1:]) / 2
    return said[seen[np.searchsorted(middle, np.arange(len(rows)))]]


@dataclass(frozen=True, kw_only=True)
class HeadFolder:
    """What a folder of trained heads holds.

    Attributes
    ----------
    heads : the names that were asked for, in that order; `record` is the JSON of one of them.
    layout : the taps side by side that a row of features must be; `standardise` says how they must be read.
    store : settings of the embedding store they were trained on.
    folds, members : how often each head was trained.
    needs : the heads that are run: the frame head too where others read its evidence.
    """

    folder: Path
    heads: tuple[str, ...]
    classes: tuple[str, ...]
    layout: tuple[TapSlice, ...]
    standardise: str
    store: dict[str, Any]
    folds: int
    members: int
    needs: tuple[str, ...]
    record: dict[str, Any]

    @property
    def taps(self) -> tuple[str, ...]:
        """The taps to preload, in order."""
        return tuple(part.tap for part in self.layout)

    def preload(self, store: FeatureSource, trials: Sequence[Trial]) -> FrameDataset:
        """Return the features of new trials, read as those were that the heads learnt from."""
        return load_features(store, trials, self.taps, standardise=self.standardise)


def load_trained(folder: Path) -> HeadFolder:
    """Return what the folder holds.

    Raises
    ------
    InputError
        There are no trained heads, or not all that were asked for.
    """
    found = sorted(folder.glob("[!.]*-fold*.json"))
    if not found:
        raise InputError("no trained heads", where=folder, hint="run `fercache train-heads` first")
    said = atomic_io.read_json(found[0])
    asked = said["asked"]
    parts = [RunKey(head=h, fold=k, member=m) for h in asked["needs"] for k in range(asked["folds"])
             for m in range(asked["ensemble"])]
    missing = [part.path(folder).name for part in parts if not part.path(folder).is_file()]
    if missing:
        raise InputError(f"the training was not finished ({missing[0]} and {len(missing) - 1} more are missing)",
                         where=folder, hint=checkpoints.RETRAIN_HINT)
    return HeadFolder(folder=folder, heads=tuple(asked["heads"]), needs=tuple(asked["needs"]), folds=asked["folds"],
                   members=asked["ensemble"], classes=tuple(said["classes"]), layout=checkpoints.layout_of(said["taps"]),
                   standardise=said["normalize"], store=said["store"], record=said)


def predict_new(heads: HeadFolder | Path, features: FrameDataset, device: str = "cpu") -> dict[str,
                                                                                               NDArray[np.float32]]:
    """Return head -> (R, C) log-probabilities of every row of `features`, the mean over the folds' models.

    Parameters
    ----------
    heads : what `trained` found, or its folder.
    features : of new trials, as `Trained.preload` gives them.

    Raises
    ------
    InputError
        The features are other taps than the heads were trained on.
    """
    known = heads if isinstance(heads, HeadFolder) else load_trained(heads)
    if features.layout != known.layout:
        had = ", ".join(part.tap for part in features.layout)
        raise InputError(f"the heads were trained on {', '.join(known.taps)}, the features are {had}",
                         where=known.folder, hint="preload the taps that the heads name")
    total = {head: np.zeros((len(features.label), len(known.classes)), np.float32) for head in known.heads}
    for fold in range(known.folds):
        frame: FrameDataset | None = None
        for head in sorted(known.needs, key=lambda name: name != "frame"):
            members = [checkpoints.load_checkpoint(RunKey(head=head, fold=fold, member=m).path(known.folder), device)
                       for m in range(known.members)]
            reads = frame if members[0].settings.temporal_input and frame is not None else features
            said = mean_log_probs(members, reads, range(len(features.offsets) - 1), device)
            if head == "frame" and len(known.needs) > 1:
                frame = oof_features(said, features)
            if head in total:
                total[head] += said / known.folds
    return total


def mean_log_probs(members: Sequence[TrainedHead], features: FrameDataset, trials: Sequence[int],
                   device: str) -> NDArray[np.float32]:
    """Return (R, C): the members' mean log-probabilities of the trials' rows, 0 elsewhere."""
    total = np.zeros((len(features.label), len(members[0].record["classes"])), np.float32)
    for one in members:
        for trial, said in predict_head(one.head, one.settings, features, trials, device).items():
            total[features.rows(trial)] += said / len(members)
    return total
