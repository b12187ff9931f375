"""Locks of clips: one process at a time writes a clip, on one machine by file locks, across machines by leases.

The lock of a dead process is free at once, since the kernel drops it. The lease of a dead machine is free after
LEASE_TTL_S without a heartbeat.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import msgspec

from fercache.errors import ClipError, StoreError
from fercache.runtime import atomic_io
from fercache.runtime.uri import Location, Url
from fercache.store.manifest import parse_json
from fercache.store.remote import RemoteStoreFiles, StoreFiles

log = logging.getLogger(__name__)

LOCK_SUFFIX = ".claim"
OWNER_FILE = "owner"
HEARTBEAT_S = 30.0  # seconds between two heartbeats of a lease
LEASE_TTL_S = 600.0
"""Seconds without a heartbeat after which a machine counts as dead. Clocks of machines must agree far better."""
MAX_TRIES = 4  # how often a machine tries again when another one wrote its lease at the same moment


# Processes of one machine: file locks.


@contextmanager
def lock_gate(work: Path) -> Iterator[None]:
    """Hold the gate of a store's work folder: no other process takes or drops a clip's lock meanwhile."""
    with atomic_io.lock(work / "gate.lock", wait=True):
        yield


@contextmanager
def lock_clip(work: Path, folder: str) -> Iterator[bool]:
    """Yield True while this process alone may change the clip in `folder`; False at once if another one may."""
    path = work / (folder + LOCK_SUFFIX)
    with ExitStack() as stack:
        # The lock's file is locked and removed behind the gate only. Otherwise one process could lock a file that was
        # just removed, while another one creates and locks its successor: both would hold the clip.
        with lock_gate(work):
            mine = stack.enter_context(atomic_io.lock(path))
        atomic_io.durable_step("claim.taken")
        try:
            yield mine
        finally:
            if mine:
                with lock_gate(work), suppress(OSError):  # a file that stays behind is not locked, so the clip is free
                    path.unlink(missing_ok=True)
                    stack.close()


def live_locks(work: Path) -> set[str]:
    """Return the folders of the clips that living processes of this machine have locked."""
    folders = set()
    for path in work.glob("*" + LOCK_SUFFIX):
        with lock_gate(work):
            if path.exists():
                with atomic_io.lock(path) as free:
                    if not free:
                        folders.add(path.name.removesuffix(LOCK_SUFFIX))
    return folders


# Machines that share a remote store: leases, an object each, written again at every heartbeat.


class LeaseRecord(msgspec.Struct, frozen=True):
    """A lease's content: the machine (see `owner_id`), and its last heartbeat in seconds since 1970."""

    owner: str
    time_s: float
    version: int = 1

    def is_alive(self) -> bool:
        """Return whether the last heartbeat is recent."""
        return abs(time.time() - self.time_s) < LEASE_TTL_S


class RemoteLease:
    """This machine's lease on one clip: an object of its own, written again every HEARTBEAT_S by a thread."""

    def __init__(self, claims: RemoteStoreFiles, folder: str, owner: str) -> None:
        self.claims, self.folder, self.owner = claims, folder, owner
        self.key = f"{folder}/{uuid.uuid4().hex}.claim"
        self._beat_s, self._lost = _boottime_s(), False
        self._dropped = threading.Event()
        self._thread = threading.Thread(target=self._send_heartbeats, daemon=True)

    def take(self) -> bool:
        """Return whether the clip is this machine's now."""
        # Each machine writes its own lease first and lists the leases afterwards; a machine that sees no other one
        # alive has the clip. Of two that both wrote, the one that lists later sees the other's lease. So this needs a
        # listing that is never stale (S3, GCS and MinIO promise that), and no conditional write.
        for _ in range(MAX_TRIES):
            if self._others_alive():
                return False
            self._write()
            if not self._others_alive():
                self._thread.start()
                return True
            # Each saw the other: both step back, and a random pause makes another collision unlikely.
            self.claims.remove(self.key)
            time.sleep(random.uniform(0.05, 0.5))
        return False

    def _others_alive(self) -> bool:
        for name in self.claims.sizes(self.folder):
            key = f"{self.folder}/{name}"
            if key == self.key:
                continue
            record = _read_lease(self.claims, key)
            # A lease of this machine is of a dead process: the file lock, which this process holds, excludes others.
            if record is not None and record.owner != self.owner and record.is_alive():
                return True
            self.claims.remove(key)
        return False

    def _write(self) -> None:
        record = LeaseRecord(self.owner, time.time())
        self.claims.replace(self.key, json.dumps(msgspec.to_builtins(record)).encode())
        self._beat_s = _boottime_s()

    def _send_heartbeats(self) -> None:
        while not self._dropped.wait(HEARTBEAT_S):
            try:
                # Never revive a lease that expired or is gone: another machine may have the clip by now.
                if self._expired() or self.claims.stat(self.key) is None:
                    self._lost = True
                    return
                self._write()
            except StoreError as error:  # the next heartbeat may succeed; `check` compares the time of the last one
                log.debug("%s", error)

    def check(self) -> None:
        """Refuse to write where the clip may be another machine's by now.

        Raises ClipError if another machine took the lease over, or this one sent no heartbeat for too long.
        """
        if self._lost or self._expired():
            raise ClipError("another machine may have taken this clip over, since this one sent no heartbeat for "
                            f"{LEASE_TTL_S:.0f} s", where=self.claims.root / self.folder,
                            hint="run again; nothing in the store is lost")

    def _expired(self) -> bool:
        return _boottime_s() - self._beat_s > LEASE_TTL_S

    def drop(self) -> None:
        """Release the clip."""
        self._dropped.set()
        self._thread.join()
        try:
            self.claims.remove(self.key)
        except StoreError as error:  # the lease expires after LEASE_TTL_S anyway
            log.debug("%s", error)


@contextmanager
def remote_lease(files: RemoteStoreFiles, claims: RemoteStoreFiles, work: Path, folder: str) -> Iterator[bool]:
    """Yield True while this machine alone may change the clip in `folder`; False at once if another one may."""
    # The processes of this machine have excluded each other before, by the locks in `work`.
    lease = RemoteLease(claims, folder, owner_id(work))
    if not lease.take():
        yield False
        return
    files.guards[folder] = lease.check
    atomic_io.durable_step("lease.taken")
    try:
        yield True
    finally:
        files.guards.pop(folder, None)
        lease.drop()


def live_leases(claims: RemoteStoreFiles, work: Path) -> set[str]:
    """Return the folders of the clips that other living machines have leases on."""
    # The leases of this machine are left out: its file locks are more exact.
    owner = owner_id(work) if (work / OWNER_FILE).is_file() else ""

    def is_live(folder: str) -> bool:
        records = [_read_lease(claims, f"{folder}/{name}") for name in claims.sizes(folder)]
        return any(record is not None and record.owner != owner and record.is_alive() for record in records)

    folders = claims.folders()
    return {folder for folder, live in zip(folders, claims.in_parallel(is_live, folders), strict=True) if live}


def owner_id(work: Path) -> str:
    """Return the identity of all processes that share the folder `work`, and so its locks; created on first use."""
    path = work / OWNER_FILE
    if not path.is_file():
        with atomic_io.lock(work / "owner.lock", wait=True):
            if not path.is_file():
                atomic_io.write_bytes(path, uuid.uuid4().hex.encode())
    return path.read_text(errors="replace")


def _read_lease(claims: RemoteStoreFiles, key: str) -> LeaseRecord | None:
    data = claims.get(key)
    try:
        return None if data is None else msgspec.convert(parse_json(data), LeaseRecord)
    except (ValueError, RecursionError):
        return None


def _boottime_s() -> float:
    # This clock goes on while the machine sleeps, unlike the monotonic one: a lease expires during sleep too.
    return time.clock_gettime(time.CLOCK_BOOTTIME)


# Both together, for any store.


@contextmanager
def hold_lease(files: StoreFiles, folder: str) -> Iterator[bool]:
    """Yield True while this process alone, of all processes and machines, may change the clip in `folder`."""
    work = work_folder(files.root)
    with lock_clip(work, folder) as mine:
        if mine and isinstance(files, RemoteStoreFiles):
            with remote_lease(files, RemoteStoreFiles(lease_folder(files.root)), work, folder) as leased:
                yield leased
        else:
            yield mine


def locked_clips(path: Location) -> set[str]:
    """Return the folders of the clips that live processes, of any machine, are writing in the store at `path`."""
    others = live_leases(RemoteStoreFiles(lease_folder(path)), work_folder(path)) if isinstance(path, Url) else set()
    return live_locks(work_folder(path)) | others


def lease_folder(store: Url) -> Url:
    """Return the URL with the leases of a remote store: beside it."""
    return store.parent / (store.name.removesuffix(".zarr") + ".work")


def work_folder(path: Location) -> Path:
    """Return the folder of the locks and journals of a store: beside it, or for a URL in the user's cache."""
    # Links are resolved: two writers that reach one store by two names must share one folder of locks.
    real = path.resolve() if isinstance(path, Path) else path
    stem = real.name.removesuffix(".zarr") + ".work"
    if isinstance(real, Path):
        return real.parent / stem
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "fercache" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:12]}-{stem}"
