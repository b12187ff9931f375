"""What a user should look at before extraction: what loses data or spoils a score, and what is good to know."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fercache.check import twins
from fercache.check.index import Facts
from fercache.check.lengths import Comparison
from fercache.datasets import Dataset, Trial
from fercache.datasets.base import some
from fercache.datasets.clock import FrameClock


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was found.

    Attributes
    ----------
    kind : a word for programs: ``no-label``, ``no-clip``, ``unreadable``, ``empty-pictures``, ``twins``, ``leak``, ..
    where : the clips or files, a few of them by name; `count` is how many there are.
    lost : whether data drops out, or a score is spoilt, because of it.
    """

    kind: str
    where: str
    what: str
    hint: str
    count: int
    lost: bool


def all_of(dataset: Dataset, clocks: Sequence[FrameClock], facts: Mapping[str, Facts],
           compared: Sequence[Comparison]) -> Iterator[Finding]:
    """Yield everything, what loses data first."""
    found = [*_read(dataset), *_unlabelled(dataset), *_pictures(dataset.trials, facts), *_videos(dataset.trials, facts),
             *_twins(twins.find(dataset.trials, facts)), *_leaks(dataset.trials), *_classes(dataset, clocks),
             *_beyond(clocks), *_odd(dataset.trials, facts)]
    yield from sorted(found, key=lambda one: not one.lost)


def _read(dataset: Dataset) -> Iterator[Finding]:
    """Yield what the reader of the set found."""
    for problem in dataset.problems:
        yield Finding(kind="no-clip" if "no clip" in problem.what or "has its name" in problem.what else "reader",
                      where=problem.where, what=problem.what, hint=problem.hint, count=1, lost=problem.lost)


def _unlabelled(dataset: Dataset) -> Iterator[Finding]:
    """Yield the clips of the labelled splits that have no label at all, and those annotated as -1 throughout."""
    bare = [trial for trial in dataset.trials if trial.split != "test" and not trial.labelled]
    without = [trial.name for trial in bare if trial.labels is None]
    minus = [trial.name for trial in bare if trial.labels is not None]
    if without:
        yield Finding(kind="no-label", where=some(without), count=len(without), lost=True,
                      what=f"{len(without)} clips of labelled splits have no label",
                      hint="nothing is learnt from them; get their annotation")
    if minus:
        yield Finding(kind="all-minus-one", where=some(minus), count=len(minus), lost=False,
                      what=f"{len(minus)} annotations are -1 in every frame", hint="nothing is learnt from these clips")


def _pictures(trials: Sequence[Trial], facts: Mapping[str, Facts]) -> Iterator[Finding]:
    """Yield folders that cannot be read, empty files among pictures, and pictures that do not decode."""
    own = {trial.name: facts[str(trial.path)] for trial in trials if trial.kind == "crops"}
    for name, known in own.items():
        if known.problem:
            yield Finding(kind="unreadable", where=name, what=known.problem, hint="its clip is lost until it is mended",
                          count=1, lost=True)
    empty = {name: known.empty for name, known in own.items() if known.empty}
    if empty:
        yield Finding(kind="empty-pictures", where=some(f"{name} ({many})" for name, many in empty.items()),
                      what=f"{sum(empty.values()):,} pictures of no bytes in {len(empty)} folders",
                      hint="copy them again; their rows have no face meanwhile", count=sum(empty.values()), lost=True)
    damaged = [f"{name}/{one}" for name, known in own.items() for one in known.damaged]
    if damaged:
        yield Finding(kind="unreadable", where=some(damaged), count=len(damaged), lost=True,
                      what=f"{len(damaged)} first or last pictures of a folder do not decode",
                      hint="copy the folders again (the pictures between were not looked at)")


def _videos(trials: Sequence[Trial], facts: Mapping[str, Facts]) -> Iterator[Finding]:
    """Yield videos that do not open."""
    for trial in trials:
        known = facts[str(trial.path)]
        if trial.kind == "video" and known.problem:
            yield Finding(kind="unreadable", where=trial.name, what=known.problem, hint=f"see {trial.path}", count=1,
                          lost=True)
    beside = sorted({str(trial.video) for trial in trials if trial.video and facts[str(trial.video)].problem})
    if beside:
        yield Finding(kind="unreadable-video", where=some(beside), count=len(beside), lost=False,
                      what=f"{len(beside)} videos beside the crops do not open", hint="their frames are not counted")


def _twins(groups: Sequence[Sequence[Trial]]) -> Iterator[Finding]:
    """Yield clips of one content; across groups or splits they are on both sides of a fold."""
    for group in groups:
        apart = len({trial.group for trial in group}) > 1 or len({trial.split for trial in group}) > 1
        yield Finding(kind="twins", where=", ".join(f"{trial.name} ({trial.split})" for trial in group),
                      what="the same content under several names" + (", in several groups or splits" if apart else ""),
                      hint="keep one of them, or give them one group", count=len(group), lost=apart)


def _leaks(trials: Sequence[Trial]) -> Iterator[Finding]:
    """Yield groups that stand in several labelled splits."""
    splits: dict[str, set[str]] = defaultdict(set)
    for trial in trials:
        if trial.labelled:
            splits[trial.group].add(trial.split)
    both = sorted(group for group, held in splits.items() if len(held) > 1)
    if both:
        yield Finding(kind="leak", where=some(both), what=f"{len(both)} groups stand in several splits",
                      hint="what is learnt of them is scored on them; check group and split", count=len(both),
                      lost=True)


def _classes(dataset: Dataset, clocks: Sequence[FrameClock]) -> Iterator[Finding]:
    """Yield classes that the training split does not show."""
    seen = {int(code) for clock in clocks if clock.trial.split == "train" for code in set(clock.labelled().tolist())}
    seen |= {clock.trial.clip_label for clock in clocks if clock.trial.split == "train"}
    absent = [name for code, name in enumerate(dataset.classes) if code not in seen]
    if absent and any(clock.trial.split == "train" for clock in clocks):
        yield Finding(kind="no-class", where=some(absent, 12), what=f"{len(absent)} classes are never seen in training",
                      hint="they cannot be learnt; a mean over all classes counts them as 0", count=len(absent),
                      lost=False)


def _beyond(clocks: Sequence[FrameClock]) -> Iterator[Finding]:
    """Yield labels that lie past everything that can be seen."""
    past = {clock.trial.name: clock.lines - clock.stored for clock in clocks
            if clock.stored and clock.lines > clock.stored}
    if past:
        yield Finding(kind="labels-past-the-clip", what=f"{len(past)} annotations are longer than their clip, by "
                      f"{sum(past.values()):,} frames in all", count=len(past), lost=False,
                      where=some(f"{name} (+{more})" for name, more in sorted(past.items(), key=lambda p: (-p[1], p))),
                      hint="these frames keep their row, without a face")


def _odd(trials: Sequence[Trial], facts: Mapping[str, Facts]) -> Iterator[Finding]:
    """Yield files in folders of crops that are no numbered picture."""
    odd = {trial.name: facts[str(trial.path)].other for trial in trials
           if trial.kind == "crops" and facts[str(trial.path)].other}
    if odd:
        yield Finding(kind="other-files", where=some(f"{name} ({many})" for name, many in odd.items()), lost=False,
                      what=f"{sum(odd.values()):,} files in {len(odd)} folders are no numbered picture",
                      hint="they are ignored", count=sum(odd.values()))
