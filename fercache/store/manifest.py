"""The commit mark of a clip and the root of a store: JSON that carries its own digest and is distrusted when read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from fercache.config import fingerprint_of
from fercache.errors import InputError, StoreError
from fercache.store.layout import DTYPES, FRAME_COLUMNS, FRAME_TABLE, VERSION, Grid, group_document

OURS = "fercache"
"""The attribute of a Zarr group that holds what is said here."""
LARGEST = 64 << 20
"""Bytes of the largest metadata file that is read."""
RECOMPUTE_HINT = "run `fercache verify --repair`, then `fercache extract`"
EXTRACT_AGAIN_HINT = "run `fercache extract` again: it computes the clips anew, since no format is converted"


@dataclass(frozen=True)
class ArrayManifest:
    """One array of a clip: what it is and the sha256 of each chunk's file; `digest` covers all of that."""

    shape: tuple[int, ...]
    dtype: str
    digest: str
    chunks: tuple[str, ...]

    @property
    def grid(self) -> Grid:
        """How the array lies in files."""
        return Grid(self.shape, self.dtype)


def array_manifest(grid: Grid, chunks: Iterable[str]) -> ArrayManifest:
    """Return the mark of an array whose chunks have these digests."""
    held = tuple(chunks)
    return ArrayManifest(grid.shape, grid.dtype, fingerprint_of([list(grid.shape), grid.dtype, list(held)]), held)


@dataclass(frozen=True, kw_only=True)
class ClipManifest:
    """What a committed clip is.

    Attributes
    ----------
    clip : its name, also where the folder's name is a hash.
    fingerprint : of the store it was made for.
    frames : T.
    arrays : the clock and every tap.
    source : what told the source from others (size, hash).
    provenance : device, versions, threads: what float noise depends on.
    """

    clip: str
    fingerprint: str
    frames: int
    arrays: dict[str, ArrayManifest]
    source: dict[str, Any]
    provenance: dict[str, Any]

    def document(self) -> bytes:
        """Return the `zarr.json` of the clip's group."""
        return with_checksum({**asdict(self), "version": VERSION})

    def identity(self) -> list[Any]:
        """Return what the store's digest covers: not the source, not the provenance."""
        return [self.clip, self.frames, sorted((name, array.digest) for name, array in self.arrays.items())]


def read_manifest(data: bytes, where: object) -> ClipManifest:
    """Return the mark that a clip's `zarr.json` holds.

    Raises
    ------
    StoreError
        It is not what `Mark.document` wrote.
    """
    body = verify_checksum(data, where)
    try:
        arrays = {name: _read_array(value) for name, value in body["arrays"].items()}
        mark = ClipManifest(clip=body["clip"], fingerprint=body["fingerprint"], frames=body["frames"], arrays=arrays,
                    source=body["source"], provenance=body["provenance"])
        _check(mark)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise damaged("the commit mark is not one of fercache's", where) from error
    return mark


def _read_array(value: dict[str, Any]) -> ArrayManifest:
    grid = Grid(tuple(int(n) for n in value["shape"]), value["dtype"])
    made = array_manifest(grid, value["chunks"])
    if min(grid.shape) < 1 or grid.dtype not in DTYPES or len(made.chunks) != grid.count:
        raise ValueError(value["shape"])
    if made.digest != value["digest"] or not all(isinstance(chunk, str) for chunk in made.chunks):
        raise ValueError(value["digest"])
    return made


def _check(mark: ClipManifest) -> None:
    kinds = (mark.clip, str), (mark.fingerprint, str), (mark.source, dict), (mark.provenance, dict)
    if not all(isinstance(value, kind) for value, kind in kinds):
        raise TypeError(mark.clip)
    if mark.arrays[FRAME_TABLE].shape != (mark.frames, len(FRAME_COLUMNS)):
        raise ValueError(mark.frames)
    if any(array.shape[0] != mark.frames for array in mark.arrays.values()):
        raise ValueError(mark.frames)


def with_checksum(body: dict[str, Any]) -> bytes:
    """Return a group's `zarr.json` with `body` and the digest of `body` among its attributes."""
    return group_document({OURS: {**body, "seal": fingerprint_of(body)}})


def verify_checksum(data: bytes, where: object, *, any_version: bool = False) -> dict[str, Any]:
    """Return the body that `with_checksum` wrote.

    Parameters
    ----------
    any_version : accept a store of another format version too; only its settings are safe to use.

    Raises
    ------
    StoreError
        A byte of it has changed, it is something else, or its format has another version.
    """
    try:
        body: dict[str, Any] = dict(parse(data)["attributes"][OURS])
        whole = body.pop("seal") == fingerprint_of(body)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise damaged("is no metadata of fercache's", where) from error
    if not whole:
        raise damaged("metadata was altered", where)
    # After the checksum: a flipped bit in the version is damage, not an older store.
    if body.get("version") != VERSION and not any_version:
        raise StoreError(f"has store format {body.get('version')!r}, and this fercache reads format {VERSION}",
                         where=where, hint=EXTRACT_AGAIN_HINT)
    return body


def damaged(what: str, where: object) -> StoreError:
    """Return the error that says how to mend a clip."""
    return StoreError(what, where=where, hint=RECOMPUTE_HINT)


def parse(data: bytes) -> Any:
    """Return a JSON value; ValueError or RecursionError where it is none (or larger than LARGEST)."""
    if len(data) > LARGEST:
        raise ValueError(f"larger than {LARGEST} bytes")
    return json.loads(data)


def plain(value: dict[str, Any], what: str) -> dict[str, Any]:
    """Return `value` as JSON gives it back (tuples become lists).

    Raises
    ------
    InputError
        It is not JSON.
    """
    try:
        made: dict[str, Any] = json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(f"{what} is no JSON value ({error})",
                         hint="give numbers, text, lists and dictionaries") from error
    return made


def same_source(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether two digests of a source agree in what both say, time stamp and inode apart (a copy's differ)."""
    both = (one.keys() & other.keys()) - {"mtime_ns", "inode"}
    return one == other or (bool(both) and all(one[key] == other[key] for key in both))
