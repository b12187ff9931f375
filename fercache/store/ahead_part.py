"""A far store read in a known order: the next clips are on their way while this one is used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from fercache.runtime.uri import Place
from fercache.store.clip import Clip
from fercache.store.layout import CLOCK_NAME

if TYPE_CHECKING:
    from fercache.store.embedding_store import EmbeddingStore


AHEAD_BYTES = 256 << 20
"""Bytes that may be on their way or waiting; one clip may be larger."""
CLIPS = 16
"""Most clips on their way: small ones are all latency."""

Values = dict[str, NDArray[np.float16]]
T = TypeVar("T")


class Line(Generic[T]):
    """What is read of each clip, in order: the next ones are under way."""

    def __init__(self, names: Sequence[str], read: Callable[[str], T], size: Callable[[str], int]) -> None:
        self.order = {name: i for i, name in enumerate(names)}
        self.names, self.read, self.size = list(self.order), read, size
        self.under_way: dict[str, Future[T]] = {}
        self.pool = ThreadPoolExecutor(CLIPS, "fercache-ahead")

    def take(self, clip: str) -> T:
        """Return what is read of a clip; those before it are let go, those after it are sent for."""
        at = self.order[clip]
        for other in [name for name in self.under_way if self.order[name] < at]:
            self.under_way.pop(other).cancel()
        ahead = 0
        for name in self.names[at:at + CLIPS]:
            ahead += self.size(name)
            if name != clip and ahead > AHEAD_BYTES:
                break
            if name not in self.under_way:
                self.under_way[name] = self.pool.submit(self.read, name)
        return self.under_way[clip].result()


class Ahead:
    """The store as `EmbeddingStore` shows it to a reader of whole clips, who takes them in the order of `names`.

    Notes
    -----
    Another order is served too, without reading ahead. Clocks are read apart from the taps: some readers want all of
    them first.
    """

    def __init__(self, store: EmbeddingStore, names: Sequence[str], taps: Sequence[str]) -> None:
        self.store, self.wanted = store, tuple(taps)
        self.path: Place = store.path
        self.settings, self.taps = store.settings, store.taps
        held = list(dict.fromkeys(names))
        self._marks = dict(zip(held, store.files.each(store.mark, held), strict=True))
        self.clocks = Line(held, lambda clip: self._clip(clip).clock, lambda clip: self._bytes(clip, [CLOCK_NAME]))
        self.values = Line(held, self._values, lambda clip: self._bytes(clip, self.wanted))

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

    def _clip(self, clip: str) -> Clip:
        return Clip(self.store.files, self._marks[clip])

    def _values(self, clip: str) -> Values:
        held = self._clip(clip)
        return {tap: held.read(tap) for tap in self.wanted}

    def _bytes(self, clip: str, names: Sequence[str]) -> int:
        arrays = self._marks[clip].arrays
        return sum(arrays[name].grid.row_bytes * arrays[name].shape[0] for name in names)


class AheadClip:
    """One clip of a store that is read ahead: length, clock and whole taps."""

    def __init__(self, ahead: Ahead, name: str, frames: int) -> None:
        self._ahead, self.name, self.frames = ahead, name, frames

    @property
    def clock(self) -> NDArray[np.void]:
        """The clock, ``(T,)`` with named columns."""
        return self._ahead.clocks.take(self.name)

    def read(self, tap: str, out: NDArray[Any] | None = None) -> NDArray[np.float16]:
        """Return the whole of a tap, ``(T, ...) float16``, in `out` if it is given."""
        held = self._ahead.values.take(self.name)
        made = held[tap] if tap in held else self._ahead.store[self.name].read(tap)
        if out is None:
            return made
        out[...] = made
        return out
