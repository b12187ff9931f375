"""Which rows the stacker learns from: labelled, with a face, out of fold, and not the near copies between them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fercache.oof import LogitBook
from fercache.runtime.progress import Meter
from fercache.stacking.features import ClipView, Columns

STEP_S = 0.1
"""Rows nearer to each other than this are copies of each other in all that matters here."""
MOST = 60_000
"""With more rows than this the step grows: a few hundred trials hold no more information than so many rows."""
STRETCH_S = 10.0
"""Rows of one clip within so many seconds count as one case, however many they are: expressions last for seconds."""
REFITTED = -1
"""The fold of rows that no fold holds out and that a refit learns from all the same."""

Floats = NDArray[np.float64]
PARTS = ("rows", "x", "smoothed", "label", "fold", "group", "stretch")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Rows to learn from, ``n`` of them.

    Attributes
    ----------
    rows : (n,) rows of the book.
    x : (n, F) float32 features.
    smoothed : (n, H, W, C) float32, each head's moving mean of each width.
    label, fold, group, stretch : (n,) integers; rows of one clip and the same ten seconds share a stretch.
    classes : C.
    """

    rows: NDArray[np.int64]
    x: NDArray[np.float32]
    smoothed: NDArray[np.float32]
    label: NDArray[np.int64]
    fold: NDArray[np.int64]
    group: NDArray[np.int64]
    stretch: NDArray[np.int64]
    classes: int

    def without(self, fold: int) -> Sample:
        """Return the rows that the member of a fold learns from: those of the other folds; -1 leaves none out."""
        return self.where((self.fold != fold) & (self.fold != REFITTED)) if fold >= 0 else self

    def where(self, keep: NDArray[np.bool_]) -> Sample:
        """Return the rows that `keep`, ``(n,)``, says."""
        return Sample(**{name: getattr(self, name)[keep] for name in PARTS}, classes=self.classes)

    def cases(self) -> int:
        """Return how many cases the rows are: neighbours are near copies, and must not pass for evidence."""
        return max(len(np.unique(self.stretch)), 1)

    def weights(self, balance: float) -> Floats:
        """Return a weight a row, ``(n,)``, of mean 1: one over the class's share to the power of `balance`."""
        share = np.bincount(self.label, minlength=self.classes) / max(len(self.label), 1)
        weight = np.asarray(share[self.label] ** -balance)
        return np.asarray(weight / weight.mean())


def draw(book: LogitBook, columns: Columns, refit: bool, bar: Meter) -> Sample:
    """Return the sample of a book's out-of-fold rows, with their features; one trial at a time.

    Parameters
    ----------
    refit : take the labelled rows of the validation split too.
    """
    chosen = thinned(book, refit)
    trial = book.spread(np.arange(len(book.trials)))
    built = [_features(book, i, chosen, columns, bar) for i in range(len(book.trials)) if chosen[book.rows(i)].any()]
    rows = np.flatnonzero(chosen)
    _, group = np.unique(np.array(book.group, object).astype(str), return_inverse=True)
    shape = (0, len(book.heads), len(columns.widths), len(book.classes))
    _, stretch = np.unique(np.stack([trial[rows], book.time_s[rows] // STRETCH_S]), axis=1, return_inverse=True)
    return Sample(rows=rows, x=np.concatenate([np.zeros((0, len(columns.names)), np.float32), *(x for x, _ in built)]),
                  smoothed=np.concatenate([np.zeros(shape, np.float32), *(z for _, z in built)]),
                  label=book.label[rows].astype(np.int64), fold=book.fold[trial[rows]].astype(np.int64),
                  group=group[trial[rows]], stretch=stretch, classes=len(book.classes))


def thinned(book: LogitBook, refit: bool = False) -> NDArray[np.bool_]:
    """Return which rows of the book, ``(R,)``, the stacker learns from."""
    held = book.fold >= 0
    if refit:
        held = held | (np.array(book.split) == "validation")
    can = (book.label >= 0) & book.valid & book.spread(held)
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


def _features(book: LogitBook, trial: int, chosen: NDArray[np.bool_], columns: Columns,
              bar: Meter) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return features and moving means of the chosen rows of one trial."""
    bar.advance()
    view = ClipView.of(book, trial, columns.causal)
    here = chosen[book.rows(trial)][view.counts]
    return columns.build(view)[here], columns.smoothed(view)[here]
