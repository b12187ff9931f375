"""Whether a video file ends where it says it does."""

from __future__ import annotations

from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

TIMED = ("matroska", "webm", "flv", "asf")  # formats whose header states a real duration, not a guess from the size
EXACT = ("mov", "mp4")  # formats whose index names every packet
SLACK = 0.02


class Ending:
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
