"""Aff-Wild2: folders of all editions, the frame clock, parent videos, and what real copies of the set get wrong."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from fercache.config import DatasetConfig
from fercache.data import load_dataset
from fercache.data.affwild2 import parent_of
from fercache.data.base import EIGHT, SEVEN, Dataset
from fercache.errors import InputError


def annotate(track: Path, split: str, trial: str, labels: Iterable[object] = (0, 1, -1),
             classes: tuple[str, ...] = SEVEN) -> Path:
    path = track / split / f"{trial}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(",".join(classes) + "\n" + "".join(f"{label}\n" for label in labels))
    return path


def crop(root: Path, trial: str, folder: str = "cropped_aligned") -> None:
    (root / folder / trial).mkdir(parents=True)
    (root / folder / trial / "00001.jpg").touch()


def video(root: Path, name: str) -> Path:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).touch()
    return root / name


def read(root: Path, **choices: str) -> Dataset:
    return load_dataset(DatasetConfig(dataset="affwild2", root=str(root), **choices), root)


@pytest.mark.parametrize(("track", "classes", "metric"), [
    ("annotations/EXPR_Set", SEVEN, "abaw2"), ("EXPR_Set", SEVEN, "abaw2"), (".", SEVEN, "abaw2"),
    ("Third ABAW Annotations/EXPR_Classification_Challenge", EIGHT, "macro_f1"),
    ("a/5th_ABAW_Annotations/EXPR_Classification_Challenge", EIGHT, "macro_f1"),
    ("6th_ABAW_Annotations/EXPR_Recognition_Challenge", EIGHT, "macro_f1"),
    ("8th_ABAW_Annotations/Expression_Recognition_Challenge", EIGHT, "macro_f1"),
])
def test_every_edition_is_found_with_its_classes_and_metric(tmp_path: Path, track: str, classes: tuple[str, ...],
                                                            metric: str) -> None:
    annotate(tmp_path / track, "Train_Set", "a", range(len(classes)), classes)
    annotate(tmp_path / track, "Validation_Set", "b", [-1, 2], classes)
    crop(tmp_path, "a")
    crop(tmp_path, "b")
    dataset = read(tmp_path)
    assert (dataset.classes, dataset.metric, dataset.problems) == (classes, metric, ())
    assert [(t.name, t.split) for t in dataset.trials] == [("a", "train"), ("b", "validation")]
    assert dataset.trials[0].labels is not None and dataset.trials[0].labels.tolist() == list(range(len(classes)))


def test_two_editions_are_never_mixed(tmp_path: Path) -> None:
    for edition, label in (("5th_ABAW_Annotations", 1), ("6th_ABAW_Annotations", 2)):
        annotate(tmp_path / edition / "EXPR_Recognition_Challenge", "Train_Set", "a", [label], EIGHT)
    crop(tmp_path, "a")
    with pytest.raises(InputError, match=r"several editions.*5th.*6th") as caught:
        read(tmp_path)
    assert "--edition" in caught.value.hint
    with pytest.raises(InputError, match="none of the annotation folders has '8th'"):
        read(tmp_path, edition="8th")
    labels = read(tmp_path, edition="6th_ABAW").trials[0].labels
    assert labels is not None and labels.tolist() == [2]


def test_two_people_of_a_video_are_two_trials_of_one_group(tmp_path: Path) -> None:
    names = ["10-60-1280x720", "10-60-1280x720_right", "video59", "video59_right", "video2", "video2_left", "v_left",
             "v_right", "alone", "leftover_leftish"]
    for name in names:
        annotate(tmp_path / "EXPR_Set", "Train_Set", name)
    for stem in ("b1/10-60-1280x720.mp4", "b1/video59.avi", "b2/video2.mp4", "b2/v.mp4", "alone.mp4",
                 "leftover_leftish.mp4"):
        video(tmp_path, stem)
    dataset = read(tmp_path)
    trials = {trial.name: trial for trial in dataset.trials}
    assert set(trials) == set(names) and not dataset.problems
    assert all(trial.group == trial.parent == trial.path.stem for trial in trials.values())
    sides = {name: trial.side for name, trial in trials.items()}
    assert sides == {"10-60-1280x720": "left", "10-60-1280x720_right": "right", "video59": "left",
                     "video59_right": "right", "video2": "right", "video2_left": "left", "v_left": "left",
                     "v_right": "right", "alone": "", "leftover_leftish": ""}


def test_crops_go_before_videos_and_kinds_are_not_mixed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        annotate(tmp_path / "EXPR_Set", "Train_Set", name)
        video(tmp_path, f"batch1/{name}.mp4")
    crop(tmp_path, "a")
    dataset = read(tmp_path)
    assert [(t.name, t.kind) for t in dataset.trials] == [("a", "crops")]
    assert [(p.where, p.is_error) for p in dataset.problems] == [("b", True)]


def test_aligned_crops_go_before_plain_ones(tmp_path: Path) -> None:
    annotate(tmp_path / "EXPR_Set", "Train_Set", "a")
    crop(tmp_path, "a", "cropped")
    assert read(tmp_path).trials[0].path.parent.name == "cropped"
    crop(tmp_path, "a", "cropped_aligned")
    assert read(tmp_path).trials[0].path.parent.name == "cropped_aligned"


def test_crops_of_other_clips_do_not_hide_the_videos(tmp_path: Path) -> None:
    annotate(tmp_path / "EXPR_Set", "Train_Set", "a")
    video(tmp_path, "videos/a.mp4")
    crop(tmp_path, "thumbnails", ".")
    assert [(t.name, t.kind) for t in read(tmp_path).trials] == [("a", "video")]


def test_clips_without_annotation_and_annotations_without_clip_are_told(tmp_path: Path) -> None:
    for name in ("a", "gone"):
        annotate(tmp_path / "EXPR_Set", "Train_Set", name)
    for name in ("a", "extra"):
        crop(tmp_path, name)
    dataset = read(tmp_path)
    assert [(t.name, t.split, t.labelled) for t in dataset.trials] == [("a", "train", True), ("extra", "test", False)]
    assert [(p.where, p.is_error) for p in dataset.problems] == [("gone", True), ("extra", False)]


def test_the_test_list_makes_test_trials_unless_they_are_annotated(tmp_path: Path) -> None:
    annotate(tmp_path / "EXPR_Set", "Validation_Set", "a")
    (tmp_path / "EXPR_test_set_release.txt").write_text("a\nt\r\nlost\ngone\n\n")
    (tmp_path / "VA_test_set_release.txt").write_text("other\n")
    for name in ("a", "t"):
        crop(tmp_path, name)
    dataset = read(tmp_path)
    assert [(t.name, t.split) for t in dataset.trials] == [("a", "validation"), ("t", "test")]
    assert [(p.where, p.is_error) for p in dataset.problems] == [("gone, lost", False)]


@pytest.mark.parametrize(("labels", "classes", "says"), [
    ([0, 7], SEVEN, "frame 2 has label 7"), ([0, -5], SEVEN, "frame 2 has label -5"), (["x"], SEVEN, "line 2 is 'x'"),
    ([0], EIGHT, "differs from that of most files"), ([0], SEVEN[::-1], "header unknown"), ([], ("",), "is empty"),
])
def test_a_bad_annotation_file_costs_its_own_labels_only(tmp_path: Path, labels: list[object], classes: tuple[str, ...],
                                                         says: str) -> None:
    for name in ("a", "b", "bad"):
        annotate(tmp_path / "EXPR_Set", "Train_Set", name)
        crop(tmp_path, name)
    annotate(tmp_path / "EXPR_Set", "Train_Set", "bad", labels, classes)
    dataset = read(tmp_path)
    assert [t.labelled for t in dataset.trials] == [True, True, False] and dataset.classes == SEVEN
    assert [(p.where, p.is_error) for p in dataset.problems] == [("bad", True)] and says in dataset.problems[0].message


def test_one_trial_in_two_splits_and_one_name_on_two_clips_are_told(tmp_path: Path) -> None:
    for name in ("both", "twin"):
        annotate(tmp_path / "EXPR_Set", "Train_Set", name)
    annotate(tmp_path / "EXPR_Set", "Validation_Set", "both", [5])
    for stem in ("both.mp4", "batch1/twin.mp4", "batch2/twin.avi"):
        video(tmp_path, stem)
    dataset = read(tmp_path)
    assert [(t.name, t.split) for t in dataset.trials] == [("both", "train")]
    assert {(p.where, p.is_error) for p in dataset.problems} == {("both", True), ("twin", True)}


def test_nothing_usable_is_an_input_error(tmp_path: Path) -> None:
    bad = annotate(tmp_path / "EXPR_Set", "Train_Set", "a", ["x"])
    with pytest.raises(InputError, match="not one annotation file"):
        read(tmp_path)
    bad.write_text(",".join(SEVEN) + "\n0\n")
    with pytest.raises(InputError, match="no clip belongs to the 1 annotated"):
        read(tmp_path)
    with pytest.raises(InputError, match="no annotations of Aff-Wild2"):
        read(tmp_path / "EXPR_Set/Train_Set")
    with pytest.raises(InputError, match="needs the folder"):
        load_dataset(DatasetConfig(dataset="affwild2"), tmp_path)


def test_clips_and_annotations_may_lie_apart(tmp_path: Path) -> None:
    annotate(tmp_path / "notes/EXPR_Set", "Train_Set", "a")
    crop(tmp_path / "pictures", "a")
    config = DatasetConfig(dataset="affwild2", clips=str(tmp_path / "pictures"), labels=str(tmp_path / "notes"))
    assert [t.labelled for t in load_dataset(config, tmp_path).trials] == [True]


def test_the_clips_may_be_one_of_two_versions_in_the_root(tmp_path: Path) -> None:
    annotate(tmp_path / "EXPR_Set", "Train_Set", "a")
    for version in ("cropped", "cropped_aligned"):
        crop(tmp_path, "a", folder=version)
    (tmp_path / "cropped_aligned/loose.jpg").touch()
    config = DatasetConfig(dataset="affwild2", root=str(tmp_path), clips=str(tmp_path / "cropped_aligned"))
    found = load_dataset(config, tmp_path)
    assert [t.path.parent.name for t in found.trials] == ["cropped_aligned"]
    assert [p.message.split()[0] for p in found.problems if p.kind == "passed-over"] == ["1"]


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS refuses such names")
def test_odd_names_are_kept_and_impossible_ones_told(tmp_path: Path) -> None:
    odd = ["sp ace", "back\\slash", "Zoë–雪", "CON", "quote\"'", "new\nline"]
    for name in odd:
        annotate(tmp_path / "EXPR_Set", "Train_Set", name)
        crop(tmp_path, name)
    os.makedirs(os.fsencode(tmp_path) + b"/cropped_aligned/\xff\xfe")  # noqa: PTH103 - bytes that are no text
    with open(os.fsencode(tmp_path) + b"/cropped_aligned/\xff\xfe/00001.jpg", "wb"):  # noqa: PTH123
        pass
    dataset = read(tmp_path)
    assert [t.name for t in dataset.trials] == sorted(odd)
    assert ["not valid UTF-8" in p.message for p in dataset.problems] == [True]


def test_the_real_names_and_lengths_of_561_trials(tmp_path: Path, shared: Path) -> None:
    """Every trial is read with its length; pairs share a group; 2.7 million labels take seconds."""
    with (shared / "data/affwild2_meta/sucv_ABAW2_length.csv").open() as handle:
        rows = {row["trial name"]: (int(row["frame_count"]), int(row["considered_count"]))
                for row in csv.DictReader(handle)}
    rng = np.random.default_rng(7)
    parents = sorted({name.removesuffix("_left").removesuffix("_right") for name in rows})
    held = set(rng.permutation(parents)[: len(parents) // 5])
    labels = {name: rng.integers(-1, 7, frames) for name, (frames, _) in rows.items()}
    for name, values in labels.items():
        parent = name.removesuffix("_left").removesuffix("_right")
        annotate(tmp_path / "annotations/EXPR_Set", "Validation_Set" if parent in held else "Train_Set", name, values)
        crop(tmp_path, name)
    started = time.perf_counter()
    dataset = read(tmp_path)
    took = time.perf_counter() - started
    print(f"{len(rows)} trials, {sum(map(len, labels.values()))} labels: {took:.2f} s")
    assert len(dataset.trials) == len(rows) == 561 and not dataset.problems and took < 30
    assert all(np.array_equal(t.labels, labels[t.name]) for t in dataset.trials if t.labels is not None)
    assert {t.group for t in dataset.trials} == set(parents)
    splits = {(t.group, t.split) for t in dataset.trials}
    assert len(splits) == len(parents)  # nobody is on both sides
    pairs = Counter(t.group for t in dataset.trials)
    assert all(pairs[parent] == 2 for parent in ("10-60-1280x720", "video59", "video2"))
    sides = Counter(t.side for t in dataset.trials)
    assert sides["left"] == sides["right"] == sum(count == 2 for count in pairs.values())
    crops_over = [rows[t.name][1] - len(t.frame_labels(rows[t.name][1])) for t in dataset.trials]
    assert max(crops_over) == 0  # the clock holds every crop, also the one past the annotation
    differences = [frames - crops for frames, crops in rows.values()]
    assert (sum(d == 0 for d in differences), sum(d < 0 for d in differences), sum(d > 0 for d in differences)) == (
        142, 108, 311)


def test_streams_are_read_without_one_wrong_label(tmp_path: Path, shared: Path) -> None:
    subprocess.run([sys.executable, Path(__file__).parent / "bench/make_streams.py", "--images",
                    shared / "data/fer2013_validation.zip", "--out", tmp_path / "s", "--trials", "12", "--frames", "80",
                    "--seed", "3"], check=True, capture_output=True)
    dataset = read(tmp_path / "s")
    assert len(dataset.trials) == 12 and not dataset.problems and {t.split for t in dataset.trials} == {
        "train", "validation"}
    assert {t.group for t in dataset.trials} == {parent_of(t.name) for t in dataset.trials}
    checked = 0
    for trial in dataset.trials:
        truth = np.loadtxt(tmp_path / f"s/truth/{trial.name}.txt", int, skiprows=1)
        highest = max(int(path.stem) for path in trial.path.iterdir())
        clock = trial.frame_labels(highest)
        assert trial.labels is not None and len(clock) == max(highest, len(trial.labels))
        known = clock >= 0
        assert np.array_equal(clock[known], truth[np.flatnonzero(known)])
        checked += int(known.sum())
    assert checked > 500
