"""How high does a stacker score on few groups where heads know nothing, and why.

Prints for each setting, as means over the draws: macro F1 of the best head and of every candidate, and in brackets how
often the candidate is more than .25 above the best head.

    python tests/bench/bench_few_groups.py --draws 5 --groups 6 12
"""

from __future__ import annotations

import argparse
import itertools
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from few_groups import LABELS, draw, log_shares

from fercache import metrics
from fercache.config import StackConfig
from fercache.oof import OofLogits
from fercache.stacking import candidates, models, nested_cv

CONFIG = StackConfig(threads=1, bootstrap=0)
LEARNED = ("mean", *nested_cv.LEARNED)


def scores(oof: OofLogits) -> dict[str, float]:
    """Return candidate -> macro F1 out of fold."""
    columns = candidates.gather_candidates(oof, nested_cv.run_nested_cv(oof, CONFIG))
    return {name: float(metrics.macro_f1(metrics.confusion(oof.label, values.argmax(1), len(oof.classes))))
            for name, values in columns.items()}


def corrected(oof: OofLogits) -> OofLogits:
    """Return the logits without the log class shares of each fold's training part, whatever the heads made of them."""
    counts = np.stack([np.bincount(oof.label[oof.rows(i)], minlength=len(oof.classes)) for i in range(len(oof.trials))])
    offset = log_shares(counts, oof.fold)[oof.per_row(oof.fold)].astype(np.float32)
    return replace(oof, logits={head: values - offset for head, values in oof.logits.items()},
                   fingerprint=oof.fingerprint + "-corrected")


def main() -> None:
    """Print one line a setting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--groups", type=int, nargs="+", default=[6, 12, 28])
    parser.add_argument("--labels", nargs="+", default=list(LABELS), choices=LABELS)
    parser.add_argument("--pull", type=float, nargs="+", default=[1.0, 0.0])
    parser.add_argument("--classes", type=int, default=2)
    parser.add_argument("--skill", type=float, default=0.0)
    parser.add_argument("--experts", action="store_true", help="each head knows other classes")
    parser.add_argument("--unbalanced", action="store_true", help="the first class has .7 of the labels")
    parser.add_argument("--bounds-below", type=int, default=models.MANY_GROUPS,
                        help="number of groups below which `logistic` has bounds (0: never)")
    parser.add_argument("--correct", action="store_true", help="take the folds' class shares off the logits")
    given = parser.parse_args()
    models.MANY_GROUPS = given.bounds_below
    print(f"{'groups labels pull':22}{'head':>6}" + "".join(f"{name:>22}" for name in LEARNED))
    for groups, labels, pull in itertools.product(given.groups, given.labels, given.pull):
        rows = []
        for seed in range(given.draws):
            oof = draw(groups, seed=seed, labels=labels, pull=pull, classes=given.classes, skill=given.skill,
                       balanced=not given.unbalanced, experts=given.experts)
            rows.append(scores(corrected(oof) if given.correct else oof))
        best = np.array([max(row[head] for head in oof.heads) for row in rows])
        cells = []
        for name in LEARNED:
            mine = np.array([row[name] for row in rows])
            cells.append(f"{mine.mean():.3f} ({(mine > best + 0.25).mean():.0%})")
        print(f"{groups:<6} {labels:8}{pull:<7.1f}{best.mean():6.3f}" + "".join(f"{cell:>22}" for cell in cells),
              flush=True)


if __name__ == "__main__":
    main()
