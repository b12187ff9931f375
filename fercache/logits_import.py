"""Logits from elsewhere: any model's table of predictions, declared out of fold or not, kept as a book of its own."""

from __future__ import annotations

import hashlib
import logging
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fercache.config import LogitsConfig, fingerprint_of
from fercache.data import folds, tables
from fercache.data.base import UNKNOWN, printable, shorten_list
from fercache.data.table import MOST_FRAMES, SPLITS
from fercache.errors import InputError
from fercache.oof import OofLogits
from fercache.workspace import Workspace

log = logging.getLogger(__name__)


FORMAT = 1
KNOWN = ("clip", "frame", "person", "label", "split", "group", "subject")
TAKEN = ("auto", "mean", "chain", "smoothed-mean", "logistic", "geometric-mean", "stack")
LOGIT = "logit_"
FLOOR = 1e-7
OFF_ONE = 0.02
"""Probabilities may miss a sum of 1 by so much (rounding); they are scaled to 1."""


@dataclass
class _Person:
    """The rows of one person of one clip, as they come."""

    clip: str
    split: str = ""
    group: str = ""
    frames: array[int] = field(default_factory=lambda: array("q"))
    labels: array[int] = field(default_factory=lambda: array("i"))
    values: array[float] = field(default_factory=lambda: array("f"))


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Where the columns of a table are."""

    path: Path
    at: dict[str, int]
    classes: tuple[str, ...]
    values: tuple[int, ...]
    logits: bool

    @property
    def frames(self) -> bool:
        """Whether a row is a frame; else a whole clip."""
        return "frame" in self.at


def path_of(cache: Path, dataset: str, name: str) -> Path:
    """Return where imported logits lie."""
    return Workspace(cache).imported_logits(dataset) / f"{name}.h5"


def imported_names(cache: Path, dataset: str) -> list[str]:
    """Return the names of all imported logits of a data set."""
    return sorted(path.stem for path in Workspace(cache).imported_logits(dataset).glob("*.h5"))


def load(cache: Path, dataset: str, wanted: Sequence[str]) -> list[OofLogits]:
    """Return imported logits by name.

    Raises
    ------
    InputError
        There is none of that name.
    """
    for name in wanted:
        if not path_of(cache, dataset, name).is_file():
            raise InputError(f"no imported logits {name!r}", where=f"data set {dataset}",
                             hint=f"there are: {shorten_list(imported_names(cache, dataset)) or 'none'}; import them "
                                  f"with "
                                  f"`fercache logits import {name} --table FILE`")
    return [OofLogits.load(path_of(cache, dataset, name)) for name in wanted]


def import_logits(name: str, config: LogitsConfig, dataset: str, cache: Path) -> tuple[Path, OofLogits]:
    """Return where the logits of a table were put, and the book they make.

    Parameters
    ----------
    name : what the source is called among the heads.
    dataset : the data set's name in the cache.

    Raises
    ------
    InputError
        The table is not a table of predictions, or says two things of one frame.

    Notes
    -----
    What a table declares of itself is taken at its word here and tested by `fercache audit`.
    """
    if not name.isidentifier() or name in TAKEN:
        raise InputError(f"{name!r} cannot name a source", where="logits import",
                         hint=f"use letters, digits and underscores; {', '.join(TAKEN)} are taken")
    table = Path(config.table)
    layout = _layout([word.strip() for word in tables.read_header(table)], table)
    people = _collect(layout, config)
    if not people:
        raise InputError("the table has no row that is wanted", where=table, hint="check it, and --only")
    book = _book(name, people, layout, config, dataset)
    path = path_of(cache, dataset, name)
    book.save(path)
    log.info("%s: %d rows of %d clips, declared %s", name, int(book.valid.sum()), len(set(book.clips)),
             config.provenance)
    return path, book


def _layout(header: Sequence[str], path: Path) -> _Layout:
    """Return where a table's columns are; the values' columns share one prefix (``p_``, ``logit_`` or another)."""
    at = {word.casefold(): i for i, word in enumerate(header) if word.casefold() in KNOWN}
    rest = [(i, word) for i, word in enumerate(header) if word.casefold() not in KNOWN]
    prefixes = {word.split("_", 1)[0] + "_" for _, word in rest}
    if "clip" not in at or len(rest) < 2 or len(prefixes) != 1 or not all("_" in word for _, word in rest):
        raise InputError(f"not a table of predictions (columns: {shorten_list(header, 12)})", where=path,
                         hint="columns: clip[,frame][,person][,label][,split][,group], then p_CLASS or logit_CLASS for "
                              "each class")
    prefix = prefixes.pop()
    classes = tuple(word.removeprefix(prefix) for _, word in rest)
    if len(set(classes)) < len(classes) or not all(classes):
        raise InputError("a class appears twice, or has no name", where=path, hint="fix the header")
    return _Layout(path=path, at=at, classes=classes, values=tuple(i for i, _ in rest), logits=prefix == LOGIT)


def _collect(layout: _Layout, config: LogitsConfig) -> dict[str, _Person]:
    """Return trial name -> its rows."""
    people: dict[str, _Person] = {}
    for line, values in tables.read_rows(layout.path):
        if not any(values):
            continue
        try:
            _take(people, values, layout, config)
        except ValueError as error:
            raise InputError(f"line {line}: {error}", where=layout.path, hint="fix the table") from error
    return people


def _take(people: dict[str, _Person], values: Sequence[str], layout: _Layout, config: LogitsConfig) -> None:
    """Put one row where it belongs."""
    word = {key: values[i].strip() for key, i in layout.at.items()}
    split = SPLITS.get(word.get("split", "").casefold() or "train")
    if split is None:
        raise ValueError(f"split {word['split']!r} is none of train, validation, test")
    if config.only and split != config.only:
        return
    clip, person = word["clip"], word.get("person", "")
    if not clip or not printable(clip):
        raise ValueError("no usable clip")
    name = f"{clip}#{person}" if person else clip
    entry = _Person(clip=clip, split="train" if config.only else split,
                   group=word.get("group", "") or word.get("subject", "") or clip)
    mine = people.setdefault(name, entry)
    for what, first, now in (("split", mine.split, entry.split), ("group", mine.group, entry.group)):
        if now != first:  # to take either would train on what is held out, or hold out what is trained on
            raise ValueError(f"{name} has {what} {now!r} here and {first!r} in a row before; "
                             f"a clip has one {what}, the same in every row")
    frame = int(word["frame"]) if layout.frames else 1
    label = tables.code(word.get("label", ""), layout.classes)
    if not 1 <= frame <= MOST_FRAMES:
        raise ValueError(f"frame {frame}: frames count from 1")
    if label is None:
        raise ValueError(f"label {word['label']!r} is none of {', '.join(layout.classes)}")
    mine.frames.append(frame)
    mine.labels.append(label)
    mine.values.extend(float(values[i]) for i in layout.values)


def _book(name: str, people: dict[str, _Person], layout: _Layout, config: LogitsConfig, dataset: str) -> OofLogits:
    """Return the book of a table."""
    trials = sorted(people)
    parts = [_clock(trial, people[trial], layout) for trial in trials]
    lengths = np.array([len(part["index"]) for part in parts], np.int64)
    label = np.concatenate([part["label"] for part in parts])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    group, split = tuple(people[t].group for t in trials), tuple(people[t].split for t in trials)
    index = np.concatenate([part["index"] for part in parts])
    provenance = {"format": FORMAT, "source": name, "table": layout.path.name, "declared": config.provenance,
            "level": "frame" if layout.frames else "clip", "only": config.only, "settings": {}}
    logits = np.concatenate([part["logits"] for part in parts])
    fold, fixed = _folds(group, split, label, offsets, len(layout.classes), config)
    return OofLogits(dataset=dataset, classes=layout.classes, metric="macro_f1", notice="", heads=(name,),
                     trials=tuple(trials), group=group, split=split, fold=fold, offsets=offsets, index=index,
                     time_s=np.concatenate([(part["index"] - part["index"][0]) / config.fps for part in parts]),
                     valid=np.concatenate([part["valid"] for part in parts]), label=label, logits={name: logits},
                     provenance=provenance, fingerprint=fingerprint_of([provenance, config.settings(),
                                                                  _digest(logits, label, index)]),
                     epochs_fixed=fixed, clip=tuple(people[t].clip for t in trials),
                     declared={name: config.provenance})


def _digest(*arrays: NDArray[Any]) -> str:
    """Return a digest of arrays."""
    state = hashlib.sha256()
    for values in arrays:
        state.update(np.ascontiguousarray(values).tobytes())
    return state.hexdigest()


def _clock(trial: str, person: _Person, layout: _Layout) -> dict[str, NDArray[Any]]:
    """Return one trial's rows on a clock without holes, from its first frame to its last."""
    frames = np.array(person.frames, np.int64)
    values = np.array(person.values, np.float32).reshape(len(frames), len(layout.classes))
    if len(np.unique(frames)) < len(frames):
        raise InputError("a frame appears twice", where=f"{layout.path}, {trial}",
                         hint="one row a frame; tell several people apart with a column `person`")
    index = np.arange(frames.min(), frames.max() + 1)
    place = frames - index[0]
    logits = np.full((len(index), len(layout.classes)), -np.log(len(layout.classes)), np.float32)
    logits[place] = _log_probabilities(values, trial, layout)
    valid = np.zeros(len(index), bool)
    valid[place] = True
    label = np.full(len(index), UNKNOWN, np.int16)
    label[place] = np.array(person.labels, np.int16)
    return {"index": index.astype(np.int32), "valid": valid, "label": label, "logits": logits}


def _log_probabilities(values: NDArray[np.float32], trial: str, layout: _Layout) -> NDArray[np.float32]:
    """Return log-probabilities, ``(n, C)``."""
    where = f"{layout.path}, {trial}"
    if not np.isfinite(values).all():
        raise InputError("a value is not a number", where=where, hint="fix the table")
    if layout.logits:
        shifted = values - values.max(1, keepdims=True)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)), np.float32)
    total = values.sum(1, keepdims=True)
    if (values < 0).any() or np.abs(total - 1).max() > OFF_ONE:
        raise InputError(f"no probabilities: they sum to {float(total[np.abs(total - 1).argmax(), 0]):.3f}, or one is "
                         "below 0", where=where, hint="call the columns logit_CLASS if they are logits")
    return np.asarray(np.log(np.maximum(values / total, FLOOR)), np.float32)


def _folds(group: Sequence[str], split: Sequence[str], label: NDArray[np.int16], offsets: NDArray[np.int64],
           classes: int, config: LogitsConfig) -> tuple[NDArray[np.int16], bool]:
    """Return the fold of each trial, ``(N,)``, and whether there are too few groups to choose anything by."""
    training = np.array([one == "train" for one in split])
    counts = np.array([np.bincount(label[a:b][label[a:b] >= 0], minlength=classes)
                       for a, b in pairwise(offsets)]) * training[:, None]
    labelled = {g for g, n in zip(group, counts.sum(1), strict=True) if n}
    if len(labelled) < 2:
        return np.full(len(group), -1, np.int16), True
    fold = folds.assign_folds([g if t else "" for g, t in zip(group, training, strict=True)], counts, config.folds,
                        config.seed)
    return np.where(training, fold, -1).astype(np.int16), len(labelled) < folds.MIN_GROUPS_TO_CHOOSE
