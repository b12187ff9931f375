"""Taps: the values of InceptionResnetV1 that can be stored, their shapes, and their layout in a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from fercache.errors import InputError

CROP_PX = 160
EMBEDDING = "embedding"  # the net's last vector, which identifies a person
AUDIO = "audio"  # name of the taps of sound, alone or before a dash: heads read them beside those of the picture
GRID = 3
POOLED = "pooled"  # the last vector of a net of timm or transformers, before any classifier
FORMS = ("3x3", "map", "cls", "tokens")
"""Endings of taps: means over a 3 x 3 grid, all positions, the class token, all tokens; without one, the mean."""
BLOCKS: dict[str, tuple[int, int, int]] = {
    "conv2d_4b": (256, 17, 17), "repeat_1": (256, 17, 17), "mixed_6a": (896, 8, 8), "repeat_2": (896, 8, 8),
    "mixed_7a": (1792, 3, 3), "repeat_3": (1792, 3, 3), "block8": (1792, 3, 3)}
"""Output (C, h, w) of each block for crops of 160 pixels, in the order in which the net runs them."""


def tap_shapes(taps: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return the shape of a frame's row of each tap, in the order of `taps`.

    `taps`: ``BLOCK`` is the mean over positions, (C,); ``BLOCK-3x3`` the mean over each cell of a 3 x 3 grid, (C, 3,
    3); ``BLOCK-map`` the block's output, (C, h, w); ``embedding`` the identity vector of length 1, (512,). Raises
    InputError if no tap, a duplicate, or an unknown one; the message lists the known ones.
    """
    hint = f"known are {EMBEDDING} and {', '.join(BLOCKS)}, each of these also as NAME-3x3 (grid) and NAME-map"
    if not taps or len(set(taps)) != len(taps):
        raise InputError("no taps" if not taps else "duplicate tap", where=", ".join(taps) or "taps", hint=hint)
    shapes: dict[str, tuple[int, ...]] = {}
    for tap in taps:
        block, form = split_tap(tap)
        channels, *sides = BLOCKS.get(block, (0, 0, 0))
        forms = {"": (channels,), "3x3": (channels, GRID, GRID), "map": (channels, *sides)}
        if tap == EMBEDDING:
            shapes[tap] = (512,)
        elif block not in BLOCKS or form not in forms:
            raise InputError(f"unknown tap {tap!r}", where="taps", hint=hint)
        else:
            shapes[tap] = forms[form]
    return shapes


def split_tap(tap: str) -> tuple[str, str]:
    """Return the block or node and the form ("", "3x3", "map", "cls" or "tokens") of a tap."""
    node, _, form = tap.rpartition("-")
    return (node, form) if node and form in FORMS else (tap, "")


def is_audio(tap: str) -> bool:
    """Return whether a tap, of a joined store too, holds features of sound; rows of zeros are frames without sound."""
    return tap.rpartition("/")[2].partition("-")[0] == AUDIO


def tap_views(tap: str) -> str:
    """Return the name of a store's array with the views of a tap, (T, V - 1, ...)."""
    return tap + "_views"


@dataclass(frozen=True, kw_only=True)
class TapSlice:
    """The part of a row that holds one tap: values ``start:stop``, of `shape` (D,) or (C, h, w)."""

    tap: str
    start: int
    stop: int
    shape: tuple[int, ...]


def row_layout(stored: Mapping[str, tuple[int, ...]], taps: Sequence[str], where: object) -> tuple[TapSlice, ...]:
    """Return the layout of a row with `taps`; `stored` has the shape of each tap in the store at `where`.

    Raises InputError if the store lacks one of the taps.
    """
    missing = [tap for tap in taps if tap not in stored]
    if missing or not taps:
        raise InputError(f"has no tap {missing[0]}" if missing else "no tap was chosen", where=where,
                         hint=f"it has {', '.join(stored)}: choose with --taps, or extract again")
    layout, start = [], 0
    for tap in taps:
        layout.append(TapSlice(tap=tap, start=start, stop=start + prod(stored[tap]), shape=tuple(stored[tap])))
        start = layout[-1].stop
    return tuple(layout)
