"""Nets that other runtimes execute: ONNX models (extra `onnx`), and the CNN in OpenVINO (extra `openvino`)."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from queue import SimpleQueue
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fercache.backbones.inception import TappedInception, load, quantize
from fercache.backbones.taps import CROP_PX, tap_shapes
from fercache.backbones.weights import files
from fercache.backbones.weights.files import Weights
from fercache.errors import InputError, MissingExtra, WeightsError

CENTER, SCALE = 127.5, 128.0
MAP_DIMENSIONS = 4


class OnnxNet:
    """An ONNX model whose named outputs are the taps; `shapes` are those of the taps that a call returns."""
    # The model has one float32 input, (B, 3, H, W) or (B, H, W, 3) RGB, scaled as (x - 127.5) / 128. Crops are resized
    # if it fixes another size than 160. Outputs with four dimensions, (B, C, h, w), are averaged over positions. A
    # model with a fixed batch size runs with that size.

    def __init__(self, session: Any, taps: Sequence[str]) -> None:
        self.session, self.taps = session, list(taps)
        self.input = session.get_inputs()[0]
        self.shapes: dict[str, tuple[int, ...]] = {}

    @classmethod
    def load(cls, weights: Weights, taps: Sequence[str], device: str, batch: int) -> OnnxNet:
        """Return the model, after a trial run with one batch.

        Raises
        ------
        InputError
            A tap is not an output of the model.
        MissingExtra
            onnxruntime is not installed.
        WeightsError
            The file is not an ONNX model, or its input is not a batch of pictures.
        """
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtra("onnx: weights need onnxruntime, which is not installed",
                               hint="pip install 'fercache[onnx]'") from error
        session = _open(onnxruntime, weights, device)
        names = [output.name for output in session.get_outputs()]
        unknown = [tap for tap in taps if tap not in names]
        if unknown or not taps or len(set(taps)) != len(taps):
            what = f"{unknown[0]!r} is no output of the model" if unknown else "taps must be named, each once"
            raise InputError(what, where=weights.path, hint=f"choose with --taps from its outputs: {', '.join(names)}")
        net = cls(session, taps)
        # A trial run: the shapes that a model declares may contain free dimensions.
        outputs = net(np.zeros((batch, CROP_PX, CROP_PX, 3), np.uint8))
        net.shapes = {tap: outputs[tap].shape[1:] for tap in taps}
        return net

    def __call__(self, crops: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Return {tap: (B, ...) float32} of crops (B, 160, 160, 3) uint8."""
        pixels = self._input_of(crops)
        fixed = self.input.shape[0]
        step = fixed if isinstance(fixed, int) else len(pixels)
        runs = [self._run(pixels[start:start + step], step) for start in range(0, len(pixels), step)]
        values = (np.concatenate(parts)[:len(pixels)] for parts in zip(*runs, strict=True))
        return {tap: np.asarray(value.mean(axis=(2, 3), dtype=np.float64) if value.ndim == MAP_DIMENSIONS else value,
                                np.float32) for tap, value in zip(self.taps, values, strict=True)}

    def _run(self, pixels: NDArray[np.float32], step: int) -> list[NDArray[Any]]:
        """Return the model's outputs for one batch, padded to `step` crops."""
        padded = np.zeros((step, *pixels.shape[1:]), np.float32)
        padded[:len(pixels)] = pixels
        outputs: list[NDArray[Any]] = self.session.run(self.taps, {self.input.name: padded})
        return outputs

    def _input_of(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the crops scaled, in the layout and size of the model's input."""
        channels_last = self.input.shape[-1] == 3
        height, width = self.input.shape[1:3] if channels_last else self.input.shape[2:4]
        x = ((torch.from_numpy(crops).float() - CENTER) / SCALE).permute(0, 3, 1, 2)
        size = [side if isinstance(side, int) else CROP_PX for side in (height, width)]
        if size != [CROP_PX, CROP_PX]:
            x = torch.nn.functional.interpolate(x, size=size, mode="bilinear", antialias=True)
        return np.ascontiguousarray((x.permute(0, 2, 3, 1) if channels_last else x).numpy())


def _open(runtime: ModuleType, weights: Weights, device: str) -> Any:
    # onnxruntime's exceptions have no common base class.
    members = vars(runtime.capi.onnxruntime_pybind11_state).values()
    errors: tuple[type[Exception], ...] = (
        RuntimeError, ValueError, *(e for e in members if isinstance(e, type) and issubclass(e, Exception)))
    preferred = ["CUDAExecutionProvider"] if device.startswith("cuda") else []
    providers = [name for name in (*preferred, "CPUExecutionProvider") if name in runtime.get_available_providers()]
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1  # batches run in parallel instead
    try:
        session = runtime.InferenceSession(str(weights.path), options, providers=providers)
    except errors as error:
        reason = str(error).partition("\n")[0]
        raise WeightsError(f"not readable as an ONNX model ({reason})", where=weights.path,
                           hint="export it again, with its file of external data beside it") from error
    inputs = session.get_inputs()
    if len(inputs) != 1 or len(inputs[0].shape) != MAP_DIMENSIONS or inputs[0].type != "tensor(float)":
        raise WeightsError("its input is not one float32 batch of pictures (B, 3, H, W) or (B, H, W, 3)",
                           where=weights.path, hint="export it with a single such input")
    return session


# The CNN in OpenVINO, which is often faster than torch on CPUs.

PRECISIONS = {"float32": "f32", "bf16": "bf16", "int8": "f32"}
"""The precision of all that is not int8, by OpenVINO's name."""


class OpenVinoNet:
    """facenet-pytorch's InceptionResnetV1, exported from torch; `shapes` are those of the taps that a call returns."""
    # Each stream runs one batch in one thread: batches run in parallel, and their number does not change the values. In
    # float32, every tap agrees with torch to a cosine of .99999; bf16 agrees with float32 to .999, int8 to .998.

    own_threads = True

    def __init__(self, compiled: Any, shapes: dict[str, tuple[int, ...]], threads: int) -> None:
        self.shapes = shapes
        # A request must not be used by two threads at once, so each call borrows one.
        self.free: SimpleQueue[Any] = SimpleQueue()
        for _ in range(threads):
            self.free.put(compiled.create_infer_request())

    @classmethod
    def load(cls, source: files.Weights, taps: Sequence[str], *, precision: str, batch: int,
             threads: int) -> OpenVinoNet:
        """Return the net with these weights, compiled for `threads` calls at the same time.

        Raises
        ------
        InputError
            OpenVINO does not run this precision.
        MissingExtra
            openvino is not installed.
        """
        if precision not in PRECISIONS:
            raise InputError(f"OpenVINO runs {' or '.join(PRECISIONS)}, not {precision}", where="precision",
                             hint="choose one of those, or --backend torch")
        runtime = openvino_runtime()
        shapes = tap_shapes(taps)
        shape = (batch, CROP_PX, CROP_PX, 3)
        # Given a module, OpenVINO runs torch.jit.trace, which torch 2.14 deprecates: give it an exported program.
        net = TappedInception(load(source), taps).eval()
        program = torch.export.export(quantize(net) if precision == "int8" else net,
                                      (torch.zeros(shape, dtype=torch.uint8),), strict=False)
        with warnings.catch_warnings():
            # While OpenVINO decomposes the program, torch 2.13 warns of a deprecated class that torch itself uses.
            warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
            # With the shape given again: an exported program alone leaves the outputs' shapes dynamic.
            model = runtime.convert_model(program, input=list(shape))
        compiled = runtime.Core().compile_model(model, "CPU", {
            "INFERENCE_PRECISION_HINT": PRECISIONS[precision], "NUM_STREAMS": threads,
            "INFERENCE_NUM_THREADS": threads})
        return cls(compiled, shapes, threads)

    def __call__(self, crops: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Return {tap: (B, ...) float32} of crops (B, 160, 160, 3) uint8; up to `threads` calls run at once."""
        request = self.free.get()
        try:
            request.infer([np.ascontiguousarray(crops)])
            return {tap: np.array(request.get_output_tensor(i).data, np.float32) for i, tap in enumerate(self.shapes)}
        finally:
            self.free.put(request)


def openvino_runtime() -> ModuleType:
    """Return openvino.

    Raises
    ------
    MissingExtra
        It is not installed.
    """
    try:
        import openvino
    except ImportError as error:
        raise MissingExtra("the backend openvino is not installed", hint="pip install 'fercache[openvino]'") from error
    logging.getLogger("openvino").setLevel(logging.ERROR)
    module: ModuleType = openvino
    return module
