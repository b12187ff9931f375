"""HDF5: what `export` wrote, ``file[trial]['00001'] -> vector``, ``file[trial] -> (T, D)``; no link is followed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from fercache.errors import ClipError, InputError
from fercache.maintenance.arrays_part import FRAME_KEYS, UNREADABLE, telling
from fercache.maintenance.import_formats import FEATURES, WIDEST, Entry, Incoming, ascending, numbers_of
from fercache.store.layout import CLOCK_NAME

OURS = "fercache"
"""The attribute that holds names as JSON: HDF5's own texts end at a zero byte."""
DEEPEST = 8


def entries(path: Path) -> Iterator[Entry]:
    """Yield the clips of a file.

    Raises
    ------
    InputError
        It is no HDF5 file, or is cut off.
    """
    try:
        with h5py.File(path, "r") as file:
            found = list(_find(file, "", 0, set()))
    except UNREADABLE as error:
        raise InputError(f"is no readable HDF5 file ({str(error)[:200]})", where=path,
                         hint="the file is cut off, damaged, or of another kind") from error
    for key, name in found:
        @contextmanager
        def opened(key: str = key, name: str = name) -> Iterator[Incoming]:
            with telling(path), h5py.File(path, "r") as file:
                yield _clip(file[key], name)
        yield Entry(name, opened)


def _find(group: Any, key: str, depth: int, seen: set[Any]) -> Iterator[tuple[str, str]]:
    """Yield key and name of each clip: a group of datasets, or a dataset on its own with more than one axis."""
    address = h5py.h5o.get_info(group.id).addr
    if depth > DEEPEST or address in seen:
        return
    seen.add(address)
    held = dict(_hard(group))
    datasets = [name for name, item in held.items() if isinstance(item, h5py.Dataset)]
    if datasets and key:
        yield key, _name(group, key)
        return
    for name, item in held.items():
        inner = f"{key}/{name}" if key else name
        if isinstance(item, h5py.Dataset):
            yield inner, _name(item, inner)
        elif isinstance(item, h5py.Group):
            yield from _find(item, inner, depth + 1, seen)


def _hard(group: Any) -> Iterator[tuple[str, Any]]:
    """Yield what lies in a group itself; links into other places and other files are left out."""
    for name in group:
        if isinstance(group.get(name, getlink=True), h5py.HardLink):
            yield name, group[name]


def _name(item: Any, key: str) -> str:
    said = item.attrs.get(OURS)
    if isinstance(said, str):
        try:
            name = json.loads(said)["name"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return key
        return name if isinstance(name, str) else key
    return key


def _clip(item: Any, name: str) -> Incoming:
    if isinstance(item, h5py.Dataset):
        return _of_arrays({FEATURES: _safe(item, name)}, name)
    held = {key: _safe(one, name) for key, one in _hard(item) if isinstance(one, h5py.Dataset)}
    if OURS not in item.attrs and any(key.partition(".")[0].isdigit() for key in held):
        return _of_frames(held, name)
    return _of_arrays({_name(one, key): one for key, one in held.items()}, name)


def _safe(dataset: Any, name: str) -> Any:
    """Return a dataset whose numbers lie in this file.

    Raises
    ------
    ClipError
        They lie elsewhere, or are no numbers.
    """
    if dataset.external is not None or dataset.is_virtual:
        raise ClipError(f"{dataset.name!r} refers to another file, and is not read", where=name,
                        hint="copy the numbers into this file")
    if dataset.dtype.kind not in "fiu":
        raise ClipError(f"{dataset.name!r} holds {dataset.dtype}, not numbers", where=name,
                        hint="save arrays of numbers; Python objects are never loaded")
    if dataset.size and not dataset.id.get_storage_size():
        raise ClipError(f"{dataset.name!r} of shape {dataset.shape} was declared and never written", where=name)
    return dataset


def _of_frames(held: dict[str, Any], name: str) -> Incoming:
    """Return the clip of one dataset a frame."""
    frames, keys = numbers_of(list(held), name)
    shape = held[keys[0]].shape or (1,)
    for key in keys:
        if (held[key].shape or (1,)) != shape:
            raise ClipError(f"frame {key} has shape {held[key].shape}, frame {keys[0]} has {shape}", where=name)

    def read(_: str, start: int, stop: int) -> NDArray[Any]:
        return np.stack([np.reshape(held[key][()], shape) for key in keys[start:stop]])
    return Incoming(frames=frames, taps={FEATURES: shape}, read=read)


def _of_arrays(held: dict[str, Any], name: str) -> Incoming:
    """Return the clip of one dataset a tap, ``(T, ...)``."""
    clock = held.pop(CLOCK_NAME, None)
    frames = None
    for key in FRAME_KEYS if clock is None else ():
        if key in held and len(held) > 1:
            frames = ascending(np.asarray(_few(held.pop(key), name)), name)
            break
    lengths = {one.shape[:1] for one in held.values()}
    if len(lengths) != 1 or not next(iter(lengths)) or (frames is not None and lengths != {(len(frames),)}):
        raise ClipError(f"its arrays have {sorted(lengths)} rows", where=name, hint="one row a frame in each of them")
    count = lengths.pop()[0]
    frames = np.arange(1, count + 1, dtype=np.int64) if frames is None else frames

    def read(tap: str, start: int, stop: int) -> NDArray[Any]:
        return np.asarray(held[tap][start:stop]).reshape(stop - start, *(held[tap].shape[1:] or (1,)))
    return Incoming(frames=frames, taps={tap: one.shape[1:] or (1,) for tap, one in held.items()}, read=read,
                    clock=None if clock is None else np.asarray(_few(clock, name), np.float64))


def _few(dataset: Any, name: str) -> Any:
    if dataset.size > WIDEST * 256:
        raise ClipError(f"{dataset.name!r} of shape {dataset.shape} is too large for a clock", where=name)
    return dataset[()]
