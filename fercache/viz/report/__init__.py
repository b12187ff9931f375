"""The report: one HTML page about a run, with data health, scores, and every clip over time.

Open this file first; `collect.py` reads the predictions, `sections.py` has the content of the page, `figures.py` draws.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from fercache.extraction import thumbnails
from fercache.extraction.thumbnails import Thumbnails
from fercache.runtime.atomic_io import replacing
from fercache.viz.report import collect, sections
from fercache.viz.report.collect import STEPS, UNKNOWN, ClipSummary, ReportData, RunInfo
from fercache.viz.report.figures import FigureBlock, ReportSection
from fercache.viz.report.sections import TITLES
from fercache.viz.timeline import COLORS

FACE_BUDGET = 6_000_000  # bytes of the page for pictures of faces
MAX_FACES, MIN_FACES = 48, 4  # pictures per clip: the most, and the fewest if there are many clips


def report_html(run: RunInfo, report: ReportData, sections: Sequence[ReportSection]) -> Iterator[str]:
    """Yield the page, piece by piece."""
    faces = _Faces(run, len(report.clips))
    mistakes = [{**asdict(m), "face": faces.nearest(m.clip, (m.start_s + m.end_s) / 2)} for m in report.mistakes]
    clips = [_clip(clip, faces) for clip in report.clips]
    data = {"classes": report.classes, "colors": [COLORS[i % len(COLORS)] for i in range(len(report.classes))],
            "steps": STEPS, "unknown": UNKNOWN, "splits": TITLES, "clips": clips, "mistakes": mistakes,
            "figures": {block.name: json.loads(block.json) for section in sections for block in section.blocks
                        if isinstance(block, FigureBlock)}}
    # StrictUndefined: a name that the template misspells raises instead of leaving a hole in the page.
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True,
                                     undefined=jinja2.StrictUndefined)
    # What stands between backticks becomes a code element.
    environment.filters["code"] = lambda text: Markup("".join(
        f"<code>{escape(part)}</code>" if i % 2 else escape(part) for i, part in enumerate(text.split("`"))))
    yield from environment.from_string(_part("page.html")).generate(
        title=run.metrics.dataset if run.metrics else run.preds.name, run=run, report=report, sections=sections,
        pictures=faces.count, style=Markup(_part("page.css")), script=Markup(_part("page.js")),
        library=Markup(get_plotlyjs()),
        # A clip's name such as "</script>" must not end the script element.
        data=htmlsafe_json_dumps(data, separators=(",", ":"), allow_nan=False))


def _part(name: str) -> str:
    return resources.files("fercache.viz.report").joinpath(name).read_text(encoding="utf-8")


class _Faces:
    """The stored pictures of faces, as many as the budget of the page allows."""

    # About 2,400 bytes a picture: with many clips each gets fewer, so that the last ones have some too.
    def __init__(self, run: RunInfo, clips: int) -> None:
        self.cache, self.store = run.cache, run.store if run.faces_stored else None
        self.bytes_left, self.count = FACE_BUDGET, 0
        self.most = max(MIN_FACES, min(MAX_FACES, FACE_BUDGET // (2400 * max(clips, 1))))

    def of(self, clip: str) -> list[tuple[float, str]]:
        """Return the times and pictures of one clip, evenly spread."""
        stored = self._stored(clip)
        if stored is None:
            return []
        number = min(self.most, len(stored.jpeg))
        indices = [round(i * (len(stored.jpeg) - 1) / max(number - 1, 1)) for i in range(number)]
        return [picture for i in indices if (picture := self._encode(stored, i))]

    def nearest(self, clip: str, time_s: float) -> str:
        """Return the picture nearest in time, empty if the clip has none."""
        stored = self._stored(clip)
        picture = self._encode(stored, int(abs(stored.time_s - time_s).argmin())) if stored is not None else None
        return picture[1] if picture else ""

    def _stored(self, clip: str) -> Thumbnails | None:
        if self.store is None or clip not in self.store:
            return None
        stored = thumbnails.read_thumbnails(self.cache, self.store, clip)
        return stored if stored is not None and stored.jpeg else None

    def _encode(self, stored: Thumbnails, index: int) -> tuple[float, str] | None:
        """Return time and base64 text of a picture; None if the budget is spent."""
        text = base64.b64encode(stored.jpeg[index]).decode()
        if len(text) > self.bytes_left:
            return None
        self.bytes_left, self.count = self.bytes_left - len(text), self.count + 1
        return round(float(stored.time_s[index]), 3), text


def _clip(clip: ClipSummary, faces: _Faces) -> dict[str, Any]:
    drawn = clip.drawn
    timeline = {} if drawn is None else {"points": len(drawn.wrong), "whole": drawn.whole, "packed": drawn.packed(),
                                         "strips": list(drawn.strips), "faces": faces.of(clip.name)}
    return {"name": clip.name, "split": clip.split, "group": clip.group, "frames": clip.frames,
            "seconds": round(clip.seconds, 3), "seen": clip.seen, "labelled": clip.labelled, "wrong": clip.wrong,
            "top_mistake": clip.top_mistake, **timeline}


@dataclass(frozen=True, kw_only=True)
class ReportResult:
    """The contents of a report."""

    bytes: int
    clips: int
    frames: int
    pictures: bool


def make_report(preds: Path, out: Path, cache: Path, *, check: Path | None = None,
                ablation: Path | None = None) -> ReportResult:
    """Write the report to `out`, one HTML file that needs no other file and no network; return its contents.

    Reads one clip at a time: memory holds the drawn points, never all frames. `check`, `ablation`: files of those
    commands; without them the page explains how to get them. Raises InputError if a file is missing or unreadable.
    """
    run = collect.gather_run_info(preds, cache, check, ablation)
    found = collect.collect_report_data(preds, run.oof, run.imported)
    parts = sections.all_sections(run, found)
    # Written piece by piece: the page can have 30 MB.
    with replacing(out) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(report_html(run, found, parts))
    return ReportResult(bytes=out.stat().st_size, clips=len(found.clips), frames=found.frames,
                        pictures=run.faces_stored)
