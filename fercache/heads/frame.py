"""The frame-level head: what one frame says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fercache.backbones import facenet
from fercache.backbones.taps import TapSlice
from fercache.errors import InputError
from fercache.heads.base import Head, HeadSettings

# The backbone's own last blocks as a part of a head: pretrained, trained on cached maps.

TAIL_BLOCKS = ("repeat_2", "mixed_7a", "repeat_3", "block8")
"""Blocks of InceptionResnetV1 in the order they are run, from the first whose map a tail can start from."""
WIDE = 1792


def check_tail_tap(tap: str) -> InputError:
    """Return the error that says where a tail can begin."""
    return InputError(f"no tail begins at {tap!r}", where="finetune_tap",
                      hint=f"choose {', '.join(f'{block}-map' for block in TAIL_BLOCKS[:-1])}")


class FinetuneTail(nn.Module):
    """What follows a cached map in InceptionResnetV1, its mean over positions, then a layer: -> ``(B, wide)``.

    Notes
    -----
    BatchNorm never leaves eval mode: its statistics are those of the faces the net was trained on, and in casia-webface
    it is folded. The maps go in as cached; standardised they would be nothing the blocks know.
    """

    given: Tensor | None = None

    def __init__(self, part: TapSlice, width: int) -> None:
        super().__init__()
        block, _, form = part.tap.partition("-")
        if block not in TAIL_BLOCKS[:-1] or form != "map":
            raise check_tail_tap(part.tap)
        self.shape, self.wide = part.shape, width
        net = facenet.InceptionResnetV1()
        self.blocks = nn.Sequential()
        for name in TAIL_BLOCKS[TAIL_BLOCKS.index(block) + 1:]:
            self.blocks.add_module(name, getattr(net, name))
        self.narrow = nn.Linear(WIDE, width)
        self.train()

    def load(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Take the pretrained weights of the blocks from the whole net's, by name."""
        own = self.blocks.state_dict()
        self.blocks.load_state_dict({name: torch.from_numpy(tensors[name]) for name in own}, strict=True)

    def train(self, mode: bool = True) -> FinetuneTail:
        """Set the mode, of all but BatchNorm."""
        super().train(mode)
        for module in self.blocks.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, _standardised: Tensor) -> Tensor:
        """Return what the blocks make of the maps that were `given`, ``(B, wide)``."""
        if self.given is None:
            raise RuntimeError("the cached maps were not given")
        maps, self.given = self.given, None
        told: Tensor = self.narrow(self.blocks(maps.reshape(-1, *self.shape)).mean((2, 3)))
        return told


class FrameHead(Head):
    """A small CNN over each spatial tap (or the backbone's own tail), joined with the pooled taps, then an MLP."""

    def __init__(self, parts: Sequence[TapSlice], classes: int, settings: HeadSettings) -> None:
        super().__init__(parts[-1].stop, settings.noise)
        self.pooled = [p for p in parts if len(p.shape) == 1]
        self.spatial = [p for p in parts if len(p.shape) == 3]
        if settings.finetune_tap and settings.finetune_tap not in [p.tap for p in self.spatial]:
            raise check_tail_tap(settings.finetune_tap)
        maps = settings.width // 4
        nets = [FinetuneTail(p, settings.width) if p.tap == settings.finetune_tap
                else _SmallCNN(p.shape, maps, settings.dropout)
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
            if isinstance(net, FinetuneTail):
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
