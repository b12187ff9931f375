"""The table as files: a CSV with a line a row and column, and all of it as JSON beside it."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict
from pathlib import Path

from fercache.diagnostics.score_part import Figure
from fercache.diagnostics.table_part import Table
from fercache.errors import InputError
from fercache.runtime import atomic_io


def write(table: Table, out: Path) -> list[Path]:
    """Put the table at `out` (.csv), a line a row and column, and all of it as JSON beside it; return both paths.

    Raises
    ------
    InputError
        Another ending, or nothing can be written there.
    """
    check(out)
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["row", "column", "macro_f1", "sd_over_seeds", "low", "high", "difference", "difference_low",
                    "difference_high", "bytes_a_frame", "seeds", "skipped"])
    for row in table.rows:
        for column, figure in row.figures.items() or [("", None)]:
            lines.writerow([row.name, column, *_cells(figure), row.bytes_a_frame or "", table.seeds, row.skipped])
    atomic_io.write_bytes(out, text.getvalue().encode())
    beside = out.with_suffix(".json")
    atomic_io.write_json(beside, asdict(table))
    return [out, beside]


def check(out: Path) -> None:
    """Refuse a path that no table can be written to, before hours are spent.

    Raises
    ------
    InputError
        Another ending than .csv.
    """
    if out.suffix != ".csv":
        raise InputError("unknown kind of file", where=out, hint="end --out in .csv; the JSON is written beside it")


def _cells(figure: Figure | None) -> list[str]:
    """Return the numbers of a line of the CSV, six decimals each, empty where there are none."""
    if figure is None:
        return [""] * 7
    spans = [figure.interval or ("", ""), figure.difference_interval or ("", "")]
    values = (figure.macro_f1, figure.spread, *spans[0], figure.difference, *spans[1])
    return [value if isinstance(value, str) else f"{value:.6f}" for value in values]
