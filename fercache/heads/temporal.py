"""The temporal heads: a window of frames to logits of each frame, by a GRU or a transformer; those of Mao 2021 last."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fercache.backbones.taps import TapSlice, is_audio
from fercache.heads.base import AttentionPooling, Head
from fercache.heads.registry import HeadSettings

HEAD_WIDTH = 16  # values of a row per attention head
SLOPES = (0.05, 8.0)  # decay of attention per second at the start of training, from the widest view to the narrowest

HALF_WIDTHS_S = (0.2, 0.5, 1.0, 2.0)  # half widths, in seconds, of the moving averages that a temporal head starts from
TICK_S = 1e-3

DROP_SOUND, DROP_PICTURE = 0.3, 0.1
"""Shares of the training windows that lose the sound or the picture as a whole, so that neither is relied on."""


class TemporalHead(Head):
    """Rows projected, mixed over time by a subclass, and a prediction for every frame (or one for the window)."""
    # The last layer reads the mixed and the single row. On out-of-fold logits (log-probabilities of single frames) it
    # starts at zero and is added to their `Smoothing`: an untrained head is a moving average, and training learns where
    # that average is wrong.

    def __init__(self, taps: Sequence[TapSlice], classes: int, settings: HeadSettings, mixed: int) -> None:
        size = taps[-1].stop
        super().__init__(size, settings.noise)
        narrow = settings.width
        # The first column of sound, where there is sound beside something else.
        self.width = next((tap.start for tap in taps if is_audio(tap.tap) and tap.start), size)
        # Log-probabilities are only C + 1 values per row: dropping one would drop a whole class.
        input_dropout = nn.Dropout(0.0 if settings.temporal_input else settings.dropout)
        self.project = nn.Sequential(input_dropout, nn.Linear(self.width, narrow), nn.LayerNorm(narrow), nn.GELU())
        self.pool = AttentionPooling(mixed + narrow) if settings.clip_level else None
        self.out = nn.Sequential(nn.Dropout(settings.dropout), nn.Linear(mixed + narrow, classes))
        self.smoothing = Smoothing(classes) if settings.temporal_input and not settings.clip_level else None
        self.sound = SoundGate(size - self.width, narrow, settings.dropout) if self.width < size else None
        # Predicts windows without any sound. It is trained as if there were no sound (`training.fit`), so that such
        # windows lose nothing to the sound of others.
        self.alone: TemporalHead | None = None
        if self.sound is not None:
            pictures = [tap for tap in taps if not is_audio(tap.tap)]
            with torch.random.fork_rng(devices=()):  # its trained weights are loaded; the others begin as without it
                self.alone = type(self)(pictures, classes, settings)  # type: ignore[call-arg]
        if self.smoothing is not None:
            nn.init.zeros_(self.out[-1].weight)  # type: ignore[arg-type]
            if not settings.epochs:
                # Nothing will be trained: the narrowest average alone, about the half second by which `predict` smooths
                # the starter's predictions.
                nn.init.zeros_(self.out[-1].bias)  # type: ignore[arg-type]
                self.smoothing.mixture.data[1:] = -100

    def forward(self, x: Tensor, seen: Tensor, time_s: Tensor) -> Tensor:
        """Return logits ``(B, W, C)``; a row whose columns of sound are all zeros has no sound."""
        if self.alone is None:
            return super().forward(x, seen, time_s)
        audible = x[..., self.width:].any(-1)
        silent = ~audible.any(1)
        alone: Tensor | None = None
        if silent.any() and not self.training:
            alone = self.alone(x[..., :self.width], seen, time_s)
        if alone is not None and silent.all():
            return alone
        if self.training:
            drawn = torch.rand(len(x), 1, device=x.device)
            # The picture is dropped only where there is sound: a window with neither teaches nothing.
            seen = seen & ~((drawn > 1 - DROP_PICTURE) & audible.any(1, keepdim=True))
            audible = audible & (drawn >= DROP_SOUND)
        known = torch.cat([mask[..., None].expand(-1, -1, columns) for mask, columns in
                           ((seen, self.width), (audible, x.shape[-1] - self.width))], -1)
        x = self.standardise(x, known)
        if self.training and self.noise:
            x = x + self.noise * torch.randn_like(x) * known
        logits = self.logits(x, seen, time_s, audible)
        return logits if alone is None else torch.where(silent[:, None, None], alone, logits)

    def logits(self, x: Tensor, seen: Tensor, time_s: Tensor, audible: Tensor | None = None) -> Tensor:
        narrow, known = self.project(x[..., :self.width]), seen
        if self.sound is not None and audible is not None:
            narrow, known = self.sound(narrow, x[..., self.width:], seen, audible), seen | audible
        rows = torch.cat([self.mix(narrow, known, time_s), narrow * known[..., None]], -1)
        logits: Tensor = self.out(rows if self.pool is None else self.pool(rows, known))
        if self.smoothing is not None:
            # Smoothing needs log-probabilities as they came in; the last column is the change between frames.
            log_probs = self.standardise.undo(x)[..., :logits.shape[-1]]
            logits = logits + self.smoothing(log_probs, seen, time_s)
        return logits

    def mix(self, narrow: Tensor, seen: Tensor, time_s: Tensor) -> Tensor:
        """Return ``(B, W, mixed)`` of ``(B, W, width)``."""
        raise NotImplementedError


class SoundGate(nn.Module):
    """Adds the sound of a frame to its picture, as far as a gate that reads both lets it pass."""

    def __init__(self, size: int, width: int, dropout: float) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Dropout(dropout), nn.Linear(size, width), nn.LayerNorm(width), nn.GELU())
        self.gate = nn.Linear(2 * width, width)

    def forward(self, narrow: Tensor, sound: Tensor, seen: Tensor, audible: Tensor) -> Tensor:
        """Return ``(B, W, width)`` of the picture ``(B, W, width)`` and the sound ``(B, W, A)``."""
        picture, sound = narrow * seen[..., None], self.project(sound) * audible[..., None]
        gated: Tensor = picture + torch.sigmoid(self.gate(torch.cat([picture, sound], -1))) * sound
        return gated


class Smoothing(nn.Module):
    """Moving averages of single frames' log-probabilities over frames with a face, with a learned mixture and scale."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.mixture = nn.Parameter(torch.zeros(len(HALF_WIDTHS_S)))
        self.scale = nn.Parameter(torch.ones(classes))

    def forward(self, log_probs: Tensor, seen: Tensor, time_s: Tensor) -> Tensor:
        """Return ``(B, W, C)`` of log-probabilities ``(B, W, C)``; zeros where no frame with a face is in reach."""
        apart_s = (time_s[:, :, None] - time_s[:, None, :]).abs()
        averages = torch.zeros_like(log_probs)
        for weight, half_s in zip(self.mixture.softmax(0), HALF_WIDTHS_S, strict=True):
            # The tick admits frames at exactly the half width despite rounding of float32 seconds.
            in_reach = ((apart_s <= half_s + TICK_S) & seen[:, None, :]).to(log_probs.dtype)
            averages = averages + weight * (in_reach @ log_probs) / in_reach.sum(-1, keepdim=True).clamp_min(1)
        return averages * self.scale


class GRUHead(TemporalHead):
    """A bidirectional GRU over the rows; a row without a face is zeros, and an extra input flags it."""

    def __init__(self, taps: Sequence[TapSlice], classes: int, settings: HeadSettings) -> None:
        super().__init__(taps, classes, settings, 2 * settings.width)
        self.gru = nn.GRU(settings.width + 1, settings.width, settings.depth, batch_first=True, bidirectional=True)

    def mix(self, narrow: Tensor, seen: Tensor, time_s: Tensor) -> Tensor:
        mask = seen[..., None].to(narrow.dtype)
        hidden, _ = self.gru(torch.cat([narrow * mask, mask], -1))
        return hidden  # type: ignore[no-any-return]


class TransformerHead(TemporalHead):
    """Attention over the rows with a face that decays with distance in real seconds; pre-norm blocks."""

    def __init__(self, taps: Sequence[TapSlice], classes: int, settings: HeadSettings) -> None:
        super().__init__(taps, classes, settings, settings.width)
        self.blind = nn.Parameter(torch.zeros(settings.width))
        self.blocks = nn.ModuleList(_Block(settings) for _ in range(settings.depth))
        self.norm = nn.LayerNorm(settings.width)

    def mix(self, narrow: Tensor, seen: Tensor, time_s: Tensor) -> Tensor:
        rows = torch.where(seen[..., None], narrow, self.blind) + positions(time_s, narrow.shape[-1])
        # A window without any face attends to all its rows: attention over nothing is NaN.
        attended = seen | ~seen.any(1, keepdim=True)
        apart_s = (time_s[:, :, None] - time_s[:, None, :]).abs()
        for block in self.blocks:
            rows = block(rows, attended, apart_s)
        return self.norm(rows)  # type: ignore[no-any-return]


class _Block(nn.Module):
    """Pre-norm attention whose scores decay with distance, at a learned rate per attention head, then an MLP."""
    # The decay is that of ALiBi (Press, Smith and Lewis 2022), here over seconds and in both directions.

    def __init__(self, settings: HeadSettings) -> None:
        super().__init__()
        width = settings.width
        self.heads, self.dropout = math.gcd(width, max(1, width // HEAD_WIDTH)), min(settings.dropout, 0.2)
        # Stored as logarithms: a slope stays positive whatever the optimizer does.
        self.slopes = nn.Parameter(torch.linspace(math.log(SLOPES[0]), math.log(SLOPES[1]), self.heads))
        self.norm, self.qkv, self.joined = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(),
                                 nn.Dropout(self.dropout), nn.Linear(2 * width, width))
        self.drop = nn.Dropout(self.dropout)

    def forward(self, rows: Tensor, attended: Tensor, apart_s: Tensor) -> Tensor:
        windows, length, width = rows.shape
        split = self.qkv(self.norm(rows)).reshape(windows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        bias = -self.slopes.exp()[:, None, None] * apart_s[:, None]  # (B, H, W, W)
        bias = bias.masked_fill(~attended[:, None, None, :], float("-inf")).to(split.dtype)
        mixed = F.scaled_dot_product_attention(split[0], split[1], split[2], bias)
        rows = rows + self.drop(self.joined(mixed.transpose(1, 2).reshape(windows, length, width)))
        return rows + self.drop(self.mlp(rows))  # type: ignore[no-any-return]


def positions(time_s: Tensor, width: int) -> Tensor:
    """Return sinusoids of real time, ``(B, W, width)``, with periods from .1 to 100 seconds."""
    # Vaswani et al. 2017, with seconds as positions, so that clips of different frame rates get the same positions.
    periods = torch.logspace(-1, 2, width // 2, device=time_s.device)
    angle = time_s[..., None] * (2 * math.pi / periods)
    return F.pad(torch.cat([angle.sin(), angle.cos()], -1), (0, width % 2))


# The heads of Mao, Fan and Peng 2021 (arXiv 2107.05160), following their code.

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
        heads = math.gcd(settings.width, ATTENTION_HEADS)  # 12 at the paper's width; it must divide any other
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
