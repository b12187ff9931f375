"""InceptionResnetV1 out of a frozen TensorFlow graph, read without TensorFlow."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.util.tensor_util import make_ndarray

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
