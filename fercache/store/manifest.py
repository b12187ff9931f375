"""The metadata that fercache writes into a store: JSON records with a checksum, which readers verify."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, TypeVar

import msgspec

from fercache.config import fingerprint_of
from fercache.errors import InputError, StoreError
from fercache.store.layout import DTYPES, FRAME_TABLE, FRAME_WIDTHS, VERSION, Grid, group_document, is_sparse

ATTRIBUTE = "fercache"  # the attribute of a Zarr group that holds the record
MAX_METADATA_BYTES = 64 << 20  # larger metadata files are not read
REBUILD_HINT = "run `fercache extract` with the same settings: it writes the root anew and keeps the clips"
RECOMPUTE_HINT = "run `fercache verify --repair`, then `fercache extract`"
EXTRACT_AGAIN_HINT = "run `fercache extract` again: it computes the clips anew, since no format is converted"

RecordType = TypeVar("RecordType", bound=msgspec.Struct)


class ArrayManifest(msgspec.Struct, frozen=True):
    """One array of a clip: shape, type, and the sha256 of each chunk's file; `digest` covers all of them."""

    shape: tuple[int, ...]
    dtype: str
    digest: str
    chunks: tuple[str, ...]

    @property
    def grid(self) -> Grid:
        """The chunks of the array."""
        return Grid(self.shape, self.dtype)


def array_manifest(grid: Grid, chunks: Iterable[str]) -> ArrayManifest:
    """Return the manifest of an array whose chunks have these digests."""
    digests = tuple(chunks)
    return ArrayManifest(grid.shape, grid.dtype, fingerprint_of([list(grid.shape), grid.dtype, list(digests)]), digests)


class ClipManifest(msgspec.Struct, frozen=True, kw_only=True):
    """The record of a committed clip."""

    clip: str  # name, which a hashed folder name does not spell out
    fingerprint: str  # of the store that the clip was computed for
    frames: int  # T
    arrays: dict[str, ArrayManifest]  # the frame table and every tap
    source: dict[str, Any]  # size, digest and so on, which identify the source file
    provenance: dict[str, Any]  # device, versions, threads: what float noise depends on
    version: int = VERSION

    def document(self) -> bytes:
        """Return the `zarr.json` of the clip's group."""
        return with_checksum(self)

    def identity(self) -> list[Any]:
        """Return what the store's digest covers: not the source, not the provenance."""
        return [self.clip, self.frames, sorted((name, array.digest) for name, array in self.arrays.items())]


class StoreRoot(msgspec.Struct, frozen=True, kw_only=True):
    """The record of a store."""

    settings: dict[str, Any]  # everything that changes numbers; `fingerprint` is its digest
    fingerprint: str
    taps: dict[str, tuple[int, ...]]  # tap -> shape of one frame
    version: int = VERSION

    def __post_init__(self) -> None:
        if not self.taps:
            raise InputError("a store needs at least one tap", hint="name one with --taps")
        for name, shape in self.taps.items():
            if name == FRAME_TABLE or not shape or min(shape) < 1:
                raise InputError(f"tap {name!r} of shape {shape} cannot be stored",
                                 hint=f"shapes are positive, and {FRAME_TABLE!r} is the name of the frame table")

    def document(self) -> bytes:
        """Return the `zarr.json` of the store's group."""
        return with_checksum(self)

    @classmethod
    def read(cls, data: bytes, where: object) -> StoreRoot:
        """Return the record in the `zarr.json` of a store's group."""
        try:
            return read_record(data, where, cls)
        except StoreError as error:
            # A store of another format keeps its hint: none of its clips can be kept.
            hint = error.hint if error.hint == EXTRACT_AGAIN_HINT else REBUILD_HINT
            raise StoreError(error.what, where=where, hint=hint) from error


def read_manifest(data: bytes, where: object) -> ClipManifest:
    """Return the manifest in a clip's `zarr.json`."""
    manifest = read_record(data, where, ClipManifest)
    try:
        table = manifest.arrays[FRAME_TABLE].shape
        if table[0] != manifest.frames or table[1] not in FRAME_WIDTHS:
            raise ValueError(table)
        rows = manifest.frames if not is_sparse(table[1]) else max(
            array.shape[0] for name, array in manifest.arrays.items() if name != FRAME_TABLE)
        for name, array in manifest.arrays.items():
            # Chunks are read from files, so a manifest whose numbers disagree would surface as wrong features.
            if (min(array.shape) < 1 or array.dtype not in DTYPES or len(array.chunks) != array.grid.count
                    or array_manifest(array.grid, array.chunks) != array or rows > manifest.frames
                    or (name != FRAME_TABLE and array.shape[0] != rows)):
                raise ValueError(array.shape)
    # OverflowError: a shape may hold an integer of any size.
    except (KeyError, ValueError, OverflowError) as error:
        raise damaged("the clip's manifest was not written by fercache", where) from error
    return manifest


def with_checksum(record: msgspec.Struct | dict[str, Any]) -> bytes:
    """Return a group's `zarr.json` with `record`, and the digest of `record`, among its attributes."""
    body = msgspec.to_builtins(record)
    return group_document({ATTRIBUTE: {**body, "seal": fingerprint_of(body)}})


def verify_checksum(data: bytes, where: object, *, any_version: bool = False) -> dict[str, Any]:
    """Return the JSON object that `with_checksum` wrote.

    `any_version`: accept a store of another format version too; only its settings are safe to use. Raises StoreError if
    a byte of it changed, fercache did not write it, or its format has another version.
    """
    try:
        body: dict[str, Any] = dict(parse_json(data)["attributes"][ATTRIBUTE])
        intact = body.pop("seal") == fingerprint_of(body)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise damaged("fercache did not write this metadata", where) from error
    if not intact:
        raise damaged("the metadata was altered", where)
    # After the checksum: a flipped bit in the version is damage, not an older store.
    if body.get("version") != VERSION and not any_version:
        raise StoreError(f"has store format {body.get('version')!r}, and this fercache reads format {VERSION}",
                         where=where, hint=EXTRACT_AGAIN_HINT)
    return body


def read_record(data: bytes, where: object, kind: type[RecordType]) -> RecordType:
    """Return the record that `with_checksum` wrote."""
    try:
        return msgspec.convert(verify_checksum(data, where), kind)
    # A ValidationError, or a UnicodeEncodeError where a lone surrogate is in the wrong place: both are ValueErrors.
    except ValueError as error:
        reason = str(error).encode(errors="backslashreplace").decode()
        raise damaged(f"the metadata was not written by fercache ({reason})", where) from error


def damaged(what: str, where: object) -> StoreError:
    """Return the error of a damaged clip, with the command that computes it again."""
    return StoreError(what, where=where, hint=RECOMPUTE_HINT)


def parse_json(data: bytes) -> Any:
    """Return a JSON value; raise ValueError or RecursionError if `data` is not JSON or too large."""
    # The standard library parses, since clip names may hold lone surrogates (bytes of a file name that are not UTF-8),
    # which `msgspec.json` refuses.
    if len(data) > MAX_METADATA_BYTES:
        raise ValueError(f"larger than {MAX_METADATA_BYTES} bytes")
    return json.loads(data)


def normalize_json(value: dict[str, Any], name: str) -> dict[str, Any]:
    """Return `value` as it will be read back from JSON (tuples become lists)."""
    try:
        normalized: dict[str, Any] = json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} cannot be written as JSON ({error})",
                         hint="use numbers, text, lists and dictionaries") from error
    return normalized


def same_source(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Return whether two digests of a source agree in all keys that both have, except time stamp and inode."""
    # A copy of a file has another time stamp and inode, and must not be computed again.
    shared = (first.keys() & second.keys()) - {"mtime_ns", "inode"}
    return first == second or (bool(shared) and all(first[key] == second[key] for key in shared))
