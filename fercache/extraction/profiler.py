"""Measures the rate of each part of stage one, and finds the bottleneck."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

T = TypeVar("T")

PARTS = ("decode", "detect", "crop", "cnn", "write")
# Rates are shown after this many seconds of work by all parts together: earlier ones are noise.
MIN_WORK_S = 0.5


class StageProfiler:
    """Counts frames and busy seconds of each part; safe to use from several threads.

    Parameters
    ----------
    lanes : how many of each part can run at once.
    clocks : part -> clock for its work; by default the thread's processor time, so that waiting does not count.
    """
    # On a CPU all parts share the cores. A part's rate is what it would reach with all cores to itself, and the part
    # with the most processor time is the bottleneck.

    def __init__(self, lanes: dict[str, int], clocks: dict[str, Callable[[], float]] | None = None) -> None:
        self._lanes, self._clocks = lanes, clocks or {}
        self._frames, self._seconds = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, 0.0)
        self._lock = threading.Lock()

    def add(self, part: str, frames: int, seconds: float) -> None:
        """Add finished work."""
        with self._lock:
            self._frames[part] += frames
            self._seconds[part] += seconds

    @contextmanager
    def busy(self, part: str, frames: int) -> Iterator[None]:
        """Measure the block as work on `frames` frames."""
        clock = self._clocks.get(part, time.thread_time)
        started = clock()
        yield
        self.add(part, frames, clock() - started)

    def each(self, part: str, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, and measure the work to produce each as one frame."""
        iterator, clock = iter(items), self._clocks.get(part, time.thread_time)
        while True:
            started = clock()
            # A slice, not `next`: the work after the last item counts too, without an item.
            item = list(islice(iterator, 1))
            self.add(part, len(item), clock() - started)
            if not item:
                return
            yield item[0]

    def rates(self) -> dict[str, float]:
        """Return the frames per second that each part would reach if it ran alone."""
        with self._lock:
            return {part: self._frames[part] * self._lanes[part] / self._seconds[part]
                    for part in PARTS if self._seconds[part] > 0}

    def slowest(self) -> str:
        """Return the part that takes the most time, "" before any work."""
        with self._lock:
            spent = {part: self._seconds[part] / self._lanes[part] for part in PARTS if self._seconds[part] > 0}
        return max(spent, key=lambda part: spent[part], default="")

    def line(self) -> str:
        """Return all rates and the bottleneck as text, "" after too little work."""
        if sum(self._seconds.values()) < MIN_WORK_S:
            return ""
        rates = ", ".join(f"{part} {rate:.3g}/s" if rate < 100 else f"{part} {rate:.0f}/s"
                          for part, rate in self.rates().items())
        return f"{rates}: the {self.slowest()} is the bottleneck"
