"""Tables and folders of clips: any set without writing code."""

from __future__ import annotations

import csv
import gzip
import io
import os
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from fercache.config import DatasetConfig
from fercache.data import load_dataset, table, tables
from fercache.data.base import Dataset, Trial
from fercache.errors import InputError

HEADER = "Neutral,Anger,Disgust"


def text(folder: Path, name: str, content: str = "") -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(content, encoding="utf-8")
    return folder / name


def read(clips: Path, labels: Path | None = None, **choices: object) -> Dataset:
    config = DatasetConfig(dataset="table", clips=str(clips), labels=str(labels or ""), **choices)  # type: ignore[arg-type]
    return load_dataset(config, clips.parent)


def simple(tmp_path: Path, names: str = "abc") -> Path:
    for name in names:
        text(tmp_path, f"{name}.mp4")
    return text(tmp_path, "clips.csv", "clip,path\n" + "".join(f"{name},{name}.mp4\n" for name in names))


def test_a_table_with_every_column(tmp_path: Path) -> None:
    text(tmp_path, "v/one.mp4")
    text(tmp_path, "crops/two/00001.jpg")
    table = text(tmp_path, "t.csv", "\ufeffSplit,clip, path,label,subject,group\r\n"
                                    "train,one,v/one.mp4,happy,ann,film1\r\nVal,two,crops/two,sad,ann,\r\n\r\n")
    dataset = read(table)
    got = [(t.name, t.kind, t.split, t.subject, t.group, t.parent, t.clip_label) for t in dataset.trials]
    assert got == [("one", "video", "train", "ann", "film1", "one", 0), ("two", "crops", "validation", "ann", "ann",
                                                                        "two", 1)]
    assert dataset.classes == ("happy", "sad") and dataset.metric == "macro_f1" and not dataset.problems
    assert dataset.trials[0].frame_labels(3).tolist() == [0, 0, 0]


def test_the_smallest_table_is_unlabelled_and_each_clip_its_own_group(tmp_path: Path) -> None:
    dataset = read(simple(tmp_path))
    assert [(t.name, t.group, t.split, t.labelled) for t in dataset.trials] == [(n, n, "test", False) for n in "abc"]
    assert dataset.classes == () and not dataset.problems


def test_paths_start_at_the_table_or_at_the_root(tmp_path: Path) -> None:
    table = text(tmp_path, "deep/t.csv", "clip,path\na,a.mp4\n")
    text(tmp_path, "videos/a.mp4")
    with pytest.raises(InputError, match="no such file or folder"):
        read(table)
    assert read(table, root=str(tmp_path / "videos")).trials[0].path == tmp_path / "videos/a.mp4"
    text(tmp_path, "deep/t.csv", f"clip,path\na,{tmp_path / 'videos/a.mp4'}\n")
    assert read(table).trials[0].path == tmp_path / "videos/a.mp4"


def test_a_row_without_its_clip_is_told_and_the_rest_is_read(tmp_path: Path) -> None:
    table = simple(tmp_path)
    (tmp_path / "b.mp4").unlink()
    dataset = read(table)
    assert [t.name for t in dataset.trials] == ["a", "c"]
    assert [(p.where, p.is_error) for p in dataset.problems] == [("b", True)] and "line 3" in dataset.problems[0].hint


@pytest.mark.parametrize(("content", "says"), [
    ("", "is empty"), ("clip\na\n", "'path' is missing"), ("clip,path,lable\n", "'lable' is unknown"),
    ("clip,path,path\n", "'path' appears twice"), ("clip,path\n", "no rows"),
    ("clip,path\na\n", "line 2 has 1 values for 2 columns"),
    ("clip,path\na,a.mp4,x\n", "line 2 has 3"), ("clip,path\n,a.mp4\n", "line 2 has no usable clip"),
    ("clip,path\na,\n", "line 2 has no usable path"), ("clip,path\na,\0\n", "no usable path"),
    ("clip,path\na,a.mp4\na,b.mp4\n", "'a' is in line 2 and again in line 3"),
    ("clip,path,split\na,a.mp4,eval\n", "line 2 has split 'eval'"), ('clip,path\n"a,b\n', "line 2 has 1"),
    ("clip,path,label\na,a.mp4,3\n", "'3' is a number"), ("clip,path\na," + "x" * 5000 + "\n", "no such file"),
    ("clip,path,label\n" + "".join(f"a{n},a.mp4,w{n}\n" for n in range(201)), "201 different labels"),
])
def test_a_table_that_is_none_is_refused(tmp_path: Path, content: str, says: str) -> None:
    text(tmp_path, "a.mp4")
    with pytest.raises(InputError, match=says) as caught:
        read(text(tmp_path, "t.csv", content))
    assert caught.value.exit_code == 2 and caught.value.hint and str(tmp_path) in str(caught.value)


def test_a_table_that_is_no_text_or_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"clip,path\n\xff\xfe,a\n")
    for name, says in (("t.csv", "UTF8"), ("gone.csv", "No such file"), ("x" * 5000, "too long")):
        with pytest.raises(InputError, match=says):
            read(tmp_path / name)
    with pytest.raises(InputError, match="no clips are given"):
        load_dataset(DatasetConfig(dataset="table"), tmp_path)


def test_labels_as_names_numbers_and_nonsense(tmp_path: Path) -> None:
    text(tmp_path, "v.mp4")
    words = {"a": "Anger", "b": "2", "c": "", "d": "-1", "e": "anger", "f": "Joy", "g": "3"}
    table = text(tmp_path, "t.csv", "clip,path,label\n" + "".join(f"{n},v.mp4,{w}\n" for n, w in words.items()))
    dataset = read(table, classes=tuple(HEADER.split(",")))
    assert [(t.name, t.clip_label) for t in dataset.trials] == [*zip("abcdefg", (1, 2, -1, -1, 1, -1, -1), strict=True)]
    assert [p.where for p in dataset.problems if p.is_error] == ["f", "g"]
    assert "'anger', 'Anger'" in dataset.problems[0].message and not dataset.problems[0].is_error


def test_labels_by_frame_in_any_order_with_gaps(tmp_path: Path) -> None:
    labels = text(tmp_path, "l.csv", "frame,clip,label\n5,a,sad\n1,a,happy\n1,a,happy\n2,b,\n1,b,happy\n")
    dataset = read(simple(tmp_path), labels)
    assert dataset.classes == ("happy", "sad")
    found = {t.name: None if t.labels is None else t.labels.tolist() for t in dataset.trials}
    assert found == {"a": [0, -1, -1, -1, 1], "b": [0, -1], "c": None}
    assert [t.split for t in dataset.trials] == ["train", "train", "test"]
    assert [(p.where, p.is_error) for p in dataset.problems] == [("c", False)]


@pytest.mark.parametrize(("line", "where", "says"), [
    ("a,1,sad", "a", "frame 1 has two labels"), ("a,0,happy", "a", "--first-frame 0"),
    ("a,x,happy", "a", "line 4 has frame 'x'"), ("a,-3,happy", "a", "frame '-3'"), ("a,1.5,happy", "a", "frame '1.5'"),
    ("a,99999999999999,happy", "a", "frame '99999999999999'"), ("a,999999999,happy", "a", "frame '999999999'"),
    ("z,1,happy", "z", "no clip of that name"),
])
def test_a_bad_frame_row_costs_the_labels_of_its_clip(tmp_path: Path, line: str, where: str, says: str) -> None:
    labels = text(tmp_path, "l.csv", f"clip,frame,label\na,1,happy\nb,1,sad\n{line}\n")
    dataset = read(simple(tmp_path, "ab"), labels)
    assert [(p.where, p.is_error) for p in dataset.problems] == [(where, True)] and says in dataset.problems[0].message
    assert dataset.trials[1].labelled and dataset.trials[0].labelled == (where == "z")


def test_a_number_that_is_no_class_costs_the_labels_of_its_clip(tmp_path: Path) -> None:
    labels = text(tmp_path, "l.csv", "clip,frame,label\na,1,0\nb,1,7\n")
    dataset = read(simple(tmp_path, "ab"), labels, classes=("x", "y"))
    assert [t.labelled for t in dataset.trials] == [True, False] and "'7' is none" in dataset.problems[0].message


def test_labels_given_twice_are_refused(tmp_path: Path) -> None:
    text(tmp_path, "a.mp4")
    table = text(tmp_path, "t.csv", "clip,path,label\na,a.mp4,happy\n")
    with pytest.raises(InputError, match="--labels is given too"):
        read(table, text(tmp_path, "l.csv", "clip,frame,label\n"))


def test_text_files_name_the_classes(tmp_path: Path) -> None:
    for name, body in (("a", "0\n2\n"), ("b", "1\n5\n"), ("extra", "0\n")):
        text(tmp_path, f"labels/{name}.txt", f"{HEADER}\n{body}")
    dataset = read(simple(tmp_path), tmp_path / "labels")
    assert dataset.classes == ("Neutral", "Anger", "Disgust")
    assert [t.labelled for t in dataset.trials] == [True, False, False]
    assert [(p.where, p.is_error) for p in dataset.problems] == [("b", True), ("extra", True), ("c", False)]


def test_a_name_in_the_header_may_hold_a_line_break_and_the_header_be_long(tmp_path: Path) -> None:
    wide = [f"{'x' * 40}{i}" for i in range(110_000)]
    for number, (names, row) in enumerate(((["cl\r\nip", "b"], "a,1"), (wide, ",".join("1" * len(wide))))):
        path = tmp_path / f"{number}.csv"
        path.write_bytes((",".join(f'"{name}"' for name in names) + f"\r\n{row}\r\n").encode())
        assert tables.read_header(path) == names
        assert [batch.column(names[0]).to_pylist() for _, batch in tables.read_batches(path, names[:1])] == [[row[0]]]


def test_text_files_without_header_need_class_names(tmp_path: Path) -> None:
    text(tmp_path, "labels/a.txt", "0\n1\n")
    with pytest.raises(InputError, match=r"no header.*|can be used") as caught:
        read(simple(tmp_path), tmp_path / "labels")
    assert "--classes" in caught.value.hint
    labels = read(simple(tmp_path), tmp_path / "labels", classes=("x", "y")).trials[0].labels
    assert labels is not None and labels.tolist() == [0, 1]


def test_a_folder_of_labels_without_any_for_these_clips_is_refused(tmp_path: Path) -> None:
    text(tmp_path, "labels/other.txt", f"{HEADER}\n0\n")
    with pytest.raises(InputError, match="none is named after a clip"):
        read(simple(tmp_path), tmp_path / "labels")
    text(tmp_path, "none/readme.md")
    with pytest.raises(InputError, match=r"no \*.txt"):
        read(simple(tmp_path), tmp_path / "none")


def test_two_clips_of_one_file_name_in_two_folders_stay_two(tmp_path: Path) -> None:
    for name in ("x/v.mp4", "y/v.mp4", "y/w.mp4", "y/w.avi", "v/00001.jpg", "note.txt", "x/text.mp4"):
        text(tmp_path, f"clips/{name}", "no video")
    text(tmp_path, "labels/x/v.txt", f"{HEADER}\n0\n")
    text(tmp_path, "labels/text.txt", f"{HEADER}\n1\n")
    dataset = read(tmp_path / "clips", tmp_path / "labels")
    assert [t.name for t in dataset.trials] == ["v", "x/text", "x/v", "y/v", "y/w.avi", "y/w.mp4"]
    assert [t.name for t in dataset.trials if t.labelled] == ["x/text", "x/v"]
    assert len({t.path for t in dataset.trials}) == len({t.group for t in dataset.trials}) == 6


def test_a_folder_of_pictures_is_one_clip(tmp_path: Path) -> None:
    text(tmp_path, "face/00001.jpg")
    assert [(t.name, t.kind) for t in read(tmp_path / "face").trials] == [("face", "crops")]


def test_a_folder_without_clips_says_what_lies_there(tmp_path: Path) -> None:
    text(tmp_path, "a.txt")
    text(tmp_path, "pictures/holiday.jpg")
    with pytest.raises(InputError, match="no clip in this folder") as caught:
        read(tmp_path)
    assert "found there: 1 *.txt; the folders pictures" in caught.value.hint


def test_odd_names_come_through(tmp_path: Path) -> None:
    names = ["sp ace", "back\\slash", "Zoë–雪", "quote\"d", "comma,d", "new\nline", "..", "CON", "a/b", "zarr.json"]
    text(tmp_path, "v.mp4")
    buffer = io.StringIO()
    csv.writer(buffer).writerows([("clip", "path"), *((name, "v.mp4") for name in names)])
    assert [t.name for t in read(text(tmp_path, "t.csv", buffer.getvalue())).trials] == sorted(names)


def test_parquet_gives_what_csv_gives(tmp_path: Path) -> None:
    simple(tmp_path)
    parquet.write_table(pa.table({"clip": ["a", "b"], "path": ["a.mp4", "b.mp4"]}), tmp_path / "t.parquet")
    labels = {"clip": ["a", "a", "b"], "frame": [1, 2, 1], "label": [0.0, None, 1.0]}
    parquet.write_table(pa.table(labels), tmp_path / "l.parquet")
    dataset = read(tmp_path / "t.parquet", tmp_path / "l.parquet", classes=("x", "y"))
    assert [t.frame_labels(2).tolist() for t in dataset.trials] == [[0, -1], [1, -1]]
    text(tmp_path, "bad.parquet", "nonsense")
    with pytest.raises(InputError, match="parquet"):
        read(tmp_path / "bad.parquet")


@pytest.mark.parametrize(("content", "line"), [
    (b"clip,path\na,a.mp4\n\n  \n\xe9,a.mp4\n", "Row #5"), (b"clip,path\na,a.mp4\n\nb\n", "line 4 has 1 values"),
    (b"clip,path\r\na,a.mp4\r\nb,c,d\r\n", "line 3 has 3 values"), (b"clip,path,clip\na,a.mp4,b\n", "'clip' appears"),
    (b"\xef\xbb\xbf", "not readable"), (b"\xe9clip,path\na,a.mp4\n", "not readable"), (b"\0" * 99, "not readable")])
def test_a_damaged_table_is_refused_with_file_and_line(tmp_path: Path, content: bytes, line: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(InputError, match=line) as caught:
        list(tables.named_rows(tmp_path / "t.csv", ("clip", "path")))
    assert str(tmp_path / "t.csv") in str(caught.value) and caught.value.hint


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.parquet"])
def test_a_table_is_read_again_in_a_forked_child(tmp_path: Path, name: str) -> None:
    """Training forks: a table library whose threads do not survive that would hang the child."""
    path = tmp_path / name
    names = [f"clip{n}" for n in range(3000)]
    if name.endswith(".parquet"):
        parquet.write_table(pa.table({"clip": names, "path": names}), path)
    else:
        with (gzip.open if name.endswith(".gz") else open)(path, "wt") as out:
            out.write("clip,path\n" + "".join(f"{one},{one}\n" for one in names))

    def rows() -> list[str]:
        return [row["clip"] for _, row in tables.named_rows(path, ("clip", "path"))]

    assert rows() == names
    for _ in range(4):
        child = os.fork()
        if not child:
            signal.alarm(60)  # the default action ends a child that hangs
            os._exit(0 if rows() == names else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert rows() == names


@pytest.mark.parametrize("block", [64, 1000, 1 << 20])
def test_blocks_of_a_table_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    rows = [(f"c{n // 7}", str(n), 'a "b", c\n' if n % 5 == 0 else "ü") for n in range(200)]
    buffer = io.StringIO()
    csv.writer(buffer).writerows([("clip", "frame", "text"), *rows])
    path = text(tmp_path, "t.csv", buffer.getvalue())
    monkeypatch.setattr(tables, "BLOCK_BYTES", block)
    assert list(tables.read_rows(path)) == list(enumerate(rows, 2))
    pieces = list(tables.read_pieces(path, ["clip", "frame"]))
    assert [line + offset for _, line, piece in pieces for offset in range(len(piece))] == list(range(2, 202))
    assert all(set(tables.to_text(piece.column("clip"))) == {clip} for clip, _, piece in pieces)
    frames = [tables.to_ints(piece.column("frame")) for _, _, piece in pieces]
    assert np.concatenate(frames).tolist() == list(range(200))


def test_cells_as_numbers() -> None:
    got = tables.to_floats(pa.array([" 1", "-2.5e-1", "", "nan", "1_000"]), missing=-1)
    np.testing.assert_array_equal(got, [1, -.25, -1, np.nan, 1000])
    assert tables.to_ints(pa.array([3.0, None, 2**53]), missing=-1).tolist() == [3, -1, 2**53]
    for wrong in ("x", "1.5", "inf", "", "1e99"):
        with pytest.raises(ValueError, match=wrong or "''"):
            tables.to_ints(pa.array(["1", wrong]))


def test_codes_of_labels() -> None:
    classes = ("Neutral", "Anger", "anger", "7")
    got = [tables.code(word, classes) for word in ("Anger", "anger", "ANGER", "7", "0", "3", "4", "nan", "9" * 40, "²")]
    assert got == [1, 2, None, 3, 0, 3, None, -1, None, None]


@pytest.mark.slow("2.8 million rows")
def test_labels_by_frame_of_a_whole_set_take_seconds(tmp_path: Path) -> None:
    names = [f"clip{n}" for n in range(560)]
    values = np.random.default_rng(0).integers(-1, 7, (560, 5000))
    path = tmp_path / "l.csv"
    with path.open("w") as out:
        out.write("clip,frame,label\n")
        for name, row in zip(names, values.tolist(), strict=True):
            out.writelines(f"{name},{frame},{label}\n" for frame, label in enumerate(row, 1))
    started = time.perf_counter()
    trials = {name: Trial(name=name, path=path, kind="video", parent=name, group=name, split="train") for name in names}
    _, labels, problems = table.read_frame_labels(DatasetConfig(labels=str(path), classes=tuple("abcdefg")), trials)
    print(f"{values.size} rows: {time.perf_counter() - started:.1f} s")
    assert not problems and all(np.array_equal(labels[name], row) for name, row in zip(names, values, strict=True))
    assert time.perf_counter() - started < 60
