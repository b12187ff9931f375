"""The driver of MTCNN's nets: the library's boxes, also in odd pictures; means over rectangles as torch has them."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from fercache import media
from fercache.backbones import facenet
from fercache.data import demo
from fercache.faces import detector as detector_module
from fercache.faces.detector import Detector, HalvingPool, IntegralImage, Mtcnn
from fercache.faces.tracklets import BOX_STEPS

NOISE_PX = 5e-3
"""Most that a box may differ from the library's; .0002 was seen on sixteen clips."""


def _needs(backend: str) -> None:
    pytest.importorskip(backend, reason=f"the extra `{backend}` is not installed")


@pytest.mark.parametrize("name", ["single_face.mp4", "no_face.mp4", "face_noface.mov", "carphone_pristine.mp4"])
@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_every_face_and_landmark_of_a_batch_is_the_librarys(cache: Path, name: str, backend: str) -> None:
    _needs(backend)
    frames = media.open_source(demo.fetch_demo_clips(cache / "clips") / name, "video").frames()
    pictures = np.stack([frame.image for frame in islice(frames, 0, 64, 16) if frame.image is not None])
    library = facenet.MTCNN(min_face_size=20, keep_all=True).eval().detect(pictures, landmarks=True)
    for found, box, score, points in zip(Mtcnn.load(20, backend=backend).detect(pictures), *library, strict=True):
        wanted = np.empty((0, 15))
        if box is not None:
            wanted = np.column_stack([box, score, points.reshape(-1, 10)]).astype(np.float64)
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, atol=NOISE_PX)


def test_the_backend_changes_no_box_by_more_than_a_step_of_rounding(face_frames: list[np.ndarray]) -> None:
    """So the store's name does not depend on it."""
    _needs("openvino")
    for one, other in zip(*(Detector(backend=name).detect(face_frames) for name in ("torch", "openvino")), strict=True):
        np.testing.assert_allclose(one, other, atol=1 / BOX_STEPS)


def test_landmarks_are_optional_and_scale_with_the_picture(face_frames: list[np.ndarray]) -> None:
    faces = Detector().detect(face_frames[:1], landmarks=True)[0]
    np.testing.assert_array_equal(faces[:, :5], Detector().detect(face_frames[:1])[0])
    left_eye, right_eye, nose, left_mouth, right_mouth = faces[0, 5:].reshape(5, 2)
    assert left_eye[0] < nose[0] < right_eye[0] and left_mouth[0] < right_mouth[0]
    assert left_eye[1] < nose[1] < left_mouth[1]
    large = np.repeat(np.repeat(face_frames[0], 2, axis=0), 2, axis=1)
    reduced = Detector(detect_px=max(face_frames[0].shape)).detect([large], landmarks=True)[0]
    np.testing.assert_allclose(reduced[0, 5:] / 2, faces[0, 5:], atol=0.1 * (faces[0, 2] - faces[0, 0]))


@pytest.mark.parametrize("size", [(12, 12), (40, 500), (161, 97)])
def test_noise_of_any_size_is_gone_through(size: tuple[int, int]) -> None:
    """Noise has many candidates, also such that lie outside the picture, over which the library trips."""
    noise = np.random.default_rng(0).integers(0, 256, (4, *size, 3), dtype=np.uint8)
    assert all(len(found) <= 2 for found in Mtcnn.load(12).detect(noise))
    assert [len(found) for found in Mtcnn.load(12).detect(np.zeros_like(noise))] == [0] * 4


@pytest.mark.parametrize("size", [(7, 5), (64, 33), (1, 1)])
def test_a_picture_made_smaller_is_torchs_area_interpolation(size: tuple[int, int]) -> None:
    pictures = np.random.default_rng(1).integers(0, 256, (2, 64, 33, 3), dtype=np.uint8)
    wanted = torch.nn.functional.interpolate(torch.from_numpy(pictures).permute(0, 3, 1, 2).float(), size, mode="area")
    found = IntegralImage(pictures, torch.device("cpu"), [size]).pyramid[0][..., :3]
    np.testing.assert_allclose(found.permute(0, 3, 1, 2), wanted, atol=1e-4)


def test_rectangles_are_torchs_area_interpolation() -> None:
    """Larger and smaller than what the net sees, at the edges, and some that are outside."""
    pictures = np.random.default_rng(2).integers(0, 256, (2, 90, 120, 3), dtype=np.uint8)
    boxes = torch.tensor([[5, 6, 80.5, 70], [-9, -9, 12, 11], [100, 80, 140, 99], [3, 3, 9, 9], [121, 5, 130, 9.0]])
    place = torch.tensor([0, 1, 1, 0, 0])
    sums = IntegralImage(pictures, torch.device("cpu"))
    part, inside = sums.rectangles(boxes)
    assert inside.tolist() == [True] * 4 + [False]
    found = sums.crops(place[inside], [edge[inside] for edge in part], 24)[..., :3]
    for one, picture, left, top, right, bottom in zip(found, place[inside], *(edge[inside] for edge in part),
                                                      strict=True):
        cut = torch.from_numpy(pictures[picture][top:bottom, left:right]).permute(2, 0, 1)[None].float()
        np.testing.assert_allclose(one.permute(2, 0, 1), torch.nn.functional.interpolate(cut, (24, 24), mode="area")[0],
                                   atol=1e-4)


@pytest.mark.parametrize("size", [(8, 6), (9, 7), (2, 1), (1, 1)])
def test_the_halving_pool_is_torchs(size: tuple[int, int]) -> None:
    x = torch.randn(2, 10, *size).to(memory_format=torch.channels_last)
    assert torch.equal(HalvingPool()(x), torch.nn.functional.max_pool2d(x, 2, 2, ceil_mode=True))


def test_what_an_earlier_batch_left_changes_nothing() -> None:
    """The table of sums is used again by the same thread."""
    rng = np.random.default_rng(3)
    first, second = (rng.integers(0, 256, (2, 50, 60, 3), dtype=np.uint8) for _ in range(2))

    def resized(pictures: np.ndarray) -> torch.Tensor:
        return IntegralImage(pictures, torch.device("cpu"), [(20, 20)]).pyramid[0][..., :3]

    alone = resized(second)
    resized(first)
    assert torch.equal(resized(second), alone)
    resized(np.concatenate([first] * 3))
    assert torch.equal(resized(second[:1]), alone[:1]), "fewer after more"
    resized(first.transpose(0, 2, 1, 3))
    assert torch.equal(resized(second), alone), "another size"


def test_small_chunks_give_the_same_boxes(face_frames: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = np.stack(face_frames[:6])
    usual = Mtcnn.load(20).detect(pictures)
    monkeypatch.setattr(detector_module, "FIRST_PIXELS", 1)
    monkeypatch.setattr(detector_module, "CANDIDATES", (3, 1))
    for chunked, faces in zip(Mtcnn.load(20).detect(pictures), usual, strict=True):
        np.testing.assert_allclose(chunked, faces, atol=1e-3)
