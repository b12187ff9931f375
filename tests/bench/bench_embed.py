"""What int8 and fewer passes of the CNN gain and lose beside float32 on every frame, in one run.

    python tests/bench/bench_embed.py --videos FOLDER --train fer2013_train.zip --test fer2013_validation.zip \
        --background CLIP [--home FOLDER] [--sweep] [--equal]

Real clips, without labels: the starter heads' probabilities, averaged over a second, with each setting beside float32
on every frame: the share of frames that keep their class, and the mean change of a probability, in all and in the worst
clip. Labelled streams: photos of FER2013 pasted into the frames of a real clip with head motion (see bench_boxes.py).
The starter heads, and heads trained on streams of `--train` with the same setting, are scored on streams of `--test`;
differences are paired over streams, with 95 % intervals. Stores of some frames are made of the rows of a store with
every frame, which are the same values (tests/test_embed_every.py). `--home` keeps the extracted stores.

`--cost` extracts the clips with each setting instead, and prints CPU seconds of the whole process, which other jobs
disturb less than the time. `--sweep` prints what chooses the threshold of `auto`: real clips and streams of `--train`,
fixed intervals beside thresholds. `--equal` scores fixed intervals on the labels of both sets of streams beside `auto`
with the threshold at which it embeds as many frames.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import bench_boxes
import numpy as np
from numpy.typing import NDArray

from fercache import data, media, metrics
from fercache.config import DatasetConfig, ExtractConfig, TrainConfig
from fercache.data.base import Dataset, Trial, stored_trials
from fercache.extraction import job
from fercache.extraction.clip import BOX, with_embedded
from fercache.faces import interpolation
from fercache.faces.crops import crop_face
from fercache.inference.ensemble import LoadedHeads
from fercache.results.smoothing import moving_mean, window_reach
from fercache.store.embedding_store import EmbeddingStore
from fercache.store.layout import FRAME_COLUMNS
from fercache.training import train
from fercache.training.inference import load_trained, predict_new

ROOT = Path(__file__).resolve().parents[2]
TAPS = ("block8", "repeat_2", "repeat_1-3x3")
BASE = ExtractConfig(backend="openvino", device="cpu", threads=1)
SETTINGS = {"float32": {}, "every 3rd": {"embed_every": "3"}, "auto": {"embed_every": "auto"},
            "int8": {"precision": "int8"}, "int8, every 3rd": {"precision": "int8", "embed_every": "3"},
            "int8, auto": {"precision": "int8", "embed_every": "auto"}}
DRAWS, HALF_S = 2000, 0.5
RECIPE = TrainConfig(heads=("frame", "gru"), taps=TAPS, folds=3, ensemble=1, init="starter", threads=1)
CACHE: dict[tuple[str, str], list[interpolation.Face]] = {}


def smoothed(store: EmbeddingStore, heads: LoadedHeads, clip: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the starter's probabilities of a clip, averaged over a second, (T, C), and which frames have a face."""
    table = store[clip].frame_table
    seen = table["valid"] > 0
    probs = heads.predict_proba(store, clip, device="cpu", force=True)["frame"].astype(np.float32)
    return moving_mean(probs, seen, window_reach(table["time_s"], HALF_S, HALF_S)), seen


ClipLoss = tuple[str, int, float, float]
"""A clip, its frames with a face, the share of them with the same class, and the mean change of a probability."""


def compare(full: EmbeddingStore, other: EmbeddingStore, heads: LoadedHeads) -> tuple[list[ClipLoss], float, float]:
    """Return the loss of each clip with a face, and over all frames the share with the same class and the change."""
    rows, same, change = [], [], []
    for clip in sorted(set(full) & set(other)):  # identity vectors in int8 may make another person of a few frames
        (a, seen), (b, also) = (smoothed(store, heads, clip) for store in (full, other))
        a, b = a[seen & also], b[seen & also]
        if len(a):
            same.append(a.argmax(1) == b.argmax(1))
            change.append(np.abs(a - b).mean(1))
            rows.append((clip, len(a), float(same[-1].mean()), float(change[-1].mean())))
    return rows, float(np.concatenate(same).mean()), float(np.concatenate(change).mean())


def stored_rows(store: EmbeddingStore) -> float:
    """Return the share of the frames whose values the store holds."""
    tap = next(iter(store.taps))
    return (sum(store.manifest(clip).arrays[tap].shape[0] for clip in store)
            / sum(store.manifest(clip).frames for clip in store))


def extracted(dataset: Dataset, home: Path, setting: dict[str, str]) -> EmbeddingStore:
    """Return the store of a setting, which stage one makes unless it is there."""
    labelled = any(trial.labels is not None for trial in dataset.trials)  # of streams, which show one person
    report = job.extract_dataset(dataset, replace(BASE, **setting, people="main" if labelled else "all"), home)
    assert not report.failures(), report.failures()
    return EmbeddingStore.open(report.store)


def cost(videos: Dataset, home: Path) -> None:
    """Print the cost of each setting, each in a cache of its own."""
    for name, setting in SETTINGS.items():
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "weights").symlink_to((home / "weights").resolve())
            started = time.process_time()
            store = extracted(videos, Path(folder), setting)
            spent, frames = time.process_time() - started, sum(store.manifest(clip).frames for clip in store)
            print(f"{name:16} {1000 * spent / frames:6.1f} CPU ms a frame, loading included; "
                  f"{store.size().bytes / frames:.0f} bytes a frame; {frames} frames", flush=True)


def main() -> None:
    """Extract, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=Path, help="a folder of real clips")
    parser.add_argument("--train", type=Path, help="FER2013's training photos, as make_streams.py takes them")
    parser.add_argument("--test", type=Path, help="photos to score on")
    parser.add_argument("--background", type=Path, help="a video clip without a face")
    parser.add_argument("--home", type=Path, help="keeps streams and stores")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--equal", action="store_true")
    args = parser.parse_args()
    if args.videos is None and args.train is None:
        print("nothing measured: name clips with --videos, or photos with --train and --test")
        return
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        home = args.home or Path(folder)
        home.mkdir(exist_ok=True)
        if not (home / "weights").exists():
            (home / "weights").symlink_to((ROOT / "cache/weights").resolve())
        videos = [data.load_dataset(DatasetConfig(clips=str(clips), dataset="table"), home)
                  for clips in (args.videos,) if clips]
        streams = [streams_of(home / name, images, args, name, seed) for name, images, seed in
                   (("train", args.train, 5), ("test", args.test, 6)) if images is not None]
        if args.cost:
            cost(videos[0], home)
        elif args.equal:
            equal_cost(streams, home)
        elif args.sweep:
            sweep([*videos, *streams[:1]], home)
        else:
            with tempfile.TemporaryDirectory() as made:
                score(videos, streams, home, Path(made))


def streams_of(folder: Path, images: Path, args: argparse.Namespace, name: str, seed: int) -> Dataset:
    """Return labelled videos, made once."""
    path = folder / "labels.npz"
    if not path.exists():
        made = bench_boxes.make(folder, images, args.background, args.trials, args.frames, seed)
        np.savez(path, **{trial.name: trial.labels for trial in made.trials})
    with np.load(path) as labels:
        trials = tuple(Trial(name=clip, path=folder / f"{clip}.mp4", kind="video", parent=clip, group=clip,
                             labels=labels[clip], split="train" if name == "train" else "validation")
                       for clip in sorted(labels.files))
    return Dataset(name=name, layout="table", classes=bench_boxes.make_streams.CLASSES, trials=trials)


def score(videos: Sequence[Dataset], streams: Sequence[Dataset], home: Path, folder: Path) -> None:
    """Print the loss of every setting; stores of some frames go to `folder`."""
    heads, stores = LoadedHeads.find(home, Path("starter")), {}
    for name, setting in SETTINGS.items():
        precision, every = {"precision": setting.get("precision", "float32")}, setting.get("embed_every", "1")
        for dataset in (*videos, *streams):
            store = extracted(dataset, home, precision)
            if every != "1":
                store = subset(dataset, store, every, folder / f"{dataset.name}-{name}-0.zarr")
            stores[name, dataset.name] = store
    for name in SETTINGS if videos else ():
        full, store = (stores[one, videos[0].name] for one in ("float32", name))
        rows, same, change = compare(full, store, heads)
        worst = min(rows, key=lambda row: row[2])
        print(f"{name:16} {stored_rows(store):.3f} of the rows; same class {same:.4f}, change {change:.4f}; "
              f"least clip {worst[2]:.3f} ({worst[0]}, {worst[1]} frames)")
        for row in rows:
            print(f"    {row[0]:28} {row[1]:5} frames  same class {row[2]:.3f}  change {row[3]:.4f}")
    if len(streams) == 2:
        labelled(streams, {name: [stores[name, one.name] for one in streams] for name in SETTINGS}, heads, home)


def confusions_of(folder: Path, store: EmbeddingStore, tested: Dataset) -> dict[str, NDArray[np.int64]]:
    """Return the confusions of single frames of each head in a folder, by stream."""
    loaded = load_trained(folder)
    features = loaded.load_features(store, tested.trials)
    use = (features.label >= 0) & features.valid
    # The starter's classes have FER2013's names in the order of the streams.
    return {head: metrics.confusions(features.label[use], log_probs[use].argmax(1), features.trial_of_row()[use],
                                     len(tested.classes), len(tested.trials))
            for head, log_probs in predict_new(loaded, features, "cpu").items()}


def labelled(streams: Sequence[Dataset], stores: dict[str, list[EmbeddingStore]], heads: LoadedHeads,
             home: Path) -> None:
    """Print macro F1 of the starter heads, and of heads trained on each setting, with paired differences."""
    trained, tested = streams
    found: dict[tuple[str, str], NDArray[np.int64]] = {}
    for name, (own, other) in stores.items():
        kinds = {"starter": heads.folder, "trained": train.train_heads(trained, own, RECIPE, home).heads,
                 "trained on float32": train.train_heads(trained, stores["float32"][0], RECIPE, home).heads}
        for kind, folder in kinds.items():
            for head, matrix in confusions_of(folder, other, tested).items():
                found[f"{kind}: {head}", name] = matrix
    print(f"streams: {len(tested.trials)} of PublicTest, {int(found[next(iter(found))].sum())} frames with a face")
    draws = metrics.Resampler(len(tested.trials), DRAWS, 0)
    for kind in dict.fromkeys(kind for kind, _ in found):
        for name in stores:
            matrix = found[kind, name]
            gain = draws.difference(matrix, found[kind, "float32"], metrics.macro_f1)
            ends = gain.interval or (np.nan, np.nan)
            print(f"{kind:26} {name:16} macro F1 {float(metrics.macro_f1(matrix.sum(0))):.4f}  "
                  f"{gain.difference:+.4f} [{ends[0]:+.4f}, {ends[1]:+.4f}]")


# What chooses the threshold: a store in which every frame is embedded gives the values of any selection.

def faces_of(dataset: Dataset, store: EmbeddingStore, clip: str) -> list[interpolation.Face]:
    """Return the faces of a clip, with their small pictures."""
    if (str(store.path), clip) not in CACHE:
        trial = next(trial for trial in stored_trials(dataset, store).trials if trial.name == clip)
        table = store[clip].frame_table.view((np.float64, len(FRAME_COLUMNS)))
        track = table[:, FRAME_COLUMNS.index("track")].astype(int)
        CACHE[str(store.path), clip] = [
            interpolation.Face(row, table[row, 1], int(track[row]), [], interpolation.small_gray(
                crop_face(frame.image, table[row, BOX])) if track[row] >= 0 else None)
            for row, frame in enumerate(media.open_source(trial.path, trial.kind).frames())]
    return CACHE[str(store.path), clip]


def subset(dataset: Dataset, store: EmbeddingStore, every: str, path: Path) -> EmbeddingStore:
    """Return the store of another selection, made of the values of a store with every frame."""
    made = EmbeddingStore.create(path, {**store.settings, "embed_every": every}, store.taps)
    for clip in store:
        rows = [face.row for face in interpolation.select_frames(faces_of(dataset, store, clip), every)]
        with made.writer(clip, source={"sha256": "0"}, provenance={}) as writer:
            assert writer is not None
            table = store[clip].frame_table.view((np.float64, len(FRAME_COLUMNS)))
            writer.set_frame_table(with_embedded(table, rows))
            values = {tap: store[clip].read(tap)[rows] for tap in store.taps}
            for start in range(0, len(rows), 1024):
                writer.write(start, {tap: value[start:start + 1024] for tap, value in values.items()})
            writer.commit()
    return made


def sweep(datasets: Sequence[Dataset], home: Path) -> None:
    """Print cost and loss of fixed intervals and of thresholds of `auto`."""
    heads = LoadedHeads.find(home, Path("starter"))
    for dataset in datasets:
        store = extracted(dataset, home, {})
        for name, every in selections():
            with tempfile.TemporaryDirectory() as folder:
                made = subset(dataset, store, every, Path(folder) / "s.zarr")
                rows, same, change = compare(store, made, heads)
                print(f"{dataset.name:8} {name:12} {stored_rows(made):.3f} of the rows, same class {same:.4f}, change "
                      f"{change:.4f}, least clip {min(row[2] for row in rows):.3f}", flush=True)


def equal_cost(streams: Sequence[Dataset], home: Path) -> None:
    """Print macro F1 of `auto` and of fixed intervals that embed as many frames, with paired differences."""
    heads, before = LoadedHeads.find(home, Path("starter")), interpolation.EMBED_CHANGE
    stores = [extracted(dataset, home, {}) for dataset in streams]
    folders = {"starter": heads.folder, "trained": train.train_heads(streams[0], stores[0], RECIPE, home).heads}
    for place, (dataset, store) in enumerate(zip(streams, stores, strict=True)):
        draws = metrics.Resampler(len(dataset.trials), DRAWS, 0)

        def share(every: str, dataset: Dataset = dataset, store: EmbeddingStore = store) -> float:
            clips = [faces_of(dataset, store, clip) for clip in store]
            return sum(len(list(interpolation.select_frames(faces, every))) for faces in clips) / sum(map(len, clips))

        for every in ("2", "3", "4"):
            low, high = 1.0, 100.0
            for _ in range(14):  # more frames with a lower threshold
                interpolation.EMBED_CHANGE = (low + high) / 2
                low, high = ((interpolation.EMBED_CHANGE, high) if share("auto") > share(every) else
                             (low, interpolation.EMBED_CHANGE))
            with tempfile.TemporaryDirectory() as folder:
                made = [subset(dataset, store, name, Path(folder) / f"{name}.zarr") for name in (every, "auto")]
                for kind in ("starter", "trained")[:1 + place]:  # heads are not scored on what they were trained on
                    fixed, auto = (confusions_of(folders[kind], one, dataset)["frame"] for one in made)
                    gain = draws.difference(auto, fixed, metrics.macro_f1)
                    ends = gain.interval or (np.nan, np.nan)
                    rows, losses = [stored_rows(one) for one in made], [compare(store, one, heads) for one in made]
                    print(f"{dataset.name:6} every {every} ({rows[0]:.3f} of the rows) and auto "
                          f"{interpolation.EMBED_CHANGE:.1f} ({rows[1]:.3f}), {kind}: macro F1 "
                          f"{float(metrics.macro_f1(fixed.sum(0))):.4f} and {float(metrics.macro_f1(auto.sum(0))):.4f} "
                          f"({gain.difference:+.4f} [{ends[0]:+.4f}, {ends[1]:+.4f}]); same class {losses[0][1]:.4f} "
                          f"and {losses[1][1]:.4f}, change {losses[0][2]:.4f} and {losses[1][2]:.4f}", flush=True)
    interpolation.EMBED_CHANGE = before


def selections() -> Iterator[tuple[str, str]]:
    """Yield a name and a setting, with the threshold in place while it is used."""
    yield from ((f"every {every}", every) for every in ("2", "3", "4", "5"))
    before = interpolation.EMBED_CHANGE
    for threshold in (5.0, 6.5, 8.0, 10.0, 13.0):
        interpolation.EMBED_CHANGE = threshold
        yield f"auto {threshold}", "auto"
    interpolation.EMBED_CHANGE = before


if __name__ == "__main__":
    main()
