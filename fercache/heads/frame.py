"""The frame-level head: one frame's features to logits, optionally through the backbone's own last blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fercache.backbones import facenet
from fercache.backbones.taps import TapSlice
from fercache.errors import InputError
from fercache.heads.base import Head
from fercache.heads.registry import HeadSettings

TAIL_BLOCKS = ("repeat_2", "mixed_7a", "repeat_3", "block8")  # in execution order, from the first map to fine-tune from
TAIL_CHANNELS = 1792  # channels after the last block


def _wrong_tap(tap: str) -> InputError:
    return InputError(f"the backbone cannot be fine-tuned from tap {tap!r}", where="finetune_tap",
                      hint=f"choose {', '.join(f'{block}-map' for block in TAIL_BLOCKS[:-1])}")


class FinetuneTail(nn.Module):
    """The blocks of InceptionResnetV1 after a cached map, a mean over positions, and a linear layer: ``(B, width)``."""
    # BatchNorm always stays in eval mode: its statistics are those of the faces that the net was trained on, and in
    # casia-webface it is folded into the convolutions. The blocks read the maps as cached, not normalized, because they
    # were trained on such maps.

    cached_maps: Tensor | None = None

    def __init__(self, tap: TapSlice, width: int) -> None:
        super().__init__()
        block, _, form = tap.tap.partition("-")
        if block not in TAIL_BLOCKS[:-1] or form != "map":
            raise _wrong_tap(tap.tap)
        self.shape, self.out_features = tap.shape, width
        net = facenet.InceptionResnetV1()
        self.blocks = nn.Sequential()
        for name in TAIL_BLOCKS[TAIL_BLOCKS.index(block) + 1:]:
            self.blocks.add_module(name, getattr(net, name))
        self.narrow = nn.Linear(TAIL_CHANNELS, width)
        self.train()  # torch starts modules in training mode without calling train(), which spares BatchNorm

    def load(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Take the blocks' pretrained weights from those of the whole net, by name."""
        names = self.blocks.state_dict()
        self.blocks.load_state_dict({name: torch.from_numpy(tensors[name]) for name in names}, strict=True)

    def train(self, mode: bool = True) -> FinetuneTail:
        """Set the mode of everything except BatchNorm."""
        super().train(mode)
        for module in self.blocks.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, _normalized: Tensor) -> Tensor:
        """Return the projected output of the blocks for `cached_maps`, ``(B, width)``; the argument is ignored."""
        if self.cached_maps is None:
            raise RuntimeError("set cached_maps before each forward pass")
        # Dropped after use, so that a second pass cannot read the maps of another batch.
        maps, self.cached_maps = self.cached_maps, None
        projected: Tensor = self.narrow(self.blocks(maps.reshape(-1, *self.shape)).mean((2, 3)))
        return projected


class FrameHead(Head):
    """A small CNN on each spatial tap (or the backbone's own tail), concatenated with the pooled taps, then an MLP."""

    def __init__(self, taps: Sequence[TapSlice], classes: int, settings: HeadSettings) -> None:
        super().__init__(taps[-1].stop, settings.noise)
        self.pooled = [tap for tap in taps if len(tap.shape) == 1]
        self.spatial = [tap for tap in taps if len(tap.shape) == 3]
        if settings.finetune_tap and settings.finetune_tap not in [tap.tap for tap in self.spatial]:
            raise _wrong_tap(settings.finetune_tap)
        nets = [FinetuneTail(tap, settings.width) if tap.tap == settings.finetune_tap
                else _SmallCNN(tap.shape, settings.width // 4, settings.dropout) for tap in self.spatial]
        self.cnns = nn.ModuleList(nets)
        size = sum(tap.stop - tap.start for tap in self.pooled)
        wide = (settings.width if size else 0) + sum(net.out_features for net in nets)
        self.project = nn.Linear(size, settings.width) if size else None
        self.drop = nn.Dropout(settings.dropout)
        self.out = nn.Sequential(nn.LayerNorm(wide), nn.GELU(), nn.Dropout(settings.dropout), nn.Linear(wide, classes))

    def forward(self, x: Tensor, seen: Tensor, time_s: Tensor) -> Tensor:
        """Return logits ``(B, W, C)``; the backbone's tail reads the maps as they were cached."""
        raw = x.flatten(0, 1)
        for tap, net in zip(self.spatial, self.cnns, strict=True):
            if isinstance(net, FinetuneTail):
                net.cached_maps = raw[:, tap.start:tap.stop]
        return super().forward(x, seen, time_s)

    def logits(self, x: Tensor, seen: Tensor, time_s: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        hidden = [cnn(flat[:, tap.start:tap.stop].reshape(-1, *tap.shape))
                  for tap, cnn in zip(self.spatial, self.cnns, strict=True)]
        if self.project is not None:
            # Adjacent slices are one slice: that saves a copy of the batch.
            first, last = self.pooled[0].start, self.pooled[-1].stop
            adjacent = last - first == self.project.in_features
            pooled = flat[:, first:last] if adjacent else torch.cat([flat[:, tap.start:tap.stop]
                                                                     for tap in self.pooled], 1)
            hidden.append(self.project(self.drop(pooled)))
        logits: Tensor = self.out(torch.cat(hidden, 1))
        return logits.reshape(*x.shape[:2], logits.shape[1])


class _SmallCNN(nn.Sequential):
    """A 1x1 convolution that reduces channels, a 3x3 convolution, flattened: ``(B, C, h, w)`` -> ``(B, maps h w)``."""

    def __init__(self, shape: tuple[int, ...], maps: int, dropout: float) -> None:
        super().__init__(nn.Dropout2d(dropout / 2), nn.Conv2d(shape[0], maps, 1), nn.GELU(),
                         nn.Conv2d(maps, maps, 3, padding=1), nn.Flatten())
        self.out_features = maps * shape[1] * shape[2]
