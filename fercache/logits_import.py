"""Logits of any other model: a table of predictions, declared out of fold or not, becomes an `OofLogits` file."""

from __future__ import annotations

import hashlib
import logging
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from fercache.config import LogitsConfig, fingerprint_of
from fercache.data import tables
from fercache.data.base import UNKNOWN, printable
from fercache.data.labels import MOST_FRAMES, whole_number
from fercache.data.table import SPLITS
from fercache.errors import InputError, shorten_list
from fercache.oof import MIN_GROUPS_TO_CHOOSE, OofLogits, Provenance, assign_folds, class_counts
from fercache.workspace import Workspace

log = logging.getLogger(__name__)

FORMAT = 1
KNOWN = ("clip", "frame", "time_s", "person", "label", "split", "group", "subject")
TAKEN = ("auto", "mean", "smoothed-mean", "logistic", "geometric-mean", "stack")
LOGIT = "logit_"
MIN_PROB = 1e-7
SUM_TOLERANCE = 0.02  # probabilities may miss a sum of 1 by this much (rounding); they are scaled to 1


@dataclass
class _Person:
    """The rows of one person of one clip, in the order of the table; arrays take a tenth of the memory of lists."""

    clip: str
    split: str
    group: str
    frames: array[int] = field(default_factory=lambda: array("q"))
    labels: array[int] = field(default_factory=lambda: array("i"))
    values: array[float] = field(default_factory=lambda: array("f"))


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Where the columns of a table are; `position` holds those of KNOWN, `values` those of the classes."""

    path: Path
    position: dict[str, int]
    classes: tuple[str, ...]
    values: tuple[int, ...]
    logits: bool


def path_of(cache: Path, dataset: str, name: str) -> Path:
    """Return the path of imported logits."""
    return Workspace(cache).imported_logits(dataset) / f"{name}.h5"


def imported_names(cache: Path, dataset: str) -> list[str]:
    """Return the names of all imported logits of a data set."""
    return sorted(path.stem for path in Workspace(cache).imported_logits(dataset).glob("*.h5"))


def load(cache: Path, dataset: str, wanted: Sequence[str]) -> list[OofLogits]:
    """Return imported logits by name."""
    for name in wanted:
        if not path_of(cache, dataset, name).is_file():
            raise InputError(f"no imported logits {name!r}", where=f"data set {dataset}",
                             hint=f"there are: {shorten_list(imported_names(cache, dataset)) or 'none'}; import them "
                                  f"with `fercache logits import {name} --table FILE`")
    return [OofLogits.load(path_of(cache, dataset, name)) for name in wanted]


def import_logits(name: str, config: LogitsConfig, dataset: str, cache: Path,
                  first_frame: int = 1) -> tuple[Path, OofLogits]:
    """Import a table of predictions; return the file that was written and its content.

    `first_frame`: number of a clip's first frame in the table. Raises InputError if the table is not a table of
    predictions, or it contradicts itself about a frame or a clip.
    """
    # The table's own declaration (out of fold or not) is trusted here; `fercache audit` tests it.

    # The name becomes a file name and a column of reports, beside the names of heads and candidates.
    if not name.isidentifier() or name in TAKEN:
        raise InputError(f"{name!r} cannot name a source", where="logits import",
                         hint=f"use letters, digits and underscores; {', '.join(TAKEN)} are taken")
    table = Path(config.table)
    layout = _layout(tables.read_header(table), table)
    people: dict[str, _Person] = {}
    for line, values in tables.read_rows(table):
        if not any(values):
            continue
        try:
            _add_row(people, values, layout, config, first_frame)
        except ValueError as error:
            raise InputError(f"line {line}: {error}", where=table, hint="fix the table") from error
    if not people:
        raise InputError("the table has no rows to import", where=table, hint="check it, and --only")
    logits = _assemble(name, people, layout, config, dataset)
    path = path_of(cache, dataset, name)
    logits.save(path)
    log.info("%s: %d rows of %d clips, declared %s", name, int(logits.valid.sum()), len(set(logits.clips)),
             config.provenance)
    return path, logits


def _layout(header: Sequence[str], path: Path) -> _Layout:
    """Return where a table's columns are; the values' columns share one prefix (``p_``, ``logit_`` or another)."""
    position = {column.casefold(): i for i, column in enumerate(header) if column.casefold() in KNOWN}
    rest = [(i, column) for i, column in enumerate(header)
            if column.casefold() not in KNOWN and not tables.is_unnamed(column)]
    prefixes = {column.split("_", 1)[0] + "_" for _, column in rest}
    # A column that is neither known nor a class could be a misspelled `label`, so it is refused and not ignored.
    if "clip" not in position or len(rest) < 2 or len(prefixes) != 1 or not all("_" in column for _, column in rest):
        raise InputError(f"not a table of predictions (columns: {shorten_list(header, 12)})", where=path,
                         hint="columns: clip[,frame][,person][,label][,split][,group], then p_CLASS or logit_CLASS for "
                              "each class")
    prefix = prefixes.pop()
    classes = tuple(column.removeprefix(prefix) for _, column in rest)
    if len(set(classes)) < len(classes) or not all(classes):
        raise InputError("a class appears twice, or has no name", where=path, hint="fix the header")
    return _Layout(path=path, position=position, classes=classes, values=tuple(i for i, _ in rest),
                   logits=prefix == LOGIT)


def _add_row(people: dict[str, _Person], values: Sequence[str], layout: _Layout, config: LogitsConfig,
             first_frame: int) -> None:
    only = config.only
    cells = {column: values[i].strip() for column, i in layout.position.items()}
    split = SPLITS.get(cells.get("split", "").casefold() or "train")
    if split is None:
        raise ValueError(f"split {cells['split']!r} is none of train, validation, test")
    if only and split != only:
        return
    clip, number = cells["clip"], cells.get("person", "")
    if not clip or not printable(clip):
        raise ValueError("no usable clip")
    name = f"{clip}#{number}" if number else clip
    # What `only` selects is all there is, so it is the training data, whatever its split is called.
    row = _Person(clip=clip, split="train" if only else split,
                  group=cells.get("group", "") or cells.get("subject", "") or clip)
    person = people.setdefault(name, row)
    for what, first, now in (("split", person.split, row.split), ("group", person.group, row.group)):
        if now != first:  # to take either would train on what is held out, or hold out what is trained on
            raise ValueError(f"{name} has {what} {now!r} here and {first!r} in a row before; "
                             f"a clip has one {what}, the same in every row")
    label = tables.code(cells.get("label", ""), layout.classes)
    if label is None:
        raise ValueError(f"label {cells['label']!r} is none of {', '.join(layout.classes)}")
    person.frames.append(_frame_of(cells, config.fps, first_frame))
    person.labels.append(label)
    for i in layout.values:
        value = tables.number(values[i])
        if value is None:
            raise ValueError(f"{values[i]!r} is not a number")
        person.values.append(value)


def _frame_of(cells: dict[str, str], fps: float, first_frame: int) -> int:
    """Return a row's frame number, from 1; a time belongs to the nearest frame, and a row without both is a clip."""
    if "frame" in cells:
        frame = whole_number(cells["frame"])
        if frame is None:
            raise ValueError(f"frame {cells['frame']!r} is not a whole number")
    elif "time_s" in cells:
        time_s = tables.number(cells["time_s"])
        if time_s is None or time_s < 0:
            raise ValueError(f"time_s {cells['time_s']!r} is not a time in seconds")
        frame = round(time_s * fps) + first_frame
    else:
        return 1
    if not first_frame <= frame <= MOST_FRAMES:
        raise ValueError(f"frame {frame}: frames count from {first_frame}; add 1, or --first-frame {frame}"
                         if frame == 0 else f"frame {frame}: frames count from {first_frame}")
    return frame + 1 - first_frame


def _assemble(name: str, people: dict[str, _Person], layout: _Layout, config: LogitsConfig, dataset: str) -> OofLogits:
    trials = sorted(people)
    parts = [_without_gaps(trial, people[trial], layout) for trial in trials]
    index, valid, label, logits = (np.concatenate([part[key] for part in parts])
                                   for key in ("index", "valid", "label", "logits"))
    offsets = np.concatenate([[0], np.cumsum([len(part["index"]) for part in parts])])
    group, split = tuple(people[t].group for t in trials), tuple(people[t].split for t in trials)
    provenance = Provenance(format=FORMAT, source=name, table=layout.path.name, declared=config.provenance,
                            level="frame" if {"frame", "time_s"} & layout.position.keys() else "clip",
                            only=config.only, settings={})
    fold, fixed = _folds(group, split, label, offsets, len(layout.classes), config)
    # Another table under the same name must be another source for `stack`, hence a digest of its values.
    digest = hashlib.sha256(b"".join(values.tobytes() for values in (logits, label, index))).hexdigest()
    return OofLogits(dataset=dataset, classes=layout.classes, metric="macro_f1", notice="", heads=(name,),
                     trials=tuple(trials), group=group, split=split, fold=fold, offsets=offsets, index=index,
                     time_s=np.concatenate([(part["index"] - part["index"][0]) / config.fps for part in parts]),
                     valid=valid, label=label, logits={name: logits}, provenance=provenance,
                     fingerprint=fingerprint_of([msgspec.to_builtins(provenance), config.settings(), digest]),
                     epochs_fixed=fixed, clip=tuple(people[t].clip for t in trials),
                     declared={name: config.provenance})


def _without_gaps(trial: str, person: _Person, layout: _Layout) -> dict[str, NDArray[Any]]:
    """Return one row for each frame from a trial's first to its last; frames without one get uniform probabilities."""
    where = f"{layout.path}, {trial}"
    frames = np.array(person.frames, np.int64)
    values = np.array(person.values, np.float32).reshape(len(frames), len(layout.classes))
    if len(np.unique(frames)) < len(frames):
        raise InputError("a frame appears twice", where=where,
                         hint="one row a frame; distinguish several people by a column `person`")
    if not np.isfinite(values).all():
        raise InputError("a value is not a number", where=where, hint="fix the table")
    if layout.logits:
        log_probs = log_softmax(values, axis=1)
    else:
        total = values.sum(1, keepdims=True)
        if (values < 0).any() or np.abs(total - 1).max() > SUM_TOLERANCE:
            worst = float(total[np.abs(total - 1).argmax(), 0])
            raise InputError(f"no probabilities: they sum to {worst:.3f}, or one is below 0", where=where,
                             hint="call the columns logit_CLASS if they are logits")
        log_probs = np.log(np.maximum(values / total, MIN_PROB))
    # Smoothing over time needs a row for each frame; `valid` marks those that the table has.
    index = np.arange(frames.min(), frames.max() + 1)
    place = frames - index[0]
    logits = np.full((len(index), len(layout.classes)), -np.log(len(layout.classes)), np.float32)
    logits[place] = log_probs
    valid = np.zeros(len(index), bool)
    valid[place] = True
    label = np.full(len(index), UNKNOWN, np.int16)
    label[place] = np.array(person.labels, np.int16)
    return {"index": index.astype(np.int32), "valid": valid, "label": label, "logits": logits}


def _folds(group: Sequence[str], split: Sequence[str], label: NDArray[np.int16], offsets: NDArray[np.int64],
           classes: int, config: LogitsConfig) -> tuple[NDArray[np.int16], bool]:
    """Return the fold of each trial, ``(N,)``, and whether there are too few groups to choose anything by."""
    # Validation and test trials get fold -1: nothing is trained on them.
    training = np.array(split) == "train"
    counts = class_counts(label, offsets, classes) * training[:, None]
    labelled = {g for g, n in zip(group, counts.sum(1), strict=True) if n}
    if len(labelled) < 2:
        return np.full(len(group), -1, np.int16), True
    fold = assign_folds([g if t else "" for g, t in zip(group, training, strict=True)], counts, config.folds,
                        config.seed)
    return np.where(training, fold, -1).astype(np.int16), len(labelled) < MIN_GROUPS_TO_CHOOSE
