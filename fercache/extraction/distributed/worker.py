"""What a process that works for a run is told, and what it gives back; the same on this machine and on others."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from threading import Lock, get_ident
from typing import TYPE_CHECKING

from fercache import __version__
from fercache.backbones.weights.files import Weights
from fercache.config import ExtractConfig
from fercache.data.base import Trial
from fercache.errors import InputError
from fercache.extraction.cancellation import CancelToken, never_cancelled, over
from fercache.extraction.job import ClipResult, ExtractionJob
from fercache.extraction.resources import Nets, load_nets
from fercache.runtime.progress import ProgressBar
from fercache.runtime.uri import Location
from fercache.store.embedding_store import EmbeddingStore

if TYPE_CHECKING:
    from fercache.extraction.resources import PipelineResources


# How much work a clip is, as far as that is cheap to know, and clips in order of it.

FRAME_BYTES = 10_000
"""Bytes of a video that count as a frame: only the order of clips hangs on it, never a result."""


def estimate_work(trial: Trial) -> int:
    """Return about how many frames a clip has: what its list states, its labels, its pictures, or its bytes.

    Notes
    -----
    Opens nothing, and is the same on each machine that sees the same files and lists.
    """
    if trial.stated:
        return trial.stated
    if trial.labels is not None and len(trial.labels):
        return len(trial.labels)
    try:
        if trial.kind == "crops":
            with os.scandir(trial.path) as entries:
                return sum(1 for _ in entries)
        return 1 + trial.path.stat().st_size // FRAME_BYTES
    except OSError:  # it is told when its turn comes
        return 0


def bundles(trials: Sequence[Trial]) -> list[tuple[int, list[Trial]]]:
    """Return (amount, trials) for each source, the largest first: the people of one video stay together."""
    found: dict[str, list[Trial]] = {}
    for trial in trials:
        found.setdefault(str(trial.path), []).append(trial)
    sized = [(sum(estimate_work(trial) for trial in together), together) for together in found.values()]
    return sorted(sized, key=lambda bundle: (-bundle[0], min(trial.name for trial in bundle[1])))


def largest_first(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials, those of large sources first: what is long must not begin last."""
    return [trial for _, together in bundles(trials) for trial in together]


SAME_FILES = "every worker must see the clips and the cache under the same paths (or give --cache a URL)"


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """What all clips of a run have in common.

    Attributes
    ----------
    config : how; device and threads are those of the machine, and `seats` processes share them.
    seen : a clip that the one who gives the order sees, if there is one.
    ends_s : when clips are left at their next block or segment, in seconds since 1970.
    version : of the fercache that gives the order.
    """

    config: ExtractConfig
    faces: str
    cnn: Weights
    store: Location
    known_sources: tuple[Path, ...]
    ends_s: float = inf
    local_ranks: int = 1
    version: str = __version__


@dataclass(frozen=True, kw_only=True)
class WorkerResult:
    """What became of some clips, and what was said meanwhile: (level of logging, text)."""

    clips: tuple[ClipResult, ...]
    log_records: tuple[tuple[int, str], ...]

    def log_level(self) -> None:
        """Say it here."""
        for level, text in self.log_records:
            logging.getLogger("fercache").log(level, "%s", text)


def job_spec(work: ExtractionJob, trials: Sequence[Trial], ends_s: float, seats: int) -> JobSpec:
    """Return the order for processes that bring `trials` through; `seats` of them share a machine."""
    seen = [trial.path.absolute() for trial in trials if trial.path.exists()]
    store = work.store.path
    return JobSpec(config=work.config, faces=work.faces, cnn=replace(work.cnn, path=work.cnn.path.absolute()),
                 store=store.absolute() if isinstance(store,
                                                      Path) else store, known_sources=tuple(seen[:1]), local_ranks=seats,
                 ends_s=ends_s)


def without_labels(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials as they are sent: by absolute paths, without labels."""
    return [replace(trial, path=trial.path.absolute(), labels=None, video=None) for trial in trials]


def open_job(order: JobSpec, seat: int, stop: Callable[[], bool]) -> ExtractionJob:
    """Return what a process of this machine works with, after a look whether it can carry out the order.

    Parameters
    ----------
    seat : which of the processes that share the machine this is, from 0.
    stop : whether to end, whatever the order says.

    Raises
    ------
    InputError
        This process has another fercache, or does not see the files.
    """
    from fercache.runtime import devices  # torch

    here = platform.node()
    if order.version != __version__:
        raise InputError(f"fercache {__version__} cannot work for fercache {order.version}", where=here,
                         hint="install the same version everywhere")
    for path in (*order.known_sources, order.cnn.path):
        if not path.exists():
            raise InputError(f"{path} is not there", where=here, hint=SAME_FILES)
    if not EmbeddingStore.exists(order.store):
        raise InputError(f"{order.store} is not there", where=here, hint=SAME_FILES)
    device, threads = devices.assign_gpu(order.config.device, order.config.threads, seat, order.local_ranks)
    return ExtractionJob(replace(order.config, device=device, threads=threads),
                         EmbeddingStore.open(order.store, mode="a"),
                order.faces, order.cnn, cancel=CancelToken(lambda: stop() or over(order.ends_s)))


class Worker:
    """A process at work for an order: nets and what all clips share are made once, when the first clip needs them.

    Notes
    -----
    `do` may be called by as many threads as there are to be clips at work at once.
    """

    def __init__(self, order: JobSpec, local_rank: int) -> None:
        self.order, self.local_rank = order, local_rank
        self.work = open_job(order, local_rank, never_cancelled)
        self._open, self._lock = ExitStack(), Lock()
        self._job: tuple[PipelineResources, Nets] | None = None

    def run(self, trial: Trial) -> WorkerResult:
        """Return what became of a clip.

        Raises
        ------
        StoreError, OSError
            The store cannot be written.
        """
        with _listening() as told:
            if self.work.cancel.is_cancelled:  # before nets are loaded for nothing
                clips = [self.work.pending(trial)]
            else:
                clips = list(self.work.run_clips(*self._resources(), [trial], abreast=1))
        return WorkerResult(clips=tuple(clips), log_records=tuple(told))

    def _resources(self) -> tuple[PipelineResources, Nets]:
        from fercache.extraction.resources import open_resources

        with self._lock:
            if self._job is None:
                nets = load_nets(self.work.config, self.order.cnn, self.order.faces)
                silent = ProgressBar("extract", None, "frames")
                self._job = self._open.enter_context(open_resources(nets, self.work.cancel, silent,
                                                                     nets.in_flight)), nets
            return self._job

    def close(self) -> None:
        """End the threads."""
        self._open.close()


_workers: list[Worker] = []
_hiring = Lock()


def worker_for(order: JobSpec, seat: int) -> Worker:
    """Return this process's hand for an order; that of another order is let go."""
    with _hiring:
        if not _workers or (_workers[0].order, _workers[0].local_rank) != (order, seat):
            while _workers:
                _workers.pop().close()
            _workers.append(Worker(order, seat))
        return _workers[0]


class _Listener(logging.Handler):
    """Keeps what its own thread logs."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.thread = get_ident()
        self.records: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self.thread:
            self.records.append((record.levelno, record.getMessage()))


@contextmanager
def _listening() -> Iterator[list[tuple[int, str]]]:
    """Yield a list that takes what fercache logs in this thread."""
    logger, listener = logging.getLogger("fercache"), _Listener()
    logger.setLevel(logging.INFO)
    logger.addHandler(listener)
    try:
        yield listener.records
    finally:
        logger.removeHandler(listener)
