"""What a journal says of a clip on its way."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

DETECTION_COLUMNS = 6


@dataclass(frozen=True)
class Run:
    """Rows `start` to `stop` of some arrays, and the sha256 of each of their chunks."""

    start: int
    stop: int
    chunks: dict[str, list[str]]


@dataclass
class Past:
    """The sum of a journal's records.

    Attributes
    ----------
    detected, detections : rows that were looked at, and what was found, ``(n, 6)`` each.
    clock : the run that is the clock, where it was set.
    segments : runs of features, one after the other.
    """

    detected: int = 0
    detections: list[NDArray[np.float64]] = field(default_factory=list)
    clock: Run | None = None
    segments: list[Run] = field(default_factory=list)


def detection_record(stop: int, rows: NDArray[np.float64]) -> dict[str, Any]:
    """Return the record of detections up to row `stop`."""
    return {"detected": stop, "rows": base64.b64encode(rows.astype("<f8").tobytes()).decode()}


def run_record(kind: str, run: Run) -> dict[str, Any]:
    """Return the record of a clock or of a segment."""
    return {kind: [run.start, run.stop], "chunks": run.chunks}


def read_past(records: Iterable[dict[str, Any]], taps: Sequence[str], clock: str) -> Past | None:
    """Return the sum of the records after the first; None where they are not what a writer of `taps` writes."""
    past = Past()
    try:
        for record in records:
            _add(past, record, taps, clock)
    except (KeyError, TypeError, ValueError):
        return None
    return past


def _add(past: Past, record: dict[str, Any], taps: Sequence[str], clock: str) -> None:
    if "detected" in record:
        rows = np.frombuffer(base64.b64decode(record["rows"]), "<f8").reshape(-1, DETECTION_COLUMNS)
        past.detections.append(rows.astype(np.float64))
        past.detected = int(record["detected"])
    elif "clock" in record:
        past.clock = _run(record["clock"], {clock: record["chunks"][clock]})
    else:
        run = _run(record["segment"], {tap: record["chunks"][tap] for tap in taps})
        # a segment written again makes those after it void
        past.segments = [held for held in past.segments if held.start < run.start]
        past.segments.append(run)


def _run(span: list[int], chunks: dict[str, list[str]]) -> Run:
    start, stop = (int(row) for row in span)
    if not 0 <= start < stop:
        raise ValueError(span)
    return Run(start, stop, {name: [str(digest) for digest in digests] for name, digests in chunks.items()})
