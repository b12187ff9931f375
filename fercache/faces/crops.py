"""Face crops for the CNN, plain and augmented. Imports no torch, so that drawing code can use it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fercache.backbones.registry import FACENET, Card
from fercache.backbones.taps import EMBEDDING, tap_views
from fercache.errors import InputError

AUGMENTATION_VERSION = "mirror-then-camera-1"
"""Changed whenever the pixels of a view change; part of the fingerprint of stores with views."""
SHIFT = 0.06  # largest shift of a view, as a fraction of the box's sides
ZOOM = 0.12  # largest zoom of a view in either direction, as a natural logarithm
ANGLE = math.radians(10)
LIGHT = 0.25  # largest relative change of brightness
SPARE_PX = 2  # pixels cut out around a view, so that bilinear interpolation has neighbors at the border

Picture = NDArray[np.uint8]


def crop_face(image: Picture, box: NDArray[np.float64], size: int = 160, margin: float = 0.0, card: Card = FACENET
              ) -> Picture:
    """Return the face in `box` (x1, y1, x2, y2 in pixels) of a picture (H, W, 3) as a square (size, size, 3).

    `margin`: border around the box, as a fraction of its longer side, half of it on each side. `card`: the net's
    interpolation, and whether it sees the middle of the region only.
    """
    # Equals facenet-pytorch's `extract_face` on PIL pictures: corners truncated to whole pixels inside the picture,
    # then a bilinear resize that ignores the aspect ratio. Its published distances were measured with such crops.
    return _resized(_pixels(image, box, margin), size, card)


def face_pixels(card: Card, image: Picture, box: NDArray[np.float64], margin: float) -> Picture | None:
    """Return a view of the pixels (h, w, 3) that decide the plain crop: as a whole picture, they give the same crop.

    None if the card's crops need more of the picture than the box with its margin.
    """
    if card.crop != "box" or len(card.scales) > 1:
        return None
    return _pixels(image, box, (1 + (margin or card.margin)) * card.scales[0] - 1)


def _pixels(image: Picture, box: NDArray[np.float64], margin: float) -> Picture:
    """Return the part of a picture in a box with its margin."""
    height, width = image.shape[:2]
    border = margin * max(box[2] - box[0], box[3] - box[1]) / 2
    left, top = int(max(box[0] - border, 0)), int(max(box[1] - border, 0))
    right, bottom = int(min(box[2] + border, width)), int(min(box[3] + border, height))
    left, top = min(left, width - 1), min(top, height - 1)  # at least one pixel, also of a box outside the picture
    return image[top:max(bottom, top + 1), left:max(right, left + 1)]


def _resized(part: Picture, size: int, card: Card) -> Picture:
    """Return the part of a picture (h, w, 3) that the net sees, (size, size, 3)."""
    # With the middle as Pillow's `box`, one resize equals a resize to `card.resize` and a cut: its filter reads beyond
    # the box. The cut begins at a whole pixel, as torchvision's does.
    height, width = part.shape[:2]
    middle = None
    if card.resize > card.size:
        low = round((card.resize - card.size) / 2) / card.resize
        high = low + card.size / card.resize
        middle = (low * width, low * height, high * width, high * height)
    resample = Image.Resampling[card.interpolation.upper()]
    return np.asarray(Image.fromarray(np.ascontiguousarray(part)).resize((size, size), resample, box=middle))


def whole_picture(image: Picture) -> NDArray[np.float64]:
    """Return the box (4,) that covers a picture (H, W, 3)."""
    return np.array([0, 0, image.shape[1], image.shape[0]], np.float64)


# Crops as a card asks for them.

NO_POINTS = np.empty(0)
TEMPLATES = {
    # Of ArcFace's training pictures, in a square of 112 pixels.
    "arcface112": np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655],
                            [70.7299, 92.2041]]) / 112,
    # dlib's mean face: centers of the six points of each eye, tip of the nose, corners of the mouth; then a border of a
    # quarter of the square on each side, as in the chips of its face net.
    "dlib150": (np.array([[.226_175, .215_719], [.753_754, .215_719], [.490_127, .515_625], [.254_149, .780_233],
                          [.726_104, .780_233]]) + .25) / 1.5,
}
"""Where eyes, nose and corners of the mouth are, left before right, (5, 2), as fractions of the square's side."""

TYPICAL_POINTS = np.array([[.28, .39], [.72, .39], [.50, .56], [.30, .75], [.70, .75]])
"""The same points in MTCNN's box, measured on the faces of `CALIBRATION` and made symmetric."""


@dataclass(frozen=True, kw_only=True)
class Region:
    """A rectangle in a frame, which a crop shows."""

    center: NDArray[np.float64]  # (2,) in pixels
    sides: NDArray[np.float64]  # (2,) width and height in pixels
    rotation: NDArray[np.float64] = field(default_factory=lambda: np.eye(2))  # (2, 2) crop's axes to frame's axes


def region_of(card: Card, image: Picture, box: NDArray[np.float64], points: NDArray[np.float64],
              margin: float) -> Region:
    """Return the region of the plain crop; `points`: (10,) landmarks, x and y of each, or (0,) if there are none."""
    if card.crop == "box":
        border = margin * max(box[2] - box[0], box[3] - box[1]) / 2
        low = np.clip(box[:2] - border, 0, [image.shape[1] - 1, image.shape[0] - 1])
        high = np.clip(box[2:] + border, low + 1, [image.shape[1], image.shape[0]])
        return Region(center=(low + high) / 2, sides=high - low)
    if card.crop == "aligned":
        if not points.size or not np.isfinite(points).all():
            points = (box[:2] + TYPICAL_POINTS * (box[2:] - box[:2])).ravel()
        # The similarity z -> a z + b, in complex numbers, that moves the template to the landmarks (least squares).
        here = points[0::2] + 1j * points[1::2]
        there = TEMPLATES[card.template] @ np.array([1, 1j])
        a = (np.conj(there - there.mean()) @ (here - here.mean())) / np.square(np.abs(there - there.mean())).sum()
        middle = a * (.5 + .5j - there.mean()) + here.mean()
        turn = a / abs(a) if a else 1.0
        return Region(center=np.array([middle.real, middle.imag]), sides=np.full(2, max(abs(a), 1.0) * (1 + margin)),
                      rotation=np.array([[turn.real, -turn.imag], [turn.imag, turn.real]]))
    return Region(center=(box[:2] + box[2:]) / 2, sides=np.full(2, max(box[2:] - box[:2]) * (1 + margin)))


def crops_of(card: Card, image: Picture, box: NDArray[np.float64], points: NDArray[np.float64] = NO_POINTS, *,
             margin: float = 0.0, augmentations: Sequence[Augmentation] = ()) -> list[Picture]:
    """Return the face in `box`, plain and then in each augmentation: (S, S, 3), or (K, S, S, 3) at several scales.

    `points`: (10,) landmarks, or (0,); without them, a card that asks for alignment gets those of a typical face.
    `margin`: as for `crop_face`; 0: that of the card.
    """
    views: list[list[Picture]] = []
    for scale in card.scales:
        border = (1 + (margin or card.margin)) * scale - 1
        region = region_of(card, image, box, points, border)
        if card.crop == "box":
            plain = crop_face(image, box, card.size, border, card)
        elif card.crop == "square":
            plain = _square(image, region, card)
        else:
            plain = _cut(image, region, card.size, card)
        views.append([plain, *(apply_augmentation(plain, image, region, augmentation, card)
                               for augmentation in augmentations)])
    return views[0] if len(views) == 1 else [np.stack(view) for view in zip(*views, strict=True)]


def _square(image: Picture, region: Region, card: Card) -> Picture:
    """Return a square region (S, S, 3), black beyond the frame."""
    side = max(1, round(region.sides[0]))
    left, top = (round(middle - side / 2) for middle in region.center)
    part = np.zeros((side, side, 3), np.uint8)
    rows, columns = (slice(max(0, low), max(0, min(low + side, length)))
                     for low, length in ((top, image.shape[0]), (left, image.shape[1])))
    inside = image[rows, columns]
    part[rows.start - top:, columns.start - left:][:inside.shape[0], :inside.shape[1]] = inside
    return _resized(part, card.size, card)


# Seeded augmentations, stored beside the plain crop, so that training can draw among them. View 0 is the plain crop,
# view 1 its mirror image. Later views are shifted, zoomed, rotated and lit at random, and every other one is mirrored
# too. A view depends only on the clip's name, the frame number and the view number, so batches, order, resumed runs and
# processes do not change it.


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How a view differs from the plain crop."""

    mirrored: bool = False  # left and right are swapped, as the last step
    # `right`, `down`: shift of the view from the box's center, as fractions of its sides.
    right: float = 0.0
    down: float = 0.0
    zoom: float = 1.0  # side of the region shown over that of the box
    angle: float = 0.0  # rotation of the camera in radians
    light: float = 1.0  # factor on every pixel value


def sample_augmentation(clip: str, frame: int, view: int) -> Augmentation:
    """Return the augmentation of a view of a frame of a clip; views and frames count from 1."""
    if view == 1:
        return Augmentation(mirrored=True)
    name = clip.encode("utf-8", "surrogateescape")  # names of files need not be valid UTF-8
    hashed = hashlib.sha256(f"{AUGMENTATION_VERSION}\0{frame}\0{view}\0".encode() + name).digest()
    u = np.random.default_rng(int.from_bytes(hashed[:16], "little")).uniform(-1, 1, 5).tolist()
    return Augmentation(mirrored=view % 2 == 1, right=SHIFT * u[0], down=SHIFT * u[1], zoom=math.exp(ZOOM * u[2]),
                        angle=ANGLE * u[3], light=1 + LIGHT * u[4])


def apply_augmentation(plain: Picture, image: Picture, region: Region, augmentation: Augmentation,
                       card: Card = FACENET) -> Picture:
    """Return a view, of the size of the `plain` crop, (S, S, 3), which shows the `region` of the frame (H, W, 3).

    Pixels around the region come from the frame, so that no border shows; beyond the frame its edge is repeated.
    """
    view = plain
    if replace(augmentation, mirrored=False, light=1.0) != Augmentation():  # it shows another region
        sine, cosine = math.sin(augmentation.angle), math.cos(augmentation.angle)
        shift = np.array([augmentation.right, augmentation.down]) * region.sides
        view = _cut(image, Region(center=region.center + region.rotation @ shift,
                                  sides=region.sides * augmentation.zoom,
                                  rotation=region.rotation @ np.array([[cosine, -sine], [sine, cosine]])), len(plain),
                    card)
    if augmentation.light != 1:
        view = np.clip(view * np.float32(augmentation.light) + np.float32(0.5), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(view[:, ::-1]) if augmentation.mirrored else view


def _cut(image: Picture, region: Region, size: int, card: Card) -> Picture:
    """Return a rotated region, (size, size, 3); beyond the frame its edge is repeated."""
    center, rotation = region.center, region.rotation
    sides = region.sides * card.size / card.resize if card.resize > card.size else region.sides
    shrink = min(1.0, size / max(sides))
    reach = np.abs(rotation) @ sides / 2 + SPARE_PX / shrink + 1
    start, stop = np.floor(center - reach).astype(int), np.ceil(center + reach).astype(int)
    columns = np.clip(np.arange(start[0], stop[0]), 0, image.shape[1] - 1)  # clipped indices repeat the frame's edge
    rows = np.clip(np.arange(start[1], stop[1]), 0, image.shape[0] - 1)
    part = Image.fromarray(np.ascontiguousarray(image[rows[:, None], columns]))
    if shrink < 1:  # a bilinear transform samples 4 pixels only, so a large face would alias: shrink it first
        width, height = np.maximum(1, np.round((stop - start) * shrink)).astype(int)
        part = part.resize((int(width), int(height)), Image.Resampling.BILINEAR)
    scale = np.array(part.size) / (stop - start)
    matrix = scale[:, None] * rotation * sides / size
    offset = scale * (center - start) - matrix @ np.array([size / 2, size / 2])
    data = (*matrix[0], offset[0], *matrix[1], offset[1])
    # Pillow's transform has no Lanczos filter.
    resample = Image.Resampling.BILINEAR if card.interpolation == "bilinear" else Image.Resampling.BICUBIC
    return np.asarray(part.transform((size, size), Image.Transform.AFFINE, tuple(map(float, data)), resample))


def augmented_taps(taps: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Return the taps that are stored of every view: all but the identity vector, which no view should change."""
    return tuple(tap for tap in taps if tap != EMBEDDING)


def with_views(taps: Mapping[str, tuple[int, ...]], views: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of a frame's row of every stored array: the taps, and their views if there are any.

    Raises InputError if no tap can have views, or a tap has the same name as the views of another one.
    """
    added = {tap_views(tap): (views - 1, *taps[tap]) for tap in augmented_taps(taps)} if views > 1 else {}
    if views > 1 and (not added or added.keys() & taps.keys()):
        raise InputError("views of these taps cannot be stored", where=", ".join(taps),
                         hint=f"choose a tap other than {EMBEDDING}, and none whose name ends in {tap_views('')}")
    return {**taps, **added}
