"""What a finished stack run says of new trials: every column, scored where there are labels."""

from __future__ import annotations

import time
from pathlib import Path

from fercache import durable
from fercache.config import StackConfig
from fercache.logits import LogitBook
from fercache.stack import StackResult, columns, kept, nested, report


def judge(folder: Path, book: LogitBook, config: StackConfig) -> StackResult:
    """Return the predictions of the run in `folder` for a book of new trials, and every column's scores on them.

    Parameters
    ----------
    config : the draws of the bootstrap and its seed; what is final was chosen by the run.

    Raises
    ------
    StoreError
        The run's models are damaged.

    Notes
    -----
    The learnt columns are those of the model of all folds; a run on too few groups has none.
    """
    started = time.monotonic()
    then = durable.read_json(folder / kept.METRICS)
    final = columns.Final(column=kept.final_column(then), why=f"as in the run {folder.name}: {then['final']['why']}")
    learnt = nested.Nested(members={}, columns={})
    if then["learnt"] and isinstance(then["learnt"], list):
        learnt = nested.speak(book, kept.load_member(folder))
    held = columns.gather(book, learnt)
    said = {**report.build(book, config, learnt, held, final), "fingerprint": then["fingerprint"]}
    return StackResult(book=book, units=columns.millionths(held[final.column]), report=said, folder=folder,
                       cached=False, seconds=time.monotonic() - started)
