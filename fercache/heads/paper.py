"""The heads of Mao, Fan and Peng 2021 (arXiv 2107.05160), as their code has them."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

import torch
from torch import Tensor, nn

from fercache.backbones.taps import TapSlice
from fercache.heads.base import Head, HeadSettings
from fercache.heads.temporal import positions

ATTENTION_HEADS = 12


class _PaperHead(Head):
    """The features as they are: the paper standardises nothing; a frame without a face comes as zeros."""

    def forward(self, x: Tensor, seen: Tensor, time_s: Tensor) -> Tensor:
        """Return logits ``(B, W, C)``."""
        return self.logits(x * seen[..., None], seen, time_s)


class PaperFrameHead(_PaperHead):
    """The classifier on top of their ResNet: one layer."""

    def __init__(self, parts: Sequence[TapSlice], classes: int, settings: HeadSettings) -> None:
        super().__init__(parts[-1].stop)
        self.out = nn.Linear(parts[-1].stop, classes)

    def logits(self, x: Tensor, seen: Tensor, time_s: Tensor) -> Tensor:
        return self.out(x)  # type: ignore[no-any-return]


class PaperGRUHead(_PaperHead):
    """CNN-RNN: a layer to 768, ReLU, a bidirectional GRU of half that, ReLU, a layer."""

    def __init__(self, parts: Sequence[TapSlice], classes: int, settings: HeadSettings) -> None:
        super().__init__(parts[-1].stop)
        self.project = nn.Sequential(nn.Linear(parts[-1].stop, settings.width), nn.ReLU())
        self.gru = nn.GRU(settings.width, settings.width // 2, settings.depth, batch_first=True, bidirectional=True)
        self.out = nn.Sequential(nn.ReLU(), nn.Linear(settings.width, classes))

    def logits(self, x: Tensor, seen: Tensor, time_s: Tensor) -> Tensor:
        told, _ = self.gru(self.project(x))
        return self.out(told)  # type: ignore[no-any-return]


class PaperTransformerHead(_PaperHead):
    """CNN-Transformer: a layer to 768, sinusoidal positions, dropout, two pre-norm blocks of 12 heads, norm, a layer.

    Notes
    -----
    Their positions count along the batch by mistake; ours go along time.
    """

    def __init__(self, parts: Sequence[TapSlice], classes: int, settings: HeadSettings) -> None:
        super().__init__(parts[-1].stop)
        self.project = nn.Linear(parts[-1].stop, settings.width)
        self.drop = nn.Dropout(settings.dropout)
        heads = gcd(settings.width, ATTENTION_HEADS)
        block = nn.TransformerEncoderLayer(settings.width, heads, 4 * settings.width, settings.dropout, "gelu",
                                           batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, settings.depth, enable_nested_tensor=False)
        self.out = nn.Sequential(nn.LayerNorm(settings.width), nn.Linear(settings.width, classes))

    def logits(self, x: Tensor, seen: Tensor, time_s: Tensor) -> Tensor:
        rows = self.drop(self.project(x) + positions(time_s, self.project.out_features))
        unseen = ~seen & seen.any(1, keepdim=True)
        mask = torch.zeros_like(unseen, dtype=rows.dtype).masked_fill(unseen, float("-inf"))
        return self.out(self.blocks(rows, src_key_padding_mask=mask))  # type: ignore[no-any-return]
