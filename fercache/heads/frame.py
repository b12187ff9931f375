"""The frame-level head: what one frame says."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fercache.backbones.taps_part import TapSlice
from fercache.heads.base import HeadSettings
from fercache.heads.base_part import Head
from fercache.heads.tail_part import Tail, no_tail


class FrameHead(Head):
    """A small CNN over each spatial tap (or the backbone's own tail), joined with the pooled taps, then an MLP."""

    def __init__(self, parts: Sequence[TapSlice], classes: int, settings: HeadSettings) -> None:
        super().__init__(parts[-1].stop, settings.noise)
        self.pooled = [p for p in parts if len(p.shape) == 1]
        self.spatial = [p for p in parts if len(p.shape) == 3]
        if settings.tail and settings.tail not in [p.tap for p in self.spatial]:
            raise no_tail(settings.tail)
        maps = settings.width // 4
        nets = [Tail(p, settings.width) if p.tap == settings.tail else _SmallCNN(p.shape, maps, settings.dropout)
                for p in self.spatial]
        self.cnns = nn.ModuleList(nets)
        size = sum(p.stop - p.start for p in self.pooled)
        wide = (settings.width if size else 0) + sum(net.wide for net in nets)
        self.project = nn.Linear(size, settings.width) if size else None
        self.drop = nn.Dropout(settings.dropout)
        self.out = nn.Sequential(nn.LayerNorm(wide), nn.GELU(), nn.Dropout(settings.dropout),
                                 nn.Linear(wide, classes))

    def forward(self, x: Tensor, seen: Tensor, time_s: Tensor) -> Tensor:
        """Return logits ``(B, W, C)``; the backbone's tail sees the maps as they were cached."""
        raw = x.flatten(0, 1)
        for part, net in zip(self.spatial, self.cnns, strict=True):
            if isinstance(net, Tail):
                net.given = raw[:, part.start:part.stop]
        return super().forward(x, seen, time_s)

    def logits(self, x: Tensor, seen: Tensor, time_s: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        joined = [cnn(flat[:, p.start:p.stop].reshape(-1, *p.shape))
                  for p, cnn in zip(self.spatial, self.cnns, strict=True)]
        if self.project is not None:
            # slices that lie side by side are one slice: no copy of the batch
            first, last = self.pooled[0].start, self.pooled[-1].stop
            whole = last - first == sum(p.stop - p.start for p in self.pooled)
            pooled = flat[:, first:last] if whole else torch.cat([flat[:, p.start:p.stop] for p in self.pooled], 1)
            joined.append(self.project(self.drop(pooled)))
        told: Tensor = self.out(torch.cat(joined, 1))
        return told.reshape(*x.shape[:2], told.shape[1])


class _SmallCNN(nn.Sequential):
    """A 1x1 convolution that narrows, a 3x3 one that looks around, flattened: ``(B, C, h, w)`` -> ``(B, wide)``."""

    def __init__(self, shape: tuple[int, ...], maps: int, dropout: float) -> None:
        super().__init__(nn.Dropout2d(dropout / 2), nn.Conv2d(shape[0], maps, 1), nn.GELU(),
                         nn.Conv2d(maps, maps, 3, padding=1), nn.Flatten())
        self.wide = maps * shape[1] * shape[2]
