"""The frame table of a trial: crops, video frames and annotation lines are matched by their number.

The rule, for every set: **there is one row for each number up to the highest of the three.** Crop ``00007.jpg``, the
seventh frame of the video and the seventh label are one row, whatever else is missing. A number without a crop is a row
without a face; a label past the last crop keeps its row; a crop past the last label has no label. Rows are never
shifted, cut off or stretched to make lengths agree; disagreements are counted and reported.

Stage one stores the rows up to the highest crop (or the frames of the video), stage two adds those that only the
annotation has. `check` counts the rows that only the header of a video beside the crops claims; they have neither
picture nor label, and matter only to a submission, whose template fixes the number of rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fercache.data.base import Trial

IndexRanges = NDArray[np.int64]
"""(R, 2) first and last number of each unbroken run, ascending."""


def ranges_of(numbers: NDArray[np.int64]) -> IndexRanges:
    """Return the unbroken runs of frame numbers, (R, 2); `numbers` may be unsorted and repeated."""
    ordered = np.unique(numbers)
    if not len(ordered):
        return np.empty((0, 2), np.int64)
    # Most clips are one run or a few, which is much less than their numbers (Aff-Wild2 has 2.9 million crops).
    breaks = np.flatnonzero(np.diff(ordered) > 1)
    return np.column_stack([ordered[np.r_[0, breaks + 1]], ordered[np.r_[breaks, len(ordered) - 1]]])


def count(runs: IndexRanges) -> int:
    """Return how many numbers are in the runs."""
    return int((runs[:, 1] - runs[:, 0] + 1).sum())


def present_frames(runs: IndexRanges, rows: int) -> NDArray[np.bool_]:
    """Return (rows,) bool: whether number i + 1 is in the runs."""
    steps = np.zeros(rows + 1, np.int64)  # +1 where a run begins, -1 after its end; the sum is 1 inside of runs
    inside = runs[runs[:, 0] <= rows]
    np.add.at(steps, inside[:, 0] - 1, 1)
    np.add.at(steps, np.minimum(inside[:, 1], rows), -1)
    return np.cumsum(steps)[:rows] > 0


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameTable:
    """The rows of one trial."""

    trial: Trial
    crops: IndexRanges | None  # numbers of its pictures, None if the trial is a video
    lines: int  # number of labels by frame in its annotation, 0 for none
    video: int  # number of frames in its video's header, 0 without a video or without that number

    @property
    def highest(self) -> int:
        """The highest number of a crop, 0 without crops."""
        return int(self.crops[-1, 1]) if self.crops is not None and len(self.crops) else 0

    @property
    def pictures(self) -> int:
        """How many frames have a picture: crops, or the frames in the video's header."""
        return self.video if self.crops is None else count(self.crops)

    @property
    def rows(self) -> int:
        """How many rows there are, by the rule above."""
        return max(self.highest, self.lines, self.video)

    @property
    def stored(self) -> int:
        """Rows that stage one stores: up to the highest crop, or the frames of the video."""
        return self.video if self.crops is None else self.highest

    def without_crop(self) -> tuple[int, int]:
        """Return the number of rows without a crop, and how many of these are labelled; (0, 0) for a video."""
        if self.crops is None:
            return 0, 0
        bare = ~present_frames(self.crops, self.rows)
        return int(bare.sum()), int((bare & (self.trial.frame_labels(self.rows) >= 0)).sum())

    def labelled(self) -> NDArray[np.int64]:
        """Return the class of each labelled row."""
        labels = self.trial.frame_labels(self.rows)
        return labels[labels >= 0].astype(np.int64)
