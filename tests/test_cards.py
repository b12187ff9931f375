"""Cards: nets of other libraries give what the library itself gives, on crops cut as their card says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec import structs
from PIL import Image

from fercache.backbones import weights
from fercache.backbones.backbone import Backbone, shapes_of
from fercache.backbones.card import FACENET, Card, parse_card, presets
from fercache.backbones.library import import_library
from fercache.backbones.registry import CALIBRATION
from fercache.backbones.weights.files import Weights
from fercache.errors import InputError, MissingExtra, WeightsError
from fercache.faces.crops import TEMPLATES, crop_face, crops_of, whole_picture
from tests.test_backbones import onnx_model

SAME = 0.9999


@pytest.fixture(scope="module")
def faces() -> list[np.ndarray]:
    """Square pictures of three faces, (160, 160, 3)."""
    picture = np.array(Image.open(CALIBRATION).convert("RGB"))
    return [np.ascontiguousarray(picture[:160, 160 * i:160 * (i + 1)]) for i in (0, 3, 6)]


def cosine(one: Any, other: Any) -> float:
    """Return the least cosine of two sets of rows."""
    one, other = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (one, other))
    return float(((one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)).min())


def crops_for(source: Weights, faces: list[np.ndarray]) -> np.ndarray:
    """Return the crops that extraction cuts from pictures that are faces."""
    return np.stack([crops_of(structs.replace(source.card, margin=0.0), face, whole_picture(face))[0]
                     for face in faces])


def library(name: str) -> Any:
    """Return timm or transformers, or skip the test."""
    try:
        return import_library(name)
    except MissingExtra as error:
        return pytest.skip(str(error.what))


def timm_folder(path: Path, name: str) -> Any:
    """Write a net of timm with random weights, as its hub has them, and return it."""
    timm = library("timm")
    torch.manual_seed(0)
    net = timm.create_model(name, pretrained=False, num_classes=0).eval()
    timm.models.save_for_hf(net, path, safe_serialization=True)
    return net


@pytest.mark.parametrize(("name", "taps"), [
    ("resnet18", ["pooled", "layer2-3x3", "layer4"]),
    ("vit_tiny_patch16_224", ["pooled", "blocks.3", "blocks.11-cls", "blocks.11-tokens", "blocks.5-map"])])
def test_timm_as_the_library_itself(name: str, taps: list[str], faces: list[np.ndarray], tmp_path: Path) -> None:
    net, timm = timm_folder(tmp_path, name), library("timm")
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=net))
    pixels = torch.stack([transform(Image.fromarray(face)) for face in faces])
    source = weights.resolve_weights(f"timm:{tmp_path}", tmp_path)
    assert source.card.size == 224 and source.card.interpolation == "bicubic"
    crops = crops_for(source, faces)
    assert crops.shape == (3, 224, 224, 3)
    found = Backbone.load(source, taps, batch=3).embed32(crops)
    assert {tap: value.shape[1:] for tap, value in found.items()} == shapes_of(source, taps)
    with torch.inference_mode():
        assert cosine(found["pooled"], net(pixels)) > SAME
        if name == "resnet18":
            last = net.forward_features(pixels)
            assert cosine(found["layer4"], last.mean((2, 3))) > SAME
            assert found["layer2-3x3"].shape == (3, 128, 3, 3)
        else:
            blocks = net.forward_intermediates(pixels, indices=[3, 11], return_prefix_tokens=True,
                                               intermediates_only=True)
            assert cosine(found["blocks.3"], blocks[0][0].mean((2, 3))) > SAME
            assert cosine(found["blocks.11-cls"], blocks[1][1][:, 0]) > SAME
            assert found["blocks.11-tokens"].shape == (3, 197, 192) and found["blocks.5-map"].shape == (3, 192, 14, 14)
            assert 2 * found["blocks.3"][0].size * 768 // 192 <= 1600, "of a ViT-B, which is four times as wide"
    with pytest.raises(InputError, match="unknown tap 'nowhere'"):
        Backbone.load(source, ["nowhere"])
