"""InceptionResnetV1, only as deep as the deepest tap, its BatchNorm folded into the convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fercache.backbones import facenet
from fercache.backbones.taps import BLOCKS, EMBEDDING, GRID, block_of, tap_shapes
from fercache.backbones.weights import files
from fercache.runtime.devices import resolve_threads

STEM = ("conv2d_1a", "conv2d_2a", "conv2d_2b", "maxpool_3a", "conv2d_3b", "conv2d_4a")
STEPS = (*STEM, *BLOCKS)
TYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CENTRE, SCALE = 127.5, 128.0
"""facenet-pytorch's fixed standardisation of pixels: (x - 127.5) / 128."""


class TappedInception(nn.Module):
    """InceptionResnetV1 as a net from pixels to taps, in float32 until `ready` says otherwise.

    Attributes
    ----------
    wanted : tap -> (block, form), in the order in which `forward` returns them.
    """

    def __init__(self, source: files.Weights, taps: Sequence[str]) -> None:
        super().__init__()
        self.wanted = {tap: block_of(tap) for tap in taps}
        net = load(source)
        blocks = [STEPS.index(block) for block, _ in self.wanted.values() if block != EMBEDDING]
        depth = len(STEPS) if EMBEDDING in taps else 1 + max(blocks)
        self.names = STEPS[:depth]
        self.parts = nn.ModuleList(fold(getattr(net, name)) for name in self.names)
        self.linear, self.norm = net.last_linear, net.last_bn
        self.arithmetic = torch.float32

    def ready(self, device: torch.device, arithmetic: torch.dtype) -> TappedInception:
        """Return the net where and in what it will run; means and the identity vector stay in float32."""
        self.to(device)
        self.parts.to(arithmetic)
        for value in self.parts.parameters():
            if value.dim() == 4:  # a kernel
                value.data = value.data.contiguous(memory_format=torch.channels_last)
        self.arithmetic = arithmetic
        return self

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return each tap (B, ...) of pixels (B, 160, 160, 3) in 0..255."""
        x = ((pixels.float() - CENTRE) / SCALE).permute(0, 3, 1, 2).to(self.arithmetic)
        kept: dict[str, torch.Tensor] = {}
        for name, part in zip(self.names, self.parts, strict=True):
            x = part(x)
            for tap, (block, form) in self.wanted.items():
                if block == name:
                    kept[tap] = pooled(x, form)
        if EMBEDDING in self.wanted:
            kept[EMBEDDING] = nn.functional.normalize(self.norm(self.linear(pooled(x, ""))), p=2.0, dim=1)
        return tuple(kept[tap] for tap in self.wanted)


class InceptionNet:
    """facenet-pytorch's InceptionResnetV1 with its taps; `shapes` says what a call returns.

    Notes
    -----
    The net's convolutions run in `precision`; means and the identity vector are taken in float32. Embedding equals
    the library's eager float32 up to rounding (cosine over .99999 on every tap).
    """

    def __init__(self, source: files.Weights, taps: Sequence[str], *, precision: str, device: torch.device) -> None:
        self.shapes = tap_shapes(taps)
        self.device = device
        self.net = TappedInception(source, taps).eval().ready(device, TYPES[precision])
        resolve_threads(str(device))

    @torch.inference_mode()
    def __call__(self, crops: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Return {tap: (B, ...) float32} of crops (B, 160, 160, 3) uint8; bytes, not floats, cross to the device."""
        held = torch.from_numpy(np.ascontiguousarray(crops))
        if self.device.type == "cuda":
            held = held.pin_memory().to(self.device, non_blocking=True)
        return {tap: value.cpu().numpy() for tap, value in zip(self.shapes, self.net(held), strict=True)}


def pooled(x: torch.Tensor, form: str) -> torch.Tensor:
    """Return a block's output (B, C, h, w) in float32 as a tap's form has it."""
    if form == "map":
        return x.float().contiguous()
    x = x.float()
    return nn.functional.adaptive_avg_pool2d(x, GRID).contiguous() if form == "3x3" else x.mean(dim=(2, 3))


def load(source: files.Weights) -> facenet.InceptionResnetV1:
    """Return the library's net with these weights, in eval mode.

    Raises
    ------
    WeightsError
        The weights were altered.
    """
    net = facenet.InceptionResnetV1().eval().requires_grad_(False)
    state = files.read_tensors(source)
    net.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()}, strict=True)
    return net


def fold(part: nn.Module) -> nn.Module:
    """Return the part with each convolution and the BatchNorm behind it made one convolution."""
    for module in part.modules():
        conv, norm = getattr(module, "conv", None), getattr(module, "bn", None)
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            module.conv, module.bn = fuse_conv_bn_eval(conv, norm), nn.Identity()
    return part
