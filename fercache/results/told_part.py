"""What was told of each clip, as those who draw want it; `preds` reads it, one clip in memory at a time."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fercache.config import digest
from fercache.results.io import ENDINGS, Predictions


@dataclass(frozen=True, kw_only=True)
class Told:
    """The rows of one clip in `preds.csv`.

    Attributes
    ----------
    time_s, valid : (T,); label : (T,) int, -1 unknown; said : (T,) int; shares : (T, C).
    """

    time_s: NDArray[np.float64]
    valid: NDArray[np.bool_]
    label: NDArray[np.int64]
    said: NDArray[np.int64]
    shares: NDArray[np.float64]

    def digest(self, more: Sequence[Any]) -> str:
        """Return the sha256 (hex) over all rows and over `more` (JSON values)."""
        rows = [hashlib.sha256(np.ascontiguousarray(column).data).hexdigest()
                for column in (self.time_s, self.valid, self.label, self.said, self.shares)]
        return digest([rows, list(more)])

    @property
    def wrong(self) -> NDArray[np.bool_]:
        """Which rows are annotated and told otherwise, ``(T,)``."""
        return np.asarray((self.label >= 0) & (self.label != self.said))


def metrics_path(preds: Path) -> Path:
    """Return where the metrics stand beside the predictions: ``preds.csv.gz`` -> ``preds.metrics.json``."""
    ending = next((ending for ending in ENDINGS if preds.name.endswith(ending)), "")
    return preds.with_name(preds.name.removesuffix(ending) + ".metrics.json")


def file_name(clip: str, ending: str) -> str:
    """Return a file name for something drawn of a clip: its name where that is plain, else with a digest, so that no
    two meet."""
    plain = re.sub(r"[^\w.-]", "_", clip)[:150]
    return f"{plain}{ending}" if plain == clip else f"{plain}-{digest(clip)[:8]}{ending}"


def classes(preds: Path) -> tuple[str, ...]:
    """Return the class names of a table of predictions.

    Raises
    ------
    InputError
        `preds` is absent or no table of predictions.
    """
    return Predictions(preds).classes


def each(preds: Path) -> Iterator[tuple[str, Told]]:
    """Yield each clip of a table with its rows.

    Raises
    ------
    InputError
        `preds` is absent or no table of predictions; a row is damaged; the rows of a clip do not stand together.
    """
    for clip in Predictions(preds).clips():
        yield clip.name, Told(time_s=clip.time_s, valid=clip.valid, label=clip.label, said=clip.said,
                              shares=clip.shares)


def read(preds: Path) -> tuple[tuple[str, ...], dict[str, Told]]:
    """Return the classes, and the rows of each clip, of a table that fits into memory."""
    return classes(preds), dict(each(preds))
