"""What the stack gains on two sets of streams: one whose heads are trained, one that it has never seen.

    python tests/bench/bench_streams.py --cache cache --root s21 --new s31

All sets are extracted (`--new` takes several), the heads of the first are trained (`fercache extract`, `fercache
train-heads`). All is chosen on the first set's training folds; the Validation splits of the first and of each new one
are scored, alone and pooled, with intervals by bootstrap over groups.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fercache import data, metrics
from fercache.config import DatasetConfig, StackConfig
from fercache.extraction import job
from fercache.oof import OofLogits
from fercache.stacking import candidates, nested_cv, stack
from fercache.store.embedding_store import EmbeddingStore
from fercache.training import inference
from fercache.workspace import Workspace

DRAWS = 2000


def spoken(cache: Path, root: str, trained: OofLogits, heads: Path) -> OofLogits:
    """Return what trained heads (the mean over the folds' models) say of another set."""
    dataset = data.load_dataset(DatasetConfig(dataset="affwild2", root=root), cache)
    store = EmbeddingStore.open(job.current_store(cache, dataset.name))
    trials = [t for t in dataset.trials if t.name in store]
    known = inference.load_trained(heads)
    found = known.load_features(store, trials)
    logits = dict(inference.predict_new(known, found))
    return replace(trained, trials=tuple(t.name for t in trials), clip=(),
                   group=tuple(f"new {t.group}" for t in trials), split=tuple(t.split for t in trials),
                   fold=np.full(len(trials), -1, np.int16), offsets=found.offsets, index=found.index,
                   time_s=found.time_s, valid=found.valid, label=found.label, logits=logits)


def by_group(book: OofLogits, said: NDArray[np.int64]) -> metrics.Counts:
    """Return a confusion matrix a group of the Validation split."""
    rows = (book.label >= 0) & book.per_row(np.array(book.split) == "validation")
    _, group = np.unique(book.per_row(np.array(book.group))[rows], return_inverse=True)
    return metrics.confusions(book.label[rows], said[rows], group, len(book.classes), int(group.max()) + 1)


def said_of(book: OofLogits, folder: Path) -> dict[str, metrics.Counts]:
    """Return the confusion matrices of every column on the Validation split; learnt ones by the member of all folds."""
    found = candidates.gather_candidates(book,
                                         nested_cv.predict_new(book, nested_cv.load_fold_model(folder), causal=False))
    return {name: by_group(book, p.argmax(1)) for name, p in found.items()}


def main() -> None:
    """Print a table of both sets and of the two pooled."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for flag, many in (("--cache", None), ("--root", None), ("--new", "+")):
        parser.add_argument(flag, required=True, nargs=many)
    given = parser.parse_args()
    cache = Path(given.cache)
    name = data.load_dataset(DatasetConfig(dataset="affwild2", root=given.root), cache).name
    path = Workspace(cache).current_logits_file(name)
    book = OofLogits.load(path)
    with tempfile.TemporaryDirectory() as folder:
        run = stack.run_stack(book, StackConfig(threads=1, metric="macro_f1"), Path(folder))
        parts = {given.root: said_of(book, run.folder)}
        for new in given.new:
            parts[new] = said_of(spoken(cache, new, book, cache / "heads" / name / path.stem), run.folder)
            parts[f"{given.root} + {new}"] = {c: np.concatenate([m, parts[new][c]])
                                              for c, m in parts[given.root].items()}
    inside = run.report.splits["train"].all_frames
    print(f"final: {run.final} ({run.report['final']['why']})")
    print("out of fold", {c: round(one["macro_f1"], 4) for c, one in inside.items()})
    heads = {c: inside[c].figures["macro_f1"] for c in book.heads}
    best = max(heads, key=lambda c: heads[c])
    for part, matrices in parts.items():
        print(part, len(next(iter(matrices.values()))), "groups",
              {c: round(float(metrics.macro_f1(m.sum(0))), 4) for c, m in matrices.items()})
        sampler = metrics.Resampler(len(matrices[best]), DRAWS, 0)
        for ours in dict.fromkeys([run.final, "stack"]):
            for other in [*book.heads, "mean"]:
                gain = sampler.difference(matrices[ours], matrices[other], metrics.macro_f1)
                print(f"  {ours} - {other}: {gain.difference:+.4f}", gain.interval)


if __name__ == "__main__":
    main()
