"""Sets of actors who play emotions, where all that is known of a clip stands in its name."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePath

from fercache.data import clip_level
from fercache.data.base import UNKNOWN, Problem, some
from fercache.data.scan import Scan, describe
from fercache.errors import InputError

ENOUGH = 0.5
"""Share of a folder's clips that must be named as a set's are, for the set to be recognised."""


def looks_like(found: Scan, pattern: re.Pattern[str]) -> bool:
    """Return whether most clips of a folder are named by `pattern`."""
    names = [stem_of(path) for path, _ in found.clips()]
    return bool(names) and sum(bool(pattern.fullmatch(name)) for name in names) > ENOUGH * len(names)


def stem_of(path: PurePath) -> str:
    """Return a clip's name without any ending."""
    return path.name.partition(".")[0]


def key_of(pattern: re.Pattern[str], without: Collection[str] = ()) -> clip_level.Key:
    """Return what tells a clip's version and name from its path; clips in `without` are none of the set's."""
    def key(path: PurePath) -> tuple[str, str] | None:
        stem = stem_of(path)
        return (_home(path), stem) if pattern.fullmatch(stem) and stem not in without else None
    return key


def _home(path: PurePath) -> str:
    """Return a clip's folder without the parts that stand for an actor (``Video_Speech_Actor_01/Actor_01``)."""
    return "/".join(part for part in path.parent.parts if not re.fullmatch(r"(.*actor_?)?\d+", part, re.IGNORECASE))


def entries_of(found: Sequence[Scan], pattern: re.Pattern[str], layout: str, example: str, codes: Mapping[str, int]
               ) -> tuple[list[clip_level.Entry], list[Problem]]:
    """Return an entry for each clip with a name of the set's form, and a problem for each unknown emotion.

    Parameters
    ----------
    pattern : of a clip's name, with the groups ``emotion`` and ``actor``.
    codes : what stands for an emotion in a name -> class.

    Raises
    ------
    InputError
        Not one clip is named so.
    """
    names = sorted({stem_of(path) for each in found for path, _ in each.clips()})
    parts = {name: match for name in names if (match := pattern.fullmatch(name))}
    if not parts:
        raise InputError(f"not one clip is named as {layout}'s are", where=found[0].root,
                         hint=f"a clip is named {example}; {describe(found[0])}")
    problems = [Problem(where=name, what=f"its label was dropped: {match['emotion']!r} is none of {some(codes, 12)}",
                        hint="correct the clip's name; it is predicted without a label meanwhile")
                for name, match in parts.items() if match["emotion"] not in codes]
    entries = [clip_level.Entry(name=name, label=codes.get(match["emotion"], UNKNOWN), group=match["actor"],
                            subject=match["actor"], split="train" if match["emotion"] in codes else "test")
               for name, match in parts.items()]
    return entries, problems
