"""Every place of the cache that still names a clip, found by looking, not by what was removed."""

from __future__ import annotations

import csv
import gzip
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fercache.data.persons_part import people_of
from fercache.errors import InputError, StoreError
from fercache.oof import LogitBook
from fercache.runtime import atomic_io
from fercache.store.embedding_store import EmbeddingStore
from fercache.store.locks import work_folder
from fercache.store.names_part import decode, encode

FEATURES, LEARNT = "features", ("logits", "heads", "stack")
APART = ("weights", "clips")
"""Folders of the cache that hold nothing made from a user's clips: the CNN, and the demo's own videos."""
POINTER = "current.json"


def datasets_of(cache: Path) -> list[str]:
    """Return the names of the data sets that any stage keeps something of."""
    return sorted({path.name for stage in stages_of(cache) for path in (cache / stage).iterdir() if path.is_dir()})


def stages_of(cache: Path) -> list[str]:
    """Return the folders of the cache that may hold what was made from clips."""
    return sorted(path.name for path in cache.glob("*") if path.is_dir() and path.name not in APART)


def traces(cache: Path, clip: str, dataset: str | None = None) -> tuple[Path, ...]:
    """Return every place of the cache that still holds or names a clip.

    Notes
    -----
    Looks at names of files and folders in every stage (features, journals, claims, pictures, models), and into books,
    JSON files and tables. What cannot be read may name it, and counts.
    """
    names = [dataset] if dataset is not None else datasets_of(cache)
    return tuple(sorted({path for name in names for path in _traces(cache, clip, name)}))


def in_features(folder: Path, clip: str) -> list[Path]:
    """Return where a data set's features name a clip: its folders, journals, claims, and tables beside the stores."""
    name = encode(clip)
    found = [path / name for path in stores_of(folder) if (path / name).exists() or (path / name).is_symlink()]
    for work in {*folder.glob("*.work"), *map(work_folder, stores_of(folder))}:
        found += [p for p in (work / f"{name}.journal", work / f"{name}.claim") if p.exists()]
    return found + [path for path in folder.glob("*") if path.is_file() and path.name != POINTER and _says(path, clip)]


def elsewhere(folder: Path, clip: str) -> list[Path]:
    """Return the files under a folder that a clip's name is in: in their own name, in a folder's, or inside."""
    names = {clip, encode(clip)}
    found = []
    for path in sorted(folder.rglob("*")):
        said = any(part in names or any(part.startswith(f"{name}.") for name in names)
                   for part in path.relative_to(folder).parts)
        if path.is_file() and (said or _says(path, clip)):
            found.append(path)
    return found


def people_in(folder: Path, clip: str) -> set[str]:
    """Return the names of the people of a clip, `CLIP#1` and so on, in the stores of a data set."""
    names: set[str] = set()
    for path in stores_of(folder):
        try:
            store = EmbeddingStore.open(path)
        except StoreError:
            continue
        ends = r"#\d+" if people_of(store.settings) == "all" else "_(left|right)"
        if people_of(store.settings) != "main":
            held = {*store, *(decode(one) or "" for one in store.files.folders())}
            names |= {name for name in held if re.fullmatch(re.escape(clip) + ends, name)}
    return names


def stores_of(folder: Path) -> list[Path]:
    """Return the stores of a data set."""
    return sorted(path for path in folder.glob("*.zarr") if path.is_dir())


def _traces(cache: Path, clip: str, dataset: str) -> list[Path]:
    found = in_features(cache / FEATURES / dataset, clip)
    for stage in stages_of(cache):
        if stage != FEATURES:
            found += elsewhere(cache / stage / dataset, clip)
    return found


def _says(path: Path, clip: str) -> bool:
    """Return whether a book, a JSON file or a table names a clip; what cannot be read may, and counts."""
    name = path.name.lower()
    try:
        if name.endswith(".h5"):
            return clip in LogitBook.load(path).trials
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
