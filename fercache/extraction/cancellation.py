"""How long a run may last, as people and Slurm write it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from fercache.errors import InputError

# How a run is asked to end early: at the next block or segment, with nothing lost.

class Cancelled(Exception):
    """The run was asked to end; what is durable of the clip waits for the next run."""


def never_cancelled() -> bool:
    """Return that nobody asks."""
    return False


class CancelToken:
    """Asked at each point where work can be left without loss.

    Parameters
    ----------
    stop : whether the run is to end now; asked often, so it must be quick, and by several threads.
    """

    def __init__(self, stop: Callable[[], bool] = never_cancelled) -> None:
        self._callback = stop
        self._cancelled = False

    def cancel(self) -> None:
        """Ask for the end from within, as after an interrupt."""
        self._cancelled = True

    @property
    def is_cancelled(self) -> bool:
        """Whether the end was asked for; once it was, it stays so."""
        self._cancelled = self._cancelled or self._callback()
        return self._cancelled

    def check(self) -> None:
        """Raise Stopped if the end was asked for."""
        if self.is_cancelled:
            raise Cancelled


UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
HINT = "seconds (5400), 90m, 1h30m, or as Slurm has it: minutes:seconds, hours:minutes:seconds, days-hours:minutes"

_SLURM = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


def parse_time_limit(text: str) -> float:
    """Return the seconds that `text` means.

    Raises
    ------
    InputError
        It is no length of time, or none at all.

    Notes
    -----
    Colons mean what they mean to Slurm: ``10:30`` is ten and a half minutes, ``1-12`` a day and a half. A bare number
    is seconds, as for `timeout` (Slurm would take minutes).
    """
    found = _units(text.strip().lower())
    if found is None:
        found = _clock(text.strip())
    if not found:
        raise InputError(f"{text!r} is no length of time", where="--time-limit", hint=HINT)
    return found


def over(ends_s: float) -> bool:
    """Return whether that moment, in seconds since 1970, has come."""
    return time.time() >= ends_s


def _units(text: str) -> float | None:
    """Return the seconds of ``1h30m`` or of a bare number; None where it is neither."""
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    if not re.fullmatch(r"(\d+(\.\d+)?[dhms])+", text):
        return None
    return sum(float(number) * UNITS[unit] for number, _, unit in re.findall(r"(\d+(\.\d+)?)([dhms])", text))


def _clock(text: str) -> float | None:
    """Return the seconds of Slurm's ``[days-]hours:minutes:seconds`` and its short forms; None where it is none."""
    found = _SLURM.fullmatch(text)
    if found is None:
        return None
    days, parts = found[1], [int(part) for part in found.groups()[1:] if part is not None]
    if days is None and len(parts) == 2:  # minutes:seconds
        parts = [0, *parts]
    hours, minutes, rest = (*parts, 0, 0)[:3]
    return int(days or 0) * 86400.0 + hours * 3600 + minutes * 60 + rest
