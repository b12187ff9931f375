"""The errors a user can meet: each says what happened, where, and what to do next."""

from __future__ import annotations


class FercacheError(Exception):
    """What went wrong, where, and the next thing to try.

    Parameters
    ----------
    what : one sentence without a full stop.
    where : file, clip or key it happened at.
    hint : what the user can do next.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: object = None, hint: str = "") -> None:
        self.what, self.where, self.hint = what, where, hint
        super().__init__(what)

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where is not None else ""
        return f"{place}{self.what}" + (f"\n  next: {self.hint}" if self.hint else "")


class InputError(FercacheError, ValueError):
    """Wrong usage or input; nothing was done."""

    exit_code = 2


class ClipError(FercacheError):
    """One clip cannot be read or processed; it is recorded and the rest goes on."""


class WeightsError(FercacheError):
    """Weights are missing, altered or not what they say they are; nothing was left behind."""

    exit_code = 2


class StoreError(FercacheError):
    """A store cannot be opened, is damaged, or was made by other settings."""

    exit_code = 2


class NotInStore(StoreError, KeyError):
    """The store holds no committed clip (or tap) of that name."""


class BrokenOff(FercacheError):
    """The run could not go on (a process of it was killed ...); what is committed stays, the same command goes on."""

    exit_code = 3


class MissingExtra(FercacheError, ImportError):
    """An optional dependency is not installed."""

    exit_code = 2
