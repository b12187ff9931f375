"""The door of facenet-pytorch: the stand-in for torchvision does what torchvision does."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fercache.backbones import facenet
from fercache.errors import WeightsError


def test_to_tensor_divides_bytes_only() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    as_bytes, as_floats = facenet.to_tensor(picture), facenet.to_tensor(picture.astype(np.float32))
    assert as_bytes.dtype == as_floats.dtype == torch.float32 and as_bytes.shape == (3, 5, 7)
    np.testing.assert_array_equal(as_floats.numpy(), picture.transpose(2, 0, 1))
    np.testing.assert_allclose(as_bytes.numpy(), picture.transpose(2, 0, 1) / 255, rtol=1e-6)


def reference_nms(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> list[int]:
    """Greedy suppression as the definition has it: a face is dropped if a better selected one overlaps it too much."""
    selected: list[int] = []
    for i in np.argsort(-scores, kind="stable"):
        for j in selected:
            sides = np.minimum(boxes[i, 2:], boxes[j, 2:]) - np.maximum(boxes[i, :2], boxes[j, :2])
            both = np.prod(np.maximum(sides, np.float32(0)))
            total = sum(np.prod(boxes[k, 2:] - boxes[k, :2]) for k in (i, j)) - both
            if total > 0 and both / total > threshold:
                break
        else:
            selected.append(int(i))
    return selected


@pytest.mark.parametrize("seed", range(40))
def test_batched_nms_keeps_what_the_definition_keeps(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facenet, "NMS_BLOCK", 16 if seed % 4 > 1 else 256)  # with and without more than one block
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 120))
    corner, side = rng.uniform(-20, 100, (count, 2)), rng.uniform(0, 60, (count, 2))
    boxes = np.concatenate([corner, corner + side], axis=1).astype(np.float32)
    if seed % 2:
        boxes = boxes.round()  # many equal overlaps, and boxes without area
    scores = rng.uniform(0, 1, count).astype(np.float32).round(2 if seed % 3 else 6)  # many equal scores
    groups = rng.integers(0, 4, count)
    for threshold in (0.5, 0.7):
        selected = facenet.batched_nms(*map(torch.from_numpy, (boxes, scores, groups)), threshold).numpy()
        expected = {int(members[i]) for group in range(4) for members in [np.flatnonzero(groups == group)]
                    for i in reference_nms(boxes[members], scores[members], threshold)}
        assert set(selected.tolist()) == expected
        assert (np.diff(scores[selected]) <= 0).all()


def test_batched_nms_of_nothing() -> None:
    selected = facenet.batched_nms(torch.empty(0, 4), torch.empty(0), torch.empty(0, dtype=torch.long), 0.5)
    assert selected.shape == (0,) and selected.dtype == torch.long


def test_stand_in_has_the_signature_that_is_called_and_leaves_no_trace() -> None:
    source = "import fercache.backbones.facenet, sys; " \
             "print([m for m in sys.modules if m.partition('.')[0] == 'torchvision'])"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    with facenet.torchvision_or_replacement() as real:
        from torchvision.ops.boxes import batched_nms
        from torchvision.transforms import functional
        assert list(inspect.signature(batched_nms).parameters) == ["boxes", "scores", "idxs", "iou_threshold"]
        assert callable(functional.to_tensor)
    if not real:
        assert done.stdout.strip() == "[]"
        assert not any(name.partition(".")[0] == "torchvision" for name in sys.modules)


def test_expected_tensors_are_the_nets() -> None:
    shapes = facenet.expected_shapes()
    assert len(shapes) == 714 and shapes["last_linear.weight"] == (512, 1792)


def test_release_is_found_in_the_librarys_own_table() -> None:
    assert facenet.release_name("vggface2") == "20180402-114759-vggface2.pt"
    assert facenet.release_name("casia-webface") == "20180408-102900-casia-webface.pt"


class Bad:
    """What a hostile file holds: something to be run when it is read."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("was-run"),)


def test_read_checkpoint_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Bad()}, "bad.pt")
    with pytest.raises(WeightsError, match="not readable as plain tensors"):
        facenet.read_checkpoint(Path("bad.pt"))
    assert not Path("was-run").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut off"], ids=["empty", "text", "cut"])
def test_read_checkpoint_of_no_checkpoint(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(WeightsError):
        facenet.read_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize("value", [[1, 2], {"a": 1}, torch.zeros(2)], ids=["list", "numbers", "tensor"])
def test_read_checkpoint_of_no_state_dict(value: object, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match="other than a state dict"):
        facenet.read_checkpoint(tmp_path / "x.pt")


def test_read_checkpoint_of_half_floats_and_parameters(tmp_path: Path) -> None:
    content = {"a": torch.ones(2, dtype=torch.bfloat16), "b": torch.nn.Parameter(torch.ones(3)), "n": torch.tensor(4)}
    torch.save({"state_dict": content}, tmp_path / "x.pt")
    found = facenet.read_checkpoint(tmp_path / "x.pt")
    assert {name: value.dtype.name for name, value in found.items()} == {"a": "float32", "b": "float32", "n": "int64"}
