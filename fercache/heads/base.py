"""What a head is built and trained with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """What a head is built and trained with; kept in the JSON beside its weights.

    Attributes
    ----------
    width, depth, dropout : of the net; `dropout` is what a row of CNN features meets before it is narrowed.
    evidence : whether the head reads what the frame head says of frames it did not learn from, instead of features.
    window_s : seconds a window covers (0: a single frame).
    step_s : seconds between the frames of a window (0: every frame); of a frame head, between those that it learns from
        in one pass. Every frame is predicted all the same.
    batch : windows a step; lr : peak of the learning rate; epochs : at most so many passes; patience : passes without
        gain on the watched groups after which training stops (0: never).
    optimizer : adamw (warm-up, then cosine) or sgd (momentum .9, constant).
    loss : plain; weighted, balanced (class weights, one over the square root of the class's share, or over it); focal
        (weighted, gamma 2); adjusted (the logarithm of the shares added to the logits while training).
    label_smoothing : share of the truth given to all classes alike; ema : decay of the average of weights (0: none).
    noise : standard deviation added to standardised features; mixup : alpha of the beta distribution by which two
        windows are mixed; hide_s : seconds of a stretch that is hidden from a temporal head in every window.
    precision : float32 or bf16 (autocast).
    clip_level : one prediction a clip: the windows are pooled by attention.
    tail : a spatial tap that the backbone's own pretrained blocks are trained on, "" for none.
    """

    width: int = 256
    depth: int = 1
    dropout: float = 0.5
    temporal_input: bool = False
    window_s: float = 4.0
    step_s: float = 0.0
    batch: int = 16
    lr: float = 1e-3
    weight_decay: float = 0.02
    epochs: int = 30
    patience: int = 0
    optimizer: str = "adamw"
    loss: str = "weighted"
    label_smoothing: float = 0.05
    ema: float = 0.0
    noise: float = 0.0
    mixup: float = 0.0
    time_mask_s: float = 0.0
    precision: str = "float32"
    clip_level: bool = False
    finetune_tap: str = ""


DEFAULTS: dict[str, HeadSettings] = {
    "frame": HeadSettings(width=256, window_s=0, step_s=0.2, batch=128, epochs=20, patience=6),
    "gru": HeadSettings(width=48, dropout=0.3, temporal_input=True, window_s=8, step_s=0.1, lr=2e-3, patience=8,
                        loss="balanced"),
    "transformer": HeadSettings(width=64, depth=2, dropout=0.3, temporal_input=True, window_s=8, step_s=0.1, lr=2e-3,
                                patience=8, loss="balanced"),
    "paper-frame": HeadSettings(width=0, dropout=0, window_s=0, batch=96, lr=5e-4, weight_decay=5e-4, epochs=10,
                                optimizer="sgd", loss="plain", label_smoothing=0),
    "paper-gru": HeadSettings(width=768, dropout=0, window_s=0.3, batch=96, weight_decay=5e-4, epochs=10,
                              loss="plain", label_smoothing=0),
    "paper-transformer": HeadSettings(width=768, depth=2, window_s=0.3, batch=96, weight_decay=5e-4, epochs=10,
                                      loss="plain", label_smoothing=0),
}
"""How each head is trained where the recipe says nothing; FIELD.md of the design names the paper's settings."""

DIRECT: dict[str, dict[str, Any]] = {"gru": {"width": 192, "dropout": 0.5, "lr": 1e-3},
                                     "transformer": {"width": 192, "dropout": 0.5, "lr": 1e-3}}
"""What is otherwise where a temporal head reads the features themselves."""


# What all heads share: standardised input and the way they are called.

class Normalize(nn.Module):
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
        self.standardise, self.noise = Normalize(size), noise

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
