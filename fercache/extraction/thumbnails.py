"""Thumbnails of faces, written on request only: one file per clip, about one face per second."""

from __future__ import annotations

import io
import logging
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fercache import media
from fercache.data.base import Trial
from fercache.errors import ClipError
from fercache.faces.crops import crop_face
from fercache.runtime import atomic_io
from fercache.store.clip import Clip
from fercache.store.embedding_store import EmbeddingStore
from fercache.store.layout import FRAME_TABLE, encode_name
from fercache.workspace import Workspace

log = logging.getLogger(__name__)


PX = 64
EVERY_S = 1.0
MAX_FACES = 600
"""Faces per clip; in a longer clip they are further apart."""
QUALITY = 75


@dataclass(frozen=True, kw_only=True)
class Thumbnails:
    """The thumbnails of one clip.

    Attributes
    ----------
    row : (K,) rows of the frame table, from 0; time_s : (K,).
    jpeg : K pictures of PX x PX, as JPEG files.
    """

    row: NDArray[np.int64]
    time_s: NDArray[np.float64]
    jpeg: tuple[bytes, ...]


def thumbnails_path(cache: Path, store: EmbeddingStore, clip: str) -> Path:
    """Return the file of the thumbnails of one clip."""
    return Workspace(cache).thumbnails(store.path) / f"{encode_name(clip)}.npz"


def write_thumbnails(trials: Sequence[Trial], store: EmbeddingStore, cache: Path) -> int:
    """Write thumbnails of every stored clip that has none yet; return the number of clips written.

    Notes
    -----
    Frames are decoded again and cropped by the stored boxes: no CNN or detector runs, and no feature changes. A clip
    whose source is missing is skipped with a warning.
    """
    written = 0
    for trial in trials:
        if trial.name not in store or read_thumbnails(cache, store, trial.name) is not None:
            continue
        try:
            _write(thumbnails_path(cache, store, trial.name), store[trial.name], _faces(trial, store[trial.name]))
            written += 1
        except ClipError as error:
            log.warning("%s: no thumbnails (%s)", trial.name, error.what)
    return written


def read_thumbnails(cache: Path, store: EmbeddingStore, clip: str) -> Thumbnails | None:
    """Return a clip's thumbnails, or None if there are none or the boxes have changed since."""
    path = thumbnails_path(cache, store, clip)
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            parts = {name: file[name] for name in ("of", "row", "time_s", "ends", "jpeg")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if str(parts["of"]) != store.manifest(clip).arrays[FRAME_TABLE].digest:
        return None
    data, ends = parts["jpeg"].tobytes(), parts["ends"].tolist()
    return Thumbnails(row=parts["row"], time_s=parts["time_s"],
                  jpeg=tuple(data[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)) if ends else ())


def any_stored(cache: Path, store: EmbeddingStore) -> bool:
    """Return whether any clip of a store has thumbnails."""
    return any(Workspace(cache).thumbnails(store.path).glob("*.npz"))


def _faces(trial: Trial, clip: Clip) -> Thumbnails:
    """Return a clip's faces, about one every EVERY_S seconds.

    Raises
    ------
    ClipError
        The source cannot be read.
    """
    table = clip.frame_table
    rows = _rows(table["time_s"], table["valid"] > 0)
    boxes = np.column_stack([table[side] for side in ("x1", "y1", "x2", "y2")])
    frames = media.open_source(trial.path, trial.kind, damaged="keep").pick(rows.tolist())
    faces = [(f.index - 1, _jpeg(crop_face(f.image, boxes[f.index - 1], PX))) for f in frames if f.image is not None]
    row = np.array([row for row, _ in faces], np.int64)
    return Thumbnails(row=row, time_s=table["time_s"][row], jpeg=tuple(picture for _, picture in faces))


def _rows(time_s: NDArray[np.float64], seen: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the first row with a face of every EVERY_S seconds (more in a very long clip)."""
    rows = np.flatnonzero(seen)
    if not len(rows):
        return rows
    step_s = max(EVERY_S, float(time_s[-1]) / MAX_FACES)
    return np.asarray(rows[np.unique((time_s[rows] / step_s).astype(np.int64), return_index=True)[1]])


def _jpeg(face: NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(face).save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def _write(path: Path, clip: Clip, faces: Thumbnails) -> None:
    ends = np.cumsum([len(picture) for picture in faces.jpeg], dtype=np.int64)
    with atomic_io.replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, of=np.array(clip.manifest.arrays[FRAME_TABLE].digest), row=faces.row, time_s=faces.time_s,
                 ends=ends,
                 jpeg=np.frombuffer(b"".join(faces.jpeg), np.uint8))
