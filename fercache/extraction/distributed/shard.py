"""One of several runs that share a data set without a word to each other: Slurm arrays, torchrun, or by hand."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fercache.data.base import Dataset, Trial
from fercache.errors import InputError
from fercache.extraction.distributed.worker import bundles

ARRAY = "SLURM_ARRAY_TASK_"
WHERE = "--shard"
HINT = ("say which part of how many, from 1: --shard 2/8; or --shard auto in a Slurm array (--array=1-8) or under "
        "torchrun")


@dataclass(frozen=True)
class Shard:
    """Part `number` (from 1) of a data set that is cut into `of` parts."""

    number: int
    of: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            raise InputError(f"there is no part {self.number} of {self.of}", where=WHERE, hint=HINT)

    @property
    def failures(self) -> str:
        """The name of this part's list of clips that failed."""
        return f"failures-{self.number}-of-{self.of}.csv"

    def of_dataset(self, dataset: Dataset) -> Dataset:
        """Return the data set with this part's trials only; the first part tells of the clips that are not there."""
        return replace(dataset, trials=tuple(self.index(dataset.trials)),
                       problems=dataset.problems if self.number == 1 else ())

    def index(self, trials: Sequence[Trial]) -> list[Trial]:
        """Return this part's trials in their order.

        Notes
        -----
        The largest source goes first, each to the part that has least so far: every machine that sees the same files
        comes to the same answer, each trial is in one part, and the people of one video are in the same.
        """
        loads = [(0, i) for i in range(self.of)]
        mine: set[str] = set()
        for size, together in bundles(trials):
            load, number = min(loads)
            loads[number] = load + max(size, 1), number
            if number == self.number - 1:
                mine.update(trial.name for trial in together)
        return [trial for trial in trials if trial.name in mine]


def read_shard(text: str, environ: Mapping[str, str]) -> Shard:
    """Return the part that `text` (``2/8`` or ``auto``) means.

    Parameters
    ----------
    environ : environment variables, for ``auto``: of a Slurm array, of torchrun, or of torchrun in a Slurm array.

    Raises
    ------
    InputError
        It is neither, there is no such part, or the environment does not say.
    """
    if text == "auto":
        return _shard_from_text(environ)
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if found is None:
        raise InputError(f"{text!r} names no part", where=WHERE, hint=HINT)
    return Shard(int(found[1]), int(found[2]))


def forget_lists(folder: Path) -> None:
    """Remove the lists that parts of a data set left, since a run over all of it has spoken."""
    for path in folder.glob("failures-*-of-*.csv"):
        path.unlink(missing_ok=True)


def local_rank(environ: Mapping[str, str]) -> tuple[int, int]:
    """Return which process of this machine, from 0, this one is, and of how many: torchrun says so, else (0, 1)."""
    if _torchrun(environ) is None or "LOCAL_RANK" not in environ:
        return 0, 1
    number = _whole(environ, "LOCAL_RANK")
    return number, max(number + 1, _whole(environ, "LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in environ else 1)


def _shard_from_text(environ: Mapping[str, str]) -> Shard:
    """Return the part that the environment names: the array's outside, torchrun's inside."""
    outer, inner = _slurm(environ), _torchrun(environ)
    if outer is None or inner is None:
        told = outer or inner
        if told is None:
            raise InputError("neither a Slurm array nor torchrun tells which part is meant", where=f"{WHERE} auto",
                             hint=HINT)
        return told
    return Shard((outer.number - 1) * inner.of + inner.number, outer.of * inner.of)


def _slurm(environ: Mapping[str, str]) -> Shard | None:
    """Return the part of a task in a Slurm array; None outside of arrays."""
    if ARRAY + "ID" not in environ:
        return None
    number, count, first = (_whole(environ, ARRAY + name) for name in ("ID", "COUNT", "MIN"))
    step = _whole(environ, ARRAY + "STEP") if environ.get(ARRAY + "STEP") else 1
    last = _whole(environ, ARRAY + "MAX") if environ.get(ARRAY + "MAX") else first + (count - 1) * step
    if step < 1 or (number - first) % step or last != first + (count - 1) * step:
        raise InputError(f"task {number} of an array of {count} from {first} to {last} has no place in a row",
                         where=f"{WHERE} auto", hint="use an array without holes, such as --array=1-8, "
                                                     "or say --shard I/N yourself")
    return Shard((number - first) // step + 1, count)


def _torchrun(environ: Mapping[str, str]) -> Shard | None:
    """Return the part of a process that torchrun started; None elsewhere."""
    if "RANK" not in environ or "WORLD_SIZE" not in environ:
        return None
    return Shard(_whole(environ, "RANK") + 1, _whole(environ, "WORLD_SIZE"))


def _whole(environ: Mapping[str, str], name: str) -> int:
    text = environ.get(name, "")
    if not re.fullmatch(r"\d{1,9}", text):
        raise InputError(f"{name} is {text!r}, no whole number" if text else f"{name} is not set",
                         where=f"{WHERE} auto", hint=HINT)
    return int(text)
