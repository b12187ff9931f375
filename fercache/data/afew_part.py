"""AFEW (EmotiW): film clips in folders of their emotion, seven classes, accuracy on the published validation split.

Notes
-----
``{Train,Val,Test}_AFEW/<Emotion>/<clip>.avi`` (also ``train``, ``validation``, ..), frames of a clip in a folder of its
name, or the set's own faces, ``AlignedFaces_LBPTOP_Points/Faces/<clip>/``, which take their emotion from the video of
that name. The test part has no labels. The first three digits of a clip's name are taken for the film (from memory, no
document was at hand: if it is something else the folds are only coarser), so clips of one film share a fold.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath

from fercache.config import DatasetConfig
from fercache.data import clip_level
from fercache.data.base import UNKNOWN, Dataset, Problem, Split
from fercache.data.scan import Scan, describe
from fercache.errors import InputError

CLASSES = ("Angry", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise")
PART = re.compile(r"(?P<part>train|training|val|valid|validation|test)(_?(afew|vid|set|faces|distribute|\d{2,4}))*",
                  re.IGNORECASE)
SPLITS: dict[str, Split] = {"tr": "train", "va": "validation", "te": "test"}
FEW = 3
"""Emotions that must stand in the training or validation part, for the set to be recognised."""


def looks_like(found: Scan) -> bool:
    """Return whether folders of emotions stand in a training and a validation part."""
    places = [(split_of(below), path.name) for path in found.folders
              if clip_level.code_of(path.name, CLASSES) is not None and not path.name.isdigit()
              for below in [path.relative_to(found.root)]]
    return all(len({name for split, name in places if split == wanted}) >= FEW for wanted in ("train", "validation"))


def split_of(path: PurePath) -> Split | None:
    """Return the part of the set that a path lies in."""
    parts = [match["part"][:2].casefold() for part in path.parts if (match := PART.fullmatch(part))]
    return SPLITS[parts[-1]] if parts else None


def read(config: DatasetConfig) -> Dataset:
    """Return AFEW's trials, grouped by film.

    Raises
    ------
    InputError
        No clip stands in a folder of its emotion.
    """
    found = clip_level.scans(config, "afew")
    entries, problems = _entries(found)
    if not any(entry.label != UNKNOWN for entry in entries):
        raise InputError("no clip of afew in a folder of its emotion", where=found[0].root, hint=(
            f"expected is Train_AFEW/Angry/000046280.avi and Val_AFEW/..; {describe(found[0])}"))
    return clip_level.build(config, "afew", found, entries, _key, classes=CLASSES, metric="accuracy", problems=problems)


def _entries(found: Sequence[Scan]) -> tuple[list[clip_level.Entry], list[Problem]]:
    """Return an entry for each clip of a known part, and a problem for each that has two labels or stands in two parts.

    Notes
    -----
    A test clip has no label, wherever it lies.
    """
    seen: dict[str, set[tuple[Split, int]]] = {}
    for each in found:
        for path, _ in each.clips():
            below = path.relative_to(each.root)
            split = split_of(below.parent)
            if split is not None:
                code = UNKNOWN if split == "test" else _emotion(below)
                seen.setdefault(_name(below), set()).add((split, code))
    entries, problems = [], []
    for name, places in sorted(seen.items()):
        known = sorted((split, code) for split, code in places if code != UNKNOWN or split == "test")
        if len(known) > 1:
            problems.append(Problem(where=name, what="stands in several parts or under several emotions",
                                    hint="it is left out; keep one of them"))
        elif known:
            entries.append(clip_level.Entry(name=name, split=known[0][0], label=known[0][1], group=_film(name)))
        else:
            problems.append(Problem(where=name, what="stands under no emotion", hint="it is left out; move it there"))
    return entries, problems


def _emotion(path: PurePath) -> int:
    code = clip_level.code_of(path.parent.name, CLASSES) if not path.parent.name.isdigit() else None
    return UNKNOWN if code is None else code


def _name(path: PurePath) -> str:
    return path.name.partition(".")[0]


def _film(name: str) -> str:
    return f"film{name[:3]}" if re.match(r"\d{9}", name) else name


def _key(path: PurePath) -> tuple[str, str] | None:
    """Return the version (the folders but for the part of the set and the emotion) and the clip."""
    if split_of(path.parent) is None:
        return None
    kept = [re.sub(r"_?(train|val|test)\w*$", "", part, flags=re.IGNORECASE) for part in path.parent.parts
            if not PART.fullmatch(part) and (part.isdigit() or clip_level.code_of(part, CLASSES) is None)]
    return "/".join(kept), _name(path)
