"""Every column of the table: each head, their plain mean, and what was learnt; and which one is final."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fercache import gaps, metrics
from fercache.errors import InputError
from fercache.folds import MIN_GROUPS_TO_CHOOSE
from fercache.logits import LogitBook
from fercache.stack.base import softmax
from fercache.stack.nested import Nested, Shares

WHAT = {"mean": "plain mean of the heads' probabilities",
        "smooth": "the heads' mean log-probability, smoothed over time, with one scale and one bias a class",
        "logistic": "logistic regression on the stacker's features",
        "stack": "LightGBM on the stacker's features, beginning at the column `smooth`"}


@dataclass(frozen=True, kw_only=True)
class Final:
    """The column that preds.csv holds, and why."""

    column: str
    why: str


def gather(book: LogitBook, nested: Nested, policy: str = "nearest", *, causal: bool = False) -> dict[str, Shares]:
    """Return column -> probabilities, ``(R, C)`` float32, of every row of the book.

    Parameters
    ----------
    policy : what becomes of frames without a face, see `fercache.gaps`.
    causal : take nothing from a later frame; heads and mean have even odds before the first face.

    Raises
    ------
    InputError
        They are left to the temporal heads, and the book has none; or a line is to be causal.
    """
    filled_from, blind, early = _gaps(book, policy, causal)
    heads = {head: softmax(book.logits[head] * ~early[:, None]).astype(np.float32) for head in book.heads}
    said = {**heads, "mean": _mean(heads), **nested.columns}
    filled = {name: filled_from.apply(values) for name, values in said.items()}
    if policy in gaps.COPIED:
        return filled
    speakers = gaps.own_word(book.heads, policy)
    if not speakers:
        raise InputError("no temporal head to leave the frames without a face to", where="stack, gaps = mask",
                         hint=f"train one of {', '.join(gaps.TEMPORAL)}, or choose another policy with --gaps")
    spoken = _mean({head: heads[head][blind] for head in speakers})
    for name in filled:
        if name not in speakers:
            filled[name][blind] = spoken
    return filled


def _mean(heads: dict[str, Shares]) -> Shares:
    """Return the plain mean of the heads' probabilities."""
    first = next(iter(heads.values()))
    return np.asarray(sum(heads.values(), np.zeros(first.shape, np.float32)) / len(heads), np.float32)


def _gaps(book: LogitBook, policy: str, causal: bool) -> tuple[gaps.Sources, NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which rows speak for each row, ``(R,)``, the rows without a face in clips that have faces, and, where
    nothing may look ahead, the rows before their clip's first face."""
    every = np.arange(len(book.label))
    found = gaps.Sources(every, every.copy(), np.zeros(len(every)))
    blind, early = np.zeros((2, len(every)), bool)
    for trial in np.flatnonzero(np.diff(book.offsets)).tolist():
        rows = book.rows(trial)
        valid = book.valid[rows]
        early[rows] = causal & ~np.logical_or.accumulate(valid)
        if valid.all() or not valid.any():
            continue
        here = gaps.sources(book.time_s[rows], valid, policy, causal=causal)
        found.before[rows], found.after[rows] = here.before + rows.start, here.after + rows.start
        found.weight[rows] = here.weight
        blind[rows] = ~valid
    return found, blind, early


def choose(book: LogitBook, columns: dict[str, Shares], wanted: str) -> Final:
    """Return the final column: the one that was asked for, or the one that scored best out of fold.

    Raises
    ------
    InputError
        The column that was asked for is not there.
    """
    if wanted != "auto":
        if wanted not in columns:
            raise InputError(f"no column {wanted!r} to be final", where="stack",
                             hint=f"this book gives {', '.join(columns)}")
        return Final(column=wanted, why="asked for")
    held = (book.spread(book.fold) >= 0) & (book.label >= 0)
    groups = len({g for g, f in zip(book.group, book.fold, strict=True) if f >= 0})
    if book.epochs_fixed or groups < MIN_GROUPS_TO_CHOOSE:
        return Final(column="mean", why=f"{groups} groups: with fewer than {MIN_GROUPS_TO_CHOOSE} nothing is chosen "
                                        "by score, and the plain mean is final")
    figure = metrics.official(book.metric)
    scores = {name: float(figure(metrics.confusion(book.label[held], said[held].argmax(1), len(book.classes))))
              for name, said in columns.items()}
    best = max(scores, key=lambda name: scores[name])
    return Final(column=best, why=f"best {book.metric} out of fold ({scores[best]:.4f}) on the training groups")


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
