"""How a run is asked to end early: at the next block or segment, with nothing lost."""

from __future__ import annotations

from collections.abc import Callable


class Stopped(Exception):
    """The run was asked to end; what is durable of the clip waits for the next run."""


def never() -> bool:
    """Return that nobody asks."""
    return False


class Brake:
    """Asked at each point where work can be left without loss.

    Parameters
    ----------
    stop : whether the run is to end now; asked often, so it must be quick, and by several threads.
    """

    def __init__(self, stop: Callable[[], bool] = never) -> None:
        self._stop = stop
        self._pulled = False

    def pull(self) -> None:
        """Ask for the end from within, as after an interrupt."""
        self._pulled = True

    @property
    def on(self) -> bool:
        """Whether the end was asked for; once it was, it stays so."""
        self._pulled = self._pulled or self._stop()
        return self._pulled

    def check(self) -> None:
        """Raise Stopped if the end was asked for."""
        if self.on:
            raise Stopped
