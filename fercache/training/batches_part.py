"""Windows over the features, as the batches that heads are trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fercache.training.features_part import Features


def cover(length: int, window: int, stride: int) -> NDArray[np.int64]:
    """Return starts of windows that cover ``range(length)``; the last one ends with the clip where it can."""
    last = max(length - window, 0)
    return np.unique(np.append(np.arange(0, last + 1, stride), last)).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One batch of windows: what a head sees and what it should say."""

    x: Tensor
    """(B, W, D) float32"""
    seen: Tensor
    """(B, W) bool: a face was seen in this frame"""
    time_s: Tensor
    """(B, W) float32, seconds since the window's first frame"""
    label: Tensor
    """(B, W) int64, -1 unknown or padding"""
    rows: NDArray[np.int64]
    """(B, W) rows of the features, -1 padding"""


class Windows:
    """Windows of `window` frames, each `step` apart, over some trials; they never cross the border of a trial."""

    def __init__(self, features: Features, trials: Sequence[int], window: int, device: str = "cpu",
                 step: int = 1) -> None:
        self.features, self.window, self.device, self.step = features, window, device, step
        self.trials = np.asarray(trials, np.int64)
        self.span = (window - 1) * step + 1
        self.steps = np.arange(window) * step
        self.time_s = features.time_s.astype(np.float32)

    def starts(self, stride: int, shift: int = 0) -> NDArray[np.int64]:
        """Return (M, 2): trial and first row of windows that cover the trials, moved by up to `shift` frames."""
        found = []
        for trial in self.trials:
            first, stop = self.features.offsets[trial], self.features.offsets[trial + 1]
            begin = cover(int(stop - first), self.span, stride)
            begin = np.minimum(begin + shift, max(int(stop - first) - self.span, 0))
            found.append(np.column_stack([np.full(len(begin), trial), first + np.unique(begin)]) if shift == 0 else
                         np.column_stack([np.full(len(begin), trial), first + begin]))
        return np.concatenate(found) if found else np.empty((0, 2), np.int64)

    def everywhere(self, phases: int = 0) -> NDArray[np.int64]:
        """Return (M, 2): half-overlapping windows that together see every frame, also where `step` skips some.

        Parameters
        ----------
        phases : how many of the `step` ways to begin are taken, 0 for all.
        """
        found = []
        for trial in self.trials:
            first, stop = self.features.offsets[trial], self.features.offsets[trial + 1]
            for phase in range(min(phases or self.step, int(stop - first))):
                on_grid = -(-int(stop - first - phase) // self.step)
                begin = first + phase + self.step * cover(on_grid, self.window, max(1, self.window // 2))
                found.append(np.column_stack([np.full(len(begin), trial), begin]))
        return np.concatenate(found) if found else np.empty((0, 2), np.int64)

    def batch(self, starts: NDArray[np.int64], rng: np.random.Generator | None = None) -> Batch:
        """Return the windows that begin at `starts`, (B, 2), as tensors on the device.

        Parameters
        ----------
        rng : draws the view of each window, where the features hold several; without it the plain one is taken.
        """
        held = self.features
        rows = starts[:, 1:] + self.steps
        inside = rows < held.offsets[starts[:, 0] + 1][:, None]
        whole = bool(inside.all())
        if not whole:
            rows = np.where(inside, rows, -1)
        time_s = self.time_s[rows] - self.time_s[starts[:, 1]][:, None]
        seen, label = held.valid[rows], held.label[rows]
        if not whole:
            seen, label, time_s = seen & inside, np.where(inside, label, -1), np.where(inside, time_s, 0)
        seen_ = torch.from_numpy(seen).to(self.device)
        x = torch.from_numpy(self._values(rows, rng)).to(self.device).float()
        return Batch(x=x.mul_(seen_[..., None]), seen=seen_, rows=rows,
                     time_s=torch.from_numpy(time_s).to(self.device),
                     label=torch.from_numpy(label.astype(np.int64)).to(self.device))

    def _values(self, rows: NDArray[np.int64], rng: np.random.Generator | None) -> NDArray[np.float16]:
        held = self.features
        if rng is None or not len(held.views):
            return np.asarray(held.x[rows])
        chosen = rng.integers(len(held.views) + 1, size=len(rows))
        return np.stack([(held.x if v == 0 else held.views[v - 1])[one] for v, one in zip(chosen, rows, strict=True)])

    def batches(self, starts: NDArray[np.int64], size: int, rng: np.random.Generator | None = None) -> Iterator[Batch]:
        """Yield the windows in batches of `size`."""
        for i in range(0, len(starts), size):
            yield self.batch(starts[i:i + size], rng)
