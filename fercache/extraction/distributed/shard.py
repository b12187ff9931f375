"""A data set split over independent runs: Slurm arrays, torchrun, or by hand."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fercache.data.base import Dataset, Trial
from fercache.errors import InputError

ARRAY = "SLURM_ARRAY_TASK_"
WHERE = "--shard"
HINT = "use --shard I/N, from 1/N to N/N, or --shard auto in a Slurm array (--array=1-8) or under torchrun"

# Bytes of a video that count as one frame. It decides the order of clips only, never a result.
FRAME_BYTES = 10_000


def estimate_work(trial: Trial) -> int:
    """Return an estimate of a clip's frames, from its list, its labels, its pictures, or its bytes."""
    # It opens no file, and is equal on every machine that sees the same files and lists.
    if trial.stated:
        return trial.stated
    if trial.labels is not None and len(trial.labels):
        return len(trial.labels)
    try:
        if trial.kind != "video":
            with os.scandir(trial.path) as entries:
                return sum(1 for _ in entries)
        return 1 + trial.path.stat().st_size // FRAME_BYTES
    except OSError:  # reported when the clip is extracted
        return 0


def bundles(trials: Sequence[Trial]) -> list[tuple[int, list[Trial]]]:
    """Return (frames, trials) for each source, the largest first: the people of one video stay together."""
    by_path: dict[str, list[Trial]] = {}
    for trial in trials:
        by_path.setdefault(str(trial.path), []).append(trial)
    sized = [(sum(estimate_work(trial) for trial in together), together) for together in by_path.values()]
    # Ties are broken by name: all machines must find one order, however they list the clips.
    return sorted(sized, key=lambda bundle: (-bundle[0], min(trial.name for trial in bundle[1])))


def largest_first(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials, large sources first: a long clip that starts last would run alone at the end."""
    return [trial for _, together in bundles(trials) for trial in together]


@dataclass(frozen=True)
class Shard:
    """Part `number` (from 1) of a data set in `of` parts."""

    number: int
    of: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            raise InputError(f"part {self.number} of {self.of} does not exist", where=WHERE, hint=HINT)

    @property
    def failures(self) -> str:
        """File name of this part's list of failed clips."""
        return f"failures-{self.number}-of-{self.of}.csv"

    def of_dataset(self, dataset: Dataset) -> Dataset:
        """Return the data set with this part's trials; the first part also keeps the problems of the whole set."""
        return replace(dataset, trials=tuple(self.select(dataset.trials)),
                       problems=dataset.problems if self.number == 1 else ())

    def select(self, trials: Sequence[Trial]) -> list[Trial]:
        """Return this part's trials in their order."""
        # Each source goes to the part with the least work so far, the largest source first. Every machine that sees the
        # same files finds the same split, each trial is in one part, and the people of one video are in the same part.
        loads = [(0, i) for i in range(self.of)]
        names: set[str] = set()
        for size, together in bundles(trials):
            load, number = min(loads)
            loads[number] = load + max(size, 1), number  # sources of unknown size are spread too
            if number == self.number - 1:
                names.update(trial.name for trial in together)
        return [trial for trial in trials if trial.name in names]


def read_shard(text: str, environ: Mapping[str, str]) -> Shard:
    """Return the part for the flag's text, ``2/8`` or ``auto``.

    `environ`: environment variables, for ``auto``: of a Slurm array, of torchrun, or of torchrun in a Slurm array.
    Raises InputError if the text is neither, the part does not exist, or the environment lacks the variables.
    """
    if text == "auto":
        outer, inner = _slurm(environ), _torchrun(environ)
        if outer is not None and inner is not None:  # torchrun in each task of an array
            return Shard((outer.number - 1) * inner.of + inner.number, outer.of * inner.of)
        shard = outer or inner
        if shard is None:
            raise InputError("no Slurm array and no torchrun in the environment", where=f"{WHERE} auto", hint=HINT)
        return shard
    parts = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if parts is None:
        raise InputError(f"{text!r} is not a part", where=WHERE, hint=HINT)
    return Shard(int(parts[1]), int(parts[2]))


def forget_lists(folder: Path) -> None:
    """Remove the shards' lists of failed clips: a run over the whole data set replaces them."""
    for path in folder.glob("failures-*-of-*.csv"):
        path.unlink(missing_ok=True)


def local_rank(environ: Mapping[str, str]) -> tuple[int, int]:
    """Return the number of this process on its machine, from 0, and how many there are, from torchrun; else (0, 1)."""
    if _torchrun(environ) is None or "LOCAL_RANK" not in environ:
        return 0, 1
    number = _whole(environ, "LOCAL_RANK")
    return number, max(number + 1, _whole(environ, "LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in environ else 1)


def _slurm(environ: Mapping[str, str]) -> Shard | None:
    """Return the part of a task in a Slurm array; None outside of arrays."""
    if ARRAY + "ID" not in environ:
        return None
    number, count, first = (_whole(environ, ARRAY + name) for name in ("ID", "COUNT", "MIN"))
    step = _whole(environ, ARRAY + "STEP") if environ.get(ARRAY + "STEP") else 1
    last = _whole(environ, ARRAY + "MAX") if environ.get(ARRAY + "MAX") else first + (count - 1) * step
    # In an array with holes, no task would extract the clips of the missing parts.
    if step < 1 or (number - first) % step or last != first + (count - 1) * step:
        raise InputError(f"task {number} is not part of a regular array of {count} tasks from {first} to {last}",
                         where=f"{WHERE} auto", hint="use an array without holes, such as --array=1-8, or --shard I/N")
    return Shard((number - first) // step + 1, count)


def _torchrun(environ: Mapping[str, str]) -> Shard | None:
    """Return the part of a process that torchrun started; None elsewhere."""
    if "RANK" not in environ or "WORLD_SIZE" not in environ:
        return None
    return Shard(_whole(environ, "RANK") + 1, _whole(environ, "WORLD_SIZE"))


def _whole(environ: Mapping[str, str], name: str) -> int:
    text = environ.get(name, "")
    if not re.fullmatch(r"\d{1,9}", text):
        raise InputError(f"{name} is {text!r}, not a whole number" if text else f"{name} is not set",
                         where=f"{WHERE} auto", hint=HINT)
    return int(text)
