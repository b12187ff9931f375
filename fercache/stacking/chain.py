"""Expressions as a Markov chain: what all frames of a clip say of each of them, weighed by how long expressions last.

Notes
-----
A moving mean is as wide in the middle of a long smile as at its end. The chain knows how long each class lasts and
what follows it (both counted on labels), takes each frame's log-probabilities as evidence for so much of a second, and
works out by forward and backward passes (Rabiner 1989) how probable each class is at each frame, given all of them;
causal: by the forward pass alone. A class is passed through in `STAGES` stages, so that it hardly ever ends at once.
Between two frames at most one class ends, however far apart they are: frames without a face are only time that passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fercache.oof import OofLogits
from fercache.stacking.features import ClipView, TrainingSample

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

STAGES = 2
FIRST_S, MOST_S = 1 / 30, 0.2
"""Seconds of evidence that the first frame is, and the most that any frame is (after a gap, or of a slow clock)."""
ROWS_A_BATCH = 400_000
PIECE, MOST_ROWS = 250, 120_000
"""The powers are fitted on pieces of clips of so many frames, and on so many frames in all: a few numbers need no more.
"""
POWER_A_S, PRIOR = 1.0, 0.75
"""Where the search for the powers begins."""
STEPS = (4.0, 2.0, 1.4)
LEAST, MOST_POWER = 1e-3, 1e3
"""A step must help by so much; a power beyond the other is no longer one."""
PSEUDO = 0.5
"""Ends, and seconds, that are counted for what never occurred."""
FLOOR = 1e-6


class ChainInput(NamedTuple):
    """The input of one clip: log-probabilities of the frames that count, ``(M, H, C)``, and their times, ``(M,)``.
    """

    log_probs: NDArray[np.floating]
    time_s: Floats


@dataclass(frozen=True, kw_only=True)
class Chain:
    """How long each class lasts, what follows it, and the weight of each head's evidence.

    Attributes
    ----------
    rate : (C,) ends a second; jump : (C, C) what follows, rows sum to 1; share : (C,) of the time.
    power : (H,) what a head's log-probabilities of one second count.
    prior : power of the class's share that is taken out of them (a head that learnt from labels holds it already).
    """

    rate: Floats
    jump: Floats
    share: Floats
    power: Floats
    prior: float

    def json(self) -> dict[str, Any]:
        """Return the chain as a JSON value."""
        return {"rate": self.rate.tolist(), "jump": self.jump.tolist(), "share": self.share.tolist(),
                "power": self.power.tolist(), "prior": self.prior}

    @classmethod
    def of(cls, log_probs: dict[str, Any]) -> Chain:
        """Return the chain that `json` described."""
        return cls(prior=log_probs["prior"], **{name: np.array(log_probs[name], float)
                                           for name in ("rate", "jump", "share", "power")})

    def predict(self, clips: Sequence[ChainInput], causal: bool) -> list[NDArray[np.float32]]:
        """Return the log-probabilities of each clip's frames that count, ``(M, C)`` each, not below log `FLOOR`."""
        found: list[NDArray[np.float32]] = [np.zeros((0, len(self.share)), np.float32)] * len(clips)
        for batch in _batches([len(clip.log_probs) for clip in clips]):
            probable = self._passes([clips[i] for i in batch], causal)
            for place, i in enumerate(batch):
                found[i] = np.log(np.maximum(probable[place, :len(clips[i].log_probs)], FLOOR)).astype(np.float32)
        return found

    @cached_property
    def _moves(self) -> Floats:
        """Return where a stage that ends leads to, ``(S, S)``: to the next one, or to the first of another class."""
        many = len(self.share)
        moves = np.zeros((many, STAGES, many, STAGES))
        for stage in range(STAGES - 1):
            moves[range(many), stage, range(many), stage + 1] = 1
        moves[:, -1, :, 0] = self.jump
        return moves.reshape(many * STAGES, many * STAGES)

    def _passes(self, clips: Sequence[ChainInput], causal: bool) -> Floats:
        """Return the probabilities of each frame of some clips, ``(n, M, C)``."""
        likely, stay = self._evidence(clips)
        moves, n = self._moves, len(clips)
        state = np.repeat(self.share / STAGES, STAGES) * np.ones((n, 1))
        found = np.empty((n, likely.shape[1], state.shape[1]))
        for t in range(likely.shape[1]):
            if t:
                left = state * (1 - stay[:, t])
                state = state - left + left @ moves
            state = state * likely[:, t]
            state /= state.sum(1, keepdims=True)
            found[:, t] = state
        if not causal:
            self._back(found, likely, stay)
        found = found.reshape(n, likely.shape[1], -1, STAGES).sum(3)
        return np.asarray(found / found.sum(2, keepdims=True))

    def _back(self, found: Floats, likely: Floats, stay: Floats) -> None:
        """Weigh what the forward pass `found` by what later frames say."""
        later = np.ones((len(found), found.shape[2]))
        turned = self._moves.T.copy()
        for t in range(found.shape[1] - 2, -1, -1):
            after = later * likely[:, t + 1]
            later = stay[:, t + 1] * after + (1 - stay[:, t + 1]) * (after @ turned)
            later /= later.sum(1, keepdims=True)
            found[:, t] *= later

    def _evidence(self, clips: Sequence[ChainInput]) -> tuple[Floats, Floats]:
        """Return how likely each frame is in each stage, and how probable it is to stay in it, both ``(n, M, S)``."""
        most = max(len(clip.log_probs) for clip in clips)
        logs = np.zeros((len(clips), most, len(self.share)))
        passed = np.zeros((len(clips), most))
        for i, (log_probs, time_s) in enumerate(clips):
            step = np.diff(time_s, prepend=time_s[0] - FIRST_S)
            passed[i, :len(log_probs)] = step
            chain_input = np.einsum("mhc,h->mc", log_probs,
                                    self.power) - self.prior * self.power.sum() * np.log(self.share)
            logs[i, :len(log_probs)] = chain_input * np.minimum(step, MOST_S)[:, None]
        likely = np.exp(logs - logs.max(2, keepdims=True))
        stay = np.exp(-passed[:, :, None] * self.rate * STAGES)
        return np.repeat(likely, STAGES, 2), np.repeat(stay, STAGES, 2)


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield positions of clips of about one length, of so many rows in all; those without a frame are left out."""
    batch: list[int] = []
    for i in sorted(np.flatnonzero(lengths).tolist(), key=lambda i: (-lengths[i], i)):
        if batch and (len(batch) + 1) * lengths[batch[0]] > ROWS_A_BATCH:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def fit(clips: Sequence[ChainInput], labels: Sequence[Labels], causal: bool) -> Chain:
    """Return the chain that fits labelled clips best.

    Parameters
    ----------
    labels : the label of each frame that counts, ``(M,)`` each; -1 where there is none.

    Notes
    -----
    How long classes last and what follows them is counted. The powers and the prior are those with the least mean
    negative log-probability of the labels, found one by one in ever smaller steps.
    """
    pieces, known = _pieces(clips, labels)
    rows = [np.flatnonzero(label >= 0) for label in known]
    many = max(sum(map(len, rows)), 1)

    def loss(one: Chain) -> float:
        log_probs = one.predict(pieces, causal)
        right = [part[row, label[row]].sum(dtype=float) for part, label,
                 row in zip(log_probs, known, rows, strict=True)]
        return -float(sum(right)) / many

    chain = _counted(clips, labels)
    best = loss(chain)
    for step in STEPS:
        chain, best = _searched(chain, best, step, loss)
    return chain


def _counted(clips: Sequence[ChainInput], labels: Sequence[Labels]) -> Chain:
    """Return the chain as far as it is counted: ends of a class by its seconds, with half an end more for each class.
    """
    heads, classes = clips[0].log_probs.shape[1:]
    ends, seconds = np.full((classes, classes), PSEUDO), np.full(classes, PSEUDO)
    for (_, time_s), label in zip(clips, labels, strict=True):
        step = np.minimum(np.diff(time_s, prepend=time_s[:1] - FIRST_S), MOST_S)
        seconds += np.bincount(label[label >= 0], step[label >= 0], classes)
        both = (label[:-1] >= 0) & (label[1:] >= 0)
        np.add.at(ends, (label[:-1][both], label[1:][both]), 1)
    np.fill_diagonal(ends, 0)
    return Chain(rate=ends.sum(1) / seconds, jump=ends / ends.sum(1, keepdims=True), share=seconds / seconds.sum(),
                 power=np.full(heads, POWER_A_S), prior=PRIOR)


def _pieces(clips: Sequence[ChainInput], labels: Sequence[Labels]) -> tuple[list[ChainInput], list[Labels]]:
    """Return pieces of the clips, not more than `MOST_ROWS` rows of them, evenly chosen, and their labels."""
    cuts = [(i, start) for i, label in enumerate(labels) for start in range(0, len(label), PIECE)]
    total = sum(map(len, labels))
    chosen = cuts[::max(1, -(-total // MOST_ROWS))]
    return ([ChainInput(clips[i].log_probs[a:a + PIECE], clips[i].time_s[a:a + PIECE]) for i, a in chosen],
            [labels[i][a:a + PIECE] for i, a in chosen])


def _searched(chain: Chain, best: float, step: float, loss: Callable[[Chain], float]) -> tuple[Chain, float]:
    """Return the chain with each power and the prior made larger or smaller by `step`, as long as that helps."""
    for place in range(len(chain.power) + 1):
        for factor in (step, 1 / step):
            better = True
            while better:
                tried = _changed(chain, place, factor)
                found = loss(tried)
                better = found < best - LEAST and tried.power.max() < MOST_POWER
                chain, best = (tried, found) if better else (chain, best)
    return chain, best


def _changed(chain: Chain, place: int, factor: float) -> Chain:
    """Return the chain with one head's power times a factor; at the place after the last head, the prior."""
    if place == len(chain.power):
        return replace(chain, prior=chain.prior * factor)
    power = chain.power.copy()
    power[place] *= factor
    return replace(chain, power=power)


# The chain as one more head: the rows it is fitted on, and its output as features.

NAME = "chain"

Singles = NDArray[np.float32]


def names(classes: Sequence[str]) -> list[str]:
    """Return the names of the features that `beside` adds."""
    return [*(f"{NAME}:now:{name}" for name in classes), f"{NAME}:entropy"]


def beside(x: Singles, smoothed: Singles, log_probs: Singles) -> tuple[Singles, Singles]:
    """Return features ``(n, F + C + 1)`` and moving means ``(n, H + 1, W, C)`` plus the chain's output ``(n, C)``.

    Notes
    -----
    Of every width it is the same: the chain has smoothed already.
    """
    entropy = -(np.exp(log_probs) * log_probs).sum(1, keepdims=True)
    again = np.repeat(log_probs[:, None, None], smoothed.shape[2], 2)
    return np.concatenate([x, log_probs, entropy], 1), np.concatenate([smoothed, again], 1)


def chain_input(view: ClipView) -> ChainInput:
    """Return what a chain hears of a clip."""
    return ChainInput(view.log_probs.astype(np.float32), view.time_s)


@dataclass(frozen=True, kw_only=True)
class Clips:
    """The clips that the rows to learn from are of.

    Attributes
    ----------
    heard : trial -> the input of the chain; label : trial -> (M,) labels of the same frames.
    place : trial -> which of those frames the rows to learn from are.
    """

    chain_input: dict[int, ChainInput]
    label: dict[int, NDArray[np.int64]]
    place: dict[int, NDArray[np.int64]]
    causal: bool

    @classmethod
    def of(cls, book: OofLogits, rows: NDArray[np.int64], causal: bool) -> Clips:
        """Return the clips of some rows of a book."""
        trials = book.per_row(np.arange(len(book.trials)))[rows]
        chain_input_, label, place = {}, {}, {}
        for trial in np.unique(trials).tolist():
            mine, view = book.rows(trial), ClipView.of(book, trial, causal)
            chain_input_[trial] = chain_input(view)
            label[trial] = book.label[mine][view.counts].astype(np.int64)
            place[trial] = (np.cumsum(view.counts) - 1)[rows[trials == trial] - mine.start]
        return cls(chain_input=chain_input_, label=label, place=place, causal=causal)

    def fit(self, trials: Sequence[int]) -> Chain:
        """Return the chain that is fitted on some of the clips."""
        return fit([self.chain_input[t] for t in trials], [self.label[t] for t in trials], self.causal)

    def joined(self, sample: TrainingSample, fitted: Chain, trials: Sequence[int]) -> TrainingSample:
        """Return rows to learn from, all rows of some clips in order, extended by the output of the chain."""
        log_probs = fitted.predict([self.chain_input[t] for t in trials], self.causal)
        rows = [one[self.place[t]] for one, t in zip(log_probs, trials, strict=True)]
        x, smoothed = beside(sample.x, sample.smoothed, np.concatenate(rows))
        return replace(sample, x=x, smoothed=smoothed)
