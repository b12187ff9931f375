"""Detector and CNN of a run, loaded once, when the first clip needs them."""

from __future__ import annotations

import logging
import platform
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fercache.backbones.taps_part import IDENTITY
from fercache.backbones.weights.files import Weights
from fercache.backbones.weights.known_part import KNOWN
from fercache.config import ExtractConfig

if TYPE_CHECKING:
    from fercache.backbones.backbone import Backbone
    from fercache.faces.detector import Detector

log = logging.getLogger(__name__)


_loading = threading.Lock()

MORE_CLIPS = 2
"""Clips in flight on a CPU, beyond one a core."""
GPU_CLIPS = 12
"""Clips in flight on a GPU: decoding and cropping is the work of many cores."""




def in_flight(device: str, threads: int) -> int:
    """Return how many clips at once keep a device busy: while one waits, at its end or for a disk, others have work."""
    return threads + MORE_CLIPS if device == "cpu" else GPU_CLIPS


@dataclass(frozen=True, kw_only=True)
class Nets:
    """What runs, and on what; `detector` is None where the pictures are faces already.

    Attributes
    ----------
    teller : loads the net that tells people apart, where it is not `backbone`; None where there is no such net.
    """

    backbone: Backbone
    detector: Detector | None
    device: str
    threads: int
    teller: Callable[[], Backbone] | None

    @property
    def in_flight(self) -> int:
        """How many clips at once keep this device busy."""
        return in_flight(self.device, self.threads)

    @cached_property
    def identity(self) -> Backbone | None:
        """The net that gives identity vectors: the backbone if that is among its taps, else one more of the same."""
        if IDENTITY in self.backbone.shapes and self.teller is not None:
            return self.backbone
        return self.teller() if self.teller is not None else None

    def looker(self, run: Callable[..., list[Any]]) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]] | None:
        """Return what tells people apart: crops (n, 160, 160, 3) -> identity vectors (n, D); None where nothing does.

        Parameters
        ----------
        run : computes the batches, as `cores.spread` does.
        """
        def look(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
            with _loading:
                net = self.identity
            assert net is not None
            return net.embed32(crops, run)[IDENTITY]
        return look if self.teller is not None else None


def load(config: ExtractConfig, cnn: Weights, faces: str) -> Nets:
    """Return detector and CNN.

    Parameters
    ----------
    faces : mtcnn or cropped.

    Raises
    ------
    InputError, MissingExtra, WeightsError
        As `Backbone.load` says.
    """
    from fercache.backbones.backbone import Backbone  # torch: seconds that a cached run saves
    from fercache.runtime.devices import resolve_device, use_threads

    device, detector = resolve_device(config.device), None
    threads = use_threads(config.threads)
    tapped = partial(Backbone.load, cnn, precision=config.precision, device=device, backend=config.backend)
    backbone = tapped(config.taps)
    if faces == "mtcnn":
        from fercache.faces.detector import Detector

        detector = Detector(min_face_px=config.min_face_px, min_score=config.min_score, detect_px=config.detect_px,
                            device=device)
    teller = partial(tapped, (IDENTITY,)) if cnn.name in KNOWN else None
    if detector is not None and teller is None:
        log.info("%s weights: no identity vector is known of them, so place alone tells people apart", cnn.name)
    return Nets(backbone=backbone, detector=detector, device=device, threads=threads, teller=teller)


def provenance(nets: Nets, backend: str) -> dict[str, Any]:
    """Return what float noise depends on: equal provenance gives equal bytes."""
    names = ["torch", "facenet-pytorch", "numpy", "av", "pillow"]
    if backend != "torch":
        names.append(backend)
    return {"device": nets.device, "threads": nets.threads, "machine": platform.machine(), "backend": backend,
            "arithmetic": nets.backbone.arithmetic, "versions": {name: version(name) for name in names}}
