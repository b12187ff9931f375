"""What a finished stack run says of new trials: every column, scored where there are labels."""

from __future__ import annotations

import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from fercache.config import StackConfig
from fercache.oof import LogitBook
from fercache.runtime import atomic_io
from fercache.stacking import candidates, kept_part, report
from fercache.stacking.spoken_part import Spoken
from fercache.stacking.stack import StackResult


def judge(folder: Path, book: LogitBook, config: StackConfig) -> StackResult:
    """Return the predictions of the run in `folder` for a book of new trials, and every column's scores on them.

    Parameters
    ----------
    config : the draws of the bootstrap and its seed; what is final and what fills gaps was chosen by the run.

    Raises
    ------
    StoreError
        The run's models are damaged.

    Notes
    -----
    The learnt columns are those of the model of all folds; a run on too few groups has none.
    """
    started = time.monotonic()
    then = atomic_io.read_json(folder / kept_part.METRICS)
    final = candidates.Final(column=kept_part.final_column(then), why=f"as in the run {folder.name}: {then['final']['why']}")
    spoken = Spoken.of(folder, then, book)
    ready = spoken.book
    temperature = float(then["final"]["temperature"])
    found = report.Run(book=ready, config=_as_then(then, config), nested=spoken.learnt,
                       columns=spoken.columns, final=final,
                       temperatures=dict.fromkeys([*range(int(ready.fold.max(initial=-1)) + 1), -1], temperature))
    said = {**report.build(found), "fingerprint": then["fingerprint"]}
    return StackResult(book=book, units=spoken.units(book), report=said, folder=folder, cached=False,
                       seconds=time.monotonic() - started)


def _as_then(then: dict[str, Any], config: StackConfig) -> StackConfig:
    """Return the run's choices with the draws of another bootstrap; new trials were fitted by no refit."""
    known = {entry.name for entry in fields(StackConfig)}
    chosen: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in then["config"].items()
                              if name in known}
    return replace(StackConfig(**chosen), bootstrap=config.bootstrap, seed=config.seed, refit="none")
