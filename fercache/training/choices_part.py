"""From the recipe to what each head is trained with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fercache.config import TrainConfig
from fercache.heads.base import DEFAULTS, DIRECT, HeadSettings

FEW_GROUPS_EPOCHS = 0.5
"""Share of the usual epochs that is run where too few groups leave nothing to choose the epoch by."""
OWN = {"loss": "", "label_smoothing": -1, "epochs": 0, "patience": -1, "width": 0, "dropout": -1, "lr": 0, "ema": -1,
       "mixup": -1, "noise": -1}
"""Keys of the recipe that every head has, and the value by which the recipe leaves it to the head."""
TEMPORAL = {"window_s": 0, "step_s": -1, "hide_s": -1}


def settings_for(head: str, config: TrainConfig, device: str, *, evidence: bool, fixed: bool) -> HeadSettings:
    """Return what a head is trained with: the recipe's word, else the head's own settings.

    Parameters
    ----------
    evidence : whether there is held-out evidence for temporal heads to read.
    fixed : whether there are too few groups to choose the number of epochs.
    """
    own = DEFAULTS[head]
    if own.evidence and not evidence:
        own = replace(own, evidence=False, **DIRECT[head])
    keys = OWN | (TEMPORAL if own.window_s else {})
    said: dict[str, Any] = {key: value for key, left in keys.items() if (value := getattr(config, key)) != left}
    made = replace(own, **said, precision=_precision(config.precision, device))
    if own.window_s:
        made = replace(made, clip_level=config.level == "clip" and not head.startswith("paper-"))
    elif head == "frame":
        made = replace(made, tail=config.tail)
    return replace(made, epochs=max(1, round(made.epochs * FEW_GROUPS_EPOCHS))) if fixed else made


def _precision(asked: str, device: str) -> str:
    return asked if asked != "auto" else "float32" if device == "cpu" else "bf16"
