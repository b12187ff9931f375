"""From one set's classes to another's, by name: what has no counterpart is told, never guessed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fercache.data.base import UNKNOWN, Issue, Labels
from fercache.errors import InputError

Floats = NDArray[np.float64]

_ABAW7 = ("Neutral", "Anger", "Disgust", "Fear", "Happiness", "Sadness", "Surprise")
_AFFECTNET7 = ("Neutral", "Happiness", "Sadness", "Surprise", "Fear", "Disgust", "Anger")

SETS: dict[str, tuple[str, ...]] = {
    "abaw7": _ABAW7,
    "abaw8": (*_ABAW7, "Other"),
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

NOTHING = -1
MIN_SHARED = 1e-9
"""A row with less than this on classes that have a counterpart gets even odds over them."""


def canonical_class_name(name: str) -> str:
    """Return the one spelling of a class: ``Happy``, ``HAP`` and ``happiness`` are all ``happiness``.

    Notes
    -----
    A name that is not known is its own spelling, letter case and blanks aside: it maps to itself and nothing else.
    """
    plain = name.strip().casefold()
    return _CANONICAL.get(plain, plain)


@dataclass(frozen=True)
class LabelMap:
    """How the classes of one set become those of another.

    Attributes
    ----------
    source, target : class names, each in its set's own order.
    to : for each source class the index of its target class, -1 where it has none.
    """

    source: tuple[str, ...]
    target: tuple[str, ...]
    to: tuple[int, ...]

    @property
    def lost(self) -> tuple[str, ...]:
        """The source classes without a counterpart: what they were given is taken away."""
        return tuple(name for name, place in zip(self.source, self.to, strict=True) if place == NOTHING)

    @property
    def never(self) -> tuple[str, ...]:
        """The target classes that no source class becomes: they are never said."""
        return tuple(name for place, name in enumerate(self.target) if place not in self.to)

    @property
    def whole(self) -> bool:
        """Whether each class has exactly one counterpart, both ways: another order or spelling, nothing more."""
        return sorted(self.to) == list(range(len(self.target)))

    def probs(self, given: NDArray[Any]) -> Floats:
        """Return probabilities of the target classes, ``(R, C_target)``, from ``(R, C_source)``.

        Notes
        -----
        Classes that become the same one are added up; what lost classes had is taken away, and the rest is scaled so
        that each row sums to 1 again. A row that had everything on lost classes gets even odds over the classes that
        can be said.
        """
        mapped = np.zeros((len(given), len(self.target)))
        for place, values in zip(self.to, np.asarray(given, float).T, strict=True):
            if place != NOTHING:
                mapped[:, place] += values
        total = mapped.sum(1)
        mapped[total < MIN_SHARED] = np.isin(np.arange(len(self.target)), self.to)
        return np.asarray(mapped / mapped.sum(1, keepdims=True))

    def labels(self, given: NDArray[Any]) -> NDArray[np.int64]:
        """Return labels in the target's numbers, ``(R,)``, -1 where there is none or the class has no counterpart."""
        table = np.array([*self.to, NOTHING])  # the last one is for labels of -1
        return np.asarray(table[np.asarray(given)], np.int64)

    def describe(self) -> str:
        """Return the map in words: what becomes what, and what has no counterpart."""
        renamed = [f"{name} -> {self.target[place]}" for name, place in zip(self.source, self.to, strict=True)
                   if place != NOTHING and name != self.target[place]]
        parts = [", ".join(renamed) or "names as they are"]
        if self.lost:
            parts.append(f"no counterpart for {', '.join(self.lost)} (taken out, the rest scaled to sum to 1)")
        if self.never:
            parts.append(f"never said: {', '.join(self.never)}")
        return "; ".join(parts)


def map_class_names(source: Sequence[str], target: Sequence[str], also: Mapping[str, str] | None = None) -> LabelMap:
    """Return how the classes of `source` become those of `target`: the same name, or another spelling of it.

    Parameters
    ----------
    also : source class -> target class, for what names alone do not say (``{"Calm": "Neutral"}``); goes before names.

    Raises
    ------
    InputError
        A set has two classes of one meaning, `also` names a class that is not there, or nothing has a counterpart.
    """
    places = _places(target)
    own = _places(source)
    chosen = {_known(a, own, source): _known(b, places, target) for a, b in (also or {}).items()}
    to = tuple(chosen.get(place, places.get(canonical_class_name(name), NOTHING)) for place, name in enumerate(source))
    if set(to) == {NOTHING}:
        raise InputError(f"no class of {', '.join(source)} is one of {', '.join(target)}", where="label map",
                         hint="say what becomes what with --map A=B,C=D")
    return LabelMap(tuple(source), tuple(target), to)


def parse(text: str) -> dict[str, str]:
    """Return what ``A=B,C=D`` says as a dictionary; ``names`` and an empty text say nothing more than names do.

    Raises
    ------
    InputError
        A part of it is no pair, or a class is named twice.
    """
    pairs: dict[str, str] = {}
    for part in (part.strip() for part in text.split(",")):
        if part in ("", "names"):
            continue
        left, sign, right = (piece.strip() for piece in part.partition("="))
        if not (left and sign and right) or left in pairs:
            raise InputError(f"{part!r} does not say once what becomes what", where="--map",
                             hint="write --map names, or pairs like --map Calm=Neutral,Contempt=Other")
        pairs[left] = right
    return pairs


def _places(classes: Sequence[str]) -> dict[str, int]:
    """Return canonical name -> index.

    Raises
    ------
    InputError
        Two of them mean the same.
    """
    places: dict[str, int] = {}
    for place, name in enumerate(classes):
        twin = places.setdefault(canonical_class_name(name), place)
        if twin != place:
            raise InputError(f"{classes[twin]} and {name} mean the same class", where="label map",
                             hint="rename one of them")
    return places


def _known(name: str, places: Mapping[str, int], classes: Sequence[str]) -> int:
    if canonical_class_name(name) not in places:
        raise InputError(f"no class {name!r}", where="--map", hint=f"there are {', '.join(classes)}")
    return places[canonical_class_name(name)]


# Labels in text files: a header with the class names, then one integer a frame (Aff-Wild2's form).

LIMIT_BYTES = 64 << 20
WRONG = np.iinfo(np.int16).min
_SHOWN = 30


class LabelFile(NamedTuple):
    """A label file as read: `header` is empty where it has none; `labels` (L,) int16."""

    header: tuple[str, ...]
    labels: Labels


class LabelError(ValueError):
    """What is wrong with a label file; always caught and turned into the trial's Issue."""


def read(path: Path) -> LabelFile:
    """Return the header and the labels of a text file.

    Raises
    ------
    LabelError
        It cannot be read, is no text, has no lines, or a line is no whole number.

    Notes
    -----
    Few distinct lines make up a file, so each is parsed once and the rest is a look-up: .1 s a million frames.
    """
    lines = _lines(path)
    header = () if _is_number(lines[0]) else tuple(name.strip() for name in lines.pop(0).rstrip(", \t").split(","))
    values: dict[str, int] = {}
    for line in set(lines):
        values[line] = _value(line)
    labels = np.fromiter(map(values.__getitem__, lines), np.int16, len(lines))
    wrong = np.flatnonzero(labels == WRONG)
    if len(wrong):
        at, line = int(wrong[0]), lines[int(wrong[0])]
        raise LabelError(f"line {at + 1 + bool(header)} is {line[:_SHOWN]!r}, no label")
    return LabelFile(header, labels)


def _lines(path: Path) -> list[str]:
    """Return the lines of a text file, without blank ones at its end."""
    try:
        if path.stat().st_size > LIMIT_BYTES:
            raise LabelError(f"larger than {LIMIT_BYTES >> 20} MB")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise LabelError(f"cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise LabelError("is no text in UTF-8") from error
    lines = text.rstrip().split("\n") if text.strip() else []
    if not lines:
        raise LabelError("is empty")
    return lines


def _value(line: str) -> int:
    """Return the whole number in a line, WRONG where there is none that could be a label."""
    if not _is_number(line):
        return WRONG
    number = int(line.strip()[:_SHOWN])
    return number if abs(number) < -WRONG else WRONG


def _is_number(line: str) -> bool:
    digits = line.strip().removeprefix("-")
    return digits.isascii() and digits.isdigit()


def check_range(labels: Labels, classes: int) -> None:
    """Refuse labels that are neither -1 nor an index into `classes`.

    Raises
    ------
    LabelError
        A label is out of range; says which frame.
    """
    wrong = np.flatnonzero((labels < UNKNOWN) | (labels >= classes))
    if len(wrong):
        raise LabelError(f"frame {wrong[0] + 1} has label {labels[wrong[0]]}, which is not -1 or 0 to {classes - 1}")


def canonical(header: tuple[str, ...], known: Iterable[tuple[str, ...]]) -> tuple[str, ...] | None:
    """Return the class list among `known` that `header` spells (letter case aside), None where there is none."""
    folded = tuple(name.casefold() for name in header)
    return next((names for names in known if folded == tuple(name.casefold() for name in names)), None)


def read_all(files: Mapping[str, Path], known: Iterable[tuple[str, ...]], *, bare: bool = False
             ) -> tuple[tuple[str, ...], dict[str, Labels], list[Issue]]:
    """Return the classes, the labels of each trial, and a problem for each file that had to be dropped.

    Parameters
    ----------
    files : trial name to text file.
    known : class lists that a header may spell. The one most files carry is the set's; other files are problems.
    bare : whether a file without header has the classes that are known first.

    Notes
    -----
    Class orders are never guessed: the same names in another order are another header.
    """
    known, read_files, headers = tuple(known), {}, Counter[tuple[str, ...]]()
    problems: list[Issue] = []
    for name, path in sorted(files.items()):
        try:
            content = read(path)
            read_files[name] = content._replace(header=known[0]) if bare and not content.header else content
        except LabelError as error:
            problems.append(_dropped(name, path, str(error)))
            continue
        found = canonical(read_files[name].header, known)
        headers.update([found] if found else [])
    classes = max(headers, key=lambda names: (headers[names], len(names)), default=())
    labels: dict[str, Labels] = {}
    for name, content in read_files.items():
        try:
            labels[name] = _fit(content, classes, known)
        except LabelError as error:
            problems.append(_dropped(name, files[name], str(error)))
    return classes, labels, sorted(problems, key=lambda problem: problem.where)


def _fit(content: LabelFile, classes: tuple[str, ...], known: tuple[tuple[str, ...], ...]) -> Labels:
    """Return the labels of a file whose header and range fit the set's classes."""
    header = ",".join(content.header)[:100]
    if not content.header:
        raise LabelError("has no header with the class names")
    if canonical(content.header, known) is None:
        raise LabelError(f"header unknown: {header!r}")
    if canonical(content.header, (classes,)) is None:
        raise LabelError(f"header {header!r} is another one than most files have ({','.join(classes)})")
    check_range(content.labels, len(classes))
    return content.labels


def _dropped(name: str, path: Path, what: str) -> Issue:
    return Issue(where=name, message=f"its labels were dropped: {path.name} {what}",
                   hint=f"correct {path}; the clip is predicted without labels meanwhile")
