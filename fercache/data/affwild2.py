"""Aff-Wild2's expression track, ABAW1 (2020) to ABAW8 (2025) and later, and its multi-task table; crops or videos."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from fercache.config import DatasetConfig
from fercache.data import base
from fercache.data.base import EIGHT, SEVEN, SIDES, UNKNOWN, Dataset, Issue, Kind, Labels, Split, Trial
from fercache.data.clip_level import SHOWN
from fercache.data.labels import MOST_FRAMES, read_all, read_text, whole_number
from fercache.data.scan import Scan, describe, scan_places
from fercache.errors import InputError, shorten_list
from fercache.media.pictures import ENDINGS

TRACKS = ("EXPR_Set", "EXPR_Classification_Challenge", "EXPR_Recognition_Challenge")
SPLITS: dict[str, Split] = {"Train_Set": "train", "Validation_Set": "validation"}


def read(config: DatasetConfig) -> Dataset:
    """Return the trials under the root, grouped by parent video."""
    found = scan_places(config, "affwild2")
    # Seven and eight classes are two challenges (ABAW1 and 2; ABAW3 and later); the files' headers decide.
    files, splits, twice = _annotations(_edition(found, config.edition))
    tests = _test_list(found)
    classes, labels, bad = read_all(files, (SEVEN, EIGHT))
    if files and not classes:
        raise InputError("not one annotation file can be used", where=bad[0].where,
                         hint=f"the first one: {bad[0].message}")
    trials, noted = assemble(found, labels, splits, config.source, tests)
    return Dataset(name=base.cache_name("affwild2", found.root, config.name), layout="affwild2", classes=classes,
                   trials=trials, metric="abaw2" if classes == SEVEN else "macro_f1",
                   problems=(*found.problems, *twice, *bad, *noted))


def assemble(found: Scan, labels: Mapping[str, Labels], splits: Mapping[str, Split], source: str,
             tests: Iterable[str] = ()) -> tuple[tuple[Trial, ...], list[Issue]]:
    """Return the trials with their clips, and an issue for each trial without exactly one clip.

    `splits`: of the annotated trials; `tests`: those of the test list. `source`: "crops", "video", or "auto" (crops if
    there are any).
    """
    wanted: dict[str, Split] = {**dict.fromkeys(tests, "test"), **splits}  # an annotated trial is never a test trial
    kind, clips, videos = _clips(found, wanted, source)
    # The video of `_left` and `_right` trials has neither's name.
    extra = [name for name in clips if name not in wanted and not (
        kind == "video" and any(f"{name}_{side}" in wanted for side in SIDES))]
    trials: list[Trial] = []
    problems: list[Issue] = []
    absent: list[str] = []
    known = {*wanted, *extra}
    for name in sorted(known):
        of_trial = videos.get(name) or videos.get(parent_of(name), [])
        paths = clips.get(name, []) if kind == "crops" else of_trial
        if not paths and name not in splits:  # no label is lost, so one note for all of them is enough
            absent.append(name)
            continue
        if len(paths) != 1:
            what = (f"several clips have its name: {shorten_list(paths)}" if paths else
                    f"no {'folder of crops' if kind == 'crops' else 'video'} has its name; it is annotated")
            problems.append(Issue(where=name, message=what, kind="no-clip", hint="keep one of them" if paths else
                                  "it is left out; get its clip, or remove its annotation"))
            continue
        # The group is the parent video: its two people are in the same scene, often in the same frames.
        trials.append(Trial(name=name, path=paths[0], kind=kind, parent=parent_of(name), group=parent_of(name),
                            split=splits.get(name, "test"), labels=labels.get(name), side=side_of(name, known),
                            video=of_trial[0] if kind == "crops" and len(of_trial) == 1 else None))
    if not trials:
        raise InputError(f"no clip belongs to the {len(wanted)} annotated trials", where=found.root,
                         hint=f"put the crops (cropped_aligned/<trial>/) or the videos below it; {describe(found)}")
    problems += base.note_about(absent, "trials of the test list have no clip", "they are left out")
    problems += base.note_about(extra, "clips have no annotation and are in no test list", base.NOT_TRAINED)
    return tuple(trials), problems


def parent_of(trial: str) -> str:
    """Return the video that a trial comes from: its name without ``_left`` or ``_right``."""
    return re.sub(rf"_({'|'.join(SIDES)})\Z", "", trial)


def side_of(trial: str, names: Iterable[str]) -> str:
    """Return "left" or "right" where the trial is one of two people of a video, else ""."""
    # Three pairs are asymmetric (``video59`` and ``video59_right``): the trial without a side is then the other person.
    # `names` should be a set.
    for side, other in (SIDES, SIDES[::-1]):
        if trial.endswith(f"_{side}") or f"{trial}_{other}" in names:
            return side
    return ""


def find_tracks(found: Scan) -> list[Path]:
    """Return the folders with Train_Set or Validation_Set of an expression track; editions differ in their names."""
    parents = {path.parent for path in found.folders if path.name in SPLITS}
    return sorted(path for path in parents if "expr" in path.name.casefold() or path in (found.root, *found.more))


def _edition(found: Scan, edition: str) -> Path:
    """Return the one annotation folder to use."""
    tracks = find_tracks(found)
    if not tracks:
        raise InputError("no annotations of Aff-Wild2's expression track", where=found.root, hint=(
            f"expected: {' or '.join(TRACKS)} with Train_Set and Validation_Set, at most 4 folders down; "
            f"{describe(found)}. For other data use a table: --clips TABLE"))
    chosen = [track for track in tracks if edition.casefold() in str(track).casefold()]
    if len(chosen) != 1:
        what = f"none of the annotation folders has {edition!r} in its path" if not chosen else "several editions"
        raise InputError(f"{what}: {shorten_list(tracks)}", where=found.root,
                         hint="choose one with --edition and a part of its path")
    return chosen[0]


def _annotations(track: Path) -> tuple[dict[str, Path], dict[str, Split], list[Issue]]:
    """Return trial -> annotation file, trial -> split, and an issue for each trial in both splits."""
    files: dict[str, Path] = {}
    splits: dict[str, Split] = {}
    problems: list[Issue] = []
    for folder, split in SPLITS.items():  # training first: a trial in both splits must not count as unseen
        for path in sorted((track / folder).glob("[!.]*.txt")):
            if path.stem in files:
                problems.append(Issue(where=path.stem, message="annotated in Train_Set and in Validation_Set",
                                      hint=f"the training one is used; remove one: {files[path.stem]}, {path}"))
                continue
            files[path.stem], splits[path.stem] = path, split
    return files, splits, problems


def _test_list(found: Scan) -> list[str]:
    """Return the trials of the organizers' test list: one a line, no header."""
    lists = [path for path in found.texts if "test_set" in path.name.casefold()]
    names: dict[str, None] = {}
    for path in [path for path in lists if "expr" in path.name.casefold()] or lists:
        # A name that is not UTF-8 matches no clip, which is reported; the other names remain usable.
        lines = read_text(path, errors="replace").split("\n")
        names |= dict.fromkeys(line.strip() for line in lines if line.strip())
    return list(names)


def _clips(found: Scan, wanted: Mapping[str, object], source: str
           ) -> tuple[Kind, dict[str, list[Path]], dict[str, list[Path]]]:
    """Return the kind of the clips to read, these clips by name, and all videos by file stem."""
    # One kind only: features of two crop policies in one store cost nearly half of the score (.384 to .214, ABAW3).
    # So those crops, aligned or not, that cover most trials; the videos if there are no crops or `source` asks.
    crops: dict[bool, dict[str, list[Path]]] = {True: defaultdict(list), False: defaultdict(list)}
    for path in found.crops:
        if (below := found.below(path)).name:  # "" for a folder that is a clip itself
            crops["aligned" in str(below.parent).casefold()][path.name].append(path)
    aligned = max((True, False), key=lambda kind: sum(name in wanted for name in crops[kind]))
    videos: dict[str, list[Path]] = defaultdict(list)
    for path in found.videos:
        videos[path.stem].append(path)
    has_crops = any(name in wanted for name in crops[aligned]) or not videos
    if source == "crops" or (has_crops and source == "auto"):
        return "crops", crops[aligned], videos
    return "video", videos, videos


# The multi-task table (ABAW's MTL challenge): one row a picture, the expression one of its columns.
# ``MTL_Challenge/{train,validation}_set.txt`` (ABAW3), or ``training_set_annotations.txt`` and
# ``validation_set_annotations.txt`` (ABAW4 and ABAW7), with the header ``image,valence,arousal,expression,aus``: rows
# are ``<trial>/00001.jpg,.1,.2,4,0,..``, the last twelve fields the action units, so that a row has more fields than
# the header. Invalid are -5 (valence, arousal), -1 (expression) and -1 (units); a picture is listed if one of the tasks
# has a label for it, so many rows have no expression. The challenge's own metric is a sum over three tasks; its part
# for the expression is macro F1 over eight classes.

MTL_TABLE = re.compile(r"(?P<split>train|validation|val)(ing)?_set(_annotations?)?\.(txt|csv)", re.IGNORECASE)
MTL_HEADER = ("image", "valence", "arousal", "expression")
MTL_PICTURE = re.compile(rf"(?:.*/)?(?P<trial>[^/]+)/(?P<frame>\d{{1,8}})\.(?:{'|'.join(ENDINGS)})", re.IGNORECASE)
MTL_COLUMN = MTL_HEADER.index("expression")


def matches_mtl(found: Scan) -> bool:
    """Return whether a folder holds the tables of the multi-task track."""
    return any(_is_mtl_table(path) for path in (*found.texts, *found.tables))


def read_mtl(config: DatasetConfig) -> Dataset:
    """Return the trials that the tables name, grouped by parent video."""
    found = scan_places(config, "mtl")
    problems = found.problems
    labels: dict[str, Labels] = {}
    splits: dict[str, Split] = {}
    for split, path in _mtl_tables(found, config.edition).items():
        rows, wrong = _mtl_rows(path)
        problems += [*wrong, *(Issue(where=trial, message="is in both tables", hint="the training one is used")
                               for trial in sorted(set(rows) & set(labels)))]
        labels = rows | labels  # the training table comes first and wins: its trials must not count as unseen
        splits = dict.fromkeys(rows, split) | splits
    trials, noted = assemble(found, labels, splits, config.source)
    return Dataset(name=base.cache_name("mtl", found.root, config.name), layout="mtl", classes=EIGHT,
                   trials=trials, metric="macro_f1", problems=(*problems, *noted))


def _is_mtl_table(path: Path) -> bool:
    if not MTL_TABLE.fullmatch(path.name):
        return False
    try:
        with path.open(encoding="utf-8-sig") as handle:
            first = handle.readline(4096)  # a file without line ends may be of any size
    except (OSError, UnicodeDecodeError):
        return False
    return tuple(name.strip().casefold() for name in first.split(","))[: len(MTL_HEADER)] == MTL_HEADER


def _mtl_tables(found: Scan, edition: str) -> dict[Split, Path]:
    """Return split to table, the training one first."""
    tables: dict[Split, list[Path]] = defaultdict(list)
    for path in (*found.texts, *found.tables):
        if _is_mtl_table(path) and edition.casefold() in str(path).casefold():
            tables["train" if path.name.casefold().startswith("train") else "validation"].append(path)
    if not tables:
        raise InputError("no tables of the multi-task track", where=found.root, hint=(
            f"expected is MTL_Challenge/train_set.txt with the header image,valence,arousal,expression,aus; "
            f"{describe(found)}"))
    for paths in tables.values():
        if len(paths) > 1:
            raise InputError(f"several tables: {shorten_list(paths)}", where=found.root,
                             hint="choose with --edition and a part of the path")
    return {split: paths[0] for split, paths in sorted(tables.items())}


def _mtl_rows(path: Path) -> tuple[dict[str, Labels], list[Issue]]:
    """Return the labels of each trial by frame number, and an issue for each trial with a malformed row."""
    # Rows may be in any order. A malformed row costs the labels of its own trial. Rows have more fields than the
    # header, which the table layer refuses, so they are split here.
    rows: dict[str, dict[int, int]] = defaultdict(dict)
    wrong: dict[str, str] = {}
    with path.open(encoding="utf-8-sig", errors="replace") as handle:
        next(handle, "")
        for line, text in enumerate(handle, 2):
            fields = text.split(",")
            # The frame number is in the name of the picture; the order of rows means nothing.
            match = MTL_PICTURE.fullmatch(fields[0].strip())
            if not text.strip():
                continue
            trial = match["trial"] if match else fields[0].strip()[: SHOWN]
            label = whole_number(fields[MTL_COLUMN]) if len(fields) > MTL_COLUMN else None
            frame = int(match["frame"]) if match else 0
            if (label is None or not UNKNOWN <= label < len(EIGHT) or not 0 < frame <= MOST_FRAMES
                    or rows[trial].setdefault(frame, label) != label):
                wrong.setdefault(trial, f"its labels were dropped: line {line} is {text.strip()[: SHOWN]!r}")
    problems = [Issue(where=trial, message=what, hint=f"correct {path}") for trial, what in sorted(wrong.items())]
    labels: dict[str, Labels] = {}
    for trial, frames in rows.items():
        known = frames if trial not in wrong else {}
        labels[trial] = np.full(max(known, default=0), UNKNOWN, np.int16)
        labels[trial][np.array(list(known), np.int64) - 1] = list(known.values())
    return labels, problems
