"""Which device and how many CPU cores work, so that the results do not depend on the number of cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from fercache.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")


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


def seat(device: str, threads: int, number: int, of: int) -> tuple[str, int]:
    """Return the device and the threads of process `number` (from 0) of the `of` that share a machine.

    Parameters
    ----------
    device, threads : what is meant for all of them: auto and cuda are dealt out among the GPUs, a device with a number
        is everybody's; threads (0: all cores) are divided.
    """
    if device in ("auto", "cuda") and gpus():
        device = f"cuda:{number % gpus()}"
    return device, max(1, (threads or len(os.sched_getaffinity(0))) // of)


def spread(task: Callable[[Item], Result], items: Sequence[Item], device: str = "cpu") -> list[Result]:
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
