"""Issues to fix before extraction: what loses data or spoils a score, and harmless differences."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fercache import media
from fercache.data.base import Dataset, Issue, Severity, Trial, group_issues, shorten_list
from fercache.data.frame_table import FrameTable, IndexRanges, ranges_of
from fercache.errors import ClipError, InputError
from fercache.media import pictures
from fercache.media.pictures import MAX_BYTES, NAME, read_picture
from fercache.runtime import atomic_io
from fercache.runtime.progress import progress_bar
from fercache.workspace import Workspace

log = logging.getLogger(__name__)


# Facts of each clip, read once and stored in the cache: crop numbers, sizes, stated video frames.

VERSION = 1
ENDINGS = frozenset(("jpg", "jpeg", "png"))
SETTLED_NS = 2_000_000_000
"""A folder changed within two seconds before it was read may have changed again within the clock's grain: not kept."""


@dataclass(frozen=True, kw_only=True)
class ClipFacts:
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

    def numbers(self) -> IndexRanges:
        """Return the runs as (R, 2) numbers."""
        pairs = [run.split("-") for run in self.runs.split(",") if run]
        return np.array([(int(pair[0]), int(pair[-1])) for pair in pairs], np.int64).reshape(-1, 2)


@dataclass
class ClipIndex:
    """Facts by path; `read` and `kept` count what this run had to read and what an earlier one had found."""

    path: Path
    facts: dict[str, ClipFacts] = field(default_factory=dict)
    read: int = 0
    kept: int = 0

    @classmethod
    def load(cls, cache: Path, dataset: str) -> ClipIndex:
        """Return what earlier runs found; nothing where there is no index, or one that is not ours."""
        path = Workspace(cache).index(dataset)
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
            with progress_bar("index", len(wanted), "clips") as bar:
                for path, kind in sorted(wanted.items()):
                    self.facts[str(path)] = self._one(path, kind, None if fresh else known.get(str(path)))
                    bar.advance()
        finally:
            if self.read:
                others = {name: one for name, one in known.items() if name not in self.facts and Path(name).exists()}
                self._write({**others, **self.facts})

    def _one(self, path: Path, kind: str, held: ClipFacts | None) -> ClipFacts:
        try:
            changed_ns = path.stat().st_mtime_ns
        except OSError as error:
            self.read += 1
            return ClipFacts(mtime_ns=0, taken_ns=0, problem=f"cannot be read ({error.strerror})")
        if held and held.mtime_ns == changed_ns < held.taken_ns - SETTLED_NS:
            self.kept += 1
            return held
        self.read += 1
        blank = ClipFacts(mtime_ns=changed_ns, taken_ns=time.time_ns())
        return _folder(path, blank) if kind == "crops" else _video(path, blank)

    def _write(self, facts: dict[str, ClipFacts]) -> None:
        clips = {name: _plain(one) for name, one in facts.items()}
        atomic_io.write_json(self.path, {"version": VERSION, "clips": clips})


def _plain(facts: ClipFacts) -> dict[str, Any]:
    """Return the facts as JSON, what is nothing left out."""
    return {name: value for name, value in asdict(facts).items() if value}


def _facts(entry: dict[str, Any]) -> ClipFacts:
    return ClipFacts(**{**entry, "damaged": tuple(entry.get("damaged", ()))})


def _folder(path: Path, blank: ClipFacts) -> ClipFacts:
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
    found, size = ranges_of(numbers), np.array(sizes, np.int64)
    ends = {names[int(numbers.argmin())], names[int(numbers.argmax())]}
    return replace(blank, bytes=int(size.sum()), runs=_text(found), pictures=len(names), other=len(others),
                 empty=int((size == 0).sum()), damaged=_damaged(path, ends))


def _by_reader(path: Path, blank: ClipFacts, files: int) -> ClipFacts:
    """Return the facts of a folder with unusual names (a prefix, capitals, none at all) by the reader's own rules."""
    try:
        held = pictures.numbered(path)
        sizes = [(path / name).stat().st_size for name in held.values()]
        found = ranges_of(np.fromiter(held, np.int64, len(held)))
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


def _text(runs: IndexRanges) -> str:
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in runs.tolist())


def _video(path: Path, blank: ClipFacts) -> ClipFacts:
    """Return the facts of a video: its size, and the frames that its header states once its first frame decodes."""
    try:
        size = path.stat().st_size
        return replace(blank, bytes=size, frames=media.open_source(path, "video").length() or 0)
    except ClipError as error:
        return replace(blank, problem=error.what)
    except OSError as error:
        return replace(blank, problem=f"cannot be read ({error.strerror})")


# Pairwise comparison of lengths: crops, video frames and annotation lines.

Pair = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class LengthDifference:
    """One trial whose two lengths differ: what should be there, and what is."""

    trial: str
    expected: int
    there: int

    @property
    def missing(self) -> int:
        """How many are missing; negative where there are too many."""
        return self.expected - self.there


@dataclass(frozen=True, kw_only=True)
class LengthComparison:
    """Two lengths of every trial that has both.

    Attributes
    ----------
    name : what is compared, ``crops against video frames``.
    trials, equal, more, fewer : how many have both, as many, more, or fewer of the first than of the second.
    missing, extra : frames short over all trials with fewer, and frames over over all with more.
    differences : every trial that differs, the largest first.
    """

    name: str
    trials: int
    equal: int
    more: int
    fewer: int
    missing: int
    extra: int
    differences: tuple[LengthDifference, ...]


def compare_lengths_of(name: str, clocks: Sequence[FrameTable],
                       pair: Callable[[FrameTable], Pair | None]) -> LengthComparison | None:
    """Return how two lengths, (there, expected), agree over the trials; None where no trial has both."""
    both = [(clock.trial.name, *lengths) for clock in clocks if (lengths := pair(clock)) is not None]
    if not both:
        return None
    found = [LengthDifference(trial=trial, expected=expected, there=there) for trial, there, expected in both]
    short = [one.missing for one in found if one.missing > 0]
    over = [-one.missing for one in found if one.missing < 0]
    return LengthComparison(name=name, trials=len(found), equal=len(found) - len(short) - len(over), more=len(over),
                      fewer=len(short), missing=sum(short), extra=sum(over),
                      differences=tuple(sorted((one for one in found if one.missing),
                                               key=lambda one: (-abs(one.missing), one.trial))))


def crops_video(clock: FrameTable) -> Pair | None:
    """Return crops there and frames that the video states."""
    return (clock.pictures, clock.video) if clock.crops is not None and clock.video else None


def crops_lines(clock: FrameTable) -> Pair | None:
    """Return crops there and annotation lines."""
    return (clock.pictures, clock.lines) if clock.crops is not None and clock.lines else None


def lines_video(clock: FrameTable) -> Pair | None:
    """Return annotation lines and frames that the video states."""
    return (clock.lines, clock.video) if clock.lines and clock.video else None


def there_stated(clock: FrameTable) -> Pair | None:
    """Return frames there and frames that the set's list states."""
    return (clock.pictures, clock.trial.stated) if clock.trial.stated and clock.pictures else None


PAIRS: dict[str, Callable[[FrameTable], Pair | None]] = {
    "crops against video frames": crops_video, "crops against annotation lines": crops_lines,
    "annotation lines against video frames": lines_video, "frames against the list's count": there_stated}


def compare_lengths(clocks: Sequence[FrameTable]) -> tuple[LengthComparison, ...]:
    """Return every comparison that can be made."""
    made = (compare_lengths_of(name, clocks, pair) for name, pair in PAIRS.items())
    return tuple(one for one in made if one is not None)


# Clips whose content is the same under two names.

SAMPLES = 8
"""Pictures of a folder that are compared byte by byte, spread from first to last."""


def find_duplicate_clips(trials: Sequence[Trial], facts: Mapping[str, ClipFacts]) -> list[list[Trial]]:
    """Return the sets of trials with the same content, each sorted by name.

    Notes
    -----
    Cheap first: only clips of the same kind, the same bytes and (of crops) the same numbers are opened at all; then the
    sampled hash that the store uses, of a folder that of 8 of its pictures. Clips of no bytes are left out, and so are
    two trials of one file (two people of a video).
    """
    alike: dict[tuple[str, int, str], list[Trial]] = defaultdict(list)
    for trial in trials:
        known = facts[str(trial.path)]
        if known.bytes and not known.problem:
            alike[trial.kind, known.bytes, known.runs].append(trial)
    found: list[list[Trial]] = []
    for group in alike.values():
        if len({trial.path for trial in group}) > 1:
            found += _same(group, facts)
    return sorted(found, key=lambda group: group[0].name)


def _same(group: Sequence[Trial], facts: Mapping[str, ClipFacts]) -> Iterator[list[Trial]]:
    """Yield those of a group that are the same by hash."""
    by_hash: dict[str, list[Trial]] = defaultdict(list)
    for trial in group:
        try:
            by_hash[_hash(trial, facts[str(trial.path)])].append(trial)
        except (OSError, ClipError):
            continue  # told as unreadable elsewhere
    for same in by_hash.values():
        if len({trial.path for trial in same}) > 1:
            yield sorted(same, key=lambda trial: trial.name)


def _hash(trial: Trial, known: ClipFacts) -> str:
    if trial.kind == "video":
        return str(media.source_digest(trial.path, "video")["sha256"])
    names = pictures.numbered(trial.path)
    numbers = sorted(names)
    state = hashlib.sha256(known.runs.encode())
    for place in sorted({(len(numbers) - 1) * i // (SAMPLES - 1) for i in range(SAMPLES)}):
        state.update(hashlib.sha256(_bytes(trial.path / names[numbers[place]])).digest())
    return state.hexdigest()


def _bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_BYTES)


def find_issues(dataset: Dataset, tables: Sequence[FrameTable], facts: Mapping[str, ClipFacts]) -> list[Issue]:
    """Return all issues of a data set, errors first."""
    trials = dataset.trials
    found = [*(replace(issue, kind=issue.kind or "reader") for issue in group_issues(dataset.problems)),
             *_label_issues(dataset, tables), *_picture_issues(trials, facts), *_video_issues(trials, facts)]
    for same in find_duplicate_clips(trials, facts):
        # Copies in one group and split are on one side of every fold, so they cannot leak.
        leaks = len({trial.group for trial in same}) > 1 or len({trial.split for trial in same}) > 1
        found += _about("twins", [f"{trial.name} ({trial.split})" for trial in same],
                        "the same content under several names" + (", in several groups or splits" if leaks else ""),
                        "keep one of them, or put them in one group", "error" if leaks else "note")
    splits: dict[str, set[str]] = defaultdict(set)
    for trial in trials:
        if trial.labelled:
            splits[trial.group].add(trial.split)
    both = sorted(group for group, names in splits.items() if len(names) > 1)
    found += _about("leak", both, f"{len(both)} groups are in several splits",
                    "a model would be scored on groups that it was trained on; check group and split", "error")
    return sorted(found, key=lambda issue: not issue.is_error)


def _about(kind: str, names: Sequence[str], message: str, hint: str, severity: Severity = "note") -> Iterator[Issue]:
    """Yield an issue about these clips (or files, groups, classes); nothing if there are none."""
    if names:
        yield Issue(kind=kind, where=shorten_list(names), message=message, hint=hint, severity=severity,
                    details=tuple(names))


def _counted(amounts: Mapping[str, int]) -> list[str]:
    """Return each name with its amount, the largest first."""
    return [f"{name} ({amount:,})" for name, amount in sorted(amounts.items(), key=lambda pair: (-pair[1], pair[0]))]


def _label_issues(dataset: Dataset, tables: Sequence[FrameTable]) -> Iterator[Issue]:
    """Yield clips without labels, classes that the training split lacks, and labels past the end of their clip."""
    unlabelled = [trial for trial in dataset.trials if trial.split != "test" and not trial.labelled]
    without = [trial.name for trial in unlabelled if trial.labels is None]
    yield from _about("no-label", without, f"{len(without)} clips of labelled splits have no label",
                      "no model learns from them; get their annotation", "error")
    minus = [trial.name for trial in unlabelled if trial.labels is not None]
    yield from _about("all-minus-one", minus, f"{len(minus)} annotations are -1 in every frame",
                      "no model learns from these clips")
    training = [table for table in tables if table.trial.split == "train"]
    seen = {code for table in training for code in (*set(table.labelled().tolist()), table.trial.clip_label)}
    if training:
        absent = [name for code, name in enumerate(dataset.classes) if code not in seen]
        yield from _about("no-class", absent, f"{len(absent)} classes have no training label",
                          "no model can learn them; a mean over all classes counts them as 0")
    past = {table.trial.name: table.lines - table.stored for table in tables if table.lines > table.stored > 0}
    yield from _about("labels-past-the-clip", _counted(past), f"{len(past)} annotations are longer than their clip, by "
                      f"{sum(past.values()):,} frames in all", "these frames have a row without a face")


def _picture_issues(trials: Sequence[Trial], facts: Mapping[str, ClipFacts]) -> Iterator[Issue]:
    """Yield folders that cannot be read, and empty, undecodable and unnumbered files in the others."""
    folders = {trial.name: facts[str(trial.path)] for trial in trials if trial.kind == "crops"}
    for name, folder in folders.items():
        if folder.problem:
            yield Issue(kind="unreadable", where=name, message=folder.problem, details=(name,),
                        hint="repair the folder: its clip is lost")
    empty = {name: folder.empty for name, folder in folders.items() if folder.empty}
    yield from _about("empty-pictures", _counted(empty), f"{sum(empty.values()):,} empty picture files in {len(empty)} "
                      "folders", "copy them again; until then their rows have no face", "error")
    damaged = [f"{name}/{file}" for name, folder in folders.items() for file in folder.damaged]
    yield from _about("unreadable", damaged, f"{len(damaged)} first or last pictures of a folder do not decode",
                      "copy the folders again (the pictures in between were not checked)", "error")
    other = {name: folder.other for name, folder in folders.items() if folder.other}
    yield from _about("other-files", _counted(other), f"{sum(other.values()):,} files in {len(other)} folders are not "
                      "numbered pictures", "they are ignored")


def _video_issues(trials: Sequence[Trial], facts: Mapping[str, ClipFacts]) -> Iterator[Issue]:
    """Yield videos that do not open."""
    for trial in trials:
        problem = facts[str(trial.path)].problem
        if trial.kind == "video" and problem:
            yield Issue(kind="unreadable", where=trial.name, message=problem, hint=f"see {trial.path}",
                        details=(trial.name,))
    beside = sorted({str(trial.video) for trial in trials if trial.video and facts[str(trial.video)].problem})
    yield from _about("unreadable-video", beside, f"{len(beside)} videos of folders of crops do not open",
                      "their frames are not counted")
