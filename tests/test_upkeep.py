"""verify, diff, gc and forget on the command line: what they say, what they touch, how they exit."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from books import simulate
from click.testing import CliRunner, Result
from forked import Runner
from PIL import Image
from test_care import CLIPS, TAPS, book, flip, make, put

from fercache import logits_import
from fercache.backbones import weights
from fercache.cli import main
from fercache.config import DatasetConfig, ExtractConfig, StackConfig, TrainConfig, fingerprint_of
from fercache.data import load_dataset
from fercache.extraction import job
from fercache.stacking import inputs, stack
from fercache.store.embedding_store import EmbeddingStore
from fercache.training import train
from fercache.workspace import Workspace


def say(*words: object, text: str = "", code: int = 0) -> Result:
    """Return what a command said; its exit code is `code`."""
    done = CliRunner().invoke(main, [str(word) for word in words], input=text)
    assert done.exit_code == code, (done.output, done.exception)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a cache of two data sets."""
    for dataset in ("mine", "theirs"):
        features = tmp_path / "cache" / "features" / dataset
        make(features / "casia-1.zarr")
        (features / "current.json").write_text('{"store": "casia-1.zarr"}')
        book(tmp_path / "cache" / "logits" / dataset / "b1.h5", *CLIPS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


STORE = Path("cache/features/mine/casia-1.zarr")


def test_verify_says_whole_or_what_is_harmed(home: Path) -> None:
    assert "whole: every byte" in say("verify", "--store", STORE).stdout
    assert json.loads(say("verify", "--store", STORE, "--json").stdout)["whole"] is True
    harmed = home / STORE / "a" / "block8" / "c.0.0"
    flip(harmed, random.Random(1))
    said = say("verify", "--store", STORE, code=1).stdout
    assert str(STORE / "a" / "block8" / "c.0.0") in said and "NOT whole: 1 clips damaged" in said
    assert "--repair" in said and harmed.exists()
    told = json.loads(say("verify", "--store", STORE, "--json", code=1).stdout)
    assert [issue["details"] for issue in told["issues"]] == [["a"]] and not told["dropped"]
    assert "dropped a" in say("verify", "--store", STORE, "--repair", code=1).stdout
    assert "whole: every byte" in say("verify", "--store", STORE).stdout
    assert sorted(EmbeddingStore.open(STORE)) == sorted(CLIPS.keys() - {"a"})


def test_verify_of_a_damaged_root_says_who_mends_it(home: Path) -> None:
    (home / STORE / "zarr.json").write_text("{}")
    said = say("verify", "--store", STORE, code=1).stdout
    assert "zarr.json" in said and "fercache extract" in said
    assert "holds no embedding store" in say("verify", "--store", "cache/none.zarr", code=2).output
    taps = dict(TAPS)
    mended = EmbeddingStore.create(home / STORE, {"backbone": "casia", "detector": {"min_px": 40}}, taps, repair=True)
    assert sorted(mended) == sorted(CLIPS), "the clips stay"
    say("verify", "--store", STORE)


def test_a_root_of_other_settings_takes_no_clip_over(home: Path) -> None:
    (home / STORE / "zarr.json").write_text("{}")
    assert list(EmbeddingStore.create(home / STORE, {"backbone": "else"}, dict(TAPS), repair=True)) == []


def test_names_that_a_terminal_cannot_take(home: Path) -> None:
    store = EmbeddingStore.open(STORE, mode="a")
    for clip in ("bell\x07\x1b[31m", "lone\udc80", "two\nlines"):
        put(store, clip, 3)
        flip(home / STORE / next(f for f in store.files.folders() if f.startswith(clip[:3])) / "frame_table" / "c.0.0",
             random.Random(0))
    said = say("verify", "--store", STORE, "--repair", code=1).stdout
    assert "\x1b" not in said and "dropped bell\\x07\\x1b[31m" in said and "dropped lone\\udc80" in said
    assert "\x07" not in say("info", "--store", STORE, "--list").stdout


def test_diff_exits_like_diff(home: Path) -> None:
    other = Path("cache/features/theirs/casia-1.zarr")
    assert "3 clips are the same, equal" in say("diff", STORE, other).stdout
    make(home / "other.zarr", {"a": 6, "new": 3}, detector={"min_px": 20})
    said = say("diff", STORE, "other.zarr", code=1).stdout
    assert "detector.min_px" in said and "only in the second: new" in said and "differs: a, 5 and 6 frames" in said
    told = json.loads(say("diff", STORE, "other.zarr", "--json", code=1).stdout)
    assert told["settings"]["detector.min_px"] == [40, 20] and told["only_second"] == ["new"]
    say("diff", STORE, "none.zarr", code=2)


def test_forget_proves_it(home: Path) -> None:
    assert "2 data sets hold a clip" in say("forget", "a", code=2).output
    said = say("forget", "a", "--name", "mine").stdout
    assert f"removed {STORE / 'a'}" in said and "removed cache/logits/mine" in said and "no reference is left" in said
    assert "a" not in EmbeddingStore.open(STORE) and (home / "cache/logits/theirs/b1.h5").exists()
    told = json.loads(say("forget", "a", "--json").stdout)
    assert told["datasets"] == ["theirs"] and told["forgotten"] is True and told["references"] == []
    assert "no clip 'a'" in say("forget", "a", code=2).output
    assert "no clip 'a'" in say("forget", "a", "--name", "mine", code=2).output


def test_forget_says_what_it_could_not_remove(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof looks for itself: a removal that does nothing is found out."""
    monkeypatch.setattr(EmbeddingStore, "remove", lambda self, clip: None)
    said = say("forget", "a", "--name", "mine", code=1).stdout
    assert f"STILL NAMED in {STORE / 'a'}" in said and "a: not forgotten" in said


def test_forget_finds_what_other_stages_keep(home: Path) -> None:
    """Pictures, tables and work of a store that is gone; clips with like names stay."""
    cache = home / "cache"
    (cache / "thumbnails" / "mine" / "a").mkdir(parents=True)
    for name in ("a.jpg", "a/00001.jpg", "ab.jpg"):
        (cache / "thumbnails" / "mine" / name).write_bytes(b"x")
    (cache / "features" / "mine" / "faces.csv").write_text("frame,clip\n1,a\n")
    (cache / "features" / "mine" / "gone.work").mkdir()
    (cache / "features" / "mine" / "gone.work" / "a.journal").write_text("{}")
    say("forget", "a", "--name", "mine")
    left = {str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file() and "/mine/" in str(path)}
    assert "thumbnails/mine/ab.jpg" in left and "features/mine/current.json" in left
    assert not {path for path in left if path.endswith(("/a.jpg", "00001.jpg", "faces.csv", "a.journal"))}


@pytest.fixture
def recipes(home: Path, weights_at: Path) -> tuple[Path, Path]:
    """Recipes that name a table of one clip, and the store that they would make; with it one of other settings."""
    (home / "cache" / "weights").symlink_to(weights_at)
    for clip in ("a", "b"):
        (home / "clips" / clip).mkdir(parents=True)
        (home / "clips" / clip / "00001.png").write_bytes(b"x")
    (home / "stages").mkdir()
    (home / "stages" / "dataset.toml").write_text('dataset = "table"\nclips = "clips"\nname = "named"\n')
    (home / "stages" / "extract.toml").write_text('taps = ["block8"]\n')
    cnn = weights.resolve_weights("casia-webface", home / "cache" / "weights")
    dataset = load_dataset(DatasetConfig(dataset="table", clips="clips", name="named"), home / "cache")
    made = []
    for taps in (("block8",), ("repeat_2",)):
        config = ExtractConfig(taps=taps)
        settings = job.settings_of(config, "cropped", cnn)
        path = job.store_path(home / "cache", dataset.name, settings)
        store = EmbeddingStore.create(path, settings, TAPS)
        put(store, "a", 4)
        put(store, "left", 4)
        made.append(path.relative_to(home))
    return made[0], made[1]


def test_gc_lists_asks_and_removes(recipes: tuple[Path, Path], home: Path) -> None:
    mine, other = recipes
    make(home / "cache" / "features" / "named" / "imported.zarr")
    (home / "cache" / "stack" / "named" / ("0" * 12)).mkdir(parents=True)
    said = say("gc", text="n\n")
    assert f"{other.relative_to('cache')}\n" in said.stdout and f"{mine.relative_to('cache')} clip left" in said.stdout
    assert "no recipe names it" in said.stdout and "not in the data set" in said.stdout
    assert "imported" not in said.stdout, "features from elsewhere are not made by a recipe, nor can it make them anew"
    assert "clip a\n" not in said.stdout and "features/theirs" not in said.stdout
    told = json.loads(say("gc", "--json").stdout)
    assert len(told["unreferenced"]) == 3 and told["skipped"] == ["mine", "theirs"] and not told["removed"]
    say("gc")  # nobody to ask: nothing happens
    assert other.exists() and "left" in EmbeddingStore.open(mine)
    say("gc", text="y\n")
    assert not other.exists() and list(EmbeddingStore.open(mine)) == ["a"] and STORE.exists()
    assert "nothing to remove" in say("gc").stdout
    say("gc", "--all", "--yes")
    assert not STORE.exists() and list(EmbeddingStore.open(mine)) == ["a"]


def test_gc_knows_folders_of_recipes(recipes: tuple[Path, Path], home: Path) -> None:
    _, other = recipes
    (home / "stages" / "inner").mkdir()
    (home / "stages" / "inner" / "extract.toml").write_text('taps = ["repeat_2"]\n')
    assert str(other.relative_to("cache")) + "\n" not in say("gc").stdout


def test_gc_refuses_where_it_cannot_know(recipes: tuple[Path, Path], home: Path) -> None:
    """A data set that is not there just now (an unmounted disk) makes no waste."""
    (home / "clips").rename(home / "gone")
    say("gc", "--yes", code=2)
    assert "left" in EmbeddingStore.open(recipes[0])


def test_gc_of_a_link_leaves_what_it_leads_to(recipes: tuple[Path, Path], home: Path) -> None:
    make(home / "elsewhere.zarr")
    link = home / "cache" / "features" / "named" / "casia-webface-000000000000.zarr"
    settings = {**EmbeddingStore.open(recipes[0]).settings, "margin": 9}
    kept = EmbeddingStore.create(home / "far.zarr", settings, dict(TAPS))
    put(kept, "a", 3)
    link.symlink_to(kept.path)
    say("gc", "--yes")
    assert not link.is_symlink() and list(EmbeddingStore.open(kept.path)) == ["a"]


def trained(home: Path, path: Path, config: TrainConfig, **changed: Any) -> Path:
    """Write logits that record the recipes' store and these settings as their parents; return their path."""
    dataset = load_dataset(DatasetConfig(dataset="table", clips="clips", name="named"), home / "cache")
    store = EmbeddingStore.open(home / path)
    settings = train.settings_of(dataset, [t for t in dataset.trials if t.name in store], store, config) | changed
    written = Workspace(home / "cache").logits_file("named", fingerprint_of(settings))
    simulate(groups=4, frames=60, dataset="named", provenance={"settings": settings, "store": path.name}).save(written)
    return written


def waste() -> set[str]:
    """Return what gc would remove of the set that the recipes name."""
    listed = json.loads(say("gc", "--json").stdout)["unreferenced"]
    return {str(Path(item["path"]).relative_to("cache")) for item in listed if not item["clip"]}


def test_gc_knows_stack_runs_with_imported_logits(recipes: tuple[Path, Path], home: Path) -> None:
    """A run with --logits stays as long as its logits do; imported logits stay, whatever the recipes say."""
    cache, path = home / "cache", trained(home, recipes[0], TrainConfig())
    (home / "stages" / "stack.toml").write_text("bootstrap = 0\n")
    far = simulate(groups=4, frames=60, dataset="named", heads=("far",), provenance={"level": "frame"})
    far.save(logits_import.path_of(cache, "named", "far"))
    for logits, seed in (((), 0), (("far",), 0), (("far",), 1)):
        run = stack.run_stack(inputs.load_logits(cache, "named", path, logits),
                        StackConfig(bootstrap=0, seed=seed, logits=logits), cache)
    found = waste()
    assert {name for name in found if name.startswith("stack")} == {f"stack/named/{run.folder.name}"}, "another seed's"
    assert not any(name.startswith("logits") for name in found)
    logits_import.path_of(cache, "named", "far").unlink()
    assert len({name for name in waste() if name.startswith("stack")}) == 2


def test_gc_knows_runs_of_imported_logits_alone(home: Path) -> None:
    cache = home / "cache"
    (home / "stages").mkdir()
    (home / "stages" / "dataset.toml").write_text('dataset = "logits"\nname = "films"\n')
    (home / "stages" / "stack.toml").write_text("bootstrap = 0\n")
    for name in ("one", "two"):
        simulate(groups=4, frames=60, dataset="films", heads=(name,), provenance={"level": "frame"}).save(
            logits_import.path_of(cache, "films", name))
    for logits in ((), ("one",)):
        stack.run_stack(inputs.load_logits(cache, "films", None, logits or ("one", "two")),
                  StackConfig(bootstrap=0, logits=logits), cache)
    (cache / "stack" / "films" / ("0" * 12)).mkdir()
    assert waste() == {f"stack/films/{'0' * 12}"}


def test_gc_knows_the_books_of_an_ablation(recipes: tuple[Path, Path], home: Path) -> None:
    (home / "stages" / "train-heads.toml").write_text('taps = ["block8"]\n')
    (home / "stages" / "ablation.toml").write_text('rows = ["loss=focal", "taps=nothing"]\nrepeats = 2\n')
    usual = TrainConfig(taps=("block8",))
    named_ = [replace(usual, seed=1), replace(usual, loss="focal"), replace(usual, loss="focal", seed=1),
              replace(usual, folds=3)]
    for config in named_:
        trained(home, recipes[0], config)
    other = trained(home, recipes[0], replace(usual, loss="focal", seed=2))
    assert waste() == {str(recipes[1].relative_to("cache")), f"logits/named/{other.name}"}


def test_gc_walks_from_stores_to_heads_and_predictions(recipes: tuple[Path, Path], home: Path) -> None:
    """Logits and heads of other content of the store, or of a store that no recipe names, go with what they predicted.
    """
    space = Workspace(home / "cache")
    (home / "stages" / "train-heads.toml").write_text('taps = ["block8"]\n')
    usual = TrainConfig(taps=("block8",))
    live, old = trained(home, recipes[0], usual), trained(home, recipes[0], usual, store="0" * 64)
    other = trained(home, recipes[1], usual)
    predicted = {}
    for path in (live, old, other):
        heads = space.heads("named", path.stem)
        heads.mkdir(parents=True)
        (heads / "frame-fold0-0.json").write_text("{}")
        predicted[path] = space.logits_file("named", f"new{path.stem}")
        simulate(groups=4, frames=60, dataset="named", provenance={
            "heads": path.stem, "trained_on": "named", "store": recipes[0].name}).save(predicted[path])
    (space.logits("named") / "damaged.h5").write_bytes(b"x")
    gone = {str(path.relative_to(space.root)) for path in (
        old, other, space.heads("named", old.stem), space.heads("named", other.stem), predicted[old], predicted[other])}
    assert waste() == {str(recipes[1].relative_to("cache")), *gone}
    space.set_current_logits_file(old)  # later stages read these by default
    assert not waste() & {str(path.relative_to(space.root)) for path in (old, space.heads("named", old.stem))}


def test_gc_takes_the_pictures_of_what_is_gone(recipes: tuple[Path, Path], home: Path) -> None:
    mine, other = recipes
    thumbs = home / "cache" / "thumbs" / "named"
    for name in (mine.stem, other.stem, "gone.1"):
        for clip in ("a", "left", "never"):
            (thumbs / name).mkdir(parents=True, exist_ok=True)
            (thumbs / name / f"{clip}.npz").write_bytes(b"x" * 10)
    say("gc", "--yes")
    assert sorted(str(path.relative_to(thumbs)) for path in thumbs.rglob("*.npz")) == [f"{mine.stem}/a.npz"]
    assert "nothing to remove" in say("gc").stdout


@pytest.mark.slow("trains through all stages four times")
def test_gc_after_the_three_stages(home: Path, weights_at: Path) -> None:
    """What the recipes make of a data set stays to the last file; a recipe that changes makes waste of what follows."""
    (home / "cache" / "weights").symlink_to(weights_at)
    rng = np.random.default_rng(0)
    rows = ["clip,path,label,subject"]
    for i in range(6):
        folder = home / "clips" / f"clip{i}"
        folder.mkdir(parents=True)
        for number in range(1, 13):
            pixels = rng.integers(0, 128, (64, 64, 3), np.uint8) + np.uint8(100 * (i % 2))
            Image.fromarray(pixels).save(folder / f"{number:05d}.png")
        rows.append(f"clip{i},clips/clip{i},{('sad', 'glad')[i % 2]},person{i // 2}")
    (home / "clips.csv").write_text("\n".join(rows) + "\n")
    (home / "stages").mkdir()
    heads = 'heads = ["frame"]\ntaps = ["block8"]\ninit = "scratch"\n'
    for name, text in (("dataset", 'dataset = "table"\nclips = "clips.csv"\n'), ("extract", 'taps = ["block8"]\n'),
                       ("train-heads", heads), ("stack", "bootstrap = 10\n")):
        (home / "stages" / f"{name}.toml").write_text(text)
    (home / "runner").mkdir()
    runner = Runner(home / "runner")

    def waste(*stages: str) -> set[str]:
        for words in (("extract",), ("train-heads",), ("stack",)):
            if words[0] in stages:
                assert runner.run(*words, cwd=home).code == 0, words
        run = runner.run("gc", "--json", cwd=home)
        assert run.code == 0, run.err()
        items = json.loads(run.out())["unreferenced"]
        return {str(Path(item["path"]).relative_to("cache")).split("/")[0] for item in items}

    assert waste("extract", "train-heads", "stack") == set()
    (home / "stages" / "stack.toml").write_text("bootstrap = 20\n")
    assert waste() == {"stack"} and waste("stack") == {"stack"}
    (home / "stages" / "train-heads.toml").write_text(heads + "seed = 1\n")
    assert waste() == {"stack"}, "the current logits stay until there are others"
    assert waste("train-heads") == {"logits", "heads", "stack"}
    (home / "stages" / "extract.toml").write_text('taps = ["block8"]\non_truncated = "keep"\n')
    assert waste() == {"features", "logits", "heads", "stack"}
    assert runner.run("gc", "--yes", cwd=home).code == 0
    assert waste() == set()
    runner.close()


@pytest.mark.parametrize("words", [("gc", "--yes"), ("forget", "a")])
def test_far_features_are_not_looked_past(tmp_path: Path, words: tuple[str, ...]) -> None:
    """A proof that no trace is left, which did not look where the features are, would be none."""
    done = CliRunner().invoke(main, ["--cache", "memory://bucket", "--local-cache", str(tmp_path), *words])
    assert done.exit_code == 2 and "local features only" in done.output


def test_gc_reads_every_delivered_folder_of_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No delivered recipe may name a data set that a user has not got: `gc` reads all of them."""
    monkeypatch.chdir(tmp_path)
    stages = Path(__file__).resolve().parent.parent / "stages"
    assert {path.parent.name for path in stages.glob("*/*.toml")} == {"mao2021", "starter"}
    found = json.loads(say("--cache", "cache", "--stages", stages, "gc", "--json").stdout)
    assert found["unreferenced"] == []
