"""Work side by side: results in order, all work on the meter, a killed worker told, a stop heard."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fercache.errors import FercacheError, InputError
from fercache.runtime.fork_pool import ForkPool, ReportProgress
from fercache.runtime.progress import ProgressBar


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_results_come_in_order_and_the_meter_counts_all_work(device: str) -> None:
    def work(job: int, tell: ReportProgress) -> int:
        for _ in range(job):
            tell(1)
        return job * job

    bar = ProgressBar("work", 9, "steps")
    assert ForkPool(device, 2).run(work, [5, 1, 3], bar) == [25, 1, 9]
    assert bar.done == 9


def test_a_killed_worker_is_told() -> None:
    with pytest.raises(FercacheError, match="killed") as told:
        ForkPool("cpu", 2).run(lambda job, tell: os.kill(os.getpid(), signal.SIGKILL), [1, 2],
                               ProgressBar("work", 2, "steps"))
    assert "--threads 1" in str(told.value)


def test_an_error_of_a_worker_comes_through() -> None:
    def work(job: int, tell: ReportProgress) -> None:
        raise InputError("no", where=job)

    with pytest.raises(InputError, match="no"):
        ForkPool("cpu", 2).run(work, [1], ProgressBar("work", 1, "steps"))


class Owned:
    """Something that only the process which made it can take apart, such as a decoder with threads."""

    def __init__(self, log: Path) -> None:
        self.log, self.me, self.maker = log, self, os.getpid()

    def __del__(self) -> None:
        if os.getpid() != self.maker:
            self.log.touch()


def test_workers_leave_alone_what_is_their_parents(tmp_path: Path) -> None:
    """Thrown away before the fork or during it: a worker's collector of garbage does not come by."""
    def work(job: int, tell: ReportProgress) -> None:
        kept.clear()
        gc.collect()

    gc.disable()
    try:
        Owned(tmp_path / "before")
        kept = [Owned(tmp_path / "within")]
        ForkPool("cpu", 2).run(work, [1, 2], ProgressBar("work", 2, "steps"))
    finally:
        gc.enable()
    assert not list(tmp_path.iterdir())


PROGRAM = """
import pathlib, signal, sys, time
from fercache.runtime.fork_pool import ForkPool
from fercache.runtime.progress import ProgressBar
signal.signal(signal.SIGTERM, signal.default_int_handler)
signal.signal(signal.SIGINT, signal.default_int_handler)  # not ignored, as where tests run in the background
here = pathlib.Path(sys.argv[1])
def work(job, tell):
    (here / str(job)).write_text(str(__import__("os").getpid()))
    time.sleep(job)
    (here / f"{job} done").touch()
ForkPool("cpu", 2).run(work, [0, 300, 301, 302], ProgressBar("work", 4, "steps"))
"""


@pytest.mark.parametrize("how", ["SIGINT to all, as a terminal's Ctrl-C", "SIGTERM to the parent", "SIGKILL of it"])
def test_stopped_workers_end_at_once(how: str, tmp_path: Path) -> None:
    said = tmp_path.with_suffix(".err")
    with said.open("w") as file:
        child = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)], start_new_session=True, stderr=file)
    ends = time.monotonic() + 120
    while not all((tmp_path / name).exists() for name in ("0 done", "300", "301")):
        assert child.poll() is None and time.monotonic() < ends
        time.sleep(.05)
    time.sleep(.2)
    number = signal.Signals[how.split()[0]]
    (os.killpg if "all" in how else os.kill)(child.pid, number)
    child.wait(30)
    assert ("KeyboardInterrupt" in said.read_text()) == (number != signal.SIGKILL), said.read_text()
    left = {int((tmp_path / job).read_text()) for job in ("300", "301")}
    while left := {pid for pid in left if runs(pid)}:
        assert time.monotonic() < ends, "a worker outlives its parent"
        time.sleep(.05)
    assert {path.name for path in tmp_path.iterdir()} == {"0", "0 done", "300", "301"}, "no job was begun after it"


def runs(pid: int) -> bool:
    """Return whether a process is there and no zombie, which waits for whoever adopted it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
