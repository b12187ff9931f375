"""Stage one against the loop that it replaces: MTCNN on one frame, then the CNN on one crop.

    python tests/bench/bench_extract.py [--videos FOLDER] [--crops FOLDER] [--share 8]

Prints a table of frames a second and ratios, all measured in this one run; the loop sees every SHARE-th frame, the rest
sees all. Overlaps are of the followed boxes with those of a detector that looks at each frame.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from fercache import datasets, extract, facenet, media, people, weights
from fercache.backbones.inception import load
from fercache.config import DatasetConfig, ExtractConfig
from fercache.crops import crop
from fercache.store import EmbeddingStore

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
TAPS = ("embedding", "block8", "repeat_2", "repeat_1-3x3")


def naive_videos(clips: list[Path], cnn: torch.nn.Module, share: int) -> float:
    """Return frames a second of facenet-pytorch as its examples use it, decoding not counted."""
    mtcnn, frames, spent = facenet.MTCNN(), 0, 0.0
    for path in clips:
        for frame in media.open_source(path, "video").frames():
            if (frame.index - 1) % share or frame.image is None:
                continue
            started = time.perf_counter()
            boxes, _ = mtcnn.detect(frame.image)
            if boxes is not None:
                one_by_one(cnn, crop(frame.image, boxes[0]))
            spent, frames = spent + time.perf_counter() - started, frames + 1
    return frames / spent


def naive_crops(folders: list[Path], cnn: torch.nn.Module, share: int) -> float:
    """Return crops a second of the CNN, one at a time, decoding not counted."""
    frames, spent = 0, 0.0
    for folder in folders:
        for frame in media.open_source(folder, "crops").frames():
            if (frame.index - 1) % share or frame.image is None:
                continue
            started = time.perf_counter()
            one_by_one(cnn, crop(frame.image, np.array([0, 0, frame.image.shape[1], frame.image.shape[0]], float)))
            spent, frames = spent + time.perf_counter() - started, frames + 1
    return frames / spent


@torch.inference_mode()
def one_by_one(cnn: torch.nn.Module, face: np.ndarray) -> None:
    """Run the library's own net, as it comes, on one crop (160, 160, 3)."""
    cnn(((torch.from_numpy(face).float() - 127.5) / 128).permute(2, 0, 1)[None])


def ours(place: Path, config: ExtractConfig, home: Path) -> tuple[float, EmbeddingStore]:
    """Return frames a second of stage one over a folder, from nothing to the last commit mark, and the store."""
    dataset = datasets.load(DatasetConfig(clips=str(place), dataset="table"), home)
    report = extract.run(dataset, config, home)
    frames = sum(clip.frames for clip in report.clips if clip.state == "computed")
    return frames / report.seconds, EmbeddingStore.open(report.store)


def overlaps(exact: EmbeddingStore, other: EmbeddingStore) -> dict[str, float]:
    """Return the mean overlap of boxes a clip; a frame in which only one of the two has a face counts as 0."""
    found = {}
    for name in exact:
        boxes = [np.column_stack([s[name].clock[c] for c in ("x1", "y1", "x2", "y2")]) for s in (exact, other)]
        seen = [~np.isnan(b[:, 0]) for b in boxes]
        both, either = seen[0] & seen[1], seen[0] | seen[1]
        if either.any():
            pairs = zip(boxes[0][both], boxes[1][both], strict=True)
            found[name] = sum(people.iou(a[None], b[None])[0, 0] for a, b in pairs) / either.sum()
    return found


def cosines(exact: EmbeddingStore, other: EmbeddingStore, tap: str) -> float:
    """Return the smallest cosine between two stores' rows of a tap."""
    least = 1.0
    for name in exact:
        a, b = (s[name].read(tap).reshape(s[name].frames, -1).astype(np.float64) for s in (exact, other))
        size = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        least = min(least, *((a * b).sum(1)[size > 0] / size[size > 0]), 1.0)
    return least


def line(name: str, rate: float, base: float, more: str = "") -> None:
    print(f"{name:46} {rate:8.1f} frames/s {rate / base:6.2f}x  {more}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=Path, default=SHARED / "data/videos")
    parser.add_argument("--crops", type=Path, help="folder of crop folders")
    parser.add_argument("--share", type=int, default=8)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    source = weights.ensure("casia-webface", ROOT / "cache/weights")
    cnn = load(source)
    backends = ["torch"] + (["openvino"] if find_spec("openvino") else [])
    base_config = ExtractConfig(taps=TAPS)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "weights").symlink_to((ROOT / "cache/weights").resolve())
        if args.videos.is_dir():
            clips = sorted(path for path in args.videos.iterdir() if path.is_file())
            base = naive_videos(clips, cnn, args.share)
            line("videos: one frame, one crop at a time", base, base)
            rate, exact = ours(args.videos, replace(base_config, every=1), home / "exact")
            line("every frame looked at, float32", rate, base)
            for backend in backends:
                for precision in ("float32", "bf16"):
                    config = replace(base_config, precision=precision, backend=backend)
                    rate, store = ours(args.videos, config, home / f"{backend}-{precision}")
                    found = overlaps(exact, store)
                    line(f"every {config.every}th, {backend}, {precision}", rate, base,
                         f"IoU mean {np.mean(list(found.values())):.3f}, least clip {min(found.values()):.3f}")
        if args.crops:
            folders = sorted(path for path in args.crops.iterdir() if path.is_dir())
            base, exact32 = naive_crops(folders, cnn, args.share), None
            line("crops: one at a time", base, base)
            for precision in ("float32", "bf16"):
                for backend in backends:
                    config = replace(base_config, precision=precision, backend=backend)
                    rate, store = ours(args.crops, config, home / f"crops-{backend}-{precision}")
                    exact32 = exact32 or store
                    least = min(cosines(exact32, store, tap) for tap in TAPS)
                    line(f"{backend}, {precision}", rate, base, f"least cosine to torch float32 {least:.6f}")


if __name__ == "__main__":
    main()
