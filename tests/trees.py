"""Simulated trees of Aff-Wild2: real names and lengths, one tiny picture linked often, videos that state a length."""

from __future__ import annotations

import csv
import io
import os
import struct
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from PIL import Image
from videos import make_video

HEADER = "Neutral,Anger,Disgust,Fear,Happiness,Sadness,Surprise\n"


class Lengths(NamedTuple):
    """Frames that the decoder counts, and crops that are there."""

    frames: int
    crops: int


def real_lengths(shared: Path) -> dict[str, Lengths]:
    """Return the lengths of Aff-Wild2's 561 trials by name."""
    with (shared / "data/affwild2_meta/sucv_ABAW2_length.csv").open() as handle:
        return {row["trial name"]: Lengths(int(row["frame_count"]), int(row["considered_count"]))
                for row in csv.DictReader(handle)}


def parent_of(trial: str) -> str:
    return trial.removesuffix("_left").removesuffix("_right")


@cache
def picture() -> bytes:
    """Return a JPEG of 8 x 8 pixels."""
    held = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), 120, np.uint8)).save(held, "JPEG")
    return held.getvalue()


def crops(folder: Path, numbers: Iterable[int], tag: str = "") -> None:
    """Make a folder of crops: hard links to one picture, which `tag` makes another than every other folder's."""
    folder.mkdir(parents=True)
    first = None
    for number in numbers:
        name = f"{folder}/{number:05d}.jpg"
        if first is None:
            first = name
            Path(name).write_bytes(picture() + (tag or folder.name).encode())
        else:
            os.link(first, name)


@cache
def _avi() -> bytes:
    with TemporaryDirectory() as folder:
        frames = [np.zeros((16, 16, 3), np.uint8)] * 2
        return make_video(Path(folder) / "a.avi", frames, codec="mjpeg", pix_fmt="yuvj420p").read_bytes()


def stub_video(path: Path, frames: int) -> Path:
    """Write an AVI file whose header states `frames` frames; two are there."""
    data = bytearray(_avi())
    struct.pack_into("<I", data, data.index(b"strh") + 8 + 32, frames)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data + path.stem.encode())
    return path


def annotate(root: Path, trial: str, labels: Iterable[int], split: str = "Train_Set") -> None:
    path = root / "annotations/EXPR_Set" / split / f"{trial}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HEADER + "".join(f"{label}\n" for label in labels))


class Made(NamedTuple):
    """What a simulated tree holds: frames that miss their crop, by trial, and its labels."""

    missing: dict[str, set[int]]
    labels: dict[str, list[int]]


def real_tree(root: Path, lengths: Mapping[str, Lengths], seed: int) -> Made:
    """Make a tree of these trials: crops with gaps at random, an annotation line and a stated video frame a frame."""
    rng = np.random.default_rng(seed)
    made = Made({}, {})
    parents = sorted({parent_of(name) for name in lengths})
    held = set(rng.permutation(parents)[: len(parents) // 4])
    for name, (frames, there) in lengths.items():
        short = max(0, frames - there)
        gone = set((rng.permutation(frames)[:short] + 1).tolist())
        made.missing[name] = gone
        crops(root / "cropped_aligned" / name, (n for n in range(1, max(frames, there) + 1) if n not in gone))
        made.labels[name] = rng.integers(-1, 7, frames).tolist()
        parent = parent_of(name)
        annotate(root, name, made.labels[name], "Validation_Set" if parent in held else "Train_Set")
        if not (root / "batch1" / f"{parent}.avi").exists():
            stub_video(root / "batch1" / f"{parent}.avi", frames)
    return made
