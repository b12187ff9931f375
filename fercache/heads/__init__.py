"""The heads: each turns rows ``(B, W, D)`` and a mask ``(B, W)`` into logits ``(B, W, C)``."""

from __future__ import annotations

from collections.abc import Sequence

from fercache.backbones.taps import TapSlice
from fercache.errors import InputError
from fercache.heads.base import Head, HeadSettings
from fercache.heads.frame import FrameHead
from fercache.heads.paper import PaperFrameHead, PaperGRUHead, PaperTransformerHead
from fercache.heads.temporal import GRUHead, TransformerHead

HEADS: dict[str, type[Head]] = {
    "frame": FrameHead, "gru": GRUHead, "transformer": TransformerHead, "paper-frame": PaperFrameHead,
    "paper-gru": PaperGRUHead, "paper-transformer": PaperTransformerHead}


def build_head(name: str, parts: Sequence[TapSlice], classes: int, settings: HeadSettings) -> Head:
    """Return a fresh head of that name.

    Raises
    ------
    InputError
        There is no such head.
    """
    if name not in HEADS:
        raise InputError(f"no head {name!r}", hint=f"known heads: {', '.join(HEADS)}")
    head = HEADS[name](parts, classes, settings)  # type: ignore[call-arg,arg-type]
    head.classes = classes
    return head


def classes_of(head: Head) -> int:
    """Return how many classes a head tells apart."""
    return head.classes
