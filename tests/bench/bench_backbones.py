"""What nets other than the default are worth and cost: people told apart, expressions on FER2013's photos, seconds.

    python tests/bench/bench_backbones.py people --photos DIR --videos DIR
    python tests/bench/bench_backbones.py fer --train fer2013_train.zip --validation fer2013_validation.zip
    python tests/bench/bench_backbones.py cost            (random weights; needs the extra timm)

One thread. Weights come from `cache/weights`.
"""

from __future__ import annotations

import argparse
import io
import shutil
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from msgspec import structs
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, roc_auc_score

from fercache import media
from fercache.backbones import registry, weights
from fercache.backbones.backbone import Backbone
from fercache.backbones.library import import_library
from fercache.faces.crops import NO_POINTS, crops_of, whole_picture
from fercache.faces.detector import Detector

WEIGHTS = Path("cache/weights")
FRAMES_A_CLIP = 8
ONE_RECORDING = {"noface_face": "face_noface", "single_face": "face_noface"}
"""Clips of one recording, whose faces are no different people."""
CROPS = {"aligned by MTCNN's landmarks": {}, "aligned by those of a typical face": {"crop": "aligned"},
         "box": {"crop": "box", "template": ""},
         "square, margin .25": {"crop": "square", "template": "", "margin": .25}}
PROBES = {
    "casia embedding": ["casia-webface embedding"],
    "casia three taps": [f"casia-webface {tap}" for tap in ("block8", "repeat_2", "repeat_1-3x3")],
    "dlib embedding": ["dlib-resnet29 embedding"],
    "dlib three taps": [f"dlib-resnet29 {tap}" for tap in ("level0", "level1", "level2-3x3")],
}
PROBES["both nets, six taps"] = PROBES["casia three taps"] + PROBES["dlib three taps"]


def people(photos: Path, videos: Path) -> None:
    """Print the area under the curve of the cosine, over pairs of frames of one recording and of two."""
    detector = Detector(min_face_px=40, min_score=.95, detect_px=640)
    faces = []
    for path in sorted(photos.glob("*.jpg")):
        picture = np.array(Image.open(path).convert("RGB"))
        faces += [(path.stem, picture, found[0]) for found in detector.detect([picture], landmarks=True) if len(found)]
    for path in sorted(videos.iterdir()):
        source = media.open_source(path, "video")
        for frame in source.pick(sorted({int(row) for row in np.linspace(2, max(3, (source.length() or 100) - 5),
                                                                         FRAMES_A_CLIP)})):
            found = detector.detect([frame.image], landmarks=True)[0] if frame.image is not None else []
            if len(found) == 1:
                faces.append((ONE_RECORDING.get(path.stem, path.stem), frame.image, found[0]))
    names = np.array([name for name, _, _ in faces])
    pairs = np.triu_indices(len(names), 1)
    same = (names[:, None] == names)[pairs]
    print(f"{len(faces)} faces of {len(set(names))} people; {same.sum()} pairs of one, {(~same).sum()} of two")
    for weight, crops in (("dlib-resnet29", CROPS), ("casia-webface", {"box": {}})):
        source = weights.ensure_weights(weight, WEIGHTS)
        net = Backbone.load(source, ["embedding"], batch=8)
        for crop, keys in crops.items():
            card = structs.replace(source.card, **keys)
            cut = [crops_of(card, picture, face[:4], NO_POINTS if "typical" in crop else face[5:])[0]
                   for _, picture, face in faces]
            vectors = net.embed32(np.stack(cut))["embedding"]
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            print(f"{weight}, {crop}: AUC {roc_auc_score(same, (vectors @ vectors.T)[pairs]):.4f}")


def photos_of(path: Path, count: int, rng: np.random.Generator) -> tuple[list[np.ndarray], np.ndarray]:
    """Return some photos (48, 48, 3) of a file of FER2013 and their classes."""
    with zipfile.ZipFile(path) as file:
        names = sorted(name for name in file.namelist() if name.endswith(".jpg"))
        classes = sorted({name.split("/")[-2] for name in names})
        chosen = [names[i] for i in rng.permutation(len(names))[:count]]
        return ([np.array(Image.open(io.BytesIO(file.read(name))).convert("RGB")) for name in chosen],
                np.array([classes.index(name.split("/")[-2]) for name in chosen]))


def fer(train: Path, validation: Path, counts: Sequence[int]) -> None:
    """Print accuracy and macro F1 of a logistic regression on the taps of whole photos."""
    rng = np.random.default_rng(0)
    splits = [photos_of(path, count, rng) for path, count in zip((train, validation), counts, strict=True)]
    values: dict[str, list[np.ndarray]] = {}
    for weight in ("casia-webface", "dlib-resnet29"):
        source = weights.ensure_weights(weight, WEIGHTS)
        net = Backbone.load(source, source.card.taps, batch=16, backend="openvino")
        for pictures, _ in splits:
            crops = np.stack([crops_of(source.card, picture, whole_picture(picture))[0] for picture in pictures])
            for tap, rows in net.embed(crops).items():
                values.setdefault(f"{weight} {tap}", []).append(rows.reshape(len(rows), -1).astype(np.float32))
    (_, y), (_, y_other) = splits
    part = len(y) * 4 // 5
    for name, taps in PROBES.items():
        x, other = (np.concatenate([values[tap][i] for tap in taps], 1) for i in (0, 1))
        mean, spread = x.mean(0), x.std(0) + 1e-6
        x, other = (x - mean) / spread, (other - mean) / spread
        best = max((1e-4, 1e-3, 1e-2), key=lambda c: LogisticRegression(C=c, max_iter=60).fit(
            x[:part], y[:part]).score(x[part:], y[part:]))
        found = LogisticRegression(C=best, max_iter=60).fit(x, y).predict(other)
        print(f"{name}: {x.shape[1]} values, C {best:g}, accuracy {(found == y_other).mean():.4f}, "
              f"macro F1 {f1_score(y_other, found, average='macro'):.4f}")


def cost() -> None:
    """Print bytes and seconds of processor time a crop of each net that can be built here."""
    for name in ("casia-webface", "dlib-resnet29"):
        print_cost(name, weights.ensure_weights(name, WEIGHTS))
    timm = import_library("timm")
    for name, keys in registry.presets().items():
        if keys["net"].startswith("timm:"):
            folder = Path(tempfile.mkdtemp())
            architecture = keys["net"].removeprefix("timm:").partition(".")[0]
            net = timm.create_model(architecture, pretrained=False, num_classes=0)
            timm.models.save_for_hf(net, folder, safe_serialization=True)
            print_cost(name, weights.resolve_named(name, {**keys, "net": f"timm:{folder}"}, WEIGHTS, False))
            shutil.rmtree(folder)


def print_cost(name: str, source: weights.files.Weights) -> None:
    """Print the cost of one net with the taps of its card."""
    batch = 4
    net = Backbone.load(source, source.card.taps, batch=batch)
    crops = np.random.default_rng(0).integers(0, 256, (batch, source.card.size, source.card.size, 3), np.uint8)
    net.embed(crops)
    started = time.process_time()
    net.embed(crops)
    print(f"{name}: {2 * sum(int(np.prod(shape)) for shape in net.shapes.values())} bytes, "
          f"{(time.process_time() - started) / batch:.3f} s a crop of {source.card.size} px")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("people", "fer", "cost"))
    for option in ("--photos", "--videos", "--train", "--validation"):
        parser.add_argument(option, type=Path)
    parser.add_argument("--counts", type=int, nargs=2, default=(3000, 1500), help="photos to train and to score on")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "people":
        people(args.photos, args.videos)
    elif args.what == "fer":
        fer(args.train, args.validation, args.counts)
    else:
        cost()
