"""Which rows the stacker learns from: labelled, with a face, out of fold, and not the near copies between them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fercache.logits import LogitBook
from fercache.progress import Meter
from fercache.stack import features
from fercache.stack.features import ClipView

STEP_S = 0.1
"""Rows nearer to each other than this are copies of each other in all that matters here."""
MOST = 60_000
"""With more rows than this the step grows: a few hundred trials hold no more information than so many rows."""
BALANCE = 0.75
"""Power of one over the class's share that weighs a row: between plain (0) and balanced (1). Macro F1 out of fold of
the smoothed mean on five sets of real faces: .238 at .5, .266 at .75, .258 at 1."""

STRETCH_S = 10.0
"""Rows of one clip within so many seconds count as one case, however many they are: expressions last for seconds."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Rows to learn from, ``n`` of them.

    Attributes
    ----------
    rows : (n,) rows of the book.
    x : (n, F) float32 features.
    label, fold, group, stretch : (n,) integers; rows of one clip and the same ten seconds share a stretch.
    classes : C.
    """

    rows: NDArray[np.int64]
    x: NDArray[np.float32]
    label: NDArray[np.int64]
    fold: NDArray[np.int64]
    group: NDArray[np.int64]
    stretch: NDArray[np.int64]
    classes: int

    def without(self, fold: int) -> Sample:
        """Return the rows of the other folds; -1 leaves none out."""
        return self.where(self.fold != fold)

    def where(self, keep: NDArray[np.bool_]) -> Sample:
        """Return the rows that `keep`, ``(n,)``, says."""
        picked = {name: getattr(self, name)[keep] for name in ("rows", "x", "label", "fold", "group", "stretch")}
        return Sample(**picked, classes=self.classes)

    def cases(self) -> int:
        """Return how many cases the rows are: neighbours are near copies, and must not pass for evidence."""
        return max(len(np.unique(self.stretch)), 1)

    def weights(self) -> Floats:
        """Return a weight a row, ``(n,)``, of mean 1: rare classes weigh more."""
        share = np.bincount(self.label, minlength=self.classes) / max(len(self.label), 1)
        weight = np.asarray(share[self.label] ** -BALANCE)
        return np.asarray(weight / weight.mean())


def draw(book: LogitBook, bar: Meter) -> Sample:
    """Return the sample of a book's out-of-fold rows, with their features; one trial at a time."""
    chosen = thinned(book)
    trial = book.spread(np.arange(len(book.trials)))
    x = [_features(book, i, chosen, bar) for i in range(len(book.trials)) if book.fold[i] >= 0]
    rows = np.flatnonzero(chosen)
    _, group = np.unique(np.array(book.group, object).astype(str), return_inverse=True)
    width = len(features.names(book.heads, book.classes))
    _, stretch = np.unique(np.stack([trial[rows], book.time_s[rows] // STRETCH_S]), axis=1, return_inverse=True)
    return Sample(rows=rows, x=np.concatenate([np.zeros((0, width), np.float32), *x]),
                  label=book.label[rows].astype(np.int64), fold=book.fold[trial[rows]].astype(np.int64),
                  group=group[trial[rows]], stretch=stretch, classes=len(book.classes))


def thinned(book: LogitBook) -> NDArray[np.bool_]:
    """Return which rows of the book, ``(R,)``, the stacker learns from."""
    can = (book.label >= 0) & book.valid & (book.spread(book.fold) >= 0)
    kept, step = _one_a_step(book, can, STEP_S), STEP_S
    while kept.sum() > MOST:
        step *= max(1.05, kept.sum() / MOST)
        kept = _one_a_step(book, can, step)
    return kept


def _one_a_step(book: LogitBook, can: NDArray[np.bool_], step_s: float) -> NDArray[np.bool_]:
    """Return the first row of each step of each trial, of those that `can`."""
    rows = np.flatnonzero(can)
    step = np.floor(book.time_s[rows] / step_s + 1e-6)
    trial = book.spread(np.arange(len(book.trials)))[rows]
    new = np.ones(len(rows), bool)
    new[1:] = (np.diff(step) != 0) | (np.diff(trial) != 0)
    kept = np.zeros(len(can), bool)
    kept[rows[new]] = True
    return kept


def _features(book: LogitBook, trial: int, chosen: NDArray[np.bool_], bar: Meter) -> NDArray[np.float32]:
    bar.advance()
    here = chosen[book.rows(trial)]
    if not here.any():
        return np.zeros((0, len(features.names(book.heads, book.classes))), np.float32)
    view = ClipView.of(book, trial)
    return features.build(view)[here[view.counts]]


