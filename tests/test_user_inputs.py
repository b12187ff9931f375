"""Folders, tables and files as people have them: what is read, what is passed over and named, what is explained."""

from __future__ import annotations

import codecs
import json
import logging
import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from PIL import Image
from test_table import read, simple, text
from videos import make_video

from fercache import media, run_log
from fercache.cli import main
from fercache.config import DatasetConfig, ExtractConfig, LogitsConfig
from fercache.data import base, load_dataset, tables
from fercache.data.base import Issue
from fercache.data.labels import read as read_labels
from fercache.data.scan import scan
from fercache.errors import ClipError, InputError
from fercache.extraction import job
from fercache.inference.predict import clips_dataset
from fercache.logits_import import import_logits
from fercache.maintenance.importer import import_features
from fercache.media import source as media_source
from fercache.store.embedding_store import EmbeddingStore

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 100\n"
PAGES = {"pointer": POINTER, "page": "\n<!DOCTYPE html><html>not found</html>", "empty": ""}


def run(*words: object, code: int | None = 0) -> Result:
    """Return the result of a command in the current folder."""
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert code is None or done.exit_code == code, (done.output, done.exception)
    return done


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (32, 32, 3), np.uint8)).save(path)
    return path


# Folders.

def test_every_clip_of_a_mixed_folder_is_found(shared: Path) -> None:
    folder = shared / "data/cases/mixed_folder"
    dataset = load_dataset(DatasetConfig(clips=str(folder)), folder)
    assert [t.name for t in dataset.trials] == ["a", "anim", "b", "c", "d", "v", "w"]
    assert not dataset.problems
    for trial in dataset.trials:
        assert next(media.open_source(trial.path, trial.kind).frames()).image is not None
    assert len(clips_dataset([folder]).trials) == 7


@pytest.mark.parametrize("name", ["00001.jpg", "frame_00001.jpg", "frame1.PNG", "f-1.webp", "1.bmp", "a.b 1.tiff",
                                  "S005_001_00000001.png"])
def test_names_of_pictures(tmp_path: Path, name: str) -> None:
    picture(tmp_path / "clip" / name)
    (found,) = scan(tmp_path).crops
    assert [frame.image is not None for frame in media.open_source(found, "crops").frames()] == [True]


@pytest.mark.parametrize("ending", ["gif", "asf", "vob", "dv", "mts", "webm", "WMV", "m2ts", "mxf", "3g2", "y4m"])
def test_endings_of_videos(tmp_path: Path, ending: str) -> None:
    text(tmp_path, f"a.{ending}")
    assert [path.name for path in scan(tmp_path).videos] == [f"a.{ending}"]
    assert clips_dataset([tmp_path]).trials[0].kind == "video"


def test_photos_are_no_frames(tmp_path: Path) -> None:
    for name in ("IMG_20240102_101010.jpg", "IMG_20240102_101255.jpg"):
        picture(tmp_path / "phone" / name)
    for name in ("anna_1.jpg", "bob_1.jpg", "holiday.jpg"):
        picture(tmp_path / "people" / name)
    picture(tmp_path / "clip" / "1.jpg")
    found = scan(tmp_path)
    assert found.crops == [tmp_path / "clip"] and found.loose.count == 5
    (note,) = found.problems
    assert "5 pictures" in note.message and "people/bob_1.jpg" in note.message and "--dataset photos" in note.hint


def test_what_is_passed_over_is_counted_and_named(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    (home / "clips").mkdir()
    make_video(home / "clips/a.mp4", [np.zeros((64, 64, 3), np.uint8)] * 3)
    for name in ("sound.wav", "deep/b.docx", "deep/photo.jpg", "list.txt"):
        text(home, f"clips/{name}")
    extracted = run("extract", "--clips", "clips", "--weights", "none.pt", code=2).output + caplog.text
    predicted = "".join(map(str, clips_dataset([home / "clips"]).problems))
    for output in (run("check", "--clips", "clips").output, extracted, predicted):
        shown = " ".join(output.split())
        assert "2 files are no clips" in shown and "sound.wav" in shown and "deep/b.docx" in shown
        assert "1 pictures belong to no clip" in shown and "photo.jpg" in shown and "list.txt" not in shown


def test_a_flat_folder_of_pictures_is_explained(tmp_path: Path) -> None:
    picture(tmp_path / "flat/anna.jpg")
    with pytest.raises(InputError) as caught:
        read(tmp_path / "flat")
    assert "00001.jpg" in caught.value.hint and "--dataset photos" in caught.value.hint
    picture(tmp_path / "numbered/1.jpg")
    (note,) = read(tmp_path / "numbered").problems
    assert "one clip" in note.message and "--dataset photos" in note.hint and not note.is_error


def test_one_clip_and_pictures_in_a_table(tmp_path: Path) -> None:
    text(tmp_path, "one.mp4")
    assert [(t.name, t.kind) for t in read(tmp_path / "one.mp4").trials] == [("one", "video")]
    path = picture(tmp_path / "anna.webp")
    (trial,) = read(text(tmp_path, "t.csv", "clip,path,label\na,anna.webp,sad\n")).trials
    source = media.open_source(trial.path, trial.kind)
    assert (source.length(), [frame.index for frame in source.frames()]) == (1, [1])
    assert media.source_digest(trial.path, trial.kind)["size"] == path.stat().st_size
    frames = [Image.new("RGB", (32, 32), (shade, 0, 0)) for shade in (0, 99, 200)]
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:])
    with pytest.raises(ClipError, match="3 pictures in one file"):
        media.open_source(tmp_path / "moving.webp", "video")
    path.write_bytes(b"no picture")
    with pytest.raises(ClipError, match="not a picture"):
        media.open_source(path, "video")


# Tables.

CLIPS = [("clip", "path", "label"), ("a", "a.mp4", "happy"), ("b", "b.mp4", "sad")]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8, codecs.BOM_UTF16_LE])
@pytest.mark.parametrize("first", ["", "sep=D\n"])
def test_any_delimiter_and_byte_order_mark(tmp_path: Path, delimiter: str, mark: bytes, first: str) -> None:
    simple(tmp_path, "ab")
    content = first.replace("D", delimiter) + "".join(delimiter.join(row) + "\r\n" for row in CLIPS)
    encoding = "utf-16-le" if mark == codecs.BOM_UTF16_LE else "utf-8"
    (tmp_path / "t.csv").write_bytes(mark + content.encode(encoding))
    dataset = read(tmp_path / "t.csv")
    assert dataset.classes == ("happy", "sad") and len(dataset.trials) == 2 and not dataset.problems


def test_utf_16_without_a_byte_order_mark_and_label_files_with_one(tmp_path: Path) -> None:
    simple(tmp_path, "ab")
    content = "".join(",".join(row) + "\n" for row in CLIPS)
    for encoding in ("utf-16-le", "utf-16-be"):
        (tmp_path / "t.csv").write_bytes(content.encode(encoding))
        assert read(tmp_path / "t.csv").classes == ("happy", "sad")
    (tmp_path / "a.txt").write_bytes("x,y\r\n1\r\n0\r\n".encode("utf-16"))
    assert read_labels(tmp_path / "a.txt").labels.tolist() == [1, 0]


@pytest.mark.parametrize(("content", "wanted"), [
    (b"PK\x03\x04 sheet", "CSV UTF-8"), (b"\xd0\xcf\x11\xe0 sheet", "CSV UTF-8"), (POINTER.encode(), "git lfs pull"),
    (PAGES["page"].encode(), "web page"), (b"", "is empty"),
    ("clip,path,label\na,a.mp4,fr\u00f6hlich\n".encode("cp1252"), "UTF-8")])
def test_what_is_no_table_is_named(tmp_path: Path, content: bytes, wanted: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(InputError) as caught:
        read(tmp_path / "t.csv")
    assert wanted in str(caught.value)


@pytest.mark.parametrize("name", ["a.h5", "a.npz", "a.npy", "a.csv", "a.parquet"])
def test_pointers_and_pages_are_no_features(tmp_path: Path, name: str) -> None:
    for content, wanted in ((POINTER, "git lfs pull"), (PAGES["page"], "web page")):
        with pytest.raises(InputError, match=wanted):
            import_features(text(tmp_path, name, content), "x", tmp_path / "f")


def test_columns_without_a_name_are_ignored(tmp_path: Path) -> None:
    """Row numbers that pandas writes in front, and delimiters that Excel writes at the end."""
    simple(tmp_path, "ab")
    for table in (",clip,path,label\n0,a,a.mp4,happy\n1,b,b.mp4,sad\n",
                  "clip;path;label;;\na;a.mp4;happy;;\nb;b.mp4;sad;;\n",
                  "Unnamed: 0,clip,path,label\n0,a,a.mp4,happy\n1,b,b.mp4,sad\n"):
        assert [t.clip_label for t in read(text(tmp_path, "t.csv", table)).trials] == [0, 1]
    clips = text(tmp_path, "t.csv", "clip,path\na,a.mp4\nb,b.mp4\n")
    one, _ = read(clips, text(tmp_path, "l.csv", ",clip,frame,label\n0,a,1,x\n1,a,2,y\n")).trials
    assert one.labels is not None and one.labels.tolist() == [0, 1]
    table_of_logits = text(tmp_path, "p.csv", ",clip,frame,p_x,p_y,\n0,a,1,.2,.8,\n")
    config = LogitsConfig(table=str(table_of_logits), provenance="held-out")
    assert import_logits("other", config, "set", tmp_path / "cache")[1].classes == ("x", "y")


def test_paths_of_windows(tmp_path: Path) -> None:
    text(tmp_path, "v/a.mp4")
    (trial,) = read(text(tmp_path, "t.csv", "clip,path\na,.\\v\\a.mp4\n")).trials
    assert trial.path.is_file()


def test_a_number_that_may_be_1_or_1000_is_refused(tmp_path: Path) -> None:
    clips = simple(tmp_path, "ab")
    issues = read(clips, text(tmp_path, "l.csv", 'clip,frame,label\na,"1,000",x\nb,1,x\n')).problems
    assert any("'1,000'" in issue.message for issue in issues)
    with pytest.raises(InputError, match="1,000"):
        import_features(text(tmp_path, "f.csv", 'frame,x\n"1,000",1\n'), "x", tmp_path / "f")
    config = LogitsConfig(table=str(text(tmp_path, "p.csv", 'clip,frame,p_x,p_y\na,"1,000",.2,.8\n')),
                          provenance="held-out")
    with pytest.raises(InputError, match="1,000"):
        import_logits("other", config, "set", tmp_path / "cache")


def test_na_is_no_label_unless_it_is_named_as_a_class(tmp_path: Path) -> None:
    simple(tmp_path)
    table = text(tmp_path, "t.csv", "clip,path,label\na,a.mp4,NA\nb,b.mp4,n/a\nc,c.mp4,happy\n")
    assert read(table).classes == ("happy",) and [t.clip_label for t in read(table).trials] == [-1, -1, 0]
    assert [t.clip_label for t in read(table, classes=("happy", "NA")).trials] == [1, -1, 0]


def test_decimal_commas_in_predictions(tmp_path: Path) -> None:
    path = text(tmp_path, "p.csv", "clip;frame;p_x;p_y;label\na;1;0,25;0,75;1,0\na;2;0,5;,5;\n")
    config = LogitsConfig(table=str(path), provenance="held-out")
    _, oof = import_logits("other", config, "set", tmp_path / "cache")
    np.testing.assert_allclose(np.exp(oof.logits["other"]), [[.25, .75], [.5, .5]], atol=1e-6)
    assert oof.label.tolist() == [1, -1]
    for cells, wrong in (("a,1,x,.5", "'x'"), ("a,1.5,.5,.5", "'1.5'"), ("a,0,.5,.5", "--first-frame 0")):
        text(tmp_path, "p.csv", f"clip,frame,p_x,p_y\n{cells}\n")
        with pytest.raises(InputError, match=wrong):
            import_logits("other", config, "set", tmp_path / "cache")
    assert import_logits("other", config, "set", tmp_path / "cache", first_frame=0)[1].index.tolist() == [1]
    text(tmp_path, "p.csv", "clip,time_s,p_x,p_y\na,\"0,04\",.5,.5\na,0.0,.5,.5\n")
    assert import_logits("other", config, "set", tmp_path / "cache")[1].index.tolist() == [1, 2]


def test_whole_numbers_with_a_point_are_labels_and_frames(tmp_path: Path) -> None:
    clips = simple(tmp_path, "ab")
    labels = text(tmp_path, "l.csv", 'clip,frame,label\na,1.0,0.0\na,2,"1,0"\nb,1,-1.0\nb,2.,\n')
    dataset = read(clips, labels, classes=("x", "y"))
    assert [None if t.labels is None else t.labels.tolist() for t in dataset.trials] == [[0, 1], [-1, -1]]
    with pytest.raises(InputError, match=r"'0\.5' is a number"):
        read(clips, text(tmp_path, "l.csv", "clip,frame,label\na,1,0.5\n"))
    assert read_labels(text(tmp_path, "a.txt", "x;y\n1.0\n-1\n0,0\n")).labels.tolist() == [1, -1, 0]


def test_spellings_of_a_class_are_one_and_reported(tmp_path: Path) -> None:
    simple(tmp_path)
    dataset = read(text(tmp_path, "t.csv", "clip,path,label\na,a.mp4,happy\nb,b.mp4,Happy\nc,c.mp4,HAPPY \n"))
    assert dataset.classes == ("happy",) and [t.clip_label for t in dataset.trials] == [0, 0, 0]
    assert ["'HAPPY '" in p.message and not p.is_error for p in dataset.problems] == [True]
    dataset = read(simple(tmp_path, "a"), text(tmp_path, "l.csv", "clip,frame,label\na,1,Sad\na,2, sad\na,3,sad\n"))
    assert dataset.classes == ("sad",) and len(dataset.problems) == 1


def test_frame_0_is_explained_and_the_flag_reads_it(tmp_path: Path) -> None:
    clips, labels = simple(tmp_path, "ab"), text(tmp_path, "l.csv", "clip,frame,label\na,0,x\na,2,y\nb,0,y\n")
    problems = base.group_issues(read(clips, labels).problems)
    assert [p.where for p in problems if "add 1, or --first-frame 0" in p.message] == ["a, b"]
    assert [t.labels.tolist() for t in read(clips, labels, first_frame=0).trials if t.labels is not None] == [
        [0, -1, 1], [1]]


def test_labels_by_time_belong_to_the_nearest_frame(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    make_video(tmp_path / "v/a.mp4", [np.zeros((64, 64, 3), np.uint8)] * 10, rate=10)
    for number in range(1, 61):
        picture(tmp_path / f"v/b/{number:05d}.png")
    labels = text(tmp_path, "l.csv", 'clip;time_s;label\na;0;x\na;"0,19";y\na;0,22;x\na;0,9;y\nb;1;x\nb;1,9667;y\n')
    (one, two) = read(tmp_path / "v", labels).trials
    assert one.labels is not None and two.labels is not None
    assert one.labels.tolist() == [0, -1, 1, *[-1] * 6, 1]
    assert {int(i): int(two.labels[i]) for i in np.flatnonzero(two.labels >= 0)} == {30: 0, 59: 1}
    assert len(media.packet_times(tmp_path / "v/a.mp4")) == 10
    wrong = read(tmp_path / "v", text(tmp_path, "l.csv", "clip,time_s,label\na,60,x\nb,soon,x\n")).problems
    assert "60" in wrong[0].message and "'soon'" in wrong[1].message


@pytest.mark.parametrize("table", ["semicolons", "case_labels", "float_labels"])
def test_given_tables_are_read(tmp_path: Path, shared: Path, table: str) -> None:
    for name in ("v1", "v2", "v3"):
        text(tmp_path, f"v/{name}.mp4")
    shutil.copy(shared / f"data/cases/{table}.csv", tmp_path / "t.csv")
    dataset = read(tmp_path / "t.csv", classes=("A", "B", "C", "D") if "float" in table else ())
    assert [t.clip_label for t in dataset.trials] == {
        "semicolons": [0, 1], "case_labels": [0, 0, 0], "float_labels": [0, 3, -1]}[table]


# Floods.

def test_alike_issues_are_merged_and_none_is_lost() -> None:
    issues = [Issue(where=f"c{n}", message=f"no such file: /v/{n}.mp4", hint=f"line {n}") for n in range(11)]
    (one,) = base.group_issues(issues)
    assert len(one.details) == 11 and "11 alike" in one.message and "/v/0.mp4" in one.message
    assert len(base.group_issues(issues[:10])) == 10


@pytest.mark.parametrize("kind", PAGES)
def test_files_that_are_no_videos_are_reported_once(home: Path, kind: str, tiny_cnn: None, weights_at: Path,
                                                    caplog: pytest.LogCaptureFixture) -> None:
    for number in range(30):
        text(home, f"clips/{number:02d}.mp4", PAGES[kind])
    (home / "cache").mkdir()
    (home / "cache/weights").symlink_to(weights_at)
    caplog.set_level(logging.ERROR)
    done = run("extract", "--clips", "clips", "--taps", "block8", code=1)
    first = [record.getMessage() for record in caplog.records]
    assert len(first) == 2 and first[0].startswith("30 clips: 00, 01"), first
    assert {"pointer": "git lfs pull", "page": "web page", "empty": "is empty"}[kind] in first[0]
    (failures,) = Path("cache/features").glob("*/failures.csv")
    assert all(f"{number:02d}," in failures.read_text() for number in range(30)), done.output
    shown = run("check", "--clips", "clips", code=1).output
    assert shown.count("LOST") == 1 and "30 clips" in shown


def test_small_files_and_a_sample_are_opened_before_the_first_clip(home: Path, tiny_cnn: None, weights_at: Path,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(200):
        text(home, f"clips/{number:03d}.mp4", POINTER if number == 77 else "")
        if number != 77:
            os.truncate(home / f"clips/{number:03d}.mp4", job.SUSPICIOUS_BYTES + 1)
    (home / "cache").mkdir()
    (home / "cache/weights").symlink_to(weights_at)
    opened: list[Path] = []
    monkeypatch.setattr(job, "check_content", lambda path: opened.append(path) or media.check_content(path))
    dataset = load_dataset(DatasetConfig(clips=str(home / "clips")), home / "cache")
    report = job.extract_dataset(dataset, ExtractConfig(taps=("block8",)), home / "cache",
                                 engine=lambda run, trials: map(run.pending, trials[:0]))
    assert [failure.clip for failure in report.failures()] == ["077"] and "lfs pull" in report.failures()[0].message
    assert len({*opened}) <= job.OPENED_FIRST + 1


def test_a_run_without_work_opens_neither_clips_nor_manifests(home: Path, tiny_cnn: None, weights_at: Path,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"p{number:02d}" for number in range(3)]
    for number, name in enumerate(names):
        picture(home / f"{name}.png", number)
    table = text(home, "clips.csv", "clip,path\n" + "".join(f"{name},{name}.png\n" for name in names))
    (home / "cache").mkdir()
    (home / "cache/weights").symlink_to(weights_at)
    dataset = load_dataset(DatasetConfig(clips=str(table)), home / "cache")
    config = ExtractConfig(taps=("block8",), faces="cropped")
    assert job.extract_dataset(dataset, config, home / "cache").count("computed") == len(names)
    read: list[str] = []
    plain = EmbeddingStore.read_manifest
    monkeypatch.setattr(EmbeddingStore, "read_manifest", lambda *given: read.append(given[1]) or plain(*given))
    for place in (job, "check_content"), (media_source, "_sampled"):  # where files are opened
        monkeypatch.setattr(*place, lambda path, *more: pytest.fail(f"{path} was opened"))
    assert job.extract_dataset(dataset, config, home / "cache").count("cached") == len(names)
    assert not read


def test_the_bytes_of_copied_clips_are_compared_once(home: Path, tiny_cnn: None, weights_at: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "cache").mkdir()
    (home / "cache/weights").symlink_to(weights_at)
    picture(home / "a.png")
    for number in range(3):
        picture(home / f"b/{number + 1:05d}.png", number)
    table = text(home, "clips.csv", "clip,path\na,a.png\nb,b\n")
    dataset = load_dataset(DatasetConfig(clips=str(table)), home / "cache")
    config = ExtractConfig(taps=("block8",), faces="cropped")
    assert job.extract_dataset(dataset, config, home / "cache").count("computed") == 2
    for path in (home / "a.png", home / "b/00002.png"):
        os.utime(path, ns=(1, 1))
    hashed: list[str] = []
    for module in (media_source, media.pictures):
        plain = module.file_sha256
        monkeypatch.setattr(module, "file_sha256", lambda path, plain=plain: hashed.append(path.name) or plain(path))
    assert job.extract_dataset(dataset, config, home / "cache").count("cached") == 2
    assert {*hashed} == {"a.png", "00001.png", "00002.png", "00003.png"}
    hashed.clear()
    assert job.extract_dataset(dataset, config, home / "cache").count("cached") == 2 and not hashed


def test_a_folder_of_pointers_in_place_of_pictures_is_no_clip(tmp_path: Path) -> None:
    text(tmp_path, "a/1.jpg", POINTER)
    with pytest.raises(ClipError, match="LFS"):
        media.open_source(tmp_path / "a", "crops")


def test_an_hdf5_filter_that_is_not_installed_is_named(tmp_path: Path, shared: Path) -> None:
    with pytest.raises(InputError, match=r"(?i)blosc.*not installed.*"):
        import_features(shared / "data/cases/blosc.h5", "x", tmp_path)


# Features of other tools.

OPENFACE = "frame, face_id, timestamp, confidence, success, gaze_0_x, AU01_r"


def features(store: Path, clip: str) -> NDArray[np.float16]:
    return EmbeddingStore.open(store)[clip].read("features")


def test_openface(tmp_path: Path, shared: Path) -> None:
    rows = ["1, 0, 0.0, .9, 1, 1, 2", "1, 1, 0.0, .9, 1, 7, 8", "2, 0, 0.03, .9, 0, 0, 0", "3, 0, 0.07, .9, 1, 5, 6"]
    text(tmp_path, "in/v.csv", "\n".join([OPENFACE, *rows]) + "\n")
    text(tmp_path, "in/w.csv", "\n".join([OPENFACE, *rows[:1]]) + "\n")
    report = import_features(tmp_path / "in", "of", tmp_path / "f")
    assert report.clips == ["v", "v#2", "w"] and report.taps == {"features": (2,)}, report.failed
    assert features(Path(str(report.store)), "v").tolist() == [[1, 2], [0, 0], [5, 6]]
    assert features(Path(str(report.store)), "v#2").tolist() == [[7, 8]]
    assert EmbeddingStore.open(report.store)["v"].frame_table["valid"].tolist() == [1, 0, 1]
    report = import_features(shared / "data/cases/openface2.csv", "of", tmp_path / "f")
    assert report.clips == ["a", "b"] and report.frames == 10 and report.taps == {"features": (2,)}


def test_py_feat_counts_from_0_and_names_the_video(tmp_path: Path) -> None:
    head = ",FaceRectX,FaceScore,AU01,anger,input,frame,approx_time,Identity"
    rows = ["0,5,.9,1,2,/v/one.mp4,0,00:00,Person_0", "1,6,.9,3,4,/v/one.mp4,1,00:00,Person_0",
            "2,,,,,/v/one.mp4,2,00:00,", "3,7,.9,5,6,/v/two.mp4,0,00:00,Person_1"]
    report = import_features(text(tmp_path, "t.csv", "\n".join([head, *rows]) + "\n"), "pf", tmp_path / "f")
    assert report.clips == ["one", "two"] and report.taps == {"features": (4,)}, report.failed
    np.testing.assert_array_equal(features(Path(str(report.store)), "one")[:, 2:], [[1, 2], [3, 4]])


def test_landmarks_by_time_or_from_frame_0(tmp_path: Path) -> None:
    table = text(tmp_path, "a.csv", "timestamp_ms;face_index;x_0\n0;0;1,5\n40;0;2,5\n")
    report = import_features(table, "mp", tmp_path / "f", fps=25)
    assert report.clips == ["a"] and features(Path(str(report.store)), "a").tolist() == [[1.5], [2.5]]
    table = text(tmp_path, "b.csv", "video,frame_idx,x_0\nv/c.mp4,0,1\nv/c.mp4,1,2\n")
    with pytest.raises(InputError, match="--first-frame 0"):
        import_features(table, "mp", tmp_path / "f")
    report = import_features(table, "mp", tmp_path / "f", first_frame=0)
    assert report.clips == ["c"] and report.frames == 2


def test_unsupported_filter_name(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("v/features", data=np.ones((4, 2)), compression="gzip", shuffle=True)
    assert import_features(tmp_path / "x.h5", "x", tmp_path / "f").clips == ["v"]


# Defaults.

def table_of(folder: Path, name: str) -> Path:
    text(folder, f"{name}.mp4")
    return text(folder, f"{name}.csv", f"clip,path\n{name},{name}.mp4\n")


def test_commands_without_a_data_set_take_the_last_one(home: Path) -> None:
    stages = Path(__file__).resolve().parent.parent / "stages"
    (home / "v").mkdir()
    make_video(home / "v/a.mp4", [np.zeros((64, 64, 3), np.uint8)] * 3)
    text(home, "mine.csv", "clip,path\na,v/a.mp4\n")
    run("check", "--clips", "mine.csv")
    shown = run("--stages", stages, "train-heads", code=2).output
    assert "nothing was extracted yet" in shown and "demo" not in shown
    assert json.loads(run("info", "--json").stdout)["cost"]["frames"] == 3
    assert not (home / "cache/clips").exists(), "the demo is not fetched"
    table_of(home, "other")
    run("check", "--clips", "other.csv", code=None)
    shown = run("train-heads", code=2).output
    assert "mine.csv" in shown and "other.csv" in shown and "--name" in shown
    name = run_log.load_run_log(home / "cache").datasets[0].name
    assert name in run("info", "--name", name).output
    run_log.record_dataset(home / "cache", "demo", {"dataset": "demo"})
    (home / "cache/features" / name).mkdir(parents=True)  # what was only checked does not count beside results
    assert json.loads(run("info", "--json").stdout)["cost"]["frames"] == 3


def test_check_is_not_called_extract_and_progress_never_passes_its_end(home: Path, capsys: pytest.CaptureFixture[str]
                                                                     ) -> None:
    from fercache.runtime import progress

    table_of(home, "a")
    assert "extract:" not in run("check", "--clips", "a.csv", code=None).output
    bar = progress._PlainBar("extract", 28, "frames")
    bar.advance(102)
    assert "102 frames" in bar.line() and "/28" not in bar.line()


def test_tables_with_extra_blanks_in_the_header(tmp_path: Path) -> None:
    path = text(tmp_path, "t.csv", " clip , frame\na, 1\n")
    assert tables.read_header(path) == ["clip", "frame"]
    assert [int(tables.to_ints(piece.column("frame"))[0]) for _, _, piece in tables.read_pieces(path)] == [1]
