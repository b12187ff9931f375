"""The store in RAM, read once, and the windows over it that the heads are trained on."""

from __future__ import annotations

from fercache.windows.batches import Batch, Windows, cover
from fercache.windows.features import Features
from fercache.windows.reading import Held, Store, free_memory, preload, standardise_clip

__all__ = ["Batch", "Features", "Held", "Store", "Windows", "cover", "free_memory", "preload", "standardise_clip"]
