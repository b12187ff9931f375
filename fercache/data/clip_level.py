"""The data sets with one label a clip: each is an instance of a subclass of `ClipLevelSet`.

The subclasses differ in where the labels are. docs/guide/data-sets.md has the files, classes and splits of each set.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import NamedTuple

from fercache.config import DatasetConfig
from fercache.data import base
from fercache.data.base import UNKNOWN, Dataset, Issue, Kind, Split, Trial
from fercache.data.labels import SETS, canonical_class_name, index_by_name, read_text, whole_number
from fercache.data.scan import Scan, describe, scan_places
from fercache.errors import InputError, shorten_list

DEPTH = 6  # folders down to which a set's clips are searched (archives unpack into a folder of their own)
SHOWN = 60
SPLITS: tuple[Split, ...] = ("train", "test")
SPELLINGS = {"joy": "happiness", "calmness": "calm"}
"""Labels in participants' lists, in addition to the spellings of `canonical_class_name`."""

Key = Callable[[PurePath], tuple[str, str] | None]
"""Returns (version, clip) for a clip's path below the root; None if the path is not a clip of the set."""


@dataclass(frozen=True, kw_only=True)
class ClipEntry:
    """One clip in a set's list; `label` is an index into the classes, -1 for none."""

    name: str
    label: int
    split: Split
    group: str = ""
    subject: str = ""
    fold: int = 0
    stated: int = 0


class Listing(NamedTuple):
    """The clips in a set's lists."""

    entries: Iterable[ClipEntry]
    problems: list[Issue]
    ignored: Collection[str] = ()  # clips of the set that are left out on purpose; they are not reported as unlisted
    # `folds`, `fold`: number of folds that the set publishes, and the one that was read.
    folds: int = 0
    fold: int = 0
    notice: str = ""


@dataclass
class FolderVersion:
    """One version of a set's clips: crops of one policy, or videos."""

    name: str
    kind: Kind
    clips: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))

    def covers(self, wanted: Collection[str]) -> int:
        """Return the number of wanted clips in this version."""
        return sum(name in wanted for name in self.clips)


@dataclass(frozen=True, kw_only=True)
class ClipLevelSet(ABC):
    """One data set with a label a clip."""

    name: str
    classes: tuple[str, ...]
    key: Key
    expected: str  # the files or names that an error message asks for
    metric: str = "uar"
    whole_frames: bool = False  # whether folders of pictures hold whole frames, not crops of faces

    @abstractmethod
    def matches_layout(self, found: Scan) -> bool:
        """Return whether a folder holds this set."""

    @abstractmethod
    def list_clips(self, found: Scan, config: DatasetConfig) -> Listing:
        """Return the clips of the set with their labels, splits and groups."""

    def read(self, config: DatasetConfig) -> Dataset:
        """Return the data set: one trial for each listed clip that exists exactly once."""
        found = scan_places(config, self.name, DEPTH)
        # --clips chooses one of several versions below --root; the lists there are still read.
        for paths in (found.crops, found.videos):
            paths[:] = [path for path in paths if not config.clips or path.is_relative_to(config.clips)]
        listing = self.list_clips(found, config)
        wanted = {entry.name: entry for entry in listing.entries}
        problems = found.problems
        versions = find_versions(found, self.key)
        # Without any clip an empty version makes each listed clip an issue, and the error below names the folder.
        version = choose_version(versions, wanted, config.source) if versions else FolderVersion("", "video")
        trials: list[Trial] = []
        lost: list[Issue] = []
        for name, entry in sorted(wanted.items()):
            paths = version.clips.get(name, [])
            if len(paths) != 1:
                what = (f"several clips have its name: {shorten_list(paths)}" if paths else
                        "listed, but it has no clip")
                lost.append(Issue(where=name, message=what, kind="no-clip",
                                  hint="it is left out; get its clip, or keep one of them"))
                continue
            # A set that names no film and no person has each clip as a group of its own, which its notice points out.
            trials.append(Trial(name=name, path=paths[0], kind=version.kind, parent=name, group=entry.group or name,
                                split=entry.split, subject=entry.subject, clip_label=entry.label, fold=entry.fold,
                                stated=entry.stated))
        if not trials:
            raise InputError(f"none of the {len(wanted)} clips of {self.name} exists", where=found.root,
                             hint=f"put the clips below it, or give --clips DIR; {describe(found)}")
        problems += base.note_about(set(version.clips) - set(wanted) - set(listing.ignored), "clips are in no list",
                                    "they are left out")
        others = [f"{other.name or '.'} ({other.covers(wanted)} {other.kind})" for other in versions
                  if other is not version and other.covers(wanted)]
        if others:
            problems.append(Issue(where=version.name or ".", severity="note",
                                  hint="choose with --source crops or --source video, or --clips DIR",
                                  message=f"read as {version.kind} ({version.covers(wanted)} of {len(wanted)} clips); "
                                          f"also there, unused: {shorten_list(others)}"))
        return Dataset(name=base.cache_name(self.name, found.root, config.name), layout=self.name,
                       classes=self.classes, metric=self.metric, trials=tuple(trials), folds=listing.folds,
                       fold=listing.fold, notice=listing.notice, problems=(*problems, *listing.problems, *lost),
                       whole_frames=self.whole_frames and version.kind == "crops")

    def labels_missing(self, what: str, found: Scan) -> InputError:
        """Return the error for a folder without this set's labels."""
        return InputError(f"{what} of {self.name}", where=found.root,
                          hint=f"expected: {self.expected}; {describe(found)}")


# Shared by all sets: versions of the clips, names, labels.


def find_versions(found: Scan, key: Key) -> list[FolderVersion]:
    """Return the versions of a set's clips, sorted by name."""
    versions: dict[tuple[str, Kind], FolderVersion] = {}
    for path, kind in found.clips():
        if (below := found.below(path)).name and (keyed := key(below)):  # no name: the folder itself is a clip
            version = versions.setdefault((keyed[0], kind), FolderVersion(keyed[0], kind))
            version.clips[keyed[1]].append(path)
    return [versions[name] for name in sorted(versions)]


def choose_version(versions: Sequence[FolderVersion], wanted: Collection[str], source: str) -> FolderVersion:
    """Return the version that has most of the wanted clips."""
    # Among equals: pictures before videos, all frames before 16 selected ones (``clip_224x224_16f`` has lost its
    # timestamps), faces before others, then by name. Versions are never mixed: features of two crop policies in one
    # store cost nearly half of the score.
    def rank(version: FolderVersion) -> tuple[int, bool, bool, bool, str]:
        low = version.name.casefold()
        return (-version.covers(wanted), version.kind == "video", bool(re.search(r"(?<!\d)16f", low)),
                not re.search("face|align|224", low), low)

    return min([version for version in versions if source in ("auto", version.kind)] or versions, key=rank)


def stem_of(path: PurePath) -> str:
    """Return a clip's name without any ending."""
    return path.name.partition(".")[0]


def stem_key(pattern: str, *, without: str = "", digits: int = 0) -> Key:
    """Return the key of a set whose clips are files or folders with a name of one pattern.

    `without`: regular expression of folders that only divide a version into parts and do not belong to its name.
    `digits`: length to which numbers are padded with zeros, 0 for no padding.
    """
    def key(path: PurePath) -> tuple[str, str] | None:
        stem = stem_of(path)
        if not re.fullmatch(pattern, stem):
            return None
        parts = (part for part in path.parent.parts if not re.fullmatch(without, part, re.IGNORECASE))
        return "/".join(parts), f"{int(stem):0{digits}d}" if digits else stem
    return key


def code_of(label: str, classes: Sequence[str], first: int = 0) -> int | None:
    """Return the index of a label, a class name in any usual spelling or a number from `first` on; None for others."""
    number = whole_number(label)
    if number is not None:
        return number - first if 0 <= number - first < len(classes) else None
    # Participants' lists use words that no class of any set has.
    plain = canonical_class_name(label)
    return index_by_name(classes).get(SPELLINGS.get(plain, plain))


# Sets with lists: a training and a test list, of one split or of each published fold.


def read_list(path: Path) -> list[tuple[str, str, int]]:
    """Return clip, label and number of frames (0 for none) in each line of a list, with or without a header.

    A line is ``clip,label``, ``clip label`` or ``clip frames label``.
    """
    found: list[tuple[str, str, int]] = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        delimiter = next((one for one in ",;" if one in line), None)
        parts = [part.strip() for part in line.rsplit(delimiter, 2)]  # from the end: paths may hold blanks
        frames = "0"
        if len(parts) == 3 and not delimiter:
            if parts[1].isascii() and parts[1].isdigit():
                frames = parts.pop(1)
            else:
                parts = line.strip().rsplit(None, 1)
        if len(parts) == 2 and parts[0]:
            found.append((parts[0], parts[1], int(frames[:9])))
        elif parts:
            raise InputError(f"line {number} is {line[:SHOWN]!r}, not a clip and a label", where=path,
                             hint="download the list again")
    # The first line is a header if its last field is one of these words.
    return found[1:] if found and found[0][1].casefold() in ("label", "labels", "emotion", "annotation") else found


@dataclass(frozen=True, kw_only=True)
class ListedSet(ClipLevelSet):
    """A set with lists of clips and labels."""

    # `official`, `common`: regular expressions of the lists' paths below the root (groups ``split`` and, for published
    # folds, ``fold``): the set's own lists, and those that participants share (``path frames label``, numbers from 0).
    official: re.Pattern[str]
    common: re.Pattern[str] | None = None
    first: int = 0  # the number of the first class in the official lists
    parts: int = 1  # number of the last parts of a clip's path in a list that make its name
    digits: int = 0

    def matches_layout(self, found: Scan) -> bool:
        return any(self._lists(found, pattern, "") for pattern in (self.official, self.common))

    def list_clips(self, found: Scan, config: DatasetConfig) -> Listing:
        lists, first = self._lists(found, self.official, config.edition), self.first
        if not lists:
            lists, first = self._lists(found, self.common, config.edition), 0
        if not lists:
            raise self.labels_missing("no lists", found)
        numbers = sorted({number for number, _ in lists})
        fold = config.fold or numbers[0]  # a set without published folds has one list a split, under number 0
        published = "fold" in self.official.groupindex
        if published and fold not in numbers:
            raise InputError(f"fold {fold} has no lists", where=f"dataset {self.name}",
                             hint=f"--fold is one of {', '.join(map(str, numbers))}")
        fold = fold if published else 0
        # The lists of all folds are read, because a clip's own fold is the one whose test list holds it.
        rows = {key: [(self._name_of(clip), label, stated) for clip, label, stated in read_list(path)]
                for key, path in lists.items()}
        test_fold = {name: number for (number, split), named in sorted(rows.items()) if split == "test" and number
                     for name, *_ in named}
        entries: dict[str, ClipEntry] = {}
        problems: list[Issue] = []
        for split in SPLITS:
            if (fold, split) in lists:
                path, new = lists[fold, split], {}
                for name, label, stated in rows[fold, split]:
                    code = code_of(label, self.classes, first)
                    if code is None:  # the clip stays, without a label: its features may be wanted
                        problems.append(base.dropped_label(name, label, self.classes, path))
                    new[name] = ClipEntry(name=name, label=UNKNOWN if code is None else code, split=split,
                                          stated=stated, fold=test_fold.get(name, 0))
                problems += [Issue(where=name, message="in the training list and in the test list",
                                   hint=f"it is used for training only; correct {path}")
                             for name in new if name in entries]
                entries = new | entries  # training first: a clip in both lists never counts as unseen
            elif published:
                problems.append(Issue(where=f"fold {fold}", message=f"its {split} list is missing",
                                      hint="download it again"))
        which = (f"published fold {fold} of {len(numbers)}: papers report the mean of all five (--fold chooses); "
                 if fold else "")
        return Listing(entries.values(), problems, folds=len(numbers) if published else 0, fold=fold,
                       notice=self.name + ": " + which + "the set does not name the film, video or person of a clip, "
                       "so folds by group are folds by clip")

    def _lists(self, found: Scan, pattern: re.Pattern[str] | None, edition: str) -> dict[tuple[int, Split], Path]:
        """Return (fold, split) -> list; of several lists of a published fold, the first in alphabetical order."""
        lists: dict[tuple[int, Split], Path] = {}
        for path in sorted((*found.texts, *found.tables)):
            below = found.below(path).as_posix()
            if pattern is None or not (match := pattern.search(f"/{below}")):
                continue
            # Published folds are in folders below the root, whose own name must not select all of them.
            if edition.casefold() not in (below if "fold" in pattern.groupindex else str(path)).casefold():
                continue
            split: Split = "train" if match["split"].casefold() == "train" else "test"
            number = int(match.groupdict().get("fold") or 0)
            other = lists.setdefault((number, split), path)
            if other != path and not number:
                raise InputError(f"several lists: {shorten_list((other, path))}", where=found.root,
                                 hint="choose with --edition and a part of the path")
        return lists

    def _name_of(self, clip: str) -> str:
        path = PurePath(clip.replace("\\", "/"))  # some lists were written on Windows
        if self.parts > 1:
            return "/".join(path.parts[-self.parts:])
        number = self.digits and path.stem.isascii() and path.stem.isdigit()
        return f"{int(path.stem):0{self.digits}d}" if number else path.stem


DFEW = ListedSet(
    name="dfew", classes=SETS["dfew"], first=1, digits=5,
    key=stem_key("[0-9]+", without=r".*part[_-]?\d+", digits=5),
    official=re.compile(r"/(?P<split>train|test)(\(single-labell?ed\))?/((train|test)_)?set_(?P<fold>\d)\.csv$", re.I),
    common=re.compile(r"/DFEW_set_(?P<fold>\d)_(?P<split>train|test)\w*\.txt$", re.I),
    expected="EmoLabel_DataSplit/train(single-labeled)/set_1.csv and test(single-labeled)/set_1.csv")
"""DFEW: 11,697 single-labelled film clips. Its lists are also seen as ``train_set_1.csv``, its clips in pieces
(``clip_224x224_part_1``)."""

MAFW = ListedSet(
    name="mafw", classes=SETS["mafw"], first=1, key=stem_key(r"\d{4,6}"),
    official=re.compile(r"^(?!.*(with_caption|compound|multi)).*/set_(?P<fold>\d)/(?P<split>train|test)\.txt$", re.I),
    common=re.compile(r"/MAFW_set_(?P<fold>\d)_(?P<split>train|test)\w*\.txt$", re.I),
    expected="Train & Test Set/single/no_caption/set_1/train.txt and test.txt, or MAFW_set_1_train.txt")
"""MAFW: 9,172 single-labelled clips. Frame counts in participants' lists do not match the files: `check` compares
them, nothing else uses them. The lists with captions and with compound labels are not read."""


def _ferv39k_key(path: PurePath) -> tuple[str, str] | None:
    if len(path.parts) < 3 or code_of(path.parts[-2], SETS["ferv39k"]) is None:
        return None
    scene, label, _ = path.parts[-3:]
    return "/".join(path.parts[:-3]), f"{scene}/{label}/{stem_of(path)}"  # a number alone repeats from scene to scene


FERV39K = ListedSet(
    name="ferv39k", classes=SETS["ferv39k"], key=_ferv39k_key, parts=3,
    official=re.compile(r"/(?P<split>train|test)_All\.csv$", re.I),
    expected="4_setups/All_scenes/train_All.csv and test_All.csv")
"""FERV39k: 38,935 clips of 22 scenes. Lines of its lists: ``Action/Happy/0267 Happy``, without a header."""


# Sets of actors: the clip's name has actor and emotion, and no split is published, so actors are the groups of folds.

MIN_NAMED_SHARE = 0.5
"""Fraction of a folder's clips whose names must match a set's pattern for the set to be recognized."""


@dataclass(frozen=True, kw_only=True)
class NamedSet(ClipLevelSet):
    """A set with actor and emotion in the names of its clips; all of them are training data."""

    pattern: re.Pattern[str]  # regular expression of a clip's name, with the groups ``emotion`` and ``actor``
    codes: tuple[str, ...]  # codes of the emotions in names, in the order of the classes
    # Clips with equal names from this character on are one performance, and only the first in alphabetical order is
    # read; 0: all clips are read.
    same_after: int = 0

    def matches_layout(self, found: Scan) -> bool:
        names = [stem_of(path) for path, _ in found.clips()]
        return sum(bool(self.pattern.fullmatch(name)) for name in names) > MIN_NAMED_SHARE * len(names)

    def list_clips(self, found: Scan, config: DatasetConfig) -> Listing:
        names = sorted({stem_of(path) for path, _ in found.clips()})
        matches = {name: match for name in names if (match := self.pattern.fullmatch(name))}
        if not matches:
            raise self.labels_missing("no clip with a name", found)
        problems = [base.dropped_label(name, match["emotion"], self.codes, "the clip's name")
                    for name, match in matches.items() if match["emotion"] not in self.codes]
        entries = [ClipEntry(name=name, group=match["actor"], subject=match["actor"],
                             label=self.codes.index(match["emotion"]) if match["emotion"] in self.codes else UNKNOWN,
                             split="train" if match["emotion"] in self.codes else "test")
                   for name, match in matches.items()]
        # The dictionary keeps the last of equal keys, so the reversed order keeps the first name.
        first = {name[self.same_after:]: name for name in reversed(matches)}
        copies = [name for name in matches if first[name[self.same_after:]] != name]
        problems += base.note_about(copies, "clips exist twice, with and without sound",
                                    "those with sound (01-) are read")
        return Listing([entry for entry in entries if entry.name not in set(copies)], problems, ignored=copies)


ACTOR_FOLDERS = r"(.*actor_?)?\d+"  # ``Video_Speech_Actor_01/Actor_01``: one version, a folder an actor

CREMAD_NAME = r"(?P<actor>1\d{3})_[A-Z]{3}_(?P<emotion>[A-Z]{3})_[A-Z]{1,2}"
CREMAD = NamedSet(
    name="cremad", classes=SETS["cremad"], codes=("ANG", "DIS", "FEA", "HAP", "NEU", "SAD"),
    pattern=re.compile(CREMAD_NAME), key=stem_key(CREMAD_NAME, without=ACTOR_FOLDERS), expected="1019_DFA_ANG_XX.flv")
"""CREMA-D: 7,442 clips of 91 actors; ``1019_DFA_ANG_XX.flv`` = actor, sentence, emotion, level."""

RAVDESS_NAME = r"0[12]-0[12]-(?P<emotion>\d\d)-\d\d-\d\d-\d\d-(?P<actor>\d\d)"
RAVDESS = NamedSet(
    name="ravdess", classes=SETS["ravdess"], codes=tuple(f"{number:02d}" for number in range(1, 9)), same_after=2,
    pattern=re.compile(RAVDESS_NAME), key=stem_key(RAVDESS_NAME, without=ACTOR_FOLDERS),
    expected="01-01-06-01-02-01-12.mp4")
"""RAVDESS: speech and song of 24 actors.

``02-01-06-01-02-01-12.mp4`` = modality (01 both, 02 video only, 03 sound only), channel (01 speech, 02 song), emotion
01 to 08, intensity, statement, repetition, actor. The set holds each picture track twice, with sound and without."""


# AFEW: the folder's name is the label.

AFEW_PART = re.compile(r"(?P<part>train|training|val|valid|validation|test)"
                       r"(_?(afew|vid|set|faces|distribute|\d{2,4}))*", re.IGNORECASE)
AFEW_SPLITS: dict[str, Split] = {"tr": "train", "va": "validation", "te": "test"}
MIN_EMOTIONS = 3  # emotions that both the training and the validation part must have for the set to be recognized


def afew_split_of(path: PurePath) -> Split | None:
    """Return the split of a path, None outside of all splits."""
    parts = [match["part"][:2].casefold() for part in path.parts if (match := AFEW_PART.fullmatch(part))]
    return AFEW_SPLITS[parts[-1]] if parts else None


def _emotion_of(folder: str) -> int | None:
    """Return the class in a folder's name; a number is a film or a clip, never a class."""
    return None if folder.isdigit() else code_of(folder, SETS["afew"])


def _afew_key(path: PurePath) -> tuple[str, str] | None:
    """Return the version (the folders other than split and emotion) and the clip."""
    if afew_split_of(path.parent) is None:
        return None
    folders = [re.sub(r"_?(train|val|test)\w*$", "", part, flags=re.IGNORECASE) for part in path.parent.parts
               if not AFEW_PART.fullmatch(part) and _emotion_of(part) is None]
    return "/".join(folders), stem_of(path)


class EmotionFolderSet(ClipLevelSet):
    """A set with a folder for each emotion in each split; test clips have no label, even in such a folder."""

    def matches_layout(self, found: Scan) -> bool:
        emotions = {(afew_split_of(found.below(path)), path.name) for path in found.folders
                    if _emotion_of(path.name) is not None}
        return all(sum(part == split for part, _ in emotions) >= MIN_EMOTIONS for split in ("train", "validation"))

    def list_clips(self, found: Scan, config: DatasetConfig) -> Listing:
        places: dict[str, set[tuple[Split, int | None]]] = defaultdict(set)
        for path, _ in found.clips():
            folder = found.below(path).parent
            split = afew_split_of(folder)
            if split is not None:
                # Test clips may be in folders of emotions too, but test labels must not be used.
                places[stem_of(path)].add((split, UNKNOWN if split == "test" else _emotion_of(folder.name)))
        entries, problems = [], []
        for name, copies in sorted(places.items()):
            # A clip may be there as a video under its emotion and as crops in a folder without one.
            labelled = sorted((split, code) for split, code in copies if code is not None)
            if len(labelled) == 1:
                group = f"film{name[:3]}" if re.match(r"\d{9}", name) else name
                entries.append(ClipEntry(name=name, split=labelled[0][0], label=labelled[0][1], group=group))
            else:
                problems.append(Issue(where=name, message="is in several parts or under several emotions" if labelled
                                      else "is in no folder of an emotion",
                                      hint="it is left out; keep one copy, in the folder of its emotion"))
        if not any(entry.label != UNKNOWN for entry in entries):
            raise self.labels_missing("no clip in a folder of its emotion", found)
        return Listing(entries, problems)


AFEW = EmotionFolderSet(name="afew", classes=SETS["afew"], key=_afew_key, metric="accuracy",
                        expected="Train_AFEW/Angry/000046280.avi and Val_AFEW/..")
"""AFEW (EmotiW): film clips; the set's own faces (``Faces/<clip>/``) get their emotion from the video of that name.

The first three digits of a clip's name are assumed to be the film, so clips of one film share a fold (no document
confirms it; if they mean something else, the folds are only coarser)."""


# CK+: a label file a sequence.

CKPLUS_FOLDS = 10
CKPLUS_LABEL = re.compile(r"(?P<name>S\d{3}_\d{3})_\d{8}_emotion\.txt", re.IGNORECASE)
CKPLUS_PLACE = re.compile(r"(S\d{3})/(\d{3})", re.IGNORECASE)
LABEL_FILE_BYTES = 1 << 16


def _ckplus_key(path: PurePath) -> tuple[str, str] | None:
    match = CKPLUS_PLACE.fullmatch("/".join(path.parts[-2:]))
    return (PurePath(*path.parts[:-2]).as_posix(), f"{match[1]}_{match[2]}".upper()) if match else None


class LabelFileSet(ClipLevelSet):
    """A set with a label file a sequence; sequences without a label are test trials."""

    def matches_layout(self, found: Scan) -> bool:
        return any(CKPLUS_LABEL.fullmatch(path.name) for path in found.texts)

    def list_clips(self, found: Scan, config: DatasetConfig) -> Listing:
        files = [path for path in found.texts if CKPLUS_LABEL.fullmatch(path.name)]
        if not files:
            raise self.labels_missing("no labels", found)
        if config.fold > CKPLUS_FOLDS:
            raise InputError(f"fold {config.fold} of {CKPLUS_FOLDS}", where=f"dataset {self.name}",
                             hint=f"--fold is 1 to {CKPLUS_FOLDS}")
        codes, problems = self._labels(files)
        names = {key[1] for path in found.crops if (key := self.key(found.below(path)))}
        # Only labelled subjects are counted, as in the papers; otherwise the folds would differ from theirs.
        subjects = sorted({name[:4] for name, code in codes.items() if code != UNKNOWN})
        folds = {subject: 1 + place % CKPLUS_FOLDS for place, subject in enumerate(subjects)}
        entries = []
        for name in sorted(names | set(codes)):
            subject, code = name[:4], codes.get(name, UNKNOWN)
            fold = folds[subject] if code != UNKNOWN else 0
            in_test = code == UNKNOWN or fold == config.fold  # folds count from 1, so --fold 0 holds none out
            entries.append(ClipEntry(name=name, label=code, split="test" if in_test else "train", group=subject,
                                     subject=subject, fold=fold))
        bare = sum(entry.label == UNKNOWN for entry in entries)
        if bare:
            problems.append(Issue(where=self.name, message=f"{bare} sequences have no label", severity="note",
                                  hint=base.NOT_TRAINED))
        return Listing(entries, problems, folds=CKPLUS_FOLDS, fold=config.fold)

    def _labels(self, files: Sequence[Path]) -> tuple[dict[str, int], list[Issue]]:
        """Return sequence -> class, and an issue for each label file that cannot be used."""
        codes: dict[str, int] = {}
        problems: list[Issue] = []
        for path in files:
            name = path.name[:8].upper()
            try:
                # A label is one number; a file that is not a label file may be of any size.
                text = path.read_bytes()[:LABEL_FILE_BYTES].decode("ascii").strip()
                number = float(text)
            except (OSError, ValueError) as error:
                problems.append(Issue(where=name, hint="download it again",
                                      message=f"its label was dropped: {path.name} cannot be read ({error})"))
                continue
            if number not in range(1, len(self.classes) + 1):
                problems.append(base.dropped_label(name, text, self.classes, path))
            elif codes.setdefault(name, int(number) - 1) != int(number) - 1:
                problems.append(Issue(where=name, message="has several label files that disagree", hint=f"see {path}"))
                codes[name] = UNKNOWN  # neither of them can be trusted
        return codes, problems


CKPLUS = LabelFileSet(name="ckplus", classes=SETS["ckplus"], key=_ckplus_key, metric="accuracy", whole_frames=True,
                      expected="Emotion/S005/001/S005_001_00000011_emotion.txt")
"""CK+: 593 posed sequences of 123 subjects, 327 of them labelled, from neutral to the peak of an emotion.

A label file holds one number, ``3.0000000e+00``: 1 Anger to 7 Surprise (0, Neutral, is in no file). Papers report ten
folds by subject, usually (no list is published) with the labelled subjects in the order of their numbers and every
tenth one in a fold; these are `Trial.fold`. Without `fold` every labelled sequence is training data."""
