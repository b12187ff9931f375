"""The heads of Mao, Fan and Peng 2021 (arXiv 2107.05160), following their code."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

import torch
from torch import Tensor, nn

from fercache.backbones.taps import TapSlice
from fercache.heads.base import Head
from fercache.heads.registry import HeadSettings
from fercache.heads.temporal import positions

ATTENTION_HEADS = 12


class _PaperHead(Head):
    """Features as they are: the paper does not normalize them. A frame without a face is a row of zeros."""

    def forward(self, x: Tensor, seen: Tensor, time_s: Tensor) -> Tensor:
        """Return logits ``(B, W, C)``."""
        return self.logits(x * seen[..., None], seen, time_s)


class PaperFrameHead(_PaperHead):
    """The classifier on top of their ResNet: one linear layer."""

    def __init__(self, taps: Sequence[TapSlice], classes: int, settings: HeadSettings) -> None:
        super().__init__(taps[-1].stop)
        self.out = nn.Linear(taps[-1].stop, classes)

    def logits(self, x: Tensor, seen: Tensor, time_s: Tensor) -> Tensor:
        return self.out(x)  # type: ignore[no-any-return]


class PaperGRUHead(_PaperHead):
    """CNN-RNN: a linear layer to 768, ReLU, a bidirectional GRU of half that width, ReLU, a linear layer."""

    def __init__(self, taps: Sequence[TapSlice], classes: int, settings: HeadSettings) -> None:
        super().__init__(taps[-1].stop)
        self.project = nn.Sequential(nn.Linear(taps[-1].stop, settings.width), nn.ReLU())
        # Half the width in each direction, so that both together have the width again.
        self.gru = nn.GRU(settings.width, settings.width // 2, settings.depth, batch_first=True, bidirectional=True)
        self.out = nn.Sequential(nn.ReLU(), nn.Linear(settings.width, classes))

    def logits(self, x: Tensor, seen: Tensor, time_s: Tensor) -> Tensor:
        hidden, _ = self.gru(self.project(x))
        return self.out(hidden)  # type: ignore[no-any-return]


class PaperTransformerHead(_PaperHead):
    """CNN-Transformer: linear to 768, sinusoidal positions, dropout, two pre-norm blocks of 12 heads, norm, linear."""
    # Their code counts positions along the batch by mistake; here positions run along time.

    def __init__(self, taps: Sequence[TapSlice], classes: int, settings: HeadSettings) -> None:
        super().__init__(taps[-1].stop)
        self.project = nn.Linear(taps[-1].stop, settings.width)
        self.drop = nn.Dropout(settings.dropout)
        heads = gcd(settings.width, ATTENTION_HEADS)  # 12 at the paper's width; torch requires a divisor of any other
        block = nn.TransformerEncoderLayer(settings.width, heads, 4 * settings.width, settings.dropout, "gelu",
                                           batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, settings.depth, enable_nested_tensor=False)
        self.out = nn.Sequential(nn.LayerNorm(settings.width), nn.Linear(settings.width, classes))

    def logits(self, x: Tensor, seen: Tensor, time_s: Tensor) -> Tensor:
        rows = self.drop(self.project(x) + positions(time_s, self.project.out_features))
        # A window without any face masks nothing: attention over nothing is NaN.
        unseen = ~seen & seen.any(1, keepdim=True)
        mask = torch.zeros_like(unseen, dtype=rows.dtype).masked_fill(unseen, float("-inf"))
        return self.out(self.blocks(rows, src_key_padding_mask=mask))  # type: ignore[no-any-return]
