"""Forget: remove a clip from every stage of the cache, then search the cache for remaining references to it."""

from __future__ import annotations

import csv
import gzip
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from fercache.data.base import people_of
from fercache.errors import InputError, StoreError
from fercache.oof import OofLogits
from fercache.runtime import atomic_io
from fercache.store.embedding_store import EmbeddingStore, is_root, settings_of_any_version
from fercache.store.layout import META, decode_name, encode_name
from fercache.store.local import TEMPORARY, LocalStoreFiles
from fercache.store.locks import work_folder
from fercache.workspace import CURRENT, FEATURES, HEADS, LOGITS, STACK, Workspace

LEARNT = (LOGITS, HEADS, STACK)


def datasets_of(cache: Path) -> list[str]:
    """Return the names of the data sets that have files in any stage."""
    workspace = Workspace(cache)
    folders = {path.name for stage in workspace.user_folders() for path in (cache / stage).iterdir() if path.is_dir()}
    return sorted(folders | {path.stem for path in workspace.indexes.glob("*.json")
                             if not path.name.startswith(TEMPORARY)})


def index_files(cache: Path, dataset: str) -> list[Path]:
    """Return the index of a data set's clips, and copies of it that a killed `check` left; none where there is none."""
    name = Workspace(cache).index(dataset).name
    return sorted(path for path in Workspace(cache).indexes.glob("*.json")
                  if path.name == name or (path.name.startswith(TEMPORARY) and path.name.endswith(f"-{name}")))


def find_references(cache: Path, clip: str, dataset: str | None = None) -> tuple[Path, ...]:
    """Return every place of the cache that still holds or names a clip.

    Notes
    -----
    Looks at names of files and folders in every stage (features, journals, claims, pictures, models), and into books,
    JSON files and tables. What cannot be read may name it, and counts.
    """
    names = [dataset] if dataset is not None else datasets_of(cache)
    return tuple(sorted({path for name in names for path in _references(cache, clip, name)}))


def in_features(folder: Path, clip: str) -> list[Path]:
    """Return where a data set's features name a clip: its folders, journals, claims, and tables beside the stores."""
    name = encode_name(clip)
    found = [path / name for path in stores_of(folder) if (path / name).exists() or (path / name).is_symlink()]
    for work in {*folder.glob("*.work"), *map(work_folder, stores_of(folder))}:
        found += [p for p in (work / f"{name}.journal", work / f"{name}.claim") if p.exists()]
    return found + [path for path in folder.glob("*") if path.is_file() and path.name != CURRENT
                    and _mentions(path, clip)]


def elsewhere(folder: Path, clip: str) -> list[Path]:
    """Return the files under a folder that a clip's name is in: in their own name, in a folder's, or inside."""
    names = {clip, encode_name(clip)}
    found = []
    for path in sorted(folder.rglob("*")):
        is_named = any(part in names or any(part.startswith(f"{name}.") for name in names)
                   for part in path.relative_to(folder).parts)
        if path.is_file() and (is_named or _mentions(path, clip)):
            found.append(path)
    return found


def people_in(folder: Path, clip: str) -> set[str]:
    """Return the names of the people of a clip, `CLIP#1` and so on, in the stores of a data set."""
    names: set[str] = set()
    for path in stores_of(folder):
        try:
            settings = settings_of_any_version(path)
        except StoreError:
            continue
        ends = r"#\d+" if people_of(settings) == "all" else "_(left|right)"
        if people_of(settings) != "main":
            files = LocalStoreFiles(path)
            held = {decode_name(one) or "" for one in files.folders()}
            if is_root(files.get(META) or b"", path):  # long names are hashed; only manifests spell them out
                held |= {*EmbeddingStore.open(path)}
            names |= {name for name in held if re.fullmatch(re.escape(clip) + ends, name)}
    return names


def stores_of(folder: Path) -> list[Path]:
    """Return the stores of a data set."""
    return sorted(path for path in folder.glob("*.zarr") if path.is_dir())


def _references(cache: Path, clip: str, dataset: str) -> list[Path]:
    found = in_features(Workspace(cache).features(dataset), clip)
    for stage in Workspace(cache).user_folders():
        if stage != FEATURES:
            found += elsewhere(cache / stage / dataset, clip)
    return found + [path for path in index_files(cache, dataset) if _indexes(path, clip)]


def _indexes(path: Path, clip: str) -> bool:
    """Return whether an index holds the path of a file or folder of the clip's name; a torn index may, and counts."""
    try:
        return any(f"/{name}".endswith(f"/{clip}")
                   for text in _texts(atomic_io.read_json(path, limit_bytes=1 << 30))
                   for name in (text, text.removesuffix(PurePath(text).suffix)))
    except (InputError, OSError):
        return True


def _mentions(path: Path, clip: str) -> bool:
    """Return whether a book, a JSON file or a table names a clip; what cannot be read may, and counts."""
    name = path.name.lower()
    try:
        if name.endswith(".h5"):
            return clip in OofLogits.load(path).trials
        if name.endswith(".json"):
            return clip in _texts(atomic_io.read_json(path))
        if name.endswith((".csv", ".csv.gz")):
            return _in_table(path, clip)
    except (StoreError, InputError, csv.Error, EOFError, OSError):
        return True
    return False


def _in_table(path: Path, clip: str) -> bool:
    """Return whether a field of a table, which may be packed, is the clip's name."""
    opened = gzip.open if path.name.endswith(".gz") else open
    with opened(path, "rt", encoding="utf-8", errors="surrogateescape", newline="") as file:
        return any(clip in row for row in csv.reader(file))


def _texts(value: Any) -> Iterator[str]:
    """Yield every text in a JSON value."""
    waiting = [value]
    while waiting:
        held = waiting.pop()
        if isinstance(held, str):
            yield held
        elif isinstance(held, list):
            waiting += held
        elif isinstance(held, dict):
            waiting += [*held.keys(), *held.values()]


# Remove one clip: its features and everything trained on it; then check that no reference is left.

@dataclass(frozen=True, kw_only=True)
class ForgetReport:
    """Result of forgetting a clip.

    Attributes
    ----------
    datasets : data sets that held the clip.
    removed : removed files and folders.
    references : places of the cache that still name the clip; empty on success.
    """

    clip: str
    datasets: tuple[str, ...]
    removed: tuple[Path, ...]
    references: tuple[Path, ...]


def datasets_with_clip(cache: Path, clip: str) -> list[str]:
    """Return the data sets that hold a clip of this name, or people of it."""
    return [name for name in datasets_of(cache)
            if find_references(cache, clip, name) or people_in(Workspace(cache).features(name), clip)]


def forget_clip(cache: Path, clip: str, dataset: str | None = None) -> ForgetReport:
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
    `stack`. Of any other stage (pictures, predictions) goes what names it, and the data set's index of clips goes
    whole. The clip's own video, and what was written outside the cache, are the user's to remove.
    """
    found = [name for name in datasets_with_clip(cache, clip) if dataset in (None, name)]
    if not found:
        raise InputError(f"no clip {clip!r} in the cache", where=cache if dataset is None else f"{cache}, {dataset}",
                         hint="`fercache info --list` lists the clips")
    removed: list[Path] = []
    left: set[Path] = set()
    for name in found:
        for one in (clip, *sorted(people_in(Workspace(cache).features(name), clip))):
            removed += _forget(cache, one, name)
            left |= {*find_references(cache, one, name)}
    return ForgetReport(clip=clip, datasets=tuple(found), removed=tuple(removed),
                        references=tuple(sorted(left | {*find_references(cache, clip, dataset)})))


def _forget(cache: Path, clip: str, name: str) -> list[Path]:
    """Remove a clip from every stage of one data set."""
    removed = _forget_features(Workspace(cache).features(name), clip)
    for stage in LEARNT:
        removed += _forget_learnt(cache / stage / name)
    for stage in set(Workspace(cache).user_folders()) - {FEATURES, *LEARNT}:
        removed += _unlink(elsewhere(cache / stage / name, clip))
    # A table may name a clip unlike its file, so no entry can be picked out; the next `check` makes the index anew.
    return removed + _unlink(index_files(cache, name))


def _forget_features(folder: Path, clip: str) -> list[Path]:
    """Remove a clip from the stores of a data set and from the tables beside them."""
    found = in_features(folder, clip)
    for path in stores_of(folder):
        files = LocalStoreFiles(path)
        if is_root(files.get(META) or b"", path):
            EmbeddingStore.open(path, mode="a").remove(clip)
        else:  # the clip must also leave a store that cannot be opened
            files.remove_tree(encode_name(clip))
    _unlink([path for path in found if path.is_file() or path.is_symlink()])
    return found


def _forget_learnt(folder: Path) -> list[Path]:
    """Remove a stage's results that were trained on the data set."""
    if not folder.is_dir():
        return []
    shutil.rmtree(folder.resolve())
    if folder.is_symlink():
        folder.unlink()
    atomic_io.fsync(folder.parent)
    return [folder]


def _unlink(paths: list[Path]) -> list[Path]:
    for path in paths:
        path.unlink(missing_ok=True)
        if path.parent.is_dir():
            atomic_io.fsync(path.parent)
    return paths
