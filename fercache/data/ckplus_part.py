"""CK+: 593 posed sequences of 123 subjects, 327 of them labelled, from neutral to the height of an emotion.

Notes
-----
``cohn-kanade-images/S005/001/S005_001_00000001.png`` .. and ``Emotion/S005/001/S005_001_00000011_emotion.txt``, which
holds one number, ``3.0000000e+00``: 1 Anger, 2 Contempt, 3 Disgust, 4 Fear, 5 Happy, 6 Sadness, 7 Surprise; 0 (Neutral)
is in the set's key and in no file. The label is that of the whole sequence. The set publishes no split. The field
reports ten folds by subject, usually (from memory: no list is published) with the labelled subjects in the order of
their numbers and every tenth one in a fold; these are `Trial.fold`. Without `fold` every labelled sequence is training
data. The pictures are whole frames.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePath

from fercache.config import DatasetConfig
from fercache.data import clip_level
from fercache.data.base import UNKNOWN, Dataset, Problem
from fercache.data.scan import Scan, describe
from fercache.errors import InputError

CLASSES = ("Anger", "Contempt", "Disgust", "Fear", "Happy", "Sadness", "Surprise")
FOLDS = 10
LABEL = re.compile(r"(?P<name>S\d{3}_\d{3})_\d{8}_emotion\.txt", re.IGNORECASE)
PLACE = re.compile(r"(S\d{3})/(\d{3})", re.IGNORECASE)
LIMIT_BYTES = 1 << 16


def looks_like(found: Scan) -> bool:
    """Return whether a folder holds CK+'s label files."""
    return any(LABEL.fullmatch(path.name) for path in found.texts)


def read(config: DatasetConfig) -> Dataset:
    """Return CK+'s trials, grouped by subject; sequences without a label are test trials.

    Raises
    ------
    InputError
        No label files, no such fold, or not one sequence.
    """
    found = clip_level.scans(config, "ckplus")
    files = sorted(path for each in found for path in each.texts if LABEL.fullmatch(path.name))
    if not files:
        raise InputError("no labels of ckplus", where=found[0].root, hint=(
            f"expected is Emotion/S005/001/S005_001_00000011_emotion.txt; {describe(found[0])}"))
    if config.fold > FOLDS:
        raise InputError(f"fold {config.fold} of {FOLDS}", where="dataset ckplus", hint=f"--fold is 1 to {FOLDS}")
    codes, problems = _labels(files)
    names = sorted({key[1] for each in found for path in each.crops if (key := _key(path.relative_to(each.root)))}
                   | set(codes))
    subjects = sorted({name[:4] for name, code in codes.items() if code != UNKNOWN})
    folds = {subject: 1 + place % FOLDS for place, subject in enumerate(subjects)}
    entries = [_entry(name, codes.get(name, UNKNOWN), folds.get(name[:4], 0), config.fold) for name in names]
    bare = sum(entry.label == UNKNOWN for entry in entries)
    if bare:
        problems.append(Problem(where="ckplus", what=f"{bare} sequences have no label", lost=False,
                                hint="they are predicted, never trained on or scored"))
    return clip_level.build(config, "ckplus", found, entries, _key, classes=CLASSES, metric="accuracy", problems=problems,
                        folds=FOLDS, fold=config.fold, whole_frames=True)


def _entry(name: str, code: int, fold: int, chosen: int) -> clip_level.Entry:
    held_out = code == UNKNOWN or (chosen > 0 and fold == chosen)
    return clip_level.Entry(name=name, label=code, split="test" if held_out else "train", group=name[:4], subject=name[:4],
                        fold=fold if code != UNKNOWN else 0)


def _labels(files: Sequence[Path]) -> tuple[dict[str, int], list[Problem]]:
    """Return sequence to class, and a problem for each label file that cannot be used."""
    codes: dict[str, int] = {}
    problems: list[Problem] = []
    for path in files:
        name = path.name[:8].upper()
        try:
            word = path.read_bytes()[:LIMIT_BYTES].decode("ascii").strip()
            number = float(word)
        except (OSError, ValueError) as error:
            problems.append(Problem(where=name, what=f"its label was dropped: {path.name} cannot be read ({error})",
                                    hint="download it again"))
            continue
        if number not in range(1, len(CLASSES) + 1):
            problems.append(clip_level.wrong_label(name, word, path, CLASSES))
        elif codes.setdefault(name, int(number) - 1) != int(number) - 1:
            problems.append(Problem(where=name, what="has several label files that disagree", hint=f"see {path}"))
            codes[name] = UNKNOWN
    return codes, problems


def _key(path: PurePath) -> tuple[str, str] | None:
    match = PLACE.fullmatch("/".join(path.parts[-2:]))
    return (PurePath(*path.parts[:-2]).as_posix(), f"{match[1]}_{match[2]}".upper()) if match else None
