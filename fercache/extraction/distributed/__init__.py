"""Stage one in parts, in several processes of this machine, or on a cluster: one store, whoever fills it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from pathlib import Path

from fercache.config import ExtractConfig
from fercache.data.base import Dataset
from fercache.errors import InputError
from fercache.extraction import cancellation, job
from fercache.extraction.cancellation import over
from fercache.extraction.distributed import shard
from fercache.extraction.distributed.shard import Shard
from fercache.extraction.job import Engine, ExtractionJob, ExtractReport
from fercache.runtime.uri import Location

log = logging.getLogger(__name__)


WORKERS_MOST = 256


@dataclass(frozen=True, kw_only=True)
class LaunchPlan:
    """How stage one is run.

    Attributes
    ----------
    shard : the part to do, None for all of it.
    workers : processes; 0 and 1 are this one alone, None (and 0 for Dask) is one for each GPU.
    dask : whether Dask gives the clips out, and scheduler : where it runs; without one it runs here.
    ends_s : when to stop, in seconds since 1970.
    seat : which of how many processes of this machine this one is, where torchrun started it.
    """

    shard: Shard | None = None
    workers: int | None = 0
    dask: bool = False
    scheduler: str = ""
    ends_s: float = inf
    local_rank: tuple[int, int] = (0, 1)

    @property
    def is_coordinator(self) -> bool:
        """Whether this run, and no other part, tells what is wrong with the data set."""
        return self.shard is None or self.shard.number == 1

    def run(self, dataset: Dataset, config: ExtractConfig, cache: Path, place: Location | None) -> ExtractReport:
        """Return what was done, as `extract.run` does, which says what is raised."""
        config = replace(config, faces=job.resolve_faces(dataset, config))  # of the whole, whatever is in this part
        failures = job.FAILURES
        if self.shard is not None:
            whole, dataset, failures = dataset, self.shard.of_dataset(dataset), self.shard.failures
            log.info("part %d of %d: %d of %d clips", self.shard.number, self.shard.of, len(dataset.trials),
                     len(whole.trials))
        if self.local_rank[1] > 1:
            from fercache.runtime import devices  # torch

            device, threads = devices.assign_gpu(config.device, config.threads, *self.local_rank)
            config = replace(config, device=device, threads=threads)
        report = job.extract_dataset(dataset, config, cache, place, engine=self._engine(), failures=failures,
                             stop=partial(over, self.ends_s))
        if self.shard is None and not report.count("left"):
            shard.forget_lists(report.failures_at.parent)
        return report

    def _engine(self) -> Engine:
        """Return what brings the clips through."""
        workers = self.workers
        if workers is None or (self.dask and not workers):
            from fercache.runtime import devices  # torch

            workers = devices.gpus()
        if self.dask:
            from fercache.extraction.distributed.dask import DaskCluster

            return DaskCluster(self.scheduler, max(1, workers), self.ends_s)
        if workers > 1:
            from fercache.extraction.distributed.processes import ProcessPool

            return ProcessPool(workers, self.ends_s)
        return ExtractionJob.run_all


@dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """What a user may type about the way: the flags of `fercache extract`."""

    engine: str = "here"
    scheduler: str = ""
    workers: str = "0"
    shard: str = ""
    time_limit: str = ""

    def way(self, environ: Mapping[str, str], began_s: float) -> LaunchPlan:
        """Return the way that is meant.

        Parameters
        ----------
        environ : environment variables, which ``--shard auto`` asks.
        began_s : from when the time limit counts, in seconds since 1970.

        Raises
        ------
        InputError
            A flag means nothing, or nothing beside another one.
        """
        dask = self.engine == "dask"
        if self.scheduler and not dask:
            raise InputError("only Dask has a scheduler", where="--scheduler", hint="add --engine dask")
        if self.scheduler and self.workers != "0":
            raise InputError("the scheduler's workers are those that it has", where="--workers",
                             hint="leave it out, or leave --scheduler out")
        return LaunchPlan(shard=shard.read_shard(self.shard, environ) if self.shard else None,
                          workers=_workers(self.workers),
                   dask=dask, scheduler=self.scheduler,
                   ends_s=began_s + cancellation.parse_time_limit(self.time_limit) if self.time_limit else inf,
                   local_rank=shard.local_rank(environ) if self.shard == "auto" else (0, 1))


def _workers(text: str) -> int | None:
    """Return the number of processes, None for auto."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) > WORKERS_MOST:
        raise InputError(f"{text!r} is no number of processes", where="--workers",
                         hint=f"a number up to {WORKERS_MOST}, or auto: as many as there are GPUs")
    return int(text)
