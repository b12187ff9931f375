"""The organizers' formats: rows that they ask for, what the predictions lack, and files as their scripts read them.

A reader raises an InputError, with the file and the line, where a file is absent or not what its format asks for.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fercache import media
from fercache.data import labels, tables
from fercache.data.affwild2 import parent_of
from fercache.errors import InputError, shorten_list
from fercache.results import io, missing_faces
from fercache.runtime import atomic_io

SHOWN = 10  # differences that are listed by name; the rest is counted

Frames = NDArray[np.int64]
FilledRows = Literal["nothing", "ends", "all"]
"""Differences of rows that are filled or left out, and reported, instead of refused: those past an end, or all."""


@dataclass
class NameList:
    """Counts names and stores the first few."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, trial: str, frames: Frames) -> None:
        """Count frames of a trial."""
        self.count += len(frames)
        self.first += [f"{trial}/{frame:05d}" for frame in frames[:max(SHOWN - len(self.first), 0)].tolist()]

    def __str__(self) -> str:
        more = f" and {self.count - len(self.first):,} more" if self.count > len(self.first) else ""
        return ", ".join(self.first) + more


@dataclass
class RowDifference:
    """How wanted rows and predictions differ, over all trials."""

    missing: NameList = field(default_factory=NameList)  # wanted, and not predicted
    extra: NameList = field(default_factory=NameList)  # predicted, and not wanted
    absent: list[str] = field(default_factory=list)  # wanted trials without any prediction
    trials: list[str] = field(default_factory=list)  # a line for each trial whose rows differ

    def note(self, trial: str, ours: Frames, wanted: Frames, allowed: FilledRows) -> None:
        """Compare one trial's frames; allowed differences are reported but not counted."""
        missing, extra = np.setdiff1d(wanted, ours), np.setdiff1d(ours, wanted)
        if len(missing) or len(extra):
            self.trials.append(f"{trial}: {len(wanted):,} frames wanted, {len(ours):,} predicted: {len(missing):,} "
                               f"filled, {len(extra):,} left out")
        if allowed != "all":
            past = allowed == "ends"
            self.missing.add(trial, missing[missing < ours[-1]] if past else missing)
            self.extra.add(trial, extra[extra < wanted[-1]] if past else extra)

    def check(self, source: str, hint: str) -> None:
        """Raise InputError, with the first names, if rows or trials are missing or superfluous."""
        parts = []
        if self.absent:
            parts.append(f"no prediction for {len(self.absent):,} trials: {shorten_list(self.absent, SHOWN)}")
        if self.missing.count:
            parts.append(f"{self.missing.count:,} rows are missing in the predictions: {self.missing}")
        if self.extra.count:
            parts.append(f"{self.extra.count:,} predictions have no row in it: {self.extra}")
        if parts:
            raise InputError("predictions do not match it row for row\n  " + "\n  ".join(parts), where=source,
                             hint=hint)


def classes_at(clip: io.ClipPredictions, names: labels.LabelMap, wanted: Frames, policy: str) -> NDArray[np.int64]:
    """Return the class of each wanted frame, ``(n,)``; frames without a prediction are filled by `policy`."""
    predicted = names.predicted(clip.probs, clip.label_pred)
    if np.array_equal(clip.frame, wanted):
        return predicted
    frames = np.union1d(clip.frame, wanted)
    own = np.isin(frames, clip.frame)
    probs = np.zeros((len(frames), len(names.target)))
    probs[own] = names.probs(clip.probs)
    # Frames that were not predicted have no times: the frame number stands in for them.
    found = missing_faces.fill_gaps(probs, frames.astype(float), own, policy).argmax(1)
    found[own] = predicted
    return np.asarray(found[np.searchsorted(frames, wanted)])


def of_table(path: Path, trials: Iterable[str]) -> dict[str, int]:
    """Return trial -> frames, from a table ``clip,frames`` of trials or of videos.

    A row with the trial's own name takes precedence over one of its video: ``video2_left``, then ``video2``.
    """
    known: dict[str, int] = {}
    for line, row in tables.named_rows(path, ("clip", "frames")):
        clip, number = row["clip"], row["frames"]
        if not (number.isascii() and number.isdigit() and 0 < int(number[:9]) < labels.MOST_FRAMES) or clip in known:
            raise InputError(f"line {line} is not a new clip with its number of frames: {clip},{number[:80]}",
                             where=path, hint="a row is <trial or video>,<frames>, each clip once")
        known[clip] = int(number)
    found = {trial: known.get(trial, known.get(parent_of(trial), 0)) for trial in trials}
    _refuse_lost([trial for trial, frames in found.items() if not frames], path, "add a row for each trial or video")
    return found


def of_videos(folder: Path, trials: Iterable[str]) -> dict[str, int]:
    """Return trial -> number of frames in its video's header, or of those that decode if the header has none."""
    files = {path.stem: path for path in sorted(folder.rglob("*")) if path.suffix.lower() in media.VIDEO_ENDINGS}
    places = {trial: files.get(trial, files.get(parent_of(trial))) for trial in trials}
    _refuse_lost([trial for trial, path in places.items() if path is None], folder,
                 "name a trial's video like the trial, without _left or _right, with an ending such as .mp4 or .avi")

    @cache  # two people of a video share its file, which is opened once
    def count_frames(path: Path) -> int:
        source = media.open_source(path, "video")
        return source.length() or sum(1 for _ in source.frames())

    return {trial: count_frames(path) for trial, path in places.items() if path is not None}


def _refuse_lost(lost: list[str], where: Path, hint: str) -> None:
    if lost:
        raise InputError(f"no length for {len(lost)} trials: {shorten_list(lost, SHOWN)}", where=where, hint=hint)


# Lines of the organizers' files are bytes, so that what is copied into a submission is copied exactly.
BOM = b"\xef\xbb\xbf"
LONGEST = 4096


def lines(path: Path, exact: bool) -> Iterator[bytes]:
    """Yield the lines of a file without their ends.

    `exact`: refuse a byte order mark and carriage returns, which would end up in the submission, instead of removing
    them.
    """
    try:
        with path.open("rb") as file:
            # A limited length: a binary file without line ends must not be read into memory as one line.
            for number, line in enumerate(iter(lambda: file.readline(LONGEST), b""), 1):
                yield _clean(line, number, path, exact)
    except OSError as error:
        raise InputError(f"the template cannot be read ({error.strerror})", where=path,
                         hint="check --template") from error


def _clean(line: bytes, number: int, path: Path, exact: bool) -> bytes:
    """Return a line without its end; see `lines`."""
    mark = number == 1 and line.startswith(BOM)
    if number == 1 and line.startswith(labels.UTF_16):
        raise InputError("this is UTF-16, as spreadsheets save it", where=path, hint=SINGLE_FILE_OWN)
    if exact and mark:
        raise InputError("begins with a byte order mark, which would end up in the submission", where=path,
                         hint="use the organizers' own file, or remove the mark: sed -i '1s/^\\xef\\xbb\\xbf//' FILE")
    line = (line[len(BOM):] if mark else line).removesuffix(b"\n")
    if exact and b"\r" in line:
        raise InputError(f"line {number} ends in CR LF, which would end up in the submission", where=path,
                         hint="use the organizers' own file, or fix it: sed -i 's/\\r$//' FILE")
    line = line if exact else line.rstrip()
    if not line.strip() or b"\0" in line or len(line) >= LONGEST - 1:
        raise InputError(f"line {number} is empty or not text", where=path, hint=SINGLE_FILE_OWN)
    return line


def text(line: bytes, number: int, path: Path) -> str:
    """Return a line (or a part of it) as text; raise InputError if it is not UTF-8."""
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"line {number} is not UTF-8 text", where=path, hint=SINGLE_FILE_OWN) from error


# Result tables of the clip-level sets: neither has a server or an official result file that we know of. Authors score
# with the test list, so the table has the form of that list, with the predicted class in place of the label.
UNOFFICIAL = ("this set has no official result format that we know of: the file is its own test list with the "
              "predicted class in place of the label")
CLIP_TABLE_OWN = "use the set's own test list"


def clip_table_names(path: Path, form: str) -> list[str]:
    """Return the clips of a test list, in its order."""
    seen: dict[str, int] = {}
    for number, line in enumerate(lines(path, exact=False), 1):
        if form == "dfew" and number == 1:
            continue
        row = text(line, number, path)
        name, sign, label = row.partition("," if form == "dfew" else " ")
        if not (name and sign and label) or "," in label:
            raise InputError(f"line {number} is {row[:80]!r}, not a clip with its label", where=path,
                             hint=CLIP_TABLE_OWN)
        _add_name(seen, name, number, path)
    return list(seen)


def _add_name(seen: dict[str, int], name: str, number: int, path: Path) -> None:
    """Add the name in a line of a list; raise InputError where an earlier line has it."""
    if seen.setdefault(name, number) != number:
        raise InputError(f"line {number}: {name!r} appears twice, first in line {seen[name]}", where=path,
                         hint="use the organizers' own list")


def clip_table_key(name: str) -> str:
    """Return the key of a clip: DFEW's numbers match with and without leading zeros and file endings."""
    stem = name.removesuffix(".mp4").removesuffix(".avi")
    return f"{int(stem):05d}" if stem.isascii() and stem.isdigit() else stem


def clip_table_answers(given: io.PredictionsFile, wanted: list[str], classes: labels.LabelMap,
                       path: Path) -> dict[str, int]:
    """Return name in the list -> class."""
    found: dict[str, int] = {}
    keys = {clip_table_key(name) for name in wanted}
    for clip in given.clips():
        name = io.match_clip(clip_table_key(clip.name), keys)
        if (name := name if name in keys else clip_table_key(name)) in keys:
            if name in found:
                raise InputError(f"two clips of the predictions are {name!r}", where=given.path,
                                 hint="remove one of them")
            found[name] = int(clip.pooled(classes.probs(clip.probs)).argmax())
    lost = [name for name in wanted if clip_table_key(name) not in found]
    if lost:
        raise InputError(f"no prediction for {len(lost):,} of its {len(wanted):,} clips: {shorten_list(lost, SHOWN)}",
                         where=path, hint="predict them first, or use the test list of the right fold")
    return {name: found[clip_table_key(name)] for name in wanted}


def write_clip_table(predicted: Mapping[str, int], form: str, classes: tuple[str, ...], out: Path) -> None:
    """Write the table to `out`, atomically: class numbers from 1 for DFEW, class names for FERV39k."""
    rows = ["video_name,label"] if form == "dfew" else []
    rows += [f"{name},{index + 1}" if form == "dfew" else f"{name} {classes[index]}"
             for name, index in predicted.items()]
    atomic_io.write_bytes(out, ("\n".join(rows) + "\n").encode())


def folder_names(path: Path) -> list[str]:
    """Return the trials of a test list, in its order."""
    seen: dict[str, int] = {}
    for number, line in enumerate(lines(path, exact=False), 1):
        name = text(line.strip(), number, path)
        _add_name(seen, name, number, path)
        if "/" in name or "\\" in name or name.startswith(".") or "," in name:
            raise InputError(f"line {number}: {name[:80]!r} is not the name of a trial", where=path,
                             hint="the list has one trial per line and nothing else")
    return list(seen)


MOST_NAME_BYTES = 255


def write_folder(predicted: Mapping[str, NDArray[np.int64]], classes: tuple[str, ...], out: Path) -> None:
    """Write ``<trial>.txt`` of every trial (header, then one integer per frame) to the new folder `out`, all or none.

    `predicted`: trial -> class of every frame, ``(n,)``.
    """
    for trial in predicted:  # the organizers find a trial by the name of its file, so it cannot be shortened
        if len(f"{trial}.txt".encode()) > MOST_NAME_BYTES:
            raise InputError(f"trial {trial!r} is too long for a file name ({len(trial.encode())} bytes)",
                             where=out, hint=f"a file name has at most {MOST_NAME_BYTES} bytes: ask the organizers, "
                                             "or use a shorter name in the list and in the predictions")
    header = ",".join(classes).encode() + b"\n"
    endings = [b"%d\n" % place for place in range(len(classes))]
    with atomic_io.making_folder(out) as temporary:
        for trial, values in predicted.items():
            body = b"".join([endings[place] for place in values.tolist()])
            (temporary / f"{trial}.txt").write_bytes(header + body)


FIRST = "image_location"
PICTURES = (b".jpg", b".jpeg", b".png")
KNOWN = (labels.SETS["abaw8"], labels.SETS["abaw7"])
SINGLE_FILE_OWN = "use the organizers' own file"
ROWS_A_WRITE = 50_000


@dataclass(frozen=True)
class Template:
    """A checked template."""

    path: Path
    header: bytes  # its first line, exactly
    classes: tuple[str, ...]  # the classes that the header names
    # trial name -> its frames, ascending, ``(n,)`` int64; in the template's order, so that all of them in a row are the
    # template's rows
    trials: dict[str, NDArray[np.int64]]


def classes_of(path: Path) -> tuple[str, ...]:
    """Return the class list in a template's header."""
    header = next(lines(path, exact=True))
    for classes in KNOWN:
        if header == ",".join((FIRST, *classes)).encode():
            return classes
    raise InputError(f"unknown header {header[:120].decode(errors='replace')!r}", where=path,
                     hint=f"expected: {','.join((FIRST, *KNOWN[0]))}")


def read_template(path: Path) -> Template:
    """Return the template at `path`, with every row checked."""
    classes, every = classes_of(path), lines(path, exact=True)
    header = next(every)
    trials: dict[bytes, array[int]] = {}
    before: bytes = b""
    for number, (location, trial, frame) in enumerate(_rows(every, len(classes), path), 2):
        frames, why = trials.setdefault(trial, array("q")), ""
        if frames and trial != before:
            why = "the trial's other rows are further up"
        elif frames and frame <= frames[-1]:
            why = "it appears twice" if frame in frames else "the row before it has a later frame"
        if why:
            raise InputError(f"line {number}, {location.decode(errors='replace')}, is out of order: {why}",
                             where=path, hint=SINGLE_FILE_OWN)
        frames.append(frame)
        before = trial
    if not trials:
        raise InputError("the template has a header and no rows", where=path, hint=SINGLE_FILE_OWN)
    named = {text(trial, 1, path): np.array(frames, np.int64) for trial, frames in trials.items()}
    return Template(path, header, classes, named)


def write_single_file(template: Template, predicted: NDArray[np.int16], out: Path) -> None:
    """Write the submission to `out`, atomically; every line ends in one line feed.

    `predicted`: (R,) the class of each row, in the template's order.
    """
    # The template is read a second time: header and locations are its own bytes, and memory has no copy of them.
    every = lines(template.path, exact=True)
    next(every)
    endings = [b",%d\n" % place for place in range(len(template.classes))]
    rows = (location for location, *_ in _rows(every, len(template.classes), template.path))
    made = (location + endings[place] for location, place in zip(rows, predicted.tolist(), strict=True))
    with atomic_io.replacing(out) as temporary, temporary.open("wb") as file:
        file.write(template.header + b"\n")
        while part := b"".join(islice(made, ROWS_A_WRITE)):
            file.write(part)


def _rows(every: Iterator[bytes], classes: int, path: Path) -> Iterator[tuple[bytes, bytes, int]]:
    """Yield the bytes before the last comma of each row, and the trial and the frame that they name."""
    endings = {b"", *(b"%d" % place for place in range(-1, classes))}
    for number, line in enumerate(every, 2):
        location, comma, ending = line.rpartition(b",")
        trial, slash, picture = location.rpartition(b"/")
        stem, dot, suffix = picture.rpartition(b".")
        whole = comma and slash and trial and dot + suffix in PICTURES and stem.isdigit() and ending in endings
        if not whole or b"," in location or not 0 < int(stem[:9]) < labels.MOST_FRAMES:
            raise InputError(f"line {number} is {line[:80].decode(errors='replace')!r}, not a row of a template",
                             where=path, hint="a row is <trial>/00001.jpg, a comma, and a class number or nothing")
        yield location, trial, int(stem)
