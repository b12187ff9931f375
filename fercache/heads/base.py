"""What all heads share: normalized input, the way they are called, and attention pooling."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fercache.backbones.taps import TapSlice
from fercache.errors import InputError
from fercache.heads.registry import HEADS, HeadSettings


class Normalize(nn.Module):
    """Features minus the mean of the training rows, over their standard deviation; 0 where no face was seen."""

    mean: Tensor
    scale: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    def fit(self, mean: Tensor, std: Tensor) -> None:
        """Take the training rows' mean and standard deviation, each ``(D,)``."""
        self.mean.copy_(mean)
        self.scale.copy_(1 / std.clamp_min(1e-4))

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """Return ``(B, W, D)``, clipped to 8 standard deviations; `seen` is ``(B, W)``, or ``(B, W, D)`` by column."""
        # Without the clip one broken crop of a nearly constant feature would dominate a whole batch.
        return ((x - self.mean) * self.scale).clamp(-8, 8) * (seen if seen.ndim == x.ndim else seen[..., None])

    def undo(self, x: Tensor) -> Tensor:
        """Return the features ``(B, W, D)`` before normalization, up to the clipping."""
        return x / self.scale + self.mean


class Head(nn.Module):
    """A head: `size` values per row in, `classes` logits out; `noise` is added to the normalized input in training."""

    classes: int

    def __init__(self, size: int, noise: float = 0.0) -> None:
        super().__init__()
        # Names of submodules are the tensors' names in checkpoints: a renamed one makes trained heads unreadable.
        self.standardise, self.noise = Normalize(size), noise

    def forward(self, x: Tensor, seen: Tensor, time_s: Tensor) -> Tensor:
        """Return logits ``(B, W, C)`` of features ``(B, W, D)``, with `seen` ``(B, W)`` and `time_s` ``(B, W)``."""
        x = self.standardise(x, seen)
        if self.training and self.noise:
            # Rows without a face stay exactly zero: nets must not tell them apart by noise.
            x = x + self.noise * torch.randn_like(x) * seen[..., None]
        return self.logits(x, seen, time_s)

    def logits(self, x: Tensor, seen: Tensor, time_s: Tensor) -> Tensor:
        """Return logits ``(B, W, C)`` of normalized features."""
        raise NotImplementedError


class AttentionPooling(nn.Module):
    """One vector per window, repeated for each of its frames: the rows' mean, weighted by attention."""
    # Ilse, Tomczak and Welling 2018 (arXiv 1802.04712), without their gates.

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(width, max(width // 4, 1)), nn.Tanh(), nn.Linear(max(width // 4, 1), 1))

    def forward(self, rows: Tensor, seen: Tensor) -> Tensor:
        """Return ``(B, W, width)``: the mean of the seen rows, the same for every frame of a window."""
        # A window without any face attends to all rows: softmax over nothing but -inf is NaN.
        attended = seen | ~seen.any(1, keepdim=True)
        weight: Tensor = self.score(rows).masked_fill(~attended[..., None], float("-inf")).softmax(1)
        return (rows * weight).sum(1, keepdim=True).expand_as(rows)


def build_head(name: str, taps: Sequence[TapSlice], classes: int, settings: HeadSettings) -> Head:
    """Return a new head of that name with random weights. Raises InputError if no head of that name is registered."""
    if name not in HEADS:
        raise InputError(f"no head {name!r}", hint=f"known heads: {', '.join(HEADS)}")
    module, _, net = HEADS[name].net.partition(":")
    head: Head = getattr(importlib.import_module(f"fercache.heads.{module}"), net)(taps, classes, settings)
    head.classes = classes
    return head
