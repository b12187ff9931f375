"""InceptionResnetV1 up to the deepest requested tap, with BatchNorm folded into the convolutions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.nn.utils.parametrize import register_parametrization

from fercache.backbones import facenet
from fercache.backbones.dlib import load_dlib
from fercache.backbones.library import load_library_net, pooled, wrong_size
from fercache.backbones.registry import CALIBRATION
from fercache.backbones.taps import BLOCKS, CROP_PX, EMBEDDING, split_tap, tap_shapes
from fercache.backbones.weights import files
from fercache.errors import FercacheError
from fercache.runtime.devices import synchronize_device

STEM = ("conv2d_1a", "conv2d_2a", "conv2d_2b", "maxpool_3a", "conv2d_3b", "conv2d_4a")
STEPS = (*STEM, *BLOCKS)
TYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CENTER, SCALE = 127.5, 128.0  # facenet-pytorch's fixed standardization of pixels: (x - 127.5) / 128


class TappedInception(nn.Module):
    """InceptionResnetV1 from pixels to taps; float32 on the CPU until `prepare` is called."""

    def __init__(self, net: facenet.InceptionResnetV1, taps: Sequence[str]) -> None:
        super().__init__()
        # Tap -> (block, form), in the order in which `forward` returns them.
        self.outputs = {tap: split_tap(tap) for tap in taps}
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


class TorchNet:
    """A module from pixels to taps, in torch; `shapes` are those of the taps that a call returns."""
    # The net runs in `precision`; means and identity vectors are computed in float32. In float32, every tap of
    # facenet-pytorch's net equals the library's eager net up to rounding (cosine above .99999).

    def __init__(self, net: Any, shapes: dict[str, tuple[int, ...]], precision: str, device: torch.device) -> None:
        self.shapes, self.device = shapes, device
        self.net = net.prepare(device, TYPES[precision])
        # Other threads run the net in streams of their own, which do not wait for the copies made here.
        synchronize_device(str(device))

    @classmethod
    def load(cls, weights: files.Weights, taps: Sequence[str], *, precision: str, device: torch.device) -> TorchNet:
        """Return the net with these weights on a device."""
        return cls(*load_module(weights, taps), precision, device)

    @torch.inference_mode()
    def __call__(self, crops: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Return {tap: (B, ...) float32} of crops (B, S, S, 3) uint8."""
        # Copy bytes to the device and convert there: a quarter of the traffic of floats.
        pixels = torch.from_numpy(np.ascontiguousarray(crops))
        if self.device.type == "cuda":
            pixels = pixels.pin_memory().to(self.device, non_blocking=True)
        return {tap: value.cpu().numpy() for tap, value in zip(self.shapes, self.net(pixels), strict=True)}


def load_module(weights: files.Weights, taps: Sequence[str]) -> tuple[nn.Module, dict[str, tuple[int, ...]]]:
    """Return a torch net from pixels (B, S, S, 3) to taps, in eval mode, and the shapes of the taps."""
    if weights.net == "facenet":
        shapes = tap_shapes(taps)  # refuses unknown taps before the weights are read
        return TappedInception(load(weights), taps).eval(), shapes
    net = load_dlib(weights, taps) if weights.net == "dlib" else load_library_net(weights, taps)
    try:
        with torch.inference_mode():
            values = net(torch.zeros((1, weights.card.size, weights.card.size, 3), dtype=torch.uint8))
    except FercacheError:  # a tap without that form
        raise
    except (RuntimeError, AssertionError, ValueError) as error:
        raise wrong_size(weights, error) from error
    return net, {tap: tuple(value.shape[1:]) for tap, value in zip(taps, values, strict=True)}


def load(source: files.Weights) -> facenet.InceptionResnetV1:
    """Return the library's net with these weights, in eval mode.

    Raises WeightsError if the file of weights was changed.
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


# int8: kernels, and the inputs of all convolutions but the first, are rounded to 256 values each. torch simulates this
# in float32; OpenVINO recognizes it and computes in int8.


class Round(nn.Module):
    """Rounds values to 256 evenly spaced ones that include 0, from `low` to `high`."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.step = max(high - low, 1e-6) / 255
        self.zero = round(-low / self.step)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the rounded values, of the same shape."""
        return torch.fake_quantize_per_tensor_affine(x, self.step, self.zero, 0, 255)


class RoundKernels(nn.Module):
    """Rounds kernels to 255 values, evenly spaced around 0, for each output channel."""

    steps: torch.Tensor
    zeros: torch.Tensor

    def __init__(self, kernels: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("steps", kernels.abs().amax(dim=(1, 2, 3)).clamp_min(1e-8) / 127)
        self.register_buffer("zeros", torch.zeros(len(kernels), dtype=torch.int32))

    def forward(self, kernels: torch.Tensor) -> torch.Tensor:
        """Return the rounded kernels, of the same shape."""
        return torch.fake_quantize_per_channel_affine(kernels, self.steps, self.zeros, 0, -127, 127)


def calibration_faces(size_px: int) -> NDArray[np.uint8]:
    """Return the faces of CALIBRATION, (24, S, S, 3), scaled to this side."""
    with Image.open(CALIBRATION) as picture:
        pixels = np.array(picture.convert("RGB"))
    rows, columns = (side // CROP_PX for side in pixels.shape[:2])
    faces = pixels.reshape(rows, CROP_PX, columns, CROP_PX, 3).swapaxes(1, 2).reshape(-1, CROP_PX, CROP_PX, 3)
    return np.stack([np.asarray(Image.fromarray(face).resize((size_px, size_px))) for face in faces])


def quantize(net: TappedInception) -> TappedInception:
    """Return a copy of the net that computes as int8 does, its ranges measured on the faces of CALIBRATION."""
    extremes: dict[str, list[torch.Tensor]] = defaultdict(lambda: [torch.zeros(())])

    def watch(name: str) -> nn.Module:
        layer = nn.Identity()
        layer.register_forward_hook(lambda _, __, x: extremes[name].extend(torch.aminmax(x)))
        return layer

    watched = _after_each_layer(net, watch)
    with torch.inference_mode():
        for row in calibration_faces(CROP_PX).reshape(3, -1, CROP_PX, CROP_PX, 3):
            watched(torch.from_numpy(row))
    rounded = _after_each_layer(net, lambda name: Round(float(min(extremes[name])), float(max(extremes[name]))))
    for module in list(rounded.modules()):
        if isinstance(module, nn.Conv2d):
            # Rounded when used, not here: OpenVINO must see that the kernels are rounded.
            register_parametrization(module, "weight", RoundKernels(module.weight))
    return rounded


def _after_each_layer(net: TappedInception, layer: Callable[[str], nn.Module]) -> TappedInception:
    """Return a copy of the net with `layer(name)` after each layer that feeds a convolution."""
    net = deepcopy(net)
    for name, module in list(net.named_modules()):
        if getattr(module, "noReLU", False):
            continue  # no convolution follows the last block
        if isinstance(getattr(module, "relu", None), nn.ReLU):
            module.relu = nn.Sequential(module.relu, layer(f"{name}.relu"))
        if isinstance(getattr(module, "conv2d", None), nn.Conv2d):
            # The end of a residual block, x + scale * conv2d(...): with the scale in the kernels, the sum's two terms
            # are rounded values, as OpenVINO's int8 sum needs them.
            module.conv2d.weight.data *= module.scale
            module.conv2d.bias.data *= module.scale
            module.scale = 1.0
            module.conv2d = nn.Sequential(module.conv2d, layer(f"{name}.conv2d"))
    return net
