"""The face CNN: equal to facenet-pytorch's own, tap for tap; batches, threads, precision; another net as ONNX."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fercache.backbones import weights
from fercache.backbones.backbone import Backbone, shapes_of
from fercache.backbones.inception import TappedInception, load
from fercache.backbones.registry import CALIBRATION, CALIBRATION_SHA256
from fercache.backbones.taps import BLOCKS, tap_shapes
from fercache.backbones.weights import files
from fercache.errors import InputError, WeightsError
from fercache.runtime import devices
from fercache.runtime.atomic_io import file_sha256
from fercache.runtime.devices import resolve_device, set_torch_threads

TAPS = ("embedding", *(block + form for block in BLOCKS for form in ("", "-3x3", "-map")))


@pytest.fixture(scope="module")
def casia(cache: Path) -> files.Weights:
    return weights.ensure_weights("casia-webface", cache / "weights")


@pytest.fixture(scope="module")
def crops() -> np.ndarray:
    """Smooth pictures: noise of few pixels, enlarged."""
    small = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    return small.repeat(20, axis=1).repeat(20, axis=2)


@pytest.fixture(scope="module")
def eager(casia: files.Weights, crops: np.ndarray) -> dict[str, np.ndarray]:
    """Every tap as facenet-pytorch's net gives it, run eagerly in float32, seen through hooks."""
    net, seen = load(casia), {}
    for block in BLOCKS:
        getattr(net, block).register_forward_hook(lambda _, __, out, block=block: seen.__setitem__(block, out))
    with torch.no_grad():
        embedding = net((torch.from_numpy(crops.transpose(0, 3, 1, 2).copy()).float() - 127.5) / 128)
    found = {"embedding": embedding}
    for block, value in seen.items():
        found |= {block: value.mean((2, 3)), f"{block}-map": value,
                  f"{block}-3x3": torch.nn.functional.adaptive_avg_pool2d(value, 3)}
    return {tap: value.numpy() for tap, value in found.items()}


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Return the smallest cosine between rows of `a` and `b`."""
    a, b = (v.reshape(len(v), -1).astype(np.float64) for v in (a, b))
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def test_every_tap_is_facenet_pytorchs(casia: files.Weights, crops: np.ndarray, eager: dict) -> None:
    backbone = Backbone.load(casia, TAPS, batch=4)
    exact, stored = backbone.embed32(crops), backbone.embed(crops)
    assert list(exact) == list(TAPS)
    for tap, shape in tap_shapes(TAPS).items():
        assert exact[tap].shape == stored[tap].shape == (len(crops), *shape)
        assert exact[tap].dtype == np.float32 and stored[tap].dtype == np.float16
        assert cosine(exact[tap], eager[tap]) >= 0.99999, tap
        np.testing.assert_allclose(exact[tap], eager[tap], atol=1e-4 * np.abs(eager[tap]).max())
        np.testing.assert_array_equal(stored[tap], exact[tap].astype(np.float16))
    np.testing.assert_allclose(np.linalg.norm(exact["embedding"], axis=1), 1, rtol=1e-5)


def test_bits_do_not_depend_on_the_batch_or_the_threads(casia: files.Weights, crops: np.ndarray) -> None:
    backbone = Backbone.load(casia, ["repeat_1", "mixed_6a-3x3"], batch=4)
    before = torch.get_num_threads()
    try:
        set_torch_threads(1)
        alone = [backbone.embed32(crops[i:i + 1]) for i in range(len(crops))]
        set_torch_threads(2)
        together = backbone.embed32(crops)
        assert torch.get_num_threads() == 2
    finally:
        set_torch_threads(before)
    for tap, value in together.items():
        np.testing.assert_array_equal(value, np.concatenate([one[tap] for one in alone]))


def test_net_is_run_only_as_deep_as_needed(casia: files.Weights) -> None:
    parts = [TappedInception(load(casia), [tap]).parts for tap in ("conv2d_4b", "repeat_2", "embedding")]
    assert [len(part) for part in parts] == [7, 10, 13]


def test_no_crop_gives_no_rows(casia: files.Weights) -> None:
    found = Backbone.load(casia, ["conv2d_4b"]).embed(np.empty((0, 160, 160, 3), np.uint8))
    assert found["conv2d_4b"].shape == (0, 256)


@pytest.mark.parametrize(("precision", "least"), [("bf16", 0.999), ("fp16", 0.9999)])
def test_half_precision_is_close(casia: files.Weights, crops: np.ndarray, eager: dict, precision: str,
                                 least: float) -> None:
    found = Backbone.load(casia, ["repeat_1-3x3"], precision=precision, batch=4, native=True).embed32(crops[:2])
    assert cosine(found["repeat_1-3x3"], eager["repeat_1-3x3"][:2]) >= least
    assert not np.array_equal(found["repeat_1-3x3"], eager["repeat_1-3x3"][:2])


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "least"), [("float32", 0.9999), ("bf16", 0.999), ("fp16", 0.9999)])
def test_cuda_is_close(casia: files.Weights, crops: np.ndarray, eager: dict, precision: str, least: float) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    found = Backbone.load(casia, TAPS, precision=precision, device="cuda").embed32(crops)
    assert min(cosine(found[tap], eager[tap]) for tap in TAPS) >= least


@pytest.mark.parametrize("taps", [["block9"], ["block8-2x2"], ["block8-"], ["embedding-map"], [], ["block8", "block8"]])
def test_unknown_taps_list_the_known(taps: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        tap_shapes(taps)
    assert "block8" in caught.value.hint and "embedding" in caught.value.hint


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "cuda:x", "mps"])
def test_devices_that_are_not_there(name: str) -> None:
    with pytest.raises(InputError):
        resolve_device(name)


@pytest.fixture(scope="module")
def openvino(casia: files.Weights) -> Backbone:
    """Every tap in OpenVINO, which takes seconds to compile."""
    pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    return Backbone.load(casia, TAPS, batch=4, backend="openvino")


def test_openvino_reports_nothing_to_its_maker() -> None:
    pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    code = ("import sys; from fercache.backbones.onnx import openvino_runtime; openvino_runtime().convert_model; "
            "sys.exit(any(name.startswith('openvino_telemetry') and module for name, module in sys.modules.items()))")
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_openvino_agrees_with_the_library(openvino: Backbone, crops: np.ndarray, eager: dict) -> None:
    found = openvino.embed32(crops)
    assert min(cosine(found[tap], eager[tap]) for tap in TAPS) >= 0.99999


def test_openvino_in_bf16_agrees_with_the_library(casia: files.Weights, crops: np.ndarray, eager: dict,
                                                  full: bool) -> None:
    pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    taps = TAPS if full else ("conv2d_4b", "repeat_1-3x3")
    found = Backbone.load(casia, taps, precision="bf16", batch=4, backend="openvino", native=True).embed32(crops)
    assert min(cosine(found[tap], eager[tap]) for tap in taps) >= 0.999


def test_openvino_gives_the_same_bytes_whatever_else_is_in_the_batch(openvino: Backbone, casia: files.Weights,
                                                                     crops: np.ndarray, full: bool) -> None:
    whole, part = openvino.embed32(crops), openvino.embed32(crops[3:5])
    assert all((whole[tap][3:5] == part[tap]).all() for tap in TAPS)
    taps = ["block8" if full else "repeat_1"]
    more = Backbone.load(casia, taps, batch=4, backend="openvino").embed32(crops)[taps[0]]
    set_torch_threads(1)
    assert (more == Backbone.load(casia, taps, batch=4, backend="openvino").embed32(crops)[taps[0]]).all()
    set_torch_threads(0)


def test_the_faces_that_set_the_ranges_of_int8_are_those_that_the_fingerprint_names() -> None:
    assert file_sha256(CALIBRATION) == CALIBRATION_SHA256


def test_int8_is_close_and_computes_in_int8(casia: files.Weights, full: bool) -> None:
    pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    taps = ("embedding", "block8", "repeat_2", "repeat_1-3x3") if full else ("repeat_1-3x3",)
    picture = np.asarray(Image.open(CALIBRATION)).reshape(3, 160, 8, 160, 3).swapaxes(1, 2).reshape(24, 160, 160, 3)
    faces = np.ascontiguousarray(np.roll(picture[::3, :, ::-1], (9, 5), (1, 2)))  # not those of the calibration
    net = Backbone.load(casia, taps, precision="int8", batch=4, backend="openvino")
    found, exact = net.embed32(faces), Backbone.load(casia, taps, batch=4).embed32(faces)
    assert {tap: cosine(found[tap], exact[tap]) for tap in taps if cosine(found[tap], exact[tap]) < 0.99} == {}
    alone = net.embed32(faces[5:6])
    assert all((alone[tap][0] == found[tap][5]).all() for tap in taps), "whatever else is in the batch"
    compiled = net.net.session.compiled  # type: ignore[attr-defined]
    kernels = [op.get_rt_info()["runtimePrecision"].astype(str) for op in compiled.get_runtime_model().get_ops()
               if op.get_rt_info()["layerType"].astype(str) == "Convolution"]
    assert sum("8" in kernel for kernel in kernels) >= len(kernels) - 1 >= 5, "all but the first, which reads pixels"


def test_int8_needs_openvino(casia: files.Weights) -> None:
    with pytest.raises(InputError, match="not int8") as caught:
        Backbone.load(casia, ["block8"], precision="int8")
    assert "--backend openvino" in caught.value.hint


def test_a_net_is_converted_once(casia: files.Weights, crops: np.ndarray, tmp_path: Path,
                                 monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    own = replace(casia, path=Path(shutil.copy(casia.path, tmp_path)))

    def full_disk(*_: object) -> None:
        raise RuntimeError("basic_ios::clear: iostream error")  # OpenVINO's error of a full disk

    def values() -> np.ndarray:
        net = Backbone.load(own, ["conv2d_4b"], precision="int8", batch=4, backend="openvino")
        return net.embed32(crops)["conv2d_4b"]

    with monkeypatch.context() as patch:
        patch.setattr("openvino.serialize", full_disk)
        with pytest.raises(InputError, match="iostream error"):
            values()
    first = values()
    file, = tmp_path.glob("*.openvino")
    whole = file.read_bytes()
    own.path.write_bytes(b"")  # which a conversion would have to read
    assert (values() == first).all()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(WeightsError):
        values()


def test_int8_of_an_onnx_model(crops: np.ndarray, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    onnx_model(tmp_path / "net.onnx", ["n", 3, 160, 160], more=3)
    source = weights.resolve_weights(f"onnx:{tmp_path / 'net.onnx'}", tmp_path)
    exact, net = (Backbone.load(source, ["map-map"], precision=precision, batch=3, backend="openvino")
                  for precision in ("float32", "int8"))
    values, near = exact.embed32(crops)["map-map"], net.embed32(crops)["map-map"]
    assert cosine(near, values) > 0.99 and (near != values).any()
    onnx_model(tmp_path / "net.onnx", ["n", 3, 160, 160])
    with pytest.raises(InputError, match="int8 is for nets of convolutions"):
        Backbone.load(weights.resolve_weights(f"onnx:{tmp_path / 'net.onnx'}", tmp_path), ["map"], precision="int8",
                      backend="openvino")


def test_openvino_refuses_what_it_does_not_run(casia: files.Weights) -> None:
    with pytest.raises(InputError, match="not fp16"):
        Backbone.load(casia, ["block8"], precision="fp16", backend="openvino")


def test_auto_device_is_there() -> None:
    assert resolve_device("auto") in ("cpu", "cuda:0") and resolve_device("cpu") == "cpu"


def onnx_model(path: Path, shape: list[object], *, last: bool = False, more: int = 0) -> np.ndarray:
    """Write a net of one convolution with outputs `map` (4-D) and `vector`; return its kernel (4, 3, 16, 16).

    Parameters
    ----------
    more : number of convolutions before its output `map`.
    """
    onnx = pytest.importorskip("onnx", reason="the extra `onnx` and the package onnx are not installed")
    pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    kernel = np.random.default_rng(0).normal(size=(4, 3, 16, 16)).astype(np.float32)
    make = onnx.helper.make_node
    names = [*(f"inner{i}" for i in range(more)), "map"]
    nodes = [make("Conv", ["nchw" if last else "x", "k"], names[:1], strides=[16, 16]),
             *(make("Conv", [before, "more"], [name]) for before, name in pairwise(names)),
             make("GlobalAveragePool", ["map"], ["mean"]), make("Flatten", ["mean"], ["vector"])]
    if last:
        nodes.insert(0, make("Transpose", ["x"], ["nchw"], perm=[0, 3, 1, 2]))
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(nodes, "net", [info("x", 1, shape)], [info("map", 1, None), info("vector", 1, None)],
                                   [onnx.numpy_helper.from_array(kernel, "k"),
                                    onnx.numpy_helper.from_array(kernel[:, [0, 1, 2, 0], :2, :2].copy(), "more")])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return kernel


@pytest.mark.parametrize(("shape", "last"), [
    (["n", 3, 160, 160], False), ([2, 3, "h", "w"], False), (["n", 160, 160, 3], True)], ids=["free", "fixed", "last"])
def test_onnx_outputs_are_taps(shape: list[object], last: bool, crops: np.ndarray, tmp_path: Path) -> None:
    kernel = onnx_model(tmp_path / "net.onnx", shape, last=last)
    source = weights.resolve_weights(f"onnx:{tmp_path / 'net.onnx'}", tmp_path)
    assert shapes_of(source, ["vector", "map"]) == {"vector": (4,), "map": (4,)}
    found = Backbone.load(source, ["vector", "map"], batch=3).embed32(crops)
    pixels = torch.from_numpy(((crops.transpose(0, 3, 1, 2) - 127.5) / 128).astype(np.float32))
    expected = torch.nn.functional.conv2d(pixels, torch.from_numpy(kernel), stride=16).mean((2, 3)).numpy()
    for tap in ("vector", "map"):
        np.testing.assert_allclose(found[tap], expected, atol=1e-3)


def test_onnx_unknown_tap_and_no_model(tmp_path: Path) -> None:
    onnx_model(tmp_path / "net.onnx", ["n", 3, 160, 160])
    with pytest.raises(InputError, match="'block8' is no output") as caught:
        shapes_of(weights.resolve_weights(f"onnx:{tmp_path / 'net.onnx'}", tmp_path), ["block8"])
    assert "map, vector" in caught.value.hint
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(WeightsError, match="not readable as an ONNX model"):
        shapes_of(weights.resolve_weights(f"onnx:{tmp_path / 'bad.onnx'}", tmp_path), ["vector"])
    onnx_model(tmp_path / "flat.onnx", ["n", 3])
    with pytest.raises(WeightsError):
        shapes_of(weights.resolve_weights(f"onnx:{tmp_path / 'flat.onnx'}", tmp_path), ["vector"])


@pytest.mark.parametrize(("flags", "pays"), [
    ("vendor_id : GenuineIntel\nflags : avx512f avx512_bf16 amx_bf16 amx_tile", True),
    ("vendor_id : GenuineIntel\nflags : avx512f avx512_bf16", False), ("vendor_id : GenuineIntel\nflags : avx2", False),
    ("vendor_id : AuthenticAMD\nflags : avx512f avx512_bf16", True), ("Features : asimd bf16 i8mm", True), ("", False)])
def test_which_processors_gain_from_bf16(flags: str, pays: bool) -> None:
    assert devices.bf16_pays(flags) is pays


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_where_bf16_does_not_pay_float32_stands_in(casia: files.Weights, crops: np.ndarray, backend: str,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(backend)
    taps = ["conv2d_4b-3x3"]  # a shallow one: compiling the net takes most of the time
    plain = Backbone.load(casia, taps, batch=4, backend=backend)
    for pays, arithmetic in ((True, "bf16"), (False, "float32")):
        monkeypatch.setattr("fercache.backbones.backbone.bf16_pays", lambda pays=pays: pays)
        net = Backbone.load(casia, taps, precision="bf16", batch=4, backend=backend)
        assert net.arithmetic == arithmetic
        same = np.array_equal(net.embed(crops[:2])[taps[0]], plain.embed(crops[:2])[taps[0]])
        assert same is not pays
