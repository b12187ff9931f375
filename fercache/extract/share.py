"""Several runs on one store: each takes what nobody has at work, and ends when every clip is done."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from fercache.datasets import Trial
from fercache.extract.brake import never

log = logging.getLogger(__name__)

T = TypeVar("T")

WAIT_S = 0.5
"""Between two looks at clips that another process has."""


def in_turn(trials: Sequence[Trial], attempt: Callable[[Trial], T | None], is_claimed: Callable[[Trial], bool],
            leave: Callable[[Trial], T], stop: Callable[[], bool] = never) -> Iterator[T]:
    """Yield what `attempt` makes of each trial; where another process is at it, later.

    Parameters
    ----------
    attempt : returns None if another process took the trial first.
    is_claimed : whether a live process has the trial.
    leave : stands in for `attempt` once `stop` says that the run is to end.

    Notes
    -----
    A user who has seen a run end with exit code 0 goes on to the next stage: so it ends when the others' clips are done
    too. A clip whose process died is attempted again, as is one that failed there.
    """
    waiting, told = list(trials), False
    while waiting:
        busy = []
        for trial in waiting:
            if stop():
                yield leave(trial)
                continue
            result = None if is_claimed(trial) else attempt(trial)
            if result is None:
                busy.append(trial)
            else:
                yield result
        if busy and not told:
            log.info("waiting for what another process has at work: %s%s", busy[0].name,
                     f" and {len(busy) - 1} more" if len(busy) > 1 else "")
            told = True
        while busy and not stop() and all(is_claimed(trial) for trial in busy):
            time.sleep(WAIT_S)
        waiting = busy
