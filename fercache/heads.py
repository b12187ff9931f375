"""The three heads: each turns cached features ``(B, W, D)`` and a mask ``(B, W)`` into logits ``(B, W, C)``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fercache.errors import InputError
from fercache.taps import TapSlice


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """What a head is built and trained with; kept in the JSON beside its weights.

    Attributes
    ----------
    window_s : seconds a window covers; 0 is a single frame.
    batch : windows a step; lr : peak of the learning rate; epochs : at most so many passes.
    """

    width: int = 256
    depth: int = 1
    dropout: float = 0.5
    window_s: float = 4.0
    batch: int = 16
    lr: float = 1e-3
    weight_decay: float = 0.02
    epochs: int = 30


DEFAULTS: dict[str, HeadSettings] = {
    "frame": HeadSettings(width=256, window_s=0, batch=256, epochs=15),
    "gru": HeadSettings(width=192, depth=1),
    "transformer": HeadSettings(width=192, depth=2),
}


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


class Head(nn.Module):
    """What the three heads share: standardised input and the way they are called."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.standardise = Standardise(size)

    def forward(self, x: Tensor, seen: Tensor, time_s: Tensor) -> Tensor:
        """Return logits ``(B, W, C)`` of features ``(B, W, D)``, with `seen` ``(B, W)`` and `time_s` ``(B, W)``."""
        return self.logits(self.standardise(x, seen), seen, time_s)

    def logits(self, x: Tensor, seen: Tensor, time_s: Tensor) -> Tensor:
        """Return logits of standardised features."""
        raise NotImplementedError


class FrameHead(Head):
    """What one frame says: a small CNN over each spatial tap, joined with the pooled taps, then an MLP."""

    def __init__(self, parts: Sequence[TapSlice], classes: int, settings: HeadSettings) -> None:
        super().__init__(parts[-1].stop)
        self.pooled = [p for p in parts if len(p.shape) == 1]
        self.spatial = [p for p in parts if len(p.shape) == 3]
        maps = settings.width // 4
        self.cnns = nn.ModuleList(_SmallCNN(p.shape, maps, settings.dropout) for p in self.spatial)
        size = sum(p.stop - p.start for p in self.pooled)
        wide = (settings.width if size else 0) + sum(_SmallCNN.out(p.shape, maps) for p in self.spatial)
        self.project = nn.Linear(size, settings.width) if size else None
        self.drop = nn.Dropout(settings.dropout)
        self.out = nn.Sequential(nn.LayerNorm(wide), nn.GELU(), nn.Dropout(settings.dropout),
                                 nn.Linear(wide, classes))

    def logits(self, x: Tensor, seen: Tensor, time_s: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        joined = [cnn(flat[:, p.start:p.stop].reshape(-1, *p.shape))
                  for p, cnn in zip(self.spatial, self.cnns, strict=True)]
        if self.project is not None:
            pooled = torch.cat([flat[:, p.start:p.stop] for p in self.pooled], 1)
            joined.append(self.project(self.drop(pooled)))
        told: Tensor = self.out(torch.cat(joined, 1))
        return told.reshape(*x.shape[:2], -1)


class _SmallCNN(nn.Sequential):
    """A 1x1 convolution that narrows, a 3x3 one that looks around, flattened: ``(B, C, h, w)`` -> ``(B, n)``."""

    def __init__(self, shape: tuple[int, ...], maps: int, dropout: float) -> None:
        super().__init__(nn.Dropout2d(dropout / 2), nn.Conv2d(shape[0], maps, 1), nn.GELU(),
                         nn.Conv2d(maps, maps, 3, padding=1), nn.Flatten())

    @staticmethod
    def out(shape: tuple[int, ...], maps: int) -> int:
        """Return how many values come out."""
        return maps * shape[1] * shape[2]


class _Projection(nn.Sequential):
    """A row of features to the width of a temporal head."""

    def __init__(self, size: int, settings: HeadSettings) -> None:
        super().__init__(nn.Dropout(settings.dropout), nn.Linear(size, settings.width),
                         nn.LayerNorm(settings.width), nn.GELU())


class GRUHead(Head):
    """What a stretch of frames says: projection, bidirectional GRU, a prediction for every frame of the window."""

    def __init__(self, parts: Sequence[TapSlice], classes: int, settings: HeadSettings) -> None:
        super().__init__(parts[-1].stop)
        self.project = _Projection(parts[-1].stop, settings)
        self.gru = nn.GRU(settings.width + 1, settings.width, settings.depth, batch_first=True, bidirectional=True)
        self.out = nn.Sequential(nn.Dropout(settings.dropout), nn.Linear(2 * settings.width, classes))

    def logits(self, x: Tensor, seen: Tensor, time_s: Tensor) -> Tensor:
        mask = seen[..., None].to(x.dtype)
        narrow = self.project(x) * mask
        told, _ = self.gru(torch.cat([narrow, mask], -1))
        return self.out(told)  # type: ignore[no-any-return]


class TransformerHead(Head):
    """The same with attention: positions in real seconds, pre-norm blocks, frames without a face not attended to."""

    def __init__(self, parts: Sequence[TapSlice], classes: int, settings: HeadSettings) -> None:
        super().__init__(parts[-1].stop)
        self.project = _Projection(parts[-1].stop, settings)
        self.blind = nn.Parameter(torch.zeros(settings.width))
        block = nn.TransformerEncoderLayer(settings.width, max(1, settings.width // 32), 2 * settings.width,
                                           min(settings.dropout, 0.2), "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, settings.depth, enable_nested_tensor=False)
        self.out = nn.Sequential(nn.LayerNorm(settings.width), nn.Dropout(settings.dropout),
                                 nn.Linear(settings.width, classes))

    def logits(self, x: Tensor, seen: Tensor, time_s: Tensor) -> Tensor:
        narrow = torch.where(seen[..., None], self.project(x), self.blind)
        narrow = narrow + positions(time_s, narrow.shape[-1])
        unseen = ~seen & seen.any(1, keepdim=True)  # a window without any face attends to itself rather than to nothing
        return self.out(self.blocks(narrow, src_key_padding_mask=unseen))  # type: ignore[no-any-return]


def positions(time_s: Tensor, width: int) -> Tensor:
    """Return sinusoids of real time, ``(B, W, width)``, with periods from .1 to 100 seconds.

    Notes
    -----
    Vaswani et al. 2017, with seconds for positions, so that clips of different frame rates mean the same.
    """
    periods = torch.logspace(-1, 2, width // 2, device=time_s.device)
    angle = time_s[..., None] * (2 * math.pi / periods)
    return F.pad(torch.cat([angle.sin(), angle.cos()], -1), (0, width % 2))


HEADS: dict[str, type[Head]] = {"frame": FrameHead, "gru": GRUHead, "transformer": TransformerHead}


def build(name: str, parts: Sequence[TapSlice], classes: int, settings: HeadSettings) -> Head:
    """Return a fresh head of that name.

    Raises
    ------
    InputError
        There is no such head.
    """
    if name not in HEADS:
        raise InputError(f"no head {name!r}", hint=f"known heads: {', '.join(HEADS)}")
    return HEADS[name](parts, classes, settings)  # type: ignore[call-arg,arg-type]


def classes_of(head: Head) -> int:
    """Return how many classes a head tells apart."""
    last = [m for m in head.modules() if isinstance(m, nn.Linear)][-1]
    return last.out_features
