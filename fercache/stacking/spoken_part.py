"""New trials as a finished run reads them, and what each of its columns says of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fercache.oof import LogitBook
from fercache.stacking import ahead_part, calibration, candidates, kept_part, nested_cv, pool_part
from fercache.stacking.candidates import Filling
from fercache.stacking.nested_cv import Nested, Shares


@dataclass(frozen=True, kw_only=True)
class Spoken:
    """What a run says of a book of new trials.

    Attributes
    ----------
    then : the metrics of the run.
    book : the trials, as the run reads them.
    columns : every column, ``(R, C)`` each; where the run learnt nothing there are no learnt ones.
    learnt : the member that spoke.
    """

    then: dict[str, Any]
    book: LogitBook
    columns: dict[str, Shares]
    learnt: Nested
    filling: Filling

    @classmethod
    def of(cls, folder: Path, then: dict[str, Any], book: LogitBook) -> Spoken:
        """Return what the run in `folder`, whose metrics are `then`, says of a book.

        Raises
        ------
        StoreError
            The run's models are not there or damaged.
        """
        causal, learnt = bool(then["causal"]), Nested(members={}, columns={})
        book = pool_part.pooled(book) if then["level"] == "clip" else book
        book = ahead_part.without(book) if causal else book
        if isinstance(then["learnt"], list):
            learnt = nested_cv.speak(book, kept_part.load_member(folder), causal)
        filling = Filling.of(book, then["config"].get("gaps", "nearest"), causal=causal)
        return cls(then=then, book=book, columns=candidates.gather(book, learnt, filling), learnt=learnt, filling=filling)

    def units(self, whole: LogitBook) -> NDArray[np.int32]:
        """Return the final column at the run's temperature, ``(R, C)`` in millionths, of every row of the `whole` book.

        Notes
        -----
        Of a run at clip level every frame has what is said of its clip.
        """
        tempered = calibration.temper(self.columns[kept_part.final_column(self.then)],
                                      float(self.then["final"]["temperature"]))
        units = candidates.millionths(self.filling.again(tempered))
        return units[pool_part.frames_of(whole, self.book)] if self.then["level"] == "clip" else units
