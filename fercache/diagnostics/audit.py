"""Proof that no score has seen what it is scored on: every check says what it looked at, and names what it found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fercache import metrics
from fercache.config import AuditConfig, StackConfig, TrainConfig
from fercache.data.base import Dataset, Trial
from fercache.errors import InputError
from fercache.oof import OofLogits
from fercache.runtime import atomic_io
from fercache.stacking import stack
from fercache.store.embedding_store import EmbeddingStore
from fercache.training import train

# What one check of the audit found.

FINE, LOOK, FAILED, SKIPPED = "ok", "look", "FAIL", "skipped"


@dataclass(frozen=True, kw_only=True)
class AuditFinding:
    """One check: its state, what was looked at in one sentence, and every single thing found.

    Attributes
    ----------
    state : ok; look (no proof of a leak, but a person should look); FAIL (a leak); skipped.
    """

    check: str
    state: str
    message: str
    lines: tuple[str, ...] = ()

    def json(self) -> dict[str, Any]:
        """Return it as a JSON value."""
        return {**asdict(self), "lines": list(self.lines)}


# No group stands on two sides.

def check_splits(book: OofLogits) -> AuditFinding:
    """Return which groups stand in the training split and in another one."""
    sides: dict[str, set[str]] = {}
    for group, split in zip(book.group, book.split, strict=True):
        sides.setdefault(group, set()).add(split)
    crossed = sorted(g for g, found in sides.items() if "train" in found and len(found) > 1)
    return AuditFinding(check="groups and splits", state=FAILED if crossed else FINE,
                   message=f"{len(crossed)} of {len(sides)} groups are in train and in another split",
                   lines=tuple(f"group {g!r} is in {', '.join(sorted(sides[g]))}" for g in crossed))


def check_folds(book: OofLogits) -> AuditFinding:
    """Return which groups, and which clips, are held out by one fold and learnt from by another one."""
    lines = []
    for what, names in (("group", book.group), ("clip", book.clips)):
        held: dict[str, set[int]] = {}
        for name, fold in zip(names, book.fold.tolist(), strict=True):
            if fold >= 0:
                held.setdefault(name, set()).add(fold)
        lines += [f"{what} {name!r} is in folds {', '.join(map(str, sorted(f)))}" for name, f in sorted(held.items())
                  if len(f) > 1]
    k = int(book.fold.max(initial=-1)) + 1
    return AuditFinding(check="groups and folds", state=FAILED if lines else FINE,
                   message=f"{len(lines)} groups or clips stand in two of {k} folds", lines=tuple(lines))


# A small probe on the cached vectors and the stacker itself, on labels that were shuffled: both must be at chance.

MOST_ROWS = 3000
EVERY_S = 1.0
RIDGE = 0.3
"""Of the mean variance of a feature times the number of rows."""
ABOVE_CHANCE = 0.03
"""Accuracy above what independent predictions of the same shares would have, from which it counts (if it is also three
standard errors of the shuffles)."""
STACK_SHUFFLES = 2
CHANCE_MARGIN = 0.999
"""A single feature that ranks a class's rows so well (area under the curve) is the label in disguise."""
FEWEST_ROWS, FEWEST_GROUPS = 10, 3


@dataclass(frozen=True, kw_only=True)
class ProbeSample:
    """One labelled frame a second: vectors ``(n, D)``, labels, groups and folds ``(n,)``; `names` of the D features."""

    x: NDArray[np.float32]
    label: NDArray[np.int64]
    group: NDArray[np.int64]
    fold: NDArray[np.int64]
    classes: int
    names: tuple[tuple[str, int], ...]


def draw_probe(book: OofLogits, store: EmbeddingStore) -> ProbeSample:
    """Return labelled frames with a face, one a second at most, of the trials that a fold holds out."""
    rows, trial = seconds(book, (book.label >= 0) & (book.per_row(book.fold) >= 0), store)
    keep = np.arange(0, len(rows), max(1, -(-len(rows) // MOST_ROWS)))
    rows, trial = rows[keep], trial[keep]
    wanted = book.provenance.get("settings", {}).get("taps") or list(store.taps)
    taps = [tap for tap in wanted if tap in store.taps] or list(store.taps)
    x = np.concatenate([read_vectors(book, store, tap, rows, trial) for tap in taps],
                       1) if len(rows) else np.zeros((0, 1))
    sizes = {tap: int(np.prod(store.taps[tap])) for tap in taps}
    _, group = np.unique(np.array(book.group, object).astype(str), return_inverse=True)
    return ProbeSample(x=x.astype(np.float32), label=book.label[rows].astype(np.int64), group=group[trial],
                  fold=book.fold[trial].astype(np.int64), classes=len(book.classes),
                  names=tuple((tap, i) for tap in taps for i in range(sizes[tap])))


def seconds(book: OofLogits, wanted: NDArray[np.bool_],
            store: EmbeddingStore) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first wanted row with a face of every second of every trial in the store, and its trial."""
    rows = np.flatnonzero(wanted & book.valid)
    trial = book.per_row(np.arange(len(book.trials)))[rows]
    inside = np.array([name in store for name in book.trials])[trial]
    rows, trial = rows[inside], trial[inside]
    _, first = np.unique(np.stack([trial, book.time_s[rows] // EVERY_S]), axis=1, return_index=True)
    first.sort()
    return rows[first], trial[first]


def read_vectors(book: OofLogits, store: EmbeddingStore, tap: str, rows: NDArray[np.int64],
            trial: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return a tap's values at rows of the book, ``(n, D)``; only those rows are read."""
    found = []
    for t in np.unique(trial).tolist():
        array = store[book.trials[t]][tap]
        places = rows[trial == t] - book.offsets[t]
        found.append(np.concatenate([array[int(p):int(p) + 1].reshape(1, -1) for p in places]))
    return np.concatenate(found).astype(np.float32)


def labels_as_features(sample: ProbeSample) -> AuditFinding:
    """Return which single features rank the rows of a class as only the label itself can."""
    lines = []
    for c in range(sample.classes):
        mine = sample.label == c
        if mine.sum() < FEWEST_ROWS or (~mine).sum() < FEWEST_ROWS or len(set(sample.group[mine])) < FEWEST_GROUPS:
            continue
        area = _areas(sample.x, mine)
        lines += [f"{sample.names[i][0]}[{sample.names[i][1]}] tells class {c} from all others by itself (area "
                  f"{max(area[i], 1 - area[i]):.4f})"
                  for i in np.flatnonzero(np.abs(area - 0.5) >= CHANCE_MARGIN - 0.5)[:10]]
    return AuditFinding(check="labels as features", state=FAILED if lines else FINE, lines=tuple(lines),
                   message=f"{len(lines)} of {sample.x.shape[1]} cached features are a label in disguise "
                           f"({len(sample.x)} "
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


def probe_shuffled_labels(sample: ProbeSample, config: AuditConfig) -> AuditFinding:
    """Return whether a ridge classifier on the cached vectors knows anything of labels that were shuffled by group."""
    check = "shuffled labels, probe"
    folds = np.unique(sample.fold)
    if len(folds) < 2 or len(np.unique(sample.group)) < FEWEST_GROUPS:
        return AuditFinding(check=check, state=SKIPPED, message="fewer than two folds of labelled frames in the store")
    predict_labels = _ridge(sample)
    rng = np.random.default_rng(config.seed)
    real = _confusion(predict_labels(sample.label), sample.label, sample.classes)
    dealt = [deal(sample.label, sample.group, rng) for _ in range(config.shuffles)]
    extra = [above_chance(_confusion(predict_labels(label), label, sample.classes)) for label in dealt]
    predicted = (f"accuracy above chance {_mean(extra)} on {len(extra)} shuffles; on the real labels "
            f"{above_chance(real):+.3f} (macro F1 {float(metrics.macro_f1(real)):.3f})")
    return AuditFinding(check=check, state=FAILED if probe_leaks(extra) else FINE, message=predicted)


def check_stacker(book: OofLogits, config: AuditConfig) -> AuditFinding:
    """Return whether the stacker knows anything of labels that were shuffled by group."""
    rng = np.random.default_rng(config.seed)
    extra: dict[str, list[float]] = {}
    rows = (book.per_row(book.fold) >= 0) & (book.label >= 0)
    _, group = np.unique(book.per_row(np.array(book.group)), return_inverse=True)
    for i in range(STACK_SHUFFLES):
        label = book.label.copy()
        label[rows] = deal(book.label[rows], group[rows], rng)
        predicted = stack.oof_columns(replace(book, label=label), StackConfig(seed=i, threads=config.threads))
        for name, p in predicted.items():
            matrix = metrics.confusion(label[rows], p[rows].argmax(1), len(book.classes))
            extra.setdefault(name, []).append(above_chance(matrix))
    bad = [name for name, values in extra.items() if probe_leaks(values)]
    return AuditFinding(check="shuffled labels, stacker", state=FAILED if bad else FINE if extra else SKIPPED,
                   message="accuracy above chance: " + (", ".join(f"{n} {_mean(v)}" for n, v in extra.items()) or
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


def probe_leaks(extra: Sequence[float]) -> bool:
    """Return whether accuracies above chance, one a shuffle, are more than chance."""
    error = float(np.std(extra, ddof=1) / np.sqrt(len(extra))) if len(extra) > 1 else 0.0
    return float(np.mean(extra)) > max(ABOVE_CHANCE, 3 * error)


def _mean(values: Sequence[float]) -> str:
    return f"{np.mean(values):+.3f}"


def _confusion(predicted: NDArray[np.int64], label: NDArray[np.int64], classes: int) -> metrics.Counts:
    return metrics.confusion(label, predicted, classes)


def _ridge(sample: ProbeSample) -> Any:
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

    def predict_labels(label: NDArray[np.int64]) -> NDArray[np.int64]:
        predicted = np.zeros(len(label), np.int64)
        for a, b, solved in maps:
            target = np.eye(sample.classes)[label[a]]
            predicted[b] = (solved @ (target - target.mean(0)) / np.maximum(target.mean(0), 1e-3) ** 0.5).argmax(1)
        return predicted

    return predict_labels


# Near-duplicate frames across groups: the same footage under two names defeats any fold.

BLOCK = 2048
MOST_LINES = 1000
FIRST = ("embedding", "block8")
"""Taps looked at, the first that is there; else the store's first one."""


def check_copies(book: OofLogits, store: EmbeddingStore, similar: float) -> AuditFinding:
    """Return pairs of frames of two groups whose cached vectors point the same way; one frame a second is compared.

    Parameters
    ----------
    similar : cosine from which a pair is listed.
    """
    check = "near-duplicate frames"
    tap = next((name for name in FIRST if name in store.taps), next(iter(store.taps), ""))
    rows, trial = seconds(book, np.ones(len(book.label), bool), store)
    if len(rows) < 2 or not tap:
        return AuditFinding(check=check, state=SKIPPED, message="fewer than two frames with a face in the store")
    x = read_vectors(book, store, tap, rows, trial)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)
    _, group = np.unique(np.array(book.group, object).astype(str), return_inverse=True)
    pairs = _pairs(x, group[trial], similar)
    lines = [f"{_frame(book, rows[i], trial[i])} and {_frame(book, rows[j], trial[j])}: cosine {cosine:.4f}"
             for cosine, i, j in pairs[:MOST_LINES]]
    more = f", {MOST_LINES} listed" if len(pairs) > MOST_LINES else ""
    return AuditFinding(check=check, state=LOOK if pairs else FINE, lines=tuple(lines),
                   message=f"{len(pairs)} pairs of two groups at a cosine of {similar} or more{more}, among "
                           f"{len(rows)} "
                        f"frames ({tap}, one a second)")


def _frame(book: OofLogits, row: np.int64, trial: np.int64) -> str:
    return f"{book.trials[int(trial)]} frame {int(book.index[int(row)])}"


def _pairs(x: NDArray[np.float32], group: NDArray[np.int64], similar: float) -> list[tuple[float, int, int]]:
    """Return (cosine, i, j) of every pair of two groups, in falling order; block by block, so that memory stays flat.
    """
    found: list[tuple[float, int, int]] = []
    for a in range(0, len(x), BLOCK):
        for b in range(a, len(x), BLOCK):
            cosine = x[a:a + BLOCK] @ x[b:b + BLOCK].T
            cosine[group[a:a + BLOCK, None] == group[None, b:b + BLOCK]] = -1
            for i, j in np.argwhere(cosine >= similar).tolist():
                if a + i < b + j:
                    found.append((float(cosine[i, j]), a + i, b + j))
    return sorted(found, key=lambda pair: (-pair[0], pair[1], pair[2]))


# The real heads trained again on shuffled labels: out of fold they must know nothing.

SHUFFLE_DRAWS = 1000


def check_retrained(dataset: Dataset, store: EmbeddingStore, training: TrainConfig, scratch: Path,
                    seed: int, weights: Path | None = None) -> AuditFinding:
    """Return whether heads that are trained on labels dealt out by group know anything of them out of fold."""
    groups = len({trial.group for trial in dataset.trials if trial.split == "train" and trial.labelled})
    if groups < metrics.MIN_GROUPS_FOR_INTERVAL:
        return AuditFinding(check="shuffled labels, heads", state=SKIPPED, lines=(),
                            message=f"{groups} groups with labels: with fewer than {metrics.MIN_GROUPS_FOR_INTERVAL} "
                                    "there is no interval to judge by")
    made = train.train_heads(dealt(dataset, seed), store, replace(training, refit="none"), scratch, weights=weights)
    book = OofLogits.load(made.logits_file)
    rows = (book.per_row(book.fold) >= 0) & (book.label >= 0)
    _, group = np.unique(book.per_row(np.array(book.group))[rows], return_inverse=True)
    lines, bad = [], []
    for head in book.heads:
        counts = metrics.confusions(book.label[rows], book.logits[head][rows].argmax(1), group, len(book.classes),
                                    int(group.max()) + 1)
        drawn = metrics.Resampler(len(counts), SHUFFLE_DRAWS, seed).draw(counts)
        low = float(np.quantile([above_chance(m) for m in drawn], 0.025))
        text = f"{head}: accuracy above chance {above_chance(counts.sum(0)):+.3f}, at least {low:+.3f} (95 %)"
        bad += [text] if low > 0 and above_chance(counts.sum(0)) > ABOVE_CHANCE else []
        lines.append(text)
    return AuditFinding(check="shuffled labels, heads", state=FAILED if bad else FINE, lines=tuple(bad or lines),
                   message=f"{len(bad)} of {len(book.heads)} heads know labels that were dealt out by group "
                        f"({made.trained} trained)")


def dealt(dataset: Dataset, seed: int) -> Dataset:
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


# Where the out-of-fold rows come from: what the records say, and what the rows themselves betray.

MARGIN = 0.1
"""Training rows may be right so much more often than validation rows (splits differ) before it counts as memory."""
PERFECT = 0.99
MEMORY_DRAWS = 1000


def check_provenance(book: OofLogits) -> AuditFinding:
    """Return, for every head and fold, which model spoke and whether it had seen one of the fold's groups."""
    bad: list[str] = []
    fine: list[str] = []
    k = int(book.fold.max(initial=-1)) + 1
    for head in book.heads:
        declared = book.declared.get(head)
        if declared:
            (bad if head in book.leaky_heads else fine).append(f"{head}: declared {declared}")
            continue
        for fold in range(k):
            wrong, right = _one(book, head, fold)
            bad += wrong
            fine += right
    own = sum(head not in book.declared for head in book.heads)
    predicted = f"{own * k} models on record, {len(book.heads) - own} sources by declaration"
    return AuditFinding(check="who predicted what", state=FAILED if bad else FINE, message=predicted,
                        lines=tuple(bad or fine))


def _one(book: OofLogits, head: str, fold: int) -> tuple[list[str], list[str]]:
    """Return what is wrong with the record of a head of a fold, and what is right."""
    records = [r for r in _records(book) if r.get("head") == head and r.get("fold") == fold]
    if not records:
        return [f"{head}, fold {fold}: no record of the model that spoke"], []
    held = {g for g, f in zip(book.group, book.fold.tolist(), strict=True) if f == fold}
    found, fine = [], []
    for record in records:
        if "trained_on" not in record:
            found.append(f"{head}, fold {fold}: the record does not say what the model was trained on")
            continue
        known = {*record["trained_on"], *record.get("watched", [])}
        seen = held & known
        if not seen:
            fine.append(f"{head}, fold {fold}: speaks of {len(held)} groups, saw {len(known)} others and none of them")
        else:
            found.append(f"{head}, fold {fold}: its model saw {len(seen)} of the {len(held)} groups it speaks of: "
                         f"{', '.join(sorted(seen)[:5])}")
    return found, fine


def _records(book: OofLogits) -> list[dict[str, Any]]:
    records = book.provenance.get("heads", [])
    return [r for r in records if isinstance(r, dict)] if isinstance(records, list) else []


def check_memorized(book: OofLogits, seed: int) -> AuditFinding:
    """Return which heads are right on training rows so much more often than elsewhere that they must remember them."""
    check = "memory of training rows"
    held = (book.per_row(book.fold) >= 0) & (book.label >= 0)
    other = (book.per_row(book.fold) < 0) & (book.label >= 0)
    few = min(len(set(np.array(book.group)[np.unique(_trial(book)[rows])])) for rows in (held, other))
    if few < metrics.MIN_GROUPS_FOR_INTERVAL:
        return AuditFinding(check=check, state=SKIPPED, message=f"{few} labelled groups outside (or inside) the folds; "
                       f"{metrics.MIN_GROUPS_FOR_INTERVAL} are needed on both sides to compare")
    lines, bad = [], []
    for head in book.heads:
        inside, outside = (_by_group(book, head, rows) for rows in (held, other))
        gap = _low(inside, outside, seed)
        text = (f"{head}: right on {float(metrics.accuracy(inside.sum(0))):.3f} of the training rows, "
                f"{float(metrics.accuracy(outside.sum(0))):.3f} of the others")
        bad += [text + f"; the gap is at least {gap:.3f} (95 %)"] if gap > MARGIN else []
        lines.append(text)
    return AuditFinding(check=check, state=FAILED if bad else FINE, lines=tuple(bad or lines),
                   message=f"{len(bad)} of {len(book.heads)} heads say more of training rows than a model can that "
                           f"never "
                        "saw them")


def _low(inside: metrics.Counts, outside: metrics.Counts, seed: int) -> float:
    """Return the lower end of the 95 % interval of how much more accurate the one is, by bootstrap over groups."""
    drawn = [metrics.accuracy(metrics.Resampler(len(m), MEMORY_DRAWS, seed + i).draw(m))
             for i, m in enumerate((inside, outside))]
    return float(np.quantile(drawn[0] - drawn[1], 0.025))


def truth(book: OofLogits) -> AuditFinding:
    """Return which heads are so right out of fold that they must be made of the labels."""
    rows = (book.per_row(book.fold) >= 0) & (book.label >= 0)
    lines = []
    for head in book.heads:
        matrix = _by_group(book, head, rows).sum(0)
        right = float(metrics.accuracy(matrix))
        if right >= PERFECT and (matrix.sum(1) > 0).sum() > 1:
            lines.append(f"{head}: right on {right:.4f} of the out-of-fold rows: it is made of the labels")
    return AuditFinding(check="heads made of labels", state=FAILED if lines else FINE, lines=tuple(lines),
                   message=f"{len(lines)} of {len(book.heads)} heads are right nearly always out of fold")


def _trial(book: OofLogits) -> NDArray[np.int64]:
    return np.asarray(book.per_row(np.arange(len(book.trials))))


def _by_group(book: OofLogits, head: str, rows: NDArray[np.bool_]) -> metrics.Counts:
    """Return a confusion matrix for each group that has one of the rows, ``(G, C, C)``."""
    number = book.per_row(np.unique(np.array(book.group), return_inverse=True)[1])[rows]
    _, group = np.unique(number, return_inverse=True)
    predicted = book.logits[head][rows].argmax(1)
    return metrics.confusions(book.label[rows], predicted, group, len(book.classes), int(group.max(initial=-1)) + 1)


@dataclass(frozen=True, kw_only=True)
class AuditSubject:
    """What is audited: a book of logits, and where they are at hand the store and the data set it was made of.

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


def run_audit(subject: AuditSubject, config: AuditConfig) -> Iterator[AuditFinding]:
    """Yield what each check found, as soon as it is known.

    Raises
    ------
    InputError
        Heads are to be trained again, and there is no store or data set to train them on.
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


def any_failed(findings: list[AuditFinding]) -> bool:
    """Return whether a check found a leak."""
    return any(finding.state == FAILED for finding in findings)


def write_audit(findings: list[AuditFinding], path: Path) -> None:
    """Put the findings at `path` as JSON, every one with all its lines."""
    value: list[dict[str, Any]] = [finding.json() for finding in findings]
    atomic_io.write_json(path, {"leaks": any_failed(findings), "checks": value})
