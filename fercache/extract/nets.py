"""Detector and CNN of a run, loaded once, when the first clip needs them."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from fercache.config import ExtractConfig
from fercache.weights import Weights

if TYPE_CHECKING:
    from fercache.backbones import Backbone
    from fercache.faces import Detector


@dataclass(frozen=True, kw_only=True)
class Nets:
    """What runs, and on what; `detector` is None where the pictures are faces already."""

    backbone: Backbone
    detector: Detector | None
    device: str
    threads: int


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
    from fercache.backbones import Backbone  # torch: seconds that a cached run saves
    from fercache.cores import resolve_device, use_threads

    device, detector = resolve_device(config.device), None
    threads = use_threads(config.threads)
    backbone = Backbone.load(cnn, config.taps, precision=config.precision, device=device, backend=config.backend)
    if faces == "mtcnn":
        from fercache.faces import Detector

        detector = Detector(min_face_px=config.min_face_px, min_score=config.min_score, detect_px=config.detect_px,
                            device=device)
    return Nets(backbone=backbone, detector=detector, device=device, threads=threads)


def provenance(nets: Nets, backend: str) -> dict[str, Any]:
    """Return what float noise depends on: equal provenance gives equal bytes."""
    names = ["torch", "facenet-pytorch", "numpy", "av", "pillow"]
    if backend != "torch":
        names.append(backend)
    return {"device": nets.device, "threads": nets.threads, "machine": platform.machine(), "backend": backend,
            "versions": {name: version(name) for name in names}}
