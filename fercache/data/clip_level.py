"""What the clip-level sets share: lists of ``clip label``, the versions in which a set's clips lie about, trials."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePath

from fercache.config import DatasetConfig
from fercache.data.base import UNKNOWN, Dataset, Kind, Problem, Split, Trial, cache_name, shorten_list
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
class ClipEntry:
    """One clip as a set's lists or names tell of it; `label` is an index into the classes, -1 for none."""

    name: str
    label: int
    split: Split
    group: str = ""
    subject: str = ""
    fold: int = 0
    stated: int = 0


@dataclass(frozen=True, kw_only=True)
class ListLine:
    """A line of a list: clip as written, label as written, frames stated (0 for none)."""

    line: int
    clip: str
    word: str
    stated: int = 0


@dataclass
class FolderVersion:
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


def rows_of(path: Path) -> list[ListLine]:
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


def _row(path: Path, number: int, line: str) -> ListLine:
    parts = line.split(",") if "," in line else line.rsplit(None, 2)
    if len(parts) == 3 and not ("," not in line and parts[1].isascii() and parts[1].isdigit()):
        parts = [] if "," in line else line.rsplit(None, 1)
    parts = [part.strip() for part in parts]
    if len(parts) not in (2, 3) or not parts[0]:
        raise InputError(f"line {number} is {line[:SHOWN]!r}: no clip and label", where=path,
                         hint="download the list again")
    stated = int(parts[1][:9]) if len(parts) == 3 else 0
    return ListLine(line=number, clip=parts[0], word=parts[-1], stated=stated)


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


def versions(found: Iterable[Scan], key: Key) -> list[FolderVersion]:
    """Return the versions of a set's clips, sorted by name."""
    made: dict[tuple[str, Kind], FolderVersion] = {}
    for each in found:
        for path, kind in each.clips():
            keyed = key(path.relative_to(each.root)) if path != each.root else None
            if keyed is None:
                continue
            paths = made.setdefault((keyed[0], kind), FolderVersion(keyed[0], kind)).clips[keyed[1]]
            if path not in paths:
                paths.append(path)
    return [made[name] for name in sorted(made)]


def choose_version(there: Sequence[FolderVersion], wanted: Collection[str], take: str) -> FolderVersion:
    """Return the version that covers most of the wanted clips.

    Notes
    -----
    Of equals: pictures before videos, all frames before a choice of 16 (``clip_224x224_16f`` has lost its clock), faces
    before others, then by name. Versions are never mixed: features of two crop policies in one store cost nearly half
    of the score.
    """
    fit = [version for version in there if take in ("auto", version.kind)] or list(there)

    def rank(version: FolderVersion) -> tuple[int, bool, bool, bool, str]:
        low = version.name.casefold()
        return (-version.covers(wanted), version.kind == "video", bool(re.search(r"(?<!\d)16f", low)),
                not re.search("face|align|224", low), low)
    return min(fit, key=rank)


def notice_for(there: Sequence[FolderVersion], chosen: FolderVersion, wanted: Collection[str]) -> list[Problem]:
    """Return a note where a set is there in several versions."""
    others = [f"{version.name or '.'} ({version.covers(wanted)} {version.kind})" for version in there
              if version is not chosen and version.covers(wanted)]
    if not others:
        return []
    return [Problem(where=chosen.name or ".", lost=False,
                    hint="--source crops or --source video, or --clips DIR, chooses",
                    what=f"read as {chosen.kind} ({chosen.covers(wanted)} of {len(wanted)} clips); also there, "
                         f"unused: {shorten_list(others)}")]


def build_dataset(config: DatasetConfig, layout: str, found: Sequence[Scan], entries: Iterable[ClipEntry], key: Key, *,
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
    version = choose_version(there, wanted, config.source) if there else FolderVersion("", "video")
    trials, lost = _trials(wanted, version)
    if not trials:
        raise InputError(f"not one clip of {layout}'s {len(wanted)} is there", where=found[0].root,
                         hint=f"put the clips below it, or give --clips DIR; {describe(found[0])}")
    extra = sorted(set(version.clips) - set(wanted))
    if extra:
        noted.append(Problem(where=shorten_list(extra), what=f"{len(extra)} clips are in no list", lost=False,
                             hint="they are left out"))
    return Dataset(name=cache_name(layout, found[0].root, config.name), layout=layout, classes=classes, metric=metric,
                   trials=tuple(trials), folds=folds, fold=fold, notice=notice,
                   whole_frames=whole_frames and version.kind == "crops",
                   problems=(*noted, *problems, *notice_for(there, version, wanted), *lost))


def _trials(wanted: Mapping[str, ClipEntry], version: FolderVersion) -> tuple[list[Trial], list[Problem]]:
    """Return a trial for each entry with exactly one clip, and a problem for each other one."""
    trials, lost = [], []
    for name in sorted(wanted):
        entry, paths = wanted[name], version.clips.get(name, [])
        if len(paths) != 1:
            what = f"several clips have its name: {shorten_list(paths)}" if paths else "listed, but there is no clip of it"
            lost.append(Problem(where=name, what=what, kind="no-clip",
                                hint="it is left out; get its clip, or keep one of them"))
            continue
        trials.append(Trial(name=name, path=paths[0], kind=version.kind, parent=name, group=entry.group or name,
                            split=entry.split, subject=entry.subject, clip_label=entry.label, fold=entry.fold,
                            stated=entry.stated))
    return trials, lost


def wrong_label(name: str, word: str, where: Path, classes: Sequence[str]) -> Problem:
    """Return the problem of a clip whose label is none of the set's."""
    return Problem(where=name, what=f"its label was dropped: {word[:SHOWN]!r} is none of {shorten_list(classes, 12)}",
                   hint=f"correct {where}; the clip is predicted without a label meanwhile")


def labelled(rows: Iterable[tuple[str, ListLine]], path: Path, split: Split, classes: Sequence[str], first: int,
             folds: Mapping[str, int] | None = None) -> tuple[list[ClipEntry], list[Problem]]:
    """Return the entries of one list, (clip's name, row), and a problem for each label that is none."""
    entries, problems = [], []
    for name, row in rows:
        code = code_of(row.word, classes, first)
        if code is None:
            problems.append(wrong_label(name, row.word, path, classes))
        entries.append(ClipEntry(name=name, label=UNKNOWN if code is None else code, split=split, stated=row.stated,
                             fold=(folds or {}).get(name, 0)))
    return entries, problems


# Sets of actors who play emotions, where all that is known of a clip stands in its name.

ACTED_ENOUGH = 0.5
"""Share of a folder's clips that must be named as a set's are, for the set to be recognised."""


def looks_like_acted(found: Scan, pattern: re.Pattern[str]) -> bool:
    """Return whether most clips of a folder are named by `pattern`."""
    names = [acted_stem_of(path) for path, _ in found.clips()]
    return bool(names) and sum(bool(pattern.fullmatch(name)) for name in names) > ACTED_ENOUGH * len(names)


def acted_stem_of(path: PurePath) -> str:
    """Return a clip's name without any ending."""
    return path.name.partition(".")[0]


def acted_key_of(pattern: re.Pattern[str], without: Collection[str] = ()) -> Key:
    """Return what tells a clip's version and name from its path; clips in `without` are none of the set's."""
    def key(path: PurePath) -> tuple[str, str] | None:
        stem = acted_stem_of(path)
        return (_acted_home(path), stem) if pattern.fullmatch(stem) and stem not in without else None
    return key


def _acted_home(path: PurePath) -> str:
    """Return a clip's folder without the parts that stand for an actor (``Video_Speech_Actor_01/Actor_01``)."""
    return "/".join(part for part in path.parent.parts if not re.fullmatch(r"(.*actor_?)?\d+", part, re.IGNORECASE))


def acted_entries_of(found: Sequence[Scan], pattern: re.Pattern[str], layout: str, example: str,
                     codes: Mapping[str, int]
               ) -> tuple[list[ClipEntry], list[Problem]]:
    """Return an entry for each clip with a name of the set's form, and a problem for each unknown emotion.

    Parameters
    ----------
    pattern : of a clip's name, with the groups ``emotion`` and ``actor``.
    codes : what stands for an emotion in a name -> class.

    Raises
    ------
    InputError
        Not one clip is named so.
    """
    names = sorted({acted_stem_of(path) for each in found for path, _ in each.clips()})
    parts = {name: match for name in names if (match := pattern.fullmatch(name))}
    if not parts:
        raise InputError(f"not one clip is named as {layout}'s are", where=found[0].root,
                         hint=f"a clip is named {example}; {describe(found[0])}")
    problems = [Problem(where=name, what=f"its label was dropped: {match['emotion']!r} is none of {shorten_list(codes, 12)}",
                        hint="correct the clip's name; it is predicted without a label meanwhile")
                for name, match in parts.items() if match["emotion"] not in codes]
    entries = [ClipEntry(name=name, label=codes.get(match["emotion"], UNKNOWN), group=match["actor"],
                            subject=match["actor"], split="train" if match["emotion"] in codes else "test")
               for name, match in parts.items()]
    return entries, problems


# AFEW (EmotiW): film clips in folders of their emotion, seven classes, accuracy on the published validation split.
#
# Notes
# -----
# ``{Train,Val,Test}_AFEW/<Emotion>/<clip>.avi`` (also ``train``, ``validation``, ..), frames of a clip in a folder of
# its
# name, or the set's own faces, ``AlignedFaces_LBPTOP_Points/Faces/<clip>/``, which take their emotion from the video of
# that name. The test part has no labels. The first three digits of a clip's name are taken for the film (from memory,
# no
# document was at hand: if it is something else the folds are only coarser), so clips of one film share a fold.

AFEW_CLASSES = ("Angry", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise")
AFEW_PART = re.compile(r"(?P<part>train|training|val|valid|validation|test)"
                       r"(_?(afew|vid|set|faces|distribute|\d{2,4}))*",
                  re.IGNORECASE)
AFEW_SPLITS: dict[str, Split] = {"tr": "train", "va": "validation", "te": "test"}
AFEW_FEW = 3
"""Emotions that must stand in the training or validation part, for the set to be recognised."""


def looks_like_afew(found: Scan) -> bool:
    """Return whether folders of emotions stand in a training and a validation part."""
    places = [(afew_split_of(below), path.name) for path in found.folders
              if code_of(path.name, AFEW_CLASSES) is not None and not path.name.isdigit()
              for below in [path.relative_to(found.root)]]
    return all(len({name for split, name in places if split == wanted}) >= AFEW_FEW
               for wanted in ("train", "validation"))


def afew_split_of(path: PurePath) -> Split | None:
    """Return the part of the set that a path lies in."""
    parts = [match["part"][:2].casefold() for part in path.parts if (match := AFEW_PART.fullmatch(part))]
    return AFEW_SPLITS[parts[-1]] if parts else None


def read_afew(config: DatasetConfig) -> Dataset:
    """Return AFEW's trials, grouped by film.

    Raises
    ------
    InputError
        No clip stands in a folder of its emotion.
    """
    found = scans(config, "afew")
    entries, problems = _afew_entries(found)
    if not any(entry.label != UNKNOWN for entry in entries):
        raise InputError("no clip of afew in a folder of its emotion", where=found[0].root, hint=(
            f"expected is Train_AFEW/Angry/000046280.avi and Val_AFEW/..; {describe(found[0])}"))
    return build_dataset(config, "afew", found, entries, _afew_key, classes=AFEW_CLASSES, metric="accuracy",
                         problems=problems)


def _afew_entries(found: Sequence[Scan]) -> tuple[list[ClipEntry], list[Problem]]:
    """Return an entry for each clip of a known part, and a problem for each that has two labels or stands in two parts.

    Notes
    -----
    A test clip has no label, wherever it lies.
    """
    seen: dict[str, set[tuple[Split, int]]] = {}
    for each in found:
        for path, _ in each.clips():
            below = path.relative_to(each.root)
            split = afew_split_of(below.parent)
            if split is not None:
                code = UNKNOWN if split == "test" else _afew_emotion(below)
                seen.setdefault(_afew_name(below), set()).add((split, code))
    entries, problems = [], []
    for name, places in sorted(seen.items()):
        known = sorted((split, code) for split, code in places if code != UNKNOWN or split == "test")
        if len(known) > 1:
            problems.append(Problem(where=name, what="stands in several parts or under several emotions",
                                    hint="it is left out; keep one of them"))
        elif known:
            entries.append(ClipEntry(name=name, split=known[0][0], label=known[0][1], group=_afew_film(name)))
        else:
            problems.append(Problem(where=name, what="stands under no emotion", hint="it is left out; move it there"))
    return entries, problems


def _afew_emotion(path: PurePath) -> int:
    code = code_of(path.parent.name, AFEW_CLASSES) if not path.parent.name.isdigit() else None
    return UNKNOWN if code is None else code


def _afew_name(path: PurePath) -> str:
    return path.name.partition(".")[0]


def _afew_film(name: str) -> str:
    return f"film{name[:3]}" if re.match(r"\d{9}", name) else name


def _afew_key(path: PurePath) -> tuple[str, str] | None:
    """Return the version (the folders but for the part of the set and the emotion) and the clip."""
    if afew_split_of(path.parent) is None:
        return None
    kept = [re.sub(r"_?(train|val|test)\w*$", "", part, flags=re.IGNORECASE) for part in path.parent.parts
            if not AFEW_PART.fullmatch(part) and (part.isdigit() or code_of(part, AFEW_CLASSES) is None)]
    return "/".join(kept), _afew_name(path)


# CK+: 593 posed sequences of 123 subjects, 327 of them labelled, from neutral to the height of an emotion.
#
# Notes
# -----
# ``cohn-kanade-images/S005/001/S005_001_00000001.png`` .. and ``Emotion/S005/001/S005_001_00000011_emotion.txt``, which
# holds one number, ``3.0000000e+00``: 1 Anger, 2 Contempt, 3 Disgust, 4 Fear, 5 Happy, 6 Sadness, 7 Surprise; 0
# (Neutral)
# is in the set's key and in no file. The label is that of the whole sequence. The set publishes no split. The field
# reports ten folds by subject, usually (from memory: no list is published) with the labelled subjects in the order of
# their numbers and every tenth one in a fold; these are `Trial.fold`. Without `fold` every labelled sequence is
# training
# data. The pictures are whole frames.

CKPLUS_CLASSES = ("Anger", "Contempt", "Disgust", "Fear", "Happy", "Sadness", "Surprise")
CKPLUS_FOLDS = 10
CKPLUS_LABEL = re.compile(r"(?P<name>S\d{3}_\d{3})_\d{8}_emotion\.txt", re.IGNORECASE)
CKPLUS_PLACE = re.compile(r"(S\d{3})/(\d{3})", re.IGNORECASE)
CKPLUS_LIMIT_BYTES = 1 << 16


def looks_like_ckplus(found: Scan) -> bool:
    """Return whether a folder holds CK+'s label files."""
    return any(CKPLUS_LABEL.fullmatch(path.name) for path in found.texts)


def read_ckplus(config: DatasetConfig) -> Dataset:
    """Return CK+'s trials, grouped by subject; sequences without a label are test trials.

    Raises
    ------
    InputError
        No label files, no such fold, or not one sequence.
    """
    found = scans(config, "ckplus")
    files = sorted(path for each in found for path in each.texts if CKPLUS_LABEL.fullmatch(path.name))
    if not files:
        raise InputError("no labels of ckplus", where=found[0].root, hint=(
            f"expected is Emotion/S005/001/S005_001_00000011_emotion.txt; {describe(found[0])}"))
    if config.fold > CKPLUS_FOLDS:
        raise InputError(f"fold {config.fold} of {CKPLUS_FOLDS}", where="dataset ckplus",
                         hint=f"--fold is 1 to {CKPLUS_FOLDS}")
    codes, problems = _ckplus_labels(files)
    names = sorted({key[1] for each in found for path in each.crops
                    if (key := _ckplus_key(path.relative_to(each.root)))}
                   | set(codes))
    subjects = sorted({name[:4] for name, code in codes.items() if code != UNKNOWN})
    folds = {subject: 1 + place % CKPLUS_FOLDS for place, subject in enumerate(subjects)}
    entries = [_ckplus_entry(name, codes.get(name, UNKNOWN), folds.get(name[:4], 0), config.fold) for name in names]
    bare = sum(entry.label == UNKNOWN for entry in entries)
    if bare:
        problems.append(Problem(where="ckplus", what=f"{bare} sequences have no label", lost=False,
                                hint="they are predicted, never trained on or scored"))
    return build_dataset(config, "ckplus", found, entries, _ckplus_key, classes=CKPLUS_CLASSES, metric="accuracy",
                 problems=problems,
                        folds=CKPLUS_FOLDS, fold=config.fold, whole_frames=True)


def _ckplus_entry(name: str, code: int, fold: int, chosen: int) -> ClipEntry:
    held_out = code == UNKNOWN or (chosen > 0 and fold == chosen)
    return ClipEntry(name=name, label=code, split="test" if held_out else "train", group=name[:4], subject=name[:4],
                        fold=fold if code != UNKNOWN else 0)


def _ckplus_labels(files: Sequence[Path]) -> tuple[dict[str, int], list[Problem]]:
    """Return sequence to class, and a problem for each label file that cannot be used."""
    codes: dict[str, int] = {}
    problems: list[Problem] = []
    for path in files:
        name = path.name[:8].upper()
        try:
            word = path.read_bytes()[:CKPLUS_LIMIT_BYTES].decode("ascii").strip()
            number = float(word)
        except (OSError, ValueError) as error:
            problems.append(Problem(where=name, what=f"its label was dropped: {path.name} cannot be read ({error})",
                                    hint="download it again"))
            continue
        if number not in range(1, len(CKPLUS_CLASSES) + 1):
            problems.append(wrong_label(name, word, path, CKPLUS_CLASSES))
        elif codes.setdefault(name, int(number) - 1) != int(number) - 1:
            problems.append(Problem(where=name, what="has several label files that disagree", hint=f"see {path}"))
            codes[name] = UNKNOWN
    return codes, problems


def _ckplus_key(path: PurePath) -> tuple[str, str] | None:
    match = CKPLUS_PLACE.fullmatch("/".join(path.parts[-2:]))
    return (PurePath(*path.parts[:-2]).as_posix(), f"{match[1]}_{match[2]}".upper()) if match else None


# CREMA-D: 7,442 clips of 91 actors, six classes, no published split: the folds hold whole actors.
#
# Notes
# -----
# A clip's name says all: ``1019_DFA_ANG_XX.flv`` = actor, sentence, emotion, level.

CREMAD_CODES = {"ANG": "Anger", "DIS": "Disgust", "FEA": "Fear", "HAP": "Happy", "NEU": "Neutral", "SAD": "Sad"}
CREMAD_NAME = re.compile(r"(?P<actor>1\d{3})_[A-Z]{3}_(?P<emotion>[A-Z]{3})_[A-Z]{1,2}")


def looks_like_cremad(found: Scan) -> bool:
    """Return whether most clips are named as CREMA-D's are."""
    return looks_like_acted(found, CREMAD_NAME)


def read_cremad(config: DatasetConfig) -> Dataset:
    """Return CREMA-D's trials, all of them training data, grouped by actor.

    Raises
    ------
    InputError
        Not one clip is named as CREMA-D's are.
    """
    found = scans(config, "cremad")
    codes = {code: index for index, code in enumerate(CREMAD_CODES)}
    entries, problems = acted_entries_of(found, CREMAD_NAME, "cremad", "1019_DFA_ANG_XX.flv", codes)
    return build_dataset(config, "cremad", found, entries, acted_key_of(CREMAD_NAME),
                         classes=tuple(CREMAD_CODES.values()),
                        metric="uar", problems=problems)


# DFEW and MAFW: five published folds, each with a list of training and a list of test clips.

FoldLists = dict[tuple[int, Split], Path]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What tells one such set from another.

    Parameters
    ----------
    official, common : regular expressions of the lists' paths below the root (groups ``split`` and ``fold``): the set's
        own, and those that participants pass on (``path frames label``, numbers from 0).
    first : the number of the first class in the official lists.
    expected : what the user is told to look for.
    """

    layout: str
    classes: tuple[str, ...]
    official: re.Pattern[str]
    common: re.Pattern[str]
    first: int
    expected: str
    name_of: Callable[[str], str]
    key: Key


def looks_like_cross(found: Scan, protocol: Protocol) -> bool:
    """Return whether a folder holds lists of this set."""
    return bool(_cross_lists([found], protocol.official, "") or _cross_lists([found], protocol.common, ""))


def read_cross(config: DatasetConfig, protocol: Protocol) -> Dataset:
    """Return the trials of one published fold: those of its test list are the test split.

    Raises
    ------
    InputError
        No lists, no such fold, or not one clip.
    """
    found = scans(config, protocol.layout)
    lists, first = _cross_lists(found, protocol.official, config.edition), protocol.first
    if not lists:
        lists, first = _cross_lists(found, protocol.common, config.edition), 0
    if not lists:
        raise InputError(f"no lists of {protocol.layout}", where=found[0].root,
                         hint=f"expected is {protocol.expected}; {describe(found[0])}")
    fold = by_fold(lists, protocol.layout, config.fold)
    rows = {key: [(protocol.name_of(row.clip), row) for row in rows_of(path)] for key, path in lists.items()}
    held = {name: number for (number, split), named in sorted(rows.items()) if split == "test" for name, _ in named}
    entries: dict[str, ClipEntry] = {}
    problems: list[Problem] = []
    for split in CROSS_SPLITS:
        if (fold, split) in lists:
            new, wrong = labelled(rows[fold, split], lists[fold, split], split, protocol.classes, first, held)
            problems += [*wrong, *_duplicates(entries, new, lists[fold, split])]
            entries = {entry.name: entry for entry in new} | entries
    folds = len({number for number, _ in lists})
    problems += _split_list(lists, fold)
    return build_dataset(config, protocol.layout, found, entries.values(), protocol.key, classes=protocol.classes,
                        metric="uar", problems=problems, folds=folds, fold=fold, notice=cross_notice(protocol, fold,
                                                                                                     folds))


CROSS_SPLITS: tuple[Split, ...] = ("train", "test")


def cross_notice(protocol: Protocol, fold: int, folds: int) -> str:
    """Return what a reader of the results must know."""
    return (f"{protocol.layout}, published fold {fold} of {folds}: papers report the mean of all five (--fold chooses);"
            " the set does not say which clips share a film or a person, so folds by group are folds by clip")


def _cross_lists(found: Iterable[Scan], pattern: re.Pattern[str], edition: str) -> FoldLists:
    """Return (fold, split) to list; of several with one name the first by the alphabet."""
    lists: FoldLists = {}
    for each in found:
        for path in sorted((*each.texts, *each.tables)):
            below = path.relative_to(each.root).as_posix()
            match = pattern.search(f"/{below}")
            if match and edition.casefold() in below.casefold():
                split: Split = "train" if match["split"].casefold() == "train" else "test"
                lists.setdefault((int(match["fold"]), split), path)
    return lists


def _duplicates(known: Mapping[str, ClipEntry], new: Sequence[ClipEntry], path: Path) -> list[Problem]:
    """Return a problem for each clip that is in the training list and in the test list."""
    return [Problem(where=entry.name, what="in the training list and in the test list of one fold",
                    hint=f"it is used for training only; correct {path}") for entry in new if entry.name in known]


def _split_list(lists: FoldLists, fold: int) -> list[Problem]:
    """Return a problem where only one of a fold's two lists is there."""
    return [Problem(where=f"fold {fold}", what=f"its {split} list is not there", hint="download it again")
            for split in CROSS_SPLITS if (fold, split) not in lists]


def cross_stem_of(clip: str) -> str:
    """Return the clip's name in a list: the last part of its path without an ending."""
    return PurePath(clip.replace("\\", "/")).stem


def without_parts(path: PurePath, pattern: str) -> str:
    """Return a clip's folder without those parts that only divide a version into pieces."""
    kept = [part for part in path.parent.parts if not re.fullmatch(pattern, part, re.IGNORECASE)]
    return "/".join(kept)


# DFEW: 11,697 single-labelled film clips, seven classes, five published folds.
#
# Notes
# -----
# Lists: ``EmoLabel_DataSplit/{train,test}(single-labeled)/set_{1..5}.csv`` (columns video_name, label 1 to 7), also
# seen
# as ``train_set_1.csv`` and without "(single-labeled)"; and participants' ``DFEW_set_1_train.txt`` (path, frames, label
# from 0). The order of the classes was found in six participants' repositories, all alike; the set's own documents were
# not at hand. Clips: folders or videos named by number, in pieces (``clip_224x224_part_1``) or not.

DFEW_CLASSES = ("Happy", "Sad", "Neutral", "Angry", "Surprise", "Disgust", "Fear")
DFEW_PIECE = r".*part[_-]?\d+"


def _dfew_name(clip: str) -> str:
    stem = cross_stem_of(clip)
    return f"{int(stem):05d}" if stem.isascii() and stem.isdigit() else stem


def _dfew_key(path: PurePath) -> tuple[str, str] | None:
    stem = path.name.partition(".")[0]
    return (without_parts(path, DFEW_PIECE), f"{int(stem):05d}") if stem.isascii() and stem.isdigit() else None


DFEW_PROTOCOL = Protocol(
    layout="dfew", classes=DFEW_CLASSES, first=1, name_of=_dfew_name, key=_dfew_key,
    official=re.compile(r"/(?P<split>train|test)(\(single-labell?ed\))?/((train|test)_)?set_(?P<fold>\d)\.csv$", re.I),
    common=re.compile(r"/DFEW_set_(?P<fold>\d)_(?P<split>train|test)\w*\.txt$", re.I),
    expected="EmoLabel_DataSplit/train(single-labeled)/set_1.csv and test(single-labeled)/set_1.csv")


def looks_like_dfew(found: Scan) -> bool:
    """Return whether a folder holds DFEW's lists."""
    return looks_like_cross(found, DFEW_PROTOCOL)


def read_dfew(config: DatasetConfig) -> Dataset:
    """Return the trials of one of DFEW's folds (1 unless `config.fold` says another)."""
    return read_cross(config, DFEW_PROTOCOL)


# FERV39k: 38,935 clips of 22 scenes, seven classes, one published split.
#
# Notes
# -----
# Lists: ``4_setups/All_scenes/{train,test}_All.csv``, separated by a space, no header: ``Action/Happy/0267 Happy``
# (31,088 and 7,847 lines). Labels are words, so the lists fix no order of classes; the alphabet's is used, as most
# loaders do. Clips: ``2_ClipsforFaceCrop/<Scene>/<Label>/<clip>/`` with pictures, or videos of that path.

FERV39K_CLASSES = ("Angry", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise")
FERV39K_LIST = re.compile(r"(?P<split>train|test)_All\.csv", re.IGNORECASE)
FERV39K_NOTICE = ("ferv39k: the set does not say which clips share a video or a person, so "
                  " folds by group are folds by clip")


def looks_like_ferv39k(found: Scan) -> bool:
    """Return whether a folder holds FERV39k's lists."""
    return any(FERV39K_LIST.fullmatch(path.name) for path in found.tables)


def read_ferv39k(config: DatasetConfig) -> Dataset:
    """Return the trials of the setup of all scenes.

    Raises
    ------
    InputError
        No lists, or not one clip.
    """
    found = scans(config, "ferv39k")
    lists = _ferv39k_lists(found, config.edition)
    entries: dict[str, ClipEntry] = {}
    problems: list[Problem] = []
    for split, path in lists.items():
        rows = [("/".join(PurePath(row.clip.replace("\\", "/")).parts[-3:]), row) for row in rows_of(path)]
        new, wrong = labelled(rows, path, split, FERV39K_CLASSES, 0)
        problems += [*wrong, *(Problem(where=entry.name, what="in the training list and in the test list",
                                       hint=f"it is used for training only; correct {path}")
                               for entry in new if entry.name in entries)]
        entries = {entry.name: entry for entry in new} | entries
    return build_dataset(config, "ferv39k", found, entries.values(), _ferv39k_key, classes=FERV39K_CLASSES,
                         metric="uar",
                        problems=problems, notice=FERV39K_NOTICE)


def _ferv39k_lists(found: list[Scan], edition: str) -> dict[Split, Path]:
    """Return split to list, the training one first."""
    lists: dict[Split, Path] = {}
    for path in sorted(path for each in found for path in each.tables if edition.casefold() in str(path).casefold()):
        match = FERV39K_LIST.fullmatch(path.name)
        if match:
            split: Split = "train" if match["split"].casefold() == "train" else "test"
            if split in lists:
                raise InputError(f"several lists: {shorten_list((lists[split], path))}", where=found[0].root,
                                 hint="choose with --edition and a part of the path")
            lists[split] = path
    if not lists:
        raise InputError("no lists of ferv39k", where=found[0].root, hint=(
            f"expected is 4_setups/All_scenes/train_All.csv and test_All.csv; {describe(found[0])}"))
    return dict(sorted(lists.items(), reverse=True))


def _ferv39k_key(path: PurePath) -> tuple[str, str] | None:
    if len(path.parts) < 3 or code_of(path.parts[-2], FERV39K_CLASSES) is None:
        return None
    scene, label, clip = path.parts[-3:]
    return "/".join(path.parts[:-3]), f"{scene}/{label}/{clip.partition('.')[0]}"


# MAFW: 9,172 single-labelled clips, eleven classes, five published folds.
#
# Notes
# -----
# Lists: ``Train & Test Set/single/no_caption/set_{1..5}/{train,test}.txt`` with lines ``00001.mp4 anger``; and
# participants' ``MAFW_set_1_train.txt`` (path, frames, label 0 to 10), whose frame counts do not match the files: they
# are compared by `check`, never used. The lists with captions and of compound labels are not read. The order of the
# classes is that of the set's columns, as three participants' repositories have it.

MAFW_CLASSES = ("Anger", "Disgust", "Fear", "Happiness", "Neutral", "Sadness", "Surprise", "Contempt", "Anxiety",
           "Helplessness", "Disappointment")


def _mafw_key(path: PurePath) -> tuple[str, str] | None:
    stem = path.name.partition(".")[0]
    return (path.parent.as_posix(), stem) if re.fullmatch(r"\d{4,6}", stem) else None


MAFW_PROTOCOL = Protocol(
    layout="mafw", classes=MAFW_CLASSES, first=1, name_of=cross_stem_of, key=_mafw_key,
    official=re.compile(r"^(?!.*(with_caption|compound|multi)).*/set_(?P<fold>\d)/(?P<split>train|test)\.txt$", re.I),
    common=re.compile(r"/MAFW_set_(?P<fold>\d)_(?P<split>train|test)\w*\.txt$", re.I),
    expected="Train & Test Set/single/no_caption/set_1/train.txt and test.txt, or MAFW_set_1_train.txt")


def looks_like_mafw(found: Scan) -> bool:
    """Return whether a folder holds MAFW's lists."""
    return looks_like_cross(found, MAFW_PROTOCOL)


def read_mafw(config: DatasetConfig) -> Dataset:
    """Return the trials of one of MAFW's folds (1 unless `config.fold` says another)."""
    return read_cross(config, MAFW_PROTOCOL)


# RAVDESS: speech and song of 24 actors, eight classes, no published split: the folds hold whole actors.
#
# Notes
# -----
# A clip's name says all: ``02-01-06-01-02-01-12.mp4`` = modality (01 both, 02 video only, 03 sound only), channel (01
# speech, 02 song), emotion 01 to 08, intensity, statement, repetition, actor. The set holds each picture track twice,
# with sound and without: one of the two is read, that with sound where both are there.

RAVDESS_CLASSES = ("Neutral", "Calm", "Happy", "Sad", "Angry", "Fearful", "Disgust", "Surprised")
RAVDESS_NAME = re.compile(r"0[12]-0[12]-(?P<emotion>\d\d)-\d\d-\d\d-\d\d-(?P<actor>\d\d)")


def looks_like_ravdess(found: Scan) -> bool:
    """Return whether most clips are named as RAVDESS's are."""
    return looks_like_acted(found, RAVDESS_NAME)


def read_ravdess(config: DatasetConfig) -> Dataset:
    """Return RAVDESS's trials, all of them training data, grouped by actor.

    Raises
    ------
    InputError
        Not one clip is named as RAVDESS's are.
    """
    found = scans(config, "ravdess")
    codes = {f"{index:02d}": index - 1 for index in range(1, len(RAVDESS_CLASSES) + 1)}
    entries, problems = acted_entries_of(found, RAVDESS_NAME, "ravdess", "01-01-06-01-02-01-12.mp4", codes)
    kept, dropped = _ravdess_once(entries)
    if dropped:
        problems.append(Problem(where=shorten_list(dropped), lost=False, hint="those with sound (01-) are read",
                                what=f"{len(dropped)} clips stand there twice, with and without sound"))
    return build_dataset(config, "ravdess", found, kept, acted_key_of(RAVDESS_NAME, frozenset(dropped)),
                 classes=RAVDESS_CLASSES,
                        metric="uar", problems=problems)


def _ravdess_once(entries: Iterable[ClipEntry]) -> tuple[list[ClipEntry], list[str]]:
    """Return one entry a performance, with sound where there is one, and the names of those left out."""
    takes: dict[str, list[ClipEntry]] = defaultdict(list)
    for entry in sorted(entries, key=lambda entry: entry.name):
        takes[entry.name[2:]].append(entry)
    return [one[0] for one in takes.values()], [entry.name for one in takes.values() for entry in one[1:]]
