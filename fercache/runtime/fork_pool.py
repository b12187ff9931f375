"""Jobs in parallel in forked processes that share the features, with one progress bar."""

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
POLL_S = 1.0


class ForkPool:
    """Runs ``task(job, report)`` for many jobs: on a CPU in forked processes of one thread, on a GPU one by one."""
    # Forked workers share the features that the parent has read. With one thread each, the result does not depend on
    # the number of cores, and the small matrices of a head run two to three times as fast as with many threads. Ctrl-C,
    # or an error in one job, ends all workers at once; what a job wrote durably stays. Workers whose parent was killed
    # end themselves.

    def __init__(self, device: str, threads: int) -> None:
        self.device, self.threads = device, threads
        self.at_once = threads if device == "cpu" else 1

    def run(self, task: Callable[[ForkJob, ReportProgress], ForkResult], jobs: Sequence[ForkJob],
            bar: ProgressBar) -> list[ForkResult]:
        """Return ``task(job, report)`` of each job in order; `report(amount)` counts units of work on the bar.

        Raises BrokenOff if a worker was killed, most likely for lack of memory; what it had finished stays.
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
        # Collect before the fork: garbage with threads, such as a decoder, can only be freed in this process.
        gc.collect()
        workers = ProcessPoolExecutor(min(self.at_once, len(jobs)), context, _begin, (task, jobs, done, os.getpid()))
        waiting: list[Future[Any]] = []
        try:
            waiting += [workers.submit(_work, i) for i in range(len(jobs))]
            _watch(waiting, done, bar)
            return [future.result() for future in waiting]
        except BrokenProcessPool as error:
            raise BrokenOff("a training process was killed", hint="memory may be too small: choose fewer "
                            "taps or --threads 1, and run again; finished heads stay") from error
        finally:
            if not all(future.done() for future in waiting):  # a fit may take many more minutes
                for child in set(active_children()).difference(others):
                    child.kill()
            workers.shutdown(cancel_futures=True)


_state: dict[str, Any] = {}  # task and jobs of a worker, which the fork copies: they need no pickling


def _begin(task: Any, jobs: Any, done: Any, parent: int) -> None:
    gc.freeze()  # objects of the parent are never collected here: only the parent may finalize them
    # Ctrl-C reaches the whole process group; only the parent handles it, and kills the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _state.update(task=task, jobs=jobs, done=done)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_S)
    os._exit(1)


def _work(i: int) -> Any:
    def report_progress(amount: float) -> None:
        with _state["done"].get_lock():
            _state["done"].value += amount
    return _state["task"](_state["jobs"][i], report_progress)


def _watch(waiting: Sequence[Future[Any]], done: Synchronized[float], bar: ProgressBar) -> None:
    """Advance the bar until all jobs are done, or one has failed."""
    shown = 0.0
    left = set(waiting)
    while left:
        finished, left = wait(left, POLL_S)
        now = done.get_obj().value  # without the lock, which a killed worker may never release
        bar.advance(now - shown)
        shown = now
        for future in finished:
            future.result()
