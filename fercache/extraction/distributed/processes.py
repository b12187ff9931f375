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
from fercache.extraction.distributed.worker import JobSpec, job_spec, largest_first, open_job, without_labels
from fercache.extraction.job import ClipResult, ExtractionJob
from fercache.extraction.resources import load_nets
from fercache.runtime.progress import ProgressBar, progress_bar

LOOK_EVERY_S = 0.5
GRACE_S = 10.0
"""What a worker whose run has died may take to put down its clips."""
INTERRUPTS = {signal.SIGINT}


@dataclass(frozen=True)
class ProcessPool:
    """An engine of `workers` processes on this machine, up to the moment `ends_s` (seconds since 1970).

    Notes
    -----
    The processes begin anew (CUDA does not survive a fork). Each has several clips at work, as a run alone has, and
    takes the next one, large ones first, when it is through with one. The clips' claims keep them apart from each other
    and from any other run.
    """

    workers: int
    ends_s: float = inf

    def __call__(self, job: ExtractionJob, trials: Sequence[Trial]) -> Iterator[ClipResult]:
        """Yield what becomes of each clip.

        Raises
        ------
        BrokenOff
            A worker was killed, for want of memory most likely; what is committed stays.
        """
        total, spec = job.log_size(trials), job_spec(job, trials, self.ends_s, self.workers)
        channels = _Channels.queues(get_context("spawn"))
        with progress_bar("extract", total) as bar, _executor(self.workers, channels) as executor:
            yield from channels.monitor(_start(executor, self.workers, spec, without_labels(trials), channels), bar)


@dataclass(frozen=True)
class _Channels:
    """What a run and its workers share.

    Attributes
    ----------
    seats : how many workers have begun.
    moved : frames that all of them are through with.
    over : tells them to put down what they have.
    trials : what is still to do; behind the last one a None for each worker.
    said : what became of clips, and what is logged as (level, text).
    """

    local_ranks: Synchronized[int]
    moved: Synchronized[float]
    over: Event
    trials: Queue[Trial | None]
    messages: SimpleQueue[ClipResult | tuple[int, str]]

    @classmethod
    def queues(cls, context: SpawnContext) -> _Channels:
        """Return new ones."""
        return cls(context.Value("i", 0), context.Value("d", 0.0), context.Event(), context.Queue(),
                   context.SimpleQueue())

    def incoming(self) -> Iterator[Trial]:
        """Yield the clips that this worker takes."""
        while (trial := self.trials.get()) is not None:
            yield trial

    def monitor(self, waiting: set[Future[None]], bar: ProgressBar) -> Iterator[ClipResult]:
        """Yield what is done as it is done, log what is logged, and move the meter, until every worker has ended."""
        shown = 0.0
        while waiting:
            ended, waiting = wait(waiting, LOOK_EVERY_S, FIRST_COMPLETED)
            moved = self.moved.value
            if moved > shown:
                bar.advance(moved - shown)
            shown = moved
            yield from self._handle()
            for future in ended:
                future.result()

    def _handle(self) -> Iterator[ClipResult]:
        while not self.messages.empty():
            message = self.messages.get()
            if isinstance(message, ClipResult):
                yield message
            else:
                logging.getLogger("fercache").log(message[0], "%s", message[1])


@contextmanager
def _executor(workers: int, channels: _Channels) -> Iterator[ProcessPoolExecutor]:
    """Yield worker processes; whatever ends the block ends them too."""
    executor = ProcessPoolExecutor(workers, get_context("spawn"), _begin, (channels,))
    try:
        yield executor
    except BrokenProcessPool as error:
        raise BrokenOff("a worker was killed", hint="there may be too little memory: choose fewer --workers and run "
                        "again; what is committed stays") from error
    finally:
        channels.over.set()
        channels.trials.cancel_join_thread()
        executor.shutdown(cancel_futures=True)


def _start(executor: ProcessPoolExecutor, workers: int, spec: JobSpec, trials: Sequence[Trial], channels: _Channels
           ) -> set[Future[None]]:
    """Return the promises of workers that have been started on the trials.

    Notes
    -----
    A Ctrl-C meanwhile comes after it, and to the workers when they have taken their seats.
    """
    for trial in (*largest_first(trials), *[None] * workers):
        channels.trials.put(trial)
    signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)
    try:
        return {executor.submit(_serve, spec) for _ in range(workers)}
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTS)


@dataclass
class _ChildProcess:
    """What a worker process knows of itself."""

    channels: _Channels
    local_rank: int
    busy: bool = False


_child_process: list[_ChildProcess] = []


class _Count(ProgressBar):
    """A meter that the run's own meter follows."""

    def advance(self, amount: float = 1) -> None:
        moved = _child_process[0].channels.moved
        with moved.get_lock():
            moved.value += amount


class _LogForwarder(logging.Handler):
    """Hands what is logged to the run."""

    def emit(self, record: logging.LogRecord) -> None:
        _child_process[0].channels.messages.put((record.levelno, record.getMessage()))


def _begin(channels: _Channels) -> None:
    """Take a seat, and listen for the end of the run."""
    with channels.local_ranks.get_lock():
        _child_process.append(_ChildProcess(channels, channels.local_ranks.value))
        channels.local_ranks.value += 1
    logging.getLogger("fercache").addHandler(_LogForwarder())
    logging.getLogger("fercache").setLevel(logging.INFO)
    signal.signal(signal.SIGINT, _stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTS)
    Thread(target=_listen, daemon=True).start()


def _stop(number: int, frame: object) -> None:
    """Stop what is being worked on; a worker that waits is ended by the run."""
    if _child_process[0].busy:
        raise KeyboardInterrupt


def _listen() -> None:
    """Put down the clips when the run is over, and end where the run has died."""
    child, parent = _child_process[0], parent_process()
    while not child.channels.over.wait(LOOK_EVERY_S) and parent is not None and parent.is_alive():
        continue
    if child.busy:
        os.kill(os.getpid(), signal.SIGINT)
    if not child.channels.over.is_set():
        ends = time.monotonic() + GRACE_S
        while child.busy and time.monotonic() < ends:
            time.sleep(LOOK_EVERY_S)
        os._exit(1)


def _serve(spec: JobSpec) -> None:
    """Do clip after clip, until none is left."""
    from fercache.extraction.resources import open_resources

    child = _child_process[0]
    child.busy = True
    try:
        job = open_job(spec, child.local_rank, child.channels.over.is_set)
        if job.cancel.is_cancelled:  # before nets are loaded for nothing
            for trial in child.channels.incoming():
                child.channels.messages.put(job.pending(trial))
            return
        nets = load_nets(job.config, spec.cnn, spec.faces)
        concurrent = job.config.concurrent_clips or nets.in_flight
        with open_resources(nets, job.cancel, _Count("", None, ""), concurrent) as resources:
            for result in job.run_clips(resources, nets, child.channels.incoming(), concurrent):
                child.channels.messages.put(result)
            if resources.profiler.line():
                logging.getLogger("fercache").info("process %d: %s", child.local_rank + 1, resources.profiler.line())
    finally:
        child.busy = False
