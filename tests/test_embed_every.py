"""--embed-every: which frames the CNN sees, what the store holds, and what a reader gets for the frames between."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_nets
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from videos import make_video

import fercache
from fercache import data
from fercache.backbones import backbone, weights
from fercache.cli import main
from fercache.config import FAST, DatasetConfig, ExtractConfig
from fercache.errors import InputError, StoreError
from fercache.extraction import job, resources
from fercache.extraction.clip import with_embedded
from fercache.faces.interpolation import EMBED_S, Face, select_frames
from fercache.maintenance.export import export_store
from fercache.maintenance.importer import import_features
from fercache.maintenance.verify import verify_store
from fercache.store.embedding_store import EmbeddingStore
from fercache.store.layout import EMBEDDED, FRAME_COLUMNS

TAPS = ("block8", "repeat_1-3x3")
FPS = 30


def selected(track: list[int], every: str, small: list[float] | None = None) -> list[int]:
    """Return the rows that are embedded of a clip with these tracks (-1: no face) and gray values of the face."""
    return [face.row for face in select_frames(
        (Face(row, row / FPS, number, [], None if small is None else np.full((16, 16), small[row], np.float32))
         for row, number in enumerate(track)), every)]


def runs(track: list[int]) -> list[list[int]]:
    """Return the rows of each unbroken run of one face."""
    rows = [list(group) for _, group in itertools.groupby(range(len(track)), lambda row: track[row])]
    return [run for run in rows if track[run[0]] >= 0]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from([-1, 0, 0, 0, 1]), min_size=1, max_size=60), st.sampled_from(["2", "3", "5", "auto"]),
       st.integers(0, 99))
def test_both_ends_of_every_run_are_embedded(track: list[int], every: str, seed: int) -> None:
    rows = selected(track, every, np.random.default_rng(seed).normal(100, 4, len(track)).tolist())
    assert rows == sorted(set(rows)) and rows
    assert all(track[row] >= 0 for row in rows) or rows == [0]
    most = round(EMBED_S * FPS) if every == "auto" else int(every)
    for run in runs(track):
        own = [row for row in rows if row in run]
        assert own[0] == run[0] and own[-1] == run[-1] and max(np.diff(own), default=0) <= most


def test_auto_embeds_where_the_face_changes() -> None:
    still, ramp = [100.0] * 30, [100.0 + 2 * row for row in range(30)]
    assert selected([0] * 30, "auto", still) == selected([0] * 30, "auto", ramp), "a straight line"
    change = [100.0] * 14 + [120.0] * 16
    rows = selected([0] * 30, "auto", change)
    assert {13, 14} <= set(rows) and len(rows) <= len(selected([0] * 30, "auto", still)) + 2


def test_a_cut_in_a_folder_of_crops_is_not_interpolated_across() -> None:
    assert {13, 14} <= set(selected([0] * 30, "10", [60.0] * 14 + [160.0] * 16))


def sparse_store(folder: Path, table: NDArray[np.float64], values: NDArray[np.float16]) -> EmbeddingStore:
    """Return a store of one clip with the table (T, 10), and the values (E, D) of its embedded rows."""
    store = EmbeddingStore.create(folder / "s.zarr", {"embed_every": "3"}, {"block8": values.shape[1:]})
    with store.writer("clip", source={"sha256": "a"}, provenance={}) as writer:
        assert writer is not None
        writer.set_frame_table(table)
        for start in range(0, len(values), 1024):
            writer.write(start, {"block8": values[start:start + 1024]})
        writer.commit()
    return EmbeddingStore.open(store.path)


def table_of(track: list[int], rows: list[int], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a frame table (T, 10) with uneven times."""
    table = np.zeros((len(track), len(FRAME_COLUMNS)))
    table[:, 0] = np.arange(1, len(track) + 1)
    table[:, FRAME_COLUMNS.index("time_s")] = np.cumsum(rng.uniform(.01, .07, len(track)))
    table[:, FRAME_COLUMNS.index("valid")] = np.array(track) >= 0
    table[:, FRAME_COLUMNS.index("track")] = track
    return with_embedded(table, rows)


@pytest.mark.parametrize("length", [40, 3000])
def test_frames_between_are_interpolated_in_time(tmp_path: Path, length: int) -> None:
    rng = np.random.default_rng(0)
    track = ([0] * 9 + [-1] * 2 + [0] * 5 + [1] * 7 + [-1, 1]) * (length // 25 + 1)
    track = track[:length]
    rows = selected(track, "3")
    table, values = table_of(track, rows, rng), rng.normal(size=(len(rows), 6)).astype(np.float16)
    tap = sparse_store(tmp_path, table, values)["clip"]["block8"]
    time_s, expected = table[:, 1], np.zeros((length, 6), np.float32)
    for run in runs(track):
        own = [rows.index(row) for row in run if row in rows]
        for column in range(6):
            expected[run, column] = np.interp(time_s[run], time_s[rows][own], values[own, column].astype(np.float32))
    whole = tap[:]
    assert tap.shape == whole.shape == (length, 6) and whole.dtype == np.float16
    np.testing.assert_allclose(whole, expected, atol=2e-3)
    np.testing.assert_array_equal(whole[rows], values)
    for index in (slice(10, 34), slice(None, None, 7), slice(30, 5, -3), 17, -1, slice(9, 11), (slice(3, 20), 2)):
        np.testing.assert_array_equal(tap[index], whole[index])
    out = np.empty((length, 6), np.float16)
    np.testing.assert_array_equal(sparse_store(tmp_path / "b", table, values)["clip"].read("block8", out), whole)
    assert tap.zarr.shape == values.shape


def test_causal_reading_repeats_the_last_embedded_frame(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    track = [0] * 11 + [-1] * 2 + [1] * 8
    rows = selected(track, "3")
    table, values = table_of(track, rows, rng), rng.normal(size=(len(rows), 4)).astype(np.float16)
    path = sparse_store(tmp_path / "a", table, values).path
    whole = EmbeddingStore.open(path, causal=True)["clip"].read("block8")
    for row, number in enumerate(track):
        expected = np.zeros(4) if number < 0 else values[max(i for i, other in enumerate(rows) if other <= row)]
        np.testing.assert_array_equal(whole[row], expected)
    # What comes later changes nothing that was read before.
    for stop in range(1, len(rows)):
        later = values.copy()
        later[stop:] = rng.normal(size=later[stop:].shape)
        changed = sparse_store(tmp_path / f"b{stop}", table, later).path
        np.testing.assert_array_equal(EmbeddingStore.open(changed, causal=True)["clip"].read("block8")[:rows[stop]],
                                      whole[:rows[stop]])


@pytest.mark.parametrize("rows", [[0, 3, 6, 9], [3, 6, 10], [0, 3, 6, 9, 10, 12, 14]])
def test_a_table_that_leaves_an_end_of_a_run_out_is_refused(tmp_path: Path, rows: list[int]) -> None:
    table = table_of([0] * 11 + [1] * 4, rows, np.random.default_rng(0))
    with pytest.raises(InputError, match="not embedded"):
        sparse_store(tmp_path, table, np.zeros((len(rows), 4), np.float16))


def test_a_missing_chunk_is_an_error(tmp_path: Path) -> None:
    track = [0] * 900
    rows = selected(track, "3")
    store = sparse_store(tmp_path, table_of(track, rows, np.random.default_rng(0)), np.ones((len(rows), 4), np.float16))
    (store.path / "clip" / "block8" / "c.1.0").unlink()
    with pytest.raises(StoreError, match="missing or torn"):
        EmbeddingStore.open(store.path)["clip"]["block8"][0]


# Stage one, with small nets and many borders.

@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("extraction.clip.SEGMENT", "store.writer.SEGMENT", "store.layout.CHUNK",
                  "extraction.clip.DETECT_BLOCK", "maintenance.export.SEGMENT", "maintenance.import_formats.SEGMENT"):
        monkeypatch.setattr(f"fercache.{place}", 8)
    monkeypatch.setitem(backbone.BATCHES, "cpu", 4)
    tiny_nets.install(replace=monkeypatch.setattr)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory, face_frames: list[NDArray[np.uint8]]) -> dict[str, Path]:
    """Videos (one without a face in its middle, one without any), and folders of crops with gaps."""
    folder = tmp_path_factory.mktemp("clips")
    frames = [np.asarray(Image.fromarray(frame).resize((320, 180))) for frame in face_frames] * 4
    blank = [np.full((180, 320, 3), 90, np.uint8)] * 20
    (folder / "videos").mkdir()
    make_video(folder / "videos" / "long.mp4", [*frames[:31], *blank, *frames[31:44]])
    make_video(folder / "videos" / "one.mp4", frames[:1])
    make_video(folder / "videos" / "empty.mp4", blank)
    for name, missing in (("gaps", {5, 6, 17}), ("all", set())):
        (folder / "crops" / name).mkdir(parents=True)
        for number in {*range(1, 41)} - missing:
            face = Image.fromarray(frames[number][20:160, 90:230])
            face.save(folder / "crops" / name / f"{number:05d}.jpg")
    return {"videos": folder / "videos", "crops": folder / "crops"}


def extract(folder: Path, home: Path, weights_at: Path, **how: object) -> EmbeddingStore:
    if not home.exists():
        home.mkdir()
        (home / "weights").symlink_to(weights_at)
    config = ExtractConfig(taps=TAPS, threads=1, **how)  # type: ignore[arg-type]
    dataset = data.load_dataset(DatasetConfig(clips=str(folder), dataset="table"), home)
    report = job.extract_dataset(dataset, config, home)
    assert not report.failures(), report.failures()
    return EmbeddingStore.open(report.store)


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("kind", ["videos", "crops"])
@pytest.mark.parametrize("every", ["3", "auto"])
def test_stage_one(clips: dict[str, Path], tmp_path: Path, weights_at: Path, kind: str, every: str) -> None:
    how = {"augmentations": 2} if kind == "crops" else {}
    full = extract(clips[kind], tmp_path / "full", weights_at, **how)
    store = extract(clips[kind], tmp_path / "sparse", weights_at, embed_every=every, **how)
    assert list(store) == list(full) and store.settings["embed_every"] == every
    for name in store:
        table, seen = store[name].frame_table, full[name].frame_table
        np.testing.assert_array_equal(np.column_stack([table[c] for c in FRAME_COLUMNS]),
                                      np.column_stack([seen[c] for c in FRAME_COLUMNS]))
        rows = np.flatnonzero(table[EMBEDDED])
        for tap in store.taps:
            assert store[name][tap].zarr.shape[0] == len(rows) <= max(len(table) * (.75 if len(table) > 1 else 1), 1)
            np.testing.assert_array_equal(store[name][tap][:][rows], full[name][tap][:][rows])
            assert not store[name].read(tap)[table["valid"] == 0].any()
    report = verify_store(store.path)
    assert report.whole and not report.issues and report.frames == sum(store[name].frames for name in store)
    again = extract(clips[kind], tmp_path / "more", weights_at, embed_every=every, concurrent_clips=4, **how)
    assert again.digest() == store.digest()


@pytest.mark.usefixtures("_small")
def test_every_frame_is_the_default_and_changes_no_store(clips: dict[str, Path], tmp_path: Path,
                                                         weights_at: Path) -> None:
    assert "embed_every" not in ExtractConfig().settings() and "embed_every" not in ExtractConfig(
        embed_every="1").settings()
    store = extract(clips["crops"], tmp_path / "full", weights_at, embed_every="1")
    assert store["all"].frame_table.dtype.names == FRAME_COLUMNS and "embed_every" not in store.settings


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("to", ["h5", "npz", "parquet"])
def test_export_writes_every_frame(clips: dict[str, Path], tmp_path: Path, weights_at: Path, to: str) -> None:
    store = extract(clips["videos"], tmp_path / "home", weights_at, embed_every="3")
    out = tmp_path / ("out" if to == "npz" else f"out.{to}")
    assert export_store(store, to, out)[1] == sum(store[name].frames for name in store)
    back = EmbeddingStore.open(import_features(out, "back", tmp_path / "imported").store)
    for name, tap in itertools.product(store, store.taps):
        np.testing.assert_array_equal(back[name].read(tap), store[name].read(tap))
        assert back[name].frame_table.dtype.names == FRAME_COLUMNS


@pytest.mark.usefixtures("_small")
def test_predict_causal_uses_no_later_picture(clips: dict[str, Path], tmp_path: Path, weights_at: Path) -> None:
    """Two clips differ from frame 21 on, which is embedded, and so are frames 16 and 26."""
    faces = [Image.open(path) for path in sorted((clips["crops"] / "all").iterdir())[:26]]
    for name, shift in (("a", 0), ("b", 6)):
        (tmp_path / name).mkdir()
        for number, face in enumerate(faces, 1):
            face.rotate(shift if number > 20 else 0).save(tmp_path / name / f"{number:05d}.png")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "weights").symlink_to(weights_at)
    for causal, same in ((True, True), (False, False)):
        result = fercache.predict(tmp_path / "a", tmp_path / "b", heads="starter", causal=causal, embed_every=5,
                                  threads=1, cache=tmp_path / "cache")
        assert not result.failed
        table = result.to_arrow()
        names = [name for name in table.column_names if name.startswith("p_")]
        probs = np.column_stack([table[name] for name in names]).reshape(2, 26, -1)
        assert np.array_equal(probs[0, 15:20], probs[1, 15:20]) == same and (probs[0, 20:] != probs[1, 20:]).any()


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize(("installed", "precision", "backend"), [(False, "float32", "torch"), (True, "fp16", "torch")])
def test_backend_auto_takes_what_there_is(clips: dict[str, Path], tmp_path: Path, weights_at: Path, installed: bool,
                                          precision: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "find_spec", lambda name: installed)
    store = extract(clips["crops"], tmp_path / "a", weights_at, backend="auto", precision=precision)
    assert {store.manifest(name).provenance["backend"] for name in store} == {backend}
    assert "backend" not in store.settings


def test_backend_auto_is_openvino_where_it_is_installed(weights_at: Path) -> None:
    pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    cnn = weights.ensure_weights("casia-webface", weights_at)
    configs = [ExtractConfig(taps=("conv2d_4b",), backend=backend, threads=1) for backend in ("auto", "torch")]
    assert [resources.load_nets(config, cnn, "cropped").provenance["backend"] for config in configs] == ["openvino",
                                                                                                         "torch"]
    assert job.settings_of(configs[0], "cropped", cnn) == job.settings_of(configs[1], "cropped", cnn)


@pytest.mark.parametrize("command", [["extract", "--clips"], ["predict", "--heads", "starter", "--out", "out"]])
def test_fast_sets_int8_and_auto_and_names_what_is_missing(command: list[str], clips: dict[str, Path], tmp_path: Path,
                                                           weights_at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "openvino", None)
    (tmp_path / "weights").symlink_to(weights_at)
    done = CliRunner().invoke(main, ["--cache", str(tmp_path), *command, str(clips["crops"]), "--fast"])
    assert done.exit_code == 2 and "fercache[openvino]" in done.stderr, done.stderr
    store, = tmp_path.glob("features/*/*.zarr")
    assert {name: EmbeddingStore.open(store).settings.get(name) for name in FAST} == {**FAST, "backend": None}
