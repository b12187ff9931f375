"""The contents of a folder: videos, folders of numbered pictures, other folders, lists, and what is passed over."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from fercache.config import DatasetConfig
from fercache.data.base import Issue, Kind, printable
from fercache.errors import InputError, shorten_list
from fercache.media.pictures import NAME, is_numbered, is_picture
from fercache.media.source import VIDEO_ENDINGS

DEPTH = 4
PEEK = 512  # entries of a folder after which numbered pictures alone decide that it is a clip
NAMED = 10  # most files named in a note about all of them
LOW_NUMBER, SPARSEST = 10_000, 100
"""A number after a prefix is a frame number up to LOW_NUMBER, and SPARSEST more for each picture; others are dates."""
LISTS = frozenset((".txt", ".csv", ".tsv", ".parquet"))
FLAT = ("frames of a clip are numbered in a folder of their own: 00001.jpg, 00002.jpg, ..; photos are a data set with "
        "a folder for each class (--dataset photos), or paths in a table (a picture is a clip of one frame)")


@dataclass
class PassedOver:
    """Files of one kind that belong to no clip: their number, and the first ones in alphabetical order."""

    count: int = 0
    endings: Counter[str] = field(default_factory=Counter)
    names: list[str] = field(default_factory=list)

    def add(self, folder: Path, names: list[str]) -> None:
        """Add files by their names; `folder`: relative to the place that was scanned."""
        self.count += len(names)
        self.endings.update(map(_suffix, names))
        # Only the first ones are stored: a folder may hold millions of photos.
        first = (printed((folder / name).as_posix()) for name in sorted(names)[:NAMED])
        self.names = sorted([*self.names, *first])[:NAMED]

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {'*' + ending if ending else 'without an ending'}"
                          for ending, count in sorted(self.endings.items()))
        more = f" and {self.count - len(self.names)} more" if self.count > len(self.names) else ""
        return f"{kinds}: {', '.join(self.names)}{more}"


@dataclass
class Scan:
    """The paths under `root` and `more`, each list sorted, so that the order of a file system does not matter."""

    root: Path
    more: tuple[Path, ...] = ()
    videos: list[Path] = field(default_factory=list)
    crops: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    texts: list[Path] = field(default_factory=list)
    tables: list[Path] = field(default_factory=list)
    problems: list[Issue] = field(default_factory=list)
    loose: PassedOver = field(default_factory=PassedOver)  # pictures that are no frames of a clip
    other: PassedOver = field(default_factory=PassedOver)  # neither videos, pictures nor lists
    visited: set[Path] = field(default_factory=set)  # a folder may be below several of the places

    def below(self, path: Path) -> Path:
        """Return a path relative to the folder that was scanned; to the outermost one where several hold it."""
        holding = [place for place in (self.root, *self.more) if not self.more or path.is_relative_to(place)]
        return path.relative_to(min(holding, key=lambda place: len(place.parts)))

    def clips(self) -> Iterator[tuple[Path, Kind]]:
        """Yield every clip and its kind."""
        yield from ((path, "video") for path in self.videos)
        yield from ((path, "crops") for path in self.crops)


def scan(root: Path, depth: int = DEPTH, *more: Path) -> Scan:
    """Return what is under `root`, and under `more` folders, at most `depth` folders down.

    Raises InputError if there is no such folder, it cannot be read, or it is empty.
    """
    # Only the first 512 entries of a crop folder are listed (Aff-Wild2 has 2.9 million crops). A folder that holds
    # numbered pictures beside videos or folders is not a clip. Nor is one whose pictures have several prefixes, or
    # numbers that are dates or times of day (``IMG_20240102_101010.jpg``): those are photos.
    found = Scan(root, more)
    for place in (root, *more):
        kind = kind_at(place)
        if kind != "crops":
            raise InputError("this is a file, not a folder" if kind else "no such folder", where=place,
                             hint="check the path (relative paths start at the current folder)")
        empty = _visit(place, depth, found)
        # A folder below that cannot be read is an issue; without the place itself nothing can be read.
        for problem in found.problems:
            if problem.where == str(place):
                raise InputError(problem.message, where=place, hint=problem.hint)
        if empty:
            raise InputError("the folder is empty", where=place, hint="put clips there, or name another folder")
    for paths in (found.videos, found.crops, found.folders, found.texts, found.tables):
        # Parts, which is the order of paths: these compare ten times as slowly. The places may overlap.
        paths[:] = sorted(set(paths), key=lambda path: path.parts)
    found.problems.sort(key=lambda problem: problem.where)
    found.problems += [*_passed_over(found), *_unnamable(found)]
    return found


def scan_places(config: DatasetConfig, layout: str, depth: int = DEPTH) -> Scan:
    """Return the contents of --root, --clips and --labels together; raise InputError if none is named."""
    places = [Path(place) for place in dict.fromkeys((config.root, config.clips, config.labels)) if place]
    if not places:
        raise InputError(f"{layout} needs the folder of the data set", where=f"dataset {layout}",
                         hint="give --root DIR")
    return scan(places[0], depth, *places[1:])


def _passed_over(found: Scan) -> Iterator[Issue]:
    """Yield a note about the files that belong to no clip, and about a folder of pictures that is taken as one clip."""
    other = "a clip is a video file or a folder of numbered pictures; convert other files to MP4"
    for files, what, hint in ((found.loose, "pictures belong to no clip", FLAT),
                              (found.other, "files are no clips", other)):
        if files.count:
            yield Issue(kind="passed-over", where=str(found.root), severity="note", hint=hint,
                        message=f"{files.count} {what} and are passed over ({files})")
    for place in sorted({found.root, *found.more}.intersection(found.crops)):
        yield Issue(kind="one-clip", where=str(place), severity="note", hint=FLAT,
                    message="its numbered pictures are read as the frames of one clip")


def _visit(folder: Path, left: int, found: Scan) -> bool:
    """Sort the entries of `folder` and of the folders below it into `found`; return whether there are none."""
    try:
        names, below = _list(folder)
    except OSError as error:
        found.problems.append(Issue(where=str(folder), message=f"the folder cannot be read ({error.strerror})",
                                    hint="check its permissions"))
        return False
    suffixes = {name: _suffix(name) for name in names}
    videos = [name for name, suffix in suffixes.items() if suffix in VIDEO_ENDINGS]
    found.texts += [folder / name for name, suffix in suffixes.items() if suffix == ".txt"]
    found.tables += [folder / name for name, suffix in suffixes.items() if suffix == ".csv"]
    pictures = [name for name in names if is_picture(name)]
    if not below and not videos and _are_frames(pictures):
        found.crops.append(folder)
        return False
    found.videos += [folder / name for name in videos]
    if folder not in found.visited:
        found.visited.add(folder)
        found.loose.add(found.below(folder), pictures)
        found.other.add(found.below(folder), [name for name, suffix in suffixes.items() if suffix not in VIDEO_ENDINGS
                                              and suffix not in LISTS and not is_picture(name)])
    for name in below:
        found.folders.append(folder / name)
        if left > 0:
            _visit(folder / name, left - 1, found)
    return not names and not below


def _are_frames(names: list[str]) -> bool:
    """Return whether pictures are the frames of one clip: numbers alone, or one prefix with plausible numbers."""
    matches = [match for name in names if is_numbered(name) and (match := NAME.fullmatch(name))]
    prefixes = {match["prefix"] for match in matches}
    if "" in prefixes:
        return True
    highest = max((int(match["number"]) for match in matches), default=0)
    return len(prefixes) == 1 and highest <= LOW_NUMBER + SPARSEST * len(matches)


def _list(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of files and of folders in `folder`; only the first ones of a large folder of pictures."""
    names: list[str] = []
    below: list[str] = []
    with os.scandir(folder) as entries:
        # The listing goes on after the first part only if that part did not decide what the folder is.
        for part in (islice(entries, PEEK), entries):
            for entry in part:
                if entry.name.startswith((".", "@", "__MACOSX")):  # hidden files, and remains of Macs and file servers
                    continue
                # A name that looks like a crop is not asked whether it is a folder: that may cost a call each.
                (names if is_numbered(entry.name) or not entry.is_dir() else below).append(entry.name)
            if not below and _are_frames(names):
                break
    return names, below


def printed(name: str) -> str:
    """Return a file's name as text that can be printed."""
    return name.encode("utf-8", "backslashreplace").decode()


def kind_at(path: Path) -> Kind | None:
    """Return "crops" for a folder, "video" for a file, None if it does not exist or cannot be accessed."""
    try:
        return "crops" if path.is_dir() else "video" if path.exists() else None
    except OSError:  # the name is too long, or a folder above it may not be entered
        return None


def _suffix(name: str) -> str:
    # Path.suffix is too slow for millions of names.
    return name[name.rfind("."):].lower() if "." in name else ""


def _unnamable(found: Scan) -> Iterator[Issue]:
    """Yield an issue for each clip whose name is not valid UTF-8, and remove it from `found`."""
    for paths in (found.videos, found.crops):
        for path in [path for path in paths
                     if not printable(str(path)) and not printable(str(found.below(path)))]:
            paths.remove(path)
            yield Issue(where=ascii(path.name), message="the file's name is not valid UTF-8", hint="rename it")


def describe(found: Scan) -> str:
    """Return the contents of a folder as text, for an error message."""
    endings = Counter(path.suffix.lower() for path in found.videos)
    parts = [f"{count} *{ending}" for ending, count in sorted(endings.items())]
    if found.crops:
        parts.append(f"{len(found.crops)} folders of numbered pictures")
    for ending, paths in (("txt", found.texts), ("csv", found.tables)):
        parts += [f"{len(paths)} *.{ending}"] if paths else []
    plain = [path.name for path in found.folders if path not in set(found.crops)]
    if plain:
        parts.append(f"the folders {shorten_list(plain)}")
    return "found there: " + ("; ".join(parts) or "no video, no folder of numbered pictures, no text file")
