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
from fercache.oof import OofLogits
from fercache.runtime import atomic_io
from fercache.runtime.progress import ProgressBar, progress_bar
from fercache.stacking import chain, features, models, smoothed_mean
from fercache.stacking.chain import Chain, Clips
from fercache.stacking.features import ClipView, FeatureColumns, TrainingSample, draw_sample
from fercache.stacking.models import LinearModel, TreesModel
from fercache.stacking.smoothed_mean import SmoothedMean, softmax

Probs = NDArray[np.float32]

ROWS_A_CALL = 65_536
LEARNED = ("chain", "smoothed-mean", "logistic", "geometric-mean", "stack")
"""The columns that are learnt, in rising order of what they may do."""


@dataclass(frozen=True, kw_only=True)
class FoldModel:
    """What was learnt without one fold (-1: from all folds), and from how many groups and rows; of clips no chain."""

    fold: int
    groups: int
    rows: int
    base: SmoothedMean
    trees: TreesModel
    linear: LinearModel
    chain: Chain | None = None

    def json(self) -> dict[str, Any]:
        """Return what was chosen, as a JSON value."""
        return {"fold": self.fold, "groups": self.groups, "rows": self.rows, "base": self.base.json(),
                "chain": self.chain.json() if self.chain else None,
                "rounds": self.trees.rounds, "watched_groups": self.trees.val_groups}


@dataclass(frozen=True, kw_only=True)
class NestedResult:
    """The members, by fold, and what they say of every row: column -> probabilities, ``(R, C)`` float32.

    Both are empty where a fold leaves nothing to learn from.
    """

    members: dict[int, FoldModel]
    columns: dict[str, Probs]


def run_nested_cv(book: OofLogits, config: StackConfig) -> NestedResult:
    """Return what the stackers say of every row of the book."""
    k, columns = int(book.fold.max()) + 1, features.feature_columns(book, config.causal)
    with progress_bar("stack", 2 * len(book.trials) + k + 1, "steps") as bar:
        sample = draw_sample(book, columns, config.refit == "all", bar)
        if not all(len(sample.without(fold).rows) for fold in range(max(k, 1))):
            return NestedResult(members={}, columns={})
        clips = Clips.of(book, sample.rows, config.causal) if columns.level == "frame" else None
        members = {fold: _member(sample.without(fold), columns, fold, config, book, clips, bar)
                   for fold in [*range(k), -1]}
        return NestedResult(members=members, columns=_Inference(book, columns, members, config.threads, bar).columns())


def predict_new(book: OofLogits, member: FoldModel, causal: bool) -> NestedResult:
    """Return what a member says of every row of a book that no fold holds out."""
    with progress_bar("stack", len(book.trials), "trials") as bar:
        members = {member.fold: member}
        columns = features.feature_columns(book, causal)
        return NestedResult(members=members, columns=_Inference(book, columns, members, 0, bar).columns())


def _member(sample: TrainingSample, columns: FeatureColumns, fold: int, config: StackConfig, book: OofLogits,
            clips: Clips | None,
            bar: ProgressBar) -> FoldModel:
    """Return what is learnt from a sample, and from its clips: first the chain, then what listens to it too."""
    bar.note("without fold " + str(fold) if fold >= 0 else "all folds")
    fitted_chain = None
    if clips:
        trials = np.unique(book.per_row(np.arange(len(book.trials)))[sample.rows]).tolist()
        fitted_chain = clips.fit(trials)
        sample = clips.joined(sample, fitted_chain, trials)
    chosen = smoothed_mean.fit_smoothed_mean(sample, columns.widths, config.metric or book.metric)
    plan = models.TreesPlan(seed=config.seed, threads=config.threads, balance=chosen.balance)
    member = FoldModel(fold=fold, groups=len(np.unique(sample.group)), rows=len(sample.rows), base=chosen,
                    trees=models.fit_trees(sample, chosen.log_probs(sample.smoothed), plan),
                    linear=models.fit_linear(sample, chosen.balance), chain=fitted_chain)
    bar.advance()
    return member


class _Inference:
    """What the members say of each row of the book: the model of a fold of its trials, that of all folds of the rest.

    Attributes
    ----------
    names : the columns.
    start, correction, logistic, chain : (R, C) float32, filled in the gaps from the nearest frame with a face.
    """

    def __init__(self, oof: OofLogits, features_: FeatureColumns, members: dict[int, FoldModel], threads: int,
                 bar: ProgressBar) -> None:
        self.oof, self.features = oof, features_
        shape = (len(oof.label), len(oof.classes))
        self.start, self.correction, self.logistic, self.chain = (np.zeros(shape, np.float32) for _ in range(4))
        self.names = tuple(name for name in LEARNED if name != chain.NAME or features_.level == "frame")
        for fold, member in members.items():
            waiting: list[tuple[int, ClipView, Probs, Probs]] = []
            for trial in np.flatnonzero((oof.fold == fold) & (np.diff(oof.offsets) > 0)).tolist():
                view = ClipView.of(oof, trial, features_.causal)
                waiting.append((trial, view, features_.build(view), features_.smoothed(view)))
                if sum(len(x) for _, _, x, _ in waiting) >= ROWS_A_CALL:
                    self._fill(member, waiting, threads)
                    waiting = []
                bar.advance()
            self._fill(member, waiting, threads)

    def _fill(self, member: FoldModel, waiting: Sequence[tuple[int, ClipView, Probs, Probs]], threads: int) -> None:
        """Fill the rows of some trials; many at once, since a call of LightGBM has its price."""
        if not waiting:
            return
        x, smoothed = (np.concatenate([one[part] for one in waiting]) for part in (2, 3))
        outputs: dict[str, NDArray[Any]] = {}
        if member.chain:
            chain_inputs = [chain.chain_input(view) for _, view, _, _ in waiting]
            outputs["chain"] = np.concatenate(member.chain.predict(chain_inputs, self.features.causal))
            x, smoothed = chain.beside(x, smoothed, outputs["chain"])
        outputs |= {"start": member.base.log_probs(smoothed), "logistic": member.linear.logits(x),
                 "correction": member.trees.correction(x, threads)}
        ends = np.cumsum([len(one) for _, _, one, _ in waiting])
        for (trial, view, one, _), end in zip(waiting, ends.tolist(), strict=True):
            for name, values in outputs.items():
                mine = values[end - len(one):end].astype(np.float32)
                getattr(self, name)[self.oof.rows(trial)] = view.spread_to_gaps(mine)

    def columns(self) -> dict[str, Probs]:
        """Return the probabilities of the columns that are learnt."""
        logits = {"chain": self.chain, "smoothed-mean": self.start, "logistic": self.logistic,
                  "geometric-mean": _mean_log(self.start, self.logistic), "stack": self.start + self.correction}
        return {name: softmax(logits[name]).astype(np.float32) for name in self.names}


def _mean_log(one: Probs, other: Probs) -> Probs:
    """Return the mean of two columns' log-probabilities (a geometric mean of probabilities), ``(R, C)``."""
    return np.asarray((features.log_softmax(one) + features.log_softmax(other)) / 2, np.float32)


# What a stack run leaves in the cache: final predictions, metrics, and the learnt models as text.

METRICS = "metrics.json"
"""Written last: a run without it is not done."""
FINAL = "final.npy"
ALL = -1
"""The member that learnt from all folds, and that speaks of new clips."""
LINEAR = ("mean", "scale", "weights", "bias")


def digest(book: OofLogits) -> str:
    """Return the sha256 (hex) of all that a stack reads of a book."""
    state = hashlib.sha256(repr((book.fingerprint, book.classes, book.metric, book.heads, book.trials, book.group,
                                 book.split, book.notice, book.epochs_fixed, book.clips,
                                 sorted(book.declared.items()))).encode())
    for values in (book.fold, book.offsets, book.index, book.time_s, book.valid, book.label,
                   *(book.logits[head] for head in book.heads),
                   *(book.pooled[head] for head in book.heads if book.pooled)):
        state.update(np.ascontiguousarray(values).tobytes())
    return state.hexdigest()


def save_stack(folder: Path, units: NDArray[np.int32], members: dict[int, FoldModel], report: dict[str, Any]) -> None:
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


def load_stack(folder: Path, shape: tuple[int, int]) -> tuple[NDArray[np.int32], dict[str, Any]] | None:
    """Return the final predictions and the metrics of a finished run; None where there is none, or it is damaged."""
    if not (folder / METRICS).is_file() or not (folder / FINAL).is_file():
        return None
    try:
        units = np.load(folder / FINAL, allow_pickle=False)
    except (ValueError, EOFError, OSError):
        return None
    whole = units.shape == shape and units.dtype == np.int32
    return (units, atomic_io.read_json(folder / METRICS)) if whole else None


def load_fold_model(folder: Path) -> FoldModel:
    """Return the member that learnt from all folds.

    Raises
    ------
    StoreError
        There is none (too few groups), or its files are damaged.
    """
    try:
        outputs = atomic_io.read_json(folder / "member-all.json")
        trees = TreesModel(booster=lightgbm.Booster(model_file=str(folder / f"trees-{_name(ALL)}.txt")),
                      rounds=outputs["rounds"], val_groups=outputs["watched_groups"])
        with np.load(folder / "linear-all.npz", allow_pickle=False) as file:
            linear = LinearModel(**{name: file[name] for name in LINEAR})
        base = SmoothedMean.of(outputs["base"])
        fitted_chain = Chain.of(outputs["chain"]) if outputs["chain"] else None
    except (OSError, KeyError, ValueError, lightgbm.basic.LightGBMError) as error:
        raise StoreError(f"no stacker of all folds ({error})", where=folder, hint="run `fercache stack`") from error
    return FoldModel(fold=ALL, groups=outputs["groups"], rows=outputs["rows"], base=base, trees=trees, linear=linear,
                  chain=fitted_chain)


def _name(fold: int) -> str:
    return "all" if fold == ALL else f"without{fold}"


def final_column(report: dict[str, Any]) -> str:
    """Return the name of the column that a run's predictions are."""
    return str(report["final"]["column"])
