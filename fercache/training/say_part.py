"""What a trained head says of every frame: overlapping windows, blended."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fercache.heads import classes_of
from fercache.heads.base import HeadSettings
from fercache.heads.base_part import Head
from fercache.training.batches_part import Windows
from fercache.training.features_part import Features

FRAMES_A_STEP = 4096

Said = dict[int, NDArray[np.float32]]
"""Trial -> (T, C) log-probabilities."""


def windows(features: Features, trials: Sequence[int], settings: HeadSettings, device: str = "cpu") -> Windows:
    """Return the windows that a head of these settings sees, at the data set's usual frame rate."""
    step = max(1, round(settings.step_s / features.frame_s())) if settings.window_s else 1
    return Windows(features, trials, window_frames(settings, features, step), device, step)


def window_frames(settings: HeadSettings, features: Features, step: int = 1) -> int:
    """Return how many frames, `step` apart, a window holds."""
    return max(1, round(settings.window_s / features.frame_s() / step))


@torch.inference_mode()
def predict(head: Head, settings: HeadSettings, features: Features, trials: Sequence[int], device: str, *,
            thin: bool = False) -> Said:
    """Return what the head says of every frame: trial -> (T, C) log-probabilities.

    Parameters
    ----------
    thin : only frames `step_s` apart are asked, the others stay 0: enough to choose an epoch by.

    Notes
    -----
    Windows overlap by half and are blended with weights that fall to their ends, where the context is one-sided. A
    frame-level head says nothing of a frame without a face: such frames get the nearest seen frame's values. A
    clip-level head says the same of every frame.
    """
    head.eval()
    source = windows(features, trials, settings, device)
    window = source.window
    weight: NDArray[np.float32] = np.bartlett(window + 2)[1:-1, None].astype(np.float32)
    total = np.zeros((len(features.label), classes_of(head)), np.float32)
    mass = np.zeros((len(features.label), 1), np.float32)
    for batch in source.batches(_asked(source, settings, thin), max(1, FRAMES_A_STEP // window)):
        said = head(batch.x, batch.seen, batch.time_s).float().log_softmax(-1).cpu().numpy()
        if window == 1:
            total[batch.rows[:, 0]], mass[batch.rows[:, 0]] = said[:, 0], 1
            continue
        for rows, one in zip(batch.rows, said, strict=True):
            own = rows[rows >= 0]
            total[own] += (one * weight)[:len(own)]
            mass[own] += weight[:len(own)]
    blended: NDArray[np.float32] = (total / np.maximum(mass, 1e-12)).astype(np.float32)
    out = {t: blended[features.rows(t)] for t in trials}
    if thin:
        return out
    if settings.clip_level:
        return {t: np.broadcast_to(said.mean(0), said.shape).copy() for t, said in out.items()}
    return {t: _fill(said, features, t) for t, said in out.items()} if window == 1 else out


def _asked(source: Windows, settings: HeadSettings, thin: bool) -> NDArray[np.int64]:
    if not thin:
        return source.everywhere()
    if source.window > 1:
        return source.everywhere(phases=1)
    return source.starts(1)[::max(1, round(settings.step_s / source.features.frame_s()))]


def _fill(said: NDArray[np.float32], features: Features, trial: int) -> NDArray[np.float32]:
    """Return the values with frames without a face taken from the nearest seen one; even odds where none was seen."""
    rows = features.rows(trial)
    seen = np.flatnonzero(features.valid[rows])
    if not len(seen):
        return np.full_like(said, -math.log(said.shape[1]))
    middle = (seen[:-1] + seen[1:]) / 2
    return said[seen[np.searchsorted(middle, np.arange(len(rows)))]]
