"""How a run is cancelled, and how long it may last."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from fercache.errors import InputError


class Cancelled(Exception):
    """The run was cancelled. What is durable of the clip is kept for the next run."""


def never_cancelled() -> bool:
    """Return False: the run is not cancelled from outside."""
    return False


class CancelToken:
    """Checked at each point where work can stop without loss: the next block or segment.

    Parameters
    ----------
    stop : returns whether the run should end now. It is called often and by several threads, so it must be quick.
    """

    def __init__(self, stop: Callable[[], bool] = never_cancelled) -> None:
        self._callback = stop
        self._cancelled = False

    def cancel(self) -> None:
        """Cancel from within, as after an interrupt."""
        self._cancelled = True

    @property
    def is_cancelled(self) -> bool:
        """Whether the run is cancelled; once True it stays True."""
        self._cancelled = self._cancelled or self._callback()
        return self._cancelled

    def check(self) -> None:
        """Raise Cancelled if the run is cancelled."""
        if self.is_cancelled:
            raise Cancelled


UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
HINT = "seconds (5400), 90m, 1h30m, or as in Slurm: minutes:seconds, hours:minutes:seconds, days-hours:minutes"

_SLURM = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


def parse_time_limit(text: str) -> float:
    """Return the seconds that `text` stands for.

    Raises
    ------
    InputError
        It is not a length of time, or it is zero.

    Notes
    -----
    Colons are read as Slurm reads them: ``10:30`` is ten and a half minutes, ``1-12`` a day and a half. A bare number
    is seconds, as for `timeout` (Slurm would take minutes).
    """
    found = _units(text.strip().lower())
    if found is None:
        found = _clock(text.strip())
    if not found:
        raise InputError(f"{text!r} is not a length of time", where="--time-limit", hint=HINT)
    return found


def over(ends_s: float) -> bool:
    """Return whether the time `ends_s`, in seconds since 1970, has passed."""
    return time.time() >= ends_s


def _units(text: str) -> float | None:
    """Return the seconds of ``1h30m`` or of a bare number; None for anything else."""
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    if not re.fullmatch(r"(\d+(\.\d+)?[dhms])+", text):
        return None
    return sum(float(number) * UNITS[unit] for number, _, unit in re.findall(r"(\d+(\.\d+)?)([dhms])", text))


def _clock(text: str) -> float | None:
    """Return the seconds of Slurm's ``[days-]hours:minutes:seconds`` and its short forms; None for anything else."""
    found = _SLURM.fullmatch(text)
    if found is None:
        return None
    days, parts = found[1], [int(part) for part in found.groups()[1:] if part is not None]
    if days is None and len(parts) == 2:  # minutes:seconds
        parts = [0, *parts]
    hours, minutes, rest = (*parts, 0, 0)[:3]
    return int(days or 0) * 86400.0 + hours * 3600 + minutes * 60 + rest
