"""How high does a stacker score on few groups where heads know nothing, and why.

Prints for each setting, as means over the draws: macro F1 of the best head and of every candidate, and in brackets how
often the candidate is more than .25 above the best head.

    python tests/bench/bench_few_groups.py --draws 5 --groups 6 12

With --final it looks at the final candidate instead, over labelings of all kinds (`labelings`), heads of pure noise
(`noise`) or heads that know different classes (`experts`). With --trained DIMS, heads are trained on each fold, on
features of so many dimensions:

    python tests/bench/bench_few_groups.py --final labelings --draws 100 --groups 6 8 12 16 --seed 1000
    python tests/bench/bench_few_groups.py --final experts --trained 128 --draws 10 --groups 8 16 28 --seed 500
"""

from __future__ import annotations

import argparse
import itertools
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from few_groups import LABELS, SETTINGS, draw, log_shares, train_heads

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


def describe_finals(kind: str, groups: int, draws: int, first: int, dims: int, skill: float) -> str:
    """Return how far final candidates are above the best head and above chance, and how often new clips repeat them."""
    rows = []
    for number in range(draws):
        if kind == "labelings":
            how: dict[str, Any] = {"frames": 6, **SETTINGS[number % len(SETTINGS)]}
        elif kind == "noise":
            how = {"frames": 6, "labels": LABELS[number % 3], "pull": number // 3 % 2, "noise": 1.0}
        else:
            how = {"classes": 6, "frames": 30, "labels": "free", "pull": 0.3, "skill": skill, "noise": 1.0,
                   "experts": True}
        oof = draw(groups, seed=first + number, **how)
        new = candidates._without_fold_means(oof)
        if dims:
            knows = {name: how[name] for name in ("skill", "experts") if name in how}
            oof, new = train_heads(oof, seed=first + number, dims=dims, **knows)
        # Of heads at chance nothing learned can be final.
        nested = (nested_cv.run_nested_cv(oof, CONFIG) if candidates.chance_p_value(oof) < candidates.MOST_P
                  else nested_cv.NestedResult(fold_models={}, columns={}))
        columns = candidates.gather_candidates(oof, nested)
        rejected = candidates.find_contradictions(oof, nested, columns, "macro_f1")
        final = candidates.choose_final(oof, columns, "auto", "macro_f1", rejected).column
        score = candidates.score_out_of_fold(oof, columns, "macro_f1")
        # As new clips are predicted: by the mean of the folds' heads (untrained: without the fold means), and by the
        # stacker of all folds.
        probs = {head: softmax(new.logits[head], axis=1) for head in oof.heads}
        probs["mean"] = sum(probs.values())
        if nested.fold_models:
            probs |= nested_cv.predict_new(new, nested.fold_models[nested_cv.ALL], False).columns
        same = {name: (values.argmax(1) == probs[name].argmax(1)).mean() for name, values in columns.items()}
        chance = [float(metrics.macro_f1(metrics.confusion(label, columns[final].argmax(1), len(oof.classes))))
                  for label in metrics.permute_by_group(oof.label, oof.per_row(np.arange(groups)), 200, first + number)]
        heads = [score[head] for head in oof.heads]
        rows.append((score[final] - max(heads), score[final] - max(*heads, score["mean"]), score[final],
                     *np.quantile(chance, [.025, .975]), final in nested_cv.LEARNED, same[final],
                     min(same[head] for head in oof.heads), same["mean"]))
    lead, gain, reached, low, high, learned, repeats, least, mean = np.array(rows, float).T
    won = gain[learned > 0]
    return (f"{groups} groups, {draws} draws: score {reached.mean():.3f}, "
            f"chance {low.mean():.3f} to {high.mean():.3f}; "
            f"above the best head at most {lead.max():+.3f}, mean {lead.mean():+.3f}; learned in {len(won)}, "
            f"{won.mean() if len(won) else 0:+.3f} above heads and mean; repeated in {repeats.mean():.3f}, "
            f"worst head {least.mean():.3f}, less often in {(repeats < least).sum()} draws (the mean of the heads: "
            f"{(mean < least).sum()})")


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
    parser.add_argument("--seed", type=int, default=0, help="of the first draw")
    parser.add_argument("--final", choices=("labelings", "noise", "experts"), help="describe the final candidates")
    parser.add_argument("--trained", type=int, default=0, metavar="DIMS", help="with --final: train heads on each fold")
    given = parser.parse_args()
    if given.final:
        for groups in given.groups:
            print(describe_finals(given.final, groups, given.draws, given.seed, given.trained, given.skill or 2.5),
                  flush=True)
        return
    models.MANY_GROUPS = given.bounds_below
    print(f"{'groups labels pull':22}{'head':>6}" + "".join(f"{name:>22}" for name in LEARNED))
    for groups, labels, pull in itertools.product(given.groups, given.labels, given.pull):
        rows = []
        for seed in range(given.seed, given.seed + given.draws):
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
