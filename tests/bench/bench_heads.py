"""What the data path costs in a training step, and how long an epoch over a large store takes, for each head.

    python tests/bench/bench_heads.py [--rows 60000] [--width 512] [--steps 20] [--threads 1] [--only frame,gru]

The data path is everything between the features in RAM and the tensors that a head is given; 1.0 is a step on tensors
that are already there. Both are taken step by step in turn in one run, the medians are compared. An epoch is the median
step with its data times the steps of an epoch over `--store-rows` rows: computed, not run; `--rows 2800000` has as many
rows in RAM (3 GB of features). `bf16/step`: the same step
with `precision = "bf16"` on the same batch, again in turn; below 1 it is the quicker one on this processor.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray

from fercache.backbones.taps import TapSlice, row_layout, tap_shapes
from fercache.config import TrainConfig
from fercache.heads.registry import HEADS, HeadSettings
from fercache.training import inference
from fercache.training.data import FrameDataset
from fercache.training.fit import FitTask, _epoch_starts, _new_head, _Trainer

CLIP = 5000
WARM_UP = 3
TAP_ROWS, MAP_ROWS = 10_000, 2000
MAP = "mixed_7a-map"


def simulated(rows: int, width: int) -> FrameDataset:
    """Random features of clips of 5,000 frames, as long as those of Aff-Wild2 are on the mean."""
    rng = np.random.default_rng(0)
    offsets = np.append(np.arange(0, rows, CLIP), rows)
    inside = np.arange(rows) % CLIP
    return FrameDataset(layout=(TapSlice(tap="block8", start=0, stop=width, shape=(width,)),), offsets=offsets,
                    x=noise(rows, width, rng),
                    index=(inside + 1).astype(np.int32), time_s=inside / 30, valid=rng.random(rows) > 0.05,
                    label=np.repeat(rng.integers(0, 8, rows // 50 + 1), 50)[:rows].astype(np.int16))


def noise(rows: int, width: int, rng: np.random.Generator) -> NDArray[np.float16]:
    """Random values, made piece by piece: 2.8 million x 512 are 2.9 GB and not three times that."""
    x = np.empty((rows, width), np.float16)
    for start in range(0, rows, CLIP):
        part = x[start:start + CLIP]
        part[:] = rng.standard_normal(part.shape, np.float32)
    return x


def cases(features: FrameDataset) -> dict[str, tuple[str, HeadSettings, FrameDataset]]:
    """Each head as it is delivered, and the temporal ones on the features themselves."""
    said = np.log(np.random.default_rng(1).dirichlet(np.ones(8), len(features.label)))
    shown = inference.oof_features(said.astype(np.float32), features)
    found = {}
    for head, spec in HEADS.items():
        usual = spec.settings
        found[head] = (head, usual, shown if usual.temporal_input else features)
        if usual.temporal_input:
            direct = replace(usual, temporal_input=False, **spec.on_features)
            found[f"{head} (temporal input features)"] = (head, direct, features)
    tail = replace(HEADS["frame"].settings, finetune_tap=MAP)
    found["frame (default taps)"] = ("frame", HEADS["frame"].settings, of_taps(TrainConfig().taps, TAP_ROWS))
    found[f"frame (tail {MAP})"] = ("frame", tail, of_taps((MAP,), MAP_ROWS))
    return found


def of_taps(taps: tuple[str, ...], rows: int) -> FrameDataset:
    """Random values of taps, in fewer rows."""
    layout = row_layout(tap_shapes(taps), taps, "bench")
    return replace(simulated(rows, layout[-1].stop), layout=layout)


def measure(name: str, case: tuple[str, HeadSettings, FrameDataset], steps: int, store_rows: int) -> None:
    """Print one head's line."""
    head, settings, features = case
    everything = tuple(range(len(features.offsets) - 1))
    task = FitTask(head=head, settings=settings, classes=8, train=everything, val_trials=(), seed=0, device="cpu")
    rng = np.random.default_rng(0)
    run = _Trainer(task, features, _new_head(task, features))
    half = replace(task, settings=replace(settings, precision="bf16"))
    other = _Trainer(half, features, _new_head(half, features))
    starts = _epoch_starts(run.sampler, settings, rng)
    data, step, low = [], [], []
    run.head.train(), other.head.train()
    for i in range(steps + WARM_UP):
        chosen = starts[(i * settings.batch) % max(len(starts) - settings.batch, 1):][:settings.batch]
        began = time.perf_counter()
        batch = run.sampler.batch(chosen, rng)
        made = time.perf_counter()
        run.step(batch, rng)
        stepped = time.perf_counter()
        other.step(batch, rng)
        if i >= WARM_UP:
            data.append(made - began)
            step.append(stepped - made)
            low.append(time.perf_counter() - stepped)
    many = len(starts) * store_rows / len(features.label) / settings.batch
    print(f"{name:28} {1e3 * median(step):8.1f} {median(data) / median(step):9.3f} {median(low) / median(step):9.2f} "
          f"{many:8.0f} {many * (median(step) + median(data)):10.0f}", flush=True)


def main() -> None:
    """Measure every head."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for option, default in (("rows", 60_000), ("width", 512), ("steps", 20), ("store-rows", 2_800_000), ("threads", 1)):
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--only", default="", help="names of lines, with commas between them")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    features = simulated(chosen.rows, chosen.width)
    print(f"{chosen.rows} x {chosen.width}, {chosen.threads} threads; epoch over {chosen.store_rows} rows, computed")
    print(f"{'head':28} {'step ms':>8} {'data/step':>9} {'bf16/step':>9} {'steps':>8} {'epoch s':>10}")
    for name, case in cases(features).items():
        if chosen.only and name not in chosen.only.split(","):
            continue
        measure(name, case, chosen.steps, chosen.store_rows)


if __name__ == "__main__":
    main()
