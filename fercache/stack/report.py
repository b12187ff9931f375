"""What is said about a stack run: the JSON value beside preds.csv."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fercache import __version__, gaps, metrics
from fercache.config import StackConfig
from fercache.logits import LogitBook
from fercache.stack import features
from fercache.stack.columns import WHAT, Final
from fercache.stack.nested import Nested, Shares

SPLITS = {"train": "out of fold: by models that saw nothing of the frame's group",
          "validation": "by models of the training groups only", "test": "by models of the training groups only"}
FEW_LEARNT = "nothing could be learnt: without one of the folds no labelled frame with a face is left"


def build(book: LogitBook, config: StackConfig, nested: Nested, columns: dict[str, Shares],
          final: Final) -> dict[str, Any]:
    """Return every score of every column, and everything that went in, as a JSON value."""
    said = {name: values.argmax(1).astype(np.int16) for name, values in columns.items()}
    splits = {split: _split(book, config, split, said, final) for split in SPLITS}
    return {"fercache": __version__, "dataset": book.dataset, "notice": book.notice, "classes": list(book.classes),
            "metric": book.metric, "final": {"column": final.column, "why": final.why},
            "columns": {name: WHAT.get(name, "head") for name in columns},
            "gap_policy": gaps.describe(config.gaps), "frames_without_face": int((~book.valid).sum()),
            "splits": {split: value for split, value in splits.items() if value},
            "learnt": [member.json() for member in nested.members.values()] or FEW_LEARNT,
            "importances": _importances(book, nested), "frames": len(book.label), "trials": len(book.trials),
            "config": config.settings(), "logits": {"fingerprint": book.fingerprint, "provenance": book.provenance}}


def _split(book: LogitBook, config: StackConfig, split: str, said: dict[str, NDArray[np.int16]],
           final: Final) -> dict[str, Any]:
    """Return the scores on one split; empty where it has no labelled frame."""
    rows = (book.label >= 0) & book.spread(np.array(book.split) == split)
    if not rows.any():
        return {}
    everywhere = {name: _by_group(book, rows, column) for name, column in said.items()}
    seen = {name: _by_group(book, rows & book.valid, column) for name, column in said.items()}
    sampler = metrics.Resampler(len(everywhere["mean"]), config.bootstrap, config.seed)
    sampler_seen = metrics.Resampler(len(seen["mean"]), config.bootstrap, config.seed)
    return {"predicted": SPLITS[split],
            "all_frames": {name: metrics.scores(m, book.classes, book.metric, sampler).json()
                           for name, m in everywhere.items()},
            "frames_with_face": {name: metrics.scores(m, book.classes, book.metric, sampler_seen).json()
                                 for name, m in seen.items()},
            "paired": _paired(book, everywhere, sampler, final)}


def _by_group(book: LogitBook, rows: NDArray[np.bool_], said: NDArray[np.int16]) -> metrics.Counts:
    """Return a confusion matrix for each group that has one of the rows, ``(G, C, C)``."""
    names = book.spread(np.unique(np.array(book.group), return_inverse=True)[1])[rows]
    _, group = np.unique(names, return_inverse=True)
    return metrics.confusions(book.label[rows], said[rows], group, len(book.classes), int(group.max(initial=-1)) + 1)


def _paired(book: LogitBook, matrices: dict[str, metrics.Counts], sampler: metrics.Resampler,
            final: Final) -> dict[str, Any]:
    """Return how much more macro F1 the stack and the final column have than every other column."""
    ours = [name for name in dict.fromkeys(["stack", final.column]) if name in matrices]
    return {f"{a} - {b}": sampler.difference(matrices[a], matrices[b], metrics.macro_f1)
            for a in ours for b in matrices if a != b}


def _importances(book: LogitBook, nested: Nested) -> list[tuple[str, float]]:
    """Return the share of gain of each feature that is used, in falling order, in the model of all folds."""
    if -1 not in nested.members:
        return []
    named = zip(features.names(book.heads, book.classes), nested.members[-1].trees.gains().tolist(), strict=True)
    return [(name, round(gain, 6)) for name, gain in sorted(named, key=lambda pair: -pair[1]) if gain > 0]
