"""The chain as one more voice beside the heads: who it is fitted on, and what stands of it beside the features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fercache.oof import LogitBook
from fercache.stacking import chain
from fercache.stacking.chain import Chain, Heard
from fercache.stacking.features import ClipView
from fercache.stacking.sample_part import Sample

NAME = "chain"

Singles = NDArray[np.float32]


def names(classes: Sequence[str]) -> list[str]:
    """Return the names of the features that `beside` adds."""
    return [*(f"{NAME}:now:{name}" for name in classes), f"{NAME}:entropy"]


def beside(x: Singles, smoothed: Singles, said: Singles) -> tuple[Singles, Singles]:
    """Return features ``(n, F + C + 1)`` and moving means ``(n, H + 1, W, C)`` with the chain's word ``(n, C)`` beside.

    Notes
    -----
    Of every width it is the same: the chain has smoothed already.
    """
    entropy = -(np.exp(said) * said).sum(1, keepdims=True)
    again = np.repeat(said[:, None, None], smoothed.shape[2], 2)
    return np.concatenate([x, said, entropy], 1), np.concatenate([smoothed, again], 1)


def heard(view: ClipView) -> Heard:
    """Return what a chain hears of a clip."""
    return Heard(view.said.astype(np.float32), view.time_s)


@dataclass(frozen=True, kw_only=True)
class Clips:
    """The clips that the rows to learn from are of.

    Attributes
    ----------
    heard : trial -> what a chain hears of it; label : trial -> (M,) labels of the same frames.
    place : trial -> which of those frames the rows to learn from are.
    """

    heard: dict[int, Heard]
    label: dict[int, NDArray[np.int64]]
    place: dict[int, NDArray[np.int64]]
    causal: bool

    @classmethod
    def of(cls, book: LogitBook, rows: NDArray[np.int64], causal: bool) -> Clips:
        """Return the clips of some rows of a book."""
        trials = book.spread(np.arange(len(book.trials)))[rows]
        heard_, label, place = {}, {}, {}
        for trial in np.unique(trials).tolist():
            mine, view = book.rows(trial), ClipView.of(book, trial, causal)
            heard_[trial] = heard(view)
            label[trial] = book.label[mine][view.counts].astype(np.int64)
            place[trial] = (np.cumsum(view.counts) - 1)[rows[trials == trial] - mine.start]
        return cls(heard=heard_, label=label, place=place, causal=causal)

    def fit(self, trials: Sequence[int]) -> Chain:
        """Return the chain that is fitted on some of the clips."""
        return chain.fit([self.heard[t] for t in trials], [self.label[t] for t in trials], self.causal)

    def joined(self, sample: Sample, spoken: Chain, trials: Sequence[int]) -> Sample:
        """Return rows to learn from, all rows of some clips in order, with what the chain says of them beside."""
        said = spoken.says([self.heard[t] for t in trials], self.causal)
        rows = [one[self.place[t]] for one, t in zip(said, trials, strict=True)]
        x, smoothed = beside(sample.x, sample.smoothed, np.concatenate(rows))
        return replace(sample, x=x, smoothed=smoothed)
