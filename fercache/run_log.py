"""What each run of a stage took, noted beside the cache: the report and the model card read it."""

from __future__ import annotations

import datetime
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fercache import __version__
from fercache.errors import FercacheError, InputError
from fercache.runtime import atomic_io

# How many frames a second stage one ran at on this machine: measured by `extract`, told by `check`.

FEWEST_FRAMES = 200
"""Runs over fewer frames are no measurement: loading the nets would be most of it."""
KEPT = 100


@dataclass(frozen=True, kw_only=True)
class ExtractionRate:
    """One measured run of stage one.

    Attributes
    ----------
    faces, backbone : what ran: mtcnn or cropped, and the CNN's name; `views` of each face.
    seconds : of the whole run over these frames, the loading of the nets included.
    when_s : seconds since 1970.
    """

    faces: str
    backbone: str
    precision: str
    device: str
    threads: int
    frames: int
    seconds: float
    when_s: float
    views: int = 1

    @property
    def per_second(self) -> float:
        """Frames a second."""
        return self.frames / self.seconds


def _rates_path(cache: Path) -> Path:
    return cache / "rates.json"


def record_rate(cache: Path, rate: ExtractionRate) -> None:
    """Keep a measurement, if it is over enough frames to be one."""
    if rate.frames >= FEWEST_FRAMES and rate.seconds > 0:
        atomic_io.write_json(_rates_path(cache), [asdict(one) for one in (*every(cache), rate)][-KEPT:])


def every(cache: Path) -> list[ExtractionRate]:
    """Return all measurements, the oldest first; none where the file is absent or is not ours."""
    try:
        return [ExtractionRate(**entry) for entry in atomic_io.read_json(_rates_path(cache))]
    except (OSError, InputError, TypeError):
        return []


def latest_rate(cache: Path, faces: str, backbone: str, views: int) -> ExtractionRate | None:
    """Return the newest measurement of this way to find faces, this CNN and so many views of each face."""
    fits = [rate for rate in every(cache) if (rate.faces, rate.backbone, rate.views) == (faces, backbone, views)]
    return fits[-1] if fits else None


def now_s() -> float:
    """Return seconds since 1970."""
    return time.time()


FORMAT = 1
MOST = 1000
"""Runs that are kept a data set; the oldest go."""


def runs_path(cache: Path, dataset: str) -> Path:
    """Return where the runs over a data set are noted."""
    return cache / "runs" / dataset / "runs.json"


def record_run(cache: Path, dataset: str, stage: str, made: str, seconds: float, **figures: Any) -> None:
    """Note that a run of `stage` that did work ended.

    Parameters
    ----------
    made : name of what it made: a store, a book, a stack run.
    figures : JSON values: frames, clips, fits.

    Notes
    -----
    Names no clip, so that there is nothing in it to forget. A run that was killed is not noted.
    """
    path = runs_path(cache, dataset)
    ended = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    entry = {"stage": stage, "made": made, "seconds": round(seconds, 3), "ended": ended, "fercache": __version__,
             **figures}
    with atomic_io.lock(path.with_suffix(".lock"), wait=True):
        atomic_io.write_json(path, {"format": FORMAT, "runs": [*recorded_runs(cache, dataset), entry][-MOST:]})


def recorded_runs(cache: Path, dataset: str) -> list[dict[str, Any]]:
    """Return the runs over a data set, the oldest first; none where nothing readable was noted."""
    path = runs_path(cache, dataset)
    try:
        value = atomic_io.read_json(path) if path.is_file() else {}
    except (FercacheError, OSError):  # a note that cannot be read stops no stage and no report
        return []
    found = value.get("runs") if isinstance(value, dict) and value.get("format") == FORMAT else None
    return [run for run in found if isinstance(run, dict)] if isinstance(found, list) else []


def total_seconds(runs: list[dict[str, Any]], stage: str, made: str) -> dict[str, float]:
    """Return seconds, frames and number of the runs that went into one result of a stage."""
    worked = [run for run in runs if run.get("stage") == stage and run.get("made") == made]
    return {"runs": len(worked), "seconds": float(sum(run.get("seconds", 0.0) for run in worked)),
            "frames": float(sum(run.get("frames", 0) for run in worked))}
