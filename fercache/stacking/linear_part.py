"""The door of scikit-learn: logistic regression on the same features, the plainest stacker there is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from fercache.stacking.sample_part import Sample

Floats = NDArray[np.float64]

STRENGTH = 0.03
"""scikit-learn's C for each case's worth of rows: many near copies of a frame must not outweigh the penalty."""
MOST_STEPS = 500
MOST_ROWS = 50_000
FLOOR = 1e-6


@dataclass(frozen=True, kw_only=True)
class Linear:
    """Weights ``(C, F)`` and bias ``(C,)`` for standardised features; classes never seen have a bias of log `FLOOR`."""

    mean: Floats
    scale: Floats
    weights: Floats
    bias: Floats

    def logits(self, x: NDArray[np.float32]) -> Floats:
        """Return ``(n, C)`` for features ``(n, F)``."""
        return np.asarray((x - self.mean) / self.scale @ self.weights.T + self.bias)


def fit(sample: Sample, balance: float) -> Linear:
    """Return multinomial logistic regression fitted to a sample (to every so many of its rows if it is large)."""
    every = -(-len(sample.rows) // MOST_ROWS)
    part = sample.where(np.arange(len(sample.rows)) % every == 0) if every > 1 else sample
    x = part.x.astype(float)
    mean, scale = x.mean(0), x.std(0) + 0.1
    bias, weights = np.full(part.classes, np.log(FLOOR)), np.zeros((part.classes, x.shape[1]))
    known = np.unique(part.label)
    if len(known) == 1:  # scikit-learn refuses to learn one class
        bias[known] = 0.0
        return Linear(mean=mean, scale=scale, weights=weights, bias=bias)
    model = LogisticRegression(C=STRENGTH * part.cases() / len(x), max_iter=MOST_STEPS)
    model.fit((x - mean) / scale, part.label, sample_weight=part.weights(balance))
    two = len(known) == 2
    weights[known] = np.concatenate([-model.coef_, model.coef_]) / 2 if two else model.coef_
    bias[known] = np.concatenate([-model.intercept_, model.intercept_]) / 2 if two else model.intercept_
    return Linear(mean=mean, scale=scale, weights=weights, bias=bias)
