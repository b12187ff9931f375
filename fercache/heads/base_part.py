"""What all heads share: standardised input and the way they are called."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Standardise(nn.Module):
    """Features minus their mean over the training rows, over their spread; 0 where no face was seen."""

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
        """Return ``(B, W, D)``, clipped to 8 deviations."""
        return ((x - self.mean) * self.scale).clamp(-8, 8) * seen[..., None]

    def undo(self, x: Tensor) -> Tensor:
        """Return what was standardised to ``(B, W, D)``, up to the clipping."""
        return x / self.scale + self.mean


class Head(nn.Module):
    """A head: `size` values a row in, `classes` logits out; `noise` is added to its standardised input in training."""

    classes: int

    def __init__(self, size: int, noise: float = 0.0) -> None:
        super().__init__()
        self.standardise, self.noise = Standardise(size), noise

    def forward(self, x: Tensor, seen: Tensor, time_s: Tensor) -> Tensor:
        """Return logits ``(B, W, C)`` of features ``(B, W, D)``, with `seen` ``(B, W)`` and `time_s` ``(B, W)``."""
        x = self.standardise(x, seen)
        if self.training and self.noise:
            x = x + self.noise * torch.randn_like(x) * seen[..., None]
        return self.logits(x, seen, time_s)

    def logits(self, x: Tensor, seen: Tensor, time_s: Tensor) -> Tensor:
        """Return logits of standardised features."""
        raise NotImplementedError


class Pooled(nn.Module):
    """One prediction a window, said of each of its frames: rows averaged with weights that attention gives them.

    Notes
    -----
    Ilse, Tomczak and Welling 2018 (arXiv 1802.04712), the gated form left out.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(width, max(width // 4, 1)), nn.Tanh(), nn.Linear(max(width // 4, 1), 1))

    def forward(self, rows: Tensor, seen: Tensor) -> Tensor:
        """Return ``(B, W, width)``: the mean of the seen rows, the same for every frame of a window."""
        open_ = seen | ~seen.any(1, keepdim=True)
        share: Tensor = self.score(rows).masked_fill(~open_[..., None], float("-inf")).softmax(1)
        return (rows * share).sum(1, keepdim=True).expand_as(rows)
