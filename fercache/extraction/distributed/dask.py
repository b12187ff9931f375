"""`--engine dask`: one task per clip, on one machine or many; clips of a dead worker go to other workers."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from math import inf
from threading import Lock, get_ident
from typing import Any, NamedTuple

from fercache.config import ExtractConfig
from fercache.data.base import Trial
from fercache.errors import BrokenOff, InputError, MissingExtra
from fercache.extraction.distributed.processes import ForwardedLog, JobSpec, without_labels
from fercache.extraction.distributed.shard import largest_first
from fercache.extraction.job import ClipResult, ExtractionJob
from fercache.extraction.resources import in_flight
from fercache.runtime import devices
from fercache.runtime.progress import ProgressBar, progress_bar

log = logging.getLogger(__name__)

CONNECT_S = 20.0
# How often a clip is submitted again after an error of the worker, such as a full disk.
RETRIES = 2
# Address of Dask's dashboard: any free port, reachable from this machine only.
DASHBOARD = "127.0.0.1:0"
VERSIONED = ("torch", "numpy", "av", "pillow", "facenet-pytorch")


@dataclass(frozen=True)
class DaskCluster:
    """An engine that runs the clips on Dask workers."""
    # The workers write the store themselves: they must see clips, weights and store under the same paths, or the store
    # at the same URL. Locks on clips keep them apart, like any two runs.

    scheduler: str  # address of a running scheduler; without it workers are started on this machine
    workers: int  # how many to start then
    ends_s: float = inf  # when to stop, in seconds since 1970

    def __call__(self, job: ExtractionJob, trials: Sequence[Trial]) -> Iterator[ClipResult]:
        """Yield the result of each clip. A clip whose worker died repeatedly counts as failed.

        Raises MissingExtra if Dask is not installed; InputError if the scheduler cannot be reached, or a worker has
        another fercache or other files; BrokenOff if the scheduler has ended.
        """
        distributed = _distributed()  # before any clip is opened
        total = job.log_size(trials)
        spec = JobSpec.from_job(job, trials, self.ends_s, 1 if self.scheduler else self.workers)
        with self._client(distributed, job.config) as client, progress_bar("extract", total) as bar:
            _compare_versions(client)
            # pure=False: Dask must not take a clip for the same call of an earlier run and return its old result.
            futures = {client.submit(_extract, spec, trial, pure=False, retries=RETRIES): trial.name
                       for trial in largest_first(without_labels(trials))}
            try:
                yield from _results(futures, bar)
            finally:  # what no worker has begun; running clips end and are committed
                client.cancel([future for future in futures if not future.done()])

    @contextmanager
    def _client(self, distributed: Any, config: ExtractConfig) -> Iterator[Any]:
        """Yield a client of the scheduler, or of newly started local workers."""
        with ExitStack() as stack:
            address: Any = self.scheduler
            if not self.scheduler:
                device, threads = devices.assign_gpu(config.device, config.threads, 0, self.workers)
                clips = config.concurrent_clips or in_flight(devices.resolve_device(device), threads)
                # memory_limit=0: by default Dask pauses and restarts workers whose memory grows.
                address = stack.enter_context(distributed.LocalCluster(
                    n_workers=self.workers, threads_per_worker=clips, processes=True, memory_limit=0,
                    dashboard_address=DASHBOARD, silence_logs=logging.CRITICAL))
            try:
                client = distributed.Client(address, timeout=CONNECT_S)
            except (OSError, ValueError) as error:
                raise InputError(f"no scheduler answers ({error})", where=address,
                                 hint="start one with `dask scheduler`, or leave --scheduler out to start workers on "
                                      "this machine") from error
            yield stack.enter_context(client)


def _compare_versions(client: Any) -> None:
    """Warn about workers whose numeric packages have other versions than here."""
    try:
        by_worker: dict[str, dict[str, str]] = client.run(versions)
    except ImportError as error:
        raise InputError(f"the workers lack fercache ({error})", where=client.scheduler.address,
                         hint="install the same fercache in their environment") from error
    log.info("%s", f"{len(by_worker)} workers" if by_worker else "waiting for the first worker")
    here = versions()
    for worker, theirs in by_worker.items():
        other = [f"{name} {theirs[name]} ({here[name]} here)" for name in here if theirs[name] != here[name]]
        if other:
            log.warning("%s has %s: its features differ from this machine's by float noise", worker, ", ".join(other))


def versions() -> dict[str, str]:
    """Return the versions of the packages that float noise depends on."""
    return {name: version(name) for name in VERSIONED}


class WorkerResult(NamedTuple):
    """The result of a clip, and what was logged meanwhile: (logging level, text)."""

    clip: ClipResult
    log_records: list[tuple[int, str]]


class Worker(NamedTuple):
    """One job in a worker process; `threads` ends the nets and threads that all its clips share."""

    spec: JobSpec
    local_rank: int
    job: ExtractionJob
    threads: ExitStack


_workers: list[Worker] = []
_workers_lock = Lock()


def worker_for(spec: JobSpec, local_rank: int) -> Worker:
    """Return this process's worker for a job; the threads of another job end."""
    # The lock also covers loading: the first clips of a worker start at once, each in a thread.
    with _workers_lock:
        if not _workers or _workers[0][:2] != (spec, local_rank):
            while _workers:
                _workers.pop().threads.close()
            job, threads = spec.open_job(local_rank), ExitStack()
            threads.enter_context(job.resources(ProgressBar("extract", None, "frames")))
            _workers.append(Worker(spec, local_rank, job, threads))
        return _workers[0]


def _extract(spec: JobSpec, trial: Trial) -> WorkerResult:
    """Extract a clip on a Dask worker; a worker runs several clips at once, each in a thread."""
    from distributed import get_worker

    name = get_worker().name  # a number for workers of a LocalCluster, else what the user or Slurm chose
    return extract_logged(worker_for(spec, name % spec.local_ranks if isinstance(name, int) else 0), trial)


def extract_logged(worker: Worker, trial: Trial) -> WorkerResult:
    """Extract a clip and return the result with what this thread logged."""
    records: list[tuple[int, str]] = []
    logger, collector = logging.getLogger("fercache"), ForwardedLog(records.append, get_ident())
    logger.setLevel(logging.INFO)
    logger.addHandler(collector)
    try:
        (result,) = worker.job.run_clips([trial], concurrent=1)
        return WorkerResult(result, records)
    finally:
        logger.removeHandler(collector)


def _results(futures: dict[Any, str], bar: ProgressBar) -> Iterator[ClipResult]:
    """Yield the result of each clip as its task ends."""
    distributed = _distributed()
    for future in distributed.as_completed(futures):
        try:
            done: WorkerResult = future.result()
        except distributed.KilledWorker as error:
            # A clip that kills every worker, such as one too large for the memory, must not end the run.
            message = f"its worker died, {error.allowed_failures + 1} times"
            log.error("%s: %s", futures[future], message)
            yield ClipResult(clip=futures[future], state="failed", message=message)
            continue
        except CancelledError as error:
            raise BrokenOff("the scheduler has ended", hint="start it and run again; committed clips are kept"
                            ) from error
        for level, text in done.log_records:
            logging.getLogger("fercache").log(level, "%s", text)
        bar.advance(done.clip.frames if done.clip.state != "left" else 0)
        yield done.clip


def _distributed() -> Any:
    try:
        import distributed
    except ImportError as error:
        raise MissingExtra("Dask is not installed", where="--engine dask", hint="pip install 'fercache[dask]'"
                           ) from error
    logging.getLogger("distributed").setLevel(logging.ERROR)
    return distributed
