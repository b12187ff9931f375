"""The heads by name: which net each is, and the settings it is trained with. This module imports no torch.

To add a head, write its class in a module of `fercache/heads/` and register it in `HEADS` below. The choices of
``--heads``, the default settings, and the rules for causal stacks and for frames without a face follow from the entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """What a head is built and trained with; stored in the JSON beside its weights."""

    # `width`, `depth`, `dropout`: of the net; `dropout` applies to a row of CNN features before its projection.
    width: int = 256
    depth: int = 1
    dropout: float = 0.5
    temporal_input: bool = False  # whether the head reads out-of-fold logits of the frame head instead of features
    window_s: float = 4.0  # seconds that a window covers (0: a single frame)
    # Seconds between the frames of a window (0: every frame); for a frame-level head, seconds between the frames of one
    # training epoch. Every frame is predicted all the same.
    step_s: float = 0.0
    batch: int = 16  # windows per step
    lr: float = 1e-3  # peak of the learning rate
    weight_decay: float = 0.02
    epochs: int = 30  # the most
    patience: int = 0  # epochs without gain on the validation groups after which training stops (0: never)
    optimizer: str = "adamw"  # adamw (warm-up, then cosine) or sgd (momentum .9, constant rate)
    # Plain; weighted, balanced (class weights, one over the square root of the class's share, or over the share); focal
    # (weighted, gamma 2); adjusted (the logarithm of the class shares is added to the logits in training).
    loss: str = "weighted"
    label_smoothing: float = 0.05  # share of the target that is spread over all classes
    ema: float = 0.0  # decay of the average of weights (0: none)
    noise: float = 0.0  # standard deviation of noise on normalized features
    mixup: float = 0.0  # alpha of the beta distribution that mixes two windows
    time_mask_s: float = 0.0  # longest stretch that is masked in each window of a temporal head
    precision: str = "float32"  # float32 or bf16 (autocast)
    clip_level: bool = False  # one prediction per clip; windows are pooled by attention
    finetune_tap: str = ""  # spatial tap from which the backbone's own pretrained blocks are trained, "" for none


def with_shape_of(settings: HeadSettings, other: HeadSettings) -> HeadSettings:
    """Return the settings with everything that shapes the weights of the net of `other`; the rest is training."""
    return replace(settings, width=other.width, depth=other.depth, temporal_input=other.temporal_input,
                   clip_level=other.clip_level, finetune_tap=other.finetune_tap)


@dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """One registered head."""

    net: str  # ``module:Class`` below `fercache.heads`, imported when a head is built
    settings: HeadSettings  # used where the recipe sets nothing
    # Settings that differ where a temporal head reads features instead of out-of-fold logits.
    on_features: Mapping[str, Any] = field(default_factory=dict)
    temporal: bool = False  # whether the head predicts frames without a face from their neighbours
    # Whether a prediction depends on later frames; a causal stack leaves such heads out. Without a default, because a
    # new head that forgets it would leak the future into a causal stack.
    lookahead: bool
    pools_clips: bool = False  # whether the head supports `HeadSettings.clip_level`
    finetunes: bool = False  # whether the head supports `HeadSettings.finetune_tap`
    # What it reads where a store of sound is joined: "" the picture only, "joins" both, "only" the sound alone.
    sound: str = ""
    default: bool = False  # whether it is trained where the recipe names no heads


# Rows of features are hundreds of times as wide as rows of logits: they need a wider net and overfit sooner.
_ON_FEATURES = {"width": 192, "dropout": 0.5, "lr": 1e-3}

STARTER_FOLDER = Path(__file__).parent / "starter"
"""The starter heads that are shipped: frame heads, their records, and a card with their data and terms."""

FRAME = "frame"  # the head whose out-of-fold logits temporal heads read

# The order is the order of --help. The paper heads use the settings of Mao, Fan and Peng 2021 (arXiv 2107.05160).
HEADS: dict[str, HeadSpec] = {
    FRAME: HeadSpec(
        net="frame:FrameHead", lookahead=False, finetunes=True, default=True,
        settings=HeadSettings(width=256, window_s=0, step_s=0.2, batch=128, epochs=20, patience=6)),
    "gru": HeadSpec(
        net="temporal:GRUHead", temporal=True, lookahead=True, pools_clips=True, on_features=_ON_FEATURES, default=True,
        sound="joins",
        settings=HeadSettings(width=48, dropout=0.3, temporal_input=True, window_s=8, step_s=0.1, lr=2e-3, patience=8,
                              loss="balanced")),
    "transformer": HeadSpec(
        net="temporal:TransformerHead", temporal=True, lookahead=True, pools_clips=True, on_features=_ON_FEATURES,
        default=True, sound="joins",
        settings=HeadSettings(width=64, depth=2, dropout=0.3, temporal_input=True, window_s=8, step_s=0.1, lr=2e-3,
                              patience=8, loss="balanced")),
    "audio": HeadSpec(
        net="temporal:GRUHead", temporal=True, lookahead=True, pools_clips=True, sound="only",
        settings=HeadSettings(width=96, dropout=0.4, window_s=8, step_s=0.1, patience=8, loss="balanced")),
    "paper-frame": HeadSpec(
        net="temporal:PaperFrameHead", lookahead=False,
        settings=HeadSettings(width=0, dropout=0, window_s=0, batch=96, lr=5e-4, weight_decay=5e-4, epochs=10,
                              optimizer="sgd", loss="plain", label_smoothing=0)),
    # Bidirectional, over windows of .3 s: they use later frames too, although few of them.
    "paper-gru": HeadSpec(
        net="temporal:PaperGRUHead", temporal=True, lookahead=True,
        settings=HeadSettings(width=768, dropout=0, window_s=0.3, batch=96, weight_decay=5e-4, epochs=10, loss="plain",
                              label_smoothing=0)),
    "paper-transformer": HeadSpec(
        net="temporal:PaperTransformerHead", temporal=True, lookahead=True,
        settings=HeadSettings(width=768, depth=2, window_s=0.3, batch=96, weight_decay=5e-4, epochs=10, loss="plain",
                              label_smoothing=0)),
}

DEFAULT_HEADS = tuple(name for name, spec in HEADS.items() if spec.default)
TEMPORAL_HEADS = tuple(name for name, spec in HEADS.items() if spec.temporal)
