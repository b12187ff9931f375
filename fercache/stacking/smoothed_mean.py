"""The smoothed mean: each head's log-probabilities, smoothed over time, weighted, and corrected for class priors.

Notes
-----
A width for each head and class, a weight for each head and a bias for each class are fitted on out-of-fold rows;
`nested_cv` decides which model predicts which rows.
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
"""A choice must score this much more than the simpler one; less is noise."""
RIDGE = 1.0
HEAD_RIDGE = 300.0
"""How strongly the heads' weights are pulled towards being equal (a weight multiplies several nats)."""
ROWS_A_SAMPLE = 4.0
"""A block of a clip counts as this many independent rows against the ridge, whatever its number of frames."""
MOST_STEPS = 50
BALANCE = {"accuracy": 0.0, "war": 0.0, "uar": 1.0}
"""A row weighs one over its class's share to this power, by metric."""
BALANCE_F1 = 0.75
"""Macro F1 out of fold of the smoothed mean on five sets of real faces: .238 at .5, .266 at .75, .258 at 1."""
PRIOR_STEPS = (-0.5, -0.25, 0.25, 0.5)
"""Candidate changes of the power of the class's share (logit adjustment, Menon et al. 2021)."""
THRESHOLD_STEPS = (-0.3, -0.15, 0.15, 0.3)
"""Candidate changes of the bias of one class."""


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
        """Return the parameters as a JSON value."""
        return {"widths_s": list(self.widths_s), "width": self.width.tolist(), "scale": self.scale.tolist(),
                "bias": self.bias.tolist(), "balance": self.balance}

    @classmethod
    def of(cls, params: dict[str, Any]) -> SmoothedMean:
        """Return the model that `json` described."""
        return cls(widths_s=tuple(params["widths_s"]), width=np.array(params["width"], np.int64),
                   scale=np.array(params["scale"], float), bias=np.array(params["bias"], float),
                   balance=params["balance"])


def picked(smoothed: NDArray[np.float32], width: NDArray[np.int64]) -> list[NDArray[np.float32]]:
    """Return each head's moving mean, ``(n, C)``, of the width of each class."""
    classes = np.arange(smoothed.shape[3])
    return [smoothed[:, head, width[head], classes] for head in range(smoothed.shape[1])]


def fit_smoothed_mean(sample: TrainingSample, widths_s: Sequence[float], metric: str) -> SmoothedMean:
    """Return the model whose widths and bias score best on the sample; of equals the simplest.

    Notes
    -----
    The search starts with one width for all. It then tries, in turn, another width for each head and each class, a
    stronger or weaker prior correction, and another bias for each class. A change is kept if the metric gains more than
    `EDGE` and loses on no fold. (Without the second condition, 30 groups of real faces lose .03 macro F1 out of fold.)
    """
    score = _Score(sample, metric)
    balance = BALANCE.get(metric, BALANCE_F1)
    shape = (sample.smoothed.shape[1], sample.classes)
    tried = [_fit(sample, tuple(widths_s), np.full(shape, place), balance) for place in range(len(widths_s))]
    scores = [score(one.log_probs(sample.smoothed)) for one in tried]
    best = 0
    for place, value in enumerate(scores):
        best = place if value > scores[best] + EDGE else best
    params = tried[best]
    if len(widths_s) > 1:
        refined = _refine_widths(params, score, sample)
        params = _fit(sample, params.widths_s, refined.width, balance) if refined is not params else params
    return _refine_bias(params, score, sample) if metric not in BALANCE else params


class _Score:
    """The metric of predictions of a sample, over all rows and for each fold."""

    def __init__(self, sample: TrainingSample, metric: str) -> None:
        self.sample, self.figure = sample, metrics.official(metric)
        folds, self.part = np.unique(sample.fold, return_inverse=True)
        self.parts = len(folds)

    def __call__(self, log_probs: Floats) -> float:
        """Return the metric over all rows."""
        return float(self.figure(self._matrices(log_probs).sum(0)))

    def gain(self, log_probs: Floats, simpler: Floats) -> float:
        """Return the gain over a simpler choice; 0 unless it exceeds `EDGE` and no fold loses.

        Notes
        -----
        With one fold nothing can confirm a gain, so the simpler choice stays.
        """
        one, two = self._matrices(log_probs), self._matrices(simpler)
        gain = float(self.figure(one.sum(0)) - self.figure(two.sum(0)))
        confirmed = self.parts > 1 and bool((self.figure(one) >= self.figure(two)).all())
        return gain if confirmed and gain > EDGE else 0.0

    def _matrices(self, log_probs: Floats) -> metrics.Counts:
        return metrics.confusions(self.sample.label, log_probs.argmax(1), self.part, self.sample.classes, self.parts)


def _refine_widths(model: SmoothedMean, score: _Score, sample: TrainingSample) -> SmoothedMean:
    """Return the model with other widths for single heads, then for single classes, where the score gains."""
    heads, classes = model.width.shape
    masks = [np.arange(heads)[:, None] == head for head in range(heads)] if heads > 1 else []
    for mask in [*masks, *(np.arange(classes)[None] == c for c in range(classes))]:
        now = model.log_probs(sample.smoothed)
        tried = []
        for place in range(len(model.widths_s)):
            tried.append(replace(model, width=np.where(mask, place, model.width)))
        gains = [score.gain(one.log_probs(sample.smoothed), now) for one in tried]
        model = tried[int(np.argmax(gains))] if max(gains) > 0 else model
    return model


def _refine_bias(model: SmoothedMean, score: _Score, sample: TrainingSample) -> SmoothedMean:
    """Return the model with another prior correction and biases for single classes, where the score gains."""
    start = model.log_probs(sample.smoothed)
    share = np.bincount(sample.label, minlength=sample.classes) / max(len(sample.label), 1)
    prior = np.log(np.maximum(share, 1e-3))
    moves = [[(-step * prior, step) for step in PRIOR_STEPS]]
    moves += [[(step * np.eye(sample.classes)[c], 0.0) for step in THRESHOLD_STEPS] for c in range(sample.classes)]
    for choices in moves:
        gains = [score.gain(start + move, start) for move, _ in choices]
        if max(gains) > 0:
            move, power = choices[int(np.argmax(gains))]
            start = start + move
            model = replace(model, bias=model.bias + move, balance=model.balance + power)
    return model


def _fit(sample: TrainingSample, widths_s: tuple[float, ...], width: NDArray[np.int64], balance: float) -> SmoothedMean:
    """Return the model of those widths with the least weighted cross entropy.

    Notes
    -----
    Vector scaling (Guo et al. 2017) with one scale a head: H + C numbers, by Newton's method; rare classes weigh more,
    which makes the bias a prior correction. The ridge pulls towards the plain mean.
    """
    means = np.stack(picked(sample.smoothed, width), 1).astype(float)
    heads, classes = means.shape[1:]
    weight = sample.weights(balance) * ROWS_A_SAMPLE * sample.effective_n() / max(len(means), 1)
    params = np.concatenate([np.full(heads, 1 / heads), np.zeros(classes)])
    rest = params.copy()
    for _ in range(MOST_STEPS):
        step = _newton(params, rest, means, sample.label, weight)
        params -= step
        if np.abs(step).max() < 1e-7:
            break
    return SmoothedMean(widths_s=widths_s, width=width, scale=params[:heads], bias=params[heads:], balance=balance)


def _newton(params: Floats, rest: Floats, means: Floats, label: NDArray[np.int64], weight: Floats) -> Floats:
    """Return Newton's step, ``(H + C,)``, at scales and biases `params`, with its length limited."""
    heads = means.shape[1]
    p = softmax(np.einsum("h,nhc->nc", params[:heads], means) + params[heads:])
    wrong = p.copy()
    wrong[np.arange(len(p)), label] -= 1
    wrong *= weight[:, None]
    ridge = np.concatenate([np.full(heads, HEAD_RIDGE if heads > 1 else RIDGE), np.full(p.shape[1], RIDGE)])
    slope = np.concatenate([np.einsum("nc,nhc->h", wrong, means), wrong.sum(0)]) + ridge * (params - rest)
    heavy = p * weight[:, None]
    expected = np.einsum("nc,nhc->nh", p, means)
    curve = np.diag(ridge)
    square = np.einsum("nc,nhc,ngc->hg", heavy, means, means)
    curve[:heads, :heads] += square - (weight[:, None] * expected).T @ expected
    curve[:heads, heads:] = np.einsum("nc,nhc->hc", heavy, means - expected[:, :, None])
    curve[heads:, :heads] = curve[:heads, heads:].T
    curve[heads:, heads:] += np.diag(heavy.sum(0)) - heavy.T @ p
    step = np.linalg.solve(curve, slope)
    # Far from the optimum a full step can diverge.
    return np.asarray(step * min(1.0, 3.0 / max(np.abs(step).max(), 1e-12)))


def softmax(logits: NDArray[np.floating]) -> Floats:
    """Return probabilities, ``(n, C)``."""
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True), float)
