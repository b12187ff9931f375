"""Video files through PyAV: every frame a row on the clock, in the order of presentation."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from fercache.errors import ClipError
from fercache.media.clock_part import RESTART_S, Clock, Expected
from fercache.media.ending_part import Ending
from fercache.media.source import MAX_PIXELS, Frame, Source, file_digest, only, regular_file, unreadable

log = logging.getLogger(__name__)


DECODER = "pyav-1"  # goes into the fingerprint: raise it when the same file gives other pixels or rows
FORMATS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "mpegts", "mpeg", "mpegvideo", "m4v", "h264", "hevc",
           "av1", "obu", "ivf", "flv", "asf", "ogg", "mxf", "nut", "dv", "gif", "mjpeg", "rm", "vc1", "yuv4mpegpipe")
CONTAINER_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": ",".join(FORMATS)}
TICK_S = Fraction(1, 90_000)
ONE_FRAME_A_PACKET = ("h264", "hevc", "mjpeg", "vp9", "av1", "libdav1d")
READ_TIMEOUT_S = 120.0
MAX_BAD_READS = 64  # in a row
MAX_BAD_PACKETS = 20_000  # in a row




class VideoSource(Source):
    """A video file.

    Parameters
    ----------
    path : the file.
    damaged : what to do at the end of a file that ends early: ``"fail"`` or ``"keep"`` what decoded.

    Raises
    ------
    ClipError
        Absent, empty, no video, or a video without a single frame that decodes.

    Notes
    -----
    Rows are the frames that a player presents: what an edit list cuts off is no row. A packet that the decoder refuses
    has a row without a picture, so that the frames after it keep their numbers; refused packets before the first frame
    that decodes have none (a recording that starts between two key frames). `ending.Ending` says what "early" is.

    One decoder thread, always. Measured on FFmpeg 8.1 with 40 damaged spots: with frame or slice threads the patched-up
    pixels of H.264 and HEVC differ from run to run, and a refused packet can no longer be told from its neighbours.
    Work on several clips at once instead.
    """

    kind = "video"

    def __init__(self, path: Path, damaged: str = "fail") -> None:
        self.path, self.damaged = path, damaged
        self.stated = 0
        regular_file(path)
        if next(self._frames(0, 1), None) is None:
            raise ClipError("a video without a frame that can be decoded", where=path,
                            hint="play the file to see if it is intact; copy or download it again")

    def frames(self, start: int = 0) -> Iterator[Frame]:
        return self._frames(start, None)

    def pick(self, rows: Sequence[int]) -> Iterator[Frame]:
        wanted = set(rows)
        return only(self._frames(0, None, wanted), rows)

    def length(self) -> int | None:
        return self.stated or None

    def digest(self, strict: bool = False) -> dict[str, Any]:
        return file_digest(self.path, strict)

    def _frames(self, start: int, stop: int | None, wanted: set[int] | None = None) -> Iterator[Frame]:
        """Yield the rows `start` to `stop`; of `wanted` rows only, if given, the picture is made."""
        with _opened(self.path) as (container, stream):
            self.stated = stream.frames
            ending = Ending(container, stream)
            clock, converter = Clock(stream.time_base or TICK_S, _step_s(stream)), VideoReformatter()
            for row, (stamp, picture) in enumerate(_decoded(container, stream, ending)):
                time_s = clock.at(stamp)
                if row >= start:
                    asked = wanted is None or row in wanted
                    image = self._rgb(picture, converter) if picture is not None and asked else None
                    yield Frame(row + 1, time_s, image, picture is None or bool(picture.is_corrupt))
                if stop is not None and row + 1 >= stop:
                    return
        early = ending.early()
        if early and self.damaged == "fail":
            raise ClipError(f"the video ends early: {early}", where=self.path,
                            hint='copy or download it again, or keep what decodes with damaged = "keep"')
        if early:
            log.warning("%s: ends early: %s; kept what decoded", self.path, early)

    def _rgb(self, picture: VideoFrame, converter: VideoReformatter) -> NDArray[np.uint8]:
        """Return the picture as (H, W, 3) uint8 RGB, upright; a converter of its own for each costs up to .5 ms."""
        if picture.width * picture.height > MAX_PIXELS:
            raise ClipError(f"a frame of {picture.width} x {picture.height} pixels", where=self.path,
                            hint=f"frames up to {MAX_PIXELS >> 20} megapixels are read")
        try:
            image = np.asarray(converter.reformat(picture, format="rgb24").to_ndarray(), dtype=np.uint8)
        except (av.FFmpegError, ValueError, MemoryError) as error:
            raise unreadable(self.path, error) from error
        return upright(image, _display_matrix(picture))


def upright(image: NDArray[np.uint8], matrix: Sequence[int] | None) -> NDArray[np.uint8]:
    """Return the picture as a display matrix wants it shown: turned by a multiple of 90 degrees, mirrored, or both.

    Parameters
    ----------
    matrix : the 9 numbers of ISO 14496-12's matrix (a, b, u, c, d, v, x, y, w), None for none. A stored pixel (p, q)
        is shown at (a p + c q + x, b p + d q + y).
    """
    if matrix is None:
        return image
    a, b, c, d = matrix[0], matrix[1], matrix[3], matrix[4]
    if abs(b) + abs(c) > abs(a) + abs(d):
        image = image.transpose(1, 0, 2)
        a, d = c, b
    rows, columns = slice(None, None, -1 if d < 0 else 1), slice(None, None, -1 if a < 0 else 1)
    return np.ascontiguousarray(image[rows, columns])


def _display_matrix(picture: VideoFrame) -> tuple[int, ...] | None:
    """Return a frame's display matrix, None where it has none."""
    sides: Any = picture.side_data  # PyAV's own annotation knows only some kinds
    try:
        data = sides["DISPLAYMATRIX"]
    except KeyError:
        return None
    return tuple(int(value) for value in np.frombuffer(data, dtype=np.int32, count=9))


@contextmanager
def _opened(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Yield the open container and the stream to decode."""
    try:
        container = av.open(f"file:{path.absolute()}", container_options=CONTAINER_OPTIONS, timeout=READ_TIMEOUT_S,
                            metadata_errors="replace")
    except (av.FFmpegError, ValueError, MemoryError) as error:
        raise ClipError(f"not a video that can be opened ({_reason(error)})", where=path,
                        hint="play the file to see if it is intact; a download that was cut off must be repeated"
                        ) from error
    with container:
        stream = _stream(container, path)
        stream.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        yield container, stream


def _stream(container: InputContainer, path: Path) -> VideoStream:
    """Return the first video stream that is no cover picture."""
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        raise ClipError("no video stream in this file", where=path, hint="a clip needs pictures, not sound alone")
    known = [s for s in streams if getattr(s, "codec_context", None) is not None]  # None where no decoder is known
    if not known:
        raise ClipError("no decoder for the video in this file", where=path,
                        hint="convert it, for instance to H.264 in MP4")
    return known[0]


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _step_s(stream: VideoStream) -> float:
    """Return the usual time between two frames in seconds."""
    rate = stream.average_rate or stream.guessed_rate or 25
    return 1 / float(rate)


def _decoded(container: InputContainer, stream: VideoStream, ending: Ending
             ) -> Iterator[tuple[int | None, VideoFrame | None]]:
    """Yield (time stamp, picture) a frame in the order of presentation; the picture of a lost frame is None."""
    codec, bad = stream.codec_context, 0
    expected = Expected(codec.name in ONE_FRAME_A_PACKET)
    restart_ticks = RESTART_S / float(stream.time_base or TICK_S)
    for packet in _packets(container, stream, ending):
        if packet is not None and not packet.is_discard:
            expected.sent(packet.pts, restart_ticks)
        pictures = _pictures(codec, packet, expected)
        bad = 0 if pictures else bad + 1
        if bad > MAX_BAD_PACKETS:
            ending.failed = f"nothing decodes any more after {bad} packets"
            return
        for picture in (found for found in pictures if not expected.late(found.pts)):
            expected.silent &= not picture.interlaced_frame  # the two fields of a frame may come as two packets
            yield from ((stamp, None) for stamp in expected.shown(picture.pts))
            yield picture.pts, picture
    yield from ((stamp, None) for stamp in expected.rest())


def _pictures(codec: VideoCodecContext, packet: Any, expected: Expected) -> list[VideoFrame]:
    """Return what the decoder gives for a packet (None: what it still holds), nothing if it refuses the packet."""
    try:
        return codec.decode(packet)
    except (av.FFmpegError, ValueError, MemoryError):
        if packet is not None and not packet.is_discard:
            expected.refuse(packet.pts)
        return []


def _packets(container: InputContainer, stream: VideoStream, ending: Ending) -> Iterator[Any]:
    """Yield the stream's packets, then None, which flushes the decoder; unreadable spots are stepped over."""
    bad = 0
    while bad < MAX_BAD_READS:
        try:
            for packet in container.demux(stream):
                if packet.size:  # one of size 0 would flush the decoder before the end
                    bad = 0
                    ending.saw(packet)
                    yield packet
            break
        except IndexError:  # PyAV trips over a stream that began late; asked again, it does not
            bad += 1
        except (av.FFmpegError, ValueError, MemoryError) as error:
            bad += 1
            ending.failed = _reason(error)
    yield None
