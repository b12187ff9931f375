"""The frozen face CNN: face crops in, the values of several taps out, in one pass."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from fercache.backbones.inception import TYPES, TorchNet
from fercache.backbones.onnx import PRECISIONS, OnnxNet, OpenVinoNet
from fercache.backbones.registry import FACENET, Card
from fercache.backbones.taps import tap_shapes
from fercache.backbones.weights.files import Weights
from fercache.errors import InputError
from fercache.runtime.devices import bf16_pays, map_threads, resolve_device

log = logging.getLogger(__name__)

BATCHES = {"cpu": 16, "cuda": 256}  # default crops per batch, by type of device
RUNTIMES = {"torch": tuple(TYPES), "onnxruntime": ("float32",), "openvino": tuple(PRECISIONS)}
"""What runs a net -> its precisions."""
FLOAT16_MAX = float(np.finfo(np.float16).max)


# What a Backbone runs: it has the `shapes` of its taps, and is called with one batch of the fixed size.
Net: TypeAlias = OnnxNet | OpenVinoNet | TorchNet


def shapes_of(weights: Weights, taps: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return the shape of a frame's row of each tap. Opens the model if it is not facenet-pytorch's net.

    Raises InputError for an unknown tap; the message lists the known ones.
    """
    return tap_shapes(taps) if weights.net == "facenet" else Backbone.load(weights, taps, batch=1).shapes


class Backbone:
    """A loaded net with its taps; create it with `Backbone.load`."""
    # All batches have one fixed size, and the last one is padded. So a crop's values are bit-equal for any batch mates
    # and any number of threads, which a shorter last batch would not give.

    def __init__(self, net: Net, device: str, batch: int, arithmetic: str = "float32", card: Card = FACENET) -> None:
        self.net, self.device, self.batch, self.card, self.shapes = net, device, batch, card, net.shapes
        self.arithmetic = arithmetic  # precision in which the convolutions run
        # Whether the net computes in threads of its own, while the calling thread waits.
        self.own_threads = bool(getattr(net, "own_threads", False))

    @classmethod
    def load(cls, weights: Weights, taps: Sequence[str], *, precision: str = "float32", device: str = "cpu",
             batch: int | None = None, backend: str = "torch", native: bool = False) -> Backbone:
        """Return the backbone with these weights.

        Raises InputError for an unknown tap, a missing device, or a device or precision that the backend does not
        support; MissingExtra if the backend is not installed; WeightsError if the weights were changed, or belong to
        another net.

        Parameters
        ----------
        taps : see `tap_shapes`; for an ONNX model, names of its outputs.
        precision : float32, bf16, fp16 or int8 for the convolutions. Means are taken and returned in float32. On a CPU
            where bf16 is slower than float32, bf16 is computed in float32.
        batch : crops per batch; the default depends on the device.
        backend : torch, or openvino (CPUs only).
        native : compute in `precision` even where float32 is faster.
        """
        device = resolve_device(device)
        size = batch or BATCHES[torch.device(device).type]
        if backend == "openvino" and device != "cpu":
            raise InputError(f"the backend openvino supports the CPU only, not {device}", where="backend",
                             hint="choose --backend torch or --device cpu")
        if precision == "bf16" and device == "cpu" and not native and not bf16_pays():
            log.info("bf16 is slower than float32 on this CPU: using float32, which is also more accurate")
            precision = "float32"
        runtime = "onnxruntime" if (weights.net, backend) == ("onnx", "torch") else backend
        if precision not in RUNTIMES[runtime]:
            other = "torch" if backend == "openvino" else "openvino"
            raise InputError(f"{runtime} runs {' or '.join(RUNTIMES[runtime])}, not {precision}", where="precision",
                             hint=f"choose one of those, or --backend {other}")
        net: Net
        if weights.net == "onnx":
            net = OnnxNet.load(weights, taps, device, size, precision=precision, backend=backend)
        elif backend == "openvino":
            net = OpenVinoNet.load(weights, taps, precision=precision, batch=size, threads=torch.get_num_threads())
        else:
            net = TorchNet.load(weights, taps, precision=precision, device=torch.device(device))
        return cls(net, device, size, precision, weights.card)

    def embed(self, crops: NDArray[np.uint8]) -> dict[str, NDArray[np.float16]]:
        """Return {tap: (n, ...) float16} of crops (n, S, S, 3) uint8 RGB, values clipped to float16's range."""
        return to_float16(self.embed32(crops))

    def embed_batch(self, crops: NDArray[np.uint8]) -> dict[str, NDArray[np.float16]]:
        """Return the same as `embed` for at most `batch` crops, computed in the calling thread only."""
        return to_float16(self._batch(crops))

    def embed32(self, crops: NDArray[np.uint8], run: Callable[..., list[Any]] = map_threads
                ) -> dict[str, NDArray[np.float32]]:
        """Return {tap: (n, ...) float32}: the values of `embed` before the cast.

        `run`: computes the batches, as `devices.map_threads` does.
        """
        out = {tap: np.empty((len(crops), *shape), np.float32) for tap, shape in self.shapes.items()}
        starts = range(0, len(crops), self.batch)
        for start, values in zip(starts, run(lambda s: self._batch(crops[s:s + self.batch]), starts, self.device),
                                 strict=True):
            for tap, value in values.items():
                out[tap][start:start + len(value)] = value
        return out

    def _batch(self, crops: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Return {tap: (b, ...) float32} of at most one batch."""
        # Kernels differ by batch size in their last bits, so a short batch runs at full size.
        padded = crops
        if len(crops) < self.batch:
            padded = np.zeros((self.batch, *crops.shape[1:]), np.uint8)
            padded[:len(crops)] = crops
        # Crops at several scales, (n, K, S, S, 3): their mean.
        runs = [self.net(part) for part in (padded.swapaxes(0, 1) if padded.ndim == 5 else [padded])]
        if len(runs) > 1:
            runs = [{tap: np.mean([run[tap] for run in runs], axis=0) for tap in self.shapes}]
        return {tap: value[:len(crops)] for tap, value in runs[0].items()}


def to_float16(values: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float16]]:
    """Return the values as they are stored, clipped to float16's range so that none becomes infinite."""
    return {tap: np.clip(value, -FLOAT16_MAX, FLOAT16_MAX).astype(np.float16) for tap, value in values.items()}
