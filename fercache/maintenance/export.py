"""Export: a store's clips as files that other tools read; clip by clip, segment by segment."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
from numpy.lib import format as npy
from numpy.typing import NDArray
from pyarrow import parquet

from fercache.errors import InputError
from fercache.maintenance.import_formats import CLIP_NAME, NOT_FEATURES, OURS, TAPS
from fercache.runtime import atomic_io
from fercache.runtime.progress import progress_bar
from fercache.store.clip import Clip
from fercache.store.embedding_store import EmbeddingStore
from fercache.store.layout import FRAME_COLUMNS, FRAME_TABLE, SEGMENT, encode_name


def export_store(store: EmbeddingStore, to: str, out: Path, *, clips: Sequence[str] = (),
                 taps: Sequence[str] = ()) -> tuple[int, int]:
    """Write the clips of a store to `out`, a file (h5, parquet) or a folder (npz); return how many clips and frames.

    `to`: one of FORMATS. `clips`, `taps`: which of them; all if none is named. One segment is in memory at a time. A
    file is complete or absent, in a folder too. Raises InputError if `out` exists already, or the store holds no such
    clip or tap; StoreError if a clip is damaged.
    """
    named = sorted(clips) if clips else sorted(store)
    chosen = list(taps) if taps else list(store.taps)
    missing = [clip for clip in named if clip not in store] + [tap for tap in chosen if tap not in store.taps]
    if missing or not named:
        raise InputError(f"does not hold {missing[0]!r}" if missing else "holds no clip", where=store.path,
                         hint=f"it holds {', '.join([*sorted(store)[:3], '...', *store.taps])}")
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise InputError("exists already", where=out, hint="choose another --out, or remove it")
    frames = sum(store[clip].frames for clip in named)
    with progress_bar("export", frames) as bar:
        def opened() -> Iterator[Clip]:
            for name in named:
                bar.note(name)
                yield store[name]
                bar.advance(store[name].frames)
        FORMATS[to](store, opened(), chosen, out)
    return len(named), frames


def _segments(clip: Clip, array: str) -> Iterator[NDArray[Any]]:
    tap = clip[array]  # once: it may read the frame table to interpolate between embedded frames
    for start in range(0, clip.frames, SEGMENT):
        rows = tap.rows(start, min(start + SEGMENT, clip.frames))
        yield rows[:, :len(FRAME_COLUMNS)] if array == FRAME_TABLE else rows


def _shape(clip: Clip, array: str) -> tuple[int, ...]:
    return (clip.frames, len(FRAME_COLUMNS)) if array == FRAME_TABLE else clip[array].shape


def _write_h5(store: EmbeddingStore, clips: Iterator[Clip], taps: list[str], out: Path) -> None:
    # "/" in a name would make groups and a zero byte would end it: names are encoded, and attributes have them plain.
    with atomic_io.replacing(out) as temporary, h5py.File(temporary, "w") as file:
        file.attrs[OURS] = json.dumps({"settings": store.settings, "fingerprint": store.fingerprint})
        for clip in clips:
            group = file.create_group(encode_name(clip.name))
            group.attrs[OURS] = json.dumps({"name": clip.name})
            for array in (FRAME_TABLE, *taps):
                tap = clip[array]
                shape = _shape(clip, array)
                dataset = group.create_dataset(encode_name(array), shape, tap.dtype,
                                               chunks=(min(256, len(tap)), *shape[1:]))
                dataset.attrs[OURS] = json.dumps({"name": array})
                for i, rows in enumerate(_segments(clip, array)):
                    dataset[i * SEGMENT:i * SEGMENT + len(rows)] = rows
            group[FRAME_TABLE].attrs["columns"] = list(FRAME_COLUMNS)


def _write_npz(_: EmbeddingStore, clips: Iterator[Clip], taps: list[str], out: Path) -> None:
    for clip in clips:
        path = out / f"{encode_name(clip.name)}.npz"
        with atomic_io.replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as file:
            for array in (FRAME_TABLE, *taps):
                tap, info = clip[array], zipfile.ZipInfo(encode_name(array) + ".npy")
                info.comment = json.dumps(array).encode()
                # np.savez would need the whole array in memory, so the header is written here, then the segments.
                with file.open(info, "w", force_zip64=True) as member:
                    npy.write_array_header_1_0(member, {"shape": _shape(clip, array), "fortran_order": False,
                                                        "descr": npy.dtype_to_descr(tap.dtype.newbyteorder("<"))})
                    for rows in _segments(clip, array):
                        member.write(np.ascontiguousarray(rows).tobytes())
            file.writestr(zipfile.ZipInfo(CLIP_NAME), json.dumps(clip.name))


def _write_parquet(store: EmbeddingStore, clips: Iterator[Clip], taps: list[str], out: Path) -> None:
    # A tap may have the name of a column of the frame table, such as "score".
    columns = {tap: tap if tap not in NOT_FEATURES else f"{tap}_" for tap in taps}
    sizes = {tap: int(np.prod(store.taps[tap])) for tap in taps}
    record = {"taps": {columns[tap]: {"tap": tap, "shape": list(store.taps[tap])} for tap in taps},
              "settings": store.settings, "fingerprint": store.fingerprint}
    schema = pa.schema([("clip", pa.string()), ("frame", pa.int64()),
                        *((name, pa.float64()) for name in FRAME_COLUMNS[1:]),
                        *((columns[tap], pa.list_(pa.float16(), sizes[tap])) for tap in taps)],
                       metadata={TAPS: json.dumps(record).encode()})
    with atomic_io.replacing(out) as temporary, parquet.ParquetWriter(temporary, schema) as file:
        for clip in clips:
            try:  # names of files may be any bytes, parquet's strings are UTF-8
                clip.name.encode()
            except UnicodeEncodeError as error:
                raise InputError(f"the clip {clip.name!r} has a name that is not text, which parquet cannot hold",
                                 hint="choose --to h5 or npz") from error
            for frames, *arrays in zip(_segments(clip, FRAME_TABLE), *(_segments(clip, tap) for tap in taps),
                                       strict=True):
                file.write_table(pa.table(
                    [pa.array([clip.name] * len(frames)), pa.array(frames[:, 0].astype(np.int64)),
                     *(pa.array(np.ascontiguousarray(frames[:, i])) for i in range(1, len(FRAME_COLUMNS))),
                     *(pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), sizes[tap])
                       for tap, rows in zip(taps, arrays, strict=True))], schema=schema))


FORMATS: dict[str, Callable[[EmbeddingStore, Iterator[Clip], list[str], Path], None]] = {
    "h5": _write_h5, "npz": _write_npz, "parquet": _write_parquet}
"""What can be written, and the function that writes it."""
