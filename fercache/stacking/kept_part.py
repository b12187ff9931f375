"""What a stack run leaves in the cache: final predictions, metrics, and the learnt models as text."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
from numpy.typing import NDArray

from fercache.errors import StoreError
from fercache.oof import LogitBook
from fercache.runtime import atomic_io
from fercache.stacking.chain import Chain
from fercache.stacking.linear_part import Linear
from fercache.stacking.models import Trees
from fercache.stacking.nested_cv import Member
from fercache.stacking.smoothed_mean import Base

METRICS = "metrics.json"
"""Written last: a run without it is not done."""
FINAL = "final.npy"
ALL = -1
"""The member that learnt from all folds, and that speaks of new clips."""
LINEAR = ("mean", "scale", "weights", "bias")


def digest(book: LogitBook) -> str:
    """Return the sha256 (hex) of all that a stack reads of a book."""
    state = hashlib.sha256(repr((book.fingerprint, book.classes, book.metric, book.heads, book.trials, book.group,
                                 book.split, book.notice, book.epochs_fixed, book.clips,
                                 sorted(book.declared.items()))).encode())
    for values in (book.fold, book.offsets, book.index, book.time_s, book.valid, book.label,
                   *(book.logits[head] for head in book.heads),
                   *(book.pooled[head] for head in book.heads if book.pooled)):
        state.update(np.ascontiguousarray(values).tobytes())
    return state.hexdigest()


def save(folder: Path, units: NDArray[np.int32], members: dict[int, Member], report: dict[str, Any]) -> None:
    """Put a finished run into `folder`; the metrics last."""
    for fold, member in members.items():
        atomic_io.write_bytes(folder / f"trees-{_name(fold)}.txt", member.trees.text().encode())
    if ALL in members:
        with atomic_io.replacing(folder / "linear-all.npz") as temporary, temporary.open("wb") as file:
            np.savez(file, **{name: getattr(members[ALL].linear, name) for name in LINEAR})
        atomic_io.write_json(folder / "member-all.json", members[ALL].json())
    with atomic_io.replacing(folder / FINAL) as temporary, temporary.open("wb") as file:
        np.save(file, units, allow_pickle=False)
    atomic_io.write_json(folder / METRICS, report)


def load(folder: Path, shape: tuple[int, int]) -> tuple[NDArray[np.int32], dict[str, Any]] | None:
    """Return the final predictions and the metrics of a finished run; None where there is none, or it is damaged."""
    if not (folder / METRICS).is_file() or not (folder / FINAL).is_file():
        return None
    try:
        units = np.load(folder / FINAL, allow_pickle=False)
    except (ValueError, EOFError, OSError):
        return None
    whole = units.shape == shape and units.dtype == np.int32
    return (units, atomic_io.read_json(folder / METRICS)) if whole else None


def load_member(folder: Path) -> Member:
    """Return the member that learnt from all folds.

    Raises
    ------
    StoreError
        There is none (too few groups), or its files are damaged.
    """
    try:
        said = atomic_io.read_json(folder / "member-all.json")
        trees = Trees(booster=lightgbm.Booster(model_file=str(folder / f"trees-{_name(ALL)}.txt")),
                      rounds=said["rounds"], watched=said["watched_groups"])
        with np.load(folder / "linear-all.npz", allow_pickle=False) as file:
            linear = Linear(**{name: file[name] for name in LINEAR})
        base = Base.of(said["base"])
        spoken = Chain.of(said["chain"]) if said["chain"] else None
    except (OSError, KeyError, ValueError, lightgbm.basic.LightGBMError) as error:
        raise StoreError(f"no stacker of all folds ({error})", where=folder, hint="run `fercache stack`") from error
    return Member(fold=ALL, groups=said["groups"], rows=said["rows"], base=base, trees=trees, linear=linear,
                  chain=spoken)


def _name(fold: int) -> str:
    return "all" if fold == ALL else f"without{fold}"


def final_column(report: dict[str, Any]) -> str:
    """Return the name of the column that a run's predictions are."""
    return str(report["final"]["column"])
