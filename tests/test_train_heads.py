"""Stage two: one seed gives one result, killed and resumed equals unbroken, and no model predicts its training data."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import small_sets
import torch

from fercache import metrics
from fercache.config import TrainConfig
from fercache.data.base import Dataset, Trial
from fercache.data.photos import STREAMS_RECORD
from fercache.diagnostics import audit
from fercache.errors import InputError, StoreError
from fercache.oof import HeadRecord, OofLogits, StarterInit
from fercache.runtime import atomic_io
from fercache.store.embedding_store import EmbeddingStore
from fercache.training import checkpoints, train
from fercache.training.cross_validation import CrossValidatedTraining, load_starter
from fercache.training.data import load_features
from fercache.training.inference import load_trained, mean_log_probs, predict_new
from fercache.workspace import Workspace

CONFIG = TrainConfig(taps=tuple(small_sets.TAPS), folds=3, ensemble=2, epochs=8, lr=1e-2, width=16, window_s=1.0,
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
def oof(pair: tuple[Dataset, EmbeddingStore], cache: Path) -> OofLogits:
    return run(pair, cache)


def heads_folder(cache: Path) -> Path:
    return next(p for p in (cache / "heads" / "small").iterdir() if p.is_dir())


def test_one_seed_one_result_and_another_seed_another(pair: Any, oof: OofLogits, tmp_path: Path) -> None:
    again = run(pair, tmp_path, threads=1)
    one, other = (run(pair, tmp_path / f"{seed}", seed=seed, epochs=1, folds=2, ensemble=1) for seed in (0, 1))
    for head in oof.heads:
        assert np.array_equal(oof.logits[head], again.logits[head]), "also with another number of workers"
        assert not np.array_equal(one.logits[head], other.logits[head])


def test_every_row_is_predicted_mostly_correctly(oof: OofLogits) -> None:
    labelled = oof.label >= 0
    for head, log_probs in oof.logits.items():
        assert np.isfinite(log_probs).all() and (log_probs != 0).any(1).all()
        accuracy = (log_probs.argmax(1) == oof.label)[labelled].mean()
        assert accuracy > .6, (head, accuracy)


def test_a_second_run_trains_nothing(pair: Any, oof: OofLogits, cache: Path) -> None:
    report = train.train_heads(*pair, CONFIG, cache)
    assert report.cached and not report.trained


def test_killed_and_resumed_equals_unbroken(pair: Any, oof: OofLogits, tmp_path: Path) -> None:
    """SIGKILL to the whole process group as soon as some heads are finished; the same command resumes from them."""
    code = ("import pathlib, sys, small_sets, test_train_heads as t\nroot = pathlib.Path(sys.argv[1])\n"
            "(root / 'set').mkdir()\nt.run(small_sets.dataset(root / 'set'), root)")
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], start_new_session=True,
                             stderr=subprocess.DEVNULL, cwd=Path(__file__).parent)
    deadline = time.monotonic() + 120
    while len(finished := list(tmp_path.glob("heads/small/*/[!.]*.json"))) < 4 and time.monotonic() < deadline:
        assert child.poll() is None, "ended before it could be killed"
        time.sleep(.02)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("heads/small/*/[!.]*.json")}
    assert len(before) >= len(finished) >= 4
    assert not list(tmp_path.glob("logits/small/*.h5"))
    resumed = run((pair[0], EmbeddingStore.open(tmp_path / "set" / "features.zarr")), tmp_path)
    assert {path: path.stat().st_mtime_ns for path in before} == before, "finished heads were trained again"
    for head in oof.heads:
        assert np.array_equal(oof.logits[head], resumed.logits[head])


def test_the_store_is_read_once(pair: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fercache.store.clip import Clip

    reads: list[str] = []
    plain = Clip.read
    monkeypatch.setattr(Clip, "read", lambda clip, tap, out=None: (reads.append(f"{clip.name}/{tap}"),
                                                                   plain(clip, tap, out))[1])
    run(pair, tmp_path, heads=("frame", "gru"), folds=2, epochs=1)
    assert len(reads) == len(set(reads)) == len(pair[0].trials) * len(small_sets.TAPS)


def test_mapped_features_give_the_same_logits_and_are_written_once(pair: Any, short: OofLogits, tmp_path: Path) -> None:
    mapped = OofLogits.load(train.train_heads(*pair, replace(SHORT, memory="map"), tmp_path).logits_file)
    files = list(tmp_path.glob("heads/small/features/*.npy"))
    assert len(files) == 1 and np.array_equal(short.logits["gru"], mapped.logits["gru"])
    stamp = files[0].stat().st_mtime_ns
    run(pair, tmp_path, memory="map", heads=("frame",), epochs=1)
    assert files[0].stat().st_mtime_ns == stamp


def test_features_that_do_not_fit_are_an_error_or_mapped(pair: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                     caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("fercache.training.data.free_memory", lambda: 10_000)
    with pytest.raises(InputError, match="GB of memory") as raised:
        load_features(pair[1], pair[0].trials, tuple(small_sets.TAPS))
    assert "--memory map" in str(raised.value) and "--taps" in str(raised.value)
    run(pair, tmp_path, heads=("frame",), epochs=1, folds=2)
    assert "mapped" in caplog.text and list(tmp_path.glob("heads/small/features/*.npy"))


def test_no_model_predicts_its_training_groups(pair: Any, oof: OofLogits, cache: Path) -> None:
    group = dict(zip(oof.trials, oof.group, strict=True))
    fold = dict(zip(oof.trials, oof.fold.tolist(), strict=True))
    for path in heads_folder(cache).glob("*-fold*.json"):
        record = atomic_io.read_json(path)
        train, validation = set(record["train_groups"]), set(record["val_groups"])
        held_out = {group[name] for name, k in fold.items() if k in (record["fold"], -1)}
        assert train and validation and not train & validation and not (train | validation) & held_out


def test_oof_features_of_a_trial_come_from_a_member_not_trained_on_it(pair: Any, tmp_path: Path) -> None:
    training = CrossValidatedTraining.prepare(
        *pair[:1], pair[0].trials, pair[1], replace(CONFIG, heads=("gru",), epochs=2), tmp_path / "a",
        tmp_path / "weights")
    assert training.run().keys() == {"gru"}
    for fold in range(training.splits.k):
        members = [checkpoints.load_checkpoint(path)
                   for path in sorted((tmp_path / "a").glob(f"frame-fold{fold}-*.json"))]
        assert len(members) == CONFIG.ensemble
        for i, trial in enumerate(pair[0].trials):
            untrained = [m for m in members if trial.group not in m.record.train_groups]
            inside = trial.group in {g for m in members for g in m.record.train_groups}
            assert len(untrained) == (1 if inside else len(members))
            rows = training.features.rows(i)
            log_probs = mean_log_probs(untrained, training.features, [i], "cpu")[rows]
            seen = training.features.valid[rows]
            assert np.allclose(training.oof_features[fold].x[rows][seen, :3], log_probs[seen], atol=.01), (fold,
                                                                                                           trial.name)


def test_normalization_is_fitted_on_training_rows_only(pair: Any) -> None:
    from fercache.heads.registry import HEADS
    from fercache.training.fit import FitTask, _new_head

    features = load_features(pair[1], pair[0].trials, tuple(small_sets.TAPS))
    task = FitTask(head="frame", settings=HEADS["frame"].settings, classes=3, train=(0, 1), val_trials=(2,), seed=0,
                   device="cpu")
    before = _new_head(task, features).standardise.mean.clone()
    features.x[features.offsets[2]:] += 100
    assert (_new_head(task, features).standardise.mean == before).all()
    features.x[:features.offsets[1]] += 1
    assert (_new_head(task, features).standardise.mean != before).any()


@pytest.mark.parametrize("changed", [{}, {"normalize": "clip", "temporal_input": "features"}], ids=str)
def test_shuffled_labels_give_chance(tmp_path: Path, changed: dict[str, Any], full: bool) -> None:
    """Real training on more clips: the 95 % interval of the accuracy over groups contains one in three.

    Members that were trained on a trial are right more often on it, so a leaking fold would be seen.
    """
    groups, frames = (24, 240) if full else (24, 120)
    pair = small_sets.dataset(tmp_path, groups=groups, frames=frames, validation=0, shuffled=True)
    oof = run(pair, tmp_path, epochs=8, **changed)
    assert set(oof.heads) == {"frame", "gru", "transformer"}
    group = np.repeat(np.arange(groups), frames)

    def interval(log_probs: np.ndarray) -> tuple[float, float]:
        matrices = metrics.confusions(oof.label, log_probs.argmax(1), group, 3, groups)
        low, high = metrics.Resampler(groups, 1000, 0).intervals(matrices)["accuracy"]
        return low, high

    for head, log_probs in oof.logits.items():
        low, high = interval(log_probs)
        assert low < 1 / 3 < high, (head, low, high)
    trained = load_trained(heads_folder(tmp_path))
    # Most of the models were trained on each of these trials.
    leaked = predict_new(trained, trained.load_features(pair[1], pair[0].trials))
    assert interval(leaked["frame"])[0] > 1 / 3


def test_trained_heads_predict_new_trials_as_the_logits_file_does(pair: Any, oof: OofLogits, cache: Path) -> None:
    trained = load_trained(heads_folder(cache))
    assert trained.record.requested.heads == CONFIG.heads and trained.taps == CONFIG.taps
    assert trained.record.classes == small_sets.CLASSES
    new = [t for t in pair[0].trials if t.split == "validation"]
    predicted = predict_new(trained, trained.load_features(pair[1], new))
    rows = oof.per_row(oof.fold) < 0
    for head in oof.heads:
        assert np.allclose(predicted[head], oof.logits[head][rows], atol=1e-5), head


def test_unfinished_or_damaged_heads_are_errors(pair: Any, oof: OofLogits, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no trained heads"):
        load_trained(tmp_path)
    run(pair, tmp_path, heads=("gru",), epochs=1, folds=2)
    folder = heads_folder(tmp_path)
    new = load_features(pair[1], pair[0].trials[:1], ("block8",))
    with pytest.raises(InputError, match="trained on block8, repeat_1-3x3"):
        predict_new(load_trained(folder), new)
    weights = folder / "gru-fold1-0.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(StoreError, match="not readable"):
        predict_new(load_trained(folder), load_trained(folder).load_features(pair[1], pair[0].trials[:1]))
    (folder / "frame-fold0-1.json").unlink()
    with pytest.raises(InputError, match="not finished"):
        load_trained(folder)


@pytest.mark.parametrize("groups", [2, 3])
def test_a_handful_of_groups_still_trains(tmp_path: Path, groups: int) -> None:
    oof = run(small_sets.dataset(tmp_path, groups=groups, validation=1), tmp_path, ensemble=4)
    assert oof.epochs_fixed and all(np.isfinite(v).all() and v.any(1).all() for v in oof.logits.values())


def test_without_validation_every_training_group_of_a_fold_is_trained_on(pair: Any, tmp_path: Path) -> None:
    oof = run(pair, tmp_path, heads=("frame",), validation="none", ensemble=2, epochs=2, patience=1)
    folds = dict(zip(oof.group, oof.fold.tolist(), strict=True))
    records = [checkpoints.load_record(path) for path in checkpoints.record_files(heads_folder(tmp_path))]
    assert len(records) == 2 * CONFIG.folds
    for record in records:
        assert set(record.train_groups) == {group for group, fold in folds.items() if fold not in (-1, record.fold)}
        assert not record.val_groups and record.epoch == 2
    assert "validation" not in TrainConfig().settings(), "the names of older runs do not change"


SHORT = replace(CONFIG, heads=("gru",), folds=2, epochs=5, patience=0)


@pytest.fixture(scope="module")
def short(pair: tuple[Dataset, EmbeddingStore], tmp_path_factory: pytest.TempPathFactory) -> OofLogits:
    """The logits of the settings of which each test below changes one."""
    return OofLogits.load(train.train_heads(*pair, SHORT, tmp_path_factory.mktemp("short")).logits_file)


@pytest.mark.parametrize("changed", [
    {"loss": "plain"}, {"loss": "balanced"}, {"loss": "focal"}, {"loss": "adjusted"}, {"ema": .9}, {"mixup": .4},
    {"noise": .2}, {"time_mask_s": .3}, {"label_smoothing": 0.0}, {"normalize": "clip"}, {"temporal_input": "features"},
    {"ensemble": 1}, {"window_s": 2.0}, {"step_s": .2}, {"precision": "bf16"}, {"level": "clip"}, {"dropout": .1},
    {"lr": 5e-4}, {"patience": 1}], ids=str)
def test_each_setting_changes_logits_and_fingerprint(pair: Any, changed: dict[str, Any], short: OofLogits,
                                                     tmp_path: Path) -> None:
    assert replace(SHORT, **changed).fingerprint() != SHORT.fingerprint()
    logits = OofLogits.load(train.train_heads(*pair, replace(SHORT, **changed), tmp_path).logits_file).logits["gru"]
    assert np.isfinite(logits).all()
    if changed not in ({"patience": 1},):
        assert not np.array_equal(short.logits["gru"], logits)


def test_paper_heads_train_with_plain_settings(pair: Any, tmp_path: Path) -> None:
    oof = run(pair, tmp_path, heads=("paper-frame", "paper-gru", "paper-transformer"), ensemble=1, width=24, epochs=2,
               window_s=.3, folds=2)
    assert all(np.isfinite(logits).all() for logits in oof.logits.values())


def test_a_refit_trains_on_validation_too_under_another_name(pair: Any, oof: OofLogits, tmp_path: Path) -> None:
    """Folds over train and validation, every row of both out of fold; runs without a refit keep their name."""
    dataset, store = pair
    last = dataset.trials[-1]
    dataset = replace(dataset, trials=(*dataset.trials[:-1], replace(last, split="test", labels=None)))
    report = train.train_heads(dataset, store, replace(CONFIG, refit="all", epochs=2), tmp_path)
    refit = OofLogits.load(report.logits_file)
    split = np.array(refit.split)
    assert (refit.fold[split != "test"] >= 0).all() and (refit.fold[split == "test"] == -1).all()
    for record in refit.provenance.records:
        held_out = {g for g, f in zip(refit.group, refit.fold.tolist(), strict=True) if f == record.fold}
        used = {*record.train_groups, *record.val_groups}
        assert held_out and not held_out & used and used == set(refit.group) - held_out - {last.group}
    assert all(logits[refit.rows(len(refit.trials) - 1)].any() for logits in refit.logits.values())
    assert refit.provenance.setting("refit") == "all" and oof.provenance.setting("refit") is None
    assert "refit" not in CONFIG.settings() and replace(CONFIG, refit="none").fingerprint() == CONFIG.fingerprint()
    assert load_trained(report.heads).record.requested.folds == 3 and report.heads.name == refit.fingerprint[:12]
    assert Workspace(tmp_path).current_logits_file(dataset.name) == report.logits_file, "the default of later stages"


def test_clip_level_heads_learn_a_set_with_one_label_a_clip(tmp_path: Path) -> None:
    """Half of a clip's frames show its class, the others noise; one prediction per clip, right for most clips."""
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
    oof = run((clips, store), tmp_path, level="clip", window_s=2.0)
    for head in ("gru", "transformer"):
        logits = oof.logits[head].reshape(18, 60, 3)
        assert (logits == logits[:, :1]).all(), "the same for every frame"
        assert (logits[:, 0].argmax(1) == np.arange(18) % 3).mean() > .7, head


def test_one_class_is_refused_before_any_training(pair: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset, store = pair
    one = replace(dataset, trials=tuple(replace(t, labels=None, clip_label=1) for t in dataset.trials))
    with pytest.raises(InputError, match=dataset.classes[1]):
        train.train_heads(one, store, CONFIG, tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))
    trials = [t for t in dataset.trials if t.split == "train"]
    train.check_classes(dataset, [replace(trials[0], labels=None, clip_label=2),
                                  *(replace(t, labels=None, clip_label=1) for t in trials[1:])])
    assert dataset.classes[2] in caplog.text


# Training that begins with starter weights. The starter here is a training on other clips of the small set.

@pytest.fixture(scope="module")
def starter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found, store = with_weights(small_sets.dataset(tmp_path_factory.mktemp("photos"), groups=12, seed=7))
    config = replace(CONFIG, heads=("frame",), init="scratch", width=24)
    return train.train_heads(found, store, config, tmp_path_factory.mktemp("cache")).heads


def with_weights(pair: tuple[Dataset, EmbeddingStore]) -> tuple[Dataset, EmbeddingStore]:
    pair[1].settings |= dict.fromkeys(train.STARTER_FEATURES, "none")
    return pair


AS_IT_IS = {"heads": ("frame",), "epochs": 0, "width": 0, "lr": 0.0, "ensemble": 1}


def macro_f1(oof: OofLogits, head: str = "frame") -> float:
    rows = (oof.label >= 0) & (oof.per_row(oof.fold) >= 0)
    predicted = oof.logits[head][rows].argmax(1)
    return float(metrics.macro_f1(metrics.confusion(oof.label[rows], predicted, len(oof.classes))))


def records_of(cache: Path) -> list[HeadRecord]:
    return [checkpoints.load_record(path) for path in checkpoints.record_files(heads_folder(cache))]


def test_a_head_begins_with_the_starter_and_is_better_on_few_groups(starter: Path, tmp_path: Path) -> None:
    few = with_weights(small_sets.dataset(tmp_path / "set", groups=6, frames=60))
    begin = {"heads": ("frame", "gru"), "init": "starter", "init_from": str(starter), "epochs": 0, "lr": 0.0}
    begun = run(few, tmp_path / "a", **begin)
    scratch = run(few, tmp_path / "b", heads=("frame", "gru"), init="scratch", epochs=1)
    assert macro_f1(begun) > macro_f1(scratch) + 0.1
    for record in records_of(tmp_path / "a"):
        init = record.init
        assert (record.head == "frame") == isinstance(init, StarterInit)
        if isinstance(init, StarterInit):
            assert init.classes == small_sets.CLASSES and str(starter) in init.data
            assert record.settings.width == 24, "the starter's, not the recipe's"
    assert all(record.init is msgspec.UNSET for record in records_of(tmp_path / "b"))
    again = run(few, tmp_path / "c", **begin, threads=1)
    for head in begun.heads:
        assert np.array_equal(begun.logits[head], again.logits[head])


def test_with_very_few_groups_the_starter_predicts_as_it_is(starter: Path, tmp_path: Path) -> None:
    found, store = with_weights(small_sets.dataset(tmp_path / "set", groups=3, frames=60))
    config: dict[str, Any] = AS_IT_IS | {"init_from": str(starter)}
    oof = run((found, store), tmp_path, **config)
    features = load_features(store, found.trials, CONFIG.taps)
    files = checkpoints.record_files(starter)
    for k in range(3):
        expected = mean_log_probs([checkpoints.load_checkpoint(files[k])], features, range(len(found.trials)), "cpu")
        rows = oof.per_row(oof.fold) == k
        assert np.allclose(oof.logits["frame"][rows], expected[rows], atol=1e-5)
    assert all(record.epoch == 0 for record in records_of(tmp_path))


def test_classes_and_taps_fit_by_name(starter: Path, tmp_path: Path) -> None:
    found, store = with_weights(small_sets.dataset(tmp_path / "set", groups=3, frames=60))
    mixed = replace(found, classes=("sad", "Other", "Calm", "Glad"))
    config = replace(CONFIG, **AS_IT_IS, init_from=str(starter), taps=CONFIG.taps[::-1])
    init = train.starter_init(mixed, found.trials, store, config)
    assert init and init.classes == ("sad", "Calm", "Glad")
    [plain, *_], _ = load_starter(config, found.classes)
    [other, *_], _ = load_starter(config, mixed.classes)
    changed = [name for name in plain if plain[name].shape != other[name].shape]
    assert len(changed) == 2, "weight and bias of the last layer"
    for name, values in plain.items():
        rows = other[name][[2, 3, 0]] if name in changed else other[name]
        assert torch.equal(rows, values)
    # "Other" must be trained, and taps are read in the starter's order.
    oof = run((mixed, store), tmp_path / "cache", **AS_IT_IS | {"init_from": str(starter), "taps": CONFIG.taps[::-1]})
    record = records_of(tmp_path / "cache")[0]
    assert record.epoch > 0 and tuple(tap.tap for tap in record.taps) == CONFIG.taps
    assert oof.logits["frame"].shape[1] == 4


def test_heads_of_the_same_clips_are_no_starter(pair: Any, oof: OofLogits, cache: Path) -> None:
    config = replace(CONFIG, init="starter", init_from=str(heads_folder(cache)))
    with pytest.raises(InputError, match="same store"):
        train.starter_init(pair[0], pair[0].trials, pair[1], config)


@pytest.mark.parametrize(("changed", "message"), [
    ({"taps": ("block8",)}, "repeat_1-3x3"), ({"normalize": "clip"}, "normalize"),
    ({"heads": ("paper-frame",)}, "frame")])
def test_a_starter_that_does_not_fit_is_refused_by_name_and_left_out_by_auto(
        starter: Path, tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    found, store = with_weights(small_sets.dataset(tmp_path / "set", groups=3, frames=60))
    config = replace(CONFIG, init_from=str(starter), width=0, **changed)
    with pytest.raises(InputError, match=message):
        train.starter_init(found, found.trials, store, replace(config, init="starter"))
    assert train.starter_init(found, found.trials, store, config) is None


def test_auto_begins_with_the_starter_on_few_groups_only(starter: Path, tmp_path: Path) -> None:
    found, store = with_weights(small_sets.dataset(tmp_path / "set", groups=4, frames=60))
    config = replace(CONFIG, init_from=str(starter), width=0)
    init = train.starter_init(found, found.trials, store, config)
    assert init and train.settings_of(found, found.trials, store, config)["init"][0] == init.digest
    many = [replace(t, group=f"{t.name} {i}") for t in found.trials for i in range(train.STARTER_MAX_GROUPS)]
    assert train.starter_init(found, many, store, config) is None
    scratch = replace(config, init="scratch", init_from="nowhere")
    assert train.settings_of(found, found.trials, store, scratch).keys() & {"init", "init_from"} == set()
    with pytest.raises(InputError, match="init-from"):
        train.starter_init(found, found.trials, store, replace(config, init_from=str(tmp_path)))


def test_fer2013_and_streams_of_its_photos_begin_with_random_weights(starter: Path, tmp_path: Path) -> None:
    found, store = with_weights(small_sets.dataset(tmp_path / "set", groups=4, frames=60))
    config = replace(CONFIG, init_from=str(starter), width=0)
    fer2013 = replace(found, layout="fer2013")
    assert train.starter_init(fer2013, found.trials, store, config) is None
    with pytest.raises(InputError, match="FER2013"):
        train.starter_init(fer2013, found.trials, store, replace(config, init="starter"))
    (tmp_path / "set" / STREAMS_RECORD).write_text("{}")
    assert train.starter_init(found, found.trials, store, config) is None
    # A starter of one's own may have been trained on other photos: then it is named, not refused.
    named = train.starter_init(found, found.trials, store, replace(config, init="starter"))
    assert named and STREAMS_RECORD in named.shared
    oof = run((found, store), tmp_path / "cache", **AS_IT_IS | {"init": "starter", "init_from": str(starter)})
    issue = audit.check_starter(oof, None)
    assert issue.severity == "warning" and STREAMS_RECORD in issue.message and "--init scratch" in issue.message
