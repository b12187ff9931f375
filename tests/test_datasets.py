"""What all readers share: the clock, label files, the search of folders, names, and `load`."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fercache.config import DatasetConfig
from fercache.data import load_dataset
from fercache.data.base import SEVEN, Trial, cache_name
from fercache.data.labels import read, read_all
from fercache.data.scan import PEEK, scan
from fercache.errors import InputError, shorten_list

HEADER = ",".join(SEVEN)


def text(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@settings(deadline=None)
@given(st.lists(st.integers(-1, 6), max_size=30), st.integers(0, 40))
def test_every_frame_has_a_row_and_every_label_keeps_its_number(values: list[int], frames: int) -> None:
    labels = Trial(name="a", path=Path("a"), kind="video", parent="a", group="a", split="train", clip_label=3,
                   labels=np.array(values, np.int16)).frame_labels(frames)
    assert labels.dtype == np.int16 and len(labels) == max(frames, len(values))
    assert labels[: len(values)].tolist() == values and (labels[len(values):] == -1).all()


def test_a_clip_label_is_the_label_of_each_frame() -> None:
    trial = Trial(name="a", path=Path("a"), kind="video", parent="a", group="a", split="train", clip_label=3)
    assert trial.labelled and trial.frame_labels(4).tolist() == [3, 3, 3, 3]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\n\n\n", ""])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_label_file_is_read_whatever_wrote_it(tmp_path: Path, ending: str, mark: str) -> None:
    newline = "\r\n" if "\r" in ending else "\n"
    found = read(text(tmp_path, "a.txt", mark + HEADER + newline + newline.join(["0", "-1", " 6 ", "3"]) + ending))
    assert found.header == SEVEN and found.labels.tolist() == [0, -1, 6, 3]


def test_a_trailing_comma_in_the_header_is_forgiven(tmp_path: Path) -> None:
    assert read(text(tmp_path, "a.txt", HEADER + ", \n1\n")).header == SEVEN


@pytest.mark.parametrize(("content", "says"), [
    ("", "is empty"), ("\n \n", "is empty"), (b"\xff\x00\x01", "not text"),
    (HEADER + "\n0\nhappy\n", "line 3 is 'happy'"), (HEADER + "\n0\n\n1\n", "line 3 is ''"),
    (HEADER + "\n0\n1.5\n", "line 3"), (HEADER + "\n0\n1 2\n", "line 3"), (HEADER + "\n99999999999\n", "line 2"),
    ("0\n--1\n", "line 2"), ("0\n٣\n", "line 2"), (HEADER + "\n" + "9" * 5000 + "\n", "line 2"),
])
def test_what_is_no_label_is_told_with_its_line(tmp_path: Path, content: str | bytes, says: str) -> None:
    with pytest.raises(InputError, match=says):
        read(text(tmp_path, "a.txt", content))


@pytest.mark.parametrize("wrong", [7, -2, 400])
def test_a_label_out_of_range_names_the_frame(tmp_path: Path, wrong: int) -> None:
    file = text(tmp_path, "a.txt", f"{HEADER}\n0\n-1\n{wrong}\n")
    assert f"frame 3 has label {wrong}" in read_all({"a": file}, (SEVEN,))[2][0].message


def test_one_bad_file_costs_only_its_own_labels(tmp_path: Path) -> None:
    bodies = {"good": "0\n1\n", "alone": "5\n", "range": "0\n7\n", "word": "x\n"}
    files = {name: text(tmp_path, f"{name}.txt", f"{HEADER}\n{body}") for name, body in bodies.items()}
    files["swapped"] = text(tmp_path, "swapped.txt", "Anger,Neutral,Disgust,Fear,Happiness,Sadness,Surprise\n0\n")
    files["gone"] = tmp_path / "gone.txt"
    classes, labels, problems = read_all(files, (SEVEN,))
    assert classes == SEVEN and set(labels) == {"good", "alone"}
    assert [problem.where for problem in problems] == ["gone", "range", "swapped", "word"]
    assert all(problem.is_error and str(tmp_path) in problem.hint for problem in problems)
    assert "header unknown" in problems[2].message and "No such file" in problems[0].message


def test_a_large_folder_of_crops_is_not_listed(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    for number in range(1, 3 * PEEK):
        (folder / f"{number:05d}.jpg").touch()
    seen: list[str] = []
    real = os.scandir

    class Counting:
        def __init__(self, path: Path) -> None:
            self.entries = real(path)

        def __enter__(self) -> Counting:
            return self

        def __exit__(self, *_: object) -> None:
            self.entries.close()

        def __iter__(self) -> Counting:
            return self

        def __next__(self) -> os.DirEntry[str]:
            entry = next(self.entries)
            seen.append(entry.name)
            return entry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "scandir", Counting)
        assert scan(tmp_path).crops == [folder]
    assert len(seen) <= PEEK + 2


def test_a_numbered_picture_beside_clips_makes_no_clip_of_the_folder(tmp_path: Path) -> None:
    for name in ("00001.jpg", "a.mp4", "crops/00001.png", "crops/.hidden/x.mp4", "@eaDir/y.mp4"):
        text(tmp_path, name, b"")
    found = scan(tmp_path)
    assert found.crops == [tmp_path / "crops"] and found.videos == [tmp_path / "a.mp4"]


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    text(tmp_path, "a/x.mp4", b"")
    (tmp_path / "a/loop").symlink_to(tmp_path)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert tmp_path / "a/x.mp4" in scan(tmp_path).videos


@settings(deadline=None)
@given(st.permutations(["b/00001.jpg", "a/00002.jpg", "v.mp4", "w.avi", "t/e.txt", "b/00007.jpg", "empty/.keep"]))
def test_the_order_of_files_on_disk_does_not_matter(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in names:
            text(root, name, b"")
        found = scan(root)
        got = [[path.relative_to(root).as_posix() for path in paths]
               for paths in (found.videos, found.crops, found.folders, found.texts)]
    assert got == [["v.mp4", "w.avi"], ["a", "b"], ["a", "b", "empty", "t"], ["t/e.txt"]]


@pytest.mark.parametrize("dataset", ["affwild2", "table"])
def test_no_such_folder_an_empty_one_and_a_file_are_input_errors(tmp_path: Path, dataset: str) -> None:
    for place in (tmp_path / "nowhere", tmp_path / ("x" * 5000), tmp_path):
        with pytest.raises(InputError, match=r"(?i)no such f|folder is empty|cannot be read|too long") as caught:
            load_dataset(DatasetConfig(dataset=dataset, root=str(place)), tmp_path)
        assert caught.value.exit_code == 2 and caught.value.hint


def test_a_file_in_place_of_a_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="this is a file"):
        load_dataset(DatasetConfig(dataset="affwild2", root=str(text(tmp_path, "a.mp4", b"x"))), tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_folder_is_told_and_the_rest_is_read(tmp_path: Path) -> None:
    text(tmp_path, "closed/a.mp4", b"")
    text(tmp_path, "b.mp4", b"")
    (tmp_path / "closed").chmod(0)
    dataset = load_dataset(DatasetConfig(clips=str(tmp_path)), tmp_path)
    (tmp_path / "closed").chmod(0o700)
    assert [trial.name for trial in dataset.trials] == ["b"] and "Permission" in dataset.problems[0].message


def test_a_root_without_a_layout_is_read_as_what_lies_there_or_explained(tmp_path: Path) -> None:
    text(tmp_path, "notes/readme.txt", "x")
    with pytest.raises(InputError) as caught:
        load_dataset(DatasetConfig(root=str(tmp_path)), tmp_path)
    assert "afew or table" in caught.value.hint and "1 *.txt; the folders notes" in caught.value.hint
    text(tmp_path, "a.mp4", b"")
    assert load_dataset(DatasetConfig(root=str(tmp_path)), tmp_path).layout == "table"
    with pytest.raises(InputError, match="without clips"):
        load_dataset(DatasetConfig(labels="somewhere"), tmp_path)


def test_names_in_the_cache_are_plain_and_tell_paths_apart(tmp_path: Path) -> None:
    (tmp_path / "one/se t").mkdir(parents=True)
    (tmp_path / "two/se t").mkdir(parents=True)
    first, second = (cache_name("table", tmp_path / place / "se t") for place in ("one", "two"))
    assert first != second and first.startswith("table-se_t-") and len(first.split("-")[-1]) == 8
    assert cache_name("table", tmp_path / "one" / ".." / "one" / "se t") == first
    assert cache_name("table", tmp_path, "mine") == "mine"
    for wrong in ("../up", "a/b", ".hidden", "x" * 101, "a b", "é"):
        with pytest.raises(InputError, match="cannot name a folder"):
            cache_name("table", tmp_path, wrong)


def test_the_digest_sees_labels_groups_and_splits_but_no_paths(tmp_path: Path) -> None:
    def digest(root: str, labels: str, group: str, split: str) -> str:
        folder = tmp_path / root
        text(folder, "v.mp4", b"")
        text(folder, "t.csv", f"clip,path,group,split\nv,v.mp4,{group},{split}\n")
        text(folder, "l/v.txt", f"{HEADER}\n{labels}")
        return load_dataset(DatasetConfig(clips=str(folder / "t.csv"), labels=str(folder / "l")), tmp_path).digest()

    base = digest("a", "0\n1\n", "g", "train")
    assert digest("b", "0\n1\n", "g", "train") == base
    others = {digest("c", "0\n2\n", "g", "train"), digest("d", "0\n1\n", "h", "train"),
              digest("e", "0\n1\n", "g", "val")}
    assert len(others | {base}) == 4


def test_long_lists_are_cut() -> None:
    assert shorten_list("abc") == "a, b, c" and shorten_list("abcdefgh", 2) == "a, b and 6 more"
