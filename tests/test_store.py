"""The embedding store: what is committed comes back, whatever the names; what is not whole is absent."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import random
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from fercache import open_store
from fercache.errors import FercacheError, InputError, NotInStore, StoreError
from fercache.maintenance import forget, verify
from fercache.store.embedding_store import INDEX, INDEX_AFTER, EmbeddingStore
from fercache.store.layout import FRAME_COLUMNS, SEGMENT, decode_name, encode_name
from fercache.store.manifest import with_checksum

TAPS = {"block8": (5,), "repeat_1-3x3": (2, 3, 3)}
SETTINGS = {"backbone": "casia", "taps": ["block8", "repeat_1-3x3"], "margin": 0.0}
SOURCE = {"size": 10, "mtime_ns": 1, "sha256": "ab"}
PROVENANCE = {"device": "cpu", "threads": 2}


def features(frames: int, seed: int = 0) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float16]]]:
    """Return a clock and features of a clip."""
    rng = np.random.default_rng(seed)
    clock = rng.normal(size=(frames, len(FRAME_COLUMNS)))
    clock[:, 0] = np.arange(1, frames + 1)
    clock[rng.random(frames) < 0.2, 3:] = np.nan
    return clock, {tap: rng.normal(size=(frames, *shape)).astype(np.float16) for tap, shape in TAPS.items()}


def put(store: EmbeddingStore, clip: str, frames: int = 300, seed: int = 0, **how: dict) -> None:
    """Write a clip from begin to commit."""
    clock, taps = features(frames, seed)
    with store.writer(clip, source=how.get("source", SOURCE), provenance=how.get("provenance", PROVENANCE)) as writer:
        assert writer is not None
        writer.set_frame_table(clock)
        for start in range(writer.written, frames, SEGMENT):
            writer.write(start, {tap: value[start:start + SEGMENT] for tap, value in taps.items()})
        writer.commit()


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    return EmbeddingStore.create(tmp_path / "casia-0123.zarr", SETTINGS, TAPS)


@pytest.mark.parametrize("frames", [1, 2, 73, 255, 256, 257, 1023, 1024, 1025, 2500])
def test_what_is_committed_comes_back(store: EmbeddingStore, frames: int) -> None:
    put(store, "a clip", frames)
    clock, taps = features(frames)
    clip = EmbeddingStore.open(store.path)["a clip"]
    assert clip.frames == frames and list(clip) == sorted(TAPS) and len(clip) == len(TAPS)
    for tap, value in taps.items():
        assert clip.read(tap).dtype == np.float16
        np.testing.assert_array_equal(clip.read(tap), value)
        np.testing.assert_array_equal(np.asarray(clip[tap]), value)
    for i, name in enumerate(FRAME_COLUMNS):
        np.testing.assert_array_equal(clip.frame_table[name], clock[:, i])


def test_indexing_is_numpys(store: EmbeddingStore) -> None:
    put(store, "c", 700)
    value = features(700)[1]["repeat_1-3x3"]
    tap = store["c"]["repeat_1-3x3"]
    for index in (0, -1, 699, slice(10, 74), slice(250, 260), slice(None, None, 3), slice(600, 100, -7), slice(5, 5),
                  slice(800, 900), slice(-5, None), ..., (slice(10, 300), 1), (3, 1, 2, 0), (slice(None), slice(0, 1)),
                  [5, 3, 500], np.arange(700) % 7 == 0, (..., 0), np.int64(4), None):
        np.testing.assert_array_equal(tap[index], value[index], err_msg=str(index))
    for index in (700, -701):
        with pytest.raises(IndexError):
            tap[index]


def test_plain_zarr_reads_the_layout(store: EmbeddingStore) -> None:
    put(store, "a b", 300)
    root = zarr.open_group(store.path, mode="r")
    assert list(root.group_keys()) == ["a%20b"]
    clip = root["a%20b"]
    assert clip.attrs["fercache"]["clip"] == "a b" and clip.attrs["fercache"]["frames"] == 300
    clock, taps = features(300)
    np.testing.assert_array_equal(clip["block8"][:], taps["block8"])
    np.testing.assert_array_equal(clip["block8"][10:74], open_store(str(store.path))["a b"]["block8"][10:74])
    np.testing.assert_array_equal(clip["frame_table"][:], clock)
    assert clip["frame_table"].attrs["columns"] == list(FRAME_COLUMNS)
    np.testing.assert_array_equal(store["a b"]["block8"].zarr[:], taps["block8"])


def test_length_may_be_known_last(store: EmbeddingStore) -> None:
    """Crop folders: the clock follows the features; the bytes are the same."""
    put(store, "first", 1100)
    clock, taps = features(1100)
    with store.writer("last", source=SOURCE, provenance=PROVENANCE) as writer:
        for start in (0, 1024):
            writer.write(start, {tap: value[start:start + SEGMENT] for tap, value in taps.items()})
        writer.set_frame_table(clock)
        writer.commit()
    assert store.manifest("first").arrays == store.manifest("last").arrays


NAMES = ["", ".", "..", "../up", "/etc/passwd", "a/b", "a\\b", "C:\\x", "CON", "con.txt", "NUL", "COM1", "zarr.json",
         "Zarr.JSON", "dot.", "dots...", " space ", "a", "A", "é", "e\u0301", "日本語", "%", "%%", "%20", " ", "\x00",
         "\n", "c", "frame_table", "__x", ".hidden", "x" * 300, "x" * 301, "é" * 200, "y" * 180, "y" * 181, "video#1",
         "\udc80", "gate.lock", "*?"]


def test_names_are_safe_and_distinct() -> None:
    folders = [encode_name(name) for name in NAMES]
    assert len(set(folders)) == len(NAMES)
    for name, folder in zip(NAMES, folders, strict=True):
        assert decode_name(folder) == (None if "%%" in folder else name)
        assert len(folder) < 230 and not set(folder) & set('/\\:*?"<>|\x00 \n') and folder not in ("", ".", "..")
        assert folder.split(".")[0].upper() not in ("CON", "NUL", "COM1") and not folder.endswith(".")
        assert folder.lower() != "zarr.json" and folder.isascii()


def test_any_name_is_a_clip(store: EmbeddingStore) -> None:
    for i, name in enumerate(NAMES):
        put(store, name, 3, i)
    again = EmbeddingStore.open(store.path)
    assert list(again) == sorted(NAMES) and len(again) == len(NAMES)
    for i, name in enumerate(NAMES):
        np.testing.assert_array_equal(again[name].read("block8"), features(3, i)[1]["block8"])
    assert {p.name for p in store.path.parent.iterdir()} == {store.path.name, store.work.name}


def test_create_again_opens_and_refuses_other_settings(store: EmbeddingStore) -> None:
    put(store, "c")
    assert list(EmbeddingStore.create(store.path, dict(reversed(SETTINGS.items())), TAPS)) == ["c"]
    with pytest.raises(StoreError, match="margin"):
        EmbeddingStore.create(store.path, {**SETTINGS, "margin": 0.1}, TAPS)
    with pytest.raises(StoreError, match="taps"):
        EmbeddingStore.create(store.path, SETTINGS, {"block8": (6,)})
    for taps in ({}, {"frame_table": (3,)}, {"x": ()}, {"x": (0,)}):
        with pytest.raises(InputError):
            EmbeddingStore.create(store.path, SETTINGS, taps)
    with pytest.raises(InputError):
        EmbeddingStore.create(store.path, {"x": float("nan")}, TAPS)


def test_nothing_there(tmp_path: Path, store: EmbeddingStore) -> None:
    with pytest.raises(StoreError):
        EmbeddingStore.open(tmp_path / "none.zarr")
    with pytest.raises(InputError):
        EmbeddingStore.open(store.path, mode="w")
    with pytest.raises(NotInStore):
        store["none"]
    assert "none" not in store and 3 not in store and len(store) == 0
    put(store, "c")
    with pytest.raises(NotInStore):
        store["c"]["block9"]
    reading = EmbeddingStore.open(store.path)
    with pytest.raises(StoreError, match="reading"), reading.writer("d", source={}, provenance={}):
        pass
    with pytest.raises(StoreError, match="reading"):
        reading.remove("c")


def test_one_live_writer_a_clip(store: EmbeddingStore) -> None:
    other = EmbeddingStore.open(store.path, mode="a")
    with store.writer("c", source=SOURCE, provenance=PROVENANCE) as first:
        assert first is not None
        with other.writer("c", source=SOURCE, provenance=PROVENANCE) as second:
            assert second is None
        with pytest.raises(StoreError, match="another process"):
            other.remove("c")
        with other.writer("d", source=SOURCE, provenance=PROVENANCE) as second:
            assert second is not None
    put(store, "c")
    with other.writer("c", source={**SOURCE, "mtime_ns": 5}, provenance={"device": "cuda"}) as late:
        assert late is None, "it was committed meanwhile"
    assert not list(store.work.glob("*.claim"))


def test_a_changed_source_is_done_again(store: EmbeddingStore) -> None:
    put(store, "c", 300, 0)
    put(store, "c", 200, 1, source={**SOURCE, "sha256": "cd"})
    assert store["c"].frames == 200
    np.testing.assert_array_equal(store["c"].read("block8"), features(200, 1)[1]["block8"])


def test_half_done_work_is_taken_over_only_by_its_equal(store: EmbeddingStore) -> None:
    clock, taps = features(2500)

    def begin(**how: dict) -> tuple[int, int, bool]:
        with store.writer("c", **{"source": SOURCE, "provenance": PROVENANCE, **how}) as writer:
            return writer.detected, writer.written, writer.frame_table is not None

    def half() -> None:
        with store.writer("c", source=SOURCE, provenance=PROVENANCE) as writer:
            writer.keep_detections(16, np.ones((3, 6)))
            writer.keep_detections(32, np.empty((0, 6)))
            writer.set_frame_table(clock)
            writer.write(0, {tap: value[:SEGMENT] for tap, value in taps.items()})

    half()
    assert begin() == begin(source={**SOURCE, "mtime_ns": 9}) == (32, SEGMENT, True)
    with store.writer("c", source=SOURCE, provenance=PROVENANCE) as writer:
        np.testing.assert_array_equal(writer.detections(), np.ones((3, 6)))
        np.testing.assert_array_equal(writer.frame_table, clock)
    assert "c" not in store and list(store) == []
    assert begin(source={"size": 11}) == (0, 0, False)
    half()
    assert begin(provenance={"device": "cuda"}) == (0, 0, False)


def test_damaged_segments_are_written_again(store: EmbeddingStore) -> None:
    clock, taps = features(4000)
    with store.writer("c", source=SOURCE, provenance=PROVENANCE) as writer:
        writer.set_frame_table(clock)
        for start in (0, 1024, 2048):
            writer.write(start, {tap: value[start:start + SEGMENT] for tap, value in taps.items()})
    chunk = store.path / "c" / "block8" / "c.5.0"
    data = bytearray(chunk.read_bytes())
    data[100] ^= 1
    chunk.write_bytes(data)
    with store.writer("c", source=SOURCE, provenance=PROVENANCE) as writer:
        assert writer.written == 1024
        writer.write(1024, {tap: value[1024:2048] for tap, value in taps.items()})
    with store.writer("c", source=SOURCE, provenance=PROVENANCE) as writer:
        assert writer.written == 2048
        for start in (2048, 3072):
            writer.write(start, {tap: value[start:start + SEGMENT] for tap, value in taps.items()})
        writer.commit()
    np.testing.assert_array_equal(store["c"].read("block8"), taps["block8"])


def test_a_torn_journal_ends_at_its_last_whole_line(store: EmbeddingStore) -> None:
    _, taps = features(2048)
    with store.writer("c", source=SOURCE, provenance=PROVENANCE) as writer:
        for start in (0, 1024):
            writer.write(start, {tap: value[start:start + SEGMENT] for tap, value in taps.items()})
    journal = store.work / "c.journal"
    data = journal.read_bytes()
    for cut, expected in ((1, 1024), (len(data.splitlines()[-1]) + 2, 0)):
        journal.write_bytes(data[:-cut])
        with store.writer("c", source=SOURCE, provenance=PROVENANCE) as writer:
            assert writer.written == expected
    journal.write_bytes(b"no journal")
    with store.writer("c", source=SOURCE, provenance=PROVENANCE) as writer:
        assert writer.written == 0


def test_a_writer_refuses_what_does_not_fit(store: EmbeddingStore) -> None:
    clock, taps = features(1100)
    first = {tap: value[:SEGMENT] for tap, value in taps.items()}
    with store.writer("c", source=SOURCE, provenance=PROVENANCE) as writer:
        for start, values in ((1, first), (1024, first), (0, taps), (0, {"block8": first["block8"]}), (0, {}),
                              (0, {**first, "block8": first["block8"].astype(np.float32)}),
                              (0, {**first, "block8": first["block8"][:, :4]}),
                              (0, {**first, "block8": first["block8"][:4]}),
                              (0, {tap: value[:0] for tap, value in first.items()})):
            with pytest.raises(InputError):
                writer.write(start, values)
        with pytest.raises(InputError):
            writer.commit()
        writer.write(0, first)
        for bad in (clock[:1000], clock[:, :5], clock[0]):
            with pytest.raises(InputError):
                writer.set_frame_table(bad)
        writer.set_frame_table(clock[:1050])
        with pytest.raises(InputError):
            writer.write(1024, {tap: value[1024:] for tap, value in taps.items()})
        with pytest.raises(InputError, match="1024 frames"):
            writer.commit()
        with pytest.raises(InputError):
            writer.keep_detections(0, np.empty((0, 6)))
        with pytest.raises(InputError):
            writer.keep_detections(5, np.empty((0, 5)))


def test_missing_and_torn_chunks_never_read_as_zeros(store: EmbeddingStore) -> None:
    put(store, "c", 700)
    chunk = store.path / "c" / "block8" / "c.1.0"
    data = chunk.read_bytes()
    chunk.write_bytes(data[:-1])
    for read in (lambda c: c.read("block8"), lambda c: c["block8"][0], lambda c: c["block8"][600:],
                 lambda c: c["block8"].zarr):
        with pytest.raises(StoreError, match="missing or torn"):
            read(store["c"])
    chunk.unlink()
    with pytest.raises(StoreError, match="verify --repair"):
        store["c"].read("block8")
    assert np.isnan(zarr.open_group(store.path, mode="r")["c/block8"][300]).all()
    assert store["c"].read("repeat_1-3x3").shape == (700, 2, 3, 3)


def test_a_damaged_or_foreign_mark_makes_a_clip_absent(store: EmbeddingStore, tmp_path: Path,
                                                       caplog: pytest.LogCaptureFixture) -> None:
    put(store, "good", 5)
    put(store, "bad", 5)
    mark = store.path / "bad" / "zarr.json"
    mark.write_bytes(mark.read_bytes().replace(b'"frames": 5', b'"frames": 6'))
    other = EmbeddingStore.create(tmp_path / "other.zarr", {"backbone": "else"}, TAPS)
    put(other, "alien", 5)
    shutil.copytree(other.path / "alien", store.path / "alien")
    shutil.copytree(store.path / "good", store.path / "twin")
    with caplog.at_level(logging.WARNING):
        assert list(EmbeddingStore.open(store.path)) == ["good"]
    assert all(name in caplog.text for name in ("bad", "alien", "twin"))
    put(store, "bad", 7)
    assert list(store) == ["bad", "good"]


def test_digest_is_of_the_features_alone(tmp_path: Path) -> None:
    stores = [EmbeddingStore.create(tmp_path / f"{i}.zarr", SETTINGS, TAPS) for i in range(3)]
    for store, order in zip(stores, ("abc", "cab", "ab"), strict=True):
        for clip in order:
            put(store, clip, 10, ord(clip), provenance={"order": order})
    assert stores[0].digest() == stores[1].digest() != stores[2].digest()
    put(stores[2], "c", 10, 5)
    assert stores[0].digest() != stores[2].digest()
    stores[2].remove("c")
    put(stores[2], "c", 10, ord("c"))
    assert stores[0].digest() == stores[2].digest()


def test_remove_and_size(store: EmbeddingStore) -> None:
    before = store.size()
    put(store, "c", 300)
    assert store.size().files == before.files + 1 + 3 + 3 * 2
    assert store.size().bytes - before.bytes > 2 * 256 * (5 + 18) * 2
    store.remove("c")
    store.remove("c")
    assert "c" not in store and store.size() == before


def test_nothing_is_left_beside_the_store(store: EmbeddingStore) -> None:
    put(store, "c", 2000)
    assert {p.name for p in store.work.iterdir()} == {"gate.lock"}
    assert {p.name for p in (store.path / "c").iterdir()} == {"frame_table", "zarr.json", *TAPS}


def manifests_read(store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list that every manifest read of this store is added to."""
    read: list[str] = []
    plain = store.read_manifest
    monkeypatch.setattr(store, "read_manifest", lambda folder: read.append(folder) or plain(folder))
    return read


def test_the_index_saves_reading_each_manifest(store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = [f"c{i:02d}" for i in range(20)]
    for clip in clips:
        put(store, clip, 3)
    store.write_index()
    stamp = (store.work / INDEX).stat().st_mtime_ns
    again = EmbeddingStore.open(store.path, mode="a")
    read = manifests_read(again, monkeypatch)
    assert list(again) == clips and len(read) == INDEX_AFTER and again.digest() == store.digest()
    again.write_index()
    assert (store.work / INDEX).stat().st_mtime_ns == stamp, "nothing new"
    put(store, "c19", 5, source={"size": 11})  # another process replaces a clip and adds one
    put(store, "c20", 5)
    assert again.manifest("c19").frames == 5 and list(again) == [*clips, "c20"] and again.digest() == store.digest()
    shutil.rmtree(store.path / "c01")
    assert "c01" not in EmbeddingStore.open(store.path) and len(EmbeddingStore.open(store.path)) == 20


def test_a_damaged_index_is_ignored_and_written_anew(store: EmbeddingStore) -> None:
    for i in range(INDEX_AFTER + 2):
        put(store, f"c{i}", 3)
    store.write_index()
    index = store.work / INDEX
    whole = index.read_bytes()
    for data in (b"", whole[:40], whole[:-1] + bytes([whole[-1] ^ 1]), hashlib.sha256(b"x").digest() + b"x"):
        index.write_bytes(data)
        again = EmbeddingStore.open(store.path, mode="a")
        assert len(again) == INDEX_AFTER + 2 and again.digest() == store.digest()
        again.write_index()
        assert index.read_bytes() == whole


def test_a_clip_that_is_removed_is_in_no_index(store: EmbeddingStore) -> None:
    put(store, "zebra", 3)
    store.write_index()
    assert b"zebra" in (store.work / INDEX).read_bytes()
    store.remove("zebra")
    assert not (store.work / INDEX).exists()


def mutated(value: object, rng: random.Random) -> object:
    """Return a JSON value with something in it replaced."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(sorted(value))
        return {**value, key: mutated(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.6:
        i = rng.randrange(len(value))
        return [*value[:i], mutated(value[i], rng), *value[i + 1:]]
    return rng.choice([None, True, -1, 0, 2**70, 10**400, 1e308, "", "x" * 50, [], {}, [[]], {"a": 1}, [1, 2],
                       "\ud800"])


def meddled(data: bytes, rng: random.Random) -> bytes:
    """Return bytes cut, flipped, doubled, deeply nested, or as JSON that is sealed and makes no sense."""
    way = rng.randrange(6)
    if way == 0:
        return data[:rng.randrange(len(data))]
    if way == 1:
        i = rng.randrange(len(data))
        return data[:i] + bytes([rng.randrange(256)]) + data[i + 1:]
    if way == 2:
        return rng.choice([data + data, b"", b"[" * 100_000, b"9" * 10_000, b"\xff\xfe", b"null"])
    body = json.loads(data)["attributes"].get("fercache", {})
    body.pop("seal", None)
    body = mutated(body, rng) if body else body
    return with_checksum(body) if isinstance(body,
                                             dict) and body else json.dumps(mutated(json.loads(data), rng)).encode()


def use(path: Path) -> None:
    """Do with a store all that a user can, and meet nothing but the errors that are meant for users."""
    try:
        store = EmbeddingStore.open(path, mode="a")
        store.digest()
        verify.verify_store(path)
        for clip in ("a", "b"):
            if clip in store:
                assert store[clip].read("block8").shape == (20, 5) and len(store[clip].frame_table) == 20
                np.asarray(store[clip]["repeat_1-3x3"].zarr)
        put(store, "b", 20)
        assert list(store) in (["a", "b"], ["b"])
    except FercacheError as error:
        assert str(error)


def test_metadata_that_was_meddled_with(tmp_path: Path, full: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """No traceback, no hang, nothing but what was written: whatever the metadata files say."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # no power is lost here, and the disk's patience is minutes
    store = EmbeddingStore.create(tmp_path / "s" / "s.zarr", SETTINGS, TAPS)
    put(store, "a", 20)
    with store.writer("b", source=SOURCE, provenance=PROVENANCE) as writer:
        writer.set_frame_table(features(20)[0])
    rng = random.Random(7)
    names = ["s.zarr/zarr.json", "s.zarr/a/zarr.json", "s.zarr/a/zarr.json", "s.zarr/a/frame_table/zarr.json",
             "s.work/b.journal"]
    for i in range(1000 if full else 150):
        folder = tmp_path / str(i)
        shutil.copytree(tmp_path / "s", folder)
        path = folder / rng.choice(names)
        if path.suffix == ".journal":
            lines = [json.loads(line[9:]) for line in path.read_bytes().splitlines()]
            texts = [json.dumps(mutated(line, rng) if rng.random() < 0.5 else line).encode() for line in lines]
            path.write_bytes(b"".join(b"%08x %s\n" % (zlib.crc32(text), text) for text in texts))
        else:
            path.write_bytes(meddled(path.read_bytes(), rng))
        use(folder / "s.zarr")
        shutil.rmtree(folder)


def _work(path: str, clips: list[str]) -> None:
    store = EmbeddingStore.open(path, mode="a")
    for clip in clips:
        with store.writer(clip, source=SOURCE, provenance=PROVENANCE) as writer:
            if writer is not None:
                clock, taps = features(5, int(clip))
                writer.set_frame_table(clock)
                writer.write(0, taps)
                writer.commit()


@pytest.mark.parametrize("writers", [2, 4, 8])
def test_many_writers_make_what_one_makes(tmp_path: Path, writers: int) -> None:
    clips = [str(i) for i in range(60)]
    alone = EmbeddingStore.create(tmp_path / "alone.zarr", SETTINGS, TAPS)
    _work(str(alone.path), clips)
    shared = EmbeddingStore.create(tmp_path / "shared.zarr", SETTINGS, TAPS)
    context = multiprocessing.get_context("spawn")
    running = [context.Process(target=_work, args=(str(shared.path), clips[i:] + clips[:i])) for i in range(writers)]
    for process in running:
        process.start()
    running[0].kill()
    for process in running:
        process.join()
    assert [process.exitcode for process in running[1:]] == [0] * (writers - 1)
    _work(str(shared.path), clips)
    assert shared.digest() == alone.digest()


def as_format_1(store: EmbeddingStore) -> None:
    """Turn a store into what fercache 0.1 left: format 1, the frame table in the array "clock"."""
    for folder in store.files.folders():
        (store.path / folder / "frame_table").rename(store.path / folder / "clock")
    for path in [store.path / "zarr.json", *store.path.glob("*/zarr.json")]:
        body = json.loads(path.read_bytes())["attributes"]["fercache"]
        del body["seal"]
        if "arrays" in body:
            body["arrays"]["clock"] = body["arrays"].pop("frame_table")
        path.write_bytes(with_checksum({**body, "version": 1}))


def test_a_store_of_an_older_format_is_refused_with_the_next_step(store: EmbeddingStore) -> None:
    put(store, "c")
    as_format_1(store)
    with pytest.raises(StoreError, match="format 1") as error:
        EmbeddingStore.open(store.path)
    assert str(store.path) in str(error.value) and "fercache extract" in str(error.value) and error.value.exit_code == 2
    with pytest.raises(StoreError, match="format 1"):
        EmbeddingStore.create(store.path, SETTINGS, TAPS)


def test_extract_replaces_the_clips_of_an_older_format(store: EmbeddingStore) -> None:
    put(store, "c", seed=1)
    as_format_1(store)
    again = EmbeddingStore.create(store.path, SETTINGS, TAPS, repair=True)
    assert list(again) == []
    put(again, "c", seed=2)
    np.testing.assert_array_equal(again["c"].read("block8"), features(300, 2)[1]["block8"])
    assert not verify.verify_store(store.path).issues


def test_forget_finds_the_people_of_a_clip_in_an_older_store(tmp_path: Path) -> None:
    store = EmbeddingStore.create(tmp_path / "casia-1.zarr", {**SETTINGS, "people": "all"}, TAPS)
    for clip in ("c#1", "c#2", "d#1"):
        put(store, clip, 3)
    assert forget.people_in(tmp_path, "c") == {"c#1", "c#2"}
    as_format_1(store)
    assert forget.people_in(tmp_path, "c") == {"c#1", "c#2"}
