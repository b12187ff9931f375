"""The log of past runs, in one file below the cache: what each run took, and how fast stage one was on this machine."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from fercache import __version__
from fercache.config import ExtractConfig
from fercache.errors import InputError
from fercache.runtime import atomic_io
from fercache.workspace import Workspace

VERSION = 1
MIN_FRAMES = 200  # runs over fewer frames are not measured: loading the nets would be most of the time
MAX_RATES = 100
MAX_RUNS = 1000  # runs that are logged per data set; older ones are dropped


class ExtractionRate(msgspec.Struct, frozen=True, kw_only=True):
    """One measured run of stage one."""

    faces: str  # mtcnn or cropped
    backbone: str  # the CNN's name
    precision: str
    device: str
    threads: int
    frames: int
    seconds: float  # of the whole run over these frames, the loading of the nets included
    when_s: float  # seconds since 1970
    views: int = 1  # augmentations of each face
    embed_every: str = "1"  # which frames the CNN saw

    @property
    def per_second(self) -> float:
        """Frames per second."""
        return self.frames / self.seconds


class LoggedRun(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a stage that computed something."""

    dataset: str
    stage: str
    artifact: str  # name of its result: a store, a file of logits, or a stack run
    seconds: float  # duration
    ended: str  # UTC time in ISO 8601
    fercache: str  # version of the package
    frames: int = 0  # frames processed; 0 where the stage has no such count, as in `fits`
    fits: int = 0  # heads trained


class UsedDataset(msgspec.Struct, frozen=True, kw_only=True):
    """A data set that a command read: its name in the cache, and the options that name it, with full paths."""

    name: str
    options: dict[str, Any]


class RunLog(msgspec.Struct, frozen=True, kw_only=True):
    """The content of the file: runs, rates and data sets, the oldest first."""

    version: int = VERSION
    runs: tuple[LoggedRun, ...] = ()
    rates: tuple[ExtractionRate, ...] = ()
    datasets: tuple[UsedDataset, ...] = ()


def load_run_log(cache: Path) -> RunLog:
    """Return the log; an empty one where the file is absent, damaged, or of another version."""
    # The log only informs. An unreadable one must not stop a stage or a report, so it is replaced by the next run.
    try:
        run_log = atomic_io.read_record(Workspace(cache).run_log, RunLog)
    except (InputError, OSError):
        return RunLog()
    return run_log if run_log.version == VERSION else RunLog()


def record_rate(cache: Path, rate: ExtractionRate) -> None:
    """Log a measured rate of stage one, unless it covers too few frames."""
    if rate.frames >= MIN_FRAMES and rate.seconds > 0:
        _update(cache, lambda log: msgspec.structs.replace(log, rates=(*log.rates, rate)[-MAX_RATES:]))


def latest_rate(cache: Path, faces: str, config: ExtractConfig) -> ExtractionRate | None:
    """Return the newest rate of this face finder and of a CNN run like this; None if there is none."""
    wanted = (faces, config.weights, config.augmentations, config.precision, config.embed_every)
    matching = [rate for rate in load_run_log(cache).rates
                if (rate.faces, rate.backbone, rate.views, rate.precision, rate.embed_every) == wanted]
    return matching[-1] if matching else None


def record_run(cache: Path, dataset: str, stage: str, artifact: str, seconds: float, *, frames: int = 0,
               fits: int = 0) -> None:
    """Log a finished run of `stage` that computed something; the parameters are the fields of `LoggedRun`."""
    # The log holds no clip names, so `fercache forget` has nothing to remove from it. A killed run is not logged.
    run = LoggedRun(dataset=dataset, stage=stage, artifact=artifact, seconds=round(seconds, 3), frames=frames,
                    fits=fits,
                    ended=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), fercache=__version__)

    def add(log: RunLog) -> RunLog:
        # The limit counts per data set, so that many runs over one set never push out those of another.
        others = [logged for logged in log.runs if logged.dataset != dataset]
        same = [logged for logged in log.runs if logged.dataset == dataset]
        return msgspec.structs.replace(log, runs=(*others, *[*same, run][-MAX_RUNS:]))

    _update(cache, add)


def record_dataset(cache: Path, name: str, options: dict[str, Any]) -> None:
    """Log that a data set was used; it becomes the last one. Nothing is written if it is that already."""
    used = UsedDataset(name=name, options=options)
    if load_run_log(cache).datasets[-1:] != (used,):
        forget_dataset(cache, name, used)


def forget_dataset(cache: Path, name: str, *instead: UsedDataset) -> None:
    """Remove a data set from the log of those used, and append others."""
    _update(cache, lambda log: msgspec.structs.replace(
        log, datasets=(*(used for used in log.datasets if used.name != name), *instead)))


def recorded_runs(cache: Path, dataset: str) -> list[LoggedRun]:
    """Return the logged runs over a data set, the oldest first; none where the log is not readable."""
    return [run for run in load_run_log(cache).runs if run.dataset == dataset]


def total_seconds(runs: Sequence[LoggedRun], stage: str, artifact: str) -> dict[str, float]:
    """Return number, seconds and frames of the runs that contributed to one result of a stage."""
    matching = [run for run in runs if (run.stage, run.artifact) == (stage, artifact)]
    return {"runs": len(matching), "seconds": float(sum(run.seconds for run in matching)),
            "frames": float(sum(run.frames for run in matching))}


def _update(cache: Path, change: Callable[[RunLog], RunLog]) -> None:
    path = Workspace(cache).run_log
    # Read and write under one lock: two stages that end at the same time must both be logged.
    with atomic_io.lock(path.with_suffix(".lock"), wait=True):
        atomic_io.write_json(path, change(load_run_log(cache)))
