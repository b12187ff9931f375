"""A Dask cluster, of this machine or of many: a clip a task, and the clips of a worker that dies go to others."""

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
"""How often a clip is given out again after an error that is the worker's, not the clip's (its disk is full ...)."""
LOCAL_PORT = "127.0.0.1:0"
"""Of the page that Dask shows on: any that is free, for this machine alone."""
NUMBERS = ("torch", "numpy", "av", "pillow", "facenet-pytorch")
"""Packages whose versions float noise depends on."""


@dataclass(frozen=True)
class DaskCluster:
    """An engine that gives the clips to Dask workers.

    Parameters
    ----------
    scheduler : address of a running one; without it workers are started on this machine.
    workers : how many are started then.
    ends_s : when to stop, in seconds since 1970.

    Notes
    -----
    The workers write the store themselves: they must see clips, weights and store under the same paths, or the store at
    the same URL. The clips' claims keep them apart, as they do with any number of runs.
    """

    scheduler: str
    workers: int
    ends_s: float = inf

    def __call__(self, work: ExtractionJob, trials: Sequence[Trial]) -> Iterator[ClipResult]:
        """Yield what becomes of each clip. A clip whose worker died again and again counts as failed.

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
        total = work.log_size(trials)
        order = job_spec(work, trials, self.ends_s, 1 if self.scheduler else self.workers)
        with self._client(work.config) as client, progress_bar("extract", total) as bar:
            _check_versions(client, order)
            given = {client.submit(_perform, order, trial, pure=False, retries=RETRIES): trial.name
                     for trial in largest_first(without_labels(trials))}
            try:
                yield from _taken(given, bar)
            finally:
                client.cancel([future for future in given if not future.done()])

    @contextmanager
    def _client(self, config: ExtractConfig) -> Iterator[Any]:
        """Yield a client of the scheduler, or of workers of one's own."""
        distributed = _distributed()
        if self.scheduler:
            with _connected(distributed, self.scheduler) as client:
                yield client
            return
        with (distributed.LocalCluster(n_workers=self.workers, threads_per_worker=self._abreast(config),
                                       processes=True, memory_limit=0, dashboard_address=LOCAL_PORT,
                                       silence_logs=logging.CRITICAL) as cluster,
              distributed.Client(cluster) as client):
            yield client

    def _abreast(self, config: ExtractConfig) -> int:
        """Return how many clips a worker of this machine has at work at once."""
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
                         hint="start one with `dask scheduler`, or leave --scheduler out: then workers are started "
                              "here") from error
    with client:
        yield client


def _check_versions(client: Any, order: JobSpec) -> None:
    """Refuse workers with another fercache, and tell of those with other versions of what numbers come from."""
    try:
        found: dict[str, dict[str, str]] = client.run(versions)
    except ImportError as error:
        raise InputError(f"the workers lack fercache ({error})", where=client.scheduler.address,
                         hint="install the same fercache in their environment") from error
    log.info("%s", f"{len(found)} workers" if found else "no worker is there yet: waiting for one")
    mine = versions()
    for worker, theirs in found.items():
        if theirs["fercache"] != order.version:
            raise InputError(f"has fercache {theirs['fercache']}, this is {order.version}", where=worker,
                             hint="install the same version everywhere")
        other = [f"{name} {theirs[name]} ({mine[name]} here)" for name in NUMBERS if theirs[name] != mine[name]]
        if other:
            log.warning("%s has %s: features differ from those made here by float noise", worker, ", ".join(other))


def versions() -> dict[str, str]:
    """Return the versions that a worker's results hang on."""
    return {"fercache": __version__, **{name: version(name) for name in NUMBERS}}


def _perform(order: JobSpec, trial: Trial) -> WorkerResult:
    """Return what became of a clip, on a worker."""
    from distributed import get_worker

    name = get_worker().name
    return worker_for(order, name % order.local_ranks if isinstance(name, int) else 0).run(trial)


def _taken(given: dict[Any, str], bar: ProgressBar) -> Iterator[ClipResult]:
    """Yield what becomes of each clip as its task ends."""
    distributed = _distributed()
    for future in distributed.as_completed(given):
        try:
            done: WorkerResult = future.result()
        except distributed.KilledWorker as error:
            died = f"its worker died, {error.allowed_failures + 1} times"
            log.error("%s: %s", given[future], died)
            yield ClipResult(clip=given[future], state="failed", message=died)
            continue
        except CancelledError as error:
            raise BrokenOff("the scheduler has gone", hint="start it and run again; what is committed stays"
                            ) from error
        done.log_level()
        bar.advance(sum(clip.frames for clip in done.clips if clip.state != "left"))
        yield from done.clips


def _distributed() -> Any:
    """Return Dask's scheduler library, which from here on says errors only."""
    try:
        import distributed
    except ImportError as error:
        raise MissingExtra("Dask is not installed", where="--engine dask", hint="pip install 'fercache[dask]'"
                           ) from error
    logging.getLogger("distributed").setLevel(logging.ERROR)
    return distributed
