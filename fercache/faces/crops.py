"""Face crops for the CNN. Imports no torch, so that drawing code can use it."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def crop_face(image: NDArray[np.uint8], box: NDArray[np.float64], size: int = 160,
              margin: float = 0.0) -> NDArray[np.uint8]:
    """Return the face in `box` as a square (size, size, 3).

    Parameters
    ----------
    image : (H, W, 3).
    box : x1, y1, x2, y2 in pixels.
    margin : border around the box, as a fraction of its longer side, half of it on each side.

    Notes
    -----
    Equals facenet-pytorch's `extract_face` on PIL pictures: corners truncated to whole pixels inside the picture, then
    a bilinear resize that ignores the aspect ratio. Its published distances were measured with such crops.
    """
    height, width = image.shape[:2]
    border = margin * max(box[2] - box[0], box[3] - box[1]) / 2
    left, top = int(max(box[0] - border, 0)), int(max(box[1] - border, 0))
    right, bottom = int(min(box[2] + border, width)), int(min(box[3] + border, height))
    left, top = min(left, width - 1), min(top, height - 1)  # at least one pixel, also of a box outside the picture
    return _resized(image[top:max(bottom, top + 1), left:max(right, left + 1)], size)


def whole_picture(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the box (4,) that covers a picture (H, W, 3)."""
    return np.array([0, 0, image.shape[1], image.shape[0]], np.float64)


def reduced(image: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    """Return a picture (H, W, 3) scaled down by `scale`, with pixels averaged."""
    height, width = image.shape[:2]
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))


Square: TypeAlias = tuple[int, int, int]
"""Left, top and side, in whole pixels of a picture; it may reach over the picture's edges."""


def square_around(box: NDArray[np.float64], side: float, shape: tuple[int, ...]) -> Square:
    """Return the square of that side around the middle of `box` (4,), moved into a picture of `shape` if it fits."""
    whole_side = max(1, round(side))
    left, top = (min(max(round((low + high - whole_side) / 2), min(0, most - whole_side)), max(0, most - whole_side))
                 for low, high, most in ((box[0], box[2], shape[1]), (box[1], box[3], shape[0])))
    return left, top, whole_side


def cut_out(image: NDArray[np.uint8], square: Square, size: int) -> NDArray[np.uint8]:
    """Return a square of a picture at `size` (size, size, 3), black where the picture (H, W, 3) has ended."""
    left, top, side = square
    height, width = image.shape[:2]
    part = image[max(top, 0):min(top + side, height), max(left, 0):min(left + side, width)]
    if part.shape[:2] != (side, side):
        canvas = np.zeros((side, side, 3), np.uint8)
        canvas[max(-top, 0):max(-top, 0) + part.shape[0], max(-left, 0):max(-left, 0) + part.shape[1]] = part
        part = canvas
    return _resized(part, size)


def _resized(part: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Return a part of a picture (h, w, 3) as a square (size, size, 3), whatever its aspect."""
    return np.asarray(Image.fromarray(np.ascontiguousarray(part)).resize((size, size), Image.Resampling.BILINEAR))
