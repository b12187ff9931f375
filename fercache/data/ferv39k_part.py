"""FERV39k: 38,935 clips of 22 scenes, seven classes, one published split.

Notes
-----
Lists: ``4_setups/All_scenes/{train,test}_All.csv``, separated by a space, no header: ``Action/Happy/0267 Happy``
(31,088 and 7,847 lines). Labels are words, so the lists fix no order of classes; the alphabet's is used, as most
loaders do. Clips: ``2_ClipsforFaceCrop/<Scene>/<Label>/<clip>/`` with pictures, or videos of that path.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePath

from fercache.config import DatasetConfig
from fercache.data import clip_level
from fercache.data.base import Dataset, Problem, Split, some
from fercache.data.scan import Scan, describe
from fercache.errors import InputError

CLASSES = ("Angry", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise")
LIST = re.compile(r"(?P<split>train|test)_All\.csv", re.IGNORECASE)
NOTICE = ("ferv39k: the set does not say which clips share a video or a person, so folds by group are folds by clip")


def looks_like(found: Scan) -> bool:
    """Return whether a folder holds FERV39k's lists."""
    return any(LIST.fullmatch(path.name) for path in found.tables)


def read(config: DatasetConfig) -> Dataset:
    """Return the trials of the setup of all scenes.

    Raises
    ------
    InputError
        No lists, or not one clip.
    """
    found = clip_level.scans(config, "ferv39k")
    lists = _lists(found, config.edition)
    entries: dict[str, clip_level.Entry] = {}
    problems: list[Problem] = []
    for split, path in lists.items():
        rows = [("/".join(PurePath(row.clip.replace("\\", "/")).parts[-3:]), row) for row in clip_level.rows_of(path)]
        new, wrong = clip_level.labelled(rows, path, split, CLASSES, 0)
        problems += [*wrong, *(Problem(where=entry.name, what="in the training list and in the test list",
                                       hint=f"it is used for training only; correct {path}")
                               for entry in new if entry.name in entries)]
        entries = {entry.name: entry for entry in new} | entries
    return clip_level.build(config, "ferv39k", found, entries.values(), _key, classes=CLASSES, metric="uar",
                        problems=problems, notice=NOTICE)


def _lists(found: list[Scan], edition: str) -> dict[Split, Path]:
    """Return split to list, the training one first."""
    lists: dict[Split, Path] = {}
    for path in sorted(path for each in found for path in each.tables if edition.casefold() in str(path).casefold()):
        match = LIST.fullmatch(path.name)
        if match:
            split: Split = "train" if match["split"].casefold() == "train" else "test"
            if split in lists:
                raise InputError(f"several lists: {some((lists[split], path))}", where=found[0].root,
                                 hint="choose with --edition and a part of the path")
            lists[split] = path
    if not lists:
        raise InputError("no lists of ferv39k", where=found[0].root, hint=(
            f"expected is 4_setups/All_scenes/train_All.csv and test_All.csv; {describe(found[0])}"))
    return dict(sorted(lists.items(), reverse=True))


def _key(path: PurePath) -> tuple[str, str] | None:
    if len(path.parts) < 3 or clip_level.code_of(path.parts[-2], CLASSES) is None:
        return None
    scene, label, clip = path.parts[-3:]
    return "/".join(path.parts[:-3]), f"{scene}/{label}/{clip.partition('.')[0]}"
