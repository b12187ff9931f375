"""Policies for frames without a face: unfilled, nearest prediction, linear interpolation, or temporal heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fercache.errors import InputError
from fercache.heads import registry as head_registry
from fercache.results.smoothing import Floats, Mask, Rows, nearest_row

POLICIES = {
    "none": "a frame without a face is not filled: each head's column has the head's own prediction, every other "
            "column the plain mean of the heads",
    "nearest": "a frame without a face takes the prediction of the nearest frame in time with a face (the earlier of "
               "two)",
    "linear": "a frame without a face is interpolated linearly in time between the predictions of the frames with a "
              "face before and after it; before the first and after the last face the nearest one counts",
    "temporal-heads": "a frame without a face is predicted by the temporal heads, which mask it: their columns have "
                      "their own predictions, every other column the plain mean of the temporal heads",
}
FACELESS_CLIP = "a clip without any face has the predictions of the heads"
COPIED = ("nearest", "linear")  # the policies that use only the predictions of other frames
TEMPORAL = head_registry.TEMPORAL_HEADS  # heads that read neighboring frames and mask those without a face


@dataclass(frozen=True)
class GapSources:
    """The source rows of each prediction: ``(1 - weight) * before + weight * after``, all ``(T,)``.

    A row with a face is its own source, with weight 0.
    """

    before: Rows
    after: Rows
    weight: Floats

    def apply(self, probs: NDArray[Any]) -> NDArray[Any]:
        """Return `probs`, ``(T, C)``, with its gaps filled; the type stays."""
        filled = probs[self.before]
        # Only the mixed rows are computed: the others keep every bit, and the type.
        mixed = np.flatnonzero(self.weight > 0)
        late = self.weight[mixed, None]
        filled[mixed] = (1 - late) * probs[self.before[mixed]] + late * probs[self.after[mixed]]
        return np.asarray(filled)


def gap_sources(time_s: Floats, seen: Mask, policy: str, *, causal: bool = False) -> GapSources:
    """Return the source rows of one clip's predictions; each row is its own source if no row has a face.

    `time_s`: (T,) rising. `seen`: (T,) whether a face was seen. `policy`: one of `POLICIES`; with "none" and
    "temporal-heads" every row is its own source. `causal`: use no later row; rows before the first face are their own
    source. Raises InputError if the policy is "linear" and `causal` is true.
    """
    if causal and policy == "linear":
        raise InputError("linear interpolation uses a later frame", where="missing_faces = linear",
                         hint="choose --missing-faces nearest with --causal")
    row = np.arange(len(seen), dtype=np.int64)
    found = np.flatnonzero(seen)
    if policy not in COPIED or not len(found):
        return GapSources(row, row, np.zeros(len(row)))
    if policy == "nearest":
        chosen = nearest_row(time_s, seen, causal=causal)
        return GapSources(chosen, chosen, np.zeros(len(row)))
    place = np.searchsorted(found, row, "right")  # the number of faces up to and including this row
    before, after = found[np.maximum(place - 1, 0)], found[np.minimum(place, len(found) - 1)]
    span = time_s[after] - time_s[before]
    weight = np.divide(time_s - time_s[before], span, out=np.zeros(len(row)), where=span > 0)
    return GapSources(before, after, np.clip(np.where(seen, 0.0, weight), 0.0, 1.0))


def fill_gaps(probs: NDArray[Any], time_s: Floats, seen: Mask, policy: str) -> NDArray[Any]:
    """Return one clip's probabilities with its gaps filled, ``(T, C)``; see `gap_sources`."""
    return gap_sources(time_s, seen, policy).apply(probs)


def unfilled_heads(heads: Sequence[str], policy: str) -> list[str]:
    """Return the heads that keep their own predictions in gaps; none if gaps are filled from other frames."""
    if policy in COPIED:
        return []
    return [head for head in heads if policy == "none" or head in TEMPORAL]
