"""Which new trials are not new: the heads were trained on them, so that a score of theirs would say nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fercache.data.base import Trial
from fercache.errors import StoreError
from fercache.oof import LogitBook
from fercache.store.embedding_store import EmbeddingStore


def trained_on(trials: Sequence[Trial], store: EmbeddingStore, book: LogitBook, dataset: str,
               features: Path) -> frozenset[str]:
    """Return the names of the trials whose group, or whose very file, the heads of `book` were trained on.

    Parameters
    ----------
    store : of the trials.
    dataset : name of the trials' data set.
    features : folder of the stores of the data set that the heads were trained on.

    Notes
    -----
    Groups are compared within one data set only: two sets may both have a `video1`. A file is known by the digest that
    its clip's mark keeps, also under another name, as long as the heads' store is there.
    """
    groups = {group for group, fold in zip(book.group, book.fold, strict=True) if fold >= 0}
    sources = _sources(book, features / str(book.provenance.get("store", "")))
    return frozenset(trial.name for trial in trials
                     if (dataset == book.dataset and trial.group in groups)
                     or store.mark(trial.name).source.get("sha256", "") in sources)


def unscored(book: LogitBook, names: frozenset[str]) -> LogitBook:
    """Return the book with no label on the trials of these names."""
    keep: NDArray[np.bool_] = book.spread(np.array([trial not in names for trial in book.trials], bool))
    return replace(book, label=np.where(keep, book.label, -1).astype(np.int16))


def _sources(book: LogitBook, path: Path) -> frozenset[str]:
    """Return the digests of the files of the trials that the heads were trained on; none where their store is gone."""
    try:
        store = EmbeddingStore.open(path)
    except StoreError:
        return frozenset()
    trained = [trial for trial, fold in zip(book.trials, book.fold, strict=True) if fold >= 0 and trial in store]
    return frozenset(str(store.mark(trial).source.get("sha256")) for trial in trained) - {"None"}
