"""fercache: run a face CNN once over every frame, store its features, and train expression models on them all day.

Pipeline
--------
video or folder of crops -> ``media`` (one row per frame) -> ``faces`` (one box per frame) -> ``backbones`` (several
taps in one pass) -> ``store`` (Zarr, one group per clip); ``extraction`` runs all of it
    | files only |
``training`` (``heads`` on stored features, out of fold by group) -> ``oof`` (logits in HDF5)
    | files only |
``stacking`` (LightGBM on out-of-fold logits) -> ``results`` (``preds.csv``)

``inference`` runs new clips through the whole pipeline. ``workspace`` defines every path below ``cache/``.

Axis letters
------------
N clips, T frames of a clip, W window length, D feature size, C classes, B batch, K folds, V views, R rows (frames of
many clips in a row). Names end in units: ``_s`` seconds, ``_px`` pixels; ``fps`` is frames per second. Boxes are
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
