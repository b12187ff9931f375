"""Stage two's laws: one seed one result, killed and resumed equals unbroken, nobody is told by who learnt from it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_sets

from fercache import metrics
from fercache.config import TrainConfig
from fercache.data.base import Dataset, Trial
from fercache.errors import InputError, StoreError
from fercache.oof import OofLogits
from fercache.runtime import atomic_io
from fercache.store.embedding_store import EmbeddingStore
from fercache.training import checkpoints, train
from fercache.training.cross_validation import CrossValidatedTraining
from fercache.training.data import load_features
from fercache.training.inference import load_trained, mean_log_probs, predict_new

CONFIG = TrainConfig(taps=tuple(small_sets.TAPS), folds=3, ensemble=2, epochs=12, lr=1e-2, width=16, window_s=1.0,
                     threads=2)


def run(pair: tuple[Dataset, EmbeddingStore], cache: Path, **changed: Any) -> OofLogits:
    report = train.train_heads(*pair, replace(CONFIG, **changed), cache)
    return OofLogits.load(report.logits_file)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, EmbeddingStore]:
    return small_sets.dataset(tmp_path_factory.mktemp("set"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def book(pair: tuple[Dataset, EmbeddingStore], cache: Path) -> OofLogits:
    return run(pair, cache)


def heads_folder(cache: Path) -> Path:
    return next(p for p in (cache / "heads" / "small").iterdir() if p.is_dir())


def test_one_seed_one_result_and_another_seed_another(pair: Any, book: OofLogits, tmp_path: Path) -> None:
    again, other = run(pair, tmp_path, threads=1), run(pair, tmp_path, seed=1)
    for head in book.heads:
        assert np.array_equal(book.logits[head], again.logits[head]), "also with another number of workers"
        assert not np.array_equal(book.logits[head], other.logits[head])


def test_every_row_has_a_word_and_the_truth_is_found(book: OofLogits) -> None:
    known = book.label >= 0
    for head, said in book.logits.items():
        assert np.isfinite(said).all() and (said != 0).any(1).all()
        hit = (said.argmax(1) == book.label)[known].mean()
        assert hit > .6, (head, hit)


def test_a_second_run_trains_nothing(pair: Any, book: OofLogits, cache: Path) -> None:
    report = train.train_heads(*pair, CONFIG, cache)
    assert report.cached and not report.trained


def test_killed_and_resumed_equals_unbroken(pair: Any, book: OofLogits, tmp_path: Path) -> None:
    """SIGKILL of the whole process group as soon as some heads are there; the same command goes on from them."""
    code = ("import pathlib, sys, small_sets, test_train_heads as t\nroot = pathlib.Path(sys.argv[1])\n"
            "(root / 'set').mkdir()\nt.run(small_sets.dataset(root / 'set'), root)")
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], start_new_session=True,
                             stderr=subprocess.DEVNULL, cwd=Path(__file__).parent)
    deadline = time.monotonic() + 120
    while len(kept := list(tmp_path.glob("heads/small/*/[!.]*.json"))) < 4 and time.monotonic() < deadline:
        assert child.poll() is None, "ended before it could be killed"
        time.sleep(.02)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("heads/small/*/[!.]*.json")}
    assert len(before) >= len(kept) >= 4
    assert not list(tmp_path.glob("logits/small/*.h5"))
    resumed = run((pair[0], EmbeddingStore.open(tmp_path / "set" / "features.zarr")), tmp_path)
    assert {path: path.stat().st_mtime_ns for path in before} == before, "what was there was trained again"
    for head in book.heads:
        assert np.array_equal(book.logits[head], resumed.logits[head])


def test_the_store_is_read_once(pair: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fercache.store.clip import Clip

    reads: list[str] = []
    plain = Clip.read
    monkeypatch.setattr(Clip, "read", lambda clip, tap, out=None: (reads.append(f"{clip.name}/{tap}"),
                                                                   plain(clip, tap, out))[1])
    run(pair, tmp_path, heads=("frame", "gru"), folds=2, epochs=1)
    assert len(reads) == len(set(reads)) == len(pair[0].trials) * len(small_sets.TAPS)


def test_mapped_features_give_the_same_logits_and_are_written_once(pair: Any, book: OofLogits, tmp_path: Path) -> None:
    mapped = run(pair, tmp_path, memory="map")
    files = list(tmp_path.glob("heads/small/features/*.npy"))
    assert len(files) == 1
    for head in book.heads:
        assert np.array_equal(book.logits[head], mapped.logits[head])
    stamp = files[0].stat().st_mtime_ns
    run(pair, tmp_path, memory="map", heads=("frame",), epochs=1)
    assert files[0].stat().st_mtime_ns == stamp


def test_features_that_do_not_fit_are_told_or_mapped(pair: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                     caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("fercache.training.data.free_memory", lambda: 10_000)
    with pytest.raises(InputError, match="GB of memory") as told:
        load_features(pair[1], pair[0].trials, tuple(small_sets.TAPS))
    assert "--memory map" in str(told.value) and "--taps" in str(told.value)
    run(pair, tmp_path, heads=("frame",), epochs=1, folds=2)
    assert "mapped" in caplog.text and list(tmp_path.glob("heads/small/features/*.npy"))


def test_nobody_is_told_by_who_learnt_from_it(pair: Any, book: OofLogits, cache: Path) -> None:
    group = dict(zip(book.trials, book.group, strict=True))
    fold = dict(zip(book.trials, book.fold.tolist(), strict=True))
    for path in heads_folder(cache).glob("*-fold*.json"):
        said = atomic_io.read_json(path)
        seen, watched = set(said["trained_on"]), set(said["watched"])
        held = {group[name] for name, k in fold.items() if k in (said["fold"], -1)}
        assert seen and watched and not seen & watched and not (seen | watched) & held


def test_evidence_of_a_trial_comes_from_a_member_that_did_not_learn_it(pair: Any, tmp_path: Path) -> None:
    training = CrossValidatedTraining(*pair[:1], pair[0].trials, pair[1], replace(CONFIG, heads=("gru",), epochs=2),
                                      tmp_path / "a")
    assert training.run().keys() == {"gru"}
    for fold in range(training.splits.k):
        members = [checkpoints.load_checkpoint(path)
                   for path in sorted((tmp_path / "a").glob(f"frame-fold{fold}-*.json"))]
        assert len(members) == CONFIG.ensemble
        for i, trial in enumerate(pair[0].trials):
            strangers = [m for m in members if trial.group not in m.record["trained_on"]]
            inside = trial.group in {g for m in members for g in m.record["trained_on"]}
            assert len(strangers) == (1 if inside else len(members))
            told = mean_log_probs(strangers, training.features, [i], "cpu")
            rows = training.features.rows(i)
            told, seen = told[rows], training.features.valid[rows]
            assert np.allclose(training.oof_features[fold].x[rows][seen, :3], told[seen], atol=.01), (fold, trial.name)


def test_standardisation_is_fitted_on_training_rows_only(pair: Any) -> None:
    from fercache.heads.base import DEFAULTS
    from fercache.training.fit import FitTask, _fresh

    features = load_features(pair[1], pair[0].trials, tuple(small_sets.TAPS))
    task = FitTask(head="frame", settings=DEFAULTS["frame"], classes=3, train=(0, 1), val_trials=(2,), seed=0,
                   device="cpu")
    before = _fresh(task, features).standardise.mean.clone()
    features.x[features.offsets[2]:] += 100
    assert (_fresh(task, features).standardise.mean == before).all()
    features.x[:features.offsets[1]] += 1
    assert (_fresh(task, features).standardise.mean != before).any()


@pytest.mark.parametrize("changed", [{}, {"standardise": "clip", "evidence": "off"}], ids=str)
def test_shuffled_labels_give_chance(tmp_path: Path, changed: dict[str, Any]) -> None:
    """Through the real training, on more clips: the 95 % interval of the accuracy over groups holds one in three.

    Members that did learn from a trial are right on it more often than that, so a fold that leaked would be seen.
    """
    pair = small_sets.dataset(tmp_path, groups=24, frames=240, validation=0, shuffled=True)
    book = run(pair, tmp_path, epochs=8, **changed)
    assert set(book.heads) == {"frame", "gru", "transformer"}
    groups = np.repeat(np.arange(24), 240)

    def span(said: np.ndarray) -> tuple[float, float]:
        matrices = metrics.confusions(book.label, said.argmax(1), groups, 3, 24)
        low, high = metrics.Resampler(24, 1000, 0).intervals(matrices, ("accuracy",))["accuracy"]
        return low, high

    for head, said in book.logits.items():
        low, high = span(said)
        assert low < 1 / 3 < high, (head, low, high)
    known = load_trained(heads_folder(tmp_path))
    learnt = predict_new(known, known.preload(pair[1], pair[0].trials))  # of each trial most of the models have learnt
    assert span(learnt["frame"])[0] > 1 / 3


def test_trained_heads_speak_of_new_trials_as_the_book_does(pair: Any, book: OofLogits, cache: Path) -> None:
    known = load_trained(heads_folder(cache))
    assert known.heads == CONFIG.heads and known.classes == small_sets.CLASSES and known.taps == CONFIG.taps
    new = [t for t in pair[0].trials if t.split == "validation"]
    said = predict_new(known, known.preload(pair[1], new))
    rows = book.per_row(book.fold) < 0
    for head in book.heads:
        assert np.allclose(said[head], book.logits[head][rows], atol=1e-5), head


def test_unfinished_or_damaged_heads_are_told(pair: Any, book: OofLogits, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no trained heads"):
        load_trained(tmp_path)
    run(pair, tmp_path, heads=("gru",), epochs=1, folds=2)
    folder = heads_folder(tmp_path)
    new = load_features(pair[1], pair[0].trials[:1], ("block8",))
    with pytest.raises(InputError, match="trained on block8, repeat_1-3x3"):
        predict_new(folder, new)
    weights = folder / "gru-fold1-0.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(StoreError, match="not readable"):
        predict_new(folder, load_trained(folder).preload(pair[1], pair[0].trials[:1]))
    (folder / "frame-fold0-1.json").unlink()
    with pytest.raises(InputError, match="not finished"):
        load_trained(folder)


@pytest.mark.parametrize("groups", [2, 3])
def test_a_handful_of_groups_still_trains(tmp_path: Path, groups: int) -> None:
    book = run(small_sets.dataset(tmp_path, groups=groups, validation=1), tmp_path, members=4)
    assert book.epochs_fixed and all(np.isfinite(v).all() and v.any(1).all() for v in book.logits.values())


@pytest.mark.parametrize("changed", [
    {"loss": "plain"}, {"loss": "balanced"}, {"loss": "focal"}, {"loss": "adjusted"}, {"ema": .9}, {"mixup": .4},
    {"noise": .2}, {"hide_s": .3}, {"label_smoothing": 0.0}, {"standardise": "clip"}, {"evidence": "off"},
    {"members": 1}, {"window_s": 2.0}, {"step_s": .2}, {"precision": "bf16"}, {"level": "clip"}, {"dropout": .1},
    {"lr": 5e-4}, {"patience": 1}], ids=str)
def test_each_switch_changes_what_is_said_and_its_fingerprint(pair: Any, changed: dict[str, Any],
                                                              tmp_path: Path) -> None:
    short = replace(CONFIG, heads=("gru",), folds=2, epochs=5, patience=0)
    assert replace(short, **changed).fingerprint() != short.fingerprint()
    one, other = (train.train_heads(*pair, c, tmp_path) for c in (short, replace(short, **changed)))
    said = OofLogits.load(other.logits_file).logits["gru"]
    assert np.isfinite(said).all()
    if changed not in ({"patience": 1},):
        assert not np.array_equal(OofLogits.load(one.logits_file).logits["gru"], said)


def test_paper_heads_train_with_plain_settings(pair: Any, tmp_path: Path) -> None:
    book = run(pair, tmp_path, heads=("paper-frame", "paper-gru", "paper-transformer"), members=1, width=24, epochs=2,
               window_s=.3, folds=2)
    assert all(np.isfinite(said).all() for said in book.logits.values())


def test_a_refit_learns_from_validation_too_and_stands_apart(pair: Any, book: OofLogits, tmp_path: Path) -> None:
    """Folds over train and validation, every row of both out of fold; the plain books keep the name they had."""
    dataset, store = pair
    last = dataset.trials[-1]
    dataset = replace(dataset, trials=(*dataset.trials[:-1], replace(last, split="test", labels=None)))
    report = train.train_heads(dataset, store, replace(CONFIG, refit="all", epochs=2), tmp_path)
    refit = OofLogits.load(report.logits_file)
    split = np.array(refit.split)
    assert (refit.fold[split != "test"] >= 0).all() and (refit.fold[split == "test"] == -1).all()
    for record in refit.provenance["heads"]:
        held = {g for g, f in zip(refit.group, refit.fold.tolist(), strict=True) if f == record["fold"]}
        known = {*record["trained_on"], *record["watched"]}
        assert held and not held & known and known == set(refit.group) - held - {last.group}
    assert all(said[refit.rows(len(refit.trials) - 1)].any() for said in refit.logits.values())
    said = refit.provenance["settings"]
    assert said["refit"] == "all" and "refit" not in book.provenance["settings"]
    assert "refit" not in CONFIG.settings() and replace(CONFIG, refit="none").fingerprint() == CONFIG.fingerprint()
    assert load_trained(report.heads).folds == 3 and report.heads.name == refit.fingerprint[:12]
    assert train.current_logits_file(tmp_path,
                                     dataset.name) == report.logits_file, "what `stack` and `predict` take from now on"


def test_clip_level_heads_learn_a_set_with_one_label_a_clip(tmp_path: Path) -> None:
    """Half of a clip's frames show its class, the others nothing; one prediction a clip, right for most of them."""
    rng = np.random.default_rng(3)
    centre = rng.normal(size=(3, 48))
    store = EmbeddingStore.create(tmp_path / "features.zarr", {"weights": "none", "taps": list(small_sets.TAPS)},
                                  small_sets.TAPS)
    trials = []
    for i in range(18):
        shows = np.arange(60) < 30
        small_sets.put(store, f"clip{i:02d}", shows[:, None] * centre[i % 3] + rng.normal(size=(60, 48)),
                       np.ones(60, bool))
        trials.append(Trial(name=f"clip{i:02d}", path=tmp_path, kind="crops", parent="", group=f"clip{i:02d}",
                            split="train", clip_label=i % 3))
    clips = Dataset(name="small", layout="table", classes=small_sets.CLASSES, trials=tuple(trials), metric="uar")
    book = run((clips, store), tmp_path, level="clip", window_s=2.0)
    for head in ("gru", "transformer"):
        said = book.logits[head].reshape(18, 60, 3)
        assert (said == said[:, :1]).all(), "the same of every frame"
        assert (said[:, 0].argmax(1) == np.arange(18) % 3).mean() > .7, head
