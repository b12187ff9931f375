"""The training of one head on the windows of some trials: loss, optimizer, early stopping."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fercache import metrics
from fercache.heads.base import Head, build_head
from fercache.heads.frame import FinetuneTail
from fercache.heads.registry import HeadSettings
from fercache.heads.temporal import TemporalHead
from fercache.training.data import Batch, FrameDataset, WindowSampler
from fercache.training.inference import make_sampler, predict_head

FOCUS = 2.0  # exponent of the focal loss (Lin et al. 2017)
POWER = {"weighted": 0.5, "balanced": 1.0, "focal": 0.5}


class Loss:
    """The loss over the labelled frames of a batch, with class frequencies taken from the training labels, ``(R,)``.

    `kind`: plain; weighted, balanced (class weights, the class's share to the power of -1/2 or -1); focal (weighted,
    and frames that are predicted well count little); adjusted (the logarithm of the class's share is added to the
    logits in training: Menon et al. 2021, arXiv 2007.07314).
    """

    def __init__(self, kind: str, label: NDArray[np.int16], classes: int, smoothing: float, device: str) -> None:
        self.kind, self.smoothing = kind, smoothing
        count = np.bincount(label[label >= 0], minlength=classes).astype(np.float64)
        prior = np.where(count > 0, count, np.nan) / max(count.sum(), 1)
        # A class without labels gets a large finite offset: log 0 would turn every gradient into NaN.
        offset = np.nan_to_num(np.log(prior), nan=-20.0) if kind == "adjusted" else np.zeros(classes)
        self.offset = torch.from_numpy(offset).float().to(device)
        self.weight = class_weights(label, classes, POWER.get(kind, 0.0)).to(device)

    def __call__(self, logits: Tensor, label: Tensor, mixed_in: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Return the loss; 0 where nothing is labelled."""
        # `mixed_in`: for mixed windows, the labels of the other window, and the weight of the first one, ``(B,)``.
        if mixed_in is None:
            return self._mean(logits, label, None)
        other, weight = mixed_in
        weight = weight[:, None].expand(label.shape)
        return self._mean(logits, label, weight) + self._mean(logits, other, 1 - weight)

    def _mean(self, logits: Tensor, label: Tensor, frame_weight: Tensor | None) -> Tensor:
        labelled = label >= 0
        if not labelled.any():
            return logits.sum() * 0  # keeps the graph, so that backward works on a batch without labels
        logits, target = logits[labelled] + self.offset, label[labelled]
        loss = F.cross_entropy(logits, target, self.weight, label_smoothing=self.smoothing, reduction="none")
        if self.kind == "focal":
            loss = loss * (1 - logits.softmax(-1).gather(1, target[:, None])[:, 0]) ** FOCUS
        if frame_weight is not None:
            loss = loss * frame_weight[labelled]
        return loss.sum() / self.weight[target].sum().clamp_min(1e-12)


def class_weights(label: NDArray[np.int16], classes: int, power: float = 0.5) -> Tensor:
    """Return ``(C,)`` weights, the class's share to the power of ``-power``; 0 for a class without labels."""
    # Their mean over the labels is 1, so that the learning rate means the same for every loss.
    count = np.bincount(label[label >= 0], minlength=classes).astype(np.float64)
    weight = np.where(count > 0, np.maximum(count, 1) ** -power, 0)
    return torch.from_numpy(weight / max((weight * count).sum() / max(count.sum(), 1), 1e-12)).float()


WARM_UP = 0.1  # share of the steps in which the learning rate rises; then it falls as a cosine
CLIP_NORM = 1.0
MOMENTUM = 0.9
TIMED_STEPS = 3  # the fastest one counts for an estimate, because the first ones warm up
TIMED_TRIALS = 4


@dataclass(frozen=True, kw_only=True)
class FitTask:
    """One head to train: the training trials, the validation trials (none: all epochs are run), and the seed."""

    head: str
    settings: HeadSettings
    classes: int
    train: tuple[int, ...]
    val_trials: tuple[int, ...]
    seed: int
    device: str
    # Weights of the whole backbone, for a head that fine-tunes the backbone's last blocks.
    tensors: dict[str, NDArray[np.float32]] | None = None
    start: dict[str, Tensor] | None = None  # weights and statistics that the head begins with, by name


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """A trained head, the epoch it comes from, and its macro F1 on the validation trials (NaN without any)."""

    head: Head
    epoch: int
    validation_f1: float


def fit(task: FitTask, features: FrameDataset, report: Callable[[float], None] = lambda share: None) -> FitResult:
    """Return a head trained on the task's trials; the same task and features give the same head.

    `report`: is called with each further share of the work that is done.
    """
    # AdamW with warm-up and cosine decay (or plain SGD). The result is the epoch with the best macro F1 on the
    # validation trials; with an average of the weights, the averaged head is the one that is validated and returned.

    # Before the head is built: its random initial weights must depend on the seed only.
    torch.manual_seed(task.seed)
    rng = np.random.default_rng(task.seed)
    head = _new_head(task, features)
    work = task.settings.epochs
    if isinstance(head, TemporalHead) and head.alone is not None:
        work *= 2
        # The random numbers of the head itself do not depend on that training.
        with torch.random.fork_rng([] if task.device == "cpu" else [task.device]):
            alone = fit(task, features.without_sound(), lambda share: report(share / 2)).head
        head.alone.load_state_dict(alone.state_dict())
        head.alone.requires_grad_(False)
    trainer = _Trainer(task, features, head)
    # A head that begins with trained weights may be best before the first step.
    scored = task.val_trials and (task.start or not task.settings.epochs)
    score = validation_f1(head, task, features) if scored else -1.0
    best = FitResult(head=copy.deepcopy(head).eval(), epoch=0, validation_f1=score)
    for epoch in range(1, task.settings.epochs + 1):
        trainer.epoch(rng, lambda share: report(share / work))
        if task.val_trials:
            score = validation_f1(trainer.averaged_head(), task, features)
            if score > best.validation_f1:
                # A copy, because the next epoch changes the weights in place.
                best = FitResult(head=copy.deepcopy(trainer.averaged_head()).eval(), epoch=epoch, validation_f1=score)
            if task.settings.patience and epoch - best.epoch >= task.settings.patience:
                break
    if task.val_trials:
        return best
    return FitResult(head=trainer.averaged_head().eval(), epoch=task.settings.epochs, validation_f1=math.nan)


def _new_head(task: FitTask, features: FrameDataset) -> Head:
    """Return the head before the first step: normalized by the training rows only, with pretrained backbone blocks."""
    head = build_head(task.head, features.layout, task.classes, task.settings).to(task.device)
    if task.start:
        head.load_state_dict(task.start)
    else:
        head.standardise.fit(*_mean_and_std(features, _rows(features, task.train)))
    for part in head.modules():
        if isinstance(part, FinetuneTail) and task.tensors is not None:
            part.load(task.tensors)
    return head


class _Trainer:
    """The training state of one head: optimizer, learning-rate schedule, loss, running average of the weights."""

    def __init__(self, task: FitTask, features: FrameDataset, head: Head) -> None:
        self.task, self.settings, self.head = task, task.settings, head
        self.sampler = make_sampler(features, task.train, task.settings, task.device)
        label = features.label[_rows(features, task.train)]
        self.loss = Loss(self.settings.loss, label, task.classes, self.settings.label_smoothing, task.device)
        constant = self.settings.optimizer == "sgd"
        optimizer = partial(torch.optim.SGD, momentum=MOMENTUM) if constant else torch.optim.AdamW
        self.optimizer: torch.optim.Optimizer = optimizer(head.parameters(), lr=self.settings.lr,
                                                          weight_decay=self.settings.weight_decay)
        # A generator of its own: counting the steps must not change the random windows of the first epoch.
        windows = len(_epoch_starts(self.sampler, self.settings, np.random.default_rng(0)))
        steps = self.settings.epochs * math.ceil(windows / self.settings.batch)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: 1.0 if constant else _rate_factor(step / max(steps, 1)))
        ema = get_ema_multi_avg_fn(self.settings.ema)  # type: ignore[no-untyped-call]
        self.average = AveragedModel(head, multi_avg_fn=ema) if self.settings.ema else None
        self.max_masked = round(self.settings.time_mask_s / features.frame_s() / self.sampler.step)

    def averaged_head(self) -> Head:
        """Return the head to predict with: the averaged one where there is an average."""
        if self.average is None:
            return self.head
        averaged = self.average.module
        assert isinstance(averaged, Head)
        return averaged

    def epoch(self, rng: np.random.Generator, report: Callable[[float], None]) -> None:
        """Train for one epoch."""
        self.head.train()
        starts = _epoch_starts(self.sampler, self.settings, rng)
        for batch in self.sampler.batches(starts, self.settings.batch, rng):
            self.step(batch, rng)
            report(len(batch.rows) / len(starts))

    def step(self, batch: Batch, rng: np.random.Generator) -> None:
        """Train on one batch."""
        self.optimizer.zero_grad(set_to_none=True)
        seen = self._mask_time(batch.seen, rng)
        with torch.autocast(torch.device(self.task.device).type, torch.bfloat16, self.settings.precision == "bf16"):
            if self.settings.mixup:
                logits, mixed_in = self._mix_up(batch, seen, rng)
            else:
                logits, mixed_in = self.head(batch.x, seen, batch.time_s), None
        # The loss is computed in float32: its logarithms and class weights lose too much in bfloat16.
        self.loss(logits.float(), batch.label, mixed_in).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.head.parameters(), CLIP_NORM)
        self.optimizer.step()
        self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.head)

    def _mask_time(self, seen: Tensor, rng: np.random.Generator) -> Tensor:
        """Return the face mask without a random stretch of each window, which the head must infer from its context."""
        if not self.max_masked or seen.shape[1] == 1:
            return seen
        length = rng.integers(0, self.max_masked + 1, size=len(seen))
        start = rng.integers(0, seen.shape[1], size=len(seen))
        frame = np.arange(seen.shape[1])
        visible = (frame < start[:, None]) | (frame >= (start + length)[:, None])
        return seen & torch.from_numpy(visible).to(seen.device)

    def _mix_up(self, batch: Batch, seen: Tensor, rng: np.random.Generator) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return logits of windows mixed in pairs, the other labels, and the first weights (Zhang et al. 2018)."""
        alpha = self.settings.mixup
        drawn = rng.beta(alpha, alpha, len(seen))
        # The first window always has the larger weight, so that its time axis is the one that fits.
        weight = torch.from_numpy(np.maximum(drawn, 1 - drawn)).float()
        other = torch.from_numpy(rng.permutation(len(seen))).to(seen.device)
        weight = weight.to(seen.device)
        x = weight[:, None, None] * batch.x + (1 - weight)[:, None, None] * batch.x[other]
        both = seen & seen[other]
        # Where one of the two has no face its features are zeros, so such a mixture has no label.
        label = torch.where(both, batch.label[other], -1)
        batch.label[~both] = -1
        return self.head(x, both, batch.time_s), (label, weight)


def _rate_factor(share: float) -> float:
    """Return the learning rate's factor after `share` of all steps."""
    return share / WARM_UP if share < WARM_UP else 0.5 * (1 + math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP)))


def _epoch_starts(sampler: WindowSampler, settings: HeadSettings, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return an epoch's windows in random order: half overlapping, newly shifted; or single labelled frames."""
    # Neighbouring frames are near copies, so a frame-level head gains nothing from all of them in one epoch: it reads
    # one every `step_s` seconds, from another first frame in each epoch.
    if sampler.window == 1:
        apart = max(1, round(settings.step_s / sampler.features.frame_s()))
        starts = sampler.starts(1)[int(rng.integers(apart))::apart]
        row = starts[:, 1]
        starts = starts[(sampler.features.label[row] >= 0) & sampler.features.valid[row]]
    else:
        stride = max(1, sampler.span // 2)
        starts = sampler.starts(stride, int(rng.integers(stride)))
    return starts[rng.permutation(len(starts))]


def _rows(features: FrameDataset, trials: tuple[int, ...]) -> NDArray[np.int64]:
    return np.concatenate([features.rows(t) for t in trials])


def _mean_and_std(features: FrameDataset, rows: NDArray[np.int64], max_rows: int = 20_000) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation, each ``(D,)``, over rows with a face, those of sound over rows with sound."""
    parts = [(features.x, rows[features.valid[rows]])]
    if features.audio.shape[1]:  # thinned first: whether a row has sound is read from its values
        some = rows[:: max(1, len(rows) // max_rows)]
        parts.append((features.audio, some[features.audio[some].any(1)]))
    moments = []
    for values, seen in parts:
        x = torch.from_numpy(values[seen[:: max(1, len(seen) // max_rows)]]).float()
        moments.append((x.mean(0), x.std(0, correction=0)) if len(x) else
                       (torch.zeros(x.shape[1]), torch.ones(x.shape[1])))
    return torch.cat([mean for mean, _ in moments]), torch.cat([std for _, std in moments])


def validation_f1(head: Head, task: FitTask, features: FrameDataset) -> float:
    """Return the head's macro F1 over labelled frames of the validation trials, `step_s` apart."""
    by_trial = predict_head(head, task.settings, features, task.val_trials, task.device, subsample=True)
    label = features.label[_rows(features, task.val_trials)]
    log_probs = np.concatenate([by_trial[t] for t in task.val_trials])
    scored = (label >= 0) & log_probs.any(1)  # rows that were not predicted are zeros
    return float(metrics.macro_f1(metrics.confusion(label[scored], log_probs[scored].argmax(1), task.classes)))


def estimate_s(task: FitTask, features: FrameDataset) -> float:
    """Return about how many seconds `fit` takes without early stopping, from a few timed steps that are thrown away."""
    # The prediction of a few validation trials is timed too.
    torch.manual_seed(task.seed)
    rng = np.random.default_rng(task.seed)
    trainer = _Trainer(task, features, _new_head(task, features))
    starts = _epoch_starts(trainer.sampler, task.settings, rng)
    if not len(starts):
        return 0.0
    durations_s = []
    for i in range(TIMED_STEPS):
        began = time.monotonic()
        trainer.step(trainer.sampler.batch(starts[i * task.settings.batch:][:task.settings.batch], rng), rng)
        durations_s.append(time.monotonic() - began)
        # Only full batches count: a short last one would make the estimate too low.
        if (i + 2) * task.settings.batch > len(starts):
            break
    epoch_s = min(durations_s) * len(starts) / task.settings.batch
    if task.val_trials:
        some = task.val_trials[:TIMED_TRIALS]
        began = time.monotonic()
        validation_f1(trainer.averaged_head(), replace(task, val_trials=some), features)
        duration_s = time.monotonic() - began
        epoch_s += duration_s * len(_rows(features, task.val_trials)) / max(len(_rows(features, some)), 1)
    # A head that joins sound has a part that is trained alone first.
    return epoch_s * task.settings.epochs * (2 if getattr(trainer.head, "alone", None) else 1)
