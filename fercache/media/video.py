"""Video files, decoded with PyAV: every frame is a row of the frame table, in presentation order."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from heapq import heappop, heappush
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av import VideoCodecContext
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from fercache.errors import ClipError
from fercache.media.source import MAX_PIXELS, Frame, Source, file_digest, file_stamp, unreadable

log = logging.getLogger(__name__)

# A time stamp that jumps back this far starts a new part of a joined recording.
RESTART_S = 1.0
# Packets that wait for their frame; decoders reorder over 16 frames at most.
MAX_WAITING = 128


class TimestampClock:
    """Converts time stamps to seconds since the first frame, strictly increasing."""
    # If a stamp jumps back by a second or more, a new part starts (joined recordings), and time continues from the last
    # frame. A smaller step back or a repeated stamp is an error of the muxer: only that frame moves, to one tick after
    # the frame before it.

    def __init__(self, tick_s: Fraction, step_s: float) -> None:
        self.tick_s = tick_s  # the stream's time base
        self.step_s = step_s  # usual time between two frames, for frames without a time stamp
        self.last_s: float | None = None
        self.origin = 0  # ticks
        self.shift_s = 0.0

    def at(self, stamp: int | None) -> float:
        """Return the time in seconds of the next frame in presentation order."""
        if self.last_s is None:
            self.origin, self.last_s = stamp or 0, 0.0
            return 0.0
        if stamp is None:
            self.last_s += self.step_s
            return self.last_s
        time_s = float((stamp - self.origin) * self.tick_s) + self.shift_s
        if time_s <= self.last_s:
            if self.last_s - time_s < RESTART_S:
                time_s = self.last_s + min(float(self.tick_s), self.step_s)
            else:
                self.origin, self.shift_s = stamp, self.last_s + self.step_s
                time_s = self.shift_s
        self.last_s = time_s
        return time_s


class PacketQueue:
    """The packets sent to the decoder whose frames are not decoded yet, in presentation order."""
    # Frames come out in presentation order, so a packet stamped before the current frame yields no frame any more: it
    # is lost if the decoder refused it, or if every packet has a frame. Packets before the first frame are never lost
    # frames (a recording that starts between two key frames). A frame that comes after it was counted as lost is
    # `late`: its row exists already. Without time stamps the position of a lost frame is unknown; it is put at the
    # decoder's position, at most a reordering depth away.

    def __init__(self, one_frame_per_packet: bool) -> None:
        # Then a packet without a frame and without an error is a lost frame too.
        self.one_frame_per_packet, self.started = one_frame_per_packet, False
        self.waiting: list[tuple[int, int]] = []  # heap of (part, stamp)
        self.refused: set[tuple[int, int]] = set()
        self.lost: deque[int] = deque(maxlen=MAX_WAITING)  # stamps
        self.part, self.unstamped = 0, 0
        self.newest: int | None = None

    def add(self, stamp: int | None, restart_ticks: float) -> None:
        """Add a packet by its time stamp; if that jumps back by `restart_ticks`, a new part starts."""
        if stamp is None:
            return
        if self.newest is not None and stamp < self.newest - restart_ticks:
            self.lost.clear()
            self.part, self.newest = self.part + 1, None
        self.newest = stamp if self.newest is None else max(stamp, self.newest)
        heappush(self.waiting, (self.part, stamp))
        if len(self.waiting) > MAX_WAITING:  # a packet that waits this long yields no frame
            self.refused.discard(heappop(self.waiting))

    def refuse(self, stamp: int | None) -> None:
        """Record that the decoder refused the last packet."""
        if stamp is not None:
            self.refused.add((self.part, stamp))
        else:
            self.unstamped += self.started

    def is_late(self, stamp: int | None) -> bool:
        """Return whether this frame was counted as lost before it came: a damaged stream changes the order."""
        return stamp in self.lost

    def lost_before(self, stamp: int | None) -> list[int | None]:
        """Return the stamps of the lost frames before this frame, which is presented now."""
        key = next((key for key in sorted(self.waiting) if key[1] == stamp), None)
        stamps = self._pop_lost(key) if key is not None else []
        unstamped, self.unstamped, self.started = self.unstamped, 0, True
        return [None] * unstamped + stamps

    def lost_at_end(self) -> list[int | None]:
        """Return the stamps of the lost frames after the last frame."""
        return [None] * self.unstamped + self._pop_lost(None)

    def _pop_lost(self, last: tuple[int, int] | None) -> list[int | None]:
        """Remove the packets up to `last`, all of them for None, and return the stamps of lost frames before it."""
        stamps: list[int | None] = []
        while self.waiting and (last is None or self.waiting[0] <= last):
            key = heappop(self.waiting)
            if key != last and self.started and (self.one_frame_per_packet or key in self.refused):
                self.lost.append(key[1])
                stamps.append(key[1])
            self.refused.discard(key)
        return stamps


# Formats whose header states a real duration, not an estimate from the size.
TIMED = ("matroska", "webm", "flv", "asf")
# Formats whose index lists every packet.
EXACT = ("mov", "mp4")
SLACK = 0.02


class TruncationCheck:
    """Counts a video stream's packets and compares the end with what the file states."""
    # A file ends early if (1) reading stopped with an error before the end of the file; or (2) the last packet is
    # truncated; or (3) packets are missing from the stated number (MP4 and MOV list each packet, so one is enough;
    # elsewhere, as in AVI, the header's count may be wrong by 2 % and at least 2); or (4) a Matroska, WebM, FLV or ASF
    # file stops more than 2 % of its stated duration, and at least 1 s, before its end (0.25 s if it has no sound,
    # which may be longer). Packets are counted, not pictures: an edit list may hide frames, and a packet that does not
    # decode still exists. A transport stream or a raw stream states nothing, so only (1) and (2) apply.

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        names = set(container.format.name.split(","))
        self.stated, self.exact = stream.frames, bool(names.intersection(EXACT))
        self.stated_s = (container.duration or 0) / 1e6 if names.intersection(TIMED) else 0.0
        self.least_s = 0.25 if len(container.streams) == 1 else 1.0
        self.tick_s = float(stream.time_base or 0)
        self.packets, self.end_s, self.truncated, self.failed = 0, 0.0, False, ""

    def add(self, packet: Packet[VideoStream]) -> None:
        """Count a packet."""
        self.packets += 1
        # Only the last packet's flag counts, and only an error after the last packet: reading went on after others.
        self.truncated = packet.is_corrupt
        self.failed = ""
        if packet.pts is not None:
            self.end_s = max(self.end_s, (packet.pts + (packet.duration or 0)) * self.tick_s)

    def missing(self) -> str:
        """Return what is missing as text, empty for nothing."""
        slack = 0 if self.exact else max(2, int(SLACK * self.stated))
        if self.packets < self.stated - slack:
            return f"has {self.packets} of {self.stated} stated frames"
        if self.end_s < self.stated_s - max(self.least_s, SLACK * self.stated_s):
            return f"has {self.end_s:.1f} of {self.stated_s:.1f} stated seconds"
        if self.failed:
            return f"reading stopped after {self.packets} frames ({self.failed})"
        return f"the last of {self.packets} frames is truncated" if self.truncated else ""


# Part of the fingerprint: increase it when the same file yields other pixels or rows.
DECODER = "pyav-1"
FORMATS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "mpegts", "mpeg", "mpegvideo", "m4v", "h264", "hevc",
           "av1", "obu", "ivf", "flv", "asf", "ogg", "mxf", "nut", "dv", "gif", "mjpeg", "rm", "vc1", "yuv4mpegpipe")
# A playlist or script must not make FFmpeg open other files or URLs.
CONTAINER_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": ",".join(FORMATS)}
# Metadata that is not UTF-8 must not make a clip unreadable. PyAV before 19 raises unless this keyword says otherwise;
# PyAV 19 has no such keyword and never raises (it decodes with `surrogateescape`). Nothing here reads metadata.
METADATA_OPTIONS: dict[str, Any] = {} if int(av.__version__.partition(".")[0]) >= 19 else {"metadata_errors": "replace"}
TICK_S = Fraction(1, 90_000)
ONE_FRAME_PER_PACKET = ("h264", "hevc", "mjpeg", "vp9", "av1", "libdav1d")
READ_TIMEOUT_S = 120.0
# FFmpeg refuses larger pictures before it allocates them.
DECODER_OPTIONS = {"max_pixels": str(MAX_PIXELS)}
# FFmpeg's MJPEG decoder leaves what it cannot decode as it was in the buffer, which may be an earlier frame, and
# reports no error. So it decodes strictly, and what it refuses is decoded again, leniently, as a damaged frame. Without
# a scan there are no pixels at all, and even the strict decoder returns the buffer: such a frame has no picture.
MJPEG, START_OF_SCAN = "mjpeg", b"\xff\xda"
# In a row, before reading stops.
MAX_BAD_READS, MAX_BAD_PACKETS = 64, 20_000


class VideoSource(Source):
    """A video file.

    Parameters
    ----------
    damaged : what to do with a file that ends early (see `TruncationCheck`): ``"fail"``, or ``"keep"`` what decoded.
    """
    # Rows are the frames that a player presents: frames that an edit list hides have no row. A packet that the decoder
    # refuses has a row without a picture, so that the frames after it keep their numbers; refused packets before the
    # first frame that decodes have none (a recording that starts between two key frames).

    kind = "video"

    def __init__(self, path: Path, damaged: str = "fail") -> None:
        self.path, self.damaged = path, damaged
        self.stated = 0

    @classmethod
    def open(cls, path: Path, damaged: str = "fail") -> VideoSource:
        """Return the video at `path`, after decoding its first frame.

        Raises
        ------
        ClipError
            Missing, empty, not a video, or a video of which no frame decodes.
        """
        file_stamp(path)  # raises for anything but a regular file: FFmpeg would wait forever for a pipe
        # A file that was cut off after its header opens without an error and holds nothing that decodes.
        source = cls(path, damaged)
        if next(source._frames(0, 1), None) is None:
            raise ClipError("a video without a frame that can be decoded", where=path,
                            hint="play the file to see if it is intact; copy or download it again")
        return source

    def frames(self, start: int = 0) -> Iterator[Frame]:
        return self._frames(start, None)

    def pick(self, rows: Sequence[int]) -> Iterator[Frame]:
        wanted = set(rows)
        frames = self._frames(0, max(wanted) + 1, wanted) if wanted else iter(())
        return (frame for frame in frames if frame.index - 1 in wanted)

    def length(self) -> int | None:
        return self.stated or None

    def digest(self, strict: bool = False) -> dict[str, Any]:
        return file_digest(self.path, strict)

    def _frames(self, start: int, stop: int | None, wanted: set[int] | None = None) -> Iterator[Frame]:
        """Yield the rows `start` to `stop`; pictures are converted for `wanted` rows only, if given."""
        with _open_stream(self.path) as (container, stream):
            self.stated = stream.frames
            ending = TruncationCheck(container, stream)
            step_s = 1 / float(stream.average_rate or stream.guessed_rate or 25)
            # One converter per video: creating one per frame takes up to 0.5 ms.
            clock, converter = TimestampClock(stream.time_base or TICK_S, step_s), VideoReformatter()
            # Rows are counted, so decoding always starts at the first packet; skipped rows cost no conversion.
            for row, (stamp, picture, concealed) in enumerate(_decoded(container, stream, ending)):
                time_s = clock.at(stamp)
                if row >= start:
                    needed = wanted is None or row in wanted
                    image = self._rgb(picture, converter) if picture is not None and needed else None
                    yield Frame(row + 1, time_s, image, picture is None or concealed or bool(picture.is_corrupt))
                if stop is not None and row + 1 >= stop:
                    return
        missing = ending.missing()
        if missing and self.damaged == "fail":
            raise ClipError(f"the video ends early: {missing}", where=self.path,
                            hint="copy or download it again, or keep what decodes with --on-truncated keep")
        if missing:
            log.warning("%s: ends early: %s; what decoded is kept", self.path, missing)

    def _rgb(self, picture: VideoFrame, converter: VideoReformatter) -> NDArray[np.uint8]:
        """Return the picture as (H, W, 3) uint8 RGB, upright."""
        if picture.width * picture.height > MAX_PIXELS:
            raise ClipError(f"a frame of {picture.width} x {picture.height} pixels", where=self.path,
                            hint=f"frames up to {MAX_PIXELS >> 20} megapixels are read")
        try:
            image = np.asarray(converter.reformat(picture, format="rgb24").to_ndarray(), dtype=np.uint8)
        except (av.FFmpegError, ValueError, MemoryError) as error:
            raise unreadable(self.path, error) from error
        return upright(image, _display_matrix(picture))


def upright(image: NDArray[np.uint8], matrix: Sequence[int] | None) -> NDArray[np.uint8]:
    """Return the picture as it is displayed: rotated by a multiple of 90 degrees, mirrored, or both.

    Parameters
    ----------
    matrix : display matrix of ISO 14496-12 (a, b, u, c, d, v, x, y, w), None for none. A stored pixel (p, q) is
        displayed at (a p + c q + x, b p + d q + y).
    """
    if matrix is None:
        return image
    a, b, c, d = matrix[0], matrix[1], matrix[3], matrix[4]
    if abs(b) + abs(c) > abs(a) + abs(d):
        image = image.transpose(1, 0, 2)
        a, d = c, b
    # Contiguous at the end: torch accepts no negative strides.
    rows, columns = slice(None, None, -1 if d < 0 else 1), slice(None, None, -1 if a < 0 else 1)
    return np.ascontiguousarray(image[rows, columns])


def _display_matrix(picture: VideoFrame) -> tuple[int, ...] | None:
    """Return a frame's display matrix, None without one."""
    side_data: Any = picture.side_data  # PyAV's annotation lists only some kinds
    try:
        data = side_data["DISPLAYMATRIX"]
    except KeyError:
        return None
    return tuple(int(value) for value in np.frombuffer(data, dtype=np.int32, count=9))


@contextmanager
def open_container(path: Path) -> Iterator[InputContainer]:
    """Yield the open container of a video file.

    Raises
    ------
    ClipError
        FFmpeg cannot open the file.
    """
    try:
        # The prefix keeps FFmpeg from taking a part of the path for a protocol.
        container = av.open(f"file:{path.absolute()}", container_options=CONTAINER_OPTIONS, timeout=READ_TIMEOUT_S,
                            **METADATA_OPTIONS)
    except (av.FFmpegError, ValueError, MemoryError) as error:
        raise ClipError(f"not a video that can be opened ({_reason(error)})", where=path,
                        hint="play the file to see if it is intact; repeat an incomplete download") from error
    with container:
        yield container


@contextmanager
def _open_stream(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Yield the open container and its first video stream that is not a cover picture."""
    with open_container(path) as container:
        streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if not streams:
            raise ClipError("no video stream in this file", where=path, hint="a clip needs pictures, not only sound")
        # Without a known decoder a stream has no codec context.
        stream = next((s for s in streams if getattr(s, "codec_context", None) is not None), None)
        if stream is None:
            raise ClipError("no decoder for the video in this file", where=path,
                            hint="convert it, for instance to H.264 in MP4")
        # One decoder thread, always. Measured on FFmpeg 8.1 with 40 damaged spots: with frame or slice threads the
        # concealed pixels of H.264 and HEVC differ from run to run, and a refused packet cannot be told from its
        # neighbors. Several clips at once use the cores instead.
        stream.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        strict = {"err_detect": "explode"} if stream.codec_context.name == MJPEG else {}
        stream.codec_context.options = DECODER_OPTIONS | strict
        yield container, stream


def packet_times(path: Path) -> NDArray[np.float64]:
    """Return the seconds of each frame of a video, (T,), from its packets' time stamps; nothing is decoded.

    Raises
    ------
    ClipError
        It is not a video, or its packets have no time stamps.
    """
    with _open_stream(path) as (container, stream):
        stamps = sorted(packet.pts for packet in _packets(container, stream, TruncationCheck(container, stream))
                        if packet is not None and packet.pts is not None and not packet.is_discard)
        if not stamps:
            raise ClipError("its frames have no time stamps", where=path, hint="give frame numbers, not times")
        clock = TimestampClock(stream.time_base or TICK_S, 1 / 25)
        return np.array([clock.at(stamp) for stamp in stamps])


def _lenient_decoder(codec: VideoCodecContext) -> VideoCodecContext:
    """Return a decoder that conceals the errors which the stream's own MJPEG decoder refuses."""
    decoder = cast(VideoCodecContext, VideoCodecContext.create(codec.name, "r"))  # annotated as the base class
    decoder.extradata, decoder.thread_type, decoder.thread_count = codec.extradata, "NONE", 1
    decoder.options = dict(DECODER_OPTIONS)
    return decoder


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _decoded(container: InputContainer, stream: VideoStream, ending: TruncationCheck
             ) -> Iterator[tuple[int | None, VideoFrame | None, bool]]:
    """Yield (time stamp, picture, whether errors are concealed) of each frame in presentation order.

    The picture of a lost frame is None.
    """
    codec, bad = stream.codec_context, 0
    lenient = _lenient_decoder(codec) if codec.name == MJPEG else None
    queue = PacketQueue(codec.name in ONE_FRAME_PER_PACKET)
    restart_ticks = RESTART_S / float(stream.time_base or TICK_S)
    for packet in _packets(container, stream, ending):
        counts, concealed = packet is not None and not packet.is_discard, False
        no_scan = packet is not None and codec.name == MJPEG and START_OF_SCAN not in bytes(packet)
        if counts:
            queue.add(packet.pts, restart_ticks)
        try:
            pictures = codec.decode(packet)
        except (av.FFmpegError, ValueError, MemoryError):
            pictures = _decode_leniently(lenient, packet)
            concealed = bool(pictures)
            if counts and not pictures:
                queue.refuse(packet.pts)
        bad = 0 if pictures else bad + 1
        if bad > MAX_BAD_PACKETS:
            ending.failed = f"none of {bad} packets in a row decodes"
            return
        for picture in (one for one in pictures if not queue.is_late(one.pts)):
            queue.one_frame_per_packet &= not picture.interlaced_frame  # the two fields may come as two packets
            yield from ((stamp, None, False) for stamp in queue.lost_before(picture.pts))
            yield picture.pts, None if no_scan else picture, concealed
    yield from ((stamp, None, False) for stamp in queue.lost_at_end())


def _decode_leniently(decoder: VideoCodecContext | None, packet: Packet[VideoStream]) -> list[VideoFrame]:
    """Return the pictures of a refused packet with errors concealed; none without a decoder, or if it refuses too."""
    try:
        return decoder.decode(packet) if decoder is not None else []
    except (av.FFmpegError, ValueError, MemoryError):
        return []


def _packets(container: InputContainer, stream: VideoStream, ending: TruncationCheck) -> Iterator[Any]:
    """Yield the stream's packets, then None, which flushes the decoder; unreadable parts are skipped."""
    bad = 0
    while bad < MAX_BAD_READS:
        try:
            for packet in container.demux(stream):
                if packet.size:  # an empty packet would flush the decoder before the end
                    bad = 0
                    ending.add(packet)
                    yield packet
            break
        except IndexError:  # PyAV raises this once for a stream that starts late; the next call continues
            bad += 1
        except (av.FFmpegError, ValueError, MemoryError) as error:
            bad += 1
            ending.failed = _reason(error)
    yield None
