"""The Python API as a notebook uses it: every function called twice, its results shown, plotted and saved."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import os
import pkgutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from books import simulate
from click.testing import CliRunner
from PIL import Image
from streams import CLASSES, write_clip, write_set

import fercache
from fercache.cli import main
from fercache.config import StackConfig
from fercache.data import demo
from fercache.errors import InputError, MissingExtra
from fercache.inference import starter

ROOT = Path(__file__).resolve().parent.parent
FUNCTIONS = [name for name in fercache.__all__ if name != "__version__"]
TAP = "conv2d_4b"
pytestmark = pytest.mark.usefixtures("tiny_cnn")


@pytest.fixture(scope="module")
def home(linked: Path, tiny_cnn: None) -> dict[str, Any]:
    """A folder with a set of crops and a cache in which it is trained, each stage twice; the arguments and results."""
    write_set(linked / "set", train=6, test=2, frames=24)
    where = {"clips": linked / "set" / "clips.csv", "labels": linked / "set" / "labels.csv", "classes": CLASSES,
             "cache": linked / "cache"}
    (linked / "stages").mkdir()
    where["stages"] = linked / "stages"
    return {"where": where, "folder": linked,
            "extract": [fercache.extract(taps=[TAP], **where) for _ in range(2)],
            "train": [fercache.train_heads(taps=TAP, heads=["frame"], folds=2, ensemble=1, epochs=4, **where)
                      for _ in range(2)],
            "stack": [fercache.stack(bootstrap=20, **where) for _ in range(2)]}


def new_clips(folder: Path, *names: str) -> Path:
    for i, name in enumerate(names):
        write_clip(folder / name, np.repeat([0, 1, 2], 8), np.random.default_rng(i))
    return folder


def test_import_is_light() -> None:
    heavy = {"av", "h5py", "lightgbm", "matplotlib", "pandas", "pyarrow", "scipy", "torch", "zarr", "numpy", "click"}
    code = f"import fercache, sys; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_functions_stay_functions_when_every_module_is_imported() -> None:
    for module in pkgutil.walk_packages(fercache.__path__, "fercache."):
        if not module.name.endswith(("__main__", ".dask")):  # the program, and an extra
            importlib.import_module(module.name)
    for name in FUNCTIONS:
        function = getattr(fercache, name)
        assert inspect.isfunction(function) and (function.__doc__ or "").startswith("Return"), name
        assert "return" in function.__annotations__, name


def test_every_stage_twice_and_the_second_run_finds_the_first(home: dict[str, Any]) -> None:
    first, second = home["extract"]
    assert (first.count("computed"), second.count("computed"), second.count("cached")) == (8, 0, 8)
    assert not home["train"][0].cached and home["train"][1].cached and home["train"][0].trained == 2
    assert not home["stack"][0].cached and home["stack"][1].cached
    assert repr(home["stack"][0]) == repr(home["stack"][1]) and "macro F1" in repr(home["stack"][0])
    for _ in range(2):
        store = fercache.open_store(first.store)
        assert store["s0-00"][TAP].shape[0] == 24
        heads = fercache.load_heads(cache=home["where"]["cache"])
        probs = heads.predict_proba(store, "s0-06")
        assert heads.classes == CLASSES and probs["frame"].shape == (24, 3)
        np.testing.assert_allclose(probs["frame"].sum(1), 1)
    assert fercache.load_heads(home["train"][0].heads).folder == heads.folder
    assert fercache.load_heads("starter").folder == starter.FOLDER
    with pytest.raises(InputError, match="read the tap"):
        fercache.load_heads("starter").predict_proba(store, "s0-06")


def test_predict_gives_rows_a_picture_and_files(home: dict[str, Any], tmp_path: Path) -> None:
    where = {name: home["where"][name] for name in ("cache", "stages")}
    clips = new_clips(tmp_path / "clips", "one", "two")
    for _ in range(2):
        both = fercache.predict(clips, **where)
    assert both.cached and not both.failed and both.clips == ("one", "two")
    listed = fercache.predict([clips / "one", str(clips / "two")], **where)
    assert listed.to_arrow() == both.to_arrow()
    rows = both.to_arrow()
    assert rows.num_rows == 48 and rows.column_names[:7] == ["clip", "frame", "time_s", "valid", "label", "prediction",
                                                              "expression"]
    assert rows["expression"].to_pylist() == [CLASSES[i] for i in rows["prediction"].to_pylist()]
    assert "2 clips" in repr(both) and "with a face" in repr(both)
    with pytest.raises(InputError, match="several") as caught:
        both.plot()
    assert "one, two" in caught.value.hint
    figure = both.plot("two")
    assert len(figure.axes) == 4 and figure._repr_png_().startswith(b"\x89PNG")
    written = both.save(tmp_path / "out")
    assert {path.relative_to(tmp_path / "out").as_posix() for path in written} == {
        "preds.csv", "preds.metrics.json", "timelines/one.png", "timelines/two.png"}
    with Image.open(tmp_path / "out" / "timelines" / "one.png") as picture:
        assert picture.size[0] > 1000
    assert both.save(str(tmp_path / "table.parquet"))[0].is_file() and not (tmp_path / "table.parquet").is_dir()
    args = ["--cache", str(where["cache"]), "--stages", str(where["stages"]), "predict", str(clips), "--out",
            str(tmp_path / "cli"), "--no-timelines"]
    assert CliRunner().invoke(main, args, catch_exceptions=False).exit_code == 0
    for name in ("preds.csv", "preds.metrics.json"):
        assert (tmp_path / "cli" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_predict_records_what_fails_and_writes_to_out(home: dict[str, Any], tmp_path: Path) -> None:
    where = {name: home["where"][name] for name in ("cache", "stages")}
    clips = new_clips(tmp_path / "clips", "one")
    result = fercache.predict(clips / "one", tmp_path / "absent", out=tmp_path / "out", timelines=False, **where)
    assert [Path(clip.clip).name for clip in result.failed] == ["absent"] and (tmp_path / "out/failures.csv").is_file()
    assert not (tmp_path / "out" / "timelines").exists() and (tmp_path / "out" / "preds.csv").is_file()


def test_a_data_frame_has_the_rows_and_names_of_classes(home: dict[str, Any]) -> None:
    pandas = pytest.importorskip("pandas", reason="needs the extra pandas")
    frame = home["stack"][0].frame
    assert isinstance(frame, pandas.DataFrame) and len(frame) == 8 * 24
    assert list(frame.columns) == home["stack"][0].to_arrow().column_names
    assert list(frame["expression"].cat.categories) == list(CLASSES)
    assert frame.groupby("clip")["frame"].max().tolist() == [24] * 8


def test_without_pandas_the_error_names_the_extra(home: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)  # what Python does for a package that cannot be imported
    with pytest.raises(MissingExtra, match="pandas") as caught:
        _ = home["stack"][0].frame
    assert "fercache[pandas]" in caught.value.hint and "to_arrow" in caught.value.hint


@pytest.mark.parametrize(("name", "keywords", "words"), [
    ("extract", {"detect_evry": 5}, "detect_every"), ("extract", {"taps": 3}, "taps"),
    ("train_heads", {"epochs": "ten"}, "epochs"), ("train_heads", {"heads": ["gruu"]}, "gruu"),
    ("stack", {"metrics": "accuracy"}, "metric"), ("stack", {"stages": "no-such-folder"}, "no-such-folder"),
    ("predict", {}, "no clip"), ("predict", {"clip": "film.mp4"}, "clips"),
    ("predict", {"root": ".", "heads": "no/such/heads"}, "no trained heads"),
    ("load_heads", {"heads": "no/such/heads"}, "no trained heads"), ("load_heads", {"dataset": "none"}, "no heads"),
])
def test_wrong_calls_are_explained(tmp_path: Path, name: str, keywords: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        getattr(fercache, name)(cache=tmp_path, **keywords)
    assert words in str(caught.value)


def test_causal_predictions_take_a_causal_stack(home: dict[str, Any], tmp_path: Path) -> None:
    where = {name: home["where"][name] for name in ("cache", "stages")}
    clips = new_clips(tmp_path / "clips", "one")
    with pytest.raises(InputError, match="causal stacker") as caught:
        fercache.predict(clips, causal=True, **where)
    assert "stack --causal" in caught.value.hint
    with pytest.raises(InputError, match="later frames"):
        fercache.predict(clips, causal=True, stack=home["stack"][0].folder, **where)
    fercache.stack(causal=True, bootstrap=20, **home["where"])
    assert fercache.predict(clips, causal=True, **where).result.report.causal


@pytest.mark.parametrize("first_face", [0, 7])
def test_the_starter_uses_no_later_frame_if_causal(first_face: int) -> None:
    """Frames that are taken away at the end change no prediction before them; without `causal` they do."""
    oof = simulate(groups=2, frames=90, heads=("frame",)).subset(np.array([0]))
    valid = oof.valid.copy()
    valid[:first_face], valid[40:60] = False, False
    oof = replace(oof, valid=valid)
    changed = {}
    for causal in (True, False):
        config, stop = StackConfig(bootstrap=0, causal=causal), 50
        whole = starter.evaluate_starter(oof, config).ppm
        cut = replace(oof, offsets=np.array([0, stop]), logits={"frame": oof.logits["frame"][:stop]},
                      **{name: getattr(oof, name)[:stop] for name in ("index", "time_s", "valid", "label")})
        changed[causal] = not np.array_equal(starter.evaluate_starter(cut, config).ppm, whole[:stop])
    assert changed == {True: False, False: True}


def test_predict_has_the_flag_causal_for_the_starter(linked: Path, cache: Path, tmp_path: Path) -> None:
    clip = demo.fetch_demo_clips(cache / "clips") / "single_face.mp4"
    (tmp_path / "stages").mkdir()
    words = ["--cache", str(linked / "cache"), "--stages", str(tmp_path / "stages"), "predict", str(clip), "--heads",
             "starter", "--no-timelines", "--out"]
    for name, flags in (("plain", []), ("causal", ["--causal"])):
        assert CliRunner().invoke(main, [*words, str(tmp_path / name), *flags], catch_exceptions=False).exit_code == 0
    (tmp_path / "stages" / "stack.toml").write_text("causal = true\n")
    assert CliRunner().invoke(main, [*words, str(tmp_path / "recipe")], catch_exceptions=False).exit_code == 0
    rows = [(tmp_path / name / "preds.csv").read_bytes() for name in ("plain", "causal", "recipe")]
    assert rows[0] != rows[1] and rows[1] == rows[2]
    assert json.loads((tmp_path / "causal" / "preds.metrics.json").read_text())["causal"]


# The tutorial.

NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"
RUN = """
import ast, json, sys
if sys.argv[2] == "tiny":
    import tiny_nets
    tiny_nets.install()
names = {}
for cell in json.load(open(sys.argv[1]))["cells"]:
    if cell["cell_type"] != "code" or set(cell["metadata"].get("tags", [])) & set(sys.argv[3:]):
        continue
    tree = ast.parse("".join(cell["source"]))
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
        print(value._repr_png_()[:4] if hasattr(value, "_repr_png_") else repr(value))
"""


@pytest.mark.parametrize("nets", ["tiny", pytest.param("real", marks=pytest.mark.slow("the real CNN on six clips"))])
def test_the_tutorial_runs(nets: str, cache: Path, weights_at: Path, tmp_path: Path) -> None:
    """In an interpreter of its own, in an empty folder; cells that need pandas are left out where it is missing."""
    (tmp_path / "cache").mkdir()
    for folder in (weights_at, demo.fetch_demo_clips(cache / "clips")):
        (tmp_path / "cache" / folder.name).symlink_to(folder.resolve())
    skipped = [] if importlib.util.find_spec("pandas") else ["pandas"]
    path = [str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run([sys.executable, "-c", RUN, NOTEBOOK, nets, *skipped], cwd=tmp_path, capture_output=True,
                          text=True, check=False, env={**os.environ, "PYTHONPATH": os.pathsep.join(path)})
    assert done.returncode == 0, done.stderr
    assert "heads starter" in done.stdout and "PNG" in done.stdout and "macro F1" in done.stdout
    assert (tmp_path / "result" / "preds.csv").is_file() and (tmp_path / "result" / "timelines").is_dir()


def test_the_tutorial_is_stored_without_outputs() -> None:
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None
