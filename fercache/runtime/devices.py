"""Which device and how many CPU cores work, so that the results do not depend on the number of cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import torch

from fercache.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")

GPU_WORKERS = 3
"""Threads that keep one GPU busy: while one waits for results, the others have launched theirs."""


def resolve_threads(device: str) -> None:
    """Return when what was given to a GPU is done, so that other streams may use it; at once on a CPU."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(torch.device(device))


def resolve_device(name: str) -> str:
    """Return cpu, or cuda:N: what `name` (auto, cpu, cuda or cuda:N) means on this machine.

    Raises
    ------
    InputError
        No such device here.
    """
    if name == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if name == "cpu":
        return name
    if kind != "cuda" or (":" in name and not number.isdecimal()):
        raise InputError(f"no device is called {name!r}", where="device", hint="auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count()
    if int(number or 0) >= count:
        raise InputError(f"{name} is not there ({count} CUDA devices are)", where="device",
                         hint="use --device auto, or install the CUDA build of torch")
    return f"cuda:{int(number or 0)}"


def use_threads(threads: int) -> int:
    """Return how many CPU threads torch now uses: `threads`, or for 0 those this process may run on."""
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    return torch.get_num_threads()


def gpus() -> int:
    """Return how many CUDA devices this process sees."""
    return torch.cuda.device_count()


def assign_gpu(device: str, threads: int, number: int, of: int) -> tuple[str, int]:
    """Return the device and the threads of process `number` (from 0) of the `of` that share a machine.

    Parameters
    ----------
    device, threads : what is meant for all of them: auto and cuda are dealt out among the GPUs, a device with a number
        is everybody's; threads (0: all cores) are divided.
    """
    if device in ("auto", "cuda") and gpus():
        device = f"cuda:{number % gpus()}"
    return device, max(1, (threads or len(os.sched_getaffinity(0))) // of)


def bf16_pays(flags: str | None = None) -> bool:
    """Return whether this machine's processor multiplies bf16 at more than float32's rate.

    Parameters
    ----------
    flags : what the system says of the processor; by default that of this machine.

    Notes
    -----
    Intel's matrix units (AMX), AMD's avx512_bf16 and Arm's bf16 do. Intel's avx512_bf16 alone does half of float32's
    multiplications a cycle: measured .64 of float32's rate with torch and .58 with OpenVINO. Without any of them bf16
    is emulated.
    """
    cpu_flags = _processor() if flags is None else flags
    words = set(cpu_flags.split())
    return "amx_bf16" in words or ("avx512_bf16" in words and "AuthenticAMD" in words) or "bf16" in words


@cache
def _processor() -> str:
    """Return what Linux says of the processor, "" elsewhere."""
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def map_threads(task: Callable[[Item], Result], items: Sequence[Item], device: str = "cpu") -> list[Result]:
    """Return ``[task(item) for item in items]``, computed on as many cores as torch uses.

    Notes
    -----
    On the CPU each task runs with one thread of its own: the result does not depend on the number of threads (within
    one operation it would), and on busy machines it is two to three times the rate, since no core waits for another at
    the end of every operation. On a GPU the tasks run one after the other.
    """
    if torch.device(device).type != "cpu":
        return [task(item) for item in items]
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(max(1, min(threads, len(items))))

    def alone(item: Item) -> Result:
        torch.set_num_threads(1)
        return task(item)

    try:
        return list(pool.map(alone, items))
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt waits for the running tasks only
        torch.set_num_threads(threads)


def serially(task: Callable[[Item], Result], items: Sequence[Item], device: str = "cpu") -> list[Result]:
    """Return ``[task(item) for item in items]``: stands in for `spread` where the caller has one thread already."""
    return [task(item) for item in items]


class TorchThreadPool:
    """Threads that compute, each with one thread of torch: as many as `threads`, or a few for a GPU.

    Notes
    -----
    A task's result does not depend on how many there are, nor on what runs beside it. On a GPU each has a stream of its
    own, so that the copies of one overlap with the work of another. Inside the ``with`` block the entering thread and
    every new one have one thread of torch too.
    """

    def __init__(self, threads: int, device: str = "cpu") -> None:
        gpu = torch.device(device).type != "cpu"
        self.count = GPU_WORKERS if gpu else threads
        self._pool = ThreadPoolExecutor(self.count, "crew", _one_thread, (device if gpu else "",))

    def submit(self, task: Callable[[], Result]) -> Future[Result]:
        """Return the promise of what `task` returns; tasks begin in the order in which they are given."""
        return self._pool.submit(task)

    def run(self, task: Callable[[Item], Result], items: Sequence[Item], device: str = "cpu") -> list[Result]:
        """Return ``[task(item) for item in items]``, as `spread` does; not to be called from within a task."""
        return [promise.result() for promise in [self._pool.submit(task, item) for item in items]]

    def __enter__(self) -> TorchThreadPool:
        self._before = torch.get_num_threads()
        torch.set_num_threads(1)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        """Wait for the tasks that run, and forget the others."""
        self._pool.shutdown(cancel_futures=True)
        torch.set_num_threads(self._before)


def _one_thread(gpu: str) -> None:
    """Make the calling thread compute alone, on a GPU in a stream of its own."""
    torch.set_num_threads(1)
    if gpu:
        torch.cuda.set_stream(torch.cuda.Stream(torch.device(gpu)))  # type: ignore[no-untyped-call]
