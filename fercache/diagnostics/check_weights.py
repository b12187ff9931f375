"""Whether a net gets its input as it was trained: its vectors of test pictures against those of its own library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np
from msgspec import structs
from numpy.typing import NDArray
from PIL import Image

from fercache.backbones.backbone import Backbone, shapes_of
from fercache.backbones.inception import TorchNet
from fercache.backbones.onnx import OUTPUT, OnnxNet
from fercache.backbones.registry import CALIBRATION, FACENET, Card, Rgb, presets
from fercache.backbones.weights import CLIP_RGB, IMAGENET_RGB, RESAMPLING
from fercache.backbones.weights.files import Weights
from fercache.errors import FercacheError, InputError, WeightsError
from fercache.faces.crops import TEMPLATES, crops_of

TOLERANCE = 0.03
"""Largest difference from the reference, relative to the differences between the faces, of a correct input. Pillow's
resize against another library's differs by less than .02, a usual mistake by .05 and more."""
SURE = TOLERANCE / 10  # no other alternative is tried after it
EXACT = TOLERANCE / 30  # of references rounded to three digits; up to TOLERANCE a mean can be wrong by a little
CELL_PX = 160
FACES = {
    1: ((53.6, 57.4), (126.6, 62.6), (90.1, 81.6), (49.2, 110.9), (122.3, 115.8)),
    3: ((44.0, 73.1), (108.1, 51.3), (93.4, 86.6), (66.9, 125.2), (133.1, 102.1)),
    5: ((49.5, 56.8), (112.8, 84.4), (62.6, 99.4), (23.3, 104.4), (93.2, 129.8)),
    6: ((43.5, 66.3), (112.8, 62.9), (78.7, 99.3), (54.8, 126.9), (112.6, 124.7)),
}
"""The test faces: columns of the middle row of `CALIBRATION`, and MTCNN's five points in each, from its corner on."""
RGBS: dict[str, tuple[Rgb, Rgb]] = {
    "ImageNet's": IMAGENET_RGB, "CLIP's": CLIP_RGB, "(x - 127.5) / 127.5": ((0.5,) * 3, (0.5,) * 3),
    "(x - 127.5) / 128": ((0.5,) * 3, (128 / 255,) * 3), "x / 255": ((0.0,) * 3, (1.0,) * 3),
    "x": ((0.0,) * 3, (1 / 255,) * 3), "ImageNet's mean, no std": (IMAGENET_RGB[0], (1 / 255,) * 3),
    "VGGFace2's mean, no std": ((131.0912 / 255, 103.8827 / 255, 91.4953 / 255), (1 / 255,) * 3),
    "dlib's": ((122.782 / 255, 117.001 / 255, 104.298 / 255), (256 / 255,) * 3),
}
"""Usual means and standard deviations."""
SIZES = (96, 112, 128, 150, 160, 192, 224, 240, 256, 260, 288, 299, 336, 384, 448, 518)
MIDDLES = (1.0, 0.875, 0.9, 0.95)
MARGINS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
MOST = 3  # mistakes that are named at most


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """The result of a check."""

    error: float  # difference from the reference, see TOLERANCE; NaN without a reference
    mistakes: tuple[str, ...]  # what the card states, and what fits
    best: float  # the same difference with those corrected

    @property
    def verified(self) -> bool:
        """Whether the vectors are those of the reference."""
        return self.error <= TOLERANCE and not self.mistakes


def test_faces() -> Iterator[tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.float64]]]:
    """Yield a picture (H, W, 3), the box (4,) of a face in it, and its landmarks (10,), for each test face."""
    with Image.open(CALIBRATION) as file:
        picture = np.array(file.convert("RGB"))
    for column, points in FACES.items():
        corner = np.array([CELL_PX * column, CELL_PX], np.float64)
        yield picture, np.concatenate([corner, corner + CELL_PX]), (np.array(points) + corner).ravel()


def check_weights(weights: Weights) -> CheckResult:
    """Return whether a net's vectors are those of its reference, and if not, which usual mistakes explain it.

    Raises InputError if the reference does not fit the net or the number of test faces.
    """
    card, mistakes = weights.card, list[str]()
    # Those of its card, or of the shipped one with its name.
    given = card.reference or presets(with_nets=False).get(weights.name, {}).get("reference", {})
    reference = {tap: np.array(rows, np.float64) for tap, rows in given.items()}
    if not reference:
        return CheckResult(error=float("nan"), mistakes=(), best=float("nan"))
    errors = _Errors(weights, reference)
    error = best = np.inf
    with suppress(WeightsError):  # the net takes no such size
        error = best = errors.of(card)
    while best > EXACT and len(mistakes) < MOST:
        tried: list[tuple[float, str, Card]] = []
        for text, other in _alternatives(card, best > TOLERANCE):
            with suppress(FercacheError):
                tried.append((errors.of(other), text, other))
                if tried[-1][0] < min(SURE, best / 4):
                    break
        least, text, other = min(tried, key=lambda one: one[0], default=(np.inf, "", card))
        if least >= best / (2 if best > TOLERANCE else 4):  # no mistake explains it
            break
        best, card = least, other
        mistakes.append(text)
    return CheckResult(error=error, mistakes=tuple(mistakes), best=best)


class _Errors:
    """A net's difference from its reference under any card."""

    def __init__(self, weights: Weights, reference: Mapping[str, NDArray[np.float64]]) -> None:
        self.weights, self.reference = weights, reference
        self.nets: dict[int, Backbone] = {}  # by size of the input
        self.faces = list(test_faces())

    def of(self, card: Card) -> float:
        """Return the largest difference of the taps."""
        if card.size not in self.nets:
            self.nets[card.size] = Backbone.load(replace(self.weights, card=card), list(self.reference),
                                                 batch=len(self.faces))
        backbone = self.nets[card.size]
        if isinstance(backbone.net, OnnxNet):
            backbone.net.card = card
        elif isinstance(backbone.net, TorchNet) and self.weights.net != "facenet":
            backbone.net.net.scale_by(card)
        crops: NDArray[np.uint8] = np.stack([crops_of(card, picture, box, points, margin=card.margin)[0]
                          for picture, box, points in self.faces])
        if self.weights.net == "facenet":  # it scales pixels by itself: give it those that come to the same
            pixels = ((crops[..., ::-1] if card.channels == "bgr" else crops) / 255 - card.mean) / card.std
            crops = ((pixels * FACENET.std + FACENET.mean) * 255).round().clip(0, 255).astype(np.uint8)
        found = backbone.embed32(crops)
        return max(_difference(found[tap].reshape(len(crops), -1), rows, tap) for tap, rows in self.reference.items())


def _difference(found: NDArray[np.float32], reference: NDArray[np.float64], tap: str) -> float:
    """Return the difference of vectors (n, D), which may have another length, relative to that between the faces."""
    if found.shape != reference.shape:
        raise InputError(f"the reference of {tap} has shape {reference.shape}, the net gives {found.shape}",
                         where="reference", hint="make one vector for each picture of `weights check --pictures`")
    ours, theirs = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
                    for rows in (found.astype(np.float64), reference))
    spread = float(np.linalg.norm(theirs - theirs.mean(axis=0)))
    return float(np.nan_to_num(np.linalg.norm(ours - theirs) / max(spread, 1e-12), nan=np.inf))


def _alternatives(card: Card, regions: bool) -> Iterator[tuple[str, Card]]:
    """Yield cards that differ in one respect, each with what differs; `regions`: also in what the net sees."""
    def other(text: str, **keys: object) -> Iterator[tuple[str, Card]]:
        changed = structs.replace(card, **keys)
        if changed != card:
            yield text, changed

    channels = "rgb" if card.channels == "bgr" else "bgr"
    yield from other(f"channels: {channels}, not {card.channels}", channels=channels)
    for name, (mean, std) in RGBS.items():
        yield from other(f"mean and std: {name} ({_short(mean)} and {_short(std)}), not {_short(card.mean)} and "
                         f"{_short(card.std)}", mean=mean, std=std)
    for interpolation in RESAMPLING.values():
        yield from other(f"interpolation: {interpolation}, not {card.interpolation}", interpolation=interpolation)
    if not regions:  # these change much
        return
    yield from other(f"scales: 1, not {', '.join(f'{scale:g}' for scale in card.scales)}", scales=(1.0,))
    for part in MIDDLES:
        resize = int(card.size / part)
        yield from other(f"resize: {resize}, not {card.resize or card.size}", resize=resize)
    for crop, template in (("box", ""), ("square", ""), *(("aligned", name) for name in TEMPLATES)):
        for margin in MARGINS:
            yield from other(f"crop: {crop} {template} with margin {margin:g}, not {card.crop} {card.template} with "
                             f"{card.margin:g}", crop=crop, template=template, margin=margin)
    for size in SIZES:
        scaled = round(card.resize * size / card.size)
        yield from other(f"size: {size}, not {card.size}", size=size, resize=scaled)


def _short(values: Rgb) -> str:
    return ", ".join(f"{value:.3g}" for value in values)


def check_runs(weights: Weights) -> None:
    """Raise if a net does not run as its card states: its size, taps, identity tap and the length of its reference."""
    card = weights.card
    taps = dict.fromkeys([*card.taps, *card.reference, *([card.identity] if card.identity else [])])
    shapes = shapes_of(weights, list(taps) or [OUTPUT])
    for tap, rows in card.reference.items():
        if {len(row) for row in rows} != {prod(shapes[tap])}:
            raise InputError(f"the reference of {tap} has {len(rows[0])} values a face, the net gives "
                             f"{prod(shapes[tap])}", where="reference", hint="name its tap first in --taps")


def read_reference(path: Path) -> list[list[float]]:
    """Return vectors of the test faces, made by a net's own library, from a file of numpy.

    Raises InputError if it is not one, or does not hold a row of numbers for each face.
    """
    try:
        vectors = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"not readable as .npy ({error})", where=path, hint="write it with numpy.save") from error
    if (not isinstance(vectors, np.ndarray) or vectors.dtype.kind not in "fiu" or not vectors.size
            or len(vectors := np.atleast_1d(vectors)) != len(FACES) or not np.isfinite(vectors).all()):
        raise InputError(f"must hold {len(FACES)} rows of finite numbers", where=path,
                         hint="one for each face of `weights check --pictures`, in their order")
    rows: list[list[float]] = vectors.reshape(len(FACES), -1).tolist()
    return rows


def write_pictures(folder: Path) -> list[Path]:
    """Write the test faces for another library: frame.png, a picture of each face's box, and faces.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    written, lines = [folder / "frame.png"], ["face,x1,y1,x2,y2,left_eye_x,left_eye_y,right_eye_x,right_eye_y,nose_x,"
                                              "nose_y,mouth_left_x,mouth_left_y,mouth_right_x,mouth_right_y"]
    for number, (picture, box, points) in enumerate(test_faces(), 1):
        x1, y1, x2, y2 = box.astype(int)
        written.append(folder / f"face{number}.png")
        Image.fromarray(np.ascontiguousarray(picture[y1:y2, x1:x2])).save(written[-1])
        lines.append(f"{number}," + ",".join(f"{value:g}" for value in (*box, *points)))
        Image.fromarray(picture).save(written[0])
    (folder / "faces.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [*written, folder / "faces.csv"]
