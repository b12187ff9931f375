"""The store in RAM, read once, and the windows over it that the heads are trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fercache.datasets import Trial
from fercache.errors import InputError
from fercache.progress import meter
from fercache.store import Readable
from fercache.taps import TapSlice, side_by_side


@dataclass(frozen=True, kw_only=True)
class Features:
    """Every frame of every trial in RAM.

    Attributes
    ----------
    layout : what the D values of a row are.
    x : (R, D) float16, zeros where no face was seen.
    offsets : (N + 1,) int64; the rows of trial i are ``offsets[i]:offsets[i + 1]``.
    index : (R,) int32, frames from 1; time_s : (R,) float64; valid : (R,) bool; label : (R,) int16, -1 unknown.
    """

    layout: tuple[TapSlice, ...]
    x: NDArray[np.float16]
    offsets: NDArray[np.int64]
    index: NDArray[np.int32]
    time_s: NDArray[np.float64]
    valid: NDArray[np.bool_]
    label: NDArray[np.int16]

    def trial_of_row(self) -> NDArray[np.int64]:
        """Return the position of each row's trial, ``(R,)``."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def counts(self, classes: int) -> NDArray[np.int64]:
        """Return the labelled frames of each class in each trial, ``(N, C)``."""
        made = np.zeros((len(self.offsets) - 1, classes), np.int64)
        known = self.label >= 0
        np.add.at(made, (self.trial_of_row()[known], self.label[known]), 1)
        return made

    def frame_s(self) -> float:
        """Return the usual time between two frames, in seconds."""
        steps = np.diff(self.time_s)
        return float(np.median(steps[steps > 0])) if (steps > 0).any() else 1 / 30


def preload(store: Readable, trials: Sequence[Trial], taps: Sequence[str]) -> Features:
    """Return the features of `trials`, all in RAM, on clocks as long as the longer of clip and annotation.

    Raises
    ------
    InputError
        The store does not hold one of the taps, or the features do not fit into memory.
    """
    layout = side_by_side(store.taps, taps, store.path)
    store = store.ahead([trial.name for trial in trials], taps)
    lengths = [_length(store, trial) for trial in trials]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    rows, width = int(offsets[-1]), layout[-1].stop
    _check_memory(rows * width * 2)
    made = Features(layout=layout, x=np.zeros((rows, width), np.float16), offsets=offsets,
                    index=np.zeros(rows, np.int32), time_s=np.zeros(rows), valid=np.zeros(rows, bool),
                    label=np.full(rows, -1, np.int16))
    with meter("read store", rows) as bar:
        for i, trial in enumerate(trials):
            _fill(made, store, trial, int(offsets[i]), int(offsets[i + 1]))
            bar.advance(lengths[i])
    return made


def _length(store: Readable, trial: Trial) -> int:
    return max(store[trial.name].frames, 0 if trial.labels is None else len(trial.labels))


def _check_memory(need: int) -> None:
    """Refuse features that the machine's free memory cannot hold, before reading any."""
    with open("/proc/meminfo") as file:  # noqa: PTH123 - a kernel table, no file of ours
        free = next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable"))
    if need > 0.9 * free:
        raise InputError(f"the features need {need / 2**30:.1f} GB of memory, {free / 2**30:.1f} GB are free",
                         hint="choose fewer or pooled taps with --taps (block8,repeat_2 are 5 kB a frame)")


def _fill(made: Features, store: Readable, trial: Trial, start: int, stop: int) -> None:
    """Read one trial into its rows; where the annotation runs past the clip, the clock goes on at the same pace."""
    clip = store[trial.name]
    end = start + clip.frames
    for part in made.layout:
        made.x[start:end, part.start:part.stop] = clip.read(part.tap).reshape(clip.frames, -1)
    made.index[start:stop] = np.arange(1, stop - start + 1)
    made.valid[start:end] = clip.clock["valid"] > 0
    made.time_s[start:end] = clip.clock["time_s"]
    step = (made.time_s[end - 1] - made.time_s[start]) / (clip.frames - 1) if clip.frames > 1 else 1 / 30
    made.time_s[end:stop] = made.time_s[end - 1] + step * np.arange(1, stop - end + 1)
    made.label[start:stop] = trial.on_clock(clip.frames)


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
    """Windows of `window` frames over some trials of the features; windows never cross the border of a trial."""

    def __init__(self, features: Features, trials: Sequence[int], window: int, device: str = "cpu") -> None:
        self.features, self.window, self.device = features, window, device
        self.trials = np.asarray(trials, np.int64)

    def starts(self, stride: int, shift: int = 0) -> NDArray[np.int64]:
        """Return (M, 2): trial and first row of windows that cover the trials, moved by up to `shift` frames."""
        found = []
        for trial in self.trials:
            first, stop = self.features.offsets[trial], self.features.offsets[trial + 1]
            begin = cover(int(stop - first), self.window, stride)
            begin = np.minimum(begin + shift, max(int(stop - first) - self.window, 0))
            found.append(np.column_stack([np.full(len(begin), trial), first + np.unique(begin)]) if shift == 0 else
                         np.column_stack([np.full(len(begin), trial), first + begin]))
        return np.concatenate(found) if found else np.empty((0, 2), np.int64)

    def batch(self, starts: NDArray[np.int64]) -> Batch:
        """Return the windows that begin at `starts`, (B, 2), as tensors on the device."""
        rows = starts[:, 1:] + np.arange(self.window)
        inside = rows < self.features.offsets[starts[:, 0] + 1][:, None]
        rows = np.where(inside, rows, -1)
        x = torch.from_numpy(self.features.x[rows])
        seen = inside & self.features.valid[rows]
        time_s = np.where(inside, self.features.time_s[rows] - self.features.time_s[starts[:, 1]][:, None], 0)
        label = np.where(inside, self.features.label[rows], -1)
        seen_ = torch.from_numpy(seen).to(self.device)
        return Batch(x=x.to(self.device).float() * seen_[..., None], seen=seen_, rows=rows,
                     time_s=torch.from_numpy(time_s.astype(np.float32)).to(self.device),
                     label=torch.from_numpy(label.astype(np.int64)).to(self.device))

    def batches(self, starts: NDArray[np.int64], size: int) -> Iterator[Batch]:
        """Yield the windows in batches of `size`."""
        for i in range(0, len(starts), size):
            yield self.batch(starts[i:i + size])
