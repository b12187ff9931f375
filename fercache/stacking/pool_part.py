"""From frames to clips: one row a clip, for sets that have one label a clip."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fercache.errors import InputError
from fercache.oof import LogitBook
from fercache.stacking.features import FLOOR, log_softmax


def pooled(book: LogitBook) -> LogitBook:
    """Return the book with one row a clip: the mean of the heads' probabilities over the frames of all its people.

    Raises
    ------
    InputError
        A clip's people stand on two sides of a split, or its label changes within the clip.

    Notes
    -----
    Frames with a face count, all frames of a clip without any. Beside the mean stand mean, spread, most and least of
    the log-probabilities (`features.POOLED`), for those who learn.
    """
    members: dict[str, list[int]] = {}
    for trial, clip in enumerate(book.clips):
        members.setdefault(clip, []).append(trial)
    names = sorted(members)
    firsts = np.array([_one_side(book, name, members[name]) for name in names], int)
    rows = [_rows(book, members[name]) for name in names]
    means, stats = {}, {}
    for head in book.heads:
        both = [_pool(book.logits[head][mine]) for mine in rows]
        means[head] = np.stack([mean for mean, _ in both])
        stats[head] = np.stack([stat for _, stat in both])
    return replace(book, trials=tuple(names), clip=(), group=tuple(book.group[i] for i in firsts),
                   split=tuple(book.split[i] for i in firsts), fold=book.fold[firsts],
                   offsets=np.arange(len(names) + 1), index=np.ones(len(names), np.int32), time_s=np.zeros(len(names)),
                   valid=np.array([bool(book.valid[mine].any()) for mine in rows]),
                   label=np.array([_label(book, name, members[name]) for name in names], np.int16),
                   logits=means, pooled=stats)


def frames_of(book: LogitBook, clips: LogitBook) -> NDArray[np.int64]:
    """Return the clip, as a row of the pooled book, of each row of the book, ``(R,)``."""
    place = {name: i for i, name in enumerate(clips.trials)}
    return np.asarray(book.spread(np.array([place[name] for name in book.clips], np.int64)))


def _one_side(book: LogitBook, name: str, trials: list[int]) -> int:
    """Return the first trial of a clip, all of whose trials stand together."""
    sides = {(book.group[i], book.split[i], int(book.fold[i])) for i in trials}
    if len(sides) > 1:
        raise InputError("the people of one clip are in different groups, splits or folds", where=name,
                         hint="give them one group, or stack with --level frame")
    return trials[0]


def _rows(book: LogitBook, trials: list[int]) -> NDArray[np.int64]:
    """Return the rows of a clip that count."""
    rows = np.concatenate([np.arange(book.offsets[i], book.offsets[i + 1]) for i in trials])
    seen = rows[book.valid[rows]]
    return seen if len(seen) else rows


def _label(book: LogitBook, name: str, trials: list[int]) -> int:
    rows = np.concatenate([np.arange(book.offsets[i], book.offsets[i + 1]) for i in trials])
    known = np.unique(book.label[rows][book.label[rows] >= 0])
    if len(known) > 1:
        raise InputError("the label changes within the clip", where=name,
                         hint="--level clip is for sets with one label a clip; stack with --level frame")
    return int(known[0]) if len(known) else -1


def _pool(logits: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return log of the mean probability, ``(C,)``, and the statistics, ``(S, C)``, of a clip's frames."""
    if not len(logits):
        even = np.full(logits.shape[1], -np.log(logits.shape[1]))
        return even.astype(np.float32), np.stack([even, 0 * even, even, even]).astype(np.float32)
    said = log_softmax(logits)
    mean = np.log(np.maximum(np.exp(said).mean(0), FLOOR))
    stats = np.stack([said.mean(0), said.std(0), said.max(0), said.min(0)])
    return mean.astype(np.float32), stats.astype(np.float32)
