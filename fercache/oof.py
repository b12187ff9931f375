"""Folds by group, and out-of-fold logits: every head's prediction for every frame, and its fold. One HDF5 file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import h5py
import msgspec
import numpy as np
from numpy.typing import NDArray

from fercache import metrics
from fercache.backbones.taps import TapSlice
from fercache.config import fingerprint_of
from fercache.errors import InputError, StoreError
from fercache.heads.registry import HeadSettings
from fercache.runtime.atomic_io import replacing

FORMAT = 1
ROWS = ("index", "time_s", "valid", "label")
TRIALS = ("trials", "group", "split")
JSON_FIELDS = ("dataset", "classes", "metric", "notice", "heads", "provenance", "fingerprint", "epochs_fixed", "clip",
               "declared")
"""Fields of `OofLogits` that one data set of the file, ``about``, holds as JSON."""
OUT_OF_FOLD, HELD_OUT, IN_SAMPLE = "out-of-fold", "held-out", "in-sample"
MIN_GROUPS_TO_CHOOSE = 4  # with fewer, nothing is selected by held-out score: epochs are fixed, the mean is final


def assign_folds(groups: Sequence[str], counts: NDArray[np.int64], k: int, seed: int) -> NDArray[np.int16]:
    """Return the fold of each trial, ``(N,)``; all trials of a group are in the same fold.

    `groups`: (N,) the group (parent video or subject) of each trial. `counts`: (N, C) labelled frames of each class; a
    group without any gets fold -1. `k`: number of folds; fewer if there are fewer labelled groups. Raises InputError if
    fewer than two groups have labels.
    """
    # Greedy stratification: groups in falling order of labelled frames (ties in random order), each to the fold where
    # it keeps the class distributions of the folds most alike (the criterion of scikit-learn's StratifiedGroupKFold:
    # the mean over classes of the folds' standard deviation), then to the fold with the fewest frames.
    names = sorted({g for g, n in zip(groups, counts.sum(1), strict=True) if n})
    if len(names) < 2:
        raise InputError(f"{len(names)} group(s) with labels; folds need two", where="the data set",
                         hint="label clips of at least two people, or name the people with `subject` or `group`")
    k = min(k, len(names))
    position = {name: i for i, name in enumerate(names)}
    member = np.array([position.get(g, -1) for g in groups])
    totals = np.zeros((len(names), counts.shape[1]))  # (G, C)
    np.add.at(totals, member[member >= 0], counts[member >= 0])
    fraction = totals / np.maximum(totals.sum(0), 1)
    # The stable sort keeps the random order among groups of equal size.
    order = np.random.default_rng(seed).permutation(len(totals))
    order = order[np.argsort(-totals[order].sum(1), kind="stable")]
    in_fold = np.zeros((k, totals.shape[1]))
    fold = np.zeros(len(totals), np.int16)
    size = np.zeros(k, int)
    for place, g in enumerate(order):
        # The last groups go to folds that are still empty, so that no fold is without a group.
        allowed = size == 0 if len(order) - place <= (size == 0).sum() else np.ones(k, bool)
        costs = [(np.std(in_fold + fraction[g] * (np.arange(k) == f)[:, None], axis=0).mean(), in_fold[f].sum(), f)
                 for f in np.flatnonzero(allowed)]
        fold[g] = min(costs)[2]
        in_fold[fold[g]] += fraction[g]
        size[fold[g]] += 1
    return np.where(member >= 0, fold[member], -1).astype(np.int16)


def class_counts(label: NDArray[np.int16], offsets: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Return the number of labelled frames of each class in each trial, ``(N, C)``, for `assign_folds`."""
    trial = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    cell = (trial * classes + label)[label >= 0]
    return np.bincount(cell, minlength=(len(offsets) - 1) * classes).reshape(-1, classes)


def inner_groups(groups: Sequence[str], share: float, seed: int) -> set[str]:
    """Return the validation groups among a fold's training groups, to choose epochs by; empty if there are too few.

    `share`: fraction of the groups, at least one group.
    """
    names = sorted(set(groups))
    if len(names) < MIN_GROUPS_TO_CHOOSE - 1:
        return set()
    count = max(1, round(share * len(names)))
    return set(np.random.default_rng(seed).permutation(np.array(names, object))[:count].tolist())


def without_sound(logits_file: Path, settings: Mapping[str, Any]) -> tuple[str, Path]:
    """Return fingerprint and path of the logits that the heads of a training predict as if no clip had sound.

    `logits_file`: of the training; the other file is beside it. `settings`: those that its fingerprint covers.
    """
    fingerprint = fingerprint_of({**settings, "without_sound": True})
    return fingerprint, logits_file.with_name(f"{fingerprint[:12]}{logits_file.suffix}")


class RequestedHeads(msgspec.Struct, frozen=True, kw_only=True):
    """The training run that a head belongs to."""

    heads: tuple[str, ...]  # those that the recipe names
    needs: tuple[str, ...]  # the same, and the frame head where temporal heads read its output
    folds: int
    ensemble: int  # members per fold


class StarterInit(msgspec.Struct, frozen=True, kw_only=True):
    """The starter heads that a frame head began with."""

    digest: str  # of their weights
    data: str  # what they were trained on, from their card
    classes: tuple[str, ...]  # classes that are theirs too; the others begin anew
    shared: str  # why the pictures of this data set may be among the starter's, "" if nothing is known of that


class HeadRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One trained head: the JSON beside its weights, and part of the provenance of its logits."""

    head: str
    fold: int
    member: int
    seed: int
    requested: RequestedHeads
    classes: tuple[str, ...]
    settings: HeadSettings
    taps: tuple[TapSlice, ...]  # those that were loaded
    input_taps: tuple[TapSlice, ...]  # those that the head itself reads (for some heads the frame head's output)
    normalize: str  # how features are read
    frame_s: float  # median seconds between frames
    train_groups: tuple[str, ...]
    val_groups: tuple[str, ...]  # groups of the trials that chose the epoch
    store: dict[str, Any]  # settings of the embedding store
    store_digest: str  # digest of its content
    epoch: int  # the epoch of the weights
    val_macro_f1: float | None  # its macro F1 on the validation trials, None without any
    # Unset, and not written, for random initial weights.
    init: StarterInit | msgspec.UnsetType = msgspec.UNSET
    version: Literal[1] = 1


class Provenance(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What logits come from: a training, trained heads that predicted new clips, or an imported table."""

    # Of a training or of new clips.
    store: str = ""  # name of the store of the features
    heads: tuple[HeadRecord, ...] | str = ()  # those of a training; the fingerprint of those that predicted new clips
    settings: dict[str, Any] | None = None  # what the fingerprint of a training covers; {} of an import
    # Of new clips.
    trained_on: str | None = None  # data set of the heads
    features: str | None = None  # digest of the clips' features
    # Of an import; None elsewhere.
    format: int | None = None
    source: str | None = None
    table: str | None = None
    declared: str | None = None
    level: str | None = None  # frame or clip
    only: str | None = None
    merged: dict[str, Provenance] = {}  # the imported sources that were merged with these logits, by name

    @property
    def records(self) -> tuple[HeadRecord, ...]:
        """The records of the heads that were trained with these logits."""
        return () if isinstance(self.heads, str) else self.heads

    def setting(self, name: str) -> Any:
        """Return a setting of the training, None if there is none."""
        return (self.settings or {}).get(name)


@dataclass(frozen=True, kw_only=True)
class OofLogits:
    """Logits of all heads, row by row; a row is a frame of a trial's frame table."""

    dataset: str
    classes: tuple[str, ...]
    metric: str
    notice: str
    heads: tuple[str, ...]
    # `trials`, `group`, `split`: (N,) names; `split` is train, validation or test.
    trials: tuple[str, ...]
    group: tuple[str, ...]
    split: tuple[str, ...]
    fold: NDArray[np.int16]  # (N,) int16, the fold that holds the trial out; -1 if no fold does
    offsets: NDArray[np.int64]  # (N + 1,) int64; the rows of trial i are ``offsets[i]:offsets[i + 1]``
    index: NDArray[np.int32]  # (R,) int32, frame numbers from 1
    time_s: NDArray[np.float64]  # (R,) float64, from 0 in each trial
    valid: NDArray[np.bool_]  # (R,) bool, whether a face was seen
    label: NDArray[np.int16]  # (R,) int16, -1 where not annotated
    # Head -> (R, C) float32. Rows of a trial with a fold are out of fold: by the models that saw nothing of its group.
    # The others are the mean over the folds' models of log-probabilities.
    logits: dict[str, NDArray[np.float32]]
    provenance: Provenance
    fingerprint: str
    epochs_fixed: bool = False  # whether there were too few groups to choose the number of epochs
    # (N,) the clip of each trial where that is not the trial itself (several people of one clip), else empty.
    clip: tuple[str, ...] = ()
    # Head -> `OUT_OF_FOLD`, `HELD_OUT` or `IN_SAMPLE`, for heads that were imported; ours are out of fold.
    declared: dict[str, str] = field(default_factory=dict)
    # Head -> (R, S, C) float32, where a row is a whole clip: statistics of its frames. Not saved.
    pooled: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    @property
    def clips(self) -> tuple[str, ...]:
        """The clip of each trial, ``(N,)``."""
        return self.clip or self.trials

    @property
    def leaky_heads(self) -> tuple[str, ...]:
        """The heads that were fitted on rows of the folds: their predictions of these rows are not out of fold."""
        # Without folds nothing is learned from these rows, so nothing can leak.
        has_folds = any(fold >= 0 for fold in self.fold)
        return tuple(head for head in self.heads if has_folds and self.declared.get(head) == IN_SAMPLE)

    @property
    def scored(self) -> NDArray[np.bool_]:
        """The labelled rows of the folds, ``(R,)``."""
        return np.asarray((self.per_row(self.fold) >= 0) & (self.label >= 0))

    def fold_groups(self, fold: int | None = None) -> set[str]:
        """Return the groups of a fold, by default those of all folds."""
        inside = self.fold >= 0 if fold is None else self.fold == fold
        return {group for group, i in zip(self.group, inside, strict=True) if i}

    def rows(self, trial: int) -> slice:
        """Return the rows of the trial with that index."""
        return slice(int(self.offsets[trial]), int(self.offsets[trial + 1]))

    def rows_of(self, trials: Iterable[int]) -> NDArray[np.int64]:
        """Return the rows of several trials, at least one, given by their indices, in that order."""
        return np.concatenate([np.arange(self.offsets[i], self.offsets[i + 1]) for i in trials])

    def subset(self, trials: NDArray[np.int64]) -> OofLogits:
        """Return the logits of some trials, given by their indices."""
        rows = self.rows_of(trials)
        names: dict[str, Any] = {name: tuple(np.array(getattr(self, name), object)[trials].tolist())
                                 for name in (*TRIALS, "clip") if getattr(self, name)}
        lengths = np.diff(self.offsets)[trials]
        return replace(self, **names, fold=self.fold[trials], offsets=np.concatenate([[0], np.cumsum(lengths)]),
                       **{name: getattr(self, name)[rows] for name in ROWS},
                       logits={head: values[rows] for head, values in self.logits.items()},
                       pooled={head: values[rows] for head, values in self.pooled.items()})

    def per_row(self, per_trial: Any) -> NDArray[Any]:
        """Repeat one value per trial, ``(N,)``, to one per row, ``(R,)``."""
        return np.repeat(np.asarray(per_trial), np.diff(self.offsets))

    @property
    def group_number(self) -> NDArray[np.int64]:
        """The number of each trial's group, ``(N,)``, in the order of the groups' names."""
        return np.unique(self.group, return_inverse=True)[1]

    def confusions(self, predicted: NDArray[Any], rows: NDArray[np.bool_]) -> metrics.Counts:
        """Return a confusion matrix for each group that has one of the rows, ``(G, C, C)``; `predicted`: (R,)."""
        _, group = np.unique(self.per_row(self.group_number)[rows], return_inverse=True)
        return metrics.confusions(self.label[rows], predicted[rows], group, len(self.classes),
                                  int(group.max(initial=-1)) + 1)

    def save(self, path: Path) -> None:
        """Write the logits to `path` atomically."""
        record = msgspec.to_builtins({name: getattr(self, name) for name in JSON_FIELDS})
        with replacing(path) as temporary, h5py.File(temporary, "w") as file:
            file.attrs["format"] = FORMAT
            file.create_dataset("about", data=json.dumps(record, sort_keys=True), dtype=h5py.string_dtype())
            for name in TRIALS:
                file.create_dataset(f"trial/{name}", data=list(getattr(self, name)), dtype=h5py.string_dtype())
            file["trial/fold"], file["trial/offsets"] = self.fold, self.offsets
            for name in ROWS:
                file[f"frame/{name}"] = getattr(self, name)
            for head, values in self.logits.items():
                file[f"logits/{head}"] = values

    @classmethod
    def load(cls, path: Path) -> OofLogits:
        """Return the logits in a file; raise StoreError if it is absent, damaged, or of another format."""
        with open_oof(path) as oof:
            try:
                return replace(oof, **{name: getattr(oof, name)[:] for name in ROWS},
                               logits={head: values[:] for head, values in oof.logits.items()})
            except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
                raise _unreadable(path, error) from error


def _check_size(file: h5py.File, limit_bytes: int) -> None:
    """Raise ValueError for data larger than the file: HDF5 may state any shape for data that was never written."""
    def check(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.nbytes > limit_bytes:
            raise ValueError(f"the header of {name} states more bytes than the file has")
    file.visititems(check)


def _read_head(file: h5py.File) -> dict[str, Any]:
    """Return the fields of `OofLogits` that have no row per frame."""
    if file.attrs.get("format") != FORMAT:
        raise ValueError(f"format {file.attrs.get('format')!r}, this fercache reads {FORMAT}")
    record = json.loads(file["about"][()])
    # JSON has no tuples.
    record |= {name: tuple(record[name]) for name in ("classes", "heads", "clip") if name in record}
    record["provenance"] = msgspec.convert(record["provenance"], Provenance)
    record |= {name: tuple(file[f"trial/{name}"].asstr()[:]) for name in TRIALS}
    return {**record, "fold": file["trial/fold"][:], "offsets": file["trial/offsets"][:]}


@contextmanager
def open_oof(path: Path) -> Iterator[OofLogits]:
    """Yield the logits in a file as `OofLogits.load` does; rows are read when sliced, so it may be of any size."""
    try:
        file = h5py.File(path, "r")
    except (OSError, ValueError) as error:  # a ValueError: no name of a file, from a damaged pointer
        raise _unreadable(path, error) from error
    with file:
        try:
            # Before anything is read: a damaged header must not make h5py allocate terabytes.
            _check_size(file, path.stat().st_size)
            record = _read_head(file)
            oof = OofLogits(**record, **{name: file[f"frame/{name}"] for name in ROWS},
                            logits={head: file[f"logits/{head}"] for head in record["heads"]})
        except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise _unreadable(path, error) from error
        # Outside the try block: an error of the caller's own code must not be reported as a damaged file.
        yield oof


def _unreadable(path: Path, error: Exception) -> StoreError:
    return StoreError(f"not a readable file of logits ({error})", where=path,
                      hint="run `fercache train-heads` (remove the file first if it is damaged)")
