"""What the word of more models is worth: trials that no fold holds are spoken of by the models of all folds.

Notes
-----
A row of a fold is the word of that fold's models; a row that no fold holds is the mean over all folds' models, with
less noise in it and therefore flatter. Weights that were fitted on the first are too small for the second (as any
regression on noisy values is: the slope shrinks by the share of the variance that is noise). So held-out words are
weighed by how much the variance of a head's log-probabilities has fallen; the chain, in which the noise of neighbours
adds up, weighs them so once more. No label is looked at. Tried where the truth is known, on training groups of streams
(weights fitted on single members of a fold, then used on the mean of four): the trees had .688 macro F1 without it,
.697 with it, .704 fitted on the mean of four itself (`tests/results/stack.md`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fercache.folds import MIN_GROUPS_TO_CHOOSE
from fercache.logits import LogitBook
from fercache.stack.features import log_softmax

MOST = 1.5
"""More than this no mean of models of one kind is worth; what is beyond it is another kind of clips."""

Floats = NDArray[np.float64]


def of(book: LogitBook) -> tuple[float, ...]:
    """Return for each head how much more a nat is worth where no fold holds the trial, at least 1.

    Notes
    -----
    1 for imported logits (one model speaks everywhere), for whole clips, with fewer than two folds, and where fewer
    than `MIN_GROUPS_TO_CHOOSE` groups with a face are outside the folds.
    """
    outside = np.array(book.fold) < 0
    groups = {book.group[i] for i in np.flatnonzero(outside) if book.valid[book.rows(int(i))].any()}
    if book.pooled or book.fold.max(initial=-1) < 1 or len(groups) < MIN_GROUPS_TO_CHOOSE:
        return (1.0,) * len(book.heads)
    held, free = book.valid & ~book.spread(outside), book.valid & book.spread(outside)
    return tuple(1.0 if head in book.declared else _fallen(book.logits[head][held], book.logits[head][free])
                 for head in book.heads)


def _fallen(held: NDArray[np.float32], free: NDArray[np.float32]) -> float:
    """Return the ratio of variances, about each row's mean, between 1 and `MOST`."""
    return float(np.clip(_variance(held) / max(_variance(free), 1e-12), 1.0, MOST)) if len(held) else 1.0


def _variance(logits: NDArray[np.float32]) -> float:
    said = log_softmax(logits)
    return float(np.square(said - said.mean(1, keepdims=True)).mean())


def weighed(book: LogitBook, worth: Sequence[float]) -> LogitBook:
    """Return the book whose words on trials that no fold holds are weighed by what they are worth."""
    if not (np.array(worth) > 1).any():
        return book
    rows = book.spread(np.array(book.fold) < 0)
    return replace(book, logits={head: _scaled(book.logits[head], rows, factor)
                                 for head, factor in zip(book.heads, worth, strict=True)})


def _scaled(logits: NDArray[np.float32], rows: NDArray[np.bool_], factor: float) -> NDArray[np.float32]:
    made = logits.copy()
    made[rows] = factor * log_softmax(logits[rows])
    return made
