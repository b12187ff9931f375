"""Issues to fix before extraction: what loses data or spoils a score, and harmless differences."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np
from msgspec.structs import replace as replace_fields

from fercache import media
from fercache.data import base
from fercache.data.base import Dataset, FrameTable, Issue, Severity, Trial
from fercache.errors import ClipError, InputError, shorten_list
from fercache.media import pictures
from fercache.media.pictures import ENDINGS, MAX_BYTES, NAME, read_picture
from fercache.media.video import SEVERAL, TRAITS, VideoSource
from fercache.runtime import atomic_io
from fercache.runtime.progress import progress_bar
from fercache.workspace import Workspace

log = logging.getLogger(__name__)

VERSION = 2
# A folder that changed this short before it was read may have changed again within the clock's resolution: the next
# check reads it again.
SETTLED_NS = 2_000_000_000


class ClipFacts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was read of one clip."""

    # `mtime_ns`, `taken_ns`: when the folder or file was last changed, and when it was read
    mtime_ns: int
    taken_ns: int
    bytes: int = 0  # size of the video, or of all pictures
    runs: str = ""  # frame numbers of the pictures, such as ``1-250,252``; "" for a video
    pictures: int = 0  # number of pictures with a frame number in their names
    other: int = 0  # number of other files
    empty: int = 0  # number of empty pictures
    damaged: tuple[str, ...] = ()  # pictures that were tried and do not decode
    frames: int = 0  # length in the header of the video, 0 if it has none
    traits: tuple[str, ...] = ()  # what is special about the picture of a video, by kind, such as ``HDR``
    problem: str = ""  # why the clip cannot be read, or ""
    hint: str = ""  # what to do about it

    def numbers(self) -> base.IndexRanges:
        """Return the first and last number of each run, (R, 2)."""
        pairs = [run.split("-") for run in self.runs.split(",") if run]
        return np.array([(int(pair[0]), int(pair[-1])) for pair in pairs], np.int64).reshape(-1, 2)


class _IndexFile(msgspec.Struct, frozen=True):
    version: int
    clips: dict[str, ClipFacts]


@dataclass
class ClipIndex:
    """Facts by path; this run `read` so many clips, and `reused` what an earlier run had read of others."""

    path: Path
    facts: dict[str, ClipFacts] = field(default_factory=dict)
    read: int = 0
    reused: int = 0

    @classmethod
    def load(cls, cache: Path, dataset: str) -> ClipIndex:
        """Return the index of earlier runs; an empty one if there is no file, or another version's."""
        path = Workspace(cache).index(dataset)
        try:
            stored = atomic_io.read_record(path, _IndexFile, limit_bytes=1 << 30)
        except (OSError, InputError) as error:
            log.debug("%s: no index (%s)", path, error)
            return cls(path)
        return cls(path, stored.clips if stored.version == VERSION else {})

    def refresh(self, clips: Iterable[tuple[Path, str]], fresh: bool = False) -> None:
        """Bring the facts of these clips, (path, kind), up to date, and write the index.

        `fresh`: read everything again.
        """
        # A folder is read again if its modification time differs: files were added, removed or renamed. A picture that
        # was overwritten in place does not change it; `fresh` finds that.
        wanted = dict(clips)
        known, self.facts = self.facts, {}
        try:
            with progress_bar("index", len(wanted), "clips") as bar:
                for path, kind in sorted(wanted.items()):
                    self.facts[str(path)] = self._one(path, kind, None if fresh else known.get(str(path)))
                    bar.advance()
        finally:
            # Written after an interruption too, so that the next check goes on from there. Removed clips leave it.
            if self.read:
                others = {name: facts for name, facts in known.items()
                          if name not in self.facts and Path(name).exists()}
                index = _IndexFile(VERSION, {**others, **self.facts})
                atomic_io.write_json(self.path, index)

    def _one(self, path: Path, kind: str, known: ClipFacts | None) -> ClipFacts:
        try:
            changed_ns = path.stat().st_mtime_ns
        except OSError as error:
            self.read += 1
            return ClipFacts(mtime_ns=0, taken_ns=0, problem=f"cannot be read ({error.strerror})")
        if known and known.mtime_ns == changed_ns < known.taken_ns - SETTLED_NS:
            self.reused += 1
            return known
        self.read += 1
        blank = ClipFacts(mtime_ns=changed_ns, taken_ns=time.time_ns())
        try:
            if kind == "crops":
                return _read_folder(path, blank)
            video = VideoSource.open(path)  # a ClipError if the first frame does not decode
            return replace_fields(blank, bytes=path.stat().st_size, frames=video.length() or 0,
                                  traits=tuple(video.traits))
        except ClipError as error:
            return replace_fields(blank, problem=error.what, hint=error.hint)
        except (OSError, ValueError) as error:
            return replace_fields(blank, problem=f"cannot be read ({getattr(error, 'strerror', None) or error})")


def _read_folder(path: Path, blank: ClipFacts) -> ClipFacts:
    """Return the facts of a folder of crops: one pass over its names and sizes, its first and last picture decoded."""
    sizes: dict[int, int] = {}
    names: dict[int, str] = {}
    others: list[str] = []
    files = 0
    with os.scandir(path) as entries:
        for entry in entries:
            files += 1
            stem, _, ending = entry.name.rpartition(".")
            if stem.isdigit() and stem.isascii() and ending in ENDINGS:
                names[int(stem)] = entry.name
                sizes[int(stem)] = entry.stat().st_size
            else:
                others.append(entry.name)
    # Unusual names (a prefix, capitals, a number twice, number 0) follow the rules of the reader, which takes longer.
    if not names or min(names) < 1 or len(names) + len(others) < files or any(map(NAME.fullmatch, others)):
        names = pictures.numbered(path)
        sizes = {number: (path / name).stat().st_size for number, name in names.items()}
    runs = base.ranges_of(np.fromiter(names, np.int64, len(names)))
    # Empty files are counted on their own, so only the others are decoded.
    ends = sorted({names[number] for number in (min(names), max(names)) if sizes[number]})
    return replace_fields(
        blank, bytes=sum(sizes.values()), pictures=len(names), other=files - len(names),
        runs=",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in runs.tolist()),
        empty=list(sizes.values()).count(0), damaged=tuple(name for name in ends if not _decodes(path / name)))


def _decodes(path: Path) -> bool:
    try:
        return read_picture(path) is not None
    except ClipError:
        return False


@dataclass(frozen=True, kw_only=True)
class LengthDifference:
    """One trial whose two lengths differ: the expected one, and the one that is there."""

    trial: str
    expected: int
    there: int

    @property
    def missing(self) -> int:
        """How many are missing; negative if there are too many."""
        return self.expected - self.there


@dataclass(frozen=True, kw_only=True)
class LengthComparison:
    """Two lengths of every trial that has both."""

    name: str  # what is compared, such as ``crops against video frames``
    # `trials`, `equal`, `more`, `fewer`: number of trials that have both, and with as many, more or fewer of the first
    trials: int
    equal: int
    more: int
    fewer: int
    # `missing`, `extra`: frames too few, over all trials with fewer, and frames too many, over all with more
    missing: int
    extra: int
    differences: tuple[LengthDifference, ...]  # every trial that differs, the largest difference first


PAIRS: dict[str, Callable[[FrameTable], tuple[int, int]]] = {
    "crops against video frames": lambda table: (0 if table.crops is None else table.pictures, table.video),
    "crops against annotation lines": lambda table: (0 if table.crops is None else table.pictures, table.lines),
    "annotation lines against video frames": lambda table: (table.lines, table.video),
    "frames against the list's count": lambda table: (table.pictures, table.trial.stated)}
"""Name of a comparison -> length that is there and expected length; 0 is an unknown length."""


def compare_lengths(tables: Sequence[FrameTable]) -> tuple[LengthComparison, ...]:
    """Return every comparison for which a trial has both lengths."""
    compared = []
    for name, lengths in PAIRS.items():
        both = [LengthDifference(trial=table.trial.name, there=lengths(table)[0], expected=lengths(table)[1])
                for table in tables if all(lengths(table))]
        short = [one.missing for one in both if one.missing > 0]
        over = [-one.missing for one in both if one.missing < 0]
        if both:
            compared.append(LengthComparison(
                name=name, trials=len(both), equal=len(both) - len(short) - len(over), more=len(over),
                fewer=len(short), missing=sum(short), extra=sum(over),
                differences=tuple(sorted((one for one in both if one.missing),
                                         key=lambda one: (-abs(one.missing), one.trial)))))
    return tuple(compared)


SAMPLES = 8  # pictures of a folder that are compared byte by byte, spread from first to last


def _find_duplicate_clips(trials: Sequence[Trial], facts: Mapping[str, ClipFacts]) -> list[list[Trial]]:
    """Return the sets of trials with the same content, each sorted by name; not empty ones, and not two of one file."""
    # Only clips of the same kind, size and (of crops) frame numbers are opened at all.
    similar: dict[tuple[str, int, str], list[Trial]] = defaultdict(list)
    for trial in trials:
        clip = facts[str(trial.path)]
        if clip.bytes and not clip.problem:
            similar[trial.kind, clip.bytes, clip.runs].append(trial)
    by_hash: dict[tuple[str, str], list[Trial]] = defaultdict(list)
    for group in similar.values():
        if len({trial.path for trial in group}) < 2:
            continue
        for trial in group:
            try:
                by_hash[trial.kind, _sampled_hash(trial, facts[str(trial.path)])].append(trial)
            except (OSError, ClipError):
                continue  # reported as unreadable by others
    return sorted((sorted(same, key=lambda trial: trial.name) for same in by_hash.values()
                   if len({trial.path for trial in same}) > 1), key=lambda same: same[0].name)


def _sampled_hash(trial: Trial, clip: ClipFacts) -> str:
    if trial.kind == "video":
        return str(media.source_digest(trial.path, "video")["sha256"])
    names = pictures.numbered(trial.path)
    numbers = sorted(names)
    state = hashlib.sha256(f"{clip.bytes} {clip.runs}".encode())
    for position in sorted({(len(numbers) - 1) * i // (SAMPLES - 1) for i in range(SAMPLES)}):
        with (trial.path / names[numbers[position]]).open("rb") as file:
            state.update(hashlib.sha256(file.read(MAX_BYTES)).digest())
    return state.hexdigest()


def find_issues(dataset: Dataset, tables: Sequence[FrameTable], facts: Mapping[str, ClipFacts]) -> list[Issue]:
    """Return all issues of a data set, errors first."""
    trials = dataset.trials
    found = [*(replace(issue, kind=issue.kind or "reader") for issue in base.group_issues(dataset.problems)),
             *_label_issues(dataset, tables), *_picture_issues(trials, facts), *_video_issues(trials, facts)]
    copies: dict[bool, list[list[str]]] = defaultdict(list)
    for same in _find_duplicate_clips(trials, facts):
        # Copies in one group and split are on one side of every fold, so they cannot leak.
        leaks = len({trial.group for trial in same}) > 1 or len({trial.split for trial in same}) > 1
        copies[leaks].append([f"{trial.name} ({trial.split})" for trial in same])
    for leaks, sets in copies.items():
        many = f"{len(sets)} times " if len(sets) > base.MAX_ALIKE else ""
        for names in [[" = ".join(names) for names in sets]] if many else sets:
            found += _about("twins", names, f"{many}the same content under several names"
                            + (", in several groups or splits" if leaks else ""),
                            "keep one of them, or put them in one group", "error" if leaks else "note")
    both = list(base.in_several((trial.group, trial.split) for trial in trials if trial.labelled))
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
    groups = base.groups_by_class(table.trial for table in training)
    if training:
        absent = [name for code, name in enumerate(dataset.classes) if code not in groups]
        yield from _about("no-class", absent, f"{len(absent)} classes have no training label",
                          "no model can learn them; a mean over all classes counts them as 0")
    if len(groups) == 1:
        yield from _about("one-class", [dataset.classes[code] for code in groups], "all training labels are of one "
                          "class", "`fercache train-heads` needs labels of two classes at least", "error")
    single = [dataset.classes[code] for code in groups if len(groups[code]) == 1 < len(groups)]
    yield from _about("class-in-one-group", single, f"{len(single)} classes occur in one group only",
                      "where that group is held out, no model has seen the class; label clips of other groups")
    constant = [table.trial.name for table in training if table.rows > 1 and table.trial.labelled]
    if (any(table.trial.labels is not None for table in training)
            and not any(len(np.unique(table.labelled())) > 1 for table in training)):
        yield from _about("constant-labels", constant, f"the label is the same in every frame of all {len(constant)} "
                          "labeled clips", "for one prediction per clip: --level clip (train-heads and stack)")
    past = {table.trial.name: table.lines - table.stored for table in tables if table.lines > table.stored > 0}
    yield from _about("labels-past-the-clip", _counted(past), f"{len(past)} annotations are longer than their clip, by "
                      f"{sum(past.values()):,} frames in all", "these frames have a row without a face")


def _picture_issues(trials: Sequence[Trial], facts: Mapping[str, ClipFacts]) -> Iterator[Issue]:
    """Yield folders that cannot be read, and empty, undecodable and unnumbered files in the others."""
    folders = {trial.name: facts[str(trial.path)] for trial in trials if trial.kind == "crops"}
    yield from base.group_issues(Issue(kind="unreadable", where=name, message=folder.problem,
                                       hint="repair the folder: its clip is lost")
                                 for name, folder in folders.items() if folder.problem)
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
    """Yield videos that do not open, and those whose pictures are converted."""
    broken = [(trial, facts[str(trial.path)]) for trial in trials if trial.kind == "video"]
    yield from (replace(issue, message=f"{len(issue.details)} clips: {issue.message}" if len(issue.details) > 1
                        else issue.message)
                for issue in base.group_issues(Issue(kind="unreadable", where=trial.name, message=clip.problem,
                                                     hint=clip.hint or f"see {trial.path}")
                                               for trial, clip in broken if clip.problem))
    for kind in TRAITS:
        clips = [trial.name for trial in trials if kind in facts[str(trial.path)].traits]
        yield from _about("picture", clips, f"{len(clips)} videos have {kind}",
                          "the default stream is read, then the longest; see the log" if kind == SEVERAL else
                          "they are converted when they are read")
    beside = sorted({str(trial.video) for trial in trials if trial.video and facts[str(trial.video)].problem})
    yield from _about("unreadable-video", beside, f"{len(beside)} videos of folders of crops do not open",
                      "their frames are not counted")
