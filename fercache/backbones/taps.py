"""Which values of InceptionResnetV1 can be kept, and their shapes."""

from __future__ import annotations

from collections.abc import Sequence

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
