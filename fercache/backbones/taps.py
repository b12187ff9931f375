"""Which values of InceptionResnetV1 can be kept, and their shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from fercache.errors import InputError

CROP_PX = 160
EMBEDDING = "embedding"
GRID = 3
BLOCKS: dict[str, tuple[int, int, int]] = {
    "conv2d_4b": (256, 17, 17), "repeat_1": (256, 17, 17), "mixed_6a": (896, 8, 8), "repeat_2": (896, 8, 8),
    "mixed_7a": (1792, 3, 3), "repeat_3": (1792, 3, 3), "block8": (1792, 3, 3)}
"""Output (C, h, w) of each block for crops of 160 pixels, in the order they are run."""
FORMS = {"": "mean over positions", "3x3": "average grid", "map": "as it is"}


def tap_shapes(taps: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return the shape of a frame's row of each tap, in the order of `taps`.

    Parameters
    ----------
    taps : ``BLOCK`` is the mean over positions, (C,); ``BLOCK-3x3`` an average grid, (C, 3, 3); ``BLOCK-map`` the
        block's output, (C, h, w); ``embedding`` the identity vector of length 1, (512,).

    Raises
    ------
    InputError
        No tap, a tap twice, or an unknown one; the message lists the known ones.
    """
    if not taps or len(set(taps)) != len(taps):
        raise InputError("taps must be named, and each once", where=", ".join(taps) or "taps", hint=_known())
    return {tap: _shape(tap) for tap in taps}


def block_of(tap: str) -> tuple[str, str]:
    """Return the block (or ``embedding``) and the form ("", "3x3" or "map") of a tap."""
    block, _, form = tap.partition("-")
    return block, form


def _shape(tap: str) -> tuple[int, ...]:
    block, form = block_of(tap)
    if tap == EMBEDDING:
        return (512,)
    if block not in BLOCKS or form not in FORMS or tap.endswith("-"):
        raise InputError(f"no tap is called {tap!r}", where="taps", hint=_known())
    channels, height, width = BLOCKS[block]
    return {"": (channels,), "3x3": (channels, GRID, GRID), "map": (channels, height, width)}[form]


def _known() -> str:
    return f"known are {EMBEDDING} and {', '.join(BLOCKS)}, each of these also as NAME-3x3 (grid) and NAME-map"


# Taps: which values of the CNN are kept, and how several of them lie side by side in a row.

IDENTITY = "embedding"
"""The net's last vector, which says who somebody is."""


def tap_views(tap: str) -> str:
    """Return under which name a store keeps the views of a tap, (T, V - 1, ...)."""
    return tap + "_views"


@dataclass(frozen=True, kw_only=True)
class TapSlice:
    """Where one tap lies in a row: values ``start:stop``, of `shape` (D,) or (C, h, w)."""

    tap: str
    start: int
    stop: int
    shape: tuple[int, ...]


def side_by_side(held: Mapping[str, tuple[int, ...]], taps: Sequence[str], where: object) -> tuple[TapSlice, ...]:
    """Return how `taps` lie in a row; `held` says the shape of each tap that the store at `where` has.

    Raises
    ------
    InputError
        The store does not hold one of the taps.
    """
    missing = [tap for tap in taps if tap not in held]
    if missing or not taps:
        raise InputError(f"does not hold the tap {missing[0]}" if missing else "no tap was chosen", where=where,
                         hint=f"it holds {', '.join(held)}: choose with --taps, or extract again")
    layout, start = [], 0
    for tap in taps:
        layout.append(TapSlice(tap=tap, start=start, stop=start + prod(held[tap]), shape=tuple(held[tap])))
        start = layout[-1].stop
    return tuple(layout)
