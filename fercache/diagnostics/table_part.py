"""The table: its rows, and what they were scored on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fercache.diagnostics.score_part import Figure


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table: a change of the recipe, and each column's figures; or why there are none (`skipped`)."""

    name: str
    changed: dict[str, Any]
    figures: dict[str, Figure]
    bytes_a_frame: int
    books: tuple[str, ...]
    skipped: str = ""
    failed: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """All rows, the default first, and what they were scored on.

    Attributes
    ----------
    reported : split -> column -> macro F1 of the default on the other splits, mean over seeds; shown, never compared.
    why_none : why there are no intervals, if so.
    """

    dataset: str
    notice: str
    store: str
    groups: int
    frames: int
    seeds: int
    rows: tuple[Row, ...]
    reported: dict[str, dict[str, float]]
    why_none: str
