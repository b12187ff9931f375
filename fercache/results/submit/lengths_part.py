"""How many frames a trial has where the template does not say: a table, or the videos themselves."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from fercache import media
from fercache.data.affwild2 import parent_of
from fercache.errors import InputError
from fercache.results.submit.compare_part import bounded

VIDEOS = (".mp4", ".avi")
MOST_FRAMES = 10_000_000


def of_table(path: Path, trials: Iterable[str]) -> dict[str, int]:
    """Return trial -> frames, from a table ``clip,frames`` of trials or of videos.

    Raises
    ------
    InputError
        The table is absent or not such a table, names a clip twice, or lacks a trial and its video.

    Notes
    -----
    A row of the trial's own name goes before that of its video: ``video2_left`` is looked up as such, then as
    ``video2``.
    """
    known: dict[str, int] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for line, row in enumerate(csv.reader(file, strict=True), 1):
                if line == 1:
                    _check_header(row, path)
                elif row:
                    name, frames = _row(row, line, known, path)
                    known[name] = frames
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"the table of lengths cannot be read ({error})", where=path, hint="check --frames") from error
    found = {trial: known.get(trial, known.get(parent_of(trial), 0)) for trial in trials}
    _refuse_lost([trial for trial, frames in found.items() if not frames], path, "add a row for each trial or video")
    return found


def of_videos(folder: Path, trials: Iterable[str]) -> dict[str, int]:
    """Return trial -> frames that its video states (that decode, where it states nothing).

    Raises
    ------
    InputError
        A trial's video is not there.
    ClipError
        A video cannot be opened.
    """
    files = {path.stem: path for path in sorted(folder.rglob("*")) if path.suffix.lower() in VIDEOS}
    places = {trial: files.get(trial, files.get(parent_of(trial))) for trial in trials}
    _refuse_lost([trial for trial, path in places.items() if path is None], folder,
                 f"a trial's video is named like it, without _left or _right, and ends in {' or '.join(VIDEOS)}")
    counted = {path: _frames(path) for path in dict.fromkeys(places.values()) if path is not None}
    return {trial: counted[path] for trial, path in places.items() if path is not None}


def _frames(path: Path) -> int:
    source = media.open_source(path, "video")
    return source.length() or sum(1 for _ in source.frames())


def _check_header(row: list[str], path: Path) -> None:
    if [name.strip().casefold() for name in row] != ["clip", "frames"]:
        raise InputError(f"the columns are {','.join(row)[:80]}", where=path, hint="they must be clip,frames")


def _row(row: list[str], line: int, known: dict[str, int], path: Path) -> tuple[str, int]:
    """Return the clip that a row names, and its frames."""
    number = row[1].strip() if len(row) == 2 else ""
    if not (number.isascii() and number.isdigit() and 0 < int(number[:9]) < MOST_FRAMES) or row[0] in known:
        raise InputError(f"line {line} is no new clip with its number of frames: {','.join(row)[:80]}", where=path,
                         hint="a row is <trial or video>,<frames>, each clip once")
    return row[0], int(number)


def _refuse_lost(lost: list[str], where: Path, hint: str) -> None:
    if lost:
        raise InputError(f"no length for {len(lost)} trials: {bounded(lost)}", where=where, hint=hint)
