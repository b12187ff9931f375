"""What the frame head says of frames it did not learn from: what the temporal heads read.

Notes
-----
A net that learnt a frame is sure of it, and a temporal head fed with such certainty learns to trust single frames. Each
member of the frame head therefore speaks only of the part of the training groups that it did not see, and the temporal
heads learn on that how much a single frame is worth: what they will meet on new clips. It is the rule of stacking (out
of fold, by group), one level down.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fercache.backbones.taps_part import TapSlice
from fercache.training.features_part import Features

NAME = "evidence"
MOST_ROWS = 2048


def features_of(said: NDArray[np.float32], features: Features, *, with_change: bool = True) -> Features:
    """Return features of the same frames whose rows are the frame head's log-probabilities and how much changes.

    Parameters
    ----------
    said : (R, C) log-probabilities.
    with_change : False leaves what changes at 0 (to try how long a step takes).
    """
    moved = change(features) if with_change else np.zeros(len(said), np.float32)
    rows = np.column_stack([said, moved]) * features.valid[:, None]
    layout = (TapSlice(tap=NAME, start=0, stop=rows.shape[1], shape=(rows.shape[1],)),)
    return replace(features, layout=layout, x=rows.astype(np.float16),
                   views=np.zeros((0, *rows.shape), np.float16))


def change(features: Features) -> NDArray[np.float32]:
    """Return how far each frame is from the seen one before it, ``(R,)``: log2 of the distance over the clip's median.

    Notes
    -----
    A cut, or a face that moves: where an expression may begin or end. 0 for frames without a face and the first one.
    """
    told = np.zeros(len(features.valid), np.float32)
    for trial in range(len(features.offsets) - 1):
        rows = features.rows(trial)
        seen = rows[features.valid[rows]]
        if len(seen) > 2:
            far = _distances(features.x, seen)
            told[seen[1:]] = np.clip(np.log2((far + 1e-6) / (float(np.median(far)) + 1e-6)), -4, 4)
    return told


def _distances(x: NDArray[np.float16], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the distance of each row to the next, ``(len(rows) - 1,)``, without a float32 copy of a long clip."""
    found = []
    for i in range(0, len(rows) - 1, MOST_ROWS):
        part = x[rows[i:i + MOST_ROWS + 1]].astype(np.float32)
        found.append(np.sqrt(np.square(np.diff(part, axis=0)).sum(1)))
    return np.concatenate(found)
