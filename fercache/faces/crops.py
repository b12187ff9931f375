"""Face crops for the CNN. Imports no torch, so that drawing code can use it."""

from __future__ import annotations

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
    """
    # Equals facenet-pytorch's `extract_face` on PIL pictures: corners truncated to whole pixels inside the picture,
    # then a bilinear resize that ignores the aspect ratio. Its published distances were measured with such crops.
    height, width = image.shape[:2]
    border = margin * max(box[2] - box[0], box[3] - box[1]) / 2
    left, top = int(max(box[0] - border, 0)), int(max(box[1] - border, 0))
    right, bottom = int(min(box[2] + border, width)), int(min(box[3] + border, height))
    left, top = min(left, width - 1), min(top, height - 1)  # at least one pixel, also of a box outside the picture
    crop = np.ascontiguousarray(image[top:max(bottom, top + 1), left:max(right, left + 1)])
    return np.asarray(Image.fromarray(crop).resize((size, size), Image.Resampling.BILINEAR))


def whole_picture(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the box (4,) that covers a picture (H, W, 3)."""
    return np.array([0, 0, image.shape[1], image.shape[0]], np.float64)


def reduced(image: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    """Return a picture (H, W, 3) scaled down by `scale`, with pixels averaged."""
    height, width = image.shape[:2]
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
