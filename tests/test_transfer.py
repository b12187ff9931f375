"""Export and import: every format comes back bit for bit; a malformed file leaves nothing; siblings join by frame."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as how
from hypothesis import strategies as st
from pyarrow import parquet

from fercache.data import tables
from fercache.errors import InputError
from fercache.maintenance import export, importer, verify
from fercache.maintenance.import_formats import WIDEST
from fercache.runtime.uri import Url
from fercache.store.embedding_store import EmbeddingStore
from fercache.store.layout import FRAME_COLUMNS, SEGMENT

FORMATS = ("h5", "npz", "parquet")
ENDING = {"h5": "out.h5", "parquet": "out.parquet", "npz": "out"}


def store_of(path: Path, clips: dict[str, int], taps: dict[str, tuple[int, ...]], seed: int = 0) -> EmbeddingStore:
    """Return a store of random clips, name -> frames, with gaps in what was seen."""
    store = EmbeddingStore.create(path, {"backbone": "casia", "seed": seed}, taps)
    for i, (name, frames) in enumerate(clips.items()):
        rng = np.random.default_rng([seed, i])
        clock = np.column_stack([np.arange(1, frames + 1), np.cumsum(rng.random(frames)),
                                 rng.normal(size=(frames, len(FRAME_COLUMNS) - 2))])
        clock[rng.random(frames) < 0.3, 3:] = np.nan
        with store.writer(name, source={"size": i}, provenance={}) as writer:
            writer.set_frame_table(clock)
            for start in range(0, frames, SEGMENT):
                rows = min(SEGMENT, frames - start)
                bits = {tap: rng.integers(0, 0x7C00, (rows, *shape), np.uint16) | rng.choice(
                    np.array([0, 0x8000], np.uint16), (rows, *shape)) for tap, shape in taps.items()}
                writer.write(start, {tap: value.view(np.float16) for tap, value in bits.items()})
            writer.commit()
    return store


def there_and_back(store: EmbeddingStore, to: str, folder: Path) -> EmbeddingStore:
    export.export_store(store, to, folder / ENDING[to])
    report = importer.import_features(folder / ENDING[to], "back", folder / "features")
    assert not report.failed and sorted(report.clips) == sorted(store)
    return EmbeddingStore.open(report.store)


@pytest.mark.parametrize("to", FORMATS)
def test_a_round_trip_is_exact(tmp_path: Path, to: str) -> None:
    store = store_of(tmp_path / "casia-1.zarr", {"one": 1, "a/b": 73, "long": 2500, "日本": 1024},
                     {"block8": (5,), "repeat_1-3x3": (2, 3, 3), "score": (1,), "clip/x": (3,)})
    back = there_and_back(store, to, tmp_path)
    assert back.taps == store.taps and back.digest() == store.digest()
    for clip in store:
        for tap in store.taps:
            np.testing.assert_array_equal(back[clip].read(tap).view(np.uint16), store[clip].read(tap).view(np.uint16))
        assert back[clip].frame_table.tobytes() == store[clip].frame_table.tobytes()
    assert verify.verify_store(back.path).whole


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["../up", "/etc/passwd", "a/b", "a\\b", "CON", "zarr.json", ".", "..", "", "x" * 300, "é", "e\u0301", "frame_table",
     "\x00", "00001", "frames", "__clips.json", "clip.json"])
SHAPE = st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple)


@pytest.mark.parametrize("to", FORMATS)
@how(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(clips=st.dictionaries(TEXT, st.sampled_from([1, 2, 5, 255, 257]), min_size=1, max_size=3),
       taps=st.dictionaries(TEXT.filter(lambda t: t not in ("", "frame_table")), SHAPE, min_size=1, max_size=3),
       seed=st.integers(0, 2**16))
def test_any_name_and_shape_round_trips(tmp_path: Path, to: str, clips: dict[str, int],
                                        taps: dict[str, tuple[int, ...]], seed: int) -> None:
    folder = tmp_path / "case"
    shutil.rmtree(folder, ignore_errors=True)
    store = store_of(folder / "casia-1.zarr", clips, taps, seed)
    back = there_and_back(store, to, folder)
    assert back.digest() == store.digest() and back.taps == store.taps
    assert {p.name for p in folder.iterdir()} == {"casia-1.zarr", "casia-1.work", ENDING[to], "features"}


def test_chosen_clips_and_taps(tmp_path: Path) -> None:
    store = store_of(tmp_path / "casia-1.zarr", {"a": 3, "b": 4}, {"x": (2,), "y": (3,)})
    export.export_store(store, "h5", tmp_path / "out.h5", clips=["b"], taps=["y"])
    with h5py.File(tmp_path / "out.h5") as file:
        assert list(file) == ["b"] and sorted(file["b"]) == ["frame_table", "y"]
        assert list(file["b/frame_table"].attrs["columns"]) == list(FRAME_COLUMNS)
    for wrong in ({"clips": ["c"]}, {"taps": ["z"]}):
        with pytest.raises(InputError, match="does not hold"):
            export.export_store(store, "h5", tmp_path / "other.h5", **wrong)
    with pytest.raises(InputError, match="exists already"):
        export.export_store(store, "h5", tmp_path / "out.h5")
    assert not (tmp_path / "other.h5").exists()


ROWS = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
FRAMES = np.array([2, 3, 5, 8, 9, 1030])


def foreign(folder: Path, kind: str, name: str = "v", rows: np.ndarray = ROWS, frames: np.ndarray = FRAMES) -> Path:
    """Write features as other tools do."""
    folder.mkdir(exist_ok=True)
    if kind == "h5":
        with h5py.File(folder / "f.h5", "a") as file:
            for frame, row in zip(frames, rows, strict=True):
                file[f"{name}/{frame:05d}"] = row
        return folder / "f.h5"
    if kind == "npz":
        np.savez(folder / f"{name}.npz", features=rows, frames=frames)
        return folder
    lines = [f"{name},{n},{','.join(map(repr, map(float, row)))}" for n, row in zip(frames, rows, strict=True)]
    (folder / "f.csv").write_text("\n".join(["clip,frame,f0,f1,f2,f3", *lines]) + "\n")
    return folder / "f.csv"


@pytest.mark.parametrize("kind", ["h5", "npz", "csv"])
def test_features_made_elsewhere(tmp_path: Path, kind: str) -> None:
    report = importer.import_features(foreign(tmp_path / "in", kind), "effnet", tmp_path / "features" / "set", fps=25)
    assert report.clips == ["v"] and report.taps == {"features": (4,)} and report.frames == 1030
    assert report.store.parent == tmp_path / "features" / "set" and report.store.name.startswith("effnet-")
    clip = EmbeddingStore.open(report.store)["v"]
    wanted = np.zeros((1030, 4), np.float16)
    wanted[FRAMES - 1] = ROWS.astype(np.float16)
    np.testing.assert_array_equal(clip.read("features"), wanted)
    np.testing.assert_array_equal(np.flatnonzero(clip.frame_table["valid"]) + 1, FRAMES)
    np.testing.assert_array_equal(clip.frame_table["time_s"], np.arange(1030) / 25)
    again = importer.import_features(tmp_path / "in" if kind == "npz" else next((tmp_path / "in").iterdir()),
                                     "effnet", tmp_path / "features" / "set", fps=25)
    assert again.store == report.store and again.cached == ["v"] and not again.clips


def test_one_npy_a_trial(tmp_path: Path) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    np.save(tmp_path / "in" / "sub" / "v 1.npy", np.asfortranarray(ROWS))
    np.save(tmp_path / "in" / "w.npy", ROWS[:2].astype(np.float64))
    report = importer.import_features(tmp_path / "in", "mae", tmp_path / "features")
    store = EmbeddingStore.open(report.store)
    assert sorted(store) == ["sub/v 1", "w"]
    np.testing.assert_array_equal(store["sub/v 1"].read("features"), ROWS.astype(np.float16))
    changed = tmp_path / "in" / "w.npy"
    np.save(changed, ROWS[:3])
    assert importer.import_features(tmp_path / "in", "mae", tmp_path / "features").store != report.store


def test_labels_are_no_features(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("clip,frame,time_s,valid,label,prediction,p_A,p_B\nv,1,0,1,0,0,.25,.75\n")
    store = EmbeddingStore.open(importer.import_features(tmp_path / "p.csv", "n", tmp_path / "f").store)
    assert store["v"].read("features").tolist() == [[0.25, 0.75]]


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {os.environ['FERCACHE_TEST_BOMB']}",)


def bad_h5(path: Path, case: str) -> None:
    with h5py.File(path, "w") as file:
        if case == "huge":
            file.create_dataset("v/features", (2**40, 2**20), "f4", chunks=(1, 1024))
        elif case == "huge written":
            file.create_dataset("v/features", (2**40, 2**20), "f4", chunks=(1, 1024))[0, 0] = 1
        elif case == "external":
            (path.parent / "secret").write_bytes(bytes(64))
            file.create_dataset("v/features", (4, 4), "f4", external=[(str(path.parent / "secret"), 0, 64)])
        elif case == "link":
            with h5py.File(path.parent / "other.h5", "w") as other:
                other["v/features"] = ROWS
            file["v"] = h5py.ExternalLink("other.h5", "v")
        elif case == "loop":
            inner = file.create_group("a/b")
            inner["a"] = file["a"]
        elif case == "text":
            file["v/features"] = ["a", "b"]
        elif case == "ragged":
            file["v/00001"], file["v/00002"] = ROWS[0], ROWS[0, :2]
        elif case == "frame 0":
            file["v/00000"] = ROWS[0]
        elif case == "no number":
            file["v/00001"], file["v/x1"] = ROWS[0], ROWS[1]


H5 = ("huge", "huge written", "external", "link", "loop", "text", "ragged", "frame 0", "no number", "empty")
ARRAYS = {"nan": {"features": np.array([[1, np.nan]])}, "inf": {"features": np.array([[np.inf]])},
          "overflow": {"features": np.array([[7e4]])}, "complex": {"features": np.ones((2, 2), complex)},
          "twice": {"features": ROWS[:2], "frames": np.array([1, 1])}, "frame 0": {"features": ROWS[:1],
          "frames": np.array([0])}, "unsorted": {"features": ROWS[:2], "frames": np.array([2, 1])},
          "lengths": {"a": ROWS, "b": ROWS[:2]}, "no rows": {"features": ROWS[:0]}, "far": {"features": ROWS[:1],
          "frames": np.array([10**9])}, "wide": {"features": np.zeros((1, WIDEST + 1), np.float16)},
          "half frames": {"features": ROWS[:1], "frames": np.array([1.5])}, "no width": {"features": ROWS[:, :0]},
          "frame_table": {"features": ROWS, "frame_table": np.zeros((6, 9))}}


def npy_of(header: str, size: int) -> bytes:
    """Return an npy file of zeros under a header of one's own."""
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(size)


TABLES = {"no number": "clip,frame,a\nv,1,x\n", "cut": "clip,frame,a\nv,1,2\nv,2,3.", "nan": "clip,frame,a\nv,1,nan\n",
          "twice": "clip,frame,a\nv,1,2\nv,1,2\n", "header": "a,b\n1,2\n", "empty": "",
          "fields": "clip,frame,a\nv,1,2\nv,2\n", "label": "clip,frame,label\nv,1,2\n",
          "frame 0": "clip,frame,a\nv,0,1\n", "far": "clip,frame,a\nv,999999999999999999999999,1\n",
          "quote": 'clip,frame,a\n"v,1,2\n' + "x" * 10**5 + "\n"}


def made_bad(folder: Path, case: str) -> Path:
    """Write a malformed import and return its path."""
    kind, _, what = case.partition(": ")
    path = folder / f"v.{kind}"
    if kind == "h5":
        bad_h5(path, what)
    elif what in ARRAYS:
        np.savez(path, **ARRAYS[what])
    elif what == "objects":
        value = np.array([Bomb()], object)
        np.save(path, value, allow_pickle=True) if kind == "npy" else np.savez(path, features=value)
    elif what == "pickle":
        path.write_bytes(pickle.dumps({"v/00001.jpg": (ROWS[0], Bomb())}))
    elif what == "huge":
        path.write_bytes(npy_of("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 4)}\n", 64))
    elif what == "torch":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("archive/data.pkl", pickle.dumps(Bomb()))
    elif what == "bomb":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("features.npy", npy_of("{'descr': '|u1', 'fortran_order': True, 'shape': (100000, 100000)}\n",
                                                 10**7))
    elif kind == "csv":
        path.write_text(TABLES[what])
    else:
        path.write_bytes({"garbage": b"\x00garbage" * 99, "empty": b""}[what])
    return path


BAD = [*(f"h5: {case}" for case in H5), *(f"npz: {case}" for case in ARRAYS), "npz: objects", "npy: objects",
       "pkl: pickle", "npy: pickle", "npz: pickle", "npy: huge", "npz: torch", "npz: bomb", "npz: garbage",
       "npz: empty", "npy: garbage", "npy: empty", "parquet: garbage", "parquet: empty",
       *(f"csv: {case}" for case in TABLES)]


@pytest.mark.parametrize("case", BAD)
def test_malformed_files_are_refused_and_leave_nothing(tmp_path: Path, case: str,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    monkeypatch.setenv("FERCACHE_TEST_BOMB", str(tmp_path / "exploded"))
    path = made_bad(tmp_path / "in", case)
    before = forget_peak()
    with pytest.raises(InputError) as said:
        importer.import_features(path, "effnet", tmp_path / "features")
    assert said.value.exit_code == 2 and "next:" in str(said.value) and str(path.parent) in str(said.value)
    if "pickle" in case or "objects" in case:
        assert "can run code" in str(said.value)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]
    assert peak() - before < 1 << 20, "memory (kB) was not bounded"


def forget_peak() -> int:
    """Make the peak of this process's memory what it holds now, whatever it held before, and return it in kB."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> int:
    """Return the most memory that this process held since the last `forget_peak`, in kB."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore[index]


@pytest.mark.parametrize("to", FORMATS)
def test_a_cut_file_is_never_half_imported(tmp_path: Path, to: str) -> None:
    store = store_of(tmp_path / "casia-1.zarr", {"a": 600}, {"x": (64,)})
    export.export_store(store, to, tmp_path / ENDING[to])
    whole = sorted(p for p in [tmp_path / ENDING[to], *(tmp_path / ENDING[to]).rglob("*")] if p.is_file())
    for path in whole:
        data = path.read_bytes()
        for share in (0.0, 0.3, 0.7) if path.suffix == ".json" else (0.0, 0.3, 0.7, 0.999):
            path.write_bytes(data[:int(len(data) * share)])
            with pytest.raises(InputError):
                importer.import_features(tmp_path / ENDING[to], "back", tmp_path / "features")
            assert not (tmp_path / "features").exists()
        path.write_bytes(data)


def test_a_bad_clip_is_recorded_and_the_rest_goes_on(tmp_path: Path) -> None:
    foreign(tmp_path / "in", "npz", "good")
    foreign(tmp_path / "in", "npz", "narrow", ROWS[:, :3])
    foreign(tmp_path / "in", "npz", "zero", ROWS, FRAMES - 2)
    report = importer.import_features(tmp_path / "in", "effnet", tmp_path / "features")
    assert report.clips == ["good"] and sorted(report.failed) == ["narrow", "zero"]
    store = EmbeddingStore.open(report.store)
    assert list(store) == ["good"] and store.files.folders() == ["good"] and not list(store.work.glob("*.journal"))


def test_rows_of_a_clip_must_be_together(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("clip,frame,a\nv,1,1\nw,1,1\nv,2,1\n")
    for _ in range(2):
        report = importer.import_features(tmp_path / "t.csv", "n", tmp_path / "f")
        assert list(report.failed) == ["v"] and "sort" in report.failed["v"]
        assert list(EmbeddingStore.open(report.store)) == ["w"]


@pytest.mark.parametrize("name", ["../up", "/etc/passwd", "a/b", "C:\\x", "CON", "..", "x" * 400, "\u0430"])
def test_ids_cannot_leave_the_cache(tmp_path: Path, name: str) -> None:
    (tmp_path / "t.csv").write_text(f'clip,frame,a\n"{name}",1,1\n')
    report = importer.import_features(tmp_path / "t.csv", "n", tmp_path / "f")
    assert list(EmbeddingStore.open(report.store)) == [name]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f", "t.csv"] and len(list((tmp_path / "f").iterdir())) == 2
    for wrong in (name, "", "a b"):
        if wrong not in ("CON",):
            with pytest.raises(InputError, match="name"):
                importer.import_features(tmp_path / "t.csv", wrong, tmp_path / "f")


def test_a_long_clip_needs_little_memory(tmp_path: Path, full: bool) -> None:
    """A clip of 246 MB (full: 614 MB) goes out as each format and back in, in far less memory than it takes."""
    frames, limit_mb = (150_000, 200) if full else (60_000, 160)
    code = f"""
import re, threading, time, numpy as np
from pathlib import Path
from fercache.maintenance.export import export_store
from fercache.maintenance.importer import import_features
from fercache.store.embedding_store import EmbeddingStore
from fercache.store.layout import FRAME_COLUMNS, SEGMENT
here = Path({str(tmp_path)!r})
store = EmbeddingStore.create(here / "casia-1.zarr", {{"backbone": "x"}}, {{"x": (2048,)}})
with store.writer("c", source={{}}, provenance={{}}) as writer:
    writer.set_frame_table(np.column_stack([np.arange(1, {frames} + 1), np.zeros(({frames}, len(FRAME_COLUMNS) - 1))]))
    for start in range(0, {frames}, SEGMENT):
        writer.write(start, {{"x": np.full((min(SEGMENT, {frames} - start), 2048), start % 1000, np.float16)}})
    writer.commit()
def memory_kb():  # without mapped files, which the kernel drops where memory is short
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

seen = [memory_kb()]
def watch():
    while True:
        seen.append(memory_kb())
        time.sleep(.005)
threading.Thread(target=watch, daemon=True).start()
for to, name in (("h5", "o.h5"), ("npz", "o"), ("parquet", "o.parquet")):
    export_store(store, to, here / name)
    import_features(here / name, "back", here / "f")
    used = max(seen) - seen[0]
    print(to, used >> 10, "MB")
    assert used < {limit_mb} << 10, (to, used)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=600)
    print(done.stdout)
    assert done.returncode == 0, done.stderr


def test_into_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    report = importer.import_features(foreign(tmp_path / "in", "npz"), "effnet", Url("memory://import/features/set"))
    assert EmbeddingStore.open(report.store)["v"].frames == 1030


def test_blocks_of_a_table_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [f"{'vw'[n > 1500]},{n},{n % 7}" for n in range(1, 3001)]
    (tmp_path / "t.csv").write_text("\n".join(["clip,frame,a", *rows]) + "\n")
    monkeypatch.setattr(tables, "BLOCK_BYTES", 2000)
    store = EmbeddingStore.open(importer.import_features(tmp_path / "t.csv", "n", tmp_path / "f").store)
    assert store["v"].read("features")[:, 0].tolist() == [n % 7 for n in range(1, 1501)]
    assert store["w"].read("features")[1500:, 0].tolist() == [n % 7 for n in range(1501, 3001)]


def test_a_bad_row_costs_its_own_clip(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("clip,frame,a\nu,1,1\nv,1,x\nv,2,1\nw,1.5,1\nz,1,1\n")
    report = importer.import_features(tmp_path / "t.csv", "n", tmp_path / "f")
    assert report.clips == ["u", "z"] and sorted(report.failed) == ["v", "w"] and "line 3" in report.failed["v"]


def test_lists_of_parquet_are_taps(tmp_path: Path) -> None:
    table = {"clip": ["v"] * 3, "frame": [1, 2, 4], "x": [[1., 2.], [3., 4.], [5., 6.]], "y": [1, 2, 3]}
    parquet.write_table(pa.table(table), tmp_path / "t.parquet")
    store = EmbeddingStore.open(importer.import_features(tmp_path / "t.parquet", "n", tmp_path / "f").store)
    assert store.taps == {"x": (2,), "y": (1,)} and store["v"].read("x").tolist() == [[1, 2], [3, 4], [0, 0], [5, 6]]
    for wrong in ([[1., 2.], [3.], [5., 6.]], [[1., 2.], None, [5., 6.]], [["a"], ["b"], ["c"]], [[], [], []]):
        parquet.write_table(pa.table({**table, "x": wrong}), tmp_path / "t.parquet")
        with pytest.raises(InputError, match="v:"):
            importer.import_features(tmp_path / "t.parquet", "n", tmp_path / "g")
