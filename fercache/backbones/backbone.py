"""The frozen face CNN: crops in, several taps out, in one pass."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fercache.backbones.inception import InceptionNet
from fercache.backbones.onnx import OnnxNet
from fercache.backbones.taps import tap_shapes
from fercache.backbones.weights.files import Weights
from fercache.errors import InputError
from fercache.runtime.devices import bf16_pays, map_threads, resolve_device

log = logging.getLogger(__name__)


BATCHES = {"cpu": 16, "cuda": 256}
"""Crops a batch."""
HALF_MAX = float(np.finfo(np.float16).max)


class Net(Protocol):
    """What a Backbone runs: `shapes` of its taps, and a call on one batch of the fixed size."""

    shapes: dict[str, tuple[int, ...]]

    def __call__(self, crops: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Return {tap: (B, ...) float32} of crops (B, 160, 160, 3)."""


def shapes_of(weights: Weights, taps: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return the shape of a frame's row of each tap; an ONNX model is opened to see it.

    Raises
    ------
    InputError
        An unknown tap; the message lists the known ones.
    """
    return OnnxNet(weights, taps, "cpu", 1).shapes if weights.name == "onnx" else tap_shapes(taps)


class Backbone:
    """A loaded net and its taps; made by `Backbone.load`. `arithmetic` is what its convolutions run in;
    `aside` tells that they run in threads of the backend's own.

    Notes
    -----
    Batches have one fixed size, the last one is padded: a crop's values are bit-equal whatever else is in the batch,
    and however many threads there are. With a ragged last batch they are not.
    """

    def __init__(self, net: Net, device: str, batch: int, arithmetic: str = "float32") -> None:
        self.net, self.device, self.batch, self.arithmetic = net, device, batch, arithmetic
        self.shapes = net.shapes
        self.aside = bool(getattr(net, "aside", False))

    @classmethod
    def load(cls, weights: Weights, taps: Sequence[str], *, precision: str = "float32", device: str = "cpu",
             batch: int | None = None, backend: str = "torch", native: bool = False) -> Backbone:
        """Return the backbone with these weights, ready to embed.

        Parameters
        ----------
        taps : see `tap_shapes`; of an ONNX model, names of its outputs.
        precision : float32, bf16 or fp16, at least; results are averaged and returned in float32 in each case. On a
            processor that is quicker in float32 than in bf16, float32 stands in for bf16.
        batch : crops a batch; by default what suits the device.
        backend : torch or openvino (processors only).
        native : compute in `precision` also where float32 would be quicker.

        Raises
        ------
        InputError
            An unknown tap, a device that is not there, or one that the backend does not know.
        MissingExtra
            The backend is not installed.
        WeightsError
            The weights were altered, or are not this net's.
        """
        device = resolve_device(device)
        size = batch or BATCHES[torch.device(device).type]
        if weights.name == "onnx":
            return cls(OnnxNet(weights, taps, device, size), device, size)
        if precision == "bf16" and device == "cpu" and not native and not bf16_pays():
            log.info("bf16 is slower than float32 on this processor: computed in float32, which is closer too")
            precision = "float32"
        if backend == "openvino":
            if device != "cpu":
                raise InputError(f"the backend openvino runs on cpu, not on {device}", where="backend",
                                 hint="choose --backend torch or --device cpu")
            from fercache.backbones.onnx import OpenVinoNet  # an optional extra

            return cls(OpenVinoNet(weights, taps, precision=precision, batch=size, threads=torch.get_num_threads()),
                       device, size, precision)
        return cls(InceptionNet(weights, taps, precision=precision, device=torch.device(device)), device, size,
                   precision)

    def embed(self, crops: NDArray[np.uint8]) -> dict[str, NDArray[np.float16]]:
        """Return {tap: (n, ...) float16} of crops (n, 160, 160, 3) uint8 RGB; values are clipped to float16's range."""
        return halved(self.embed32(crops))

    def embed_batch(self, crops: NDArray[np.uint8]) -> dict[str, NDArray[np.float16]]:
        """Return what `embed` does, of at most `batch` crops and in the calling thread alone."""
        return halved(self._batch(crops))

    def embed32(self, crops: NDArray[np.uint8], run: Callable[..., list[Any]] = map_threads
                ) -> dict[str, NDArray[np.float32]]:
        """Return {tap: (n, ...) float32}: what `embed` returns, before the cast.

        Parameters
        ----------
        run : computes the batches, as `cores.spread` does.
        """
        out = {tap: np.empty((len(crops), *shape), np.float32) for tap, shape in self.shapes.items()}
        starts = range(0, len(crops), self.batch)
        for start, found in zip(starts, run(lambda s: self._batch(crops[s:s + self.batch]), starts, self.device),
                                strict=True):
            for tap, value in found.items():
                out[tap][start:start + len(value)] = value
        return out

    def _batch(self, crops: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Return {tap: (b, ...) float32} of at most one batch, padded while it is run."""
        padded = np.zeros((self.batch, *crops.shape[1:]), np.uint8)
        padded[:len(crops)] = crops
        return {tap: value[:len(crops)] for tap, value in self.net(padded).items()}


def halved(found: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float16]]:
    """Return values as they are stored, clipped to float16's range."""
    return {tap: np.clip(value, -HALF_MAX, HALF_MAX).astype(np.float16) for tap, value in found.items()}
