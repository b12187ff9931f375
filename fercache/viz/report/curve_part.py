"""How the score depends on the half-width of smoothing, of the heads' mean, on out-of-fold frames only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fercache import metrics
from fercache.oof import Page
from fercache.results import smoothing

WIDTHS_S = (0.0, 0.1, 0.25, 0.5, 1.0, 1.5, 2.5, 5.0, 10.0, 20.0)
"""Half-widths that are tried, in seconds."""


class Curve:
    """Confusion matrices by half-width, added up trial by trial; only trials that a fold held out count."""

    def __init__(self, classes: Sequence[str], metric: str) -> None:
        self.metric = metric
        self.counts = np.zeros((len(WIDTHS_S), len(classes), len(classes)), np.int64)

    def add(self, page: Page) -> None:
        """Count one trial; one without a label, without a face or without a fold counts nothing."""
        if page.fold < 0 or not (page.label >= 0).any() or not page.valid.any():
            return
        mean = np.mean([_log_softmax(values) for values in page.logits.values()], axis=0)
        label = page.label.astype(np.int64)
        for i, width_s in enumerate(WIDTHS_S):
            smooth = smoothing.moving_mean(mean, page.valid, smoothing.reach(page.time_s, width_s, width_s))
            self.counts[i] += metrics.confusion(label, smooth.argmax(1), len(self.counts[i]))

    def scores(self) -> NDArray[np.float64]:
        """Return the data set's own metric at each half-width, ``(len(WIDTHS_S),)``."""
        return np.asarray(metrics.official(self.metric)(self.counts), float)


def _log_softmax(values: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = values.astype(float) - values.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))
