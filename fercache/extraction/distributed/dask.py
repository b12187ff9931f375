"""A Dask cluster, of one machine or many: one task per clip; clips of a dead worker go to other workers."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from math import inf
from typing import Any

from fercache import __version__
from fercache.config import ExtractConfig
from fercache.data.base import Trial
from fercache.errors import BrokenOff, InputError, MissingExtra
from fercache.extraction.distributed.worker import (
    JobSpec,
    WorkerResult,
    job_spec,
    largest_first,
    without_labels,
    worker_for,
)
from fercache.extraction.job import ClipResult, ExtractionJob
from fercache.extraction.resources import in_flight
from fercache.runtime.progress import ProgressBar, progress_bar

log = logging.getLogger(__name__)


CONNECT_S = 20.0
RETRIES = 2
"""How often a clip is submitted again after an error of the worker, such as a full disk."""
DASHBOARD = "127.0.0.1:0"
"""Address of Dask's dashboard: any free port, reachable from this machine only."""
VERSIONED = ("torch", "numpy", "av", "pillow", "facenet-pytorch")
"""Packages whose versions float noise depends on."""


@dataclass(frozen=True)
class DaskCluster:
    """An engine that runs the clips on Dask workers.

    Parameters
    ----------
    scheduler : address of a running scheduler; without it workers are started on this machine.
    workers : how many to start then.
    ends_s : when to stop, in seconds since 1970.

    Notes
    -----
    The workers write the store themselves: they must see clips, weights and store under the same paths, or the store at
    the same URL. Locks on clips keep them apart, as with any number of runs.
    """

    scheduler: str
    workers: int
    ends_s: float = inf

    def __call__(self, job: ExtractionJob, trials: Sequence[Trial]) -> Iterator[ClipResult]:
        """Yield the result of each clip. A clip whose worker died repeatedly counts as failed.

        Raises
        ------
        MissingExtra
            Dask is not installed.
        InputError
            The scheduler cannot be reached, or a worker has another fercache or other files.
        BrokenOff
            The scheduler has gone.
        """
        _distributed()
        total = job.log_size(trials)
        spec = job_spec(job, trials, self.ends_s, 1 if self.scheduler else self.workers)
        with self._client(job.config) as client, progress_bar("extract", total) as bar:
            _check_versions(client, spec)
            futures = {client.submit(_perform, spec, trial, pure=False, retries=RETRIES): trial.name
                     for trial in largest_first(without_labels(trials))}
            try:
                yield from _results(futures, bar)
            finally:
                client.cancel([future for future in futures if not future.done()])

    @contextmanager
    def _client(self, config: ExtractConfig) -> Iterator[Any]:
        """Yield a client of the scheduler, or of newly started local workers."""
        distributed = _distributed()
        if self.scheduler:
            with _connected(distributed, self.scheduler) as client:
                yield client
            return
        with (distributed.LocalCluster(n_workers=self.workers, threads_per_worker=self._concurrent_clips(config),
                                       processes=True, memory_limit=0, dashboard_address=DASHBOARD,
                                       silence_logs=logging.CRITICAL) as cluster,
              distributed.Client(cluster) as client):
            yield client

    def _concurrent_clips(self, config: ExtractConfig) -> int:
        """Return how many clips a worker on this machine runs at once."""
        from fercache.runtime import devices  # torch

        device, threads = devices.assign_gpu(config.device, config.threads, 0, self.workers)
        return config.concurrent_clips or in_flight(devices.resolve_device(device), threads)


@contextmanager
def _connected(distributed: Any, address: str) -> Iterator[Any]:
    """Yield a client of a running scheduler."""
    try:
        client = distributed.Client(address, timeout=CONNECT_S)
    except (OSError, ValueError) as error:
        raise InputError(f"no scheduler answers ({error})", where=address,
                         hint="start one with `dask scheduler`, or leave --scheduler out to start workers on this "
                              "machine") from error
    with client:
        yield client


def _check_versions(client: Any, spec: JobSpec) -> None:
    """Raise InputError for workers with another fercache; warn about other versions of numeric packages."""
    try:
        found: dict[str, dict[str, str]] = client.run(versions)
    except ImportError as error:
        raise InputError(f"the workers lack fercache ({error})", where=client.scheduler.address,
                         hint="install the same fercache in their environment") from error
    log.info("%s", f"{len(found)} workers" if found else "waiting for the first worker")
    mine = versions()
    for worker, theirs in found.items():
        if theirs["fercache"] != spec.version:
            raise InputError(f"has fercache {theirs['fercache']}, this is {spec.version}", where=worker,
                             hint="install the same version everywhere")
        other = [f"{name} {theirs[name]} ({mine[name]} here)" for name in VERSIONED if theirs[name] != mine[name]]
        if other:
            log.warning("%s has %s: its features differ from this machine's by float noise", worker, ", ".join(other))


def versions() -> dict[str, str]:
    """Return the versions that a worker's results depend on."""
    return {"fercache": __version__, **{name: version(name) for name in VERSIONED}}


def _perform(spec: JobSpec, trial: Trial) -> WorkerResult:
    """Extract a clip on a worker and return the result."""
    from distributed import get_worker

    name = get_worker().name
    return worker_for(spec, name % spec.local_ranks if isinstance(name, int) else 0).run(trial)


def _results(futures: dict[Any, str], bar: ProgressBar) -> Iterator[ClipResult]:
    """Yield the result of each clip as its task ends."""
    distributed = _distributed()
    for future in distributed.as_completed(futures):
        try:
            done: WorkerResult = future.result()
        except distributed.KilledWorker as error:
            died = f"its worker died, {error.allowed_failures + 1} times"
            log.error("%s: %s", futures[future], died)
            yield ClipResult(clip=futures[future], state="failed", message=died)
            continue
        except CancelledError as error:
            raise BrokenOff("the scheduler has gone", hint="start it and run again; committed clips are kept"
                            ) from error
        done.replay_log()
        bar.advance(sum(clip.frames for clip in done.clips if clip.state != "left"))
        yield from done.clips


def _distributed() -> Any:
    """Import and return Dask's scheduler library, with its log reduced to errors."""
    try:
        import distributed
    except ImportError as error:
        raise MissingExtra("Dask is not installed", where="--engine dask", hint="pip install 'fercache[dask]'"
                           ) from error
    logging.getLogger("distributed").setLevel(logging.ERROR)
    return distributed
