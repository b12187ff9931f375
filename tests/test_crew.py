"""Work side by side: results in order, all work on the meter, a killed worker told."""

from __future__ import annotations

import os
import signal

import pytest

from fercache.errors import FercacheError, InputError
from fercache.progress import Meter
from fercache.train_heads.crew import Crew, Tell


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_results_come_in_order_and_the_meter_counts_all_work(device: str) -> None:
    def work(job: int, tell: Tell) -> int:
        for _ in range(job):
            tell(1)
        return job * job

    bar = Meter("work", 9, "steps")
    assert Crew(device, 2).run(work, [5, 1, 3], bar) == [25, 1, 9]
    assert bar.done == 9


def test_a_killed_worker_is_told() -> None:
    with pytest.raises(FercacheError, match="killed") as told:
        Crew("cpu", 2).run(lambda job, tell: os.kill(os.getpid(), signal.SIGKILL), [1, 2], Meter("work", 2, "steps"))
    assert "--threads 1" in str(told.value)


def test_an_error_of_a_worker_comes_through() -> None:
    def work(job: int, tell: Tell) -> None:
        raise InputError("no", where=job)

    with pytest.raises(InputError, match="no"):
        Crew("cpu", 2).run(work, [1], Meter("work", 1, "steps"))
