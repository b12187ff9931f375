"""Predict through the command line: new clips, new sets, what is cached, what is refused, what is not scored."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from streams import CLASSES, write_clip, write_set
from videos import make_video

from fercache import media
from fercache.backbones.backbone import Backbone
from fercache.cli import main
from fercache.data.base import Dataset, Trial
from fercache.errors import InputError
from fercache.inference import ensemble, predict

TAP = "conv2d_4b"
pytestmark = pytest.mark.usefixtures("tiny_cnn")


def call(cache: Path, *words: object) -> Result:
    """Run a command with a cache, and no recipes but the ones that are built in."""
    (cache / "recipes").mkdir(parents=True, exist_ok=True)
    return CliRunner().invoke(main, ["--cache", str(cache), "--stages", str(cache / "recipes"), *map(str, words)],
                              catch_exceptions=False)


def set_flags(folder: Path) -> list[str]:
    return ["--clips", str(folder / "clips.csv"), "--labels", str(folder / "labels.csv"), "--classes",
            ",".join(CLASSES)]


@pytest.fixture(scope="module")
def home(linked: Path, tiny_cnn: None) -> Path:
    """A folder with a set of crops, and a cache in which its heads and their stacker are trained."""
    write_set(linked / "set", train=8, test=2, frames=24)
    flags = set_flags(linked / "set")
    training = ["--heads", "frame,gru", "--folds", "2", "--ensemble", "2", "--epochs", "6"]
    for words in (["extract", "--taps", TAP], ["train-heads", "--taps", TAP, *training],
                  ["stack", "--bootstrap", "50", "--out", str(linked / "stacked.csv")]):
        done = call(linked / "cache", *words[:1], *flags, *words[1:])
        assert done.exit_code == 0, done.output
    return linked


def table(path: Path) -> dict[str, list[dict[str, str]]]:
    """Return the rows of each clip of a table of predictions."""
    found: dict[str, list[dict[str, str]]] = {}
    with path.open(newline="") as handle:
        for row in csv.DictReader(handle):
            found.setdefault(row["clip"], []).append(row)
    return found


def shares(rows: Sequence[dict[str, str]]) -> np.ndarray:
    return np.array([[float(row[f"p_{name}"]) for name in CLASSES] for row in rows])


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many crops the CNN saw, and how often the heads were run."""
    from fercache.training import inference

    seen = {"cnn": 0, "heads": 0}

    def counting(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def run(*args: object, **more: object) -> object:
            seen[name] += 1
            return real(*args, **more)
        return run

    embed = Backbone.embed_batch

    def counting_crops(self: Backbone, crops: np.ndarray) -> dict[str, np.ndarray]:
        seen["cnn"] += len(crops)
        return embed(self, crops)

    monkeypatch.setattr(Backbone, "embed_batch", counting_crops)
    monkeypatch.setattr(inference, "predict_new", counting("heads", inference.predict_new))
    return seen


def test_test_trials_get_what_stack_says_of_them(home: Path, tmp_path: Path, counted: dict[str, int]) -> None:
    """Trials that no fold held out are predicted by the same models, from features that are there already."""
    done = call(home / "cache", "predict", *set_flags(home / "set"), "--out", tmp_path / "out",
                "--no-timelines")
    assert done.exit_code == 0, done.output
    assert counted == {"cnn": 0, "heads": 1}
    stacked, told = table(home / "stacked.csv"), table(tmp_path / "out" / "preds.csv")
    assert told.keys() == stacked.keys() and len(told) == 10
    for clip in ("s0-08", "s0-09"):
        assert np.abs(shares(stacked[clip]) - shares(told[clip])).max() <= 2e-6
        for name in ("frame", "time_s", "valid", "label", "prediction"):
            assert [row[name] for row in stacked[clip]] == [row[name] for row in told[clip]]
    assert np.abs(shares(stacked["s0-00"]) - shares(told["s0-00"])).max() > 1e-3, "in-sample is not out of fold"


def test_clips_that_were_trained_on_are_not_scored(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert call(home / "cache", "predict", *set_flags(home / "set"), "--out", out, "--no-timelines").exit_code == 0
    said = json.loads((out / "preds.metrics.json").read_text())
    assert set(said["splits"]) == {"test"} and said["splits"]["test"]["all_frames"]["mean"]["frames"] == 48
    assert said["predict"]["known"] == [f"s0-{i:02d}" for i in range(8)] and "8 of these clips" in said["notice"]
    stacked = json.loads((home / "stacked.metrics.json").read_text())
    assert said["splits"]["test"]["all_frames"] == stacked["splits"]["test"]["all_frames"]
    copied = tmp_path / "renamed"
    shutil.copytree(home / "set" / "crops" / "s0-01", copied)
    assert call(home / "cache", "predict", copied, "--out", out, "--no-timelines").exit_code == 0
    assert json.loads((out / "preds.metrics.json").read_text())["predict"]["known"] == ["renamed"]


def test_new_clips_one_by_one(home: Path, tmp_path: Path, counted: dict[str, int]) -> None:
    """Folders of crops are named, one of them broken, one path absent: the others are done, and a second run rests."""
    rng = np.random.default_rng(5)
    for name in ("a/one", "b/one", "b/two"):
        write_clip(tmp_path / name, np.repeat([0, 1, 2], 8), rng)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "99999999999.png").write_bytes(b"")
    words = ["predict", tmp_path / "a" / "one", tmp_path / "b", tmp_path / "broken", tmp_path / "absent",
             "--out", tmp_path / "out"]
    done = call(home / "cache", *words)
    assert done.exit_code == 1, done.output
    told = table(tmp_path / "out" / "preds.csv")
    assert set(told) == {"a/one", "b/one", "two"}
    assert all(len(rows) == 24 and rows[0]["label"] == "" for rows in told.values())
    assert np.mean([int(row["prediction"]) for row in told["two"]] == np.repeat([0, 1, 2], 8)) > .6
    with (tmp_path / "out" / "failures.csv").open() as handle:
        failed = {Path(row["clip"]).name: row["message"] for row in csv.DictReader(handle)}
    assert set(failed) == {"broken", "absent"} and "no such file" in failed["absent"]
    drawn = sorted(path.name for path in (tmp_path / "out" / "timelines").iterdir())
    assert [name[:3] for name in drawn] == ["a_o", "b_o", "two"]
    assert counted["cnn"] == 3 * 23 and counted["heads"] == 1
    first = {path.name: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert call(home / "cache", *words).exit_code == 1
    assert counted["cnn"] == 3 * 23 and counted["heads"] == 1, "the second run computes nothing"
    assert first == {path.name: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}


def test_a_clip_is_predicted_alike_in_any_company(home: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    for name in ("one", "two", "three"):
        write_clip(tmp_path / "clips" / name, np.repeat([2, 0, 1], 8), rng)
    done = call(home / "cache", "predict", tmp_path / "clips" / "one", "--out", tmp_path / "alone", "--overlay")
    assert done.exit_code == 0
    annotated = media.open_source(tmp_path / "alone" / "overlays" / "one.mp4", "video")
    assert len(list(annotated.frames())) == 24, "the clip again, frame by frame"
    assert call(home / "cache", "predict", tmp_path / "clips", "--out", tmp_path / "all",
                "--no-timelines").exit_code == 0
    alone, together = table(tmp_path / "alone" / "preds.csv"), table(tmp_path / "all" / "preds.csv")
    assert set(together) == {"one", "two", "three"}
    assert np.abs(shares(alone["one"]) - shares(together["one"])).max() <= 2e-6


def test_a_set_from_elsewhere_is_scored(home: Path, tmp_path: Path) -> None:
    write_set(tmp_path / "new", train=1, test=8, frames=18, seed=7)
    done = call(home / "cache", "predict", *set_flags(tmp_path / "new"), "--out", tmp_path / "out", "--no-timelines")
    assert done.exit_code == 0 and "macro F1" in done.output, done.output
    said = json.loads((tmp_path / "out" / "preds.metrics.json").read_text())
    assert set(said["splits"]) == {"train", "test"} and not said["predict"]["known"]
    assert said["splits"]["test"]["all_frames"]["mean"]["groups"] == 8
    assert said["splits"]["test"]["all_frames"]["mean"]["macro_f1"] > .6
    assert "saw none of these groups" in said["splits"]["train"]["predicted"]
    assert "out of fold" not in done.output.split("final:")[0]


def test_all_people_of_a_clip(home: Path, tmp_path: Path, face_frames: list[np.ndarray],
                              counted: dict[str, int]) -> None:
    """One face twice in each picture: two people, a row a frame of each, named and drawn as what they are."""
    small = [image[::2, ::2] for image in np.repeat(face_frames[:3], 5, axis=0)]
    clip = make_video(tmp_path / "two.mp4", [np.concatenate([image, image[:, ::-1]], axis=1) for image in small])
    done = call(home / "cache", "predict", clip, "--out", tmp_path / "out", "--people", "all", "--force", "--overlay")
    assert done.exit_code == 0, done.output
    told = table(tmp_path / "out" / "preds.csv")
    assert {name: len(rows) for name, rows in told.items()} == {"two#1": 15, "two#2": 15}
    assert all(row["valid"] == "1" for rows in told.values() for row in rows)
    assert [len(list((tmp_path / "out" / made).iterdir())) for made in ("timelines", "overlays")] == [2, 2]
    seen = dict(counted)
    again = call(home / "cache", "predict", clip, "--out", tmp_path / "out", "--people", "all", "--force")
    assert again.exit_code == 0 and counted == seen and seen["cnn"] and seen["heads"] == 1


def test_another_crop_policy_is_refused_and_named(home: Path, tmp_path: Path, face_frames: list[np.ndarray]) -> None:
    clip = make_video(tmp_path / "face.mp4", face_frames[:4])
    words = ["predict", clip, "--out", tmp_path / "out"]
    done = call(home / "cache", *words)
    assert done.exit_code == 2 and "faces = cropped there, mtcnn here" in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()
    forced = call(home / "cache", *words, "--force", "--no-timelines")
    assert forced.exit_code == 0, forced.output
    assert len(table(tmp_path / "out" / "preds.csv")["face"]) == 4
    said = json.loads((tmp_path / "out" / "preds.metrics.json").read_text())
    assert said["predict"]["forced"] == ["faces = cropped there, mtcnn here"] and "forced" in said["notice"]
    as_crops = call(home / "cache", *words, "--faces", "cropped", "--no-timelines")
    assert as_crops.exit_code == 0, "each picture is said to be a face, as the heads learnt it"


def test_another_precision_is_accepted_and_other_taps_are_refused(home: Path, tmp_path: Path,
                                                                  caplog: pytest.LogCaptureFixture) -> None:
    write_clip(tmp_path / "clip", np.repeat([0, 1], 5), np.random.default_rng(1))
    words = ["predict", tmp_path / "clip", "--out", tmp_path / "out", "--no-timelines"]
    for more, said in ((["--taps", "repeat_1"], f"read the tap {TAP}"),
                       (["--taps", "repeat_1", "--force"], f"read the tap {TAP}")):
        done = call(home / "cache", *words, *more)
        assert done.exit_code == 2 and said in done.stderr, done.stderr
    assert call(home / "cache", *words, "--precision", "bf16").exit_code == 0
    assert "precision = float32 there, bf16 here" in caplog.text
    assert json.loads((tmp_path / "out" / "preds.metrics.json").read_text())["predict"]["forced"] == []


def test_features_that_are_there(home: Path, tmp_path: Path, counted: dict[str, int]) -> None:
    heads, = (path for path in home.glob("cache/heads/*/*") if path.is_dir())
    store, = (home / "cache" / "features" / heads.parent.name).glob("*.zarr")
    done = call(home / "cache", "predict", *set_flags(home / "set"), "--store", store, "--out", tmp_path,
                "--no-timelines")
    assert done.exit_code == 0 and counted["cnn"] == 0, done.output


def test_heads_and_stack_are_chosen(home: Path, tmp_path: Path) -> None:
    write_clip(tmp_path / "clip", np.repeat([0, 1], 5), np.random.default_rng(1))
    heads, = (path for path in home.glob("cache/heads/*/*") if path.is_dir())
    run, = (path for path in home.glob("cache/stack/*/*") if path.is_dir())
    book = home / "cache" / "logits" / heads.parent.name / f"{heads.name}.h5"
    outputs = []
    for flags in ([], ["--heads", book], ["--stack", run], ["--heads", heads, "--stack", run]):
        done = call(home / "cache", "predict", tmp_path / "clip", "--out", tmp_path / "out", "--no-timelines", *flags)
        assert done.exit_code == 0, done.stderr
        outputs.append((tmp_path / "out" / "preds.csv").read_bytes())
    assert len(set(outputs)) == 1
    for flags, said in ((["--heads", tmp_path / "no"], "no trained heads"),
                        (["--stack", tmp_path], "no finished stack run")):
        done = call(home / "cache", "predict", tmp_path / "clip", "--out", tmp_path / "o", *flags)
        assert done.exit_code == 2 and said in done.stderr, done.stderr


def test_wrong_calls_are_told(home: Path, tmp_path: Path) -> None:
    write_set(tmp_path / "other", train=2, test=0, frames=6, seed=3)
    text = (tmp_path / "other" / "labels.csv").read_text()
    for name, unknown in (("Neutral", "Boredom"), ("Happiness", "Contempt"), ("Surprise", "Anxiety")):
        text = text.replace(name, unknown)
    (tmp_path / "other" / "labels.csv").write_text(text)
    flags = ["--clips", tmp_path / "other" / "clips.csv", "--labels", tmp_path / "other" / "labels.csv"]
    for words, said in (([], "no clip is named"), ([tmp_path, *flags], "as arguments and as a data set"),
                        ([tmp_path / "absent"], "no such file"),
                        ([*flags, "--classes", "Boredom,Contempt,Anxiety"], "which the heads do not know")):
        done = call(home / "cache", "predict", *words, "--out", tmp_path / "out")
        assert done.exit_code == 2 and said in done.stderr, (words, done.stderr)
    absent = call(tmp_path / "empty", "predict", tmp_path / "other" / "crops", "--heads", tmp_path / "no", "--out",
                  tmp_path / "out")
    assert absent.exit_code == 2 and "no trained heads" in absent.stderr


def test_gaps_are_filled_as_the_run_fills_them(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "cache", tmp_path / "cache", symlinks=True)
    done = call(tmp_path / "cache", "stack", *set_flags(home / "set"), "--missing-faces", "linear", "--out",
                tmp_path / "s.csv")
    assert done.exit_code == 0, done.output
    assert call(tmp_path / "cache", "predict", *set_flags(home / "set"), "--out", tmp_path / "out",
                "--no-timelines").exit_code == 0
    stacked, told = table(tmp_path / "s.csv")["s0-09"], table(tmp_path / "out" / "preds.csv")["s0-09"]
    gap = shares(told)[4]
    assert told[4]["valid"] == "0" and np.abs(gap - shares(told)[[3, 5]].mean(0)).max() <= 2e-6
    assert np.abs(shares(stacked) - shares(told)).max() <= 2e-6


def test_heads_without_a_stacker_are_told(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "cache", tmp_path / "cache", symlinks=True, ignore=shutil.ignore_patterns("stack"))
    done = call(tmp_path / "cache", "predict", home / "set" / "crops", "--out", tmp_path / "out")
    assert done.exit_code == 2 and "no stacker yet" in done.stderr and "fercache stack" in done.stderr


def test_clips_of_one_frame_rate_go_through_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window is so many frames of the usual rate: other rates beside a clip would change what is said of it."""
    rates = {"a": 30.0, "b": 25.0, "c": 30.0, "d": 30.0, "single": 0.0}
    held = {name: SimpleNamespace(frames=50, frame_table={"time_s": np.arange(50 if rate else 1) / (rate or 1)})
            for name, rate in rates.items()}
    trials = [Trial(name=name, path=Path(name), kind="crops", parent=name, group=name, split="test") for name in rates]
    assert list(ensemble._batches(trials, held, 8)) == [[0, 2, 3], [1], [4]]  # type: ignore[arg-type]
    monkeypatch.setattr(ensemble, "MOST_BYTES", 800)
    assert list(ensemble._batches(trials, held, 8)) == [[0, 2], [3], [1], [4]]  # type: ignore[arg-type]


def test_labels_are_told_by_name() -> None:
    trials = tuple(Trial(name=str(i), path=Path("x"), kind="crops", parent="x", group="x", split="test", **more)
                   for i, more in enumerate(({"labels": np.array([0, 1, -1], np.int16)}, {"clip_label": 1}, {})))
    dataset = Dataset(name="d", layout="table", classes=("b", "a"), trials=trials)
    told = ensemble.labelled_as(dataset, ("a", "b", "c"))
    assert told.classes == ("a", "b", "c") and told.trials[0].labels.tolist() == [1, 0, -1]  # type: ignore[union-attr]
    assert [trial.clip_label for trial in told.trials] == [-1, 0, -1]
    assert ensemble.labelled_as(dataset, ("b", "a")) is dataset
    with pytest.raises(InputError, match="labelled with b, a, which"):
        ensemble.labelled_as(dataset, ("c", "d"))


def test_labels_of_another_set_are_matched_by_their_meaning_and_lost_ones_told() -> None:
    trials = (Trial(name="0", path=Path("x"), kind="crops", parent="x", group="x", split="test",
                    labels=np.array([0, 1, 2, -1], np.int16)),)
    dataset = Dataset(name="d", layout="table", classes=("Angry", "Contempt", "Happy"), trials=trials)
    told = ensemble.labelled_as(dataset, ("Happiness", "Anger"))
    assert told.trials[0].labels.tolist() == [1, -1, 0, -1]  # type: ignore[union-attr]
    assert "Contempt" in told.notice and "Happy" not in told.notice


def test_names_that_are_shown(tmp_path: Path) -> None:
    for place in ("x/a.mp4", "y/a.mp4", "y/b.avi", "b.mp4"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_bytes(b"x")
    found = predict.clips_dataset([tmp_path, tmp_path / "x" / ".." / "b.mp4"])
    assert [trial.path.relative_to(tmp_path).as_posix() for trial in found.trials] == [
        "b.mp4", "x/a.mp4", "y/a.mp4", "y/b.avi"]
    assert list(predict.display_names(found).values()) == ["b.mp4", "x/a.mp4", "y/a.mp4", "b.avi"]
    with pytest.raises(InputError, match="no such"):
        predict.clips_dataset([tmp_path / "none"])


def test_differences_are_named() -> None:
    cropped = {"faces": "cropped", "precision": "float32", "weights": "a" * 64, "augmentations": 4, "taps": ["x"]}

    def refused(**changes: object) -> tuple[str, ...]:
        return ensemble.settings_differences(cropped, {**cropped, **changes})[0]

    assert ensemble.settings_differences(cropped, {**cropped, "taps": ["x", "y"], "augmentations": 1}) == ((), ())
    assert refused(weights="b" * 64) == ("weights = aaaaaaaaaaaa there, bbbbbbbbbbbb here",)
    assert refused(detect_every=5) == ("detect_every = None there, 5 here",)
    assert refused(faces="mtcnn", margin=0.0) == ("faces = cropped there, mtcnn here",)
    assert refused(embed_every="10") == ("embed_every = 1 there, 10 here",)


@pytest.mark.parametrize("changes", [{"precision": "bf16"}, {"precision": "int8", "calibration": "c" * 64},
                                     {"embed_every": "3"},
                                     {"embed_every": "auto", "embed_version": 1, "precision": "int8"}])
def test_heads_accept_features_that_cost_them_little(changes: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    trained = {"faces": "mtcnn", "precision": "float32", "weights": "a" * 64, "backbone": "casia-webface"}
    with caplog.at_level("INFO"):
        assert ensemble.check_match(trained, trained | changes, taps=["x"], stored_taps=["x"], where=Path("heads"),
                                    force=False) == ()
    messages = [record.getMessage() for record in caplog.records]
    named = changes.keys() - {"calibration", "embed_version"}
    assert len(messages) == 1 and all(changes[name] in messages[0] for name in named)
    with pytest.raises(InputError, match="weights"):
        ensemble.check_match(trained, trained | changes | {"weights": "b" * 64}, taps=["x"], stored_taps=["x"],
                             where=Path("heads"), force=False)
