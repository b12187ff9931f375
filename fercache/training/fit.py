"""One head trained on some trials' windows."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fercache import metrics
from fercache.heads import build_head
from fercache.heads.base import Head, HeadSettings
from fercache.heads.frame import FinetuneTail
from fercache.training.data import Batch, FrameDataset, WindowSampler
from fercache.training.inference import predict_head, windows

# How wrong a batch is, with the classes' shares taken into account in one of several ways.

FOCUS = 2.0
"""Exponent of the focal loss (Lin et al. 2017)."""
POWER = {"weighted": 0.5, "balanced": 1.0, "focal": 0.5}


class Loss:
    """The loss over the labelled frames of a batch, on the shares of the classes among the training labels.

    Parameters
    ----------
    kind : plain; weighted, balanced (class weights, the share to the power of -1/2 or -1); focal (weighted, and a frame
        that is said right counts little); adjusted (the logarithm of the share is added to the logits while training:
        Menon et al. 2021, arXiv 2007.07314).
    label : (R,) the training labels, -1 unknown.
    """

    def __init__(self, kind: str, label: NDArray[np.int16], classes: int, smoothing: float, device: str) -> None:
        self.kind, self.smoothing = kind, smoothing
        count = np.bincount(label[label >= 0], minlength=classes).astype(np.float64)
        share = np.where(count > 0, count, np.nan) / max(count.sum(), 1)
        offset = np.nan_to_num(np.log(share), nan=-20.0) if kind == "adjusted" else np.zeros(classes)
        self.offset = torch.from_numpy(offset).float().to(device)
        self.weight = class_weights(label, classes, POWER.get(kind, 0.0)).to(device)

    def __call__(self, logits: Tensor, label: Tensor, second: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Return the loss; 0 where nothing is labelled.

        Parameters
        ----------
        second : of mixed windows, the labels of the other window, and the share of the first one, ``(B,)``.
        """
        if second is None:
            return self._mean(logits, label, None)
        other, share = second
        share = share[:, None].expand(label.shape)
        return self._mean(logits, label, share) + self._mean(logits, other, 1 - share)

    def _mean(self, logits: Tensor, label: Tensor, share: Tensor | None) -> Tensor:
        known = label >= 0
        if not known.any():
            return logits.sum() * 0
        said, truth = logits[known] + self.offset, label[known]
        loss = F.cross_entropy(said, truth, self.weight, label_smoothing=self.smoothing, reduction="none")
        if self.kind == "focal":
            loss = loss * (1 - said.softmax(-1).gather(1, truth[:, None])[:, 0]) ** FOCUS
        if share is not None:
            loss = loss * share[known]
        return loss.sum() / self.weight[truth].sum().clamp_min(1e-12)


def class_weights(label: NDArray[np.int16], classes: int, power: float = 0.5) -> Tensor:
    """Return ``(C,)`` weights, the class's share to the power of ``-power``; 0 for a class that is not there.

    Notes
    -----
    Their mean over the labels is 1.
    """
    count = np.bincount(label[label >= 0], minlength=classes).astype(np.float64)
    weight = np.where(count > 0, np.maximum(count, 1) ** -power, 0)
    return torch.from_numpy(weight / max((weight * count).sum() / max(count.sum(), 1), 1e-12)).float()


WARM_UP = 0.1
"""Share of the steps in which the learning rate rises; then it falls as a cosine."""
CLIP_NORM = 1.0
MOMENTUM = 0.9
TRIED_STEPS = 3
"""Steps by which the time of a training is estimated; the quickest counts, the first ones warm up."""
TRIED_TRIALS = 4


@dataclass(frozen=True, kw_only=True)
class FitTask:
    """One head to train: on which trials, watched by which (none: all epochs are run), of which seed.

    Attributes
    ----------
    tensors : of the whole backbone, for a head that trains the backbone's tail.
    """

    head: str
    settings: HeadSettings
    classes: int
    train: tuple[int, ...]
    val_trials: tuple[int, ...]
    seed: int
    device: str
    tensors: dict[str, NDArray[np.float32]] | None = None


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """A trained head, the epoch it was taken from, and the macro F1 it had on the watched trials (NaN: none)."""

    head: Head
    epoch: int
    validation_f1: float


def fit(task: FitTask, features: FrameDataset, tell: Callable[[float], None] = lambda share: None) -> FitResult:
    """Return a head trained on the task's trials; the same task and features give the same head.

    Parameters
    ----------
    tell : is called with each further share of the work that is done.

    Notes
    -----
    AdamW with warm-up and cosine (or plain SGD), the epoch with the best macro F1 on the watched trials is kept, of the
    averaged weights where there is an average.
    """
    torch.manual_seed(task.seed)
    rng = np.random.default_rng(task.seed)
    head = _fresh(task, features)
    run = _Run(task, features, head)
    best = FitResult(head=head, epoch=0, validation_f1=-1.0)
    for epoch in range(1, task.settings.epochs + 1):
        run.epoch(rng, lambda share: tell(share / task.settings.epochs))
        if task.val_trials:
            best = _better(best, run.speaker(), epoch, validation_f1(run.speaker(), task, features))
            if task.settings.patience and epoch - best.epoch >= task.settings.patience:
                break
    if task.val_trials:
        return best
    return FitResult(head=run.speaker().eval(), epoch=task.settings.epochs, validation_f1=math.nan)


def _fresh(task: FitTask, features: FrameDataset) -> Head:
    """Return the head before the first step: standardised by the training rows only, its tail pretrained."""
    head = build_head(task.head, features.layout, task.classes, task.settings).to(task.device)
    head.standardise.fit(*_moments(features, _rows(features, task.train)))
    for part in head.modules():
        if isinstance(part, FinetuneTail) and task.tensors is not None:
            part.load(task.tensors)
    return head


class _Run:
    """The training of one head: optimiser, schedule, loss, the running average of the weights."""

    def __init__(self, task: FitTask, features: FrameDataset, head: Head) -> None:
        self.task, self.settings, self.head = task, task.settings, head
        self.source = windows(features, task.train, task.settings, task.device)
        label = features.label[_rows(features, task.train)]
        self.loss = Loss(self.settings.loss, label, task.classes, self.settings.label_smoothing, task.device)
        self.optimizer = _optimizer(head, self.settings)
        steps = self.settings.epochs * math.ceil(len(_starts(self.source, self.settings, np.random.default_rng(0)))
                                                 / self.settings.batch)
        constant = self.settings.optimizer == "sgd"
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: 1.0 if constant else _pace(step / max(steps, 1)))
        ema = get_ema_multi_avg_fn(self.settings.ema)  # type: ignore[no-untyped-call]
        self.average = AveragedModel(head, multi_avg_fn=ema) if self.settings.ema else None
        self.hidden = round(self.settings.time_mask_s / features.frame_s() / self.source.step)

    def speaker(self) -> Head:
        """Return the head that predicts: the averaged one where there is one."""
        if self.average is None:
            return self.head
        averaged = self.average.module
        assert isinstance(averaged, Head)
        return averaged

    def epoch(self, rng: np.random.Generator, tell: Callable[[float], None]) -> None:
        """Pass once over the windows."""
        self.head.train()
        starts = _starts(self.source, self.settings, rng)
        for batch in self.source.batches(starts, self.settings.batch, rng):
            self.step(batch, rng)
            tell(len(batch.rows) / len(starts))

    def step(self, batch: Batch, rng: np.random.Generator) -> None:
        """Learn from one batch."""
        self.optimizer.zero_grad(set_to_none=True)
        seen = self._hide(batch.seen, rng)
        with torch.autocast(torch.device(self.task.device).type, torch.bfloat16, self.settings.precision == "bf16"):
            if self.settings.mixup:
                said, second = self._mixed(batch, seen, rng)
            else:
                said, second = self.head(batch.x, seen, batch.time_s), None
        self.loss(said.float(), batch.label, second).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.head.parameters(), CLIP_NORM)
        self.optimizer.step()
        self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.head)

    def _hide(self, seen: Tensor, rng: np.random.Generator) -> Tensor:
        """Return what is seen without a stretch of each window: what was there must be told from what is around."""
        if not self.hidden or seen.shape[1] == 1:
            return seen
        long = rng.integers(0, self.hidden + 1, size=len(seen))
        start = rng.integers(0, seen.shape[1], size=len(seen))
        at = np.arange(seen.shape[1])
        kept = (at < start[:, None]) | (at >= (start + long)[:, None])
        return seen & torch.from_numpy(kept).to(seen.device)

    def _mixed(self, batch: Batch, seen: Tensor, rng: np.random.Generator) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return what the head says of windows mixed in pairs, and what else they should say (Zhang et al. 2018)."""
        alpha = self.settings.mixup
        share = np.maximum(drawn := rng.beta(alpha, alpha, len(seen)), 1 - drawn)
        other = torch.from_numpy(rng.permutation(len(seen))).to(seen.device)
        part = torch.from_numpy(share).float().to(seen.device)
        x = part[:, None, None] * batch.x + (1 - part)[:, None, None] * batch.x[other]
        both = seen & seen[other]
        label = torch.where(both, batch.label[other], -1)
        batch.label[~both] = -1
        return self.head(x, both, batch.time_s), (label, part)


def _optimizer(head: nn.Module, settings: HeadSettings) -> torch.optim.Optimizer:
    if settings.optimizer == "sgd":
        return torch.optim.SGD(head.parameters(), settings.lr, MOMENTUM, weight_decay=settings.weight_decay)
    return torch.optim.AdamW(head.parameters(), settings.lr, weight_decay=settings.weight_decay)


def _better(best: FitResult, head: Head, epoch: int, score: float) -> FitResult:
    if score <= best.validation_f1:
        return best
    return FitResult(head=copy.deepcopy(head).eval(), epoch=epoch, validation_f1=score)


def _pace(share: float) -> float:
    """Return the learning rate's factor when `share` of all steps is done."""
    return share / WARM_UP if share < WARM_UP else 0.5 * (1 + math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP)))


def _starts(source: WindowSampler, settings: HeadSettings, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return an epoch's windows in random order: half overlapping, shifted anew; or single frames, labelled and seen.

    Notes
    -----
    Neighbouring frames are near copies, so that a frame-level head gains nothing from all of them in one epoch: it
    takes one every `step_s` seconds, from another first frame in each epoch.
    """
    if source.window == 1:
        apart = max(1, round(settings.step_s / source.features.frame_s()))
        found = source.starts(1)[int(rng.integers(apart))::apart]
        row = found[:, 1]
        found = found[(source.features.label[row] >= 0) & source.features.valid[row]]
    else:
        stride = max(1, source.span // 2)
        found = source.starts(stride, int(rng.integers(stride)))
    return found[rng.permutation(len(found))]


def _rows(features: FrameDataset, trials: tuple[int, ...]) -> NDArray[np.int64]:
    return np.concatenate([features.rows(t) for t in trials])


def _moments(features: FrameDataset, rows: NDArray[np.int64], most: int = 20_000) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation, each ``(D,)``, over the seen rows (evenly thinned to `most`)."""
    seen = rows[features.valid[rows]]
    seen = seen[:: max(1, len(seen) // most)]
    if not len(seen):
        return torch.zeros(features.x.shape[1]), torch.ones(features.x.shape[1])
    x = torch.from_numpy(features.x[seen]).float()
    return x.mean(0), x.std(0, correction=0)


def validation_f1(head: Head, task: FitTask, features: FrameDataset) -> float:
    """Return the head's macro F1 over labelled frames of the watched trials, `step_s` apart."""
    said = predict_head(head, task.settings, features, task.val_trials, task.device, thin=True)
    label = features.label[_rows(features, task.val_trials)]
    guess = np.concatenate([said[t] for t in task.val_trials])
    asked = (label >= 0) & guess.any(1)
    return float(metrics.macro_f1(metrics.confusion(label[asked], guess[asked].argmax(1), task.classes)))


def estimate_s(task: FitTask, features: FrameDataset) -> float:
    """Return about how many seconds `fit` will take if it does not stop early, from steps of it that are thrown away.

    Notes
    -----
    A few steps, and what the head says of a few of the watched trials, are timed.
    """
    torch.manual_seed(task.seed)
    rng = np.random.default_rng(task.seed)
    run = _Run(task, features, _fresh(task, features))
    starts = _starts(run.source, task.settings, rng)
    if not len(starts):
        return 0.0
    took = []
    for i in range(TRIED_STEPS):
        began = time.monotonic()
        run.step(run.source.batch(starts[i * task.settings.batch:][:task.settings.batch], rng), rng)
        took.append(time.monotonic() - began)
        if (i + 2) * task.settings.batch > len(starts):
            break
    epoch_s = min(took) * len(starts) / task.settings.batch + _validation_s(run.speaker(), task, features)
    return epoch_s * task.settings.epochs


def _validation_s(head: Head, task: FitTask, features: FrameDataset) -> float:
    """Return about how long one look at the watched trials takes."""
    if not task.val_trials:
        return 0.0
    some = task.val_trials[:TRIED_TRIALS]
    began = time.monotonic()
    validation_f1(head, replace(task, val_trials=some), features)
    took_s = time.monotonic() - began
    return took_s * len(_rows(features, task.val_trials)) / max(len(_rows(features, some)), 1)
