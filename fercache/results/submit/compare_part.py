"""Wanted rows against predicted rows: what is missing, what is too many, and what fills the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fercache.data import labels
from fercache.errors import InputError
from fercache.results import io, missing_faces

SHOWN = 10
"""Differences that are listed by name; the rest is counted."""

Frames = NDArray[np.int64]
Forgiven = Literal["nothing", "ends", "all"]
"""Which differences of rows are filled or left out, and told, instead of refused: those past an end, or all."""


def bounded(names: Sequence[str]) -> str:
    """Return the first names as text, and how many more there are."""
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


@dataclass
class Names:
    """Names of which the first few are kept and all are counted."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, trial: str, frames: Frames) -> None:
        """Count frames of a trial."""
        self.count += len(frames)
        self.first += [f"{trial}/{frame:05d}" for frame in frames[:max(SHOWN - len(self.first), 0)].tolist()]

    def __str__(self) -> str:
        more = f" and {self.count - len(self.first):,} more" if self.count > len(self.first) else ""
        return ", ".join(self.first) + more


@dataclass
class Difference:
    """How wanted rows and predictions differ, over all trials.

    Attributes
    ----------
    missing : wanted, and not predicted; extra : predicted, and not wanted.
    absent : wanted trials without any prediction.
    told : a line for each trial whose rows differ.
    """

    missing: Names = field(default_factory=Names)
    extra: Names = field(default_factory=Names)
    absent: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def note(self, trial: str, ours: Frames, wanted: Frames, forgiven: Forgiven) -> None:
        """Compare one trial's frames; what is forgiven is told and no longer counted."""
        missing, extra = np.setdiff1d(wanted, ours), np.setdiff1d(ours, wanted)
        if len(missing) or len(extra):
            self.told.append(f"{trial}: {len(wanted):,} frames wanted, {len(ours):,} predicted: {len(missing):,} "
                             f"filled, {len(extra):,} left out")
        if forgiven != "all":
            past = forgiven == "ends"
            self.missing.add(trial, missing[missing < ours[-1]] if past else missing)
            self.extra.add(trial, extra[extra < wanted[-1]] if past else extra)

    def check(self, source: str, hint: str) -> None:
        """Refuse a difference.

        Raises
        ------
        InputError
            Rows or trials are missing or too many; lists the first of them.
        """
        parts = []
        if self.absent:
            parts.append(f"no prediction at all for {len(self.absent):,} trials: {bounded(self.absent)}")
        if self.missing.count:
            parts.append(f"{self.missing.count:,} rows are missing in the predictions: {self.missing}")
        if self.extra.count:
            parts.append(f"{self.extra.count:,} predictions are too many: {self.extra}")
        if parts:
            raise InputError("predictions do not match it row for row\n  " + "\n  ".join(parts), where=source,
                             hint=hint)


@dataclass(frozen=True)
class Translator:
    """The predictions of a file in the classes that are wanted."""

    names: labels.LabelMap

    def shares(self, clip: io.Clip) -> NDArray[np.float64]:
        """Return probabilities of the wanted classes, ``(T, C)``."""
        return self.names.shares(clip.shares)

    def said(self, clip: io.Clip) -> NDArray[np.int64]:
        """Return the predicted class, ``(T,)``: as the file says where each class has a counterpart."""
        return self.shares(clip).argmax(1) if self.names.lost else self.names.labels(clip.said)

    def at(self, clip: io.Clip, wanted: Frames, policy: str) -> NDArray[np.int64]:
        """Return the class of each wanted frame, ``(n,)``; frames that are not predicted are filled by `policy`.

        Notes
        -----
        Between frames and past the end the clock is the frame number.
        """
        said = self.said(clip)
        if np.array_equal(clip.frame, wanted):
            return said
        frames = np.union1d(clip.frame, wanted)
        own = np.isin(frames, clip.frame)
        shares = np.zeros((len(frames), len(self.names.target)))
        shares[own] = self.shares(clip)
        found = missing_faces.fill(shares, frames.astype(float), own, policy).argmax(1)
        found[own] = said
        return np.asarray(found[np.searchsorted(frames, wanted)])
