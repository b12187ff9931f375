"""What starter weights are worth on 3 to 164 groups: macro F1 out of fold, begun with the starter and from scratch.

    python tests/bench/make_streams.py --images OTHER_HALF --exclude HALF --trials 180 --frames 120 --val 0 --seed 41 \
        --out s41
    fercache extract --dataset affwild2 --root s41 --faces cropped
    python tests/bench/bench_init.py --root s41 --starter STARTER_OF_HALF --groups 3 5 8 16 28 164

A starter must not have seen the photos of the streams: HALF are the photos that it was trained on, OTHER_HALF the rest.
For each number of groups, several subsets of the groups that do not overlap are trained separately and scored together;
differences are paired over groups, with 95 % bootstrap intervals.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from fercache import data, metrics
from fercache.config import DatasetConfig, TrainConfig
from fercache.data.base import Dataset
from fercache.extraction import job
from fercache.oof import OofLogits
from fercache.store.embedding_store import EmbeddingStore
from fercache.training import cross_validation, train

DRAWS = 2000
DEFAULT_MIN_GROUPS = cross_validation.FINETUNE_MIN_GROUPS


def subsets(dataset: Dataset, store: EmbeddingStore, groups: int, at_most: int) -> list[Dataset]:
    """Return data sets of `groups` stored groups each, which share none."""
    stored = [trial for trial in dataset.trials if trial.name in store and trial.split == "train" and trial.labelled]
    names = np.random.default_rng(0).permutation(sorted({trial.group for trial in stored})).tolist()
    parts = [names[i * groups:(i + 1) * groups] for i in range(min(at_most, len(names) // groups))]
    return [replace(dataset, trials=tuple(trial for trial in stored if trial.group in part)) for part in parts]


def confusions(oof: OofLogits, head: str) -> metrics.Counts:
    """Return a confusion matrix a group, (G, C, C), of a head or of the heads' mean, out of fold."""
    rows = (oof.label >= 0) & (oof.per_row(oof.fold) >= 0)
    names, group = np.unique(oof.per_row(np.array(oof.group))[rows], return_inverse=True)
    probs = [np.exp(values[rows] - np.logaddexp.reduce(values[rows], axis=1, keepdims=True))
             for name, values in oof.logits.items() if head in {name, "mean"}]
    return metrics.confusions(oof.label[rows], sum(probs).argmax(1), group, len(oof.classes), len(names))


def main() -> None:
    """Print a table with a row for each number of groups and head."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="")
    parser.add_argument("--name", default="", help="name of the data set in the cache, if extract had --name")
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    parser.add_argument("--starter", default="")
    parser.add_argument("--groups", type=int, nargs="+", default=[3, 5, 8, 16, 28, 164])
    parser.add_argument("--subsets", type=int, default=5)
    parser.add_argument("--heads", nargs="+", default=list(TrainConfig().heads))
    parser.add_argument("--lr", type=float, nargs="+", default=[0.0], help="learning rates of the starter's training")
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--ensemble", type=int, default=TrainConfig().ensemble)
    chosen = parser.parse_args()
    if not chosen.root:
        print("nothing to measure: name an extracted set of streams with --root")
        return
    dataset = data.load_dataset(DatasetConfig(dataset="affwild2", root=chosen.root, name=chosen.name), chosen.cache)
    store = EmbeddingStore.open(job.current_store(chosen.cache, dataset.name))
    base = TrainConfig(heads=tuple(chosen.heads), ensemble=chosen.ensemble, epochs=chosen.epochs, threads=1)
    # In a cache of its own: that the starter is not trained further is no setting, so it changes no name.
    as_it_is = chosen.cache / "as-it-is"
    settings = {"scratch": replace(base, init="scratch", epochs=0)} | {
        f"starter, lr {lr or 'default'}": replace(base, init="starter", init_from=chosen.starter, lr=lr)
        for lr in chosen.lr} | {"starter as it is": replace(base, init="starter", init_from=chosen.starter, epochs=0)}
    for groups in chosen.groups:
        found: dict[tuple[str, str], list[metrics.Counts]] = {}
        for part in subsets(dataset, store, groups, chosen.subsets):
            for name, config in settings.items():
                started = time.monotonic()
                frozen = name == "starter as it is"
                cross_validation.FINETUNE_MIN_GROUPS = len(part.trials) + 1 if frozen else DEFAULT_MIN_GROUPS
                trained = train.train_heads(part, store, config, as_it_is if frozen else chosen.cache,
                                            make_current=False)
                oof = OofLogits.load(trained.logits_file)
                print(f"# {name}: {time.monotonic() - started:.0f} s", flush=True)
                for head in (*chosen.heads, *(["mean"] if len(chosen.heads) > 1 else [])):
                    found.setdefault((head, name), []).append(confusions(oof, head))
        for (head, name), parts in sorted(found.items()):
            ours, theirs = np.concatenate(parts), np.concatenate(found[head, "scratch"])
            alone = [float(metrics.macro_f1(matrix.sum(0))) for matrix in parts]
            gain = metrics.Resampler(len(ours), DRAWS, 0).difference(ours, theirs, metrics.macro_f1)
            print(f"{groups} groups x {len(parts)}, {head}, {name}: macro F1 "
                  f"{float(metrics.macro_f1(ours.sum(0))):.3f} (each {' '.join(f'{score:.3f}' for score in alone)}), "
                  f"minus scratch {gain.difference:+.3f} {gain.interval}", flush=True)


if __name__ == "__main__":
    main()
