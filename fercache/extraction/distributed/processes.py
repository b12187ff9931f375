"""Several processes of one machine, each with its own nets and its own device, and one meter over all of them."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from multiprocessing import get_context, parent_process
from multiprocessing.context import SpawnContext
from multiprocessing.queues import Queue, SimpleQueue
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from threading import Thread

from fercache.data.base import Trial
from fercache.errors import BrokenOff
from fercache.extraction.distributed.worker import Order, largest_first, opened_work, order_of, slim
from fercache.extraction.job import ClipDone, Work
from fercache.extraction.resources import load
from fercache.runtime.progress import Meter, meter

LOOK_EVERY_S = 0.5
GRACE_S = 10.0
"""What a worker whose run has died may take to put down its clips."""
INTERRUPTS = {signal.SIGINT}


@dataclass(frozen=True)
class Pool:
    """An engine of `workers` processes on this machine, up to the moment `ends_s` (seconds since 1970).

    Notes
    -----
    The processes begin anew (CUDA does not survive a fork). Each has several clips at work, as a run alone has, and
    takes the next one, large ones first, when it is through with one. The clips' claims keep them apart from each other
    and from any other run.
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
        total, order = work.announce(trials), order_of(work, trials, self.ends_s, self.workers)
        wires = _Wires.made(get_context("spawn"))
        with meter("extract", total) as bar, _hired(self.workers, wires) as executor:
            yield from wires.watch(_begun(executor, self.workers, order, slim(trials), wires), bar)


@dataclass(frozen=True)
class _Wires:
    """What a run and its workers share.

    Attributes
    ----------
    seats : how many workers have begun.
    moved : frames that all of them are through with.
    over : tells them to put down what they have.
    trials : what is still to do; behind the last one a None for each worker.
    said : what became of clips, and what is logged as (level, text).
    """

    seats: Synchronized[int]
    moved: Synchronized[float]
    over: Event
    trials: Queue[Trial | None]
    said: SimpleQueue[ClipDone | tuple[int, str]]

    @classmethod
    def made(cls, context: SpawnContext) -> _Wires:
        """Return new ones."""
        return cls(context.Value("i", 0), context.Value("d", 0.0), context.Event(), context.Queue(),
                   context.SimpleQueue())

    def coming(self) -> Iterator[Trial]:
        """Yield the clips that this worker takes."""
        while (trial := self.trials.get()) is not None:
            yield trial

    def watch(self, waiting: set[Future[None]], bar: Meter) -> Iterator[ClipDone]:
        """Yield what is done as it is done, log what is logged, and move the meter, until every worker has ended."""
        told = 0.0
        while waiting:
            ended, waiting = wait(waiting, LOOK_EVERY_S, FIRST_COMPLETED)
            moved = self.moved.value
            if moved > told:
                bar.advance(moved - told)
            told = moved
            yield from self._heard()
            for future in ended:
                future.result()

    def _heard(self) -> Iterator[ClipDone]:
        while not self.said.empty():
            said = self.said.get()
            if isinstance(said, ClipDone):
                yield said
            else:
                logging.getLogger("fercache").log(said[0], "%s", said[1])


@contextmanager
def _hired(workers: int, wires: _Wires) -> Iterator[ProcessPoolExecutor]:
    """Yield worker processes; whatever ends the block ends them too."""
    executor = ProcessPoolExecutor(workers, get_context("spawn"), _begin, (wires,))
    try:
        yield executor
    except BrokenProcessPool as error:
        raise BrokenOff("a worker was killed", hint="there may be too little memory: choose fewer --workers and run "
                        "again; what is committed stays") from error
    finally:
        wires.over.set()
        wires.trials.cancel_join_thread()
        executor.shutdown(cancel_futures=True)


def _begun(executor: ProcessPoolExecutor, workers: int, order: Order, trials: Sequence[Trial], wires: _Wires
           ) -> set[Future[None]]:
    """Return the promises of workers that have been started on the trials.

    Notes
    -----
    A Ctrl-C meanwhile comes after it, and to the workers when they have taken their seats.
    """
    for trial in (*largest_first(trials), *[None] * workers):
        wires.trials.put(trial)
    signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)
    try:
        return {executor.submit(_serve, order) for _ in range(workers)}
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTS)


@dataclass
class _Here:
    """What a worker process knows of itself."""

    wires: _Wires
    seat: int
    busy: bool = False


_here: list[_Here] = []


class _Count(Meter):
    """A meter that the run's own meter follows."""

    def advance(self, amount: float = 1) -> None:
        moved = _here[0].wires.moved
        with moved.get_lock():
            moved.value += amount


class _Teller(logging.Handler):
    """Hands what is logged to the run."""

    def emit(self, record: logging.LogRecord) -> None:
        _here[0].wires.said.put((record.levelno, record.getMessage()))


def _begin(wires: _Wires) -> None:
    """Take a seat, and listen for the end of the run."""
    with wires.seats.get_lock():
        _here.append(_Here(wires, wires.seats.value))
        wires.seats.value += 1
    logging.getLogger("fercache").addHandler(_Teller())
    logging.getLogger("fercache").setLevel(logging.INFO)
    signal.signal(signal.SIGINT, _put_down)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTS)
    Thread(target=_listen, daemon=True).start()


def _put_down(number: int, frame: object) -> None:
    """Stop what is being worked on; a worker that waits is ended by the run."""
    if _here[0].busy:
        raise KeyboardInterrupt


def _listen() -> None:
    """Put down the clips when the run is over, and end where the run has died."""
    here, parent = _here[0], parent_process()
    while not here.wires.over.wait(LOOK_EVERY_S) and parent is not None and parent.is_alive():
        continue
    if here.busy:
        os.kill(os.getpid(), signal.SIGINT)
    if not here.wires.over.is_set():
        ends = time.monotonic() + GRACE_S
        while here.busy and time.monotonic() < ends:
            time.sleep(LOOK_EVERY_S)
        os._exit(1)


def _serve(order: Order) -> None:
    """Do clip after clip, until none is left."""
    from fercache.extraction.resources import opened

    here = _here[0]
    here.busy = True
    try:
        work = opened_work(order, here.seat, here.wires.over.is_set)
        if work.brake.on:  # before nets are loaded for nothing
            for trial in here.wires.coming():
                here.wires.said.put(work.left(trial))
            return
        nets = load(work.config, order.cnn, order.faces)
        abreast = work.config.in_flight or nets.in_flight
        with opened(nets, work.brake, _Count("", None, ""), abreast) as plant:
            for done in work.on(plant, nets, here.wires.coming(), abreast):
                here.wires.said.put(done)
            if plant.gauge.line():
                logging.getLogger("fercache").info("process %d: %s", here.seat + 1, plant.gauge.line())
    finally:
        here.busy = False
