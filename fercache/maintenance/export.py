"""Export: a store's clips as files that other tools read; clip by clip, segment by segment."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from fercache.errors import InputError
from fercache.maintenance.import_formats import CLIP_NAME, CLIPS, NOT_FEATURES, OURS, TAPS, need_pyarrow
from fercache.runtime import atomic_io
from fercache.runtime.progress import progress_bar
from fercache.store.clip import Clip
from fercache.store.embedding_store import EmbeddingStore
from fercache.store.layout import FRAME_COLUMNS, FRAME_TABLE, SEGMENT, encode_name


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What `export` wrote."""

    out: Path
    clips: int
    frames: int


def export_store(store: EmbeddingStore, to: str, out: Path, *, clips: Sequence[str] = (),
           taps: Sequence[str] = ()) -> ExportReport:
    """Return what was written: the clips of a store at `out`, a file (h5, parquet) or a folder (npz, npy).

    Parameters
    ----------
    to : one of FORMATS.
    clips, taps : which of them; all if none is named.

    Raises
    ------
    InputError
        Something is there already, or the store holds no such clip or tap.
    StoreError
        A clip is damaged.

    Notes
    -----
    Holds one segment in memory. A file is whole or absent; of a folder each file is, and its list of clips comes last.
    """
    named = sorted(clips) if clips else sorted(store)
    chosen = list(taps) if taps else list(store.taps)
    missing = [clip for clip in named if clip not in store] + [tap for tap in chosen if tap not in store.taps]
    if missing or not named:
        raise InputError(f"does not hold {missing[0]!r}" if missing else "holds no clip", where=store.path,
                         hint=f"it holds {', '.join([*sorted(store)[:3], '...', *store.taps])}")
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise InputError("is there already", where=out, hint="choose another --out, or remove it")
    with progress_bar("export", sum(store[clip].frames for clip in named)) as bar:
        def each() -> Iterator[Clip]:
            for name in named:
                bar.note(name)
                yield store[name]
                bar.advance(store[name].frames)
        FORMATS[to](store, each(), chosen, out)
    return ExportReport(out=out, clips=len(named), frames=sum(store[clip].frames for clip in named))


def _blocks(clip: Clip, array: str) -> Iterator[NDArray[Any]]:
    """Yield an array in segments."""
    for start in range(0, clip.frames, SEGMENT):
        yield clip[array].rows(start, min(start + SEGMENT, clip.frames))


def _h5(store: EmbeddingStore, clips: Iterator[Clip], taps: list[str], out: Path) -> None:
    import h5py

    with atomic_io.replacing(out) as temporary, h5py.File(temporary, "w") as file:
        file.attrs[OURS] = json.dumps({"settings": store.settings, "fingerprint": store.fingerprint})
        for clip in clips:
            group = file.create_group(encode_name(clip.name))
            group.attrs[OURS] = json.dumps({"name": clip.name})
            for array in (FRAME_TABLE, *taps):
                tap = clip[array]
                made = group.create_dataset(encode_name(array), tap.shape, tap.dtype, chunks=(min(256, len(tap)),
                                                                                         *tap.shape[1:]))
                made.attrs[OURS] = json.dumps({"name": array})
                for i, block in enumerate(_blocks(clip, array)):
                    made[i * SEGMENT:i * SEGMENT + len(block)] = block
            group[FRAME_TABLE].attrs["columns"] = list(FRAME_COLUMNS)


def _npz(_: EmbeddingStore, clips: Iterator[Clip], taps: list[str], out: Path) -> None:
    for clip in clips:
        with atomic_io.replacing(out / f"{encode_name(clip.name)}.npz") as temporary, zipfile.ZipFile(temporary,
                                                                                                 "w") as file:
            for array in (FRAME_TABLE, *taps):
                info = zipfile.ZipInfo(encode_name(array) + ".npy")
                info.comment = json.dumps(array).encode()
                with file.open(info, "w", force_zip64=True) as member:
                    _write_npy(member, clip, array)
            file.writestr(zipfile.ZipInfo(CLIP_NAME + ".json"), json.dumps(clip.name))


def _npy(_: EmbeddingStore, clips: Iterator[Clip], taps: list[str], out: Path) -> None:
    record = {}
    for clip in clips:
        arrays = {array: encode_name(array) + ".npy" for array in (FRAME_TABLE, *taps)}
        for array, name in arrays.items():
            with atomic_io.replacing(out / encode_name(clip.name) / name) as temporary, temporary.open("wb") as file:
                _write_npy(file, clip, array)
        record[encode_name(clip.name)] = {"clip": clip.name, "arrays": arrays}
    atomic_io.write_json(out / CLIPS, {"clips": record})


def _write_npy(file: Any, clip: Clip, array: str) -> None:
    tap = clip[array]
    npy.write_array_header_1_0(file, {"shape": tap.shape, "fortran_order": False,
                                      "descr": npy.dtype_to_descr(tap.dtype.newbyteorder("<"))})
    for block in _blocks(clip, array):
        file.write(np.ascontiguousarray(block).tobytes())


def _parquet(store: EmbeddingStore, clips: Iterator[Clip], taps: list[str], out: Path) -> None:
    pa = need_pyarrow()
    import pyarrow.parquet as pq

    columns = {tap: tap if tap not in NOT_FEATURES else f"{tap}_" for tap in taps}
    sizes = {tap: int(np.prod(store.taps[tap])) for tap in taps}
    record = {"taps": {columns[tap]: {"tap": tap, "shape": list(store.taps[tap])} for tap in taps},
            "settings": store.settings, "fingerprint": store.fingerprint}
    schema = pa.schema([("clip", pa.string()), ("frame", pa.int64()),
                        *((name, pa.float64()) for name in FRAME_COLUMNS[1:]),
                        *((columns[tap], pa.list_(pa.float16(), sizes[tap])) for tap in taps)],
                       metadata={TAPS: json.dumps(record).encode()})
    with atomic_io.replacing(out) as temporary, pq.ParquetWriter(temporary, schema) as file:
        for clip in clips:
            _check_name(clip.name)
            for clock, *blocks in zip(_blocks(clip, FRAME_TABLE), *(_blocks(clip, tap) for tap in taps), strict=True):
                file.write_table(pa.table(
                    [pa.array([clip.name] * len(clock)), pa.array(clock[:, 0].astype(np.int64)),
                     *(pa.array(np.ascontiguousarray(clock[:, i])) for i in range(1, len(FRAME_COLUMNS))),
                     *(pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), sizes[tap])
                       for tap, block in zip(taps, blocks, strict=True))], schema=schema))


def _check_name(name: str) -> None:
    """Refuse a name that a table cannot hold."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the clip {name!r} has a name that is no text, and a table cannot hold it",
                         hint="choose --to h5, npz or npy") from error


FORMATS: dict[str, Callable[[EmbeddingStore, Iterator[Clip], list[str], Path], None]] = {
    "h5": _h5, "npz": _npz, "parquet": _parquet, "npy": _npy}
"""What can be written, and who writes it."""
