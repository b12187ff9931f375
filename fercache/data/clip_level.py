"""What the clip-level sets share: lists of ``clip label``, the versions in which a set's clips lie about, trials."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePath

from fercache.config import DatasetConfig
from fercache.data.base import UNKNOWN, Dataset, Kind, Problem, Split, Trial, cache_name, some
from fercache.data.scan import Scan, describe, scan, unnamable
from fercache.errors import InputError

DEPTH = 6
"""Folders down to which a set's clips are looked for (archives unpack into a folder of their own)."""
LIMIT_BYTES = 64 << 20
SHOWN = 60
SAME = {"happy": "happiness", "joy": "happiness", "sad": "sadness", "angry": "anger", "fearful": "fear",
        "surprised": "surprise", "disgusted": "disgust", "contemptuous": "contempt", "calmness": "calm"}
"""Words of one class, as participants write them."""

Key = Callable[[PurePath], tuple[str, str] | None]
"""(version, clip) of a clip's path below the root: which version of the set it belongs to, and which clip it is."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One clip as a set's lists or names tell of it; `label` is an index into the classes, -1 for none."""

    name: str
    label: int
    split: Split
    group: str = ""
    subject: str = ""
    fold: int = 0
    stated: int = 0


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of a list: clip as written, label as written, frames stated (0 for none)."""

    line: int
    clip: str
    word: str
    stated: int = 0


@dataclass
class Version:
    """One form in which a set's clips are there: crops of one policy, or videos."""

    name: str
    kind: Kind
    clips: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))

    def covers(self, wanted: Collection[str]) -> int:
        """Return how many of the wanted clips it has."""
        return sum(name in wanted for name in self.clips)


def scans(config: DatasetConfig, layout: str) -> list[Scan]:
    """Return what lies under the root, and under --clips and --labels; where --clips is given, its clips alone count.

    Raises
    ------
    InputError
        No place is given, or there is no such folder.
    """
    places = [place for place in dict.fromkeys((config.root, config.clips, config.labels)) if place]
    if not places:
        raise InputError(f"{layout} needs the folder that it lies in", where=f"dataset {layout}",
                         hint="give --root DIR")
    found = [scan(Path(place), DEPTH, prefixed=True) for place in places]
    for each in found:
        if config.clips and each.root != Path(config.clips):
            each.crops.clear()
            each.videos.clear()
    return found


def rows_of(path: Path) -> list[Row]:
    """Return the lines of a list: ``clip,label``, ``clip label`` or ``clip frames label``, with or without a header.

    Raises
    ------
    InputError
        It cannot be read, or a line has no second field.

    Notes
    -----
    A first line is a header where its last field is "label"; anything else is data.
    """
    try:
        if path.stat().st_size > LIMIT_BYTES:
            raise InputError(f"larger than {LIMIT_BYTES >> 20} MB", where=path, hint="this is no list of clips")
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the list cannot be read ({getattr(error, 'strerror', None) or error})", where=path,
                         hint="check its permissions, or download it again") from error
    found = [_row(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    return found[1:] if found and found[0].word.casefold() in ("label", "labels", "emotion", "annotation") else found


def _row(path: Path, number: int, line: str) -> Row:
    parts = line.split(",") if "," in line else line.rsplit(None, 2)
    if len(parts) == 3 and not ("," not in line and parts[1].isascii() and parts[1].isdigit()):
        parts = [] if "," in line else line.rsplit(None, 1)
    parts = [part.strip() for part in parts]
    if len(parts) not in (2, 3) or not parts[0]:
        raise InputError(f"line {number} is {line[:SHOWN]!r}: no clip and label", where=path,
                         hint="download the list again")
    stated = int(parts[1][:9]) if len(parts) == 3 else 0
    return Row(line=number, clip=parts[0], word=parts[-1], stated=stated)


def code_of(word: str, classes: Sequence[str], first: int = 0) -> int | None:
    """Return the index of a label: a class name in any usual spelling, or a number that counts from `first`."""
    if word.isascii() and word.isdigit():
        code = int(word[:9]) - first
        return code if 0 <= code < len(classes) else None
    plain = [canonical(name) for name in classes]
    return plain.index(canonical(word)) if canonical(word) in plain else None


@lru_cache(4096)
def canonical(word: str) -> str:
    """Return the one spelling of a class name: ``Happy`` and ``Happiness`` are one class."""
    folded = word.strip().casefold()
    return SAME.get(folded, folded)


def by_fold(lists: Mapping[tuple[int, Split], Path], layout: str, fold: int) -> int:
    """Return the fold to use of those that have lists.

    Raises
    ------
    InputError
        The chosen fold has no lists; says which have.
    """
    there = sorted({number for number, _ in lists})
    chosen = fold or there[0]
    if chosen not in there:
        raise InputError(f"fold {chosen} has no lists", where=f"dataset {layout}",
                         hint=f"--fold is one of {', '.join(map(str, there))}")
    return chosen


def versions(found: Iterable[Scan], key: Key) -> list[Version]:
    """Return the versions of a set's clips, sorted by name."""
    made: dict[tuple[str, Kind], Version] = {}
    for each in found:
        for path, kind in each.clips():
            keyed = key(path.relative_to(each.root)) if path != each.root else None
            if keyed is None:
                continue
            paths = made.setdefault((keyed[0], kind), Version(keyed[0], kind)).clips[keyed[1]]
            if path not in paths:
                paths.append(path)
    return [made[name] for name in sorted(made)]


def choose(there: Sequence[Version], wanted: Collection[str], take: str) -> Version:
    """Return the version that covers most of the wanted clips.

    Notes
    -----
    Of equals: pictures before videos, all frames before a choice of 16 (``clip_224x224_16f`` has lost its clock), faces
    before others, then by name. Versions are never mixed: features of two crop policies in one store cost nearly half
    of the score.
    """
    fit = [version for version in there if take in ("auto", version.kind)] or list(there)

    def rank(version: Version) -> tuple[int, bool, bool, bool, str]:
        low = version.name.casefold()
        return (-version.covers(wanted), version.kind == "video", bool(re.search(r"(?<!\d)16f", low)),
                not re.search("face|align|224", low), low)
    return min(fit, key=rank)


def told(there: Sequence[Version], chosen: Version, wanted: Collection[str]) -> list[Problem]:
    """Return a note where a set is there in several versions."""
    others = [f"{version.name or '.'} ({version.covers(wanted)} {version.kind})" for version in there
              if version is not chosen and version.covers(wanted)]
    if not others:
        return []
    return [Problem(where=chosen.name or ".", lost=False, hint="--take crops or --take video, or --clips DIR, chooses",
                    what=f"read as {chosen.kind} ({chosen.covers(wanted)} of {len(wanted)} clips); also there, "
                         f"unused: {some(others)}")]


def build(config: DatasetConfig, layout: str, found: Sequence[Scan], entries: Iterable[Entry], key: Key, *,
          classes: tuple[str, ...], metric: str, problems: Iterable[Problem] = (), folds: int = 0, fold: int = 0,
          notice: str = "", whole_frames: bool = False) -> Dataset:
    """Return the data set: each entry with its clip, a problem for each one without, a note on clips in no list.

    Raises
    ------
    InputError
        Not one entry has a clip.
    """
    wanted = {entry.name: entry for entry in entries}
    noted = [problem for each in found for problem in (*each.problems, *unnamable(each))]
    there = versions(found, key)
    version = choose(there, wanted, config.take) if there else Version("", "video")
    trials, lost = _trials(wanted, version)
    if not trials:
        raise InputError(f"not one clip of {layout}'s {len(wanted)} is there", where=found[0].root,
                         hint=f"put the clips below it, or give --clips DIR; {describe(found[0])}")
    extra = sorted(set(version.clips) - set(wanted))
    if extra:
        noted.append(Problem(where=some(extra), what=f"{len(extra)} clips are in no list", lost=False,
                             hint="they are left out"))
    return Dataset(name=cache_name(layout, found[0].root, config.name), layout=layout, classes=classes, metric=metric,
                   trials=tuple(trials), folds=folds, fold=fold, notice=notice,
                   whole_frames=whole_frames and version.kind == "crops",
                   problems=(*noted, *problems, *told(there, version, wanted), *lost))


def _trials(wanted: Mapping[str, Entry], version: Version) -> tuple[list[Trial], list[Problem]]:
    """Return a trial for each entry with exactly one clip, and a problem for each other one."""
    trials, lost = [], []
    for name in sorted(wanted):
        entry, paths = wanted[name], version.clips.get(name, [])
        if len(paths) != 1:
            what = f"several clips have its name: {some(paths)}" if paths else "listed, but there is no clip of it"
            lost.append(Problem(where=name, what=what, kind="no-clip",
                                hint="it is left out; get its clip, or keep one of them"))
            continue
        trials.append(Trial(name=name, path=paths[0], kind=version.kind, parent=name, group=entry.group or name,
                            split=entry.split, subject=entry.subject, clip_label=entry.label, fold=entry.fold,
                            stated=entry.stated))
    return trials, lost


def wrong_label(name: str, word: str, where: Path, classes: Sequence[str]) -> Problem:
    """Return the problem of a clip whose label is none of the set's."""
    return Problem(where=name, what=f"its label was dropped: {word[:SHOWN]!r} is none of {some(classes, 12)}",
                   hint=f"correct {where}; the clip is predicted without a label meanwhile")


def labelled(rows: Iterable[tuple[str, Row]], path: Path, split: Split, classes: Sequence[str], first: int,
             folds: Mapping[str, int] | None = None) -> tuple[list[Entry], list[Problem]]:
    """Return the entries of one list, (clip's name, row), and a problem for each label that is none."""
    entries, problems = [], []
    for name, row in rows:
        code = code_of(row.word, classes, first)
        if code is None:
            problems.append(wrong_label(name, row.word, path, classes))
        entries.append(Entry(name=name, label=UNKNOWN if code is None else code, split=split, stated=row.stated,
                             fold=(folds or {}).get(name, 0)))
    return entries, problems
