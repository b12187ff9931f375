"""How a run is cancelled, and how long it may last."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from fercache.errors import InputError


class Cancelled(Exception):
    """The run was cancelled; the next run continues from the durable part of the clip."""


def never_cancelled() -> bool:
    """Return False: the run is not cancelled from outside."""
    return False


class CancelToken:
    """Checked at each point where work can stop without loss: the next block or segment.

    Parameters
    ----------
    stop : returns whether the run should end now. Several threads call it often, so it must be quick.
    """

    def __init__(self, stop: Callable[[], bool] = never_cancelled) -> None:
        self._callback = stop
        self._cancelled = False

    def cancel(self) -> None:
        """Cancel, for instance after an interrupt."""
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
HINT = "use seconds (5400), 90m, 1h30m, or as in Slurm: minutes:seconds, hours:minutes:seconds, days-hours:minutes"
SLURM = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


def parse_time_limit(text: str) -> float:
    """Return the seconds of a length of time.

    Raises
    ------
    InputError
        `text` is not a length of time, or it is zero.

    Notes
    -----
    Colons are read as in Slurm: ``10:30`` is ten and a half minutes, ``1-12`` a day and a half. A number alone is
    seconds, as for `timeout` (in Slurm it would be minutes).
    """
    text = text.strip()
    seconds = 0.0
    if re.fullmatch(r"\d+(\.\d+)?", text):
        seconds = float(text)
    elif re.fullmatch(r"(\d+(\.\d+)?[dhms])+", text.lower()):
        seconds = sum(float(number) * UNITS[unit]
                      for number, _, unit in re.findall(r"(\d+(\.\d+)?)([dhms])", text.lower()))
    elif slurm := SLURM.fullmatch(text):
        days, parts = slurm[1], [int(part) for part in slurm.groups()[1:] if part is not None]
        if days is None and len(parts) == 2:  # minutes:seconds
            parts = [0, *parts]
        hours, minutes, rest = (*parts, 0, 0)[:3]
        seconds = int(days or 0) * UNITS["d"] + hours * 3600 + minutes * 60 + rest
    if not seconds:
        raise InputError(f"{text!r} is not a length of time", where="--time-limit", hint=HINT)
    return seconds


def over(ends_s: float) -> bool:
    """Return whether the time `ends_s`, in seconds since 1970, has passed."""
    return time.time() >= ends_s
