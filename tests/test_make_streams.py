"""The maker of photo streams: the bytes of the tool that it replaces, both forms of FER2013, defects, bad input."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fercache.data.photos import STREAMS_RECORD

SCRIPT = Path(__file__).resolve().parent / "bench/make_streams.py"
sys.path.insert(0, str(SCRIPT.parent))  # the benches are scripts, no package
import make_streams  # noqa: E402

FOLDERS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
"""In the order of FER2013's numbers."""
PER_CLASS = 40
SMALL = ("--trials", "3", "--frames", "60", "--seed", "5")
Photos = dict[str, list[NDArray[np.uint8]]]


def digests(folder: Path) -> dict[str, bytes]:
    """Return the content of every file of the streams; the record that fercache reads is no part of them."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != STREAMS_RECORD}


def made_up_photos() -> Photos:
    """Return PER_CLASS photos a class, (48, 48); the brightness tells the class."""
    rng = np.random.default_rng(0)
    return {name: [rng.integers(30 * label, 30 * label + 30, (48, 48)).astype(np.uint8) for _ in range(PER_CLASS)]
            for label, name in enumerate(FOLDERS)}


def encoded(photo: NDArray[np.uint8]) -> bytes:
    """Return a photo as JPEG."""
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "JPEG", quality=95)
    return file.getvalue()


def members(photos: Photos, usage: str = "Training") -> dict[str, bytes]:
    """Return the paths and bytes of FER2013's JPEG files."""
    return {f"train/{name}/{usage}_{i}.jpg": encoded(photo) for name, some in photos.items()
            for i, photo in enumerate(some)}


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def csv_rows(photos: Photos, usage: str = "Training") -> list[tuple[str, str, str]]:
    """Return the rows of FER2013's CSV, classes in turn."""
    return [(str(FOLDERS.index(name)), " ".join(map(str, photo.ravel().tolist())), usage)
            for group in zip(*photos.values(), strict=True) for name, photo in zip(photos, group, strict=True)]


def write_csv(path: Path, rows: list[tuple[str, str, str]], header: str = "emotion,pixels,Usage") -> Path:
    with path.open("w", newline="") as file:
        file.write(header + "\n")
        csv.writer(file).writerows(rows)
    return path


def make(images: Path, out: Path, *flags: str) -> dict[str, bytes]:
    """Run the command in this process; return what it wrote."""
    make_streams.main(["--images", str(images), "--out", str(out), *flags])
    return digests(out)


@pytest.fixture(scope="module")
def photos() -> Photos:
    return made_up_photos()


@pytest.fixture(scope="module")
def archive(photos: Photos, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_zip(tmp_path_factory.mktemp("photos") / "fer.zip", members(photos))


@pytest.fixture(scope="module")
def table(photos: Photos, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv(tmp_path_factory.mktemp("table") / "fer2013.csv", csv_rows(photos))


@pytest.mark.parametrize("seed", ["3", "11"])
def test_the_bytes_are_those_of_the_shared_tool(tmp_path: Path, shared: Path, seed: str) -> None:
    flags = ["--images", str(shared / "data/fer2013_validation.zip"), "--trials", "11", "--frames", "60", "--val", ".4",
             "--seed", seed]
    for script, out in ((shared / "tools/make_fer_streams.py", "theirs"), (SCRIPT, "ours")):
        subprocess.run([sys.executable, str(script), *flags, "--out", str(tmp_path / out)], check=True,
                       capture_output=True)
    ours, theirs = digests(tmp_path / "ours"), digests(tmp_path / "theirs")
    assert len(ours) > 500 and ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []


def test_excluded_photos_give_the_bytes_of_the_shared_tool(tmp_path: Path, shared: Path, photos: Photos) -> None:
    """Made-up photos with copies, one of them under two labels; half of one class is excluded."""
    files = members(photos)
    files["train/happy/Training_copy.jpg"] = files["train/happy/Training_1.jpg"]
    files["train/sad/Training_conflict.jpg"] = files["train/happy/Training_2.jpg"]
    images = write_zip(tmp_path / "images.zip", files)
    exclude = write_zip(tmp_path / "exclude.zip", members({name: some[:20] if name == "fear" else some[:1]
                                                           for name, some in photos.items()}))
    for script, out in ((shared / "tools/make_fer_streams.py", "theirs"), (SCRIPT, "ours")):
        subprocess.run([sys.executable, str(script), "--images", str(images), "--exclude", str(exclude), *SMALL,
                        "--out", str(tmp_path / out)], check=True, capture_output=True)
    assert digests(tmp_path / "ours") == digests(tmp_path / "theirs")


def test_a_folder_gives_the_bytes_of_the_zip(photos: Photos, archive: Path, tmp_path: Path) -> None:
    from_zip = make(archive, tmp_path / "zip", *SMALL)
    assert make(archive, tmp_path / "again", *SMALL) == from_zip
    folder = write_folder(tmp_path / "fer2013", members(photos))
    assert make(folder, tmp_path / "folder", *SMALL) == from_zip
    assert make(folder / "train", tmp_path / "train", *SMALL) == from_zip
    assert make(archive, tmp_path / "other seed", *SMALL[:-1], "6") != from_zip


def test_both_names_of_the_csv_give_the_same_bytes(photos: Photos, table: Path, tmp_path: Path) -> None:
    """`icml_face_data.csv` has its columns in another order, with a space before their names."""
    from_csv = make(table, tmp_path / "a", *SMALL)
    assert make(table, tmp_path / "b", *SMALL) == from_csv
    rows = [(emotion, usage, pixels) for emotion, pixels, usage in csv_rows(photos)]
    other = write_csv(tmp_path / "icml_face_data.csv", rows, "emotion, Usage, pixels")
    assert make(other, tmp_path / "c", *SMALL) == from_csv


@pytest.mark.parametrize("form", ["archive", "table"])
def test_layout_labels_and_defects(form: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    out = tmp_path / "out"
    make(request.getfixturevalue(form), out, "--trials", "12", "--frames", "60", "--seed", "2", "--val", ".3")
    trials = sorted(path.name for path in (out / "cropped_aligned").iterdir())
    assert len(trials) == 12 and {"video10_left", "video10_right", "3-30-1280x720"} <= set(trials)
    splits = {split: {path.stem for path in (out / "annotations/EXPR_Set" / split).iterdir()}
              for split in ("Train_Set", "Validation_Set")}
    assert splits["Train_Set"] | splits["Validation_Set"] == set(trials)
    assert not splits["Train_Set"] & splits["Validation_Set"]
    parents = [{make_streams.parent_of(name) for name in names} for names in splits.values()]
    assert not parents[0] & parents[1] and len(parents[1]) == round(.3 * 11)
    assert (out / "test_set_release.txt").read_text().split() == sorted(splits["Validation_Set"])
    assert (out / STREAMS_RECORD).is_file()

    # The brightness of made-up photos by label.
    brightness = {make_streams.LABEL_OF_FOLDER[name]: 30 * i + 15 for i, name in enumerate(FOLDERS)}
    without_crop, unannotated, extra_lines, errors = 0, 0, set(), []
    for split, names in splits.items():
        for name in names:
            truth = np.loadtxt(out / f"truth/{name}.txt", int, skiprows=1)
            path = out / f"annotations/EXPR_Set/{split}/{name}.txt"
            assert path.read_text().splitlines()[0] == "Neutral,Anger,Disgust,Fear,Happiness,Sadness,Surprise"
            annotated = np.loadtxt(path, int, skiprows=1)
            both = min(len(truth), len(annotated))
            known = annotated[:both] >= 0
            assert len(truth) >= 60 and np.array_equal(annotated[:both][known], truth[:both][known])
            extra_lines.add(len(annotated) - len(truth))
            unannotated += int((~known).sum())
            crops = sorted((out / "cropped_aligned" / name).iterdir())
            without_crop += len(truth) - len(crops)
            for crop in crops[::10]:
                pixels = np.asarray(Image.open(crop))
                assert pixels.shape == (112, 112, 3)
                center = pixels[30:80, 30:80].mean()
                expected = brightness[int(truth[int(crop.stem) - 1])]
                errors.append(abs(center - expected) / expected)
    assert without_crop > 0 and unannotated > 0 and 0 in extra_lines and len(extra_lines) > 1
    # Light changes by at most 20 %; photos of any wrong labels would be off by more on average.
    assert max(errors) < .3 and np.mean(errors) < .1


def test_no_photo_is_shown_twice(archive: Path) -> None:
    rng = np.random.default_rng(0)
    pool = make_streams.draw_pool(make_streams.read_photos(archive), [], rng)
    shown = [photo for _ in range(5) for photo in dict.fromkeys(make_streams.draw_timeline(60, pool, rng))]
    left = [photo for some in pool.values() for photo in some]
    assert len({photo.source for photo in shown + left}) == len(shown) + len(left) == 7 * PER_CLASS


def test_copies_conflicts_and_excluded_photos_are_dropped(photos: Photos, tmp_path: Path) -> None:
    rows = csv_rows(photos)
    emotion, pixels, _ = rows[0]
    other = str((int(rows[1][0]) + 1) % 7)
    rows += [(emotion, pixels, "Training"), (other, rows[1][1], "Training"), (rows[2][0], rows[2][1], "PublicTest")]
    path = write_csv(tmp_path / "fer2013.csv", rows)
    everything = make_streams.read_photos(path)
    excluded = [photo for photo in everything if photo.usage == "PublicTest"]
    pool = make_streams.draw_pool(everything, excluded, np.random.default_rng(0))
    assert sum(map(len, pool.values())) == 7 * PER_CLASS - 2  # the conflict and the excluded photo; one copy stays


@pytest.mark.parametrize("form", ["zip", "csv"])
def test_usage_takes_one_part(form: str, photos: Photos, tmp_path: Path) -> None:
    """The part of a larger data set gives the bytes of that part alone; the other part can be excluded."""
    other = {name: [255 - photo for photo in some] for name, some in photos.items()}
    if form == "zip":
        alone = write_zip(tmp_path / "alone.zip", members(photos, "PublicTest"))
        both = write_zip(tmp_path / "both.zip", {**members(other), **members(photos, "PublicTest")})
    else:
        alone = write_csv(tmp_path / "alone.csv", csv_rows(photos, "PublicTest"))
        both = write_csv(tmp_path / "both.csv", csv_rows(other) + csv_rows(photos, "PublicTest"))
    expected = make(alone, tmp_path / "a", *SMALL)
    assert make(both, tmp_path / "b", *SMALL, "--usage", "PublicTest") == expected
    assert make(both, tmp_path / "c", *SMALL, "--exclude", str(both), "--exclude-usage", "Training") == expected


def rejected(capsys: pytest.CaptureFixture[str], images: Path, out: Path, *flags: str) -> str:
    """Return the message of a run that ends with exit code 2 and writes nothing."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(SystemExit) as stop:
        make_streams.main(["--images", str(images), "--out", str(out), *flags])
    message = capsys.readouterr().err
    assert stop.value.code == 2 and "error: " in message
    assert sorted(out.parent.iterdir()) == before
    return message


def test_a_missing_class_is_an_error(photos: Photos, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some = {name: files for name, files in photos.items() if name != "fear"}
    folder = write_folder(tmp_path / "fer2013", members(some))
    for images in (folder, write_zip(tmp_path / "fer.zip", members(some)),
                   write_csv(tmp_path / "fer2013.csv", csv_rows(some))):
        message = rejected(capsys, images, tmp_path / "out")
        assert str(images) in message and "class fear" in message


@pytest.mark.parametrize(("content", "facts"), [
    ("", ("no column emotion", "pixels")),
    ("emotion,pixels,Usage\n", ("no rows",)),
    ("emotion,Usage\n0,Training\n", ("no column pixels",)),
    ("emotion,pixels,Usage\n0,1 2 3,Training\n", ("line 2", "3 pixels", "2304")),
    ("emotion,pixels,Usage\n0\n", ("line 2", "0 pixels")),
    (f"emotion,pixels,Usage\n7,{'1 ' * 2304},Training\n", ("line 2", "'7'", "0 to 6")),
    (f"emotion,pixels,Usage\n1,{'1 ' * 2303}x,Training\n", ("line 2", "integer", "'x'")),
    (f"emotion,pixels,Usage\n1,{'1 ' * 2303}256,Training\n", ("line 2", "256", "0 to 255")),
    ("emotion,pixels,Usage\n\xff", ("cannot be read",)),
], ids=["empty", "header only", "no pixels", "three pixels", "short row", "emotion", "letter", "range", "encoding"])
def test_a_bad_csv_is_an_error(content: str, facts: tuple[str, ...], tmp_path: Path,
                               capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "fer2013.csv"
    path.write_bytes(content.encode("latin-1"))
    message = rejected(capsys, path, tmp_path / "out")
    assert str(path) in message and all(fact in message for fact in facts), message


def test_bad_photos_are_errors(photos: Photos, archive: Path, table: Path, tmp_path: Path,
                               capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    damaged = write_zip(tmp_path / "damaged.zip", {**members(photos), "train/sad/Training_1.jpg": b"no photo"})
    message = rejected(capsys, damaged, out)
    assert "train/sad/Training_1.jpg" in message and "cannot be decoded" in message
    truncated = members(photos)
    truncated["train/sad/Training_1.jpg"] = truncated["train/sad/Training_1.jpg"][:200]
    assert "cannot be decoded" in rejected(capsys, write_zip(tmp_path / "truncated.zip", truncated), out)
    (tmp_path / "cut.zip").write_bytes(archive.read_bytes()[:5000])
    assert "no folder, zip file" in rejected(capsys, tmp_path / "cut.zip", out)
    packed = write_zip(tmp_path / "packed.zip", {"fer2013/fer2013.csv": b""})
    assert "unpack" in rejected(capsys, packed, out)
    (tmp_path / "empty").mkdir()
    assert "holds no photos" in rejected(capsys, tmp_path / "empty", out)
    assert "does not exist" in rejected(capsys, tmp_path / "absent", out)
    assert "it holds Training" in rejected(capsys, archive, out, "--usage", "Test")
    assert "both" in rejected(capsys, archive, out, "--exclude", str(table))
    assert "ran out" in rejected(capsys, archive, out, "--trials", "40")


@pytest.mark.parametrize("flags", [("--trials", "0"), ("--frames", "x"), ("--val", "1.5"), ("--val", "nan"),
                                   ("--seed", "-1"), ("--exclude-usage", "Training")])
def test_bad_flags_are_errors(flags: tuple[str, str], archive: Path, tmp_path: Path,
                              capsys: pytest.CaptureFixture[str]) -> None:
    assert flags[0] in rejected(capsys, archive, tmp_path / "out", *flags)


def test_a_folder_with_files_is_never_written_to(archive: Path, tmp_path: Path,
                                                 capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    assert "not an empty folder" in rejected(capsys, archive, tmp_path / "out", *SMALL)
    assert digests(tmp_path / "out") == {"mine.txt": b"mine"}


def test_the_command_prints_no_traceback(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--images", "absent.zip", "--out", "out"], cwd=tmp_path,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "absent.zip does not exist" in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == "" and list(tmp_path.iterdir()) == []
