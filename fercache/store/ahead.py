"""A far store read in a known order: the next clips are on their way while this one is used."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fercache.place import Place
from fercache.store.clip import Clip
from fercache.store.layout import CLOCK_NAME

if TYPE_CHECKING:
    from fercache.store.core import EmbeddingStore

AHEAD_BYTES = 256 << 20
"""Bytes that may be on their way or waiting; one clip may be larger."""
CLIPS = 16
"""Most clips on their way: small ones are all latency."""

Held = tuple[NDArray[np.void], dict[str, NDArray[np.float16]]]


class Ahead:
    """The store as `EmbeddingStore` shows it to a reader of whole clips, who takes them in the order of `names`.

    Notes
    -----
    Another order is served too, without reading ahead.
    """

    def __init__(self, store: EmbeddingStore, names: Sequence[str], taps: Sequence[str]) -> None:
        self.store, self.wanted = store, tuple(taps)
        self.path: Place = store.path
        self.settings, self.taps = store.settings, store.taps
        self._order = {name: i for i, name in enumerate(names)}
        self._names = list(self._order)
        self._marks = dict(zip(self._names, store.files.each(store.mark, self._names), strict=True))
        self._under_way: dict[str, Future[Held]] = {}
        self._pool = ThreadPoolExecutor(CLIPS, "fercache-ahead")

    def __contains__(self, clip: object) -> bool:
        return clip in self._marks or clip in self.store

    def __getitem__(self, clip: str) -> AheadClip | Clip:
        return AheadClip(self, clip, self._marks[clip].frames) if clip in self._marks else self.store[clip]

    def digest(self) -> str:
        """Return the store's digest."""
        return self.store.digest()

    def ahead(self, names: Sequence[str], taps: Sequence[str]) -> Ahead:
        """Return the store read in another order."""
        return Ahead(self.store, names, taps)

    def take(self, clip: str) -> Held:
        """Return clock and taps of a clip; those before it are let go, those after it are sent for."""
        at = self._order[clip]
        for other in [name for name in self._under_way if self._order[name] < at]:
            self._under_way.pop(other).cancel()
        ahead = 0
        for name in self._names[at:at + CLIPS]:
            ahead += self._bytes(name)
            if name != clip and ahead > AHEAD_BYTES:
                break
            if name not in self._under_way:
                self._under_way[name] = self._pool.submit(self._read, name)
        return self._under_way[clip].result()

    def _bytes(self, clip: str) -> int:
        arrays = self._marks[clip].arrays
        return sum(arrays[tap].grid.row_bytes * arrays[tap].shape[0] for tap in (CLOCK_NAME, *self.wanted))

    def _read(self, clip: str) -> Held:
        held = Clip(self.store.files, self._marks[clip])
        return held.clock, {tap: held.read(tap) for tap in self.wanted}


class AheadClip:
    """One clip of a store that is read ahead: length, clock and whole taps."""

    def __init__(self, ahead: Ahead, name: str, frames: int) -> None:
        self._ahead, self.name, self.frames = ahead, name, frames

    @property
    def clock(self) -> NDArray[np.void]:
        """The clock, ``(T,)`` with named columns."""
        return self._ahead.take(self.name)[0]

    def read(self, tap: str, out: NDArray[Any] | None = None) -> NDArray[np.float16]:
        """Return the whole of a tap, ``(T, ...) float16``, in `out` if it is given."""
        held = self._ahead.take(self.name)[1]
        made = held[tap] if tap in held else self._ahead.store[self.name].read(tap)
        if out is None:
            return made
        out[...] = made
        return out
