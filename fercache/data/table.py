"""Any data: a table ``clip,path[,label][,subject][,group][,split]``, or just a folder of clips; labels beside it."""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fercache.config import DatasetConfig
from fercache.data import tables
from fercache.data.base import (
    UNKNOWN,
    Dataset,
    Issue,
    Kind,
    Labels,
    Split,
    Trial,
    cache_name,
    printable,
    shorten_list,
)
from fercache.data.labels import read_all
from fercache.data.scan import Scan, describe, kind_at, scan, unnamable
from fercache.errors import InputError

# Labels by frame in one table: ``clip,frame,label``.

FRAME_COLUMNS = ("clip", "frame", "label")
MOST_FRAMES = 10_000_000  # four days at 30 frames a second: a larger number is no frame

_NO_FRAME = -1


def read_frame_labels(path: Path, clips: Collection[str], chosen: tuple[str, ...] = ()
         ) -> tuple[tuple[str, ...], dict[str, Labels], list[Issue]]:
    """Return the classes, (L,) int16 labels by clip, and what had to be dropped.

    Parameters
    ----------
    clips : names of the clips there are.
    chosen : class names in order, where the user gives them.

    Raises
    ------
    InputError
        It is no such table, or its labels are numbers and no class names are given.

    Notes
    -----
    Rows may stand in any order. Two labels for one frame are a problem of that clip; the same one twice is not.
    """
    frames, codes, words = _collect_frames(path)
    classes = tables.class_list(words, chosen, path)
    meaning = [tables.code(word, classes) for word in words]
    labels: dict[str, Labels] = {}
    problems: list[Issue] = []
    for clip in sorted(frames):
        try:
            if clip not in clips:
                raise ValueError("there is no clip of that name")
            labels[clip] = _one_frame(np.array(frames[clip]), np.array(codes[clip]), words, meaning)
        except ValueError as error:
            problems.append(Issue(where=clip, message=f"its labels were dropped: {error}", hint=f"correct {path}"))
    bare = sorted(set(clips) - set(frames))
    if bare:
        problems.append(Issue(where=shorten_list(bare), message=f"{len(bare)} clips without labels", severity="note",
                                hint="they are predicted, never trained on or scored"))
    return classes, labels, problems


def _collect_frames(path: Path) -> tuple[dict[str, array[int]], dict[str, array[int]], list[str]]:
    """Return frame numbers by clip, label codes by clip, and the words that codes stand for (12 bytes a row)."""
    frames: dict[str, array[int]] = defaultdict(lambda: array("q"))
    codes: dict[str, array[int]] = defaultdict(lambda: array("i"))
    words: dict[str, int] = {}
    order = tables.check_columns(tables.read_header(path), path, FRAME_COLUMNS)
    clip_at, frame_at, label_at = (order.index(name) for name in FRAME_COLUMNS)
    for _, values in tables.read_rows(path):
        if not any(values):
            continue
        frame = values[frame_at].strip()
        whole = frame.isascii() and frame.isdigit() and len(frame) < 10
        clip = values[clip_at].strip()
        frames[clip].append(int(frame) if whole else _NO_FRAME)
        codes[clip].append(words.setdefault(values[label_at].strip(), len(words)))
    return frames, codes, list(words)


def _one_frame(frames: np.ndarray[tuple[int], np.dtype[np.int64]], codes: np.ndarray[tuple[int], np.dtype[np.int32]],
         words: list[str], meaning: list[int | None]) -> Labels:
    """Return one clip's labels by frame."""
    wrong = np.flatnonzero((frames < 1) | (frames > MOST_FRAMES))
    if len(wrong):
        raise ValueError(f"row {wrong[0] + 1} of the clip has no frame number (1, 2, ..)")
    unknown = [words[code] for code in np.unique(codes) if meaning[code] is None]
    if unknown:
        raise ValueError(f"label {unknown[0]!r} is none of the classes")
    values = np.array([UNKNOWN if code is None else code for code in meaning], np.int16)[codes]
    labels = np.full(int(frames.max()), UNKNOWN, np.int16)
    labels[frames - 1] = values
    twice = np.flatnonzero(labels[frames - 1] != values)
    if len(twice):
        raise ValueError(f"frame {frames[twice[0]]} has two labels")
    return labels


REQUIRED = ("clip", "path")
OPTIONAL = ("label", "subject", "group", "split")
SPLITS: dict[str, Split] = {
    "train": "train", "training": "train", "validation": "validation", "val": "validation", "valid": "validation",
    "dev": "validation", "test": "test", "testing": "test",
}


@dataclass(frozen=True)
class Labelling:
    """Labels as read from one place: class names, frame labels and clip labels by trial name."""

    classes: tuple[str, ...] = ()
    frames: Mapping[str, Labels] | None = None
    clips: Mapping[str, int] | None = None
    problems: tuple[Issue, ...] = ()


def read_clip_table(config: DatasetConfig) -> Dataset:
    """Return the trials of a table, or of a folder of videos and crop folders, with their labels.

    Raises
    ------
    InputError
        The table or folder is absent, empty or not what it should be; a clip is named twice; labels are numbers and
        no class names are given.
    """
    place = Path(config.clips or config.root)
    if not (config.clips or config.root):
        raise InputError("no clips are given", where="dataset table", hint="give --clips TABLE or --clips FOLDER")
    base = Path(config.root) if config.root and config.clips else place.parent
    trials, problems, words = _of_folder(place) if kind_at(place) == "crops" else _of_table(place, base)
    if not trials:
        raise InputError(f"not one clip of it can be used: {problems[0].message if problems else 'it has no rows'}",
                         where=place, hint=problems[0].hint if problems else "add a row for each clip")
    labelling = _labelling(config, [trial.name for trial in trials], words)
    labelled = sorted((_label(trial, labelling) for trial in trials), key=lambda trial: trial.name)
    return Dataset(name=cache_name("table", place, config.name), layout="table", classes=labelling.classes,
                   trials=tuple(labelled), problems=(*problems, *labelling.problems))


def _of_folder(place: Path) -> tuple[list[Trial], list[Issue], dict[str, str]]:
    """Return a trial for each clip under a folder, named by its relative path, each a group of its own; no labels."""
    found = scan(place)
    problems = [*found.problems, *unnamable(found)]
    if not any(found.clips()):
        raise InputError("no clip in this folder", where=place, hint=(
            f"a clip is a video file or a folder of pictures 00001.jpg, 00002.jpg ..; {describe(found)}"))
    return [_trial(name, path, kind) for name, path, kind in _named(found)], problems, {}


def _named(found: Scan) -> list[tuple[str, Path, Kind]]:
    """Return (name, path, kind) of every clip: relative path without ending, with it where two would be the same."""
    clips = list(found.clips())
    short = {path: _short(path, kind, found.root) for path, kind in clips}
    often = Counter(short.values())
    return [(short[path] if often[short[path]] == 1 else path.relative_to(found.root).as_posix(), path, kind)
            for path, kind in clips]


def _short(path: Path, kind: Kind, root: Path) -> str:
    below = path.relative_to(root)
    if below == Path():
        return path.resolve().name
    return (below.with_suffix("") if kind == "video" else below).as_posix()


def _trial(name: str, path: Path, kind: Kind) -> Trial:
    return Trial(name=name, path=path, kind=kind, parent=name, group=name, split="train")


def _of_table(path: Path, base: Path) -> tuple[list[Trial], list[Issue], dict[str, str]]:
    """Return the trials of a table, a problem for each row without its clip, and the label word of each trial."""
    trials: list[Trial] = []
    problems: list[Issue] = []
    words: dict[str, str] = {}
    lines: dict[str, int] = {}
    for line, row in tables.named_rows(path, REQUIRED, OPTIONAL):
        name = row["clip"]
        if name in lines:
            raise InputError(f"clip {name!r} stands in line {lines[name]} and again in line {line}", where=path,
                             hint="give each clip a name of its own")
        lines[name] = line
        trial = _of_row(row, path, base, line)
        if kind_at(trial.path) is None:
            problems.append(Issue(where=name, message=f"no such file or folder: {trial.path}", kind="no-clip",
                                    hint=f"correct line {line} of {path} (relative paths start at {base})"))
            continue
        trials.append(trial)
        words[name] = row.get("label", "")
    return trials, problems, words


def _of_row(row: Mapping[str, str], table: Path, base: Path, line: int) -> Trial:
    """Return the trial in one row of a table."""
    for needed in REQUIRED:
        if not row[needed] or not printable(row[needed]) or "\0" in row[needed]:
            raise InputError(f"line {line} has no usable {needed}", where=table, hint="fill it in")
    name, path, subject = row["clip"], base / row["path"], row.get("subject", "")
    word = row.get("split", "").casefold()
    if word and word not in SPLITS:
        raise InputError(f"line {line} has split {row['split']!r}", where=table,
                         hint="it is one of train, validation, test")
    return Trial(name=name, path=path, kind=kind_at(path) or "video", parent=name, subject=subject,
                 group=row.get("group", "") or subject or name, split=SPLITS.get(word, "train"))


def _labelling(config: DatasetConfig, names: Sequence[str], words: Mapping[str, str]) -> Labelling:
    """Return the labels from wherever they are given: --labels, or the table's own column."""
    place = Path(config.labels) if config.labels else None
    if place is None:
        return _of_words(words, config)
    if any(words.values()):
        raise InputError("the table has a column label, and --labels is given too", where=place,
                         hint="drop one of them")
    if kind_at(place) == "crops":
        return _of_texts(place, names, config.classes)
    classes, labels, problems = read_frame_labels(place, set(names), config.classes)
    return Labelling(classes=classes, frames=labels, problems=tuple(problems))


def _of_words(words: Mapping[str, str], config: DatasetConfig) -> Labelling:
    """Return the clip labels that the table's own column gives, names or numbers."""
    classes = tables.class_list(words.values(), config.classes, Path(config.clips))
    codes: dict[str, int] = {}
    problems: list[Issue] = []
    for name, word in words.items():
        code = tables.code(word, classes)
        if code is None:
            problems.append(Issue(where=name,
                                    message=f"its label was dropped: {word!r} is none of {shorten_list(classes, 12)}",
                                    hint="correct the table; the clip is predicted without a label meanwhile"))
        elif code != UNKNOWN:
            codes[name] = code
    return Labelling(classes=classes, clips=codes, problems=tuple(problems))


def _of_texts(folder: Path, names: Sequence[str], classes: tuple[str, ...]) -> Labelling:
    """Return the labels in a folder of text files, one a clip, named as the clip (or its last part, where unique)."""
    files = {path.relative_to(folder).with_suffix("").as_posix(): path for path in scan(folder).texts}
    if not files:
        raise InputError("no *.txt in this folder of labels", where=folder,
                         hint="one text file a clip: a header with the class names, then one integer a frame")
    often = Counter(_last(name) for name in names)
    keys = {name: name if name in files or often[_last(name)] > 1 else _last(name) for name in names}
    known = [classes] if classes else tables.headers(files.values())
    found, labels, problems = read_all({name: files[key] for name, key in keys.items() if key in files}, known,
                                       bare=bool(classes))
    if not found:
        first = problems[0].message if problems else f"none is named after a clip (clips: {shorten_list(names)})"
        raise InputError(f"no label file of {len(files)} can be used; {first}", where=folder,
                         hint="see the formats in the README; --classes gives the order of the class names")
    problems += [Issue(where=key, message="labelled, but there is no clip of that name", hint=f"see {files[key]}",
                         kind="no-clip")
                 for key in sorted(set(files) - set(keys.values()))]
    return Labelling(classes=found, frames=labels, problems=(*problems, *_without(names, labels, problems)))


def _last(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def _without(names: Iterable[str], labels: Mapping[str, Labels], problems: Iterable[Issue]) -> list[Issue]:
    """Return one note about all clips that have no label file."""
    bare = sorted(set(names) - set(labels) - {problem.where for problem in problems})
    return [Issue(where=shorten_list(bare), message=f"{len(bare)} clips without a label file",
                    hint="they are predicted, never trained on or scored", severity="note")] if bare else []


def _label(trial: Trial, labelling: Labelling) -> Trial:
    """Return the trial with its labels; without any there is nothing to train on, and it is a test trial."""
    trial = replace(trial, labels=(labelling.frames or {}).get(trial.name),
                    clip_label=(labelling.clips or {}).get(trial.name, UNKNOWN))
    return trial if trial.labelled else replace(trial, split="test")
