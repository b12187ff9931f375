"""The backbone's own last blocks as a part of a head: pretrained, trained on cached maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fercache.backbones import facenet
from fercache.backbones.taps_part import TapSlice
from fercache.errors import InputError

BLOCKS = ("repeat_2", "mixed_7a", "repeat_3", "block8")
"""Blocks of InceptionResnetV1 in the order they are run, from the first whose map a tail can start from."""
WIDE = 1792


def no_tail(tap: str) -> InputError:
    """Return the error that says where a tail can begin."""
    return InputError(f"no tail begins at {tap!r}", where="tail",
                      hint=f"choose {', '.join(f'{block}-map' for block in BLOCKS[:-1])}")


class Tail(nn.Module):
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
        if block not in BLOCKS[:-1] or form != "map":
            raise no_tail(part.tap)
        self.shape, self.wide = part.shape, width
        net = facenet.InceptionResnetV1()
        self.blocks = nn.Sequential()
        for name in BLOCKS[BLOCKS.index(block) + 1:]:
            self.blocks.add_module(name, getattr(net, name))
        self.narrow = nn.Linear(WIDE, width)
        self.train()

    def load(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Take the pretrained weights of the blocks from the whole net's, by name."""
        own = self.blocks.state_dict()
        self.blocks.load_state_dict({name: torch.from_numpy(tensors[name]) for name in own}, strict=True)

    def train(self, mode: bool = True) -> Tail:
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
