"""Files that are complete or absent: a temporary sibling, synced and renamed. No other module replaces a file."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from fercache.errors import InputError

KILL_AT = os.environ.get("FERCACHE_KILL_AT", "")
"""``NAME:COUNT``: where `durable_step` kills this process; set by tests of crash safety, otherwise empty."""
TEMPORARY = ".tmp-"  # prefix of the name of a temporary sibling
_steps: Counter[str] = Counter()
SUFFIX_BYTES = 100  # bytes of a name's end that its temporary sibling keeps; file systems allow 255 bytes, not letters
RecordType = TypeVar("RecordType", bound=msgspec.Struct)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; on a clean exit it becomes `path`, otherwise it is removed.

    Raises InputError if the folder cannot be created or written.
    """
    # After a crash at any moment `path` holds its old bytes or its new ones. The sibling keeps `path`'s suffixes, so
    # that writers which choose a format by the ending work on it.
    temporary = _make_sibling(path, lambda sibling: sibling.touch(exist_ok=False))
    mode = temporary.stat().st_mode
    try:
        yield temporary
        temporary.chmod(mode)  # safetensors replaces the file with one that only its owner may read
        # Before the rename: otherwise a power loss may leave the new name with no content.
        fsync(temporary)
        durable_step("replace.written")
        temporary.replace(path)
        durable_step("replace.named")
        fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def making_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary sibling of `path`; on a clean exit it becomes the folder `path`, else it is removed.

    Raises InputError if `path` exists and is not an empty folder, or nothing can be written beside it.
    """
    # After a crash at any moment the folder `path` is absent or complete. A folder with content cannot be replaced in
    # one step, so it is refused.
    if path.exists() and not (path.is_dir() and next(path.iterdir(), None) is None):
        raise InputError("this already exists", where=path, hint="remove it, or choose another folder with --out")
    temporary = _make_sibling(path, Path.mkdir)
    try:
        yield temporary
        fsync_all(temporary.iterdir())
        temporary.replace(path)
        fsync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _make_sibling(path: Path, make: Callable[[Path], None]) -> Path:
    """Return a new temporary sibling of `path`, a file or a folder that `make` creates."""
    # `tempfile` would let only the owner read it, also after the rename: these get the modes of any new file.
    make_folder(path.parent)
    # Without a UTF-8 character that the limit would split.
    ending = os.fsdecode(os.fsencode(path.name)[-SUFFIX_BYTES:].lstrip(bytes(range(0x80, 0xC0))))
    sibling = path.parent / f"{TEMPORARY}{uuid.uuid4().hex[:12]}-{ending}"
    try:
        make(sibling)
    except OSError as error:
        raise not_writable(path.parent, error) from error
    return sibling


def remove_temporary(folder: Path, name: str = "*") -> None:
    """Remove the temporary siblings of `name` (a pattern) that killed writers left in a folder."""
    # The caller must hold a lock that excludes other writers of these files.
    for left in folder.glob(f"{TEMPORARY}*-{name}"):
        left.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, completely or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write a record or a JSON value to `path` as JSON, completely or not at all."""
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Return a record or a JSON value as JSON with sorted keys."""
    if isinstance(value, msgspec.Struct):
        value = msgspec.to_builtins(value)
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def read_json(path: Path, limit_bytes: int = 64 << 20) -> Any:
    """Return the JSON value at `path`. Raises InputError if the file is larger than `limit_bytes` or is not JSON."""
    if path.stat().st_size > limit_bytes:
        raise InputError(f"larger than {limit_bytes} bytes", where=path, hint="fercache did not write this file")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"not readable as JSON ({error})", where=path, hint="remove it and run again") from error


def read_record(path: Path, kind: type[RecordType], limit_bytes: int = 64 << 20) -> RecordType:
    """Return the record that the JSON file at `path` holds.

    Raises InputError if the file is larger than `limit_bytes`, is not JSON, or holds something else.
    """
    return convert_record(read_json(path, limit_bytes), kind, path)


def convert_record(value: Any, kind: type[RecordType], where: object) -> RecordType:
    """Return the record that a JSON value, read from `where`, describes; raise InputError for anything else."""
    try:
        return msgspec.convert(value, kind)
    # A ValidationError, or a UnicodeEncodeError for a lone surrogate: both are ValueErrors.
    except ValueError as error:
        raise InputError(f"damaged, or written by another version of fercache ({error})", where=where,
                         hint="remove it and run again") from error


def make_folder(path: Path) -> None:
    """Create the folder `path` and its parents.

    Raises InputError if that is not permitted, or a file is in the way.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_writable(path, error) from error


def not_writable(path: Path, error: OSError) -> InputError:
    """Return the error for a path that cannot be written."""
    return InputError(f"cannot write here ({error.strerror})", where=path,
                      hint="check the path and its permissions, or choose another folder with --cache or --out")


def file_sha256(path: Path) -> str:
    """Return the sha256 (hex) of every byte of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync(path: Path) -> None:
    """Return when the file or folder at `path` has reached the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_all(paths: Iterable[Path]) -> None:
    """Return when every file of `paths`, and every folder that holds one, has reached the disk."""
    files = list(paths)
    for path in [*files, *sorted({path.parent for path in files})]:
        fsync(path)


@contextmanager
def lock(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Yield True while this process alone holds the lock `path`; False at once if another one does, unless `wait`."""
    # A BSD lock: the kernel releases it when its holder dies, so no lock outlives a killed writer. This holds on one
    # machine, and on network file systems that support such locks (NFS version 4).
    make_folder(path.parent)
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def durable_step(name: str) -> None:
    """Mark a point between two durable writes, where tests of crash safety can kill the process (see KILL_AT)."""
    if KILL_AT:
        _steps[name] += 1
        if f"{name}:{_steps[name]}" == KILL_AT:
            os.kill(os.getpid(), signal.SIGKILL)
