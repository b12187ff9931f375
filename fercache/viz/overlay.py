"""Write a clip with its predictions drawn in: box, expression, probability bars, running timeline, original sound."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fercache import media
from fercache.errors import ClipError, InputError
from fercache.media.pictures import is_picture
from fercache.media.writer import open_writer
from fercache.results.io import ClipPredictions
from fercache.runtime import atomic_io
from fercache.viz.timeline import COLORS

MIN_WIDTH_PX = 480  # a narrower clip is enlarged by a whole factor, so that the text is readable
PANEL, INK, SOFT, GRID = (24, 27, 31), (236, 238, 240), (150, 156, 163), (58, 63, 70)
NO_FACE = (96, 100, 105)

Picture = NDArray[np.uint8]


def render_overlay(source: Path, kind: str, series: ClipPredictions, boxes: NDArray[np.float64], classes: Sequence[str],
                   out: Path, *, fps: float = 30.0) -> int:
    """Write the source with its predictions to `out`; return the number of frames, that of the source.

    `series`: its T rows; more rows than frames are allowed for an annotation that is longer than the clip. `boxes`:
    (T, 4) x1, y1, x2, y2 in pixels of the upright frame; NaN where no face was found. `out`: .mp4, .mov or .mkv; times,
    rate and sound are those of the source. `fps`: frame rate of a folder of crops, which holds no times.

    Raises ClipError if the source cannot be read, or its number of frames differs from the predictions; InputError if
    the ending of `out` is unknown, or boxes and rows do not fit.
    """
    if boxes.shape != (len(series.time_s), 4):
        raise InputError(f"boxes {boxes.shape} for {len(series.time_s)} rows", where=source)
    frames = media.open_source(source, kind, crop_fps=fps, damaged="keep").frames()
    first = next(frames)
    # A damaged first frame has no size to take.
    size = (360, 640) if first.image is None else (first.image.shape[0], first.image.shape[1])
    canvas = OverlayCanvas.of(size, series, tuple(classes))
    written, last = 0, first.image
    with (atomic_io.replacing(out) as temporary,
          open_writer(temporary, canvas.size, like=None if kind != "video" or is_picture(source.name) else source,
                      fps=fps) as add_picture):
        for frame in itertools.chain((first,), frames):
            if written == len(boxes):
                raise _other_clip(source, len(boxes), "more")
            last = frame.image if frame.image is not None else last  # a damaged frame repeats the one before
            add_picture(canvas.draw(last, written, boxes[written]), frame.time_s)
            written += 1
        if series.valid[written:].any():  # rows past the end that have no face: annotations longer than the video
            raise _other_clip(source, len(boxes), f"{written}")
    return written


def boxes_of(frame_table: NDArray[np.void], rows: int) -> NDArray[np.float64]:
    """Return the boxes of a frame table, ``(rows, 4)``; NaN where no face was found, and past the table's end."""
    boxes = np.full((rows, 4), np.nan)
    stored = np.column_stack([frame_table[side] for side in ("x1", "y1", "x2", "y2")])[:rows]
    boxes[:len(stored)] = np.where((frame_table["valid"] > 0)[:rows, None], stored, np.nan)
    return boxes


def _other_clip(source: Path, rows: int, found: str) -> ClipError:
    return ClipError(f"has {found} frames, but the predictions have {rows} rows", where=source,
                     hint="check that this is the extracted clip, or run `fercache extract` and `fercache stack` again")


# A font is loaded for every text of every frame otherwise.
@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def rgb(index: int) -> tuple[int, int, int]:
    """Return the color of a class; black, the eighth of the palette, becomes white on the dark panel."""
    red, green, blue = bytes.fromhex(COLORS[index % len(COLORS)].lstrip("#"))
    return (red, green, blue) if red or green or blue else (255, 255, 255)


@dataclass(frozen=True, kw_only=True)
class OverlayCanvas:
    """The parts of the picture that are the same in every frame."""

    # `height`, `width`: size of the picture, enlarged by a whole factor; the panel is below it
    height: int
    width: int
    line: int
    series: ClipPredictions
    classes: tuple[str, ...]
    strip: Picture  # (H', W', 3) the timeline of the whole clip, over which a line runs

    @classmethod
    def of(cls, size: tuple[int, int], series: ClipPredictions, classes: tuple[str, ...]) -> OverlayCanvas:
        """Return the canvas of a clip whose first frame has this (height, width)."""
        scale = max(1, -(-MIN_WIDTH_PX // size[1]))
        # The usual video codecs store color for blocks of 2 x 2 pixels, so both sides must be even.
        height, width = (side * scale + side * scale % 2 for side in size)
        line = max(13, min(width // 42, 40)) // 2 * 2
        return cls(height=height, width=width, line=line, series=series, classes=classes,
                   strip=_strip(series, width - 2 * line, 3 * line))

    @property
    def _rows(self) -> int:
        """Rows of bars: one bar per class, in two columns."""
        return -(-len(self.classes) // 2)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures that `draw` makes, both even."""
        panel = self._rows * (self.line + 4) + int(self.strip.shape[0]) + 3 * self.line
        return (self.height + panel + panel % 2, self.width)

    def draw(self, image: Picture | None, row: int, box: NDArray[np.float64]) -> Picture:
        """Return the picture of one row, (H, W, 3). `box`: (4,) in pixels of `image`; NaN if no face was found."""
        picture = Image.new("RGB", (self.width, self.size[0]), PANEL)
        if image is not None:
            fit = min(self.width / image.shape[1], self.height / image.shape[0])
            across, down = round(image.shape[1] * fit), round(image.shape[0] * fit)
            picture.paste(Image.fromarray(image).resize((across, down), Image.Resampling.BILINEAR))
            if not np.isnan(box[0]):
                self._box(ImageDraw.Draw(picture), row, box * fit)
        pen = ImageDraw.Draw(picture)
        self._bars(pen, row)
        self._timeline(picture, pen, row)
        return np.asarray(picture)

    def _box(self, pen: ImageDraw.ImageDraw, row: int, box: NDArray[np.float64]) -> None:
        """Draw the box in the color of the predicted class, with its name above (inside, at the picture's top)."""
        predicted = int(self.series.label_pred[row])
        color = rgb(predicted)
        x1, y1, x2, y2 = np.clip(box, 0, [self.width - 1, self.height - 1] * 2).tolist()
        pen.rectangle((x1, y1, x2, y2), outline=color, width=max(2, self.line // 6))
        text, font = f"{self.classes[predicted]} {100 * self.series.probs[row, predicted]:.0f} %", _font(self.line)
        wide, high = pen.textlength(text, font=font) + self.line, round(1.5 * self.line)
        left = max(0, min(x1, self.width - wide))
        top = y1 - high if y1 >= high else y1
        pen.rectangle((left, top, left + wide, top + high), fill=color)
        # Dark text on light colors, light text on dark ones.
        ink = (0, 0, 0) if sum(color) > 330 else (255, 255, 255)
        pen.text((left + self.line / 2, top + high / 2), text, fill=ink, font=font, anchor="lm")

    def _bars(self, pen: ImageDraw.ImageDraw, row: int) -> None:
        step, wide, font = self.line + 4, self.width // 2, _font(max(11, self.line - 3))
        room = max(pen.textlength(name, font=font) for name in self.classes) + self.line
        for i, name in enumerate(self.classes):
            left = self.line + i // self._rows * wide
            top = self.height + self.line // 2 + i % self._rows * step
            end = left + room + max(0, wide - room - 4.5 * self.line) * self.series.probs[row, i]
            color = rgb(i) if self.series.valid[row] else NO_FACE
            pen.text((left, top + step / 2), name, fill=INK, font=font, anchor="lm")
            pen.rectangle((left + room, top + 3, max(end, left + room + 1), top + step - 3), fill=color)
            pen.text((end + self.line / 3, top + step / 2), f"{self.series.probs[row, i]:.2f}", fill=SOFT,
                     font=font, anchor="lm")

    def _timeline(self, picture: Image.Image, pen: ImageDraw.ImageDraw, row: int) -> None:
        top = self.height + self.line + self._rows * (self.line + 4)
        picture.paste(Image.fromarray(self.strip), (self.line, top))
        time_s, high = self.series.time_s, self.strip.shape[0]
        x = self.line + round(float(time_s[row] / max(time_s[-1], 1e-9)) * (self.strip.shape[1] - 1))
        pen.line((x, top - 3, x, top + high + 3), fill=INK, width=max(1, self.line // 8))
        seen = "" if self.series.valid[row] else "   no face"
        pen.text((self.line, top + high + self.line), f"{time_s[row]:.2f} s   frame {row + 1} of {len(time_s)}{seen}",
                 fill=SOFT, font=_font(max(11, self.line - 3)), anchor="lm")


def _strip(series: ClipPredictions, width: int, height: int) -> Picture:
    """Return the probabilities of a whole clip over time, stacked, as a picture; columns without a face are darker."""
    row = np.searchsorted(series.time_s, np.linspace(0, max(series.time_s[-1], 1e-9), width), "right") - 1
    top = np.cumsum(series.probs[row], axis=1)  # (width, C)
    level = (np.arange(height)[::-1] + .5) / height
    # The sum of a row may be below 1 by rounding: the uppermost pixels then belong to the last class.
    index = np.minimum((level[:, None, None] >= top[None]).sum(-1), top.shape[1] - 1)
    colors = np.array([rgb(i) for i in range(top.shape[1])])
    picture = colors[index] * np.where(series.valid[row], 1.0, .35)[None, :, None]
    return np.asarray(picture, np.uint8)
