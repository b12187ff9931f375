"""The training data: all features of the store, read once into RAM or a mapped file, and windows over them."""

from __future__ import annotations

import logging
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fercache.backbones.taps import TapSlice, is_audio, row_layout, tap_views
from fercache.config import fingerprint_of
from fercache.data.base import Trial
from fercache.errors import InputError
from fercache.runtime import atomic_io
from fercache.runtime.devices import free_memory
from fercache.runtime.progress import progress_bar
from fercache.store.clip import Clip
from fercache.store.local import READERS
from fercache.store.multi_store import ReadableStore

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FrameDataset:
    """Every frame of every trial, one row per frame."""

    layout: tuple[TapSlice, ...]  # the taps that make up the D values of a row, those of sound last
    x: NDArray[np.float16]  # (R, D) float16, zeros where no face was seen
    offsets: NDArray[np.int64]  # (N + 1,) int64; the rows of trial i are ``offsets[i]:offsets[i + 1]``
    index: NDArray[np.int32]  # (R,) frame numbers from 1
    time_s: NDArray[np.float64]  # (R,)
    valid: NDArray[np.bool_]  # (R,) whether a face was seen
    label: NDArray[np.int16]  # (R,) -1 where not annotated
    # (V - 1, R, D) float16, other augmentations of the same frames (mirrored and so on); none by default.
    augmentations: NDArray[np.float16] = field(default_factory=lambda: np.zeros((0, 0, 0), np.float16))
    # (R, A) float16, the sound around each frame, zeros where there is none; A = 0 unless a store of sound is joined.
    # Apart from `x`, because a frame without a face has sound, and because views of it are shared by all folds.
    audio: NDArray[np.float16] = field(default_factory=lambda: np.zeros((0, 0), np.float16))

    def without_sound(self) -> FrameDataset:
        """Return the same frames with the picture's features only."""
        return replace(self, layout=tuple(part for part in self.layout if part.start < self.x.shape[1]),
                       audio=np.zeros((0, 0), np.float16))

    def only_sound(self) -> FrameDataset:
        """Return the same frames with the features of sound only, `valid` where there is sound."""
        if not self.audio.shape[1]:  # the store itself is one of sound
            return self
        width = self.x.shape[1]
        layout = tuple(replace(part, start=part.start - width, stop=part.stop - width)
                       for part in self.layout if part.start >= width)
        return FrameDataset(layout=layout, x=self.audio, offsets=self.offsets, index=self.index, time_s=self.time_s,
                            valid=np.asarray(self.audio.any(1)), label=self.label)

    def rows(self, trial: int) -> NDArray[np.int64]:
        """Return the rows of the trial at that position, ``(T,)``."""
        return np.arange(self.offsets[trial], self.offsets[trial + 1])

    def trial_of_row(self) -> NDArray[np.int64]:
        """Return the position of each row's trial, ``(R,)``."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def frame_s(self) -> float:
        """Return the median time between two frames, in seconds."""
        # Steps back to 0 mark the start of the next trial; they are no frame intervals.
        steps = np.diff(self.time_s)
        return float(np.median(steps[steps > 0])) if (steps > 0).any() else 1 / 30


def window_starts(length: int, window: int, stride: int) -> NDArray[np.int64]:
    """Return starts of windows that cover ``range(length)``; the last one ends with the clip where it can."""
    last = max(length - window, 0)
    return np.unique(np.append(np.arange(0, last + 1, stride), last)).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One batch of windows: the input of a head and its target labels."""

    x: Tensor  # (B, W, D) float32, the columns of sound last
    seen: Tensor  # (B, W) bool: a face was seen in this frame
    time_s: Tensor  # (B, W) float32, seconds since the window's first frame
    label: Tensor  # (B, W) int64, -1 unknown or padding
    rows: NDArray[np.int64]  # (B, W) rows of the features, -1 padding


class WindowSampler:
    """Windows of `window` frames, each `step` apart, over some trials; a window never crosses the end of a trial."""

    def __init__(self, features: FrameDataset, trials: Sequence[int], window: int, device: str = "cpu",
                 step: int = 1) -> None:
        self.features, self.window, self.device, self.step = features, window, device, step
        self.trials = np.asarray(trials, np.int64)
        self.span = (window - 1) * step + 1
        self.steps = np.arange(window) * step
        self.time_s = features.time_s.astype(np.float32)

    def starts(self, stride: int, shift: int = 0) -> NDArray[np.int64]:
        """Return (M, 2): trial and first row of windows that cover the trials, moved by up to `shift` frames."""
        starts = []
        for trial in self.trials:
            first, stop = self.features.offsets[trial], self.features.offsets[trial + 1]
            begin = window_starts(int(stop - first), self.span, stride)
            begin = np.minimum(begin + shift, max(int(stop - first) - self.span, 0))
            starts.append(np.column_stack([np.full(len(begin), trial), first + begin]))
        return np.concatenate(starts) if starts else np.empty((0, 2), np.int64)

    def covering_starts(self, phases: int = 0) -> NDArray[np.int64]:
        """Return (M, 2): half-overlapping windows that cover every frame, also those between the steps.

        `phases`: how many of the `step` possible first frames are used, 0 for all.
        """
        starts = []
        for trial in self.trials:
            first, stop = self.features.offsets[trial], self.features.offsets[trial + 1]
            for phase in range(min(phases or self.step, int(stop - first))):
                on_grid = -(-int(stop - first - phase) // self.step)
                begin = first + phase + self.step * window_starts(on_grid, self.window, max(1, self.window // 2))
                starts.append(np.column_stack([np.full(len(begin), trial), begin]))
        return np.concatenate(starts) if starts else np.empty((0, 2), np.int64)

    def batch(self, starts: NDArray[np.int64], rng: np.random.Generator | None = None) -> Batch:
        """Return the windows that begin at `starts`, (B, 2), as tensors on the device.

        `rng`: draws an augmentation for each window, where the features have several; without it the plain one is used.
        """
        features = self.features
        rows = starts[:, 1:] + self.steps
        inside = rows < features.offsets[starts[:, 0] + 1][:, None]
        # Most batches need no padding: the masks are skipped there, since the sampler bounds the speed on a GPU.
        padded = not inside.all()
        if padded:
            rows = np.where(inside, rows, -1)
        time_s = self.time_s[rows] - self.time_s[starts[:, 1]][:, None]
        seen, label = features.valid[rows], features.label[rows]
        if padded:
            seen, label, time_s = seen & inside, np.where(inside, label, -1), np.where(inside, time_s, 0)
        if rng is None or not len(features.augmentations):
            values = np.asarray(features.x[rows])
        else:
            # One draw per window: a face that flips from frame to frame would look like motion.
            chosen = rng.integers(len(features.augmentations) + 1, size=len(rows))
            values = np.stack([(features.x if v == 0 else features.augmentations[v - 1])[window]
                               for v, window in zip(chosen, rows, strict=True)])
        mask = torch.from_numpy(seen).to(self.device)
        # Moved as float16, widened on the device: half the bytes to copy.
        x = torch.from_numpy(values).to(self.device).float().mul_(mask[..., None])
        if features.audio.shape[1]:
            sound = np.where(inside[..., None], features.audio[rows], np.float16(0))
            x = torch.cat([x, torch.from_numpy(sound).to(self.device).float()], -1)
        return Batch(x=x, seen=mask, rows=rows, time_s=torch.from_numpy(time_s).to(self.device),
                     label=torch.from_numpy(label.astype(np.int64)).to(self.device))

    def batches(self, starts: NDArray[np.int64], size: int, rng: np.random.Generator | None = None) -> Iterator[Batch]:
        """Yield the windows in batches of `size`."""
        for i in range(0, len(starts), size):
            yield self.batch(starts[i:i + size], rng)


# Reading the store: RAM where the features fit, otherwise one local file that is mapped.

MAX_MEMORY_SHARE = 0.9  # share of the free memory that features may take
CONCURRENT_BYTES = 256 << 20  # most bytes of clips that more than READERS threads read at once


def load_features(store: ReadableStore, trials: Sequence[Trial], taps: Sequence[str], *, augmentations: bool = False,
                  normalize: str = "train", memory: str = "ram", mmap_dir: Path | None = None) -> FrameDataset:
    """Return the features of `trials`, read once; a trial is as long as the longer of its clip and its annotation.

    `augmentations`: read the taps' other augmentations too, where the store has them. `normalize`: "clip" normalizes
    each clip by the mean and spread of its seen frames. `memory`: "ram", "map" (a mapped file in `mmap_dir`, which the
    next run with the same features only opens), or "auto" (mapped where the features do not fit into RAM).

    Raises InputError if the store lacks one of the taps, or the features fit neither into memory nor onto the disk.
    """
    taps = sorted(taps, key=is_audio)
    layout = row_layout(store.taps, taps, store.path)
    # A store of sound alone has no other columns: its own are `x`.
    width = next((part.start for part in layout if is_audio(part.tap) and part.start), layout[-1].stop)
    # An augmentation counts only where every one of the taps has it.
    others = min(store.taps[tap_views(part.tap)][0] if tap_views(part.tap) in store.taps else 0
                 for part in layout if part.start < width)
    count = 1 + (others if augmentations else 0)
    with ThreadPoolExecutor(store.readers) as pool:  # a manifest at a URL takes a request
        clips: list[Clip] = list(pool.map(lambda trial: store[trial.name], trials))
    lengths = [max(clip.frames, 0 if trial.labels is None else len(trial.labels))
               for clip, trial in zip(clips, trials, strict=True)]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    rows = int(offsets[-1])
    shape = (count, rows, layout[-1].stop)
    dataset = FrameDataset(layout=layout, x=np.zeros((0, shape[2]), np.float16), offsets=offsets,
                           index=np.zeros(rows, np.int32), time_s=np.zeros(rows), valid=np.zeros(rows, bool),
                           label=np.full(rows, -1, np.int16))
    _in_threads(lambda i: _read_frame_table(dataset, clips[i], trials[i], i), len(trials), store.readers)

    # Some of each clip that is being read is copied in memory: of a store at a URL, many small clips are read at once.
    threads = max(READERS, min(store.readers, CONCURRENT_BYTES // (2 * count * shape[2] * max(lengths, default=1))))

    def fill(values: NDArray[np.float16]) -> None:
        with progress_bar("read store", rows) as bar:
            def read(i: int) -> None:
                _read_values(values, dataset, clips[i], i, normalize == "clip", width)
                bar.advance(lengths[i])

            _in_threads(read, len(trials), threads)

    if _fits_into_ram(int(np.prod(shape)) * 2, memory, mmap_dir):
        values = np.zeros(shape, np.float16)
        fill(values)
    else:
        # Named by everything that decides the content, so that a file of the same name holds the same features.
        name = fingerprint_of([store.digest(), [t.name for t in trials], lengths, list(taps), count, normalize])[:16]
        values = _open_mapped(mmap_dir or Path(), name, shape, fill)
    return replace(dataset, x=values[0, :, :width], audio=values[0, :, width:], augmentations=values[1:, :, :width])


def _fits_into_ram(size: int, memory: str, mmap_dir: Path | None) -> bool:
    """Return whether `size` bytes of features are read into RAM."""
    free = free_memory()
    if memory == "ram" or (memory == "auto" and size <= MAX_MEMORY_SHARE * free):
        if size > MAX_MEMORY_SHARE * free:
            raise InputError(f"the features need {size / 2**30:.1f} GB of memory, {free / 2**30:.1f} GB are free",
                             hint="map them from a local file with --memory map, or choose fewer or pooled taps with "
                                  "--taps (block8,repeat_2 are 5 kB per frame)")
        return True
    if memory == "auto":
        log.warning("the features need %.1f GB of memory, %.1f GB are free: they are written once to %s and mapped; "
                    "fewer taps (--taps) are faster", size / 2**30, free / 2**30, mmap_dir)
    return False


def _open_mapped(folder: Path, name: str, shape: tuple[int, ...],
                 fill: Callable[[NDArray[np.float16]], None]) -> NDArray[np.float16]:
    """Return the features mapped from a file of that name, which is written first unless it exists."""
    path = folder / f"{name}.npy"
    if not path.is_file():
        atomic_io.make_folder(folder)
        with atomic_io.lock(path.with_suffix(".lock"), wait=True):
            # Checked again: another process may have written the file while this one waited for the lock.
            if not path.is_file():
                atomic_io.remove_temporary(folder, path.name)
                # Checked first: writing to a mapping on a full disk kills the process (SIGBUS) without a message.
                size, free = int(np.prod(shape)) * 2, shutil.disk_usage(folder).free
                if size > free:
                    raise InputError(
                        f"the features need {size / 2**30:.1f} GB of disk, {free / 2**30:.1f} GB are free",
                        where=folder, hint="choose fewer taps with --taps, or another --cache")
                with atomic_io.replacing(path) as temporary:
                    values = np.lib.format.open_memmap(temporary, "w+", np.float16, shape)
                    fill(values)
                    values.flush()
                    del values  # closes the mapping before the file gets its name
    return np.asanyarray(np.lib.format.open_memmap(path, "r"))


def _in_threads(read: Callable[[int], None], count: int, threads: int) -> None:
    """Call `read` with each number below `count`, in a few threads."""
    with ThreadPoolExecutor(threads, "fercache-read") as pool:
        deque(pool.map(read, range(count)), 0)  # an error cancels the calls that have not begun


def _read_frame_table(dataset: FrameDataset, clip: Clip, trial: Trial, i: int) -> None:
    """Fill a trial's time and labels; where the annotation is longer than the clip, time goes on at the same pace."""
    start, stop = int(dataset.offsets[i]), int(dataset.offsets[i + 1])
    end = start + clip.frames
    dataset.index[start:stop] = np.arange(1, stop - start + 1)
    frame_table, time_s = clip.frame_table, dataset.time_s
    dataset.valid[start:end] = frame_table["valid"] > 0
    time_s[start:end] = frame_table["time_s"]
    step = (time_s[end - 1] - time_s[start]) / (clip.frames - 1) if clip.frames > 1 else 1 / 30
    time_s[end:stop] = time_s[end - 1] + step * np.arange(1, stop - end + 1)
    dataset.label[start:stop] = trial.frame_labels(clip.frames)


def _read_values(values: NDArray[np.float16], dataset: FrameDataset, clip: Clip, i: int,
                 normalize: bool, width: int) -> None:
    """Read one trial's rows of every augmentation into `values`, ``(V, R, D)``; optionally normalize the clip."""
    # From column `width` on there is sound, which has no augmentations and is masked by rows of zeros.
    start = int(dataset.offsets[i])
    rows = slice(start, start + clip.frames)
    for part in dataset.layout:
        clip.read(part.tap, values[0, rows, part.start:part.stop].reshape(-1, *part.shape))
        if len(values) > 1 and part.start < width:
            others = clip.read(tap_views(part.tap)).reshape(clip.frames, -1, part.stop - part.start)
            values[1:, rows, part.start:part.stop] = others[:, :len(values) - 1].swapaxes(0, 1)
    if normalize:
        normalize_clip(values[:, rows, :width], dataset.valid[rows])
        normalize_clip(values[:1, rows, width:], np.asarray(values[0, rows, width:].any(1)))


def normalize_clip(x: NDArray[np.float16], seen: NDArray[np.bool_]) -> None:
    """Subtract a clip's mean over frames with a face from ``(V, T, D)`` and divide by the spread, in place."""
    # This removes a person's appearance at rest and keeps the changes. All augmentations use the mean and spread of the
    # plain crop. A spread counts as at least a fifth of the clip's median spread, so that constant values stay small.
    if not seen.any():
        return
    plain = x[0, seen].astype(np.float32)
    spread = plain.std(0)
    scale = 1 / np.maximum(spread, max(float(np.median(spread)) / 5, 1e-3))
    for augmentation in x:
        augmentation[seen] = np.clip((augmentation[seen].astype(np.float32) - plain.mean(0)) * scale, -100, 100)
