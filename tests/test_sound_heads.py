"""Heads that read sound: what each reads, what a clip without sound loses, and the whole way to a new clip."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import Runner
from test_predict import table
from test_sound import PER_S, call, make_video
from test_transfer import store_of

from fercache.backbones.taps import TapSlice
from fercache.config import DatasetConfig, TrainConfig
from fercache.data.base import Dataset
from fercache.data.table import read_clip_table
from fercache.errors import InputError
from fercache.heads.base import build_head
from fercache.heads.registry import HEADS
from fercache.oof import OofLogits, without_sound
from fercache.stacking.run_metrics import read_metrics
from fercache.stacking.stack import StackInference
from fercache.store.embedding_store import EmbeddingStore
from fercache.store.layout import FRAME_COLUMNS
from fercache.store.multi_store import join_stores
from fercache.training import train
from fercache.training.data import load_features
from fercache.training.inference import load_trained, oof_features, predict_new

PEOPLE, FRAMES = 10, 120
CONFIG = TrainConfig(heads=("frame", "gru", "audio"), taps=("block8",), folds=2, ensemble=2, epochs=8, threads=1)


def write_sound(path: Path, rows: dict[str, np.ndarray]) -> EmbeddingStore:
    """Write a store of sound; a row of zeros has none."""
    store = EmbeddingStore.create(path, {"modality": "audio", "backbone": "logmel", "path": path.stem},
                                  {"audio": next(iter(rows.values())).shape[1:]})
    for clip, values in rows.items():
        with store.writer(clip, source={"sha256": clip}, provenance={}) as writer:
            assert writer is not None
            frame_table = np.full((len(values), len(FRAME_COLUMNS)), np.nan)
            frame_table[:, 0], frame_table[:, 1] = np.arange(1, len(values) + 1), np.arange(len(values)) / 30
            frame_table[:, 2] = values.any(1)
            writer.set_frame_table(frame_table)
            writer.write(0, {"audio": values.astype(np.float16)})
            writer.commit()
    return store


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Ten people with a label that changes once a second."""
    folder = tmp_path_factory.mktemp("set")
    names = [f"p{n}" for n in range(PEOPLE)]
    (folder / "clips.csv").write_text("\n".join(["clip,path", *(f"{name},{name}.mp4" for name in names)]) + "\n")
    rows = [f"{name},{frame},{label_at(i, frame)}" for i, name in enumerate(names) for frame in range(1, FRAMES + 1)]
    (folder / "labels.csv").write_text("\n".join(["clip,frame,label", *rows]) + "\n")
    for name in names:
        (folder / f"{name}.mp4").write_bytes(b"x")
    return read_clip_table(DatasetConfig(dataset="table", clips=str(folder / "clips.csv"), classes=("a", "b"),
                                         labels=str(folder / "labels.csv"), name="set"))


def label_at(person: int, frame: int) -> int:
    return int((person * 7 + frame // 30 * 5) % 4 > 1)


@pytest.fixture(scope="module")
def base(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    """Features that say nothing, beside sound that says the label; the last person has none, and frame 9 neither."""
    folder = tmp_path_factory.mktemp("cache") / "features" / "set"
    rng, rows = np.random.default_rng(0), {}
    for person in range(PEOPLE):
        label = np.array([label_at(person, frame) for frame in range(1, FRAMES + 1)])
        rows[f"p{person}"] = np.column_stack([label, -label, 1 + label]) + rng.normal(0, .3, (FRAMES, 3))
        rows[f"p{person}"][8] = 0
    rows[f"p{PEOPLE - 1}"][:] = 0
    write_sound(folder / "logmel-2.zarr", rows)
    return store_of(folder / "casia-1.zarr", {f"p{n}": FRAMES for n in range(PEOPLE)}, {"block8": (4,)})


@pytest.fixture(scope="module")
def trained(dataset: Dataset, base: EmbeddingStore) -> dict[bool, OofLogits]:
    """Out-of-fold logits with the sound joined, and without."""
    cache = Path(str(base.path)).parents[2]
    configs = {True: replace(CONFIG, join=("logmel",)), False: replace(CONFIG, heads=("frame", "gru"))}
    return {joined: OofLogits.load(train.train_heads(dataset, base, config, cache).logits_file)
            for joined, config in configs.items()}


def test_the_frame_head_reads_pictures_only(trained: dict[bool, OofLogits]) -> None:
    assert trained[True].logits["frame"].tobytes() == trained[False].logits["frame"].tobytes()


def test_temporal_heads_learn_from_what_is_heard(trained: dict[bool, OofLogits]) -> None:
    def right(oof: OofLogits, head: str, person: int | None = None) -> float:
        rows = oof.rows(person) if person is not None else np.arange(FRAMES * (PEOPLE - 1))
        return float((oof.logits[head][rows].argmax(1) == oof.label[rows]).mean())

    assert right(trained[True], "audio") > .85 and right(trained[True], "gru") > .8 > .7 > right(trained[False], "gru")
    silent = trained[True].logits["audio"][trained[True].rows(PEOPLE - 1)]
    np.testing.assert_allclose(silent, np.log(.5), atol=1e-5)


def test_new_clips_are_read_alike_and_need_no_sound(trained: dict[bool, OofLogits], base: EmbeddingStore,
                                                    dataset: Dataset) -> None:
    store = join_stores(base, ["logmel"], ["block8"])[0]
    heads = load_trained(Path(str(base.path)).parents[2] / "heads" / "set" / trained[True].fingerprint[:12])
    features = heads.load_features(store, dataset.trials)
    assert features.audio.shape == (PEOPLE * FRAMES, 3) and features.x.shape == (PEOPLE * FRAMES, 4)
    probs = predict_new(heads, features)
    silenced = predict_new(heads, replace(features, audio=np.zeros_like(features.audio)))
    assert np.isfinite(silenced["gru"]).all() and np.abs(silenced["gru"] - probs["gru"]).max() > .1
    np.testing.assert_array_equal(silenced["frame"], probs["frame"])
    last = features.rows(PEOPLE - 1)
    np.testing.assert_allclose(silenced["gru"][last], probs["gru"][last], atol=1e-6)


def test_logits_without_sound_are_those_of_silent_clips(trained: dict[bool, OofLogits], base: EmbeddingStore) -> None:
    """A second file holds what the heads predict out of fold if no clip has sound; the stack learns from it, too."""
    folder = Path(str(base.path)).parents[2] / "logits" / "set"
    mute = OofLogits.load(without_sound(folder / "x.h5", trained[True].provenance.settings or {})[1])
    assert mute.heads == ("frame", "gru") and len(list(folder.glob("*.h5"))) == 3
    assert mute.logits["frame"].tobytes() == trained[True].logits["frame"].tobytes()
    last = trained[True].rows(PEOPLE - 1)
    np.testing.assert_allclose(mute.logits["gru"][last], trained[True].logits["gru"][last], atol=1e-6)
    assert mute.logits["gru"].tobytes() == trained[False].logits["gru"].tobytes(), "no sound, nothing lost"
    assert np.abs(mute.logits["gru"] - trained[True].logits["gru"]).max() > .1


def test_sound_is_kept_where_no_face_is_seen_and_zeros_stay_zeros(base: EmbeddingStore, dataset: Dataset) -> None:
    store = join_stores(base, ["logmel"], [])[0]
    features = load_features(store, dataset.trials, ("logmel/audio", "block8"), normalize="clip")
    assert [(tap.tap, tap.start, tap.stop) for tap in features.layout] == [("block8", 0, 4), ("logmel/audio", 4, 7)]
    audible = features.audio.any(1).reshape(PEOPLE, FRAMES)
    assert not audible[-1].any() and not audible[:, 8].any() and audible.sum() == (PEOPLE - 1) * (FRAMES - 1)
    sound = features.only_sound()
    assert sound.x is features.audio and sound.layout[0].start == 0 and (sound.valid == audible.reshape(-1)).all()
    log_probs = np.zeros((len(features.label), 2), np.float32)
    assert [tap.start for tap in oof_features(log_probs, features).layout] == [0, 3]
    assert features.without_sound().layout == features.layout[:1]


def test_heads_and_taps_that_do_not_fit_are_refused(base: EmbeddingStore, dataset: Dataset, tmp_path: Path) -> None:
    for config in (CONFIG, replace(CONFIG, heads=("frame",), join=("logmel",), taps=("logmel/audio",))):
        with pytest.raises(InputError, match=r"reads (sound|pictures)") as told:
            train.train_heads(dataset, base, config, tmp_path)
        assert "--join" in told.value.hint


@pytest.mark.parametrize("name", ["gru", "transformer"])
def test_the_gate_adds_nothing_without_sound(name: str) -> None:
    """With no sound in any row, weights of the gate do not matter; with the picture dropped, sound alone decides."""
    taps = [TapSlice(tap="block8", start=0, stop=6, shape=(6,)),
            TapSlice(tap="logmel/audio", start=6, stop=9, shape=(3,))]
    torch.manual_seed(0)
    head = build_head(name, taps, 3, replace(HEADS[name].settings, temporal_input=False, width=16)).eval()
    x, seen = torch.randn(2, 12, 9), torch.ones(2, 12, dtype=torch.bool)
    time_s = torch.arange(12.0).expand(2, 12) / 10
    silent = torch.cat([x[..., :6], torch.zeros(2, 12, 3)], -1)
    before, audible = head(silent, seen, time_s), head(x, seen, time_s)
    for values in head.sound.parameters():
        values.data += 1
    torch.testing.assert_close(head(silent, seen, time_s), before, rtol=0, atol=0)
    assert (head(x, seen, time_s) - audible).abs().max() > 1e-3
    nobody = torch.zeros_like(seen)
    other = torch.cat([torch.zeros(2, 12, 6), x[..., 6:]], -1)
    assert (head(other, nobody, time_s)[0] - head(other, nobody, time_s)[1]).abs().max() > 1e-4
    head.train()
    assert torch.isfinite(head(x, seen, time_s)).all()


@pytest.mark.usefixtures("tiny_cnn", "tiny_detector")
def test_the_whole_way_on_clips_with_sound(linked: Path, runner: Runner, tmp_path: Path) -> None:
    """Pictures and sound, heads, stack, and a new clip with and without sound: one command each."""
    rng = np.random.default_rng(0)

    def write(path: Path, label: np.ndarray, audible: bool = True) -> None:
        loud = np.repeat(np.where(label, 9000, 300), PER_S // 25)
        sound = (rng.normal(0, 1, (len(loud), 2)) * loud[:, None]).clip(-32000, 32000).astype(np.int16)
        make_video(path, len(label), sound if audible else None)

    def labels() -> np.ndarray:
        return np.repeat(rng.integers(0, 2, 4), 12)

    (linked / "train").mkdir()
    lines = ["clip,frame,label"]
    for n in range(6):
        label = labels()
        label[:12], label[12:24] = 0, 1
        write(linked / "train" / f"c{n}.mkv", label)
        lines += [f"c{n},{frame},{value}" for frame, value in enumerate(label.tolist(), 1)]
    (linked / "labels.csv").write_text("\n".join(lines) + "\n")
    flags = ["--clips", linked / "train", "--labels", linked / "labels.csv", "--classes", "calm,loud"]
    for words in (["extract", *flags, "--taps", "block8", "--threads", 1],
                  ["extract", *flags, "--modality", "audio", "--audio-window-s", ".3", "--threads", 1],
                  ["train-heads", *flags, "--taps", "block8", "--join", "logmel", "--heads", "frame,gru,audio",
                   "--folds", 2, "--ensemble", 2, "--epochs", 8],
                  ["stack", *flags, "--bootstrap", 0, "--out", linked / "stacked.csv"]):
        done = call(linked, *words)
        assert done.exit_code == 0, done.output
    listed = json.loads(call(linked, "gc", *flags, "--json").stdout)["unreferenced"]
    assert not any("logmel" in item["path"] for item in listed), "heads may join it"
    label = labels()
    label[:24] = 1
    write(tmp_path / "new.mkv", label)
    write(tmp_path / "mute.mkv", label, audible=False)
    done = call(linked, "predict", tmp_path / "new.mkv", tmp_path / "mute.mkv", "--out", tmp_path / "out",
                "--no-timelines")
    assert done.exit_code == 0, done.output
    rows = table(tmp_path / "out" / "preds.csv")
    assert {clip: len(one) for clip, one in rows.items()} == {"mute": 48, "new": 48}
    stores = {path.name.rpartition("-")[0]: EmbeddingStore.open(path)
              for path in (linked / "cache" / "features" / "predict").glob("*.zarr")}
    assert stores.keys() == {"casia-webface", "logmel"}
    audible = {name: stores["logmel"][name].frame_table["valid"].any() for name in stores["logmel"]}
    assert audible == {str(tmp_path / "mute.mkv"): False, str(tmp_path / "new.mkv"): True}
    # The clip without sound is predicted by the stack of clips without sound, in which there is no head `audio`.
    oof = OofLogits.load(next((linked / "cache" / "logits" / "predict").glob("*.h5")))
    runs = {"audio" in read_metrics(path).columns: path.parent for path in linked.glob("cache/stack/*/*/metrics.json")}
    assert runs.keys() == {True, False}
    for clip, folder in (("mute", runs[False]), ("new", runs[True])):
        heads = oof.heads if clip == "new" else oof.heads[:2]
        own = replace(oof, heads=heads, logits={head: oof.logits[head] for head in heads})
        ppm = StackInference.of(folder, own).probs_ppm(own)
        wanted = ppm[oof.rows(oof.trials.index(str(tmp_path / f"{clip}.mkv")))] / 1e6
        written = [[float(row["p_calm"]), float(row["p_loud"])] for row in rows[clip]]
        np.testing.assert_allclose(written, wanted, atol=1e-6)
    by_sound = [int(row["prediction"]) for row in rows["new"]]
    assert np.mean(np.array(by_sound) == label) > .7


def test_training_drops_whole_modalities() -> None:
    layout = (TapSlice(tap="block8", start=0, stop=4, shape=(4,)), TapSlice(tap="audio", start=4, stop=6, shape=(2,)))
    torch.manual_seed(0)
    head = build_head("gru", layout, 3, HEADS["gru"].settings)
    known: list[torch.Tensor] = []
    assert head.sound is not None
    head.sound.register_forward_hook(lambda _, inputs, out: known.extend(torch.stack(inputs[2:]).unbind(1)))
    x, seen, time_s = torch.randn(2000, 5, 6), torch.ones(2000, 5, dtype=torch.bool), torch.arange(5.0).repeat(2000, 1)
    head.train()(x, seen, time_s)
    picture, sound = torch.stack(known).any(2).float().mean(0).tolist()
    # Of the windows .1 lose the picture and .3 the sound; the standard errors are .007 and .01.
    assert abs(picture - 0.9) < 0.03 and abs(sound - 0.7) < 0.04
    known.clear()
    head.eval()(x, seen, time_s)
    assert torch.stack(known).all()
