"""Smoothing over time: moving statistics with masked rows, by cumulative sums, and a Markov chain of the classes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]

# Times are sums of rounded frame intervals: a frame this far outside a window still belongs to it.
SLACK_S = 1e-6


class WindowReach(NamedTuple):
    """The window of each row: rows ``start[t]:stop[t]`` of the same clip, both ``(T,)``."""

    start: Rows
    stop: Rows


def window_reach(time_s: Floats, behind_s: float, ahead_s: float) -> WindowReach:
    """Return the window of each row, whose times (T,) rise, from `behind_s` before it to `ahead_s` after it, inclusive.
    """
    start = np.searchsorted(time_s, time_s - behind_s - SLACK_S, "left")
    stop = np.searchsorted(time_s, time_s + ahead_s + SLACK_S, "right")
    return WindowReach(start.astype(np.int64), stop.astype(np.int64))


class CumulativeSums:
    """Cumulative sums of the `values` (T, D) that count, (T,); the sum over any window is then one subtraction.

    `causal`: sum about 0 instead of the mean, so that no bit of a row's sums depends on a later row.
    """

    def __init__(self, values: NDArray[Any], counts: Mask, *, causal: bool = False) -> None:
        centered = not causal and counts.any()
        # Sums are float64 about the mean of the rows that count, so that 50,000 rows lose no digit that matters.
        self.centre = values[counts].mean(0, dtype=float) if centered else np.zeros(values.shape[1])
        self.offset = np.where(counts[:, None], values - self.centre, 0.0)
        self.total = _running_sums(self.offset)
        self.number = np.concatenate([[0], np.cumsum(counts)])

    def mean(self, window: WindowReach) -> Floats:
        """Return the mean over each row's window, ``(T, D)``; that of the clip in a window where no row counts."""
        return np.asarray(self.centre + self._over(self.total, window))

    def spread(self, window: WindowReach) -> Floats:
        """Return the standard deviation over each row's window, ``(T, D)``; 0 where fewer than two rows count."""
        square = self._over(_running_sums(self.offset**2), window)
        # Rounding can make the difference of two equal squares negative.
        return np.asarray(np.sqrt(np.maximum(square - self._over(self.total, window) ** 2, 0.0)))

    def share(self, window: WindowReach) -> Floats:
        """Return the share of each row's window that counts, ``(T,)``."""
        return np.asarray(self._number(window) / np.maximum(window.stop - window.start, 1))

    def _over(self, running: Floats, window: WindowReach) -> Floats:
        return np.asarray((running[window.stop] - running[window.start]) / np.maximum(self._number(window), 1)[:, None])

    def _number(self, window: WindowReach) -> Rows:
        return np.asarray(self.number[window.stop] - self.number[window.start])


def moving_mean(values: NDArray[Any], counts: Mask, window: WindowReach, *, causal: bool = False) -> Floats:
    """Return the mean over each row's window of the rows that count, ``(T, D)``.

    `causal`: let no later row change a value, for windows that end with their row.

    Where no row of a window counts, the value is that of the nearest row whose window has one. In a causal mean it is
    the nearest one before; rows before the first that counts are 0.
    """
    sums = CumulativeSums(values, counts, causal=causal)
    seen = sums._number(window) > 0
    row = nearest_row(np.arange(len(seen), dtype=float), seen, causal=causal)
    return np.asarray(sums.mean(window)[row])


def nearest_row(time_s: Floats, counts: Mask, *, causal: bool = False) -> Rows:
    """Return for each row the nearest one in time that counts, ``(T,)``; of two equally near the earlier.

    `causal`: look back only; a row before the first that counts keeps itself, as every row does where none counts.
    """
    row = np.arange(len(time_s))
    seen = np.flatnonzero(counts)
    if not len(seen):
        return row
    place = np.searchsorted(seen, row, "right")
    before, after = seen[np.maximum(place - 1, 0)], seen[np.minimum(place, len(seen) - 1)]
    back = np.where(place > 0, time_s - time_s[before], np.inf)
    ahead = np.where((place < len(seen)) & (not causal), time_s[after] - time_s, np.inf)
    return np.where(np.isfinite(np.minimum(back, ahead)), np.where(back <= ahead, before, after), row)


def lagged(values: NDArray[Any], time_s: Floats, lag_s: float) -> NDArray[Any]:
    """Return the values `lag_s` seconds before each row (after it where negative), ``(T, D)``; ends are repeated."""
    row = np.searchsorted(time_s, time_s - lag_s + SLACK_S, "right") - 1
    return np.asarray(values[np.clip(row, 0, len(values) - 1)])


def highest(values: Floats, window: WindowReach) -> Floats:
    """Return the highest value over each row's window, ``(T, D)``; every window holds a row."""
    # Two windows of a power of two that overlap cover any window, so T log T steps are enough.
    long = window.stop - window.start
    level = np.frexp(long.astype(float))[1] - 1
    found = np.empty_like(values)
    table = values
    for power in range(int(level.max(initial=-1)) + 1):
        here = level == power
        found[here] = np.maximum(table[window.start[here]], table[window.stop[here] - 2**power])
        table = np.maximum(table[:-2**power], table[2**power:])
    return found


FAR_S = 60.0  # after a longer gap, and in the first row, a chain draws each class equally often


class Chain(msgspec.Struct, frozen=True, kw_only=True):
    """A Markov chain of the classes, which keeps its class and now and then draws one with the clip's mean probability.

    Attributes
    ----------
    dwell_s : mean seconds between two draws.
    evidence_hz : frames a second that count as independent evidence. Neighbors are near copies, so this is less than
        the frame rate.
    """

    dwell_s: float
    evidence_hz: float


def chain_posteriors(log_probs: Sequence[Floats], time_s: Sequence[Floats], chains: Sequence[Chain], *,
                     causal: bool = False) -> list[Floats]:
    """Return log-probabilities of the classes under each chain, (T, V, C) for each clip, given all its rows.

    `log_probs`: (T, C) of single frames, for each clip; `time_s`: (T,) rising, for each clip. `causal`: given no later
    row; a class is drawn with its mean probability so far.

    The forward-backward algorithm (Rabiner 1989), all clips and chains in one pass. After a gap the chain knows less.
    """
    # A step of one clip alone is a dozen tiny arrays, so step t is taken for all clips at once. The rows of a step are
    # adjacent, the longest clip first: the clips that still run are then a prefix.
    order = sorted(range(len(log_probs)), key=lambda i: -len(log_probs[i]))
    lengths = np.array([len(log_probs[i]) for i in order], int)
    count = (lengths[:, None] > np.arange(lengths.max(initial=0))).sum(0)
    first = np.cumsum(count) - count
    place = [first[:length] + rank for rank, length in enumerate(lengths)]
    steps = [slice(start, start + n) for start, n in zip(first.tolist(), count.tolist(), strict=True)]
    inputs = [_chain_inputs(log_probs[i], time_s[i], chains, causal) for i in order]

    def by_step(part: int, turn: int) -> Floats:
        values = np.empty((int(count.sum()), *inputs[0][part].shape[1:]))
        for rows, one in zip(place, inputs, strict=True):
            values[rows] = one[part][::turn]
        return values

    if not inputs:
        return []
    (keep, draw, before), state = (by_step(part, 1) for part in range(3)), np.empty(0)
    for t, step in enumerate(steps):
        now = before[step]
        state = (keep[step] * state[:len(now)] + draw[step] if t else draw[step]) * now
        state /= state.sum(2, keepdims=True)
        before[step] = state
    keep, draw, evidence = (by_step(part, -1) for part in range(3))
    after = np.ones_like(evidence)
    for step, following in pairwise(steps) if not causal else ():
        live = slice(step.start, step.start + following.stop - following.start)
        state = after[live] * evidence[live]
        state = keep[live] * state + (draw[live] * state).sum(2, keepdims=True)
        after[following] = state / state.sum(2, keepdims=True)
    found: list[Floats] = [np.empty(0)] * len(order)
    for i, rows in zip(order, place, strict=True):
        both = after[rows][::-1] * before[rows]
        found[i] = np.log(both / both.sum(2, keepdims=True))
    return found


def _chain_inputs(log_probs: Floats, time_s: Floats, chains: Sequence[Chain],
                  causal: bool) -> tuple[Floats, Floats, Floats]:
    """Return the probabilities to keep the class, ``(T, V, 1)``, and to draw each one, and evidence, ``(T, V, C)``."""
    gap = np.diff(time_s, prepend=-np.inf)[:, None]
    weight = np.minimum(1.0, gap * [chain.evidence_hz for chain in chains])
    keep = np.exp(-gap / [chain.dwell_s for chain in chains])[..., None]
    evidence = np.exp(weight[..., None] * (log_probs - log_probs.max(1, keepdims=True))[:, None])
    running = softmax(log_probs, axis=1).cumsum(0) / np.arange(1, len(log_probs) + 1)[:, None]
    # Still photos of a clip are an hour apart and say nothing about each other.
    drawn = np.where(gap > FAR_S, 1 / log_probs.shape[1], running if causal else running[-1:])
    return keep, (1 - keep) * drawn[:, None], evidence


def _running_sums(values: Floats) -> Floats:
    """Return sums from the start, ``(T + 1, D)``, beginning with 0."""
    return np.asarray(np.cumsum(np.pad(values, ((1, 0), (0, 0))), axis=0))
