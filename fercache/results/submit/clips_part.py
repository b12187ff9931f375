"""Result tables of the clip-level sets: the set's own test list, our class in the label's place.

Notes
-----
Neither set has a server or an official result file that we know of: authors score with the test list at hand. So the
table written is the simplest that their own readers take.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fercache.errors import InputError
from fercache.results import io
from fercache.results.submit.compare_part import Translator, bounded
from fercache.results.submit.lines_part import lines, text
from fercache.runtime import atomic_io

UNOFFICIAL = ("no official result file of this set is known to us: this is its own test list with our class in the "
              "label's place")
OWN = "take the set's own test list"


def names_of(path: Path, form: str) -> list[str]:
    """Return the clips of a test list, in its order.

    Raises
    ------
    InputError
        A line is no row of such a list, or a clip stands twice.
    """
    seen: dict[str, int] = {}
    for number, line in enumerate(lines(path, exact=False), 1):
        if form == "dfew" and number == 1:
            continue
        row = text(line, number, path)
        name, sign, label = row.partition("," if form == "dfew" else " ")
        if not (name and sign and label) or "," in label:
            raise InputError(f"line {number} is {row[:80]!r}, no clip with its label", where=path, hint=OWN)
        if name in seen:
            raise InputError(f"line {number}: clip {name!r} stands there twice, first in line {seen[name]}",
                             where=path, hint=OWN)
        seen[name] = number
    return list(seen)


def key(name: str) -> str:
    """Return how a clip is looked up: DFEW's numbers with and without leading zeros, and endings, are one clip."""
    stem = name.removesuffix(".mp4").removesuffix(".avi")
    return f"{int(stem):05d}" if stem.isascii() and stem.isdigit() else stem


def answers(given: io.Predictions, wanted: list[str], translator: Translator, path: Path) -> dict[str, int]:
    """Return name in the list -> class.

    Raises
    ------
    InputError
        A clip of the list has no prediction; lists the first of them.
    """
    found: dict[str, int] = {}
    keys = {key(name) for name in wanted}
    for clip in given.clips():
        name = io.asked_for(key(clip.name), keys)
        if (name := name if name in keys else key(name)) in keys:
            if name in found:
                raise InputError(f"two clips of the predictions are {name!r}", where=given.path,
                                 hint="keep one of them")
            found[name] = int(clip.pooled(translator.shares(clip)).argmax())
    lost = [name for name in wanted if key(name) not in found]
    if lost:
        raise InputError(f"no prediction for {len(lost):,} of its {len(wanted):,} clips: {bounded(lost)}", where=path,
                         hint="predict them first, or give the list of the right fold")
    return {name: found[key(name)] for name in wanted}


def write(said: Mapping[str, int], form: str, classes: tuple[str, ...], out: Path) -> None:
    """Put the table at `out`, whole or not at all: numbers from 1 for DFEW, class names for FERV39k."""
    made = ["video_name,label"] if form == "dfew" else []
    made += [f"{name},{place + 1}" if form == "dfew" else f"{name} {classes[place]}" for name, place in said.items()]
    atomic_io.write_bytes(out, ("\n".join(made) + "\n").encode())
