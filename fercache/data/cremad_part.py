"""CREMA-D: 7,442 clips of 91 actors, six classes, no published split: the folds hold whole actors.

Notes
-----
A clip's name says all: ``1019_DFA_ANG_XX.flv`` = actor, sentence, emotion, level.
"""

from __future__ import annotations

import re

from fercache.config import DatasetConfig
from fercache.data import acted_part, clip_level
from fercache.data.base import Dataset
from fercache.data.scan import Scan

CODES = {"ANG": "Anger", "DIS": "Disgust", "FEA": "Fear", "HAP": "Happy", "NEU": "Neutral", "SAD": "Sad"}
NAME = re.compile(r"(?P<actor>1\d{3})_[A-Z]{3}_(?P<emotion>[A-Z]{3})_[A-Z]{1,2}")


def looks_like(found: Scan) -> bool:
    """Return whether most clips are named as CREMA-D's are."""
    return acted_part.looks_like(found, NAME)


def read(config: DatasetConfig) -> Dataset:
    """Return CREMA-D's trials, all of them training data, grouped by actor.

    Raises
    ------
    InputError
        Not one clip is named as CREMA-D's are.
    """
    found = clip_level.scans(config, "cremad")
    codes = {code: index for index, code in enumerate(CODES)}
    entries, problems = acted_part.entries_of(found, NAME, "cremad", "1019_DFA_ANG_XX.flv", codes)
    return clip_level.build(config, "cremad", found, entries, acted_part.key_of(NAME), classes=tuple(CODES.values()),
                        metric="uar", problems=problems)
