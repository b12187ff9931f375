"""The temporal heads: what a stretch of frames says of each of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fercache.backbones.taps import TapSlice
from fercache.heads.base import Head, HeadSettings, Pooled

HEAD_WIDTH = 16
"""Values of a row that one attention head sees."""
SLOPES = (0.05, 8.0)
"""By how much attention falls a second at the start of training, from the farthest-sighted head to the nearest."""

HALF_WIDTHS_S = (0.2, 0.5, 1.0, 2.0)
"""Of the moving means that a temporal head begins with, in seconds."""
TICK_S = 1e-3


class TemporalHead(Head):
    """Rows projected, mixed over time by a subclass, and a prediction for every frame (or one for the window).

    Notes
    -----
    The last layer sees the mixed and the single row. Over evidence (log-probabilities of single frames) it begins at
    zero, on top of their `Smoothing`: a head that learns nothing else is a moving mean, and what it learns is where
    that is wrong.
    """

    def __init__(self, parts: Sequence[TapSlice], classes: int, settings: HeadSettings, mixed: int) -> None:
        size = parts[-1].stop
        super().__init__(size, settings.noise)
        narrow = settings.width
        first = nn.Dropout(0.0 if settings.temporal_input
                           else settings.dropout)  # evidence is too narrow to drop any of it
        self.project = nn.Sequential(first, nn.Linear(size, narrow), nn.LayerNorm(narrow), nn.GELU())
        self.pool = Pooled(mixed + narrow) if settings.clip_level else None
        self.out = nn.Sequential(nn.Dropout(settings.dropout), nn.Linear(mixed + narrow, classes))
        self.smoothing = Smoothing(classes) if settings.temporal_input and not settings.clip_level else None
        if self.smoothing is not None:
            nn.init.zeros_(self.out[-1].weight)  # type: ignore[arg-type]

    def logits(self, x: Tensor, seen: Tensor, time_s: Tensor) -> Tensor:
        narrow = self.project(x)
        rows = torch.cat([self.mix(narrow, seen, time_s), narrow * seen[..., None]], -1)
        said: Tensor = self.out(rows if self.pool is None else self.pool(rows, seen))
        if self.smoothing is not None:
            said = said + self.smoothing(self.standardise.undo(x)[..., :said.shape[-1]], seen, time_s)
        return said

    def mix(self, narrow: Tensor, seen: Tensor, time_s: Tensor) -> Tensor:
        """Return ``(B, W, mixed)`` of ``(B, W, width)``."""
        raise NotImplementedError


class Smoothing(nn.Module):
    """Moving means of single frames' log-probabilities over the frames with a face, mixed and scaled as is learnt."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.mixture = nn.Parameter(torch.zeros(len(HALF_WIDTHS_S)))
        self.scale = nn.Parameter(torch.ones(classes))

    def forward(self, said: Tensor, seen: Tensor, time_s: Tensor) -> Tensor:
        """Return ``(B, W, C)`` of log-probabilities ``(B, W, C)``; zeros where no frame with a face is near."""
        apart_s = (time_s[:, :, None] - time_s[:, None, :]).abs()
        mixture = self.mixture.softmax(0)
        means = torch.zeros_like(said)
        for share, half_s in zip(mixture, HALF_WIDTHS_S, strict=True):
            near = ((apart_s <= half_s + TICK_S) & seen[:, None, :]).to(said.dtype)
            means = means + share * (near @ said) / near.sum(-1, keepdim=True).clamp_min(1)
        return means * self.scale


class GRUHead(TemporalHead):
    """A bidirectional GRU over the rows; a row without a face comes as zeros and is marked."""

    def __init__(self, parts: Sequence[TapSlice], classes: int, settings: HeadSettings) -> None:
        super().__init__(parts, classes, settings, 2 * settings.width)
        self.gru = nn.GRU(settings.width + 1, settings.width, settings.depth, batch_first=True, bidirectional=True)

    def mix(self, narrow: Tensor, seen: Tensor, time_s: Tensor) -> Tensor:
        mask = seen[..., None].to(narrow.dtype)
        told, _ = self.gru(torch.cat([narrow * mask, mask], -1))
        return told  # type: ignore[no-any-return]


class TransformerHead(TemporalHead):
    """Attention over the rows with a face, falling with the distance in real seconds; pre-norm blocks."""

    def __init__(self, parts: Sequence[TapSlice], classes: int, settings: HeadSettings) -> None:
        super().__init__(parts, classes, settings, settings.width)
        self.blind = nn.Parameter(torch.zeros(settings.width))
        self.blocks = nn.ModuleList(_Block(settings) for _ in range(settings.depth))
        self.norm = nn.LayerNorm(settings.width)

    def mix(self, narrow: Tensor, seen: Tensor, time_s: Tensor) -> Tensor:
        rows = torch.where(seen[..., None], narrow, self.blind) + positions(time_s, narrow.shape[-1])
        open_ = seen | ~seen.any(1, keepdim=True)  # a window without any face attends to itself rather than to nothing
        apart_s = (time_s[:, :, None] - time_s[:, None, :]).abs()
        for block in self.blocks:
            rows = block(rows, open_, apart_s)
        return self.norm(rows)  # type: ignore[no-any-return]


class _Block(nn.Module):
    """Pre-norm attention whose scores fall with distance, each head at a rate of its own that is learnt, then an MLP.

    Notes
    -----
    The falling scores are those of ALiBi (Press, Smith, Lewis 2022), here over seconds and both ways.
    """

    def __init__(self, settings: HeadSettings) -> None:
        super().__init__()
        width = settings.width
        self.heads, self.dropout = math.gcd(width, max(1, width // HEAD_WIDTH)), min(settings.dropout, 0.2)
        self.slopes = nn.Parameter(torch.linspace(math.log(SLOPES[0]), math.log(SLOPES[1]), self.heads))
        self.norm, self.qkv, self.joined = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(),
                                 nn.Dropout(self.dropout), nn.Linear(2 * width, width))
        self.drop = nn.Dropout(self.dropout)

    def forward(self, rows: Tensor, open_: Tensor, apart_s: Tensor) -> Tensor:
        many, long, width = rows.shape
        split = self.qkv(self.norm(rows)).reshape(many, long, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        bias = -self.slopes.exp()[:, None, None] * apart_s[:, None]  # (B, H, W, W)
        bias = bias.masked_fill(~open_[:, None, None, :], float("-inf")).to(split.dtype)
        said = F.scaled_dot_product_attention(split[0], split[1], split[2], bias)
        rows = rows + self.drop(self.joined(said.transpose(1, 2).reshape(many, long, width)))
        return rows + self.drop(self.mlp(rows))  # type: ignore[no-any-return]


def positions(time_s: Tensor, width: int) -> Tensor:
    """Return sinusoids of real time, ``(B, W, width)``, with periods from .1 to 100 seconds.

    Notes
    -----
    Vaswani et al. 2017, with seconds for positions, so that clips of different frame rates mean the same.
    """
    periods = torch.logspace(-1, 2, width // 2, device=time_s.device)
    angle = time_s[..., None] * (2 * math.pi / periods)
    return F.pad(torch.cat([angle.sin(), angle.cos()], -1), (0, width % 2))
