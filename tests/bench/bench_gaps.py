"""What each policy for frames without a face scores out of fold, on the training groups of a book of logits.

    python tests/bench/bench_gaps.py cache/logits/<dataset>/<fingerprint>.h5
    python tests/bench/bench_gaps.py --small     a simulated book, to see that it runs
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from books import simulate

from fercache import metrics
from fercache.config import StackConfig
from fercache.oof import OofLogits
from fercache.results import missing_faces
from fercache.stacking import candidates, nested_cv

DRAWS, SEED = 2000, 0


def by_group(book: OofLogits, rows: NDArray[np.bool_], said: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return a confusion matrix for each group that has one of the rows, ``(G, C, C)``."""
    names = book.per_row(np.unique(np.array(book.group), return_inverse=True)[1])[rows]
    _, group = np.unique(names, return_inverse=True)
    return metrics.confusions(book.label[rows], said[rows], group, len(book.classes), int(group.max()) + 1)


def main() -> None:
    """Print macro F1 and accuracy of each column and policy, and their difference to `nearest` with its interval."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("book", nargs="?", type=Path)
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    book = simulate(groups=8, frames=60) if given.small else OofLogits.load(given.book)
    learnt = nested_cv.run_nested_cv(book, StackConfig(threads=2))
    held = (book.label >= 0) & (book.per_row(book.fold) >= 0)
    sets = {"frames without a face": held & ~book.valid, "all frames": held}
    print(f"{book.dataset}: {held.sum():,} labelled out-of-fold frames, {(held & ~book.valid).sum():,} without a face")
    for title, rows in sets.items():
        filled = {policy: candidates.gather_candidates(book, learnt, candidates.GapFiller.of(book, policy))
                  for policy in missing_faces.POLICIES}
        said = {policy: {name: v.argmax(1) for name, v in found.items()} for policy, found in filled.items()}
        for name in said["nearest"]:
            matrices = {policy: by_group(book, rows, said[policy][name]) for policy in missing_faces.POLICIES}
            sampler = metrics.Resampler(len(matrices["nearest"]), DRAWS, SEED)
            for policy, matrix in matrices.items():
                gain = sampler.difference(matrix, matrices["nearest"], metrics.macro_f1)
                low, high = gain.interval or (float("nan"),) * 2
                print(f"{title:22} {name:12} {policy:8} macro F1 {metrics.macro_f1(matrix.sum(0)):.4f} accuracy "
                      f"{metrics.accuracy(matrix.sum(0)):.4f}; macro F1 - nearest's: {gain.difference:+.4f} "
                      f"({low:+.4f} to {high:+.4f})")


if __name__ == "__main__":
    main()
