"""The real heads trained again on shuffled labels: out of fold they must know nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from fercache import metrics
from fercache.config import TrainConfig
from fercache.data.base import Dataset, Trial
from fercache.diagnostics.finding_part import FAILED, FINE, Finding
from fercache.diagnostics.probe_part import ABOVE_CHANCE, above_chance
from fercache.oof import LogitBook
from fercache.store.embedding_store import EmbeddingStore
from fercache.training import train

DRAWS = 1000


def retrained(dataset: Dataset, store: EmbeddingStore, training: TrainConfig, scratch: Path, seed: int) -> Finding:
    """Return whether heads that are trained on labels dealt out by group know anything of them out of fold."""
    made = train.run(dealt(dataset, seed), store, replace(training, refit="none"), scratch)
    book = LogitBook.load(made.book)
    rows = (book.spread(book.fold) >= 0) & (book.label >= 0)
    _, group = np.unique(book.spread(np.array(book.group))[rows], return_inverse=True)
    lines, bad = [], []
    for head in book.heads:
        counts = metrics.confusions(book.label[rows], book.logits[head][rows].argmax(1), group, len(book.classes),
                                    int(group.max()) + 1)
        drawn = metrics.Resampler(len(counts), DRAWS, seed).draw(counts)
        low = float(np.quantile([above_chance(m) for m in drawn], 0.025))
        text = f"{head}: accuracy above chance {above_chance(counts.sum(0)):+.3f}, at least {low:+.3f} (95 %)"
        bad += [text] if low > 0 and above_chance(counts.sum(0)) > ABOVE_CHANCE else []
        lines.append(text)
    return Finding(check="shuffled labels, heads", state=FAILED if bad else FINE, lines=tuple(bad or lines),
                   said=f"{len(bad)} of {len(book.heads)} heads know labels that were dealt out by group "
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
