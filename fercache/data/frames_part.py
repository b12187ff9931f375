"""Labels by frame in one table: ``clip,frame,label``."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

import numpy as np

from fercache.data import tables
from fercache.data.base import UNKNOWN, Labels, Problem, some
from fercache.errors import InputError

COLUMNS = ("clip", "frame", "label")
MOST_FRAMES = 10_000_000  # four days at 30 frames a second: a larger number is no frame

_NO_FRAME = -1


def read(path: Path, clips: Collection[str], chosen: tuple[str, ...] = ()
         ) -> tuple[tuple[str, ...], dict[str, Labels], list[Problem]]:
    """Return the classes, (L,) int16 labels by clip, and what had to be dropped.

    Parameters
    ----------
    clips : names of the clips there are.
    chosen : class names in order, where the user gives them.

    Raises
    ------
    InputError
        It is no such table, or its labels are numbers and no class names are given.

    Notes
    -----
    Rows may stand in any order. Two labels for one frame are a problem of that clip; the same one twice is not.
    """
    frames, codes, words = _collect(path)
    classes = tables.class_list(words, chosen, path)
    meaning = [tables.code(word, classes) for word in words]
    labels: dict[str, Labels] = {}
    problems: list[Problem] = []
    for clip in sorted(frames):
        try:
            if clip not in clips:
                raise ValueError("there is no clip of that name")
            labels[clip] = _one(np.array(frames[clip]), np.array(codes[clip]), words, meaning)
        except ValueError as error:
            problems.append(Problem(where=clip, what=f"its labels were dropped: {error}", hint=f"correct {path}"))
    bare = sorted(set(clips) - set(frames))
    if bare:
        problems.append(Problem(where=some(bare), what=f"{len(bare)} clips without labels", lost=False,
                                hint="they are predicted, never trained on or scored"))
    return classes, labels, problems


def _collect(path: Path) -> tuple[dict[str, array[int]], dict[str, array[int]], list[str]]:
    """Return frame numbers by clip, label codes by clip, and the words that codes stand for (12 bytes a row)."""
    frames: dict[str, array[int]] = defaultdict(lambda: array("q"))
    codes: dict[str, array[int]] = defaultdict(lambda: array("i"))
    words: dict[str, int] = {}
    with tables.opened(path) as lines:
        order = tables.columns(next(lines, ()), path, COLUMNS)
        clip_at, frame_at, label_at = (order.index(name) for name in COLUMNS)
        for line, values in enumerate(lines, 2):
            if not values:
                continue
            if len(values) != len(COLUMNS):
                raise InputError(f"line {line} has {len(values)} values for 3 columns", where=path,
                                 hint="put quotes round values that hold a comma")
            frame = values[frame_at].strip()
            whole = frame.isascii() and frame.isdigit() and len(frame) < 10
            clip = values[clip_at].strip()
            frames[clip].append(int(frame) if whole else _NO_FRAME)
            codes[clip].append(words.setdefault(values[label_at].strip(), len(words)))
    return frames, codes, list(words)


def _one(frames: np.ndarray[tuple[int], np.dtype[np.int64]], codes: np.ndarray[tuple[int], np.dtype[np.int32]],
         words: list[str], meaning: list[int | None]) -> Labels:
    """Return one clip's labels by frame."""
    wrong = np.flatnonzero((frames < 1) | (frames > MOST_FRAMES))
    if len(wrong):
        raise ValueError(f"row {wrong[0] + 1} of the clip has no frame number (1, 2, ..)")
    unknown = [words[code] for code in np.unique(codes) if meaning[code] is None]
    if unknown:
        raise ValueError(f"label {unknown[0]!r} is none of the classes")
    values = np.array([UNKNOWN if code is None else code for code in meaning], np.int16)[codes]
    labels = np.full(int(frames.max()), UNKNOWN, np.int16)
    labels[frames - 1] = values
    twice = np.flatnonzero(labels[frames - 1] != values)
    if len(twice):
        raise ValueError(f"frame {frames[twice[0]]} has two labels")
    return labels
