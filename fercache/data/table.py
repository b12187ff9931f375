"""Any data: a table ``clip,path[,label][,subject][,group][,split]``, or just clips; labels beside it."""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fercache import media
from fercache.config import DatasetConfig, ExtractConfig
from fercache.data import base, tables
from fercache.data.base import UNKNOWN, Dataset, Issue, Kind, Labels, Split, Trial
from fercache.data.labels import MOST_FRAMES, FrameLabels, read_all, whole_number
from fercache.data.scan import FLAT, describe, kind_at, scan
from fercache.errors import ClipError, InputError, shorten_list

# Labels by frame in one table: ``clip,frame,label`` or ``clip,time_s,label``.

TIME_SLACK_S = 0.5  # a label may lie this much after the end of its clip


def read_frame_labels(config: DatasetConfig, trials: Mapping[str, Trial]) -> FrameLabels:
    """Return the labels in the table --labels, by clip; each row has the number of its frame, or its time."""
    # Rows may be in any order. Two different labels for one frame are an issue of that clip; the same label twice is
    # not.

    # A large set has millions of rows: 12 bytes a row, with the distinct labels as indices into `words`.
    path = Path(config.labels)
    header = tables.read_header(path)
    by_time = "frame" not in map(str.casefold, header)
    where, first = ("time_s", 0) if by_time else ("frame", config.first_frame)
    order = tables.check_columns(header, path, ("clip", where, "label"), () if by_time else ("time_s",))
    clip_at, where_at, label_at = (order.index(name) for name in ("clip", where, "label"))
    values_of: dict[str, array[float]] = defaultdict(lambda: array("d" if by_time else "q"))
    codes: dict[str, array[int]] = defaultdict(lambda: array("i"))
    indices: dict[str, int] = {}
    wrong: dict[str, str] = {}
    for line, values in tables.read_rows(path):
        if any(values):
            text, clip = values[where_at].strip(), values[clip_at].strip()
            number = tables.number(text) if by_time else whole_number(text)
            if number is None or not first <= number <= MOST_FRAMES:
                wrong.setdefault(clip, f"frame 0: frames count from {first}; add 1, or --first-frame 0"
                                 if number == 0 else f"line {line} has {where} {text!r}, which is not "
                                 + ("a time in seconds" if by_time else f"a frame number ({first}, {first + 1}, ..)"))
            values_of[clip].append(number or 0)
            codes[clip].append(indices.setdefault(values[label_at], len(indices)))
    words = list(indices)
    classes = tables.class_list(words, config.classes, path)
    meaning = [tables.code(word, classes) for word in words]
    labels: dict[str, Labels] = {}
    problems = tables.merge_spellings(words)[1]
    for clip in sorted(values_of):
        try:
            if clip not in trials or clip in wrong:
                raise ValueError(wrong[clip] if clip in trials else "there is no clip of that name")
            own = np.array(codes[clip])
            unknown = {words[code].strip() for code in np.unique(own) if meaning[code] is None}
            if unknown:
                raise ValueError(f"label {min(unknown)!r} is none of the classes")
            own = np.array([UNKNOWN if code is None else code for code in meaning], np.int16)[own]
            at = np.array(values_of[clip])
            labels[clip] = (_labels_by_time(at, own, _times_of(trials[clip])) if by_time else
                            _labels_by_frame(at - first, own))
        except (ValueError, ClipError) as error:
            problems.append(Issue(where=clip, message=f"its labels were dropped: {error}", hint=f"correct {path}"))
    bare = base.note_about(trials.keys() - values_of.keys(), "clips without labels", base.NOT_TRAINED)
    return classes, labels, [*problems, *bare]


def _labels_by_frame(rows: NDArray[np.int64], values: Labels) -> Labels:
    """Return the labels of each frame from those of some rows (from 0); raises ValueError where a frame has two."""
    # The last of several labels of a frame wins here; the comparison below finds the frames where they differ.
    labels = np.full(int(rows.max()) + 1, UNKNOWN, np.int16)
    labels[rows] = values
    twice = np.flatnonzero(labels[rows] != values)
    if len(twice):
        raise ValueError(f"frame {rows[twice[0]] + 1} has two labels")
    return labels


def _labels_by_time(at_s: NDArray[np.float64], values: Labels, frame_s: NDArray[np.float64]) -> Labels:
    """Return the labels of each frame: each label belongs to the frame that is nearest in time."""
    last = frame_s[-1] + (frame_s[-1] / max(len(frame_s) - 1, 1) or TIME_SLACK_S)
    if at_s.max() > last + TIME_SLACK_S:
        raise ValueError(f"it has time_s {at_s.max():g}, and its last frame is at {frame_s[-1]:g} s")
    rows = np.searchsorted((frame_s[1:] + frame_s[:-1]) / 2, at_s)
    # Of several labels of one frame the nearest wins: it is written last.
    order = np.argsort(-np.abs(frame_s[rows] - at_s), kind="stable")
    labels = np.full(int(rows.max()) + 1, UNKNOWN, np.int16)
    labels[rows[order]] = values[order]
    return labels


# Clips: a table of them, or a folder.

REQUIRED = ("clip", "path")
OPTIONAL = ("label", "subject", "group", "split")
SPLITS: dict[str, Split] = {
    "train": "train", "training": "train", "validation": "validation", "val": "validation", "valid": "validation",
    "dev": "validation", "test": "test", "testing": "test",
}


def read_clip_table(config: DatasetConfig) -> Dataset:
    """Return the trials of a table, or of a folder of videos and crop folders, with their labels."""
    place = Path(config.clips or config.root)
    if not (config.clips or config.root):
        raise InputError("no clips are given", where="dataset table", hint="give --clips TABLE or --clips FOLDER")
    folder = Path(config.root) if config.root and config.clips else place.parent
    if kind_at(place) == "crops":
        trials, problems, words = _read_folder(place)
    elif place.suffix.lower() in media.VIDEO_ENDINGS or media.is_picture(place.name):
        trials, problems, words = [_trial(place.stem, place, "video")], [], {}
    else:
        trials, problems, words = _read_table(place, folder)
    if not trials:
        raise InputError(f"not one clip of it can be used: {problems[0].message if problems else 'it has no rows'}",
                         where=place, hint=problems[0].hint if problems else "add a row for each clip")
    frames: Mapping[str, Labels] = {}
    codes: dict[str, int | None] = {}
    if config.labels:
        if any(map(str.strip, words.values())):
            raise InputError("the table has a column label, and --labels is given too", where=Path(config.labels),
                             hint="drop one of them")
        read_labels = _read_label_folder if kind_at(Path(config.labels)) == "crops" else read_frame_labels
        classes, frames, wrong = read_labels(config, {trial.name: trial for trial in trials})
    else:
        classes = tables.class_list(words.values(), config.classes, Path(config.clips))
        codes = {name: tables.code(word, classes) for name, word in words.items()}
        wrong = tables.merge_spellings(words.values())[1]
        wrong += [base.dropped_label(name, words[name].strip(), classes, "the table")
                  for name, code in codes.items() if code is None]
    labelled = []
    for trial in sorted(trials, key=lambda trial: trial.name):
        code = codes.get(trial.name)
        trial = replace(trial, labels=frames.get(trial.name), clip_label=UNKNOWN if code is None else code)
        labelled.append(trial if trial.labelled else replace(trial, split="test"))  # nothing to train on
    return Dataset(name=base.cache_name("table", place, config.name), layout="table", classes=classes,
                   trials=tuple(labelled), problems=(*problems, *wrong))


def _read_folder(place: Path) -> tuple[list[Trial], list[Issue], dict[str, str]]:
    """Return a trial for each clip in a folder, named by its relative path, each a group of its own; no labels."""
    found = scan(place)
    root = len(str(found.root / "x")) - 1  # cut from texts: `relative_to` is slow for 39,000 clips

    def short_name(path: Path, kind: Kind) -> str:
        if path == found.root:  # the folder is a clip itself
            return path.resolve().name
        below = path.as_posix()[root:]
        return below[:below.rindex(".")] if kind == "video" else below

    clips = [(path, kind, short_name(path, kind)) for path, kind in found.clips()]
    if not clips:
        raise InputError("no clip in this folder", where=place, hint=(
            f"a clip is a video file or a folder of pictures 00001.jpg, 00002.jpg ..; {describe(found)}"
            + (f"; {FLAT}" if found.loose.count else "")))
    count = Counter(short for *_, short in clips)
    trials = []
    for path, kind, short in clips:
        name = short if count[short] == 1 else path.relative_to(found.root).as_posix()
        trials.append(_trial(name, path, kind))
    return trials, found.problems, {}


def _trial(name: str, path: Path, kind: Kind) -> Trial:
    return Trial(name=name, path=path, kind=kind, parent=name, group=name, split="train")


def _read_table(path: Path, folder: Path) -> tuple[list[Trial], list[Issue], dict[str, str]]:
    """Return the trials of a table, an issue for each row without its clip, and the label of each trial as text."""
    trials: list[Trial] = []
    problems: list[Issue] = []
    words: dict[str, str] = {}
    lines: dict[str, int] = {}
    for line, row in tables.named_rows(path, REQUIRED, OPTIONAL):  # an unknown column is refused: it may be a typo
        for column in REQUIRED:
            if not row[column] or not base.printable(row[column]) or "\0" in row[column]:
                raise InputError(f"line {line} has no usable {column}", where=path, hint="fill it in")
        name, subject, split = row["clip"], row.get("subject", ""), row.get("split", "").casefold() or "train"
        # The name is the key in store, logits and predictions: a second clip would replace the first.
        if lines.setdefault(name, line) != line:
            raise InputError(f"clip {name!r} is in line {lines[name]} and again in line {line}", where=path,
                             hint="give each clip a name of its own")
        if split not in SPLITS:
            raise InputError(f"line {line} has split {row['split']!r}", where=path,
                             hint="it is one of train, validation, test")
        place = folder / row["path"]
        if (kind := kind_at(place)) is None and "\\" in row["path"]:  # written on Windows
            place = folder / row["path"].replace("\\", "/")
            kind = kind_at(place)
        if kind is None:
            problems.append(Issue(where=name, message=f"no such file or folder: {folder / row['path']}", kind="no-clip",
                                  hint=f"correct line {line} of {path} (relative paths start at {folder})"))
            continue
        trials.append(Trial(name=name, path=place, kind=kind, parent=name, subject=subject,
                            group=row.get("group", "") or subject or name, split=SPLITS[split]))
        words[name] = row.get("label", "")
    return trials, problems, words


def _times_of(trial: Trial) -> NDArray[np.float64]:
    """Return the seconds of each frame of a clip, (T,), without decoding it."""
    if trial.kind == "crops":
        # Folders of pictures state no rate.
        return np.arange(max(media.numbered(trial.path))) / ExtractConfig().crop_fps
    return np.zeros(1) if media.is_picture(trial.path.name) else media.packet_times(trial.path)


def _read_label_folder(config: DatasetConfig, trials: Mapping[str, Trial]) -> FrameLabels:
    """Return the labels in a folder of text files, one a clip, named as the clip (or its last part, if unique)."""
    folder = Path(config.labels)
    files = {path.relative_to(folder).with_suffix("").as_posix(): path for path in scan(folder).texts}
    if not files:
        raise InputError("no *.txt in this folder of labels", where=folder,
                         hint="one text file a clip: a header with the class names, then one integer a frame")
    # Clips in folders are named by their path, label files often by the last part alone.
    last = {name: name.rsplit("/", 1)[-1] for name in trials}
    count = Counter(last.values())
    keys = {name: name if name in files or count[last[name]] > 1 else last[name] for name in trials}
    classes, labels, problems = read_all({name: files[key] for name, key in keys.items() if key in files},
                                         [config.classes] if config.classes else ())
    if not classes:
        first = problems[0].message if problems else f"none is named after a clip (clips: {shorten_list(trials)})"
        raise InputError(f"no label file of {len(files)} can be used; {first}", where=folder,
                         hint="docs/guide/own-data.md has the formats; --classes gives the order of the class names")
    extra = [Issue(where=key, message="labelled, but there is no clip of that name", hint=f"see {files[key]}",
                   kind="no-clip") for key in sorted(set(files) - set(keys.values()))]
    bare = trials.keys() - labels.keys() - {problem.where for problem in problems}
    return classes, labels, [*problems, *extra, *base.note_about(bare, "clips without a label file", base.NOT_TRAINED)]
