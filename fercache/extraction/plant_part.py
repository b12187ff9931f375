"""What all clips in flight share: threads, batches, memory, the gauge, the meter."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fercache.extraction.batcher import Mixer
from fercache.extraction.brake_part import Brake
from fercache.extraction.profiler import PARTS, Gauge
from fercache.extraction.resources import Nets
from fercache.extraction.room_part import Room
from fercache.faces.detector import Detector
from fercache.runtime.devices import Crew, serially
from fercache.runtime.progress import Meter

ROOM_BYTES = 1 << 30
"""Pictures of blocks that detection is at work on; one block of a clip may be larger."""


@dataclass(frozen=True, kw_only=True)
class Plant:
    """What all clips share; `detector` is None where the pictures are faces already."""

    crew: Crew
    mixer: Mixer
    room: Room
    gauge: Gauge
    brake: Brake
    bar: Meter
    detector: Detector | None
    look: Callable[[NDArray[np.uint8]], NDArray[np.float32]] | None

    def detect(self, pictures: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float64]]:
        """Return the faces of each picture, (n, 5), found in the calling thread alone.

        Raises
        ------
        Stopped
            The run was asked to end.
        """
        return self._ready().detect(pictures, serially)

    def near(self, pictures: Sequence[NDArray[np.uint8]], places: Sequence[NDArray[np.float64]]
             ) -> list[NDArray[np.float64]]:
        """Return the faces of each picture, (n, 5), at and around some places (n, 4), as `detect` does.

        Raises
        ------
        Stopped
            The run was asked to end.
        """
        return self._ready().near(pictures, places, serially)

    def places(self, picture: NDArray[np.uint8]) -> int:
        """Return around how many places `near` looks in the time that the whole picture takes.

        Raises
        ------
        Stopped
            The run was asked to end.
        """
        return self._ready().places(picture)

    def _ready(self) -> Detector:
        """Return the detector, unless the run was asked to end."""
        self.brake.check()
        assert self.detector is not None
        return self.detector

    def advance(self, amount: float) -> None:
        """Move the meter, and say on it what the parts' rates are."""
        self.bar.advance(amount)
        text = self.gauge.line()
        if text:
            self.bar.note(text)


@contextmanager
def opened(nets: Nets, brake: Brake, bar: Meter, clips: int) -> Iterator[Plant]:
    """Yield a plant with these nets for so many clips at once; its threads have ended when the block has."""
    gpu = nets.device != "cpu"
    elsewhere = {"detect": gpu, "cnn": gpu or nets.backbone.aside}  # the calling thread waits
    with Crew(nets.threads, nets.device) as crew:
        lanes = dict.fromkeys(PARTS, nets.threads) | {"detect": crew.count, "cnn": crew.count, "write": clips}
        clocks = dict.fromkeys(("write", *(part for part, waits in elsewhere.items() if waits)), time.perf_counter)
        gauge = Gauge(lanes, clocks)
        try:
            yield Plant(crew=crew, mixer=Mixer(nets.backbone, crew, brake, gauge), room=Room(ROOM_BYTES, brake),
                        gauge=gauge, brake=brake, bar=bar, detector=nets.detector, look=nets.looker(crew.run))
        except BaseException:
            brake.pull()  # so that what the threads are at ends soon
            raise
