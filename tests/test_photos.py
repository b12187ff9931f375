"""Data sets of still photos: FER2013 in its forms, folders by class, copies, splits, and no clock."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_sets
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

from fercache import data, media
from fercache.cli import main
from fercache.config import DatasetConfig, TrainConfig
from fercache.data import photos as photos_module
from fercache.data.base import SEVEN, UNKNOWN, Dataset
from fercache.errors import InputError
from fercache.extraction import job
from fercache.training.train import check_clock, train_heads

KAGGLE = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")


def pixels(number: int) -> NDArray[np.uint8]:
    """Return a photo of noise, another one for each number."""
    return np.random.default_rng(number).integers(0, 256, (48, 48)).astype(np.uint8)


def table(folder: Path, rows: list[tuple[int, int, str]], name: str = "fer2013.csv") -> Path:
    """Write FER2013's table with rows (emotion, number of the picture, usage)."""
    spaced = name != "fer2013.csv"
    lines = ["emotion, Usage, pixels" if spaced else "emotion,pixels,Usage"]
    for emotion, number, usage in rows:
        values = " ".join(map(str, pixels(number).ravel()))
        lines.append(f"{emotion},{usage},{values}" if spaced else f"{emotion},{values},{usage}")
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder


def load(root: Path, cache: Path, dataset: str = "fer2013", **more: str) -> Dataset:
    return data.load_dataset(DatasetConfig(dataset=dataset, root=str(root), **more), cache)  # type: ignore[arg-type]


def photos_of(found: Dataset) -> list[tuple[str, str, bytes]]:
    """Return (split, class, picture) of every photo, as stage one reads them."""
    rows = []
    for trial in found.trials:
        frames = list(media.open_source(trial.path, trial.kind).frames())
        assert trial.labels is not None and len(frames) == len(trial.labels)
        rows += [(trial.split, found.classes[label] if label >= 0 else "", frame.image[:, :, 0].tobytes())
                 for frame, label in zip(frames, trial.labels, strict=True) if frame.image is not None]
    return sorted(rows)


@pytest.mark.parametrize("name", ["fer2013.csv", "icml_face_data.csv"])
def test_both_tables_give_every_photo_with_its_split_and_class(tmp_path: Path, name: str) -> None:
    rows = [(i % 7, i, ("Training", "PublicTest", "PrivateTest")[i % 3]) for i in range(21)]
    found = load(table(tmp_path / "fer", rows, name), tmp_path / "cache")
    order = ("Anger", "Disgust", "Fear", "Happiness", "Sadness", "Surprise", "Neutral")
    splits = {"Training": "train", "PublicTest": "validation", "PrivateTest": "test"}
    assert photos_of(found) == sorted((splits[usage], order[code], pixels(i).tobytes()) for code, i, usage in rows)
    assert found.metric == "accuracy" and found.faces == "cropped" and found.classes == SEVEN


def test_folders_by_split_and_class_are_read_like_the_table(tmp_path: Path) -> None:
    parts = (("train", "Training"), ("test", "PublicTest"), ("test", "PrivateTest"))
    for number, (part, usage) in enumerate(parts * 7):
        folder = tmp_path / "fer" / part / KAGGLE[number % 7]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(number)).save(folder / f"{usage}_{number}.png")
    found = load(tmp_path / "fer", tmp_path / "cache")
    assert Counter(split for split, _, _ in photos_of(found)) == {"train": 7, "validation": 7, "test": 7}
    assert {name for _, name, _ in photos_of(found)} == set(SEVEN)


@pytest.mark.parametrize("word", ["validation", "Val", "valid", "dev"])
def test_a_folder_of_validation_photos_has_any_of_its_usual_names(tmp_path: Path, word: str) -> None:
    for number, part in enumerate(("train", word, "testing")):
        folder = tmp_path / "mine" / part / ("Happiness", "Sadness")[number % 2]
        folder.mkdir(parents=True)
        Image.fromarray(pixels(number)).save(folder / "val_1.png")  # a file's name is no such word
    found = load(tmp_path / "mine", tmp_path / "cache", "photos", source="crops")
    assert sorted(trial.split for trial in found.trials) == ["test", "train", "validation"]


def test_copies_stand_in_one_clip_and_held_out_copies_apart(tmp_path: Path) -> None:
    rows = [(i % 7, i // 2, "Training") for i in range(1200)] + [(3, 0, "PrivateTest"), (3, 5000, "PrivateTest")]
    found = load(table(tmp_path / "fer", rows), tmp_path / "cache")
    where: dict[bytes, set[str]] = {}
    for trial in found.trials:
        for frame in media.open_source(trial.path, trial.kind).frames():
            assert frame.image is not None
            where.setdefault(frame.image.tobytes(), set()).add(f"{trial.split} {trial.group}")
    shared = [clips for clips in where.values() if len(clips) > 1]
    assert len(shared) == 1 and {clip.split()[0] for clip in shared[0]} == {"train", "test"}, "only across splits"
    assert {t.name for t in found.trials if t.split == "test"} == {"test-00000", "test-copies-00000"}
    assert [t.name for t in found.trials if t.copied] == ["test-copies-00000"]
    issue = next(issue for issue in found.problems if issue.kind == "copies")
    assert issue.message.startswith("1 test photos") and not issue.is_error


def test_fer_plus_votes_replace_the_labels(tmp_path: Path) -> None:
    root = table(tmp_path / "fer", [(0, 1, "Training"), (0, 2, "Training"), (0, 3, "PublicTest")])
    names = "neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"
    votes = ("0,8,0,0,2,0,0,0,0,0", "1,1,0,0,1,0,0,7,0,0", "5,5,0,0,0,0,0,0,0,0")
    (root / "fer2013new.csv").write_text(f"Usage,Image name,{names}\n" + "".join(f"Training,x,{v}\n" for v in votes))
    found = load(root, tmp_path / "cache")
    labels = sorted(label for trial in found.trials for label in (trial.labels if trial.labels is not None else ()))
    assert labels == [UNKNOWN, UNKNOWN, SEVEN.index("Happiness")], "contempt and a tie are no labels"


def test_a_folder_a_class_is_a_clip_a_photo_unless_every_picture_is_a_face(tmp_path: Path) -> None:
    for number in range(6):
        folder = tmp_path / "mine" / ("happy", "bored")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(number)).save(folder / f"{number}.jpg")
    whole, faces = (load(tmp_path / "mine", tmp_path / "cache", "photos", name=name, source=source)
                    for name, source in (("a", "auto"), ("b", "crops")))
    assert whole.classes == ("Happiness", "bored") and whole.faces == "mtcnn" and len(whole.trials) == 6
    assert faces.faces == "cropped" and len(faces.trials) == 1 and not faces.has_clock


def test_windows_never_join_two_photos_and_temporal_heads_refuse_them(tmp_path: Path) -> None:
    found = load(table(tmp_path / "fer", [(i % 7, i, "Training") for i in range(14)]), tmp_path / "cache")
    trial = found.trials[0]
    times = [frame.time_s for frame in media.open_source(trial.path, trial.kind).frames()]
    assert np.diff(times).min() >= 3600
    check_clock(found, ("frame",))
    with pytest.raises(InputError, match="gru"):
        check_clock(found, ("frame", "gru"))
    check_clock(replace(found, trials=(replace(trial, kind="crops"),)), ("gru",))


def test_train_heads_refuses_temporal_heads_for_photos(tmp_path: Path) -> None:
    found, store = small_sets.dataset(tmp_path / "store", groups=3, validation=0)
    photos = replace(found, trials=tuple(replace(trial, kind="photos") for trial in found.trials))
    with pytest.raises(InputError, match="gru"):
        train_heads(photos, store, TrainConfig(heads=("frame", "gru"), taps=tuple(small_sets.TAPS)), tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


@pytest.mark.usefixtures("tiny_cnn")
@pytest.mark.parametrize("form", ["table", "folders"])
def test_heads_trained_on_training_are_scored_on_private_test_by_commands(
        linked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """Extract, train-heads, stack and score read all three parts; the second figure leaves copies out."""
    monkeypatch.setattr(photos_module, "PHOTOS_PER_CLIP", 12)
    parts = [("Training", 48, 0), ("PublicTest", 14, 100), ("PrivateTest", 14, 200)]
    rows = [(i % 7, first + i, usage) for usage, count, first in parts for i in range(count)]
    rows += [(2, 2, "PrivateTest"), (3, 3, "PrivateTest")]  # copies of training photos
    root = tmp_path / "fer"
    if form == "table":
        table(root, rows)
    for emotion, number, usage in rows if form == "folders" else ():
        folder = root / ("train" if usage == "Training" else "test") / KAGGLE[emotion]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(number)).save(folder / f"{usage}_{number}.png")
    preds = str(tmp_path / "preds.csv")
    for command in (["extract"], ["train-heads", "--heads", "frame", "--folds", "2", "--ensemble", "1", "--epochs", "1",
                                  "--validation", "none", "--width", "8"],
                    ["stack", "--select", "frame", "--bootstrap", "0", "--out", preds],
                    ["score", "--preds", preds, "--split", "test", "--json"]):
        done = CliRunner().invoke(main, ["--cache", str(linked / "cache"), "--stages", str(linked), *command,
                                         "--dataset", "fer2013", "--root", str(root), "--name", form])
        assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["all"]["frames"] == 16 and report["without_copies"]["frames"] == 14


def test_reading_again_keeps_the_clips_and_their_digests(tmp_path: Path) -> None:
    root = table(tmp_path / "fer", [(i % 7, i, "Training") for i in range(300)])
    first, again = (load(root, tmp_path / "cache") for _ in range(2))
    assert first.digest() == again.digest()
    trial = first.trials[0]
    assert job.unchanged_stamp(media.source_digest(trial.path, trial.kind), again.trials[0].path, trial.kind, False)


def test_a_photo_that_is_added_moves_no_label_to_another_photo(tmp_path: Path) -> None:
    rows = [(i % 7, i, "Training") for i in range(40)]
    load(table(tmp_path / "fer", rows), tmp_path / "cache")
    more = [(6, 100, "Training"), *rows, (2, 101, "PublicTest")]
    found = load(table(tmp_path / "fer", more), tmp_path / "cache")
    order = ("Anger", "Disgust", "Fear", "Happiness", "Sadness", "Surprise", "Neutral")
    assert {(name, picture) for _, name, picture in photos_of(found)} == {
        (order[code], pixels(number).tobytes()) for code, number, _ in more}


def test_a_folder_of_photos_can_move(tmp_path: Path) -> None:
    """Links name full paths: they are made again, and lead to the same photos."""
    photo = tmp_path / "here" / "train" / "angry" / "Training_1.png"
    photo.parent.mkdir(parents=True)
    Image.fromarray(pixels(1)).save(photo)
    first = photos_of(load(tmp_path / "here", tmp_path / "cache", name="mine"))
    (tmp_path / "here").rename(tmp_path / "there")
    assert photos_of(load(tmp_path / "there", tmp_path / "cache", name="mine")) == first != []


@pytest.mark.parametrize("left", ["no file", "a torn file under another name"])
def test_a_killed_reading_leaves_no_torn_photo(tmp_path: Path, left: str) -> None:
    """A clip is linked as a whole: a folder without files, and what a killed writer left beside it, change nothing."""
    root = table(tmp_path / "fer", [(i % 7, i, "Training") for i in range(9)])
    found = load(root, tmp_path / "cache")
    whole, folder = photos_of(found), found.trials[0].path
    for path in folder.iterdir():
        path.unlink()
    if left != "no file":
        (folder.parent / ".tmp-1-train-00000").mkdir()
        (folder.parent / ".tmp-1-train-00000" / "00001.png").write_bytes(b"torn")
    assert photos_of(load(root, tmp_path / "cache")) == whole


@pytest.mark.parametrize(("text", "message"), [
    ("a,b\n1,2\n", "not a table"), ("emotion,pixels,Usage\n9,1 2,Training\n", "line 2"),
    ("emotion,pixels,Usage\n1,1 2 3,Training\n", "3 pixels")])
def test_a_damaged_table_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "fer2013.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        load(tmp_path, tmp_path / "cache")
