"""What sound gives to streams of faces, and what a clip without sound loses; the sound is made.

    python tests/bench/bench_sound.py --root streams --cache cache          streams of make_streams.py, extracted
    python tests/bench/bench_sound.py --root streams --cache cache --quiet .2   one training clip in five is silent

Each frame's sound is a vector of its expression (drawn once, 24 values) under noise that changes slowly, in stretches
of speech: half of the time nobody speaks. The validation clips are predicted by heads on pictures alone, and by heads
on pictures and sound, with the sound of those clips and without any.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fercache.config import DatasetConfig, StackConfig, TrainConfig
from fercache.data import load_dataset
from fercache.extraction import job
from fercache.inference import ensemble
from fercache.inference.ensemble import SelectedModels
from fercache.oof import OofLogits
from fercache.stacking import stack
from fercache.store.embedding_store import EmbeddingStore
from fercache.store.layout import SEGMENT
from fercache.store.multi_store import MultiStoreView
from fercache.training import train

SIZE, SPEECH_S = 24, 2.0


def made_sound(labels: NDArray[np.int16], time_s: NDArray[np.float64], noise: float, rng: np.random.Generator,
               prototypes: NDArray[np.float64]) -> NDArray[np.float16]:
    """Return the rows of a clip, (T, SIZE): zeros while nobody speaks."""
    slow = np.repeat(rng.normal(0, noise, (len(labels) // 15 + 1, SIZE)), 15, axis=0)[:len(labels)]
    rows = prototypes[np.maximum(labels, 0)] + slow + rng.normal(0, noise, (len(labels), SIZE))
    speaks = rng.random(int(time_s[-1] / SPEECH_S) + 1) < .5
    return (rows * speaks[(time_s / SPEECH_S).astype(int), None]).astype(np.float16)


def write_store(path: Path, rows: dict[str, NDArray[np.float16]], pictures: EmbeddingStore) -> EmbeddingStore:
    """Return a store of sound with these rows."""
    settings = {"modality": "audio", "backbone": "made", "name": path.stem}
    store = EmbeddingStore.create(path, settings, {"audio": (SIZE,)})
    for clip, values in rows.items():
        with store.writer(clip, source={"sha256": clip}, provenance={}) as writer:
            if writer is not None:
                table = pictures[clip].frame_table.copy()
                table["valid"] = values.any(1)
                writer.set_frame_table(np.array(table.tolist()))
                for start in range(0, len(values), SEGMENT):
                    writer.write(start, {"audio": values[start:start + SEGMENT]})
                writer.commit()
    return store


def main() -> None:
    """Print macro F1 of every column on the validation clips."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--train", type=int, default=0, help="number of training clips (0: all)")
    parser.add_argument("--noise", type=float, default=2.0)
    parser.add_argument("--quiet", type=float, default=0.0, help="share of the training clips without sound")
    parser.add_argument("--folds", type=int, default=3)
    given = parser.parse_args()
    dataset = load_dataset(DatasetConfig(root=given.root), given.cache)
    pictures = EmbeddingStore.open(job.current_store(given.cache, dataset.name))
    learnt = [trial for trial in dataset.trials if trial.split == "train"][:given.train or None]
    scored = [trial for trial in dataset.trials if trial.split == "validation"]
    dataset = replace(dataset, trials=tuple(sorted([*learnt, *scored], key=lambda trial: trial.name)))
    rng = np.random.default_rng(0)
    prototypes, rows = rng.normal(0, 1, (len(dataset.classes), SIZE)), {}
    for i, trial in enumerate(dataset.trials):
        table = pictures[trial.name].frame_table
        truth = np.loadtxt(Path(given.root) / "truth" / f"{trial.name}.txt", np.int64, delimiter=",", skiprows=1)
        values = made_sound(np.pad(truth, (0, len(table)))[:len(table)], table["time_s"], given.noise, rng, prototypes)
        rows[trial.name] = values * np.float16(trial.split == "validation" or i % 100 >= 100 * given.quiet)
    folder = given.cache / "features" / dataset.name
    name = f"{len(learnt)}x{given.noise}x{given.quiet}"
    audible = write_store(folder / f"made-{name}.zarr", rows, pictures)
    nothing = {clip: np.zeros_like(one) for clip, one in rows.items()}
    silent = write_store(folder / f"made-{name}s.zarr", nothing, pictures)
    taps = ("block8", "repeat_2")
    config = TrainConfig(taps=taps, folds=given.folds, ensemble=2, threads=1, init="scratch")
    runs = {"pictures": config,
            "pictures and sound": replace(config, heads=("frame", "gru", "transformer", "audio"),
                                          join=(str(audible.path),))}
    print(f"{dataset.name}: {len(learnt)} training and {len(scored)} validation clips, noise {given.noise}")
    for title, one in runs.items():
        trained = train.train_heads(dataset, pictures, one, given.cache, make_current=False)
        oof = OofLogits.load(trained.logits_file)
        result = stack.run_stack(oof, StackConfig(bootstrap=0, threads=1), given.cache)
        models = SelectedModels(logits_file=oof, heads=trained.heads, stack=result.folder)
        for what, store in ({"with their sound": audible, "without sound": silent} if one.join else {"": None}).items():
            view = pictures if store is None else MultiStoreView(pictures, {"made": store})
            new, _ = ensemble.predict_logits(dataset, scored, view, models, given.cache, device="cpu", threads=1)
            of_stack = StackConfig(bootstrap=0, threads=1)
            quiet = {"mute": stack.run_without_sound(oof, of_stack, given.cache), "silent": new.trials}
            report = stack.evaluate(result.folder, new, of_stack, **(quiet if store is silent else {})).report
            scores = {column: row.figures["macro_f1"] for column, row in report.splits["validation"].all_frames.items()}
            print(f"{title} {what}: final {report.final.column}; " + ", ".join(
                f"{column} {score:.4f}" for column, score in scores.items()), flush=True)


if __name__ == "__main__":
    main()
