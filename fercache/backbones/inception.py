"""InceptionResnetV1 up to the deepest requested tap, with BatchNorm folded into the convolutions."""

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
from fercache.runtime.devices import synchronize_device

STEM = ("conv2d_1a", "conv2d_2a", "conv2d_2b", "maxpool_3a", "conv2d_3b", "conv2d_4a")
STEPS = (*STEM, *BLOCKS)
TYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CENTER, SCALE = 127.5, 128.0
"""facenet-pytorch's fixed standardization of pixels: (x - 127.5) / 128."""


class TappedInception(nn.Module):
    """InceptionResnetV1 from pixels to taps; float32 on the CPU until `prepare` is called.

    Attributes
    ----------
    outputs : tap -> (block, form), in the order in which `forward` returns them.
    """

    def __init__(self, net: facenet.InceptionResnetV1, taps: Sequence[str]) -> None:
        super().__init__()
        self.outputs = {tap: block_of(tap) for tap in taps}
        blocks = [STEPS.index(block) for block, _ in self.outputs.values() if block != EMBEDDING]
        depth = len(STEPS) if EMBEDDING in taps else 1 + max(blocks)
        self.names = STEPS[:depth]
        self.parts = nn.ModuleList(fold(getattr(net, name)) for name in self.names)
        self.linear, self.norm = net.last_linear, net.last_bn
        self.arithmetic = torch.float32

    def prepare(self, device: torch.device, arithmetic: torch.dtype) -> TappedInception:
        """Move the net to its device and precision, and return it; means and the identity vector stay in float32."""
        self.to(device)
        self.parts.to(arithmetic)
        for value in self.parts.parameters():
            if value.dim() == 4:  # kernels: channels-last, as the pixels are
                value.data = value.data.contiguous(memory_format=torch.channels_last)
        self.arithmetic = arithmetic
        return self

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return each tap (B, ...) of pixels (B, 160, 160, 3) in 0..255."""
        x = ((pixels.float() - CENTER) / SCALE).permute(0, 3, 1, 2).to(self.arithmetic)
        values: dict[str, torch.Tensor] = {}
        for name, part in zip(self.names, self.parts, strict=True):
            x = part(x)
            for tap, (block, form) in self.outputs.items():
                if block == name:
                    values[tap] = pooled(x, form)
        if EMBEDDING in self.outputs:
            values[EMBEDDING] = nn.functional.normalize(self.norm(self.linear(pooled(x, ""))), p=2.0, dim=1)
        return tuple(values[tap] for tap in self.outputs)


class InceptionNet:
    """facenet-pytorch's InceptionResnetV1 in torch; `shapes` are those of the taps that a call returns."""
    # The convolutions run in `precision`; means and the identity vector are computed in float32. In float32, every tap
    # equals the library's eager net up to rounding (cosine above .99999).

    def __init__(self, net: TappedInception, device: torch.device) -> None:
        self.shapes = tap_shapes(list(net.outputs))
        self.device, self.net = device, net

    @classmethod
    def load(cls, source: files.Weights, taps: Sequence[str], *, precision: str, device: torch.device) -> InceptionNet:
        """Return the net with these weights on a device."""
        tap_shapes(taps)  # refuses unknown taps before the weights are read
        net = TappedInception(load(source), taps).eval().prepare(device, TYPES[precision])
        # Other threads run the net in streams of their own, which do not wait for the copies made here.
        synchronize_device(str(device))
        return cls(net, device)

    @torch.inference_mode()
    def __call__(self, crops: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Return {tap: (B, ...) float32} of crops (B, 160, 160, 3) uint8."""
        # Copy bytes to the device and convert there: a quarter of the traffic of floats.
        pixels = torch.from_numpy(np.ascontiguousarray(crops))
        if self.device.type == "cuda":
            pixels = pixels.pin_memory().to(self.device, non_blocking=True)
        return {tap: value.cpu().numpy() for tap, value in zip(self.shapes, self.net(pixels), strict=True)}


def pooled(x: torch.Tensor, form: str) -> torch.Tensor:
    """Return a block's output (B, C, h, w) in float32 and in the form of a tap."""
    x = x.float()
    if form == "map":
        return x.contiguous()
    return nn.functional.adaptive_avg_pool2d(x, GRID).contiguous() if form == "3x3" else x.mean(dim=(2, 3))


def load(source: files.Weights) -> facenet.InceptionResnetV1:
    """Return the library's net with these weights, in eval mode.

    Raises
    ------
    WeightsError
        The file of weights was changed.
    """
    net = facenet.InceptionResnetV1().eval().requires_grad_(False)
    state = files.read_tensors(source)
    net.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()}, strict=True)
    return net


def fold(part: nn.Module) -> nn.Module:
    """Return the module with each BatchNorm folded into the convolution before it."""
    for module in part.modules():
        conv, norm = getattr(module, "conv", None), getattr(module, "bn", None)
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            module.conv, module.bn = fuse_conv_bn_eval(conv, norm), nn.Identity()
    return part
