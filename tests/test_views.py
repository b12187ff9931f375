"""Views: seeded, real camera moves without borders, and in the store beside a plain tap that they leave alone."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from videos import make_video

from fercache import media
from fercache.backbones import weights
from fercache.backbones.backbone import Backbone
from fercache.backbones.registry import FACENET
from fercache.config import DatasetConfig, ExtractConfig
from fercache.data import load_dataset
from fercache.errors import InputError
from fercache.extraction import job
from fercache.faces.crops import (
    ANGLE,
    LIGHT,
    NO_POINTS,
    SHIFT,
    ZOOM,
    Augmentation,
    apply_augmentation,
    crop_face,
    region_of,
    sample_augmentation,
    whole_picture,
    with_views,
)
from fercache.store.embedding_store import EmbeddingStore
from fercache.store.writer import ClipWriter

FRAMES = 12
TAPS = ("embedding", "conv2d_4b", "repeat_1-3x3")


def scene(height: int = 240, width: int = 320) -> np.ndarray:
    """A smooth picture in which every place differs."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 / width, y * 255 / height, 127 + 100 * np.sin(x / 23) * np.cos(y / 31)],
                    -1).astype(np.uint8)


def seen(image: np.ndarray, box: np.ndarray, chosen: Augmentation, margin: float = 0.0) -> np.ndarray:
    region = region_of(FACENET, image, box, NO_POINTS, margin)
    return apply_augmentation(crop_face(image, box, 160, margin), image, region, chosen).astype(float)


def test_a_look_follows_from_clip_frame_and_view_alone() -> None:
    code = "from fercache.faces.crops import sample_augmentation; " \
           "print([sample_augmentation('a/ü', f, v) for f in (1, 2) for v in (1, 2, 3)])"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    mine = [sample_augmentation("a/ü", frame, view) for frame in (1, 2) for view in (1, 2, 3)]
    assert other == repr(mine)
    assert len({*mine[1:3], *mine[4:], sample_augmentation("b", 1, 2)}) == 5, "each is its own"
    assert mine[0] == mine[3] == Augmentation(mirrored=True)


def test_looks_stay_within_their_bounds_and_use_them() -> None:
    augmentations = [sample_augmentation("clip", frame, 2) for frame in range(1, 2001)]
    for values, most in (([a.right for a in augmentations], SHIFT),
                         ([a.down for a in augmentations], SHIFT),
                         ([math.log(a.zoom) for a in augmentations], ZOOM),
                         ([a.angle for a in augmentations], ANGLE),
                         ([a.light - 1 for a in augmentations], LIGHT)):
        assert max(map(abs, values)) <= most and max(values) > .95 * most and min(values) < -.95 * most
        assert abs(np.mean(values)) < .05 * most
    assert [sample_augmentation("clip", 1, view).mirrored for view in range(1, 6)] == [True, False, True, False, True]


def test_the_first_view_is_the_mirror_image() -> None:
    image, box = scene(), np.array([40, 30, 170, 200.0])
    plain = crop_face(image, box)
    mirrored = apply_augmentation(plain, image, region_of(FACENET, image, box, NO_POINTS, 0),
                                  sample_augmentation("any", 7, 1))
    np.testing.assert_array_equal(mirrored, plain[:, ::-1])


@pytest.mark.parametrize("margin", [0.0, 0.3])
@pytest.mark.parametrize("box", [(40, 30, 170, 200), (60, 50, 120, 100), (5, 5, 318, 236)])
def test_a_move_shows_what_the_plain_crop_of_a_moved_box_shows(box: tuple[float, ...], margin: float) -> None:
    image, at = np.kron(scene(), np.ones((2, 2, 1), np.uint8)), 2 * np.array(box, float)
    at[2:] -= margin * max(at[2:] - at[:2])  # the room about the box has to lie inside the picture
    at += margin * max(at[2:] - at[:2]) / 2
    wide, high = (at[2:] - at[:2]) + margin * max(at[2:] - at[:2])
    still = seen(image, at, Augmentation(light=1.0, zoom=1 + 1e-12), margin)
    assert np.abs(still - crop_face(image, at, 160, margin)).mean() < 1.5
    moved = at + np.array([.05 * wide, -.04 * high] * 2)
    if (moved[:2] >= 0).all() and moved[2] <= image.shape[1]:
        found = seen(image, at, Augmentation(right=.05, down=-.04), margin)
        assert np.abs(found - crop_face(image, moved, 160, margin)).mean() < 1.5
        assert np.abs(found - still).mean() > 2


def test_zoom_and_turn() -> None:
    image, box = scene(), np.array([100, 60, 200, 160.0])
    wider = seen(image, box, Augmentation(zoom=1.2))
    assert np.abs(wider - crop_face(image, np.array([90, 50, 210, 170.0]))).mean() < 1.5
    turned = seen(image, box, Augmentation(angle=math.pi / 2))
    assert np.abs(turned - np.rot90(seen(image, box, Augmentation()), 1)).mean() < 1.5
    assert np.abs(seen(image, box, Augmentation(light=1.2)) - np.clip(1.2 * seen(image, box, Augmentation()), 0,
                                                                      255)).mean() < 1


@pytest.mark.parametrize("box", [(0, 0, 50, 60), (250, 180, 320, 240), (0, 0, 320, 240), (100, 100, 101, 101)])
def test_no_border_shows(box: tuple[float, ...]) -> None:
    bright = np.full((240, 320, 3), 200, np.uint8)
    for view in range(2, 40):
        sampled = sample_augmentation("clip", 1, view)
        found = seen(bright, np.array(box, float), sampled)
        assert found.shape == (160, 160, 3) and np.ptp(found) == 0 and abs(found[0, 0, 0] - 200 * sampled.light) <= 1


def test_a_given_crop_repeats_its_edge() -> None:
    image = scene(160, 160)
    found = seen(image, whole_picture(image), Augmentation(right=.5))
    np.testing.assert_allclose(found[:, :78], image[:, 80:158].astype(float), atol=1)
    assert (np.abs(found[:, 82:] - image[:, -1:].astype(float)) <= 1).all()


def test_what_is_stored() -> None:
    assert with_views({"embedding": (512,), "block8": (8,)}, 1) == {"embedding": (512,), "block8": (8,)}
    assert with_views({"embedding": (512,), "g": (8, 3, 3)}, 4)["g_views"] == (3, 8, 3, 3)
    assert "embedding_views" not in with_views({"embedding": (512,), "g": (8, 3, 3)}, 4)
    for taps in ({"embedding": (512,)}, {"a": (3,), "a_views": (3,)}):
        with pytest.raises(InputError, match="cannot be stored"):
            with_views(taps, 2)


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory, face_frames: list[np.ndarray]) -> Path:
    """A folder with one clip of crops, frame 5 missing."""
    folder = tmp_path_factory.mktemp("crops")
    (folder / "clip").mkdir()
    for i in range(1, FRAMES + 1):
        if i != 5:
            face = crop_face(face_frames[i % len(face_frames)], np.array([250 + i, 60, 430 + i, 280.0]), 112)
            Image.fromarray(face).save(folder / "clip" / f"{i:05d}.png")
    return folder


Run = Callable[..., EmbeddingStore]


@pytest.fixture
def run(crops: Path, cache: Path, tmp_path: Path) -> Run:
    """A run of stage one on the crops, in a cache of its own."""
    def extracted(into: str, count: int, taps: tuple[str, ...] = TAPS) -> EmbeddingStore:
        place = tmp_path / into
        place.mkdir(exist_ok=True)
        if not (place / "weights").exists():
            weights.ensure_weights("casia-webface", cache / "weights")
            (place / "weights").symlink_to(cache.resolve() / "weights")
        dataset = load_dataset(DatasetConfig(clips=str(crops), name="set"), place)
        report = job.extract_dataset(dataset, ExtractConfig(augmentations=count, taps=taps, device="cpu"), place)
        assert not report.failures()
        return EmbeddingStore.open(report.store)
    return extracted


def test_views_stand_beside_a_plain_tap_of_the_same_bits(run: Run, crops: Path, cache: Path) -> None:
    plain, two, four = (run("c", count)["clip"] for count in (1, 2, 4))
    assert four["conv2d_4b_views"].shape == (FRAMES, 3, 256) and "embedding_views" not in four
    for tap in TAPS:
        np.testing.assert_array_equal(plain.read(tap), four.read(tap))
    for tap in ("conv2d_4b_views", "repeat_1-3x3_views"):
        np.testing.assert_array_equal(two.read(tap), four.read(tap)[:, :1], err_msg="more views change none")
        assert not four.read(tap)[4].any() and four.read(tap)[0].any(), "no face, no view"
    net = Backbone.load(weights.ensure_weights("casia-webface", cache / "weights"), TAPS)
    faces = []
    for path in sorted((crops / "clip").glob("*.png")):
        with Image.open(path) as image:
            faces.append(crop_face(np.asarray(image), whole_picture(np.asarray(image)))[:, ::-1])
    mirrored = net.embed(np.stack(faces))
    stored = np.delete(four.read("conv2d_4b_views"), 4, axis=0)
    np.testing.assert_array_equal(stored[:, 0], mirrored["conv2d_4b"])
    assert np.abs(stored[:, 1:] - stored[:, :1]).mean() > .01


def test_one_view_keeps_the_stores_of_before(run: Run) -> None:
    store = run("c", 1, ("conv2d_4b",))
    assert not {"augmentations", "augmentation_version"} & store.settings.keys()
    assert {"augmentations", "augmentation_version"} <= run("c", 2, ("conv2d_4b",)).settings.keys()


def test_a_broken_run_goes_on_with_the_same_bytes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """With segments of 8 frames, stopped at the second: the crops of the first are not looked at again."""
    for place in ("fercache.extraction.clip.SEGMENT", "fercache.store.writer.SEGMENT", "fercache.store.layout.CHUNK"):
        monkeypatch.setattr(place, 8)
    unbroken = run("unbroken", 3, ("conv2d_4b",))
    write, embed, seen = ClipWriter.write, Backbone.embed_batch, []

    def stops(self: ClipWriter, start: int, values: dict[str, np.ndarray]) -> None:
        if start:
            raise KeyboardInterrupt
        write(self, start, values)

    def counts(self: Backbone, faces: np.ndarray) -> dict[str, np.ndarray]:
        seen.append(len(faces))
        return embed(self, faces)

    with monkeypatch.context() as patch:
        patch.setattr(ClipWriter, "write", stops)
        with pytest.raises(KeyboardInterrupt):
            run("broken", 3, ("conv2d_4b",))
    monkeypatch.setattr(Backbone, "embed_batch", counts)
    resumed = run("broken", 3, ("conv2d_4b",))
    every = sum(3 * int(clip.frame_table["valid"].sum()) for clip in unbroken.values())
    first = sum(3 * int(clip.frame_table["valid"][:8].sum()) for clip in unbroken.values())
    assert sum(seen) == every - first > 0
    assert resumed.digest() == unbroken.digest()
    for file in sorted(unbroken.path.rglob("c.*")):
        assert file.read_bytes() == (resumed.path / file.relative_to(unbroken.path)).read_bytes()


def test_views_of_a_video_come_from_its_frames(face_frames: list[np.ndarray], cache: Path, tmp_path: Path) -> None:
    (tmp_path / "weights").symlink_to(cache.resolve() / "weights")
    (tmp_path / "clips").mkdir()
    make_video(tmp_path / "clips" / "face.mp4", face_frames[:6])
    dataset = load_dataset(DatasetConfig(clips=str(tmp_path / "clips"), name="set"), tmp_path)
    report = job.extract_dataset(dataset, ExtractConfig(augmentations=2, taps=("conv2d_4b",), margin=.2, device="cpu"),
                                 tmp_path)
    clip = EmbeddingStore.open(report.store)["face"]
    boxes = np.column_stack([clip.frame_table[side] for side in ("x1", "y1", "x2", "y2")])
    assert clip.frame_table["valid"].all()
    frames = media.open_source(tmp_path / "clips" / "face.mp4", "video").frames()
    faces = np.stack([crop_face(frame.image, box, 160, .2)[:, ::-1] for frame, box in zip(frames, boxes, strict=True)])
    net = Backbone.load(weights.ensure_weights("casia-webface", cache / "weights"), ["conv2d_4b"])
    np.testing.assert_array_equal(clip.read("conv2d_4b_views")[:, 0], net.embed(faces)["conv2d_4b"])
