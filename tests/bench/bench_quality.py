"""How good the heads are against what must be beaten, on one store or several: every figure from the public functions.

    python tests/bench/bench_quality.py --root STREAMS [--new-root OTHER] [--cache cache] [--score validation]

The data set at `--root` must have been extracted. Trained on its Train_Set: the baseline (a per-frame MLP with class
weights on the default taps, one training a fold, then a box mean over +-k frames, k chosen on the training folds), the
paper's heads (their plain mean), the frame head on the identity vector alone, and the heads as delivered. Scored: out
of fold on Train_Set (`--score train`: for choosing), or once at the end on Validation_Set and, by the same models, on
every labelled trial of `--new-root`. Differences are paired over groups of both sets, with 95 % bootstrap intervals.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fercache import data, metrics, recipe
from fercache.config import DatasetConfig, TrainConfig
from fercache.data.base import Dataset, Trial
from fercache.extraction import job
from fercache.oof import OofLogits
from fercache.results.smoothing import moving_mean, window_reach
from fercache.store.embedding_store import EmbeddingStore
from fercache.training import train
from fercache.training.data import FrameDataset
from fercache.training.inference import load_trained, predict_new

HALF_WIDTHS = (0, 3, 5, 8, 10, 12, 15, 20, 25, 30, 40, 60)
DRAWS = 2000
FPS = 30

Said = dict[str, NDArray[np.floating]]


class Bench:
    """One data set with its store, and what each recipe says of it."""

    def __init__(self, root: str, cache: Path) -> None:
        self.cache = cache
        self.dataset: Dataset = data.load_dataset(DatasetConfig(dataset="affwild2", root=root), cache)
        self.store = EmbeddingStore.open(job.current_store(cache, self.dataset.name))

    def train(self, config: TrainConfig) -> tuple[OofLogits, Path]:
        """Return the book and the heads of a recipe, trained unless they are there."""
        report = train.train_heads(self.dataset, self.store, config, self.cache)
        return OofLogits.load(report.logits_file), report.heads


class Scored:
    """Labelled rows of some trials with their groups, and confusion matrices over them."""

    def __init__(self, label: NDArray[np.int16], group: NDArray[np.str_], classes: int) -> None:
        names, self.group = np.unique(group, return_inverse=True)
        self.label, self.groups, self.classes = label, len(names), classes

    def matrices(self, said: NDArray[np.floating]) -> NDArray[np.int64]:
        """Return a confusion matrix a group, (G, C, C)."""
        return metrics.confusions(self.label, said.argmax(1), self.group, self.classes, self.groups)


def boxed(said: NDArray[np.floating], offsets: Sequence[int], valid: NDArray[np.bool_], time_s: NDArray[np.float64],
          half: int) -> NDArray[np.floating]:
    """Return probabilities averaged over +-`half` frames of each trial, over frames with a face."""
    out = np.exp(said - said.max(1, keepdims=True))
    out /= out.sum(1, keepdims=True)
    for start, stop in pairwise(offsets):
        rows = slice(int(start), int(stop))
        seen = valid[rows] if valid[rows].any() else np.ones(stop - start, bool)
        out[rows] = moving_mean(out[rows], seen, window_reach(time_s[rows], half / FPS, half / FPS))
    return out


def half_width(book: OofLogits) -> int:
    """Return the half-width with the best macro F1 out of fold on the training trials."""
    train = (book.per_row(book.fold) >= 0) & (book.label >= 0)
    scores = {}
    for half in HALF_WIDTHS:
        said = boxed(book.logits["frame"], book.offsets, book.valid, book.time_s, half)[train]
        scores[half] = float(metrics.macro_f1(metrics.confusion(book.label[train], said.argmax(1), len(book.classes))))
    print("baseline, out of fold by half-width:", {k: round(v, 4) for k, v in scores.items()}, flush=True)
    return max(scores, key=lambda k: scores[k])


def recipes(flags: TrainConfig) -> dict[str, TrainConfig]:
    """The recipes that are compared."""
    paper = TrainConfig(**{k: tuple(v) if isinstance(v, list) else v
                           for k, v in recipe.load_recipe(Path("stages/mao2021"), "train-heads").items()})
    mlp = replace(flags, heads=("frame",), taps=("block8", "repeat_2"), ensemble=1)
    identity = replace(flags, heads=("frame",), taps=("embedding",))
    return {"baseline": mlp, "mao2021": paper, "identity": identity, "default": flags}


def columns(name: str, heads: Said, box: NDArray[np.floating] | None) -> Said:
    """Return the columns a recipe adds to the comparison."""
    if name == "baseline" and box is not None:
        return {"MLP": heads["frame"], "MLP + box": box}
    mean = sum(np.exp(v) / np.exp(v).sum(1, keepdims=True) for v in heads.values()) / len(heads)
    if name == "identity":
        return {"frame on identity": heads["frame"]}
    return {f"{name}: {head}": said for head, said in heads.items()} | {f"{name}: mean": np.asarray(mean)}


def collect(bench: Bench, other: Bench | None, chosen: dict[str, TrainConfig], split: str) -> tuple[Scored, Said]:
    """Return the rows to score and every column's word on them, those of the other set behind the first one's."""
    said: Said = {}
    scored: Scored | None = None
    for name, config in chosen.items():
        book, folder = bench.train(config)
        rows = (book.per_row(np.array(book.split)) == split) & (book.label >= 0)
        half = half_width(book) if name == "baseline" else -1
        box = boxed(book.logits["frame"], book.offsets, book.valid, book.time_s, half) if half >= 0 else None
        here = {k: v[rows] for k, v in columns(name, book.logits, box).items()}
        label, group = book.label[rows], book.per_row(np.array(book.group))[rows]
        if other is not None:
            there, features, trials = spoken(other, folder)
            known = features.label >= 0
            box = boxed(there["frame"], features.offsets, features.valid, features.time_s, half) if half >= 0 else None
            here = {k: np.concatenate([here[k], v[known]]) for k, v in columns(name, there, box).items()}
            label = np.concatenate([label, features.label[known]])
            names = np.array([f"other {t.group}" for t in trials])[features.trial_of_row()]
            group = np.concatenate([group, names[known]])
        said |= here
        scored = scored or Scored(label, group, len(book.classes))
    assert scored is not None
    return scored, said


def spoken(other: Bench, folder: Path) -> tuple[Said, FrameDataset, list[Trial]]:
    """Return what the heads of a folder say of the labelled trials of another set."""
    trials = [t for t in other.dataset.trials if t.labelled and t.name in other.store]
    known = load_trained(folder)
    features = known.load_features(other.store, trials)
    return dict(predict_new(known, features)), features, trials


def report(scored: Scored, said: Said) -> None:
    """Print every column's macro F1 and accuracy, then the differences that matter, with intervals."""
    draws = metrics.Resampler(scored.groups, DRAWS, 0)
    found = {name: scored.matrices(values) for name, values in said.items()}
    print(f"\n{len(scored.label)} labelled frames of {scored.groups} groups")
    for name, matrices in found.items():
        low, high = (draws.intervals(matrices) or {"macro_f1": (np.nan, np.nan)})["macro_f1"]
        total = matrices.sum(0)
        print(f"{name:28} macro F1 {float(metrics.macro_f1(total)):.4f} [{low:.4f}, {high:.4f}]  "
              f"accuracy {float(metrics.accuracy(total)):.4f}")
    pairs = [(f"default: {head}", "MLP + box") for head in ("gru", "transformer", "mean")]
    pairs += [("default: mean", "mao2021: mean"), ("default: frame", "frame on identity")]
    for ours, theirs in pairs:
        if ours in found and theirs in found:
            gain = draws.difference(found[ours], found[theirs], metrics.macro_f1)
            print(f"{ours} - {theirs}: {gain.difference:+.4f} {gain.interval}")


def main() -> None:
    """Train what is missing, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="")
    parser.add_argument("--new-root", default="")
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    parser.add_argument("--score", choices=("train", "validation"), default="train")
    parser.add_argument("--ensemble", type=int, default=TrainConfig().ensemble)
    parser.add_argument("--recipes", default="baseline,mao2021,identity,default", help="the paper's takes hours")
    chosen = parser.parse_args()
    if not chosen.root:
        print("nothing to measure: name an extracted set of streams with --root")
        return
    bench = Bench(chosen.root, chosen.cache)
    other = Bench(chosen.new_root, chosen.cache) if chosen.new_root and chosen.score == "validation" else None
    known = recipes(replace(TrainConfig(), ensemble=chosen.members))
    scored, said = collect(bench, other, {name: known[name] for name in chosen.recipes.split(",")}, chosen.score)
    report(scored, said)


if __name__ == "__main__":
    main()
