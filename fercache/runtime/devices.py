"""Devices, threads and memory: computation whose results do not depend on the number of cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import torch

from fercache.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")

GPU_WORKERS = 3  # threads that keep one GPU busy: while one waits for results, the others have launched theirs


def synchronize_device(device: str) -> None:
    """Return when a GPU has finished its queued work, so that other streams may use the results; at once on a CPU."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(torch.device(device))


def resolve_device(name: str) -> str:
    """Return cpu or cuda:N for the device `name`: auto, cpu, cuda or cuda:N.

    Raises InputError if this machine has no such device.
    """
    if name == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if name == "cpu":
        return name
    if kind != "cuda" or (":" in name and not number.isdecimal()):
        raise InputError(f"unknown device {name!r}", where="device", hint="use auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count()
    if int(number or 0) >= count:
        raise InputError(f"{name} does not exist ({count} CUDA devices found)", where="device",
                         hint="use --device auto, or install the CUDA build of torch")
    return f"cuda:{int(number or 0)}"


def set_torch_threads(threads: int) -> int:
    """Set the number of torch's CPU threads, for 0 to the cores of this process, and return it."""
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    return torch.get_num_threads()


def gpus() -> int:
    """Return the number of CUDA devices that this process sees."""
    return torch.cuda.device_count()


def assign_gpu(device: str, threads: int, number: int, of: int) -> tuple[str, int]:
    """Return the device and the threads of process `number` (from 0) of the `of` that share a machine.

    `device` and `threads`: for all of them: auto and cuda are distributed over the GPUs, a device with a number is
    shared by all; threads (0: all cores) are divided.
    """
    if device in ("auto", "cuda") and gpus():
        device = f"cuda:{number % gpus()}"
    return device, max(1, (threads or len(os.sched_getaffinity(0))) // of)


def bf16_pays(flags: str | None = None) -> bool:
    """Return whether this machine's processor multiplies bf16 at more than float32's rate.

    `flags`: the content of /proc/cpuinfo; the default is that of this machine.
    """
    # Intel's matrix units (AMX), AMD's avx512_bf16 and Arm's bf16 do. Intel's avx512_bf16 alone does half of float32's
    # multiplications a cycle: measured .64 of float32's rate with torch and .58 with OpenVINO. Without any of them bf16
    # is emulated.
    words = set((Path("/proc/cpuinfo").read_text() if flags is None else flags).split())
    return "amx_bf16" in words or ("avx512_bf16" in words and "AuthenticAMD" in words) or "bf16" in words


def free_memory() -> int:
    """Return the bytes of memory that are available to programs."""
    with open("/proc/meminfo") as file:  # noqa: PTH123 - a kernel table, no file of ours
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable"))


def map_threads(task: Callable[[Item], Result], items: Sequence[Item], device: str = "cpu") -> list[Result]:
    """Return ``[task(item) for item in items]``, computed on as many cores as torch uses."""
    # On the CPU each task runs in one thread, so its result does not depend on the number of threads, as it would with
    # several threads within one operation. On busy machines this is also two to three times as fast, since no core
    # waits for another at the end of every operation. On a GPU the tasks run one after the other.
    if torch.device(device).type != "cpu":
        return [task(item) for item in items]
    with TorchThreadPool(max(1, min(torch.get_num_threads(), len(items)))) as pool:
        return pool.run(task, items)


def serially(task: Callable[[Item], Result], items: Sequence[Item], device: str = "cpu") -> list[Result]:
    """Return ``[task(item) for item in items]``, computed in the calling thread; replaces `map_threads` in a pool."""
    return [task(item) for item in items]


class TorchThreadPool:
    """A pool of `threads` threads, or a few for a GPU, that each compute with one thread of torch."""
    # A task's result does not depend on the number of threads or on other tasks. On a GPU each thread has a stream of
    # its own, so the copies of one overlap with the computation of another. Inside the ``with`` block the entering
    # thread and every new one have one thread of torch too.

    def __init__(self, threads: int, device: str = "cpu") -> None:
        gpu = torch.device(device).type != "cpu"
        self.count = GPU_WORKERS if gpu else threads
        self._pool = ThreadPoolExecutor(self.count, "fercache-torch", _one_thread, (device if gpu else "",))

    def submit(self, task: Callable[[], Result]) -> Future[Result]:
        """Return the future of what `task` returns; tasks start in the order of their submission."""
        return self._pool.submit(task)

    def run(self, task: Callable[[Item], Result], items: Sequence[Item], device: str = "cpu") -> list[Result]:
        """Return ``[task(item) for item in items]``, as `map_threads` does; a task must not call this."""
        # A task that waits for tasks of the same pool would occupy the thread that they need.
        return [future.result() for future in [self._pool.submit(task, item) for item in items]]

    def __enter__(self) -> TorchThreadPool:
        self._before = torch.get_num_threads()
        torch.set_num_threads(1)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        """Wait for the running tasks and cancel the others."""
        self._pool.shutdown(cancel_futures=True)
        torch.set_num_threads(self._before)


def _one_thread(gpu: str) -> None:
    """Make the calling thread compute alone, on a GPU in a stream of its own."""
    torch.set_num_threads(1)
    if gpu:
        torch.cuda.set_stream(torch.cuda.Stream(torch.device(gpu)))  # type: ignore[no-untyped-call]
