"""Scores each candidate of version 0.1 and of this checkout on new groups, both fitted on exactly the same logits.

    python tests/bench/bench_candidates.py TRAINED.h5 [NEW.h5 ...]
    python tests/bench/bench_candidates.py TRAINED.h5 --level clip --metric accuracy

TRAINED.h5 holds logits with folds, as `fercache train-heads` and `fercache logits import` write them. Both stackers
learn from the rows of its folds. New groups are the rows of the split `validation` of TRAINED.h5 and of each NEW.h5:
the logits of further data sets by the same heads, which `fercache predict` writes into the cache. Each set is scored
alone, then all together. Version 0.1 comes from git and runs in a process of its own; its candidates that this checkout
does not have are left out. "same bytes" means that all probabilities are equal. `out of fold` compares the rows that
both learned from. Below each table: the candidate that scores best out of fold, which `--select auto` makes final,
minus the head that scores best on the rows of the table. Without TRAINED.h5 the logits are simulated, which shows that
the comparison works, nothing else.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from books import simulate
from safety_net import RENAMED, ROOT, VERSION_0_1, old_name, unpack

from fercache import metrics
from fercache.oof import ROWS, OofLogits

OLD_IMPORTS = """
from fercache.logits import LogitBook as Logits
from fercache.stack.columns import gather
from fercache.stack.nested import run
from fercache.stack import _ready
"""
NEW_IMPORTS = """
from fercache.oof import OofLogits as Logits
from fercache.stacking.candidates import gather_candidates as gather
from fercache.stacking.nested_cv import run_nested_cv as run
from fercache.stacking.stack import _ready
"""
PREDICT = """
import sys
from pathlib import Path
import numpy as np
from fercache.config import StackConfig
source, out, level, metric = sys.argv[1:]
config = StackConfig(threads=1, level=level, metric=metric)
logits = _ready(Logits.load(Path(source)), config)
rows = np.diff(logits.offsets)
np.savez(out, **{"row:label": logits.label, "row:group": np.repeat(np.array(logits.group), rows),
                 "row:fold": np.repeat(logits.fold, rows)},
         **gather(logits, run(logits, config)))
"""
"""Saves the probabilities of each candidate for each row; rows of no fold are predicted by the model of all folds."""


def join(trained: OofLogits, new: Sequence[OofLogits]) -> OofLogits:
    """Return the trials of all sets as one set; groups are named SET/GROUP, and new trials are in no fold.

    Raises
    ------
    SystemExit
        A set has other heads or classes.
    """
    parts = []
    for one in (trained, *new):
        if (one.heads, one.classes) != (trained.heads, trained.classes):
            raise SystemExit(f"{one.dataset} has other heads or classes than {trained.dataset}")
        inside = (one.fold >= 0) if one is trained else np.zeros(len(one.trials), bool)
        part = one.subset(np.flatnonzero(inside | (np.array(one.split) == "validation")))
        parts.append(replace(part, group=tuple(f"{one.dataset}/{group}" for group in part.group), clip=tuple(
            f"{one.dataset}/{clip}" for clip in part.clips), trials=tuple(f"{one.dataset}/{t}" for t in part.trials)))
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in (*ROWS, "fold")}
    names = {name: sum((getattr(part, name) for part in parts), ()) for name in ("trials", "clip", "group", "split")}
    return replace(trained, **arrays, **names, offsets=np.concatenate([[0], np.cumsum(lengths)]),
                   logits={head: np.concatenate([part.logits[head] for part in parts]) for head in trained.heads})


def predictions(code: Path, imports: str, source: Path, options: argparse.Namespace) -> dict[str, np.ndarray]:
    """Return what `PREDICT` saves with the package in the folder `code`."""
    out = source.with_name(f"{code.name}.npz")
    check = f"import fercache; assert fercache.__file__.startswith({str(code)!r}), fercache.__file__\n"
    subprocess.run([sys.executable, "-c", check + imports + PREDICT, source, out, options.level, options.metric],
                   env={**os.environ, "PYTHONPATH": str(code)}, cwd=source.parent, check=True)
    with np.load(out) as file:
        return dict(file)


def paired(sampler: metrics.Resampler, ours: np.ndarray, theirs: np.ndarray, figure: metrics.Metric) -> str:
    """Return the difference of two scores and its interval as text."""
    gain = sampler.difference(ours, theirs, figure)
    low, high = gain.interval or (np.nan, np.nan)
    return f"{gain.difference:+.4f} [{low:+.4f}, {high:+.4f}]"


def main() -> None:
    """Print a table for each set, for all of them together, and for the rows that were learned from."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trained", type=Path, nargs="?", help="logits with folds")
    parser.add_argument("new", type=Path, nargs="*", help="logits of other sets by the same heads")
    parser.add_argument("--level", choices=("frame", "clip"), default="frame")
    parser.add_argument("--metric", choices=sorted(metrics.METRICS), default="macro_f1")
    parser.add_argument("--ref", default=VERSION_0_1, help="the version to compare with [default: %(default)s]")
    parser.add_argument("--draws", type=int, default=2000, help="bootstrap samples of groups [default: %(default)s]")
    options = parser.parse_args()
    sets = [OofLogits.load(options.trained) if options.trained else simulate(groups=20, validation=10)]
    sets += [OofLogits.load(path) for path in options.new]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder).resolve() / "logits.h5"
        join(sets[0], sets[1:]).save(source)
        old = predictions(unpack(options.ref, source.parent / "old"), OLD_IMPORTS, source, options)
        new = predictions(ROOT, NEW_IMPORTS, source, options)
    rows = {name: new.pop(f"row:{name}") for name in ("label", "group", "fold")}
    assert all(np.array_equal(values, old.pop(f"row:{name}")) for name, values in rows.items())
    old_of = {name: old_name(name, RENAMED["words"]) for name in new}
    of_set = np.char.partition(rows["group"], "/")[:, 0]
    parts = {one.dataset: (of_set == one.dataset) & (rows["fold"] < 0) for one in sets}
    parts |= {"all new groups": rows["fold"] < 0, "out of fold": rows["fold"] >= 0}
    figure, n_classes = metrics.METRICS[options.metric].function, len(sets[0].classes)
    learned = (rows["fold"] >= 0) & (rows["label"] >= 0)
    final = max(new, key=lambda name: figure(
        metrics.confusion(rows["label"][learned], new[name][learned].argmax(1), n_classes)))
    for part, inside in parts.items():
        scored = inside & (rows["label"] >= 0)
        _, group = np.unique(rows["group"][scored], return_inverse=True)
        groups = int(group.max(initial=-1)) + 1
        print(f"\n{part}: {groups} groups, {scored.sum()} rows\n")
        print(f"| candidate | {options.metric}, {options.ref} | this checkout | difference, paired 95 % |\n"
              "| --- | --- | --- | --- |")
        sampler, counts = metrics.Resampler(groups, options.draws, 0), {}
        for name in new:
            theirs, ours = (metrics.confusions(rows["label"][scored], probs[scored].argmax(1), group, n_classes, groups)
                            for probs in (old[old_of[name]], new[name]))
            counts[name] = ours
            difference = paired(sampler, ours, theirs, figure)
            if np.array_equal(old[old_of[name]][inside], new[name][inside]):
                difference = "same bytes"
            print(f"| `{name}` | {figure(theirs.sum(0)):.4f} | {figure(ours.sum(0)):.4f} | {difference} |")
        best = max(sets[0].heads, key=lambda name: figure(counts[name].sum(0)))
        print(f"\nfinal `{final}` - best head `{best}`: {paired(sampler, counts[final], counts[best], figure)}")


if __name__ == "__main__":
    main()
