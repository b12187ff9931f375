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
from fercache.data.base import Dataset, Trial, grouped, shorten_list
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


@dataclass(frozen=True, kw_only=True)
class CheckFinding:
    """One thing that was found.

    Attributes
    ----------
    kind : a word for programs: ``no-label``, ``no-clip``, ``unreadable``, ``empty-pictures``, ``twins``, ``leak``, ..
    names : every clip, file, group or class that it is about.
    amounts : how much of it there is at each of them, where that is counted, else empty.
    lost : whether data drops out, or a score is spoilt, because of it.
    """

    kind: str
    names: tuple[str, ...]
    what: str
    hint: str
    lost: bool
    amounts: tuple[int, ...] = ()

    @property
    def where(self) -> str:
        """The names in words, a few of them, the largest amounts first."""
        if not self.amounts:
            return shorten_list(self.names)
        ordered = sorted(zip(self.names, self.amounts, strict=True), key=lambda pair: (-pair[1], pair[0]))
        return shorten_list(f"{name} ({amount:,})" for name, amount in ordered)


def find_issues(dataset: Dataset, clocks: Sequence[FrameTable], facts: Mapping[str, ClipFacts],
           compared: Sequence[LengthComparison]) -> Iterator[CheckFinding]:
    """Yield everything, what loses data first."""
    found = [*_read(dataset), *_unlabelled(dataset), *_pictures(dataset.trials, facts), *_videos(dataset.trials, facts),
             *_twins(find_duplicate_clips(dataset.trials, facts)), *_leaks(dataset.trials), *_classes(dataset, clocks),
             *_beyond(clocks), *_odd(dataset.trials, facts)]
    yield from sorted(found, key=lambda one: not one.lost)


def _counted(kind: str, amounts: Mapping[str, int], what: str, hint: str, lost: bool = False) -> Iterator[CheckFinding]:
    """Yield a finding with its amounts, nothing where there are none."""
    if amounts:
        yield CheckFinding(kind=kind, names=tuple(amounts), amounts=tuple(amounts.values()), what=what, hint=hint,
                           lost=lost)


def _read(dataset: Dataset) -> Iterator[CheckFinding]:
    """Yield what the reader of the set found."""
    for problem, names in grouped(dataset.problems):
        yield CheckFinding(kind=problem.kind or "reader", names=names, what=problem.what, hint=problem.hint,
                      lost=problem.lost)


def _unlabelled(dataset: Dataset) -> Iterator[CheckFinding]:
    """Yield the clips of the labelled splits that have no label at all, and those annotated as -1 throughout."""
    bare = [trial for trial in dataset.trials if trial.split != "test" and not trial.labelled]
    without = tuple(trial.name for trial in bare if trial.labels is None)
    minus = tuple(trial.name for trial in bare if trial.labels is not None)
    if without:
        yield CheckFinding(kind="no-label", names=without,
                           what=f"{len(without)} clips of labelled splits have no label",
                      hint="nothing is learnt from them; get their annotation", lost=True)
    if minus:
        yield CheckFinding(kind="all-minus-one", names=minus, what=f"{len(minus)} annotations are -1 in every frame",
                      hint="nothing is learnt from these clips", lost=False)


def _pictures(trials: Sequence[Trial], facts: Mapping[str, ClipFacts]) -> Iterator[CheckFinding]:
    """Yield folders that cannot be read, empty files among pictures, and pictures that do not decode."""
    own = {trial.name: facts[str(trial.path)] for trial in trials if trial.kind == "crops"}
    for name, known in own.items():
        if known.problem:
            yield CheckFinding(kind="unreadable", names=(name,), what=known.problem, lost=True,
                          hint="its clip is lost until it is mended")
    empty = {name: known.empty for name, known in own.items() if known.empty}
    yield from _counted("empty-pictures", empty, f"{sum(empty.values()):,} pictures of no bytes in {len(empty)} "
                        "folders", "copy them again; their rows have no face meanwhile", lost=True)
    damaged = tuple(f"{name}/{one}" for name, known in own.items() for one in known.damaged)
    if damaged:
        yield CheckFinding(kind="unreadable", names=damaged, lost=True,
                      what=f"{len(damaged)} first or last pictures of a folder do not decode",
                      hint="copy the folders again (the pictures between were not looked at)")


def _videos(trials: Sequence[Trial], facts: Mapping[str, ClipFacts]) -> Iterator[CheckFinding]:
    """Yield videos that do not open."""
    for trial in trials:
        known = facts[str(trial.path)]
        if trial.kind == "video" and known.problem:
            yield CheckFinding(kind="unreadable", names=(trial.name,), what=known.problem, hint=f"see {trial.path}",
                          lost=True)
    beside = tuple(sorted({str(trial.video) for trial in trials if trial.video and facts[str(trial.video)].problem}))
    if beside:
        yield CheckFinding(kind="unreadable-video", names=beside, hint="their frames are not counted", lost=False,
                      what=f"{len(beside)} videos beside the crops do not open")


def _twins(groups: Sequence[Sequence[Trial]]) -> Iterator[CheckFinding]:
    """Yield clips of one content; across groups or splits they are on both sides of a fold."""
    for group in groups:
        apart = len({trial.group for trial in group}) > 1 or len({trial.split for trial in group}) > 1
        yield CheckFinding(kind="twins", names=tuple(f"{trial.name} ({trial.split})" for trial in group), lost=apart,
                      what="the same content under several names" + (", in several groups or splits" if apart else ""),
                      hint="keep one of them, or give them one group")


def _leaks(trials: Sequence[Trial]) -> Iterator[CheckFinding]:
    """Yield groups that are in several labelled splits."""
    splits: dict[str, set[str]] = defaultdict(set)
    for trial in trials:
        if trial.labelled:
            splits[trial.group].add(trial.split)
    both = tuple(sorted(group for group, held in splits.items() if len(held) > 1))
    if both:
        yield CheckFinding(kind="leak", names=both, what=f"{len(both)} groups stand in several splits", lost=True,
                      hint="what is learnt of them is scored on them; check group and split")


def _classes(dataset: Dataset, clocks: Sequence[FrameTable]) -> Iterator[CheckFinding]:
    """Yield classes that the training split does not show."""
    training = [clock for clock in clocks if clock.trial.split == "train"]
    seen = {code for clock in training for code in (*set(clock.labelled().tolist()), clock.trial.clip_label)}
    absent = tuple(name for code, name in enumerate(dataset.classes) if code not in seen)
    if absent and training:
        yield CheckFinding(kind="no-class", names=absent, what=f"{len(absent)} classes are never seen in training",
                      hint="they cannot be learnt; a mean over all classes counts them as 0", lost=False)


def _beyond(clocks: Sequence[FrameTable]) -> Iterator[CheckFinding]:
    """Yield labels that lie past everything that can be seen."""
    past = {clock.trial.name: clock.lines - clock.stored for clock in clocks
            if clock.stored and clock.lines > clock.stored}
    yield from _counted("labels-past-the-clip", past, f"{len(past)} annotations are longer than their clip, by "
                        f"{sum(past.values()):,} frames in all", "these frames keep their row, without a face")


def _odd(trials: Sequence[Trial], facts: Mapping[str, ClipFacts]) -> Iterator[CheckFinding]:
    """Yield files in folders of crops that are no numbered picture."""
    odd = {trial.name: facts[str(trial.path)].other for trial in trials
           if trial.kind == "crops" and facts[str(trial.path)].other}
    yield from _counted("other-files", odd, f"{sum(odd.values()):,} files in {len(odd)} folders are no numbered "
                        "picture", "they are ignored")
