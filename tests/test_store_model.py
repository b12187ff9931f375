"""The store against a dict: in whatever order things are done, it holds what was committed or says it is harmed."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from numpy.typing import NDArray

from fercache.errors import NotInStore, StoreError
from fercache.maintenance import verify
from fercache.store.embedding_store import EmbeddingStore
from fercache.store.layout import FRAME_COLUMNS, SEGMENT, encode_name
from fercache.store.writer import ClipWriter

TAPS = {"block8": (2,), "grid": (1, 2)}
NAMES = st.sampled_from(["a", "A", "../a", "CON", "zarr.json", "", "é", "e\u0301", "a" * 250])
FRAMES = st.sampled_from([1, 3, 256, 257, 1024, 1030, 2100])
SEEDS = st.integers(0, 3)
PROVENANCE = {"device": "cpu"}


class Content:
    """What a clip of these frames and seed holds."""

    def __init__(self, frames: int, seed: int) -> None:
        self.frames, self.source = frames, {"size": frames, "sha256": str(seed)}
        rng = np.random.default_rng([frames, seed])
        self.clock: NDArray[np.float64] = rng.normal(size=(frames, len(FRAME_COLUMNS)))
        self.taps = {tap: rng.normal(size=(frames, *shape)).astype(np.float16) for tap, shape in TAPS.items()}

    def segment(self, start: int) -> dict[str, NDArray[np.float16]]:
        return {tap: value[start:start + SEGMENT] for tap, value in self.taps.items()}


class StoreModel(RuleBasedStateMachine):
    """`whole` is what was committed, `live` the writers at work, `harmed` the clips whose files were tampered with so
    that a reader notices, `silent` those where only `verify` does (or that were put right by a second change)."""

    begun = 0

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="fercache-model-"))
        self.whole: dict[str, Content] = {}
        self.harmed: set[str] = set()
        self.silent: set[str] = set()
        type(self).begun += 1
        self.live: dict[str, tuple[ExitStack, ClipWriter, Content]] = {}

    @initialize()
    def create(self) -> None:
        self.store = EmbeddingStore.create(self.folder / "s.zarr", {"x": 1}, TAPS)

    def teardown(self) -> None:
        for stack, _, _ in self.live.values():
            stack.close()
        shutil.rmtree(self.folder)

    @rule()
    def reopen(self) -> None:
        self.store = EmbeddingStore.open(self.folder / "s.zarr", mode="a")

    @rule(name=NAMES, frames=FRAMES, seed=SEEDS)
    def begin(self, name: str, frames: int, seed: int) -> None:
        """A writer, through a handle of its own as another process would have."""
        content = Content(frames, seed)
        stack = ExitStack()
        other = EmbeddingStore.open(self.folder / "s.zarr", mode="a")
        writer = stack.enter_context(other.writer(name, source=content.source, provenance=PROVENANCE))
        same = name in self.whole and self.whole[name].source == content.source
        damaged_mark = name in self.harmed and not self.readable(name)
        if name in self.live or (same and not damaged_mark):
            assert writer is None
            stack.close()
            return
        assert writer is not None
        self.forget(name)
        self.live[name] = stack, writer, content

    def readable(self, name: str) -> bool:
        return name in EmbeddingStore.open(self.folder / "s.zarr")

    def pick(self, number: int) -> str:
        return sorted(self.live)[number % len(self.live)]

    @precondition(lambda self: self.live)
    @rule(number=st.integers(0, 8), first=st.booleans())
    def proceed(self, number: int, first: bool) -> None:
        _, writer, content = self.live[self.pick(number)]
        if first and writer.frame_table is None:
            writer.set_frame_table(content.clock)
        if writer.written < content.frames:
            writer.write(writer.written, content.segment(writer.written))

    @precondition(lambda self: self.live)
    @rule(number=st.integers(0, 8))
    def commit(self, number: int) -> None:
        name = self.pick(number)
        stack, writer, content = self.live.pop(name)
        if writer.frame_table is None:
            writer.set_frame_table(content.clock)
        while writer.written < content.frames:
            writer.write(writer.written, content.segment(writer.written))
        writer.commit()
        stack.close()
        self.whole[name] = content

    @precondition(lambda self: self.live)
    @rule(number=st.integers(0, 8))
    def abandon(self, number: int) -> None:
        """A writer that ends without a commit; what it wrote is taken over by its equal."""
        name = self.pick(number)
        stack, writer, content = self.live.pop(name)
        written = writer.written
        stack.close()
        with self.store.writer(name, source=content.source, provenance=PROVENANCE) as again:
            assert again is not None and again.written == written
            assert (again.frame_table is None) == (writer.frame_table is None)

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        if name in self.live:
            with pytest.raises(StoreError):
                self.store.remove(name)
            return
        self.store.remove(name)
        self.forget(name)

    @precondition(lambda self: self.whole)
    @rule(number=st.integers(0, 8), what=st.sampled_from(["missing", "torn", "mark", "flip", "swap"]))
    def corrupt(self, number: int, what: str) -> None:
        """Harm that a reader meets as an error, or (a flipped bit, swapped chunks of one size) only `verify` sees."""
        name = sorted(self.whole)[number % len(self.whole)]
        folder = self.store.path / encode_name(name)
        if what == "mark":
            mark = folder / "zarr.json"
            mark.write_bytes(mark.read_bytes().replace(b'"frames"', b'"flames"'))
        elif what == "flip":
            chunk = folder / "grid" / "c.0.0.0"
            data = bytearray(chunk.read_bytes())
            data[len(data) // 2] ^= 4
            chunk.write_bytes(data)
            self.silent.add(name)
            return
        elif what == "swap":
            one, other = (folder / "frame_table" / f"c.{i}.0" for i in (0, 1))
            if self.whole[name].frames > 256:
                data = one.read_bytes()
                one.write_bytes(other.read_bytes())
                other.write_bytes(data)
                self.silent.add(name)
            return
        else:
            chunk = folder / "block8" / "c.0.0"
            data = chunk.read_bytes() if chunk.exists() else b""
            chunk.unlink(missing_ok=True)
            if what == "torn":
                chunk.write_bytes(data[:-1])
        self.harmed.add(name)

    @rule(repair=st.booleans())
    def verify(self, repair: bool) -> None:
        """`verify` names the harmed clips and no other; a repair drops just those."""
        flipped = {encode_name(name) for name in self.flipped()}
        report = verify.verify_store(self.store.path, repair=repair)
        # Only the manifest holds a long name: where that is harmed, the clip is called by its folder.
        folders = {encode_name(name) for name in self.whole}
        harmed = {one if one in folders else encode_name(one) for one in (issue.details[0] for issue in report.issues)}
        sure = {encode_name(name) for name in self.harmed}
        assert sure <= harmed <= sure | {encode_name(name) for name in self.silent}
        assert flipped <= harmed
        assert report.clips == len(self.whole)
        if repair:
            gone = {name for name in self.whole if encode_name(name) in harmed}
            for name in gone:
                self.forget(name)

    def flipped(self) -> set[str]:
        """Return the clips whose bytes differ from what was written, seen with plain eyes."""
        return {name for name in self.silent - self.harmed
                if self.store[name].read("grid").tobytes() != self.whole[name].taps["grid"].tobytes()
                or self.store[name].frame_table.tobytes() != self.whole[name].clock.tobytes()}

    def forget(self, name: str) -> None:
        self.whole.pop(name, None)
        self.harmed.discard(name)
        self.silent.discard(name)

    @invariant()
    def holds_what_was_committed(self) -> None:
        if not hasattr(self, "store"):
            return
        listed = list(self.store)
        assert listed == sorted(listed) and len(self.store) == len(listed)
        assert set(listed) <= self.whole.keys() and self.whole.keys() - set(listed) <= self.harmed
        for name, content in self.whole.items():
            if name in self.harmed:
                with pytest.raises((StoreError, NotInStore)):
                    self.store[name].read("block8")
                continue
            if name in self.silent:
                continue
            clip = self.store[name]
            for tap, value in content.taps.items():
                np.testing.assert_array_equal(clip.read(tap), value)
            np.testing.assert_array_equal(clip.frame_table["time_s"], content.clock[:, 1])


def test_store_is_a_dict(monkeypatch: pytest.MonkeyPatch) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    monkeypatch.setattr(os, "fsync", lambda handle: None)  # no power is lost here, and the disk's patience is minutes
    before = StoreModel.begun
    run_state_machine_as_test(StoreModel, settings=settings(
        max_examples=300, stateful_step_count=15, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck)))
    print(f"{StoreModel.begun - before} sequences of steps")
    assert StoreModel.begun - before >= 300
