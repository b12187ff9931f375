"""The starter heads: what is shipped, when they predict, and what they predict."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_sets
from books import simulate
from click.testing import CliRunner
from safetensors.numpy import load_file
from scipy.special import softmax
from videos import make_video

from fercache import media
from fercache.backbones.registry import DEFAULT_WEIGHTS
from fercache.cli import main
from fercache.config import StackConfig, TrainConfig
from fercache.data import demo
from fercache.data.base import SEVEN
from fercache.errors import InputError
from fercache.inference import starter
from fercache.inference.ensemble import select_models
from fercache.oof import OofLogits
from fercache.training import checkpoints, train
from fercache.training.train import train_heads
from fercache.workspace import Workspace

MAX_BYTES = 6_000_000


def test_the_shipped_heads_are_small_complete_and_have_a_card() -> None:
    files = [path for path in starter.FOLDER.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES
    card = starter.load_card()
    assert card.classes == SEVEN and "research" in card.terms and card.scores["validation"]["accuracy"] > 0.65
    records = checkpoints.record_files(starter.FOLDER)
    requested = checkpoints.load_record(records[0]).requested
    assert len(records) == requested.folds * requested.ensemble
    for path in records:
        trained = checkpoints.load_checkpoint(path)
        assert trained.record.classes == SEVEN and set(trained.record.store) == {"backbone", "weights"}
        assert trained.record.store["backbone"] == DEFAULT_WEIGHTS
        stored = load_file(path.with_suffix(".safetensors"))
        assert all(values.dtype == np.float16 and np.isfinite(values).all() for values in stored.values())


def test_they_predict_only_where_nothing_was_trained_or_by_name(tmp_path: Path) -> None:
    assert select_models(tmp_path).heads == starter.FOLDER and select_models(tmp_path).stack is None
    book = simulate(groups=4, frames=30)
    pointer = tmp_path / "logits" / book.dataset
    pointer.mkdir(parents=True)
    book.save(pointer / "0123456789ab.h5")
    (pointer / "current.json").write_text(json.dumps({"logits_file": "0123456789ab.h5"}))
    with pytest.raises(InputError, match="no stacker"):
        select_models(tmp_path)  # heads of the user's own come first, even if they are not ready
    assert select_models(tmp_path, heads=Path("starter")).heads == starter.FOLDER


def test_heads_of_the_demo_do_not_take_the_place_of_the_starter(tmp_path: Path) -> None:
    book = simulate(groups=4, frames=30, dataset="demo")
    path = tmp_path / "logits" / "demo" / "0123456789ab.h5"
    path.parent.mkdir(parents=True)
    book.save(path)
    Workspace(tmp_path).set_current_logits_file(path)
    assert select_models(tmp_path).heads == starter.FOLDER
    with pytest.raises(InputError, match="no stacker"):
        select_models(tmp_path, dataset="demo")  # whoever asks for the demo's own heads gets them


def test_probabilities_have_the_temperature_of_the_card() -> None:
    oof = simulate(groups=2, frames=60, heads=("frame",))
    logits = np.tile(np.array([2.0, 1.0, -1.0], np.float32), (len(oof.label), 1))
    result = starter.evaluate_starter(replace(oof, logits={"frame": logits}), StackConfig(bootstrap=0))
    temperature = starter.load_card().temperature
    assert temperature != 1
    np.testing.assert_allclose(result.ppm / 1e6, softmax(logits / temperature, axis=1), atol=2e-6)


def test_predictions_are_smoothed_over_half_a_second_and_stay_probabilities() -> None:
    oof = simulate(groups=3, frames=200, heads=("frame",), skill=1.0)
    result = starter.evaluate_starter(oof, StackConfig(bootstrap=0))
    assert (result.ppm.sum(1) == 1_000_000).all() and result.final == starter.SMOOTHED
    probs = np.full((len(oof.label), 3), 0.05, np.float32)
    probs[:, 0] = 0.9
    probs[60] = (0.05, 0.9, 0.05)  # one frame of another class does not survive
    probs[100:oof.rows(0).stop] = (0.05, 0.9, 0.05)  # a change that stays does
    smoothed = starter.smooth(probs, oof)[oof.rows(0)]
    assert smoothed[60].argmax() == 0 and smoothed[115].argmax() == 1
    assert np.allclose(smoothed.sum(1), 1, atol=1e-5)


def test_a_clip_is_predicted_in_an_empty_cache_with_one_command(linked: Path, cache: Path, tmp_path: Path,
                                                                full: bool) -> None:
    """The laughing woman of the demo is happy in most frames, though nothing was trained here."""
    clip = demo.fetch_demo_clips(cache / "clips") / "WolfgangLanger_Pexels.mp4"
    if not full:
        frames = [frame.image for frame in media.open_source(clip, "video").frames() if frame.image is not None]
        clip = make_video(tmp_path / "clip.mp4", frames[::3])
    done = CliRunner().invoke(main, ["--cache", str(linked / "cache"), "--stages", str(linked), "predict",
                                     str(clip), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    with (tmp_path / "out" / "preds.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(row["prediction"] == str(SEVEN.index("Happiness")) for row in rows) > len(rows) / 2
    metrics = json.loads((tmp_path / "out" / "preds.metrics.json").read_text())
    assert metrics["final"]["column"] == starter.SMOOTHED and metrics["predict"]["stack"] == ""
    assert list((tmp_path / "out" / "timelines").glob("*.png"))


def test_other_heads_are_not_packed(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "logits" / "d" / "0123456789ab.h5"
    path.parent.mkdir(parents=True)
    simulate(groups=3, frames=20).save(path)
    with pytest.raises(InputError, match="frame heads"):
        starter.pack_starter(path, tmp_path / "out")


def test_packed_heads_replace_those_before_and_the_card_counts_the_photos(tmp_path: Path) -> None:
    found, store = small_sets.dataset(tmp_path / "store", groups=6, frames=60, validation=2)
    store.settings |= dict.fromkeys(train.STARTER_FEATURES, "none")
    config = TrainConfig(heads=("frame",), taps=tuple(small_sets.TAPS), folds=3, ensemble=1, epochs=2)
    logits_file = train_heads(found, store, config, tmp_path / "cache").logits_file
    out = tmp_path / "out"
    shutil.copytree(starter.FOLDER, out)
    card = starter.pack_starter(logits_file, out)
    assert len(checkpoints.record_files(out)) == 3 and len(list(out.glob("*.safetensors"))) == 3
    photos = int(card.scores["train"]["frames"])
    assert f" {photos:,} " in card.data and starter.load_card(out) == card
    oof = OofLogits.load(logits_file)
    assert photos == int(((oof.label >= 0) & oof.per_row(np.array(oof.split) == "train")).sum())
