"""Nothing that is read can run code, leave the cache folder, or be larger than it may."""

from __future__ import annotations

import ast
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from forked import Runner

from fercache import recipe
from fercache.backbones.weights import resolve_weights
from fercache.errors import ClipError, FercacheError, InputError, StoreError, WeightsError
from fercache.oof import OofLogits
from fercache.runtime import atomic_io
from fercache.stacking import nested_cv
from fercache.store.embedding_store import EmbeddingStore
from fercache.store.local import LocalStoreFiles
from fercache.store.manifest import StoreRoot
from fercache.store.remote import read_pointer

PACKAGE = Path(__file__).resolve().parents[1] / "fercache"
MODULES = {"cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml", "imp", "code"}
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "importlib.util.module_from_spec",
         "runpy.run_path", "builtins.eval", "builtins.exec"}
TAPS = {"block8": (3,)}


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Yield the dotted name of what is called, and the call."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_file_loads_what_can_run(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not {name.split(".")[0] for name in names} & MODULES, f"{path} imports {names}"
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle":  # torch raises it; nobody uses it
            assert node.attr == "UnpicklingError", f"{path}:{node.lineno}: pickle.{node.attr}"
        assert not (isinstance(node, ast.ImportFrom) and node.module == "pickle"), f"{path}:{node.lineno}"
    for name, call in calls(tree):
        words = {word.arg: word.value for word in call.keywords}
        assert name not in CALLS, f"{path}:{call.lineno}: {name}()"
        if name == "importlib.import_module":
            # Only modules of fercache by a table in the code, or other libraries' by a constant.
            own = isinstance(call.args[0], ast.JoinedStr) and str(getattr(call.args[0].values[0], "value", "")
                                                                  ).startswith("fercache.")
            constant = all(isinstance(given, ast.Constant | ast.Name) for given in call.args)
            assert own or (constant and path.name in ("facenet.py", "library.py")), f"{path}:{call.lineno}"
        for word in ("allow_pickle", "shell"):
            assert ast.unparse(words.get(word, ast.Constant(False))) == "False", f"{path}:{call.lineno}"
        if name in ("np.load", "numpy.load"):
            assert "allow_pickle" in words, f"{path}:{call.lineno}: say allow_pickle=False"
        if name == "torch.load":
            assert ast.unparse(words["weights_only"]) == "True", f"{path}:{call.lineno}"


class Evil:
    """What unpickling turns into a command."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch '{self.proof}'",)


@pytest.fixture
def proof(tmp_path: Path) -> Path:
    """A file that is there once something ran; and the poison works, or the tests below prove nothing."""
    path = tmp_path / "it-ran"
    pickle.loads(pickle.dumps(Evil(path)))  # noqa: S301 - ours, to see that it would have worked
    assert path.exists()
    path.unlink()
    return path


@pytest.mark.parametrize("ending", [".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize("protocol", ["torch", "raw", "state"])
def test_weights_run_nothing(tmp_path: Path, proof: Path, ending: str, protocol: str) -> None:
    path = tmp_path / f"evil{ending}"
    if protocol == "raw":
        path.write_bytes(pickle.dumps(Evil(proof), protocol=2))
    else:
        torch.save({"x": Evil(proof)} if protocol == "state" else Evil(proof), path)
    with pytest.raises(WeightsError):
        resolve_weights(str(path), tmp_path / "weights")
    done = subprocess.run([sys.executable, "-m", "fercache", "extract", "--weights", path], cwd=tmp_path, text=True,
                          capture_output=True, check=False) if protocol == "torch" and ending == ".pt" else None
    assert done is None or (done.returncode == 2 and "Traceback" not in done.stderr), done.stderr
    assert not proof.exists()


def test_arrays_and_books_run_nothing(tmp_path: Path, proof: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    np.save(folder / nested_cv.FINAL, np.array([Evil(proof)], dtype=object), allow_pickle=True)
    (folder / nested_cv.METRICS).write_text("{}")
    assert nested_cv.load_stack(folder, (1, 1)) is None
    (tmp_path / "book.h5").write_bytes(pickle.dumps(Evil(proof)))
    with pytest.raises(StoreError):
        OofLogits.load(tmp_path / "book.h5")
    with h5py.File(tmp_path / "opaque.h5", "w") as file:
        file.attrs["format"] = 1
        file["about"] = np.void(pickle.dumps(Evil(proof)))
    with pytest.raises(StoreError):
        OofLogits.load(tmp_path / "opaque.h5")
    assert not proof.exists()


def test_recipes_and_json_are_data(tmp_path: Path, proof: Path) -> None:
    for name, text in (("extract.toml", f'taps = "__import__(\'os\').system(\'touch {proof}\')"'),
                       ("extract.toml", f"taps = !!python/object/apply:os.system ['touch {proof}']"),
                       ("extract.toml", '[taps]\n"__class__" = 1')):
        (tmp_path / name).write_text(text)
        try:
            assert isinstance(recipe.load_recipe(tmp_path, "extract")["taps"], str)
        except InputError as error:
            assert str(error)
    assert not proof.exists()


def test_what_is_too_large_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "extract.toml").write_bytes(b"#" * (recipe.LIMIT_BYTES + 1))
    with pytest.raises(InputError, match="larger"):
        recipe.load_recipe(tmp_path, "extract")
    (tmp_path / "extract.toml").write_text("taps = " + "[" * 100_000)
    with pytest.raises(InputError):
        recipe.load_recipe(tmp_path, "extract")
    large = tmp_path / "large.json"
    with large.open("wb") as file:
        file.truncate(65 << 20)
    with pytest.raises(InputError, match="larger"):
        atomic_io.read_json(large)
    large.write_text("[" * 100_000)
    with pytest.raises(InputError):
        atomic_io.read_json(large)
    root = tmp_path / "s.zarr" / "zarr.json"
    root.parent.mkdir()
    with root.open("wb") as file:
        file.truncate(1 << 33)  # 8 GB of nothing: only its head may be read
    with pytest.raises(StoreError):
        EmbeddingStore.open(root.parent)


def test_a_book_larger_than_its_file_is_not_read(tmp_path: Path) -> None:
    """HDF5 may state any shape for data that was never written."""
    from books import simulate

    made = tmp_path / "book.h5"
    simulate(groups=2, frames=10).save(made)
    with h5py.File(made, "a") as file:
        del file["frame/index"]
        file.create_dataset("frame/index", (1 << 40,), "i4", chunks=(1 << 20,))
    with pytest.raises(StoreError, match="more bytes than"):
        OofLogits.load(made)


@pytest.mark.parametrize("said", ['{"store": "../../etc"}', '{"store": "/etc"}', '{"store": ".."}', '{"store": 3}',
                                  "[]", '{"store": "a\\u0000b"}', '{"store": null}', '"store"', "{}", "3" * 5000, "",
                                  "{"])
def test_a_pointer_stays_beside_itself(tmp_path: Path, said: str) -> None:
    (tmp_path / "current.json").write_text(said)
    with pytest.raises(InputError):
        read_pointer(tmp_path / "current.json")


CLIPS = ("../up", "../../up", "/abs", "C:\\x", "CON", "nul.txt", "x" * 400, "é", "e\u0301", "Twin", "twin",
         "a/../../b", "..", ".", "%2e%2e%2fup", "zarr.json", "%00")


def outside(folder: Path) -> set[Path]:
    """Return all that lies under a folder and in no cache."""
    return {path for path in folder.rglob("*") if "cache" not in path.relative_to(folder).parts}


def test_clip_ids_stay_in_the_cache(tmp_path: Path, weights_at: Path) -> None:
    """A table of clips with names that mean something to a file system, through the command line."""
    from PIL import Image

    work = tmp_path / "in" / "side"
    (work / "cache").mkdir(parents=True)
    (work / "cache" / "weights").symlink_to(weights_at)
    (work / "picture").mkdir()
    Image.new("RGB", (32, 32), (90, 80, 70)).save(work / "picture" / "00001.png")
    (work / "clips.csv").write_text("clip,path\n" + "".join(f'"{clip}",picture\n' for clip in CLIPS), encoding="utf-8")
    before = outside(tmp_path)
    (tmp_path / "runner").mkdir()
    runner = Runner(tmp_path / "runner")
    done = runner.run("extract", "--clips", "clips.csv", "--taps", "block8", cwd=work)
    runner.close()
    assert "Traceback" not in done.err() and done.code in (0, 1), done.err()
    store = EmbeddingStore.open(work / done.out().strip())
    failed = (store.path.parent / "failures.csv").read_text() if done.code else ""
    assert len(store) >= 10 and all(clip in store or clip in failed for clip in CLIPS), failed
    shutil.rmtree(tmp_path / "runner")
    assert outside(tmp_path) == before, "something was written outside the cache"


class BlindToCase(LocalStoreFiles):
    """A file system that takes ``A`` and ``a`` for one name, and remembers how it was first written."""

    def _folded(self, key: str) -> str:
        head, _, rest = key.partition("/")
        same = [name for name in super().folders() if name.lower() == head.lower()]
        return "/".join([same[0] if same else head, *([rest] if rest else [])])

    def stat(self, key: str):  # type: ignore[no-untyped-def]
        return super().stat(self._folded(key))

    def get(self, key: str) -> bytes | None:
        return super().get(self._folded(key))


def test_case_twins_never_overwrite_each_other(tmp_path: Path) -> None:
    """On a file system blind to case the second of two such clips is refused, and the first one stays."""
    made = EmbeddingStore.create(tmp_path / "s.zarr", {"x": 1}, TAPS)

    def put(store: EmbeddingStore, clip: str) -> None:
        with store.writer(clip, source={"size": 1}, provenance={}) as writer:
            assert writer is not None
            writer.set_frame_table(np.zeros((2, 9)))
            writer.write(0, {"block8": np.ones((2, 3), np.float16)})
            writer.commit()

    put(made, "Clip")
    blind = EmbeddingStore(BlindToCase(made.path), "a", StoreRoot(settings=made.settings, fingerprint=made.fingerprint,
                                                                   taps=made.taps))
    with pytest.raises(ClipError, match="only in case"):
        put(blind, "clip")
    assert list(EmbeddingStore.open(made.path)) == ["Clip"] and made["Clip"]["block8"][0, 0] == 1
    put(made, "clip")
    assert list(made) == ["Clip", "clip"], "where case is told apart both are held"


def test_rows_past_the_end_are_refused(tmp_path: Path) -> None:
    """The last chunk is padded with zeros, which nobody may take for features."""
    store = EmbeddingStore.create(tmp_path / "s.zarr", {"x": 1}, TAPS)
    with store.writer("c", source={}, provenance={}) as writer:
        writer.set_frame_table(np.ones((300, 9)))
        writer.write(0, {"block8": np.ones((300, 3), np.float16)})
        writer.commit()
    tap = store["c"]["block8"]
    assert tap[290:400].shape == (10, 3) and tap[290:400].all()
    for start, stop in ((0, 301), (-1, 5), (299, 512), (400, 401)):
        with pytest.raises(InputError):
            tap.rows(start, stop)


def test_a_link_into_another_store_is_found(tmp_path: Path) -> None:
    from fercache.maintenance import verify

    one = EmbeddingStore.create(tmp_path / "one.zarr", {"x": 1}, TAPS)
    other = EmbeddingStore.create(tmp_path / "two.zarr", {"x": 2}, TAPS)
    with other.writer("c", source={}, provenance={}) as writer:
        writer.set_frame_table(np.ones((3, 9)))
        writer.write(0, {"block8": np.ones((3, 3), np.float16)})
        writer.commit()
    (one.path / "c").symlink_to(other.path / "c")
    (one.path / "gone").symlink_to(tmp_path / "nowhere")
    assert list(one) == []
    assert {Path(issue.where).name for issue in verify.verify_store(one.path).issues} == {"c", "gone"}
    assert len(verify.verify_store(one.path, repair=True).cleared) == 2
    assert not verify.verify_store(one.path).issues and list(other) == ["c"], "what a link leads to is not the store's"


def test_two_names_of_one_store_share_its_claims(tmp_path: Path) -> None:
    store = EmbeddingStore.create(tmp_path / "real" / "s.zarr", {"x": 1}, TAPS)
    (tmp_path / "link.zarr").symlink_to(store.path)
    with store.writer("c", source={}, provenance={}) as first:
        assert first is not None
        with EmbeddingStore.open(tmp_path / "link.zarr", mode="a").writer("c", source={}, provenance={}) as second:
            assert second is None, "two writers on one clip"
    assert isinstance(FercacheError("x"), Exception)
