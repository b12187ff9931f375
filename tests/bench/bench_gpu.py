"""Stage one on a GPU: every part and the whole in frames a second, beside the bare forward and the usual loop there.

    python tests/bench/bench_gpu.py [--videos FOLDER] [--device cuda] [--precision bf16] [--share 10] [--clips N]

Without --videos the clips of the demo are taken. The bare forward runs over one batch that stays on the GPU. "crops in
memory" are copied there and their values back, "pictures in memory" are detected in blocks. The usual loop (= 1) is
facenet-pytorch as its examples use it, one frame at a time on the same GPU; it sees every SHARE-th frame. Parts of the
whole are rates that each part alone would reach, as the log of `fercache extract` has them. Nothing is measured
without a GPU; ``--device cpu`` runs every step in float32, to try the command.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from bench_extract import ROOT, TAPS, Loop, Row, cut_crops, faces_of, line

from fercache import data, media
from fercache.backbones import facenet, weights
from fercache.backbones.backbone import Backbone
from fercache.backbones.inception import TorchNet, load
from fercache.config import DatasetConfig, ExtractConfig
from fercache.data import demo
from fercache.data.base import Dataset
from fercache.faces.crops import crop_face, whole_picture
from fercache.faces.detector import Detector
from fercache.runtime import devices

PICTURES, BLOCK = 128, 64
"""Pictures in memory, and how many the detector gets at once."""
MEASURED_S = 2.0


def rate(work: Callable[[], object], amount: int, device: str) -> float:
    """Return `amount` a second over runs of `work` for some seconds, after one that is not counted."""
    work()
    devices.synchronize_device(device)
    started, runs = time.perf_counter(), 0
    while time.perf_counter() - started < MEASURED_S:
        work()
        devices.synchronize_device(device)
        runs += 1
    return runs * amount / (time.perf_counter() - started)


@torch.inference_mode()
def bare_forward(net: Backbone) -> float:
    """Return the crops a second of the net alone, over one batch that stays on the device."""
    assert isinstance(net.net, TorchNet)
    forward = net.net.net
    pixels = torch.randint(0, 256, (net.batch, 160, 160, 3), dtype=torch.uint8, device=net.device)
    return rate(lambda: forward(pixels), net.batch, net.device)


def crops_in_memory(net: Backbone, crops: np.ndarray) -> float:
    """Return the crops a second with copies to the device and back, in the threads of stage one."""
    with devices.TorchThreadPool(devices.set_torch_threads(0), net.device) as threads:
        parts = [np.resize(crops, (net.batch, *crops.shape[1:]))] * threads.count
        return rate(lambda: threads.run(net.embed_batch, parts), net.batch * len(parts), net.device)


def pictures_in_memory(detector: Detector, dataset: Dataset, device: str) -> float:
    """Return the pictures of the first clip a second that the detector sees, in the threads of stage one."""
    frames = media.open_source(dataset.trials[0].path, "video").frames()
    pictures = [frame.image for frame in islice(frames, PICTURES) if frame.image is not None]
    blocks = [pictures[i:i + BLOCK] for i in range(0, len(pictures), BLOCK)]
    with devices.TorchThreadPool(devices.set_torch_threads(0), device) as threads:
        def run() -> None:
            threads.run(lambda block: detector.detect(block, devices.serially), blocks)
        return rate(run, len(pictures), device)


def usual_loops(net: torch.nn.Module, device: str, share: int) -> tuple[Loop, Loop]:
    """Return the usual loop over frames of videos, and over crops."""
    mtcnn = facenet.MTCNN(device=device)

    @torch.inference_mode()
    def embed(face: np.ndarray) -> None:
        pixels = torch.from_numpy(face.copy()).to(device).float()
        net(((pixels - 127.5) / 128).permute(2, 0, 1)[None]).cpu()

    def frame(image: np.ndarray) -> None:
        boxes, _ = mtcnn.detect(image)
        if boxes is not None:
            embed(crop_face(image, boxes[0]))
    return (Loop("usual loop over frames", frame, share),
            Loop("usual loop over crops", lambda image: embed(crop_face(image, whole_picture(image))), share))


def main() -> None:
    """Print one line a measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=Path)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu to try the command")
    parser.add_argument("--precision", choices=("bf16", "fp16", "float32"), default="bf16")
    parser.add_argument("--share", type=int, default=10)
    parser.add_argument("--clips", type=int, default=0, help="only so many videos")
    given = parser.parse_args()
    if given.device != "cpu" and not devices.gpus():
        parser.error("torch sees no GPU, so there is nothing to measure; --device cpu tries the command in float32")
    device = devices.resolve_device(given.device)
    precision = given.precision if device != "cpu" else "float32"
    logging.getLogger("fercache").setLevel(logging.ERROR)
    logging.getLogger("fercache.extraction.job").setLevel(logging.INFO)
    logging.getLogger("fercache.extraction.job").propagate = False
    name = torch.cuda.get_device_name(torch.device(device)) if device != "cpu" else "the processor: no GPU is measured"
    cnn = weights.ensure_weights("casia-webface", ROOT / "cache/weights")
    clips = given.videos or demo.fetch_demo_clips(ROOT / "cache/clips")
    config = ExtractConfig(taps=TAPS, device=device, precision=precision)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        dataset = data.load_dataset(DatasetConfig(clips=str(clips), dataset="table"), home)
        trials = dataset.trials[:given.clips or None]
        video = Row(f"whole: raw video, {precision}", config, home / "video", cnn, "mtcnn")
        video.run(replace(dataset, trials=trials))
        folders = data.load_dataset(DatasetConfig(clips=str(cut_crops(video, clips, home / "crops")), dataset="table"),
                                    home)
        whole = Row(f"whole: crop folders, {precision}", config, home / "folders", cnn, "cropped")
        whole.run(folders)
        net, detector = video.loaded.backbone, video.loaded.detector
        assert detector is not None
        loops = usual_loops(load(cnn).to(device), device, given.share)
        for loop, kind, source in zip(loops, ("video", "crops"), (trials, folders.trials), strict=True):
            loop.run([trial.path for trial in source], kind)
        print(f"{name}; torch {torch.__version__}, {torch.get_num_threads()} threads, batch {net.batch}")
        base = loops[0].rate
        line("bare forward, the batch on the device", bare_forward(net), base)
        line("crops in memory", crops_in_memory(net, faces_of(folders)), base)
        line("pictures in memory, detected", pictures_in_memory(detector, dataset, device), base)
        line(loops[0].name, base, base)
        line(video.name, video.rate, base, f"{video.frames} frames; {video.said[-1]}")
        line(loops[1].name, loops[1].rate, loops[1].rate)
        line(whole.name, whole.rate, loops[1].rate, f"{whole.frames} pictures; {whole.said[-1]}")


if __name__ == "__main__":
    main()
