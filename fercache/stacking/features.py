"""Features of the stacker: each head's log-probabilities at a frame, around it, and over the clip; and its sample."""
# One clip is processed at a time, so memory stays flat. Features are built for frames with a face (for all frames if
# the clip has none). The other frames take the prediction of the nearest frame with a face.

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import special

from fercache.oof import OofLogits
from fercache.results import smoothing
from fercache.results.smoothing import Chain, CumulativeSums, WindowReach
from fercache.runtime.progress import ProgressBar

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Rows = NDArray[np.int64]

# Half-widths of the moving means: 5 to 450 frames at 30 fps, where smoothing helps on Aff-Wild2.
WIDTHS_S = (1 / 6, 1 / 2, 1.5, 5.0, 15.0)
CHAINS = tuple(Chain(dwell_s=dwell_s, evidence_hz=hz) for hz in (5.0, 10.0, 20.0) for dwell_s in (1.0, 4.0))
"""The Markov chains that smoothing chooses from. On out-of-fold rows of photo streams (164 groups) the best of them has
.675 macro F1, the best moving mean .654, a head alone .657."""
FEATURE_CHAIN = CHAINS.index(Chain(dwell_s=1.0, evidence_hz=10.0))  # the chain whose posteriors are features
HEAD_WIDTH_S = 1.0
SIDE_S = 1.0
LAG_S = 1 / 3
SPREAD_S = 1.5
MOST_S = 5.0
ENTROPY_S = (0.5, 5.0)
SEEN_S = (0.5, 3.0)
FAR_S = 10.0  # upper limit of the features that hold the seconds to the previous and next face
ROWS_AT_ONCE = 100_000  # rows of the clips whose chains are followed together: some 150 MB
# Lower limit of probabilities before the logarithm: a single overconfident head must not dominate a mean.
FLOOR = 1e-6
MOST_COLUMNS = 152
UNSIGNED = re.compile(r":spread\b")  # channels with a value a class that is no vote for the class
POOLED = ("mean", "spread", "most", "least")  # statistics of a clip's log-probabilities: its features at clip level


def log_softmax(logits: NDArray[np.floating]) -> Floats:
    """Return log-probabilities, ``(..., C)``, not below log `FLOOR`."""
    return np.asarray(np.maximum(special.log_softmax(logits.astype(float), axis=-1), np.log(FLOOR)))


@dataclass(frozen=True, kw_only=True)
class ClipView:
    """The rows of one trial as the stacker reads them; M of the T frames count."""

    # (T,) frames with a face; all frames if there is no face at all. Not so if `causal`: only the end of the clip shows
    # that no face comes.
    counts: NDArray[np.bool_]
    filled: Rows  # for each frame the nearest one that counts
    # Of the frames that count: (M, H, C) log-probabilities of the heads, (M,) times, and for each width of `SEEN_S` the
    # share of frames about it that have a face, (M,).
    log_probs: Floats
    time_s: Floats
    seen: tuple[Floats, ...]
    pooled: Floats | None = None  # (M, H, S, C) where a row is a whole clip
    causal: bool = False  # no window includes a later frame

    @classmethod
    def of(cls, oof: OofLogits, trial: int, causal: bool = False) -> ClipView:
        """Return the view of one trial."""
        rows = oof.rows(trial)
        valid, time_s = oof.valid[rows], oof.time_s[rows]
        counts = valid if valid.any() or causal else np.ones(len(valid), bool)
        log_probs = np.stack([log_softmax(oof.logits[head][rows][counts]) for head in oof.heads], 1)
        faces = CumulativeSums(np.zeros((len(valid), 1)), valid, causal=causal)
        seen = tuple(faces.share(_reach(time_s, width, causal))[counts] for width in SEEN_S)
        pooled = np.stack([oof.pooled[head][rows][counts] for head in oof.heads], 1) if oof.pooled else None
        return cls(counts=counts, filled=smoothing.nearest_row(time_s, counts, causal=causal), log_probs=log_probs,
                   time_s=time_s[counts], seen=seen, pooled=pooled, causal=causal)

    @classmethod
    def each(cls, oof: OofLogits, trials: Sequence[int], causal: bool = False) -> Iterator[ClipView]:
        """Yield the view of each trial, with the posteriors of many clips computed at once, which is faster."""
        rows = np.cumsum(np.diff(oof.offsets)[list(trials)])
        for part in np.split(np.asarray(trials, int), np.flatnonzero(np.diff(rows // ROWS_AT_ONCE)) + 1):
            views = [cls.of(oof, trial, causal) for trial in part.tolist()]
            if not oof.pooled:
                posteriors = smoothing.chain_posteriors([view.log_probs.mean(1) for view in views],
                                                        [view.time_s for view in views], CHAINS, causal=causal)
                for view, values in zip(views, posteriors, strict=True):
                    vars(view)["posteriors"] = values  # where `cached_property` looks
            yield from views

    def reach(self, width_s: float) -> WindowReach:
        """Return each row's window of that half-width."""
        return _reach(self.time_s, width_s, self.causal)

    @cached_property
    def posteriors(self) -> Floats:
        """Log-probabilities under each of `CHAINS`, from the heads' mean, ``(M, V, C)``; one slow pass."""
        return smoothing.chain_posteriors([self.log_probs.mean(1)], [self.time_s], CHAINS, causal=self.causal)[0]

    def sums(self, values: Floats) -> CumulativeSums:
        """Return the running sums of values of the frames that count, ``(M, D)``."""
        return CumulativeSums(values, np.ones(len(values), bool), causal=self.causal)

    def spread_to_gaps(self, values: Singles) -> Singles:
        """Return values of all frames, ``(T, ...)``, from those of the frames that count, ``(M, ...)``."""
        # Zeros (as logits: uniform probabilities) where a causal view has seen no face yet.
        if not len(values):
            return np.zeros((len(self.counts), *values.shape[1:]), values.dtype)
        spread = values[(np.cumsum(self.counts) - 1)[self.filled]]
        spread[~self.counts[self.filled]] = 0
        return np.asarray(spread)


def _reach(time_s: Floats, width_s: float, causal: bool) -> WindowReach:
    return smoothing.window_reach(time_s, width_s, 0.0 if causal else width_s)


@dataclass(frozen=True, kw_only=True)
class FeatureColumns:
    """The names of the features, and how they are built."""

    heads: tuple[str, ...]
    classes: tuple[str, ...]
    level: str = "frame"  # "clip" where a row is a clip
    causal: bool = False  # no feature uses a later frame

    @property
    def smoothings(self) -> tuple[float | Chain, ...]:
        """What smoothing chooses from: half-widths of moving means in seconds (0 is the frame itself), and chains."""
        return (0.0, *WIDTHS_S, *CHAINS) if self.level == "frame" else (0.0,)

    @cached_property
    def names(self) -> list[str]:
        """The name of each feature, in the order of the columns of `build`."""
        if self.level == "clip":
            return [f"{head}:{what}:{name}" for head in self.heads for what in POOLED for name in self.classes]
        channels = [*self._own(), *(f"all:mean {width:.2g} s" for width in WIDTHS_S), f"all:{SIDE_S:.2g} s before",
                    *([] if self.causal else [f"all:{SIDE_S:.2g} s after"]), f"all:{LAG_S:.2g} s ago", "all:clip",
                    f"all:spread {SPREAD_S:.2g} s", f"all:most {MOST_S:.2g} s", "all:chain"]
        return [f"{channel}:{name}" for channel in channels for name in self.classes] + self._plain()

    @cached_property
    def class_of(self) -> NDArray[np.int64]:
        """The class whose probability a feature describes, ``(F,)``; -1 for features such as spreads and entropies."""
        return np.array([self.classes.index(end) if end in self.classes and not UNSIGNED.search(channel) else -1
                         for channel, _, end in (name.rpartition(":") for name in self.names)], np.int64)

    @cached_property
    def anchors(self) -> NDArray[np.int64]:
        """The feature with the level of the same class and head (or all heads), ``(F,)``; -1 for a feature of no class.
        """
        # The difference between a feature and its anchor is a contrast within the clip: what shifts all
        # log-probabilities of a clip, such as the class shares of a fold, is not in it.
        found = np.full(len(self.names), -1, np.int64)
        place = {name: i for i, name in enumerate(self.names)}
        for i in np.flatnonzero(self.class_of >= 0).tolist():
            source, statistic, name = self.names[i].split(":")
            level = "clip" if source == "all" else f"mean {HEAD_WIDTH_S:.2g} s"
            # At clip level there is no such feature: each statistic is its own anchor. So is the posterior of a chain:
            # it does not shift with the level of a clip, so its difference from it would contain it.
            level = statistic if statistic == "chain" else level
            found[i] = place.get(f"{source}:{level}:{name}", i)
        return found

    def _own(self) -> list[str]:
        """Return the channels of single heads; above `MOST_COLUMNS` without the smoothed ones, then none."""
        now = [f"{head}:now" for head in self.heads]
        near = [f"{head}:mean {HEAD_WIDTH_S:.2g} s" for head in self.heads]
        rest = (5 + 7) * len(self.classes) + len(self._plain())
        for own in ([*now, *near], now):
            if len(own) * len(self.classes) + rest <= MOST_COLUMNS:
                return own
        return []

    def _plain(self) -> list[str]:
        entropy = [f"{what} {width:.2g} s" for width in ENTROPY_S
                 for what in ("doubt spread", "doubt most", "doubt least")]
        faces = ["face before s", *([] if self.causal else ["face after s"])]
        return [*(f"{head}:entropy" for head in self.heads), "disagreement", *entropy, "slope of the leader",
                *(f"seen {width:.2g} s" for width in SEEN_S), *faces]

    def build(self, view: ClipView) -> Singles:
        """Return the features of the frames that count, ``(M, F)``."""
        if view.pooled is not None:
            return view.pooled.reshape(len(view.pooled), -1).astype(np.float32)
        if not len(view.log_probs):
            return np.zeros((0, len(self.names)), np.float32)
        pooled = view.log_probs.mean(1)
        channels = [*self._now_and_near(view), *_around(pooled, view), _entropy(view), _moving_entropy(pooled, view),
                    _slope(pooled, view), np.stack(view.seen, 1), _faces(view)]
        return np.concatenate(channels, 1).astype(np.float32)

    def smoothed(self, view: ClipView, smoothings: Sequence[float | Chain]) -> Singles:
        """Return the heads' mean log-probabilities, smoothed in each way, at the frames that count, ``(M, W, C)``."""
        if view.pooled is not None:
            return np.asarray(view.pooled[:, :, 0].mean(1)[:, None], np.float32)
        mean = view.log_probs.mean(1)
        sums = view.sums(mean)
        return np.stack([view.posteriors[:, CHAINS.index(one)] if isinstance(one, Chain) else
                         sums.mean(view.reach(one)) if one else mean for one in smoothings], 1).astype(np.float32)

    def _now_and_near(self, view: ClipView) -> list[Floats]:
        """Return each head's log-probabilities and their moving mean, ``(M, C)`` each."""
        own, (m, h, c) = self._own(), view.log_probs.shape
        now = [view.log_probs[:, i] for i in range(h)] if own else []
        if len(own) <= h:
            return now
        near = view.sums(view.log_probs.reshape(m, h * c)).mean(view.reach(HEAD_WIDTH_S))
        return now + [near[:, i * c:(i + 1) * c] for i in range(h)]


def feature_columns(oof: OofLogits, causal: bool) -> FeatureColumns:
    """Return the features for these logits."""
    return FeatureColumns(heads=oof.heads, classes=oof.classes, level="clip" if oof.pooled else "frame", causal=causal)


def _around(pooled: Floats, view: ClipView) -> list[Floats]:
    """Return statistics of the heads' mean log-probabilities around each frame, ``(M, C)`` each."""
    sums, time_s = view.sums(pooled), view.time_s
    sides = [sums.mean(smoothing.window_reach(time_s, SIDE_S, 0)),
             *([] if view.causal else [sums.mean(smoothing.window_reach(time_s, 0, SIDE_S))])]
    return [*(sums.mean(view.reach(width)) for width in WIDTHS_S), *sides, smoothing.lagged(pooled, time_s, LAG_S),
            sums.mean(view.reach(np.inf)), sums.spread(view.reach(SPREAD_S)),
            smoothing.highest(pooled, view.reach(MOST_S)), view.posteriors[:, FEATURE_CHAIN]]


def _entropy(view: ClipView) -> Floats:
    """Return the entropy of each head and the disagreement between them (Jensen-Shannon), ``(M, H + 1)``."""
    p = np.exp(view.log_probs)
    entropy = -(p * view.log_probs).sum(-1)
    mixed = p.mean(1)
    apart = -(mixed * np.log(np.maximum(mixed, FLOOR))).sum(-1) - entropy.mean(1)
    return np.concatenate([entropy, apart[:, None]], 1)


def _moving_entropy(pooled: Floats, view: ClipView) -> Floats:
    """Return spread, most and least of the pooled entropy over each width of `ENTROPY_S`, ``(M, 3 x widths)``."""
    entropy = -(np.exp(pooled) * pooled).sum(-1, keepdims=True)
    sums = view.sums(entropy)
    windows = [view.reach(width) for width in ENTROPY_S]
    return np.concatenate([part for window in windows for part in (
        sums.spread(window), smoothing.highest(entropy, window), -smoothing.highest(-entropy, window))], 1)


def _slope(pooled: Floats, view: ClipView) -> Floats:
    """Return the rate of change of the top class, in log-probability per second, ``(M, 1)``."""
    sums = view.sums(pooled)
    ahead = pooled if view.causal else sums.mean(smoothing.window_reach(view.time_s, 0, SIDE_S))
    rise = (ahead - sums.mean(smoothing.window_reach(view.time_s, SIDE_S, 0))) / SIDE_S
    return np.take_along_axis(rise, pooled.argmax(1)[:, None], 1)


def _faces(view: ClipView) -> Floats:
    """Return the seconds to the nearest seen face before and after each frame, ``(M, 2)``; causal: before only."""
    gap = np.minimum(np.diff(view.time_s), FAR_S)
    before = np.concatenate([[FAR_S], gap])[:, None]
    return before if view.causal else np.concatenate([before, np.append(gap, FAR_S)[:, None]], 1)


# The training sample: rows that are labeled, out of fold and have a face, thinned because neighbors are near copies.

# Rows closer than this carry the same information; one of them is enough.
STEP_S = 0.1
# With more rows than this the step grows: further rows of a few hundred trials add no information.
MOST = 60_000
# Rows of a clip within this time count as one effective row, because expressions last for seconds.
BLOCK_S = 10.0
REFITTED = -1  # the fold number of validation rows, which no fold holds out and which only a refit uses
PARTS = ("rows", "x", "smoothed", "label", "fold", "group", "block_id")


@dataclass(frozen=True, kw_only=True)
class TrainingSample:
    """The n rows that the stacker learns from."""

    rows: NDArray[np.int64]  # (n,) rows of the logits
    x: NDArray[np.float32]  # (n, F) features
    smoothed: NDArray[np.float32]  # (n, W, C) the heads' mean log-probabilities, smoothed in each of the W ways
    label: NDArray[np.int64]
    fold: NDArray[np.int64]
    group: NDArray[np.int64]
    block_id: NDArray[np.int64]  # (n,) rows of a clip in the same `BLOCK_S` seconds share a block
    classes: int

    def without(self, fold: int) -> TrainingSample:
        """Return the rows that the model of a fold learns from: those of the other folds; -1 means all rows."""
        return self.where((self.fold != fold) & (self.fold != REFITTED)) if fold >= 0 else self

    def where(self, keep: NDArray[np.bool_]) -> TrainingSample:
        """Return the rows where `keep`, ``(n,)``, is true."""
        return TrainingSample(**{name: getattr(self, name)[keep] for name in PARTS}, classes=self.classes)

    def effective_n(self) -> int:
        """Return the effective number of independent rows: the number of blocks, since neighbors are near copies."""
        return max(len(np.unique(self.block_id)), 1)

    def weights(self, balance: float) -> Floats:
        """Return row weights, ``(n,)``, of mean 1: one over the class's share, to the power of `balance`."""
        share = np.bincount(self.label, minlength=self.classes) / max(len(self.label), 1)
        weight = np.asarray(share[self.label] ** -balance)
        return np.asarray(weight / weight.mean())


def draw_sample(oof: OofLogits, columns: FeatureColumns, refit: bool, bar: ProgressBar) -> TrainingSample:
    """Return the training sample of the out-of-fold rows, with their features.

    `refit`: include the labeled rows of the validation split.
    """
    selected = thinned(oof, refit)
    trial = oof.per_row(np.arange(len(oof.trials)))
    x = [np.zeros((0, len(columns.names)), np.float32)]
    smoothed = [np.zeros((0, len(columns.smoothings), len(oof.classes)), np.float32)]
    trials = [i for i in range(len(oof.trials)) if selected[oof.rows(i)].any()]
    for i, view in zip(trials, ClipView.each(oof, trials, columns.causal), strict=True):
        here = selected[oof.rows(i)][view.counts]
        x.append(columns.build(view)[here])
        smoothed.append(columns.smoothed(view, columns.smoothings)[here])
        bar.advance()
    rows = np.flatnonzero(selected)
    _, block = np.unique(np.stack([trial[rows], oof.time_s[rows] // BLOCK_S]), axis=1, return_inverse=True)
    return TrainingSample(rows=rows, x=np.concatenate(x), smoothed=np.concatenate(smoothed),
                          label=oof.label[rows].astype(np.int64), fold=oof.fold[trial[rows]].astype(np.int64),
                          group=oof.group_number[trial[rows]], block_id=block, classes=len(oof.classes))


def thinned(oof: OofLogits, refit: bool = False) -> NDArray[np.bool_]:
    """Return which rows, ``(R,)``, the stacker learns from."""
    learnable = oof.fold >= 0
    if refit:
        learnable = learnable | (np.array(oof.split) == "validation")
    # Only frames with a face have features of their own; the others would add copies.
    usable = (oof.label >= 0) & oof.valid & oof.per_row(learnable)
    selected, step = one_a_step(oof, usable, STEP_S), STEP_S
    while selected.sum() > MOST:
        step *= max(1.05, selected.sum() / MOST)
        selected = one_a_step(oof, usable, step)
    return selected


def one_a_step(oof: OofLogits, usable: NDArray[np.bool_], step_s: float) -> NDArray[np.bool_]:
    """Return the first usable row of each step of each trial, as a mask ``(R,)``."""
    rows = np.flatnonzero(usable)
    step = np.floor(oof.time_s[rows] / step_s + 1e-6)  # a time just below a step by rounding belongs to the step
    trial = oof.per_row(np.arange(len(oof.trials)))[rows]
    new = np.ones(len(rows), bool)
    new[1:] = (np.diff(step) != 0) | (np.diff(trial) != 0)
    selected = np.zeros(len(usable), bool)
    selected[rows[new]] = True
    return selected
