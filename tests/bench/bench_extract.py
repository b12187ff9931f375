"""Stage one against the loop that it replaces: MTCNN on one frame, then the CNN on one crop.

    python tests/bench/bench_extract.py [--videos FOLDER] [--crops FOLDER] [--share 10] [--rounds 3] [--clips N]

Prints a table of frames a second and ratios to facenet-pytorch as its examples use it (= 1). Both sides count decoding;
neither counts the loading of nets. The loop sees every SHARE-th frame, the rest sees all. All rows are measured in turn
on a few clips at a time, so that what else the machine does hits them alike; where others use the cores too, compare
processor times on one core (taskset -c 0), since torch's threads spin while they wait. Overlaps are of the boxes with
those of a detector that looks at each frame. Without --videos the clips of the demo are taken; without --crops, crops
are cut from them.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fercache import data, media
from fercache.backbones import facenet, weights
from fercache.backbones.backbone import Backbone
from fercache.backbones.inception import load
from fercache.backbones.weights import files
from fercache.config import FAST, DatasetConfig, ExtractConfig
from fercache.data import demo
from fercache.data.base import Dataset, Trial
from fercache.extraction import job, resources
from fercache.extraction.job import ClipResult, ExtractionJob
from fercache.faces import tracklets
from fercache.faces.crops import crop_face, whole_picture
from fercache.media import source
from fercache.runtime import devices
from fercache.runtime.progress import ProgressBar
from fercache.store.embedding_store import EmbeddingStore

ROOT = Path(__file__).resolve().parents[2]
TAPS = ("embedding", "block8", "repeat_2", "repeat_1-3x3")
CROP_CLIPS, CROPS_A_CLIP, CROP_SIDE = 8, 96, 112
FORWARD = 64
LOADED: dict[ExtractConfig, resources.Nets] = {}


class _Watched(logging.Handler):
    """Keeps the last line that names a bottleneck."""

    said = ""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        self.said = text if "bottleneck" in text else self.said


@dataclass
class Row:
    """One way to run stage one, with nets that are loaded once, and what it took so far."""

    name: str
    config: ExtractConfig
    home: Path
    cnn: files.Weights
    faces: str
    frames: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    store: EmbeddingStore | None = None
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.home /= self.name
        self.home.mkdir()
        (self.home / "weights").symlink_to((ROOT / "cache/weights").resolve())
        key = replace(self.config, embed_every="1")  # the nets are the same whichever frames they run on
        nets = LOADED[key] = LOADED.get(key) or resources.load_nets(self.config, self.cnn, "mtcnn")
        self.loaded = nets if self.faces == "mtcnn" else replace(nets, detector=None)

    def run(self, dataset: Dataset) -> None:
        """Bring some clips through, from decoding to the commit mark."""
        def timed(work: ExtractionJob, trials: Sequence[Trial]) -> Iterable[ClipResult]:
            started, cpu = time.perf_counter(), time.process_time()
            work.nets = self.loaded
            with work.resources(ProgressBar("", None, "frames"), len(trials)) as concurrent:
                done = list(work.run_clips(trials, concurrent))
            self.seconds += time.perf_counter() - started
            self.cpu_s += time.process_time() - cpu
            return done
        devices.set_torch_threads(self.config.threads)
        watched = _Watched(logging.INFO)
        logger = logging.getLogger("fercache.extraction.job")
        logger.addHandler(watched)
        report = job.extract_dataset(dataset, self.config, self.home, engine=timed)
        logger.removeHandler(watched)
        self.said.append(watched.said)
        self.frames += sum(clip.frames for clip in report.clips if clip.state == "computed")
        self.store = EmbeddingStore.open(report.store)

    @property
    def rate(self) -> float:
        return self.frames / self.seconds

    @property
    def cpu_ms(self) -> float:
        return 1000 * self.cpu_s / self.frames


@dataclass
class Loop:
    """The naive loop: seconds of decoding and of the rest are kept apart, since it sees a share of what is decoded."""

    name: str
    each: Callable[[np.ndarray], None]
    share: int
    decoded: int = 0
    seen: int = 0
    decode_s: float = 0.0
    rest_s: float = 0.0
    decode_cpu_s: float = 0.0
    rest_cpu_s: float = 0.0

    def run(self, clips: Iterable[Path], kind: str) -> None:
        for clip in clips:
            for frame in self._decoded(media.open_source(clip, kind).frames()):
                if (frame.index - 1) % self.share == 0 and frame.image is not None:
                    started, cpu = time.perf_counter(), time.process_time()
                    self.each(frame.image)
                    self.rest_s, self.seen = self.rest_s + time.perf_counter() - started, self.seen + 1
                    self.rest_cpu_s += time.process_time() - cpu

    def _decoded(self, frames: Iterator[source.Frame]) -> Iterator[source.Frame]:
        while True:
            started, cpu = time.perf_counter(), time.process_time()
            frame = next(frames, None)
            self.decode_s += time.perf_counter() - started
            self.decode_cpu_s += time.process_time() - cpu
            if frame is None:
                return
            self.decoded += 1
            yield frame

    @property
    def rate(self) -> float:
        return 1 / (self.decode_s / self.decoded + self.rest_s / self.seen)

    @property
    def cpu_ms(self) -> float:
        return 1000 * (self.decode_cpu_s / self.decoded + self.rest_cpu_s / self.seen)


def of_frames(cnn: torch.nn.Module, mtcnn: torch.nn.Module) -> Callable[[np.ndarray], None]:
    """Return the loop's work on one frame: the library's detector, then its net on the first box."""
    def each(image: np.ndarray) -> None:
        boxes, _ = mtcnn.detect(image)
        if boxes is not None:
            one(cnn, crop_face(image, boxes[0]))
    return each


@torch.inference_mode()
def one(cnn: torch.nn.Module, face: np.ndarray) -> None:
    """Run the library's own net, as it comes, on one crop (160, 160, 3)."""
    cnn(((torch.from_numpy(face.copy()).float() - 127.5) / 128).permute(2, 0, 1)[None])


@dataclass
class Forward:
    """The bare forward: full batches from memory, on all cores; what the pipeline cannot beat."""

    name: str
    net: Backbone
    crops: int = 0
    seconds: float = 0.0

    def run(self, faces: np.ndarray) -> None:
        parts = [faces[i:i + self.net.batch] for i in range(0, len(faces), self.net.batch)]
        with devices.TorchThreadPool(devices.set_torch_threads(0)) as crew:
            crew.run(self.net.embed_batch, parts[:crew.count])
            started = time.perf_counter()
            crew.run(self.net.embed_batch, parts)
            self.seconds += time.perf_counter() - started
            self.crops += len(faces)

    @property
    def rate(self) -> float:
        return self.crops / self.seconds


def overlaps(exact: EmbeddingStore, other: EmbeddingStore) -> dict[str, float]:
    """Return the mean overlap of boxes a clip; a frame in which only one of the two has a face counts as 0."""
    found = {}
    for name in exact:
        boxes = [np.column_stack([s[name].frame_table[c] for c in ("x1", "y1", "x2", "y2")]) for s in (exact, other)]
        seen = [~np.isnan(b[:, 0]) for b in boxes]
        both, either = seen[0] & seen[1], seen[0] | seen[1]
        if either.any():
            pairs = zip(boxes[0][both], boxes[1][both], strict=True)
            found[name] = sum(tracklets.iou(a[None], b[None])[0, 0] for a, b in pairs) / either.sum()
    return found


def cosine(exact: EmbeddingStore, other: EmbeddingStore) -> float:
    """Return the smallest cosine between two stores' rows, over clips and taps."""
    least = 1.0
    for name in exact:
        for tap in TAPS:
            a, b = (s[name].read(tap).reshape(s[name].frames, -1).astype(np.float64) for s in (exact, other))
            size = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
            least = min(least, *((a * b).sum(1)[size > 0] / size[size > 0]), 1.0)
    return least


def parts_of(dataset: Dataset, rounds: int) -> list[Dataset]:
    """Return the data set in parts of about equal bytes."""
    trials = sorted(dataset.trials, key=lambda trial: -_size(trial.path))
    return [replace(dataset, trials=tuple(trials[i::rounds])) for i in range(rounds)]


def _size(path: Path) -> int:
    return sum(f.stat().st_size for f in path.iterdir()) if path.is_dir() else path.stat().st_size


def line(row: Row | Loop, base: Loop, more: str = "") -> None:
    print(f"{row.name:52} {row.rate:8.1f} frames/s {row.rate / base.rate:6.2f}x  processor time a frame "
          f"{row.cpu_ms:6.1f} ms {base.cpu_ms / row.cpu_ms:6.2f}x  {more}", flush=True)


def variants(base: ExtractConfig) -> list[ExtractConfig]:
    """Return every backend and precision, bf16 only where it is another arithmetic than float32; and fewer passes."""
    backends = ["torch"] + (["openvino"] if find_spec("openvino") else [])
    precisions = ["float32"] + (["bf16"] if devices.bf16_pays() else []) + ["int8"]
    every = [replace(base, backend=backend, precision=precision) for precision in precisions for backend in backends
             if precision != "int8" or backend == "openvino"]
    fewer = [replace(base, backend="openvino", precision=precision, embed_every=embedded)
             for precision, embedded in (("float32", "3"), ("int8", "3"), (FAST["precision"], FAST["embed_every"]))]
    return every + (fewer if find_spec("openvino") else [])


def named(config: ExtractConfig, what: str) -> str:
    also = "" if devices.bf16_pays() or config.precision != "float32" else " (also bf16)"
    fewer = "" if config.embed_every == "1" else f", embed-every {config.embed_every}"
    return f"{what}, {config.backend}, {config.precision}{also}{fewer}"


def videos(clips: Path, home: Path, cnn: files.Weights, args: argparse.Namespace) -> Row:
    """Measure raw videos, print the table, and return the first row."""
    net, base = load(cnn), ExtractConfig(taps=TAPS)
    loops = [Loop(f"naive loop, min_face_size={size}", of_frames(net, facenet.MTCNN(min_face_size=size)), args.share)
             for size in ((20,) if args.only else (20, 40))]
    exact = [] if args.only else [Row("each frame looked at (CNN's stem only)", replace(
        base, detect_every=1, taps=("conv2d_4b",)), home, cnn, "mtcnn")]
    rows = [Row(name, config, home, cnn, "mtcnn") for config in variants(base)
            if args.only in (name := named(config, f"every {config.detect_every}th"))]
    dataset = data.load_dataset(DatasetConfig(clips=str(clips), dataset="table"), home)
    dataset = replace(dataset, trials=dataset.trials[:args.clips or None])
    for part in parts_of(dataset, args.rounds):
        for loop in loops:
            devices.set_torch_threads(0)
            loop.run([trial.path for trial in part.trials], "video")
        for row in (*exact, *rows):
            row.run(part)
    print(f"\nraw videos: {len(dataset.trials)} clips, {rows[0].frames} frames; decoding counted everywhere")
    for loop in loops:
        line(loop, loops[0], f"decode {1000 * loop.decode_s / loop.decoded:.1f} ms, "
             f"the rest {1000 * loop.rest_s / loop.seen:.1f} ms a frame")
    for row in (*exact, *rows):
        line(row, loops[0], row.said[-1])
    for row in rows[1:]:
        assert row.store is not None and rows[0].store is not None
        print(f"least cosine of any row and tap, {row.name} to {rows[0].name}: {cosine(rows[0].store, row.store):.6f}")
    if exact:
        assert exact[0].store is not None and rows[0].store is not None
        found = overlaps(exact[0].store, rows[0].store)
        print(f"boxes against each frame looked at: mean IoU {np.mean(list(found.values())):.3f}, least clip "
              f"{min(found.values()):.3f} ({min(found, key=lambda name: found[name])})")
        print("  " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()))
    return (exact or rows)[0]


def cut_crops(exact: Row, clips: Path, folder: Path) -> Path:
    """Write folders of crops cut from videos, as aligned crops are: JPEG, 112 pixels."""
    assert exact.store is not None
    dataset = data.load_dataset(DatasetConfig(clips=str(clips), dataset="table"), folder.parent)
    trials = [t for t in dataset.trials if t.name in exact.store
              and exact.store[t.name].frame_table["valid"].sum() > 60]
    for trial in trials[:CROP_CLIPS]:
        into = folder / trial.name
        into.mkdir(parents=True)
        clock = exact.store[trial.name].frame_table
        rows = np.flatnonzero(clock["valid"])[:CROPS_A_CLIP]
        frames = media.open_source(trial.path, "video").pick(rows.tolist())
        for number, frame in enumerate(frames, 1):
            box = np.array([clock[c][frame.index - 1] for c in ("x1", "y1", "x2", "y2")])
            if frame.image is not None:
                Image.fromarray(crop_face(frame.image, box, CROP_SIDE)).save(into / f"{number:05d}.jpg", quality=95)
    return folder


def crops(folder: Path, home: Path, cnn: files.Weights, args: argparse.Namespace) -> None:
    """Measure folders of crops, and print the table."""
    net, base = load(cnn), ExtractConfig(taps=TAPS)
    loop = Loop("naive loop", lambda image: one(net, crop_face(image, whole_picture(image))), max(1, args.share // 2))
    rows = [Row(name, config, home, cnn, "cropped") for config in variants(base)
            if args.only in (name := named(config, "crops"))]
    bare = [Forward(row.name, row.loaded.backbone) for row in rows]
    dataset = data.load_dataset(DatasetConfig(clips=str(folder), dataset="table"), home)
    faces = faces_of(dataset)
    for part in parts_of(dataset, args.rounds):
        devices.set_torch_threads(0)
        loop.run([trial.path for trial in part.trials], "crops")
        for row, forward in zip(rows, bare, strict=True):
            forward.run(faces)
            row.run(part)
    print(f"\ncrop folders: {len(dataset.trials)} clips, {rows[0].frames} pictures; decoding counted everywhere")
    line(loop, loop)
    for row, forward in zip(rows, bare, strict=True):
        assert row.store is not None and rows[0].store is not None
        line(row, loop, f"{row.rate / forward.rate:.2f} of the bare forward's {forward.rate:.1f}/s;"
             f" least cosine to float32 {cosine(rows[0].store, row.store):.6f}; {row.said[-1]}")


def faces_of(dataset: Dataset) -> np.ndarray:
    """Return FORWARD crops (n, 160, 160, 3) out of a set's folders."""
    images = (frame.image for trial in dataset.trials for frame in media.open_source(trial.path, "crops").frames()
              if frame.image is not None)
    return np.stack([crop_face(image, whole_picture(image)) for image in islice(images, FORWARD)])


def native(cnn: files.Weights) -> None:
    """Print the bare forward of every backend and arithmetic, bf16's own too where it does not pay."""
    faces = np.random.default_rng(0).integers(0, 256, (FORWARD, 160, 160, 3), dtype=np.uint8)
    made = []
    for backend in ["torch"] + (["openvino"] if find_spec("openvino") else []):
        for precision in ("float32", "bf16"):
            devices.set_torch_threads(0)
            made.append(Forward(f"{backend} {precision}", Backbone.load(cnn, TAPS, precision=precision, native=True,
                                                                         backend=backend)))
    for _ in range(3):
        for forward in made:
            forward.run(faces)
    print("\nbare forward, arithmetic as named: " + ", ".join(f"{f.name} {f.rate:.1f}/s" for f in made))
    print(f"bf16 {'is' if devices.bf16_pays() else 'would not be'} quicker than float32 on this processor by its flags")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=Path)
    parser.add_argument("--crops", type=Path, help="folder of crop folders")
    parser.add_argument("--share", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clips", type=int, default=0, help="only so many videos")
    parser.add_argument("--only", default="", help="only the rows whose name has this in it")
    args = parser.parse_args()
    for name in ("fercache", "openvino"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("fercache.extraction.job").setLevel(logging.INFO)
    logging.getLogger("fercache.extraction.job").propagate = False
    started, cnn = time.monotonic(), weights.ensure_weights("casia-webface", ROOT / "cache/weights")
    clips = args.videos or demo.fetch_demo_clips(ROOT / "cache/clips")
    with tempfile.TemporaryDirectory() as folder:
        if not args.only:
            native(cnn)
        row = videos(clips, Path(folder), cnn, args)
        crops(args.crops or cut_crops(row, clips, Path(folder) / "crops"), Path(folder), cnn, args)
    print(f"\n{time.monotonic() - started:.0f} s in all")


if __name__ == "__main__":
    main()
