"""One walk over the predictions, clip by clip: what is counted, what is drawn, and the mistakes that stand out."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fercache import metrics, oof
from fercache.oof import Pages
from fercache.results import told_part
from fercache.results.io import Predictions
from fercache.results.told_part import Told
from fercache.viz.report.curve_part import Curve
from fercache.viz.report.thin_part import Thin, bytes_a_point, points, thin

BUDGET = 14_000_000
"""Bytes of the page that timelines may take; with the plotting library (4.8 MB) and pictures it stays under 30 MB."""
MOST_POINTS, LEAST_POINTS = 4000, 24
BINS = 15
MISTAKES = 24
MISTAKES_A_CLIP = 2
SHORTEST = 5
"""Frames of the shortest mistake that is shown: shorter ones are a border placed a few frames off."""
ALL = "all"
"""Where the split of a clip is not known."""


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A stretch of a clip in which one class is told for another."""

    clip: str
    start_s: float
    end_s: float
    frames: int
    truth: int
    said: int
    share: float
    split: str


@dataclass(frozen=True, kw_only=True)
class ClipDrawn:
    """One clip of the list: figures about it, and its timeline."""

    name: str
    split: str
    group: str
    frames: int
    seconds: float
    seen: int
    labelled: int
    wrong: int
    usual: tuple[int, int, int] | None
    drawn: Thin | None

    def rank(self) -> tuple[float, int, str]:
        """Return the order of the list: the most wrong first, clips without a label last."""
        return (-self.wrong / self.labelled if self.labelled else 1.0, -self.wrong, self.name)


@dataclass
class Walk:
    """What was found.

    Attributes
    ----------
    matrix : split -> (C, C) counts; bins : split -> (3, BINS) frames, sum of probabilities, hits by probability.
    curve : score of the heads' mean against the half-width of smoothing; None without a book of logits.
    """

    classes: tuple[str, ...]
    heads: tuple[str, ...] = ()
    clips: list[ClipDrawn] = field(default_factory=list)
    matrix: dict[str, metrics.Counts] = field(default_factory=dict)
    bins: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)
    curve: Curve | None = None
    most: int = MOST_POINTS

    @property
    def frames(self) -> int:
        """Frames of all clips."""
        return sum(clip.frames for clip in self.clips)

    @property
    def undrawn(self) -> int:
        """How many clips have no timeline."""
        return sum(clip.drawn is None for clip in self.clips)


def walk(preds: Path, book: Path | None) -> Walk:
    """Return what one pass over `preds` (after one that counts rows) and its book of logits finds.

    Raises
    ------
    InputError
        `preds` is absent or no table of predictions.
    """
    lengths = Predictions(preds).lengths()
    with ExitStack() as stack:
        pages = stack.enter_context(oof.pages(book)) if book is not None else None
        found = Walk(classes=told_part.classes(preds), heads=pages.heads if pages else ())
        each = bytes_a_point(len(found.classes), 2 + len(found.heads))
        found.most = points(list(lengths.values()), each, BUDGET, MOST_POINTS, LEAST_POINTS)
        found.curve = Curve(found.classes, pages.metric) if pages else None
        found.clips = [_clip(found, name, rows, pages) for name, rows in told_part.each(preds)]
    found.clips = list(_affordable(sorted(found.clips, key=ClipDrawn.rank), each))
    found.mistakes = sorted(found.mistakes, key=lambda m: (-m.share, m.clip, m.start_s))[:MISTAKES]
    return found


def _affordable(clips: Iterable[ClipDrawn], bytes_each: int) -> Iterator[ClipDrawn]:
    """Yield the clips, in their order; where even the fewest points are too many, the last ones lose their timeline."""
    room = BUDGET * 3 / 4
    for clip in clips:
        room -= len(clip.drawn.wrong) * bytes_each if clip.drawn else 0
        yield clip if room >= 0 else replace(clip, drawn=None)


def _clip(found: Walk, name: str, rows: Told, pages: Pages | None) -> ClipDrawn:
    """Count one clip and return its line of the list."""
    page = pages.page(name) if pages is not None and name in pages else None
    if page is not None and len(page.label) != len(rows.label):  # the table is of another run
        page = None
    split, group = (page.split, page.group) if page else (ALL, "")
    _count(found, split, rows)
    if found.curve is not None and page is not None:
        found.curve.add(page)
    for mistake in heapq.nlargest(MISTAKES_A_CLIP, _mistakes(name, split, rows), key=lambda m: m.share):
        found.mistakes.append(mistake)
    if len(found.mistakes) > 100 * MISTAKES:
        found.mistakes = heapq.nlargest(MISTAKES, found.mistakes, key=lambda m: m.share)
    heads: dict[str, Any] = {head: values.argmax(1) for head, values in page.logits.items()} if page else {}
    wrong = rows.wrong
    return ClipDrawn(name=name, split=split, group=group, frames=len(wrong), seconds=float(rows.time_s[-1]),
                     seen=int(rows.valid.sum()), labelled=int((rows.label >= 0).sum()), wrong=int(wrong.sum()),
                     usual=_usual(rows, wrong), drawn=thin(rows, heads, found.most))


def _count(found: Walk, split: str, rows: Told) -> None:
    """Add a clip's labelled frames to the confusion matrix and to the bins of probability."""
    known = rows.label >= 0
    if not known.any():
        return
    classes = len(found.classes)
    counts = metrics.confusion(rows.label, rows.said, classes)
    found.matrix[split] = found.matrix.get(split, np.zeros((classes, classes), np.int64)) + counts
    share = rows.shares[known].max(1)
    place = np.minimum((share * BINS).astype(np.int64), BINS - 1)
    hit = (rows.label == rows.said)[known].astype(float)
    more = np.stack([np.bincount(place, weights, BINS) for weights in (np.ones(len(share)), share, hit)])
    found.bins[split] = found.bins.get(split, np.zeros((3, BINS))) + more


def _usual(rows: Told, wrong: NDArray[np.bool_]) -> tuple[int, int, int] | None:
    """Return the most frequent mistake of a clip: truth, prediction, frames."""
    pairs = Counter(zip(rows.label[wrong].tolist(), rows.said[wrong].tolist(), strict=True))
    return (*pairs.most_common(1)[0][0], pairs.most_common(1)[0][1]) if pairs else None


def _mistakes(name: str, split: str, rows: Told) -> Iterator[Mistake]:
    """Yield the stretches of at least SHORTEST frames in which one class is told for another."""
    pair = np.where(rows.wrong, rows.label * len(rows.shares[0]) + rows.said, -1)
    border = np.flatnonzero(np.diff(pair, prepend=-2, append=-2))
    for start, stop in zip(border[:-1].tolist(), border[1:].tolist(), strict=True):
        if pair[start] >= 0 and stop - start >= SHORTEST:
            said = int(rows.said[start])
            yield Mistake(clip=name, start_s=float(rows.time_s[start]), end_s=float(rows.time_s[stop - 1]),
                          frames=stop - start, truth=int(rows.label[start]), said=said, split=split,
                          share=float(rows.shares[start:stop, said].mean()))
