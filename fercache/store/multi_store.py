"""Several stores as one, joined by frame number: features from elsewhere are the taps ``NAME/tap``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fercache.config import fingerprint_of
from fercache.data.base import shorten_list
from fercache.errors import InputError
from fercache.runtime.uri import Location, as_location
from fercache.store.clip import Clip
from fercache.store.embedding_store import EmbeddingStore
from fercache.store.layout import META
from fercache.store.remote import files_at

log = logging.getLogger(__name__)

SEPARATOR = "/"
VIEWS_SUFFIX = "_views"
IMPORTED = "imported"  # key in the settings of a store that `fercache import` made
JOINED = "joined"  # key in the settings of a `MultiStoreView`: label of a joined store -> its settings


class MultiStoreView:
    """A store and its siblings as one store, with the clips and the frame tables of the first."""
    # Rows are matched by frame number. A frame that a sibling lacks gets zeros, like a frame without a face. Frames
    # that the first store lacks are left out.

    def __init__(self, base: ReadableStore, others: dict[str, ReadableStore]) -> None:
        self.base, self.others = base, others
        self.path: Location = base.path
        self.causal = isinstance(base, EmbeddingStore) and base.causal
        self._sources = {f"{name}{SEPARATOR}{tap}": (name, tap) for name, other in others.items() for tap in other.taps}
        joined = {tap: others[name].taps[theirs] for tap, (name, theirs) in self._sources.items()}
        self.taps: dict[str, tuple[int, ...]] = base.taps | joined
        self.settings: dict[str, Any] = {
            **base.settings, JOINED: {name: other.settings for name, other in sorted(others.items())}}

    def __repr__(self) -> str:
        return f"<MultiStoreView {self.path} with {', '.join(self.others)}>"

    def __contains__(self, clip: object) -> bool:
        return clip in self.base

    def __getitem__(self, clip: str) -> MultiStoreClip:
        theirs = {name: other[clip] for name, other in self.others.items() if clip in other}
        return MultiStoreClip(clip, self.base[clip], theirs, self._sources, self.taps)

    def digest(self) -> str:
        """Return the sha256 (hex) over the digests of all stores."""
        return fingerprint_of([self.base.digest(),
                               [[name, other.digest()] for name, other in sorted(self.others.items())]])

    @property
    def readers(self) -> int:
        """The number of threads that read whole clips fastest."""
        return max(store.readers for store in (self.base, *self.others.values()))


@dataclass(frozen=True)
class MultiStoreClip:
    """One clip of a `MultiStoreView`."""

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
        """The frame table of the first store."""
        return self.base.frame_table

    def read(self, tap: str, out: NDArray[np.float16] | None = None) -> NDArray[np.float16]:
        """Return a whole tap at the first store's frames, ``(T, ...) float16``; zeros where a sibling lacks one."""
        if tap not in self.sources:
            return self.base.read(tap, out)
        name, theirs = self.sources[tap]
        values = np.empty((self.frames, *self.taps[tap]), np.float16) if out is None else out
        values[...] = 0
        if name in self.others:
            other = self.others[name]
            _, here, there = np.intersect1d(self.frame_table["index"], other.frame_table["index"], return_indices=True)
            values[here] = other.read(theirs)[there]
        return values


ReadableStore: TypeAlias = EmbeddingStore | MultiStoreView
ReadableClip: TypeAlias = Clip | MultiStoreClip


def clip_identity(store: EmbeddingStore | MultiStoreView, clip: str) -> list[Any]:
    """Return what the digest covers of one clip: of a view, that of the clip in each of its stores."""
    if isinstance(store, EmbeddingStore):
        return store.manifest(clip).identity()
    parts = [("", store.base), *sorted(store.others.items())]
    return [[name, clip_identity(part, clip)] for name, part in parts
            if isinstance(part, EmbeddingStore | MultiStoreView) and clip in part]


def siblings(base: Location, causal: bool = False) -> list[EmbeddingStore]:
    """Return the stores beside the one at `base` that can be read, itself excluded."""
    places = [base.parent / entry for entry in files_at(base.parent).folders() if entry.endswith(".zarr")]
    stores = [EmbeddingStore.open_or_none(place, causal=causal) for place in places if place != base]
    return [store for store in stores if store is not None]  # a killed `extract` leaves a folder without a root


def join_stores(base: EmbeddingStore, names: Sequence[str], taps: Sequence[str]) -> tuple[ReadableStore,
                                                                                          tuple[str, ...]]:
    """Return `base` joined with the stores of these names, and the taps to read of it.

    Raises InputError if there is no such store, or several have that name.

    Parameters
    ----------
    names : of siblings of the store (the part before the fingerprint, or all of it), or their paths or URLs.
    taps : of the base; ``NAME/tap`` selects taps of a sibling, and a sibling without a selected tap contributes all.
    """
    if base.files.is_remote:
        # Reads all manifests in parallel into the cache of `base`; later calls ask for them one by one.
        list(base)
    if not names:
        return base, tuple(taps)
    others: dict[str, ReadableStore] = {}
    for place in (_sibling(base, name) for name in names):
        other = EmbeddingStore.open(place)
        stem = other.path.name.removesuffix(".zarr")
        label = stem.rpartition("-")[0] or other.path.name
        if label in others:  # another recipe of the same net
            label = stem
        if any(other.path == one.path for one in (base, *others.values())):
            raise InputError(f"{label} is joined twice", where=place, hint="name each store once")
        others[label] = other
        _report_unmatched(base, label, other)
    whole = [f"{label}{SEPARATOR}{tap}" for label, other in others.items() for tap in other.taps
             if not any(chosen.startswith(label + SEPARATOR) for chosen in taps)
             and tap.removesuffix(VIEWS_SUFFIX) not in other.taps.keys() - {tap}]  # views come with their tap
    return MultiStoreView(base, others), (*taps, *whole)


def _sibling(base: EmbeddingStore, name: str) -> Location:
    """Return the path of the store with that name, beside `base`."""
    if "/" in name:
        return as_location(name)
    folder = base.path.parent
    stores = [entry.removesuffix(".zarr") for entry in files_at(folder).folders() if entry.endswith(".zarr")]
    matches = [store for store in stores if name in (store, store.rpartition("-")[0])]
    if len(matches) != 1 or files_at(folder / f"{matches[0]}.zarr").get(META) is None:
        raise InputError(f"{len(matches) or 'no'} stores are called {name!r}", where=folder,
                         hint=f"name one of {', '.join(matches or stores)}, or run `fercache import` first")
    return folder / f"{matches[0]}.zarr"


def _report_unmatched(base: EmbeddingStore, label: str, other: EmbeddingStore) -> None:
    """Refuse a store without a clip in common; warn about clips and frames without features."""
    ours, theirs = set(base), set(other)
    if not ours & theirs:
        raise InputError("has no clip in common with the store it is joined to", where=other.path,
                         hint=f"clip names must be equal: it has {shorten_list(sorted(theirs), 3)}, the other store "
                              f"{shorten_list(sorted(ours), 3)}")
    if ours - theirs:
        log.warning("%s lacks %d of %d clips, which get zeros: %s", label, len(ours - theirs), len(ours),
                    shorten_list(sorted(ours - theirs), 3))
    longer = {clip: n for clip in sorted(ours & theirs)
              if (n := other.manifest(clip).frames - base.manifest(clip).frames) > 0}
    if longer:
        log.warning("%s: %d frames of %d clips are past the end of the clip and left out: %s", label,
                    sum(longer.values()), len(longer), shorten_list(sorted(longer), 3))
