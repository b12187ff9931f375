"""Care of the cache: harm is found wherever it is, repaired by dropping what is harmed, and nothing else goes."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from fercache.diagnostics.check_issues import ClipIndex
from fercache.errors import InputError, StoreError
from fercache.maintenance import forget, gc, verify
from fercache.maintenance.verify import STRAY
from fercache.oof import OofLogits, Provenance
from fercache.runtime import atomic_io
from fercache.store.embedding_store import INDEX, EmbeddingStore
from fercache.store.layout import FRAME_COLUMNS, META, SEGMENT, encode_name

TAPS = {"block8": (4,), "grid": (1, 2, 2)}
SETTINGS = {"backbone": "casia", "detector": {"min_px": 40}}
CLIPS = {"a": 5, "../b": 300, "c" * 200: 73}


def put(store: EmbeddingStore, clip: str, frames: int, seed: int = 0, device: str = "cpu") -> None:
    rng = np.random.default_rng(seed)
    with store.writer(clip, source={"size": seed}, provenance={"device": device}) as writer:
        assert writer is not None
        writer.set_frame_table(rng.normal(size=(frames, len(FRAME_COLUMNS))))
        for start in range(0, frames, SEGMENT):
            rows = min(SEGMENT, frames - start)
            writer.write(start, {tap: rng.normal(size=(rows, *shape)).astype(np.float16)
                                 for tap, shape in TAPS.items()})
        writer.commit()


def make(path: Path, clips: dict[str, int] = CLIPS, **settings: object) -> EmbeddingStore:
    store = EmbeddingStore.create(path, {**SETTINGS, **settings}, TAPS)
    for clip, frames in clips.items():
        put(store, clip, frames)
    return store


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    return make(tmp_path / "s.zarr")


def test_a_whole_store_has_no_fault(store: EmbeddingStore) -> None:
    report = verify.verify_store(store.path)
    assert report.whole and not report.issues and report.clips == 3 and report.frames == sum(CLIPS.values())


def flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def test_every_flipped_bit_is_found(store: EmbeddingStore) -> None:
    """200 flips over files of arrays and metadata alike; each is the only fault, and names its file."""
    rng = random.Random(0)
    files = sorted(path for path in store.path.rglob("*") if path.is_file())
    for _ in range(200):
        path = rng.choice(files)
        held = path.read_bytes()
        flip(path, rng)
        try:
            found = [Path(issue.where) for issue in verify.verify_store(store.path).issues]
        except StoreError as error:  # the root: nothing can be said of its clips
            found = [error.where]
        assert found == [path], path
        path.write_bytes(held)
    assert verify.verify_store(store.path).whole


def test_a_damaged_manifest_names_its_clip_also_where_the_name_is_empty(tmp_path: Path) -> None:
    store = make(tmp_path / "s.zarr", {"": 5, "a": 5})
    flip(store.path / encode_name("") / META, random.Random(0))
    (issue,) = verify.verify_store(store.path).issues
    assert issue.details == ("",)


def test_repair_drops_the_harmed_and_nothing_else(store: EmbeddingStore, tmp_path: Path) -> None:
    other = make(tmp_path / "other.zarr", {"alien": 5}, backbone="vggface2")
    put(store, "missing", 600)
    put(store, "torn", 10)
    put(store, "flipped", 10)
    put(store, "unmarked", 10)
    (store.path / "missing" / "grid" / "c.1.0.0.0").unlink()
    torn = store.path / "torn" / "block8" / "c.0.0"
    torn.write_bytes(torn.read_bytes()[:-2])
    flip(store.path / "flipped" / "frame_table" / "c.0.0", random.Random(1))
    flip(store.path / "unmarked" / "zarr.json", random.Random(1))
    shutil.copytree(other.path / "alien", store.path / "alien")
    shutil.copytree(store.path / "a", store.path / "twin")
    (store.path / "a" / "notes.txt").write_text("mine")
    (store.path / ".tmp-x").write_text("left")
    found = verify.verify_store(store.path)
    assert not found.whole and {f.details[0] for f in found.issues if f.is_error} == {
        "missing", "torn", "flipped", "unmarked", "alien", "twin"}
    assert len([f for f in found.issues if f.kind == STRAY]) == 2 and found.frames == sum(CLIPS.values())
    assert all(issue.where in str(issue) for issue in found.issues)
    report = verify.verify_store(store.path, repair=True)
    assert set(report.dropped) == {"missing", "torn", "flipped", "unmarked", "alien", "twin"}
    assert len(report.cleared) == 2
    again = verify.verify_store(store.path)
    assert again.whole and not again.issues and list(EmbeddingStore.open(store.path)) == sorted(CLIPS)


def test_swapped_folders_are_found(store: EmbeddingStore, tmp_path: Path) -> None:
    """Two clips, two arrays of one shape, two chunks: all the bytes are there, in the wrong place."""
    def swap(one: Path, other: Path) -> None:
        one.rename(tmp_path / "aside")
        other.rename(one)
        (tmp_path / "aside").rename(other)

    for clip in ("p", "q"):
        put(store, clip, 300, seed=ord(clip))
    taps = EmbeddingStore.create(tmp_path / "t.zarr", {"x": 1}, {"one": (4,), "other": (4,)})
    with taps.writer("c", source={}, provenance={}) as writer:
        writer.set_frame_table(np.zeros((9, 9)))
        writer.write(0, {tap: np.full((9, 4), i, np.float16) for i, tap in enumerate(("one", "other"))})
        writer.commit()
    for path, one, other, harmed in ((store.path, "p", "q", {"p", "q"}), (taps.path, "c/one", "c/other", {"c"}),
                                     (store.path, "p/block8/c.0.0", "p/block8/c.1.0", {"p"})):
        swap(path / one, path / other)
        assert {issue.details[0] for issue in verify.verify_store(path).issues} == harmed
        swap(path / one, path / other)
        assert verify.verify_store(path).whole


def test_verify_while_a_clip_is_being_written(store: EmbeddingStore) -> None:
    with store.writer("new", source={}, provenance={}) as writer:
        writer.set_frame_table(np.zeros((4, 9)))
        report = verify.verify_store(store.path, repair=True)
        assert report.whole and report.unfinished == ("new",) and not report.dropped
        writer.write(0, {tap: np.zeros((4, *shape), np.float16) for tap, shape in TAPS.items()})
        writer.commit()
    assert verify.verify_store(store.path).clips == 4


def test_diff_names_settings_and_clips(store: EmbeddingStore, tmp_path: Path) -> None:
    twin = make(tmp_path / "twin.zarr")
    assert verify.diff_stores(store.path, twin.path).equal
    other = make(tmp_path / "other.zarr", {"a": 5}, detector={"min_px": 20}, precision="bf16")
    put(other, "../b", 300, seed=1, device="cuda")
    put(other, "new", 3)
    report = verify.diff_stores(store.path, other.path)
    assert not report.equal and report.same == 1
    assert report.settings == {"detector.min_px": (40, 20), "precision": ("(absent)", "bf16")}
    assert report.only_first == ("c" * 200,) and report.only_second == ("new",)
    (clip,) = report.differ
    assert clip.clip == "../b" and clip.arrays == ("block8", "frame_table", "grid")
    assert clip.provenance == {"device": ("cpu", "cuda")}


def book(path: Path, *trials: str, **provenance: str) -> None:
    n = len(trials)
    OofLogits(dataset="demo", classes=("x", "y"), metric="macro_f1", notice="", heads=("frame",), trials=trials,
              group=trials, split=("train",) * n, fold=np.zeros(n, np.int16), offsets=np.arange(n + 1), fingerprint="f",
              index=np.ones(n, np.int32), time_s=np.zeros(n), valid=np.ones(n, bool), label=np.zeros(n, np.int16),
              logits={"frame": np.zeros((n, 2), np.float32)}, provenance=Provenance(**provenance)).save(path)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Two data sets with a clip of one name, all stages."""
    root = tmp_path / "cache"
    for dataset in ("demo", "other"):
        make(root / "features" / dataset / "casia-1.zarr")
        make(root / "features" / dataset / "casia-2.zarr", {"a": 5}, margin=1)
        (root / "features" / dataset / "failures.csv").write_text('clip,message\n"d,d",bad\n')
        (root / "features" / dataset / "current.json").write_text('{"store": "casia-1.zarr"}')
        book(root / "logits" / dataset / "b1.h5", *CLIPS)
        for stage in ("heads", "stack"):
            (root / stage / dataset / "b1").mkdir(parents=True)
            (root / stage / dataset / "b1" / "said.json").write_text(json.dumps({"trained_on": ["a", "../b"]}))
    (root / "weights").mkdir()
    (root / "weights" / "a.json").write_text('"a"')
    return root


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_gc_takes_what_nobody_names(cache: Path) -> None:
    before = files(cache)
    named = cache / "features" / "demo" / "casia-1.zarr"
    store = EmbeddingStore.open(named, mode="a")
    with store.writer("half", source={}, provenance={}) as writer:
        writer.set_frame_table(np.zeros((4, 9)))
    (store.path / "lost" / "block8").mkdir(parents=True)
    keep = [cache / stage / "demo" / name for stage, name in (("logits", "b1.h5"), ("heads", "b1"), ("stack", "b1"))]
    with store.writer("live", source={}, provenance={}) as writer:
        writer.set_frame_table(np.zeros((4, 9)))
        waste = gc.find_unreferenced(cache, keep, {named: ["a", "../b", "half"]})
        assert {str(w.path.relative_to(cache)) + ":" + w.folder for w in waste} == {
            "features/demo/casia-1.zarr:lost", f"features/demo/casia-1.zarr:{encode_name('c' * 200)}",
            "features/demo/casia-2.zarr:", "features/other/casia-1.zarr:", "features/other/casia-2.zarr:",
            "logits/other/b1.h5:", "heads/other/b1:", "stack/other/b1:"}
        assert all(w.reason and w.size.bytes > 0 for w in waste if w.folder != "lost")
        assert before <= files(cache), "nothing is touched before it was asked for"
        freed = gc.remove_unreferenced(waste)
    assert freed.files > 50 and freed.bytes == sum(w.size.bytes for w in waste)
    assert list(EmbeddingStore.open(named)) == ["../b", "a"]
    assert verify.verify_store(named).unfinished == ("half", "live")
    assert verify.verify_store(named).whole and (cache / "weights" / "a.json").exists()
    assert not gc.find_unreferenced(cache, keep, {named: ["a", "../b", "half", "live"]})


def test_gc_leaves_a_store_that_is_being_written(cache: Path) -> None:
    path = cache / "features" / "other" / "casia-1.zarr"
    with EmbeddingStore.open(path, mode="a").writer("live", source={}, provenance={}):
        assert path not in {w.path for w in gc.find_unreferenced(cache, [], {})}
    waste = [w for w in gc.find_unreferenced(cache, [], {}) if w.path == path]
    with EmbeddingStore.open(path, mode="a").writer("live", source={}, provenance={}), pytest.raises(StoreError):
        gc.remove_unreferenced(waste)
    assert verify.verify_store(path).whole


def test_forget_leaves_no_trace_and_nothing_of_others(cache: Path) -> None:
    other = files(cache / "features" / "other")
    report = forget.forget_clip(cache, "../b", "demo")
    assert report.references == () == forget.find_references(cache, "../b", "demo")
    assert cache / "logits" / "demo" in report.removed and cache / "heads" / "demo" in report.removed
    assert list(EmbeddingStore.open(cache / "features" / "demo" / "casia-1.zarr")) == ["a", "c" * 200]
    assert files(cache / "features" / "other") == other and forget.find_references(cache, "../b")
    assert not forget.forget_clip(cache, "../b").references and not forget.find_references(cache, "../b")
    assert not any("%2Fb" in name or name.endswith("b1.h5") for name in files(cache))
    with pytest.raises(InputError, match="no clip"):
        forget.forget_clip(cache, "../b")
    for dataset in ("demo", "other"):
        assert verify.verify_store(cache / "features" / dataset / "casia-1.zarr").whole


def test_forget_removes_what_the_heads_predicted_for_other_data_sets(cache: Path) -> None:
    book(cache / "logits" / "other" / "new.h5", "x", trained_on="demo", heads="f", store="s.zarr")
    report = forget.forget_clip(cache, "a", "demo")
    assert cache / "logits" / "other" / "new.h5" in report.removed and not report.references
    assert files(cache / "logits") == {"other/b1.h5"}


def test_gc_lists_links_to_photos_and_leaves_the_photos(cache: Path, tmp_path: Path) -> None:
    photo = tmp_path / "face.png"
    photo.write_bytes(b"x" * 1000)
    live, old = (cache / "photos" / "demo" / name for name in ("0123456789ab", "ba9876543210"))
    for folder in (live, old):
        (folder / "clip").mkdir(parents=True)
        (folder / "clip" / "0.png").symlink_to(photo)
    with EmbeddingStore.open(cache / "features" / "demo" / "casia-1.zarr", mode="a").writer("live", source={},
                                                                                         provenance={}):
        assert old not in {w.path for w in gc.find_unreferenced(cache, [live], {})}, "an extraction may read them"
    listed = [w for w in gc.find_unreferenced(cache, [live], {}) if "photos" in w.path.parts]
    assert [w.path for w in listed] == [old] and listed[0].size.bytes < 1000, "the links, not what they lead to"
    gc.remove_unreferenced(listed)
    assert photo.exists() and live.exists() and not old.exists()


@pytest.mark.parametrize("lock", ["b2.lock", "features/x.lock"])
def test_gc_leaves_the_mapped_features_of_a_training_that_runs(cache: Path, lock: str) -> None:
    """`train-heads` holds the lock of its heads all the time, and that of a mapped file while it writes it."""
    features = cache / "heads" / "demo" / "features"
    features.mkdir()
    (features / "x.npy").write_bytes(b"x")
    with atomic_io.lock(cache / "heads" / "demo" / lock):
        assert features not in {w.path for w in gc.find_unreferenced(cache, [], {})}
    waste = [w for w in gc.find_unreferenced(cache, [], {}) if w.path == features]
    assert waste, "nobody maps them any more"
    with atomic_io.lock(cache / "heads" / "demo" / lock), pytest.raises(StoreError, match="another process"):
        gc.remove_unreferenced(waste)
    assert (features / "x.npy").exists()


def bytes_with(folder: Path, *texts: str) -> list[Path]:
    """Return the files whose name or content, byte by byte, holds one of the texts."""
    wanted = [text.encode() for text in texts]
    return [path for path in folder.rglob("*") if path.is_file() and any(
        text in bytes(path.relative_to(folder)) or text in path.read_bytes() for text in wanted)]


@pytest.mark.parametrize("file", ["zebra/2.mp4", "unlike.mp4"])
def test_after_forget_no_file_of_the_cache_holds_the_name_or_the_path(cache: Path, tmp_path: Path, file: str) -> None:
    """The index of `check` holds the paths of clips, which a table may call by any name."""
    clip, features = "zebra/2", cache / "features" / "demo"
    put(EmbeddingStore.open(features / "casia-1.zarr", mode="a"), clip, 4)
    book(cache / "logits" / "demo" / "b2.h5", clip, "a")
    (features / "failures.csv").write_text(f"clip,message\n{clip},{tmp_path / file} is torn\n")
    index = ClipIndex.load(cache, "demo")
    index.refresh([(tmp_path / name, "video") for name in (file, "other.mp4")])
    (index.path.parent / ".tmp-x1-demo.json").write_bytes(index.path.read_bytes())  # of a check that was killed
    ClipIndex.load(cache, "unrelated").refresh([(tmp_path / "zebra" / "1.mp4", "video")])
    assert index.path in bytes_with(cache, str(tmp_path / file))
    report = forget.forget_clip(cache, clip)
    assert report.references == () and index.path in report.removed and report.datasets == ("demo",)
    assert not bytes_with(cache, clip, encode_name(clip), str(tmp_path / file))
    assert (cache / "index" / "unrelated.json").exists()


def test_forget_knows_a_clip_that_was_only_checked(cache: Path, tmp_path: Path) -> None:
    index = ClipIndex.load(cache, "checked")
    index.refresh([(tmp_path / "zebra", "crops")])
    assert forget.find_references(cache, "zebra") == (index.path,)
    assert forget.forget_clip(cache, "zebra").removed == (index.path,)
    assert not bytes_with(cache, "zebra")


def test_forget_finds_the_index_of_manifests(cache: Path) -> None:
    """Also that of a clip whose folder somebody deleted."""
    store = EmbeddingStore.open(cache / "features" / "demo" / "casia-1.zarr", mode="a")
    store.write_index()
    shutil.rmtree(store.path / encode_name("../b"))
    assert store.work / INDEX in forget.find_references(cache, "../b", "demo")
    assert store.work / INDEX not in forget.find_references(cache, "nobody", "demo")
    assert not forget.forget_clip(cache, "../b", "demo").references and not (store.work / INDEX).exists()


def test_forget_finds_half_done_work_and_failures(cache: Path) -> None:
    store = EmbeddingStore.open(cache / "features" / "demo" / "casia-1.zarr", mode="a")
    with store.writer("d,d", source={}, provenance={}) as writer:
        writer.set_frame_table(np.zeros((4, 9)))
        with pytest.raises(StoreError, match="another process"):
            forget.forget_clip(cache, "d,d", "demo")
    assert len(forget.find_references(cache, "d,d", "demo")) == 3
    assert not forget.forget_clip(cache, "d,d", "demo").references
    assert not (cache / "features" / "demo" / "failures.csv").exists()


def test_a_book_that_cannot_be_read_counts_as_a_trace(cache: Path) -> None:
    (cache / "logits" / "demo" / "torn.h5").write_bytes(b"no book")
    assert cache / "logits" / "demo" / "torn.h5" in forget.find_references(cache, "nobody", "demo")
