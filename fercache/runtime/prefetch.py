"""Work that is done ahead, in a thread of its own, while its results are used."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import TypeVar

T = TypeVar("T")

TICK_S = 0.1
"""How soon a thread that nobody listens to any more notices."""


class _End:
    """Stands in the queue behind the last item: how the work ended."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def prefetch(items: Iterable[T], most: int) -> Generator[T, None, None]:
    """Yield the items in order; up to `most` of them are made while the one before is being used.

    Notes
    -----
    What the making raises is raised here, behind the items made before it. When the caller stops early, so does the
    thread, and it has ended when this generator is closed.
    """
    queue: Queue[T | _End] = Queue(most)
    stop = Event()
    thread = Thread(target=_make, args=(items, queue, stop), name="ahead", daemon=True)
    thread.start()
    try:
        while not isinstance(item := _next(queue, thread), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        stop.set()
        thread.join()


def _make(items: Iterable[T], queue: Queue[T | _End], stop: Event) -> None:
    """Put the items into the queue, and then how that ended."""
    end = _End(None)
    try:
        for item in items:
            if not _put(queue, item, stop):
                return
    except BaseException as error:  # noqa: BLE001 - raised again where the items are used
        end = _End(error)
    _put(queue, end, stop)


def _put(queue: Queue[T | _End], item: T | _End, stop: Event) -> bool:
    """Put an item as soon as there is room; return False where nobody will take it any more."""
    while not stop.is_set():
        try:
            queue.put(item, timeout=TICK_S)
        except Full:
            continue
        return True
    return False


def _next(queue: Queue[T | _End], thread: Thread) -> T | _End:
    """Return the next item; an error where the thread has died without a word, rather than wait for ever."""
    while True:
        try:
            return queue.get(timeout=10 * TICK_S)
        except Empty:
            if not thread.is_alive() and queue.empty():
                return _End(RuntimeError("the thread that works ahead has died"))
