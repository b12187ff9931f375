"""Class names, the mapping from one set's classes to another's, and label text files; nothing is ever guessed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fercache.data.base import EIGHT, SEVEN, UNKNOWN, Issue, Labels
from fercache.errors import InputError

Floats = NDArray[np.float64]

_AFFECTNET7 = ("Neutral", "Happiness", "Sadness", "Surprise", "Fear", "Disgust", "Anger")

SETS: dict[str, tuple[str, ...]] = {
    "abaw7": SEVEN,
    "abaw8": EIGHT,
    "affectnet7": _AFFECTNET7,
    "affectnet8": (*_AFFECTNET7, "Contempt"),
    "dfew": ("Happy", "Sad", "Neutral", "Angry", "Surprise", "Disgust", "Fear"),
    "ferv39k": ("Angry", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise"),
    "mafw": ("Anger", "Disgust", "Fear", "Happiness", "Neutral", "Sadness", "Surprise", "Contempt", "Anxiety",
             "Helplessness", "Disappointment"),
    "cremad": ("Anger", "Disgust", "Fear", "Happy", "Neutral", "Sad"),
    "ravdess": ("Neutral", "Calm", "Happy", "Sad", "Angry", "Fearful", "Disgust", "Surprised"),
    "afew": ("Angry", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise"),
    "ckplus": ("Anger", "Contempt", "Disgust", "Fear", "Happy", "Sadness", "Surprise"),
    "ckplus8": ("Neutral", "Anger", "Contempt", "Disgust", "Fear", "Happy", "Sadness", "Surprise"),
    "fer2013": ("Angry", "Disgust", "Fear", "Happy", "Sad", "Surprise", "Neutral"),
}
"""Class names in the order of each set's own numbers: DFEW's 1 to 7 (README of github.com/jiangxingxun/DFEW, by its
authors), RAVDESS' 01 to 08 (its file names), AffectNet's 0 to 7, CK+'s 1 to 7 (0 is neutral). FERV39k, CREMA-D, MAFW
and AFEW label by name; the order there is ours."""

_ALIASES = {
    "neutral": "neutral neu neutrality",
    "anger": "anger angry ang",
    "disgust": "disgust disgusted dis",
    "fear": "fear fearful fea",
    "happiness": "happiness happy hap",
    "sadness": "sadness sad",
    "surprise": "surprise surprised sur",
    "contempt": "contempt contemptuous",
    "calm": "calm",
    "other": "other others",
    "anxiety": "anxiety anxious",
    "helplessness": "helplessness helpless",
    "disappointment": "disappointment disappointed",
}
_CANONICAL = {alias: name for name, aliases in _ALIASES.items() for alias in aliases.split()}

MIN_MAPPED = 1e-9  # a row with a smaller sum over classes that have a counterpart gets uniform probabilities over them


def canonical_class_name(name: str) -> str:
    """Return the canonical spelling of a class: ``Happy``, ``HAP`` and ``happiness`` are all ``happiness``."""
    # An unknown name is its own canonical spelling, in lower case and without blanks around it.
    plain = name.strip().casefold()
    return _CANONICAL.get(plain, plain)


@dataclass(frozen=True)
class LabelMap:
    """The mapping from the classes of one set to those of another."""

    # `source`, `target`: class names, each in its set's own order.
    source: tuple[str, ...]
    target: tuple[str, ...]
    to: tuple[int, ...]  # for each source class the index of its target class, -1 for none

    @property
    def source_only(self) -> tuple[str, ...]:
        """The source classes without a counterpart; their probabilities and labels are dropped."""
        return tuple(name for name, place in zip(self.source, self.to, strict=True) if place == UNKNOWN)

    @property
    def target_only(self) -> tuple[str, ...]:
        """The target classes without a counterpart; they are never predicted."""
        return tuple(name for place, name in enumerate(self.target) if place not in self.to)

    @property
    def one_to_one(self) -> bool:
        """Whether each class has exactly one counterpart, in both directions: only order and spelling differ."""
        return sorted(self.to) == list(range(len(self.target)))

    def probs(self, given: NDArray[Any]) -> Floats:
        """Return probabilities of the target classes, ``(R, C_target)``, from ``(R, C_source)``.

        Classes with the same counterpart are added up. The probabilities of classes without a counterpart are dropped,
        and the rest is scaled so that each row sums to 1. A row without a rest gets uniform probabilities over the
        classes that have a counterpart.
        """
        mapped = np.zeros((len(given), len(self.target)))  # (R, C_target)
        for place, values in zip(self.to, np.asarray(given, float).T, strict=True):
            if place != UNKNOWN:
                mapped[:, place] += values
        total = mapped.sum(1)
        mapped[total < MIN_MAPPED] = np.isin(np.arange(len(self.target)), self.to)
        return np.asarray(mapped / mapped.sum(1, keepdims=True))

    def labels(self, given: NDArray[Any]) -> NDArray[np.int64]:
        """Return labels in the target's numbers, ``(R,)``, -1 for none and for classes without a counterpart."""
        table = np.array([*self.to, UNKNOWN])  # a label of -1 selects the last one
        return np.asarray(table[np.asarray(given)], np.int64)

    def predicted(self, probs: NDArray[Any], label_pred: NDArray[Any]) -> NDArray[np.int64]:
        """Return the class of each row, ``(R,)``: the predicted one, or the likeliest if a class has no counterpart."""
        return self.probs(probs).argmax(1) if self.source_only else self.labels(label_pred)

    def describe(self) -> str:
        """Return the mapping as text: renamed classes, and those without a counterpart."""
        renamed = [f"{name} -> {self.target[place]}" for name, place in zip(self.source, self.to, strict=True)
                   if place != UNKNOWN and name != self.target[place]]
        parts = [", ".join(renamed) or "names as they are"]
        if self.source_only:
            parts.append(f"no counterpart for {', '.join(self.source_only)} (dropped, the rest scaled to sum to 1)")
        if self.target_only:
            parts.append(f"never predicted: {', '.join(self.target_only)}")
        return "; ".join(parts)


def map_class_names(source: Sequence[str], target: Sequence[str], also: Mapping[str, str] | None = None) -> LabelMap:
    """Return the mapping of the classes of `source` to those of `target`, by name in any usual spelling.

    `also`: source class -> target class, for classes that names do not match (``{"Calm": "Neutral"}``); it overrides
    names. Raises InputError if a set has two classes of one meaning, `also` names an unknown class, or no class has a
    counterpart.
    """
    target_index, source_index = index_by_name(target), index_by_name(source)
    chosen: dict[int, int] = {}
    for pair in (also or {}).items():
        for name, index, classes in zip(pair, (source_index, target_index), (source, target), strict=True):
            if canonical_class_name(name) not in index:
                raise InputError(f"no class {name!r}", where="--map", hint=f"there are {', '.join(classes)}")
        chosen[source_index[canonical_class_name(pair[0])]] = target_index[canonical_class_name(pair[1])]
    to = tuple(chosen.get(i, target_index.get(canonical_class_name(name), UNKNOWN)) for i, name in enumerate(source))
    # With no class in common every row would get uniform probabilities, and the score would look like a real one.
    if set(to) == {UNKNOWN}:
        raise InputError(f"no class of {', '.join(source)} is one of {', '.join(target)}", where="label map",
                         hint="name the counterparts with --map A=B,C=D")
    return LabelMap(tuple(source), tuple(target), to)


def parse(text: str) -> dict[str, str]:
    """Return ``A=B,C=D`` as a dictionary; ``names`` and an empty text give an empty one."""
    pairs: dict[str, str] = {}
    for part in (part.strip() for part in text.split(",")):
        if part in ("", "names"):
            continue
        left, sign, right = (piece.strip() for piece in part.partition("="))
        if not (left and sign and right) or left in pairs:
            raise InputError(f"{part!r} is not a pair CLASS=CLASS, or names a class again", where="--map",
                             hint="write --map names, or pairs like --map Calm=Neutral,Contempt=Other")
        pairs[left] = right
    return pairs


def index_by_name(classes: Sequence[str]) -> dict[str, int]:
    """Return canonical name -> index."""
    index: dict[str, int] = {}
    for i, name in enumerate(classes):
        twin = index.setdefault(canonical_class_name(name), i)
        if twin != i:
            raise InputError(f"{classes[twin]} and {name} mean the same class", where="label map",
                             hint="rename one of them")
    return index


# Labels in text files: a header with the class names, then one integer a frame (Aff-Wild2's form).

LIMIT_BYTES = 64 << 20
UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # byte order marks of UTF-16
# pandas and spreadsheets write whole numbers with a decimal point or comma; longer numbers are no labels or frames.
# ``1,000`` is none: it may be 1 or 1000.
WHOLE = re.compile(r"([+-]?[0-9]{1,15})(?:\.0*|,(?!000$)0*)?")
WRONG = np.iinfo(np.int16).min
MOST_FRAMES = 10_000_000  # four days at 30 frames a second; a larger number is not a frame number
_SHOWN = 30


class LabelFile(NamedTuple):
    """The content of a label file: `header` is empty if it has none; `labels` (L,) int16."""

    header: tuple[str, ...]
    labels: Labels


FrameLabels = tuple[tuple[str, ...], dict[str, Labels], list[Issue]]
"""The classes, the labels of each clip by frame, (L,) int16, and an issue for everything that was dropped."""


def whole_number(text: str) -> int | None:
    """Return the whole number that a cell spells: ``3``, ``3.0`` and ``3,0`` are all 3; None for anything else."""
    match = WHOLE.fullmatch(text.strip())
    return int(match[1]) if match else None


def read_text(path: Path, errors: str = "strict") -> str:
    """Return the text of a file of labels or of a list; raise InputError if it is none, or too large.

    `errors`: what to do with bytes that are not in its encoding, as `open` has it.
    """
    try:
        if path.stat().st_size > LIMIT_BYTES:  # any *.txt may be taken for labels, a log of gigabytes too
            raise InputError(f"larger than {LIMIT_BYTES >> 20} MB", where=path, hint="these are no labels and no list")
        with path.open("rb") as file:
            encoding = "utf-16" if file.read(2) in UTF_16 else "utf-8-sig"
        return path.read_text(encoding=encoding, errors=errors)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=path, hint="check its permissions") from error
    except UnicodeDecodeError as error:
        raise InputError("is not text in UTF-8, or in UTF-16 with a byte order mark", where=path,
                         hint="download it again, or save it in UTF-8") from error


def read(path: Path) -> LabelFile:
    """Return the header and the labels of a text file; raise InputError if it has none."""
    lines = read_text(path).rstrip().split("\n")
    if lines == [""]:
        raise InputError("is empty", where=path)
    header: tuple[str, ...] = ()
    if whole_number(lines[0]) is None:
        header = tuple(name.strip() for name in re.split("[,;\t]", lines.pop(0).rstrip(",; \t")))
    # A file has few distinct lines, so each is parsed once and the rest is a lookup: .1 s for a million frames.
    values: dict[str, int] = {}
    for line in set(lines):
        number = whole_number(line)
        values[line] = number if number is not None and abs(number) < -WRONG else WRONG
    # A label that does not fit int16 becomes WRONG as well, so that nothing wraps around to a class.
    labels = np.fromiter(map(values.__getitem__, lines), np.int16, len(lines))
    wrong = np.flatnonzero(labels == WRONG)
    if len(wrong):
        at, line = int(wrong[0]), lines[int(wrong[0])]
        raise InputError(f"line {at + 1 + bool(header)} is {line[:_SHOWN]!r}, not a label", where=path)
    return LabelFile(header, labels)


def _folded(header: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name.casefold() for name in header)


def read_all(files: Mapping[str, Path], known: Sequence[tuple[str, ...]] = ()) -> FrameLabels:
    """Return the labels of each trial, without the files that had to be dropped.

    `files`: trial name -> text file. `known`: class lists that a header may hold; if none is named, all headers of the
    files; if it is one, a file needs no header. The most frequent one is the set's; files with another are dropped.
    """
    # Class orders are never guessed: the same names in another order are another header.
    contents: dict[str, LabelFile] = {}
    wrong: dict[str, str] = {}
    for name, path in sorted(files.items()):
        try:
            content = read(path)
            contents[name] = content if content.header or len(known) != 1 else content._replace(header=known[0])
        except InputError as error:
            wrong[name] = error.what
    found = Counter(content.header for content in contents.values() if content.header)
    known = known or sorted(found, key=lambda header: (-found[header], header))
    listed = {_folded(names): names for names in reversed(known)}
    # One file with another header must not change the classes of the whole set, so the majority decides.
    headers = Counter(names for header in found.elements() if (names := listed.get(_folded(header))))
    classes = max(headers, key=lambda names: (headers[names], len(names)), default=())
    labels: dict[str, Labels] = {}
    for name, content in contents.items():
        header = ",".join(content.header)[:100]
        outside = np.flatnonzero((content.labels < UNKNOWN) | (content.labels >= len(classes)))
        if not content.header:
            wrong[name] = "has no header with the class names"
        elif _folded(content.header) not in listed:
            wrong[name] = f"header unknown: {header!r}"
        elif listed[_folded(content.header)] != classes:
            wrong[name] = f"header {header!r} differs from that of most files ({','.join(classes)})"
        elif len(outside):
            wrong[name] = (f"frame {outside[0] + 1} has label {content.labels[outside[0]]}, which is not -1 or 0 to "
                           f"{len(classes) - 1}")
        else:
            labels[name] = content.labels
    return classes, labels, [Issue(where=name, message=f"its labels were dropped: {files[name].name} {what}",
                                   hint=f"correct {files[name]}; until then the clip is predicted without labels")
                             for name, what in sorted(wrong.items())]
