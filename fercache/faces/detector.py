"""Faces in pictures, found by MTCNN as boxes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from fercache.backbones import facenet
from fercache.faces.crops import Square, cut_out, reduced, square_around
from fercache.faces.tracklets import SAME_IOU, area, iou
from fercache.runtime.devices import map_threads, resolve_threads

# MTCNN's three nets, driven quickly: the boxes of facenet-pytorch's own driver, for a third of its work.
#
# Notes
# -----
# Its driver spends two thirds of its time outside the nets: it averages each scale, and each candidate, from the
# picture
# anew, and runs the nets in a layout in which pooling is slow. Here the sums of all pixels above and to the left are
# taken once a picture, so that the mean over any rectangle is four look-ups, for all candidates at once; and the nets
# run
# channels-last. Sums are whole numbers, means are rounded once: boxes differ from the library's by float noise alone.

CELL_PX, STRIDE_PX = 12, 2
"""What the first net sees at once, and how far it moves."""
FACTOR = 0.709
"""From one scale of the pyramid to the next."""
THRESHOLDS = (0.6, 0.7, 0.7)
"""Scores from which candidates pass each net; with FACTOR, facenet-pytorch's defaults."""
SIDES = (24, 48)
"""Pixels of a candidate's side as the second and the third net see it."""
FIRST_PIXELS, AT_ONCE = 320_000, (64, 16)
"""Pixels that the first net sees at once, and candidates that the second and the third do: what they make of more does
not stay in a core's cache, which takes up to twice the time."""
CENTRE, SCALE = 127.5, 0.0078125
SMALL_SUMS = 1 << 16
"""Sums of a picture up to which they are kept apart from those of larger ones."""
MOST = 512
"""Candidates whose pixels are made at once."""

Tensor: TypeAlias = torch.Tensor


_kept = threading.local()


class Mtcnn:
    """MTCNN for faces of at least `min_face_px`.

    Notes
    -----
    On the CPU it runs with the threads of its caller; a caller that wants equal boxes keeps threads and batches fixed.
    """

    def __init__(self, min_face_px: int, device: str = "cpu") -> None:
        self.first_scale = CELL_PX / min_face_px
        self.device = torch.device(device)
        nets = facenet.MTCNN(device=self.device).eval().requires_grad_(False)
        self.first, self.second, self.third = (net.to(memory_format=torch.channels_last)
                                               for net in (nets.pnet, nets.rnet, nets.onet))
        self.first.pool1 = HalvingPool()
        resolve_threads(device)

    @torch.inference_mode()
    def detect(self, pictures: NDArray[np.uint8]) -> list[NDArray[np.float64]]:
        """Return the faces of each picture of (B, H, W, 3): (n, 5) with x1, y1, x2, y2 in pixels and the score.

        Notes
        -----
        As facenet-pytorch's ``MTCNN(keep_all=True, select_largest=True)``: the largest face comes first.
        """
        sums = IntegralImage(pictures, self.device)
        place, boxes = self._proposed(sums)
        place, boxes = self._refined(sums, place, boxes)
        found, order = boxes.cpu().numpy(), place.cpu().numpy()
        return [_largest_first(found[order == i]) for i in range(len(pictures))]

    def _scales(self, side_px: int) -> list[float]:
        """Return the scales of the pyramid for pictures with this shorter side."""
        scales, scale, left = [], self.first_scale, side_px * self.first_scale
        while left >= CELL_PX:
            scales.append(scale)
            scale, left = scale * FACTOR, left * FACTOR
        return scales

    def _proposed(self, sums: IntegralImage) -> tuple[Tensor, Tensor]:
        """Return the first net's candidates: picture (n,) and square boxes with score (n, 5)."""
        places, boxes = [], []
        for scale in self._scales(min(sums.height, sums.width)):
            seen = sums.whole(int(sums.height * scale + 1), int(sums.width * scale + 1))
            move, face_probs = _bit_by_bit(self.first, seen, max(1, FIRST_PIXELS // (seen.shape[1] * seen.shape[2])))
            place, found = _cells(move, face_probs, scale)
            pick = facenet.library_nms(found[:, :4], found[:, 4], place, 0.5)
            places.append(place[pick])
            boxes.append(found[pick])
        if not boxes:
            return torch.empty(0, dtype=torch.long), torch.empty(0, 5)
        place, found = torch.cat(places), torch.cat(boxes)
        pick = facenet.library_nms(found[:, :4], found[:, 4], place, 0.7)
        place, found = place[pick], found[pick]
        size = (found[:, 2:4] - found[:, :2]).repeat(1, 2)
        return place, torch.cat([_square(found[:, :4] + found[:, 5:9] * size), found[:, 4:5]], 1)

    def _refined(self, sums: IntegralImage, place: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the second and the third net make of candidates."""
        for net, side, threshold, step in zip((self.second, self.third), SIDES, THRESHOLDS[1:], AT_ONCE, strict=True):
            part, inside = sums.rectangles(boxes)
            place, boxes, part = place[inside], boxes[inside], tuple(edge[inside] for edge in part)
            if not len(boxes):
                return place, boxes
            answers = [_bit_by_bit(net, sums.parts(place[i:i + MOST], [edge[i:i + MOST] for edge in part], side), step)
                       for i in range(0, len(boxes), MOST)]
            moves, score = torch.cat([a[0] for a in answers]), torch.cat([a[-1] for a in answers])[:, 1]
            good = score > threshold
            place, boxes, moves = place[good], torch.cat([boxes[good, :4], score[good, None]], 1), moves[good]
            if side == SIDES[0]:
                pick = facenet.library_nms(boxes[:, :4], boxes[:, 4], place, 0.7)
                place, boxes = place[pick], _moved(boxes[pick], moves[pick])
                boxes[:, :4] = _square(boxes[:, :4])
            else:
                boxes = _moved(boxes, moves)
                pick = facenet.library_nms_by_smaller(boxes[:, :4], boxes[:, 4], place, 0.7)
                place, boxes = place[pick], boxes[pick]
        return place, boxes


class HalvingPool(torch.nn.Module):
    """``MaxPool2d(2, 2, ceil_mode=True)``, three times as quick on pictures that lie channels-last."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, ceil(h / 2), ceil(w / 2)) of (B, C, h, w)."""
        for dim in (2, 3):
            even, odd = (x.narrow(dim, start, x.shape[dim] - start) for start in (0, 1))
            even, odd = (half[(slice(None),) * dim + (slice(None, None, 2),)] for half in (even, odd))
            both = torch.maximum(even.narrow(dim, 0, odd.shape[dim]), odd)
            x = both if even.shape[dim] == odd.shape[dim] else torch.cat([both, even.narrow(dim, -1, 1)], dim)
        return x.contiguous(memory_format=torch.channels_last)


class IntegralImage:
    """Pictures of which the mean over any rectangle is quickly known.

    Notes
    -----
    Sums are kept in 32 bits and may wrap around; differences, of rectangles up to eight million pixels, do not. A
    fourth, empty channel makes a pixel one unit of 16 bytes, which is looked up at once.
    """

    def __init__(self, pictures: NDArray[np.uint8], device: torch.device) -> None:
        count, self.height, self.width, _ = pictures.shape
        if device.type == "cpu":
            held = _scratch((count, self.height + 1, self.width + 1, 4))
            for picture, sums in zip(pictures, held[:, 1:], strict=True):
                np.cumsum(picture, axis=1, dtype=np.int32, out=sums[:, 1:, :3])
                np.cumsum(sums, axis=0, out=sums)
            self.table = torch.from_numpy(held)
        else:
            pixels = torch.from_numpy(pictures).to(device, non_blocking=True)
            summed = pixels.cumsum(2, dtype=torch.int32).cumsum(1, dtype=torch.int32)
            self.table = torch.nn.functional.pad(summed, (0, 1, 1, 0, 1, 0))

    def whole(self, height: int, width: int) -> Tensor:
        """Return every picture at that size, pixels averaged: (B, height, width, 3) float32."""
        low_y, high_y = _bins(self.height, height, self.table.device)
        low_x, high_x = _bins(self.width, width, self.table.device)
        count = ((high_y - low_y)[:, None] * (high_x - low_x)).float()[..., None]
        seen = torch.empty(len(self.table), height, width, 3, device=self.table.device)
        for sums, into in zip(self.table, seen, strict=True):  # one by one: it stays in the processor's cache
            lines = sums.index_select(0, high_y) - sums.index_select(0, low_y)
            total = _taken(lines, 1, high_x) - _taken(lines, 1, low_x)
            torch.div(total[..., :3], count, out=into)
        return seen

    def rectangles(self, boxes: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return left, top, right, bottom (n,) of boxes as whole pixels in the picture; whether each holds one (n,)."""
        corner = boxes[:, :4].trunc().long()
        left, top = corner[:, 0].clamp(min=1) - 1, corner[:, 1].clamp(min=1) - 1
        right, bottom = corner[:, 2].clamp(max=self.width), corner[:, 3].clamp(max=self.height)
        return (left, top, right, bottom), (right > left) & (bottom > top)

    def parts(self, place: Tensor, part: list[Tensor], side: int) -> Tensor:
        """Return rectangles (n,) of pictures at `place` (n,), each made `side` pixels square: (n, side, side, 3)."""
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
    """Return this thread's own array of that shape, zero at the upper and the left edge and in the last channel.

    Notes
    -----
    Memory of this size, fresh from the system for each batch, would cost more time than the sums themselves. One is
    kept for large pictures and one for small ones, as both are looked at in turn; fewer pictures take a part of it.
    """
    name = "large" if shape[1] * shape[2] > SMALL_SUMS else "small"
    held: NDArray[np.int32] | None = getattr(_kept, name, None)
    if held is None or held.shape[1:] != shape[1:] or len(held) < shape[0]:
        held = np.zeros(shape, np.int32)
        setattr(_kept, name, held)
    return held[:shape[0]]


def _taken(table: Tensor, dim: int, index: Tensor) -> Tensor:
    """Return ``table.index_select(dim, index)`` of sums (..., 4); on the CPU by numpy, which is quicker."""
    if table.device.type != "cpu":
        return table.index_select(dim, index)
    units = table.numpy().view(np.complex128)[..., 0]
    found = units.take(index.numpy(), axis=dim, mode="clip")
    return torch.from_numpy(found.view(np.int32).reshape(*found.shape, 4))


def _bins(length: int, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return first and last (exclusive) pixel of each of `count` bins, as torch's area interpolation has them."""
    step = torch.arange(count, device=device)
    return step * length // count, -(-(step + 1) * length // count)


def _bit_by_bit(net: torch.nn.Module, seen: Tensor, step: int) -> list[Tensor]:
    """Return the answers of a net to pictures (B, h, w, 3), of which it sees `step` at once."""
    answers = [net(_standard(seen[i:i + step])) for i in range(0, len(seen), step)]
    return [torch.cat(one) for one in zip(*answers, strict=True)]


def _standard(seen: Tensor) -> Tensor:
    """Return pictures (B, h, w, 3) as the nets want them: (B, 3, h, w), channels last in memory."""
    return ((seen - CENTRE) * SCALE).permute(0, 3, 1, 2)


def _cells(move: Tensor, face_probs: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return picture (n,), and box, score and four moves (n, 9), of the cells that the first net takes for faces."""
    place, y, x = (face_probs[:, 1] >= THRESHOLDS[0]).nonzero(as_tuple=True)
    corner = torch.stack([x, y], 1).to(move.dtype) * STRIDE_PX + 1
    low, high = (corner / scale).floor(), ((corner + (CELL_PX - 1)) / scale).floor()
    return place, torch.cat([low, high, face_probs[place, 1, y, x][:, None], move[place, :, y, x]], 1)


def _moved(boxes: Tensor, move: Tensor) -> Tensor:
    """Return boxes with score (n, 5), moved by what a net says of them, in shares of their sides."""
    size = (boxes[:, 2:4] - boxes[:, :2] + 1).repeat(1, 2)
    return torch.cat([boxes[:, :4] + move * size, boxes[:, 4:5]], 1)


def _square(boxes: Tensor) -> Tensor:
    """Return boxes (n, 4) made square around their middle."""
    size = boxes[:, 2:4] - boxes[:, :2]
    longest = size.max(1, keepdim=True).values
    low = boxes[:, :2] + size * 0.5 - longest * 0.5
    return torch.cat([low, low + longest], 1)


def _largest_first(faces: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the faces (n, 5) of a picture, by area, as the library orders them."""
    area = (faces[:, 2] - faces[:, 0]) * (faces[:, 3] - faces[:, 1])
    return faces[np.argsort(area)[::-1]].astype(np.float64)


BATCH = 8
BATCH_PIXELS = BATCH << 21
"""Pixels of the largest batch: 16 bytes a pixel are held of all of it."""
NEAR_PX, NEAR_FACE_PX = 160, 40
"""Side of the squares that `near` looks at, and the smallest face in them that it looks for."""
ROI_MARGIN = 2.2
"""Side of such a square, in sides of the face that is looked for."""
ROI_BATCH = 32
ROI_PIXELS = 200_000
"""Pixels of a picture, seen with the smallest face at NEAR_FACE_PX, that take as long as to look around one place."""
TRUNCATED_PX = np.array([1.5, 1.5, 0.5, 0.5])
"""How much too large MTCNN's x1, y1, x2, y2 come out, in pixels of the picture that it sees: its driver cuts candidates
at whole pixels (half a pixel less on average), and begins one further to the left and above."""
BOX_STEPS = 16
"""Steps a pixel that boxes are rounded to: MTCNN's noise between batches is at most 1e-4 px."""
SCORE_DIGITS = 4


class Detector:
    """MTCNN, made to look for faces of at least `min_face_px` and to keep those of at least `min_score`.

    Parameters
    ----------
    detect_px : pictures with a longer side than this are reduced to it first; 0 leaves them as they are.

    Notes
    -----
    Boxes move by up to 1e-4 px with what else is in the batch (callers fix that) and with the thread count (each
    batch has one thread here, and batches run side by side); boxes and scores are rounded.
    """

    def __init__(self, min_face_px: int = 40, min_score: float = 0.9, device: str = "cpu", batch: int = BATCH,
                 detect_px: int = 0) -> None:
        self.min_face_px, self.min_score, self.batch, self.detect_px = min_face_px, min_score, batch, detect_px
        self.device = device
        self.nets: dict[int | str, Mtcnn] = {}
        self._making = threading.Lock()  # batches run side by side: two of them may ask for the first time at once

    def detect(self, images: Sequence[NDArray[np.uint8]], run: Callable[..., list[Any]] = map_threads
               ) -> list[NDArray[np.float64]]:
        """Return the faces of each picture, (n, 5): x1, y1, x2, y2 in pixels and the score; the largest first.

        Parameters
        ----------
        images : pictures (H, W, 3), of one size or of several.
        run : computes the batches, as `cores.spread` does.
        """
        found = [np.empty((0, 5)) for _ in images]
        scale = [self._scale(image) for image in images]
        seen = [image if part == 1 else reduced(image, part) for image, part in zip(images, scale, strict=True)]
        batches = [batch for shape, places in _by_size(images).items()
                   for batch in self._batches(seen[places[0]].shape, scale[places[0]], places)]
        results = run(lambda batch: self.net(scale[batch[0]]).detect(np.stack([seen[i] for i in batch])),
                      batches, self.device)
        for batch, faces in zip(batches, results, strict=True):
            for place, one in zip(batch, faces, strict=True):
                found[place] = self._kept(_enlarged(one, 1 / scale[place]), images[place].shape[:2])
        return found

    def detect_in_rois(self, images: Sequence[NDArray[np.uint8]], places: Sequence[NDArray[np.float64]],
             run: Callable[..., list[Any]] = map_threads) -> list[NDArray[np.float64]]:
        """Return the faces of each picture at and around some places in it, (n, 5) as `detect` does.

        Parameters
        ----------
        places : boxes (n, 4) of each picture.

        Notes
        -----
        A square around each place, `AROUND` faces wide, is brought to one size in which a face of the place's size is
        neither the smallest nor the largest that is looked for. That takes .6 of the time of a look at 640 x 360, a
        quarter of one at 720p, whatever else is in the picture (`docs/results/extract.md`). A face that a square cuts
        off is not told: MTCNN only guesses how it goes on.
        """
        least = NEAR_PX / NEAR_FACE_PX * self.min_face_px
        squares = [(place, square_around(box, max(ROI_MARGIN * (box[2:] - box[:2]).max(), least), images[place].shape))
                   for place, boxes in enumerate(places) for box in boxes]
        seen = [cut_out(images[place], square, NEAR_PX) for place, square in squares]
        batches = [range(start, min(start + ROI_BATCH, len(seen))) for start in range(0, len(seen), ROI_BATCH)]
        results = run(lambda batch: self.close_net.detect(np.stack([seen[i] for i in batch])), batches, self.device)
        found: list[list[NDArray[np.float64]]] = [[np.empty((0, 5))] for _ in images]
        for (place, square), faces in zip(squares, chain.from_iterable(results), strict=True):
            left, top, side = square
            inside = faces[_inside(faces, square, images[place].shape)]
            found[place].append(_enlarged(inside, side / NEAR_PX) + np.array([left, top, left, top, 0]))
        return [_once(self._kept(np.concatenate(faces), image.shape[:2]))
                for faces, image in zip(found, images, strict=True)]

    def rois_per_frame(self, image: NDArray[np.uint8]) -> int:
        """Return around how many places `near` looks in the time that the whole picture takes: 4 at 720p, as it is."""
        height, width = image.shape[:2]
        scale = self._scale(image)
        cells = (NEAR_FACE_PX / self._smallest(scale)) ** 2
        return int(height * width * scale ** 2 * (1 + cells) / 2 / ROI_PIXELS)

    @property
    def close_net(self) -> Mtcnn:
        """MTCNN for what `near` looks at."""
        return self._net("near", NEAR_FACE_PX)

    def net(self, scale: float = 1.0) -> Mtcnn:
        """Return MTCNN for pictures of that scale."""
        smallest = self._smallest(scale)
        return self._net(smallest, smallest)

    def _net(self, key: int | str, smallest: int) -> Mtcnn:
        """Return the MTCNN that is kept under `key`, made on first use."""
        with self._making:
            if key not in self.nets:
                self.nets[key] = Mtcnn(smallest, self.device)
            return self.nets[key]

    def _scale(self, image: NDArray[np.uint8]) -> float:
        """Return what a picture is reduced to first, as a share of its size."""
        return min(1.0, self.detect_px / max(image.shape[:2])) if self.detect_px else 1.0

    def _smallest(self, scale: float) -> int:
        """Return the smallest face looked for, in pixels of the picture that MTCNN sees; its nets see 12 pixels."""
        return max(12, round(self.min_face_px * scale))

    def _batches(self, shape: tuple[int, ...], scale: float, places: list[int]) -> list[list[int]]:
        """Return the pictures at `places`, all of one size, in batches."""
        if min(shape[:2]) < self._smallest(scale):  # no scale of the pyramid is left
            return []
        step = max(1, min(self.batch, BATCH_PIXELS // (shape[0] * shape[1])))
        return [places[start:start + step] for start in range(0, len(places), step)]

    def _kept(self, faces: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
        """Return the faces that count, rounded and inside the picture."""
        height, width = shape
        faces = faces[np.isfinite(faces).all(axis=1)]
        boxes = (faces[:, :4] * BOX_STEPS).round() / BOX_STEPS
        boxes = boxes.clip(0, [width, height, width, height])
        score = faces[:, 4].round(SCORE_DIGITS)
        whole = (boxes[:, 2] - boxes[:, 0] >= 1) & (boxes[:, 3] - boxes[:, 1] >= 1)
        return np.column_stack([boxes, score])[whole & (score >= self.min_score)]


def _inside(faces: NDArray[np.float64], square: Square, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return which faces (n, 5), in pixels of what was made of a square, are not cut off by it inside the picture."""
    left, top, side = square
    cuts = np.array([left > 0, top > 0, left + side < shape[1], top + side < shape[0]])
    over = np.column_stack([faces[:, :2] < 0, faces[:, 2:4] > NEAR_PX])
    return np.asarray(~(over & cuts).any(axis=1))


def _enlarged(faces: NDArray[np.float64], by: float) -> NDArray[np.float64]:
    """Return faces (n, 5) that were found in a picture made smaller, in pixels of the picture."""
    return np.column_stack([(faces[:, :4] - TRUNCATED_PX) * by + TRUNCATED_PX, faces[:, 4]])


def _once(faces: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the faces (n, 5) of a picture, of those that overlap the one that scores most; the largest first."""
    faces = faces[np.argsort(-faces[:, 4], kind="stable")]
    overlap, kept = iou(faces[:, :4], faces[:, :4]), list[int]()
    for i in range(len(faces)):
        if (overlap[i, kept] < SAME_IOU).all():
            kept.append(i)
    faces = faces[kept]
    return faces[np.argsort(-area(faces), kind="stable")]


def _by_size(images: Sequence[NDArray[np.uint8]]) -> dict[tuple[int, int], list[int]]:
    """Return the positions of the pictures of each (height, width)."""
    places: dict[tuple[int, int], list[int]] = {}
    for place, image in enumerate(images):
        places.setdefault((image.shape[0], image.shape[1]), []).append(place)
    return places
