"""What trained heads say of trials that they have never seen, as a book of logits."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fercache.backbones.registry import KNOWN_WEIGHTS
from fercache.config import ExtractConfig, fingerprint_of
from fercache.data import labels
from fercache.data.base import Dataset, Trial
from fercache.errors import InputError
from fercache.oof import OofLogits
from fercache.runtime import atomic_io
from fercache.store.embedding_store import EmbeddingStore
from fercache.training import train

log = logging.getLogger(__name__)


# Which trained heads and which stacker speak: those that were asked for, or the current ones.

METRICS = "metrics.json"
"""What a finished stack run holds."""


@dataclass(frozen=True, kw_only=True)
class SelectedModels:
    """A trained set of heads and the stacker that was trained on their out-of-fold logits.

    Attributes
    ----------
    book : those logits: what the heads are, and which trials they were trained on.
    heads : folder of the heads; stack : folder of the stack run.
    """

    logits_file: OofLogits
    heads: Path
    stack: Path


def select_models(cache: Path, heads: Path | None = None, stack: Path | None = None,
                  dataset: str = "") -> SelectedModels:
    """Return the heads and the stacker to predict with.

    Parameters
    ----------
    heads : folder of heads, or their book of logits; stack : folder of a stack run of them.
    dataset : name in the cache of the data set whose current heads are meant where neither is given; of the data set
        that was trained last in this cache if it is empty or has no heads.

    Raises
    ------
    InputError
        They are not there, or do not belong together.
    StoreError
        The book is damaged.
    """
    if stack is not None and heads is None:
        metrics = _metrics(stack)
        heads = cache / "logits" / str(metrics["dataset"]) / f"{str(metrics['logits']['fingerprint'])[:12]}.h5"
    path = _book(heads) if heads is not None else _current(cache, dataset)
    if not path.is_file():
        raise InputError("no trained heads", where=path, hint="run `fercache train-heads`, or name others with --heads")
    book, folder = OofLogits.load(path), path.parents[2] / "heads" / path.parent.name / path.stem
    found = stack or _stack_of(path.parents[2] / "stack" / book.dataset, book)
    if _metrics(found)["logits"]["fingerprint"] != book.fingerprint:
        raise InputError("this stack run was trained on other heads' logits", where=found,
                         hint=f"name a run of the heads {folder}, or leave --stack out")
    log.info("heads %s, stack %s, trained on %s", folder, found.name, book.dataset)
    return SelectedModels(logits_file=book, heads=folder, stack=found)


def _book(heads: Path) -> Path:
    """Return the book of logits of a folder of heads, or the book itself."""
    if heads.suffix == ".h5":
        return heads
    full = heads.resolve()
    return full.parents[2] / "logits" / full.parent.name / f"{full.name}.h5" if len(full.parents) > 2 else full


def _current(cache: Path, dataset: str) -> Path:
    """Return the book that the data set's last training made or found, or else this cache's last training."""
    pointers = sorted(cache.glob("logits/*/current.json"), key=lambda path: path.stat().st_mtime_ns)
    if not pointers:
        raise InputError("no heads were trained yet", where=cache / "logits",
                         hint="run `fercache extract`, `fercache train-heads` and `fercache stack` on labelled clips")
    own = [path for path in pointers if path.parent.name == dataset]
    return train.current_logits_file(cache, (own or pointers)[-1].parent.name)


def _stack_of(folder: Path, book: OofLogits) -> Path:
    """Return the newest finished stack run of a book."""
    runs = sorted(_runs(folder, book.fingerprint))
    if not runs:
        raise InputError("these heads have no stacker yet", where=folder,
                         hint="run `fercache stack` on the data set they were trained on")
    return runs[-1][1]


def _runs(folder: Path, fingerprint: str) -> Iterator[tuple[int, Path]]:
    """Yield (time of its end, folder) of each finished run of the book with this fingerprint."""
    for path in folder.glob(f"*/{METRICS}"):
        if atomic_io.read_json(path).get("logits", {}).get("fingerprint") == fingerprint:
            yield path.stat().st_mtime_ns, path.parent


def _metrics(folder: Path) -> dict[str, Any]:
    """Return what a stack run says of itself."""
    if not (folder / METRICS).is_file():
        raise InputError("no finished stack run", where=folder, hint="run `fercache stack`, or name its folder in "
                                                                    "cache/stack with --stack")
    metrics: dict[str, Any] = atomic_io.read_json(folder / METRICS)
    return metrics


FORMAT = 1
"""Raised whenever the code changes what heads say of new trials."""
MOST_BYTES = 256 << 20
"""Bytes of features held at once: memory stays flat however many trials there are."""
RATE_DIGITS = 6
"""Clips whose time between frames agrees to so many digits have windows of one length, and go through together."""
UNKNOWN = -1


@dataclass(frozen=True, kw_only=True)
class HeadEnsemble:
    """Trained heads: their folder, the book that they come from, and where they are run."""

    folder: Path
    logits_file: OofLogits
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
    known = {labels.canonical_class_name(name) for name in classes}
    if not any(labels.canonical_class_name(name) in known for name in dataset.classes):
        raise InputError(f"is labelled with {', '.join(dataset.classes)}, which the heads do not know",
                         where=dataset.name,
                         hint=f"the heads tell {', '.join(classes)}; leave the labels out, or train on such labels")
    names = labels.map_class_names(dataset.classes, classes)
    place = np.array([*names.to, UNKNOWN], np.int16)
    trials = tuple(replace(t, labels=None if t.labels is None else place[t.labels], clip_label=int(place[t.clip_label]))
                   for t in dataset.trials)
    settings = f"labels of {', '.join(names.lost)} are left out: the heads do not know them" if names.lost else ""
    return replace(dataset, classes=tuple(classes), trials=trials,
                   notice="; ".join(filter(None, (dataset.notice, settings))))


def predict_logits(dataset: Dataset, trials: Sequence[Trial], store: EmbeddingStore, speakers: HeadEnsemble,
            folder: Path) -> tuple[OofLogits, bool]:
    """Return what the heads say of `trials`, no fold holding any out, and whether an earlier run had said it.

    Parameters
    ----------
    folder : where the book is kept.
    """
    features = fingerprint_of([store.manifest(trial.name).identity() for trial in trials])
    print_ = fingerprint_of({"heads": speakers.logits_file.fingerprint, "features": features,
                             "settings": store.settings,
                     "dataset": dataset.digest(), "trials": [t.name for t in trials], "format": FORMAT})
    path = folder / f"{print_[:12]}.h5"
    if path.is_file():
        return OofLogits.load(path), True
    rows, trained = _predicted(trials, store, speakers), speakers.logits_file
    about = {"heads": trained.fingerprint, "trained_on": trained.dataset, "store": store.path.name,
             "features": features}
    book = OofLogits(dataset=dataset.name, classes=trained.classes, heads=trained.heads, notice=dataset.notice,
                     metric=trained.metric if dataset.layout == "clips" else dataset.metric,
                     trials=tuple(t.name for t in trials), group=tuple(t.group for t in trials),
                     split=tuple(t.split for t in trials), fold=np.full(len(trials), UNKNOWN, np.int16),
                     provenance=about, fingerprint=print_, epochs_fixed=trained.epochs_fixed, **rows)
    book.save(path)
    return book, False


def _predicted(trials: Sequence[Trial], store: EmbeddingStore, speakers: HeadEnsemble) -> dict[str, Any]:
    """Return the rows of a book: clock, labels and logits of all trials, in their order."""
    from fercache.runtime.devices import resolve_device, use_threads
    from fercache.training.inference import load_trained, predict_new

    use_threads(speakers.threads)
    device, heads = resolve_device(speakers.device), load_trained(speakers.folder)
    if heads.heads != speakers.logits_file.heads or heads.classes != speakers.logits_file.classes:
        raise InputError(f"gives {', '.join(heads.heads)}; the stacker reads {', '.join(speakers.logits_file.heads)}",
                         where=speakers.folder, hint="stack logits of trained heads alone to predict new clips")
    parts: dict[int, dict[str, Any]] = {}
    for together in _alike(trials, store, 2 * sum(prod(part.shape) for part in heads.layout)):
        features = heads.load_features(store, [trials[i] for i in together])
        predicted = predict_new(heads, features, device)
        for i, start, stop in zip(together, features.offsets[:-1], features.offsets[1:], strict=True):
            rows = slice(int(start), int(stop))
            parts[i] = {"logits": {head: values[rows] for head, values in predicted.items()},
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
        steps = np.diff(store[trial.name].frame_table["time_s"])
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


# New features must be made as those were that the heads learnt from: the settings to do so, and what differs.

FREE = ("augmentations", "augmentation_version", "taps", "crop_fps", "on_truncated", "people", "people_version")
"""Settings that may differ: they do not change what one frame's features are (taps are looked at by themselves)."""
BY_THE_CLIPS = ("faces", "weights", "augmentations")
"""Settings of the heads' store that are not simply taken over."""


def extract_config_of(wanted: Mapping[str, Any], usual: ExtractConfig, typed: Mapping[str, Any]) -> ExtractConfig:
    """Return how stage one is to be run: as for the store that the heads learnt from, but for what was `typed`.

    Parameters
    ----------
    wanted : settings of that store.
    usual : gives the device, the threads, and the path of weights that are the user's own.

    Notes
    -----
    Views are for training: none are made. Whether faces are looked for follows from the clips, and is compared.
    """
    numbers = {entry.name for entry in fields(ExtractConfig) if entry.metadata["numbers"]}
    settings = {name: tuple(value) if isinstance(value, list) else value for name, value in wanted.items()
            if name in numbers and name not in BY_THE_CLIPS}
    if wanted.get("backbone") in KNOWN_WEIGHTS:
        settings["weights"] = wanted["backbone"]
    return replace(usual, **{**settings, "faces": "auto", "augmentations": 1, **typed})


def check_match(wanted: Mapping[str, Any], have: Mapping[str, Any], *, taps: Sequence[str], held: Sequence[str],
          where: Path, force: bool) -> tuple[str, ...]:
    """Return what differs between the features that the heads learnt from and those at hand.

    Parameters
    ----------
    wanted, have : settings of the two stores.
    taps : what the heads read; held : the taps at hand.
    where : folder of the heads.
    force : go on in spite of differences.

    Raises
    ------
    InputError
        Something differs and `force` is off, or a tap that the heads read is not there.
    """
    lacking = [tap for tap in taps if tap not in held]
    if lacking:
        raise InputError(f"the heads read the tap {lacking[0]}, the features at hand are {', '.join(held)}",
                         where=where, hint="leave --taps out: the heads' own are taken then; this cannot be forced")
    differ = settings_differences(wanted, have)
    if differ and not force:
        raise InputError("the heads were trained on other features: " + "; ".join(differ), where=where,
                         hint="train heads on features that are made like these, or predict nevertheless with --force "
                              "(on another crop policy heads fell from F1 .384 to .214 in a published case)")
    for one in differ:
        log.warning("forced: %s", one)
    return differ


def settings_differences(wanted: Mapping[str, Any], have: Mapping[str, Any]) -> tuple[str, ...]:
    """Return, in words, each setting that changes a frame's features and differs."""
    same_policy = wanted.get("faces") == have.get("faces")
    names = wanted.keys() | have.keys() if same_policy else wanted.keys() & have.keys()
    return tuple(f"{name} = {_short(wanted.get(name))} there, {_short(have.get(name))} here"
                 for name in sorted(names - set(FREE)) if wanted.get(name) != have.get(name))


def _short(value: Any) -> str:
    """Return a value for a message; of a hash the first digits."""
    text = str(value)
    return text[:12] if len(text) == 64 else text
