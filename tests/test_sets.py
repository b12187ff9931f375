"""The clip-level sets and MTL's table: fixtures with each set's own naming, the same result in any order of files."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fercache import metrics
from fercache.config import DatasetConfig
from fercache.data import DATASETS, PHOTO_READERS, READERS, load_dataset
from fercache.data.base import EIGHT, Dataset
from fercache.data.clip_level import code_of, read_list
from fercache.errors import InputError

Tree = dict[str, str]
"""File path -> its text; pictures and videos are empty (no reader opens them)."""


def frames(folder: str, numbers: Iterable[int] = (1, 2, 3), form: str = "{:05d}.jpg") -> Tree:
    return {f"{folder}/{form.format(number)}": "" for number in numbers}


def dfew() -> Tree:
    rows = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 6, 1604: 7}
    tree: Tree = {}
    for clip in rows:
        tree |= frames(f"Clip/clip_224x224/clip_224x224_part_{(clip - 1) // 1600 + 1}/{clip:05d}", form="{:d}.jpg")
    for fold in (1, 2):
        held = {1, 2} if fold == 1 else {3, 1604}
        for split, names in (("train", set(rows) - held), ("test", held)):
            tree[f"EmoLabel_DataSplit/{split}(single-labeled)/set_{fold}.csv"] = "video_name,label\n" + "".join(
                f"{name},{rows[name]}\n" for name in sorted(names))
    return tree


def ferv39k() -> Tree:
    clips = {"Action/Happy/0267": "Happy", "Action/Sad/0010": "Sad", "War/Fear/0001": "Fear",
             "Crime/Happy/0267": "Happy"}
    tree: Tree = {}
    for clip in clips:
        tree |= frames(f"2_ClipsforFaceCrop/{clip}")
    names = sorted(clips)
    tree["4_setups/All_scenes/train_All.csv"] = "".join(f"{name} {clips[name]}\n" for name in names[:3])
    tree["4_setups/All_scenes/test_All.csv"] = "".join(f"{name} {clips[name]}\n" for name in names[3:])
    return tree


def mafw() -> Tree:
    words = ["anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise", "contempt", "anxiety",
             "helplessness", "disappointment"]
    tree: Tree = {}
    for clip in range(1, 12):
        tree[f"data/clips/{clip:05d}.mp4"] = ""
    for fold in range(1, 6):
        held = {2 * fold - 1, 2 * fold}
        for split, part in (("train", set(range(1, 12)) - held), ("test", held)):
            tree[f"Train & Test Set/single/no_caption/set_{fold}/{split}.txt"] = "".join(
                f"{clip:05d}.mp4 {words[clip - 1]}\n" for clip in sorted(part))
            tree[f"Train & Test Set/compound/no_caption/set_{fold}/{split}.txt"] = "00001.mp4 anger_disgust\n"
    return tree


def cremad() -> Tree:
    return {f"VideoFlash/{actor}_{sentence}_{code}_XX.flv": "" for actor in (1001, 1091)
            for sentence, code in (("DFA", "ANG"), ("IEO", "DIS"), ("IEO", "FEA"), ("TAI", "HAP"), ("WSI", "NEU"),
                                   ("WSI", "SAD"))}


def ravdess() -> Tree:
    tree = {f"Video_Speech_Actor_{actor:02d}/Actor_{actor:02d}/{take:02d}-01-{emotion:02d}-01-02-01-{actor:02d}.mp4": ""
            for actor in (1, 12) for take in (1, 2) for emotion in range(1, 9)}
    return tree | {"Video_Song_Actor_12/Actor_12/02-02-03-01-01-01-12.mp4": ""}


def afew() -> Tree:
    tree: Tree = {}
    for part, film in (("Train_AFEW", "000"), ("Val_AFEW", "017")):
        for number, emotion in enumerate(("Angry", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise")):
            tree[f"{part}/{emotion}/{film}{number:06d}.avi"] = ""
    return tree | {"Test_AFEW/099000001.avi": ""}


def ckplus() -> Tree:
    tree: Tree = {}
    for subject in (5, 10, 11, 999):
        for sequence in (1, 2):
            name = f"S{subject:03d}_{sequence:03d}"
            tree |= frames(f"cohn-kanade-images/S{subject:03d}/{sequence:03d}", form=name + "_{:08d}.png")
            if sequence == 1:
                code = {5: 3, 10: 1, 11: 7, 999: 2}[subject]
                tree[f"Emotion/S{subject:03d}/{sequence:03d}/{name}_00000003_emotion.txt"] = f"   {code}.0000000e+00\n"
    return tree


def mtl() -> Tree:
    units = ",".join("0" * 12)
    head = "image,valence,arousal,expression,aus\n"
    tree = frames("cropped_aligned/video1", (1, 2, 5)) | frames("cropped_aligned/9-30-1280x720_left", (2,))
    tree["MTL_Challenge/train_set.txt"] = head + "".join(
        f"video1/{frame:05d}.jpg,{va},{label},{units}\n" for frame, va, label in
        ((5, ".1,-.2", 7), (1, "-5,-5", 4), (2, ".3,.4", -1)))
    tree["MTL_Challenge/validation_set.txt"] = f"{head}9-30-1280x720_left/00002.jpg,-5,-5,0,{units}\n"
    return tree


def affwild2() -> Tree:
    tree: Tree = {}
    for split, trial in (("Train_Set", "video2"), ("Train_Set", "video2_left"), ("Validation_Set", "v9")):
        tree |= frames(f"cropped_aligned/{trial}", (1, 3))
        track = "5th_ABAW_Annotations/EXPR_Classification_Challenge"
        tree[f"{track}/{split}/{trial}.txt"] = ",".join(EIGHT) + "\n0\n-1\n7\n"
    return tree | {"batch1/video2.mp4": "", "batch1/v9.avi": ""}


def plain() -> Tree:
    return frames("clips/a") | frames("clips/b") | {"clips/c.mp4": ""}


SETS: dict[str, Callable[[], Tree]] = {
    "affwild2": affwild2, "mtl": mtl, "dfew": dfew, "ferv39k": ferv39k, "mafw": mafw, "cremad": cremad,
    "ravdess": ravdess, "afew": afew, "ckplus": ckplus, "table": plain}


def put(root: Path, tree: Tree, order: Iterable[str] | None = None) -> Path:
    for name in order or tree:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(tree[name])
    return root


def read(root: Path, dataset: str = "demo", **choices: object) -> Dataset:
    return load_dataset(DatasetConfig(dataset=dataset, root=str(root), **choices), root)  # type: ignore[arg-type]


def facts(dataset: Dataset, root: Path) -> list[object]:
    """Return everything a data set says, paths taken below its root."""
    trials = [(t.name, t.path.relative_to(root).as_posix(), t.kind, t.parent, t.group, t.split, t.subject, t.clip_label,
               t.side, t.fold, t.stated, None if t.labels is None else t.labels.tolist(),
               t.video and t.video.relative_to(root).as_posix()) for t in dataset.trials]
    problems = [str(problem).replace(str(root), "") for problem in dataset.problems]
    return [dataset.layout, dataset.classes, dataset.metric, dataset.folds, dataset.fold, trials, problems]


def test_every_layout_has_a_fixture() -> None:
    others = {"demo", "logits", *PHOTO_READERS}  # photos: test_photos.py
    assert set(SETS) == set(DATASETS) - others == set(READERS) | {"table"}


@contextmanager
def shuffled_disk(rng: random.Random) -> Iterator[None]:
    """Have every folder listed in another order, as another file system would."""
    real = os.scandir

    class Shuffled:
        def __init__(self, path: str = ".") -> None:
            with real(path) as entries:
                self.entries = list(entries)
            rng.shuffle(self.entries)
            self.left = iter(self.entries)

        def __enter__(self) -> Shuffled:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def __iter__(self) -> Shuffled:
            return self

        def __next__(self) -> os.DirEntry[str]:
            return next(self.left)

        def close(self) -> None:
            pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "scandir", Shuffled)
        yield


@pytest.mark.parametrize("name", SETS)
@settings(deadline=None, max_examples=6)
@given(rng=st.randoms(use_true_random=False))
def test_any_order_of_files_on_disk_gives_the_same_data_set(name: str, rng: random.Random) -> None:
    tree = SETS[name]()
    order = list(tree)
    rng.shuffle(order)
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        first, second = put(Path(one) / "s", tree), put(Path(other) / "s", tree, order)
        with shuffled_disk(rng):
            shuffled = facts(read(second, name), second)
        assert facts(read(first, name), first) == shuffled


@pytest.mark.parametrize("name", SETS)
def test_the_layout_is_told_from_the_folder(tmp_path: Path, name: str) -> None:
    root = put(tmp_path, SETS[name]())
    assert read(root).layout == name


@pytest.mark.parametrize("name", [name for name in SETS if name != "table"])
def test_the_contract(tmp_path: Path, name: str) -> None:
    dataset = read(put(tmp_path, SETS[name]()), name)
    assert [t.name for t in dataset.trials] == sorted({t.name for t in dataset.trials}) and dataset.trials
    assert metrics.official(dataset.metric) and len(set(dataset.classes)) == len(dataset.classes) >= 6
    assert not [p for p in dataset.problems if p.is_error], dataset.problems
    for trial in dataset.trials:
        clock = trial.frame_labels(5)
        assert trial.path.exists() and trial.group and trial.parent
        assert clock.min() >= -1 and clock.max() < len(dataset.classes)


@pytest.mark.parametrize("name", [name for name in SETS if name != "table"])
def test_a_wrong_guess_is_explained(tmp_path: Path, name: str) -> None:
    root = put(tmp_path, SETS[name]())
    wrong = "dfew" if name != "dfew" else "mafw"
    with pytest.raises(InputError) as caught:
        read(root, wrong)
    assert f"--dataset {name}" in caught.value.hint and "found there" in caught.value.hint


def test_two_sets_in_one_folder_are_not_guessed(tmp_path: Path) -> None:
    put(tmp_path, {f"a/{k}": v for k, v in ckplus().items()} | {f"b/{k}": v for k, v in afew().items()})
    with pytest.raises(InputError, match="several sets: ckplus, afew"):
        read(tmp_path)


def label_of(dataset: Dataset) -> dict[str, str]:
    return {t.name: dataset.classes[t.clip_label] for t in dataset.trials if t.clip_label >= 0}


def split_of(dataset: Dataset) -> dict[str, str]:
    return {t.name: t.split for t in dataset.trials}


def test_dfew_labels_count_from_1_and_the_fold_is_a_choice(tmp_path: Path) -> None:
    root = put(tmp_path, dfew())
    dataset = read(root)
    assert label_of(dataset) == {"00001": "Happy", "00002": "Sad", "00003": "Neutral", "00004": "Angry",
                                 "00005": "Surprise", "00006": "Disgust", "01604": "Fear"}
    assert {n for n, s in split_of(dataset).items() if s == "test"} == {"00001", "00002"}
    second = read(root, fold=2)
    assert {n for n, s in split_of(second).items() if s == "test"} == {"00003", "01604"}
    assert (dataset.folds, dataset.fold, second.fold, dataset.metric) == (2, 1, 2, "uar")
    assert {t.name: t.fold for t in second.trials} == {"00001": 1, "00002": 1, "00003": 2, "01604": 2, "00004": 0,
                                                       "00005": 0, "00006": 0}
    assert dataset.digest() != second.digest()
    with pytest.raises(InputError, match="fold 7 has no lists") as caught:
        read(root, fold=7)
    assert "1, 2" in caught.value.hint


def test_dfew_reads_all_frames_before_sixteen_and_says_what_else_is_there(tmp_path: Path) -> None:
    tree = dfew() | {f"Clip/original/{n}.mp4": "" for n in (1, 2, 3, 4, 5, 6, 1604)}
    for clip in (1, 2, 3, 4, 5, 6, 1604):
        tree |= frames(f"Clip/clip_224x224_16f/{clip:05d}", form="{:d}.jpg")
    root = put(tmp_path, tree)
    dataset = read(root)
    assert {t.path.parent.parent.name for t in dataset.trials} == {"clip_224x224"}
    assert ["clip_224x224_16f (7 crops), Clip/original (7 video)" in p.message for p in dataset.problems] == [True]
    assert {t.path.suffix for t in read(root, source="video").trials} == {".mp4"}
    chosen = read(root, "dfew", clips=str(root / "Clip/clip_224x224_16f"))
    assert {t.path.parent.name for t in chosen.trials} == {"clip_224x224_16f"} and len(chosen.trials) == 7
    assert {t.path.name for t in read(root, source="video").trials} >= {"1.mp4", "1604.mp4"}


def test_lists_that_participants_pass_on_count_from_0_and_state_frames(tmp_path: Path) -> None:
    tree = frames("clips/00001") | frames("clips/00002") | frames("clips/00003")
    tree["MAFW_set_1_train_faces.txt"] = "/data/some where/clips/00001 90 0\n/data/some where/clips/00002/ 3 10\n"
    tree["MAFW_set_1_test_faces.txt"] = "/data/some where/clips/00003 3 4\n"
    dataset = read(put(tmp_path, tree))
    assert label_of(dataset) == {"00001": "Anger", "00002": "Disappointment", "00003": "Neutral"}
    assert [t.stated for t in dataset.trials] == [90, 3, 3] and dataset.layout == "mafw"


def test_mafw_folds_and_words(tmp_path: Path) -> None:
    root = put(tmp_path, mafw())
    dataset = read(root, fold=5)
    assert label_of(dataset) == {f"{i + 1:05d}": name for i, name in enumerate(dataset.classes)}
    assert {n for n, s in split_of(dataset).items() if s == "test"} == {"00009", "00010"} and dataset.folds == 5


def test_ferv39k_clips_of_one_number_are_told_apart_by_scene(tmp_path: Path) -> None:
    dataset = read(put(tmp_path, ferv39k()))
    assert label_of(dataset) == {"Action/Happy/0267": "Happy", "Action/Sad/0010": "Sad", "Crime/Happy/0267": "Happy",
                                 "War/Fear/0001": "Fear"}
    assert split_of(dataset)["War/Fear/0001"] == "test" and dataset.metric == "uar"
    with pytest.raises(InputError, match="publishes no folds"):
        read(tmp_path, fold=1)


def test_cremad_actors_are_groups(tmp_path: Path) -> None:
    dataset = read(put(tmp_path, cremad() | {"VideoFlash/1001_DFA_ZZZ_XX.flv": "", "VideoFlash/readme.flv": ""}))
    assert label_of(dataset)["1091_TAI_HAP_XX"] == "Happy" and len(label_of(dataset)) == 12
    assert {(t.subject, t.group) for t in dataset.trials} == {("1001", "1001"), ("1091", "1091")}
    assert [(p.where, p.is_error) for p in dataset.problems] == [("1001_DFA_ZZZ_XX", True)]
    assert [t.split for t in dataset.trials if not t.labelled] == ["test"]


def test_ravdess_reads_each_performance_once(tmp_path: Path) -> None:
    dataset = read(put(tmp_path, ravdess()))
    assert len(dataset.trials) == 17 and sum(t.name.startswith("02-") for t in dataset.trials) == 1
    assert label_of(dataset)["01-01-08-01-02-01-12"] == "Surprised"
    assert {t.group for t in dataset.trials} == {"01", "12"}
    assert ["16 clips exist twice" in p.message for p in dataset.problems] == [True]


def test_afew_parts_emotions_films_and_faces_of_a_folder_without_emotion(tmp_path: Path) -> None:
    tree = afew()
    for part, name in (("Train_AFEW", "AlignedFaces_LBPTOP_Points"), ("Val_AFEW", "AlignedFaces_LBPTOP_Points_Val")):
        for clip in [Path(path).stem for path in afew() if path.startswith(part)]:
            tree |= frames(f"{part}/{name}/Faces/{clip}", form="{:d}.jpg")
    root = put(tmp_path, tree)
    dataset = read(root, source="video")
    assert split_of(dataset)["017000003"] == "validation" and label_of(dataset)["017000003"] == "Happy"
    assert [(t.name, t.clip_label) for t in dataset.trials if t.split == "test"] == [("099000001", -1)]
    assert {t.group for t in dataset.trials} == {"film000", "film017", "film099"} and dataset.metric == "accuracy"
    faces = {t.name: (t.kind, t.clip_label) for t in read(root, source="crops").trials}
    assert faces["000000006"] == ("crops", 6) and len(faces) == 14


def test_afew_a_clip_under_two_emotions_is_told(tmp_path: Path) -> None:
    dataset = read(put(tmp_path, afew() | {"Train_AFEW/Sad/000000000.avi": ""}))
    assert [(p.where, p.is_error) for p in dataset.problems if p.is_error] == [("000000000", True)]


def test_ckplus_sequences_subjects_and_ten_folds(tmp_path: Path) -> None:
    root = put(tmp_path, ckplus())
    dataset = read(root)
    assert label_of(dataset) == {"S005_001": "Disgust", "S010_001": "Anger", "S011_001": "Surprise",
                                 "S999_001": "Contempt"}
    assert {t.name: (t.group, t.fold) for t in dataset.trials if t.labelled} == {
        "S005_001": ("S005", 1), "S010_001": ("S010", 2), "S011_001": ("S011", 3), "S999_001": ("S999", 4)}
    assert {t.split for t in dataset.trials if not t.labelled} == {"test"} and dataset.whole_frames
    held = read(root, fold=2)
    assert [t.name for t in held.trials if t.labelled and t.split == "test"] == ["S010_001"]
    with pytest.raises(InputError, match="fold 11 of 10"):
        read(root, fold=11)


@pytest.mark.parametrize("text", ["0.0000000e+00", "8", "3.5", "x", "", "nan"])
def test_a_bad_label_file_of_ckplus_costs_its_sequence_only(tmp_path: Path, text: str) -> None:
    tree = ckplus() | {"Emotion/S005/002/S005_002_00000003_emotion.txt": text}
    dataset = read(put(tmp_path, tree))
    assert [(p.where, p.is_error) for p in dataset.problems if p.is_error] == [("S005_002", True)]
    assert len(label_of(dataset)) == 4


def test_mtl_rows_stand_at_their_frame_whatever_their_order(tmp_path: Path) -> None:
    dataset = read(put(tmp_path, mtl()))
    labels = {t.name: (t.split, t.group, None if t.labels is None else t.labels.tolist()) for t in dataset.trials}
    assert labels == {"video1": ("train", "video1", [4, -1, -1, -1, 7]),
                      "9-30-1280x720_left": ("validation", "9-30-1280x720", [-1, 0])}
    assert dataset.classes == EIGHT and dataset.metric == "macro_f1"


@pytest.mark.parametrize("row", ["video1/00003.jpg,1,1,8,0", "video1/00003.jpg,1,1,x,0", "video1/00000.jpg,1,1,0,0",
                                 "video1/00001.jpg,1,1,5,0", "video1/00003.jpg,1", "video1/00003.jpg,0,0,-5,0"])
def test_a_bad_row_of_mtl_costs_its_trial_only(tmp_path: Path, row: str) -> None:
    tree = mtl()
    tree["MTL_Challenge/train_set.txt"] += row + "\n"
    dataset = read(put(tmp_path, tree))
    assert [(p.where, p.is_error) for p in dataset.problems] == [("video1", True)]
    assert [t.labelled for t in dataset.trials] == [True, False]


def test_mtl_of_later_editions(tmp_path: Path) -> None:
    tree = {k: v for k, v in mtl().items() if k.endswith("jpg")}
    tree["training_set_annotations.txt"] = "image,valence,arousal,expression,AU1,AU2\nvideo1/00001.jpg,-5,-5,4.0,0,1\n"
    dataset = read(put(tmp_path, tree))
    assert dataset.layout == "mtl" and [t.labels.tolist() for t in dataset.trials if t.labels is not None] == [[4]]


def test_affwild2_crops_videos_or_both(tmp_path: Path) -> None:
    root = put(tmp_path, affwild2())
    both = {t.name: (t.kind, t.video and t.video.name) for t in read(root).trials}
    assert both == {"video2": ("crops", "video2.mp4"), "video2_left": ("crops", "video2.mp4"),
                    "v9": ("crops", "v9.avi")}
    videos = {t.name: (t.kind, t.path.name, t.video) for t in read(root, source="video").trials}
    assert videos == {"video2": ("video", "video2.mp4", None), "video2_left": ("video", "video2.mp4", None),
                      "v9": ("video", "v9.avi", None)}


def test_a_listed_clip_that_is_not_there_is_told_and_the_rest_is_read(tmp_path: Path) -> None:
    tree = {k: v for k, v in ferv39k().items() if "War/" not in k}
    dataset = read(put(tmp_path, tree | frames("2_ClipsforFaceCrop/War/Sad/0009")))
    assert [(p.where, p.is_error) for p in dataset.problems] == [("War/Sad/0009", False), ("War/Fear/0001", True)]
    assert len(dataset.trials) == 3


def test_a_clip_in_both_lists_is_training_data_and_told(tmp_path: Path) -> None:
    tree = ferv39k()
    tree["4_setups/All_scenes/test_All.csv"] += "Action/Sad/0010 Sad\n"
    dataset = read(put(tmp_path, tree))
    assert split_of(dataset)["Action/Sad/0010"] == "train"
    assert [p.where for p in dataset.problems] == ["Action/Sad/0010"]


def test_labels_in_every_usual_spelling() -> None:
    classes = ("Angry", "Happy", "Sad", "Neutral")
    words = ("anger", "HAPPINESS", "sadness", "Neutral", "2", "4", "-1", "²", "")
    assert [code_of(word, classes) for word in words] == [0, 1, 2, 3, 2, None, None, None, None]
    assert [code_of(word, classes, 1) for word in ("1", "4", "0", "5")] == [0, 3, None, None]


@pytest.mark.parametrize("text", ["a,b,c\n1,2,3\n", "alone\n", ",3\n"])
def test_a_list_of_another_form_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(InputError, match="not a clip and a label"):
        read_list(tmp_path / "l.csv")
