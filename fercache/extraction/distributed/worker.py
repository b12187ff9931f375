"""What a worker process of a run receives and returns, on this machine and on others."""

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


FRAME_BYTES = 10_000
"""Bytes of a video that count as one frame. It decides the order of clips only, never a result."""


def estimate_work(trial: Trial) -> int:
    """Return an estimate of a clip's frames, from its list, its labels, its pictures, or its bytes.

    Notes
    -----
    Opens no file, and is equal on every machine that sees the same files and lists.
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
    except OSError:  # reported when the clip is extracted
        return 0


def bundles(trials: Sequence[Trial]) -> list[tuple[int, list[Trial]]]:
    """Return (frames, trials) for each source, the largest first: the people of one video stay together."""
    found: dict[str, list[Trial]] = {}
    for trial in trials:
        found.setdefault(str(trial.path), []).append(trial)
    sized = [(sum(estimate_work(trial) for trial in together), together) for together in found.values()]
    return sorted(sized, key=lambda bundle: (-bundle[0], min(trial.name for trial in bundle[1])))


def largest_first(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials, those of large sources first: a long clip that starts last would run alone."""
    return [trial for _, together in bundles(trials) for trial in together]


SAME_FILES = "every worker must see the clips and the cache under the same paths (or give --cache a URL)"


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """What all clips of a run share.

    Attributes
    ----------
    config : settings; `local_ranks` processes of a machine share its device and threads.
    known_sources : a clip that the launching process can read, if any; workers check that they can read it too.
    ends_s : when clips stop at their next block or segment, in seconds since 1970.
    version : of the launching fercache.
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
    """Results of some clips, and what was logged meanwhile: (logging level, text)."""

    clips: tuple[ClipResult, ...]
    log_records: tuple[tuple[int, str], ...]

    def replay_log(self) -> None:
        """Log the worker's records in this process."""
        for level, text in self.log_records:
            logging.getLogger("fercache").log(level, "%s", text)


def job_spec(work: ExtractionJob, trials: Sequence[Trial], ends_s: float, local_ranks: int) -> JobSpec:
    """Return the specification for worker processes; `local_ranks` of them share a machine."""
    seen = [trial.path.absolute() for trial in trials if trial.path.exists()]
    store = work.store.path
    return JobSpec(config=work.config, faces=work.faces, cnn=replace(work.cnn, path=work.cnn.path.absolute()),
                   store=store.absolute() if isinstance(store, Path) else store,  # a URL is absolute already
                   known_sources=tuple(seen[:1]), local_ranks=local_ranks, ends_s=ends_s)


def without_labels(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials as workers need them: absolute paths, no labels."""
    return [replace(trial, path=trial.path.absolute(), labels=None, video=None) for trial in trials]


def open_job(spec: JobSpec, local_rank: int, stop: Callable[[], bool]) -> ExtractionJob:
    """Return a worker process's job, after checking that this process can run it.

    Parameters
    ----------
    local_rank : number of this process on its machine, from 0.
    stop : returns whether to end before the time limit.

    Raises
    ------
    InputError
        This process has another fercache, or does not see the files.
    """
    from fercache.runtime import devices  # torch

    here = platform.node()
    if spec.version != __version__:
        raise InputError(f"this worker has fercache {__version__}, the run has {spec.version}", where=here,
                         hint="install the same version everywhere")
    for path in (*spec.known_sources, spec.cnn.path):
        if not path.exists():
            raise InputError(f"{path} does not exist", where=here, hint=SAME_FILES)
    if not EmbeddingStore.exists(spec.store):
        raise InputError(f"{spec.store} does not exist", where=here, hint=SAME_FILES)
    device, threads = devices.assign_gpu(spec.config.device, spec.config.threads, local_rank, spec.local_ranks)
    return ExtractionJob(replace(spec.config, device=device, threads=threads),
                         EmbeddingStore.open(spec.store, mode="a"),
                spec.faces, spec.cnn, cancel=CancelToken(lambda: stop() or over(spec.ends_s)))


class Worker:
    """Runs clips of one job in this process; nets and shared resources are created with the first clip.

    Notes
    -----
    `run` may be called from several threads: one per concurrent clip.
    """

    def __init__(self, spec: JobSpec, local_rank: int) -> None:
        self.order, self.local_rank = spec, local_rank
        self.work = open_job(spec, local_rank, never_cancelled)
        self._open, self._lock = ExitStack(), Lock()
        self._job: tuple[PipelineResources, Nets] | None = None

    def run(self, trial: Trial) -> WorkerResult:
        """Extract a clip and return the result.

        Raises
        ------
        StoreError, OSError
            The store cannot be written.
        """
        with _collected_log() as records:
            if self.work.cancel.is_cancelled:  # loading the nets would be for nothing
                clips = [self.work.pending(trial)]
            else:
                clips = list(self.work.run_clips(*self._resources(), [trial], concurrent=1))
        return WorkerResult(clips=tuple(clips), log_records=tuple(records))

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
_workers_lock = Lock()


def worker_for(spec: JobSpec, local_rank: int) -> Worker:
    """Return this process's worker for a job; the worker of another job is closed."""
    with _workers_lock:
        if not _workers or (_workers[0].order, _workers[0].local_rank) != (spec, local_rank):
            while _workers:
                _workers.pop().close()
            _workers.append(Worker(spec, local_rank))
        return _workers[0]


class _RecordCollector(logging.Handler):
    """Collects what its own thread logs."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.thread = get_ident()
        self.records: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self.thread:
            self.records.append((record.levelno, record.getMessage()))


@contextmanager
def _collected_log() -> Iterator[list[tuple[int, str]]]:
    """Yield a list that receives everything fercache logs in this thread."""
    logger, collector = logging.getLogger("fercache"), _RecordCollector()
    logger.setLevel(logging.INFO)
    logger.addHandler(collector)
    try:
        yield collector.records
    finally:
        logger.removeHandler(collector)
