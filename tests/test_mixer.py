"""Crops of several clips in common batches: every value in its row, no batch padded without need, nobody stuck."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fercache.extraction import batcher
from fercache.extraction.batcher import CrossClipBatcher, FeatureBuffer
from fercache.extraction.run_control import Cancelled, CancelToken, StageProfiler
from fercache.runtime.devices import TorchThreadPool

BATCH = 8
SHAPES = {"mean": (3,), "first": ()}
LANES = dict.fromkeys(("decode", "detect", "crop", "cnn", "write"), 2)
POISON = 255


class Net:
    """Says of each crop its mean colour and its first value; notes the sizes of batches; fails on POISON."""

    batch = BATCH
    shapes = SHAPES

    def __init__(self, slow_s: float = 0.0) -> None:
        self.sizes: list[int] = []
        self.slow_s = slow_s

    def embed_batch(self, crops: NDArray[np.uint8]) -> dict[str, NDArray[np.float16]]:
        self.sizes.append(len(crops))
        time.sleep(self.slow_s)
        if (crops[:, 0, 0, 0] == POISON).any():
            raise RuntimeError("poison")
        return {"mean": crops.mean(axis=(1, 2)).astype(np.float16), "first": crops[:, 0, 0, 0].astype(np.float16)}


def crop_of(number: int) -> NDArray[np.uint8]:
    return np.full((4, 4, 3), number % POISON, np.uint8)


@pytest.fixture(params=[1, 2])
def crew(request: pytest.FixtureRequest) -> Iterator[TorchThreadPool]:
    with TorchThreadPool(request.param) as made:
        yield made


def feed(mixer: CrossClipBatcher, numbers: list[int], views: int = 1) -> FeatureBuffer:
    """Put crops as one clip would, wait, and return the sheet."""
    with mixer.clip():
        sheet = FeatureBuffer(SHAPES, len(numbers), views)
        for row, number in enumerate(numbers):
            for view in range(views):
                mixer.put(crop_of(number + view), sheet, row, view)
        mixer.wait(sheet)
    return sheet


def check(sheet: FeatureBuffer, numbers: list[int], views: int = 1) -> None:
    for view in range(views):
        wanted = [(number + view) % POISON for number in numbers]
        assert sheet.values["first"][:, view].tolist() == wanted
        assert sheet.values["mean"][:, view].tolist() == [[value] * 3 for value in wanted]
    assert sheet.open == 0


def test_one_clip_alone(crew: TorchThreadPool) -> None:
    net = Net()
    mixer = CrossClipBatcher(net, crew, CancelToken(), StageProfiler(LANES))
    check(feed(mixer, list(range(21))), list(range(21)))
    assert sorted(net.sizes) == [5, 8, 8] and mixer.padded == 3


def test_many_clips_of_any_length_at_once(crew: TorchThreadPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """More clips than the mixer holds crops, of 0 to 40 frames in three views: each value is where it belongs."""
    monkeypatch.setattr(batcher, "GRACE_S", 600.0)
    net, rng = Net(.001), random.Random(0)
    mixer = CrossClipBatcher(net, crew, CancelToken(), StageProfiler(LANES))
    clips = [[rng.randrange(200) for _ in range(rng.choice([0, 1, 3, 7, 8, 40]))] for _ in range(60)]
    with ThreadPoolExecutor(30) as pool:
        for sheet, numbers in zip(pool.map(lambda one: feed(mixer, one, 3), clips), clips, strict=True):
            check(sheet, numbers, 3)
    total = 3 * sum(map(len, clips))
    assert sum(net.sizes) == total
    assert mixer.padded == sum(BATCH - size for size in net.sizes)
    assert mixer.padded <= len(clips) * (BATCH - 1), "each padding lets a clip end"


def test_a_batch_is_held_back_while_another_clip_may_fill_it(crew: TorchThreadPool,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batcher, "GRACE_S", 60.0)
    net = Net()
    mixer = CrossClipBatcher(net, crew, CancelToken(), StageProfiler(LANES))
    with ThreadPoolExecutor(1) as pool:
        with mixer.clip():
            waits = pool.submit(feed, mixer, [1, 2, 3])
            time.sleep(3 * batcher.TICK_S)
            assert not waits.done() and net.sizes == []
            check(feed(mixer, [4, 5, 6, 7, 8]), [4, 5, 6, 7, 8])
        check(waits.result(10), [1, 2, 3])
    assert net.sizes == [8] and mixer.padded == 0


def test_it_is_not_held_back_for_ever(crew: TorchThreadPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another clip is open, and gives nothing: it is at its detection, or has no face for an hour."""
    monkeypatch.setattr(batcher, "GRACE_S", .2)
    mixer = CrossClipBatcher(Net(), crew, CancelToken(), StageProfiler(LANES))
    with mixer.clip(), ThreadPoolExecutor(1) as pool:
        check(pool.submit(feed, mixer, [1, 2, 3]).result(10), [1, 2, 3])
    assert mixer.padded == 5


def test_the_next_segment_is_not_padded_for_the_one_before(crew: TorchThreadPool) -> None:
    net = Net(.05)
    mixer = CrossClipBatcher(net, crew, CancelToken(), StageProfiler(LANES))
    with mixer.clip():
        first, second = FeatureBuffer(SHAPES, 8, 1), FeatureBuffer(SHAPES, 8, 1)
        for row in range(8):
            mixer.put(crop_of(row), first, row)
        mixer.put(crop_of(9), second, 0)
        mixer.wait(first)
        assert net.sizes == [8]
        for row in range(1, 8):
            mixer.put(crop_of(9 + row), second, row)
        mixer.wait(second)
    check(second, list(range(9, 17)))
    assert net.sizes == [8, 8] and mixer.padded == 0


def test_what_is_held_is_bounded(crew: TorchThreadPool) -> None:
    """A net that takes its time makes the clips wait, not the memory grow."""
    gate, most = threading.Event(), [0]

    class Slow(Net):
        def embed_batch(self, crops: NDArray[np.uint8]) -> dict[str, NDArray[np.float16]]:
            gate.wait(30)
            return super().embed_batch(crops)

    mixer = CrossClipBatcher(Slow(), crew, CancelToken(), StageProfiler(LANES))
    sheet = FeatureBuffer(SHAPES, 500, 1)

    def give() -> None:
        for row in range(500):
            mixer.put(crop_of(row), sheet, row)
            most[0] = max(most[0], sheet.open)

    with ThreadPoolExecutor(1) as pool, mixer.clip():
        promise: Future[None] = pool.submit(give)
        time.sleep(.3)
        assert 0 < sheet.open <= mixer.capacity and not promise.done()
        gate.set()
        promise.result(30)
        mixer.wait(sheet)
    assert most[0] <= mixer.capacity
    check(sheet, list(range(500)))


def test_an_error_of_the_net_concerns_the_clips_of_that_batch(crew: TorchThreadPool) -> None:
    mixer = CrossClipBatcher(Net(), crew, CancelToken(), StageProfiler(LANES))
    with mixer.clip():
        bad = FeatureBuffer(SHAPES, 8, 1)
        for row in range(8):
            mixer.put(np.full((4, 4, 3), POISON, np.uint8), bad, row)
        with pytest.raises(RuntimeError, match="poison"):
            mixer.wait(bad)
    check(feed(mixer, [1, 2, 3]), [1, 2, 3])


def test_a_clip_that_fails_half_way_leaves_the_others_whole(crew: TorchThreadPool) -> None:
    """Its source breaks off after three crops, which stay in the common batch."""
    mixer = CrossClipBatcher(Net(), crew, CancelToken(), StageProfiler(LANES))

    def breaks_off() -> None:
        with mixer.clip():
            sheet = FeatureBuffer(SHAPES, 8, 1)
            for row in range(3):
                mixer.put(crop_of(row), sheet, row)
            raise OSError("torn")

    with ThreadPoolExecutor(4) as pool:
        broken = [pool.submit(breaks_off) for _ in range(5)]
        whole = [pool.submit(feed, mixer, list(range(n))) for n in (11, 2, 8)]
        assert all(isinstance(promise.exception(10), OSError) for promise in broken)
        for promise, n in zip(whole, (11, 2, 8), strict=True):
            check(promise.result(10), list(range(n)))


def test_a_stop_ends_those_who_wait_and_those_who_give(crew: TorchThreadPool) -> None:
    asked = threading.Event()
    mixer = CrossClipBatcher(Net(.02), crew, CancelToken(asked.is_set), StageProfiler(LANES))

    def for_ever() -> None:
        with mixer.clip():
            sheet = FeatureBuffer(SHAPES, 1, 1)
            while True:
                mixer.put(crop_of(1), sheet, 0)

    with ThreadPoolExecutor(3) as pool:
        with mixer.clip():
            promises = [pool.submit(for_ever), pool.submit(for_ever), pool.submit(feed, mixer, [1])]
            time.sleep(.1)
            asked.set()
            started = time.monotonic()
            errors = [promise.exception(10) for promise in promises[:2]]
        assert all(isinstance(error, Cancelled) for error in errors)
        assert time.monotonic() - started < 5


def test_rows_that_a_stop_left_undone_are_never_taken_for_done(crew: TorchThreadPool) -> None:
    asked = threading.Event()
    mixer = CrossClipBatcher(Net(.05), crew, CancelToken(asked.is_set), StageProfiler(LANES))
    with mixer.clip():
        sheet = FeatureBuffer(SHAPES, 8 * 2, 1)
        for row in range(8 * 2):
            mixer.put(crop_of(row), sheet, row)
        asked.set()
        try:
            mixer.wait(sheet)
        except Cancelled:
            return
    check(sheet, list(range(16)))


def test_as_long_as_there_is_a_crew_every_new_thread_computes_alone() -> None:
    """Clips detect in threads of their own; which of them begins first must not decide how many threads it has."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with TorchThreadPool(2), ThreadPoolExecutor(1) as other:
            assert other.submit(torch.get_num_threads).result() == torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
