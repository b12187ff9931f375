"""Every frame of every trial, one row each, in RAM or mapped from a local file."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fercache.backbones.taps_part import TapSlice


def _no_views() -> NDArray[np.float16]:
    return np.zeros((0, 0, 0), np.float16)


@dataclass(frozen=True, kw_only=True)
class Features:
    """Every frame of every trial.

    Attributes
    ----------
    layout : what the D values of a row are.
    x : (R, D) float16, zeros where no face was seen.
    offsets : (N + 1,) int64; the rows of trial i are ``offsets[i]:offsets[i + 1]``.
    index : (R,) int32, frames from 1; time_s : (R,) float64; valid : (R,) bool; label : (R,) int16, -1 unknown.
    views : (V - 1, R, D) float16, the same frames' other views (mirrored and so on); none by default.
    """

    layout: tuple[TapSlice, ...]
    x: NDArray[np.float16]
    offsets: NDArray[np.int64]
    index: NDArray[np.int32]
    time_s: NDArray[np.float64]
    valid: NDArray[np.bool_]
    label: NDArray[np.int16]
    views: NDArray[np.float16] = field(default_factory=_no_views)

    def rows(self, trial: int) -> NDArray[np.int64]:
        """Return the rows of the trial of that position, ``(T,)``."""
        return np.arange(self.offsets[trial], self.offsets[trial + 1])

    def trial_of_row(self) -> NDArray[np.int64]:
        """Return the position of each row's trial, ``(R,)``."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def counts(self, classes: int) -> NDArray[np.int64]:
        """Return the labelled frames of each class in each trial, ``(N, C)``."""
        made = np.zeros((len(self.offsets) - 1, classes), np.int64)
        known = self.label >= 0
        np.add.at(made, (self.trial_of_row()[known], self.label[known]), 1)
        return made

    def frame_s(self) -> float:
        """Return the usual time between two frames, in seconds."""
        steps = np.diff(self.time_s)
        return float(np.median(steps[steps > 0])) if (steps > 0).any() else 1 / 30
