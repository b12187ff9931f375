"""What every data set is, once read: trials with their clip, parent video, group, split and labels by frame number."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from fercache.errors import InputError

Kind = Literal["video", "crops"]
Split = Literal["train", "validation", "test"]
Labels = NDArray[np.int16]

UNKNOWN = -1
SEVEN = ("Neutral", "Anger", "Disgust", "Fear", "Happiness", "Sadness", "Surprise")
EIGHT = (*SEVEN, "Other")


Severity = Literal["ok", "skipped", "note", "warning", "error"]


@dataclass(frozen=True, kw_only=True)
class Issue:
    """One result of reading a data set, of `check`, `audit` or `verify`; it does not stop the rest.

    Parameters
    ----------
    kind : a word for programs, such as "no-clip", "leak" or "stray".
    where : clip, file or part that it is about.
    message : what is wrong, without a full stop.
    hint : what the user can do.
    severity : "error": data are lost or a score is wrong, and the command ends with exit code 1; "warning": a person
        should look at it; "note": harmless; "ok" and "skipped": a check that found nothing or was not made.
    details : all clips, files or findings, where `where` and `message` only summarize them.
    """

    kind: str = ""
    where: str
    message: str
    hint: str = ""
    severity: Severity = "error"
    details: tuple[str, ...] = ()

    @property
    def is_error(self) -> bool:
        """Whether data are lost or a score is wrong because of it."""
        return self.severity == "error"

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" + (f"\n  next: {self.hint}" if self.hint else "")


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """One person of one clip.

    Parameters
    ----------
    name : unique in its data set; what users see.
    path : video file, or folder of numbered crops.
    parent : the video that it comes from; two people of one video are two trials of one parent.
    group : trials of one group never stand on both sides of a fold.
    labels : (L,) int16, element i is frame i + 1, -1 where nobody annotated it; None where there are none.
    clip_label : one label for every frame of the clip (used where `labels` is None), -1 for none.
    side : "left" or "right" where a video shows two annotated people and this trial is one of them, else "".
    fold : the published fold whose test list holds it, from 1; 0 where the set publishes none.
    video : the source video where `path` is a folder of crops and the video is there too.
    stated : frames that the set's own list states for it, 0 where none are stated; never trusted, only compared.
    """

    name: str
    path: Path
    kind: Kind
    parent: str
    group: str
    split: Split
    subject: str = ""
    labels: Labels | None = None
    clip_label: int = UNKNOWN
    side: str = ""
    fold: int = 0
    video: Path | None = None
    stated: int = 0

    @property
    def labelled(self) -> bool:
        """Whether a frame of it has a label."""
        return self.clip_label >= 0 or (self.labels is not None and bool((self.labels >= 0).any()))

    def on_clock(self, frames: int) -> Labels:
        """Return the label of every frame, (max(frames, L),) int16, -1 where there is none."""
        if self.labels is None:
            return np.full(frames, self.clip_label, np.int16)
        return on_clock(self.labels, frames)


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """All trials of a data set, sorted by name.

    Parameters
    ----------
    name : folder of it in the cache.
    classes : class names; a label is an index into them. Empty where nothing is labelled.
    metric : the official one, by its name in `fercache.metrics`: "abaw2" (.67 macro F1 + .33 accuracy), "macro_f1",
        "uar" (mean recall) or "accuracy".
    folds : how many folds the set publishes, 0 for none; `fold` is the one whose split was read.
    whole_frames : whether its folders of pictures hold whole frames, not crops of faces.
    notice : what a reader of its results must know.
    problems : what is wrong with single clips.
    """

    name: str
    layout: str
    classes: tuple[str, ...]
    trials: tuple[Trial, ...]
    metric: str = "macro_f1"
    folds: int = 0
    fold: int = 0
    whole_frames: bool = False
    notice: str = ""
    problems: tuple[Issue, ...] = ()

    @property
    def faces(self) -> str:
        """How faces are found where nobody says: "cropped", "mtcnn", or "" where trials are of both kinds."""
        kinds = {trial.kind for trial in self.trials}
        if len(kinds) > 1:
            return ""
        return "cropped" if kinds == {"crops"} and not self.whole_frames else "mtcnn"

    def digest(self) -> str:
        """Return the sha256 (hex) over what training sees: classes, trials, groups, splits, labels; no paths."""
        state = hashlib.sha256(repr((self.classes, self.metric)).encode())
        for trial in self.trials:
            state.update(repr((trial.name, trial.parent, trial.group, trial.split, trial.subject, trial.clip_label,
                               trial.side)).encode())
            if trial.labels is not None:
                state.update(trial.labels.astype("<i2").tobytes())
        return state.hexdigest()


def on_clock(labels: Labels | None, frames: int) -> Labels:
    """Return the label of every frame of the clock, (max(frames, L),) int16.

    Notes
    -----
    Labels belong to frame numbers, never to positions among the files at hand: a clip that is longer than its
    annotation ends in -1, and an annotation that is longer than its clip makes the clock longer.
    """
    given = np.empty(0, np.int16) if labels is None else labels
    clock = np.full(max(frames, len(given)), UNKNOWN, np.int16)
    clock[: len(given)] = given
    return clock


def cache_name(layout: str, path: Path, chosen: str = "") -> str:
    """Return the folder name of a data set in the cache: `chosen`, or one made from the layout and the path.

    Raises
    ------
    InputError
        `chosen` is no plain folder name.
    """
    if chosen:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", chosen):
            raise InputError(f"{chosen!r} cannot name a folder of the cache", where="name",
                             hint="use up to 100 letters, digits, dots, dashes and underscores")
        return chosen
    full = path.resolve()
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", full.stem if full.is_file() else full.name)[:40]
    return f"{layout}-{plain}-{hashlib.sha256(str(full).encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"


def shorten_list(names: Iterable[object], most: int = 5) -> str:
    """Return up to `most` names as text, and how many more there are."""
    all_of: Sequence[str] = [str(name) for name in names]
    more = f" and {len(all_of) - most} more" if len(all_of) > most else ""
    return ", ".join(all_of[:most]) + more


def group_issues(issues: Iterable[Issue]) -> list[Issue]:
    """Return the issues in their order, equal ones merged; `details` names everything that a merged one is about."""
    names: dict[Issue, list[str]] = {}
    for issue in issues:
        names.setdefault(replace(issue, where=""), []).append(issue.where)
    return [replace(issue, where=shorten_list(places), details=tuple(places)) for issue, places in names.items()]


def printable(name: str) -> bool:
    """Return whether a file's name is valid text (Linux allows any bytes; tables and stores do not)."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


# Which trials a store holds of a data set: a clip as it is, or one a person of it.

SIDES = "left", "right"
PEOPLE_COUNT = "people"
"""In the mark of the first person of a clip: how many there are."""


class HasProvenance(Protocol):
    """What a store keeps of a committed clip."""

    @property
    def provenance(self) -> dict[str, Any]:
        """How it was made; of the first person of several, how many there are."""


class HasManifests(Protocol):
    """An embedding store, as far as it is asked here."""

    settings: dict[str, Any]

    def __contains__(self, clip: object) -> bool:
        """Return whether a clip is committed."""

    def manifest(self, clip: str) -> HasProvenance:
        """Return what was committed."""


def people_of(settings: Mapping[str, Any]) -> str:
    """Return whom the rows of a store with these settings are of: main, all or left/right."""
    return str(settings.get("people", "main"))


def person_name(trial: Trial, people: str, number: int = 1) -> str:
    """Return what a person of a clip is called in a store: the first, who is committed last, has number 1.

    Notes
    -----
    A trial that is one of two people by its own name stays what it is.
    """
    if people == "main" or trial.side:
        return trial.name
    return f"{trial.name}#{number}" if people == "all" else f"{trial.name}_{SIDES[number - 1]}"


def check_people(dataset: Dataset, people: str) -> None:
    """Refuse a data set in which a clip has the name of another one's person.

    Raises
    ------
    InputError
        There is such a clip.
    """
    ends = {"all": r"#\d+", "left/right": f"_({'|'.join(SIDES)})"}.get(people)
    several = {trial.name for trial in dataset.trials if not trial.side}
    for trial in dataset.trials if ends else ():
        found = re.fullmatch(f"(.*){ends}", trial.name, re.DOTALL)
        if found and found[1] in several:
            raise InputError(f"the clip {trial.name!r} has the name of a person of {found[1]!r}", where=dataset.name,
                             hint="rename one of them, or leave --people out")


def people_stored(trial: Trial, store: HasManifests) -> int:
    """Return how many people of a clip a store holds; 0 where it does not hold all of them."""
    people = people_of(store.settings)
    first = person_name(trial, people)
    if first not in store:
        return 0
    if first == trial.name:
        return 1
    count = int(store.manifest(first).provenance.get(PEOPLE_COUNT, 0))
    return count if all(person_name(trial, people, k) in store for k in range(2, count + 1)) else 0


def stored_trials(dataset: Dataset, store: HasManifests) -> Dataset:
    """Return the data set with each clip replaced by its people, where the store holds one trial a person.

    Notes
    -----
    They share parent, group, subject and split. The clip's labels belong to its main person, `CLIP#1`; of two called
    left and right nobody knows whose they are, so neither has them. Clips that are not in the store stay as they are.
    """
    if people_of(store.settings) == "main":
        return dataset
    trials = (one for trial in dataset.trials for one in _people(trial, store))
    return replace(dataset, trials=tuple(sorted(trials, key=lambda trial: trial.name)))


def _people(trial: Trial, store: HasManifests) -> list[Trial]:
    """Return the trials that stand for one of the data set."""
    people = people_of(store.settings)
    if trial.name in store:
        return [trial]
    named = [replace(trial, name=person_name(trial, people, k)) for k in range(1, people_stored(trial, store) + 1)]
    whose = 1 if people == "all" else 0
    return [*named[:whose], *(replace(one, labels=None, clip_label=UNKNOWN) for one in named[whose:])] or [trial]
