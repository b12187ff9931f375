"""The same net run by OpenVINO, on processors. Needs the extra `openvino`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from queue import SimpleQueue
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fercache.backbones.inception import Tapped
from fercache.backbones.taps import CROP_PX, tap_shapes
from fercache.backbones.weights import files
from fercache.errors import InputError, MissingExtra

PRECISIONS = {"float32": "f32", "bf16": "bf16"}


class VinoNet:
    """facenet-pytorch's InceptionResnetV1, converted from torch; `shapes` says what a call returns.

    Notes
    -----
    One batch a stream, one thread a stream: batches run side by side, and the result does not depend on how many do.
    In float32 it agrees with torch to a cosine of .99999 on every tap, in bf16 with float32 to .999.
    """

    aside = True

    def __init__(self, source: files.Weights, taps: Sequence[str], *, precision: str, batch: int,
                 threads: int) -> None:
        if precision not in PRECISIONS:
            raise InputError(f"OpenVINO runs {' or '.join(PRECISIONS)}, not {precision}", where="precision",
                             hint="choose one of those, or --backend torch")
        runtime = _runtime()
        self.shapes = tap_shapes(taps)
        shape = (batch, CROP_PX, CROP_PX, 3)
        model = runtime.convert_model(Tapped(source, taps).eval(), input=list(shape),
                                      example_input=torch.zeros(shape, dtype=torch.uint8))
        compiled = runtime.Core().compile_model(model, "CPU", {
            "INFERENCE_PRECISION_HINT": PRECISIONS[precision], "NUM_STREAMS": threads,
            "INFERENCE_NUM_THREADS": threads})
        self.free: SimpleQueue[Any] = SimpleQueue()
        for _ in range(threads):
            self.free.put(compiled.create_infer_request())

    def __call__(self, crops: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Return {tap: (B, ...) float32} of crops (B, 160, 160, 3) uint8; up to `threads` calls run at once."""
        request = self.free.get()
        try:
            request.infer([np.ascontiguousarray(crops)])
            return {tap: np.array(request.get_output_tensor(i).data, np.float32) for i, tap in enumerate(self.shapes)}
        finally:
            self.free.put(request)


def _runtime() -> ModuleType:
    """Return openvino."""
    try:
        import openvino
    except ImportError as error:
        raise MissingExtra("the backend openvino is not installed", hint="pip install 'fercache[openvino]'") from error
    logging.getLogger("openvino").setLevel(logging.ERROR)
    module: ModuleType = openvino
    return module
