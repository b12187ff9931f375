"""Stores joined on the frame clock: features that were made elsewhere stand beside ours as taps ``NAME/tap``."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fercache.config import fingerprint_of
from fercache.errors import InputError
from fercache.runtime.uri import Location, as_location
from fercache.store.embedding_store import EmbeddingStore
from fercache.store.layout import META
from fercache.store.remote import files_at

log = logging.getLogger(__name__)


BETWEEN = "/"
VIEWS = "_views"


class ReadableClip(Protocol):
    """What a reader of whole clips needs of one."""

    @property
    def frames(self) -> int: ...
    @property
    def frame_table(self) -> NDArray[np.void]: ...
    def read(self, tap: str, out: NDArray[np.float16] | None = None) -> NDArray[np.float16]: ...


class ReadableStore(Protocol):
    """What a reader of whole clips needs of a store: `EmbeddingStore`, `Joined`, `Ahead`."""

    @property
    def path(self) -> Location: ...
    @property
    def settings(self) -> dict[str, Any]: ...
    @property
    def taps(self) -> dict[str, tuple[int, ...]]: ...
    def __contains__(self, clip: object) -> bool: ...
    def __getitem__(self, clip: str) -> ReadableClip: ...
    def digest(self) -> str: ...
    def prefetch(self, names: Sequence[str], taps: Sequence[str]) -> ReadableStore: ...


class MultiStoreView:
    """A store and its siblings as one; its clips and its clock are those of the first.

    Notes
    -----
    Rows are matched by frame number. A frame that a sibling lacks has zeros there, as a frame without a face has, and
    frames past the first store's clock are left out.
    """

    def __init__(self, base: ReadableStore, others: dict[str, ReadableStore]) -> None:
        self.base, self.others = base, others
        self.path = base.path
        self._from = {f"{name}{BETWEEN}{tap}": (name, tap) for name, other in others.items() for tap in other.taps}
        self.taps = base.taps | {tap: others[name].taps[theirs] for tap, (name, theirs) in self._from.items()}
        self.settings = {**base.settings, "joined": {name: other.settings for name, other in sorted(others.items())}}

    def __repr__(self) -> str:
        return f"<Joined {self.path} with {', '.join(self.others)}>"

    def __contains__(self, clip: object) -> bool:
        return clip in self.base

    def __getitem__(self, clip: str) -> MultiStoreClip:
        theirs = {name: other[clip] for name, other in self.others.items() if clip in other}
        return MultiStoreClip(clip, self.base[clip], theirs, self._from, self.taps)

    def digest(self) -> str:
        """Return the sha256 (hex) over what all of them hold."""
        return fingerprint_of([self.base.digest(),
                               [[name, other.digest()] for name, other in sorted(self.others.items())]])

    def prefetch(self, names: Sequence[str], taps: Sequence[str]) -> MultiStoreView:
        """Return the same, read in the order of `names` where the stores are far."""
        own = [tap for tap in taps if tap in self.base.taps]
        read: dict[str, ReadableStore] = {}
        for name, other in self.others.items():
            theirs = [tap for tap in other.taps if f"{name}{BETWEEN}{tap}" in taps]
            read[name] = other.prefetch([clip for clip in names if clip in other], theirs)
        return MultiStoreView(self.base.prefetch(names, own), read)


@dataclass(frozen=True)
class MultiStoreClip:
    """One clip of joined stores."""

    name: str
    base: ReadableClip
    others: dict[str, ReadableClip]
    sources: dict[str, tuple[str, str]]
    taps: dict[str, tuple[int, ...]]

    @property
    def frames(self) -> int:
        """T of the first store."""
        return self.base.frames

    @property
    def frame_table(self) -> NDArray[np.void]:
        """The clock of the first store."""
        return self.base.frame_table

    def read(self, tap: str, out: NDArray[np.float16] | None = None) -> NDArray[np.float16]:
        """Return the whole of a tap on the first store's clock, ``(T, ...) float16``; zeros where it has no frame."""
        if tap not in self.sources:
            return self.base.read(tap, out)
        name, theirs = self.sources[tap]
        made = np.zeros((self.frames, *self.taps[tap]), np.float16) if out is None else out
        made[...] = 0
        if name in self.others:
            other = self.others[name]
            _, here, there = np.intersect1d(self.frame_table["index"], other.frame_table["index"], return_indices=True)
            made[here] = other.read(theirs)[there]
        return made


def join_stores(base: EmbeddingStore, names: Sequence[str], taps: Sequence[str]) -> tuple[ReadableStore,
                                                                                          tuple[str, ...]]:
    """Return `base` joined with the stores of these names, and the taps to read of it.

    Parameters
    ----------
    names : of siblings of the store (the part before the fingerprint, or all of it), or their paths or URLs.
    taps : of the base; of a sibling, ``NAME/tap`` chooses; one of which none is chosen gives all it has.

    Raises
    ------
    InputError
        No such store, or several of that name.
    """
    if base.files.is_remote:
        list(base)  # the marks of all clips, many under way at once: they will be asked for one by one
    if not names:
        return base, tuple(taps)
    others: dict[str, ReadableStore] = {}
    for place in (_sibling(base, name) for name in names):
        other = EmbeddingStore.open(place)
        label = other.path.name.removesuffix(".zarr").rpartition("-")[0] or other.path.name
        if label in others or other.path == base.path:
            raise InputError(f"{label} would be joined twice", where=place, hint="name each store once")
        others[label] = other
        _report_unmatched(base, label, other)
    whole = [f"{label}{BETWEEN}{tap}" for label, other in others.items() for tap in other.taps
             if not any(chosen.startswith(label + BETWEEN) for chosen in taps)
             and tap.removesuffix(VIEWS) not in other.taps.keys() - {tap}]  # views stand beside a tap and are none
    return MultiStoreView(base, others), (*taps, *whole)


def _sibling(base: EmbeddingStore, name: str) -> Location:
    """Return where the store of that name lies."""
    if "/" in name:
        return as_location(name)
    folder = base.path.parent
    held = [found.removesuffix(".zarr") for found in files_at(folder).folders() if found.endswith(".zarr")]
    fits = [found for found in held if name in (found, found.rpartition("-")[0])]
    if len(fits) != 1 or files_at(folder / f"{fits[0]}.zarr").get(META) is None:
        raise InputError(f"{len(fits) or 'no'} stores are called {name!r}", where=folder,
                         hint=f"name one of {', '.join(fits or held)}, or run `fercache import` first")
    return folder / f"{fits[0]}.zarr"


def _report_unmatched(base: EmbeddingStore, label: str, other: EmbeddingStore) -> None:
    """Refuse a store without a clip in common; say what the join leaves without features."""
    ours, theirs = set(base), set(other)
    if not ours & theirs:
        raise InputError("has no clip in common with the store it is joined to", where=other.path,
                         hint=f"names must be equal: {_few(theirs)} there, {_few(ours)} here")
    if ours - theirs:
        log.warning("%s: %d of %d clips are not in it and get zeros: %s", label, len(ours - theirs), len(ours),
                    _few(ours - theirs))
    longer = {clip: n for clip in sorted(ours & theirs)
              if (n := other.manifest(clip).frames - base.manifest(clip).frames) > 0}
    if longer:
        log.warning("%s: %d frames of %d clips lie past the end of the clip and are left out: %s", label,
                    sum(longer.values()), len(longer), _few(longer))


def _few(names: Sequence[str] | set[str] | dict[str, int]) -> str:
    def parts() -> Iterator[str]:
        yield from sorted(names)[:3]
        if len(names) > 3:
            yield "..."
    return ", ".join(parts())
