"""The nets of the heads: each maps rows ``(B, W, D)`` and a face mask ``(B, W)`` to logits ``(B, W, C)``.

Open `base.py` first, then `frame.py` and `temporal.py`; names and settings are registered in `fercache/head_registry.py`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from fercache.backbones.taps import TapSlice
from fercache.errors import InputError
from fercache.head_registry import HEADS, HeadSettings
from fercache.heads.base import Head


def build_head(name: str, taps: Sequence[TapSlice], classes: int, settings: HeadSettings) -> Head:
    """Return a new head of that name with random weights.

    Raises
    ------
    InputError
        No head of that name is registered.
    """
    if name not in HEADS:
        raise InputError(f"no head {name!r}", hint=f"known heads: {', '.join(HEADS)}")
    module, _, net = HEADS[name].net.partition(":")
    head: Head = getattr(importlib.import_module(f"fercache.heads.{module}"), net)(taps, classes, settings)
    head.classes = classes
    return head
