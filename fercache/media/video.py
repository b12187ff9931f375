"""Video files through PyAV: every frame a row on the clock, in the order of presentation."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from fercache.errors import ClipError
from fercache.media.source import MAX_PIXELS, Frame, Source, file_digest, only, regular_file, unreadable

log = logging.getLogger(__name__)


# The frame clock of a video: one row a source frame, also where the decoder gave no picture.

RESTART_S = 1.0
MAX_WAITING = 128  # packets; decoders reorder over 16 frames at most


class TimestampClock:
    """Time stamps turned into seconds since the first frame, strictly increasing.

    Parameters
    ----------
    tick_s : the stream's time base.
    step_s : usual time between two frames, for frames without a time stamp.

    Notes
    -----
    A stamp that jumps back by a second or more starts a new part (joined recordings): the clock goes on from where it
    is. A smaller step back, or a stamp given twice, is a muxer's slip: that frame alone moves, to one tick after the
    frame before it.
    """

    def __init__(self, tick_s: Fraction, step_s: float) -> None:
        self.tick_s, self.step_s = tick_s, step_s
        self.last_s: float | None = None
        self.origin = 0  # ticks
        self.shift_s = 0.0

    def at(self, stamp: int | None) -> float:
        """Return the time in seconds of the next frame in the order of presentation."""
        if self.last_s is None:
            self.origin, self.last_s = stamp or 0, 0.0
            return 0.0
        self.last_s = self._after(self.last_s, stamp)
        return self.last_s

    def _after(self, last_s: float, stamp: int | None) -> float:
        if stamp is None:
            return last_s + self.step_s
        time_s = float((stamp - self.origin) * self.tick_s) + self.shift_s
        if time_s > last_s:
            return time_s
        if last_s - time_s < RESTART_S:
            return last_s + min(float(self.tick_s), self.step_s)
        self.origin, self.shift_s = stamp, last_s + self.step_s
        return self.shift_s


class PacketQueue:
    """The packets sent to the decoder whose frames are still to come, in the order of presentation.

    Parameters
    ----------
    silent : whether a packet that yields no frame, and no error either, is a lost frame (codecs of one frame a packet).

    Notes
    -----
    Frames come out in the order of presentation, so a packet stamped before the frame at hand has no frame any more:
    it is lost if the decoder refused it, or if `silent` says so. Packets before the first frame are never lost frames
    (a recording that starts between two key frames). A frame that comes after it was given up is `late`: its row is
    there already. Without time stamps the place of a lost frame is not known; it is
    put where the decoder stood, at most a reordering depth away.
    """

    def __init__(self, silent: bool) -> None:
        self.silent, self.begun = silent, False
        self.waiting: list[tuple[int, int]] = []  # heap of (part, stamp)
        self.refused: set[tuple[int, int]] = set()
        self.given: deque[int] = deque(maxlen=MAX_WAITING)
        self.part, self.unstamped = 0, 0
        self.newest: int | None = None

    def sent(self, stamp: int | None, restart_ticks: float) -> None:
        """Remember a packet by its time stamp; one that jumps back by `restart_ticks` begins another part."""
        if stamp is None:
            return
        if self.newest is not None and stamp < self.newest - restart_ticks:
            self.given.clear()
            self.part, self.newest = self.part + 1, None
        self.newest = stamp if self.newest is None else max(stamp, self.newest)
        heappush(self.waiting, (self.part, stamp))
        if len(self.waiting) > MAX_WAITING:
            self.refused.discard(heappop(self.waiting))

    def refuse(self, stamp: int | None) -> None:
        """Remember that the decoder refused the packet that was sent last."""
        if stamp is not None:
            self.refused.add((self.part, stamp))
        else:
            self.unstamped += self.begun

    def late(self, stamp: int | None) -> bool:
        """Return whether this frame was given up as lost before it came: a damaged stream upset the order."""
        return stamp in self.given

    def shown(self, stamp: int | None) -> list[int | None]:
        """Return the stamps of the lost frames that come before this frame, which is presented now."""
        due: list[int | None] = [None] * self.unstamped
        self.unstamped = 0
        own = next((key for key in sorted(self.waiting) if key[1] == stamp), None)
        while own is not None and self.waiting and self.waiting[0] <= own:
            due += self._given_up(heappop(self.waiting), own)
        self.begun = True
        return due

    def rest(self) -> list[int | None]:
        """Return the stamps of the lost frames after the last frame."""
        due: list[int | None] = [None] * self.unstamped
        while self.waiting:
            due += self._given_up(heappop(self.waiting), None)
        return due

    def _given_up(self, key: tuple[int, int], own: tuple[int, int] | None) -> list[int]:
        lost = key != own and self.begun and (self.silent or key in self.refused)
        self.refused.discard(key)
        if lost:
            self.given.append(key[1])
        return [key[1]] if lost else []


# Whether a video file ends where it says it does.

TIMED = ("matroska", "webm", "flv", "asf")  # formats whose header states a real duration, not a guess from the size
EXACT = ("mov", "mp4")  # formats whose index names every packet
SLACK = 0.02


class TruncationCheck:
    """Counts a video stream's packets and compares the end with what the file states.

    Notes
    -----
    A file ends early if (1) reading stopped with an error, not at the end of the file; or (2) the last packet was cut
    short; or (3) the index states more packets than there are (MP4 and MOV name each one, so one missing is enough;
    elsewhere, as in AVI, the header's count may be off, so 2 % and at least 2); or (4) a Matroska, WebM, FLV or ASF
    file stops more than 2 % of its stated duration, and at least 1 s, before the end (a quarter of a second where there
    is no sound that may be longer). Packets are counted, not pictures: an edit
    list may hide frames, and a packet that does not decode is there all the same. A transport stream or a raw stream
    states nothing; of these (1) and (2) alone can be seen.
    """

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        names = set(container.format.name.split(","))
        self.stated, self.exact = stream.frames, bool(names.intersection(EXACT))
        self.stated_s = (container.duration or 0) / 1e6 if names.intersection(TIMED) else 0.0
        self.least_s = 0.25 if len(container.streams) == 1 else 1.0
        self.tick_s = float(stream.time_base or 0)
        self.packets, self.end_s, self.cut, self.failed = 0, 0.0, False, ""

    def saw(self, packet: Packet[VideoStream]) -> None:
        """Count a packet."""
        self.packets += 1
        self.cut = packet.is_corrupt
        self.failed = ""
        if packet.pts is not None:
            self.end_s = max(self.end_s, (packet.pts + (packet.duration or 0)) * self.tick_s)

    def early(self) -> str:
        """Return what is missing, empty for nothing."""
        slack = 0 if self.exact else max(2, int(SLACK * self.stated))
        if self.packets < self.stated - slack:
            return f"{self.packets} of {self.stated} stated frames are there"
        if self.end_s < self.stated_s - max(self.least_s, SLACK * self.stated_s):
            return f"{self.end_s:.1f} of {self.stated_s:.1f} stated seconds are there"
        if self.failed:
            return f"reading stopped after {self.packets} frames ({self.failed})"
        return f"the last of {self.packets} frames is cut short" if self.cut else ""


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
            ending = TruncationCheck(container, stream)
            clock, converter = TimestampClock(stream.time_base or TICK_S, _step_s(stream)), VideoReformatter()
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


def _decoded(container: InputContainer, stream: VideoStream, ending: TruncationCheck
             ) -> Iterator[tuple[int | None, VideoFrame | None]]:
    """Yield (time stamp, picture) a frame in the order of presentation; the picture of a lost frame is None."""
    codec, bad = stream.codec_context, 0
    expected = PacketQueue(codec.name in ONE_FRAME_A_PACKET)
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


def _pictures(codec: VideoCodecContext, packet: Any, expected: PacketQueue) -> list[VideoFrame]:
    """Return what the decoder gives for a packet (None: what it still holds), nothing if it refuses the packet."""
    try:
        return codec.decode(packet)
    except (av.FFmpegError, ValueError, MemoryError):
        if packet is not None and not packet.is_discard:
            expected.refuse(packet.pts)
        return []


def _packets(container: InputContainer, stream: VideoStream, ending: TruncationCheck) -> Iterator[Any]:
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
