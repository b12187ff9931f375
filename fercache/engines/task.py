"""What a process that works for a run is told, and what it gives back; the same on this machine and on others."""

from __future__ import annotations

import logging
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from math import inf
from pathlib import Path
from threading import Lock

import fercache
from fercache.config import ExtractConfig
from fercache.datasets import Trial
from fercache.engines.limit import over
from fercache.errors import InputError
from fercache.extract import ClipDone, Work
from fercache.extract.brake import Brake
from fercache.extract.nets import Nets, load
from fercache.place import Place
from fercache.progress import Meter
from fercache.store import EmbeddingStore
from fercache.weights import Weights

SAME_FILES = "every worker must see the clips and the cache under the same paths (or give --cache a URL)"

_alone = Lock()
"""One clip at a time: torch's threads and the nets are the process's, whatever number of threads calls."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What all clips of a run have in common.

    Attributes
    ----------
    config : how; device and threads are those of the machine, and `seats` processes share them.
    seen : a clip that the one who gives the order sees, if there is one.
    ends_s : when clips are left at their next block or segment, in seconds since 1970.
    version : of the fercache that gives the order.
    """

    config: ExtractConfig
    faces: str
    cnn: Weights
    store: Place
    seen: tuple[Path, ...]
    ends_s: float = inf
    seats: int = 1
    version: str = fercache.__version__


@dataclass(frozen=True, kw_only=True)
class Done:
    """What became of some clips, and what was said meanwhile: (level of logging, text)."""

    clips: tuple[ClipDone, ...]
    told: tuple[tuple[int, str], ...]

    def tell(self) -> None:
        """Say it here."""
        for level, text in self.told:
            logging.getLogger("fercache").log(level, "%s", text)


def order_of(work: Work, trials: Sequence[Trial], ends_s: float, seats: int) -> Order:
    """Return the order for processes that bring `trials` through; `seats` of them share a machine."""
    seen = [trial.path.absolute() for trial in trials if trial.path.exists()]
    store = work.store.path
    return Order(config=work.config, faces=work.faces, cnn=replace(work.cnn, path=work.cnn.path.absolute()),
                 store=store.absolute() if isinstance(store, Path) else store, seen=tuple(seen[:1]), seats=seats,
                 ends_s=ends_s)


def slim(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials as they are sent: by absolute paths, without labels."""
    return [replace(trial, path=trial.path.absolute(), labels=None, video=None) for trial in trials]


def do(order: Order, trials: Sequence[Trial], seat: int = 0, bar: Meter | None = None) -> Done:
    """Return what became of the trials; nets are loaded once a process.

    Parameters
    ----------
    seat : which of the processes that share the machine this is, from 0.

    Raises
    ------
    InputError
        This process has another fercache, or does not see the files.
    StoreError, OSError
        The store cannot be written.
    """
    with _alone, _listening() as told:
        work = _work(order, seat)
        if work.brake.on:  # before nets are loaded for nothing
            clips = tuple(map(work.left, trials))
        else:
            clips = tuple(work.through(trials, _nets(order, seat), bar or Meter("extract", None, "frames")))
    return Done(clips=clips, told=tuple(told))


@lru_cache(maxsize=1)
def _work(order: Order, seat: int) -> Work:
    """Return store and settings of an order, after a look whether this process can carry it out."""
    from fercache import cores  # torch

    here = platform.node()
    if order.version != fercache.__version__:
        raise InputError(f"fercache {fercache.__version__} cannot work for fercache {order.version}", where=here,
                         hint="install the same version everywhere")
    for path in (*order.seen, order.cnn.path):
        if not path.exists():
            raise InputError(f"{path} is not there", where=here, hint=SAME_FILES)
    if not EmbeddingStore.exists(order.store):
        raise InputError(f"{order.store} is not there", where=here, hint=SAME_FILES)
    device, threads = cores.seat(order.config.device, order.config.threads, seat, order.seats)
    config = replace(order.config, device=device, threads=threads)
    return Work(config, EmbeddingStore.open(order.store, mode="a"), order.faces, order.cnn,
                brake=Brake(partial(over, order.ends_s)))


@lru_cache(maxsize=1)
def _nets(order: Order, seat: int) -> Nets:
    return load(_work(order, seat).config, order.cnn, order.faces)


class _Listener(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.told: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append((record.levelno, record.getMessage()))


@contextmanager
def _listening() -> Iterator[list[tuple[int, str]]]:
    """Yield a list that takes what fercache logs in the block, instead of this process's stderr."""
    logger, listener = logging.getLogger("fercache"), _Listener()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(listener)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield listener.told
    finally:
        logger.removeHandler(listener)
        logger.setLevel(level)
        logger.propagate = propagate
