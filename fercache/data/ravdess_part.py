"""RAVDESS: speech and song of 24 actors, eight classes, no published split: the folds hold whole actors.

Notes
-----
A clip's name says all: ``02-01-06-01-02-01-12.mp4`` = modality (01 both, 02 video only, 03 sound only), channel (01
speech, 02 song), emotion 01 to 08, intensity, statement, repetition, actor. The set holds each picture track twice,
with sound and without: one of the two is read, that with sound where both are there.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

from fercache.config import DatasetConfig
from fercache.data import acted_part, clip_level
from fercache.data.base import Dataset, Problem, some
from fercache.data.scan import Scan

CLASSES = ("Neutral", "Calm", "Happy", "Sad", "Angry", "Fearful", "Disgust", "Surprised")
NAME = re.compile(r"0[12]-0[12]-(?P<emotion>\d\d)-\d\d-\d\d-\d\d-(?P<actor>\d\d)")


def looks_like(found: Scan) -> bool:
    """Return whether most clips are named as RAVDESS's are."""
    return acted_part.looks_like(found, NAME)


def read(config: DatasetConfig) -> Dataset:
    """Return RAVDESS's trials, all of them training data, grouped by actor.

    Raises
    ------
    InputError
        Not one clip is named as RAVDESS's are.
    """
    found = clip_level.scans(config, "ravdess")
    codes = {f"{index:02d}": index - 1 for index in range(1, len(CLASSES) + 1)}
    entries, problems = acted_part.entries_of(found, NAME, "ravdess", "01-01-06-01-02-01-12.mp4", codes)
    kept, dropped = _once(entries)
    if dropped:
        problems.append(Problem(where=some(dropped), lost=False, hint="those with sound (01-) are read",
                                what=f"{len(dropped)} clips stand there twice, with and without sound"))
    return clip_level.build(config, "ravdess", found, kept, acted_part.key_of(NAME, frozenset(dropped)), classes=CLASSES,
                        metric="uar", problems=problems)


def _once(entries: Iterable[clip_level.Entry]) -> tuple[list[clip_level.Entry], list[str]]:
    """Return one entry a performance, with sound where there is one, and the names of those left out."""
    takes: dict[str, list[clip_level.Entry]] = defaultdict(list)
    for entry in sorted(entries, key=lambda entry: entry.name):
        takes[entry.name[2:]].append(entry)
    return [one[0] for one in takes.values()], [entry.name for one in takes.values() for entry in one[1:]]
