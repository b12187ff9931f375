"""Several stores as one, joined by frame number: features from elsewhere are the taps ``NAME/tap``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fercache.config import fingerprint_of
from fercache.errors import InputError, shorten_list
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

    def __init__(self, base: EmbeddingStore, others: dict[str, EmbeddingStore]) -> None:
        self.base, self.others, self.path, self.causal = base, others, base.path, base.causal
        self.sources = {f"{name}{SEPARATOR}{tap}": (name, tap) for name, other in others.items() for tap in other.taps}
        self.taps = base.taps | {tap: others[name].taps[theirs] for tap, (name, theirs) in self.sources.items()}
        self.settings = {**base.settings, JOINED: {name: other.settings for name, other in sorted(others.items())}}

    def __repr__(self) -> str:
        return f"<MultiStoreView {self.path} with {', '.join(self.others)}>"

    def __contains__(self, clip: object) -> bool:
        return clip in self.base

    def __getitem__(self, clip: str) -> MultiStoreClip:
        return MultiStoreClip(self, clip)

    def digest(self) -> str:
        """Return the sha256 (hex) over the digests of all stores."""
        return fingerprint_of([self.base.digest(),
                               [[name, other.digest()] for name, other in sorted(self.others.items())]])

    @property
    def readers(self) -> int:
        """The number of threads that read whole clips fastest."""
        return max(store.readers for store in (self.base, *self.others.values()))


class MultiStoreClip(Clip):
    """One clip of a `MultiStoreView`: that of its first store, which also reads the taps of the others."""

    def __init__(self, view: MultiStoreView, clip: str) -> None:
        super().__init__(view.base.files, view.base.manifest(clip), view.base.causal)
        self.view = view

    def read(self, tap: str, out: NDArray[np.float16] | None = None) -> NDArray[np.float16]:
        """Return a whole tap at the first store's frames, ``(T, ...) float16``; zeros where a sibling lacks one."""
        if tap not in self.view.sources:
            return super().read(tap, out)
        name, theirs = self.view.sources[tap]
        values = np.empty((self.frames, *self.view.taps[tap]), np.float16) if out is None else out
        values[...] = 0
        if self.name in self.view.others[name]:
            other = self.view.others[name][self.name]
            _, here, there = np.intersect1d(self.frame_table["index"], other.frame_table["index"], return_indices=True)
            values[here] = other.read(theirs)[there]
        return values


ReadableStore: TypeAlias = EmbeddingStore | MultiStoreView


def clip_identity(store: ReadableStore, clip: str) -> list[Any]:
    """Return what the digest covers of one clip: of a view, that of the clip in each of its stores."""
    if isinstance(store, EmbeddingStore):
        return store.manifest(clip).identity()
    parts = [("", store.base), *sorted(store.others.items())]
    return [[name, part.manifest(clip).identity()] for name, part in parts if clip in part]


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
    others: dict[str, EmbeddingStore] = {}
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
