"""An iterator whose next items are computed in a thread while the current one is used."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import TypeVar

T = TypeVar("T")

TICK_S = 0.1
"""How often the thread checks whether the consumer has stopped."""


class _End:
    """The last entry of the queue: the error that ended the iteration, if any."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def prefetch(items: Iterable[T], most: int) -> Generator[T, None, None]:
    """Yield the items in order; a thread computes up to `most` of them ahead."""
    # An error of the iterable is raised here, after the items before it. When the caller stops early, the thread stops
    # too; it has ended when this generator is closed.
    queue: Queue[T | _End] = Queue(most)
    stop = Event()
    thread = Thread(target=_make, args=(items, queue, stop), name="fercache-prefetch", daemon=True)
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
    """Put the items into the queue, and then an `_End`."""
    end = _End(None)
    try:
        for item in items:
            if not _put(queue, item, stop):
                return
    except BaseException as error:  # noqa: BLE001 - raised again where the items are used
        end = _End(error)
    _put(queue, end, stop)


def _put(queue: Queue[T | _End], item: T | _End, stop: Event) -> bool:
    """Put an item as soon as the queue has room; return False if the consumer has stopped."""
    while not stop.is_set():
        try:
            queue.put(item, timeout=TICK_S)
        except Full:
            continue
        return True
    return False


def _next(queue: Queue[T | _End], thread: Thread) -> T | _End:
    """Return the next item, or an error if the thread has died without an `_End`: never wait forever."""
    while True:
        try:
            return queue.get(timeout=10 * TICK_S)
        except Empty:
            if not thread.is_alive() and queue.empty():
                return _End(RuntimeError("the prefetching thread has died"))
