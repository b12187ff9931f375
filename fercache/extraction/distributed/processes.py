"""`--workers N`: child processes on this machine, each an ordinary extraction job on the same store."""

from __future__ import annotations

import logging
import os
import platform
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import inf
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

from fercache import __version__
from fercache.backbones.weights.files import Weights
from fercache.config import ExtractConfig
from fercache.data.base import Trial
from fercache.errors import BrokenOff, InputError
from fercache.extraction.distributed.shard import largest_first
from fercache.extraction.job import ClipResult, ExtractionJob
from fercache.extraction.run_control import CancelToken, never_cancelled
from fercache.runtime import devices
from fercache.runtime.progress import ProgressBar, progress_bar
from fercache.runtime.uri import Location
from fercache.store.embedding_store import EmbeddingStore

# Seconds that a child may take to stop its clips once the run has ended. Everything durable survives a hard exit.
GRACE_S = 10.0
STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM}


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """What another process needs to run clips of a job."""

    config: ExtractConfig  # settings; the `local_ranks` processes of a machine divide its devices and threads
    faces: str
    # `cnn`, `store`: with absolute paths.
    cnn: Weights
    store: Location
    source: Path | None  # a clip that the launching process can read, if any: other machines must see the same files
    ends_s: float = inf  # when clips stop at their next block or segment, in seconds since 1970
    local_ranks: int = 1
    kind: type[ExtractionJob] = ExtractionJob
    fields: dict[str, Any] = field(default_factory=dict)  # of this kind of job only
    version: str = __version__  # of the launching fercache

    @classmethod
    def from_job(cls, job: ExtractionJob, trials: Sequence[Trial], ends_s: float, local_ranks: int) -> JobSpec:
        """Return the specification of a job for processes of which `local_ranks` share a machine."""
        store = job.store.path
        # Sound that needs no model has the empty path, which exists everywhere.
        weights = job.cnn.path.absolute() if job.cnn.path.name else Path()
        return cls(config=job.config, faces=job.faces, cnn=replace(job.cnn, path=weights),
                   store=store.absolute() if isinstance(store, Path) else store,
                   source=next((trial.path.absolute() for trial in trials if trial.path.exists()), None),
                   ends_s=ends_s, local_ranks=local_ranks, kind=type(job), fields=job.for_process())

    def open_job(self, local_rank: int, stop: Callable[[], bool] = never_cancelled) -> ExtractionJob:
        """Return the job with this process's device and threads.

        `local_rank`: number of this process on its machine, from 0. `stop`: returns whether to end before the time
        limit. Raises InputError if this process has another fercache, or does not see the files.
        """
        here = platform.node()
        if self.version != __version__:
            raise InputError(f"this worker has fercache {__version__}, the run has {self.version}", where=here,
                             hint="install the same version everywhere")
        exist = {self.store: EmbeddingStore.exists(self.store), self.cnn.path: self.cnn.path.exists()}
        if self.source is not None:
            exist[self.source] = self.source.exists()
        for path, exists in exist.items():
            if not exists:
                raise InputError(f"{path} does not exist", where=here, hint="every worker must see the clips and the "
                                 "cache under the same paths (or give --cache a URL)")
        device, threads = devices.assign_gpu(self.config.device, self.config.threads, local_rank, self.local_ranks)
        return self.kind(replace(self.config, device=device, threads=threads),
                         EmbeddingStore.open(self.store, mode="a"), self.faces, self.cnn,
                         cancel=CancelToken(lambda: stop() or time.time() >= self.ends_s), **self.fields)


def without_labels(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials as other processes need them: absolute paths, no labels."""
    return [replace(trial, path=trial.path.absolute(), labels=None, video=None) for trial in trials]


@dataclass(frozen=True)
class ProcessPool:
    """An engine of `workers` child processes, up to the moment `ends_s` (seconds since 1970)."""
    # Each child runs several clips at once, as a single process does, and takes the next clip when one ends, large ones
    # first. The locks on clips keep the children apart from other runs. A child sends results, progress and log records
    # through a pipe of its own; the end of that pipe stops it, whether the run was interrupted, failed or was killed.

    workers: int
    ends_s: float = inf

    def __call__(self, job: ExtractionJob, trials: Sequence[Trial]) -> Iterator[ClipResult]:
        """Yield the result of each clip.

        Raises BrokenOff if a child was killed, most likely for lack of memory; committed clips are kept; or
        the error of a child that is not about one clip, such as a full disk.
        """
        total, spec = job.log_size(trials), JobSpec.from_job(job, trials, self.ends_s, self.workers)
        context = get_context("spawn")  # CUDA does not survive a fork
        queue, taken = largest_first(without_labels(trials)), context.Value("i", 0)
        children: dict[Connection[Any, Any], SpawnProcess] = {}
        try:
            # Children inherit this mask: Ctrl-C and SIGTERM may reach the whole group, but only the parent acts on
            # them, also while the children still import torch.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
            try:
                for local_rank in range(self.workers):
                    pipe, theirs = context.Pipe()
                    child = context.Process(target=_run_child, args=(theirs, spec, local_rank, queue, taken))
                    child.start()
                    theirs.close()  # or the pipe would not end with the child
                    children[pipe] = child
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            with progress_bar("extract", total) as bar:
                yield from _results(children, bar)
        finally:
            for pipe in children:
                pipe.close()
            for child in children.values():
                child.join()


def _results(children: dict[Connection[Any, Any], SpawnProcess], bar: ProgressBar) -> Iterator[ClipResult]:
    """Yield the children's results until all of them have ended, log their records and advance the progress bar."""
    running = set(children)
    while running:
        for pipe in wait(running):
            assert isinstance(pipe, Connection)
            try:
                message = pipe.recv()
            except (EOFError, OSError) as error:  # OSError if it was killed while it sent something
                running.remove(pipe)
                children[pipe].join()
                if children[pipe].exitcode:
                    raise BrokenOff("a worker process was killed", hint="there may be too little memory: choose fewer "
                                    "--workers and run again; committed clips are kept") from error
                continue
            if isinstance(message, ClipResult):
                yield message
            elif isinstance(message, float):
                bar.advance(message)
            elif isinstance(message, BaseException):
                raise message
            else:
                logging.getLogger("fercache").log(message[0], "%s", message[1])


class _ForwardedProgress(ProgressBar):
    """A progress bar that is shown by the parent."""

    def __init__(self, send: Callable[[Any], None]) -> None:
        super().__init__("extract", None, "frames")
        self._send = send

    def advance(self, amount: float = 1) -> None:
        self._send(float(amount))


class ForwardedLog(logging.Handler):
    """Sends level and text of log records, of all threads or of the one named."""

    def __init__(self, send: Callable[[Any], None], thread: int | None = None) -> None:
        super().__init__(logging.INFO)
        self._send, self._thread = send, thread

    def emit(self, record: logging.LogRecord) -> None:
        if self._thread in (None, record.thread):
            self._send((record.levelno, record.getMessage()))


def _run_child(pipe: Connection[Any, Any], spec: JobSpec, local_rank: int, trials: Sequence[Trial],
               taken: Synchronized[int]) -> None:
    """Extract clips until none is left or the parent has ended."""
    stopped, sending = Event(), Lock()

    def send(message: Any) -> None:
        # Several clips send at once. Without a parent this fails, and `_wait_for_end` stops the process.
        with sending, suppress(OSError):
            pipe.send(message)

    def take() -> Iterator[Trial]:
        # One counter for all children, so that a bad clip is tried, and reported, once and not by each of them.
        while not stopped.is_set():
            with taken.get_lock():
                number, taken.value = taken.value, taken.value + 1
            if number >= len(trials):
                return
            yield trials[number]

    Thread(target=_wait_for_end, args=(pipe, stopped), daemon=True).start()
    logger = logging.getLogger("fercache")
    logger.addHandler(ForwardedLog(send))
    logger.setLevel(logging.INFO)
    try:
        job = spec.open_job(local_rank, stopped.is_set)
        with job.resources(_ForwardedProgress(send)) as concurrent:
            for result in job.run_clips(take(), concurrent):
                send(result)
    except Exception as error:  # noqa: BLE001 - raised again in the parent
        error.add_note(traceback.format_exc())  # a pickled exception loses its traceback
        send(error)


def _wait_for_end(pipe: Connection[Any, Any], stopped: Event) -> None:
    """Cancel the clips when the parent closes the pipe or dies, and exit if they do not end soon."""
    with suppress(EOFError, OSError):
        pipe.recv()  # the parent sends nothing: this returns at the pipe's end only
    stopped.set()
    time.sleep(GRACE_S)
    os._exit(1)
