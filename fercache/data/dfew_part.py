"""DFEW: 11,697 single-labelled film clips, seven classes, five published folds.

Notes
-----
Lists: ``EmoLabel_DataSplit/{train,test}(single-labeled)/set_{1..5}.csv`` (columns video_name, label 1 to 7), also seen
as ``train_set_1.csv`` and without "(single-labeled)"; and participants' ``DFEW_set_1_train.txt`` (path, frames, label
from 0). The order of the classes was found in six participants' repositories, all alike; the set's own documents were
not at hand. Clips: folders or videos named by number, in pieces (``clip_224x224_part_1``) or not.
"""

from __future__ import annotations

import re
from pathlib import PurePath

from fercache.config import DatasetConfig
from fercache.data import cross_part
from fercache.data.base import Dataset
from fercache.data.scan import Scan

CLASSES = ("Happy", "Sad", "Neutral", "Angry", "Surprise", "Disgust", "Fear")
PIECE = r".*part[_-]?\d+"


def _name(clip: str) -> str:
    stem = cross_part.stem_of(clip)
    return f"{int(stem):05d}" if stem.isascii() and stem.isdigit() else stem


def _key(path: PurePath) -> tuple[str, str] | None:
    stem = path.name.partition(".")[0]
    return (cross_part.without_parts(path, PIECE), f"{int(stem):05d}") if stem.isascii() and stem.isdigit() else None


PROTOCOL = cross_part.Protocol(
    layout="dfew", classes=CLASSES, first=1, name_of=_name, key=_key,
    official=re.compile(r"/(?P<split>train|test)(\(single-labell?ed\))?/((train|test)_)?set_(?P<fold>\d)\.csv$", re.I),
    common=re.compile(r"/DFEW_set_(?P<fold>\d)_(?P<split>train|test)\w*\.txt$", re.I),
    expected="EmoLabel_DataSplit/train(single-labeled)/set_1.csv and test(single-labeled)/set_1.csv")


def looks_like(found: Scan) -> bool:
    """Return whether a folder holds DFEW's lists."""
    return cross_part.looks_like(found, PROTOCOL)


def read(config: DatasetConfig) -> Dataset:
    """Return the trials of one of DFEW's folds (1 unless `config.fold` says another)."""
    return cross_part.read(config, PROTOCOL)
