"""The door of pyarrow for those who read tables: a parquet file's rows as text, like those of a CSV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fercache.errors import InputError, MissingExtra

ROWS_A_BATCH = 16_384


def rows(path: Path) -> Iterator[Sequence[str]]:
    """Yield the rows of a parquet file as text, the header first; a batch of rows is in memory at a time.

    Raises
    ------
    InputError
        It is no parquet file, or a damaged one.
    MissingExtra
        pyarrow is not installed.
    """
    try:
        from pyarrow import ArrowException, parquet  # optional extra: only those who bring such tables need it
    except ImportError as error:
        raise MissingExtra("reading .parquet needs pyarrow", where=path,
                           hint="pip install 'fercache[parquet]', or give the table as .csv") from error
    try:
        with parquet.ParquetFile(path) as table:
            yield list(table.schema_arrow.names)
            for batch in table.iter_batches(ROWS_A_BATCH):
                yield from zip(*([_text(value) for value in column.to_pylist()] for column in batch.columns),
                               strict=True)
    except ArrowException as error:
        raise InputError(f"not readable as parquet ({error})", where=path, hint="write it again") from error


def _text(value: Any) -> str:
    """Return a cell as text; whole numbers that a gap made floating lose their point."""
    if value is None:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
