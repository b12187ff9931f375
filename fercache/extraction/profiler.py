"""What each part of stage one costs, and which of them is the bottleneck."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

T = TypeVar("T")

PARTS = ("decode", "detect", "crop", "cnn", "write")
FEWEST_S = 0.5
"""Seconds of work, of all parts together, from which rates are told."""


class StageProfiler:
    """Frames and busy seconds of each part; several threads may count.

    Parameters
    ----------
    lanes : how many of each part can be at work at once.
    clocks : seconds of work of the calling thread; without one, of its processor: waiting does not count.

    Notes
    -----
    On a CPU all parts share the cores: a part's rate is what it would reach with all cores to itself, and the part that
    takes most of their time is the bottleneck.
    """

    def __init__(self, lanes: dict[str, int], clocks: dict[str, Callable[[], float]] | None = None) -> None:
        self._lanes, self._clocks = lanes, clocks or {}
        self._frames, self._seconds = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, 0.0)
        self._lock = threading.Lock()

    def add(self, part: str, frames: int, seconds: float) -> None:
        """Count work that was done."""
        with self._lock:
            self._frames[part] += frames
            self._seconds[part] += seconds

    @contextmanager
    def busy(self, part: str, frames: int) -> Iterator[None]:
        """Count the block as work on so many frames."""
        clock = self._clocks.get(part, time.thread_time)
        started = clock()
        yield
        self.add(part, frames, clock() - started)

    def each(self, part: str, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, each a frame that it took work to make."""
        iterator, clock = iter(items), self._clocks.get(part, time.thread_time)
        while True:
            started = clock()
            found = list(islice(iterator, 1))
            self.add(part, len(found), clock() - started)
            if not found:
                return
            yield found[0]

    def rates(self) -> dict[str, float]:
        """Return frames a second that each part could do if it were the only one."""
        with self._lock:
            return {part: self._frames[part] * self._lanes[part] / self._seconds[part]
                    for part in PARTS if self._seconds[part] > 0}

    def slowest(self) -> str:
        """Return the part that takes most of the time, "" where nothing was done."""
        with self._lock:
            spent = {part: self._seconds[part] / self._lanes[part] for part in PARTS if self._seconds[part] > 0}
        return max(spent, key=lambda part: spent[part], default="")

    def line(self) -> str:
        """Return all rates and the bottleneck as text, "" as long as too little was done to tell."""
        if sum(self._seconds.values()) < FEWEST_S:
            return ""
        rates = ", ".join(f"{part} {rate:.3g}/s" if rate < 100 else f"{part} {rate:.0f}/s"
                          for part, rate in self.rates().items())
        return f"{rates}: the {self.slowest()} is the bottleneck"
