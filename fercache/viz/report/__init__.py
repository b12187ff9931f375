"""One page to look at: whether the cache is whole, which head is right where, and why the score is what it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fercache.runtime.atomic_io import replacing
from fercache.viz import run_info
from fercache.viz.report import health_part, page_part, sections
from fercache.viz.report.walk import walk


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a page holds."""

    path: Path
    bytes: int
    clips: int
    frames: int
    pictures: bool


def make(preds: Path, out: Path, cache: Path, *, check: Path | None = None, ablation: Path | None = None) -> Made:
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
    facts = run_info.gather(preds, cache, check, ablation)
    found = walk(preds, facts.book)
    parts = [health_part.run(facts, found), health_part.health(facts, found), *sections.all_of(facts, found)]
    with replacing(out) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(page_part.html(facts, found, parts))
    return Made(path=out, bytes=out.stat().st_size, clips=len(found.clips), frames=found.frames,
                pictures=facts.faces_kept)
