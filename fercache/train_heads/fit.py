"""One head of one fold: trained on some trials' windows, and what it then says of every frame."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fercache import metrics
from fercache.heads import Head, HeadSettings, build, classes_of
from fercache.windows import Features, Windows

WARM_UP = 0.1
"""Share of the steps in which the learning rate rises; then it falls as a cosine."""
SMOOTHING = 0.05
FRAME_STRIDE = 3
CLIP_NORM = 1.0
FRAMES_A_STEP_TO_PREDICT = 4096


@dataclass(frozen=True, kw_only=True)
class Task:
    """One head to train: on which trials, watched by which (none: all epochs are run), of which seed."""

    head: str
    settings: HeadSettings
    classes: int
    train: tuple[int, ...]
    watch: tuple[int, ...]
    seed: int
    device: str


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A trained head, the epoch it was taken from, and the macro F1 it had on the watched trials (NaN: none)."""

    head: Head
    epoch: int
    watched_f1: float


def window_frames(settings: HeadSettings, features: Features) -> int:
    """Return the window's length in frames of the data set's usual rate."""
    return max(1, round(settings.window_s / features.frame_s()))


def fit(task: Task, features: Features) -> Fitted:
    """Return a head trained on the task's trials; the same task and features give the same head.

    Notes
    -----
    Cross entropy with class weights of one over the square root of the class's share (between plain and balanced),
    label smoothing, AdamW with warm-up and cosine; the epoch with the best macro F1 on the watched trials is kept.
    """
    torch.manual_seed(task.seed)
    rng = np.random.default_rng(task.seed)
    head = build(task.head, features.layout, task.classes, task.settings).to(task.device)
    rows = np.concatenate([_rows(features, t) for t in task.train])
    head.standardise.fit(*_moments(features, rows))
    weight = class_weights(features.label[rows], task.classes).to(task.device)
    source = Windows(features, task.train, window_frames(task.settings, features), task.device)
    optimizer = torch.optim.AdamW(head.parameters(), lr=task.settings.lr, weight_decay=task.settings.weight_decay)
    steps = task.settings.epochs * math.ceil(len(_starts(source, task, rng)) / task.settings.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _pace(step / max(steps, 1)))
    best = Fitted(head=head, epoch=0, watched_f1=-1.0)
    for epoch in range(1, task.settings.epochs + 1):
        head.train()
        for batch in source.batches(_starts(source, task, rng), task.settings.batch):
            optimizer.zero_grad(set_to_none=True)
            loss = _loss(head(batch.x, batch.seen, batch.time_s), batch.label, weight)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(head.parameters(), CLIP_NORM)
            optimizer.step()
            schedule.step()
        if task.watch:
            best = _better(best, head, epoch, watched_f1(head, task, features))
    return best if task.watch else Fitted(head=head.eval(), epoch=task.settings.epochs, watched_f1=math.nan)


def _better(best: Fitted, head: Head, epoch: int, score: float) -> Fitted:
    if score <= best.watched_f1:
        return best
    return Fitted(head=copy.deepcopy(head).eval(), epoch=epoch, watched_f1=score)


def _pace(share: float) -> float:
    """Return the learning rate's factor when `share` of all steps is done."""
    return share / WARM_UP if share < WARM_UP else 0.5 * (1 + math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP)))


def _starts(source: Windows, task: Task, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return an epoch's windows in random order: half overlapping, shifted anew; or every third labelled, seen frame.

    Notes
    -----
    Neighbouring frames are near copies, so that a frame-level head gains nothing from all of them in one epoch.
    """
    if source.window == 1:
        found = source.starts(1)[int(rng.integers(FRAME_STRIDE))::FRAME_STRIDE]
        row = found[:, 1]
        found = found[(source.features.label[row] >= 0) & source.features.valid[row]]
    else:
        stride = max(1, source.window // 2)
        found = source.starts(stride, int(rng.integers(stride)))
    return found[rng.permutation(len(found))]


def _rows(features: Features, trial: int) -> NDArray[np.int64]:
    return np.arange(features.offsets[trial], features.offsets[trial + 1])


def _moments(features: Features, rows: NDArray[np.int64], most: int = 20_000) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation, each ``(D,)``, over the seen rows (evenly thinned to `most`)."""
    seen = rows[features.valid[rows]]
    seen = seen[:: max(1, len(seen) // most)]
    if not len(seen):
        return torch.zeros(features.x.shape[1]), torch.ones(features.x.shape[1])
    x = torch.from_numpy(features.x[seen]).float()
    return x.mean(0), x.std(0, correction=0)


def class_weights(label: NDArray[np.int16], classes: int) -> Tensor:
    """Return ``(C,)`` weights, one over the square root of each class's share; 0 for a class that is not there."""
    count = np.bincount(label[label >= 0], minlength=classes).astype(np.float64)
    weight = np.where(count > 0, 1 / np.sqrt(np.maximum(count, 1)), 0)
    return torch.from_numpy(weight / max((weight * count).sum() / max(count.sum(), 1), 1e-12)).float()


def _loss(logits: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """Return the loss over the labelled frames of a batch; 0 where it has none."""
    known = label >= 0
    if not known.any():
        return logits.sum() * 0
    return F.cross_entropy(logits[known], label[known], weight, label_smoothing=SMOOTHING)


def watched_f1(head: Head, task: Task, features: Features) -> float:
    """Return the head's macro F1 over the labelled frames of the watched trials."""
    said = predict(head, task.settings, features, task.watch, task.device)
    rows = np.concatenate([_rows(features, t) for t in task.watch])
    known = features.label[rows] >= 0
    guess = np.concatenate([said[t] for t in task.watch]).argmax(1)
    return float(metrics.macro_f1(metrics.confusion(features.label[rows][known], guess[known], task.classes)))


@torch.inference_mode()
def predict(head: Head, settings: HeadSettings, features: Features, trials: Sequence[int],
            device: str) -> dict[int, NDArray[np.float32]]:
    """Return what the head says of every frame: trial -> (T, C) log-probabilities.

    Notes
    -----
    Windows overlap by half and are blended with weights that fall to their ends, where the context is one-sided. A
    frame-level head says nothing of a frame without a face: such frames get the nearest seen frame's values.
    """
    head.eval()
    window = window_frames(settings, features)
    source = Windows(features, trials, window, device)
    weight: NDArray[np.float32] = np.bartlett(window + 2)[1:-1, None].astype(np.float32)
    total = np.zeros((len(features.label), classes_of(head)), np.float32)
    mass = np.zeros((len(features.label), 1), np.float32)
    for batch in source.batches(source.starts(max(1, window // 2)), max(1, FRAMES_A_STEP_TO_PREDICT // window)):
        said = head(batch.x, batch.seen, batch.time_s).float().log_softmax(-1).cpu().numpy()
        if window == 1:
            total[batch.rows[:, 0]], mass[batch.rows[:, 0]] = said[:, 0], 1
            continue
        for rows, one in zip(batch.rows, said, strict=True):
            start, long = rows[0], int((rows >= 0).sum())
            total[start:start + long] += (one * weight)[:long]
            mass[start:start + long] += weight[:long]
    blended: NDArray[np.float32] = (total / np.maximum(mass, 1e-12)).astype(np.float32)
    out = {t: blended[features.offsets[t]:features.offsets[t + 1]] for t in trials}
    return {t: _fill(said, features, t) for t, said in out.items()} if window == 1 else out


def _fill(said: NDArray[np.float32], features: Features, trial: int) -> NDArray[np.float32]:
    """Return the values with frames without a face taken from the nearest seen one; even odds where none was seen."""
    rows = _rows(features, trial)
    seen = np.flatnonzero(features.valid[rows])
    if not len(seen):
        return np.full_like(said, -math.log(said.shape[1]))
    middle = (seen[:-1] + seen[1:]) / 2
    return said[seen[np.searchsorted(middle, np.arange(len(rows)))]]
