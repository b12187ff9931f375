"""Clips named one by one, as a data set: a file, a folder of crops, or a folder with clips in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from fercache.data.base import Dataset, Kind, Problem, Trial
from fercache.data.scan import kind_at, scan, unnamable
from fercache.errors import InputError

NAME = "predict"
"""Folder in the cache of all clips that were named one by one."""
LACKING = "no such file or folder"


def named(paths: Sequence[Path]) -> Dataset:
    """Return the clips at `paths` as a data set of test trials, each called by its full path.

    Raises
    ------
    InputError
        Not one of them is a clip or holds one.

    Notes
    -----
    The full path is the name in the cache, so that two clips of one file name never meet, wherever they are named
    from. A path that holds nothing is recorded as a problem, and the others are read.
    """
    clips: dict[Path, Kind] = {}
    problems: list[Problem] = []
    for path in paths:
        found, wrong = _at(path)
        clips.update(found)
        problems += wrong
    if not clips:
        first = problems[0] if problems else Problem(where="predict", what="no clip was named")
        raise InputError(first.what, where=first.where,
                         hint=first.hint or "name video files, folders of crops, or folders of clips")
    trials = [Trial(name=str(path), path=path, kind=kind, parent=str(path), group=str(path), split="test")
              for path, kind in clips.items()]
    return Dataset(name=NAME, layout="clips", classes=(), trials=tuple(sorted(trials, key=lambda trial: trial.name)),
                   problems=tuple(problems))


def shown(dataset: Dataset) -> dict[str, str]:
    """Return trial name -> the name that predictions carry: the file's stem, with more of its path where needed."""
    if dataset.layout != "clips":
        return {trial.name: trial.name for trial in dataset.trials}
    waiting = {trial.name: _names(trial) for trial in dataset.trials}
    chosen = {name: next(names) for name, names in waiting.items()}
    while twice := {name for name, count in Counter(chosen.values()).items() if count > 1}:
        chosen |= {name: next(waiting[name]) for name, said in chosen.items() if said in twice}
    return chosen


def as_shown(dataset: Dataset) -> Dataset:
    """Return the data set with its trials called as predictions call them."""
    names = shown(dataset)
    return replace(dataset, trials=tuple(replace(trial, name=names[trial.name]) for trial in dataset.trials))


def _names(trial: Trial) -> Iterator[str]:
    """Yield names for a clip, or for one person of it, each longer than the one before, the full path last."""
    person = trial.name.removeprefix(str(trial.path))
    if trial.kind == "video":
        yield trial.path.stem + person
    parts = trial.path.parts
    for many in range(1, len(parts)):
        yield "/".join(parts[-many:]) + person
    while True:
        yield trial.name


def _at(path: Path) -> tuple[dict[Path, Kind], list[Problem]]:
    """Return the clips at a path, and what is wrong there."""
    kind = kind_at(path)
    if kind is None:
        return {}, [Problem(where=str(path), what=LACKING, hint="check the path")]
    if kind == "video":
        return {path.resolve(): kind}, []
    try:
        found = scan(path.resolve())
    except InputError as error:
        return {}, [Problem(where=str(path), what=error.what, hint=error.hint)]
    problems = [*found.problems, *unnamable(found)]
    clips = dict(found.clips())
    if not clips:
        problems.append(Problem(where=str(path), what="no clip in this folder",
                                hint="a clip is a video file or a folder of pictures 00001.jpg, 00002.jpg .."))
    return clips, problems
