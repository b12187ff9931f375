"""How long a run may last, as people and Slurm write it."""

from __future__ import annotations

import re
import time

from fercache.errors import InputError

UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
HINT = "seconds (5400), 90m, 1h30m, or as Slurm has it: minutes:seconds, hours:minutes:seconds, days-hours:minutes"

_SLURM = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


def seconds(text: str) -> float:
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
