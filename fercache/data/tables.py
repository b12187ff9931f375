"""The table layer: CSV and parquet files through pyarrow, as batches of columns, rows of text or pieces of one clip.

A table that is not what it should be is an InputError. Below the layer: labels of tables as words or numbers.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import csv, parquet

from fercache.data.base import UNKNOWN, Issue
from fercache.data.labels import UTF_16, whole_number
from fercache.errors import ClipError, InputError
from fercache.media.source import check_content

# pyarrow refuses a line that is longer than a block; 131,072 features a line, the most that `import` takes, need 3 MB.
BLOCK_BYTES = 4 << 20
PARQUET_ROWS = 1024
# Python objects take ten times the memory of columns, so rows of text are made from this many lines at a time.
TEXT_ROWS = 16_384
MAX_EXACT_INT = 2**53
LONGEST_LINE = 1 << 23  # most characters of the first line that are searched for a delimiter
SHOWN = 60
NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:[.,][0-9]*)?|[.,][0-9]+)(?:e[+-]?[0-9]+)?", re.IGNORECASE)

MOST_CLASSES = 200
NOTHING = frozenset(("", "-1", "na", "n/a", "<na>", "nan", "none", "null"))
"""Cells without a label, in lower case; a class that is named with --classes may have such a name."""
DELIMITERS = ",;\t"
SEPARATOR_LINE = re.compile(r"sep=(.)\r?\n?", re.IGNORECASE)  # first line by which spreadsheets name the delimiter
SPREADSHEETS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # first bytes of Excel's and OpenDocument's files
THOUSANDS = r",000\s*$"  # end of a number that may be 1 or 1000


class Dialect(NamedTuple):
    """How a CSV is written; `names` are the column names in the file, with blanks around them."""

    delimiter: str
    encoding: str
    skipped: int  # lines before the header
    names: list[str]


def read_header(path: Path) -> list[str]:
    """Return the column names of a table, without blanks around them."""
    with _table_errors(path):
        if _is_parquet(path):
            return list(parquet.read_schema(path).names)
        return [name.strip() for name in sniff(path).names]


def sniff(path: Path) -> Dialect:
    """Return how a CSV is written, from its first line."""
    with pa.input_stream(str(path)) as file:
        head = bytes(file.read(4))
    # Without a byte order mark, every other byte of an ASCII header in UTF-16 is zero.
    encoding = ("utf-16" if head[:2] in UTF_16 else "utf-16-le" if head[1::2] == b"\0\0" else
                "utf-16-be" if head[::2] == b"\0\0" else "utf-8")
    with pa.input_stream(str(path)) as file, TextIOWrapper(file, "utf-8-sig" if encoding == "utf-8" else encoding,
                                                           errors="surrogateescape", newline="") as text:
        line = text.readline(LONGEST_LINE)
        named = SEPARATOR_LINE.fullmatch(line)
        if named:
            line = text.readline(LONGEST_LINE)
        # A name in quotes may hold line breaks.
        while line.count('"') % 2 and (more := text.readline(LONGEST_LINE)) and len(line) < LONGEST_LINE:
            line += more
    bare = re.sub('"[^"]*"', "", line)
    # Of equal counts the comma: a table of one column has no delimiter.
    dialect = Dialect(named[1] if named else max(DELIMITERS, key=bare.count), encoding, int(bool(named)), [])
    # The header alone: of a whole block pyarrow would convert every column. Bytes that are no UTF-8 stay for its error.
    header = line.encode(errors="surrogateescape")
    decoded = dialect._replace(encoding="utf-8", skipped=0)
    with _open_csv(pa.BufferReader(header), decoded, block=len(header) + 1) as reader:
        return dialect._replace(names=list(reader.schema.names))


def read_batches(path: Path, columns: Sequence[str] = ()) -> Iterator[tuple[int, Any]]:
    """Yield (line of the first row, `pyarrow.RecordBatch`); the columns of a CSV are text, others have their own types.

    `path`: .csv, .csv.gz or .parquet, whose header is line 1. `columns`: those to read; all if none is named.
    """
    # One block of the file is in memory at a time.
    line = 2
    with _table_errors(path):
        if _is_parquet(path):
            with parquet.ParquetFile(path) as table:
                for batch in table.iter_batches(PARQUET_ROWS, columns=list(columns) or None):
                    yield line, batch
                    line += len(batch)
            return
        dialect = sniff(path)
        ragged: list[csv.InvalidRow] = []
        line += dialect.skipped
        with pa.input_stream(str(path)) as file:
            try:
                wanted = [name for name in dialect.names if name.strip() in columns]
                # The header is in the first block; a letter has up to four bytes.
                block = max(BLOCK_BYTES, 8 * sum(map(len, dialect.names)))
                with _open_csv(file, dialect, wanted, ragged, block) as reader:
                    for batch in reader:
                        yield line, batch.rename_columns([name.strip() for name in batch.schema.names])
                        line += len(batch)
            except pa.ArrowInvalid as error:
                if not ragged:
                    raise
                row = ragged[0]
                counts = f"{row.actual_columns} values for {row.expected_columns} columns"
                raise InputError(f"line {row.number} has {counts}: {row.text.strip()[:SHOWN]!r}",
                                 where=path, hint=f"put quotes around values that hold {dialect.delimiter!r}, and "
                                                  "close each quote; or the file is cut off") from error


def read_rows(path: Path) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield (line, values as text) for each row of a table, without the header; raises as `read_batches` does."""
    for first, batch in read_batches(path):
        for start in range(0, len(batch), TEXT_ROWS):
            texts = [to_text(column) for column in batch.slice(start, TEXT_ROWS).columns]
            yield from enumerate(zip(*texts, strict=True), first + start)


def read_pieces(path: Path, columns: Sequence[str] = (), key: str = "clip") -> Iterator[tuple[str, int, Any]]:
    """Yield (clip, line, `pyarrow.RecordBatch`), cut where another clip begins; raises as `read_batches` does.

    `key`: column with the clips' names; "" for a table of one clip, which then is "".
    """
    for line, batch in read_batches(path, columns):
        clips = to_text(batch.column(key)) if key else [""] * len(batch)
        cuts = [0, *(i for i in range(1, len(clips)) if clips[i] != clips[i - 1]), len(clips)]
        for start, stop in pairwise(cuts):
            if stop > start:  # a file may hold an empty batch
                yield clips[start], line + start, batch.slice(start, stop - start)


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def _open_csv(file: Any, dialect: Dialect, columns: Sequence[str] = (),
              ragged: list[csv.InvalidRow] | None = None, block: int = BLOCK_BYTES) -> csv.CSVStreamingReader:
    """Return a reader of all columns as text; rows of another length than the header go to `ragged` and end it."""
    def on_ragged(row: csv.InvalidRow) -> str:
        if not row.text.strip() or ragged is None:
            return "skip"
        ragged.append(row)
        return "error"

    # With several threads pyarrow gives no row numbers. It counts empty lines only where it does not ignore them.
    return csv.open_csv(file, csv.ReadOptions(use_threads=False, block_size=block, skip_rows=dialect.skipped,
                                              encoding="utf8" if dialect.encoding == "utf-8" else dialect.encoding),
                        csv.ParseOptions(delimiter=dialect.delimiter, newlines_in_values=True, ignore_empty_lines=False,
                                         invalid_row_handler=on_ragged),
                        csv.ConvertOptions(column_types=dict.fromkeys(dialect.names, pa.string()),
                                           strings_can_be_null=False, include_columns=list(columns)))


@contextmanager
def _table_errors(path: Path) -> Iterator[None]:
    """Turn an error of pyarrow or of the file system into an InputError that names the file."""
    try:
        if path.is_file():
            check_content(path)
            with path.open("rb") as file:
                if file.read(4) in SPREADSHEETS:
                    raise InputError("a spreadsheet or a zip archive, not a table", where=path,
                                     hint="save the sheet as CSV (in Excel: CSV UTF-8)")
        yield
    except ClipError as error:
        raise InputError(error.what, where=path, hint=error.hint) from error
    except InputError:  # it is a ValueError too
        raise
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        number = error.errno if isinstance(error, OSError) else None
        cause = os.strerror(number) if number else str(error)[:200]
        raise InputError(f"not readable as a table ({cause})", where=path,
                         hint="save it again in UTF-8 (in Excel: CSV UTF-8)" if "invalid UTF8" in cause else
                              "check the path; a table is .csv (UTF-8; with commas, semicolons or tabs) or "
                              ".parquet, its first line the column names; if it was one, the file is cut off or "
                              "damaged") from error


# The cells of a column.


def to_text(column: Any) -> list[str]:
    """Return a column as text; a missing value is "", and whole floating-point numbers lose their point."""
    if pa.types.is_string(column.type) and not column.null_count:
        return list(column.to_pylist())
    # pandas turns whole numbers with a gap into floating-point ones.
    return ["" if value is None else str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
            for value in column.to_pylist()]


def to_floats(column: Any, missing: float = np.nan) -> NDArray[np.float64]:
    """Return a column of numbers, or of text that spells numbers, ``(n,)``; empty cells become `missing`.

    Raises ValueError if a cell is not a number; the error quotes it.
    """
    if pa.types.is_string(column.type):
        column = pc.replace_substring(pc.utf8_trim_whitespace(column), ",", ".")  # decimal commas
        column = pc.if_else(pc.equal(column, ""), None, column)
    try:
        values = column.cast(pa.float64())
    except pa.ArrowException:
        values = pa.array([None if value is None else float(value) for value in column.to_pylist()], pa.float64())
    return np.asarray(values.fill_null(missing).to_numpy(zero_copy_only=False), np.float64)


def to_ints(column: Any, missing: float = np.nan) -> NDArray[np.int64]:
    """Return a column of whole numbers, ``(n,)``; empty cells become `missing`.

    Raises ValueError if a cell is not a whole number; the error quotes it.
    """
    if pa.types.is_string(column.type) and pc.any(wrong := pc.match_substring_regex(column, THOUSANDS)).as_py():
        raise ValueError(f"{column.filter(wrong)[0].as_py()!r} may be 1 or 1000 times as much: write no comma")
    values = to_floats(column, missing)
    whole = (np.floor(values) == values) & (np.abs(values) <= MAX_EXACT_INT)
    if not whole.all():
        raise ValueError(f"{to_text(column)[int(np.argmin(whole))][:40]!r} is not a whole number")
    return values.astype(np.int64)


def number(text: str) -> float | None:
    """Return the number that a cell spells, with a decimal point or comma; None for anything else."""
    return float(text.strip().replace(",", ".")) if NUMBER.fullmatch(text.strip()) else None


# Tables of clips and labels: columns by name, labels as words or numbers.


def named_rows(path: Path, required: Sequence[str],
               optional: Sequence[str] = ()) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, {column: text}) for each row of a table, without blank lines."""
    names = check_columns(read_header(path), path, required, optional)
    for line, values in read_rows(path):
        # Labels keep outer spaces, which are reported.
        row = {name: value if name == "label" else value.strip() for name, value in zip(names, values, strict=True)}
        if any(map(str.strip, row.values())):
            yield line, row


def check_columns(header: Sequence[str], path: Path, required: Sequence[str],
                  optional: Sequence[str] = ()) -> list[str]:
    """Return the column names of a table in lower case, without blanks around them."""
    names = [name.strip().casefold() for name in header]
    # Row numbers of pandas and a delimiter at the end of each line make columns without a name.
    named = [name for name in names if not is_unnamed(name)]
    expected = (f"the columns are {','.join(required)}" + "".join(f"[,{name}]" for name in optional)
                + f"; found: {','.join(names)[:200]}")
    for wrong, what in ((sorted(set(required) - set(names)), "is missing"),
                        (sorted(set(named) - {*required, *optional}), "is unknown"),
                        (sorted(name for name, count in Counter(named).items() if count > 1), "appears twice")):
        if wrong:
            raise InputError(f"column {wrong[0][:80]!r} {what}", where=path, hint=expected)
    return names


def is_unnamed(column: str) -> bool:
    """Return whether a column has no name, or only the one that pandas gives such a column."""
    return not column.strip() or re.fullmatch(r"unnamed: \d+", column, re.IGNORECASE) is not None


def merge_spellings(words: Iterable[str]) -> tuple[list[str], list[Issue]]:
    """Return the labels that occur, in alphabetical order, and a note about those that are written in several ways.

    Labels that differ in case or in outer spaces are one; of its spellings, the one in lower case counts.
    """
    spellings: dict[str, set[str]] = {}
    for word in words:
        if word.strip().casefold() not in NOTHING:
            spellings.setdefault(word.strip().casefold(), set()).add(word)
    issues = [Issue(kind="spelling", where="labels", severity="note", hint="write it in one way",
                    message="one class is written in several ways: "
                            + ", ".join(map(repr, sorted(same, key=str.swapcase))))
              for same in spellings.values() if len(same) > 1]
    return sorted(min((word.strip() for word in same), key=str.swapcase) for same in spellings.values()), issues


def class_list(words: Iterable[str], chosen: tuple[str, ...], path: Path) -> tuple[str, ...]:
    """Return the class names: those chosen, or the labels that occur, in alphabetical order."""
    if chosen:
        return chosen
    found = [word for word in merge_spellings(words)[0] if whole_number(word) != UNKNOWN]
    numbers = [word for word in found if NUMBER.fullmatch(word)]
    if numbers:
        raise InputError(f"label {numbers[0]!r} is a number, and the classes have no names", where=path,
                         hint="name them in order, from 0 on: --classes Neutral,Anger,..")
    if len(found) > MOST_CLASSES:
        raise InputError(f"{len(found)} different labels, for example {found[0]!r}: are these classes?", where=path,
                         hint="check the column label, or name the classes with --classes")
    return tuple(found)


def code(word: str, classes: Sequence[str]) -> int | None:
    """Return the index of a label (a class name or a number), -1 for no label, None if it is not a class."""
    word = word.strip()
    number = whole_number(word)
    if word in classes:
        return classes.index(word)
    if word.casefold() in NOTHING or number == UNKNOWN:
        return UNKNOWN
    if number is not None:
        return number if 0 <= number < len(classes) else None
    same = [index for index, name in enumerate(classes) if name.casefold() == word.casefold()]
    return same[0] if len(same) == 1 else None
