"""How a run is cancelled, how long it may last, how fast its parts are, and how it works ahead."""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar, cast

from fercache.errors import InputError


class Cancelled(Exception):
    """The run was cancelled; the next run continues from the durable part of the clip."""


def never_cancelled() -> bool:
    """Return False: the run is not cancelled from outside."""
    return False


class CancelToken:
    """Checked at each point where work can stop without loss: the next block or segment.

    `stop`: returns whether the run should end now. Several threads call it often, so it must be quick.
    """

    def __init__(self, stop: Callable[[], bool] = never_cancelled) -> None:
        self._callback = stop
        self._cancelled = False

    def cancel(self) -> None:
        """Cancel, for instance after an interrupt."""
        self._cancelled = True

    @property
    def is_cancelled(self) -> bool:
        """Whether the run is cancelled; once True it stays True."""
        self._cancelled = self._cancelled or self._callback()
        return self._cancelled

    def check(self) -> None:
        """Raise Cancelled if the run is cancelled."""
        if self.is_cancelled:
            raise Cancelled


UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
HINT = "use seconds (5400), 90m, 1h30m, or as in Slurm: minutes:seconds, hours:minutes:seconds, days-hours:minutes"
SLURM = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


def parse_time_limit(text: str) -> float:
    """Return the seconds of a length of time.

    Raises InputError if `text` is not a length of time, or it is zero.

    Colons are read as in Slurm: ``10:30`` is ten and a half minutes, ``1-12`` a day and a half. A number alone is
    seconds, as for `timeout` (in Slurm it would be minutes).
    """
    text = text.strip()
    seconds = 0.0
    if re.fullmatch(r"\d+(\.\d+)?", text):
        seconds = float(text)
    elif re.fullmatch(r"(\d+(\.\d+)?[dhms])+", text.lower()):
        seconds = sum(float(number) * UNITS[unit]
                      for number, _, unit in re.findall(r"(\d+(\.\d+)?)([dhms])", text.lower()))
    elif slurm := SLURM.fullmatch(text):
        days, parts = slurm[1], [int(part) for part in slurm.groups()[1:] if part is not None]
        if days is None and len(parts) == 2:  # minutes:seconds
            parts = [0, *parts]
        hours, minutes, rest = (*parts, 0, 0)[:3]
        seconds = int(days or 0) * UNITS["d"] + hours * 3600 + minutes * 60 + rest
    if not seconds:
        raise InputError(f"{text!r} is not a length of time", where="--time-limit", hint=HINT)
    return seconds


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
    rest : a part that computes in threads of its own, whose clocks cannot be read: it took what remains of the
        process's time.
    """
    # On a CPU all parts share the cores. A part's rate is what it would reach with all cores to itself, and the part
    # with the most processor time is the bottleneck.

    def __init__(self, lanes: dict[str, int], clocks: dict[str, Callable[[], float]] | None = None,
                 rest: str = "") -> None:
        self._lanes, self._clocks, self._rest, self._started = lanes, clocks or {}, rest, time.process_time()
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

    def _spent(self) -> dict[str, float]:
        """Return the seconds of work of each part that has done any; call it with the lock."""
        spent = dict(self._seconds)
        if self._frames.get(self._rest):
            others = sum(s for part, s in spent.items() if part != self._rest and part not in self._clocks)
            spent[self._rest] = max(0.0, time.process_time() - self._started - others)
        return {part: seconds for part, seconds in spent.items() if seconds > 0}

    def rates(self) -> dict[str, float]:
        """Return the frames per second that each part would reach if it ran alone."""
        with self._lock:
            return {part: self._frames[part] * self._lanes[part] / seconds for part, seconds in self._spent().items()}

    def slowest(self) -> str:
        """Return the part that takes the most time, "" before any work."""
        with self._lock:
            spent = {part: seconds / self._lanes[part] for part, seconds in self._spent().items()}
        return max(spent, key=lambda part: spent[part], default="")

    def line(self) -> str:
        """Return all rates and the bottleneck as text, "" after too little work."""
        if sum(self._seconds.values()) < MIN_WORK_S:
            return ""
        rates = ", ".join(f"{part} {rate:.3g}/s" if rate < 100 else f"{part} {rate:.0f}/s"
                          for part, rate in self.rates().items())
        return f"{rates}: the {self.slowest()} is the bottleneck"


def prefetch(items: Iterable[T], most: int) -> Generator[T, None, None]:
    """Yield the items in order; a thread computes up to `most` of them ahead."""
    # An error of the iterable is raised here, after the items before it. When the caller stops early, the thread has
    # ended when this generator is closed.
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1, "fercache-prefetch") as pool:
        waiting = deque(pool.submit(next, iterator, end) for _ in range(most + 1))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(pool.submit(next, iterator, end))
                yield cast(T, item)
        finally:
            pool.shutdown(cancel_futures=True)
