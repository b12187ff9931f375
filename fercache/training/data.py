"""The store read once: into RAM where it fits, else into one local file that is mapped."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fercache.backbones.taps import TapSlice, side_by_side, tap_views
from fercache.config import fingerprint_of
from fercache.data.base import Trial
from fercache.errors import InputError
from fercache.runtime import atomic_io
from fercache.runtime.progress import progress_bar
from fercache.runtime.uri import Location

log = logging.getLogger(__name__)


# Every frame of every trial, one row each, in RAM or mapped from a local file.

def _no_views() -> NDArray[np.float16]:
    return np.zeros((0, 0, 0), np.float16)


@dataclass(frozen=True, kw_only=True)
class FrameDataset:
    """Every frame of every trial.

    Attributes
    ----------
    layout : what the D values of a row are.
    x : (R, D) float16, zeros where no face was seen.
    offsets : (N + 1,) int64; the rows of trial i are ``offsets[i]:offsets[i + 1]``.
    index : (R,) int32, frames from 1; time_s : (R,) float64; valid : (R,) bool; label : (R,) int16, -1 unknown.
    views : (V - 1, R, D) float16, the same frames' other views (mirrored and so on); none by default.
    """

    layout: tuple[TapSlice, ...]
    x: NDArray[np.float16]
    offsets: NDArray[np.int64]
    index: NDArray[np.int32]
    time_s: NDArray[np.float64]
    valid: NDArray[np.bool_]
    label: NDArray[np.int16]
    views: NDArray[np.float16] = field(default_factory=_no_views)

    def rows(self, trial: int) -> NDArray[np.int64]:
        """Return the rows of the trial of that position, ``(T,)``."""
        return np.arange(self.offsets[trial], self.offsets[trial + 1])

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


# Windows over the features, as the batches that heads are trained on.

def window_starts(length: int, window: int, stride: int) -> NDArray[np.int64]:
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


class WindowSampler:
    """Windows of `window` frames, each `step` apart, over some trials; they never cross the border of a trial."""

    def __init__(self, features: FrameDataset, trials: Sequence[int], window: int, device: str = "cpu",
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
            begin = window_starts(int(stop - first), self.span, stride)
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
                begin = first + phase + self.step * window_starts(on_grid, self.window, max(1, self.window // 2))
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


RAM_SHARE = 0.9
"""Share of the free memory that features may take."""

class ClipArrays(Protocol):
    """A committed clip, as far as it is read here."""

    @property
    def frames(self) -> int:
        """T"""

    @property
    def frame_table(self) -> NDArray[np.void]:
        """(T,) with named columns, `valid` and `time_s` among them"""

    def read(self, tap: str) -> NDArray[np.float16]:
        """Return a tap's rows, (T, ...) float16."""


class FeatureSource(Protocol):
    """What features are read from: an embedding store, or several joined."""

    @property
    def path(self) -> Location:
        """Where it lies"""

    @property
    def taps(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of a row of each tap"""

    def __getitem__(self, clip: str) -> Any:
        """Return a clip that is `Held`."""

    def digest(self) -> str:
        """Return what changes when the content does."""

    def prefetch(self, names: Sequence[str], taps: Sequence[str]) -> FeatureSource:
        """Return the same for a reader who takes clips in this order: read ahead where the store is far."""


def load_features(store: FeatureSource, trials: Sequence[Trial], taps: Sequence[str], *, views: bool = False,
            standardise: str = "train", memory: str = "ram", spool: Path | None = None) -> FrameDataset:
    """Return the features of `trials`, read once, on clocks as long as the longer of clip and annotation.

    Parameters
    ----------
    views : whether to read the taps' other views too, where the store has them.
    standardise : "clip" takes each clip's mean and spread out of its rows (seen frames only); else they stay.
    memory : "ram", "map" (a file in `spool` that is mapped), or "auto" (mapped where RAM does not hold them).
    spool : folder of the mapped file, which is kept: the next run with the same features only opens it.

    Raises
    ------
    InputError
        The store does not hold one of the taps, or the features fit neither into memory nor onto the disk.
    """
    layout = side_by_side(store.taps, taps, store.path)
    lengths = [_length(store[trial.name].frames, trial) for trial in trials]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    rows, many = int(offsets[-1]), 1 + (_other_views(store, taps) if views else 0)
    shape = (many, rows, layout[-1].stop)
    made = FrameDataset(layout=layout, x=np.zeros((0, shape[2]), np.float16), offsets=offsets,
                    index=np.zeros(rows, np.int32), time_s=np.zeros(rows), valid=np.zeros(rows, bool),
                    label=np.full(rows, -1, np.int16))
    store = store.prefetch([trial.name for trial in trials], _arrays(layout, many))
    for i, trial in enumerate(trials):
        _clock(made, store[trial.name], trial, i)

    def fill(whole: NDArray[np.float16]) -> None:
        with progress_bar("read store", rows) as bar:
            for i, trial in enumerate(trials):
                _values(whole, made, store[trial.name], i, standardise == "clip")
                bar.advance(lengths[i])

    if _in_ram(int(np.prod(shape)) * 2, memory, spool):
        whole = np.zeros(shape, np.float16)
        fill(whole)
    else:
        named = fingerprint_of([store.digest(), [t.name for t in trials], lengths, list(taps), many, standardise])[:16]
        whole = _mapped(spool or Path(), named, shape, fill)
    return _with(made, whole)


def _arrays(layout: Sequence[TapSlice], many: int) -> list[str]:
    """Return the names of the arrays that are read."""
    return [name for part in layout for name in (part.tap, tap_views(part.tap))[:1 if many == 1 else 2]]


def _with(made: FrameDataset, whole: NDArray[np.float16]) -> FrameDataset:
    return FrameDataset(layout=made.layout, x=whole[0], offsets=made.offsets, index=made.index, time_s=made.time_s,
                    valid=made.valid, label=made.label, views=whole[1:])


def _length(frames: int, trial: Trial) -> int:
    return max(frames, 0 if trial.labels is None else len(trial.labels))


def _other_views(store: FeatureSource, taps: Sequence[str]) -> int:
    """Return how many views the store holds besides the plain one, of every one of the taps."""
    return min(store.taps[tap_views(tap)][0] if tap_views(tap) in store.taps else 0 for tap in taps)


def _in_ram(need: int, memory: str, spool: Path | None) -> bool:
    """Return whether the features are to lie in RAM.

    Raises
    ------
    InputError
        They do not fit, and may not be mapped or the disk has no room either.
    """
    free = free_memory()
    if memory == "ram" or (memory == "auto" and need <= RAM_SHARE * free):
        if need > RAM_SHARE * free:
            raise InputError(f"the features need {need / 2**30:.1f} GB of memory, {free / 2**30:.1f} GB are free",
                             hint="map them from a local file with --memory map, or choose fewer or pooled taps with "
                                  "--taps (block8,repeat_2 are 5 kB a frame)")
        return True
    if memory == "auto":
        log.warning("the features need %.1f GB of memory, %.1f GB are free: they are written once to %s and mapped; "
                    "fewer taps (--taps) would be quicker", need / 2**30, free / 2**30, spool)
    return False


def free_memory() -> int:
    """Return the bytes of memory that programs may still take."""
    with open("/proc/meminfo") as file:  # noqa: PTH123 - a kernel table, no file of ours
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable"))


def _mapped(spool: Path, name: str, shape: tuple[int, ...], fill: Any) -> NDArray[np.float16]:
    """Return the features mapped from a file of that name, which is written unless it is there."""
    path = spool / f"{name}.npy"
    if not path.is_file():
        atomic_io.make_folder(spool)
        with atomic_io.lock(path.with_suffix(".lock"), wait=True):
            if not path.is_file():
                atomic_io.remove_temporary(spool, path.name)
                _write(path, shape, fill)
    return np.asanyarray(np.lib.format.open_memmap(path, "r"))


def _write(path: Path, shape: tuple[int, ...], fill: Any) -> None:
    """Write the features to a file, where there is room for them."""
    need, free = int(np.prod(shape)) * 2, shutil.disk_usage(path.parent).free
    if need > free:
        raise InputError(f"the features need {need / 2**30:.1f} GB of disk, {free / 2**30:.1f} GB are free",
                         where=path.parent, hint="choose fewer taps with --taps, or another --cache")
    with atomic_io.replacing(path) as temporary:
        whole = np.lib.format.open_memmap(temporary, "w+", np.float16, shape)
        fill(whole)
        whole.flush()
        del whole


def _clock(made: FrameDataset, clip: ClipArrays, trial: Trial, i: int) -> None:
    """Fill a trial's clock and labels; where the annotation runs past the clip, time goes on at the same pace."""
    start, stop = int(made.offsets[i]), int(made.offsets[i + 1])
    end = start + clip.frames
    made.index[start:stop] = np.arange(1, stop - start + 1)
    clock = clip.frame_table
    made.valid[start:end] = clock["valid"] > 0
    made.time_s[start:end] = clock["time_s"]
    step = (made.time_s[end - 1] - made.time_s[start]) / (clip.frames - 1) if clip.frames > 1 else 1 / 30
    made.time_s[end:stop] = made.time_s[end - 1] + step * np.arange(1, stop - end + 1)
    made.label[start:stop] = trial.on_clock(clip.frames)


def _values(whole: NDArray[np.float16], made: FrameDataset, clip: ClipArrays, i: int, alone: bool) -> None:
    """Read one trial's rows of every view."""
    start = int(made.offsets[i])
    rows = slice(start, start + clip.frames)
    for part in made.layout:
        whole[0, rows, part.start:part.stop] = clip.read(part.tap).reshape(clip.frames, -1)
        if len(whole) > 1:
            others = clip.read(tap_views(part.tap)).reshape(clip.frames, -1, part.stop - part.start)
            whole[1:, rows, part.start:part.stop] = others[:, :len(whole) - 1].swapaxes(0, 1)
    if alone:
        normalize_clip(whole[:, rows], made.valid[rows])


def normalize_clip(x: NDArray[np.float16], seen: NDArray[np.bool_]) -> None:
    """Take the mean over a clip's seen frames out of every value of ``(V, T, D)``, and their spread; in place.

    Notes
    -----
    What a person looks like at rest goes, what moves stays. The plain view's mean and spread serve all views. A spread
    is not taken for less than a fifth of the clip's usual one, so that what never moves is not blown up.
    """
    if not seen.any():
        return
    plain = x[0, seen].astype(np.float32)
    spread = plain.std(0)
    scale = 1 / np.maximum(spread, max(float(np.median(spread)) / 5, 1e-3))
    for view in x:
        view[seen] = np.clip((view[seen].astype(np.float32) - plain.mean(0)) * scale, -100, 100)
