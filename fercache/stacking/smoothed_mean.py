"""Where the stacker begins: the heads' log-probabilities, each smoothed, weighted and with its class priors corrected.

Notes
-----
What is chosen here (a width for each head and class, a weight for each head, a bias for each class) is chosen on the
rows that are given, which are out of fold; who speaks of which rows is decided in `nested`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fercache import metrics
from fercache.stacking.features import TrainingSample

Floats = NDArray[np.float64]

EDGE = 0.003
"""A choice must score so much more than the plainer one to be taken: less is noise."""
RIDGE = 1.0
HEAD_RIDGE = 300.0
"""How strongly the heads' weights are pulled towards being equal (a weight multiplies several nats)."""
ROWS_A_SAMPLE = 4.0
"""A stretch of a clip counts as so many independent rows against the ridge, however many frames it has."""
MOST_STEPS = 50
BALANCE = {"accuracy": 0.0, "war": 0.0, "uar": 1.0}
"""Power of one over the class's share that weighs a row, by metric."""
BALANCE_F1 = 0.75
"""Macro F1 out of fold of the smoothed mean on five sets of real faces: .238 at .5, .266 at .75, .258 at 1."""
PRIOR_STEPS = (-0.5, -0.25, 0.25, 0.5)
"""What is tried as further power of the class's share (logit adjustment, Menon et al. 2021)."""
THRESHOLD_STEPS = (-0.3, -0.15, 0.15, 0.3)
"""What is tried as further bias of one class."""


@dataclass(frozen=True, kw_only=True)
class SmoothedMean:
    """A calibrated, smoothed mean: ``sum over heads of scale x moving mean(log-probability), + bias``.

    Attributes
    ----------
    width : (H, C) position of the half-width among `widths_s`.
    scale : (H,); bias : (C,).
    balance : power of one over the class's share that the bias corrects for.
    """

    widths_s: tuple[float, ...]
    width: NDArray[np.int64]
    scale: Floats
    bias: Floats
    balance: float

    def log_probs(self, smoothed: NDArray[np.float32]) -> Floats:
        """Return log-probabilities (up to a constant a row), ``(n, C)``, from moving means ``(n, H, W, C)``."""
        total = np.zeros((len(smoothed), smoothed.shape[3]))
        for scale, one in zip(self.scale, picked(smoothed, self.width), strict=True):
            total += scale * one
        return total + self.bias

    def json(self) -> dict[str, Any]:
        """Return what was chosen, as a JSON value."""
        return {"widths_s": list(self.widths_s), "width": self.width.tolist(), "scale": self.scale.tolist(),
                "bias": self.bias.tolist(), "balance": self.balance}

    @classmethod
    def of(cls, log_probs: dict[str, Any]) -> SmoothedMean:
        """Return the base that `json` described."""
        return cls(widths_s=tuple(log_probs["widths_s"]), width=np.array(log_probs["width"], np.int64),
                   scale=np.array(log_probs["scale"], float), bias=np.array(log_probs["bias"],
                                                                            float), balance=log_probs["balance"])


def picked(smoothed: NDArray[np.float32], width: NDArray[np.int64]) -> list[NDArray[np.float32]]:
    """Return each head's moving mean, ``(n, C)``, of the width of each class."""
    classes = np.arange(smoothed.shape[3])
    return [smoothed[:, head, width[head], classes] for head in range(smoothed.shape[1])]


def fit_smoothed_mean(sample: TrainingSample, widths_s: Sequence[float], metric: str) -> SmoothedMean:
    """Return the base whose widths and bias score best on the sample; the plainest of those that are as good.

    Notes
    -----
    First one width for all; then, one after the other, another one for a head, another one for a class, a stronger or
    weaker prior correction, another bias for a class: each is taken if the metric gains more than `EDGE` by it, and
    gains on every fold of the sample. (Without that last demand, 30 groups of real faces lose .03 macro F1 out of fold
    by it.)
    """
    score = _Score(sample, metric)
    balance = BALANCE.get(metric, BALANCE_F1)
    shape = (sample.smoothed.shape[1], sample.classes)
    tried = [_fit(sample, tuple(widths_s), np.full(shape, place), balance) for place in range(len(widths_s))]
    scores = [score(one.log_probs(sample.smoothed)) for one in tried]
    best = 0
    for place, value in enumerate(scores):
        best = place if value > scores[best] + EDGE else best
    found = tried[best]
    if len(widths_s) > 1:
        refined = _refine_widths(found, score, sample)
        found = _fit(sample, found.widths_s, refined.width, balance) if refined is not found else found
    return _refine_bias(found, score, sample) if metric not in BALANCE else found


class _Score:
    """The metric of what is said of a sample, over all of it and on each of its folds."""

    def __init__(self, sample: TrainingSample, metric: str) -> None:
        self.sample, self.figure = sample, metrics.official(metric)
        folds, self.part = np.unique(sample.fold, return_inverse=True)
        self.parts = len(folds)

    def __call__(self, log_probs: Floats) -> float:
        """Return the metric over all rows."""
        return float(self.figure(self._matrices(log_probs).sum(0)))

    def gain(self, log_probs: Floats, plainer: Floats) -> float:
        """Return how much more one says than a plainer one: 0 unless it gains more than `EDGE`, and on every fold.

        Notes
        -----
        With one fold there is nothing to confirm it by, and the plainer one stays.
        """
        one, two = self._matrices(log_probs), self._matrices(plainer)
        gain = float(self.figure(one.sum(0)) - self.figure(two.sum(0)))
        confirmed = self.parts > 1 and bool((self.figure(one) >= self.figure(two)).all())
        return gain if confirmed and gain > EDGE else 0.0

    def _matrices(self, log_probs: Floats) -> metrics.Counts:
        return metrics.confusions(self.sample.label, log_probs.argmax(1), self.part, self.sample.classes, self.parts)


def _refine_widths(base: SmoothedMean, score: _Score, sample: TrainingSample) -> SmoothedMean:
    """Return the base with other widths for single heads, then for single classes, where that is worth it."""
    heads, classes = base.width.shape
    masks = [np.arange(heads)[:, None] == head for head in range(heads)] if heads > 1 else []
    for mask in [*masks, *(np.arange(classes)[None] == c for c in range(classes))]:
        now = base.log_probs(sample.smoothed)
        tried = []
        for place in range(len(base.widths_s)):
            tried.append(replace(base, width=np.where(mask, place, base.width)))
        gains = [score.gain(one.log_probs(sample.smoothed), now) for one in tried]
        base = tried[int(np.argmax(gains))] if max(gains) > 0 else base
    return base


def _refine_bias(base: SmoothedMean, score: _Score, sample: TrainingSample) -> SmoothedMean:
    """Return the base with a stronger or weaker prior correction, and another bias for single classes."""
    start = base.log_probs(sample.smoothed)
    share = np.bincount(sample.label, minlength=sample.classes) / max(len(sample.label), 1)
    prior = np.log(np.maximum(share, 1e-3))
    moves = [[(-step * prior, step) for step in PRIOR_STEPS]]
    moves += [[(step * np.eye(sample.classes)[c], 0.0) for step in THRESHOLD_STEPS] for c in range(sample.classes)]
    for choices in moves:
        gains = [score.gain(start + move, start) for move, _ in choices]
        if max(gains) > 0:
            move, power = choices[int(np.argmax(gains))]
            start = start + move
            base = replace(base, bias=base.bias + move, balance=base.balance + power)
    return base


def _fit(sample: TrainingSample, widths_s: tuple[float, ...], width: NDArray[np.int64], balance: float) -> SmoothedMean:
    """Return the base of those widths with the least weighted cross entropy.

    Notes
    -----
    Vector scaling (Guo et al. 2017) with one scale a head: H + C numbers, by Newton's method; rare classes weigh more,
    which makes the bias a prior correction. The ridge pulls towards the plain mean.
    """
    means = np.stack(picked(sample.smoothed, width), 1).astype(float)
    heads, classes = means.shape[1:]
    weight = sample.weights(balance) * ROWS_A_SAMPLE * sample.effective_n() / max(len(means), 1)
    found = np.concatenate([np.full(heads, 1 / heads), np.zeros(classes)])
    rest = found.copy()
    for _ in range(MOST_STEPS):
        step = _newton(found, rest, means, sample.label, weight)
        found -= step
        if np.abs(step).max() < 1e-7:
            break
    return SmoothedMean(widths_s=widths_s, width=width, scale=found[:heads], bias=found[heads:], balance=balance)


def _newton(found: Floats, rest: Floats, means: Floats, label: NDArray[np.int64], weight: Floats) -> Floats:
    """Return Newton's step, ``(H + C,)``, at scales and bias `found`, cut to a length at which it cannot run away."""
    heads = means.shape[1]
    p = softmax(np.einsum("h,nhc->nc", found[:heads], means) + found[heads:])
    wrong = p.copy()
    wrong[np.arange(len(p)), label] -= 1
    wrong *= weight[:, None]
    ridge = np.concatenate([np.full(heads, HEAD_RIDGE if heads > 1 else RIDGE), np.full(p.shape[1], RIDGE)])
    slope = np.concatenate([np.einsum("nc,nhc->h", wrong, means), wrong.sum(0)]) + ridge * (found - rest)
    heavy = p * weight[:, None]
    expected = np.einsum("nc,nhc->nh", p, means)
    curve = np.diag(ridge)
    square = np.einsum("nc,nhc,ngc->hg", heavy, means, means)
    curve[:heads, :heads] += square - (weight[:, None] * expected).T @ expected
    curve[:heads, heads:] = np.einsum("nc,nhc->hc", heavy, means - expected[:, :, None])
    curve[heads:, :heads] = curve[:heads, heads:].T
    curve[heads:, heads:] += np.diag(heavy.sum(0)) - heavy.T @ p
    step = np.linalg.solve(curve, slope)
    return np.asarray(step * min(1.0, 3.0 / max(np.abs(step).max(), 1e-12)))


def softmax(logits: NDArray[np.floating]) -> Floats:
    """Return probabilities, ``(n, C)``."""
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True), float)
