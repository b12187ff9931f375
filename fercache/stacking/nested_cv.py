"""Every stacker row out of fold: who learns from which folds, and who speaks of which trial.

Notes
-----
The model of fold k learns from the out-of-fold rows of the other folds and speaks of fold k; one model that learns
from all folds speaks of trials that no fold holds out. What is chosen by score (the width of the base, the number of
trees) is chosen on the rows of the other folds too. So no label of a fold has a say in what is said of that fold, but
through the heads that gave the other folds' rows, which is what stacking is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fercache.config import StackConfig
from fercache.oof import LogitBook
from fercache.runtime.progress import Meter, meter
from fercache.stacking import features, linear_part, models, smoothed_mean, voice_part
from fercache.stacking.chain import Chain
from fercache.stacking.features import ClipView, Columns
from fercache.stacking.linear_part import Linear
from fercache.stacking.models import Trees
from fercache.stacking.sample_part import Sample, draw
from fercache.stacking.smoothed_mean import Base, softmax
from fercache.stacking.voice_part import Clips

Shares = NDArray[np.float32]

ROWS_A_CALL = 65_536
LEARNT = ("chain", "smooth", "logistic", "blend", "stack")
"""The columns that are learnt, in rising order of what they may do."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """What was learnt without one fold (-1: from all folds), and from how many groups and rows; of clips no chain."""

    fold: int
    groups: int
    rows: int
    base: Base
    trees: Trees
    linear: Linear
    chain: Chain | None = None

    def json(self) -> dict[str, Any]:
        """Return what was chosen, as a JSON value."""
        return {"fold": self.fold, "groups": self.groups, "rows": self.rows, "base": self.base.json(),
                "chain": self.chain.json() if self.chain else None,
                "rounds": self.trees.rounds, "watched_groups": self.trees.watched}


@dataclass(frozen=True, kw_only=True)
class Nested:
    """The members, by fold, and what they say of every row: column -> probabilities, ``(R, C)`` float32.

    Both are empty where a fold leaves nothing to learn from.
    """

    members: dict[int, Member]
    columns: dict[str, Shares]


def run(book: LogitBook, config: StackConfig) -> Nested:
    """Return what the stackers say of every row of the book."""
    k, columns = int(book.fold.max()) + 1, features.of(book, config.causal)
    with meter("stack", 2 * len(book.trials) + k + 1, "steps") as bar:
        sample = draw(book, columns, config.refit == "all", bar)
        if not all(len(sample.without(fold).rows) for fold in range(max(k, 1))):
            return Nested(members={}, columns={})
        clips = Clips.of(book, sample.rows, config.causal) if columns.level == "frame" else None
        members = {fold: _member(sample.without(fold), columns, fold, config, book, clips, bar)
                   for fold in [*range(k), -1]}
        return Nested(members=members, columns=_Spoken(book, columns, members, config.threads, bar).columns())


def speak(book: LogitBook, member: Member, causal: bool) -> Nested:
    """Return what a member says of every row of a book that no fold holds out."""
    with meter("stack", len(book.trials), "trials") as bar:
        members = {member.fold: member}
        columns = features.of(book, causal)
        return Nested(members=members, columns=_Spoken(book, columns, members, 0, bar).columns())


def _member(sample: Sample, columns: Columns, fold: int, config: StackConfig, book: LogitBook, clips: Clips | None,
            bar: Meter) -> Member:
    """Return what is learnt from a sample, and from its clips: first the chain, then what listens to it too."""
    bar.note("without fold " + str(fold) if fold >= 0 else "all folds")
    spoken = None
    if clips:
        trials = np.unique(book.spread(np.arange(len(book.trials)))[sample.rows]).tolist()
        spoken = clips.fit(trials)
        sample = clips.joined(sample, spoken, trials)
    chosen = smoothed_mean.choose(sample, columns.widths, config.metric or book.metric)
    plan = models.Plan(seed=config.seed, threads=config.threads, balance=chosen.balance)
    member = Member(fold=fold, groups=len(np.unique(sample.group)), rows=len(sample.rows), base=chosen,
                    trees=models.fit(sample, chosen.start(sample.smoothed), plan),
                    linear=linear_part.fit(sample, chosen.balance), chain=spoken)
    bar.advance()
    return member


class _Spoken:
    """What the members say of each row of the book: the model of a fold of its trials, that of all folds of the rest.

    Attributes
    ----------
    names : the columns.
    start, correction, logistic, chain : (R, C) float32, filled in the gaps from the nearest frame with a face.
    """

    def __init__(self, book: LogitBook, features_: Columns, members: dict[int, Member], threads: int,
                 bar: Meter) -> None:
        self.book, self.features = book, features_
        shape = (len(book.label), len(book.classes))
        self.start, self.correction, self.logistic, self.chain = (np.zeros(shape, np.float32) for _ in range(4))
        self.names = tuple(name for name in LEARNT if name != voice_part.NAME or features_.level == "frame")
        for fold, member in members.items():
            waiting: list[tuple[int, ClipView, Shares, Shares]] = []
            for trial in np.flatnonzero((book.fold == fold) & (np.diff(book.offsets) > 0)).tolist():
                view = ClipView.of(book, trial, features_.causal)
                waiting.append((trial, view, features_.build(view), features_.smoothed(view)))
                if sum(len(x) for _, _, x, _ in waiting) >= ROWS_A_CALL:
                    self._say(member, waiting, threads)
                    waiting = []
                bar.advance()
            self._say(member, waiting, threads)

    def _say(self, member: Member, waiting: Sequence[tuple[int, ClipView, Shares, Shares]], threads: int) -> None:
        """Fill the rows of some trials; many at once, since a call of LightGBM has its price."""
        if not waiting:
            return
        x, smoothed = (np.concatenate([one[part] for one in waiting]) for part in (2, 3))
        said: dict[str, NDArray[Any]] = {}
        if member.chain:
            heard = [voice_part.heard(view) for _, view, _, _ in waiting]
            said["chain"] = np.concatenate(member.chain.says(heard, self.features.causal))
            x, smoothed = voice_part.beside(x, smoothed, said["chain"])
        said |= {"start": member.base.start(smoothed), "logistic": member.linear.logits(x),
                 "correction": member.trees.correction(x, threads)}
        ends = np.cumsum([len(one) for _, _, one, _ in waiting])
        for (trial, view, one, _), end in zip(waiting, ends.tolist(), strict=True):
            for name, values in said.items():
                mine = values[end - len(one):end].astype(np.float32)
                getattr(self, name)[self.book.rows(trial)] = view.spread_to_gaps(mine)

    def columns(self) -> dict[str, Shares]:
        """Return the probabilities of the columns that are learnt."""
        logits = {"chain": self.chain, "smooth": self.start, "logistic": self.logistic,
                  "blend": _mean_log(self.start, self.logistic), "stack": self.start + self.correction}
        return {name: softmax(logits[name]).astype(np.float32) for name in self.names}


def _mean_log(one: Shares, other: Shares) -> Shares:
    """Return the mean of two columns' log-probabilities (a geometric mean of probabilities), ``(R, C)``."""
    return np.asarray((features.log_softmax(one) + features.log_softmax(other)) / 2, np.float32)
