"""Face detection with MTCNN: boxes and scores of the faces in pictures."""
# Runs facenet-pytorch's three nets with a driver of its own, which gives the library's boxes in a fraction of the time.
# The library averages each scale, and each candidate, from the picture anew, and runs the nets in a layout in which
# pooling is slow. Here an integral image gives the mean over any rectangle from four values, for all candidates at
# once, and the nets run channels-last, or in OpenVINO. Sums are integers and means are rounded once, so boxes differ by
# float noise only.

from __future__ import annotations

import math
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fercache.backbones import facenet
from fercache.backbones.onnx import openvino_runtime
from fercache.faces.tracklets import rounded_faces
from fercache.runtime.devices import map_threads, synchronize_device

CELL_PX, STRIDE_PX = 12, 2  # receptive field and stride of the first net
FACTOR = 0.709  # ratio of one scale of the pyramid to the previous one
THRESHOLDS = (0.6, 0.7, 0.7)  # least scores to pass each net. These and FACTOR are facenet-pytorch's defaults.
SIDES = (24, 48)  # input size of the second and the third net, in pixels
FIRST_PIXELS, CANDIDATES = 320_000, (64, 16)
"""Pixels per call of the first net, and candidates per call of the second and the third. With more, activations leave a
core's cache, and a call takes up to twice the time."""
GPU_CALLS = 8  # calls of a CPU that a GPU makes at once: each call costs it time, whatever its size
CENTER, SCALE = 127.5, 0.0078125
LANDMARKS = ("left eye", "right eye", "nose", "left corner of the mouth", "right corner of the mouth")
"""Points of a face, in the order in which the third net returns them; left and right as in the picture."""
COLUMNS = 5 + 2 * len(LANDMARKS)  # numbers per face: x1, y1, x2, y2, the score, and x, y of each landmark
STRIP = 16  # rows that are summed at once: with more, they leave a core's cache before they are used again

Tensor: TypeAlias = torch.Tensor

_scratch_memory = threading.local()


class Mtcnn:
    """MTCNN for faces of at least `min_face_px`."""
    # On the CPU it runs with the caller's threads. For bit-equal boxes, keep the number of threads and the batches
    # fixed.

    def __init__(self, nets: Sequence[PixelNet], min_face_px: int, device: torch.device) -> None:
        self.first, self.second, self.third = nets
        self.first_scale = CELL_PX / min_face_px
        self.device = device
        self.calls = 1 if device.type == "cpu" else GPU_CALLS

    @classmethod
    def load(cls, min_face_px: int, device: str = "cpu", backend: str = "torch") -> Mtcnn:
        """Return the detector with facenet-pytorch's weights, which come with that package.

        `backend`: torch, or openvino (on a CPU). Raises MissingExtra if the backend is not installed.
        """
        library = facenet.MTCNN(device=torch.device(device)).eval().requires_grad_(False)
        layers = (library.pnet, library.rnet, library.onet)
        if backend == "openvino":
            return cls([_OpenVinoNet(net) for net in layers], min_face_px, torch.device(device))
        library.pnet.pool1 = HalvingPool()  # torch's pooling is slow on channels-last tensors
        nets = [_of_pixels(net.to(memory_format=torch.channels_last)) for net in layers]
        # Other threads run the nets in streams of their own, which do not wait for the copies made here.
        synchronize_device(device)
        return cls(nets, min_face_px, torch.device(device))

    @torch.inference_mode()
    def detect(self, pictures: NDArray[np.uint8]) -> list[NDArray[np.float64]]:
        """Return the faces of each picture of (B, H, W, 3): (n, 15), box in pixels, score and LANDMARKS."""
        # As facenet-pytorch's ``MTCNN(keep_all=True, select_largest=True)``: the largest face comes first.
        height, width = pictures.shape[1:3]
        scales = self._scales(min(height, width))
        sums = IntegralImage(pictures, self.device, [(int(height * by + 1), int(width * by + 1)) for by in scales])
        place, boxes = self._proposed(scales, sums.pyramid)
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

    def _proposed(self, scales: list[float], pyramid: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the first net's candidates: picture (n,) and square boxes with score (n, 5)."""
        places, boxes = [], []
        for scale, scaled in zip(scales, pyramid, strict=True):
            step = max(1, self.calls * FIRST_PIXELS // (scaled.shape[1] * scaled.shape[2]))
            outputs = [self.first(scaled[i:i + step]) for i in range(0, len(scaled), step)]
            move, face_probs = (torch.cat(parts) for parts in zip(*outputs, strict=True))
            place, cells = _cells(move, face_probs, scale)
            pick = facenet.library_nms(cells[:, :4], cells[:, 4], place, 0.5)
            places.append(place[pick])
            boxes.append(cells[pick])
        if not boxes:
            return torch.empty(0, dtype=torch.long), torch.empty(0, 5)
        place, cells = torch.cat(places), torch.cat(boxes)
        # The library suppresses overlaps above 0.7 here, which do not exist: one scale has none above 0.5, and cells of
        # two scales differ too much in size. What remains of it is the order.
        pick = cells[:, 4].argsort(descending=True, stable=True)
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
            step *= self.calls
            chunks = (slice(i, i + step) for i in range(0, len(boxes), step))
            outputs = [net(sums.crops(place[chunk], [edge[chunk] for edge in part], side)) for chunk in chunks]
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


PixelNet: TypeAlias = Callable[[Tensor], Sequence[Tensor]]
"""Pixels (B, h, w, 4), of which the last channel is ignored -> moves, landmarks (third net only) and scores."""


def _of_pixels(net: torch.nn.Module) -> PixelNet:
    """Return one of MTCNN's nets as a function of pixels."""
    # permute alone: the memory stays channels-last, the layout in which the nets run.
    return lambda pixels: net(((pixels[..., :3] - CENTER) * SCALE).permute(0, 3, 1, 2))


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


class _OpenVinoNet:
    """One of MTCNN's nets in OpenVINO, for any number and size of pictures."""
    # Built layer by layer: OpenVINO's converter takes 5 to 10 s a net, and what it makes of the nets takes twice as
    # long to run. Each thread compiles a net of its own with one stream, which runs in the calling thread.

    def __init__(self, net: torch.nn.Module) -> None:
        runtime = openvino_runtime()
        ops = runtime.opset1
        heads: list[Any] = []
        pixels = x = ops.parameter([-1, -1, -1, 4], np.float32)
        x = ops.transpose(x, np.array([0, 3, 1, 2]))
        for name, layer in net.named_children():
            weight, bias = (value.numpy() for value in (*layer.parameters(), torch.empty(0), torch.empty(0))[:2])
            if isinstance(layer, torch.nn.Conv2d):
                if name == "conv1":  # the scaling of pixels, and their fourth channel
                    bias = bias - CENTER * SCALE * weight.sum(axis=(1, 2, 3))
                    weight = np.pad(weight * SCALE, ((0, 0), (0, 1), (0, 0), (0, 0)))
                y = ops.convolution(x, weight, [1, 1], [0, 0], [0, 0], [1, 1])
                y = ops.add(y, bias.astype(np.float32)[:, None, None])
            elif isinstance(layer, torch.nn.Linear):
                if not heads and x.get_output_partial_shape(0).rank.get_length() == 4:
                    x = ops.reshape(ops.transpose(x, np.array([0, 3, 2, 1])), np.array([0, weight.shape[1]]), True)
                y = ops.add(ops.matmul(x, weight, False, True), bias)
            elif isinstance(layer, torch.nn.MaxPool2d):
                size = layer.kernel_size
                y = ops.max_pool(x, [layer.stride] * 2, [0, 0], [0, 0], [size, size], "ceil")
            elif isinstance(layer, torch.nn.PReLU):
                y = ops.prelu(x, weight)
            else:
                heads[-1] = ops.softmax(heads[-1], 1)
                continue
            if "_" in name:  # the heads: scores, moves, landmarks
                heads.append(y)
            else:
                x = y
        self.core, self.model = runtime.Core(), runtime.Model([*heads[1:], heads[0]], [pixels], "mtcnn")
        self._of_thread, self._compiling = threading.local(), threading.Lock()

    def __call__(self, pixels: Tensor) -> Sequence[Tensor]:
        request: Any = getattr(self._of_thread, "request", None)
        if request is None:
            with self._compiling:
                request = self.core.compile_model(self.model, "CPU", {
                    "INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": 1,
                }).create_infer_request()
            self._of_thread.request = request
        return [torch.from_numpy(value) for value in request.infer([pixels.numpy()], share_inputs=True).values()]


class IntegralImage:
    """Sums of all pixels above and to the left of each pixel; they give the mean over any rectangle in four reads.

    `pyramid`: all pictures, pixels averaged, at each of the `sizes` (h, w): (B, h, w, 4) float32.
    """
    # Sums are stored in 32 bits and may wrap around; differences over rectangles up to eight million pixels do not. A
    # fourth channel, which holds nothing of use, makes a pixel one unit of 16 bytes, which one read returns.

    def __init__(self, pictures: NDArray[np.uint8], device: torch.device,
                 sizes: Sequence[tuple[int, int]] = ()) -> None:
        count, self.height, self.width, _ = pictures.shape
        self.pyramid = [torch.empty(count, *size, 4, device=device) for size in sizes]
        edges = [(*_bins(self.height, height, device), *_bins(self.width, width, device)) for height, width in sizes]
        levels = [(self._corners(*edge), _areas(*edge).expand(-1, -1, 4).contiguous()) for edge in edges]
        if device.type == "cpu":
            table = _scratch((count, self.height + 1, self.width + 1, 4))
            self.table = torch.from_numpy(table)
        else:
            pixels = torch.from_numpy(pictures).to(device, non_blocking=True)
            summed = pixels.cumsum(2, dtype=torch.int32).cumsum(1, dtype=torch.int32)
            self.table = torch.nn.functional.pad(summed, (0, 1, 1, 0, 1, 0))
        for i, picture in enumerate(pictures):
            if device.type == "cpu":  # one picture at a time, while its sums are in the processor's cache
                _sum_up(picture, table[i])
            for level, (corners, areas) in zip(self.pyramid, levels, strict=True):
                torch.div(_total(self.table[i], corners), areas, out=level[i])

    def rectangles(self, boxes: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return left, top, right, bottom (n,) of boxes in whole pixels, and whether each has an area (n,)."""
        corner = boxes[:, :4].trunc().long()
        left, top = corner[:, 0].clamp(min=1) - 1, corner[:, 1].clamp(min=1) - 1
        right, bottom = corner[:, 2].clamp(max=self.width), corner[:, 3].clamp(max=self.height)
        return (left, top, right, bottom), (right > left) & (bottom > top)

    def crops(self, place: Tensor, part: list[Tensor], side: int) -> Tensor:
        """Return rectangles (n,) of the pictures `place` (n,), resized to squares (n, side, side, 4)."""
        left, top, right, bottom = (edge[:, None] for edge in part)
        step = torch.arange(side, device=left.device)
        low_y, high_y = top + step * (bottom - top) // side, top - (-(step + 1) * (bottom - top) // side)
        low_x, high_x = left + step * (right - left) // side, left - (-(step + 1) * (right - left) // side)
        line = place[:, None] * (self.height + 1)
        total = _total(self.table, self._corners(line + low_y, line + high_y, low_x, high_x))
        return total / _areas(low_y, high_y, low_x, high_x)

    def _corners(self, low_y: Tensor, high_y: Tensor, low_x: Tensor, high_x: Tensor) -> list[Tensor]:
        """Return where the table has the corners of rectangles: lines (..., h) and columns (..., w) -> (..., h, w)."""
        return [(y * (self.width + 1))[..., None] + x[..., None, :]
                for x in (high_x, low_x) for y in (high_y, low_y)]


def _total(table: Tensor, corners: list[Tensor]) -> Tensor:
    """Return the sums (..., 4) over rectangles with these corners in a table of sums."""
    first, *others = (_taken(table.view(-1, 4), corner) for corner in corners)
    for sign, other in zip((-1, -1, 1), others, strict=True):
        first.add_(other, alpha=sign)
    return first


def _areas(low_y: Tensor, high_y: Tensor, low_x: Tensor, high_x: Tensor) -> Tensor:
    """Return the pixels in rectangles of these lines (..., h) and columns (..., w): (..., h, w, 1) float32."""
    return ((high_y - low_y)[..., None] * (high_x - low_x)[..., None, :]).float()[..., None]


def _sum_up(picture: NDArray[np.uint8], table: NDArray[np.int32]) -> None:
    """Write the sums of a picture (H, W, 3) into its table (H + 1, W + 1, 4), whose edges are zero."""
    for start in range(0, len(picture), STRIP):
        lines = table[start:start + STRIP + 1]
        np.cumsum(picture[start:start + STRIP], axis=1, dtype=np.int32, out=lines[1:, 1:, :3])
        for i in range(1, len(lines)):  # not `cumsum`, which goes through each column on its own
            lines[i] += lines[i - 1]


def _scratch(shape: tuple[int, int, int, int]) -> NDArray[np.int32]:
    """Return this thread's own array in that shape, zero at the upper and the left edge."""
    # Allocating this much memory for each batch would take longer than the sums.
    array: NDArray[np.int32] | None = getattr(_scratch_memory, "array", None)
    if array is None or array.size < math.prod(shape):
        array = _scratch_memory.array = np.zeros(math.prod(shape), np.int32)
    table = array[:math.prod(shape)].reshape(shape)
    table[:, 0] = table[:, :, 0] = 0
    return table


def _taken(table: Tensor, index: Tensor) -> Tensor:
    """Return the sums (..., 4) at places (...) of a table (n, 4); on the CPU with numpy, which is faster."""
    if table.device.type != "cpu":
        return table.index_select(0, index.flatten()).view(*index.shape, 4)
    # Viewed as complex128, the four 32-bit sums of a pixel are one element of 16 bytes. "clip" skips the bounds check:
    # all are inside.
    taken = table.numpy().view(np.complex128)[:, 0].take(index.numpy(), mode="clip")
    return torch.from_numpy(taken.view(np.int32).reshape(*index.shape, 4))


def _bins(length: int, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the first and last (exclusive) pixel of each of `count` bins of torch's area interpolation."""
    step = torch.arange(count, device=device)
    return step * length // count, -(-(step + 1) * length // count)


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
BATCH_PIXELS = BATCH << 21  # pixels of the largest batch, which takes 16 bytes a pixel
TRUNCATED_PX = np.array([1.5, 1.5, 0.5, 0.5, 0, *[0.5] * 2 * len(LANDMARKS)])
"""Bias of MTCNN's x1, y1, x2, y2 and landmarks (the score between them has none), in pixels of its input. Its driver
truncates candidates to whole pixels (half a pixel on average) and starts one pixel further left and up, for which it
corrects the landmarks only."""


class Detector:
    """Face detector: MTCNN for faces of at least `min_face_px` with a score of at least `min_score`.

    `detect_px`: longer side to which larger pictures are scaled down before detection; 0 never scales. `backend`: what
    runs the nets, see `Mtcnn.load`.
    """
    # Boxes depend by up to 1e-4 px on the other pictures of the batch (callers fix the batches) and on the number of
    # threads (here each batch has one thread, and batches run in parallel). So boxes and scores are rounded.

    def __init__(self, min_face_px: int = 40, min_score: float = 0.9, device: str = "cpu", batch: int = BATCH,
                 detect_px: int = 0, backend: str = "torch") -> None:
        self.min_face_px, self.min_score, self.batch, self.detect_px = min_face_px, min_score, batch, detect_px
        self.device, self.backend = device, backend
        self.nets: dict[int, Mtcnn] = {}
        self._loading = threading.Lock()  # batches run in parallel, and two may need a net first

    def detect(self, images: Sequence[NDArray[np.uint8]], run: Callable[..., list[Any]] = map_threads, *,
               landmarks: bool = False) -> list[NDArray[np.float64]]:
        """Return the faces of each picture, (n, 5): x1, y1, x2, y2 in pixels and the score; the largest first.

        `images`: (H, W, 3), of one size or of several. `run`: computes the batches, as `devices.map_threads` does.
        `landmarks`: return (n, 15), with x and y of each of LANDMARKS after the score.
        """
        columns = COLUMNS if landmarks else 5
        detected = [np.empty((0, columns)) for _ in images]
        scale = [min(1.0, self.detect_px / max(image.shape[:2])) if self.detect_px else 1.0 for image in images]
        inputs = [image if by == 1 else _reduced(image, by) for image, by in zip(images, scale, strict=True)]
        by_size: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for i, image in enumerate(images):
            by_size[image.shape[:2]].append(i)
        batches: list[list[int]] = []
        for rows in by_size.values():
            height, width = inputs[rows[0]].shape[:2]
            if min(height, width) >= self._smallest(scale[rows[0]]):  # else the pyramid has no scale: there is no face
                step = max(1, min(self.batch, BATCH_PIXELS // (height * width)))
                batches += [rows[start:start + step] for start in range(0, len(rows), step)]
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
                self.nets[smallest] = Mtcnn.load(smallest, self.device, self.backend)
            return self.nets[smallest]

    def _smallest(self, scale: float) -> int:
        """Return the smallest face to detect, in pixels of MTCNN's input; its first net needs 12."""
        return max(12, round(self.min_face_px * scale))

    def _filtered(self, faces: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
        """Return the faces with a sufficient score, rounded, and their boxes clipped to the picture."""
        height, width = shape
        faces = faces[np.isfinite(faces[:, :5]).all(axis=1)]  # the rest cannot be rounded
        rounded = rounded_faces(faces)
        rounded[:, :4] = rounded[:, :4].clip(0, [width, height, width, height])
        has_area = (rounded[:, 2] - rounded[:, 0] >= 1) & (rounded[:, 3] - rounded[:, 1] >= 1)
        return rounded[has_area & (rounded[:, 4] >= self.min_score)]


def _reduced(image: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    """Return a picture (H, W, 3) scaled down by `scale`, with pixels averaged."""
    height, width = image.shape[:2]
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
