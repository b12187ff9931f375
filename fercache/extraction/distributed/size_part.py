"""How much work a clip is, as far as that is cheap to know, and clips in order of it."""

from __future__ import annotations

import os
from collections.abc import Sequence

from fercache.data.base import Trial

FRAME_BYTES = 10_000
"""Bytes of a video that count as a frame: only the order of clips hangs on it, never a result."""


def amount(trial: Trial) -> int:
    """Return about how many frames a clip has: what its list states, its labels, its pictures, or its bytes.

    Notes
    -----
    Opens nothing, and is the same on each machine that sees the same files and lists.
    """
    if trial.stated:
        return trial.stated
    if trial.labels is not None and len(trial.labels):
        return len(trial.labels)
    try:
        if trial.kind == "crops":
            with os.scandir(trial.path) as entries:
                return sum(1 for _ in entries)
        return 1 + trial.path.stat().st_size // FRAME_BYTES
    except OSError:  # it is told when its turn comes
        return 0


def bundles(trials: Sequence[Trial]) -> list[tuple[int, list[Trial]]]:
    """Return (amount, trials) for each source, the largest first: the people of one video stay together."""
    found: dict[str, list[Trial]] = {}
    for trial in trials:
        found.setdefault(str(trial.path), []).append(trial)
    sized = [(sum(amount(trial) for trial in together), together) for together in found.values()]
    return sorted(sized, key=lambda bundle: (-bundle[0], min(trial.name for trial in bundle[1])))


def largest_first(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials, those of large sources first: what is long must not begin last."""
    return [trial for _, together in bundles(trials) for trial in together]
