"""DFEW and MAFW: five published folds, each with a list of training and a list of test clips."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from fercache.config import DatasetConfig
from fercache.data import clip_level
from fercache.data.base import Dataset, Problem, Split
from fercache.data.scan import Scan, describe
from fercache.errors import InputError

Lists = dict[tuple[int, Split], Path]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What tells one such set from another.

    Parameters
    ----------
    official, common : regular expressions of the lists' paths below the root (groups ``split`` and ``fold``): the set's
        own, and those that participants pass on (``path frames label``, numbers from 0).
    first : the number of the first class in the official lists.
    expected : what the user is told to look for.
    """

    layout: str
    classes: tuple[str, ...]
    official: re.Pattern[str]
    common: re.Pattern[str]
    first: int
    expected: str
    name_of: Callable[[str], str]
    key: clip_level.Key


def looks_like(found: Scan, protocol: Protocol) -> bool:
    """Return whether a folder holds lists of this set."""
    return bool(_lists([found], protocol.official, "") or _lists([found], protocol.common, ""))


def read(config: DatasetConfig, protocol: Protocol) -> Dataset:
    """Return the trials of one published fold: those of its test list are the test split.

    Raises
    ------
    InputError
        No lists, no such fold, or not one clip.
    """
    found = clip_level.scans(config, protocol.layout)
    lists, first = _lists(found, protocol.official, config.edition), protocol.first
    if not lists:
        lists, first = _lists(found, protocol.common, config.edition), 0
    if not lists:
        raise InputError(f"no lists of {protocol.layout}", where=found[0].root,
                         hint=f"expected is {protocol.expected}; {describe(found[0])}")
    fold = clip_level.by_fold(lists, protocol.layout, config.fold)
    rows = {key: [(protocol.name_of(row.clip), row) for row in clip_level.rows_of(path)] for key, path in lists.items()}
    held = {name: number for (number, split), named in sorted(rows.items()) if split == "test" for name, _ in named}
    entries: dict[str, clip_level.Entry] = {}
    problems: list[Problem] = []
    for split in SPLITS:
        if (fold, split) in lists:
            new, wrong = clip_level.labelled(rows[fold, split], lists[fold, split], split, protocol.classes, first, held)
            problems += [*wrong, *_twice(entries, new, lists[fold, split])]
            entries = {entry.name: entry for entry in new} | entries
    folds = len({number for number, _ in lists})
    problems += _half(lists, fold)
    return clip_level.build(config, protocol.layout, found, entries.values(), protocol.key, classes=protocol.classes,
                        metric="uar", problems=problems, folds=folds, fold=fold, notice=notice(protocol, fold, folds))


SPLITS: tuple[Split, ...] = ("train", "test")


def notice(protocol: Protocol, fold: int, folds: int) -> str:
    """Return what a reader of the results must know."""
    return (f"{protocol.layout}, published fold {fold} of {folds}: papers report the mean of all five (--fold chooses);"
            " the set does not say which clips share a film or a person, so folds by group are folds by clip")


def _lists(found: Iterable[Scan], pattern: re.Pattern[str], edition: str) -> Lists:
    """Return (fold, split) to list; of several with one name the first by the alphabet."""
    lists: Lists = {}
    for each in found:
        for path in sorted((*each.texts, *each.tables)):
            below = path.relative_to(each.root).as_posix()
            match = pattern.search(f"/{below}")
            if match and edition.casefold() in below.casefold():
                split: Split = "train" if match["split"].casefold() == "train" else "test"
                lists.setdefault((int(match["fold"]), split), path)
    return lists


def _twice(known: Mapping[str, clip_level.Entry], new: Sequence[clip_level.Entry], path: Path) -> list[Problem]:
    """Return a problem for each clip that is in the training list and in the test list."""
    return [Problem(where=entry.name, what="in the training list and in the test list of one fold",
                    hint=f"it is used for training only; correct {path}") for entry in new if entry.name in known]


def _half(lists: Lists, fold: int) -> list[Problem]:
    """Return a problem where only one of a fold's two lists is there."""
    return [Problem(where=f"fold {fold}", what=f"its {split} list is not there", hint="download it again")
            for split in SPLITS if (fold, split) not in lists]


def stem_of(clip: str) -> str:
    """Return the clip's name in a list: the last part of its path without an ending."""
    return PurePath(clip.replace("\\", "/")).stem


def without_parts(path: PurePath, pattern: str) -> str:
    """Return a clip's folder without those parts that only divide a version into pieces."""
    kept = [part for part in path.parent.parts if not re.fullmatch(pattern, part, re.IGNORECASE)]
    return "/".join(kept)
