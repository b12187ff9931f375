"""Leakage audit: check that no model was scored on groups or labels that it was trained on.

Each check returns one `Issue`, of severity "ok" too; its `details` list every leak, or what was examined.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.linear_model import Ridge

from fercache import metrics
from fercache.config import AuditConfig, StackConfig, TrainConfig
from fercache.data import photos
from fercache.data.base import Dataset, Issue, Severity, Trial, in_several
from fercache.errors import InputError
from fercache.oof import OofLogits, StarterInit
from fercache.runtime import atomic_io
from fercache.stacking import candidates, nested_cv
from fercache.stacking.features import one_a_step
from fercache.store.embedding_store import EmbeddingStore
from fercache.training import train


def _result(check: str, severity: Severity, message: str, details: Iterable[str] = ()) -> Issue:
    """Return the result of a check; "warning" asks a person to look, "error" is a leak."""
    return Issue(kind="audit", where=check, severity=severity, message=message, details=tuple(details))


def check_splits(oof: OofLogits) -> Issue:
    """Return which groups are in the training split and in another one."""
    crossed = [f"group {group!r} is in {', '.join(splits)}" for group, splits
               in in_several(zip(oof.group, oof.split, strict=True)).items() if "train" in splits]
    return _result("groups and splits", "error" if crossed else "ok",
                   f"{len(crossed)} of {len(set(oof.group))} groups are in train and in another split", crossed)


def check_folds(oof: OofLogits) -> Issue:
    """Return which groups and clips are in several folds, so that one fold trains on what another one scores."""
    leaks = []
    for unit, names in (("group", oof.group), ("clip", oof.clips)):
        inside = ((name, fold) for name, fold in zip(names, oof.fold.tolist(), strict=True) if fold >= 0)
        leaks += [f"{unit} {name!r} is in folds {', '.join(folds)}" for name, folds in in_several(inside).items()]
    return _result("groups and folds", "error" if leaks else "ok",
                   f"{len(leaks)} groups or clips are in two of {int(oof.fold.max(initial=-1)) + 1} folds", leaks)


# Shuffled labels: a small probe on the cached vectors, and the stacker itself, must both score at chance.

# Rows of the probe: its linear system grows with their square.
MAX_ROWS = 3000
RIDGE = 0.3  # ridge strength as a fraction of the mean variance of a feature times the number of features
# A leak needs this much accuracy above independent predictions with the same class frequencies, and also more than
# three standard errors over the shuffles.
ABOVE_CHANCE = 0.03
STACK_SHUFFLES = 2
ABOVE_HEADS = 0.1  # a candidate that contradicts its heads may have the best score by this much
MOST_P = 0.05  # the choice of a candidate is stricter, `candidates.MOST_P`: luck there is no fault of the data
COPY_AREA = 0.999  # a single feature with this area under the ROC curve for a class is a copy of the label
MIN_ROWS, MIN_GROUPS = 10, 3
# Features that are ranked at once: ranks take eight bytes a value, and taps have up to tens of thousands of values.
COLUMNS = 512


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
    rows, trial = one_row_per_second(oof, oof.scored, store)
    every = max(1, -(-len(rows) // MAX_ROWS))
    rows, trial = rows[::every], trial[::every]
    wanted = oof.provenance.setting("taps") or list(store.taps)
    taps = [tap for tap in wanted if tap in store.taps] or list(store.taps)
    x = np.concatenate([read_vectors(oof, store, tap, rows, trial) for tap in taps],
                       1) if len(rows) else np.zeros((0, 1))
    return ProbeSample(x=x.astype(np.float32), label=oof.label[rows].astype(np.int64),
                       group=oof.group_number[trial],
                       fold=oof.fold[trial].astype(np.int64), classes=len(oof.classes),
                       names=tuple((tap, i) for tap in taps for i in range(int(np.prod(store.taps[tap])))))


def one_row_per_second(oof: OofLogits, wanted: NDArray[np.bool_],
                       store: EmbeddingStore) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first wanted row with a face in each second of each stored trial, and its trial."""
    stored = oof.per_row([name in store for name in oof.trials])
    rows = np.flatnonzero(one_a_step(oof, wanted & oof.valid & stored, 1.0))
    return rows, oof.per_row(np.arange(len(oof.trials)))[rows]


def read_vectors(oof: OofLogits, store: EmbeddingStore, tap: str, rows: NDArray[np.int64],
                 trial: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return a tap's values at these rows, ``(n, D)``; reads only those rows."""
    vectors = []
    for t in np.unique(trial).tolist():
        array = store[oof.trials[t]][tap]
        for row in (rows[trial == t] - oof.offsets[t]).tolist():
            vectors.append(array[row:row + 1].reshape(1, -1))
    return np.concatenate(vectors).astype(np.float32)


def check_features(sample: ProbeSample) -> Issue:
    """Return which single features separate a class so well that they must be a copy of the label."""
    is_class = np.eye(sample.classes, dtype=bool)[sample.label]  # (n, C)
    positives = is_class.sum(0)
    negatives = len(sample.x) - positives
    # Area under the ROC curve, (C, D), from the Mann-Whitney statistic: one ranking of a feature serves all classes.
    rank_sums = np.concatenate([is_class.T @ rankdata(sample.x[:, start:start + COLUMNS], axis=0)
                                for start in range(0, sample.x.shape[1], COLUMNS)], axis=1)
    pairs = np.maximum(positives * negatives, 1)[:, None]
    area = (rank_sums - (positives * (positives + 1) / 2)[:, None]) / pairs
    leaks = []
    for c in range(sample.classes):
        # With so few rows or groups, a feature can rank a class perfectly by accident.
        if (min(positives[c], negatives[c]) < MIN_ROWS or len(np.unique(sample.group[is_class[:, c]])) < MIN_GROUPS):
            continue
        leaks += [f"{sample.names[i][0]}[{sample.names[i][1]}] alone separates class {c} from all others (area "
                  f"{max(area[c, i], 1 - area[c, i]):.4f})"
                  for i in np.flatnonzero(np.abs(area[c] - 0.5) >= COPY_AREA - 0.5)[:10]]
    return _result("labels as features", "error" if leaks else "ok",
                   f"{len(leaks)} of {sample.x.shape[1]} cached features are copies of a label "
                   f"({len(sample.x)} frames)", leaks)


def check_probe(sample: ProbeSample, config: AuditConfig) -> Issue:
    """Return whether a ridge classifier on the cached vectors predicts labels that were shuffled by group."""
    check = "shuffled labels, probe"
    if len(np.unique(sample.fold)) < 2 or len(np.unique(sample.group)) < MIN_GROUPS:
        return _result(check, "skipped", "fewer than two folds of labelled frames in the store")
    rng = np.random.default_rng(config.seed)
    labels = [sample.label, *(shuffle_labels(sample.label, sample.group, rng) for _ in range(config.shuffles))]
    real, *shuffled = (metrics.confusion(label, predicted, sample.classes)
                       for label, predicted in zip(labels, _predict_with_ridge(sample, labels), strict=True))
    extra = [float(above_chance(matrix)) for matrix in shuffled]
    return _result(check, "error" if is_above_chance(extra) else "ok",
                   f"accuracy above chance {np.mean(extra):+.3f} on {len(extra)} shuffles; on the real labels "
                   f"{above_chance(real):+.3f} (macro F1 {float(metrics.macro_f1(real)):.3f})")


def _predict_with_ridge(sample: ProbeSample, labels: Sequence[NDArray[np.int64]]) -> Iterator[NDArray[np.int64]]:
    """Yield the predictions of a ridge that is fitted on the other folds, ``(n,)``, for each of the `labels`."""
    x = (sample.x - sample.x.mean(0)) / (sample.x.std(0) + 1e-3)
    strength = RIDGE * float(np.square(x).sum()) / len(x)
    # All labelings are columns of one target, so that the system of a fold is factorized once for all of them.
    target = np.concatenate([np.eye(sample.classes, dtype=np.float32)[label] for label in labels], axis=1)
    scores = np.empty_like(target)
    for fold in np.unique(sample.fold):
        train = sample.fold != fold
        frequency = target[train].mean(0)
        ridge = Ridge(alpha=strength, fit_intercept=False, solver="cholesky")
        ridge.fit(x[train], target[train] - frequency)
        # Rare classes have small scores; the square root of the frequency makes them comparable.
        scores[~train] = ridge.predict(x[~train]) / np.sqrt(np.maximum(frequency, 1e-3))
    yield from scores.reshape(len(x), len(labels), sample.classes).argmax(2).T


def check_stacker(oof: OofLogits, config: AuditConfig) -> Issue:
    """Return whether the stacker predicts labels that were shuffled by group."""
    rng = np.random.default_rng(config.seed)
    extra: dict[str, list[float]] = {}
    rows, group = oof.scored, oof.per_row(oof.group_number)
    for seed in range(STACK_SHUFFLES):
        label = oof.label.copy()
        label[rows] = shuffle_labels(oof.label[rows], group[rows], rng)
        columns = nested_cv.run_nested_cv(
            replace(oof, label=label), StackConfig(seed=seed, threads=config.threads)).columns
        for name, probs in columns.items():
            matrix = metrics.confusion(label[rows], probs[rows].argmax(1), len(oof.classes))
            extra.setdefault(name, []).append(float(above_chance(matrix)))
    leaks = [name for name, values in extra.items() if is_above_chance(values)]
    means = ", ".join(f"{name} {np.mean(values):+.3f}" for name, values in extra.items())
    return _result("shuffled labels, stacker", "error" if leaks else "ok" if extra else "skipped",
                   f"accuracy above chance: {means or 'the stacker could not be trained'}",
                   (f"{name} predicts labels that were shuffled at random" for name in leaks))


def check_contradictions(oof: OofLogits, config: AuditConfig) -> Issue:
    """Return which learned candidates contradict their heads, or the models that predict new clips."""
    nested = nested_cv.run_nested_cv(oof, StackConfig(seed=config.seed, threads=config.threads))
    columns = candidates.gather_candidates(oof, nested)
    rejected = candidates.find_contradictions(oof, nested, columns, oof.metric)
    scores = candidates.score_out_of_fold(oof, columns, oof.metric)
    best = max(scores, key=lambda name: scores[name])
    # A candidate that is never final does no harm, unless the table shows it far above the heads. Where heads are at
    # chance, neither above nor below, that is luck.
    far = best in rejected and scores[best] > max(scores[head] for head in oof.heads) + ABOVE_HEADS
    p = candidates.chance_p_value(oof)
    far = far and 2 * min(p, 1 - p + 1 / (candidates.PERMUTATIONS + 1)) < MOST_P
    return _result("candidates against heads", "error" if far else "warning" if rejected else "ok",
                   f"{len(rejected)} candidates of the stacker contradict their heads or the models of new clips; the "
                   f"best score is that of {best}", (f"{name}: {why}" for name, why in rejected.items()))


def shuffle_labels(label: NDArray[Any], group: NDArray[np.int64], rng: np.random.Generator) -> NDArray[Any]:
    """Return labels in which each group has those of another group, repeated or cut to length, ``(n,)``."""
    order = rng.permutation(np.unique(group))
    shuffled = label.copy()
    for name, other in zip(order, np.roll(order, 1), strict=True):  # one cycle: no group keeps its own labels
        rows = group == name
        shuffled[rows] = np.resize(np.roll(label[group == other], int(rng.integers(1 << 16))), int(rows.sum()))
    return shuffled


def above_chance(matrix: metrics.Counts) -> metrics.Values:
    """Return the accuracy minus that of independent predictions with the same class frequencies, of (..., C, C)."""
    n = np.maximum(matrix.sum((-2, -1)), 1)[..., None]
    by_chance: metrics.Values = ((matrix.sum(-2) / n) * (matrix.sum(-1) / n)).sum(-1)
    return metrics.accuracy(matrix) - by_chance


def is_above_chance(extra: Sequence[float]) -> bool:
    """Return whether the accuracies above chance, one per shuffle, are significantly above 0."""
    error = float(np.std(extra, ddof=1) / np.sqrt(len(extra))) if len(extra) > 1 else 0.0
    return float(np.mean(extra)) > max(ABOVE_CHANCE, 3 * error)


# Near-duplicate frames across groups: the same footage under two names leaks across folds.

BLOCK = 2048
MAX_LINES = 1000
PREFERRED_TAPS = ("embedding", "block8")  # for the comparison; without them the first tap of the store is used


def check_copies(oof: OofLogits, store: EmbeddingStore, similar: float) -> Issue:
    """Return pairs of frames of two groups, one frame a second, with a cosine of `similar` or more."""
    check = "near-duplicate frames"
    tap = next((name for name in PREFERRED_TAPS if name in store.taps), next(iter(store.taps), ""))
    rows, trial = one_row_per_second(oof, np.ones(len(oof.label), bool), store)
    if len(rows) < 2 or not tap:
        return _result(check, "skipped", "fewer than two frames with a face in the store")
    x = read_vectors(oof, store, tap, rows, trial)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)
    group = oof.group_number[trial]
    pairs: list[tuple[float, int, int]] = []
    for a in range(0, len(x), BLOCK):  # in blocks: the full matrix of cosines would not fit in memory
        for b in range(a, len(x), BLOCK):
            cosine = x[a:a + BLOCK] @ x[b:b + BLOCK].T
            # Frames of one group are in one fold: similar ones cannot leak.
            cosine[group[a:a + BLOCK, None] == group[None, b:b + BLOCK]] = -1
            pairs += [(-float(cosine[i, j]), a + i, b + j) for i, j in np.argwhere(cosine >= similar).tolist()
                      if a + i < b + j]
    pairs.sort()
    frame = [f"{oof.trials[t]} frame {index}"
             for t, index in zip(trial.tolist(), oof.index[rows].astype(int).tolist(), strict=True)]
    more = f", {MAX_LINES} listed" if len(pairs) > MAX_LINES else ""
    return _result(check, "warning" if pairs else "ok",
                   f"{len(pairs)} pairs of two groups at a cosine of {similar} or more{more}, among "
                   f"{len(rows)} frames ({tap}, one per second)",
                   (f"{frame[i]} and {frame[j]}: cosine {-cosine:.4f}" for cosine, i, j in pairs[:MAX_LINES]))


DRAWS = 1000  # bootstrap samples of groups for an interval
PERMUTATIONS = 999  # more than for the choice of a candidate: `MOST_P` is divided by the number of tested columns
SHUFFLED_GROUPS = 24  # at least as many are tested, by several shuffles: six groups alone have too few orders
MAX_PERMUTED_ROWS = 20_000


def check_retrained(dataset: Dataset, store: EmbeddingStore, training: TrainConfig, scratch: Path, config: AuditConfig,
                    weights: Path | None = None) -> Issue:
    """Return which heads, and candidates of a stacker on them, are not at chance on labels shuffled by group."""
    # Both sides count: a score above chance is a leak, and one below chance is the bias of folds that lack the labels
    # of the group that they hold out. The p value is that of permuting the labels by group once more, against the same
    # predictions. With few groups, several shuffles are trained on and their mean is tested.
    check = "shuffled labels, heads and stacker"
    groups = len({trial.group for trial in dataset.trials if trial.split == "train" and trial.labelled})
    if groups < MIN_GROUPS:
        return _result(check, "skipped", f"{groups} groups with labels: at least {MIN_GROUPS} are needed to shuffle")
    extra: dict[str, list[NDArray[np.float64]]] = {}  # a shuffle: the accuracy above chance, then those by chance
    for seed in range(config.seed, config.seed - (-SHUFFLED_GROUPS // groups)):
        trained = train.train_heads(shuffled_dataset(dataset, seed), store, replace(training, refit="none"), scratch,
                                    weights=weights)
        oof = OofLogits.load(trained.logits_file)
        rows = np.flatnonzero(oof.scored)
        rows = rows[::max(1, len(rows) // MAX_PERMUTED_ROWS)]
        group = oof.per_row(oof.group_number)[rows]
        columns = {**oof.logits,
                   **nested_cv.run_nested_cv(oof, StackConfig(seed=seed, threads=config.threads)).columns}
        labels = [oof.label[rows], *metrics.permute_by_group(oof.label[rows], group, PERMUTATIONS, seed)]
        for name, values in columns.items():
            matrices = np.stack([metrics.confusion(label, values[rows].argmax(1), len(oof.classes))
                                 for label in labels])
            extra.setdefault(name, []).append(above_chance(matrices))
    lines, leaks = [], []
    for name, shuffles in extra.items():
        observed, *chance = np.mean(shuffles, axis=0)
        beyond = [(1 + np.sum(np.array(chance) >= observed)) / (1 + len(chance)),
                  (1 + np.sum(np.array(chance) <= observed)) / (1 + len(chance))]
        p = min(1.0, 2 * min(beyond))
        lines.append(f"{name}: accuracy {observed:+.3f} from chance, p = {p:.3f}")
        if p < MOST_P / len(extra) and abs(observed) > ABOVE_CHANCE:
            side = ("above chance: labels leak" if observed > 0 else
                    "below chance: folds lack the labels that they hold out, so scores out of fold are too low")
            leaks.append(f"{lines[-1]}, {side}")
    return _result(check, "error" if leaks else "ok",
                   f"{len(leaks)} of {len(extra)} heads and candidates are not at chance on labels shuffled by group "
                   f"({len(next(iter(extra.values())))} shuffles)", leaks or lines)


def shuffled_dataset(dataset: Dataset, seed: int) -> Dataset:
    """Return the data set in which the training trials of each group have the labels of another group."""
    by_group: dict[str, list[Trial]] = {}
    for trial in dataset.trials:
        if trial.split == "train" and trial.labelled:
            by_group.setdefault(trial.group, []).append(trial)
    order = np.random.default_rng(seed).permutation(sorted(by_group)).tolist()
    shuffled = {}
    for group, other in zip(order, [order[-1], *order[:-1]], strict=True):
        for trial, source in zip(by_group[group], itertools.cycle(by_group[other]), strict=False):
            if trial.labels is not None and source.labels is not None:
                labels = np.resize(source.labels, len(trial.labels))
                shuffled[trial.name] = replace(trial, labels=labels)
            else:
                label = source.clip_label if source.labels is None else int(source.labels.max())
                shuffled[trial.name] = replace(trial, clip_label=label)
    return replace(dataset, name=f"{dataset.name}-shuffled",
                   trials=tuple(shuffled.get(trial.name, trial) for trial in dataset.trials))


# Accuracy on training rows may exceed that on other rows by this much, since splits differ in difficulty.
MARGIN = 0.1
PERFECT = 0.99


def check_provenance(oof: OofLogits) -> Issue:
    """Return, for each head and fold, whether the predicting model was trained on a group of the fold."""
    leaks: list[str] = []
    passed: list[str] = []
    folds = int(oof.fold.max(initial=-1)) + 1
    recorded = [head for head in oof.heads if head not in oof.declared]
    for head, declared in oof.declared.items():
        if head in oof.heads:
            (leaks if head in oof.leaky_heads else passed).append(f"{head}: declared {declared}")
    for head in recorded:
        for fold in range(folds):
            records = [record for record in oof.provenance.records if (record.head, record.fold) == (head, fold)]
            if not records:
                leaks.append(f"{head}, fold {fold}: no record of the model that predicted it")
            predicted = oof.fold_groups(fold)
            for record in records:
                # The groups that chose the best epoch count too: the model was selected on their labels.
                trained_on = {*record.train_groups, *record.val_groups}
                if seen := predicted & trained_on:
                    leaks.append(f"{head}, fold {fold}: its model saw {len(seen)} of the {len(predicted)} groups "
                                 f"that it predicts: {', '.join(sorted(seen)[:5])}")
                else:
                    passed.append(f"{head}, fold {fold}: predicts {len(predicted)} groups, trained on "
                                  f"{len(trained_on)} others and none of them")
    return _result("training groups", "error" if leaks else "ok",
                   f"{len(recorded) * folds} recorded models, {len(oof.heads) - len(recorded)} declared sources",
                   leaks or passed)


def check_starter(oof: OofLogits, dataset: Dataset | None) -> Issue:
    """Return which heads begin with starter weights, and whether the starter may have seen this data set's pictures."""
    check = "starter weights"
    inits = [record.init for record in oof.provenance.records if isinstance(record.init, StarterInit)]
    shared = (dataset and photos.fer2013_pictures(dataset)) or next((init.shared for init in inits), "")
    if not inits:
        return _result(check, "ok", f"no head begins with starter weights{f'; {shared}' if shared else ''}")
    seen = ", ".join(sorted({init.data for init in inits}))
    return _result(check, "warning" if shared else "ok",
                   f"{len(inits)} heads begin with starter weights, trained on {seen}"
                   + (f". {shared}: unless the starter saw other photos, train again with --init scratch" if shared
                      else ""))


def check_memorized(oof: OofLogits, seed: int) -> Issue:
    """Return which heads are so much more accurate on training rows than elsewhere that they memorized them."""
    check = "memorized training rows"
    inside, outside = oof.scored, ~oof.scored & (oof.label >= 0)
    group = oof.per_row(oof.group_number)
    fewest = min(len(np.unique(group[rows])) for rows in (inside, outside))
    if fewest < metrics.MIN_GROUPS_FOR_INTERVAL:
        return _result(check, "skipped", f"{fewest} labelled groups outside (or inside) the folds; "
                       f"{metrics.MIN_GROUPS_FOR_INTERVAL} are needed on both sides to compare")
    lines, leaks = [], []
    for head in oof.heads:
        both = [oof.confusions(oof.logits[head].argmax(1), rows) for rows in (inside, outside)]
        # The two sides have different groups, so each is drawn with a seed of its own.
        drawn = [metrics.accuracy(metrics.Resampler(len(counts), DRAWS, seed + i).draw(counts))
                 for i, counts in enumerate(both)]
        gap = float(np.quantile(drawn[0] - drawn[1], 0.025))
        right = [float(metrics.accuracy(counts.sum(0))) for counts in both]
        lines.append(f"{head}: right on {right[0]:.3f} of the training rows, {right[1]:.3f} of the others")
        if gap > MARGIN:
            leaks.append(f"{lines[-1]}; the gap is at least {gap:.3f} (95 %)")
    return _result(check, "error" if leaks else "ok",
                   f"{len(leaks)} of {len(oof.heads)} heads are more accurate on training rows than a model "
                   "that never saw them", leaks or lines)


def check_perfect(oof: OofLogits) -> Issue:
    """Return which heads are so accurate out of fold that they must be computed from the labels."""
    leaks = []
    for head in oof.heads:
        matrix = oof.confusions(oof.logits[head].argmax(1), oof.scored).sum(0)
        right = float(metrics.accuracy(matrix))
        if right >= PERFECT and (matrix.sum(1) > 0).sum() > 1:
            leaks.append(f"{head}: right on {right:.4f} of the out-of-fold rows: it is computed from the labels")
    return _result("heads computed from labels", "error" if leaks else "ok",
                   f"{len(leaks)} of {len(oof.heads)} heads are nearly always right out of fold", leaks)


def run_audit(oof: OofLogits, config: AuditConfig, store: EmbeddingStore | None = None, dataset: Dataset | None = None,
              training: TrainConfig | None = None, scratch: Path | None = None,
              weights: Path | None = None) -> Iterator[Issue]:
    """Yield the result of each check of logits, and of the store and the data set behind them, as soon as it ends.

    `training`, `scratch`: how `--full` trains the heads again, and a folder that it may fill. `weights`: the folder of
    CNN weights, for fine-tuning. Raises InputError if `--full` needs a data set, and there is none.
    """
    yield check_splits(oof)
    yield check_folds(oof)
    yield check_provenance(oof)
    yield check_starter(oof, dataset)
    yield check_memorized(oof, config.seed)
    yield check_perfect(oof)
    yield check_stacker(oof, config)
    yield check_contradictions(oof, config)
    if store is None:
        return
    sample = draw_probe(oof, store)
    yield check_features(sample)
    yield check_probe(sample, config)
    yield check_copies(oof, store, config.similar)
    if config.full:
        if dataset is None or scratch is None:
            raise InputError("there is no data set to train heads on", where="audit --full",
                             hint="name it with --dataset and --root or --clips")
        yield check_retrained(dataset, store, training or TrainConfig(), scratch, config, weights)


def write_audit(results: Sequence[Issue], path: Path) -> None:
    """Write the results of all checks, with all their details, to `path` as JSON."""
    atomic_io.write_json(path, {"leaks": any(result.is_error for result in results),
                                "checks": [asdict(result) for result in results]})
