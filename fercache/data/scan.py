"""The contents of a folder: videos, folders of numbered crops, other folders and texts, a few levels down."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from fercache.data.base import Issue, Kind, printable, shorten_list
from fercache.errors import InputError

VIDEOS = frozenset((".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv",
                    ".ts", ".webm", ".wmv"))
PICTURES = frozenset((".jpg", ".jpeg", ".png"))
DEPTH = 4
PEEK = 512
"""Entries of a folder after which numbered pictures alone decide that it is a clip."""


@dataclass
class Scan:
    """The paths under `root`, each list sorted, so that the order of a file system does not matter."""

    root: Path
    videos: list[Path] = field(default_factory=list)
    crops: list[Path] = field(default_factory=list)
    empty: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    texts: list[Path] = field(default_factory=list)
    tables: list[Path] = field(default_factory=list)
    problems: list[Issue] = field(default_factory=list)

    def clips(self) -> Iterator[tuple[Path, Kind]]:
        """Yield every clip and its kind."""
        for path in self.videos:
            yield path, "video"
        for path in self.crops:
            yield path, "crops"


def scan(root: Path, depth: int = DEPTH, *, prefixed: bool = False) -> Scan:
    """Return what is under `root`, at most `depth` folders down.

    Parameters
    ----------
    prefixed : whether a folder of pictures with a prefix and a number (``S005_001_00000011.png``) is a clip too.

    Raises
    ------
    InputError
        There is no such folder, it cannot be read, or it is empty.
    """
    # Only the first 512 entries of a crop folder are listed (Aff-Wild2 has 2.9 million crops). A folder that holds
    # numbered pictures beside videos or folders is not a clip.
    kind = kind_at(root)
    if kind != "crops":
        raise InputError("this is a file, not a folder" if kind else "no such folder", where=root,
                         hint="check the path (relative paths start at the current folder)")
    found = Scan(root)
    _visit(root, depth, found, is_prefixed if prefixed else is_crop)
    # A folder below the root that cannot be read is an issue; without the root itself nothing can be read.
    unreadable = [problem for problem in found.problems if problem.where == str(root)]
    if unreadable:
        raise InputError(unreadable[0].message, where=root, hint=unreadable[0].hint)
    if root in found.empty:
        raise InputError("the folder is empty", where=root, hint="put clips there, or name another folder")
    for paths in (found.videos, found.crops, found.empty, found.folders, found.texts, found.tables):
        paths.sort()
    found.problems.sort(key=lambda problem: problem.where)
    return found


def _visit(folder: Path, left: int, found: Scan, crop: Callable[[str], bool]) -> None:
    """Sort the entries of `folder` into `found`, and those of the folders below it."""
    try:
        names, below = _list(folder, crop)
    except OSError as error:
        found.problems.append(Issue(where=str(folder), message=f"the folder cannot be read ({error.strerror})",
                                    hint="check its permissions"))
        return
    suffixes = {name: _suffix(name) for name in names}
    videos = [name for name, suffix in suffixes.items() if suffix in VIDEOS]
    if not below and not videos and any(map(crop, names)):
        found.crops.append(folder)
        return
    if not names and not below:
        found.empty.append(folder)
    found.videos += [folder / name for name in videos]
    found.texts += [folder / name for name, suffix in suffixes.items() if suffix == ".txt"]
    found.tables += [folder / name for name, suffix in suffixes.items() if suffix == ".csv"]
    for name in below:
        found.folders.append(folder / name)
        if left > 0:
            _visit(folder / name, left - 1, found, crop)


def _list(folder: Path, crop: Callable[[str], bool]) -> tuple[list[str], list[str]]:
    """Return the names of files and of folders in `folder`; only the first ones of a large folder of crops."""
    names: list[str] = []
    below: list[str] = []
    with os.scandir(folder) as entries:
        # The listing goes on after the first part only if that part did not decide what the folder is.
        for part in (islice(entries, PEEK), entries):
            for entry in part:
                if entry.name.startswith((".", "@", "__MACOSX")):  # hidden files, and remains of Macs and file servers
                    continue
                # A name that looks like a crop is not asked whether it is a folder: that may cost a call each.
                (names if crop(entry.name) or not entry.is_dir() else below).append(entry.name)
            if not below and any(map(crop, names)):
                break
    return names, below


def kind_at(path: Path) -> Kind | None:
    """Return "crops" for a folder, "video" for a file, None if it does not exist or cannot be accessed."""
    try:
        return "crops" if path.is_dir() else "video" if path.exists() else None
    except OSError:  # the name is too long, or a folder above it may not be entered
        return None


def is_crop(name: str) -> bool:
    """Return whether a file is named as a numbered picture: ``00001.jpg``."""
    stem = name[:name.rfind(".")]
    return stem.isdigit() and stem.isascii() and _suffix(name) in PICTURES


def is_prefixed(name: str) -> bool:
    """Return whether a file is named as a numbered picture, with or without a prefix: ``S005_001_00000011.png``."""
    stem = name[:name.rfind(".")]
    number = stem if stem.isdigit() else stem[max(stem.rfind("_"), stem.rfind("-")) + 1:]
    return number.isdigit() and number.isascii() and _suffix(name) in PICTURES


def _suffix(name: str) -> str:
    """Return a file's ending, ``.jpg``."""
    # Path.suffix is too slow for millions of names.
    return name[name.rfind("."):].lower() if "." in name else ""


def unnamable(found: Scan) -> Iterator[Issue]:
    """Yield an issue for each clip whose name is not valid UTF-8, and remove it from `found`."""
    for paths in (found.videos, found.crops):
        for path in [path for path in paths if not printable(str(path.relative_to(found.root)))]:
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
