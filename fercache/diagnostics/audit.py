"""Leakage audit: check that no model was scored on groups or labels that it was trained on.

Each check returns one `Issue`, of severity "ok" too; its `details` list every leak, or what was examined.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fercache import metrics
from fercache.config import AuditConfig, StackConfig, TrainConfig
from fercache.data.base import Dataset, Issue, Severity, Trial
from fercache.errors import InputError
from fercache.oof import OofLogits
from fercache.runtime import atomic_io
from fercache.stacking import stack
from fercache.store.embedding_store import EmbeddingStore
from fercache.training import train


def _result(check: str, severity: Severity, message: str, details: Iterable[str] = ()) -> Issue:
    """Return the result of a check; "warning" asks a person to look, "error" is a leak."""
    return Issue(kind="audit", where=check, severity=severity, message=message, details=tuple(details))


# No group is on two sides of a split or fold.

def check_splits(oof: OofLogits) -> Issue:
    """Return which groups are in the training split and in another one."""
    sides: dict[str, set[str]] = {}
    for group, split in zip(oof.group, oof.split, strict=True):
        sides.setdefault(group, set()).add(split)
    crossed = sorted(g for g, found in sides.items() if "train" in found and len(found) > 1)
    return _result("groups and splits", "error" if crossed else "ok",
                   f"{len(crossed)} of {len(sides)} groups are in train and in another split",
                   (f"group {g!r} is in {', '.join(sorted(sides[g]))}" for g in crossed))


def check_folds(oof: OofLogits) -> Issue:
    """Return which groups and clips are in several folds, so that one fold trains on what another one scores."""
    lines = []
    for what, names in (("group", oof.group), ("clip", oof.clips)):
        folds_of: dict[str, set[int]] = {}
        for name, fold in zip(names, oof.fold.tolist(), strict=True):
            if fold >= 0:
                folds_of.setdefault(name, set()).add(fold)
        lines += [f"{what} {name!r} is in folds {', '.join(map(str, sorted(f)))}"
                  for name, f in sorted(folds_of.items()) if len(f) > 1]
    k = int(oof.fold.max(initial=-1)) + 1
    return _result("groups and folds", "error" if lines else "ok",
                   f"{len(lines)} groups or clips are in two of {k} folds", lines)


# Shuffled labels: a small probe on the cached vectors, and the stacker itself, must both score at chance.

MOST_ROWS = 3000
EVERY_S = 1.0
RIDGE = 0.3
"""Ridge strength as a fraction of the mean variance of a feature times the number of rows."""
ABOVE_CHANCE = 0.03
"""A leak needs this much accuracy above independent predictions with the same class frequencies, and also more than
three standard errors over the shuffles."""
STACK_SHUFFLES = 2
CHANCE_MARGIN = 0.999
"""A single feature with this area under the ROC curve for a class is a copy of the label."""
FEWEST_ROWS, FEWEST_GROUPS = 10, 3


@dataclass(frozen=True, kw_only=True)
class ProbeSample:
    """One labelled frame per second: vectors ``(n, D)``, labels, groups, folds ``(n,)``, D feature `names`."""

    x: NDArray[np.float32]
    label: NDArray[np.int64]
    group: NDArray[np.int64]
    fold: NDArray[np.int64]
    classes: int
    names: tuple[tuple[str, int], ...]


def draw_probe(oof: OofLogits, store: EmbeddingStore) -> ProbeSample:
    """Return labelled frames with a face, at most one per second, of the trials in the folds."""
    rows, trial = seconds(oof, (oof.label >= 0) & (oof.per_row(oof.fold) >= 0), store)
    keep = np.arange(0, len(rows), max(1, -(-len(rows) // MOST_ROWS)))
    rows, trial = rows[keep], trial[keep]
    wanted = oof.provenance.get("settings", {}).get("taps") or list(store.taps)
    taps = [tap for tap in wanted if tap in store.taps] or list(store.taps)
    x = np.concatenate([read_vectors(oof, store, tap, rows, trial) for tap in taps],
                       1) if len(rows) else np.zeros((0, 1))
    sizes = {tap: int(np.prod(store.taps[tap])) for tap in taps}
    _, group = np.unique(np.array(oof.group, object).astype(str), return_inverse=True)
    return ProbeSample(x=x.astype(np.float32), label=oof.label[rows].astype(np.int64), group=group[trial],
                  fold=oof.fold[trial].astype(np.int64), classes=len(oof.classes),
                  names=tuple((tap, i) for tap in taps for i in range(sizes[tap])))


def seconds(oof: OofLogits, wanted: NDArray[np.bool_],
            store: EmbeddingStore) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first wanted row with a face in each second of each stored trial, and its trial."""
    rows = np.flatnonzero(wanted & oof.valid)
    trial = oof.per_row(np.arange(len(oof.trials)))[rows]
    inside = np.array([name in store for name in oof.trials])[trial]
    rows, trial = rows[inside], trial[inside]
    _, first = np.unique(np.stack([trial, oof.time_s[rows] // EVERY_S]), axis=1, return_index=True)
    first.sort()
    return rows[first], trial[first]


def read_vectors(oof: OofLogits, store: EmbeddingStore, tap: str, rows: NDArray[np.int64],
            trial: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return a tap's values at these rows, ``(n, D)``; reads only those rows."""
    found = []
    for t in np.unique(trial).tolist():
        array = store[oof.trials[t]][tap]
        places = rows[trial == t] - oof.offsets[t]
        found.append(np.concatenate([array[int(p):int(p) + 1].reshape(1, -1) for p in places]))
    return np.concatenate(found).astype(np.float32)


def labels_as_features(sample: ProbeSample) -> Issue:
    """Return which single features separate a class so well that they must be a copy of the label."""
    lines = []
    for c in range(sample.classes):
        positive = sample.label == c
        # With so few rows or groups, a feature can rank a class perfectly by accident.
        if (min(positive.sum(), (~positive).sum()) < FEWEST_ROWS
                or len(set(sample.group[positive])) < FEWEST_GROUPS):
            continue
        area = _areas(sample.x, positive)
        lines += [f"{sample.names[i][0]}[{sample.names[i][1]}] alone separates class {c} from all others (area "
                  f"{max(area[i], 1 - area[i]):.4f})"
                  for i in np.flatnonzero(np.abs(area - 0.5) >= CHANCE_MARGIN - 0.5)[:10]]
    return _result("labels as features", "error" if lines else "ok",
                   f"{len(lines)} of {sample.x.shape[1]} cached features are copies of a label "
                   f"({len(sample.x)} frames)", lines)


def _areas(x: NDArray[np.float32], positive: NDArray[np.bool_], block: int = 512) -> NDArray[np.float64]:
    """Return the area under the ROC curve of each feature for one class, ``(D,)``; ties count half."""
    found = []
    a, b = int(positive.sum()), int((~positive).sum())
    for start in range(0, x.shape[1], block):
        part = x[:, start:start + block]
        low, high = np.sort(part[~positive], axis=0), part[positive]
        below = np.stack([np.searchsorted(low[:, i], high[:, i], "left") for i in range(part.shape[1])], 1)
        upto = np.stack([np.searchsorted(low[:, i], high[:, i], "right") for i in range(part.shape[1])], 1)
        found.append((below + upto).sum(0) / 2 / (a * b))
    return np.concatenate(found)


def probe_shuffled_labels(sample: ProbeSample, config: AuditConfig) -> Issue:
    """Return whether a ridge classifier on the cached vectors predicts labels that were shuffled by group."""
    check = "shuffled labels, probe"
    folds = np.unique(sample.fold)
    if len(folds) < 2 or len(np.unique(sample.group)) < FEWEST_GROUPS:
        return _result(check, "skipped", "fewer than two folds of labelled frames in the store")
    predict_labels = _ridge(sample)
    rng = np.random.default_rng(config.seed)
    real = metrics.confusion(sample.label, predict_labels(sample.label), sample.classes)
    shuffled = [shuffle_labels(sample.label, sample.group, rng) for _ in range(config.shuffles)]
    extra = [above_chance(metrics.confusion(label, predict_labels(label), sample.classes)) for label in shuffled]
    predicted = (f"accuracy above chance {_mean(extra)} on {len(extra)} shuffles; on the real labels "
            f"{above_chance(real):+.3f} (macro F1 {float(metrics.macro_f1(real)):.3f})")
    return _result(check, "error" if probe_leaks(extra) else "ok", predicted)


def check_stacker(oof: OofLogits, config: AuditConfig) -> Issue:
    """Return whether the stacker predicts labels that were shuffled by group."""
    rng = np.random.default_rng(config.seed)
    extra: dict[str, list[float]] = {}
    rows = (oof.per_row(oof.fold) >= 0) & (oof.label >= 0)
    _, group = np.unique(oof.per_row(np.array(oof.group)), return_inverse=True)
    for i in range(STACK_SHUFFLES):
        label = oof.label.copy()
        label[rows] = shuffle_labels(oof.label[rows], group[rows], rng)
        predicted = stack.oof_columns(replace(oof, label=label), StackConfig(seed=i, threads=config.threads))
        for name, p in predicted.items():
            matrix = metrics.confusion(label[rows], p[rows].argmax(1), len(oof.classes))
            extra.setdefault(name, []).append(above_chance(matrix))
    bad = [name for name, values in extra.items() if probe_leaks(values)]
    return _result("shuffled labels, stacker", "error" if bad else "ok" if extra else "skipped",
                   "accuracy above chance: " + (", ".join(f"{n} {_mean(v)}" for n, v in extra.items()) or
                                                "the stacker could not be trained"),
                   (f"{name} predicts labels that were shuffled at random" for name in bad))


def shuffle_labels(label: NDArray[Any], group: NDArray[np.int64], rng: np.random.Generator) -> NDArray[Any]:
    """Return labels in which each group has those of another group, repeated or cut to length, ``(n,)``."""
    names = np.unique(group)
    out = label.copy()
    for name, other in zip(names, names[_derangement(len(names), rng)], strict=True):
        positive = group == name
        out[positive] = np.resize(np.roll(label[group == other], int(rng.integers(1 << 16))), int(positive.sum()))
    return out


def _derangement(n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return a random permutation without fixed points."""
    order = rng.permutation(n)
    found = np.empty(n, np.int64)
    found[order] = np.roll(order, 1)
    return found


def above_chance(matrix: metrics.Counts) -> float:
    """Return the accuracy minus that of independent predictions with the same class frequencies."""
    n = max(int(matrix.sum()), 1)
    return float(metrics.accuracy(matrix)) - float((matrix.sum(0) / n) @ (matrix.sum(1) / n))


def probe_leaks(extra: Sequence[float]) -> bool:
    """Return whether the accuracies above chance, one per shuffle, are significantly above 0."""
    error = float(np.std(extra, ddof=1) / np.sqrt(len(extra))) if len(extra) > 1 else 0.0
    return float(np.mean(extra)) > max(ABOVE_CHANCE, 3 * error)


def _mean(values: Sequence[float]) -> str:
    return f"{np.mean(values):+.3f}"


def _ridge(sample: ProbeSample) -> Any:
    """Return a function: labels -> ridge predictions for each row from the other folds, ``(n,)``.

    Notes
    -----
    Uses the dual form (an n x n system instead of D x D), solved once for all shuffles.
    """
    x = (sample.x - sample.x.mean(0)) / (sample.x.std(0) + 1e-3)
    kernel = (x @ x.T).astype(float)
    strength = RIDGE * float(np.trace(kernel)) / len(x)
    maps = []
    for fold in np.unique(sample.fold):
        a, b = np.flatnonzero(sample.fold != fold), np.flatnonzero(sample.fold == fold)
        solved = np.linalg.solve(kernel[np.ix_(a, a)] + strength * np.eye(len(a)), kernel[np.ix_(a, b)])
        maps.append((a, b, solved.T))

    def predict_labels(label: NDArray[np.int64]) -> NDArray[np.int64]:
        predicted = np.zeros(len(label), np.int64)
        for a, b, solved in maps:
            target = np.eye(sample.classes)[label[a]]
            predicted[b] = (solved @ (target - target.mean(0)) / np.maximum(target.mean(0), 1e-3) ** 0.5).argmax(1)
        return predicted

    return predict_labels


# Near-duplicate frames across groups: the same footage under two names leaks across folds.

BLOCK = 2048
MOST_LINES = 1000
FIRST = ("embedding", "block8")
"""Preferred taps for the comparison; if the store has none of them, its first tap is used."""


def check_copies(oof: OofLogits, store: EmbeddingStore, similar: float) -> Issue:
    """Return pairs of frames of two groups with nearly parallel cached vectors; compares one frame per second.

    Parameters
    ----------
    similar : smallest cosine of a listed pair.
    """
    check = "near-duplicate frames"
    tap = next((name for name in FIRST if name in store.taps), next(iter(store.taps), ""))
    rows, trial = seconds(oof, np.ones(len(oof.label), bool), store)
    if len(rows) < 2 or not tap:
        return _result(check, "skipped", "fewer than two frames with a face in the store")
    x = read_vectors(oof, store, tap, rows, trial)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)
    _, group = np.unique(np.array(oof.group, object).astype(str), return_inverse=True)
    pairs = _pairs(x, group[trial], similar)
    lines = [f"{_frame(oof, rows[i], trial[i])} and {_frame(oof, rows[j], trial[j])}: cosine {cosine:.4f}"
             for cosine, i, j in pairs[:MOST_LINES]]
    more = f", {MOST_LINES} listed" if len(pairs) > MOST_LINES else ""
    return _result(check, "warning" if pairs else "ok",
                   f"{len(pairs)} pairs of two groups at a cosine of {similar} or more{more}, among "
                   f"{len(rows)} frames ({tap}, one per second)", lines)


def _frame(oof: OofLogits, row: np.int64, trial: np.int64) -> str:
    return f"{oof.trials[int(trial)]} frame {int(oof.index[int(row)])}"


def _pairs(x: NDArray[np.float32], group: NDArray[np.int64], similar: float) -> list[tuple[float, int, int]]:
    """Return (cosine, i, j) of every similar pair from two groups, in descending order."""
    found: list[tuple[float, int, int]] = []
    for a in range(0, len(x), BLOCK):  # in blocks: the full matrix of cosines would not fit in memory
        for b in range(a, len(x), BLOCK):
            cosine = x[a:a + BLOCK] @ x[b:b + BLOCK].T
            # Frames of one group are in one fold: similar ones cannot leak.
            cosine[group[a:a + BLOCK, None] == group[None, b:b + BLOCK]] = -1
            for i, j in np.argwhere(cosine >= similar).tolist():
                if a + i < b + j:
                    found.append((float(cosine[i, j]), a + i, b + j))
    return sorted(found, key=lambda pair: (-pair[0], pair[1], pair[2]))


# Retrain the real heads on shuffled labels: out of fold they must score at chance.

SHUFFLE_DRAWS = 1000


def check_retrained(dataset: Dataset, store: EmbeddingStore, training: TrainConfig, scratch: Path,
                    seed: int, weights: Path | None = None) -> Issue:
    """Return whether heads that are trained on labels shuffled by group predict them out of fold."""
    groups = len({trial.group for trial in dataset.trials if trial.split == "train" and trial.labelled})
    if groups < metrics.MIN_GROUPS_FOR_INTERVAL:
        return _result("shuffled labels, heads", "skipped",
                       f"{groups} groups with labels: with fewer than {metrics.MIN_GROUPS_FOR_INTERVAL} "
                       "there is no interval to compare with chance")
    made = train.train_heads(shuffled_dataset(dataset, seed), store, replace(training, refit="none"), scratch,
                             weights=weights)
    oof = OofLogits.load(made.logits_file)
    rows = (oof.per_row(oof.fold) >= 0) & (oof.label >= 0)
    _, group = np.unique(oof.per_row(np.array(oof.group))[rows], return_inverse=True)
    lines, bad = [], []
    for head in oof.heads:
        counts = metrics.confusions(oof.label[rows], oof.logits[head][rows].argmax(1), group, len(oof.classes),
                                    int(group.max()) + 1)
        drawn = metrics.Resampler(len(counts), SHUFFLE_DRAWS, seed).draw(counts)
        low = float(np.quantile([above_chance(m) for m in drawn], 0.025))
        text = f"{head}: accuracy above chance {above_chance(counts.sum(0)):+.3f}, at least {low:+.3f} (95 %)"
        bad += [text] if low > 0 and above_chance(counts.sum(0)) > ABOVE_CHANCE else []
        lines.append(text)
    return _result("shuffled labels, heads", "error" if bad else "ok",
                   f"{len(bad)} of {len(oof.heads)} heads predict labels that were shuffled by group "
                   f"({made.trained} trained)", bad or lines)


def shuffled_dataset(dataset: Dataset, seed: int) -> Dataset:
    """Return the data set with the training labels of each group given to another group."""
    members: dict[str, list[Trial]] = {}
    for trial in dataset.trials:
        if trial.split == "train" and trial.labelled:
            members.setdefault(trial.group, []).append(trial)
    names = sorted(members)
    order = np.random.default_rng(seed).permutation(len(names))
    giver = {names[int(a)]: names[int(b)] for a, b in zip(order, np.roll(order, 1), strict=True)}
    new = {trial.name: _with_labels(trial, members[giver[group]][i % len(members[giver[group]])])
           for group, trials in members.items() for i, trial in enumerate(trials)}
    return replace(dataset, name=f"{dataset.name}-shuffled", trials=tuple(new.get(t.name, t) for t in dataset.trials))


def _with_labels(trial: Trial, other: Trial) -> Trial:
    """Return the trial with another one's labels, repeated or cut to its length."""
    if trial.labels is None or other.labels is None:
        return replace(trial, clip_label=other.clip_label if other.labels is None else int(other.labels.max()))
    return replace(trial, labels=np.resize(other.labels, len(trial.labels)))


# Provenance of the out-of-fold rows: the recorded training groups, and signs of memorization in the rows.

MARGIN = 0.1
"""Accuracy on training rows may exceed that on other rows by this much, since splits differ in difficulty."""
PERFECT = 0.99
MEMORY_DRAWS = 1000


def check_provenance(oof: OofLogits) -> Issue:
    """Return, for each head and fold, whether the predicting model was trained on a group of the fold."""
    bad: list[str] = []
    fine: list[str] = []
    k = int(oof.fold.max(initial=-1)) + 1
    for head in oof.heads:
        declared = oof.declared.get(head)
        if declared:
            (bad if head in oof.leaky_heads else fine).append(f"{head}: declared {declared}")
            continue
        for fold in range(k):
            wrong, right = _check_head_fold(oof, head, fold)
            bad += wrong
            fine += right
    own = sum(head not in oof.declared for head in oof.heads)
    predicted = f"{own * k} recorded models, {len(oof.heads) - own} declared sources"
    return _result("who predicted what", "error" if bad else "ok", predicted, bad or fine)


def _check_head_fold(oof: OofLogits, head: str, fold: int) -> tuple[list[str], list[str]]:
    """Return the problems in the records of one head and fold, and the correct records."""
    records = [r for r in _records(oof) if r.get("head") == head and r.get("fold") == fold]
    if not records:
        return [f"{head}, fold {fold}: no record of the model that predicted it"], []
    fold_groups = {g for g, f in zip(oof.group, oof.fold.tolist(), strict=True) if f == fold}
    found, fine = [], []
    for record in records:
        if "trained_on" not in record:
            found.append(f"{head}, fold {fold}: the record lacks the training groups of the model")
            continue
        trained_on = {*record["trained_on"], *record.get("watched", [])}
        seen = fold_groups & trained_on
        if not seen:
            fine.append(f"{head}, fold {fold}: predicts {len(fold_groups)} groups, "
                        f"trained on {len(trained_on)} others and none of them")
        else:
            found.append(f"{head}, fold {fold}: its model saw {len(seen)} of the {len(fold_groups)} groups "
                         "that it predicts: "
                         f"{', '.join(sorted(seen)[:5])}")
    return found, fine


def _records(oof: OofLogits) -> list[dict[str, Any]]:
    records = oof.provenance.get("heads", [])
    return [r for r in records if isinstance(r, dict)] if isinstance(records, list) else []


def check_memorized(oof: OofLogits, seed: int) -> Issue:
    """Return which heads are so much more accurate on training rows than elsewhere that they memorized them."""
    check = "memory of training rows"
    held = (oof.per_row(oof.fold) >= 0) & (oof.label >= 0)
    other = (oof.per_row(oof.fold) < 0) & (oof.label >= 0)
    trial = oof.per_row(np.arange(len(oof.trials)))
    few = min(len(set(np.array(oof.group)[np.unique(trial[rows])])) for rows in (held, other))
    if few < metrics.MIN_GROUPS_FOR_INTERVAL:
        return _result(check, "skipped", f"{few} labelled groups outside (or inside) the folds; "
                       f"{metrics.MIN_GROUPS_FOR_INTERVAL} are needed on both sides to compare")
    lines, bad = [], []
    for head in oof.heads:
        inside, outside = (_by_group(oof, head, rows) for rows in (held, other))
        gap = _low(inside, outside, seed)
        text = (f"{head}: right on {float(metrics.accuracy(inside.sum(0))):.3f} of the training rows, "
                f"{float(metrics.accuracy(outside.sum(0))):.3f} of the others")
        bad += [text + f"; the gap is at least {gap:.3f} (95 %)"] if gap > MARGIN else []
        lines.append(text)
    return _result(check, "error" if bad else "ok",
                   f"{len(bad)} of {len(oof.heads)} heads are more accurate on training rows than a model "
                   "that never saw them", bad or lines)


def _low(inside: metrics.Counts, outside: metrics.Counts, seed: int) -> float:
    """Return the lower end of the 95 % bootstrap interval (over groups) of the difference in accuracy."""
    drawn = [metrics.accuracy(metrics.Resampler(len(m), MEMORY_DRAWS, seed + i).draw(m))
             for i, m in enumerate((inside, outside))]
    return float(np.quantile(drawn[0] - drawn[1], 0.025))


def truth(oof: OofLogits) -> Issue:
    """Return which heads are so accurate out of fold that they must be computed from the labels."""
    rows = (oof.per_row(oof.fold) >= 0) & (oof.label >= 0)
    lines = []
    for head in oof.heads:
        matrix = _by_group(oof, head, rows).sum(0)
        right = float(metrics.accuracy(matrix))
        if right >= PERFECT and (matrix.sum(1) > 0).sum() > 1:
            lines.append(f"{head}: right on {right:.4f} of the out-of-fold rows: it is computed from the labels")
    return _result("heads made of labels", "error" if lines else "ok",
                   f"{len(lines)} of {len(oof.heads)} heads are nearly always right out of fold", lines)


def _by_group(oof: OofLogits, head: str, rows: NDArray[np.bool_]) -> metrics.Counts:
    """Return a confusion matrix for each group that has one of the rows, ``(G, C, C)``."""
    number = oof.per_row(np.unique(np.array(oof.group), return_inverse=True)[1])[rows]
    _, group = np.unique(number, return_inverse=True)
    predicted = oof.logits[head][rows].argmax(1)
    return metrics.confusions(oof.label[rows], predicted, group, len(oof.classes), int(group.max(initial=-1)) + 1)


@dataclass(frozen=True, kw_only=True)
class AuditSubject:
    """What is audited: logits, and if available the store and the data set behind them.

    Attributes
    ----------
    training : how `--full` trains the heads again.
    scratch : a folder that `--full` may fill; weights : the folder of CNN weights, which it has not.
    """

    oof: OofLogits
    store: EmbeddingStore | None = None
    dataset: Dataset | None = None
    training: TrainConfig = field(default_factory=TrainConfig)
    scratch: Path | None = None
    weights: Path | None = None


def run_audit(subject: AuditSubject, config: AuditConfig) -> Iterator[Issue]:
    """Yield the finding of each check as soon as it ends.

    Raises
    ------
    InputError
        `--full` needs a data set, and there is none.
    """
    yield check_splits(subject.oof)
    yield check_folds(subject.oof)
    yield check_provenance(subject.oof)
    yield check_memorized(subject.oof, config.seed)
    yield truth(subject.oof)
    yield check_stacker(subject.oof, config)
    if subject.store is None:
        return
    sample = draw_probe(subject.oof, subject.store)
    yield labels_as_features(sample)
    yield probe_shuffled_labels(sample, config)
    yield check_copies(subject.oof, subject.store, config.similar)
    if config.full:
        if subject.dataset is None or subject.scratch is None:
            raise InputError("there is no data set to train heads on", where="audit --full",
                             hint="name it with --dataset and --root or --clips")
        yield check_retrained(subject.dataset, subject.store, subject.training, subject.scratch, config.seed,
                              subject.weights)


def any_failed(findings: list[Issue]) -> bool:
    """Return whether a check found a leak."""
    return any(finding.is_error for finding in findings)


def write_audit(findings: list[Issue], path: Path) -> None:
    """Write all findings with all their lines to `path` as JSON."""
    atomic_io.write_json(path, {"leaks": any_failed(findings), "checks": [asdict(finding) for finding in findings]})
