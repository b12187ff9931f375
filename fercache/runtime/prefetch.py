"""An iterator whose next items are computed in a thread while the current one is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, cast

T = TypeVar("T")


def prefetch(items: Iterable[T], most: int) -> Generator[T, None, None]:
    """Yield the items in order; a thread computes up to `most` of them ahead."""
    # An error of the iterable is raised here, after the items before it. When the caller stops early, the thread has
    # ended when this generator is closed.
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1, "fercache-prefetch") as pool:
        waiting = deque(pool.submit(next, iterator, end) for _ in range(most + 1))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(pool.submit(next, iterator, end))
                yield cast(T, item)
        finally:
            pool.shutdown(cancel_futures=True)
