"""Tables that users bring (.csv, .parquet): rows by column name, and labels as words or numbers."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fercache.data.base import UNKNOWN
from fercache.data.labels import LabelError
from fercache.data.labels import read as read_labels
from fercache.errors import InputError, MissingExtra

# The door of pyarrow for those who read tables: a parquet file's rows as text, like those of a CSV.

ROWS_A_BATCH = 16_384


def table_rows(path: Path) -> Iterator[Sequence[str]]:
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


MOST_CLASSES = 200
NOTHING = frozenset(("", "-1", "nan", "none", "null"))


@contextmanager
def open_table(path: Path) -> Iterator[Iterator[Sequence[str]]]:
    """Yield the rows of a table, the header first, every value as text.

    Raises
    ------
    InputError
        There is no such file, it is no table, or it is no text in UTF-8.
    MissingExtra
        A parquet file without pyarrow.
    """
    try:
        if path.suffix.lower() == ".parquet":
            yield table_rows(path)
        else:
            with path.open(newline="", encoding="utf-8-sig") as handle:
                yield csv.reader(handle, strict=True)
    except OSError as error:
        raise InputError(f"the table cannot be read ({error.strerror or error})", where=path,
                         hint="check the path; a table is .csv or .parquet") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"not a table of comma separated values in UTF-8 ({error})", where=path,
                         hint="a table is .csv or .parquet, its first line the column names") from error


def named_rows(path: Path, required: Sequence[str],
               optional: Sequence[str] = ()) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, {column: text}) for each row of a table, blank lines left out.

    Raises
    ------
    InputError
        A column is missing, unknown or double, or a row has another number of values than the header.
    """
    with open_table(path) as lines:
        header = columns(next(lines, ()), path, required, optional)
        for line, values in enumerate(lines, 2):
            if any(value.strip() for value in values):
                if len(values) != len(header):
                    raise InputError(f"line {line} has {len(values)} values for {len(header)} columns", where=path,
                                     hint="put quotes round values that hold a comma")
                yield line, {name: value.strip() for name, value in zip(header, values, strict=True)}


def columns(header: Sequence[str], path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> list[str]:
    """Return the column names of a table, checked.

    Raises
    ------
    InputError
        A column is missing, unknown or double.
    """
    names = [name.strip().casefold() for name in header]
    expected = f"the columns are {','.join(required)}" + "".join(f"[,{name}]" for name in optional)
    for wrong, what in ((sorted(set(required) - set(names)), "is missing"),
                        (sorted(set(names) - {*required, *optional}), "is unknown"),
                        (sorted(name for name, count in Counter(names).items() if count > 1), "appears twice")):
        if wrong:
            raise InputError(f"column {wrong[0][:80]!r} {what}", where=path, hint=expected)
    return names


def class_list(words: Iterable[str], chosen: tuple[str, ...], path: Path) -> tuple[str, ...]:
    """Return the class names: those chosen, or the words that occur, in alphabetical order.

    Raises
    ------
    InputError
        The labels are numbers, and nothing says what they mean; or too many differ to be classes.
    """
    if chosen:
        return chosen
    found = sorted({word for word in words if word.casefold() not in NOTHING})
    numbers = [word for word in found if word.lstrip("-").isdigit()]
    if numbers:
        raise InputError(f"label {numbers[0]!r} is a number, and the classes have no names", where=path,
                         hint="name them in order, from 0 on: --classes Neutral,Anger,..")
    if len(found) > MOST_CLASSES:
        raise InputError(f"{len(found)} different labels, {found[0]!r} for one: are these classes?", where=path,
                         hint="check the column label, or name the classes with --classes")
    return tuple(found)


def code(word: str, classes: Sequence[str]) -> int | None:
    """Return the index of a label (a class name, or a number), -1 for none, None where it is no class."""
    if word.casefold() in NOTHING:
        return UNKNOWN
    if word in classes:
        return classes.index(word)
    if word.isascii() and word.isdigit():
        return int(word[:9]) if int(word[:9]) < len(classes) else None
    same = [index for index, name in enumerate(classes) if name.casefold() == word.casefold()]
    return same[0] if len(same) == 1 else None


def headers(files: Iterable[Path]) -> list[tuple[str, ...]]:
    """Return the headers that text files of labels carry, the most frequent first."""
    found = Counter[tuple[str, ...]]()
    for path in files:
        try:
            found[read_labels(path).header] += 1
        except LabelError:
            continue  # read again, and told, with the trial that it belongs to
    return sorted((header for header in found if header), key=lambda header: (-found[header], header))
