"""The folder of ABAW1 to ABAW3: one text file a trial, a header, then one integer for every frame of the video."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fercache.errors import InputError
from fercache.results.submit.lines_part import lines, text
from fercache.runtime import atomic_io


def names_of(path: Path) -> list[str]:
    """Return the trials of a test list, in its order.

    Raises
    ------
    InputError
        A trial stands twice, or its name cannot be that of a file.
    """
    seen: dict[str, int] = {}
    for number, line in enumerate(lines(path, exact=False), 1):
        name = text(line.strip(), number, path)
        if name in seen:
            raise InputError(f"line {number}: trial {name!r} stands there twice, first in line {seen[name]}",
                             where=path, hint="take the organisers' own list")
        if "/" in name or "\\" in name or name.startswith(".") or "," in name:
            raise InputError(f"line {number}: {name[:80]!r} is no trial's name", where=path,
                             hint="the list has one trial a line and nothing else")
        seen[name] = number
    return list(seen)


def write(said: Mapping[str, NDArray[np.int64]], classes: tuple[str, ...], out: Path) -> None:
    """Put ``<trial>.txt`` for every trial into the new folder `out`, all of them or none.

    Parameters
    ----------
    said : trial -> class of every frame, ``(n,)``.
    """
    header = ",".join(classes).encode() + b"\n"
    endings = [b"%d\n" % place for place in range(len(classes))]
    with atomic_io.making_folder(out) as temporary:
        for trial, values in said.items():
            body = b"".join([endings[place] for place in values.tolist()])
            (temporary / f"{trial}.txt").write_bytes(header + body)
