"""What one check of the audit found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

FINE, LOOK, FAILED, SKIPPED = "ok", "look", "FAIL", "skipped"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One check: its state, what was looked at in one sentence, and every single thing found.

    Attributes
    ----------
    state : ok; look (no proof of a leak, but a person should look); FAIL (a leak); skipped.
    """

    check: str
    state: str
    said: str
    lines: tuple[str, ...] = ()

    def json(self) -> dict[str, Any]:
        """Return it as a JSON value."""
        return {**asdict(self), "lines": list(self.lines)}
