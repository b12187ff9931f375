"""What a user should look at before extraction: what loses data or spoils a score, and what is good to know."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fercache.data.base import Dataset, Trial, grouped, some
from fercache.data.frame_table import FrameClock
from fercache.diagnostics import twins_part
from fercache.diagnostics.index_part import Facts
from fercache.diagnostics.lengths_part import Comparison


@dataclass(frozen=True, kw_only=True)
class Finding:
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
            return some(self.names)
        ordered = sorted(zip(self.names, self.amounts, strict=True), key=lambda pair: (-pair[1], pair[0]))
        return some(f"{name} ({amount:,})" for name, amount in ordered)


def all_of(dataset: Dataset, clocks: Sequence[FrameClock], facts: Mapping[str, Facts],
           compared: Sequence[Comparison]) -> Iterator[Finding]:
    """Yield everything, what loses data first."""
    found = [*_read(dataset), *_unlabelled(dataset), *_pictures(dataset.trials, facts), *_videos(dataset.trials, facts),
             *_twins(twins_part.find(dataset.trials, facts)), *_leaks(dataset.trials), *_classes(dataset, clocks),
             *_beyond(clocks), *_odd(dataset.trials, facts)]
    yield from sorted(found, key=lambda one: not one.lost)


def _counted(kind: str, amounts: Mapping[str, int], what: str, hint: str, lost: bool = False) -> Iterator[Finding]:
    """Yield a finding with its amounts, nothing where there are none."""
    if amounts:
        yield Finding(kind=kind, names=tuple(amounts), amounts=tuple(amounts.values()), what=what, hint=hint, lost=lost)


def _read(dataset: Dataset) -> Iterator[Finding]:
    """Yield what the reader of the set found."""
    for problem, names in grouped(dataset.problems):
        yield Finding(kind=problem.kind or "reader", names=names, what=problem.what, hint=problem.hint,
                      lost=problem.lost)


def _unlabelled(dataset: Dataset) -> Iterator[Finding]:
    """Yield the clips of the labelled splits that have no label at all, and those annotated as -1 throughout."""
    bare = [trial for trial in dataset.trials if trial.split != "test" and not trial.labelled]
    without = tuple(trial.name for trial in bare if trial.labels is None)
    minus = tuple(trial.name for trial in bare if trial.labels is not None)
    if without:
        yield Finding(kind="no-label", names=without, what=f"{len(without)} clips of labelled splits have no label",
                      hint="nothing is learnt from them; get their annotation", lost=True)
    if minus:
        yield Finding(kind="all-minus-one", names=minus, what=f"{len(minus)} annotations are -1 in every frame",
                      hint="nothing is learnt from these clips", lost=False)


def _pictures(trials: Sequence[Trial], facts: Mapping[str, Facts]) -> Iterator[Finding]:
    """Yield folders that cannot be read, empty files among pictures, and pictures that do not decode."""
    own = {trial.name: facts[str(trial.path)] for trial in trials if trial.kind == "crops"}
    for name, known in own.items():
        if known.problem:
            yield Finding(kind="unreadable", names=(name,), what=known.problem, lost=True,
                          hint="its clip is lost until it is mended")
    empty = {name: known.empty for name, known in own.items() if known.empty}
    yield from _counted("empty-pictures", empty, f"{sum(empty.values()):,} pictures of no bytes in {len(empty)} "
                        "folders", "copy them again; their rows have no face meanwhile", lost=True)
    damaged = tuple(f"{name}/{one}" for name, known in own.items() for one in known.damaged)
    if damaged:
        yield Finding(kind="unreadable", names=damaged, lost=True,
                      what=f"{len(damaged)} first or last pictures of a folder do not decode",
                      hint="copy the folders again (the pictures between were not looked at)")


def _videos(trials: Sequence[Trial], facts: Mapping[str, Facts]) -> Iterator[Finding]:
    """Yield videos that do not open."""
    for trial in trials:
        known = facts[str(trial.path)]
        if trial.kind == "video" and known.problem:
            yield Finding(kind="unreadable", names=(trial.name,), what=known.problem, hint=f"see {trial.path}",
                          lost=True)
    beside = tuple(sorted({str(trial.video) for trial in trials if trial.video and facts[str(trial.video)].problem}))
    if beside:
        yield Finding(kind="unreadable-video", names=beside, hint="their frames are not counted", lost=False,
                      what=f"{len(beside)} videos beside the crops do not open")


def _twins(groups: Sequence[Sequence[Trial]]) -> Iterator[Finding]:
    """Yield clips of one content; across groups or splits they are on both sides of a fold."""
    for group in groups:
        apart = len({trial.group for trial in group}) > 1 or len({trial.split for trial in group}) > 1
        yield Finding(kind="twins", names=tuple(f"{trial.name} ({trial.split})" for trial in group), lost=apart,
                      what="the same content under several names" + (", in several groups or splits" if apart else ""),
                      hint="keep one of them, or give them one group")


def _leaks(trials: Sequence[Trial]) -> Iterator[Finding]:
    """Yield groups that stand in several labelled splits."""
    splits: dict[str, set[str]] = defaultdict(set)
    for trial in trials:
        if trial.labelled:
            splits[trial.group].add(trial.split)
    both = tuple(sorted(group for group, held in splits.items() if len(held) > 1))
    if both:
        yield Finding(kind="leak", names=both, what=f"{len(both)} groups stand in several splits", lost=True,
                      hint="what is learnt of them is scored on them; check group and split")


def _classes(dataset: Dataset, clocks: Sequence[FrameClock]) -> Iterator[Finding]:
    """Yield classes that the training split does not show."""
    training = [clock for clock in clocks if clock.trial.split == "train"]
    seen = {code for clock in training for code in (*set(clock.labelled().tolist()), clock.trial.clip_label)}
    absent = tuple(name for code, name in enumerate(dataset.classes) if code not in seen)
    if absent and training:
        yield Finding(kind="no-class", names=absent, what=f"{len(absent)} classes are never seen in training",
                      hint="they cannot be learnt; a mean over all classes counts them as 0", lost=False)


def _beyond(clocks: Sequence[FrameClock]) -> Iterator[Finding]:
    """Yield labels that lie past everything that can be seen."""
    past = {clock.trial.name: clock.lines - clock.stored for clock in clocks
            if clock.stored and clock.lines > clock.stored}
    yield from _counted("labels-past-the-clip", past, f"{len(past)} annotations are longer than their clip, by "
                        f"{sum(past.values()):,} frames in all", "these frames keep their row, without a face")


def _odd(trials: Sequence[Trial], facts: Mapping[str, Facts]) -> Iterator[Finding]:
    """Yield files in folders of crops that are no numbered picture."""
    odd = {trial.name: facts[str(trial.path)].other for trial in trials
           if trial.kind == "crops" and facts[str(trial.path)].other}
    yield from _counted("other-files", odd, f"{sum(odd.values()):,} files in {len(odd)} folders are no numbered "
                        "picture", "they are ignored")
