"""The gauge: rates that the clock and the count give, and the bottleneck by time, not by rate."""

from __future__ import annotations

import threading
import time

from fercache.extraction.resources import MemoryBudget
from fercache.extraction.run_control import PARTS, StageProfiler


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_rates_are_frames_over_busy_seconds_times_lanes() -> None:
    clock = Clock()
    gauge = StageProfiler(dict.fromkeys(PARTS, 2), dict.fromkeys(PARTS, clock))
    with gauge.busy("cnn", 16):
        clock.now += 4
    assert gauge.rates() == {"cnn": 8.0} and gauge.slowest() == "cnn"
    assert gauge.line() == "cnn 8/s: the cnn is the bottleneck"


def test_the_bottleneck_is_what_takes_most_of_the_time() -> None:
    """The CNN is the slower one, but few frames have a face."""
    gauge = StageProfiler(dict.fromkeys(PARTS, 1))
    gauge.add("detect", 1000, 10.0)
    gauge.add("cnn", 20, 1.0)
    assert gauge.rates() == {"detect": 100.0, "cnn": 20.0} and gauge.slowest() == "detect"
    assert gauge.line() == "detect 100/s, cnn 20/s: the detect is the bottleneck"


def test_a_part_with_threads_of_its_own_took_the_rest_of_the_processes_time() -> None:
    """Its callers only wait, longer on a busy machine, so their clock would make it the bottleneck."""
    gauge = StageProfiler(dict.fromkeys(PARTS, 1), rest="cnn")

    def burn(seconds: float) -> None:
        until = time.thread_time() + seconds
        while time.thread_time() < until:
            pass

    with gauge.busy("cnn", 30):
        other = threading.Thread(target=burn, args=(0.3,))
        other.start()
        time.sleep(0.5)
        other.join()
    with gauge.busy("detect", 10):
        burn(0.6)
    assert gauge.slowest() == "detect" and 50 < gauge.rates()["cnn"] < 110


def test_items_are_timed_as_they_are_made_and_not_as_they_are_used() -> None:
    clock = Clock()

    def made():  # type: ignore[no-untyped-def]
        for i in range(3):
            clock.now += 1
            yield i

    gauge = StageProfiler(dict.fromkeys(PARTS, 1), dict.fromkeys(PARTS, clock))
    for _ in gauge.each("decode", made()):
        clock.now += 100
    assert gauge.rates() == {"decode": 1.0}


def test_nothing_is_told_of_nothing() -> None:
    gauge = StageProfiler(dict.fromkeys(PARTS, 1))
    gauge.add("write", 5, .01)
    assert gauge.line() == "" and StageProfiler(dict.fromkeys(PARTS, 1)).slowest() == ""


def test_threads_count_together() -> None:
    gauge = StageProfiler(dict.fromkeys(PARTS, 1))
    threads = [threading.Thread(target=lambda: [gauge.add("crop", 1, .001) for _ in range(1000)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert abs(gauge.rates()["crop"] - 1000) < 1e-6


def test_room_is_shared_and_the_largest_gets_in_alone() -> None:
    from fercache.extraction.run_control import CancelToken

    room, order = MemoryBudget(100, CancelToken()), []

    def ask(size: int) -> None:
        room.acquire(size)
        order.append(size)

    room.acquire(60)
    waits = threading.Thread(target=ask, args=(500,))
    waits.start()
    room.acquire(40)
    assert order == [] and room.in_use == 100
    room.release(40)
    assert order == []
    room.release(60)
    waits.join(10)
    assert order == [500] and room.in_use == 500
