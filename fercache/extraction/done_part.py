"""What a run of stage one did, clip by clip, and the list of what failed."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fercache.runtime import atomic_io
from fercache.runtime.uri import Place


@dataclass(frozen=True, kw_only=True)
class ClipDone:
    """What became of one clip: `state` is computed, cached (also by another process meanwhile), failed, or left.

    A clip is left where the run was asked to end; the next run goes on with it.
    """

    clip: str
    state: str
    frames: int = 0
    faces: int = 0
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class ExtractReport:
    """What a run of stage one did."""

    store: Place
    failures_at: Path
    fingerprint: str
    clips: tuple[ClipDone, ...]
    seconds: float

    def count(self, state: str) -> int:
        """Return how many clips ended in `state`."""
        return sum(c.state == state for c in self.clips)

    def frames(self, state: str) -> int:
        """Return how many frames the clips have that ended in `state`; of clips that were left, as their files say."""
        return sum(c.frames for c in self.clips if c.state == state)

    def failures(self) -> list[ClipDone]:
        """Return the clips that failed."""
        return [c for c in self.clips if c.state == "failed"]


def write_failures(path: Path, failed: Sequence[ClipDone]) -> None:
    """Write `failures.csv` (clip, what happened), or remove an old one where nothing failed."""
    if not failed:
        path.unlink(missing_ok=True)
        return
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["clip", "message"])
    rows.writerows((c.clip, c.message) for c in failed)
    atomic_io.write_bytes(path, text.getvalue().encode("utf-8", "backslashreplace"))
