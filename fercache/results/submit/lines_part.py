"""The lines of an organisers' file, as bytes: what is copied into a submission is copied exactly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fercache.errors import InputError

BOM = b"\xef\xbb\xbf"
UTF16 = (b"\xff\xfe", b"\xfe\xff")
LONGEST = 4096


def lines(path: Path, exact: bool) -> Iterator[bytes]:
    """Yield the lines of a file without their ends.

    Parameters
    ----------
    exact : refuse a byte order mark and carriage returns, which would end up in the submission; otherwise they are
        taken off.

    Raises
    ------
    InputError
        The file is absent, unreadable, no text in UTF-8, not `exact` enough, or a line is empty.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(LONGEST), b""), 1):
                yield _clean(line, number, path, exact)
    except OSError as error:
        raise InputError(f"the template cannot be read ({error.strerror})", where=path,
                         hint="check --template") from error


def _clean(line: bytes, number: int, path: Path, exact: bool) -> bytes:
    """Return a line without its end; see `lines`."""
    mark = number == 1 and line.startswith(BOM)
    if number == 1 and line.startswith(UTF16):
        raise InputError("this is UTF-16, as spreadsheets save it", where=path, hint="take the organisers' own file")
    if exact and mark:
        raise InputError("begins with a byte order mark, which would end up in the submission", where=path,
                         hint="take the organisers' own file, or remove it: sed -i '1s/^\\xef\\xbb\\xbf//' FILE")
    line = (line[len(BOM):] if mark else line).removesuffix(b"\n")
    if exact and b"\r" in line:
        raise InputError(f"line {number} ends in CR LF, which would end up in the submission", where=path,
                         hint="take the organisers' own file, or mend it: sed -i 's/\\r$//' FILE")
    line = line if exact else line.rstrip()
    if not line.strip() or b"\0" in line or len(line) >= LONGEST - 1:
        raise InputError(f"line {number} is empty or no text", where=path, hint="take the organisers' own file")
    return line


def text(line: bytes, number: int, path: Path) -> str:
    """Return a line (or a part of it) as text.

    Raises
    ------
    InputError
        It is no UTF-8.
    """
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"line {number} is no text in UTF-8", where=path,
                         hint="take the organisers' own file") from error
