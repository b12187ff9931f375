"""Nets that other runtimes execute: ONNX models (extra `onnx`), and torch's nets in OpenVINO (extra `openvino`)."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory, gettempdir
from types import ModuleType, SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from fercache.backbones.inception import Round, TappedInception, calibration_faces, load_module, quantize
from fercache.backbones.library import Node, in_form, nodes_of, wrong_size
from fercache.backbones.registry import CALIBRATION_SHA256, Card
from fercache.backbones.taps import POOLED, split_tap
from fercache.backbones.weights import protobuf_fields
from fercache.backbones.weights.files import Weights
from fercache.config import fingerprint_of
from fercache.errors import FercacheError, InputError, MissingExtra, WeightsError, first_line
from fercache.runtime import atomic_io

OUTPUT = "output"
NOT_ONNX = "export it again, with its file of external data beside it"
NOT_INT8 = "choose --precision float32 or bf16"


class OnnxNet:
    """An ONNX model whose outputs or inner values are the taps; `shapes` are those of the taps that a call returns."""
    # The model has one float32 input, (B, 3, H, W) or (B, H, W, 3). Values with four dimensions, (B, C, h, w), and with
    # three, (B, N, D), are averaged over positions unless the tap names another form. A model with a fixed batch size
    # runs with that size.

    def __init__(self, session: Any, nodes: dict[str, str], card: Card) -> None:
        self.session, self.nodes, self.card = session, nodes, card
        self.input = session.get_inputs()[0]
        self.own_threads = isinstance(session, OpenVinoSession)
        self.shapes: dict[str, tuple[int, ...]] = {}

    @classmethod
    def load(cls, weights: Weights, taps: Sequence[str], device: str, batch: int, *, precision: str = "float32",
             backend: str = "torch") -> OnnxNet:
        """Return the model, after a trial run with one batch.

        `taps`: its outputs or inner values, each also as NAME-3x3, NAME-map, NAME-cls and NAME-tokens. ``pooled`` is
        what its last fully connected layer reads, ``output`` its first output, unless a value has that name. The
        backend torch means onnxruntime here. Raises InputError if a tap is not a value of the model; MissingExtra if
        onnxruntime or openvino is not installed; WeightsError if the file is not an ONNX model, or its input is not a
        batch of pictures.
        """
        try:
            data = weights.path.read_bytes()
            outputs, inner, last = _values(data)
        except (KeyError, IndexError, ValueError) as error:
            raise WeightsError("not readable as an ONNX model", where=weights.path, hint=NOT_ONNX) from error
        named = {POOLED: last, OUTPUT: outputs[0]} | {name: name for name in (*inner, *outputs)}
        nodes = {tap: named.get(node, node) for tap in taps for node in (tap if tap in named else split_tap(tap)[0],)}
        unknown = [tap for tap, node in nodes.items() if node not in outputs and node not in inner]
        if unknown or not taps or len(set(taps)) != len(taps):
            what = f"{unknown[0]!r} is no output of the model" if unknown else "taps must be named, each once"
            raise InputError(what, where=weights.path, hint=f"choose with --taps from its outputs: "
                             f"{', '.join(outputs)}; or one of its {len(inner)} inner values")
        # The values to read, as outputs. Protobuf merges a message with one that follows it.
        data += b"".join(_message(7, _message(12, _message(1, node.encode())))
                         for node in dict.fromkeys(nodes.values()) if node not in outputs)
        session = (_openvino_session(data, batch, precision, weights, {*nodes.values()}) if backend == "openvino" else
                   _onnx_session(data, device, weights))
        inputs = session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type != "tensor(float)":
            raise WeightsError("its input is not one float32 batch of pictures (B, 3, H, W) or (B, H, W, 3)",
                               where=weights.path, hint="export it with a single such input")
        net = cls(session, nodes, weights.card)
        fixed = [side for side in inputs[0].shape[1:] if isinstance(side, int) and side != 3]
        if any(side != weights.card.size for side in fixed):
            raise WeightsError(f"its pictures have {fixed[0]} pixels, and the card says size = {weights.card.size}",
                               where=weights.path, hint=f"write size = {fixed[0]} into the card")
        # A trial run: the shapes that a model declares may contain free dimensions.
        size = weights.card.size
        try:
            trial = net(np.zeros((batch, size, size, 3), np.uint8))
        except FercacheError:  # a tap without that form
            raise
        except _runtime_errors() as error:
            raise wrong_size(weights, error) from error
        net.shapes = {tap: trial[tap].shape[1:] for tap in taps}
        return net

    def __call__(self, crops: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Return {tap: (B, ...) float32} of crops (B, S, S, 3) uint8 RGB."""
        pixels = _scaled(crops, self.card, channels_last=self.input.shape[-1] == 3)
        fixed, names = self.input.shape[0], list(dict.fromkeys(self.nodes.values()))
        step = fixed if isinstance(fixed, int) else len(pixels)
        runs = []
        for start in range(0, len(pixels), step):
            padded = np.zeros((step, *pixels.shape[1:]), np.float32)
            padded[:len(pixels) - start] = pixels[start:start + step]
            runs.append(self.session.run(names, {self.input.name: padded}))
        values = {name: torch.from_numpy(np.concatenate(parts)[:len(pixels)].astype(np.float32))
                  for name, parts in zip(names, zip(*runs, strict=True), strict=True)}
        kinds = {name: Node(value) if value.ndim == 4 else nodes_of(value) if value.ndim == 3 else
                 Node(vector=value.flatten(1)) for name, value in values.items()}
        # An output's own name may end like a form.
        return {tap: in_form("" if tap == node else tap, kinds[node]).numpy() for tap, node in self.nodes.items()}


def _scaled(crops: NDArray[np.uint8], card: Card, channels_last: bool) -> NDArray[np.float32]:
    """Return the input of an ONNX model for crops (B, S, S, 3) uint8 RGB."""
    mean, std = (np.array(value, np.float32) * 255 for value in (card.mean, card.std))
    pixels = ((crops[..., ::-1] if card.channels == "bgr" else crops).astype(np.float32) - mean) / std
    return np.ascontiguousarray(pixels if channels_last else pixels.transpose(0, 3, 1, 2), np.float32)


def _values(data: bytes) -> tuple[list[str], set[str], str]:
    """Return the outputs of an ONNX model, its inner values, and what its last fully connected layer reads."""
    # Field numbers are from onnx.proto: ModelProto.graph 7; GraphProto.node 1, output 12; ValueInfoProto.name 1;
    # NodeProto.input 1, output 2, op_type 4.
    graph = dict(protobuf_fields(memoryview(data)))[7]
    outputs, inner, last = list[str](), set[str](), ""
    for number, message in protobuf_fields(graph):
        if number == 12:
            outputs.append(bytes(dict(protobuf_fields(message))[1]).decode())
        elif number == 1:
            fields = list(protobuf_fields(message))
            inner |= {bytes(value).decode() for field, value in fields if field == 2}
            if bytes(dict(fields)[4]) in (b"Gemm", b"MatMul"):
                last = next(bytes(value).decode() for field, value in fields if field == 1)
    return outputs, inner, last


def _message(number: int, content: bytes) -> bytes:
    """Return a field of a protobuf message that holds bytes."""
    size, length = len(content), bytearray()
    while size >= 0x80:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes((number << 3 | 2, *length, size)) + content


def _runtime_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions of OpenVINO, and of onnxruntime, which have no common base class."""
    loaded = sys.modules.get("onnxruntime.capi.onnxruntime_pybind11_state")
    members = vars(loaded).values() if loaded else ()
    return RuntimeError, ValueError, *(e for e in members if isinstance(e, type) and issubclass(e, Exception))


def _onnx_session(data: bytes, device: str, weights: Weights) -> Any:
    """Return a session of onnxruntime on the model."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtra("onnx: weights need onnxruntime, which is not installed",
                           hint="pip install 'fercache[onnx]'") from error
    preferred = ["CUDAExecutionProvider"] if device.startswith("cuda") else []
    providers = [name for name in (*preferred, "CPUExecutionProvider") if name in onnxruntime.get_available_providers()]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # batches run in parallel instead
    # Bytes have no folder, in which external data are searched.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights.path.parent))
    try:
        return onnxruntime.InferenceSession(data, options, providers=providers)
    except _runtime_errors() as error:
        raise WeightsError(f"not readable as an ONNX model ({first_line(error)})", where=weights.path, hint=NOT_ONNX
                           ) from error


# OpenVINO, which is often faster than torch on CPUs.

PRECISIONS = {"float32": "f32", "bf16": "bf16", "int8": "f32"}
"""The precision of all that is not int8, by OpenVINO's name."""
INT8_COSINE = 0.997
"""Least median cosine of a tap in int8 to float32, over the faces of CALIBRATION; facenet-pytorch's net has .999."""
CONVERTED, CONVERTED_KEPT = ".openvino", 4
"""Ending of files of converted models, beside the weights, and how many of one file of weights are kept."""
CONVERSION, DIGEST_BYTES = 1, 32
"""Version of the conversion, which names the files, and bytes of the sha256 that each begins with."""


class OpenVinoSession:
    """A compiled model; `run` and `get_inputs` are those of a session of onnxruntime."""
    # Each stream runs one batch in one thread: batches run in parallel, and their number does not change the values.

    def __init__(self, model: Any, precision: str, threads: int) -> None:
        compiled = openvino_runtime().Core().compile_model(model, "CPU", {
            "INFERENCE_PRECISION_HINT": PRECISIONS[precision], "NUM_STREAMS": threads,
            "INFERENCE_NUM_THREADS": threads})
        self.compiled = compiled
        # A request must not be used by two threads at once, so each call borrows one.
        self.free: SimpleQueue[Any] = SimpleQueue()
        for _ in range(threads):
            self.free.put(compiled.create_infer_request())

    def get_inputs(self) -> list[SimpleNamespace]:
        """Return name, shape and type of each input."""
        return [SimpleNamespace(name=port.get_any_name(), shape=list(port.get_shape()),
                                type="tensor(float)" if port.get_element_type().get_type_name() == "f32" else "other")
                for port in self.compiled.inputs]

    def run(self, names: Sequence[str] | None, feed: dict[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
        """Return the outputs with these names, or all in their order; as many calls as threads run at once."""
        request = self.free.get()
        try:
            request.infer(list(feed.values()))
            ports = range(len(self.compiled.outputs)) if names is None else names
            tensors = [request.get_output_tensor(port) if names is None else request.get_tensor(port) for port in ports]
            return [np.array(tensor.data, np.float32) for tensor in tensors]
        finally:
            self.free.put(request)


class OpenVinoNet:
    """A torch net, exported to OpenVINO; `shapes` are those of the taps that a call returns."""
    # In float32, every tap of facenet-pytorch's net agrees with torch to a cosine of .99999; bf16 agrees with float32
    # to .999, int8 to .998.

    own_threads = True

    def __init__(self, session: OpenVinoSession, shapes: dict[str, tuple[int, ...]]) -> None:
        self.session, self.shapes = session, shapes

    @classmethod
    def load(cls, source: Weights, taps: Sequence[str], *, precision: str, batch: int, threads: int) -> OpenVinoNet:
        """Return the net with these weights, compiled for `threads` calls at the same time.

        Raises MissingExtra if openvino is not installed.
        """
        shape = [batch, source.card.size, source.card.size, 3]
        try:
            model = _converted(source, [list(taps), precision, shape], partial(_export, source, taps, precision, shape))
        except FercacheError:
            raise
        except (RuntimeError, IndexError) as error:
            raise WeightsError(f"OpenVINO cannot convert it ({first_line(error)})", where=source.path,
                               hint="choose --backend torch") from error
        shapes = {tap: tuple(port.get_shape())[1:] for tap, port in zip(taps, model.outputs, strict=True)}
        return cls(OpenVinoSession(model, precision, threads), shapes)

    def __call__(self, crops: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Return {tap: (B, ...) float32} of crops (B, S, S, 3) uint8."""
        return dict(zip(self.shapes, self.session.run(None, {"": np.ascontiguousarray(crops)}), strict=True))


def _converted(weights: Weights, key: list[Any], convert: Callable[[], Any]) -> Any:
    """Return OpenVINO's model of weights, from the file of an earlier call or from `convert`, which takes 5 to 11 s."""
    # The folder of other weights (timm, hf) is not fercache's, so nothing is written there.
    runtime, path, data = openvino_runtime(), None, memoryview(b"")
    if weights.path.is_file():
        versions = [CONVERSION, torch.__version__, runtime.__version__, CALIBRATION_SHA256]
        name = fingerprint_of([weights.sha256, weights.card.settings(), *key, *versions])[:12]
        path = weights.path.with_name(f"{weights.path.stem}-{name}{CONVERTED}")
        with suppress(OSError):
            data = memoryview(path.read_bytes())
    if not data or sha256(data[DIGEST_BYTES:]).digest() != data[:DIGEST_BYTES]:
        model = convert()
        try:
            with TemporaryDirectory() as folder:
                files = [Path(folder) / name for name in ("net.xml", "net.bin")]
                runtime.serialize(model, *map(str, files))
                body = msgspec.msgpack.encode([file.read_bytes() for file in files])
        except (OSError, RuntimeError) as error:  # OpenVINO's errors of files are RuntimeErrors
            raise InputError(f"the converted net cannot be written ({error})", where=gettempdir(),
                             hint="free space there, set TMPDIR, or choose --backend torch") from error
        data = memoryview(sha256(body).digest() + body)
        if path is not None:
            with suppress(OSError, InputError):  # a full or read-only disk must not fail the run
                atomic_io.write_bytes(path, bytes(data))
                others = path.parent.glob(f"{weights.path.stem}-*{CONVERTED}")
                for old in sorted(others, key=lambda file: file.stat().st_mtime)[:-CONVERTED_KEPT]:
                    old.unlink(missing_ok=True)
    # Also after a conversion: the model before it was written need not compute the same bits.
    return runtime.Core().read_model(*msgspec.msgpack.decode(data[DIGEST_BYTES:], type=tuple[bytes, bytes]))


def _export(weights: Weights, taps: Sequence[str], precision: str, shape: list[int]) -> Any:
    """Return OpenVINO's model of a torch net from pixels, of this shape, to taps."""
    net, _ = load_module(weights, taps)
    # Given a module, OpenVINO runs torch.jit.trace, which torch 2.14 deprecates: give it an exported program.
    with torch.inference_mode(mode=False), torch.no_grad():
        program = torch.export.export(quantize(net) if isinstance(net, TappedInception) and precision == "int8"
                                      else net, (torch.zeros(shape, dtype=torch.uint8),), strict=False)
    with warnings.catch_warnings():
        # While OpenVINO decomposes the program, torch 2.13 warns of a deprecated class that torch itself uses.
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        # With the shape given again: an exported program alone leaves the outputs' shapes dynamic.
        model = openvino_runtime().convert_model(program, input=shape)
    if precision == "int8":
        if not isinstance(net, TappedInception):
            model = _quantized(model, calibration_faces(weights.card.size), weights)
        # Of bytes the first convolution would be int8 too once the model is read from a file, and not before.
        model.get_parameters()[0].set_element_type(openvino_runtime().Type.f32)
        model.validate_nodes_and_infer_types()
    return model


def _openvino_session(data: bytes, batch: int, precision: str, weights: Weights, taps: set[str]) -> OpenVinoSession:
    """Return OpenVINO's session on an ONNX model, for batches of that size."""
    try:
        model = openvino_runtime().Core().read_model(data)
        shape = model.inputs[0].get_partial_shape()
        size = weights.card.size
        last = shape[3].is_static and shape[3].get_length() == 3
        if not shape[0].is_static:
            model.reshape([batch, size, size, 3] if last else [batch, 3, size, size])
        if precision == "int8":
            model = _quantized(model, _scaled(calibration_faces(size), weights.card, last), weights, taps)
        return OpenVinoSession(model, precision, torch.get_num_threads())
    except (RuntimeError, IndexError) as error:
        raise WeightsError(f"OpenVINO cannot read the model ({first_line(error)})", where=weights.path,
                           hint="choose --backend torch, which runs it in onnxruntime") from error


def _quantized(model: Any, faces: NDArray[Any], weights: Weights, taps: set[str] | None = None) -> Any:
    """Return a model in which all convolutions but the first can be int8: kernels and inputs have up to 256 values.

    Raises InputError if the model has no such convolutions, or its taps change too much.

    Parameters
    ----------
    faces : (n, ...) input of the model, from which the ranges come.
    taps : names of the outputs that are used; by default all are.
    """
    runtime = openvino_runtime()
    ops, size = runtime.opset1, model.inputs[0].get_shape()[0]
    layers = [op for op in model.get_ordered_ops() if op.get_type_name() in ("Convolution", "GroupConvolution")
              and op.input_value(1).get_node().get_type_name() == "Constant"][1:]
    if not layers:
        raise InputError("int8 is for nets of convolutions, which this is not", where=weights.path, hint=NOT_INT8)
    batches = np.resize(faces, (-(-len(faces) // size), size, *faces.shape[1:]))

    def run(outputs: list[Any]) -> list[NDArray[np.float32]]:
        session = OpenVinoSession(runtime.Model(outputs, model.get_parameters(), "int8"), "float32", 1)
        return [np.stack(values) for values in zip(*(session.run(None, {"": part}) for part in batches), strict=True)]

    def key(value: Any) -> tuple[str, int]:
        return value.get_node().get_name(), value.get_index()

    used = [result.input_value(0) for result in model.get_results()
            if taps is None or taps & result.input_value(0).get_names()]
    exact = run(used)
    sources = {key(value): value for value in (layer.input_value(0) for layer in layers)}
    extremes = run([reduce(value, np.arange(len(value.get_partial_shape())), False).output(0)
                    for value in sources.values() for reduce in (ops.reduce_min, ops.reduce_max)])
    for (name, value), least, most in zip(sources.items(), extremes[::2], extremes[1::2], strict=True):
        rounding = Round(min(float(least.min()), 0), max(float(most.max()), 0))
        ends = (np.float32(-rounding.zero * rounding.step), np.float32((255 - rounding.zero) * rounding.step)) * 2
        sources[name] = ops.fake_quantize(value, *ends, 256).output(0)
    for layer in layers:
        layer.input(0).replace_source_output(sources[key(layer.input_value(0))])
        kernels = layer.input_value(1).get_node().data
        axes = tuple(range(1 if layer.get_type_name() == "Convolution" else 2, kernels.ndim))
        end = np.maximum(np.abs(kernels).max(axes, keepdims=True), 1e-8).astype(np.float32)
        layer.input(1).replace_source_output(
            ops.fake_quantize(layer.input_value(1), -end, end, -end, end, 255).output(0))
    for values in zip(exact, run(used), strict=True):
        one, two = (value.reshape(-1, value[0, 0].size)[:len(faces)].astype(np.float64) for value in values)
        norms = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
        cosine = np.median((one * two).sum(1) / np.maximum(norms, 1e-12))
        if cosine < INT8_COSINE:
            raise InputError(f"int8 changes what the net computes: a cosine of {cosine:.3f} to float32 on {len(faces)} "
                             f"faces, where {INT8_COSINE} is needed", where=weights.path, hint=NOT_INT8)
    return model


def openvino_runtime() -> ModuleType:
    """Return openvino, without its telemetry. Raises MissingExtra if it is not installed."""
    # Unless told otherwise openvino reports each import and conversion to its maker, from a thread that forks: such a
    # child has been seen to hang, and the process then never ends. It works without that package.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise MissingExtra("the backend openvino is not installed", hint="pip install 'fercache[openvino]'") from error
    logging.getLogger("openvino").setLevel(logging.ERROR)
    module: ModuleType = openvino
    return module
