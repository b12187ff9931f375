"""Forget: remove a clip from every stage of the cache, then search the cache for remaining references to it."""

from __future__ import annotations

import csv
import gzip
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from fercache import run_log
from fercache.data.base import people_of
from fercache.errors import InputError, StoreError
from fercache.oof import OofLogits, open_oof
from fercache.runtime import atomic_io
from fercache.store.embedding_store import INDEX, EmbeddingStore, read_index
from fercache.store.layout import META, decode_name, encode_name
from fercache.store.local import LocalStoreFiles
from fercache.store.locks import work_folder
from fercache.store.manifest import verify_checksum
from fercache.workspace import CURRENT, FEATURES, HEADS, LOGITS, STACK, Workspace

# In the order of removal: logits name the clip, so `forget` still finds it if it was killed before they went.
TRAINED_STAGES = (STACK, HEADS, LOGITS)


def find_references(cache: Path, clip: str, dataset: str | None = None) -> tuple[Path, ...]:
    """Return every path of the cache that still holds or names a clip.

    Compares the names of files and folders in every stage, and searches logits, JSON files and tables. A file that
    cannot be read may name the clip, so it counts.
    """
    found: set[Path] = set()
    for name in [dataset] if dataset is not None else _datasets(cache):
        found.update(_in_features(Workspace(cache).features(name), clip))
        for stage in Workspace(cache).user_folders():
            if stage != FEATURES:
                found.update(_in_stage(cache / stage / name, clip))
        found.update(path for path in _index_files(cache, name) if _indexes(path, clip))
    return tuple(sorted(found))


def _datasets(cache: Path) -> list[str]:
    workspace = Workspace(cache)
    folders = {path.name for stage in workspace.user_folders() for path in (cache / stage).iterdir() if path.is_dir()}
    return sorted(folders | {path.stem for path in workspace.indexes.glob("*.json")
                             if not path.name.startswith(atomic_io.TEMPORARY)})


def _in_features(folder: Path, clip: str) -> list[Path]:
    """Return the paths in a data set's features that name a clip: folders, journals, locks, tables beside stores."""
    name = encode_name(clip)
    # is_symlink finds links whose target is gone: their own name still holds the clip's.
    found = [path / name for path in _stores(folder) if (path / name).exists() or (path / name).is_symlink()]
    # Work folders may outlive their store, and the store of a link works beside the link's target.
    for work in {*folder.glob("*.work"), *map(work_folder, _stores(folder))}:
        found += [path for path in (work / f"{name}.journal", work / f"{name}.claim") if path.exists()]
        found += [path for path in work.glob(f"*{INDEX}") if _mentions(path, clip)]
    return found + [path for path in folder.glob("*") if path.is_file() and path.name != CURRENT
                    and _mentions(path, clip)]


def _in_stage(folder: Path, clip: str) -> list[Path]:
    """Return the files below a folder that name a clip: by their own name, by that of a folder, or in their content."""
    names = {clip, encode_name(clip)}
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and (
        any(part in names or any(part.startswith(f"{name}.") for name in names)
            for part in path.relative_to(folder).parts) or _mentions(path, clip))]


def _index_files(cache: Path, dataset: str) -> list[Path]:
    """Return the index of a data set's clips, and the temporary copies that a killed `check` left."""
    name = Workspace(cache).index(dataset).name
    return sorted(path for path in Workspace(cache).indexes.glob("*.json")
                  if path.name == name
                  or (path.name.startswith(atomic_io.TEMPORARY) and path.name.endswith(f"-{name}")))


def _indexes(path: Path, clip: str) -> bool:
    """Return whether an index holds the path of a file or folder with the clip's name; a damaged index counts."""
    try:
        return any(f"/{name}".endswith(f"/{clip}")
                   for text in _texts(atomic_io.read_json(path, limit_bytes=1 << 30))
                   for name in (text, text.removesuffix(PurePath(text).suffix)))
    except (InputError, OSError):
        return True


def _mentions(path: Path, clip: str) -> bool:
    """Return whether logits, a JSON file or a table name a clip; a file that cannot be read counts."""
    name = path.name.lower()
    try:
        if name.endswith(".h5"):
            return clip in OofLogits.load(path).trials
        if name.endswith(INDEX):
            return encode_name(clip) in read_index(path)
        if name.endswith(".json"):
            return clip in _texts(atomic_io.read_json(path))
        if name.endswith((".csv", ".csv.gz")):
            opened = gzip.open if name.endswith(".gz") else open
            # surrogateescape: a name that is not valid UTF-8 must still compare equal.
            with opened(path, "rt", encoding="utf-8", errors="surrogateescape", newline="") as file:
                return any(clip in row for row in csv.reader(file))
    except (StoreError, InputError, csv.Error, EOFError, OSError):
        return True
    return False


def _texts(value: Any) -> Iterator[str]:
    # A stack of its own: recursion would fail on deeply nested JSON.
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, list):
            waiting += item
        elif isinstance(item, dict):
            waiting += [*item.keys(), *item.values()]


def people_in(folder: Path, clip: str) -> set[str]:
    """Return the names of the people of a clip, such as ``CLIP#1``, in the stores of a data set."""
    names: set[str] = set()
    for path in _stores(folder):
        try:  # of a store of another format too: its people must go as well
            root = verify_checksum(LocalStoreFiles(path).get(META) or b"", path / META, any_version=True)
            people = people_of(dict(root["settings"]))
        except (StoreError, KeyError, TypeError, ValueError):
            continue
        if people != "main":
            stored = {decode_name(name) or "" for name in LocalStoreFiles(path).folders()}
            if (store := EmbeddingStore.open_or_none(path)) is not None:
                stored |= {*store}  # folders of long names are hashes; only manifests hold the name
            pattern = re.escape(clip) + (r"#\d+" if people == "all" else "_(left|right)")
            names |= {name for name in stored if re.fullmatch(pattern, name)}
    return names


def _stores(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.zarr") if path.is_dir())


@dataclass(frozen=True, kw_only=True)
class ForgetReport:
    """Result of forgetting a clip."""

    clip: str
    datasets: tuple[str, ...]  # data sets that held the clip
    removed: tuple[Path, ...]  # removed files and folders
    references: tuple[Path, ...]  # paths of the cache that still name the clip; empty on success


def datasets_with_clip(cache: Path, clip: str) -> list[str]:
    """Return the data sets that hold a clip of this name, or people of it."""
    return [name for name in _datasets(cache)
            if find_references(cache, clip, name) or people_in(Workspace(cache).features(name), clip)]


def forget_clip(cache: Path, clip: str, dataset: str | None = None) -> ForgetReport:
    """Remove a clip from every stage of the cache, and return what was removed and what still names it.

    `dataset`: name of the data set's folder in the cache; every one that holds the clip if it is not given.

    Also removes the clip's people (`CLIP#1` and so on), and all logits, heads and stack runs of each data set that
    holds the clip: they were trained on it, or nothing proves that they were not. Logits that those heads predicted for
    other data sets go too. In other stages, files that name the clip are removed, and the data set's index of clips.
    The clip's own video and files outside the cache stay.

    Raises InputError if the clip is not in the cache; StoreError if a process is writing the clip.
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


def _forget(cache: Path, clip: str, dataset: str) -> list[Path]:
    removed = _forget_features(Workspace(cache).features(dataset), clip)
    # Before the heads go: after a kill in between, the next run must still find what they predicted.
    removed += _unlink(_predicted_by(cache, dataset))
    removed += [folder for stage in TRAINED_STAGES if _remove_folder(folder := cache / stage / dataset)]
    for stage in set(Workspace(cache).user_folders()) - {FEATURES, *TRAINED_STAGES}:
        removed += _unlink(_in_stage(cache / stage / dataset, clip))
    for used in run_log.load_run_log(cache).datasets:
        if used.name == dataset and PurePath(str(used.options.get("clips"))).stem == clip:  # the clip is the data set
            run_log.forget_dataset(cache, dataset)
    # A table may name a clip unlike its file, so no entry can be picked out; the next `check` makes the index again.
    return removed + _unlink(_index_files(cache, dataset))


def _forget_features(folder: Path, clip: str) -> list[Path]:
    """Remove a clip from the stores of a data set, and the tables beside them that name it."""
    found = _in_features(folder, clip)
    for path in _stores(folder):
        if EmbeddingStore.open_or_none(path) is not None:
            EmbeddingStore.open(path, mode="a").remove(clip)
        else:  # the clip must also leave a store that cannot be opened
            LocalStoreFiles(path).remove_tree(encode_name(clip))
    _unlink([path for path in found if path.is_file() or path.is_symlink()])
    return found


def _predicted_by(cache: Path, dataset: str) -> list[Path]:
    """Return the logits of other data sets whose recorded parents are heads of this one."""
    found = []
    for path in sorted(cache.glob(f"{LOGITS}/*/[!.]*.h5")):
        if path.parent.name == dataset:
            continue  # goes with its folder
        try:
            with open_oof(path) as reader:
                if reader.provenance.trained_on == dataset:
                    found.append(path)
        except StoreError:
            continue  # a damaged file of another data set is for `fercache gc` to report
    return found


def _remove_folder(folder: Path) -> bool:
    """Remove a stage's results of a data set; of a link, its target too. Return whether there were any."""
    if not folder.is_dir():
        return False
    shutil.rmtree(folder.resolve())
    if folder.is_symlink():
        folder.unlink()
    atomic_io.fsync(folder.parent)
    return True


def _unlink(paths: Iterable[Path]) -> list[Path]:
    removed = list(paths)
    for path in removed:
        path.unlink(missing_ok=True)
        if path.parent.is_dir():
            atomic_io.fsync(path.parent)
    return removed
