"""Stage two, a: the store -> out-of-fold logits of every head, and the trained heads."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fercache.config import TrainConfig, fingerprint_of
from fercache.data.base import Dataset, Trial, stored_trials
from fercache.errors import InputError
from fercache.oof import OofLogits
from fercache.runtime import atomic_io
from fercache.store.embedding_store import EmbeddingStore
from fercache.store.multi_store import ReadableStore, join_stores

log = logging.getLogger(__name__)


FORMAT = 3
"""Raised whenever the code changes what a training run gives."""


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """What a run of `train-heads` did."""

    logits_file: Path
    heads: Path
    cached: bool
    trained: int
    missing: tuple[str, ...]
    seconds: float


def train_heads(dataset: Dataset, base: EmbeddingStore, config: TrainConfig, cache: Path, *,
        point: bool = True) -> TrainReport:
    """Return where the out-of-fold logits and the heads lie; a run that was done before is not done again.

    Parameters
    ----------
    point : whether the data set's current book is this one from now on.

    Raises
    ------
    InputError
        Nothing to learn from: no labels, fewer than two groups with labels, or a group in two splits.
    """
    started = time.monotonic()
    store, taps = join_stores(base, config.join, config.taps)  # what joins is in the store's settings, digest and taps
    config = replace(config, taps=taps)
    dataset = stored_trials(dataset, base)
    held = [trial for trial in dataset.trials if trial.name in store]
    missing = tuple(t.name for t in dataset.trials if t.name not in store)
    check_splits(held)
    settings = settings_of(dataset, held, store, config)
    print_ = fingerprint_of(settings)[:12]
    book, heads = cache / "logits" / dataset.name / f"{print_}.h5", cache / "heads" / dataset.name / print_
    trained = 0
    cached = book.is_file()
    if not cached:
        with atomic_io.lock(heads.with_suffix(".lock"), wait=True):
            atomic_io.remove_temporary(heads)
            atomic_io.remove_temporary(book.parent, book.name)
            trained = _train(dataset, held, store, config, settings, book, heads) if not book.is_file() else 0
    if point:
        atomic_io.write_json(book.parent / "current.json", {"logits_file": book.name})
    return TrainReport(logits_file=book, heads=heads, cached=cached, trained=trained, missing=missing,
                       seconds=time.monotonic() - started)


def current_logits_file(cache: Path, dataset: str) -> Path:
    """Return the book that the last `train-heads` of this data set made or found.

    Raises
    ------
    InputError
        No heads were trained yet.
    """
    pointer = cache / "logits" / dataset / "current.json"
    if not pointer.is_file():
        raise InputError("no heads were trained yet", where=pointer.parent, hint="run `fercache train-heads` first")
    return atomic_io.read_pointer(pointer, "logits_file")


def current_logits_file_or_none(cache: Path, dataset: str) -> Path | None:
    """Return the book that the last `train-heads` of this data set made or found; None where there is none."""
    return current_logits_file(cache, dataset) if (cache / "logits" / dataset / "current.json").is_file() else None


def check_splits(trials: Sequence[Trial]) -> None:
    """Refuse a group that stands on both sides of the given splits.

    Raises
    ------
    InputError
        A group has labelled trials in train and elsewhere: scores on the other split would be leaked.
    """
    sides: dict[str, set[str]] = {}
    for trial in trials:
        sides.setdefault(trial.group, set()).add(trial.split)
    crossed = sorted(g for g, splits in sides.items() if "train" in splits and len(splits) > 1)
    if crossed:
        raise InputError(f"group {crossed[0]!r} is in train and in another split ({len(crossed)} such groups)",
                         where="the data set", hint="put all clips of a group (person, parent video) into one split")


def settings_of(dataset: Dataset, trials: Sequence[Trial], store: ReadableStore,
                config: TrainConfig) -> dict[str, Any]:
    """Return everything that changes the logits, as a JSON value: its digest names the book and the heads."""
    return {**config.settings(), "store": store.digest(), "features": fingerprint_of(store.settings), "format": FORMAT,
            "dataset": dataset.digest(), "trials": fingerprint_of([t.name
                                                                   for t in trials]), "classes": list(dataset.classes)}


def _train(dataset: Dataset, trials: Sequence[Trial], store: ReadableStore, config: TrainConfig,
           settings: dict[str, Any], book: Path, heads: Path) -> int:
    """Train what is missing, write the book, and return how many heads were trained now."""
    from fercache.training.cross_validation import CrossValidatedTraining  # torch: seconds that a cached run saves

    _check_labels(trials, config)
    training = CrossValidatedTraining(dataset, trials, store, config, heads)
    logits = training.run()
    features = training.features
    OofLogits(dataset=dataset.name, classes=dataset.classes, metric=dataset.metric, notice=dataset.notice,
              heads=config.heads, trials=tuple(t.name for t in trials), group=tuple(t.group for t in trials),
              split=tuple(t.split for t in trials), fold=training.splits.fold, offsets=features.offsets,
              index=features.index, time_s=features.time_s, valid=features.valid, label=features.label,
              logits=logits, provenance={"settings": settings, "store": store.path.name, "heads": training.records},
              fingerprint=fingerprint_of(settings), epochs_fixed=training.splits.epochs_fixed).save(book)
    return training.trained


def _check_labels(trials: Sequence[Trial], config: TrainConfig) -> None:
    if not any(t.labelled for t in trials if t.split in config.learns_from):
        raise InputError("no labelled frame in the training split", where="the data set",
                         hint="name labels with --labels (or a `label` column), or look at what `fercache extract` "
                              "says of the annotations")
