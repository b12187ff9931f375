"""dlib's face net, ResNet-29 with 128 values: its file format, and the net in torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fercache.backbones.library import Node, Tapped, check_taps
from fercache.backbones.taps import EMBEDDING
from fercache.backbones.weights.files import Weights, read_tensors
from fercache.errors import WeightsError

LEVELS = ((32, 3, False), (64, 4, True), (128, 3, True), (256, 3, True), (256, 1, True))
"""Channels and residual blocks of each level, and whether its first block halves the sides, from the input on."""
NAMES = ("level4", "level3", "level2", "level1", "level0")  # dlib's names of the levels


def kernel_shapes() -> Iterator[tuple[int, int, int, int]]:
    """Yield the shape (out, in, h, w) of each convolution, from the input on."""
    yield 32, 3, 7, 7
    before = 32
    for channels, blocks, _ in LEVELS:
        for _ in range(blocks):
            yield channels, before, 3, 3
            yield channels, channels, 3, 3
            before = channels


def read_dat(path: Path) -> dict[str, NDArray[Any]]:
    """Return the tensors of dlib's file of the net; each affine layer is folded into the convolution before it.

    Raises WeightsError if the file is not that of this net.
    """
    # Layers follow each other from the input on, each with its name first. An integer is a byte with its length and
    # then its bytes, little endian; a tensor is the integers 2 (format), n, k, rows, columns, and float32 values.
    data = path.read_bytes()
    kernels, affines, last = (
        [_tensor(data, found.end()) for found in re.finditer(name, data)]
        for name in (rb"\x05con_4(?=\x01\x02)", rb"\x07affine_(?=\x01\x02)",
                     rb"\x04fc_2\x01\x80\x02\x00\x01(?=\x01\x02)"))  # 128 outputs, 256 inputs
    shapes = list(kernel_shapes())
    sizes = [int(np.prod(shape)) + shape[0] for shape in shapes]
    if [len(kernel) for kernel in kernels] != sizes or len(affines) != len(sizes) or [len(v) for v in last] != [32768]:
        raise WeightsError("not dlib's file of its face net", where=path)
    state: dict[str, NDArray[Any]] = {"linear.weight": np.ascontiguousarray(last[0].reshape(256, 128).T)}
    for i, (values, affine, shape) in enumerate(zip(kernels, affines, shapes, strict=True)):
        gamma, beta = affine.reshape(2, -1)
        bias = values[-shape[0]:]
        state[f"convs.{i}.weight"] = values[:-shape[0]].reshape(shape) * gamma[:, None, None, None]
        state[f"convs.{i}.bias"] = bias * gamma + beta
    return state


def _tensor(data: bytes, at: int) -> NDArray[np.float32]:
    """Return the values of the tensor at an offset, flat."""
    sizes = []
    for _ in range(5):
        length = data[at]
        sizes.append(int.from_bytes(data[at + 1:at + 1 + length], "little"))
        at += 1 + length
    return np.frombuffer(data, "<f4", int(np.prod(sizes[1:])), at)


def load_dlib(weights: Weights, taps: Sequence[str]) -> Tapped:
    """Return the net with these weights and taps, in eval mode.

    Raises InputError for an unknown tap; WeightsError if the file of weights was changed.
    """
    check_taps(taps, [EMBEDDING, *NAMES], weights.path)
    net = DlibNet().eval().requires_grad_(False)
    net.load_state_dict({name: torch.from_numpy(value) for name, value in read_tensors(weights).items()})
    return Tapped(net, weights.card, taps, net)


class DlibNet(nn.Module):
    """The net, from scaled pixels (B, 3, 150, 150) to its nodes: the identity vector and the output of each level."""

    def __init__(self) -> None:
        super().__init__()
        strides = [2]
        for _, blocks, halves in LEVELS:
            strides += [2 if halves and i == 0 else 1 for block in range(blocks) for i in (block, 1)]
        # dlib pads convolutions of stride 1 only.
        self.convs = nn.ModuleList(nn.Conv2d(into, out, side, stride, side // 2 if stride == 1 else 0)
                                   for (out, into, side, _), stride in zip(kernel_shapes(), strides, strict=True))
        self.linear = nn.Linear(256, 128, bias=False)

    def forward(self, x: torch.Tensor) -> dict[str, Node]:
        """Return the nodes by name."""
        convs = iter(self.convs)
        x = nn.functional.max_pool2d(next(convs)(x).relu(), 3, 2)
        nodes: dict[str, Node] = {}
        for name, (_, blocks, halves) in zip(NAMES, LEVELS, strict=True):
            for block in range(blocks):
                values = next(convs)(x).relu()
                values = next(convs)(values)
                if halves and block == 0:
                    x = nn.functional.avg_pool2d(x, 2)
                x = _sum(values, x).relu()
            nodes[name] = Node(x)
        return nodes | {EMBEDDING: Node(vector=self.linear(x.mean(dim=(2, 3))))}


def _sum(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return the sum of two outputs; the smaller one has zeros beyond its channels, rows and columns, as in dlib."""
    channels, rows, columns = (max(one.shape[i], other.shape[i]) for i in (1, 2, 3))
    first, second = (nn.functional.pad(x, (0, columns - x.shape[3], 0, rows - x.shape[2], 0, channels - x.shape[1]))
                     for x in (one, other))
    return first + second
