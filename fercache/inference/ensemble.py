"""What trained heads say of trials that they have never seen, as a book of logits."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fercache.config import digest
from fercache.data import labels
from fercache.data.base import Dataset, Trial
from fercache.errors import InputError
from fercache.oof import LogitBook
from fercache.store.embedding_store import EmbeddingStore

log = logging.getLogger(__name__)


FORMAT = 1
"""Raised whenever the code changes what heads say of new trials."""
MOST_BYTES = 256 << 20
"""Bytes of features held at once: memory stays flat however many trials there are."""
RATE_DIGITS = 6
"""Clips whose time between frames agrees to so many digits have windows of one length, and go through together."""
UNKNOWN = -1


@dataclass(frozen=True, kw_only=True)
class Speakers:
    """Trained heads: their folder, the book that they come from, and where they are run."""

    folder: Path
    book: LogitBook
    device: str
    threads: int


def labelled_as(dataset: Dataset, classes: Sequence[str]) -> Dataset:
    """Return the data set with labels that are indices into the heads' `classes`; they are matched by name.

    Raises
    ------
    InputError
        Not one of its classes is known to the heads.

    Notes
    -----
    Labels of a class that the heads do not know are left out, and its notice says so.
    """
    if tuple(dataset.classes) == tuple(classes):
        return dataset
    if not dataset.classes:
        return replace(dataset, classes=tuple(classes))
    known = {labels.canonical(name) for name in classes}
    if not any(labels.canonical(name) in known for name in dataset.classes):
        raise InputError(f"is labelled with {', '.join(dataset.classes)}, which the heads do not know",
                         where=dataset.name,
                         hint=f"the heads tell {', '.join(classes)}; leave the labels out, or train on such labels")
    names = labels.map_classes(dataset.classes, classes)
    place = np.array([*names.to, UNKNOWN], np.int16)
    trials = tuple(replace(t, labels=None if t.labels is None else place[t.labels], clip_label=int(place[t.clip_label]))
                   for t in dataset.trials)
    told = f"labels of {', '.join(names.lost)} are left out: the heads do not know them" if names.lost else ""
    return replace(dataset, classes=tuple(classes), trials=trials,
                   notice="; ".join(filter(None, (dataset.notice, told))))


def book_of(dataset: Dataset, trials: Sequence[Trial], store: EmbeddingStore, speakers: Speakers,
            folder: Path) -> tuple[LogitBook, bool]:
    """Return what the heads say of `trials`, no fold holding any out, and whether an earlier run had said it.

    Parameters
    ----------
    folder : where the book is kept.
    """
    features = digest([store.mark(trial.name).identity() for trial in trials])
    print_ = digest({"heads": speakers.book.fingerprint, "features": features, "settings": store.settings,
                     "dataset": dataset.digest(), "trials": [t.name for t in trials], "format": FORMAT})
    path = folder / f"{print_[:12]}.h5"
    if path.is_file():
        return LogitBook.load(path), True
    rows, trained = _said(trials, store, speakers), speakers.book
    about = {"heads": trained.fingerprint, "trained_on": trained.dataset, "store": store.path.name,
             "features": features}
    book = LogitBook(dataset=dataset.name, classes=trained.classes, heads=trained.heads, notice=dataset.notice,
                     metric=trained.metric if dataset.layout == "clips" else dataset.metric,
                     trials=tuple(t.name for t in trials), group=tuple(t.group for t in trials),
                     split=tuple(t.split for t in trials), fold=np.full(len(trials), UNKNOWN, np.int16),
                     provenance=about, fingerprint=print_, epochs_fixed=trained.epochs_fixed, **rows)
    book.save(path)
    return book, False


def _said(trials: Sequence[Trial], store: EmbeddingStore, speakers: Speakers) -> dict[str, Any]:
    """Return the rows of a book: clock, labels and logits of all trials, in their order."""
    from fercache.runtime.devices import (
        resolve_device,
        use_threads,  # torch: seconds that a cached run saves
    )
    from fercache.training.inference import speak, trained

    use_threads(speakers.threads)
    device, heads = resolve_device(speakers.device), trained(speakers.folder)
    if heads.heads != speakers.book.heads or heads.classes != speakers.book.classes:
        raise InputError(f"gives {', '.join(heads.heads)}; the stacker reads {', '.join(speakers.book.heads)}",
                         where=speakers.folder, hint="stack logits of trained heads alone to predict new clips")
    parts: dict[int, dict[str, Any]] = {}
    for together in _alike(trials, store, 2 * sum(prod(part.shape) for part in heads.layout)):
        features = heads.preload(store, [trials[i] for i in together])
        said = speak(heads, features, device)
        for i, start, stop in zip(together, features.offsets[:-1], features.offsets[1:], strict=True):
            rows = slice(int(start), int(stop))
            parts[i] = {"logits": {head: values[rows] for head, values in said.items()},
                        **{name: getattr(features, name)[rows] for name in ("index", "time_s", "valid", "label")}}
        log.info("%d of %d clips predicted", len(parts), len(trials))
    return _joined([parts[i] for i in range(len(trials))], heads.heads)


def _alike(trials: Sequence[Trial], store: EmbeddingStore, row_bytes: int) -> Iterator[list[int]]:
    """Yield positions of trials of one frame rate, as many as may be in memory together.

    Notes
    -----
    A window is so many frames of the features' usual rate; with one rate in them, what is said of a clip does not
    depend on which clips are predicted along with it.
    """
    waiting: dict[float, list[int]] = {}
    for i, trial in enumerate(trials):
        steps = np.diff(store[trial.name].clock["time_s"])
        rate = round(float(np.median(steps[steps > 0])), RATE_DIGITS) if (steps > 0).any() else 0.0
        waiting.setdefault(rate, []).append(i)
    for alike in waiting.values():
        batch: list[int] = []
        held = 0
        for i in alike:
            need = row_bytes * max(store[trials[i].name].frames, len(trials[i].on_clock(0)))
            if batch and held + need > MOST_BYTES:
                yield batch
                batch, held = [], 0
            batch.append(i)
            held += need
        yield batch


def _joined(parts: Sequence[Mapping[str, Any]], heads: Sequence[str]) -> dict[str, Any]:
    """Return the rows of the trials one after the other."""
    lengths: NDArray[np.int64] = np.array([len(part["label"]) for part in parts], np.int64)
    return {"offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            "logits": {head: np.concatenate([part["logits"][head] for part in parts]) for head in heads},
            **{name: np.concatenate([part[name] for part in parts]) for name in ("index", "time_s", "valid", "label")}}
