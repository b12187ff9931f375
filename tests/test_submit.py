"""Submissions: written, read back by readers that share no code with the writers, equal; or refused, saying why."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from predsfile import EIGHT, SEVEN, draw, write
from videos import make_video

from fercache.config import DatasetConfig, SubmitConfig
from fercache.data import load_dataset
from fercache.errors import InputError
from fercache.results import submit
from fercache.results.submit import SubmissionPaths, formats

CONFIG = SubmitConfig()
HEADER = "image_location,Neutral,Anger,Disgust,Fear,Happiness,Sadness,Surprise,Other"
LENGTHS = {"10-60-1280x720": 40, "10-60-1280x720_right": 25, "video2": 30, "video2_left": 31, "video59_right": 12}


def read_single_file(path: Path) -> dict[str, list[int]]:
    """The independent reader of ABAW5 and later: trial -> class of frame 1, 2, .. (it stops at anything odd)."""
    with open(path, "rb") as file:  # noqa: PTH123
        data = file.read()
    assert data.endswith(b"\n") and not data.endswith(b"\n\n") and b"\r" not in data
    first, *rows = data[:-1].decode("ascii").split("\n")
    assert first == HEADER, first
    found: dict[str, list[int]] = {}
    for row in rows:
        location, label = row.split(",")
        trial, picture = location.split("/")
        found.setdefault(trial, []).append(int(label))
        assert picture == f"{len(found[trial]):05d}.jpg" and 0 <= int(label) <= 7, row
    return found


def read_folder(folder: Path, header: str) -> dict[str, list[int]]:
    """The independent reader of ABAW1 to 3: trial -> class of frame 1, 2, .."""
    found = {}
    for name in os.listdir(folder):  # noqa: PTH208
        with open(folder / name, "rb") as file:  # noqa: PTH123
            data = file.read()
        assert name.endswith(".txt") and data.startswith(header.encode() + b"\n"), data[:80]
        assert data.endswith(b"\n") and not data.endswith(b"\n\n") and b"\r" not in data
        found[name[:-4]] = [int(line) for line in data[:-1].decode("ascii").split("\n")[1:]]
    return found


def rows_of(lengths: Mapping[str, int]) -> list[str]:
    """Return the locations of a template."""
    return [f"{trial}/{frame:05d}.jpg" for trial, many in lengths.items() for frame in range(1, many + 1)]


def template(path: Path, rows: Iterable[str], ending: str = ",0", header: str = HEADER, last: str = "\n") -> Path:
    """Write a template as the organisers do: rows end in a bare comma (ABAW5) or in ",0" (ABAW6)."""
    path.write_bytes((header + "\n" + "\n".join(row + ending for row in rows) + last).encode())
    return path


@pytest.fixture
def shares(tmp_path: Path) -> dict[str, np.ndarray]:
    """Predictions for five trials, also on disk as preds.csv."""
    made = draw(LENGTHS)
    write(tmp_path / "preds.csv", made)
    return made


def run(tmp_path: Path, rows: Path | None = None, config: SubmitConfig = CONFIG, **more: Path) -> submit.Submission:
    places = SubmissionPaths(rows or tmp_path / "template.txt", tmp_path / "preds.csv", tmp_path / "out.txt")
    return submit.write_submission(places._replace(**more), config)


def refused(tmp_path: Path, config: SubmitConfig = CONFIG, **more: Path) -> str:
    """Return what is said when nothing is written; nothing must be left behind either."""
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError) as caught:
        run(tmp_path, config=config, **more)
    assert sorted(tmp_path.iterdir()) == before
    assert "next: " in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("ending", [",", ",0", ",-1"])
def test_round_trip_of_the_single_file(tmp_path: Path, shares: dict[str, np.ndarray], ending: str) -> None:
    order = ["video2_left", "10-60-1280x720_right", "video2", "10-60-1280x720"]  # theirs, not ours
    template(tmp_path / "template.txt", rows_of({name: LENGTHS[name] for name in order}), ending)
    made = run(tmp_path)
    found = read_single_file(made.out)
    assert list(found) == order and made.rows == 126 and made.trials == 4
    for name, said in found.items():
        np.testing.assert_array_equal(said, shares[name].argmax(1))
    assert any("1 clips of the predictions" in note for note in made.notes)


@settings(max_examples=25, deadline=None)
@given(lengths=st.dictionaries(st.from_regex(r"[a-z0-9][a-zA-Z0-9_ -]{0,9}", fullmatch=True), st.integers(1, 40),
                               min_size=1, max_size=6), seed=st.integers(0, 99), bare=st.booleans())
def test_round_trip_of_any_template(tmp_path_factory: pytest.TempPathFactory, lengths: dict[str, int], seed: int,
                                    bare: bool) -> None:
    folder = tmp_path_factory.mktemp("any")
    made = draw(lengths, seed=seed)
    write(folder / "preds.csv", made)
    template(folder / "template.txt", rows_of(lengths), "," if bare else ",0")
    found = read_single_file(run(folder).out)
    assert {name: list(values.argmax(1)) for name, values in made.items()} == found


def test_exact_bytes(tmp_path: Path) -> None:
    """Header as the template has it, two fields a row, one line feed at the very end; no trailing comma, no blank."""
    write(tmp_path / "preds.csv", {"a": np.eye(8)[[3, 7]]})
    template(tmp_path / "template.txt", rows_of({"a": 2}), ",")
    assert run(tmp_path).out.read_bytes() == f"{HEADER}\na/00001.jpg,3\na/00002.jpg,7\n".encode()
    template(tmp_path / "template.txt", rows_of({"a": 2}), ",", last="")  # cut off before its last line feed
    assert run(tmp_path).out.read_bytes() == f"{HEADER}\na/00001.jpg,3\na/00002.jpg,7\n".encode()


def test_what_pandas_would_make_of_the_header_does_not_matter(tmp_path: Path, shares: dict[str, np.ndarray]) -> None:
    """Nine names over two fields: pandas takes the first field for an index of the wrong column. We count commas."""
    template(tmp_path / "template.txt", rows_of(LENGTHS))
    lines = run(tmp_path).out.read_text().splitlines()
    assert lines[0].count(",") == 8 and {line.count(",") for line in lines[1:]} == {1}
    assert len(lines) == 1 + sum(LENGTHS.values())


def test_rows_more_and_less_are_refused_and_listed(tmp_path: Path, shares: dict[str, np.ndarray]) -> None:
    rows = rows_of(LENGTHS)
    template(tmp_path / "template.txt", [*rows[:40], "10-60-1280x720/00041.jpg", *rows[40:]])
    said = refused(tmp_path)
    assert "1 rows are missing in the predictions: 10-60-1280x720/00041" in said and "--rows template" in said
    template(tmp_path / "template.txt", [row for row in rows if row != "video2/00030.jpg"])
    assert "video2/00030" in refused(tmp_path)
    template(tmp_path / "template.txt", [row for row in rows if row != "video2/00007.jpg"])
    assert "video2/00007" in refused(tmp_path)


def test_long_lists_of_differences_are_cut(tmp_path: Path, shares: dict[str, np.ndarray]) -> None:
    template(tmp_path / "template.txt", rows_of({**LENGTHS, "video2": 5000, **{f"new{i}": 3 for i in range(300)}}))
    said = refused(tmp_path)
    assert "4,970 rows are missing" in said and "and 4,960 more" in said and "300 trials" in said and len(said) < 1500


def test_two_swapped_rows_are_refused(tmp_path: Path, shares: dict[str, np.ndarray]) -> None:
    rows = rows_of(LENGTHS)
    for i, j in ((3, 4), (39, 40), (0, 39), (10, 100)):
        swapped = list(rows)
        swapped[i], swapped[j] = swapped[j], swapped[i]
        template(tmp_path / "template.txt", swapped)
        said = refused(tmp_path)
        assert "out of order" in said and "line " in said


@settings(max_examples=60, deadline=None)
@given(pair=st.tuples(st.integers(0, 137), st.integers(0, 137)).filter(lambda pair: pair[0] != pair[1]))
def test_any_two_swapped_rows_are_refused(tmp_path_factory: pytest.TempPathFactory, pair: tuple[int, int]) -> None:
    folder = tmp_path_factory.mktemp("swap")
    write(folder / "preds.csv", draw(LENGTHS))
    rows = rows_of(LENGTHS)
    rows[pair[0]], rows[pair[1]] = rows[pair[1]], rows[pair[0]]
    template(folder / "template.txt", rows)
    refused(folder)


def test_double_rows_and_unknown_trials_are_refused(tmp_path: Path, shares: dict[str, np.ndarray]) -> None:
    rows = rows_of(LENGTHS)
    template(tmp_path / "template.txt", [*rows[:5], rows[4], *rows[5:]])
    assert "it appears twice" in refused(tmp_path)
    template(tmp_path / "template.txt", [*rows, rows[0]])
    assert "further up" in refused(tmp_path)
    template(tmp_path / "template.txt", [*rows, "video99/00001.jpg"])
    assert "no prediction for 1 trials: video99" in refused(tmp_path, replace(CONFIG, rows="template"))


def test_another_person_of_the_video_is_no_stand_in(tmp_path: Path) -> None:
    write(tmp_path / "preds.csv", draw({"video2": 30}))
    template(tmp_path / "template.txt", rows_of({"video2_left": 30}))
    assert "video2_left (video2 is another person of that video)" in refused(tmp_path)


@pytest.mark.parametrize(("change", "says"), [
    (lambda data: data.replace(b"\n", b"\r\n"), "CR LF"), (lambda data: b"\xef\xbb\xbf" + data, "byte order mark"),
    (lambda data: data.decode().encode("utf-16"), "UTF-16"),
    (lambda data: data.replace(b"Other\n", b"Other, \n"), "header"),
    (lambda data: data.replace(b",Other\n", b""), "header"), (lambda data: data.replace(b"Fear,", b""), "header"),
    (lambda data: data.replace(b"Anger,Disgust", b"Disgust,Anger"), "header"), (lambda data: data + b"\n", "empty"),
    (lambda data: data.replace(b"video2/00003.jpg,0", b"video2/00003.jpg"), "row of a template"),
    (lambda data: data.replace(b"video2/00003.jpg,0", b"video2/00003.jpg,8"), "row of a template"),
    (lambda data: data.replace(b"video2/00003.jpg,0", b"video2/00003.jpg,0,0"), "row of a template"),
    (lambda data: data.replace(b"video2/00003.jpg,0", b"video2/x.jpg,0"), "row of a template"),
    (lambda data: data.replace(b"video2/00003", b"video2/00000"), "row of a template"),
    (lambda data: HEADER.encode() + b"\n", "no rows"), (lambda data: b"", "template: its first line is ''"),
    (lambda data: b"\0\1\2\3" * 5000, ""), (lambda data: data.replace(b"video59_right/", b"vid\xffeo/"), "UTF-8"),
], ids=range(17))
def test_damaged_templates_are_refused(tmp_path: Path, shares: dict[str, np.ndarray], change: object,
                                       says: str) -> None:
    path = template(tmp_path / "template.txt", rows_of(LENGTHS))
    path.write_bytes(change(path.read_bytes()))  # type: ignore[operator]
    assert says in refused(tmp_path)


def test_the_organisers_count_wins_when_asked_and_it_is_told(tmp_path: Path, shares: dict[str, np.ndarray]) -> None:
    """Off by one against the organisers' count: their rows are written, each difference has a line."""
    theirs = {**LENGTHS, "video2": 32, "video2_left": 30, "video59_right": 12}
    template(tmp_path / "template.txt", rows_of(theirs))
    made = run(tmp_path, config=replace(CONFIG, rows="template"))
    found = read_single_file(made.out)
    assert {name: len(said) for name, said in found.items()} == theirs
    last = int(shares["video2"][-1].argmax())
    assert found["video2"] == [*shares["video2"].argmax(1), last, last]
    assert found["video2_left"] == list(shares["video2_left"].argmax(1)[:30])
    notes = "\n".join(made.notes)
    assert "video2: 32 frames wanted, 30 predicted: 2 filled, 0 left out" in notes
    assert "video2_left: 30 frames wanted, 31 predicted: 0 filled, 1 left out" in notes and "nearest" in notes


def test_rows_inside_a_clip_are_filled_by_the_line_when_asked(tmp_path: Path) -> None:
    """Swapped weights in a submission: beside a face the class must be that face's."""
    ends = np.array([[.9, .1, 0, 0, 0, 0, 0, 0], [.1, .9, 0, 0, 0, 0, 0, 0]])
    write(tmp_path / "preds.csv", {"a": ends}, frames={"a": [1, 10]})
    template(tmp_path / "template.txt", rows_of({"a": 10}))
    assert "8 rows are missing" in refused(tmp_path)
    found = read_single_file(run(tmp_path, config=replace(CONFIG, rows="template", missing_faces="linear")).out)
    assert found["a"] == [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(("classes", "edition", "header"), [
    (SEVEN, "auto", ",".join(SEVEN)), (SEVEN, "abaw2", ",".join(SEVEN)), (EIGHT, "auto", ",".join(EIGHT)),
    (EIGHT, "abaw3", ",".join(EIGHT))])
def test_round_trip_of_the_folder(tmp_path: Path, classes: tuple[str, ...], edition: str, header: str) -> None:
    made = draw(LENGTHS, classes)
    write(tmp_path / "preds.csv", made, classes)
    (tmp_path / "template.txt").write_text("\n".join(LENGTHS) + "\n")
    done = run(tmp_path, config=replace(CONFIG, edition=edition))
    assert done.rows == sum(LENGTHS.values())
    assert read_folder(done.out, header) == {name: list(values.argmax(1)) for name, values in made.items()}
    assert (done.out / "video2_left.txt").read_bytes().startswith(header.encode() + b"\n")


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path, shares: dict[str, np.ndarray]) -> None:
    (tmp_path / "template.txt").write_text("\n".join(LENGTHS) + "\r\n")  # a list is only read: CR LF does no harm
    (tmp_path / "out.txt").mkdir()
    assert len(read_folder(run(tmp_path).out, ",".join(EIGHT))) == 5
    with pytest.raises(InputError, match="already"):
        run(tmp_path)
    assert len(list((tmp_path / "out.txt").iterdir())) == 5


@pytest.mark.parametrize(("text", "says"), [("video2\nvideo2\n", "twice"), ("video2\n../x\n", "../x"),
                                            ("video2\n\nvideo59\n", "empty"), ("../x\n", "../x"),
                                            ("video2\n.hidden\n", "name of a trial"), ("video2\ngone\n", "gone")])
def test_damaged_test_lists_are_refused(tmp_path: Path, shares: dict[str, np.ndarray], text: str, says: str) -> None:
    (tmp_path / "template.txt").write_text(text)
    assert says in refused(tmp_path)


def test_lengths_of_a_table_win_and_left_and_right_are_looked_up_by_their_video(tmp_path: Path,
                                                                                shares: dict[str, np.ndarray]) -> None:
    """`_left` forgotten at the look-up: video2_left must get its video's 33 frames, video59_right video59's 12."""
    (tmp_path / "template.txt").write_text("video2_left\n10-60-1280x720_right\nvideo59_right\n")
    (tmp_path / "frames.csv").write_text("clip,frames\nvideo2,33\n10-60-1280x720,40\n10-60-1280x720_right,24\n"
                                         "video59,12\n")
    made = run(tmp_path, frames=tmp_path / "frames.csv")
    found = read_folder(made.out, ",".join(EIGHT))
    assert {name: len(said) for name, said in found.items()} == {"video2_left": 33, "10-60-1280x720_right": 24,
                                                                 "video59_right": 12}
    assert found["video2_left"][:31] == list(shares["video2_left"].argmax(1))
    assert set(found["video2_left"][31:]) == {int(shares["video2_left"][-1].argmax())}
    notes = "\n".join(made.notes)
    assert "video2_left: 33 frames wanted, 31 predicted: 2 filled" in notes and "video59_right" not in notes


@pytest.mark.parametrize(("text", "says"), [
    ("clip,frames\nvideo2,33\n", "no length for 1 trials: video59_right"), ("a,b\n", "columns"),
    ("clip,frames\nvideo2,x\n", "line 2"), ("clip,frames\nvideo2,3\nvideo2,4\n", "line 3"),
    ("clip,frames\nvideo2,0\n", "line 2"), ("clip,frames\nvideo2\n", "line 2")])
def test_damaged_tables_of_lengths_are_refused(tmp_path: Path, shares: dict[str, np.ndarray], text: str,
                                               says: str) -> None:
    (tmp_path / "template.txt").write_text("video2_left\nvideo59_right\n")
    (tmp_path / "frames.csv").write_text(text)
    assert says in refused(tmp_path, frames=tmp_path / "frames.csv")
    assert "gone.csv" in refused(tmp_path, frames=tmp_path / "gone.csv")


def test_lengths_of_the_videos(tmp_path: Path, shares: dict[str, np.ndarray]) -> None:
    pictures = [np.full((32, 32, 3), 8 * i, np.uint8) for i in range(14)]
    (tmp_path / "batch1").mkdir()
    make_video(tmp_path / "batch1" / "video59.mp4", pictures)
    (tmp_path / "template.txt").write_text("video59_right\n")
    made = run(tmp_path, videos=tmp_path / "batch1")
    assert [len(said) for said in read_folder(made.out, ",".join(EIGHT)).values()] == [14]
    assert any("video59_right: 14 frames wanted, 12 predicted" in note for note in made.notes)
    (tmp_path / "template.txt").write_text("video2_left\n")
    with pytest.raises(InputError, match="without _left"):
        try:
            run(tmp_path, videos=tmp_path / "batch1", out=tmp_path / "other")
        except InputError as error:
            raise InputError(str(error)) from error


def test_seven_classes_for_eight_are_refused_unless_a_map_says_how(tmp_path: Path) -> None:
    made = draw({"a": 20}, SEVEN)
    write(tmp_path / "preds.csv", made, SEVEN)
    template(tmp_path / "template.txt", rows_of({"a": 20}))
    said = refused(tmp_path)
    assert "7 classes" in said and " 8: " in said and "never predicted: Other" in said and "--map" in said
    done = run(tmp_path, config=replace(CONFIG, map="names"))
    assert read_single_file(done.out)["a"] == list(made["a"].argmax(1))
    assert any("never predicted: Other" in note for note in done.notes)


def test_eight_classes_for_seven(tmp_path: Path) -> None:
    made = draw({"a": 50}, EIGHT)
    write(tmp_path / "preds.csv", made, EIGHT)
    (tmp_path / "template.txt").write_text("a\n")
    assert "8 classes" in refused(tmp_path, replace(CONFIG, edition="abaw2"))
    done = run(tmp_path, config=replace(CONFIG, edition="abaw2", map="names"))
    assert read_folder(done.out, ",".join(SEVEN))["a"] == list(made["a"][:, :7].argmax(1))


def test_another_order_of_the_same_classes_is_turned_by_name(tmp_path: Path) -> None:
    order = ("Happy", "Sad", "Neutral", "Angry", "Surprise", "Disgust", "Fear", "other")
    made = draw({"a": 30}, order)
    write(tmp_path / "preds.csv", made, order)
    template(tmp_path / "template.txt", rows_of({"a": 30}))
    done = run(tmp_path)
    numbers = [EIGHT.index(name) for name in ("Happiness", "Sadness", "Neutral", "Anger", "Surprise", "Disgust", "Fear",
                                              "Other")]
    assert read_single_file(done.out)["a"] == [numbers[i] for i in made["a"].argmax(1)]
    assert any("Happy -> Happiness" in note for note in done.notes)


@pytest.mark.parametrize(("edition", "says"), [("abaw2", "a test list"), ("dfew", "DFEW's table"), ("abaw6", "")])
def test_an_edition_that_does_not_fit_the_template_is_refused(tmp_path: Path, shares: dict[str, np.ndarray],
                                                              edition: str, says: str) -> None:
    template(tmp_path / "template.txt", rows_of(LENGTHS))
    config = replace(CONFIG, edition=edition)
    if says:
        assert says in refused(tmp_path, config)
    else:
        assert run(tmp_path, config=config).rows == sum(LENGTHS.values())


def test_dfew(tmp_path: Path) -> None:
    classes = ("Neutral", "Anger", "Disgust", "Fear", "Happiness", "Sadness", "Surprise")
    made = draw({"00002": 9, "00011": 5, "16372": 7}, classes)
    write(tmp_path / "preds.csv", made, classes, faceless={"00002": [1, 2, 3, 4], "00011": range(1, 6)})
    (tmp_path / "template.txt").write_text("video_name,label\r\n16372,3\r\n2,1\r\n00011,7\r\n")
    done = run(tmp_path)
    assert done.form == "dfew" and any("no official result" in note for note in done.notes)
    lines = done.out.read_bytes().decode().split("\n")
    order = ["Happiness", "Sadness", "Neutral", "Anger", "Surprise", "Disgust", "Fear"]
    want = [made["16372"], made["00002"][4:], made["00011"]]
    numbers = [order.index(classes[values.mean(0).argmax()]) + 1 for values in want]
    assert lines == ["video_name,label", *(f"{name},{n}" for name, n in zip(("16372", "2", "00011"), numbers,
                                                                            strict=True)), ""]


def test_ferv39k(tmp_path: Path) -> None:
    classes = ("Angry", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise")
    made = draw({"Action/Happy/0267": 9, "Crime/Sad/0010": 6}, classes)
    write(tmp_path / "preds.csv", made, classes)
    (tmp_path / "template.txt").write_text("Crime/Sad/0010 Sad\nAction/Happy/0267 Happy\n")
    done = run(tmp_path)
    want = [f"{name} {classes[made[name].mean(0).argmax()]}" for name in ("Crime/Sad/0010", "Action/Happy/0267")]
    assert done.form == "ferv39k" and done.out.read_bytes() == ("\n".join(want) + "\n").encode()


def test_the_names_are_those_of_the_readers(tmp_path: Path) -> None:
    """A set's own test list is template and source of the trials: what the reader names, the list finds."""
    folds = tmp_path / "dfew/EmoLabel_DataSplit"
    lists = {folds / "train(single-labeled)/set_1.csv": "video_name,label\n3,1\n",
             folds / "test(single-labeled)/set_1.csv": "video_name,label\n2,1\n11,7\n",
             tmp_path / "ferv39k/4_setups/All_scenes/train_All.csv": "Action/Sad/0001 Sad\n",
             tmp_path / "ferv39k/4_setups/All_scenes/test_All.csv": "Action/Happy/0267 Happy\nCrime/Sad/0010 Sad\n"}
    for path, text in lists.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for clip in ("dfew/Clip/00002", "dfew/Clip/00011", "dfew/Clip/00003", "ferv39k/2_ClipsforFaceCrop/Action/Sad/0001",
                 "ferv39k/2_ClipsforFaceCrop/Action/Happy/0267", "ferv39k/2_ClipsforFaceCrop/Crime/Sad/0010"):
        (tmp_path / clip).mkdir(parents=True)
        (tmp_path / clip / "00001.jpg").write_bytes(b"x")
    for layout, test in (("dfew", list(lists)[1]), ("ferv39k", list(lists)[3])):
        data = load_dataset(DatasetConfig(dataset=layout, root=str(tmp_path / layout)), tmp_path)
        asked = [trial for trial in data.trials if trial.split != "train"]
        assert len(asked) == 2, data.problems
        truth = {trial.name: np.eye(7)[[trial.clip_label] * 3] for trial in asked}
        write(tmp_path / "preds.csv", truth, data.classes)
        done = run(tmp_path, test, out=tmp_path / f"{layout}.txt")
        assert done.out.read_text() == test.read_text()  # perfect predictions are the list itself


@pytest.mark.parametrize(("text", "says"), [
    ("video_name,label\n1,1\n1,2\n", "twice"), ("video_name,label\n1\n", "line 2"),
    ("video_name,label\n1,2,3\n", "line 2"),
    ("video_name,label\n77,2\n", "no prediction for 1 of its 1 clips: 77"), ("a/b/c Sad\nx\n", "line 2"),
    ("a;b;c,d\n", "a;b;c,d")])
def test_damaged_lists_of_clips_are_refused(tmp_path: Path, text: str, says: str) -> None:
    write(tmp_path / "preds.csv", draw({"00001": 4}, SEVEN), SEVEN)
    (tmp_path / "template.txt").write_text(text)
    assert says in refused(tmp_path)


def test_nothing_that_is_read_is_written_over(tmp_path: Path, shares: dict[str, np.ndarray]) -> None:
    path = template(tmp_path / "template.txt", rows_of(LENGTHS))
    assert "--out" in refused(tmp_path, out=path)
    assert "--out" in refused(tmp_path, out=tmp_path / "preds.csv")
    assert "--frames and --videos" in refused(tmp_path, frames=path)


@pytest.mark.slow("2.7 million rows")
def test_the_real_names_and_lengths_of_561_trials(tmp_path: Path, shared: Path) -> None:
    """Predictions on the crops' clock against the videos' lengths: each disagreement told, with the right number."""
    with (shared / "data/affwild2_meta/sucv_ABAW2_length.csv").open() as file:
        meta = {row["trial name"]: (int(row["frame_count"]), int(row["considered_count"]))
                for row in csv.DictReader(file)}
    made = draw({name: crops for name, (_, crops) in meta.items()})
    write(tmp_path / "preds.csv", made)
    template(tmp_path / "template.txt", rows_of({name: frames for name, (frames, _) in meta.items()}), ",")
    said = refused(tmp_path)
    assert "48,818 rows are missing" in said
    started = time.monotonic()
    done = run(tmp_path, config=replace(CONFIG, rows="template"))
    print(f"{done.rows:,} rows of {done.trials} trials in {time.monotonic() - started:.1f} s: {done.notes[0]}")
    assert done.notes[0].startswith("lengths differ in 419 trials") and "399 more trials" in done.notes[-1]
    found = read_single_file(done.out)
    assert len(found) == 561
    for name, (frames, crops) in meta.items():
        same = min(frames, crops)
        assert len(found[name]) == frames
        np.testing.assert_array_equal(found[name][:same], made[name].argmax(1)[:same])
        assert set(found[name][crops:]) <= {int(made[name][-1].argmax())}


CRASH = """
import itertools, os, signal, sys
from pathlib import Path
from fercache.results import submit
from fercache.runtime import atomic_io
from fercache.config import SubmitConfig
real, calls = atomic_io.fsync, itertools.count(1)
def sync(path):
    if next(calls) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    real(path)
atomic_io.fsync = sync
folder = Path(sys.argv[1])
submit.write_submission(submit.SubmissionPaths(folder / "template.txt", folder / "preds.csv", folder / "out"),
                        SubmitConfig())
"""


@pytest.mark.parametrize("single", [True, False])
def test_a_kill_leaves_the_whole_submission_or_none(tmp_path: Path, shares: dict[str, np.ndarray],
                                                    single: bool) -> None:
    if single:
        template(tmp_path / "template.txt", rows_of(LENGTHS))
    else:
        (tmp_path / "template.txt").write_text("\n".join(LENGTHS) + "\n")
    whole = 0
    for at in range(1, 9 if not single else 4):
        done = subprocess.run([sys.executable, "-c", CRASH, tmp_path, str(at)], check=False, capture_output=True)
        out = tmp_path / "out"
        if out.exists():
            whole += 1
            found = read_single_file(out) if single else read_folder(out, ",".join(EIGHT))
            assert {name: len(said) for name, said in found.items()} == LENGTHS
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert whole == 1 and at > 1


def test_the_command(tmp_path: Path, shares: dict[str, np.ndarray]) -> None:
    template(tmp_path / "template.txt", rows_of(LENGTHS))
    words = [sys.executable, "-m", "fercache", "submit", "--template", "template.txt", "--out", "out.txt"]
    done = subprocess.run(words, cwd=tmp_path, text=True, capture_output=True, check=False)
    assert done.returncode == 0 and done.stdout == "out.txt\n" and "138 rows of 5 trials" in done.stderr
    template(tmp_path / "template.txt", rows_of({**LENGTHS, "video2": 31}))
    (tmp_path / "out.txt").unlink()
    done = subprocess.run(words, cwd=tmp_path, text=True, capture_output=True, check=False)
    assert done.returncode == 2 and "video2/00031" in done.stderr and "Traceback" not in done.stderr
    assert not done.stdout and not (tmp_path / "out.txt").exists()


def test_a_trial_whose_name_no_file_can_have_is_told_before_anything_is_made(tmp_path: Path) -> None:
    trial = "顔" * 86
    with pytest.raises(InputError, match="too long") as told:
        formats.write_folder({trial: np.zeros(3, np.int64)}, SEVEN, tmp_path / "out")
    assert trial[:20] in str(told.value) and not (tmp_path / "out").exists()
