"""Work side by side in forked processes that share the features, with one meter over all of it."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context
from multiprocessing.sharedctypes import Synchronized
from typing import Any, TypeVar

import torch

from fercache.errors import BrokenOff
from fercache.runtime.progress import ProgressBar

ForkJob = TypeVar("ForkJob")
ForkResult = TypeVar("ForkResult")
ReportProgress = Callable[[float], None]
LOOK_EVERY_S = 1.0


class ForkPool:
    """Runs ``task(job, tell)`` for many jobs: on a CPU in forked processes with a thread each, on a GPU in turn.

    Notes
    -----
    Forked workers share the features, which only the parent has read; one thread each makes the result independent of
    the number of cores, and is two to three times the rate of many threads on the small matrices of a head. Ctrl-C, or
    an error of one job, ends them all at once: what a job had made durable stays. Workers whose parent was killed end
    by themselves.
    """

    def __init__(self, device: str, threads: int) -> None:
        self.device, self.threads = device, threads
        self.at_once = threads if device == "cpu" else 1

    def run(self, task: Callable[[ForkJob, ReportProgress], ForkResult], jobs: Sequence[ForkJob],
            bar: ProgressBar) -> list[ForkResult]:
        """Return ``task(job, tell)`` of each job in order; `tell(amount)` counts units of work on the meter.

        Raises
        ------
        BrokenOff
            A worker was killed, for want of memory most likely; what it had finished stays.
        """
        if not jobs:
            return []
        if self.device != "cpu":
            return [task(job, bar.advance) for job in jobs]
        torch.set_num_threads(1)
        try:
            return self._side_by_side(task, jobs, bar)
        finally:
            torch.set_num_threads(self.threads)

    def _side_by_side(self, task: Callable[[ForkJob, ReportProgress], ForkResult], jobs: Sequence[ForkJob],
                      bar: ProgressBar) -> list[ForkResult]:
        context = get_context("fork")
        done: Synchronized[float] = context.Value("d", 0.0)
        others = active_children()
        gc.collect()  # what is thrown away, such as a decoder with threads, can only be taken apart in this process
        workers = ProcessPoolExecutor(min(self.at_once, len(jobs)), context, _begin, (task, jobs, done, os.getpid()))
        waiting: list[Future[Any]] = []
        try:
            waiting += [workers.submit(_work, i) for i in range(len(jobs))]
            _watch(waiting, done, bar)
            return [future.result() for future in waiting]
        except BrokenProcessPool as error:
            raise BrokenOff("a training process was killed", hint="there may be too little memory: choose fewer "
                            "taps or --threads 1, and run again; finished heads are kept") from error
        finally:
            if not all(future.done() for future in waiting):
                _end(others)
            workers.shutdown(cancel_futures=True)


def _end(others: Sequence[Any]) -> None:
    """End the workers, that is, all children but `others`: a fit can take many minutes more."""
    for child in active_children():
        if child not in others:
            child.kill()


_state: dict[str, Any] = {}
"""What a worker works on; it came with the fork, nothing is sent."""


def _begin(task: Any, jobs: Any, done: Any, parent: int) -> None:
    """Make a worker of a forked process: the parent alone hears Ctrl-C, says what ends, and clears up what was its."""
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _state.update(task=task, jobs=jobs, done=done)


def _end_with(parent: int) -> None:
    """End this process when its parent is gone."""
    while os.getppid() == parent:
        time.sleep(LOOK_EVERY_S)
    os._exit(1)


def _work(i: int) -> Any:
    def report_progress(amount: float) -> None:
        with _state["done"].get_lock():
            _state["done"].value += amount
    return _state["task"](_state["jobs"][i], report_progress)


def _watch(waiting: Sequence[Future[Any]], done: Synchronized[float], bar: ProgressBar) -> None:
    """Move the meter until all is done, or one has failed."""
    shown = 0.0
    left = set(waiting)
    while left:
        finished, left = wait(left, LOOK_EVERY_S)
        now = done.get_obj().value  # without the lock, which a killed worker may hold for good
        bar.advance(now - shown)
        shown = now
        for future in finished:
            future.result()
