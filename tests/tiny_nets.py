"""A tiny CNN and a tiny detector in place of the real ones, for tests of everything around them.

`TinyNet` has the taps, shapes and value types of the real CNN, and tells the classes of `streams` apart; `TinyDetector`
finds one face in every picture with contrast. Both compute in whole numbers only, in float64, so a picture's values do
not depend on its batch mates or on the number of threads, and a crop or a picture takes about a millisecond.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fercache.backbones import backbone
from fercache.backbones.taps import BLOCKS, EMBEDDING, split_tap, tap_shapes
from fercache.faces import detector

FILTERS, SIDE, CELLS = 16, 40, 3
LEVELS = 64
"""Steps in which a filter's energy is rounded, relative to that of all filters."""


def whole_numbers(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Return random whole numbers from -3 to 3: sums of their products with pixels are exact in float64."""
    return torch.randint(-3, 4, shape, generator=generator).double()


class TinyNet(torch.nn.Module):
    """Energies of random filters, projected to the shape of each tap; loaded as `TorchNet` is."""

    @classmethod
    def load(cls, source: object, taps: Sequence[str], **settings: object) -> TinyNet:
        """Return the net; its numbers do not depend on the weights."""
        return cls(taps)

    def __init__(self, taps: Sequence[str]) -> None:
        super().__init__()
        self.shapes = tap_shapes(taps)
        # One set of numbers per block, so that a tap does not depend on which others are asked for.
        self.filters = torch.nn.Conv2d(3, FILTERS, 7, stride=3, bias=False, dtype=torch.float64)
        self.filters.weight.data = whole_numbers(torch.Generator().manual_seed(0), FILTERS, 3, 7, 7)
        self.filters.weight.data -= self.filters.weight.data.mean((1, 2, 3), keepdim=True).round()
        self.projections = {}
        for tap in taps:
            block = split_tap(tap)[0]
            channels = 512 if block == EMBEDDING else BLOCKS[block][0]
            seed = 1 + (EMBEDDING, *BLOCKS).index(block)
            self.projections[tap] = whole_numbers(torch.Generator().manual_seed(seed), FILTERS, channels)
        self.requires_grad_(False)

    @torch.inference_mode()
    def __call__(self, crops: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Return {tap: (B, ...) float32} of crops (B, 160, 160, 3) uint8."""
        step = crops.shape[1] // SIDE
        pixels = crops[:, step // 2::step, step // 2::step].astype(np.float64)  # (B, 40, 40, 3)
        energies = self.filters(torch.from_numpy(pixels).permute(0, 3, 1, 2)).abs()
        side = energies.shape[-1] // CELLS
        grid = torch.nn.functional.avg_pool2d(energies, side, divisor_override=1)[..., :CELLS, :CELLS]  # (B, F, 3, 3)
        # Relative to the cell's mean, so that brightness and contrast do not matter; rounded, to stay exact.
        grid = (grid / (grid.sum(1, keepdim=True) / FILTERS + 1) * LEVELS).round() - LEVELS
        return {tap: self.tap(tap, shape, grid).numpy() for tap, shape in self.shapes.items()}

    def tap(self, tap: str, shape: tuple[int, ...], grid: torch.Tensor) -> torch.Tensor:
        """Return one tap, (B, ...): the mean over the grid, the grid itself, or the grid enlarged."""
        form = split_tap(tap)[1]
        if form == "map":
            grid = torch.nn.functional.interpolate(grid, shape[1:], mode="nearest")
        values = (grid.sum((2, 3)) if form == "" else grid).movedim(1, -1) @ self.projections[tap]
        if tap == EMBEDDING:
            values /= values.square().sum(1, keepdim=True).sqrt()
        else:
            values *= 2.0 ** (-10 if form == "" else -7)
        return values.movedim(-1, 1).float().contiguous()


class TinyDetector:
    """One face where the picture's contrast is; loaded as `Mtcnn` is."""

    def __init__(self, min_face_px: int) -> None:
        self.min_face_px = min_face_px

    @classmethod
    def load(cls, min_face_px: int, device: str = "cpu", backend: str = "torch") -> TinyDetector:
        """Return the detector, the same on every device and backend."""
        return cls(min_face_px)

    def detect(self, pictures: NDArray[np.uint8]) -> list[NDArray[np.float64]]:
        """Return the faces of each picture of (B, H, W, 3): (n, 15) with the box in pixels, score and landmarks."""
        return [self.faces(picture.sum(axis=2, dtype=np.int64)) for picture in pictures]

    def faces(self, picture: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the face (1, 15) of a picture (H, W), or (0, 15) of one without contrast."""
        contrast = np.abs(picture - int(np.median(picture)))
        side = max(self.min_face_px, min(picture.shape) // 2)
        if contrast.max() < 100 or min(picture.shape) <= side:
            return np.empty((0, 15))
        center = [int((contrast.sum(axis=1 - axis) * np.arange(size)).sum()) / int(contrast.sum())
                  for axis, size in enumerate(picture.shape)]
        y, x = (min(max(middle - side / 2, 0), size - side) for middle, size in zip(center, picture.shape, strict=True))
        return np.array([[x, y, x + side, y + side, .99, *((x, y) + side * EYES_NOSE_MOUTH).ravel()]])


EYES_NOSE_MOUTH = np.array([[.3, .35], [.7, .35], [.5, .55], [.35, .75], [.65, .75]])
"""Where the tiny detector's landmarks are, as fractions of its box."""

SEAMS = {"cnn": (backbone, "TorchNet", TinyNet), "detector": (detector, "Mtcnn", TinyDetector)}
"""Which name of fercache makes each net, and what takes its place."""


def install(nets: Sequence[str] = tuple(SEAMS), replace: Callable[[object, str, object], None] = setattr) -> None:
    """Make `Backbone.load` and `Detector` use tiny nets: for the rest of this process, or as `replace` does it."""
    for name in nets:
        replace(*SEAMS[name])
