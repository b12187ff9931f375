"""MAFW: 9,172 single-labelled clips, eleven classes, five published folds.

Notes
-----
Lists: ``Train & Test Set/single/no_caption/set_{1..5}/{train,test}.txt`` with lines ``00001.mp4 anger``; and
participants' ``MAFW_set_1_train.txt`` (path, frames, label 0 to 10), whose frame counts do not match the files: they
are compared by `check`, never used. The lists with captions and of compound labels are not read. The order of the
classes is that of the set's columns, as three participants' repositories have it.
"""

from __future__ import annotations

import re
from pathlib import PurePath

from fercache.config import DatasetConfig
from fercache.data import cross_part
from fercache.data.base import Dataset
from fercache.data.scan import Scan

CLASSES = ("Anger", "Disgust", "Fear", "Happiness", "Neutral", "Sadness", "Surprise", "Contempt", "Anxiety",
           "Helplessness", "Disappointment")


def _key(path: PurePath) -> tuple[str, str] | None:
    stem = path.name.partition(".")[0]
    return (path.parent.as_posix(), stem) if re.fullmatch(r"\d{4,6}", stem) else None


PROTOCOL = cross_part.Protocol(
    layout="mafw", classes=CLASSES, first=1, name_of=cross_part.stem_of, key=_key,
    official=re.compile(r"^(?!.*(with_caption|compound|multi)).*/set_(?P<fold>\d)/(?P<split>train|test)\.txt$", re.I),
    common=re.compile(r"/MAFW_set_(?P<fold>\d)_(?P<split>train|test)\w*\.txt$", re.I),
    expected="Train & Test Set/single/no_caption/set_1/train.txt and test.txt, or MAFW_set_1_train.txt")


def looks_like(found: Scan) -> bool:
    """Return whether a folder holds MAFW's lists."""
    return cross_part.looks_like(found, PROTOCOL)


def read(config: DatasetConfig) -> Dataset:
    """Return the trials of one of MAFW's folds (1 unless `config.fold` says another)."""
    return cross_part.read(config, PROTOCOL)
