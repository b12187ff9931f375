"""How many frames a second stage one ran at on this machine: measured by `extract`, told by `check`."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

from fercache.errors import InputError
from fercache.runtime import atomic_io

FEWEST_FRAMES = 200
"""Runs over fewer frames are no measurement: loading the nets would be most of it."""
KEPT = 100


@dataclass(frozen=True, kw_only=True)
class Rate:
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


def _path(cache: Path) -> Path:
    return cache / "rates.json"


def record(cache: Path, rate: Rate) -> None:
    """Keep a measurement, if it is over enough frames to be one."""
    if rate.frames >= FEWEST_FRAMES and rate.seconds > 0:
        atomic_io.write_json(_path(cache), [asdict(one) for one in (*every(cache), rate)][-KEPT:])


def every(cache: Path) -> list[Rate]:
    """Return all measurements, the oldest first; none where the file is absent or is not ours."""
    try:
        return [Rate(**entry) for entry in atomic_io.read_json(_path(cache))]
    except (OSError, InputError, TypeError):
        return []


def latest(cache: Path, faces: str, backbone: str, views: int) -> Rate | None:
    """Return the newest measurement of this way to find faces, this CNN and so many views of each face."""
    fits = [rate for rate in every(cache) if (rate.faces, rate.backbone, rate.views) == (faces, backbone, views)]
    return fits[-1] if fits else None


def now_s() -> float:
    """Return seconds since 1970."""
    return time.time()
