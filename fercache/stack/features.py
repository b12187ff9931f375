"""What the stacker sees of a frame: what every head says now, around it, before and after it, and of the whole clip.

Notes
-----
A clip at a time, so that memory stays flat. Only frames with a face are looked at (all frames of a clip without any):
the others get what is said of the nearest frame with one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fercache.logits import LogitBook
from fercache.smoothing import Nearest, Sums, lagged, nearest, reach

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

WIDTHS_S = (1 / 6, 1 / 2, 1.5, 5.0, 15.0)
"""Half-widths of the moving means over all heads: 5 to 450 frames at 30 fps, where smoothing helps on Aff-Wild2."""
HEAD_WIDTH_S = 1.0
SIDE_S = 1.0
LAG_S = 1 / 3
SPREAD_S = 1.5
SEEN_S = (0.5, 3.0)
FLOOR = 1e-6
"""Log-probabilities are cut off here: a head that is sure beyond it says nothing more."""


def log_softmax(logits: NDArray[np.floating]) -> Floats:
    """Return log-probabilities, ``(..., C)``, not below log `FLOOR`."""
    shifted = logits.astype(float) - logits.max(-1, keepdims=True)
    said = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return np.asarray(np.maximum(said, np.log(FLOOR)))


@dataclass(frozen=True, kw_only=True)
class ClipView:
    """One trial's rows as the stacker reads them; T frames, of which M count.

    Attributes
    ----------
    counts : (T,) bool, frames with a face; all of them where there is no face at all.
    filled : for each frame the nearest one that counts.
    said : (M, H, C) log-probabilities of the heads at the frames that count.
    time_s : (M,) of the frames that count.
    seen : for each width of `SEEN_S` the share of frames about it that have a face, (M,).
    """

    counts: NDArray[np.bool_]
    filled: Nearest
    said: Floats
    time_s: Floats
    seen: tuple[Floats, ...]

    @classmethod
    def of(cls, book: LogitBook, trial: int) -> ClipView:
        """Return the view of one trial of the book."""
        rows = book.rows(trial)
        valid, time_s = book.valid[rows], book.time_s[rows]
        counts = valid if valid.any() else np.ones(len(valid), bool)
        said = np.stack([log_softmax(book.logits[head][rows][counts]) for head in book.heads], 1)
        faces = Sums(np.zeros((len(valid), 1)), valid)
        seen = tuple(faces.share(reach(time_s, width, width))[counts] for width in SEEN_S)
        return cls(counts=counts, filled=nearest(time_s, counts), said=said, time_s=time_s[counts], seen=seen)

    def spread_to_gaps(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return values of all frames, ``(T, ...)``, from those of the frames that count, ``(M, ...)``."""
        place = np.cumsum(self.counts) - 1
        return np.asarray(values[place[self.filled.row]])


def names(heads: Sequence[str], classes: Sequence[str]) -> list[str]:
    """Return the name of each feature, in the order of `build`'s columns."""
    channels = [f"{head}:now" for head in heads] + [f"{head}:mean {HEAD_WIDTH_S:.2g} s" for head in heads]
    channels += [f"all:mean {width:.2g} s" for width in WIDTHS_S]
    channels += [f"all:{SIDE_S:.2g} s before", f"all:{SIDE_S:.2g} s after", f"all:{LAG_S:.2g} s ago",
                 f"all:{LAG_S:.2g} s on", "all:clip", f"all:spread {SPREAD_S:.2g} s"]
    plain = [f"{head}:entropy" for head in heads] + ["disagreement"] + [f"seen {width:.2g} s" for width in SEEN_S]
    return [f"{channel}:{name}" for channel in channels for name in classes] + plain


def columns_of(channel: str, heads: Sequence[str], classes: Sequence[str]) -> slice:
    """Return where the channel of that name (C columns, one a class) stands among the features."""
    first = names(heads, classes).index(f"{channel}:{classes[0]}")
    return slice(first, first + len(classes))


def build(view: ClipView) -> NDArray[np.float32]:
    """Return the features of the frames that count, ``(M, F)``."""
    pooled = view.said.mean(1)
    channels = [*_now_and_near(view), *_around(pooled, view.time_s)]
    return np.concatenate([*channels, _doubt(view.said), np.stack(view.seen, 1)], 1).astype(np.float32)


def _now_and_near(view: ClipView) -> list[Floats]:
    """Return what each head says at and about each frame, ``(M, C)`` each."""
    every, (m, h, c) = np.ones(len(view.time_s), bool), view.said.shape
    near = Sums(view.said.reshape(m, h * c), every).mean(reach(view.time_s, HEAD_WIDTH_S, HEAD_WIDTH_S))
    return [view.said[:, i] for i in range(h)] + [near[:, i * c:(i + 1) * c] for i in range(h)]


def _around(pooled: Floats, time_s: Floats) -> list[Floats]:
    """Return what the heads together say around each frame, ``(M, C)`` each."""
    sums = Sums(pooled, np.ones(len(time_s), bool))
    means = [sums.mean(reach(time_s, width, width)) for width in WIDTHS_S]
    sides = [sums.mean(reach(time_s, SIDE_S, 0)), sums.mean(reach(time_s, 0, SIDE_S))]
    lags = [lagged(pooled, time_s, LAG_S), lagged(pooled, time_s, -LAG_S)]
    whole = np.broadcast_to(pooled.mean(0), pooled.shape)
    return [*means, *sides, *lags, whole, sums.spread(reach(time_s, SPREAD_S, SPREAD_S))]


def _doubt(said: Floats) -> Floats:
    """Return the entropy of each head and the disagreement between them (Jensen-Shannon), ``(M, H + 1)``."""
    p = np.exp(said)
    entropy = -(p * said).sum(-1)
    mixed = p.mean(1)
    apart = -(mixed * np.log(np.maximum(mixed, FLOOR))).sum(-1) - entropy.mean(1)
    return np.concatenate([entropy, apart[:, None]], 1)
