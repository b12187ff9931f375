"""A small probe on the cached vectors and the stacker itself, on labels that were shuffled: both must be at chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fercache import metrics
from fercache.config import AuditConfig, StackConfig
from fercache.diagnostics.finding_part import FAILED, FINE, SKIPPED, Finding
from fercache.oof import LogitBook
from fercache.stacking import stack
from fercache.store.embedding_store import EmbeddingStore

MOST_ROWS = 3000
EVERY_S = 1.0
RIDGE = 0.3
"""Of the mean variance of a feature times the number of rows."""
ABOVE_CHANCE = 0.03
"""Accuracy above what independent predictions of the same shares would have, from which it counts (if it is also three
standard errors of the shuffles)."""
STACK_SHUFFLES = 2
TELLS = 0.999
"""A single feature that ranks a class's rows so well (area under the curve) is the label in disguise."""
FEWEST_ROWS, FEWEST_GROUPS = 10, 3


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One labelled frame a second: vectors ``(n, D)``, labels, groups and folds ``(n,)``; `names` of the D features."""

    x: NDArray[np.float32]
    label: NDArray[np.int64]
    group: NDArray[np.int64]
    fold: NDArray[np.int64]
    classes: int
    names: tuple[tuple[str, int], ...]


def draw(book: LogitBook, store: EmbeddingStore) -> Sample:
    """Return labelled frames with a face, one a second at most, of the trials that a fold holds out."""
    rows, trial = seconds(book, (book.label >= 0) & (book.spread(book.fold) >= 0), store)
    keep = np.arange(0, len(rows), max(1, -(-len(rows) // MOST_ROWS)))
    rows, trial = rows[keep], trial[keep]
    wanted = book.provenance.get("settings", {}).get("taps") or list(store.taps)
    taps = [tap for tap in wanted if tap in store.taps] or list(store.taps)
    x = np.concatenate([vectors(book, store, tap, rows, trial) for tap in taps], 1) if len(rows) else np.zeros((0, 1))
    sizes = {tap: int(np.prod(store.taps[tap])) for tap in taps}
    _, group = np.unique(np.array(book.group, object).astype(str), return_inverse=True)
    return Sample(x=x.astype(np.float32), label=book.label[rows].astype(np.int64), group=group[trial],
                  fold=book.fold[trial].astype(np.int64), classes=len(book.classes),
                  names=tuple((tap, i) for tap in taps for i in range(sizes[tap])))


def seconds(book: LogitBook, wanted: NDArray[np.bool_],
            store: EmbeddingStore) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first wanted row with a face of every second of every trial in the store, and its trial."""
    rows = np.flatnonzero(wanted & book.valid)
    trial = book.spread(np.arange(len(book.trials)))[rows]
    inside = np.array([name in store for name in book.trials])[trial]
    rows, trial = rows[inside], trial[inside]
    _, first = np.unique(np.stack([trial, book.time_s[rows] // EVERY_S]), axis=1, return_index=True)
    first.sort()
    return rows[first], trial[first]


def vectors(book: LogitBook, store: EmbeddingStore, tap: str, rows: NDArray[np.int64],
            trial: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return a tap's values at rows of the book, ``(n, D)``; only those rows are read."""
    found = []
    for t in np.unique(trial).tolist():
        array = store[book.trials[t]][tap]
        places = rows[trial == t] - book.offsets[t]
        found.append(np.concatenate([array[int(p):int(p) + 1].reshape(1, -1) for p in places]))
    return np.concatenate(found).astype(np.float32)


def labels_as_features(sample: Sample) -> Finding:
    """Return which single features rank the rows of a class as only the label itself can."""
    lines = []
    for c in range(sample.classes):
        mine = sample.label == c
        if mine.sum() < FEWEST_ROWS or (~mine).sum() < FEWEST_ROWS or len(set(sample.group[mine])) < FEWEST_GROUPS:
            continue
        area = _areas(sample.x, mine)
        lines += [f"{sample.names[i][0]}[{sample.names[i][1]}] tells class {c} from all others by itself (area "
                  f"{max(area[i], 1 - area[i]):.4f})" for i in np.flatnonzero(np.abs(area - 0.5) >= TELLS - 0.5)[:10]]
    return Finding(check="labels as features", state=FAILED if lines else FINE, lines=tuple(lines),
                   said=f"{len(lines)} of {sample.x.shape[1]} cached features are a label in disguise ({len(sample.x)} "
                        "frames)")


def _areas(x: NDArray[np.float32], mine: NDArray[np.bool_], block: int = 512) -> NDArray[np.float64]:
    """Return the area under the curve of each feature for one class, ``(D,)``; equal values share their rank."""
    found = []
    a, b = int(mine.sum()), int((~mine).sum())
    for start in range(0, x.shape[1], block):
        part = x[:, start:start + block]
        low, high = np.sort(part[~mine], axis=0), part[mine]
        below = np.stack([np.searchsorted(low[:, i], high[:, i], "left") for i in range(part.shape[1])], 1)
        upto = np.stack([np.searchsorted(low[:, i], high[:, i], "right") for i in range(part.shape[1])], 1)
        found.append((below + upto).sum(0) / 2 / (a * b))
    return np.concatenate(found)


def shuffled(sample: Sample, config: AuditConfig) -> Finding:
    """Return whether a ridge classifier on the cached vectors knows anything of labels that were shuffled by group."""
    check = "shuffled labels, probe"
    folds = np.unique(sample.fold)
    if len(folds) < 2 or len(np.unique(sample.group)) < FEWEST_GROUPS:
        return Finding(check=check, state=SKIPPED, said="fewer than two folds of labelled frames in the store")
    speak = _ridge(sample)
    rng = np.random.default_rng(config.seed)
    real = _confusion(speak(sample.label), sample.label, sample.classes)
    dealt = [deal(sample.label, sample.group, rng) for _ in range(config.shuffles)]
    extra = [above_chance(_confusion(speak(label), label, sample.classes)) for label in dealt]
    said = (f"accuracy above chance {_mean(extra)} on {len(extra)} shuffles; on the real labels "
            f"{above_chance(real):+.3f} (macro F1 {float(metrics.macro_f1(real)):.3f})")
    return Finding(check=check, state=FAILED if leaks(extra) else FINE, said=said)


def stacker(book: LogitBook, config: AuditConfig) -> Finding:
    """Return whether the stacker knows anything of labels that were shuffled by group."""
    rng = np.random.default_rng(config.seed)
    extra: dict[str, list[float]] = {}
    rows = (book.spread(book.fold) >= 0) & (book.label >= 0)
    _, group = np.unique(book.spread(np.array(book.group)), return_inverse=True)
    for i in range(STACK_SHUFFLES):
        label = book.label.copy()
        label[rows] = deal(book.label[rows], group[rows], rng)
        said = stack.out_of_fold(replace(book, label=label), StackConfig(seed=i, threads=config.threads))
        for name, p in said.items():
            matrix = metrics.confusion(label[rows], p[rows].argmax(1), len(book.classes))
            extra.setdefault(name, []).append(above_chance(matrix))
    bad = [name for name, values in extra.items() if leaks(values)]
    return Finding(check="shuffled labels, stacker", state=FAILED if bad else FINE if extra else SKIPPED,
                   said="accuracy above chance: " + (", ".join(f"{n} {_mean(v)}" for n, v in extra.items()) or
                                                    "nothing could be learnt"),
                   lines=tuple(f"{name} knows labels that were dealt out at random" for name in bad))


def deal(label: NDArray[Any], group: NDArray[np.int64], rng: np.random.Generator) -> NDArray[Any]:
    """Return labels where each group has those of another group, repeated or cut to its length, ``(n,)``."""
    names = np.unique(group)
    out = label.copy()
    for name, other in zip(names, names[_derangement(len(names), rng)], strict=True):
        mine = group == name
        out[mine] = np.resize(np.roll(label[group == other], int(rng.integers(1 << 16))), int(mine.sum()))
    return out


def _derangement(n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return a random order in which nothing is at its own place."""
    order = rng.permutation(n)
    found = np.empty(n, np.int64)
    found[order] = np.roll(order, 1)
    return found


def above_chance(matrix: metrics.Counts) -> float:
    """Return the accuracy beyond that of independent predictions with the same shares."""
    n = max(int(matrix.sum()), 1)
    return float(metrics.accuracy(matrix)) - float((matrix.sum(0) / n) @ (matrix.sum(1) / n))


def leaks(extra: Sequence[float]) -> bool:
    """Return whether accuracies above chance, one a shuffle, are more than chance."""
    error = float(np.std(extra, ddof=1) / np.sqrt(len(extra))) if len(extra) > 1 else 0.0
    return float(np.mean(extra)) > max(ABOVE_CHANCE, 3 * error)


def _mean(values: Sequence[float]) -> str:
    return f"{np.mean(values):+.3f}"


def _confusion(said: NDArray[np.int64], label: NDArray[np.int64], classes: int) -> metrics.Counts:
    return metrics.confusion(label, said, classes)


def _ridge(sample: Sample) -> Any:
    """Return a function: labels -> what ridge regression on the other folds says of each row, ``(n,)``.

    Notes
    -----
    In its dual form (n numbers, not D), solved once for all shuffles.
    """
    x = (sample.x - sample.x.mean(0)) / (sample.x.std(0) + 1e-3)
    kernel = (x @ x.T).astype(float)
    strength = RIDGE * float(np.trace(kernel)) / len(x)
    maps = []
    for fold in np.unique(sample.fold):
        a, b = np.flatnonzero(sample.fold != fold), np.flatnonzero(sample.fold == fold)
        solved = np.linalg.solve(kernel[np.ix_(a, a)] + strength * np.eye(len(a)), kernel[np.ix_(a, b)])
        maps.append((a, b, solved.T))

    def speak(label: NDArray[np.int64]) -> NDArray[np.int64]:
        said = np.zeros(len(label), np.int64)
        for a, b, solved in maps:
            target = np.eye(sample.classes)[label[a]]
            said[b] = (solved @ (target - target.mean(0)) / np.maximum(target.mean(0), 1e-3) ** 0.5).argmax(1)
        return said

    return speak
