"""Files of predictions for tests, as `fercache stack` writes them."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SEVEN = ("Neutral", "Anger", "Disgust", "Fear", "Happiness", "Sadness", "Surprise")
EIGHT = (*SEVEN, "Other")
Floats = NDArray[np.float64]


def draw(lengths: Mapping[str, int], classes: Sequence[str] = EIGHT, seed: int = 0) -> dict[str, Floats]:
    """Return probabilities, ``(T, C)``, for each clip; whole millionths that sum to one."""
    rng = np.random.default_rng(seed)
    return {name: rng.multinomial(1_000_000, np.ones(len(classes)) / len(classes), many) / 1e6
            + _lift(rng, many, len(classes)) for name, many in lengths.items()}


def _lift(rng: np.random.Generator, many: int, classes: int) -> Floats:
    """Return what makes one class of each row win clearly, and takes as much from another."""
    made = np.zeros((many, classes))
    win = rng.integers(0, classes, many)
    made[np.arange(many), win] += 0.08
    made[np.arange(many), (win + 1 + rng.integers(0, classes - 1, many)) % classes] -= 0.08
    return made


def write(path: Path, shares: Mapping[str, Floats], classes: Sequence[str] = EIGHT,
          frames: Mapping[str, Sequence[int]] | None = None,
          faceless: Mapping[str, Sequence[int]] | None = None) -> Path:
    """Write predictions; frames count from 1 unless given; `faceless` frames have ``valid`` 0."""
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(["clip", "frame", "time_s", "valid", "label", "prediction", *(f"p_{name}" for name in classes)])
    for name in sorted(shares):
        numbers = (frames or {}).get(name, range(1, len(shares[name]) + 1))
        dark = set((faceless or {}).get(name, ()))
        for frame, row in zip(numbers, shares[name], strict=True):
            out.writerow([name, frame, f"{(frame - 1) / 30:.6f}", int(frame not in dark), "", int(row.argmax()),
                          *(f"{value:.6f}" for value in row)])
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path
