"""Looks around places: the faces that a look at the whole picture finds there, whatever their size and the edge."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fercache import media
from fercache.data import demo
from fercache.faces import detector as detector_module
from fercache.faces.crops import cut_out, square_around
from fercache.faces.detector import NEAR_PX, Detector, Mtcnn
from fercache.faces.tracklets import iou

Picture = np.ndarray


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector()


def at(image: Picture, scale: float) -> Picture:
    height, width = image.shape[:2]
    size = (round(width * scale), round(height * scale))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


@pytest.mark.parametrize("scale", [0.4, 1, 3])
def test_a_face_is_where_the_whole_picture_shows_it(detector: Detector, face_frames: list[Picture], scale: float
                                                    ) -> None:
    """The place is where the face was five frames before, or somewhat beside."""
    frames = [at(frame, scale) for frame in face_frames]
    exact = detector.detect(frames)
    assert all(len(faces) == 1 for faces in exact)
    side = exact[0][0, 2] - exact[0][0, 0]
    for shift in (0, -.3, .3):
        found = detector.detect_in_rois(frames[1:], [faces[:, :4] + shift * side for faces in exact[:-1]])
        assert all(len(faces) == 1 for faces in found)
        overlap = [iou(a[:, :4], b[:, :4])[0, 0] for a, b in zip(exact[1:], found, strict=True)]
        assert min(overlap) > .75 and np.mean(overlap) > .88
        assert min(faces[0, 4] for faces in found) > .99


@pytest.mark.parametrize(("place", "told"), [
    ((200, 100, 280, 180), []), ((0, 100, 80, 180), [0]), ((200, 0, 280, 80), [1]), ((560, 100, 640, 180), [2]),
    ((200, 280, 280, 360), [3])])
def test_a_face_that_the_square_cuts_off_is_not_told(place: tuple[float, ...], told: list[int]) -> None:
    """MTCNN would tell it, sure of itself, with a box that is half guessed; at the picture's own edge it must guess."""

    class Cut(Mtcnn):
        """Tells four faces, each over one edge of what it sees."""

        def detect(self, pictures: Picture) -> list[Picture]:
            faces = np.array([[-9, 60, 50, 100], [60, -9, 100, 50], [110, 60, 169, 100], [60, 110, 100, 169.0]])
            return [np.column_stack([faces, np.full(4, .99)])] * len(pictures)

    detector = Detector()
    detector.nets["near"] = Cut(40)
    found, = detector.detect_in_rois([np.zeros((360, 640, 3), np.uint8)], [np.array([place], float)])
    assert len(found) == len(told)
    middle = (found[:, :2] + found[:, 2:4]) / 2
    edges = {0: middle[:, 0] < 40, 1: middle[:, 1] < 40, 2: middle[:, 0] > 600, 3: middle[:, 1] > 320}
    assert all(edges[edge].all() for edge in told)


def test_in_a_crowd_nobody_is_told_twice(detector: Detector, shared: Path) -> None:
    """Where the square around one cuts off the next."""
    source = media.open_source(shared / "data/videos/video.mp4", "video")
    frames = [frame.image for frame in source.pick([9, 10, 11]) if frame.image is not None]
    exact = detector.detect(frames)
    for one, found in zip(exact, detector.detect_in_rois(frames, [faces[:, :4] for faces in exact]), strict=True):
        assert len(one) >= len(found) > 4
        assert iou(one[:, :4], found[:, :4]).max(axis=0).min() > .5


@pytest.mark.parametrize(("name", "detect_px"), [("WolfgangLanger_Pexels.mp4", 0), ("carphone_pristine.mp4", 88)])
def test_boxes_of_what_was_made_smaller_lean_to_no_side(detector: Detector, cache: Path, name: str, detect_px: int
                                                        ) -> None:
    """As its driver counts pixels, MTCNN's boxes lie up to 1.5 pixels too far to the right: of those that it sees."""
    source = media.open_source(demo.fetch_demo_clips(cache / "clips") / name, "video")
    rows = range(0, 120 if detect_px else 470, 6)
    frames = [frame.image for frame in source.pick(rows) if frame.image is not None]
    exact = detector.detect(frames)
    places = [faces[:, :4] for faces in exact]
    made = Detector(detect_px=detect_px).detect(frames) if detect_px else detector.detect_in_rois(frames, places)
    pairs = [(a[0], b[0]) for a, b in zip(exact, made, strict=True) if len(a) == len(b) == 1]
    lean = np.mean([(b[:2] - a[:2]) / (a[2] - a[0]) for a, b in pairs], axis=0)
    assert len(pairs) > 15 and np.abs(lean).max() < .013, lean


def test_around_how_many_places_it_pays_to_look(detector: Detector) -> None:
    """A whole picture costs by the pixels that MTCNN sees, and by how small the faces are that it looks for."""
    small, large = np.zeros((144, 176, 3), np.uint8), np.zeros((2160, 3840, 3), np.uint8)
    assert detector.rois_per_frame(small) == 0 and 30 < detector.rois_per_frame(large) < 60
    for cheaper in (Detector(min_face_px=80), Detector(detect_px=1920)):
        assert 15 < cheaper.rois_per_frame(large) < detector.rois_per_frame(large)
    reduced = Detector(detect_px=960).rois_per_frame(large)
    assert Detector(detect_px=960, min_face_px=200).rois_per_frame(large) < reduced < 20


def test_a_face_at_the_edge_and_one_in_a_small_picture(detector: Detector, face_frames: list[Picture]) -> None:
    box = detector.detect(face_frames[:1])[0][0, :4]
    left, top, right, bottom = box.astype(int)
    for part in (face_frames[0][:, left + 20:], face_frames[0][top:bottom, left:right]):  # cut off; nothing but a face
        exact, = detector.detect([part])
        found, = detector.detect_in_rois([part], [exact[:, :4]])
        assert len(exact) == len(found) == 1 and iou(exact[:, :4], found[:, :4])[0, 0] > .7
        assert (found[:, :2] >= 0).all() and (found[:, 2:4] <= [part.shape[1], part.shape[0]]).all()


def test_a_face_found_around_several_places_is_told_once(detector: Detector, face_frames: list[Picture]) -> None:
    """Of pictures side by side both faces are told, the larger one first; where nobody is nothing is."""
    both = np.concatenate([at(face_frames[0], .8)[:250], face_frames[0][:250]], axis=1)
    exact, = detector.detect([both])
    places = np.concatenate([exact[:, :4], exact[:, :4] + 8, exact[:, :4] - 6, [[500, 10, 560, 70]]])
    found, empty, none = detector.detect_in_rois([both, face_frames[0], face_frames[1]],
                                       [places, np.empty((0, 4)), np.array([[20, 20, 80.0, 80]])])
    assert len(exact) == len(found) == 2 and len(empty) == len(none) == 0
    assert np.diag(iou(exact[:, :4], found[:, :4])).min() > .75
    assert detector.detect_in_rois([], []) == []


def test_small_faces_are_left_out_as_in_the_whole_picture(face_frames: list[Picture]) -> None:
    """`min_face_px` counts in the picture, not in what it is enlarged to."""
    frame = at(face_frames[0], .35)
    place = Detector(min_face_px=20).detect([frame])[0][:, :4]
    assert len(place) == 1 and len(Detector(min_face_px=20).detect_in_rois([frame], [place])[0]) == 1
    assert len(Detector(min_face_px=160).detect_in_rois([frame], [place])[0]) == 0


@given(x=st.floats(-50, 300), y=st.floats(-50, 300), size=st.floats(0, 400), side=st.floats(0, 500),
       height=st.integers(1, 200), width=st.integers(1, 200))
@settings(max_examples=300, deadline=None)
def test_squares_lie_in_the_picture_or_hold_it(x: float, y: float, size: float, side: float, height: int, width: int
                                               ) -> None:
    left, top, whole_side = square_around(np.array([x, y, x + size, y + size]), side, (height, width))
    for low, most in ((left, width), (top, height)):
        assert (low >= 0 and low + whole_side <= most) or (low <= 0 and low + whole_side >= most)
    image = np.full((height, width, 3), 200, np.uint8)
    seen = cut_out(image, (left, top, whole_side), NEAR_PX)
    assert seen.shape == (NEAR_PX, NEAR_PX, 3)
    assert (seen == 200).all() == (whole_side <= min(height, width))


def test_a_square_shows_its_part_of_the_picture() -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    np.testing.assert_array_equal(cut_out(image, (30, 10, 40), 40), image[10:50, 30:70])
    over = cut_out(image, (-10, -20, 130), 130)
    np.testing.assert_array_equal(over[20:110, 10:], image)
    assert not over[:20].any() and not over[:, :10].any() and not over[110:].any()


def test_nets_that_see_little_at_once_say_the_same(face_frames: list[Picture], monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = np.stack(face_frames[:6])
    found = Mtcnn(20).detect(pictures)
    monkeypatch.setattr(detector_module, "FIRST_PIXELS", 1)
    monkeypatch.setattr(detector_module, "CANDIDATES", (3, 1))
    monkeypatch.setattr(detector_module, "MAX_CANDIDATES", 7)
    for one, other in zip(Mtcnn(20).detect(pictures), found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3)
