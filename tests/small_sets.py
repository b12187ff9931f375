"""Small labelled data sets with features that tell the class under noise, in a real store."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fercache.data.base import Dataset, Trial
from fercache.store.embedding_store import EmbeddingStore
from fercache.store.layout import FRAME_COLUMNS

CLASSES = ("Calm", "Glad", "Sad")
TAPS = {"block8": (12,), "repeat_1-3x3": (4, 3, 3)}
FPS = 30


def dataset(root: Path, groups: int = 8, frames: int = 120, validation: int = 2, seed: int = 0,
            shuffled: bool = False) -> tuple[Dataset, EmbeddingStore]:
    """Return a data set of one trial a group, and a store at `root` with its features.

    Parameters
    ----------
    shuffled : labels are drawn anew for every stretch, and each stretch has a look of its own: nothing can be learnt,
        and all can be remembered.
    """
    rng = np.random.default_rng(seed)
    centre = np.random.default_rng(99).normal(size=(len(CLASSES), 48))
    store = EmbeddingStore.create(root / "features.zarr", {"weights": "none", "taps": list(TAPS)}, TAPS)
    trials = []
    for i in range(groups + validation):
        truth, said = (np.repeat(rng.integers(0, 3, frames // 30), 30) for _ in range(2))
        look = np.repeat(rng.normal(size=(frames // 30, 48)), 30, axis=0) if shuffled else centre[truth]
        x = look + (0.5 if shuffled else 1.0) * rng.normal(size=(frames, 48))
        valid = np.arange(frames) % 11 != 3
        put(store, f"clip{i:03d}", x * valid[:, None], valid)
        trials.append(Trial(name=f"clip{i:03d}", path=root / f"clip{i:03d}", kind="crops", parent=f"clip{i:03d}",
                            group=f"clip{i:03d}", split="train" if i < groups else "validation",
                            labels=(said if shuffled else truth).astype(np.int16)))
    return Dataset(name="small", layout="table", classes=CLASSES, trials=tuple(trials)), store


def put(store: EmbeddingStore, clip: str, x: np.ndarray, valid: np.ndarray) -> None:
    """Commit a clip of which `x` holds the values of all taps side by side."""
    clock = np.zeros((len(x), len(FRAME_COLUMNS)))
    clock[:, FRAME_COLUMNS.index("index")] = np.arange(1, len(x) + 1)
    clock[:, FRAME_COLUMNS.index("time_s")] = np.arange(len(x)) / FPS
    clock[:, FRAME_COLUMNS.index("valid")] = valid
    with store.writer(clip, source={"sha256": clip}, provenance={"device": "cpu"}) as writer:
        assert writer is not None
        writer.set_frame_table(clock)
        start = 0
        parts = {}
        for tap, shape in TAPS.items():
            parts[tap] = x[:, start:start + int(np.prod(shape))].reshape(-1, *shape).astype(np.float16)
            start += int(np.prod(shape))
        writer.write(0, parts)
        writer.commit()
