"""Thumbnails of faces, written on request only: one file per clip, about one face per second."""

from __future__ import annotations

import io
import logging
import zipfile
from collections.abc import Iterator, Sequence
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
# Faces per clip; in a longer clip they are further apart.
MAX_FACES = 600
QUALITY = 75


@dataclass(frozen=True, kw_only=True)
class Thumbnails:
    """The thumbnails of one clip."""

    row: NDArray[np.int64]  # (K,) rows of the frame table, from 0
    time_s: NDArray[np.float64]  # (K,)
    jpeg: tuple[bytes, ...]  # K pictures of PX x PX, as JPEG files


def thumbnails_path(cache: Path, store: EmbeddingStore, clip: str) -> Path:
    """Return the file of the thumbnails of one clip."""
    return Workspace(cache).thumbnails(store.path) / f"{encode_name(clip)}.npz"


def write_thumbnails(trials: Sequence[Trial], store: EmbeddingStore, cache: Path) -> int:
    """Write thumbnails of every stored clip that has none yet; return the number of clips written."""
    # Frames are decoded again and cropped by the stored boxes, without CNN and detector. A clip whose source is missing
    # is skipped with a warning.
    written = 0
    for trial in trials:
        if trial.name not in store or read_thumbnails(cache, store, trial.name) is not None:
            continue
        try:
            faces = _faces(trial, store[trial.name])
            ends = np.cumsum([len(picture) for picture in faces.jpeg], dtype=np.int64)
            with (atomic_io.replacing(thumbnails_path(cache, store, trial.name)) as temporary,
                  temporary.open("wb") as file):
                np.savez(file, of=np.array(_boxes_digest(store, trial.name)), row=faces.row, time_s=faces.time_s,
                         ends=ends, jpeg=np.frombuffer(b"".join(faces.jpeg), np.uint8))
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
        return None  # a torn file counts as missing, so that it is written again
    if str(parts["of"]) != _boxes_digest(store, clip):
        return None
    data, ends = parts["jpeg"].tobytes(), parts["ends"].tolist()
    return Thumbnails(row=parts["row"], time_s=parts["time_s"],
                  jpeg=tuple(data[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)) if ends else ())


def any_stored(cache: Path, store: EmbeddingStore) -> bool:
    """Return whether any clip of a store has thumbnails."""
    return any(Workspace(cache).thumbnails(store.path).glob("*.npz"))


def _boxes_digest(store: EmbeddingStore, clip: str) -> str:
    return store.manifest(clip).arrays[FRAME_TABLE].digest


def stored_faces(trial: Trial, clip: Clip, rows: NDArray[np.int64], px: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield row and face, ``(px, px, 3)``, of these rows; raise ClipError if the source cannot be read."""
    boxes = np.column_stack([clip.frame_table[side] for side in ("x1", "y1", "x2", "y2")])
    for frame in media.open_source(trial.path, trial.kind, damaged="keep").pick(rows.tolist()):
        if frame.image is not None:
            yield frame.index - 1, crop_face(frame.image, boxes[frame.index - 1], px)


def _faces(trial: Trial, clip: Clip) -> Thumbnails:
    """Return the first face of every EVERY_S seconds of a clip; in a very long clip they are further apart."""
    table = clip.frame_table
    time_s, rows = table["time_s"], np.flatnonzero(table["valid"] > 0)
    if len(rows):
        step_s = max(EVERY_S, float(time_s[-1]) / MAX_FACES)
        rows = rows[np.unique((time_s[rows] / step_s).astype(np.int64), return_index=True)[1]]
    faces: list[tuple[int, bytes]] = []
    for index, face in stored_faces(trial, clip, rows, PX):
        out = io.BytesIO()
        Image.fromarray(face).save(out, "JPEG", quality=QUALITY)
        faces.append((index, out.getvalue()))
    row = np.array([row for row, _ in faces], np.int64)
    return Thumbnails(row=row, time_s=time_s[row], jpeg=tuple(picture for _, picture in faces))
