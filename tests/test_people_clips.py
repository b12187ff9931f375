"""People in real pictures: crossing, leaving, coming back, cuts and crowds, through detector, CNN and store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from videos import make_video

from fercache import media
from fercache.config import ExtractConfig
from fercache.data import demo
from fercache.data.base import Dataset, Trial, people_stored, stored_trials
from fercache.extraction import job
from fercache.store.embedding_store import EmbeddingStore

Picture = NDArray[np.uint8]
Place = tuple[int, int, int]
"""Who, and where the top left corner of the cut-out is: x, y."""
SHALLOW = ("conv2d_4b",)
HEIGHT, WIDTH, HEAD = 240, 520, (150, 120)
CUT_OUTS = (("single_face.mp4", (170, 20, 430, 345)), ("WolfgangLanger_Pexels.mp4", (290, 0, 578, 360)))


@pytest.fixture(scope="module")
def heads(cache: Path) -> list[list[Picture]]:
    """Two people of the demo, cut out of 40 frames each, (150, 120, 3)."""
    clips = demo.fetch_demo_clips(cache / "clips")
    found = []
    for name, box in CUT_OUTS:
        frames = media.open_source(clips / name, "video").pick(range(40))
        found.append([np.asarray(Image.fromarray(f.image).crop(box).resize(HEAD[::-1]))
                      for f in frames if f.image is not None])
    return found


def scene(heads: list[list[Picture]], places: Sequence[Sequence[Place]], shade: Sequence[int] = ()) -> list[Picture]:
    """Return frames (240, 520, 3); in each the people at `places` are drawn in their order, the last one in front."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    wall = (80 + 20 * np.sin(rows / 17) + 20 * np.sin(columns / 23)).astype(np.uint8)
    made = []
    for t, people in enumerate(places):
        image = np.repeat((wall + (shade[t] if shade else 0))[..., None], 3, axis=2)
        for who, x, y in people:
            left, right = max(x, 0), min(x + HEAD[1], WIDTH)
            if left < right:
                image[y:y + HEAD[0], left:right] = heads[who][t % len(heads[who])][:, left - x:right - x]
        made.append(image)
    return made


def dataset_of(*paths: Path) -> Dataset:
    trials = [Trial(name=path.name, path=path, kind="video", parent=path.name, group=path.name, split="train",
                    clip_label=0) for path in sorted(paths, key=lambda path: path.name)]
    return Dataset(name="people", layout="table", classes=("A", "B"), trials=tuple(trials))


def extracted(paths: Sequence[Path], tmp_path: Path, cache: Path, **settings: object) -> tuple[Dataset, EmbeddingStore]:
    """Return the data set of these clips and its store."""
    home = tmp_path / "cache"
    home.mkdir(exist_ok=True)
    if not (home / "weights").exists():
        (home / "weights").symlink_to(cache / "weights")
    config = ExtractConfig(**{"taps": SHALLOW, "device": "cpu", **settings})  # type: ignore[arg-type]
    report = job.extract_dataset(dataset_of(*paths), config, home)
    assert not report.failures(), report.failures()
    return dataset_of(*paths), EmbeddingStore.open(report.store)


def whose(store: EmbeddingStore, name: str, places: Sequence[Sequence[Place]]) -> NDArray[np.int64]:
    """Return who it is that the box of each frame lies on, (T,): -1 where there is no box, -2 where on both or none."""
    clock = store[name].frame_table
    found = np.full(len(clock), -1)
    for t in np.flatnonzero(clock["valid"] > 0):
        centre = (clock["x1"][t] + clock["x2"][t]) / 2
        on = [who for who, x, _ in places[t] if x + 25 <= centre <= x + HEAD[1] - 25]
        found[t] = on[0] if len(on) == 1 else -2
    return found


def test_two_who_cross_are_two_people(heads: list[list[Picture]], cache: Path, tmp_path: Path) -> None:
    """The second walks in front of the first; each row is of the same one from end to end."""
    places = [[(0, 20 + 8 * t, 40), (1, 380 - 8 * t, 50)] for t in range(46)]
    clip = make_video(tmp_path / "cross.mp4", scene(heads, places))
    dataset, store = extracted([clip], tmp_path, cache, people="all")
    assert sorted(store) == ["cross.mp4#1", "cross.mp4#2"]
    seen = [whose(store, name, places) for name in sorted(store)]
    for person in seen:
        known = person[person >= 0]
        assert len(known) >= 30 and len(set(known.tolist())) == 1, person
    assert {int(person.max()) for person in seen} == {0, 1}
    trials = stored_trials(dataset, store).trials
    assert [(t.name, t.clip_label, t.group) for t in trials] == [
        ("cross.mp4#1", 0, "cross.mp4"), ("cross.mp4#2", -1, "cross.mp4")]


def test_the_main_person_is_not_left_for_another_in_the_same_place(heads: list[list[Picture]], cache: Path,
                                                                   tmp_path: Path) -> None:
    """Shot and counter-shot, boxes in one place: each shot is told by the face, cuts by the pictures."""
    places = [[(0 if t // 16 % 2 == 0 else 1, 200, 40)] for t in range(64)] + [[(0, 200, 40)]] * 16
    shade = [70 if t // 16 % 2 and t < 64 else 0 for t in range(80)]
    clip = make_video(tmp_path / "cut.mp4", scene(heads, places, shade))
    _, store = extracted([clip], tmp_path, cache)
    seen = whose(store, "cut.mp4", places)
    assert set(seen.tolist()) == {0, -1}
    assert (seen == 0).sum() >= 45 and (seen[16:32] == -1).all() and (seen[48:64] == -1).all()


def test_who_comes_while_the_main_person_is_away_is_somebody_else(heads: list[list[Picture]], cache: Path,
                                                                  tmp_path: Path) -> None:
    """One leaves, another passes, the first comes back at the other side: places alone would take the passer-by."""
    places: list[list[Place]] = [[(0, 60, 40)]] * 24 + [[]] * 20 + [[(1, 100, 45)]] * 14 + [[]] * 20
    places += [[(0, 380, 40)]] * 16
    clip = make_video(tmp_path / "away.mp4", scene(heads, places))
    for taps in (SHALLOW, ("embedding",)):
        _, store = extracted([clip], tmp_path, cache, taps=taps)
        seen = whose(store, "away.mp4", places)
        assert set(seen.tolist()) == {0, -1}
        assert (seen[:24] == 0).sum() >= 20 and (seen[-16:] == 0).sum() >= 13


def test_left_and_right_by_setting(heads: list[list[Picture]], cache: Path, tmp_path: Path) -> None:
    places = [[(0, 300, 40), (1, 40, 50)]] * 20
    clip = make_video(tmp_path / "two.mp4", scene(heads, places))
    dataset, store = extracted([clip], tmp_path, cache, people="left/right")
    assert (whose(store, "two.mp4_left", places) == 1).all() and (whose(store, "two.mp4_right", places) == 0).all()
    assert [(t.name, t.clip_label) for t in stored_trials(dataset, store).trials] == [
        ("two.mp4_left", -1), ("two.mp4_right", -1)]


def test_a_face_that_leaves_and_comes_back(cache: Path, tmp_path: Path, full: bool) -> None:
    """`face_noface.mov` and `noface_face.mov` one after the other are one person, with nothing in between.

    `make test-full` takes each of them in full length too.
    """
    clips = demo.fetch_demo_clips(cache / "clips")
    frames = [f.image for name in ("face_noface.mov", "noface_face.mov")
              for f in media.open_source(clips / name, "video").frames() if f.image is not None][::3]
    if not full:  # a quarter of the pixels to search
        frames = [np.asarray(Image.fromarray(image).resize((480, 270))) for image in frames]
    both = make_video(tmp_path / "both.mp4", frames)
    parts = {"face_noface.mov": range(72), "noface_face.mov": range(96, 168)} if full else {}
    _, store = extracted([*(clips / name for name in parts), both], tmp_path, cache)
    for name, there in parts.items():
        np.testing.assert_array_equal(np.flatnonzero(store[name].frame_table["valid"]), there)
    valid, track = store["both.mp4"].frame_table["valid"] > 0, store["both.mp4"].frame_table["track"]
    assert valid[:24].all() and valid[-24:].all() and not valid[24:-24].any()
    assert len(set(track[valid].tolist())) == 2, "one person, in two pieces"


def test_no_face_is_one_person_without_a_frame(cache: Path, tmp_path: Path) -> None:
    clips = demo.fetch_demo_clips(cache / "clips")
    dataset, store = extracted([clips / "no_face.mp4"], tmp_path, cache, people="all")
    assert list(store) == ["no_face.mp4#1"] and not store["no_face.mp4#1"].frame_table["valid"].any()
    assert [t.clip_label for t in stored_trials(dataset, store).trials] == [0]


def test_people_of_a_clip_are_there_together_or_not_at_all(heads: list[list[Picture]], cache: Path,
                                                           tmp_path: Path) -> None:
    """A lost one makes all be done again; a changed source takes those away that are no more."""
    places = [[(0, 300, 40), (1, 40, 50)]] * 12
    clip = make_video(tmp_path / "clip.mp4", scene(heads, places))
    dataset, store = extracted([clip], tmp_path, cache, people="all")
    whole, names = store.digest(), list(store)
    assert names == ["clip.mp4#1", "clip.mp4#2"] and people_stored(dataset.trials[0], store) == 2
    writable = EmbeddingStore.open(store.path, mode="a")
    for lost in names:
        writable.remove(lost)
        assert people_stored(dataset.trials[0], writable) == 0
        assert [t.name for t in stored_trials(dataset, writable).trials] == ["clip.mp4"]
        _, store = extracted([clip], tmp_path, cache, people="all")
        assert store.digest() == whole
    make_video(clip, scene(heads, [people[:1] for people in places]))
    _, store = extracted([clip], tmp_path, cache, people="all")
    assert list(store) == ["clip.mp4#1"]


def test_crops_have_no_people_setting(cache: Path, tmp_path: Path, heads: list[list[Picture]]) -> None:
    """The crops are the faces: one store, one trial a folder, whatever is asked for."""
    folder = tmp_path / "crops" / "a"
    folder.mkdir(parents=True)
    for number, head in enumerate(heads[0][:3], 1):
        Image.fromarray(head).save(folder / f"{number:05d}.png")
    trial = Trial(name="a", path=folder, kind="crops", parent="a", group="a", split="train")
    dataset = Dataset(name="crops", layout="table", classes=(), trials=(trial,))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/weights").symlink_to(cache / "weights")
    reports = [job.extract_dataset(dataset, ExtractConfig(taps=SHALLOW, device="cpu", people=people),
                                   tmp_path / "cache")
               for people in ("main", "all")]
    assert reports[0].store == reports[1].store and list(EmbeddingStore.open(reports[0].store)) == ["a"]


@pytest.fixture(scope="module")
def crowd(shared: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory, full: bool) -> EmbeddingStore:
    """The store of the crowd with all its people; without --full, of pictures half as wide and high."""
    folder, clip = tmp_path_factory.mktemp("crowd"), shared / "data/videos/video.mp4"
    if not full:
        frames = [np.asarray(Image.fromarray(frame.image).reduce(2))
                  for frame in media.open_source(clip, "video").frames() if frame.image is not None]
        clip = make_video(folder / "half.mp4", frames, options={"preset": "ultrafast"})
    return extracted([clip], folder, cache, people="all")[1]


def test_a_crowd(crowd: EmbeddingStore, full: bool) -> None:
    """As seen by eye: eight or nine faces that last, one of which is hidden for a second and is known again.

    The hidden one is too small without --full.
    """
    names = sorted(crowd)
    assert 6 <= len(names) <= 10
    clocks = [crowd[name].frame_table for name in names]
    weight = [float(((c["x2"] - c["x1"]) * (c["y2"] - c["y1"]) * c["score"])[c["valid"] > 0].sum()) for c in clocks]
    assert weight == sorted(weight, reverse=True)
    assert (clocks[0]["valid"] > 0).sum() == 105, "the boy in the middle is seen in each frame"
    for t in range(105):
        boxes = [(c["x1"][t], c["y1"][t]) for c in clocks if c["valid"][t]]
        assert len(set(boxes)) == len(boxes)
    hidden = [c for c in clocks if c["valid"][:28].all() and c["valid"][46:].sum() > 40 and not c["valid"][30:45].any()]
    assert len(hidden) == full
