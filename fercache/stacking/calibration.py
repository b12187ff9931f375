"""How far probabilities can be believed: reliability, expected calibration error, and one temperature to mend it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fercache.data.folds import MIN_GROUPS_TO_CHOOSE
from fercache.oof import OofLogits

Probs = NDArray[np.float32]

BINS = 15
COLDEST, HOTTEST = 0.2, 5.0
MOST_ROWS = 100_000
STEPS = 30
TINY = 1e-9


def apply_temperature(probabilities: Probs, temperature: NDArray[np.float64] | float) -> Probs:
    """Return probabilities, ``(n, C)``, flattened (above 1) or sharpened by a temperature, one or ``(n, 1)``."""
    if np.all(np.asarray(temperature) == 1):
        return probabilities
    log_probs = np.log(np.maximum(probabilities.astype(float), TINY)) / temperature
    e = np.exp(log_probs - log_probs.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True), np.float32)


def fit_temperature(probabilities: Probs, label: NDArray[Any]) -> float:
    """Return the temperature with the least cross entropy on labelled rows (Guo et al. 2017); 1 where there are none.

    Notes
    -----
    Golden section over its logarithm; of many rows every so many are taken.
    """
    known = np.flatnonzero(label >= 0)
    known = known[::max(1, len(known) // MOST_ROWS)]
    if not len(known):
        return 1.0
    log_probs = np.log(np.maximum(probabilities[known].astype(float), TINY))
    truth = label[known].astype(int)

    def cost(log_t: float) -> float:
        scaled = log_probs / np.exp(log_t)
        top = scaled.max(1)
        right = scaled[np.arange(len(truth)), truth]
        return float((top + np.log(np.exp(scaled - top[:, None]).sum(1)) - right).mean())

    low, high, golden = np.log(COLDEST), np.log(HOTTEST), (np.sqrt(5) - 1) / 2
    for _ in range(STEPS):
        a, b = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, b) if cost(a) < cost(b) else (a, high)
    return float(np.round(np.exp((low + high) / 2), 4))


def temperature_by_fold(book: OofLogits, probabilities: Probs) -> dict[int, float]:
    """Return the temperature for each fold, fitted on the other folds' rows; -1: on all folds' rows.

    Notes
    -----
    1 where there are too few groups to choose anything by.
    """
    fold = book.per_row(book.fold)
    groups = {g for g, f in zip(book.group, book.fold, strict=True) if f >= 0}
    k = int(book.fold.max()) + 1
    if len(groups) < MIN_GROUPS_TO_CHOOSE:
        return dict.fromkeys([*range(k), -1], 1.0)
    label = np.where(fold >= 0, book.label, -1)
    return {held: fit_temperature(probabilities, np.where(fold == held, -1, label) if held >= 0 else label)
            for held in [*range(k), -1]}


def apply_by_fold(book: OofLogits, probabilities: Probs, temperatures: dict[int, float]) -> Probs:
    """Return every row's probabilities at the temperature that its fold had no say in."""
    per_trial = np.array([temperatures[int(fold)] for fold in book.fold])
    return apply_temperature(probabilities, book.per_row(per_trial)[:, None])


def reliability(probabilities: Probs, label: NDArray[Any]) -> dict[str, Any]:
    """Return the expected calibration error and, for each bin of confidence, how often it was right."""
    known = label >= 0
    sure, right = probabilities[known].max(1), probabilities[known].argmax(1) == label[known]
    place = np.minimum((sure * BINS).astype(int), BINS - 1)
    rows = np.bincount(place, minlength=BINS)
    mean = np.bincount(place, sure, BINS) / np.maximum(rows, 1)
    hits = np.bincount(place, right, BINS) / np.maximum(rows, 1)
    error = float((rows * np.abs(mean - hits)).sum() / max(rows.sum(), 1))
    bins = [{"rows": int(n), "confidence": round(float(c), 6), "accuracy": round(float(h), 6)}
            for n, c, h in zip(rows, mean, hits, strict=True) if n]
    return {"ece": round(error, 6), "bins": bins}
