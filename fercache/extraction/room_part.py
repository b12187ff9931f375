"""How many bytes of pictures are in memory at once, whatever the number of clips in flight."""

from __future__ import annotations

import threading

from fercache.extraction.brake_part import Brake

TICK_S = 0.1


class Room:
    """A number of bytes that many share.

    Notes
    -----
    What is larger than all of it gets in alone, so nobody waits for ever; who holds a part must not ask for another.
    """

    def __init__(self, most: int, brake: Brake) -> None:
        self.most, self.brake = most, brake
        self.held = 0
        self._change = threading.Condition()

    def take(self, size: int) -> None:
        """Return when there is room for so many bytes, which is taken.

        Raises
        ------
        Stopped
            The run was asked to end.
        """
        with self._change:
            while self.held and self.held + size > self.most:
                self.brake.check()
                self._change.wait(TICK_S)
            self.held += size

    def give(self, size: int) -> None:
        """Give bytes back."""
        with self._change:
            self.held -= size
            self._change.notify_all()
