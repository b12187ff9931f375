"""Several runs on one store: each takes what nobody has at work, and ends when every clip is done."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from itertools import islice
from typing import TypeVar

from fercache.data.base import Trial
from fercache.extraction.brake_part import Brake

log = logging.getLogger(__name__)


T = TypeVar("T")

WAIT_S = 0.5
"""Between two looks at clips that another process has."""


def in_turn(trials: Iterable[Trial], attempt: Callable[[Trial], T | None], is_claimed: Callable[[Trial], bool],
            leave: Callable[[Trial], T], brake: Brake, abreast: int = 1) -> Iterator[T]:
    """Yield what `attempt` makes of each trial, as they end; where another process is at one, later.

    Parameters
    ----------
    trials : each is asked for when there is room for it among those at work.
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

    waiting, told = trials, False
    while True:
        busy = []
        for trial, result in side_by_side(turn, waiting, abreast, brake):
            if result is None:
                busy.append(trial)
            else:
                yield result
        if not busy:
            return
        if not told:
            log.info("waiting for what another process has at work: %s%s", busy[0].name,
                     f" and {len(busy) - 1} more" if len(busy) > 1 else "")
            told = True
        while not brake.on and all(is_claimed(trial) for trial in busy):
            time.sleep(WAIT_S)
        waiting = busy


def side_by_side(turn: Callable[[Trial], T | None], trials: Iterable[Trial], abreast: int, brake: Brake
                 ) -> Iterator[tuple[Trial, T | None]]:
    """Yield each trial with what `turn` returns, as they end; in this thread if there is one at a time.

    Notes
    -----
    What one of them raises is raised here, and an interrupt too, after the others were asked to end and did.
    """
    if abreast == 1:
        yield from ((trial, turn(trial)) for trial in trials)
        return
    pool, coming = ThreadPoolExecutor(abreast, "clip"), iter(trials)
    try:
        promised = {pool.submit(turn, trial): trial for trial in islice(coming, abreast)}
        while promised:
            for promise in wait(promised, return_when=FIRST_COMPLETED).done:
                trial = promised.pop(promise)
                promised |= {pool.submit(turn, following): following for following in islice(coming, 1)}
                yield trial, promise.result()
    except BaseException:
        brake.pull()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
