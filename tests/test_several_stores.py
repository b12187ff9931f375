"""Heads that read several stores: trained, and predicted for new clips with one command."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax
from streams import write_clip, write_set
from test_predict import call, set_flags, shares, table

from fercache.config import ExtractConfig, StackConfig
from fercache.errors import WeightsError
from fercache.extraction import job
from fercache.inference import predict
from fercache.inference.ensemble import LoadedHeads, find_joined
from fercache.inference.predict import PredictJob, clips_dataset
from fercache.oof import OofLogits
from fercache.store.embedding_store import EmbeddingStore
from fercache.store.multi_store import MultiStoreView, join_stores
from fercache.training import checkpoints

BASE, SECOND = ["--taps", "conv2d_4b"], ["--taps", "block8", "--precision", "bf16"]
TAPS = "conv2d_4b,casia-webface/block8"
pytestmark = pytest.mark.usefixtures("tiny_cnn")


@pytest.fixture(scope="module")
def home(linked: Path, tiny_cnn: None) -> Path:
    """A folder with a set of crops, and a cache with heads on two stores of it, which differ in taps and precision."""
    write_set(linked / "set", train=8, test=2, frames=24)
    flags = set_flags(linked / "set")
    second = call(linked / "cache", "extract", *flags, *SECOND).output.split()[-1]
    for words in (["extract", *flags, *BASE],
                  ["train-heads", *flags, "--join", Path(second).stem, "--taps", TAPS, "--heads", "frame", "--folds",
                   "2", "--ensemble", "2", "--epochs", "2"],
                  ["stack", *flags, "--bootstrap", "0", "--out", str(linked / "stacked.csv")]):
        done = call(linked / "cache", *words)
        assert done.exit_code == 0, done.output
    return linked


def new_clips(folder: Path) -> list[Path]:
    rng = np.random.default_rng(5)
    for name in ("one", "two"):
        write_clip(folder / name, np.repeat([0, 1, 2], 8), rng)
    return [folder / "one", folder / "two"]


def heads_of(home: Path) -> Path:
    return next(path for path in (home / "cache" / "heads").glob("*/*") if path.is_dir())


def test_a_head_record_holds_how_each_store_was_made(home: Path) -> None:
    record = checkpoints.load_record(checkpoints.record_files(heads_of(home))[0])
    joined = record.store["joined"]["casia-webface"]
    assert (record.store["precision"], joined["precision"], joined["taps"]) == ("float32", "bf16", ["block8"])
    assert [tap.tap for tap in record.taps] == TAPS.split(",")


def test_predict_makes_the_same_stores_for_new_clips(home: Path, tmp_path: Path) -> None:
    """One command gives what extracting both stores by hand and naming them gives."""
    clips = new_clips(tmp_path)
    assert call(home / "cache", "predict", *clips, "--out", tmp_path / "out", "--no-timelines").exit_code == 0
    made = sorted((home / "cache" / "features" / "predict").glob("*.zarr"))
    assert sorted(EmbeddingStore.open(path).settings["precision"] for path in made) == ["bf16", "float32"]
    (tmp_path / "clips.csv").write_text(f"clip,path\none,{clips[0]}\ntwo,{clips[1]}\n")
    flags = ["--clips", tmp_path / "clips.csv", "--name", "hand"]
    for words in (SECOND, BASE):
        done = call(home / "cache", "extract", *flags, *words)
        assert done.exit_code == 0, done.output
    store = done.output.split()[-1]
    done = call(home / "cache", "predict", *flags, "--store", store, "--out", tmp_path / "hand", "--no-timelines")
    assert done.exit_code == 0, done.output
    by_hand, told = table(tmp_path / "hand" / "preds.csv"), table(tmp_path / "out" / "preds.csv")
    for clip in ("one", "two"):
        np.testing.assert_array_equal(shares(by_hand[clip]), shares(told[clip]))
    heads, base = LoadedHeads.find(home / "cache", heads_of(home)), EmbeddingStore.open(store)
    view = MultiStoreView(base, find_joined(base.path, heads.settings, ["one"]))
    oof = OofLogits.load(next((home / "cache" / "logits" / "hand").glob("*.h5")))
    by_heads = softmax(oof.logits["frame"][:24], 1)
    np.testing.assert_allclose(heads.predict_proba(view, "one")["frame"], by_heads, atol=1e-5)


def test_a_store_that_is_not_there_is_named(home: Path, tmp_path: Path) -> None:
    clip = new_clips(tmp_path)[0]
    (tmp_path / "clips.csv").write_text(f"clip,path\none,{clip}\n")
    flags = ["--clips", tmp_path / "clips.csv", "--name", "half"]
    store = call(home / "cache", "extract", *flags, *BASE).output.split()[-1]
    done = call(home / "cache", "predict", *flags, "--store", store, "--out", tmp_path / "out")
    assert done.exit_code == 2 and "casia-webface" in done.output and "--store" in done.output


def test_imported_features_must_be_imported_for_new_clips(home: Path, tmp_path: Path) -> None:
    flags = set_flags(home / "set")
    rows = [[f"s0-{i:02d}", n, n % 3] for i in range(10) for n in range(1, 25)]

    def write_table(path: Path, rows: list[list[object]]) -> Path:
        with path.open("w", newline="") as handle:
            csv.writer(handle).writerows([["clip", "frame", "value"], *rows])
        return path

    for words in (["import", write_table(tmp_path / "mine.csv", rows), "--as", "mine", *flags],
                  ["train-heads", *flags, "--join", "mine", "--taps", "conv2d_4b", "--heads", "frame", "--folds", "2",
                   "--ensemble", "2", "--epochs", "2"], ["stack", *flags, "--bootstrap", "0", "--out",
                                                         tmp_path / "stacked.csv"]):
        done = call(home / "cache", *words)
        assert done.exit_code == 0, done.output
    clips = new_clips(tmp_path)
    (tmp_path / "clips.csv").write_text(f"clip,path\none,{clips[0]}\ntwo,{clips[1]}\n")
    new = ["--clips", tmp_path / "clips.csv", "--name", "new"]
    refused = call(home / "cache", "predict", *new, "--out", tmp_path / "out")
    assert refused.exit_code == 2 and "--as mine" in refused.output and not list(home.glob("cache/features/new/*.zarr"))
    half = write_table(tmp_path / "half.csv", [["one", n, n % 3] for n in range(1, 25)])
    assert call(home / "cache", "import", half, "--as", "mine", *new).exit_code == 0
    done = call(home / "cache", "predict", *new, "--out", tmp_path / "out", "--no-timelines")
    assert done.exit_code == 1 and set(table(tmp_path / "out" / "preds.csv")) == {"one"}, done.output
    assert "mine" in (tmp_path / "out" / "failures.csv").read_text()
    assert json.loads((tmp_path / "out" / "preds.metrics.json").read_text())["predict"]["clips"].keys() == {"one"}


def test_three_recipes_of_one_net_can_be_joined(tmp_path: Path) -> None:
    from test_transfer import store_of

    base = store_of(tmp_path / "net-1.zarr", {"v": 4}, {"x": (1,)})
    for number in (2, 3):
        store_of(tmp_path / f"net-{number}.zarr", {"v": 4}, {"x": (1,)}, seed=number)
    view, taps = join_stores(base, ["net-2", "net-3"], ["x"])
    assert taps == ("x", "net/x", "net-3/x") and view.taps.keys() == set(taps)


def test_weights_that_are_no_known_ones_are_found_by_their_digest(tmp_path: Path,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.onnx").write_bytes(b"x")
    (tmp_path / "clip.mp4").write_bytes(b"x")
    for digest, name, wanted in (("a" * 64, "onnx:net.onnx", f"onnx:{tmp_path / 'net.onnx'}"),
                                 ("b" * 64, "net.onnx", str(tmp_path / "net.onnx")),
                                 ("c" * 64, "hf:owner/net", "hf:owner/net")):
        job.record_weights(tmp_path / "cache", digest, name)
        assert job.recorded_weights(tmp_path / "cache", digest) == wanted
    with pytest.raises(WeightsError, match="d" * 12):
        job.recorded_weights(tmp_path / "cache", "d" * 64)
    made = {"backbone": "onnx", "weights": "a" * 64, "precision": "float32", "taps": ["x"]}
    for joined, typed, wanted in ((False, "", f"onnx:{tmp_path / 'net.onnx'}"), (False, "onnx:new", "onnx:new"),
                                  (True, "onnx:new", f"onnx:{tmp_path / 'net.onnx'}")):
        request = PredictJob(dataset=clips_dataset([tmp_path]), models=None, defaults=ExtractConfig(),
                             overrides={"weights": typed} if typed else {}, stack=StackConfig())
        assert predict._config_of(request, made, tmp_path / "cache", joined=joined).weights == wanted
