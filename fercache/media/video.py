"""Video files, decoded with PyAV: every frame is a row of the frame table, in presentation order."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from functools import cached_property, lru_cache
from heapq import heappop, heappush
from itertools import islice
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
from fercache.media.source import MAX_PIXELS, Frame, Source, file_stamp, reading, reason_of

log = logging.getLogger(__name__)
_log_once = lru_cache(maxsize=4096)(log.info)  # a clip is opened several times

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

    def lost_before(self, stamp: int | None) -> list[int | None]:
        """Return the stamps of the lost frames before this frame, which is presented now."""
        key = next((key for key in sorted(self.waiting) if key[1] == stamp), None)
        stamps = self.pop_lost(key) if key is not None else []
        unstamped, self.unstamped, self.started = self.unstamped, 0, True
        return [None] * unstamped + stamps

    def pop_lost(self, last: tuple[int, int] | None) -> list[int | None]:
        """Remove the packets up to `last`, all of them for None, and return the stamps of lost frames before it."""
        stamps: list[int | None] = []
        while self.waiting and (last is None or self.waiting[0] <= last):
            key = heappop(self.waiting)
            if key != last and self.started and (self.one_frame_per_packet or key in self.refused):
                self.lost.append(key[1])
                stamps.append(key[1])
            self.refused.discard(key)
        return stamps


# Formats with an index of packets that FFmpeg reads before, or with, the packets themselves.
INDEXED = ("mov", "mp4", "avi")
# Formats in which a header's duration is only written when recording ends, by every muxer that writes one.
DURATION_TRUSTED = ("matroska", "webm")
SLACK = 0.02
# Bytes before a packet's data, where an AVI's index points.
AVI_CHUNK_HEADER = 8


class TruncationCheck:
    """Follows a file's packets to its end, and compares that with what the file states."""
    # Packets are compared, not pictures: an edit list may hide frames, and a packet that does not decode still exists.
    # The docs page `guide/inputs.md` lists what is trusted in each container, and why.

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        names = set(container.format.name.split(","))
        self.stream, self.stated = stream, stream.frames
        self.is_indexed, self.is_avi = bool(names.intersection(INDEXED)), "avi" in names
        self.trusts_duration = bool(names.intersection(DURATION_TRUSTED))
        self.stated_s = (container.duration or 0) / 1e6
        self.flv = Path(container.name.removeprefix("file:")) if "flv" in names else None
        # The sound may be longer by a packet or two.
        self.least_s = 0.25 if len(container.streams) == 1 else 1.0
        self.indexed_at_open = self._last_indexed() if self.is_avi else None
        self.packets, self.position, self.failed = 0, -1, ""
        self.truncated = self.picture_truncated = False
        self.bases = [one.time_base or Fraction(0) for one in container.streams]
        self.ends = [0] * len(self.bases)  # ticks: seconds of every packet take 5 us each

    def add(self, packet: Packet[Any]) -> None:
        """Follow the next packet of any stream."""
        # Only the last packet's flag counts, and only an error after the last packet: reading went on after others.
        self.truncated, self.failed = packet.is_corrupt, ""
        if packet.pts is not None and packet.stream_index < len(self.ends):  # FLV adds streams while it is read
            self.ends[packet.stream_index] = max(self.ends[packet.stream_index], packet.pts + (packet.duration or 0))
        if packet.stream_index != self.stream.index:
            return
        self.packets += 1
        if (position := packet.pos if packet.pos is not None else -1) >= self.position:
            self.position, self.picture_truncated = position, packet.is_corrupt

    @property
    def end_s(self) -> float:
        """The end of the longest stream so far."""
        return max(float(end * base) for end, base in zip(self.ends, self.bases, strict=True))

    def missing(self) -> str:
        """Return what is missing as text, empty for nothing."""
        indexed = self._last_indexed()
        if indexed is not None:
            if self.position < indexed:
                return f"the index lists more frames than the {self.packets} that are in the file"
            # An AVI that lost its index has only what was read up to here, and its header counts the rest.
            lost = self.is_avi and self.position > (self.indexed_at_open or 0) + AVI_CHUNK_HEADER
            if not self.picture_truncated and not (lost and self._fewer_than_stated()):
                return ""
        elif self.is_indexed and self._fewer_than_stated():
            return f"has {self.packets} of {self.stated} stated frames"
        if self.failed:
            return f"reading stopped after {self.packets} frames ({self.failed})"
        # FFmpeg parses MP3 in FLV anew, and with that the flag of a packet that was cut is lost. A file that reaches
        # its duration is whole, whatever follows its last tag.
        cut_flv = self.flv is not None and self.end_s < self.stated_s - 0.25 and not _ends_with_flv_tag(self.flv)
        if self.truncated or self.picture_truncated or cut_flv:
            return f"the last of {self.packets} frames is truncated"
        if self.is_avi and self._fewer_than_stated():
            return f"has {self.packets} of {self.stated} stated frames, and no index"
        if self.trusts_duration and self._ends_before(self.end_s):
            return f"has {self.end_s:.1f} of {self.stated_s:.1f} stated seconds"
        return ""

    def odd(self) -> str:
        """Return how the header differs from a picture that is whole, as text, empty if it does not."""
        if self.is_avi and self._fewer_than_stated():
            return f"the header counts {self.stated} frames, the file has {self.packets}"
        picture_end_s = float(self.ends[self.stream.index] * self.bases[self.stream.index])
        if self._ends_before(picture_end_s):
            return (f"the picture ends at {picture_end_s:.1f} s of {self.stated_s:.1f} s (longer sound or "
                    "subtitles, or a wrong duration in the header)")
        return ""

    def _fewer_than_stated(self) -> bool:
        return self.packets < self.stated - (max(2, int(SLACK * self.stated)) if self.is_avi else 0)

    def _ends_before(self, end_s: float) -> bool:
        return end_s < self.stated_s - max(self.least_s, SLACK * self.stated_s)

    def _last_indexed(self) -> int | None:
        """Return the position in the file of the furthest packet of the picture that the index has."""
        # PyAV has `index_entries` from version 17 on. A cut takes the furthest packet first, whatever their order.
        entries = getattr(self.stream, "index_entries", ()) if self.is_indexed else ()
        return max((entry.pos for entry in entries), default=None)


def _ends_with_flv_tag(path: Path) -> bool:
    """Return whether a file ends with a whole tag of FLV: 11 bytes of header, data, and the size of both."""
    total = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, total - 4))
        size = int.from_bytes(file.read(4), "big")
        if not 11 <= size <= total - 4:
            return False
        file.seek(total - 4 - size)
        return int.from_bytes(file.read(4)[1:], "big") == size - 11


# Part of the fingerprint: increase it when the same file yields other pixels or rows.
DECODER = "pyav-2"
FORMATS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "mpegts", "mpeg", "mpegvideo", "m4v", "h264", "hevc",
           "av1", "obu", "ivf", "flv", "asf", "ogg", "mxf", "nut", "dv", "gif", "mjpeg", "rm", "vc1", "yuv4mpegpipe",
           "wav", "mp3", "aac", "flac")  # sound alone is opened too, so that the error can name it
# A playlist or script must not make FFmpeg open other files or URLs.
CONTAINER_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": ",".join(FORMATS)}
# Metadata that is not UTF-8 must not make a clip unreadable. PyAV before 19 raises unless this keyword says otherwise;
# PyAV 19 has no such keyword and never raises (it decodes with `surrogateescape`). Nothing here reads metadata.
METADATA_OPTIONS: dict[str, Any] = {} if int(av.__version__.partition(".")[0]) >= 19 else {"metadata_errors": "replace"}
TICK_S = Fraction(1, 90_000)
ONE_FRAME_PER_PACKET = ("h264", "hevc", "mjpeg", "vp9", "av1", "libdav1d")
READ_TIMEOUT_S = 120.0
# AV_DISPOSITION_DEFAULT and AV_DISPOSITION_ATTACHED_PIC of FFmpeg; PyAV 14.0 has no names for them.
DEFAULT, ATTACHED_PICTURE = 1, 1024
# Packets that are counted to find the longest of several video streams in a file that states no number.
MAX_COUNTED = 2000
# FFmpeg refuses larger pictures before it allocates them.
DECODER_OPTIONS = {"max_pixels": str(MAX_PIXELS)}
# FFmpeg's MJPEG decoder leaves what it cannot decode as it was in the buffer, which may be an earlier frame, and
# reports no error. So it decodes strictly, and what it refuses is decoded again, leniently, as a damaged frame. Without
# a scan there are no pixels at all, and even the strict decoder returns the buffer: such a frame has no picture.
MJPEG, START_OF_SCAN = "mjpeg", b"\xff\xda"
# Kinds of `VideoSource.traits`.
TRAITS = SEVERAL, NOT_SQUARE, IS_HDR = "several video streams", "non-square pixels", "HDR"
# Values of ISO/IEC 23091-2: transfer functions of HDR and none, and the primaries of BT.709.
PQ, HLG, UNSPECIFIED, BT709 = 16, 18, 2, 1
HDR = (PQ, HLG)
LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)  # of BT.2020's primaries
BT2020_TO_BT709 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]],
                           np.float32)
# The reference display of BT.2100, the reference white of BT.2408, and that of an SDR display (BT.1886, BT.2035).
PEAK_NITS, WHITE_NITS, SDR_NITS = 1000, 203, 100
HLG_GAMMA = 1.2  # of that display
# A picture with this white may have pixels that are so much brighter: compression overshoots at edges.
OVERSHOOT = 1.08
# The brightest pixel is searched for in this many pictures at each of this many places of a file.
PLACES, PICTURES_A_PLACE, SEARCHED_PX, BRIGHTEST = 4, 24, 320, 0.9999
# PyAV converts a white of 10 bits to this, not to 65,535.
WHITE_48 = 65_280
ROOTS = 1 << 14
# Anamorphic lenses reach 2, PAL at half its width 2.8; more is a damaged header.
WIDEST_PIXEL = 4
# In a row, before reading stops.
MAX_BAD_READS, MAX_BAD_PACKETS = 64, 20_000


class VideoSource(Source):
    """A video file.

    `damaged`: what to do with a file that ends early (see `TruncationCheck`): ``"fail"``, or ``"keep"`` what decoded.
    """
    # Rows are the frames that a player presents: frames that an edit list hides have no row. A packet that the decoder
    # refuses has a row without a picture, so that the frames after it keep their numbers; refused packets before the
    # first frame that decodes have none (a recording that starts between two key frames).

    def __init__(self, path: Path, damaged: str = "fail") -> None:
        self.path, self.damaged = path, damaged
        self.stated = 0
        # What is special about the picture, by kind; known once a frame was read.
        self.traits: dict[str, str] = {}

    @classmethod
    def open(cls, path: Path, damaged: str = "fail") -> VideoSource:
        """Return the video at `path`, after decoding its first frame.

        Raises ClipError if the file is missing, empty, not a video, or a video of which no frame decodes.
        """
        file_stamp(path)  # raises for anything but a regular file: FFmpeg would wait forever for a pipe
        # A file that was cut off after its header opens without an error and holds nothing that decodes.
        source = cls(path, damaged)
        if next(source._frames(0, 1), None) is None:
            raise ClipError("a video without a frame that can be decoded", where=path,
                            hint="play the file to see if it is intact; copy or download it again")
        for text in source.traits.values():
            _log_once("%s: %s", path, text)
        return source

    def frames(self, start: int = 0) -> Iterator[Frame]:
        return self._frames(start, None)

    def times(self) -> NDArray[np.float64]:
        return np.array([frame.time_s for frame in self._frames(0, None, set())])

    def pick(self, rows: Sequence[int]) -> Iterator[Frame]:
        wanted = set(rows)
        frames = self._frames(0, max(wanted) + 1, wanted) if wanted else iter(())
        return (frame for frame in frames if frame.index - 1 in wanted)

    def length(self) -> int | None:
        return self.stated or None

    def _frames(self, start: int, stop: int | None, wanted: set[int] | None = None) -> Iterator[Frame]:
        """Yield the rows `start` to `stop`; pictures are converted for `wanted` rows only, if given."""
        with _open_stream(self.path) as (container, stream):
            self.stated = stream.frames
            ending = TruncationCheck(container, stream)
            step_s = 1 / float(stream.average_rate or stream.guessed_rate or 25)
            clock, converter = TimestampClock(stream.time_base or TICK_S, step_s), PictureConverter(stream)
            # Rows are counted, so decoding always starts at the first packet; skipped rows cost no conversion.
            for row, (stamp, picture, concealed) in enumerate(_decoded(container, stream, ending)):
                time_s = clock.at(stamp)
                if not row:
                    self.traits = _traits(container, stream, converter.transfer)
                if row >= start:
                    needed = wanted is None or row in wanted
                    image = self._rgb(picture, converter) if picture is not None and needed else None
                    yield Frame(row + 1, time_s, image, picture is None or concealed or bool(picture.is_corrupt))
                if stop is not None and row + 1 >= stop:
                    return
            missing, odd = ending.missing(), ending.odd()  # before the container, and with it the index, is closed
        if missing and self.damaged == "fail":
            raise ClipError(f"the video ends early: {missing}", where=self.path,
                            hint="copy or download it again, or keep what decodes with --on-truncated keep")
        if missing:
            log.warning("%s: ends early: %s; what decoded is kept", self.path, missing)
        elif odd:
            log.warning("%s: %s; every frame of the picture is read", self.path, odd)

    @cached_property
    def _brightest_nits(self) -> float:
        """The luminance of the brightest pixel: the stated one (MaxCLL), else that of pictures at a few places."""
        highest = 0.0
        with _open_stream(self.path) as (container, stream), suppress(av.FFmpegError, ValueError, MemoryError):
            converter = PictureConverter(stream)
            for place in range(PLACES):
                if place:
                    container.seek((container.start_time or 0) + place * (container.duration or 0) // PLACES)
                for picture in islice(container.decode(stream), 0, PICTURES_A_PLACE, PICTURES_A_PLACE // 4):
                    stated = _side_data(picture, "CONTENT_LIGHT_LEVEL", np.uint32)
                    if stated is not None and stated[0]:
                        return float(stated[0])
                    # Averages of several pixels, without the highest of them: compression overshoots at edges.
                    height = max(2, picture.height * SEARCHED_PX // picture.width)
                    small = converter.reformatter.reformat(picture, SEARCHED_PX, height, "rgb48le", interpolation="AREA"
                                                           ).to_ndarray().max(axis=2)
                    signal = int(np.quantile(small, BRIGHTEST))
                    highest = max(highest, float(display_nits(converter.transfer)[signal]))
        return highest

    def _rgb(self, picture: VideoFrame, converter: PictureConverter) -> NDArray[np.uint8]:
        """Return the picture as (H, W, 3) uint8 RGB, upright."""
        width, height = converter.size(picture)
        if width * height > MAX_PIXELS:
            raise ClipError(f"a frame of {width} x {height} pixels", where=self.path,
                            hint=f"frames up to {MAX_PIXELS >> 20} megapixels are read")
        with reading(self.path):
            matrix = _side_data(picture, "DISPLAYMATRIX", np.int32)
            return upright(converter.rgb(picture, lambda: self._brightest_nits), matrix)


class PictureConverter:
    """Converts the pictures of one stream to BT.709 RGB with square pixels."""

    def __init__(self, stream: VideoStream) -> None:
        self.codec, self.pixel = stream.codec_context, _pixel_shape(stream)
        self.stated_transfer = int(self.codec.color_trc)
        # One per video: creating one per frame takes up to 0.5 ms.
        self.reformatter = VideoReformatter()

    @property
    def transfer(self) -> int:
        """The transfer function, that of the container where the pictures name none (ProRes)."""
        transfer = int(self.codec.color_trc)
        return self.stated_transfer if transfer == UNSPECIFIED else transfer

    def size(self, picture: VideoFrame) -> tuple[int, int]:
        """Return the width and height with square pixels; the side that is too short is enlarged."""
        if self.pixel == 1:  # most clips; the fractions below take 20 us a frame
            return picture.width, picture.height
        return (round(picture.width * max(self.pixel, Fraction(1))),
                round(picture.height / min(self.pixel, Fraction(1))))

    def rgb(self, picture: VideoFrame, brightest_nits: Callable[[], float]) -> NDArray[np.uint8]:
        """Return the picture as (H, W, 3) uint8 RGB; only HDR needs the luminance of the clip's brightest pixel."""
        hdr = self.transfer in HDR
        width, height = self.size(picture)
        # 16 bits for HDR: 8 bits of its signal show as bands, and 7 bits cost .008 of the cosine of `block8`.
        image: NDArray[Any] = self.reformatter.reformat(
            picture, width, height, "rgb48le" if hdr else "rgb24").to_ndarray()
        return tone_map(image, self.transfer, int(self.codec.color_primaries), brightest_nits()) if hdr else image


def _traits(container: InputContainer, stream: VideoStream, transfer: int) -> dict[str, str]:
    """Return what is done for a stream beyond decoding, kind -> text, once its first frame is decoded."""
    pixel, codec = _pixel_shape(stream), stream.codec_context
    videos = _no_covers(container)
    traits = {}
    if len(videos) > 1:
        traits[SEVERAL] = (f"has {len(videos)} video streams; number {videos.index(stream) + 1} is read "
                                           f"({codec.width} x {codec.height})")
    if pixel != 1:
        traits[NOT_SQUARE] = f"pixels of {pixel.numerator}:{pixel.denominator} are made square"
    if transfer in HDR:
        traits[IS_HDR] = f"{'PQ' if transfer == PQ else 'HLG'} (HDR) is tone-mapped to BT.709"
    return traits


def _pixel_shape(stream: VideoStream) -> Fraction:
    """Return the width of a pixel over its height; 1 where the file states none or an absurd one."""
    ratio = stream.sample_aspect_ratio
    return Fraction(ratio) if ratio and WIDEST_PIXEL >= ratio >= 1 / WIDEST_PIXEL else Fraction(1)


def tone_map(signal: NDArray[np.uint16], transfer: int, primaries: int, brightest_nits: float) -> NDArray[np.uint8]:
    """Return the BT.709 picture of an HDR picture (H, W, 3) of 16 bits.

    `brightest_nits`: luminance of the brightest pixel of the clip, in cd/m2 on the reference display.

    Transfer functions, luminance weights and the gamma of 1.2 of HLG's reference display are those of ITU-R BT.2100
    (the gamma of each color, as FFmpeg's `zscale` has it by default, not of luminance), the matrix is that of BT.2087,
    and the inverse of BT.1886 encodes the result. No stream states which luminance is
    white. If no pixel is brighter than an SDR white of 100 cd/m2 (PQ only) or the white of 203 in BT.2408, that is
    white. Otherwise the peak of HLG is white, as it is relative, and the curve of BT.2390 compresses PQ's 0 to 1,000
    cd/m2 to 0 to 203.
    """
    white = (SDR_NITS if transfer == PQ and brightest_nits <= OVERSHOOT * SDR_NITS else
             WHITE_NITS if transfer == PQ or brightest_nits <= OVERSHOOT * WHITE_NITS else PEAK_NITS)
    # Tables indexed by fourth roots: powers of arrays take five times as long.
    light_of, gain_of, color_of = _hdr_curves(transfer, white, brightest_nits > OVERSHOOT * white)
    light = light_of[signal.reshape(-1, 3)]
    if gain_of is not None:
        light *= gain_of[_fourth_root(light @ LUMINANCE / light_of[-1])][:, None]
    if primaries != BT709:
        light = light @ BT2020_TO_BT709.T
    return color_of[_fourth_root(light)].reshape(signal.shape)


def _fourth_root(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return the fourth roots of values, which are cut to 0 to 1, as parts of `ROOTS`."""
    return np.asarray(np.sqrt(np.sqrt(np.clip(values, 0, 1))) * np.float32(ROOTS) + np.float32(0.5), np.uint16)


@lru_cache(maxsize=2)
def display_nits(transfer: int) -> NDArray[np.float64]:
    """Return the luminance of each signal of 16 bits on the reference display, of a gray picture in cd/m2."""
    signal = np.minimum(np.arange(1 << 16) / WHITE_48, 1)
    if transfer == HLG:
        light = np.where(signal <= 0.5, signal ** 2 / 3, (np.exp((signal - 0.55991073) / 0.17883277) + 0.28466892) / 12)
        return np.asarray(PEAK_NITS * light ** HLG_GAMMA)
    root = signal ** (1 / 78.84375)
    return np.asarray(10_000 * (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)
                                ) ** (1 / 0.1593017578125))


@lru_cache(maxsize=4)
def _hdr_curves(transfer: int, white_nits: float, compressed: bool
                ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None, NDArray[np.uint8]]:
    """Return the light of each signal, and by fourth roots the gain of each luminance and the color of each light."""
    light, root = display_nits(transfer) / white_nits, np.arange(ROOTS + 1) / ROOTS
    gain = None
    if compressed:
        # BT.2390: above a knee, a cubic curve, in PQ signals as parts of the signal of the peak.
        signal = np.minimum(np.arange(1 << 16) / WHITE_48, 1)
        peak, white = np.interp([PEAK_NITS / white_nits, 1], light, signal)
        top = white / peak
        knee = 1.5 * top - 0.5
        part = np.minimum(signal[::64] / peak, 1)
        x = np.maximum(part - knee, 0) / (1 - knee)
        curve = (2 * x**3 - 3 * x**2 + 1) * knee + (x**3 - 2 * x**2 + x) * (1 - knee) + (3 * x**2 - 2 * x**3) * top
        mapped = np.interp(np.where(part < knee, part, curve) * peak, signal, light)
        gain = np.interp(root ** 4 * light[-1], light[::64], mapped / np.maximum(light[::64], 1e-9)).astype(np.float32)
    # Rounded down, as PyAV does for SDR.
    return light.astype(np.float32), gain, (root ** (4 / 2.4) * 255).astype(np.uint8)


def upright(image: NDArray[np.uint8], matrix: Sequence[int] | NDArray[np.int32] | None) -> NDArray[np.uint8]:
    """Return the picture as it is displayed: rotated by a multiple of 90 degrees, mirrored, or both.

    `matrix`: display matrix of ISO 14496-12 (a, b, u, c, d, v, x, y, w), None for none. A stored pixel (p, q) is
    displayed at (a p + c q + x, b p + d q + y).
    """
    if matrix is None:
        return image
    a, b, c, d = (int(matrix[i]) for i in (0, 1, 3, 4))
    if abs(b) + abs(c) > abs(a) + abs(d):
        image = image.transpose(1, 0, 2)
        a, d = c, b
    # Contiguous at the end: torch accepts no negative strides.
    rows, columns = slice(None, None, -1 if d < 0 else 1), slice(None, None, -1 if a < 0 else 1)
    return np.ascontiguousarray(image[rows, columns])


def _side_data(picture: VideoFrame, kind: str, dtype: type[np.generic]) -> NDArray[Any] | None:
    """Return the numbers that a frame has beside its pixels, None without any of that kind."""
    data = cast(Any, picture.side_data).get(kind)  # PyAV's annotation lists only some kinds
    return None if data is None else np.frombuffer(data, dtype)


@contextmanager
def open_container(path: Path) -> Iterator[InputContainer]:
    """Yield the open container of a video file."""
    try:
        # The prefix keeps FFmpeg from taking a part of the path for a protocol.
        container = av.open(f"file:{path.absolute()}", container_options=CONTAINER_OPTIONS, timeout=READ_TIMEOUT_S,
                            **METADATA_OPTIONS)
    except (av.FFmpegError, ValueError, MemoryError) as error:
        raise ClipError(f"not a video that can be opened ({reason_of(error)})", where=path,
                        hint="play the file to see if it is intact; repeat an incomplete download") from error
    with container:
        yield container


@contextmanager
def _open_stream(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Yield the open container and the video stream that `choose_stream` chooses, ready to decode."""
    with open_container(path) as container:
        stream = choose_stream(container, path)
        if stream is None:
            raise ClipError("no video stream in this file, only sound or a cover picture", where=path,
                            hint="a clip needs moving pictures; check the file or take it off the list")
        # Without a known decoder a stream has no codec context.
        if getattr(stream, "codec_context", None) is None:
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

    Raises ClipError if it is not a video, or its packets have no time stamps.
    """
    with _open_stream(path) as (container, stream):
        stamps = sorted(packet.pts for packet in _packets(container, stream, TruncationCheck(container, stream))
                        if packet is not None and packet.pts is not None and not packet.is_discard)
        if not stamps:
            raise ClipError("its frames have no time stamps", where=path, hint="give frame numbers, not times")
        clock = TimestampClock(stream.time_base or TICK_S, 1 / 25)
        return np.array([clock.at(stamp) for stamp in stamps])


def first_picture_s(path: Path) -> float:
    """Return the time stamp of a video's first frame in seconds of the container's clock, which its sound shares.

    Raises ClipError if it is not a video.
    """
    with _open_stream(path) as (container, stream):
        stamp = next((stamp for stamp, *_ in _decoded(container, stream, TruncationCheck(container, stream))), None)
        return float((stamp or 0) * (stream.time_base or TICK_S))


def choose_stream(container: InputContainer, path: Path) -> VideoStream | None:
    """Return the video stream to read, None without one: the default one, then that with the most frames, then pixels.

    A cover picture is never chosen, and a stream of a single picture (a thumbnail that is not marked) only if there is
    no other.
    """
    streams = _no_covers(container)
    decodable = [s for s in streams if getattr(s, "codec_context", None) is not None] or streams
    if len(decodable) < 2:
        return decodable[0] if decodable else None
    frames = {s.index: s.frames for s in decodable}
    if not all(frames.values()):  # Matroska and FLV count no frames
        with open_container(path) as other:  # a pass of its own: not every format can be rewound
            counts = Counter(packet.stream_index for packet in islice(other.demux(video=list(range(len(
                other.streams.video)))), MAX_COUNTED) if packet.size)
        frames = {index: counts[index] for index in frames}

    def rank(s: VideoStream) -> tuple[bool, int, int, int]:
        pixels = 0 if getattr(s, "codec_context", None) is None else s.codec_context.width * s.codec_context.height
        return frames[s.index] > 1, _disposition(s) & DEFAULT, frames[s.index], pixels

    return max(decodable, key=rank)


def _no_covers(container: InputContainer) -> list[VideoStream]:
    """Return the video streams that are no cover pictures."""
    return [s for s in container.streams.video if not _disposition(s) & ATTACHED_PICTURE]


def _disposition(stream: VideoStream) -> int:
    return int(getattr(stream, "disposition", 0))  # PyAV 14.0 has none


def _lenient_decoder(codec: VideoCodecContext) -> VideoCodecContext:
    """Return a decoder that conceals the errors which the stream's own MJPEG decoder refuses."""
    decoder = cast(VideoCodecContext, VideoCodecContext.create(codec.name, "r"))  # annotated as the base class
    decoder.extradata, decoder.thread_type, decoder.thread_count = codec.extradata, "NONE", 1
    decoder.options = dict(DECODER_OPTIONS)
    return decoder


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
            pictures = []
            with suppress(av.FFmpegError, ValueError, MemoryError):
                pictures = lenient.decode(packet) if lenient is not None else []
            concealed = bool(pictures)
            if counts and not pictures:
                queue.refuse(packet.pts)
        bad = 0 if pictures else bad + 1
        if bad > MAX_BAD_PACKETS:
            ending.failed = f"none of {bad} packets in a row decodes"
            return
        # A damaged stream changes the order: a frame may come that was counted as lost.
        for picture in (one for one in pictures if one.pts not in queue.lost):
            queue.one_frame_per_packet &= not picture.interlaced_frame  # the two fields may come as two packets
            yield from ((stamp, None, False) for stamp in queue.lost_before(picture.pts))
            yield picture.pts, None if no_scan else picture, concealed
    yield from ((stamp, None, False) for stamp in [None] * queue.unstamped + queue.pop_lost(None))


def _packets(container: InputContainer, stream: VideoStream, ending: TruncationCheck) -> Iterator[Any]:
    """Yield the stream's packets, then None, which flushes the decoder; unreadable parts are skipped."""
    bad = 0
    while bad < MAX_BAD_READS:
        try:
            # All streams: in Matroska the longest of them decides where the file ends.
            for packet in container.demux():
                if packet.size:  # an empty packet would flush the decoder before the end
                    bad = 0
                    ending.add(packet)
                    if packet.stream_index == stream.index:
                        yield packet
            break
        except IndexError:  # PyAV raises this once for a stream that starts late; the next call continues
            bad += 1
        except (av.FFmpegError, ValueError, MemoryError) as error:
            bad += 1
            ending.failed = reason_of(error)
    yield None
