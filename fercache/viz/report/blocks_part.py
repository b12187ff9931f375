"""What a section of the page is made of: figures, tables, and a sentence where something is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of a table; `value` is the number behind the text, as it was recorded."""

    text: str
    value: float | int | None = None
    strong: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table; `says` is the sentence that says how to read it, `name` finds it in the page."""

    name: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    says: str
    kind: str = "table"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure of the plotting library as JSON; `says` is the sentence that says how to read it."""

    name: str
    json: str
    says: str
    height: int = 380
    kind: str = "figure"


@dataclass(frozen=True, kw_only=True)
class Note:
    """A sentence; where something is missing, what to do to have it."""

    text: str
    missing: bool = False
    kind: str = "note"


Block = Table | Figure | Note


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page."""

    name: str
    title: str
    blocks: Sequence[Block]


def cells(*values: Any) -> list[Cell]:
    """Return a cell for each value: numbers keep their value, None is a dash."""
    return [_cell(value) for value in values]


def _cell(value: Any) -> Cell:
    if isinstance(value, Cell):
        return value
    if value is None:
        return Cell(text="–")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return Cell(text=str(value))
    return Cell(text=f"{value:,}" if isinstance(value, int) else f"{value:.4f}", value=value)


def missing(what: str, how: str) -> Note:
    """Return the sentence for something that was not recorded."""
    return Note(text=f"{what} {how}", missing=True)
