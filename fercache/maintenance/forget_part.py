"""Forget one clip: its features, and all that was learnt from it; then look whether a trace is left."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from fercache.errors import InputError
from fercache.maintenance.forget import (
    FEATURES,
    LEARNT,
    datasets_of,
    elsewhere,
    in_features,
    people_in,
    stages_of,
    stores_of,
    traces,
)
from fercache.runtime import atomic_io
from fercache.store.embedding_store import EmbeddingStore
from fercache.store.layout import META
from fercache.store.local import LocalFiles
from fercache.store.names_part import encode
from fercache.store.root_part import is_root


@dataclass(frozen=True, kw_only=True)
class ForgetReport:
    """What became of a clip.

    Attributes
    ----------
    datasets : those that held it.
    removed : what was taken away.
    traces : where the cache still names it: empty, or the proof failed.
    """

    clip: str
    datasets: tuple[str, ...]
    removed: tuple[Path, ...]
    traces: tuple[Path, ...]


def holding(cache: Path, clip: str) -> list[str]:
    """Return the data sets that hold a clip of this name, or people of it."""
    return [name for name in datasets_of(cache)
            if traces(cache, clip, name) or people_in(cache / FEATURES / name, clip)]


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
    A clip's people (`CLIP#1` and so on) go with it. Books of logits, heads and stack runs of a data set that holds the
    clip were learnt with it (or cannot be shown not to have been): they go too and are made again by `train-heads` and
    `stack`. Of any other stage (pictures,
    predictions) goes what names it. The clip's own video, and what was written outside the cache, are the user's to
    remove.
    """
    found = [name for name in holding(cache, clip) if dataset in (None, name)]
    if not found:
        raise InputError(f"no clip {clip!r} in the cache", where=cache if dataset is None else f"{cache}, {dataset}",
                         hint="`fercache info --list` lists the clips")
    removed: list[Path] = []
    left: set[Path] = set()
    for name in found:
        for one in (clip, *sorted(people_in(cache / FEATURES / name, clip))):
            removed += _forget(cache, one, name)
            left |= {*traces(cache, one, name)}
    return ForgetReport(clip=clip, datasets=tuple(found), removed=tuple(removed),
                        traces=tuple(sorted(left | {*traces(cache, clip, dataset)})))


def _forget(cache: Path, clip: str, name: str) -> list[Path]:
    """Remove a clip from every stage of one data set."""
    removed = _forget_features(cache / FEATURES / name, clip)
    for stage in LEARNT:
        removed += _forget_learnt(cache / stage / name)
    for stage in set(stages_of(cache)) - {FEATURES, *LEARNT}:
        removed += _unlink(elsewhere(cache / stage / name, clip))
    return removed


def _forget_features(folder: Path, clip: str) -> list[Path]:
    """Remove a clip from the stores of a data set and from the tables beside them."""
    found = in_features(folder, clip)
    for path in stores_of(folder):
        files = LocalFiles(path)
        if is_root(files.get(META) or b"", path):
            EmbeddingStore.open(path, mode="a").remove(clip)
        else:  # a store that cannot be opened keeps no secret either
            files.remove_tree(encode(clip))
    _unlink([path for path in found if path.is_file() or path.is_symlink()])
    return found


def _forget_learnt(folder: Path) -> list[Path]:
    """Remove what a data set's clips taught."""
    if not folder.is_dir():
        return []
    shutil.rmtree(folder.resolve())
    if folder.is_symlink():
        folder.unlink()
    atomic_io.sync(folder.parent)
    return [folder]


def _unlink(paths: list[Path]) -> list[Path]:
    for path in paths:
        path.unlink(missing_ok=True)
        if path.parent.is_dir():
            atomic_io.sync(path.parent)
    return paths
