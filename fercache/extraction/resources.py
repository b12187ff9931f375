"""What all clips of a run share; `acquire` and `detect` raise Cancelled when the run is cancelled."""

from __future__ import annotations

import logging
import platform
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fercache.backbones.backbone import Backbone
from fercache.backbones.weights.files import Weights
from fercache.config import ExtractConfig
from fercache.extraction.batcher import CrossClipBatcher
from fercache.extraction.run_control import PARTS, CancelToken, StageProfiler
from fercache.faces.detector import COLUMNS, Detector
from fercache.runtime.devices import TorchThreadPool, free_memory, resolve_device, serially, set_torch_threads
from fercache.runtime.progress import ProgressBar

log = logging.getLogger(__name__)

# Concurrent clips on a CPU, beyond one per core.
MORE_CLIPS = 2
# Concurrent clips on a GPU: decoding and cropping need many cores.
GPU_CLIPS = 12
# Pictures of blocks under detection; a single block may be larger.
BUDGET_BYTES = 1 << 30
# Pixels of faces that are kept from detection to the CNN, at most; and as a fraction of the memory that is free.
FACES_BYTES, FACES_SHARE = 1 << 30, 1 / 8
# How often a thread that waits for memory checks for cancellation.
TICK_S = 0.1


def in_flight(device: str, threads: int) -> int:
    """Return how many concurrent clips keep a device busy: while one waits for a disk, others have work."""
    return threads + MORE_CLIPS if device == "cpu" else GPU_CLIPS


@dataclass(frozen=True, kw_only=True)
class Nets:
    """The nets of a run and their device; `detector` is None if the pictures are face crops."""

    backbone: Backbone
    detector: Detector | None
    device: str
    threads: int
    # Loads a net with identity vectors if `backbone` has none; None if there is no such net.
    load_identity: Callable[[], Backbone] | None
    provenance: dict[str, Any]  # everything that float noise depends on: equal provenance gives equal bytes
    _loading: threading.Lock = field(default_factory=threading.Lock, init=False)

    @cached_property
    def identity(self) -> Backbone:
        """The net that gives identity vectors: the backbone if it has that tap, else another copy of it."""
        assert self.load_identity is not None
        return self.backbone if self.backbone.card.identity in self.backbone.shapes else self.load_identity()

    def identity_net(self, run: Callable[..., list[Any]]) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]] | None:
        """Return a function from crops (n, S, S, 3) to identity vectors (n, D), or None without such a net."""
        def embed(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
            # `cached_property` has no lock, and several clips may ask for the net at once.
            with self._loading:
                net = self.identity
            return net.embed32(crops, run)[net.card.identity]
        return embed if self.load_identity is not None else None


def load_nets(config: ExtractConfig, cnn: Weights, faces: str) -> Nets:
    """Return detector and CNN, after setting the number of torch's threads; raises what `Backbone.load` does.

    `faces`: mtcnn or cropped.
    """
    device, detector = resolve_device(config.device), None
    threads = set_torch_threads(config.threads)
    backend = config.backend
    if backend == "auto":  # the store's name does not depend on it, so what is installed may decide
        able = device == "cpu" and config.precision != "fp16" and (cnn.net == "facenet" or config.precision == "int8")
        backend = "openvino" if able and find_spec("openvino") else "torch"
    load = partial(Backbone.load, cnn, precision=config.precision, device=device, backend=backend)
    backbone = load(config.taps)
    if faces == "mtcnn":
        detector = Detector(min_face_px=config.min_face_px, min_score=config.min_score, detect_px=config.detect_px,
                            device=device, backend=backend)
    # Other weights may have an embedding that does not identify people.
    load_identity = partial(load, (cnn.card.identity,)) if cnn.card.identity else None
    if detector is not None and load_identity is None:
        log.info("%s weights have no known identity vector: people are distinguished by position only", cnn.name)
    packages = ["torch", "facenet-pytorch", "numpy", "av", "pillow"]
    libraries = {"onnx": "onnxruntime", "timm": "timm", "hf": "transformers"}
    packages += [name for name in (backend, libraries.get(cnn.net)) if name and name not in packages]
    provenance = {"device": device, "threads": threads, "machine": platform.machine(), "backend": backend,
                  "arithmetic": backbone.arithmetic, "versions": {name: version(name) for name in packages}}
    return Nets(backbone=backbone, detector=detector, device=device, threads=threads, load_identity=load_identity,
                provenance=provenance)


class MemoryBudget:
    """A limit on bytes in memory that many threads share."""
    # A request above the limit is granted when nothing else is in use, so no thread waits forever. A thread must
    # release its bytes before it acquires more.

    def __init__(self, limit_bytes: int, cancel: CancelToken) -> None:
        self.limit_bytes, self.cancel = limit_bytes, cancel
        self.in_use = 0
        self._change = threading.Condition()

    def acquire(self, size: int) -> None:
        """Block until `size` bytes are free, and take them."""
        with self._change:
            while self.in_use and self.in_use + size > self.limit_bytes:
                self.cancel.check()
                self._change.wait(TICK_S)
            self.in_use += size

    def try_acquire(self, size: int) -> bool:
        """Take `size` bytes if that many are free, and return whether they were."""
        with self._change:
            fits = self.in_use + size <= self.limit_bytes
            self.in_use += size * fits
        return fits

    def release(self, size: int) -> None:
        """Return bytes to the budget."""
        with self._change:
            self.in_use -= size
            self._change.notify_all()


@dataclass(frozen=True, kw_only=True)
class PipelineResources:
    """What all clips share; `detector` is None if the pictures are face crops."""

    provenance: dict[str, Any]
    torch_threads: TorchThreadPool
    batcher: CrossClipBatcher
    budget: MemoryBudget
    faces: MemoryBudget  # of faces that are kept until the CNN needs them
    profiler: StageProfiler
    cancel: CancelToken
    bar: ProgressBar
    detector: Detector | None
    columns: int  # of its faces: 5, or 15 with landmarks
    embed_faces: Callable[[NDArray[np.uint8]], NDArray[np.float32]] | None

    def detect(self, pictures: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float64]]:
        """Return the faces of each picture, (n, 5), or (n, 15) with landmarks, detected in the calling thread only."""
        self.cancel.check()
        assert self.detector is not None
        return self.detector.detect(pictures, serially, landmarks=self.columns > 5)

    def advance(self, amount: float) -> None:
        """Advance the progress bar, and show the rate of each part on it."""
        self.bar.advance(amount)
        text = self.profiler.line()
        if text:
            self.bar.note(text)


@contextmanager
def open_resources(nets: Nets, cancel: CancelToken, bar: ProgressBar, clips: int) -> Iterator[PipelineResources]:
    """Yield the resources for these nets and `clips` concurrent clips; all threads end with the block."""
    gpu = nets.device != "cpu"
    # Parts whose thread waits for a disk or a GPU: processor time would miss most of it.
    waiting = ["write", *["detect", "cnn"] * gpu]
    with TorchThreadPool(nets.threads, nets.device) as threads:
        lanes = dict.fromkeys(PARTS, nets.threads) | {"detect": threads.count, "cnn": threads.count, "write": clips}
        profiler = StageProfiler(lanes, dict.fromkeys(waiting, time.perf_counter),
                                 "cnn" if nets.backbone.own_threads else "")
        try:
            yield PipelineResources(
                provenance=nets.provenance, torch_threads=threads,
                batcher=CrossClipBatcher(nets.backbone, threads, cancel, profiler),
                budget=MemoryBudget(BUDGET_BYTES, cancel),
                faces=MemoryBudget(min(FACES_BYTES, int(FACES_SHARE * free_memory())), cancel),
                profiler=profiler, cancel=cancel, bar=bar,
                detector=nets.detector, columns=COLUMNS if nets.backbone.card.crop == "aligned" else 5,
                embed_faces=nets.identity_net(threads.run))
        except BaseException:
            cancel.cancel()  # threads that still work would keep the block open
            raise
