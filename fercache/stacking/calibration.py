"""Calibration of probabilities: reliability diagram, expected calibration error, and temperature scaling."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax

from fercache.oof import MIN_GROUPS_TO_CHOOSE, OofLogits
from fercache.stacking.run_metrics import Reliability, ReliabilityBin

Probs = NDArray[np.float32]

BINS = 15
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.2, 5.0
MOST_ROWS = 100_000
STEPS = 30
# A probability of 0 has no logarithm.
TINY = 1e-9


def apply_temperature(probabilities: Probs, temperature: NDArray[np.float64] | float) -> Probs:
    """Return probabilities, ``(n, C)``, at a temperature (scalar or ``(n, 1)``); above 1 flattens them."""
    # Unchanged to the last bit: logarithm and softmax would round.
    if np.all(np.asarray(temperature) == 1):
        return probabilities
    log_probs = np.log(np.maximum(probabilities.astype(float), TINY)) / temperature
    return np.asarray(softmax(log_probs, axis=1), np.float32)


def fit_temperature(probabilities: Probs, label: NDArray[Any]) -> float:
    """Return the temperature with the least cross entropy on labelled rows (Guo et al. 2017); 1 without any."""
    labeled = np.flatnonzero(label >= 0)
    # An even subsample.
    labeled = labeled[::max(1, len(labeled) // MOST_ROWS)]
    if not len(labeled):
        return 1.0
    log_probs = np.log(np.maximum(probabilities[labeled].astype(float), TINY))
    truth = label[labeled].astype(int)

    def cost(log_t: float) -> float:
        return -float(log_softmax(log_probs / np.exp(log_t), axis=1)[np.arange(len(truth)), truth].mean())

    # A golden-section search. Temperatures multiply, so it runs on a log scale: .5 and 2 are equally far from 1.
    low, high, golden = np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE), (np.sqrt(5) - 1) / 2
    for _ in range(STEPS):
        a, b = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, b) if cost(a) < cost(b) else (a, high)
    return float(np.round(np.exp((low + high) / 2), 4))


def temperature_by_fold(oof: OofLogits, probabilities: Probs) -> dict[int, float]:
    """Return each fold's temperature, fitted on the other folds (-1: on all); 1 where groups are too few to choose."""
    fold = oof.per_row(oof.fold)
    k = int(oof.fold.max()) + 1
    if len(oof.fold_groups()) < MIN_GROUPS_TO_CHOOSE:
        return dict.fromkeys([*range(k), -1], 1.0)
    label = np.where(fold >= 0, oof.label, -1)
    return {left_out: fit_temperature(probabilities, np.where(fold == left_out, -1, label) if left_out >= 0 else label)
            for left_out in [*range(k), -1]}


def apply_by_fold(oof: OofLogits, probabilities: Probs, temperatures: dict[int, float]) -> Probs:
    """Return every row's probabilities at the temperature that was fitted without its fold."""
    per_trial = np.array([temperatures[int(fold)] for fold in oof.fold])
    return apply_temperature(probabilities, oof.per_row(per_trial)[:, None])


def bin_counts(confidence: NDArray[np.floating], right: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return rows, sum of confidence, and hits in each of `BINS` equal bins of confidence, ``(3, BINS)``."""
    bin_index = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return np.stack([np.bincount(bin_index, weights, BINS) for weights in (np.ones(len(right)), confidence, right)])


def reliability(probabilities: Probs, label: NDArray[Any]) -> Reliability:
    """Return the expected calibration error, and the accuracy in each bin of confidence."""
    labeled = label >= 0
    rows, total, right = bin_counts(probabilities[labeled].max(1),
                                    probabilities[labeled].argmax(1) == label[labeled])
    mean, hits = total / np.maximum(rows, 1), right / np.maximum(rows, 1)
    error = float((rows * np.abs(mean - hits)).sum() / max(rows.sum(), 1))
    bins = tuple(ReliabilityBin(rows=int(n), confidence=round(float(c), 6), accuracy=round(float(h), 6))
                 for n, c, h in zip(rows, mean, hits, strict=True) if n)
    return Reliability(ece=round(error, 6), bins=bins)
