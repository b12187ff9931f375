"""One page to look at: whether the cache is whole, which head is right where, and why the score is what it is.

Open this file first; `sections.py` holds what the page shows, `figures.py` how it is drawn.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from fercache.extraction import thumbnails
from fercache.extraction.thumbnails import Thumbnails
from fercache.runtime.atomic_io import replacing
from fercache.viz import run_info
from fercache.viz.report import sections
from fercache.viz.report.figures import FigureBlock, ReportSection
from fercache.viz.report.sections import TITLES
from fercache.viz.report.walk import STEPS, UNKNOWN, ClipDrawn, PredictionsWalk, walk_predictions
from fercache.viz.run_info import RunInfo
from fercache.viz.timeline import COLOURS

# The page: one HTML file that holds its style, its script, the plotting library and its data, and asks for nothing.

FACE_BUDGET = 6_000_000
"""Bytes of the page that pictures of faces may take."""
FACES, FACES_LEAST = 48, 4
"""Pictures of a clip at most, and as few as that where there are many clips."""


def report_html(facts: RunInfo, walk: PredictionsWalk, sections: Sequence[ReportSection]) -> Iterator[str]:
    """Yield the page, piece by piece."""
    import jinja2
    from plotly.offline import get_plotlyjs

    faces = _Faces(facts, len(walk.clips))
    mistakes = [{**asdict(m), "face": faces.near(m.clip, (m.start_s + m.end_s) / 2)} for m in walk.mistakes]
    clips = [_clip(clip, faces) for clip in walk.clips]
    data = {"classes": walk.classes, "colours": [COLOURS[i % len(COLOURS)] for i in range(len(walk.classes))],
            "steps": STEPS, "unknown": UNKNOWN, "splits": TITLES, "clips": clips, "mistakes": mistakes,
            "figures": {block.name: json.loads(block.json) for section in sections for block in section.blocks
                        if isinstance(block, FigureBlock)}}
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True,
                                     undefined=jinja2.StrictUndefined)
    environment.filters["code"] = _code
    yield from environment.from_string(_part("page.html")).generate(
        title=facts.metrics.get("dataset") or facts.preds.name, facts=facts, walk=walk, sections=sections,
        pictures=faces.given, style=_safe(_part("page.css")), script=_safe(_part("page.js")),
        library=_safe(get_plotlyjs()), data=_safe(_json(data)))


def _part(name: str) -> str:
    return resources.files("fercache.viz.report").joinpath(name).read_text(encoding="utf-8")


def _safe(text: str) -> Any:
    """Return text that is ours, or was made safe, and goes into the page as it stands."""
    from markupsafe import Markup

    return Markup(text)


def _code(text: str) -> Any:
    """Return text in which what stands between backticks is set as code; all of it is escaped."""
    from markupsafe import escape

    parts = [escape(part) for part in text.split("`")]
    return _safe("".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts)))


def _json(value: Any) -> str:
    """Return JSON that cannot end the script element it stands in, whatever a clip is called."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


class _Faces:
    """The pictures of faces that the page may hold: those that stage one kept, as many as there is room for."""

    def __init__(self, facts: RunInfo, clips: int) -> None:
        self.cache, self.store = facts.cache, facts.store if facts.faces_kept else None
        self.room, self.given = FACE_BUDGET, 0
        self.most = max(FACES_LEAST, min(FACES, FACE_BUDGET // (2400 * max(clips, 1))))

    def of(self, clip: str) -> list[tuple[float, str]]:
        """Return the times and pictures of one clip, evenly spread."""
        held = self._held(clip)
        if held is None or not held.jpeg:
            return []
        number = min(self.most, len(held.jpeg))
        places = [round(i * (len(held.jpeg) - 1) / max(number - 1, 1)) for i in range(number)]
        return [given for place in places if (given := self._give(held, place))]

    def near(self, clip: str, time_s: float) -> str:
        """Return the picture nearest in time, empty where there is none."""
        held = self._held(clip)
        if held is None or not held.jpeg:
            return ""
        given = self._give(held, int(abs(held.time_s - time_s).argmin()))
        return given[1] if given else ""

    def _held(self, clip: str) -> Thumbnails | None:
        if self.store is None or clip not in self.store:
            return None
        return thumbnails.read_thumbnails(self.cache, self.store, clip)

    def _give(self, held: Thumbnails, place: int) -> tuple[float, str] | None:
        text = base64.b64encode(held.jpeg[place]).decode()
        if len(text) > self.room:
            return None
        self.room, self.given = self.room - len(text), self.given + 1
        return round(float(held.time_s[place]), 3), text


def _clip(clip: ClipDrawn, faces: _Faces) -> dict[str, Any]:
    """Return a clip as the script reads it."""
    drawn = clip.drawn
    timeline = {} if drawn is None else {"points": len(drawn.wrong), "whole": drawn.whole, "packed": drawn.packed(),
                                         "strips": list(drawn.strips), "faces": faces.of(clip.name)}
    return {"name": clip.name, "split": clip.split, "group": clip.group, "frames": clip.frames,
            "seconds": round(clip.seconds, 3), "seen": clip.seen, "labelled": clip.labelled, "wrong": clip.wrong,
            "usual": clip.usual, **timeline}


@dataclass(frozen=True, kw_only=True)
class ReportResult:
    """What a page holds."""

    path: Path
    bytes: int
    clips: int
    frames: int
    pictures: bool


def make_report(preds: Path, out: Path, cache: Path, *, check: Path | None = None,
                ablation: Path | None = None) -> ReportResult:
    """Return what was put into the page at `out`, one HTML file that needs nothing else and asks no network.

    Parameters
    ----------
    preds : predictions that `stack` or `predict` wrote, .csv or .csv.gz; their metrics lie beside them.
    check, ablation : files of those commands; without them the page says how to get them.

    Raises
    ------
    InputError
        A file is absent or not readable.

    Notes
    -----
    Reads one clip at a time: memory holds what is drawn, never all frames.
    """
    facts = run_info.gather_run_info(preds, cache, check, ablation)
    found = walk_predictions(preds, facts.oof, facts.imported)
    parts = [sections.run_section(facts, found), sections.health_section(facts, found),
             *sections.report_sections(facts, found)]
    with replacing(out) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(report_html(facts, found, parts))
    return ReportResult(path=out, bytes=out.stat().st_size, clips=len(found.clips), frames=found.frames,
                pictures=facts.faces_kept)
