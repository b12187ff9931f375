"""Who writes a clip: one process at a time; a dead one's claim is free."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from fercache.runtime import atomic_io

GATE = "gate.lock"
CLAIM = ".claim"


@contextmanager
def gate(work: Path) -> Iterator[None]:
    """Hold the folder's gate: nobody else takes or drops a claim meanwhile."""
    with atomic_io.lock(work / GATE, wait=True):
        yield


def live_claims(work: Path) -> set[str]:
    """Return the folders of the clips that living processes hold."""
    found = set()
    for path in work.glob("*" + CLAIM):
        with gate(work):
            if path.exists():
                with atomic_io.lock(path) as free:
                    if not free:
                        found.add(path.name.removesuffix(CLAIM))
    return found


@contextmanager
def claim(work: Path, folder: str) -> Iterator[bool]:
    """Yield True while this process alone may change the clip in `folder`; False at once if another one may.

    Notes
    -----
    The claim's file is locked and removed only behind the gate, so that nobody can lock a file that was just removed
    while another one locks its successor.
    """
    path = work / (folder + CLAIM)
    with ExitStack() as held:
        with gate(work):
            mine = held.enter_context(atomic_io.lock(path))
        atomic_io.step("claim.taken")
        try:
            yield mine
        finally:
            if mine:
                with gate(work), suppress(OSError):  # a claim's file left behind is free all the same
                    path.unlink(missing_ok=True)
                    held.close()
