"""Face detection with MTCNN: boxes and scores of the faces in pictures.

Runs facenet-pytorch's three nets with a driver of its own, which gives the library's boxes in a third of the time. The
library averages each scale, and each candidate, from the picture anew, and runs the nets in a layout in which pooling
is slow. Here an integral image gives the mean over any rectangle from four values, for all candidates at once, and the
nets run channels-last. Sums are integers and means are rounded once, so boxes differ by float noise only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fercache.backbones import facenet
from fercache.runtime.devices import map_threads, synchronize_device

CELL_PX, STRIDE_PX = 12, 2
"""Receptive field and stride of the first net."""
FACTOR = 0.709
"""Ratio of one scale of the pyramid to the previous one."""
THRESHOLDS = (0.6, 0.7, 0.7)
"""Least scores to pass each net. These and FACTOR are facenet-pytorch's defaults."""
SIDES = (24, 48)
"""Input size of the second and the third net, in pixels."""
FIRST_PIXELS, CANDIDATES = 320_000, (64, 16)
"""Pixels per call of the first net, and candidates per call of the second and the third. With more, activations leave a
core's cache, and a call takes up to twice the time."""
CENTER, SCALE = 127.5, 0.0078125
LANDMARKS = ("left eye", "right eye", "nose", "left corner of the mouth", "right corner of the mouth")
"""Points of a face, in the order in which the third net returns them; left and right as in the picture."""
COLUMNS = 5 + 2 * len(LANDMARKS)
"""Numbers per face: x1, y1, x2, y2, the score, and x, y of each landmark."""
MAX_CANDIDATES = 512
"""Candidates whose pixels are resampled at once, which bounds memory in a crowd."""

Tensor: TypeAlias = torch.Tensor

_scratch_memory = threading.local()


class Mtcnn:
    """MTCNN for faces of at least `min_face_px`."""
    # On the CPU it runs with the caller's threads. For bit-equal boxes, keep the number of threads and the batches
    # fixed.

    def __init__(self, nets: Sequence[torch.nn.Module], min_face_px: int, device: torch.device) -> None:
        self.first, self.second, self.third = nets
        self.first_scale = CELL_PX / min_face_px
        self.device = device

    @classmethod
    def load(cls, min_face_px: int, device: str = "cpu") -> Mtcnn:
        """Return the detector with facenet-pytorch's weights, which come with that package."""
        library = facenet.MTCNN(device=torch.device(device)).eval().requires_grad_(False)
        library.pnet.pool1 = HalvingPool()  # torch's pooling is slow on channels-last tensors
        nets = [net.to(memory_format=torch.channels_last) for net in (library.pnet, library.rnet, library.onet)]
        # Other threads run the nets in streams of their own, which do not wait for the copies made here.
        synchronize_device(device)
        return cls(nets, min_face_px, torch.device(device))

    @torch.inference_mode()
    def detect(self, pictures: NDArray[np.uint8]) -> list[NDArray[np.float64]]:
        """Return the faces of each picture of (B, H, W, 3): (n, 15), box in pixels, score and LANDMARKS."""
        # As facenet-pytorch's ``MTCNN(keep_all=True, select_largest=True)``: the largest face comes first.
        sums = IntegralImage(pictures, self.device)
        place, boxes = self._proposed(sums)
        place, boxes = self._refined(sums, place, boxes)
        faces, owner = boxes.cpu().numpy(), place.cpu().numpy()
        return [_largest_first(faces[owner == i]) for i in range(len(pictures))]

    def _scales(self, side_px: int) -> list[float]:
        """Return the scales of the pyramid for pictures with this shorter side."""
        scales, scale, scaled_px = [], self.first_scale, side_px * self.first_scale
        while scaled_px >= CELL_PX:
            scales.append(scale)
            scale, scaled_px = scale * FACTOR, scaled_px * FACTOR
        return scales

    def _proposed(self, sums: IntegralImage) -> tuple[Tensor, Tensor]:
        """Return the first net's candidates: picture (n,) and square boxes with score (n, 5)."""
        places, boxes = [], []
        for scale in self._scales(min(sums.height, sums.width)):
            scaled = sums.resized(int(sums.height * scale + 1), int(sums.width * scale + 1))
            step = max(1, FIRST_PIXELS // (scaled.shape[1] * scaled.shape[2]))
            move, face_probs = _run_in_chunks(self.first, scaled, step)
            place, cells = _cells(move, face_probs, scale)
            pick = facenet.library_nms(cells[:, :4], cells[:, 4], place, 0.5)
            places.append(place[pick])
            boxes.append(cells[pick])
        if not boxes:
            return torch.empty(0, dtype=torch.long), torch.empty(0, 5)
        place, cells = torch.cat(places), torch.cat(boxes)
        pick = facenet.library_nms(cells[:, :4], cells[:, 4], place, 0.7)
        place, cells = place[pick], cells[pick]
        # No extra pixel in the size here, unlike in `_moved`: the library does the same.
        size = (cells[:, 2:4] - cells[:, :2]).repeat(1, 2)
        return place, torch.cat([_square(cells[:, :4] + cells[:, 5:9] * size), cells[:, 4:5]], 1)

    def _refined(self, sums: IntegralImage, place: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the candidates that pass the second and third net: picture (n,), and box, score, landmarks (n, 15)."""
        nets = zip((self.second, self.third), SIDES, THRESHOLDS[1:], CANDIDATES, strict=True)
        for net, side, threshold, step in nets:
            part, inside = sums.rectangles(boxes)
            place, boxes, part = place[inside], boxes[inside], tuple(edge[inside] for edge in part)
            if not len(boxes):
                return place, boxes.new_empty(0, COLUMNS)
            outputs = []
            for i in range(0, len(boxes), MAX_CANDIDATES):
                chunk = slice(i, i + MAX_CANDIDATES)
                crops = sums.crops(place[chunk], [edge[chunk] for edge in part], side)
                outputs.append(_run_in_chunks(net, crops, step))
            # The third net also returns landmarks, in the middle: moves come first, scores last.
            moves, *points, scores = (torch.cat(parts) for parts in zip(*outputs, strict=True))
            score = scores[:, 1]
            passed = score > threshold
            place, boxes, moves = place[passed], torch.cat([boxes[passed, :4], score[passed, None]], 1), moves[passed]
            if side == SIDES[0]:
                pick = facenet.library_nms(boxes[:, :4], boxes[:, 4], place, 0.7)
                place, boxes = place[pick], _moved(boxes[pick], moves[pick])
                boxes[:, :4] = _square(boxes[:, :4])
            else:
                landmarks = _landmarks(boxes, points[0][passed])
                boxes = _moved(boxes, moves)
                pick = facenet.library_nms_by_smaller(boxes[:, :4], boxes[:, 4], place, 0.7)
                place, boxes = place[pick], torch.cat([boxes, landmarks], 1)[pick]
        return place, boxes


class HalvingPool(torch.nn.Module):
    """``MaxPool2d(2, 2, ceil_mode=True)``, three times as fast on channels-last tensors."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, ceil(h / 2), ceil(w / 2)) of (B, C, h, w)."""
        for dim in (2, 3):
            even, odd = (x.narrow(dim, start, x.shape[dim] - start) for start in (0, 1))
            even, odd = (half[(slice(None),) * dim + (slice(None, None, 2),)] for half in (even, odd))
            both = torch.maximum(even.narrow(dim, 0, odd.shape[dim]), odd)
            x = both if even.shape[dim] == odd.shape[dim] else torch.cat([both, even.narrow(dim, -1, 1)], dim)
        return x.contiguous(memory_format=torch.channels_last)


class IntegralImage:
    """Sums of all pixels above and to the left of each pixel; they give the mean over any rectangle in four reads."""
    # Sums are stored in 32 bits and may wrap around; differences over rectangles up to eight million pixels do not. A
    # fourth, empty channel makes a pixel one unit of 16 bytes, which one read returns.

    def __init__(self, pictures: NDArray[np.uint8], device: torch.device) -> None:
        count, self.height, self.width, _ = pictures.shape
        if device.type == "cpu":
            table = _scratch((count, self.height + 1, self.width + 1, 4))
            for picture, sums in zip(pictures, table[:, 1:], strict=True):
                np.cumsum(picture, axis=1, dtype=np.int32, out=sums[:, 1:, :3])
                np.cumsum(sums, axis=0, out=sums)
            self.table = torch.from_numpy(table)
        else:
            pixels = torch.from_numpy(pictures).to(device, non_blocking=True)
            summed = pixels.cumsum(2, dtype=torch.int32).cumsum(1, dtype=torch.int32)
            self.table = torch.nn.functional.pad(summed, (0, 1, 1, 0, 1, 0))

    def resized(self, height: int, width: int) -> Tensor:
        """Return every picture at that size with pixels averaged, (B, height, width, 3) float32."""
        low_y, high_y = _bins(self.height, height, self.table.device)
        low_x, high_x = _bins(self.width, width, self.table.device)
        count = ((high_y - low_y)[:, None] * (high_x - low_x)).float()[..., None]
        resized = torch.empty(len(self.table), height, width, 3, device=self.table.device)
        for sums, into in zip(self.table, resized, strict=True):  # one picture at a time stays in the CPU's cache
            lines = sums.index_select(0, high_y) - sums.index_select(0, low_y)
            total = _taken(lines, 1, high_x) - _taken(lines, 1, low_x)
            torch.div(total[..., :3], count, out=into)
        return resized

    def rectangles(self, boxes: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return left, top, right, bottom (n,) of boxes in whole pixels, and whether each has an area (n,)."""
        corner = boxes[:, :4].trunc().long()
        left, top = corner[:, 0].clamp(min=1) - 1, corner[:, 1].clamp(min=1) - 1
        right, bottom = corner[:, 2].clamp(max=self.width), corner[:, 3].clamp(max=self.height)
        return (left, top, right, bottom), (right > left) & (bottom > top)

    def crops(self, place: Tensor, part: list[Tensor], side: int) -> Tensor:
        """Return rectangles (n,) of the pictures `place` (n,), resized to squares (n, side, side, 3)."""
        left, top, right, bottom = (edge[:, None] for edge in part)
        step = torch.arange(side, device=left.device)
        low_y, high_y = top + step * (bottom - top) // side, top - (-(step + 1) * (bottom - top) // side)
        low_x, high_x = left + step * (right - left) // side, left - (-(step + 1) * (right - left) // side)
        line = place[:, None] * (self.height + 1)
        total = (self._at(line + high_y, high_x) - self._at(line + low_y, high_x)
                 - self._at(line + high_y, low_x) + self._at(line + low_y, low_x))
        return total[..., :3].float() / ((high_y - low_y)[:, :, None] * (high_x - low_x)[:, None]).float()[..., None]

    def _at(self, line: Tensor, column: Tensor) -> Tensor:
        """Return the sums at lines (n, h) and columns (n, w) of the table: (n, h, w, 4)."""
        index = (line * (self.width + 1))[:, :, None] + column[:, None]
        return _taken(self.table.view(-1, 4), 0, index.view(-1)).view(*index.shape, 4)


def _scratch(shape: tuple[int, int, int, int]) -> NDArray[np.int32]:
    """Return this thread's own array of that shape, zero at the upper and the left edge and in the last channel."""
    # Allocating this much memory for each batch would take longer than the sums. A smaller batch uses a part of it.
    array: NDArray[np.int32] | None = getattr(_scratch_memory, "array", None)
    if array is None or array.shape[1:] != shape[1:] or len(array) < shape[0]:
        array = np.zeros(shape, np.int32)
        _scratch_memory.array = array
    return array[:shape[0]]


def _taken(table: Tensor, dim: int, index: Tensor) -> Tensor:
    """Return ``table.index_select(dim, index)`` of sums (..., 4); on the CPU with numpy, which is faster."""
    if table.device.type != "cpu":
        return table.index_select(dim, index)
    # Viewed as complex128, the four 32-bit sums of a pixel are one element of 16 bytes.
    units = table.numpy().view(np.complex128)[..., 0]
    taken = units.take(index.numpy(), axis=dim, mode="clip")  # "clip" skips the bounds check; all are inside
    return torch.from_numpy(taken.view(np.int32).reshape(*taken.shape, 4))


def _bins(length: int, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the first and last (exclusive) pixel of each of `count` bins of torch's area interpolation."""
    step = torch.arange(count, device=device)
    return step * length // count, -(-(step + 1) * length // count)


def _run_in_chunks(net: torch.nn.Module, pictures: Tensor, step: int) -> list[Tensor]:
    """Return the outputs of a net for pictures (B, h, w, 3), run on `step` of them at a time."""
    # permute alone: the memory stays channels-last, the layout in which the nets run.
    chunks = (pictures[i:i + step] for i in range(0, len(pictures), step))
    outputs = [net(((chunk - CENTER) * SCALE).permute(0, 3, 1, 2)) for chunk in chunks]
    return [torch.cat(parts) for parts in zip(*outputs, strict=True)]


def _cells(move: Tensor, face_probs: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return the picture (n,), and box, score and four moves (n, 9), of the cells that the first net accepts."""
    place, y, x = (face_probs[:, 1] >= THRESHOLDS[0]).nonzero(as_tuple=True)
    corner = torch.stack([x, y], 1).to(move.dtype) * STRIDE_PX + 1
    low, high = (corner / scale).floor(), ((corner + (CELL_PX - 1)) / scale).floor()
    return place, torch.cat([low, high, face_probs[place, 1, y, x][:, None], move[place, :, y, x]], 1)


def _moved(boxes: Tensor, move: Tensor) -> Tensor:
    """Return boxes with score (n, 5), moved by a net's output, which is in fractions of their sides."""
    size = (boxes[:, 2:4] - boxes[:, :2] + 1).repeat(1, 2)
    return torch.cat([boxes[:, :4] + move * size, boxes[:, 4:5]], 1)


def _landmarks(boxes: Tensor, points: Tensor) -> Tensor:
    """Return x, y of each landmark in pixels, (n, 10); `points`: fractions of a box, five x and then five y (n, 10)."""
    low, size = boxes[:, None, :2], (boxes[:, 2:4] - boxes[:, :2] + 1)[:, None]
    return (low + points.view(-1, 2, 5).transpose(1, 2) * size - 1).flatten(1)


def _square(boxes: Tensor) -> Tensor:
    """Return boxes (n, 4) extended to squares around their center."""
    size = boxes[:, 2:4] - boxes[:, :2]
    longest = size.max(1, keepdim=True).values
    low = boxes[:, :2] + size * 0.5 - longest * 0.5
    return torch.cat([low, low + longest], 1)


def _largest_first(faces: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the faces (n, 15) of a picture in the library's order, by area."""
    area = (faces[:, 2] - faces[:, 0]) * (faces[:, 3] - faces[:, 1])
    return faces[np.argsort(area)[::-1]].astype(np.float64)


# The detector: batches of pictures, their scale, and rounding.

BATCH = 8
BATCH_PIXELS = BATCH << 21
"""Pixels of the largest batch, which takes 16 bytes a pixel."""
TRUNCATED_PX = np.array([1.5, 1.5, 0.5, 0.5, 0, *[0.5] * 2 * len(LANDMARKS)])
"""Bias of MTCNN's x1, y1, x2, y2 and landmarks (the score between them has none), in pixels of its input. Its driver
truncates candidates to whole pixels (half a pixel on average) and starts one pixel further left and up, for which it
corrects the landmarks only."""
BOX_STEPS = 16
"""Boxes are rounded to 1 / BOX_STEPS px, since MTCNN's noise between batches is at most 1e-4 px."""
SCORE_DIGITS = 4


class Detector:
    """Face detector: MTCNN for faces of at least `min_face_px` with a score of at least `min_score`.

    Parameters
    ----------
    detect_px : longer side to which larger pictures are scaled down before detection; 0 never scales.
    """
    # Boxes depend by up to 1e-4 px on the other pictures of the batch (callers fix the batches) and on the number of
    # threads (here each batch has one thread, and batches run in parallel). So boxes and scores are rounded.

    def __init__(self, min_face_px: int = 40, min_score: float = 0.9, device: str = "cpu", batch: int = BATCH,
                 detect_px: int = 0) -> None:
        self.min_face_px, self.min_score, self.batch, self.detect_px = min_face_px, min_score, batch, detect_px
        self.device = device
        self.nets: dict[int, Mtcnn] = {}
        self._loading = threading.Lock()  # batches run in parallel, and two may need a net first

    def detect(self, images: Sequence[NDArray[np.uint8]], run: Callable[..., list[Any]] = map_threads, *,
               landmarks: bool = False) -> list[NDArray[np.float64]]:
        """Return the faces of each picture, (n, 5): x1, y1, x2, y2 in pixels and the score; the largest first.

        Parameters
        ----------
        images : pictures (H, W, 3), of one size or of several.
        run : computes the batches, as `devices.map_threads` does.
        landmarks : return (n, 15), with x and y of each of LANDMARKS after the score.
        """
        columns = COLUMNS if landmarks else 5
        detected = [np.empty((0, columns)) for _ in images]
        scale = [min(1.0, self.detect_px / max(image.shape[:2])) if self.detect_px else 1.0 for image in images]
        inputs = [image if by == 1 else _reduced(image, by) for image, by in zip(images, scale, strict=True)]
        by_size: dict[tuple[int, int], list[int]] = {}
        for i, image in enumerate(images):
            by_size.setdefault((image.shape[0], image.shape[1]), []).append(i)
        batches = [batch for rows in by_size.values()
                   for batch in self._batches(inputs[rows[0]].shape, scale[rows[0]], rows)]
        results = run(lambda batch: self.net(scale[batch[0]]).detect(np.stack([inputs[i] for i in batch])),
                      batches, self.device)
        for batch, results_of_batch in zip(batches, results, strict=True):
            for i, faces in zip(batch, results_of_batch, strict=True):
                # Back to pixels of the original picture.
                scaled = (faces - TRUNCATED_PX) * (1 / scale[i]) + TRUNCATED_PX
                scaled[:, 4] = faces[:, 4]
                detected[i] = self._filtered(scaled, images[i].shape[:2])[:, :columns]
        return detected

    def net(self, scale: float = 1.0) -> Mtcnn:
        """Return the MTCNN for pictures of that scale, loaded on first use."""
        smallest = self._smallest(scale)
        with self._loading:
            if smallest not in self.nets:
                self.nets[smallest] = Mtcnn.load(smallest, self.device)
            return self.nets[smallest]

    def _smallest(self, scale: float) -> int:
        """Return the smallest face to detect, in pixels of MTCNN's input; its first net needs 12."""
        return max(12, round(self.min_face_px * scale))

    def _batches(self, shape: tuple[int, ...], scale: float, rows: list[int]) -> list[list[int]]:
        """Return the pictures `rows`, all of one size, in batches."""
        if min(shape[:2]) < self._smallest(scale):  # the pyramid has no scale, so no face can be found
            return []
        step = max(1, min(self.batch, BATCH_PIXELS // (shape[0] * shape[1])))
        return [rows[start:start + step] for start in range(0, len(rows), step)]

    def _filtered(self, faces: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
        """Return the faces with a sufficient score, rounded, and their boxes clipped to the picture."""
        height, width = shape
        faces = faces[np.isfinite(faces[:, :5]).all(axis=1)]  # the rest cannot be rounded
        rounded = (faces * BOX_STEPS).round() / BOX_STEPS
        rounded[:, :4] = rounded[:, :4].clip(0, [width, height, width, height])
        rounded[:, 4] = faces[:, 4].round(SCORE_DIGITS)
        has_area = (rounded[:, 2] - rounded[:, 0] >= 1) & (rounded[:, 3] - rounded[:, 1] >= 1)
        return rounded[has_area & (rounded[:, 4] >= self.min_score)]


def _reduced(image: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    """Return a picture (H, W, 3) scaled down by `scale`, with pixels averaged."""
    height, width = image.shape[:2]
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
