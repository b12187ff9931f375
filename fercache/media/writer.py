"""Writes a video with new pictures, and keeps the frame times and the sound of the source."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from fercache.errors import InputError
from fercache.media.video import TICK_S, choose_stream, open_container

log = logging.getLogger(__name__)

ENDINGS = (".mp4", ".mov", ".mkv")
# No B frames: they would be reordered, and the times in the file would differ from the given ones.
OPTIONS = {"preset": "veryfast", "crf": "20", "bf": "0"}
# A coarser time base of the source is not copied: frame times are rounded to it.
MAX_TICK_S = Fraction(1, 500)


@contextmanager
def open_writer(path: Path, size: tuple[int, int], *, like: Path | None = None, fps: float = 30.0
                ) -> Iterator[Callable[[NDArray[np.uint8], float], None]]:
    """Yield a function that adds a picture (H, W, 3), shown so many seconds after the first one, to an H.264 video.

    `path`: the new file, .mp4, .mov or .mkv.
    `size`: (height, width) of the pictures, both even. `like`: the video whose time base, frame rate and sound are
    copied; without one, `fps` is the nominal frame rate. Raises InputError if the file name ends differently, or the
    size is odd; ClipError if `like` cannot be read.
    """
    # The sound is copied packet by packet if the format can hold it, otherwise re-encoded as AAC.
    if path.suffix.lower() not in ENDINGS:
        raise InputError("unknown video format", where=path, hint=f"end the name in {', '.join(ENDINGS)}")
    if size[0] % 2 or size[1] % 2:
        raise InputError(f"{size[1]} x {size[0]} pixels: H.264 needs an even width and height", where=path)
    with ExitStack() as stack:
        source: Any = stack.enter_context(open_container(like)) if like is not None else None
        out = stack.enter_context(av.open(str(path), "w"))
        # The usual broadcast rates have this denominator, such as 30000/1001.
        rate, tick, video = Fraction(fps).limit_denominator(1001), TICK_S, None
        if like is not None and (video := choose_stream(source, like)) is not None:
            rate = Fraction(video.average_rate or video.guessed_rate or 25)
            if video.time_base and video.time_base <= MAX_TICK_S:
                tick = Fraction(video.time_base)
        stream: Any = out.add_stream("libx264", rate=rate, options=OPTIONS)
        stream.height, stream.width = size
        stream.pix_fmt, stream.codec_context.time_base, stream.time_base = "yuv420p", tick, tick
        # Without a known decoder a stream has no codec context: its sound is omitted.
        audible = source is not None and source.streams.audio and source.streams.audio[0].codec_context is not None
        sound = _SoundCopier(source, out, video) if audible else None

        def add(picture: NDArray[np.uint8], time_s: float) -> None:
            if picture.shape[:2] != size:
                raise InputError(f"a picture of {picture.shape[1]} x {picture.shape[0]} pixels in a video of "
                                 f"{size[1]} x {size[0]}")
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.time_base = stream.codec_context.time_base
            frame.pts = round(time_s / frame.time_base)
            if sound is not None:
                sound.copy(time_s)
            out.mux(stream.encode(frame))

        yield add
        out.mux(stream.encode(None))  # the frames in the encoder
        if sound is not None:
            sound.copy()


class _SoundCopier:
    """Copies the sound of a video into another one, as far as its pictures are written."""

    def __init__(self, source: Any, out: Any, picture: Any) -> None:
        self._from = source.streams.audio[0]
        self._origin_s = float((picture.start_time or 0) * picture.time_base) if picture is not None else 0.0
        self._out, self._reencodes = out, self._from.codec_context.name not in out.supported_codecs
        self._to = (out.add_stream("aac", rate=self._from.rate) if self._reencodes
                    else out.add_stream_from_template(self._from))
        # PyAV ends with an empty packet without a time stamp.
        self._packets = (packet for packet in source.demux(self._from) if packet.dts is not None and packet.size)
        self._next = self._read()

    def copy(self, until_s: float = math.inf) -> None:
        """Write the packets that begin up to `until_s` seconds after the first picture."""
        while self._next is not None and float(self._next.dts * self._next.time_base) - self._origin_s <= until_s:
            self._write(self._next)
            self._next = self._read()
        if until_s == math.inf and self._reencodes:
            self._out.mux(self._to.encode(None))

    def _read(self) -> Any:
        try:
            return next(self._packets, None)
        except av.FFmpegError as error:
            log.warning("the sound ends early: %s", error)
            return None

    def _write(self, packet: Any) -> None:
        shift = round(self._origin_s / packet.time_base)
        try:
            if self._reencodes:
                for frame in packet.decode():
                    frame.pts = None if frame.pts is None else frame.pts - shift
                    self._out.mux(self._to.encode(frame))
                return
            packet.stream = self._to
            packet.pts = None if packet.pts is None else packet.pts - shift
            packet.dts -= shift
            self._out.mux(packet)
        except av.FFmpegError as error:
            log.warning("a packet of sound is omitted: %s", error)
