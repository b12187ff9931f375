"""Where the stacker begins: the heads' mean log-probability, smoothed, scaled and with its class priors corrected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fercache import metrics
from fercache.stack.features import WIDTHS_S, columns_of
from fercache.stack.sample import Sample

Floats = NDArray[np.float64]

EDGE = 0.003
"""A wider mean must score so much more than a narrower one to be taken: less is noise."""
RIDGE = 1.0
ROWS_A_CASE = 4.0
"""A stretch of a clip counts as so many independent rows against the ridge, however many frames it has."""
MOST_STEPS = 50


@dataclass(frozen=True, kw_only=True)
class Base:
    """A calibrated, smoothed mean: ``scale * moving mean(log-probability) + bias``.

    Attributes
    ----------
    width_s : half-width of the moving mean.
    scale : one for all classes; bias : (C,).
    """

    width_s: float
    scale: float
    bias: tuple[float, ...]

    def start(self, x: NDArray[np.float32], heads: Sequence[str], classes: Sequence[str]) -> Floats:
        """Return log-probabilities (up to a constant a row), ``(n, C)``, from features ``(n, F)``."""
        mean = x[:, columns_of(f"all:mean {self.width_s:.2g} s", heads, classes)]
        return np.asarray(self.scale * mean.astype(float) + np.array(self.bias))


def choose(sample: Sample, heads: Sequence[str], classes: Sequence[str], metric: str) -> Base:
    """Return the base whose width scores best on the sample; the narrowest of those that are as good."""
    figure = metrics.official(metric)
    tried = [_fit(sample, width, heads, classes) for width in WIDTHS_S]
    said = [base.start(sample.x, heads, classes).argmax(1) for base in tried]
    scores = [float(figure(metrics.confusion(sample.label, s, sample.classes))) for s in said]
    best = 0
    for i, score in enumerate(scores):
        best = i if score > scores[best] + EDGE else best
    return tried[best]


def _fit(sample: Sample, width_s: float, heads: Sequence[str], classes: Sequence[str]) -> Base:
    """Return the base of that width with the least weighted cross entropy.

    Notes
    -----
    Vector scaling (Guo et al. 2017) with one scale: C + 1 numbers, by Newton's method; rare classes weigh more, which
    makes the bias a prior correction. The ridge pulls towards scale 1 and bias 0.
    """
    plain = Base(width_s=width_s, scale=1.0, bias=(0.0,) * len(classes))
    mean = plain.start(sample.x, heads, classes)
    weight = sample.weights() * ROWS_A_CASE * sample.cases() / max(len(mean), 1)
    found = np.array([1.0, *plain.bias])
    for _ in range(MOST_STEPS):
        step = _newton(found, mean, sample.label, weight)
        found -= step
        if np.abs(step).max() < 1e-7:
            break
    return Base(width_s=width_s, scale=float(found[0]), bias=tuple(found[1:].tolist()))


def _newton(found: Floats, mean: Floats, label: NDArray[np.int64], weight: Floats) -> Floats:
    """Return Newton's step, ``(C + 1,)``, at scale and bias `found`, cut to a length at which it cannot run away."""
    p = softmax(found[0] * mean + found[1:])
    wrong = p.copy()
    wrong[np.arange(len(p)), label] -= 1
    wrong *= weight[:, None]
    slope = np.concatenate([[(wrong * mean).sum()], wrong.sum(0)]) + RIDGE * (found - np.eye(len(found))[0])
    heavy = p * weight[:, None]
    expected = (p * mean).sum(1, keepdims=True)
    curve = RIDGE * np.eye(len(found))
    curve[0, 0] += (heavy * mean**2).sum() - (weight * expected[:, 0] ** 2).sum()
    curve[0, 1:] = curve[1:, 0] = (heavy * (mean - expected)).sum(0)
    curve[1:, 1:] += np.diag(heavy.sum(0)) - heavy.T @ p
    step = np.linalg.solve(curve, slope)
    return np.asarray(step * min(1.0, 3.0 / max(np.abs(step).max(), 1e-12)))


def softmax(logits: NDArray[np.floating]) -> Floats:
    """Return probabilities, ``(n, C)``."""
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True), float)
