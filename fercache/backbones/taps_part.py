"""Taps: which values of the CNN are kept, and how several of them lie side by side in a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from fercache.errors import InputError

IDENTITY = "embedding"
"""The net's last vector, which says who somebody is."""


def views_of(tap: str) -> str:
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
