"""Labels in text files: a header with the class names, then one integer a frame (Aff-Wild2's form)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fercache.data.base import UNKNOWN, Labels, Problem

LIMIT_BYTES = 64 << 20
WRONG = np.iinfo(np.int16).min
_SHOWN = 30


class LabelFile(NamedTuple):
    """A label file as read: `header` is empty where it has none; `labels` (L,) int16."""

    header: tuple[str, ...]
    labels: Labels


class LabelError(ValueError):
    """What is wrong with a label file; always caught and turned into the trial's Problem."""


def read(path: Path) -> LabelFile:
    """Return the header and the labels of a text file.

    Raises
    ------
    LabelError
        It cannot be read, is no text, has no lines, or a line is no whole number.

    Notes
    -----
    Few distinct lines make up a file, so each is parsed once and the rest is a look-up: .1 s a million frames.
    """
    lines = _lines(path)
    header = () if _is_number(lines[0]) else tuple(name.strip() for name in lines.pop(0).rstrip(", \t").split(","))
    values: dict[str, int] = {}
    for line in set(lines):
        values[line] = _value(line)
    labels = np.fromiter(map(values.__getitem__, lines), np.int16, len(lines))
    wrong = np.flatnonzero(labels == WRONG)
    if len(wrong):
        at, line = int(wrong[0]), lines[int(wrong[0])]
        raise LabelError(f"line {at + 1 + bool(header)} is {line[:_SHOWN]!r}, no label")
    return LabelFile(header, labels)


def _lines(path: Path) -> list[str]:
    """Return the lines of a text file, without blank ones at its end."""
    try:
        if path.stat().st_size > LIMIT_BYTES:
            raise LabelError(f"larger than {LIMIT_BYTES >> 20} MB")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise LabelError(f"cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise LabelError("is no text in UTF-8") from error
    lines = text.rstrip().split("\n") if text.strip() else []
    if not lines:
        raise LabelError("is empty")
    return lines


def _value(line: str) -> int:
    """Return the whole number in a line, WRONG where there is none that could be a label."""
    if not _is_number(line):
        return WRONG
    number = int(line.strip()[:_SHOWN])
    return number if abs(number) < -WRONG else WRONG


def _is_number(line: str) -> bool:
    digits = line.strip().removeprefix("-")
    return digits.isascii() and digits.isdigit()


def check_range(labels: Labels, classes: int) -> None:
    """Refuse labels that are neither -1 nor an index into `classes`.

    Raises
    ------
    LabelError
        A label is out of range; says which frame.
    """
    wrong = np.flatnonzero((labels < UNKNOWN) | (labels >= classes))
    if len(wrong):
        raise LabelError(f"frame {wrong[0] + 1} has label {labels[wrong[0]]}, which is not -1 or 0 to {classes - 1}")


def canonical(header: tuple[str, ...], known: Iterable[tuple[str, ...]]) -> tuple[str, ...] | None:
    """Return the class list among `known` that `header` spells (letter case aside), None where there is none."""
    folded = tuple(name.casefold() for name in header)
    return next((names for names in known if folded == tuple(name.casefold() for name in names)), None)


def read_all(files: Mapping[str, Path], known: Iterable[tuple[str, ...]], *, bare: bool = False
             ) -> tuple[tuple[str, ...], dict[str, Labels], list[Problem]]:
    """Return the classes, the labels of each trial, and a problem for each file that had to be dropped.

    Parameters
    ----------
    files : trial name to text file.
    known : class lists that a header may spell. The one most files carry is the set's; other files are problems.
    bare : whether a file without header has the classes that are known first.

    Notes
    -----
    Class orders are never guessed: the same names in another order are another header.
    """
    known, read_files, headers = tuple(known), {}, Counter[tuple[str, ...]]()
    problems: list[Problem] = []
    for name, path in sorted(files.items()):
        try:
            content = read(path)
            read_files[name] = content._replace(header=known[0]) if bare and not content.header else content
        except LabelError as error:
            problems.append(_dropped(name, path, str(error)))
            continue
        found = canonical(read_files[name].header, known)
        headers.update([found] if found else [])
    classes = max(headers, key=lambda names: (headers[names], len(names)), default=())
    labels: dict[str, Labels] = {}
    for name, content in read_files.items():
        try:
            labels[name] = _fit(content, classes, known)
        except LabelError as error:
            problems.append(_dropped(name, files[name], str(error)))
    return classes, labels, sorted(problems, key=lambda problem: problem.where)


def _fit(content: LabelFile, classes: tuple[str, ...], known: tuple[tuple[str, ...], ...]) -> Labels:
    """Return the labels of a file whose header and range fit the set's classes."""
    header = ",".join(content.header)[:100]
    if not content.header:
        raise LabelError("has no header with the class names")
    if canonical(content.header, known) is None:
        raise LabelError(f"header unknown: {header!r}")
    if canonical(content.header, (classes,)) is None:
        raise LabelError(f"header {header!r} is another one than most files have ({','.join(classes)})")
    check_range(content.labels, len(classes))
    return content.labels


def _dropped(name: str, path: Path, what: str) -> Problem:
    return Problem(where=name, what=f"its labels were dropped: {path.name} {what}",
                   hint=f"correct {path}; the clip is predicted without labels meanwhile")
