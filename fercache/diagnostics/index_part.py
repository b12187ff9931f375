"""What lies in each clip, read once and kept in the cache: crop numbers, sizes, frames that a video states."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fercache import media
from fercache.data.frame_table import Runs, runs_of
from fercache.errors import ClipError, InputError
from fercache.media import pictures
from fercache.media.pictures import NAME, read_picture
from fercache.runtime import atomic_io
from fercache.runtime.progress import meter

log = logging.getLogger(__name__)


VERSION = 1
ENDINGS = frozenset(("jpg", "jpeg", "png"))
SETTLED_NS = 2_000_000_000
"""A folder changed within two seconds before it was read may have changed again within the clock's grain: not kept."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of one clip.

    Attributes
    ----------
    mtime_ns, taken_ns : when folder or file was last changed, and when it was read.
    bytes : of all its pictures, or of the video.
    runs : numbers of its pictures as ``1-250,252``, empty of a video.
    pictures : files with a frame number in their names.
    other : files that are no numbered picture.
    empty : pictures of no bytes; `damaged` names some pictures that cannot be decoded.
    frames : that a video states, 0 for none.
    problem : why nothing of it can be read, empty where all is well.
    """

    mtime_ns: int
    taken_ns: int
    bytes: int = 0
    runs: str = ""
    pictures: int = 0
    other: int = 0
    empty: int = 0
    damaged: tuple[str, ...] = ()
    frames: int = 0
    problem: str = ""

    def numbers(self) -> Runs:
        """Return the runs as (R, 2) numbers."""
        pairs = [run.split("-") for run in self.runs.split(",") if run]
        return np.array([(int(pair[0]), int(pair[-1])) for pair in pairs], np.int64).reshape(-1, 2)


@dataclass
class Index:
    """Facts by path; `read` and `kept` count what this run had to read and what an earlier one had found."""

    path: Path
    facts: dict[str, Facts] = field(default_factory=dict)
    read: int = 0
    kept: int = 0

    @classmethod
    def load(cls, cache: Path, dataset: str) -> Index:
        """Return what earlier runs found; nothing where there is no index, or one that is not ours."""
        path = cache / "index" / f"{dataset}.json"
        try:
            held = atomic_io.read_json(path, limit_bytes=1 << 30)
            if held["version"] != VERSION:
                return cls(path)
            return cls(path, {name: _facts(entry) for name, entry in held["clips"].items()})
        except (OSError, InputError, KeyError, TypeError, AttributeError) as error:
            log.debug("%s: no index (%s)", path, error)
            return cls(path)

    def refresh(self, clips: Iterable[tuple[Path, str]], fresh: bool = False) -> None:
        """Bring the facts of these clips, (path, kind), up to date, and keep them.

        Parameters
        ----------
        fresh : read everything again.

        Notes
        -----
        A folder is read again when its time of change differs: files came, went or were renamed. A picture that was
        overwritten in place does not show there; `fresh` is for that. Stopped half-way, what was read is kept.
        """
        wanted = dict(clips)
        known, self.facts = self.facts, {}
        try:
            with meter("index", len(wanted), "clips") as bar:
                for path, kind in sorted(wanted.items()):
                    self.facts[str(path)] = self._one(path, kind, None if fresh else known.get(str(path)))
                    bar.advance()
        finally:
            if self.read:
                others = {name: one for name, one in known.items() if name not in self.facts and Path(name).exists()}
                self._write({**others, **self.facts})

    def _one(self, path: Path, kind: str, held: Facts | None) -> Facts:
        try:
            changed_ns = path.stat().st_mtime_ns
        except OSError as error:
            self.read += 1
            return Facts(mtime_ns=0, taken_ns=0, problem=f"cannot be read ({error.strerror})")
        if held and held.mtime_ns == changed_ns < held.taken_ns - SETTLED_NS:
            self.kept += 1
            return held
        self.read += 1
        blank = Facts(mtime_ns=changed_ns, taken_ns=time.time_ns())
        return _folder(path, blank) if kind == "crops" else _video(path, blank)

    def _write(self, facts: dict[str, Facts]) -> None:
        atomic_io.write_json(self.path, {"version": VERSION, "clips": {name: _plain(one) for name, one in facts.items()}})


def _plain(facts: Facts) -> dict[str, Any]:
    """Return the facts as JSON, what is nothing left out."""
    return {name: value for name, value in asdict(facts).items() if value}


def _facts(entry: dict[str, Any]) -> Facts:
    return Facts(**{**entry, "damaged": tuple(entry.get("damaged", ()))})


def _folder(path: Path, blank: Facts) -> Facts:
    """Return the facts of a folder of crops: one pass over its names and sizes, its first and last picture decoded."""
    names: list[str] = []
    others: list[str] = []
    sizes: list[int] = []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                stem, _, ending = entry.name.rpartition(".")
                if stem.isdigit() and stem.isascii() and ending in ENDINGS:
                    names.append(entry.name)
                    sizes.append(entry.stat().st_size)
                else:
                    others.append(entry.name)
    except (OSError, ValueError) as error:
        return replace(blank, problem=f"cannot be read ({getattr(error, 'strerror', None) or error})")
    numbers = np.array([int(name[:name.index(".")]) for name in names], np.int64)
    if not names or numbers.min() < 1 or any(NAME.fullmatch(name) for name in others):
        return _by_reader(path, blank, len(names) + len(others))
    found, size = runs_of(numbers), np.array(sizes, np.int64)
    ends = {names[int(numbers.argmin())], names[int(numbers.argmax())]}
    return replace(blank, bytes=int(size.sum()), runs=_text(found), pictures=len(names), other=len(others),
                 empty=int((size == 0).sum()), damaged=_damaged(path, ends))


def _by_reader(path: Path, blank: Facts, files: int) -> Facts:
    """Return the facts of a folder with unusual names (a prefix, capitals, none at all) by the reader's own rules."""
    try:
        held = pictures.numbered(path)
        sizes = [(path / name).stat().st_size for name in held.values()]
        found = runs_of(np.fromiter(held, np.int64, len(held)))
        return replace(blank, bytes=sum(sizes), runs=_text(found), pictures=len(held), empty=sizes.count(0),
                     other=files - len(held), damaged=_damaged(path, {held[min(held)], held[max(held)]}))
    except ClipError as error:
        return replace(blank, problem=error.what)
    except OSError as error:
        return replace(blank, problem=f"cannot be read ({error.strerror})")


def _damaged(path: Path, names: Iterable[str]) -> tuple[str, ...]:
    """Return which of these pictures cannot be decoded; empty files are counted elsewhere."""
    try:
        there = sorted(name for name in names if (path / name).stat().st_size)
        return tuple(name for name in there if read_picture(path / name) is None)
    except (ClipError, OSError):
        return tuple(sorted(names))


def _text(runs: Runs) -> str:
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in runs.tolist())


def _video(path: Path, blank: Facts) -> Facts:
    """Return the facts of a video: its size, and the frames that its header states once its first frame decodes."""
    try:
        size = path.stat().st_size
        return replace(blank, bytes=size, frames=media.open_source(path, "video").length() or 0)
    except ClipError as error:
        return replace(blank, problem=error.what)
    except OSError as error:
        return replace(blank, problem=f"cannot be read ({error.strerror})")
