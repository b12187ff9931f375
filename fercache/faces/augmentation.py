"""Views: seeded augmentations of each face, beside the plain one, so that stage two can draw among them.

Notes
-----
View 0 is the plain crop. View 1 is its mirror image and nothing else; the later ones are moved, zoomed, turned and lit
at random, every other one of them mirrored too. What a view looks like follows from the clip's name, the frame's number
and the view's number alone: neither batches nor order, a resumed run or another process change it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fercache.backbones.taps import IDENTITY, tap_views
from fercache.errors import InputError

AUGMENTATION_VERSION = "mirror-then-camera-1"
"""Raised whenever a view would look otherwise; part of the fingerprint of stores with views."""
SHIFT = 0.06
"""Most that a view is moved, as a share of the box's sides."""
ZOOM = 0.12
"""Most that a view is larger or smaller, as a natural logarithm."""
ANGLE = math.radians(10)
LIGHT = 0.25
"""Most that a view is brighter or darker, as a share."""
SPARE_PX = 2
"""Pixels kept around what a view shows, so that interpolation never runs out of picture."""

Picture = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How a view differs from the plain crop.

    Attributes
    ----------
    mirrored : left and right are swapped, last of all.
    right, down : how far the view looks from the box's middle, in shares of its sides.
    zoom : sides of what is shown over those of the box.
    angle : radians the camera is turned.
    light : factor on every value.
    """

    mirrored: bool = False
    right: float = 0.0
    down: float = 0.0
    zoom: float = 1.0
    angle: float = 0.0
    light: float = 1.0

    @property
    def is_plain(self) -> bool:
        """Whether the view shows just what the box holds."""
        return (self.right, self.down, self.zoom, self.angle) == (0.0, 0.0, 1.0, 0.0)


def sample_augmentation(clip: str, frame: int, view: int) -> Augmentation:
    """Return the look of a view (from 1) of a frame (from 1) of a clip."""
    if view == 1:
        return Augmentation(mirrored=True)
    hashed = hashlib.sha256(f"{AUGMENTATION_VERSION}\0{frame}\0{view}\0".encode() + clip.encode("utf-8",
                                                                                              "surrogateescape")).digest()
    u = np.random.default_rng(int.from_bytes(hashed[:16], "little")).uniform(-1, 1, 5).tolist()
    return Augmentation(mirrored=view % 2 == 1, right=SHIFT * u[0], down=SHIFT * u[1], zoom=math.exp(ZOOM * u[2]),
                angle=ANGLE * u[3], light=1 + LIGHT * u[4])


def apply_augmentation(plain: Picture, image: Picture, box: NDArray[np.float64], margin: float,
                       look: Augmentation) -> Picture:
    """Return a view, of the size of the `plain` crop, (S, S, 3).

    Parameters
    ----------
    image : the frame, (H, W, 3): what lies around the box comes from it, so that no border shows; beyond its own edge
        the edge is repeated.
    box : x1, y1, x2, y2 in pixels; margin : room around it, as for the plain crop.
    """
    seen = plain if look.is_plain else _warped(image, _framed(image, box, margin), len(plain), look)
    if look.light != 1:
        seen = np.clip(seen * np.float32(look.light) + np.float32(0.5), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(seen[:, ::-1]) if look.mirrored else seen


def _framed(image: Picture, box: NDArray[np.float64], margin: float) -> tuple[float, float, float, float]:
    """Return middle and sides, in pixels, of what the plain crop shows: the box with its margin, inside the frame."""
    room = margin * max(box[2] - box[0], box[3] - box[1]) / 2
    low = np.clip(box[:2] - room, 0, [image.shape[1] - 1, image.shape[0] - 1])
    high = np.clip(box[2:] + room, low + 1, [image.shape[1], image.shape[0]])
    return (*((low + high) / 2).tolist(), *(high - low).tolist())


def _warped(image: Picture, framed: tuple[float, float, float, float], size: int, look: Augmentation) -> Picture:
    """Return what a turned, moved, zoomed camera sees of the box, (size, size, 3).

    Notes
    -----
    A large face is made smaller first, with every pixel counted, as the plain crop does; the turn is then bilinear at
    about the final scale.
    """
    x, y, wide, high = framed
    across, along = np.array([wide, high]) * look.zoom
    turn = np.array([[math.cos(look.angle), -math.sin(look.angle)], [math.sin(look.angle), math.cos(look.angle)]])
    middle = np.array([x + look.right * wide, y + look.down * high])
    shrink = min(1.0, size / max(across, along))
    reach = np.abs(turn) @ np.array([across, along]) / 2 + SPARE_PX / shrink + 1
    start, stop = np.floor(middle - reach).astype(int), np.ceil(middle + reach).astype(int)
    part = _cut(image, start, stop)
    small = (np.maximum(1, np.round((stop - start) * shrink))).astype(int)
    held = Image.fromarray(part)
    if shrink < 1:
        held = held.resize((int(small[0]), int(small[1])), Image.Resampling.BILINEAR)
    scale = np.array(held.size) / (stop - start)
    matrix = scale[:, None] * turn * np.array([across, along]) / size
    offset = scale * (middle - start) - matrix @ np.array([size / 2, size / 2])
    data = (*matrix[0], offset[0], *matrix[1], offset[1])
    return np.asarray(held.transform((size, size), Image.Transform.AFFINE, tuple(map(float, data)),
                                     Image.Resampling.BILINEAR))


def _cut(image: Picture, start: NDArray[np.int64], stop: NDArray[np.int64]) -> Picture:
    """Return columns and rows `start` to `stop` (x, y) of a frame; beyond its edges the edge is repeated."""
    columns = np.clip(np.arange(start[0], stop[0]), 0, image.shape[1] - 1)
    rows = np.clip(np.arange(start[1], stop[1]), 0, image.shape[0] - 1)
    return np.ascontiguousarray(image[rows[:, None], columns])


def seen_in_views(taps: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Return the taps that are kept of every view: all but the identity vector, which says who it is in any view."""
    return tuple(tap for tap in taps if tap != IDENTITY)


def with_views(taps: Mapping[str, tuple[int, ...]], views: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of a frame's row of everything that is stored: the taps, and beside them their views.

    Raises
    ------
    InputError
        There is no tap to keep views of, or a tap has the name of another one's views.
    """
    beside = {tap_views(tap): (views - 1, *taps[tap]) for tap in seen_in_views(taps)} if views > 1 else {}
    if views > 1 and (not beside or beside.keys() & taps.keys()):
        raise InputError("views of these taps cannot be kept", where=", ".join(taps),
                         hint=f"name a tap other than {IDENTITY}, and none that ends as the views' names do")
    return {**taps, **beside}
