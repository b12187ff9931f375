"""Every stacker row out of fold: who learns from which folds, and who speaks of which trial.

Notes
-----
The model of fold k learns from the out-of-fold rows of the other folds and speaks of fold k; one model that learns
from all folds speaks of trials that no fold holds out. What is chosen by score (the width of the base, the number of
trees) is chosen on the rows of the other folds too. So no label of a fold has a say in what is said of that fold, but
through the heads that gave the other folds' rows, which is what stacking is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
from numpy.typing import NDArray

from fercache.config import StackConfig
from fercache.errors import StoreError
from fercache.oof import LogitBook
from fercache.runtime import atomic_io
from fercache.runtime.progress import Meter, meter
from fercache.stacking import chain, features, models, smoothed_mean
from fercache.stacking.chain import Chain, Clips
from fercache.stacking.features import ClipView, Columns, Sample, draw
from fercache.stacking.models import Linear, Trees
from fercache.stacking.smoothed_mean import Base, softmax

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
                    trees=models.fit_trees(sample, chosen.start(sample.smoothed), plan),
                    linear=models.fit_linear(sample, chosen.balance), chain=spoken)
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
        self.names = tuple(name for name in LEARNT if name != chain.NAME or features_.level == "frame")
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
            heard = [chain.heard(view) for _, view, _, _ in waiting]
            said["chain"] = np.concatenate(member.chain.says(heard, self.features.causal))
            x, smoothed = chain.beside(x, smoothed, said["chain"])
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


# What a stack run leaves in the cache: final predictions, metrics, and the learnt models as text.

METRICS = "metrics.json"
"""Written last: a run without it is not done."""
FINAL = "final.npy"
ALL = -1
"""The member that learnt from all folds, and that speaks of new clips."""
LINEAR = ("mean", "scale", "weights", "bias")


def digest(book: LogitBook) -> str:
    """Return the sha256 (hex) of all that a stack reads of a book."""
    state = hashlib.sha256(repr((book.fingerprint, book.classes, book.metric, book.heads, book.trials, book.group,
                                 book.split, book.notice, book.epochs_fixed, book.clips,
                                 sorted(book.declared.items()))).encode())
    for values in (book.fold, book.offsets, book.index, book.time_s, book.valid, book.label,
                   *(book.logits[head] for head in book.heads),
                   *(book.pooled[head] for head in book.heads if book.pooled)):
        state.update(np.ascontiguousarray(values).tobytes())
    return state.hexdigest()


def save(folder: Path, units: NDArray[np.int32], members: dict[int, Member], report: dict[str, Any]) -> None:
    """Put a finished run into `folder`; the metrics last."""
    for fold, member in members.items():
        atomic_io.write_bytes(folder / f"trees-{_name(fold)}.txt", member.trees.text().encode())
    if ALL in members:
        with atomic_io.replacing(folder / "linear-all.npz") as temporary, temporary.open("wb") as file:
            np.savez(file, **{name: getattr(members[ALL].linear, name) for name in LINEAR})
        atomic_io.write_json(folder / "member-all.json", members[ALL].json())
    with atomic_io.replacing(folder / FINAL) as temporary, temporary.open("wb") as file:
        np.save(file, units, allow_pickle=False)
    atomic_io.write_json(folder / METRICS, report)


def load(folder: Path, shape: tuple[int, int]) -> tuple[NDArray[np.int32], dict[str, Any]] | None:
    """Return the final predictions and the metrics of a finished run; None where there is none, or it is damaged."""
    if not (folder / METRICS).is_file() or not (folder / FINAL).is_file():
        return None
    try:
        units = np.load(folder / FINAL, allow_pickle=False)
    except (ValueError, EOFError, OSError):
        return None
    whole = units.shape == shape and units.dtype == np.int32
    return (units, atomic_io.read_json(folder / METRICS)) if whole else None


def load_member(folder: Path) -> Member:
    """Return the member that learnt from all folds.

    Raises
    ------
    StoreError
        There is none (too few groups), or its files are damaged.
    """
    try:
        said = atomic_io.read_json(folder / "member-all.json")
        trees = Trees(booster=lightgbm.Booster(model_file=str(folder / f"trees-{_name(ALL)}.txt")),
                      rounds=said["rounds"], watched=said["watched_groups"])
        with np.load(folder / "linear-all.npz", allow_pickle=False) as file:
            linear = Linear(**{name: file[name] for name in LINEAR})
        base = Base.of(said["base"])
        spoken = Chain.of(said["chain"]) if said["chain"] else None
    except (OSError, KeyError, ValueError, lightgbm.basic.LightGBMError) as error:
        raise StoreError(f"no stacker of all folds ({error})", where=folder, hint="run `fercache stack`") from error
    return Member(fold=ALL, groups=said["groups"], rows=said["rows"], base=base, trees=trees, linear=linear,
                  chain=spoken)


def _name(fold: int) -> str:
    return "all" if fold == ALL else f"without{fold}"


def final_column(report: dict[str, Any]) -> str:
    """Return the name of the column that a run's predictions are."""
    return str(report["final"]["column"])
