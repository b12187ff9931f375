"""fercache: run a face CNN once over every frame, keep what it saw, train expression models on it all day.

The walk
--------
video or folder of crops -> ``media`` (frames on a clock) -> ``faces`` / ``people`` (one box a frame) ->
``backbones`` (several taps in one pass) -> ``store`` (Zarr, one group a clip)
    | files only |
``windows`` (the store in RAM, once) -> ``heads`` -> ``train_heads`` (out of fold by group) -> ``logits`` (HDF5)
    | files only |
``stack`` (LightGBM on out-of-fold logits) -> ``preds.csv``

Axis letters, everywhere
------------------------
N clips, T frames of a clip, W window length, D feature size, C classes, B batch, K folds, V views, R rows (frames of
many clips in a row). Units stand in names: ``_s`` seconds, ``_px`` pixels, ``fps`` frames a second. Boxes are
``x1, y1, x2, y2`` in pixels of the upright decoded frame. Pictures are ``(H, W, 3) uint8`` RGB. Frames count from 1,
times from 0. A label of -1 means "not annotated".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fercache.store.embedding_store import EmbeddingStore

__version__ = "0.1.0"
__all__ = ["__version__", "open_store"]


def open_store(path: str, **options: Any) -> EmbeddingStore:
    """Return the embedding store at `path`, read-only: ``open_store(p)["clip"]["block8"][10:74]`` is NumPy."""
    from fercache.store.embedding_store import EmbeddingStore

    return EmbeddingStore.open(path, **options)
