"""The frame clock of a video: one row a source frame, also where the decoder gave no picture."""

from __future__ import annotations

from collections import deque
from fractions import Fraction
from heapq import heappop, heappush

RESTART_S = 1.0
MAX_WAITING = 128  # packets; decoders reorder over 16 frames at most


class Clock:
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


class Expected:
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
