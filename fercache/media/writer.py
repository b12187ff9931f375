"""Writing a video again with other pictures: the frames' own times, and the sound as it was."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from fercache.errors import ClipError, InputError
from fercache.media.video import CONTAINER_OPTIONS, READ_TIMEOUT_S

log = logging.getLogger(__name__)


ENDINGS = (".mp4", ".mov", ".mkv")
OPTIONS = {"preset": "veryfast", "crf": "20", "bf": "0"}
"""No B frames: they would only be reordered, and the times in the file stay those that were given."""
TICK_S = Fraction(1, 90_000)


class VideoWriter:
    """An open video file that takes pictures one by one; make it with `writing`."""

    def __init__(self, out: Any, stream: Any, sound: _Sound | None) -> None:
        self._out, self._stream, self._sound = out, stream, sound

    def add(self, picture: NDArray[np.uint8], time_s: float) -> None:
        """Write a picture, (H, W, 3), that is shown `time_s` seconds after the first one.

        Raises
        ------
        InputError
            Its size is another than was stated.
        """
        if picture.shape[:2] != (self._stream.height, self._stream.width):
            raise InputError(f"a picture of {picture.shape[1]} x {picture.shape[0]} in a video of "
                             f"{self._stream.width} x {self._stream.height}")
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.time_base = self._stream.codec_context.time_base
        frame.pts = round(time_s / frame.time_base)
        if self._sound is not None:
            self._sound.copy(time_s)
        self._out.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Write what is still held back."""
        self._out.mux(self._stream.encode(None))
        if self._sound is not None:
            self._sound.copy(None)


@contextmanager
def open_writer(path: Path, size: tuple[int, int], *, like: Path | None = None,
                fps: float = 30.0) -> Iterator[VideoWriter]:
    """Yield a writer of an H.264 video at `path`.

    Parameters
    ----------
    path : ends in .mp4, .mov or .mkv.
    size : (height, width) of the pictures, both even.
    like : the video whose clock, rate and sound are kept.
    fps : nominal rate where there is no such video.

    Raises
    ------
    InputError
        The ending is another, or the size is odd.
    ClipError
        `like` cannot be read.

    Notes
    -----
    The sound is copied packet by packet where the format can hold it, else encoded again as AAC.
    """
    if path.suffix.lower() not in ENDINGS:
        raise InputError("unknown kind of video", where=path, hint=f"end --out in {', '.join(ENDINGS)}")
    if size[0] % 2 or size[1] % 2:
        raise InputError(f"{size[1]} x {size[0]}: H.264 needs even sides", where=path)
    with ExitStack() as stack:
        source = stack.enter_context(_opened(like)) if like is not None else None
        out = stack.enter_context(av.open(str(path), "w"))
        rate, tick = _clock(source, fps)
        stream: Any = out.add_stream("libx264", rate=rate, options=OPTIONS)
        stream.height, stream.width = size
        stream.pix_fmt, stream.codec_context.time_base, stream.time_base = "yuv420p", tick, tick
        writer = VideoWriter(out, stream, _Sound.of(source, out))
        yield writer
        writer.close()


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        container = av.open(f"file:{path.absolute()}", container_options=CONTAINER_OPTIONS, timeout=READ_TIMEOUT_S,
                            metadata_errors="replace")
    except (av.FFmpegError, ValueError, MemoryError) as error:
        raise ClipError(f"not a video that can be opened ({error})", where=path) from error
    with container:
        yield container


def _clock(source: Any, fps: float) -> tuple[Fraction, Fraction]:
    """Return the rate and the tick of the source, or of `fps`."""
    if source is None or not source.streams.video:
        return Fraction(fps).limit_denominator(1001), TICK_S
    stream = source.streams.video[0]
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    tick = stream.time_base or TICK_S
    return Fraction(rate), Fraction(tick) if tick <= Fraction(1, 500) else TICK_S


class _Sound:
    """The sound of a video, copied into another one as far as its pictures have come."""

    def __init__(self, source: Any, out: Any) -> None:
        self._from = source.streams.audio[0]
        picture = source.streams.video[0] if source.streams.video else None
        self._origin_s = float((picture.start_time or 0) * picture.time_base) if picture is not None else 0.0
        self._out, self._again = out, self._from.codec_context.name not in out.supported_codecs
        self._to = (out.add_stream("aac", rate=self._from.rate) if self._again
                    else out.add_stream_from_template(self._from))
        self._packets = source.demux(self._from)
        self._held: Any = None

    @classmethod
    def of(cls, source: Any, out: Any) -> _Sound | None:
        """Return the sound of `source`, None where it has none, or none that can be decoded."""
        if source is None or not source.streams.audio or source.streams.audio[0].codec_context is None:
            return None
        return cls(source, out)

    def copy(self, until_s: float | None) -> None:
        """Write the packets that begin up to `until_s` seconds after the first picture; None: all that are left."""
        while (packet := self._next()) is not None:
            if until_s is not None and self._at(packet) > until_s:
                self._held = packet
                return
            self._write(packet)
        if until_s is None and self._again:
            self._out.mux(self._to.encode(None))

    def _next(self) -> Any:
        """Return the next packet with sound in it, None at the end."""
        packet, self._held = self._held, None
        try:
            while packet is None or packet.dts is None or not packet.size:
                packet = next(self._packets)
        except (StopIteration, av.FFmpegError) as error:
            if not isinstance(error, StopIteration):
                log.warning("the sound breaks off: %s", error)
            return None
        return packet

    def _at(self, packet: Any) -> float:
        return float(packet.dts * packet.time_base) - self._origin_s

    def _write(self, packet: Any) -> None:
        """Write a packet, moved so that the first picture is at 0."""
        shift = round(self._origin_s / packet.time_base)
        try:
            if self._again:
                for frame in packet.decode():
                    frame.pts = None if frame.pts is None else frame.pts - shift
                    self._out.mux(self._to.encode(frame))
                return
            packet.stream = self._to
            packet.pts = None if packet.pts is None else packet.pts - shift
            packet.dts -= shift
            self._out.mux(packet)
        except av.FFmpegError as error:
            log.warning("a piece of sound is left out: %s", error)
