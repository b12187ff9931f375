"""Every column of the table: each head, their plain mean, and what was learnt; and which one is final."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fercache import metrics
from fercache.errors import InputError
from fercache.folds import MIN_GROUPS_TO_CHOOSE
from fercache.logits import LogitBook
from fercache.stack.base import softmax
from fercache.stack.features import ClipView
from fercache.stack.nested import Nested, Shares

WHAT = {"mean": "plain mean of the heads' probabilities",
        "smooth": "the heads' log-probabilities, each smoothed over time, with a weight a head and a bias a class",
        "logistic": "logistic regression on the stacker's features",
        "blend": "geometric mean of `smooth` and `logistic`",
        "stack": "LightGBM on the stacker's features, beginning at the column `smooth`"}
GAP_POLICY = ("a frame without a face has what its column says at the nearest frame in time with a face (the earlier "
              "of two); a clip without any face has what the heads say of it")


@dataclass(frozen=True, kw_only=True)
class Final:
    """The column that preds.csv holds, and why."""

    column: str
    why: str


def gather(book: LogitBook, nested: Nested, *, causal: bool = False) -> dict[str, Shares]:
    """Return column -> probabilities, ``(R, C)`` float32, of every row of the book."""
    filled, known = _filled_from(book, causal)
    heads = {head: softmax(book.logits[head][filled] * known[:, None]).astype(np.float32) for head in book.heads}
    mean = sum(heads.values(), np.zeros((len(filled), len(book.classes)), np.float32)) / len(heads)
    return {**heads, "mean": np.asarray(mean, np.float32), **nested.columns}


def _filled_from(book: LogitBook, causal: bool) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the row that speaks for each row, ``(R,)``, and whether there is one (causal: a face was seen before)."""
    source = np.arange(len(book.label))
    known = np.ones(len(source), bool)
    for trial in np.flatnonzero(np.diff(book.offsets)).tolist():
        rows = book.rows(trial)
        if not book.valid[rows].all():
            view = ClipView.of(book, trial, causal)
            source[rows] = rows.start + view.filled.row
            known[rows] = view.counts[view.filled.row]
    return source, known


def choose(book: LogitBook, columns: dict[str, Shares], wanted: str, metric: str) -> Final:
    """Return the final column: the one that was asked for, or the one that scored best out of fold.

    Raises
    ------
    InputError
        The column that was asked for is not there.

    Notes
    -----
    Columns with a source in them that was fitted on the training rows have no out-of-fold score and are no candidates.
    """
    if wanted != "auto":
        if wanted not in columns:
            raise InputError(f"no column {wanted!r} to be final", where="stack",
                             hint=f"this book gives {', '.join(columns)}")
        return Final(column=wanted, why="asked for")
    held = (book.spread(book.fold) >= 0) & (book.label >= 0)
    groups = len({g for g, f in zip(book.group, book.fold, strict=True) if f >= 0})
    clean = [name for name in columns if name not in tainted(book, columns)]
    if not clean:
        raise InputError("every column has a source that was fitted on the training rows; nothing can be chosen",
                         where="stack", hint="name one with --final, or leave the in-sample source out of --logits")
    if book.epochs_fixed or groups < MIN_GROUPS_TO_CHOOSE:
        return Final(column="mean" if "mean" in clean else clean[0],
                     why=f"{groups} groups: with fewer than {MIN_GROUPS_TO_CHOOSE} nothing is chosen by score, and the "
                         "plain mean is final")
    figure = metrics.official(metric)
    scores = {name: float(figure(metrics.confusion(book.label[held], columns[name][held].argmax(1),
                                                   len(book.classes)))) for name in clean}
    best = max(scores, key=lambda name: scores[name])
    return Final(column=best, why=f"best {metric} out of fold ({scores[best]:.4f}) on the training groups")


def tainted(book: LogitBook, columns: Iterable[str]) -> dict[str, str]:
    """Return column -> why its training rows are not out of fold, for those of which that is so."""
    bad = book.tainted
    return {name: f"declared in-sample: {name if name in bad else 'learnt with ' + ', '.join(bad)}" for name in columns
            if bad and (name in bad or name not in book.heads)}


def millionths(probabilities: Shares) -> NDArray[np.int32]:
    """Return probabilities, ``(R, C)``, in millionths that sum to a million in each row.

    Notes
    -----
    Largest remainder: what is lost by rounding down goes to the classes that lost most, so that six decimals sum to 1.
    """
    exact = probabilities.astype(float)
    exact *= 1e6 / exact.sum(1, keepdims=True)
    units = np.floor(exact).astype(np.int32)
    missing = 1_000_000 - units.sum(1)
    rank = np.argsort(np.argsort(units - exact, axis=1, kind="stable"), axis=1, kind="stable")
    return np.asarray(units + (rank < missing[:, None]), np.int32)
