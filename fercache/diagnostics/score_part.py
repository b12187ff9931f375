"""What a setting scores out of fold, seed by seed, and how much that is more than the default's, in pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fercache import metrics
from fercache.config import TrainConfig
from fercache.data.base import Dataset
from fercache.oof import LogitBook
from fercache.store.embedding_store import EmbeddingStore
from fercache.training import train

Values = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """What one column of a row scored, macro F1 out of fold: the mean over seeds.

    Attributes
    ----------
    spread : standard deviation over seeds (0 for one).
    interval, difference_interval : 95 % by bootstrap over groups, that of the difference paired; None: too few groups.
    difference : from the default's same column.
    """

    macro_f1: float
    spread: float
    interval: tuple[float, float] | None
    difference: float
    difference_interval: tuple[float, float] | None

    @property
    def sure(self) -> bool:
        """Whether the difference's interval leaves 0 out."""
        span = self.difference_interval
        return span is not None and not span[0] <= 0 <= span[1]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A row's confusion matrices: column -> one a seed of (G, C, C)."""

    books: tuple[LogitBook, ...]
    matrices: dict[str, list[metrics.Counts]]


def scored(dataset: Dataset, store: EmbeddingStore, config: TrainConfig, repeats: int, cache: Path) -> Scored:
    """Return what a setting scored out of fold, seed by seed; what was trained before is not trained again."""
    books = []
    for repeat in range(repeats):
        seeded = replace(config, seed=config.seed + repeat)
        books.append(LogitBook.load(train.run(dataset, store, seeded, cache, point=False).book))
    each = [matrices_of(book) for book in books]
    return Scored(books=tuple(books), matrices={column: [one[column] for one in each] for column in each[0]})


def matrices_of(book: LogitBook, split: str = "") -> dict[str, metrics.Counts]:
    """Return column -> (G, C, C), one confusion matrix a group, out of fold or of another split's rows."""
    from fercache.stacking import (
        candidates,
        nested_cv,  # LightGBM and scikit-learn: a second
    )

    rows = book.label >= 0
    rows &= book.spread(np.array([s == split for s in book.split]) if split else book.fold >= 0)
    _, group = np.unique(book.spread(np.unique(book.group, return_inverse=True)[1])[rows], return_inverse=True)
    said = candidates.gather(book, nested_cv.Nested(members={}, columns={}))
    return {name: metrics.confusions(book.label[rows], shares[rows].argmax(1), group, len(book.classes),
                                     int(group.max(initial=-1)) + 1) for name, shares in said.items()}


def figure(ours: Sequence[metrics.Counts], usual: Sequence[metrics.Counts], sampler: metrics.Resampler) -> Figure:
    """Return a column's figures from its matrices and the default's, each one a seed of (G, C, C)."""
    scores = np.array([float(metrics.macro_f1(m.sum(0))) for m in ours])
    theirs = np.mean([float(metrics.macro_f1(m.sum(0))) for m in usual])
    drawn, other = (_drawn(m, sampler) for m in (ours, usual))
    return Figure(macro_f1=float(scores.mean()), spread=float(scores.std(ddof=1)) if len(scores) > 1 else 0.0,
                  interval=_span(drawn) if len(drawn) else None,
                  difference=float(scores.mean() - theirs),
                  difference_interval=_span(drawn - other) if len(drawn) else None)


def _drawn(matrices: Sequence[metrics.Counts], sampler: metrics.Resampler) -> Values:
    """Return the mean over seeds of the macro F1 of each draw of groups; empty where there are too few groups."""
    if sampler.why_none:
        return np.empty(0)
    return np.asarray(np.mean([metrics.macro_f1(sampler.draw(m)) for m in matrices], axis=0))


def reported(books: Sequence[LogitBook]) -> dict[str, dict[str, float]]:
    """Return split -> column -> macro F1 of the default on the splits that no fold holds."""
    found: dict[str, dict[str, float]] = {}
    for split in ("validation", "test"):
        each = [matrices_of(book, split) for book in books]
        if next(iter(each[0].values())).sum():
            found[split] = {column: float(np.mean([metrics.macro_f1(one[column].sum(0)) for one in each]))
                            for column in each[0]}
    return found


def _span(draws: Values) -> tuple[float, float]:
    """Return the ends of the 95 % percentile interval of the draws."""
    low, high = np.quantile(draws, [(1 - metrics.LEVEL) / 2, (1 + metrics.LEVEL) / 2])
    return float(low), float(high)
