"""Who writes a clip of a remote store: one machine at a time; the clip of one that fell silent is free."""

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
from typing import Any

from fercache.errors import ClipError, StoreError
from fercache.runtime import atomic_io
from fercache.runtime.uri import Location, Url
from fercache.store.local import StoreFiles
from fercache.store.manifest import parse
from fercache.store.remote import RemoteStoreFiles

log = logging.getLogger(__name__)


# Who writes a clip: one process at a time; a dead one's claim is free.

GATE = "gate.lock"
LOCK_SUFFIX = ".claim"


@contextmanager
def lock_gate(work: Path) -> Iterator[None]:
    """Hold the folder's gate: nobody else takes or drops a claim meanwhile."""
    with atomic_io.lock(work / GATE, wait=True):
        yield


def live_locks(work: Path) -> set[str]:
    """Return the folders of the clips that living processes hold."""
    found = set()
    for path in work.glob("*" + LOCK_SUFFIX):
        with lock_gate(work):
            if path.exists():
                with atomic_io.lock(path) as free:
                    if not free:
                        found.add(path.name.removesuffix(LOCK_SUFFIX))
    return found


@contextmanager
def lock_clip(work: Path, folder: str) -> Iterator[bool]:
    """Yield True while this process alone may change the clip in `folder`; False at once if another one may.

    Notes
    -----
    The claim's file is locked and removed only behind the gate, so that nobody can lock a file that was just removed
    while another one locks its successor.
    """
    path = work / (folder + LOCK_SUFFIX)
    with ExitStack() as held:
        with lock_gate(work):
            mine = held.enter_context(atomic_io.lock(path))
        atomic_io.durable_step("claim.taken")
        try:
            yield mine
        finally:
            if mine:
                with lock_gate(work), suppress(OSError):  # a claim's file left behind is free all the same
                    path.unlink(missing_ok=True)
                    held.close()


OWNER = "owner"
HEARTBEAT_S = 30.0
"""Seconds between two signs of life."""
LEASE_TTL_S = 600.0
"""Seconds without a sign of life after which a machine counts as dead. Clocks must agree far better than that."""
TRIES = 4
"""How often two machines that came at the same moment try again."""


class RemoteLease:
    """This machine's claim on one clip: an object of its own, written again every BEAT_S."""

    def __init__(self, claims: RemoteStoreFiles, folder: str, owner: str) -> None:
        self.claims, self.folder, self.owner = claims, folder, owner
        self.key = f"{folder}/{uuid.uuid4().hex}.claim"
        self._beat_s, self._lost = _now_s(), False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True)

    def take(self) -> bool:
        """Return whether the clip is this machine's now.

        Notes
        -----
        Write one's own claim, then look: who sees nobody else alive has the clip. Of two that both wrote, the one that
        looked later has seen the other's. That needs a listing that is never behind (S3, GCS, MinIO), and no
        conditional write. Where both saw each other, both step back and try again.
        """
        for _ in range(TRIES):
            if self._others():
                return False
            self._write()
            if not self._others():
                self._thread.start()
                return True
            self.claims.remove(self.key)
            time.sleep(random.uniform(0.05, 0.5))
        return False

    def _others(self) -> bool:
        """Return whether somebody else alive claims the clip; remove the claims of the dead."""
        for name in self.claims.sizes(self.folder):
            key = f"{self.folder}/{name}"
            if key == self.key:
                continue
            record = _read(self.claims, key)
            if record is not None and record.get("owner") != self.owner and _alive(record):
                return True
            self.claims.remove(key)
        return False

    def _write(self) -> None:
        self.claims.replace(self.key, json.dumps({"owner": self.owner, "time_s": time.time()}).encode())
        self._beat_s = _now_s()

    def _live(self) -> None:
        """Give signs of life; a claim that is gone was taken over."""
        while not self._over.wait(HEARTBEAT_S):
            try:
                if self._silent() or self.claims.stat(self.key) is None:
                    self._lost = True
                    return
                self._write()
            except StoreError as error:  # the next beat may get through; `check` knows how long ago the last one was
                log.debug("%s", error)

    def check(self) -> None:
        """Refuse to go on where the clip may be another machine's by now.

        Raises
        ------
        ClipError
            The claim was taken over, or this machine was silent for too long.
        """
        if self._lost or self._silent():
            raise ClipError("another machine may have taken this clip over, since this one was silent for long",
                            where=self.claims.root / self.folder, hint="run again; nothing of the store is lost")

    def _silent(self) -> bool:
        return _now_s() - self._beat_s > LEASE_TTL_S

    def drop(self) -> None:
        """Let others have the clip."""
        self._over.set()
        self._thread.join()
        try:
            self.claims.remove(self.key)
        except StoreError as error:  # it is free after SILENCE_S all the same
            log.debug("%s", error)


@contextmanager
def hold_lease(files: StoreFiles, folder: str) -> Iterator[bool]:
    """Yield True while this process alone, of this machine and of all others, may change the clip in `folder`."""
    work = work_folder(files.root)
    with lock_clip(work, folder) as mine:
        if mine and isinstance(files, RemoteStoreFiles):
            with remote_lease(files, RemoteStoreFiles(leases_of(files.root)), work, folder) as leased:
                yield leased
        else:
            yield mine


def leases_of(store: Url) -> Url:
    """Return where the machines' claims on clips of a remote store lie: beside it."""
    return store.parent / (store.name.removesuffix(".zarr") + ".work")


@contextmanager
def remote_lease(files: RemoteStoreFiles, claims: RemoteStoreFiles, work: Path, folder: str) -> Iterator[bool]:
    """Yield True while this machine alone may change the clip in `folder`; False at once if another one may.

    Parameters
    ----------
    files : of the store; what is written into `folder` meanwhile is guarded.
    claims : of the URL that holds the claims.
    work : the local folder whose locks tell the processes of this machine from each other; they are taken before.
    """
    held = RemoteLease(claims, folder, owner_of(work))
    if not held.take():
        yield False
        return
    files.guards[folder] = held.check
    atomic_io.durable_step("lease.taken")
    try:
        yield True
    finally:
        files.guards.pop(folder, None)
        held.drop()


def work_folder(path: Location) -> Path:
    """Return where the claims and journals of the store at `path` lie: beside it, of a URL in the user's cache.

    Notes
    -----
    Links are followed first: two writers that reach one store by two names must meet in one folder of claims.
    """
    real = path.resolve() if isinstance(path, Path) else path
    stem = real.name.removesuffix(".zarr") + ".work"
    if isinstance(real, Path):
        return real.parent / stem
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "fercache" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:12]}-{stem}"


def locked_clips(path: Location) -> set[str]:
    """Return the folders of the clips that live processes, of any machine, are writing in the store at `path`."""
    others = live_leases(RemoteStoreFiles(leases_of(path)), work_folder(path)) if isinstance(path, Url) else set()
    return live_locks(work_folder(path)) | others


def live_leases(claims: RemoteStoreFiles, work: Path) -> set[str]:
    """Return the folders of the clips that other machines which gave a sign of life lately hold.

    Parameters
    ----------
    work : of this machine, whose own processes' locks say more than their leases.
    """
    owner = owner_of(work) if (work / OWNER).is_file() else ""

    def live(folder: str) -> bool:
        record = [_read(claims, f"{folder}/{name}") for name in claims.sizes(folder)]
        return any(one is not None and one.get("owner") != owner and _alive(one) for one in record)
    folders = claims.folders()
    return {folder for folder, is_live in zip(folders, claims.in_parallel(live, folders), strict=True) if is_live}


def owner_of(work: Path) -> str:
    """Return the name of all processes that share the folder `work`, and so its locks; made when first asked for."""
    path = work / OWNER
    if not path.is_file():
        with atomic_io.lock(work / "owner.lock", wait=True):
            if not path.is_file():
                atomic_io.write_bytes(path, uuid.uuid4().hex.encode())
    return path.read_text(errors="replace")


def _read(claims: RemoteStoreFiles, key: str) -> dict[str, Any] | None:
    data = claims.get(key)
    try:
        record = None if data is None else parse(data)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _alive(record: dict[str, Any]) -> bool:
    beat_s = record.get("time_s")
    return isinstance(beat_s, int | float) and abs(time.time() - beat_s) < LEASE_TTL_S


def _now_s() -> float:
    """Return seconds of a clock that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
