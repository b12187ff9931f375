"""Aff-Wild2's multi-task table (ABAW's MTL challenge): one row a picture, the expression one of its columns.

``MTL_Challenge/{train,validation}_set.txt`` (ABAW3), or ``training_set_annotations.txt`` and
``validation_set_annotations.txt`` (ABAW4 and ABAW7), with the header ``image,valence,arousal,expression,aus``: rows are
``<trial>/00001.jpg,.1,.2,4,0,..``, the last twelve fields the action units, so that a row has more fields than the
header. Invalid are -5 (valence, arousal), -1 (expression) and -1 (units); a picture is listed if one of the tasks has a
label for it, so many rows have no expression. The challenge's own metric is a sum over three tasks; its part for the
expression is macro F1 over eight classes.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fercache.config import DatasetConfig
from fercache.data import affwild2, clip_level
from fercache.data.base import EIGHT, UNKNOWN, Dataset, Issue, Labels, Split, cache_name, shorten_list
from fercache.data.scan import Scan, describe, scan, unnamable
from fercache.errors import InputError

TABLE = re.compile(r"(?P<split>train|validation|val)(ing)?_set(_annotations?)?\.(txt|csv)", re.IGNORECASE)
HEADER = ("image", "valence", "arousal", "expression")
IMAGE = re.compile(r"(?:.*/)?(?P<trial>[^/]+)/(?P<frame>\d{1,8})\.(?:jpg|jpeg|png)", re.IGNORECASE)
COLUMN = HEADER.index("expression")
MOST_FRAMES = 10_000_000


def matches_layout(found: Scan) -> bool:
    """Return whether a folder holds the tables of the multi-task track."""
    return any(_is_table(path) for path in (*found.texts, *found.tables))


def read(config: DatasetConfig) -> Dataset:
    """Return the trials that the tables name, grouped by parent video.

    Raises
    ------
    InputError
        No tables, several of one name, or not one clip.
    """
    places = dict.fromkeys((config.root, config.clips, config.labels))
    found = [scan(Path(place)) for place in places if place]
    if not found:
        raise InputError("mtl needs the folder of the data set", where="dataset mtl", hint="give --root DIR")
    problems = [problem for each in found for problem in (*each.problems, *unnamable(each))]
    labels: dict[str, Labels] = {}
    splits: dict[str, Split] = {}
    for split, path in _tables(found, config.edition).items():
        rows, wrong = _rows(path)
        problems += [*wrong, *(Issue(where=trial, message="is in both tables", hint="the training one is used")
                               for trial in sorted(set(rows) & set(labels)))]
        labels = rows | labels  # the training table comes first and wins: its trials must not count as unseen
        splits = dict.fromkeys(rows, split) | splits
    trials, noted = affwild2.assemble(found, labels, splits, config.source)
    return Dataset(name=cache_name("mtl", found[0].root, config.name), layout="mtl", classes=EIGHT, metric="macro_f1",
                   trials=trials, problems=(*problems, *noted))


def _is_table(path: Path) -> bool:
    if not TABLE.fullmatch(path.name):
        return False
    try:
        with path.open(encoding="utf-8-sig") as handle:
            first = handle.readline(4096)  # a file without line ends may be of any size
    except (OSError, UnicodeDecodeError):
        return False
    return tuple(name.strip().casefold() for name in first.split(","))[: len(HEADER)] == HEADER


def _tables(found: Iterable[Scan], edition: str) -> dict[Split, Path]:
    """Return split to table, the training one first."""
    every = list(found)
    tables: dict[Split, list[Path]] = defaultdict(list)
    for path in sorted({path for each in every for path in (*each.texts, *each.tables) if _is_table(path)}):
        if edition.casefold() in str(path).casefold():
            tables["train" if path.name.casefold().startswith("train") else "validation"].append(path)
    if not tables:
        raise InputError("no tables of the multi-task track", where=every[0].root, hint=(
            f"expected is MTL_Challenge/train_set.txt with the header image,valence,arousal,expression,aus; "
            f"{describe(every[0])}"))
    for paths in tables.values():
        if len(paths) > 1:
            raise InputError(f"several tables: {shorten_list(paths)}", where=every[0].root,
                             hint="choose with --edition and a part of the path")
    return {split: paths[0] for split, paths in sorted(tables.items())}


def _rows(path: Path) -> tuple[dict[str, Labels], list[Issue]]:
    """Return the labels of each trial by frame number, and an issue for each trial with a malformed row."""
    # Rows may be in any order. A malformed row costs the labels of its own trial. Rows have more fields than the
    # header, which the table layer refuses, so they are split here.
    rows: dict[str, dict[int, int]] = defaultdict(dict)
    wrong: dict[str, str] = {}
    with path.open(encoding="utf-8-sig", errors="replace") as handle:
        next(handle, "")
        for line, text in enumerate(handle, 2):
            fields = text.split(",")
            # The frame number is in the name of the picture; the order of rows means nothing.
            match = IMAGE.fullmatch(fields[0].strip())
            if not text.strip():
                continue
            trial = match["trial"] if match else fields[0].strip()[: clip_level.SHOWN]
            label = _label(fields[COLUMN]) if len(fields) > COLUMN else None
            frame = int(match["frame"]) if match else 0
            if label is None or not 0 < frame <= MOST_FRAMES or rows[trial].setdefault(frame, label) != label:
                wrong.setdefault(trial, f"its labels were dropped: line {line} is {text.strip()[: clip_level.SHOWN]!r}")
    problems = [Issue(where=trial, message=what, hint=f"correct {path}") for trial, what in sorted(wrong.items())]
    labels: dict[str, Labels] = {}
    for trial, frames in rows.items():
        known = frames if trial not in wrong else {}
        labels[trial] = np.full(max(known, default=0), UNKNOWN, np.int16)
        labels[trial][np.array(list(known), np.int64) - 1] = list(known.values())
    return labels, problems


def _label(word: str) -> int | None:
    """Return a label, None if it is malformed; tables that pandas wrote have ``4.0``."""
    match = re.fullmatch(r"(-?[0-9]{1,2})(\.0)?", word.strip())
    return int(match[1]) if match and UNKNOWN <= int(match[1]) < len(EIGHT) else None
