"""What following costs where it matters: a head trained on exact boxes, scored on exact and on followed ones.

    python tests/bench/bench_boxes.py --images fer2013_train.zip --background CLIP [--detect-every 5] [--small]

Labelled streams of FER2013's faces (see make_streams.py) are pasted into the frames of a real clip that shows no face
of its own, moving and scaled, and encoded as video. Stage one runs over them twice, with a detector that looks at each
frame and with the default; the frame head learns from the first on the training groups, and is scored on the held-out
groups with the features of both.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import make_streams
import numpy as np
from PIL import Image

from fercache import media, metrics
from fercache.config import ExtractConfig, TrainConfig
from fercache.data.base import Dataset, Trial
from fercache.extraction import job
from fercache.faces.tracklets import iou
from fercache.store.embedding_store import EmbeddingStore
from fercache.training import train
from fercache.training.inference import load_trained, predict_new

ROOT = Path(__file__).resolve().parents[2]
HEIGHT, WIDTH, FPS = 288, 384, 30
LEAST_PX, MOST_PX = 100, 140
"""Side of a pasted photo, which is little more than the face."""
TAPS = ("block8", "repeat_2")
GLITCH = 0.02
"""Share of frames in which the head jumps, as in a shaken picture."""
DRAWS, LOSS = 2000, 0.01


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the held-out groups say.

    Attributes
    ----------
    scores, found : macro F1, and the share of frames with a face, with exact and with fast boxes.
    paired : fast - exact, with its interval.
    overlap, alike : mean IoU of the boxes, and the share of frames of which the head says the same.
    """

    scores: tuple[float, ...]
    found: tuple[float, ...]
    paired: dict[str, Any]
    groups: int
    frames: int
    overlap: float
    alike: float


def backgrounds(clip: Path) -> list[np.ndarray]:
    """Return the frames of a clip without a face, (288, 384, 3)."""
    return [np.asarray(Image.fromarray(frame.image).resize((WIDTH, HEIGHT)))
            for frame in media.open_source(clip, "video").frames() if frame.image is not None]


def pasted(crops: Iterator[np.ndarray], walls: list[np.ndarray], total: int,
           rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield whole frames (288, 384, 3): each crop, in a soft oval, on a path over a real scene."""
    side = (LEAST_PX + MOST_PX) / 2 + make_streams.drift(total, (MOST_PX - LEAST_PX) / 2, rng)
    x = WIDTH / 2 + make_streams.drift(total, WIDTH / 2 - MOST_PX, rng)
    y = HEIGHT / 2 + make_streams.drift(total, HEIGHT / 2 - MOST_PX / 2 - 5, rng)
    jump = rng.random(total) < GLITCH
    x, y = x + jump * rng.normal(0, 25, total), y + jump * rng.normal(0, 15, total)
    start = int(rng.integers(len(walls)))
    for t, face in enumerate(crops):
        frame = walls[(start + t) % len(walls)].astype(np.float32)
        px = int(side[t])
        small = np.asarray(Image.fromarray(face).resize((px, px), Image.Resampling.BICUBIC), np.float32)
        rows, columns = np.mgrid[-1:1:px * 1j, -1:1:px * 1j]
        soft = np.clip((1.15 - np.hypot(rows, columns)) / .15, 0, 1)[..., None]
        left, top = (int(np.clip(c - px / 2, 0, most - px)) for c, most in ((x[t], WIDTH), (y[t], HEIGHT)))
        part = frame[top:top + px, left:left + px]
        frame[top:top + px, left:left + px] = soft * small + (1 - soft) * part
        yield np.clip(frame, 0, 255).astype(np.uint8)


def encode(path: Path, frames: Iterator[np.ndarray]) -> None:
    """Write frames as H.264 as a phone would."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=FPS, options={"crf": "21"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode(None))


def make(folder: Path, images: Path, background: Path, trials: int, frames: int, seed: int) -> Dataset:
    """Return a data set of videos in `folder`; two of five trials are held out."""
    rng, walls = np.random.default_rng(seed), backgrounds(background)
    pool, made = make_streams.draw_pool(make_streams.read_photos(images), [], rng), []
    for number in range(trials):
        name = f"v{number:02d}"
        labels = make_streams.write_crops(folder / "crops" / name, frames, pool, rng)
        shown = sorted((folder / "crops" / name).glob("*.jpg"))
        label = np.array([labels[int(path.stem) - 1] for path in shown], np.int16)
        encode(folder / f"{name}.mp4", pasted((np.asarray(Image.open(path).convert("RGB")) for path in shown), walls,
                                              len(shown), rng))
        made.append(Trial(name=name, path=folder / f"{name}.mp4", kind="video", parent=name, group=name, labels=label,
                          split="validation" if number % 5 > 2 else "train"))
    return Dataset(name="boxes", layout="table", classes=make_streams.CLASSES, trials=tuple(made))


def features(dataset: Dataset, home: Path, every: int) -> EmbeddingStore:
    """Return the store of the videos with a detector that looks at every so many-th frame."""
    report = job.extract_dataset(dataset, ExtractConfig(taps=TAPS, detect_every=every, device="cpu"), home)
    assert not report.failures(), report.failures()
    return EmbeddingStore.open(report.store)


def said(heads: Any, store: EmbeddingStore, trials: list[Trial]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return (truth, prediction, seen) of every frame of each trial."""
    loaded = heads.load_features(store, trials)
    told = predict_new(heads, loaded, "cpu")["frame"].argmax(1)
    spans = zip(loaded.offsets[:-1], loaded.offsets[1:], strict=True)
    return [(loaded.label[a:b], told[a:b], loaded.valid[a:b] > 0) for a, b in spans]


def compare(exact: EmbeddingStore, fast: EmbeddingStore, dataset: Dataset, home: Path) -> Outcome:
    """Return the scores of heads that learnt from exact boxes, on frames in which both found the face."""
    recipe = TrainConfig(heads=("frame",), taps=TAPS, folds=3, ensemble=2)
    heads = load_trained(train.train_heads(dataset, exact, recipe, home).heads)
    held, classes = [trial for trial in dataset.trials if trial.split == "validation"], len(dataset.classes)
    told = [said(heads, store, held) for store in (exact, fast)]
    both = [one[2] & other[2] & (one[0] >= 0) for one, other in zip(*told, strict=True)]
    counts = [np.array([metrics.confusion(truth[use], says[use], classes)
                        for (truth, says, _), use in zip(kind, both, strict=True)]) for kind in told]
    paired = metrics.Resampler(len(held), DRAWS, 0).difference(counts[1], counts[0], metrics.macro_f1)
    alike = [(one[1] == other[1])[use] for one, other, use in zip(*told, both, strict=True)]
    return Outcome(scores=tuple(float(metrics.macro_f1(one.sum(0))) for one in counts), paired=paired,
                   found=tuple(float(np.concatenate([one[2] for one in kind]).mean()) for kind in told),
                   groups=len(held), frames=int(sum(use.sum() for use in both)),
                   overlap=overlap(exact, fast, held, both), alike=float(np.concatenate(alike).mean()))


def overlap(exact: EmbeddingStore, fast: EmbeddingStore, held: list[Trial], both: list[np.ndarray]) -> float:
    """Return the mean IoU of the two stores' boxes."""
    found = []
    for trial, use in zip(held, both, strict=True):
        boxes = [np.column_stack([s[trial.name].frame_table[c] for c in ("x1", "y1", "x2", "y2")])
                 for s in (exact, fast)]
        found += [iou(boxes[0][i][None], boxes[1][i][None])[0, 0] for i in np.flatnonzero(use)]
    return float(np.mean(found))


def main() -> None:
    """Print both scores and the paired difference; exit code 1 where more than LOSS is lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="FER2013, as make_streams.py takes it")
    parser.add_argument("--background", type=Path, help="a video clip without a face")
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--frames", type=int, default=120)
    parser.add_argument("--detect-every", type=int, default=ExtractConfig().detect_every)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="a smoke test: 6 trials of 40 frames, nothing is judged")
    args = parser.parse_args()
    if not (args.images and args.background):  # `make bench` runs every file without flags
        print("nothing measured: give FER2013 with --images and a clip without a face with --background",
              file=sys.stderr)
        return
    logging.disable(logging.WARNING)
    trials, frames = (6, 40) if args.small else (args.trials, args.frames)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "weights").symlink_to((ROOT / "cache/weights").resolve())
        dataset = make(home / "set", args.images, args.background, trials, frames, args.seed)
        exact, fast = features(dataset, home, 1), features(dataset, home, args.detect_every)
        found = compare(exact, fast, dataset, home)
    print(f"{trials} trials of about {frames} frames; scored: {found.groups} held-out groups, {found.frames} frames")
    print(f"face found: each frame looked at {found.found[0]:.3f}, every {args.detect_every}th {found.found[1]:.3f}; "
          f"mean IoU {found.overlap:.3f}; same prediction in {found.alike:.3f} of the frames")
    ends = found.paired.interval
    print(f"macro F1: exact boxes {found.scores[0]:.4f}, fast boxes {found.scores[1]:.4f}; fast - exact "
          f"{found.paired.difference:+.4f} " + (f"[{ends[0]:+.4f}, {ends[1]:+.4f}]" if ends else ""))
    if not args.small and found.scores[0] - found.scores[1] > LOSS:
        sys.exit(f"more than {LOSS} macro F1 is lost")


if __name__ == "__main__":
    main()
