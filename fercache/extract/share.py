"""Several runs on one store: each takes what nobody has at work, and ends when every clip is done."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

from fercache.datasets import Trial
from fercache.extract.brake import Brake

log = logging.getLogger(__name__)

T = TypeVar("T")

WAIT_S = 0.5
"""Between two looks at clips that another process has."""


def in_turn(trials: Sequence[Trial], attempt: Callable[[Trial], T | None], is_claimed: Callable[[Trial], bool],
            leave: Callable[[Trial], T], brake: Brake, abreast: int = 1) -> Iterator[T]:
    """Yield what `attempt` makes of each trial, as they end; where another process is at one, later.

    Parameters
    ----------
    attempt : returns None if another process took the trial first.
    is_claimed : whether a live process has the trial.
    leave : stands in for `attempt` once the run is to end.
    abreast : trials at once, each in a thread of its own.

    Notes
    -----
    A user who has seen a run end with exit code 0 goes on to the next stage: so it ends when the others' clips are done
    too. A clip whose process died is attempted again, as is one that failed there.
    """
    def turn(trial: Trial) -> T | None:
        if brake.on:
            return leave(trial)
        return None if is_claimed(trial) else attempt(trial)

    waiting, told = list(trials), False
    while waiting:
        busy = []
        for trial, result in side_by_side(turn, waiting, abreast, brake):
            if result is None:
                busy.append(trial)
            else:
                yield result
        if busy and not told:
            log.info("waiting for what another process has at work: %s%s", busy[0].name,
                     f" and {len(busy) - 1} more" if len(busy) > 1 else "")
            told = True
        while busy and not brake.on and all(is_claimed(trial) for trial in busy):
            time.sleep(WAIT_S)
        waiting = busy


def side_by_side(turn: Callable[[Trial], T | None], trials: Sequence[Trial], abreast: int, brake: Brake
                 ) -> Iterator[tuple[Trial, T | None]]:
    """Yield each trial with what `turn` returns, as they end; in this thread if there is one at a time.

    Notes
    -----
    What one of them raises is raised here, and an interrupt too, after the others were asked to end and did.
    """
    if abreast == 1:
        yield from ((trial, turn(trial)) for trial in trials)
        return
    pool = ThreadPoolExecutor(abreast, "clip")
    try:
        promised = {pool.submit(turn, trial): trial for trial in trials}
        for promise in as_completed(promised):
            yield promised.pop(promise), promise.result()
    except BaseException:
        brake.pull()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
