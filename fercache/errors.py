"""The errors that users see: what is wrong, where, and what to do next."""

from __future__ import annotations

from collections.abc import Iterable


class FercacheError(Exception):
    """`what` is wrong (one sentence without a full stop), `where` (file, clip or key), and a `hint` what to do next."""

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
    """One clip cannot be read or processed; it is recorded, and the run goes on with the others."""


class WeightsError(FercacheError):
    """Weights are missing, altered, or those of another net; no partial file remains."""

    exit_code = 2


class StoreError(FercacheError):
    """A store cannot be opened, is damaged, or has other settings."""

    exit_code = 2


class NotInStore(StoreError, KeyError):
    """The store has no committed clip (or tap) of that name."""


class BrokenOff(FercacheError):
    """The run ended early, for example since one of its processes was killed; the same command resumes it."""

    exit_code = 3


class MissingExtra(FercacheError, ImportError):
    """An optional dependency is not installed."""

    exit_code = 2


def first_line(error: Exception) -> str:
    """Return the first line of another library's message, which may be followed by its own stack."""
    return str(error).strip().partition("\n")[0]


def shorten_list(names: Iterable[object], most: int = 5) -> str:
    """Return up to `most` names as text, and how many more there are."""
    texts = [str(name) for name in names]
    more = f" and {len(texts) - most:,} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more
