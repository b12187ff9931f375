"""Working ahead: the same items, the same errors, and no thread left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from fercache.extraction.run_control import prefetch


def counted(count: int, made: list[int], fail_at: int = -1) -> Iterator[int]:
    for i in range(count):
        if i == fail_at:
            raise ValueError("no")
        made.append(i)
        yield i


def threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("fercache-prefetch")]


@pytest.mark.parametrize("most", [1, 3, 100])
def test_the_same_items_in_order(most: int) -> None:
    assert list(prefetch(counted(50, []), most)) == list(range(50))
    assert list(prefetch([], most)) == [] and not threads()


def test_work_is_done_ahead_and_bounded() -> None:
    made: list[int] = []
    items = prefetch(counted(50, made), 4)
    assert next(items) == 0
    until = time.monotonic() + 20
    while len(made) < 6 and time.monotonic() < until:
        time.sleep(.01)
    time.sleep(.1)
    assert len(made) == 6, "the one in use, four waiting, one in hand"
    items.close()
    assert not threads()


def test_errors_come_behind_the_items_before_them() -> None:
    found = []
    with pytest.raises(ValueError, match="no"):
        for item in prefetch(counted(9, [], fail_at=5), 2):
            found.append(item)
    assert found == [0, 1, 2, 3, 4] and not threads()


def test_an_error_of_the_user_ends_the_thread() -> None:
    def use() -> None:
        for item in prefetch(counted(1000, []), 2):
            if item == 3:
                raise KeyError(item)
    with pytest.raises(KeyError):
        use()
    assert not threads()
