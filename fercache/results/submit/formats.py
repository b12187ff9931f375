"""The single file of ABAW5 and later: the organisers' rows in the organisers' order, our class behind each comma."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fercache.data import labels
from fercache.errors import InputError
from fercache.results.submit.lines_part import lines, text
from fercache.runtime import atomic_io

FIRST = "image_location"
PICTURES = (b".jpg", b".jpeg", b".png")
MOST_FRAMES = 10_000_000
KNOWN = (labels.SETS["abaw8"], labels.SETS["abaw7"])
OWN = "take the organisers' own file"
ROWS_A_WRITE = 50_000


class Row(NamedTuple):
    """One row of a template: the bytes before the last comma, and what they name."""

    location: bytes
    trial: bytes
    frame: int


@dataclass(frozen=True)
class Template:
    """A checked template; R rows.

    Attributes
    ----------
    header : its first line, exactly.
    classes : the classes that the header names.
    trials : trial name -> its frames, ascending, ``(n,)`` int64; in the template's order, so that all of them in a row
        are the template's rows.
    """

    path: Path
    header: bytes
    classes: tuple[str, ...]
    trials: dict[str, NDArray[np.int64]]

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return sum(map(len, self.trials.values()))


def classes_of(path: Path) -> tuple[str, ...]:
    """Return the class list that a template's header names, spelled exactly so.

    Raises
    ------
    InputError
        The header is unknown.
    """
    header = next(lines(path, exact=True))
    for classes in KNOWN:
        if header == ",".join((FIRST, *classes)).encode():
            return classes
    raise InputError(f"unknown header {header[:120].decode(errors='replace')!r}", where=path,
                     hint=f"expected is {','.join((FIRST, *KNOWN[0]))}")


def read(path: Path) -> Template:
    """Return the template at `path`, every row of it checked.

    Raises
    ------
    InputError
        Its header is unknown, a row is damaged or stands twice, frames of a trial do not ascend, or a trial's rows
        stand in two places; says which line.
    """
    classes, every = classes_of(path), lines(path, exact=True)
    header = next(every)
    trials: dict[bytes, array[int]] = {}
    before: bytes = b""
    for number, row in enumerate(_rows(every, len(classes), path), 2):
        if row.trial != before:
            if row.trial in trials:
                raise _disorder(row, number, path, "its trial's other rows stand further up")
            frames = trials[row.trial] = array("q")
        elif row.frame <= frames[-1]:
            again = row.frame in frames
            raise _disorder(row, number, path, "it stands there twice" if again else "the frame before it is later")
        frames.append(row.frame)
        before = row.trial
    if not trials:
        raise InputError("the template has a header and no rows", where=path, hint=OWN)
    named = {text(trial, 1, path): np.array(frames, np.int64) for trial, frames in trials.items()}
    return Template(path, header, classes, named)


def write(template: Template, said: NDArray[np.int16], out: Path) -> None:
    """Put the submission at `out`, whole or not at all.

    Parameters
    ----------
    said : (R,) the class of each row, in the template's order.

    Notes
    -----
    The template is read a second time, so that memory holds no copy of it. Header and locations are its own bytes; each
    line, the last one too, ends in one line feed.
    """
    every = lines(template.path, exact=True)
    next(every)
    endings = [b",%d\n" % place for place in range(len(template.classes))]
    rows = (row.location for row in _rows(every, len(template.classes), template.path))
    made = (location + endings[place] for location, place in zip(rows, said.tolist(), strict=True))
    with atomic_io.replacing(out) as temporary, temporary.open("wb") as file:
        file.write(template.header + b"\n")
        while part := b"".join(islice(made, ROWS_A_WRITE)):
            file.write(part)


def _rows(every: Iterator[bytes], classes: int, path: Path) -> Iterator[Row]:
    """Yield the rows after the header."""
    endings = {b"", *(b"%d" % place for place in range(-1, classes))}
    for number, line in enumerate(every, 2):
        location, comma, ending = line.rpartition(b",")
        trial, slash, picture = location.rpartition(b"/")
        stem, dot, suffix = picture.rpartition(b".")
        whole = comma and slash and trial and dot + suffix in PICTURES and stem.isdigit() and ending in endings
        if not whole or b"," in location or not 0 < int(stem[:9]) < MOST_FRAMES:
            raise InputError(f"line {number} is {line[:80].decode(errors='replace')!r}, no row of a template",
                             where=path, hint="a row is <trial>/00001.jpg, a comma, and a class number or nothing")
        yield Row(location, trial, int(stem))


def _disorder(row: Row, number: int, path: Path, why: str) -> InputError:
    return InputError(f"line {number}, {row.location.decode(errors='replace')}, is out of order: {why}", where=path,
                      hint=OWN)
