"""Which trained heads and which stacker speak: those that were asked for, or the current ones."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fercache.errors import InputError
from fercache.oof import LogitBook
from fercache.runtime import atomic_io
from fercache.training import train

log = logging.getLogger(__name__)


METRICS = "metrics.json"
"""What a finished stack run holds."""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A trained set of heads and the stacker that was trained on their out-of-fold logits.

    Attributes
    ----------
    book : those logits: what the heads are, and which trials they were trained on.
    heads : folder of the heads; stack : folder of the stack run.
    """

    book: LogitBook
    heads: Path
    stack: Path


def choose(cache: Path, heads: Path | None = None, stack: Path | None = None, dataset: str = "") -> Chosen:
    """Return the heads and the stacker to predict with.

    Parameters
    ----------
    heads : folder of heads, or their book of logits; stack : folder of a stack run of them.
    dataset : name in the cache of the data set whose current heads are meant where neither is given; of the data set
        that was trained last in this cache if it is empty or has no heads.

    Raises
    ------
    InputError
        They are not there, or do not belong together.
    StoreError
        The book is damaged.
    """
    if stack is not None and heads is None:
        said = _metrics(stack)
        heads = cache / "logits" / str(said["dataset"]) / f"{str(said['logits']['fingerprint'])[:12]}.h5"
    path = _book(heads) if heads is not None else _current(cache, dataset)
    if not path.is_file():
        raise InputError("no trained heads", where=path, hint="run `fercache train-heads`, or name others with --heads")
    book, folder = LogitBook.load(path), path.parents[2] / "heads" / path.parent.name / path.stem
    found = stack or _stack_of(path.parents[2] / "stack" / book.dataset, book)
    if _metrics(found)["logits"]["fingerprint"] != book.fingerprint:
        raise InputError("this stack run was trained on other heads' logits", where=found,
                         hint=f"name a run of the heads {folder}, or leave --stack out")
    log.info("heads %s, stack %s, trained on %s", folder, found.name, book.dataset)
    return Chosen(book=book, heads=folder, stack=found)


def _book(heads: Path) -> Path:
    """Return the book of logits of a folder of heads, or the book itself."""
    if heads.suffix == ".h5":
        return heads
    full = heads.resolve()
    return full.parents[2] / "logits" / full.parent.name / f"{full.name}.h5" if len(full.parents) > 2 else full


def _current(cache: Path, dataset: str) -> Path:
    """Return the book that the data set's last training made or found, or else this cache's last training."""
    pointers = sorted(cache.glob("logits/*/current.json"), key=lambda path: path.stat().st_mtime_ns)
    if not pointers:
        raise InputError("no heads were trained yet", where=cache / "logits",
                         hint="run `fercache extract`, `fercache train-heads` and `fercache stack` on labelled clips")
    own = [path for path in pointers if path.parent.name == dataset]
    return train.current(cache, (own or pointers)[-1].parent.name)


def _stack_of(folder: Path, book: LogitBook) -> Path:
    """Return the newest finished stack run of a book."""
    runs = sorted(_runs(folder, book.fingerprint))
    if not runs:
        raise InputError("these heads have no stacker yet", where=folder,
                         hint="run `fercache stack` on the data set they were trained on")
    return runs[-1][1]


def _runs(folder: Path, fingerprint: str) -> Iterator[tuple[int, Path]]:
    """Yield (time of its end, folder) of each finished run of the book with this fingerprint."""
    for path in folder.glob(f"*/{METRICS}"):
        if atomic_io.read_json(path).get("logits", {}).get("fingerprint") == fingerprint:
            yield path.stat().st_mtime_ns, path.parent


def _metrics(folder: Path) -> dict[str, Any]:
    """Return what a stack run says of itself."""
    if not (folder / METRICS).is_file():
        raise InputError("no finished stack run", where=folder, hint="run `fercache stack`, or name its folder in "
                                                                    "cache/stack with --stack")
    said: dict[str, Any] = atomic_io.read_json(folder / METRICS)
    return said
