"""What a data set is once it is read: trials with clip, parent video, group, split and labels by frame number."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from fercache.errors import InputError, shorten_list

Kind = Literal["video", "crops", "photos"]
Split = Literal["train", "validation", "test"]
Labels = NDArray[np.int16]

UNKNOWN = -1
SEVEN = ("Neutral", "Anger", "Disgust", "Fear", "Happiness", "Sadness", "Surprise")
EIGHT = (*SEVEN, "Other")
NOT_TRAINED = "they are predicted, never trained on or scored"  # hint about clips without labels

Severity = Literal["ok", "skipped", "note", "warning", "error"]


@dataclass(frozen=True, kw_only=True)
class Issue:
    """One result of reading a data set, of `check`, `audit` or `verify`; it does not stop the rest."""

    kind: str = ""  # a word for programs, such as "no-clip", "leak" or "stray"
    where: str  # clip, file or part that it is about
    message: str  # what is wrong, without a full stop
    hint: str = ""  # what the user can do
    # "error": data are lost or a score is wrong, and the command ends with exit code 1; "warning": a person should look
    # at it; "note": harmless; "ok" and "skipped": a check that found nothing or was not made.
    severity: Severity = "error"
    details: tuple[str, ...] = ()  # all clips, files or findings, where `where` and `message` only summarize them

    @property
    def is_error(self) -> bool:
        """Whether data are lost or a score is wrong because of it."""
        return self.severity == "error"

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" + (f"\n  next: {self.hint}" if self.hint else "")


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """One person of one clip."""

    name: str  # unique in its data set; what users see
    path: Path  # video file, or folder of numbered crops
    kind: Kind
    parent: str  # the video that it comes from; two people of one video are two trials of one parent
    group: str  # trials of one group are never on both sides of a fold
    split: Split
    subject: str = ""
    # (L,) int16, element i is frame i + 1, -1 if not annotated; None without labels by frame.
    labels: Labels | None = None
    clip_label: int = UNKNOWN  # one label for every frame of the clip (used if `labels` is None), -1 for none
    side: str = ""  # "left" or "right" where a video shows two annotated people and this trial is one of them, else ""
    fold: int = 0  # the published fold whose test list holds it, from 1; 0 if the set publishes none
    video: Path | None = None  # the source video if `path` is a folder of crops and the video is present too
    # Number of frames in the set's own list, 0 for none; it is only compared, since lists are often wrong.
    stated: int = 0
    copied: bool = False  # whether its photos are copies of photos in another split

    @property
    def labelled(self) -> bool:
        """Whether at least one frame has a label."""
        return self.clip_label >= 0 or (self.labels is not None and bool((self.labels >= 0).any()))

    def frame_labels(self, frames: int) -> Labels:
        """Return the label of every frame, (max(frames, L),) int16, -1 for none.

        Labels belong to frame numbers, never to positions among the files present: a clip that is longer than its
        annotation ends in -1, and an annotation that is longer than its clip adds rows.
        """
        if self.labels is None:
            return np.full(frames, self.clip_label, np.int16)
        return np.pad(self.labels, (0, max(frames - len(self.labels), 0)), constant_values=UNKNOWN)


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """All trials of a data set, sorted by name."""

    name: str  # name of its folders in the cache
    layout: str
    # Class names; a label is an index into them. Empty if nothing is labelled.
    classes: tuple[str, ...]
    trials: tuple[Trial, ...]
    # The official one, by its name in `fercache.metrics`: "abaw2" (.67 macro F1 + .33 accuracy), "macro_f1", "uar"
    # (mean recall) or "accuracy".
    metric: str = "macro_f1"
    folds: int = 0  # number of folds that the set publishes, 0 for none; `fold` is the one whose split was read
    fold: int = 0
    whole_frames: bool = False  # whether its folders of pictures hold whole frames, not crops of faces
    notice: str = ""  # what a reader of its results must know
    problems: tuple[Issue, ...] = ()  # what is wrong with single clips

    @property
    def faces(self) -> str:
        """How faces are found by default: "cropped", "mtcnn", or "" if there are trials of both kinds."""
        kinds = {trial.kind for trial in self.trials}
        if len(kinds) > 1:
            return ""
        return "cropped" if kinds <= {"crops", "photos"} and not self.whole_frames else "mtcnn"

    @property
    def has_clock(self) -> bool:
        """Whether the rows of a clip follow each other in time; those of photos do not."""
        return all(trial.kind != "photos" for trial in self.trials)

    def digest(self) -> str:
        """Return the sha256 (hex) over what training reads: classes, trials, groups, splits, labels; no paths."""
        state = hashlib.sha256(repr((self.classes, self.metric)).encode())
        # No paths: a data set that was moved, or has another path on another machine, trains the same heads.
        for trial in self.trials:
            state.update(repr((trial.name, trial.parent, trial.group, trial.split, trial.subject, trial.clip_label,
                               trial.side)).encode())
            if trial.labels is not None:
                state.update(trial.labels.astype("<i2").tobytes())  # the same bytes on every processor
        return state.hexdigest()


def in_several(pairs: Iterable[tuple[str, str | int]]) -> dict[str, list[str]]:
    """Return name -> its splits (or folds), for each group (or clip) that is in several of them."""
    places: defaultdict[str, set[Any]] = defaultdict(set)
    for name, place in pairs:
        places[name].add(place)
    return {name: [str(place) for place in sorted(found)] for name, found in sorted(places.items()) if len(found) > 1}


def groups_by_class(trials: Iterable[Trial]) -> dict[int, set[str]]:
    """Return class -> the groups of the trials with a label of it, in the order of the classes."""
    groups: defaultdict[int, set[str]] = defaultdict(set)
    for trial in trials:
        for code in np.unique(trial.frame_labels(1)).tolist():
            groups[code].add(trial.group)
    return {code: groups[code] for code in sorted(groups) if code != UNKNOWN}


def cache_name(layout: str, path: Path, chosen: str = "") -> str:
    """Return the folder name of a data set in the cache: `chosen`, or one made from the layout and the path."""
    if chosen:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", chosen):
            raise InputError(f"{chosen!r} cannot name a folder of the cache", where="name",
                             hint="use up to 100 letters, digits, dots, dashes and underscores")
        return chosen
    # Two folders of one name must not share a cache, so the full path is part of the name, as a digest.
    full = path.resolve()
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", full.stem if full.is_file() else full.name)[:40]
    return f"{layout}-{plain}-{hashlib.sha256(str(full).encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"


def note_about(names: Iterable[str], what: str, hint: str) -> list[Issue]:
    """Return one note about all these trials, or none without trials."""
    listed = sorted(names)
    note = Issue(where=shorten_list(listed), message=f"{len(listed)} {what}", hint=hint, severity="note")
    return [note] if listed else []


def dropped_label(clip: str, label: str, classes: Iterable[str], place: object) -> Issue:
    """Return the issue for a clip whose label, in `place`, is not a class of the set."""
    return Issue(where=clip, message=f"its label was dropped: {label[:60]!r} is none of {shorten_list(classes, 12)}",
                 hint=f"correct {place}; until then the clip is predicted without a label")


MAX_ALIKE = 10  # issues that differ in names, paths and numbers only are merged if there are more of them


def pattern_of(message: str) -> str:
    """Return a message without what differs from clip to clip: quoted words, paths and numbers."""
    return re.sub(r"'[^']*'|\S*[/\\]\S*|\d+", "*", message)


def group_issues(issues: Iterable[Issue]) -> list[Issue]:
    """Return the issues in their order, alike ones merged; `details` names everything that a merged one is about.

    Equal issues are always merged, and issues that differ in names, paths and numbers if they are more than MAX_ALIKE:
    then message and hint are those of the first.
    """
    equal: dict[Issue, list[str]] = {}
    for issue in issues:
        equal.setdefault(replace(issue, where="", details=()), []).extend(issue.details or (issue.where,))
    alike: dict[tuple[str, ...], list[Issue]] = {}
    for issue, places in equal.items():
        merged = replace(issue, where=shorten_list(places), details=tuple(places))
        key = (issue.kind, issue.severity, pattern_of(issue.message), pattern_of(issue.hint))
        alike.setdefault(key, []).append(merged)
    grouped: list[Issue] = []
    for same in alike.values():
        if len(same) <= MAX_ALIKE:
            grouped += same
            continue
        places = [place for issue in same for place in issue.details]
        grouped.append(replace(same[0], where=shorten_list(places), details=tuple(places),
                               message=f"{same[0].message} (the first of {len(places)} alike)"))
    return grouped


def printable(name: str) -> bool:
    """Return whether a file's name is valid text (Linux allows any bytes; tables and stores do not)."""
    # Python decodes other bytes of a file name to lone surrogates, which no encoding has.
    return name.encode(errors="ignore").decode() == name


# Trials in a store: a clip as it is, or one trial for each person of it.

SIDES = "left", "right"
PEOPLE_COUNT = "people"  # key in the manifest of a clip's first person: the number of people


class HasManifests(Protocol):
    """The part of an embedding store that is used here (this layer cannot import the store)."""

    settings: dict[str, Any]

    def __contains__(self, clip: object) -> bool: ...
    def manifest(self, clip: str) -> Any: ...


def people_of(settings: Mapping[str, Any]) -> str:
    """Return which people a store with these settings holds: main, all or left/right."""
    return str(settings.get("people", "main"))


def person_name(trial: Trial, people: str, number: int = 1) -> str:
    """Return the name of a person of a clip in a store; people count from 1, and number 1 is committed last."""
    # A trial that is one of two people already (`side`) keeps its name.
    if people == "main" or trial.side:
        return trial.name
    return f"{trial.name}#{number}" if people == "all" else f"{trial.name}_{SIDES[number - 1]}"


def check_people(dataset: Dataset, people: str) -> None:
    """Refuse a data set in which one clip has the name that a person of another clip gets."""
    ends = {"all": r"#\d+", "left/right": f"_({'|'.join(SIDES)})"}.get(people)
    # `a_left` may be a clip of its own beside the video `a`, whose left person would get the same name in the store.
    several = {trial.name for trial in dataset.trials if not trial.side}
    for trial in dataset.trials if ends else ():
        found = re.fullmatch(f"(.*){ends}", trial.name, re.DOTALL)
        if found and found[1] in several:
            raise InputError(f"the clip {trial.name!r} has the name of a person of {found[1]!r}", where=dataset.name,
                             hint="rename one of them, or leave --people out")


def people_stored(trial: Trial, store: HasManifests) -> int:
    """Return the number of people of a clip in a store; 0 unless all of them are there."""
    people = people_of(store.settings)
    # The first person is committed last, with the number of people: a clip that was interrupted counts as absent.
    first = person_name(trial, people)
    if first not in store:
        return 0
    if first == trial.name:
        return 1
    count = int(store.manifest(first).provenance.get(PEOPLE_COUNT, 0))
    return count if all(person_name(trial, people, k) in store for k in range(2, count + 1)) else 0


def stored_trials(dataset: Dataset, store: HasManifests) -> Dataset:
    """Return the data set with each clip replaced by its people, if the store holds one trial for each person."""
    # They share parent, group, subject and split. The clip's labels belong to its main person, `CLIP#1`. Of two people
    # called left and right it is not known who was labelled, so neither has labels. Clips that are not in the store are
    # left unchanged.
    people = people_of(store.settings)
    if people == "main":
        return dataset
    trials: list[Trial] = []
    for trial in dataset.trials:
        count = 0 if trial.name in store else people_stored(trial, store)
        for number in range(1, count + 1):
            person = replace(trial, name=person_name(trial, people, number))
            # Labels of the wrong person would train and score silently.
            trials.append(person if people == "all" and number == 1
                          else replace(person, labels=None, clip_label=UNKNOWN))
        if not count:
            trials.append(trial)
    return replace(dataset, trials=tuple(sorted(trials, key=lambda trial: trial.name)))


# The frame table of a trial.

IndexRanges = NDArray[np.int64]  # (R, 2) first and last number of each unbroken run, ascending


def ranges_of(numbers: NDArray[np.int64]) -> IndexRanges:
    """Return the unbroken runs of frame numbers, (R, 2); `numbers` may be unsorted and repeated."""
    ordered = np.unique(numbers)
    if not len(ordered):
        return np.empty((0, 2), np.int64)
    # Most clips are one run or a few, which is much less than their numbers (Aff-Wild2 has 2.9 million crops).
    breaks = np.flatnonzero(np.diff(ordered) > 1)
    return np.column_stack([ordered[np.r_[0, breaks + 1]], ordered[np.r_[breaks, len(ordered) - 1]]])


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameTable:
    """The rows of one trial: crops, video frames and annotation lines are matched by their number.

    There is one row for each number up to the highest of the three, in every set. Crop ``00007.jpg``, the seventh frame
    of the video and the seventh label are one row, whatever else is missing. A number without a crop is a row without
    a face; a label past the last crop keeps its row; a crop past the last label has no label. Rows are never shifted,
    cut off or stretched to make lengths agree; disagreements are counted and reported.

    Stage one stores the rows up to the highest crop (or the frames of the video), stage two adds those that only the
    annotation has. `check` counts the rows that only the header of a video beside the crops claims: they matter only to
    a submission, whose template fixes the number of rows.
    """

    trial: Trial
    crops: IndexRanges | None  # numbers of its pictures, None if the trial is a video
    lines: int  # number of labels by frame in its annotation, 0 for none
    video: int  # number of frames in its video's header, 0 without a video or without that number

    @property
    def highest(self) -> int:
        """The highest number of a crop, 0 without crops."""
        return int(self.crops[-1, 1]) if self.crops is not None and len(self.crops) else 0

    @property
    def pictures(self) -> int:
        """How many frames have a picture: crops, or the frames in the video's header."""
        return self.video if self.crops is None else int((self.crops[:, 1] - self.crops[:, 0] + 1).sum())

    @property
    def rows(self) -> int:
        """How many rows there are, by the rule above."""
        return max(self.highest, self.lines, self.video)

    @property
    def stored(self) -> int:
        """Rows that stage one stores: up to the highest crop, or the frames of the video."""
        return self.video if self.crops is None else self.highest

    def without_crop(self) -> tuple[int, int]:
        """Return the number of rows without a crop, and how many of these are labelled; (0, 0) for a video."""
        if self.crops is None:
            return 0, 0
        bare = np.ones(self.rows, bool)
        for first, last in self.crops:
            bare[first - 1:last] = False
        return int(bare.sum()), int((bare & (self.trial.frame_labels(self.rows) >= 0)).sum())

    def labelled(self) -> NDArray[np.int64]:
        """Return the class of each labelled row."""
        labels = self.trial.frame_labels(self.rows)
        return labels[labels >= 0].astype(np.int64)
