"""Whose lengths disagree, and by how much: crops, video frames and annotation lines, two at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fercache.data.frame_table import FrameClock

Pair = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One trial whose two lengths differ: what should be there, and what is."""

    trial: str
    expected: int
    there: int

    @property
    def missing(self) -> int:
        """How many are missing; negative where there are too many."""
        return self.expected - self.there


@dataclass(frozen=True, kw_only=True)
class Comparison:
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
    differences: tuple[Difference, ...]


def compare(name: str, clocks: Sequence[FrameClock], pair: Callable[[FrameClock], Pair | None]) -> Comparison | None:
    """Return how two lengths, (there, expected), agree over the trials; None where no trial has both."""
    both = [(clock.trial.name, *lengths) for clock in clocks if (lengths := pair(clock)) is not None]
    if not both:
        return None
    found = [Difference(trial=trial, expected=expected, there=there) for trial, there, expected in both]
    short = [one.missing for one in found if one.missing > 0]
    over = [-one.missing for one in found if one.missing < 0]
    return Comparison(name=name, trials=len(found), equal=len(found) - len(short) - len(over), more=len(over),
                      fewer=len(short), missing=sum(short), extra=sum(over),
                      differences=tuple(sorted((one for one in found if one.missing),
                                               key=lambda one: (-abs(one.missing), one.trial))))


def crops_video(clock: FrameClock) -> Pair | None:
    """Return crops there and frames that the video states."""
    return (clock.pictures, clock.video) if clock.crops is not None and clock.video else None


def crops_lines(clock: FrameClock) -> Pair | None:
    """Return crops there and annotation lines."""
    return (clock.pictures, clock.lines) if clock.crops is not None and clock.lines else None


def lines_video(clock: FrameClock) -> Pair | None:
    """Return annotation lines and frames that the video states."""
    return (clock.lines, clock.video) if clock.lines and clock.video else None


def there_stated(clock: FrameClock) -> Pair | None:
    """Return frames there and frames that the set's list states."""
    return (clock.pictures, clock.trial.stated) if clock.trial.stated and clock.pictures else None


PAIRS: dict[str, Callable[[FrameClock], Pair | None]] = {
    "crops against video frames": crops_video, "crops against annotation lines": crops_lines,
    "annotation lines against video frames": lines_video, "frames against the list's count": there_stated}


def all_of(clocks: Sequence[FrameClock]) -> tuple[Comparison, ...]:
    """Return every comparison that can be made."""
    made = (compare(name, clocks, pair) for name, pair in PAIRS.items())
    return tuple(one for one in made if one is not None)
