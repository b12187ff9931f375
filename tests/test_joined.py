"""Stores joined on the frame clock: rows by frame number, zeros for what is missing, and all of it in the fingerprint.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_transfer import FRAMES, ROWS, foreign, store_of

from fercache.config import DatasetConfig, TrainConfig
from fercache.data.base import Dataset, Trial
from fercache.data.table import read_clip_table as read_table
from fercache.errors import InputError
from fercache.maintenance import importer
from fercache.store import remote
from fercache.store.embedding_store import EmbeddingStore
from fercache.store.multi_store import MultiStoreView, join_stores
from fercache.training.data import load_features


def base_of(folder: Path, name: str = "casia") -> EmbeddingStore:
    return store_of(folder / f"{name}-1.zarr", {"v": 40, "w": 3, "u": 5}, {"block8": (6,)})


def trials_of(names: list[str]) -> list[Trial]:
    return [Trial(name=name, path=Path(), kind="video", parent=name, group=name, split="train") for name in names]


def imported(folder: Path, name: str = "effnet", **how: np.ndarray) -> EmbeddingStore:
    """Import a clip `v` of 1,030 frames and a clip `u` of one, beside the base."""
    foreign(folder / "in", "npz", **how)
    foreign(folder / "in", "npz", "u", ROWS[:1], np.array([5]))
    return EmbeddingStore.open(importer.import_features(folder / "in", name, folder).store)


def test_rows_meet_by_frame_number(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base, other = base_of(tmp_path), imported(tmp_path)
    with caplog.at_level(logging.WARNING):
        store, taps = join_stores(base, ["effnet"], ["block8"])
    assert taps == ("block8", "effnet/features") and store.taps == {"block8": (6,), "effnet/features": (4,)}
    assert "1 of 3 clips, which get zeros: w" in caplog.text and "990 frames of 1 clips" in caplog.text
    wanted = np.zeros((40, 4), np.float16)
    wanted[FRAMES[:5] - 1] = ROWS[:5]
    np.testing.assert_array_equal(store["v"].read("effnet/features"), wanted)
    np.testing.assert_array_equal(store["u"].read("effnet/features")[:, 0], [0, 0, 0, 0, ROWS[0, 0].astype(np.float16)])
    out = np.full((3, 4), 7, np.float16)
    assert not store["w"].read("effnet/features", out).any() and not out.any()
    np.testing.assert_array_equal(store["v"].read("block8"), base["v"].read("block8"))
    assert store["v"].frame_table.tobytes() == base["v"].frame_table.tobytes() and store["v"].frames == 40
    assert "v" in store and "x" not in store and other.path.name in str([p.name for p in tmp_path.iterdir()])


def test_what_joins_is_in_digest_and_settings(tmp_path: Path) -> None:
    base = base_of(tmp_path)
    imported(tmp_path)
    one = join_stores(base, ["effnet"], ["block8"])[0]
    (tmp_path / "again").mkdir()
    again = join_stores(store_of(tmp_path / "again" / "casia-1.zarr", {"v": 40, "w": 3, "u": 5}, {"block8": (6,)}),
                 [str(imported(tmp_path / "again").path)], ["block8"])[0]
    assert one.digest() == again.digest() and one.settings == again.settings
    other = join_stores(base, [str(imported(tmp_path / "again", rows=ROWS * 2).path)], ["block8"])[0]
    assert one.digest() != other.digest() != base.digest() and one.settings != other.settings != base.settings
    assert join_stores(base, [], ["block8"]) == (base, ("block8",))


def test_taps_can_be_chosen(tmp_path: Path) -> None:
    base = base_of(tmp_path)
    store_of(tmp_path / "two-2.zarr", {"v": 4}, {"x": (1,), "y": (2,)})
    assert join_stores(base, ["two"], ["block8"])[1] == ("block8", "two/x", "two/y")
    assert join_stores(base, ["two"], ["two/y"])[1] == ("two/y",)
    store_of(tmp_path / "seen-3.zarr", {"v": 4}, {"x": (2,), "x_views": (3, 2)})
    assert join_stores(base, ["seen"], [])[1] == ("seen/x",)


def test_names_that_do_not_fit_are_said(tmp_path: Path) -> None:
    base = base_of(tmp_path)
    store_of(tmp_path / "two-2.zarr", {"v": 4}, {"x": (1,)})
    store_of(tmp_path / "two-3.zarr", {"v": 4}, {"x": (1,)}, seed=1)
    store_of(tmp_path / "strange-4.zarr", {"elsewhere": 4}, {"x": (1,)})
    for names, said in ((["two"], "2 stores"), (["nobody"], "no stores"), (["strange"], "no clip in common"),
                        (["two-2", "two-2"], "twice"), (["casia"], "twice")):
        with pytest.raises(InputError, match=said):
            join_stores(base, names, ["block8"])
    assert join_stores(base, ["two-3"], [])[1] == ("two/x",)


def test_far_stores_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    near = store_of(tmp_path / "casia-1.zarr", {f"c{i}": 300 for i in range(30)}, {"x": (3,), "y": (2, 2)})
    far = store_of("memory://ahead/casia-1.zarr", {f"c{i}": 300 for i in range(30)}, {"x": (3,), "y": (2, 2)})
    store_of("memory://ahead/more-2.zarr", {"c1": 200}, {"z": (1,)})
    store, taps = join_stores(EmbeddingStore.open(far.path), ["more"], ["y"])
    assert isinstance(store, MultiStoreView)
    names = sorted(near)
    for name in names:
        np.testing.assert_array_equal(store[name].read("y"), near[name].read("y"))
        np.testing.assert_array_equal(store[name].read("x"), near[name].read("x"))
        assert store[name].frame_table.tobytes() == near[name].frame_table.tobytes() and store[name].frames == 300
        assert store[name].read("more/z").any() == (name == "c1")
    here, there = (load_features(one, trials_of(names), ["x", "y"]) for one in (near, store))
    np.testing.assert_array_equal(here.x, there.x)
    np.testing.assert_array_equal(here.time_s, there.time_s)
    assert taps == ("y", "more/z") and load_features(store, trials_of(names), taps).x[:, -1].any()


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Twelve people whose label only the imported features tell."""
    rows = [f"p{n},p{n}.mp4" for n in range(12)]
    (tmp_path / "clips.csv").write_text("\n".join(["clip,path", *rows]) + "\n")
    for n in range(12):
        (tmp_path / f"p{n}.mp4").write_bytes(b"x")
    labels = [f"p{n},{frame},{frame // 10 % 2}" for n in range(12) for frame in range(1, 61)]
    (tmp_path / "labels.csv").write_text("\n".join(["clip,frame,label", *labels]) + "\n")
    return read_table(DatasetConfig(dataset="table", clips=str(tmp_path / "clips.csv"), classes=("a", "b"),
                                    labels=str(tmp_path / "labels.csv"), name="told"))


def test_heads_learn_from_what_joins(tmp_path: Path, dataset: Dataset) -> None:
    """Noise in the store, the answer in the import: joined, the heads know it; alone, they cannot."""
    from fercache.oof import OofLogits
    from fercache.training import train

    folder = tmp_path / "cache" / "features" / "told"
    base = store_of(folder / "casia-1.zarr", {f"p{n}": 60 for n in range(12)}, {"block8": (4,)})
    answer = np.stack([np.arange(1, 61) // 10 % 2, -(np.arange(1, 61) // 10 % 2)], axis=1).astype(np.float32)
    for n in range(12):
        foreign(tmp_path / "in", "npz", f"p{n}", answer, np.arange(1, 61))
    importer.import_features(tmp_path / "in", "answer", folder)
    config = TrainConfig(heads=("frame",), taps=("block8",))
    right = {}
    for names in ((), ("answer",)):
        report = train.train_heads(dataset, base, replace(config, join=names), tmp_path / "cache")
        book = OofLogits.load(report.logits_file)
        right[names] = (book.logits["frame"].argmax(axis=1) == book.label)[book.label >= 0].mean()
        assert train.train_heads(dataset, base, replace(config, join=names), tmp_path / "cache").cached
    assert right[("answer",)] > 0.8 > 0.65 > right[()], right
    assert len(list((tmp_path / "cache" / "logits" / "told").glob("*.h5"))) == 2


def test_reading_many_clips_at_once_hides_latency(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request waits 20 ms, as on a network: reading takes a small part of what the requests add up to."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    store_of("memory://slow/casia-1.zarr", {f"c{i:02}": 40 for i in range(48)}, {"x": (3,), "y": (2, 2)})
    asked, ranged = [], remote._ranged

    def slow(fs: object, path: str, start: int, end: int) -> bytes:
        asked.append(path)
        time.sleep(0.02)
        return ranged(fs, path, start, end)
    monkeypatch.setattr(remote, "_ranged", slow)
    store, taps = join_stores(EmbeddingStore.open("memory://slow/casia-1.zarr"), [], ["x", "y"])
    started = time.monotonic()
    read = load_features(store, trials_of(sorted(store)), taps)
    assert read.x.shape == (48 * 40, 7) and (read.x.reshape(48, 40, 7) != 0).any(1).all()
    spent = time.monotonic() - started
    assert len(asked) >= 48 * 3 and spent < 0.5 * 0.02 * len(asked), (spent, len(asked))
