"""Small sets of crops whose class can be seen: gratings of three directions on a ground of the group's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("Neutral", "Happiness", "Surprise")
SIDE = 40


def crop(label: int, tint: float, rng: np.random.Generator) -> np.ndarray:
    """Return a picture, (40, 40, 3), of a class, on a ground of brightness `tint`, under noise."""
    y, x = np.mgrid[:SIDE, :SIDE] + rng.uniform(0, 8)
    angle = (0, 1.1, 2.1)[label] + rng.normal(0, .12)
    wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * .9)
    picture = 90 + tint + 45 * wave[..., None] + rng.normal(0, 30, (SIDE, SIDE, 3))
    return np.clip(picture, 0, 255).astype(np.uint8)


def labels_of(frames: int, rng: np.random.Generator) -> np.ndarray:
    """Return a label a frame, in stretches of 12."""
    return np.repeat(rng.integers(0, len(CLASSES), frames // 12 + 1), 12)[:frames]


def write_clip(folder: Path, labels: np.ndarray, rng: np.random.Generator, gap: int = 5) -> None:
    """Write the crops of a clip; frame `gap` is missing."""
    folder.mkdir(parents=True)
    tint = rng.uniform(-30, 60)
    for i, label in enumerate(labels.tolist(), 1):
        if i != gap:
            Image.fromarray(crop(label, tint, rng)).save(folder / f"{i:05d}.png")


def write_set(folder: Path, train: int, test: int, frames: int = 36, seed: int = 0) -> Path:
    """Write a set of crops as a table of clips (named s<seed>-00 ..) and one of labels; return the folder."""
    rng = np.random.default_rng(seed)
    clips, labels = ["clip,path,split"], ["clip,frame,label"]
    for i in range(train + test):
        name, said = f"s{seed}-{i:02d}", labels_of(frames, rng)
        write_clip(folder / "crops" / name, said, rng)
        clips.append(f"{name},crops/{name},{'train' if i < train else 'test'}")
        labels += [f"{name},{n},{CLASSES[label]}" for n, label in enumerate(said.tolist(), 1)]
    (folder / "clips.csv").write_text("\n".join(clips) + "\n")
    (folder / "labels.csv").write_text("\n".join(labels) + "\n")
    return folder
