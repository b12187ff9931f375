"""Several processes of one machine, each with its own nets and its own device, and one meter over all of them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf
from multiprocessing import get_context, parent_process
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from threading import Thread

from fercache.datasets import Trial
from fercache.engines.size import amount, parcels
from fercache.engines.task import Done, Order, do, order_of, slim
from fercache.errors import BrokenOff
from fercache.extract import ClipDone, Work
from fercache.progress import Meter, meter

LOOK_EVERY_S = 0.5
GRACE_S = 10.0
"""What a worker whose run has died may take to put down its clip."""
INTERRUPTS = {signal.SIGINT}
PARCEL, TURNS = 256, 8
"""Frames that short clips are put together to, as long as each worker has so many turns."""


@dataclass(frozen=True)
class Pool:
    """An engine of `workers` processes on this machine, up to the moment `ends_s` (seconds since 1970).

    Notes
    -----
    The processes begin anew (CUDA does not survive a fork) and take parcels of clips, large ones first, as they become
    free. The clips' claims keep them apart from each other and from any other run.
    """

    workers: int
    ends_s: float = inf

    def __call__(self, work: Work, trials: Sequence[Trial]) -> Iterator[ClipDone]:
        """Yield what becomes of each clip.

        Raises
        ------
        BrokenOff
            A worker was killed, for want of memory most likely; what is committed stays.
        """
        total = work.announce(trials)
        least = min(PARCEL, sum(map(amount, trials)) // (TURNS * self.workers))
        order = order_of(work, trials, self.ends_s, self.workers)
        with meter("extract", total) as bar, _hired(self.workers) as crew:
            for done in crew.watch(crew.submit(order, parcels(slim(trials), least)), bar):
                done.tell()
                yield from done.clips


@dataclass(frozen=True)
class _Crew:
    """Worker processes; `moved` counts their frames, `over` tells them to put down what they have."""

    executor: ProcessPoolExecutor
    moved: Synchronized[float]
    over: Event

    def submit(self, order: Order, parcels: Iterable[list[Trial]]) -> set[Future[Done | None]]:
        """Give the parcels out. A Ctrl-C meanwhile comes after it, and to workers when they have seated themselves."""
        signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)
        try:
            return {self.executor.submit(_work, order, parcel) for parcel in parcels}
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTS)

    def watch(self, waiting: set[Future[Done | None]], bar: Meter) -> Iterator[Done]:
        """Yield what is done as it is done, and move the meter meanwhile."""
        told = 0.0
        while waiting:
            finished, waiting = wait(waiting, LOOK_EVERY_S, FIRST_COMPLETED)
            moved = self.moved.value
            if moved > told:
                bar.advance(moved - told)
            told = moved
            for done in (future.result() for future in finished):
                if done is not None:
                    yield done


@contextmanager
def _hired(workers: int) -> Iterator[_Crew]:
    """Yield workers; whatever ends the block ends them too."""
    context = get_context("spawn")
    moved: Synchronized[float] = context.Value("d", 0.0)
    seats: Synchronized[int] = context.Value("i", 0)
    over = context.Event()
    executor = ProcessPoolExecutor(workers, context, _begin, (seats, moved, over))
    try:
        yield _Crew(executor, moved, over)
    except BrokenProcessPool as error:
        raise BrokenOff("a worker was killed", hint="there may be too little memory: choose fewer --workers and run "
                        "again; what is committed stays") from error
    finally:
        over.set()
        executor.shutdown(cancel_futures=True)


@dataclass
class _Here:
    """What a worker process knows of itself."""

    seat: int = 0
    busy: bool = False
    shared: list[tuple[Synchronized[float], Event]] = field(default_factory=list)


_here = _Here()


class _Count(Meter):
    """A meter that the run's own meter follows."""

    def advance(self, amount: float = 1) -> None:
        moved = _here.shared[0][0]
        with moved.get_lock():
            moved.value += amount


def _begin(seats: Synchronized[int], moved: Synchronized[float], over: Event) -> None:
    """Take a seat, and listen for the end of the run."""
    with seats.get_lock():
        _here.seat = seats.value
        seats.value += 1
    _here.shared.append((moved, over))
    signal.signal(signal.SIGINT, _put_down)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTS)
    Thread(target=_listen, args=(over,), daemon=True).start()


def _put_down(number: int, frame: object) -> None:
    """Stop what is being worked on; a worker that waits is ended by the run."""
    if _here.busy:
        raise KeyboardInterrupt


def _listen(over: Event) -> None:
    """Put down the clip when the run is over, and end where the run has died."""
    parent = parent_process()
    while not over.wait(LOOK_EVERY_S) and parent is not None and parent.is_alive():
        continue
    if _here.busy:
        os.kill(os.getpid(), signal.SIGINT)
    if not over.is_set():
        ends = time.monotonic() + GRACE_S
        while _here.busy and time.monotonic() < ends:
            time.sleep(LOOK_EVERY_S)
        os._exit(1)


def _work(order: Order, parcel: list[Trial]) -> Done | None:
    """Return what became of a parcel; None where the run is over."""
    _here.busy = True
    try:
        return None if _here.shared[0][1].is_set() else do(order, parcel, _here.seat, _Count("", None, ""))
    finally:
        _here.busy = False
