"""Crops of several clips in common batches for the CNN, and what it made of them back in each clip's rows."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fercache.extraction.cancellation import CancelToken
from fercache.extraction.profiler import StageProfiler
from fercache.runtime.devices import TorchThreadPool

GRACE_S = 2.0
"""How long crops of a clip that waits for them are held back for others to fill their batch."""
TICK_S = 0.1
"""How soon somebody who waits looks at the brake and at the clock again."""
BATCHES_AHEAD = 2
"""Batches at work or waiting, for each worker; one more is being filled."""

Crop = NDArray[np.uint8]


class BatchBackbone(Protocol):
    """The CNN, as far as it is needed here."""

    batch: int
    shapes: dict[str, tuple[int, ...]]

    def embed_batch(self, crops: NDArray[np.uint8]) -> dict[str, NDArray[np.float16]]:
        """Return {tap: (n, ...) float16} of at most `batch` crops (n, 160, 160, 3)."""


class FeatureBuffer:
    """Rows of one segment on their way.

    Attributes
    ----------
    values : {tap: (n, V, ...) float16} of n frames in V views; zeros where no crop was given.
    open : crops given and not done.
    error : what went wrong with one of them.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], rows: int, views: int) -> None:
        self.values = {tap: np.zeros((rows, views, *shape), np.float16) for tap, shape in shapes.items()}
        self.open = 0
        self.error: BaseException | None = None


class _QueuedCrop(NamedTuple):
    """A crop, and where its values go."""

    crop: Crop
    buffer: FeatureBuffer
    row: int
    view: int


class CrossClipBatcher:
    """What all clips give their crops to.

    Notes
    -----
    Batches are of one size and run in the crew's threads. One is padded only where somebody waits for its crops and no
    other clip is open, or none of them has filled it within GRACE_S. A crop's values do not depend on what else is in
    its batch, so nothing else shows how clips were mixed.
    """

    def __init__(self, net: BatchBackbone, torch_threads: TorchThreadPool, cancel: CancelToken,
                 profiler: StageProfiler) -> None:
        self.net, self.torch_threads, self.cancel, self.profiler = net, torch_threads, cancel, profiler
        self.most = net.batch * (BATCHES_AHEAD * torch_threads.count + 1)
        self.padded = 0
        self._change = threading.Condition()
        self._held: list[_QueuedCrop] = []
        self._since_s = 0.0
        self._under_way = self._clips = self._waiting = 0

    @contextmanager
    def clip(self) -> Iterator[None]:
        """Count one more clip as open: crops may come of it, so that batches are worth waiting for."""
        self._count(clips=1)
        try:
            yield
        finally:
            self._count(clips=-1)

    def put(self, crop: Crop, buffer: FeatureBuffer, row: int, view: int = 0) -> None:
        """Take one crop (160, 160, 3); its values will be in that row and view of the sheet.

        Notes
        -----
        Returns when there is room: at most `most` crops are held, of all clips together.

        Raises
        ------
        Stopped
            The run was asked to end.
        """
        with self._change:
            while self._under_way + len(self._held) >= self.most:
                self._pause()
            if not self._held:
                self._since_s = time.monotonic()
            self._held.append(_QueuedCrop(crop, buffer, row, view))
            buffer.open += 1
            if len(self._held) == self.net.batch:
                self._launch()

    def wait(self, buffer: FeatureBuffer) -> None:
        """Return when every crop that was given for the sheet is done.

        Raises
        ------
        Stopped
            The run was asked to end.
        Exception
            What the CNN raised over one of them.
        """
        self._count(waiting=1)
        try:
            with self._change:
                while buffer.open and buffer.error is None:
                    if self._is_due(buffer):
                        self.padded += self.net.batch - len(self._held)
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
        """Let others go on for a moment."""
        self.cancel.check()
        self._change.wait(TICK_S)

    def _is_due(self, buffer: FeatureBuffer) -> bool:
        """Return whether a batch that is not full has waited for long enough, with crops of that sheet in it."""
        alone = self._waiting >= self._clips or time.monotonic() - self._since_s > GRACE_S
        return alone and any(held.buffer is buffer for held in self._held)

    def _launch(self) -> None:
        """Give the crops that are held to the crew."""
        batch, self._held = self._held, []
        self._under_way += len(batch)
        self.torch_threads.submit(lambda: self._run(batch))

    def _run(self, batch: list[_QueuedCrop]) -> None:
        """Compute a batch, in a thread of the crew."""
        error: BaseException | None = None
        try:
            self.cancel.check()
            self._fill(batch)
        except BaseException as raised:  # noqa: BLE001 - raised again in the thread of each clip that is concerned
            error = raised
        with self._change:
            self._under_way -= len(batch)
            for held in batch:
                held.buffer.open -= 1
                held.buffer.error = held.buffer.error or error
            self._change.notify_all()

    def _fill(self, batch: list[_QueuedCrop]) -> None:
        with self.profiler.busy("cnn", len(batch)):
            found = self.net.embed_batch(np.stack([held.crop for held in batch]))
        for tap, values in found.items():
            for held, value in zip(batch, values, strict=True):
                held.buffer.values[tap][held.row, held.view] = value
