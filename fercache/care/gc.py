"""What of the cache nobody names any more: listed first, removed when asked to."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fercache import durable
from fercache.errors import StoreError
from fercache.store import EmbeddingStore, Size, claimed, work_folder
from fercache.store.check import unfinished
from fercache.store.files import LocalFiles
from fercache.store.names import decode, encode

STAGES = ("features", "logits", "heads", "stack")
"""Folders of the cache that hold one folder a data set, and in it what a stage made."""
STORE = ".zarr"
KEPT = ("current.json", "failures.csv")
"""Files beside the results that point to them or tell of them."""


@dataclass(frozen=True, kw_only=True)
class Waste:
    """Something that can go.

    Attributes
    ----------
    path : a store, a book, a folder of heads or of a stack run; or the store that holds `folder`.
    folder : of one clip in the store at `path`; empty for all of `path`.
    clip : its name, as far as it is known.
    """

    path: Path
    why: str
    size: Size
    folder: str = ""
    clip: str = ""


def garbage(cache: Path, keep: Iterable[Path], clips: Mapping[Path, Collection[str]]) -> tuple[Waste, ...]:
    """Return what can go, sorted by path; nothing is touched.

    Parameters
    ----------
    keep : stores, books, folders of heads and of stack runs that a recipe names.
    clips : store -> the clips that its data set names; a store that is not in it keeps all its clips.

    Notes
    -----
    What a live process is writing is never in the list.
    """
    kept = {path.resolve() for path in keep} | {path.resolve() for path in clips}
    found = [waste for path in _results(cache) if path.resolve() not in kept and (waste := _whole(path)) is not None]
    for path, named in clips.items():
        found += _clips(path, named)
    return tuple(sorted(found, key=lambda waste: (waste.path, waste.folder)))


def collect(waste: Iterable[Waste]) -> Size:
    """Remove what `garbage` listed; return what that freed."""
    freed = []
    for item in waste:
        if item.folder:
            EmbeddingStore.open(item.path, mode="a").remove_folder(item.folder)
        else:
            _remove(item.path)
        freed.append(item.size)
    return Size(sum(size.bytes for size in freed), sum(size.files for size in freed))


def _results(cache: Path) -> Iterator[Path]:
    """Yield what the stages made."""
    for stage in STAGES:
        for path in sorted(cache.glob(f"{stage}/*/*")):
            if path.name not in KEPT and path.suffix not in (".lock", ".work"):
                yield path


def _whole(path: Path) -> Waste | None:
    if path.suffix == STORE and claimed(path):
        return None
    size = LocalFiles(path).size() if path.is_dir() else Size(path.stat().st_size, 1)
    return Waste(path=path, why="no recipe names it", size=size)


def _clips(path: Path, named: Collection[str]) -> Iterator[Waste]:
    """Yield clips that the data set does not name, and half-done ones that nobody can go on with."""
    store, folders = EmbeddingStore.open(path), {encode(clip) for clip in named}
    live = claimed(path)
    open_ends = unfinished(store)
    for folder in sorted({*store.files.folders(), *open_ends} - live):
        lost = not open_ends.get(folder, True)
        if folder not in folders or lost:
            why = "left half done, and cannot go on" if lost else "not in the data set"
            yield Waste(path=path, folder=folder, clip=decode(folder) or folder, why=why,
                        size=store.files.size(folder))


def _remove(path: Path) -> None:
    """Remove a result; a store's root goes first, so that nobody opens what is half gone."""
    if path.suffix == STORE:
        if claimed(path):
            raise StoreError("is being written by another process", where=path, hint="wait for it to end")
        LocalFiles(path).remove("zarr.json")
        shutil.rmtree(work_folder(path), ignore_errors=True)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    durable.sync(path.parent)
