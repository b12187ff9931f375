"""Face crops for the CNN, plain and augmented. Imports no torch, so that drawing code can use it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fercache.backbones.taps import EMBEDDING, tap_views
from fercache.errors import InputError

AUGMENTATION_VERSION = "mirror-then-camera-1"
"""Changed whenever the pixels of a view change; part of the fingerprint of stores with views."""
SHIFT = 0.06
"""Largest shift of a view, as a fraction of the box's sides."""
ZOOM = 0.12
"""Largest zoom of a view in either direction, as a natural logarithm."""
ANGLE = math.radians(10)
LIGHT = 0.25
"""Largest relative change of brightness."""
SPARE_PX = 2
"""Pixels cut out around a view, so that bilinear interpolation has neighbors at the border."""

Picture = NDArray[np.uint8]


def crop_face(image: Picture, box: NDArray[np.float64], size: int = 160, margin: float = 0.0) -> Picture:
    """Return the face in `box` as a square (size, size, 3).

    Parameters
    ----------
    image : (H, W, 3).
    box : x1, y1, x2, y2 in pixels.
    margin : border around the box, as a fraction of its longer side, half of it on each side.
    """
    # Equals facenet-pytorch's `extract_face` on PIL pictures: corners truncated to whole pixels inside the picture,
    # then a bilinear resize that ignores the aspect ratio. Its published distances were measured with such crops.
    return resize_face(face_region(image, box, margin), size)


def face_region(image: Picture, box: NDArray[np.float64], margin: float = 0.0) -> Picture:
    """Return the pixels (h, w, 3) of the picture from which `crop_face` makes the crop, a view."""
    height, width = image.shape[:2]
    border = margin * max(box[2] - box[0], box[3] - box[1]) / 2
    left, top = int(max(box[0] - border, 0)), int(max(box[1] - border, 0))
    right, bottom = int(min(box[2] + border, width)), int(min(box[3] + border, height))
    left, top = min(left, width - 1), min(top, height - 1)  # at least one pixel, also of a box outside the picture
    return image[top:max(bottom, top + 1), left:max(right, left + 1)]


def resize_face(region: Picture, size: int = 160) -> Picture:
    """Return the pixels of a face (h, w, 3) as a square (size, size, 3)."""
    region = np.ascontiguousarray(region)
    return np.asarray(Image.fromarray(region).resize((size, size), Image.Resampling.BILINEAR))


def whole_picture(image: Picture) -> NDArray[np.float64]:
    """Return the box (4,) that covers a picture (H, W, 3)."""
    return np.array([0, 0, image.shape[1], image.shape[0]], np.float64)


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

    @property
    def is_plain(self) -> bool:
        """Whether the view shows exactly the box."""
        return (self.right, self.down, self.zoom, self.angle) == (0.0, 0.0, 1.0, 0.0)


def sample_augmentation(clip: str, frame: int, view: int) -> Augmentation:
    """Return the augmentation of a view of a frame of a clip; views and frames count from 1."""
    if view == 1:
        return Augmentation(mirrored=True)
    name = clip.encode("utf-8", "surrogateescape")  # names of files need not be valid UTF-8
    hashed = hashlib.sha256(f"{AUGMENTATION_VERSION}\0{frame}\0{view}\0".encode() + name).digest()
    u = np.random.default_rng(int.from_bytes(hashed[:16], "little")).uniform(-1, 1, 5).tolist()
    return Augmentation(mirrored=view % 2 == 1, right=SHIFT * u[0], down=SHIFT * u[1], zoom=math.exp(ZOOM * u[2]),
                        angle=ANGLE * u[3], light=1 + LIGHT * u[4])


def apply_augmentation(plain: Picture, image: Picture, box: NDArray[np.float64], margin: float,
                       augmentation: Augmentation) -> Picture:
    """Return a view, of the size of the `plain` crop, (S, S, 3).

    Parameters
    ----------
    image : the frame, (H, W, 3). Pixels around the box come from it, so that no border shows; beyond the frame its
        edge is repeated.
    box : x1, y1, x2, y2 in pixels.
    margin : as for `crop_face`.
    """
    view = plain if augmentation.is_plain else _warp(image, box, margin, len(plain), augmentation)
    if augmentation.light != 1:
        view = np.clip(view * np.float32(augmentation.light) + np.float32(0.5), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(view[:, ::-1]) if augmentation.mirrored else view


def _warp(image: Picture, box: NDArray[np.float64], margin: float, size: int, augmentation: Augmentation) -> Picture:
    """Return the shifted, zoomed, rotated view of the box with its margin, (size, size, 3)."""
    # The region of the plain crop: the box with its margin, clipped to the frame.
    border = margin * max(box[2] - box[0], box[3] - box[1]) / 2
    low = np.clip(box[:2] - border, 0, [image.shape[1] - 1, image.shape[0] - 1])
    high = np.clip(box[2:] + border, low + 1, [image.shape[1], image.shape[0]])
    sides = (high - low) * augmentation.zoom
    center = (low + high) / 2 + np.array([augmentation.right, augmentation.down]) * (high - low)
    sine, cosine = math.sin(augmentation.angle), math.cos(augmentation.angle)
    rotation = np.array([[cosine, -sine], [sine, cosine]])
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
    return np.asarray(part.transform((size, size), Image.Transform.AFFINE, tuple(map(float, data)),
                                     Image.Resampling.BILINEAR))


def augmented_taps(taps: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Return the taps that are stored of every view: all but the identity vector, which no view should change."""
    return tuple(tap for tap in taps if tap != EMBEDDING)


def with_views(taps: Mapping[str, tuple[int, ...]], views: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of a frame's row of every stored array: the taps, and their views if there are any.

    Raises
    ------
    InputError
        No tap can have views, or a tap has the same name as the views of another one.
    """
    added = {tap_views(tap): (views - 1, *taps[tap]) for tap in augmented_taps(taps)} if views > 1 else {}
    if views > 1 and (not added or added.keys() & taps.keys()):
        raise InputError("views of these taps cannot be stored", where=", ".join(taps),
                         hint=f"choose a tap other than {EMBEDDING}, and none whose name ends in {tap_views('')}")
    return {**taps, **added}
