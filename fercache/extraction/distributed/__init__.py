"""Stage one in shards, in several processes of this machine, or on a Dask cluster: all fill one store.

Open this file first: `LaunchPlan` chooses among `shard.py`, `processes.py` and `dask.py`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

from fercache.config import ExtractConfig
from fercache.data.base import Dataset
from fercache.errors import InputError
from fercache.extraction import job, run_control, sound
from fercache.extraction.distributed.shard import Shard, forget_lists, local_rank, read_shard
from fercache.extraction.job import Engine, ExtractReport
from fercache.runtime.uri import Location
from fercache.workspace import FAILURES

log = logging.getLogger(__name__)

MAX_WORKERS = 256


@dataclass(frozen=True, kw_only=True)
class LaunchPlan:
    """How stage one is launched."""

    shard: Shard | None = None  # the part to extract, None for all clips
    workers: int | None = 0  # processes; 0 and 1 are this one alone, None (and 0 for Dask) is one per GPU
    dask: bool = False  # whether Dask schedules the clips
    scheduler: str = ""  # its address; without one it runs on this machine
    ends_s: float = inf  # when to stop, in seconds since 1970
    # Number of this process on its machine and how many there are, if torchrun started it.
    local_rank: tuple[int, int] = (0, 1)

    @classmethod
    def from_flags(cls, environ: Mapping[str, str], began_s: float, *, engine: str = "here", scheduler: str = "",
                   workers: str = "0", shard: str = "", time_limit: str = "") -> LaunchPlan:
        """Return the plan for the flags of `fercache extract` as typed.

        `environ`: environment variables, for ``--shard auto``. `began_s`: start of the time limit, in seconds since
        1970. Raises InputError if a flag cannot be read, or contradicts another one.
        """
        dask = engine == "dask"
        if scheduler and not dask:
            raise InputError("only Dask has a scheduler", where="--scheduler", hint="add --engine dask")
        if scheduler and workers != "0":
            raise InputError("a running scheduler has its own workers", where="--workers",
                             hint="leave out --workers or --scheduler")
        if workers != "auto" and not (workers.isdecimal() and int(workers) <= MAX_WORKERS):
            raise InputError(f"{workers!r} is not a number of processes", where="--workers",
                             hint=f"a number up to {MAX_WORKERS}, or auto: as many as there are GPUs")
        return cls(shard=read_shard(shard, environ) if shard else None,
                   workers=None if workers == "auto" else int(workers), dask=dask, scheduler=scheduler,
                   ends_s=began_s + run_control.parse_time_limit(time_limit) if time_limit else inf,
                   local_rank=local_rank(environ) if shard == "auto" else (0, 1))

    @property
    def is_coordinator(self) -> bool:
        """Whether this run, and no other shard, reports the problems of the data set."""
        return self.shard is None or self.shard.number == 1

    def run(self, dataset: Dataset, config: ExtractConfig, cache: Path, features: Location | None) -> ExtractReport:
        """Extract, and return and raise as `job.extract_dataset` does."""
        audio = config.modality == "audio"
        # Decided for the whole set, so that all shards agree whatever clips they hold.
        config = config if audio else replace(config, faces=job.resolve_faces(dataset, config))
        failures = FAILURES
        if self.shard is not None:
            whole, dataset, failures = dataset, self.shard.of_dataset(dataset), self.shard.failures
            log.info("part %d of %d: %d of %d clips", self.shard.number, self.shard.of, len(dataset.trials),
                     len(whole.trials))
        if self.local_rank[1] > 1:
            from fercache.runtime import devices  # torch

            device, threads = devices.assign_gpu(config.device, config.threads, *self.local_rank)
            config = replace(config, device=device, threads=threads)
        extract: Callable[..., ExtractReport] = sound.extract_sound if audio else job.extract_dataset
        report = extract(dataset, config, cache, features, engine=self._engine(), failures=failures,
                         stop=lambda: time.time() >= self.ends_s)
        # A complete run over all clips replaces what the shards reported.
        if not (audio or self.shard or report.count("left")):
            forget_lists(report.failures_at.parent)
        return report

    def _engine(self) -> Engine:
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
        return job.ExtractionJob.run_all
