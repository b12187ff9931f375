"""Batches the crops of several clips for the CNN; `put` and `wait` raise Cancelled when the run is cancelled."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fercache.extraction.run_control import CancelToken, StageProfiler

if TYPE_CHECKING:  # torch: seconds that a cached run saves
    from fercache.backbones.backbone import Backbone
    from fercache.runtime.devices import TorchThreadPool

# How long a batch that a clip waits for stays open for the crops of other clips.
GRACE_S = 2.0
# How often a waiting thread checks for cancellation and for the time.
TICK_S = 0.1
# Batches running or queued per pool thread; one more is being filled.
BATCHES_AHEAD = 2


class FeatureBuffer:
    """Values of one segment, filled in as the CNN computes them."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], rows: int, views: int) -> None:
        # (n, V, ...) of n frames in V views; zeros for rows without a crop.
        self.values = {tap: np.zeros((rows, views, *shape), np.float16) for tap, shape in shapes.items()}
        self.open = 0  # crops submitted and not computed yet
        self.error: BaseException | None = None  # the first exception of a batch with one of them


class _QueuedCrop(NamedTuple):
    """A crop, and the row and view that its values belong to."""

    crop: NDArray[np.uint8]
    buffer: FeatureBuffer
    row: int
    view: int


class CrossClipBatcher:
    """Collects the crops of all clips into full batches."""
    # Batches have one size and run in pool threads. A batch is padded only if a clip waits for its crops and all other
    # clips wait too, or if it is not full within GRACE_S. A crop's values do not depend on the rest of its batch, so
    # the stored features do not depend on which clips ran together.

    def __init__(self, net: Backbone, torch_threads: TorchThreadPool, cancel: CancelToken,
                 profiler: StageProfiler) -> None:
        self.net, self.torch_threads, self.cancel, self.profiler = net, torch_threads, cancel, profiler
        # Bounds the crops in memory: readers of clips wait in `put` when the CNN is the bottleneck.
        self.capacity = net.batch * (BATCHES_AHEAD * torch_threads.count + 1)
        self.padded = 0
        self._change = threading.Condition()
        self._queue: list[_QueuedCrop] = []
        self._since_s = 0.0
        self._running = self._clips = self._waiting = 0

    @contextmanager
    def clip(self) -> Iterator[None]:
        """Count one more clip as open: it may add crops, so partial batches wait for it."""
        self._count(clips=1)
        try:
            yield
        finally:
            self._count(clips=-1)

    def put(self, crop: NDArray[np.uint8], buffer: FeatureBuffer, row: int, view: int = 0) -> None:
        """Queue one crop (160, 160, 3); its values will be in that row and view of the buffer."""
        # Blocks while `capacity` crops of all clips together are queued or running.
        with self._change:
            while self._running + len(self._queue) >= self.capacity:
                self._pause()
            if not self._queue:
                self._since_s = time.monotonic()
            self._queue.append(_QueuedCrop(crop, buffer, row, view))
            buffer.open += 1
            if len(self._queue) == self.net.batch:
                self._launch()

    def wait(self, buffer: FeatureBuffer) -> None:
        """Return when every crop of the buffer is computed.

        Raises the exception of the CNN on one of them.
        """
        self._count(waiting=1)
        try:
            with self._change:
                while buffer.open and buffer.error is None:
                    # The partial batch is due if no clip can add to it, or if it has waited long enough.
                    due = self._waiting >= self._clips or time.monotonic() - self._since_s > GRACE_S
                    if due and any(crop.buffer is buffer for crop in self._queue):
                        self.padded += self.net.batch - len(self._queue)
                        self._launch()
                    self._pause()
        finally:
            self._count(waiting=-1)
        if buffer.error is not None:
            raise buffer.error

    def _count(self, clips: int = 0, waiting: int = 0) -> None:
        with self._change:
            self._clips += clips
            self._waiting += waiting
            self._change.notify_all()

    def _pause(self) -> None:
        """Release the lock for a moment."""
        self.cancel.check()
        self._change.wait(TICK_S)

    def _launch(self) -> None:
        """Submit the queued crops as one batch."""
        batch, self._queue = self._queue, []
        self._running += len(batch)
        self.torch_threads.submit(lambda: self._run(batch))

    def _run(self, batch: list[_QueuedCrop]) -> None:
        """Compute a batch in a pool thread."""
        error: BaseException | None = None
        try:
            self.cancel.check()
            with self.profiler.busy("cnn", len(batch)):
                features = self.net.embed_batch(np.stack([crop.crop for crop in batch]))
            # Outside the lock: batches of other threads write to other rows.
            for tap, values in features.items():
                for crop, value in zip(batch, values, strict=True):
                    crop.buffer.values[tap][crop.row, crop.view] = value
        except BaseException as raised:  # noqa: BLE001 - raised again in the thread of each clip that has a crop in it
            error = raised
        with self._change:
            self._running -= len(batch)
            for crop in batch:
                crop.buffer.open -= 1
                crop.buffer.error = crop.buffer.error or error
            self._change.notify_all()
