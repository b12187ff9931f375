"""Forget one clip: its features, and all that was learnt from it; then look whether a trace is left."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fercache import durable
from fercache.errors import InputError, StoreError
from fercache.logits import LogitBook
from fercache.store import EmbeddingStore, work_folder
from fercache.store.names import encode

POINTER = "current.json"
LEARNT = ("logits", "heads", "stack")


@dataclass(frozen=True, kw_only=True)
class ForgetReport:
    """What became of a clip.

    Attributes
    ----------
    removed : what was taken away.
    traces : where the cache still names it: empty, or the proof failed.
    """

    clip: str
    removed: tuple[Path, ...]
    traces: tuple[Path, ...]


def forget(cache: Path, clip: str, dataset: str | None = None) -> ForgetReport:
    """Remove a clip from every stage of the cache, and return what was removed and what still names it.

    Parameters
    ----------
    dataset : name of the data set's folder in the cache; every one that holds the clip if it is not given.

    Raises
    ------
    InputError
        The cache does not know the clip.
    StoreError
        A process is writing the clip.

    Notes
    -----
    Books of logits, heads and stack runs of a data set that holds the clip were learnt with it (or cannot be shown not
    to have been): they go too and are made again by `train-heads` and `stack`. The clip's own video, and predictions
    written outside the cache, are the user's to remove.
    """
    names = [dataset] if dataset is not None else sorted({path.name for path in cache.glob("features/*")}
                                                         | {path.name for path in cache.glob("logits/*")})
    holding = [name for name in names if _traces(cache, clip, name)]
    if not holding:
        raise InputError(f"no clip {clip!r} in the cache", where=cache, hint="`fercache info` lists the clips")
    removed: list[Path] = []
    for name in holding:
        removed += _forget_features(cache / "features" / name, clip)
        removed += _forget_learnt(cache, name)
    return ForgetReport(clip=clip, removed=tuple(removed), traces=traces(cache, clip, dataset))


def traces(cache: Path, clip: str, dataset: str | None = None) -> tuple[Path, ...]:
    """Return every place of the cache that still holds or names a clip."""
    names = [dataset] if dataset is not None else sorted({path.name for stage in ("features", *LEARNT)
                                                          for path in cache.glob(f"{stage}/*")})
    return tuple(path for name in names for path in _traces(cache, clip, name))


def _forget_features(folder: Path, clip: str) -> list[Path]:
    """Remove a clip from the stores of a data set and from the list of failures."""
    gone = []
    for path in _stores(folder):
        for trace in _in_store(path, clip):
            gone.append(trace)
        EmbeddingStore.open(path, mode="a").remove(clip)
    failures = folder / "failures.csv"
    if _in_table(failures, clip):
        failures.unlink()
        gone.append(failures)
    return gone


def _forget_learnt(cache: Path, dataset: str) -> list[Path]:
    """Remove what a data set's clips taught."""
    gone = []
    for stage in LEARNT:
        folder = cache / stage / dataset
        if folder.is_dir():
            shutil.rmtree(folder)
            durable.sync(folder.parent)
            gone.append(folder)
    return gone


def _traces(cache: Path, clip: str, dataset: str) -> list[Path]:
    features = cache / "features" / dataset
    found = [trace for path in _stores(features) for trace in _in_store(path, clip)]
    if _in_table(features / "failures.csv", clip):
        found.append(features / "failures.csv")
    for stage in LEARNT:
        found += _named(cache / stage / dataset, clip)
    return found


def _stores(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.zarr") if path.is_dir())


def _in_store(path: Path, clip: str) -> list[Path]:
    """Return the folder, journal and claim of a clip, as far as they are there."""
    folder, work = encode(clip), work_folder(path)
    return [p for p in (path / folder, work / f"{folder}.journal", work / f"{folder}.claim") if p.exists()]


def _in_table(path: Path, clip: str) -> bool:
    """Return whether a CSV table's first column names a clip."""
    if not path.is_file():
        return False
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return any(row and row[0] == clip for row in csv.reader(file))


def _named(folder: Path, clip: str) -> Iterator[Path]:
    """Yield the books and JSON files under a folder that name a clip; what cannot be read may, and counts."""
    for path in sorted(folder.rglob("*")):
        book = path.suffix == ".h5" and clip in (_trials(path) or [clip])
        if book or (path.suffix == ".json" and clip in _texts(_json(path, clip))):
            yield path


def _trials(path: Path) -> tuple[str, ...] | None:
    try:
        return LogitBook.load(path).trials
    except StoreError:
        return None


def _json(path: Path, otherwise: Any) -> Any:
    try:
        return durable.read_json(path)
    except InputError:
        return otherwise


def _texts(value: Any) -> Iterator[str]:
    """Yield every text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
    elif isinstance(value, dict):
        yield from value
        for inner in value.values():
            yield from _texts(inner)
