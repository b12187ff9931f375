"""Near-duplicate frames across groups: the same footage under two names defeats any fold."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fercache.diagnostics.finding_part import FINE, LOOK, SKIPPED, Finding
from fercache.diagnostics.probe_part import seconds, vectors
from fercache.oof import LogitBook
from fercache.store.embedding_store import EmbeddingStore

BLOCK = 2048
MOST_LINES = 1000
FIRST = ("embedding", "block8")
"""Taps looked at, the first that is there; else the store's first one."""


def across_groups(book: LogitBook, store: EmbeddingStore, similar: float) -> Finding:
    """Return pairs of frames of two groups whose cached vectors point the same way; one frame a second is compared.

    Parameters
    ----------
    similar : cosine from which a pair is listed.
    """
    check = "near-duplicate frames"
    tap = next((name for name in FIRST if name in store.taps), next(iter(store.taps), ""))
    rows, trial = seconds(book, np.ones(len(book.label), bool), store)
    if len(rows) < 2 or not tap:
        return Finding(check=check, state=SKIPPED, said="fewer than two frames with a face in the store")
    x = vectors(book, store, tap, rows, trial)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)
    _, group = np.unique(np.array(book.group, object).astype(str), return_inverse=True)
    pairs = _pairs(x, group[trial], similar)
    lines = [f"{_frame(book, rows[i], trial[i])} and {_frame(book, rows[j], trial[j])}: cosine {cosine:.4f}"
             for cosine, i, j in pairs[:MOST_LINES]]
    more = f", {MOST_LINES} listed" if len(pairs) > MOST_LINES else ""
    return Finding(check=check, state=LOOK if pairs else FINE, lines=tuple(lines),
                   said=f"{len(pairs)} pairs of two groups at a cosine of {similar} or more{more}, among {len(rows)} "
                        f"frames ({tap}, one a second)")


def _frame(book: LogitBook, row: np.int64, trial: np.int64) -> str:
    return f"{book.trials[int(trial)]} frame {int(book.index[int(row)])}"


def _pairs(x: NDArray[np.float32], group: NDArray[np.int64], similar: float) -> list[tuple[float, int, int]]:
    """Return (cosine, i, j) of every pair of two groups, in falling order; block by block, so that memory stays flat.
    """
    found: list[tuple[float, int, int]] = []
    for a in range(0, len(x), BLOCK):
        for b in range(a, len(x), BLOCK):
            cosine = x[a:a + BLOCK] @ x[b:b + BLOCK].T
            cosine[group[a:a + BLOCK, None] == group[None, b:b + BLOCK]] = -1
            for i, j in np.argwhere(cosine >= similar).tolist():
                if a + i < b + j:
                    found.append((float(cosine[i, j]), a + i, b + j))
    return sorted(found, key=lambda pair: (-pair[0], pair[1], pair[2]))
