"""What int8 gains in speed and loses in quality beside float32, both with OpenVINO, in one run on labelled photos.

    python tests/bench/bench_int8.py --root PUBLIC_TEST_PHOTOS --cache cache

PUBLIC_TEST_PHOTOS is a folder of FER2013's PublicTest photos with a folder for each class (data set `fer2013`). Prints
crops a second in turns, the cosine of each tap, and the scores of the starter heads, which were trained on float32.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

import fercache
from fercache import data, metrics
from fercache.backbones import weights
from fercache.backbones.backbone import Backbone
from fercache.config import DatasetConfig, ExtractConfig
from fercache.runtime.devices import set_torch_threads
from fercache.store.embedding_store import EmbeddingStore

PRECISIONS = ("float32", "int8")


def crops_per_s(net: Backbone, crops: np.ndarray) -> float:
    """Return the crops that the net embeds in a second."""
    start = time.perf_counter()
    net.embed32(crops)
    return len(crops) / (time.perf_counter() - start)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the cosine between each row of `a` and of `b`."""
    a, b = (values.reshape(len(values), -1).astype(np.float64) for values in (a, b))
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def main() -> None:
    """Print speed, cosines and scores."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True)
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    where = {"dataset": "fer2013", "root": arguments.root, "cache": arguments.cache, "backend": "openvino"}
    stores = [EmbeddingStore.open(fercache.extract(precision=precision, **where).store) for precision in PRECISIONS]
    dataset = data.load_dataset(DatasetConfig(dataset="fer2013", root=arguments.root), arguments.cache)
    set_torch_threads(0)
    taps = ExtractConfig().taps
    casia = weights.ensure_weights("casia-webface", arguments.cache / "weights")
    nets = [Backbone.load(casia, taps, precision=precision, backend="openvino") for precision in PRECISIONS]
    crops = np.random.default_rng(0).integers(0, 256, (256, 160, 160, 3), dtype=np.uint8)
    rates = np.array([[crops_per_s(net, crops) for net in nets] for _ in range(arguments.rounds)])
    print(f"crops a second: float32 {np.median(rates[:, 0]):.1f}, int8 {np.median(rates[:, 1]):.1f}, "
          f"{np.median(rates[:, 1] / rates[:, 0]):.2f} times")
    trials = [trial for trial in dataset.trials if trial.labels is not None]
    for tap in taps:
        values = np.concatenate([cosines(*(store[trial.name][tap][:] for store in stores)) for trial in trials])
        print(f"{tap}: median cosine {np.median(values):.4f}, 1st percentile {np.quantile(values, 0.01):.4f}")
    heads = fercache.load_heads("starter")
    probs = [np.concatenate([heads.predict_proba(store, trial.name, force=True)["frame"] for trial in trials])
             for store in stores]
    label = np.concatenate([np.asarray(trial.labels) for trial in trials])
    named = [list(heads.classes).index(name) for name in dataset.classes]
    predicted = [values[:, named].argmax(1) for values in probs]
    counts = [metrics.confusions(label, found, np.arange(len(label)), len(named), len(label)) for found in predicted]
    for precision, count in zip(PRECISIONS, counts, strict=True):
        total = count.sum(0)
        print(f"{precision}: accuracy {metrics.accuracy(total):.4f}, macro F1 {metrics.macro_f1(total):.4f}")
    resampler = metrics.Resampler(len(label), draws=1000, seed=0)
    difference = resampler.difference(counts[1], counts[0], metrics.macro_f1)
    print(f"int8 - float32: macro F1 {difference.difference:+.4f} {difference.interval}, same class on "
          f"{(predicted[0] == predicted[1]).mean():.3f} of {len(label)} photos, mean change of a probability "
          f"{np.abs(probs[0] - probs[1]).mean():.4f}")


if __name__ == "__main__":
    main()
