"""The command `train-heads` as it is typed: the backbone's own tail on cached maps, and Ctrl-C in the middle."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from forked import Runner
from safetensors.numpy import load_file
from streams import CLASSES, write_clip, write_set

from fercache.cli import main
from fercache.oof import OofLogits

MAP, POOLED = "mixed_7a-map", "repeat_1"
FRAMES = 12
SMALL = ("--folds", "2", "--ensemble", "2", "--width", "16")


def words(home: Path, command: str, *more: object) -> list[str]:
    flags = ["--clips", home / "set" / "clips.csv", "--labels", home / "set" / "labels.csv", "--classes",
             ",".join(CLASSES)]
    return ["--cache", str(home / "cache"), "--stages", str(home / "recipes"), command, *map(str, [*flags, *more])]


def call(home: Path, command: str, *more: object) -> Result:
    return CliRunner().invoke(main, words(home, command, *more), catch_exceptions=False)


def book_of(home: Path) -> OofLogits:
    pointer, = (home / "cache" / "logits").glob("*/current.json")
    return OofLogits.load(pointer.parent / json.loads(pointer.read_text())["logits_file"])


def heads_of(home: Path) -> set[Path]:
    """Return the JSON files of the trained heads of every run."""
    return set((home / "cache" / "heads").glob("*/*/[!.]*.json"))


@pytest.fixture(scope="module")
def home(linked: Path) -> Path:
    """A folder with a set of nine clips and the maps before the backbone's last two blocks."""
    (linked / "recipes").mkdir()
    write_set(linked / "set", train=8, test=1, frames=FRAMES)
    assert call(linked, "extract", "--taps", f"{MAP},{POOLED}").exit_code == 0
    return linked


def test_the_backbones_tail_is_trained_from_its_own_weights(home: Path, cache: Path, tmp_path: Path) -> None:
    """From extraction to the prediction of a clip that was never seen, its store with the same maps made on the way."""
    typed = ("train-heads", *SMALL, "--heads", "frame,gru", "--taps", f"{MAP},{POOLED}", "--epochs", "3")
    assert call(home, *typed).exit_code == 0
    plain = book_of(home)
    done = call(home, *typed, "--finetune-tap", MAP)
    assert done.exit_code == 0, done.output
    book = book_of(home)
    assert book.fingerprint != plain.fingerprint
    folder = home / "cache" / "heads" / book.dataset / book.fingerprint[:12]
    kept = sorted(folder.glob("frame-fold*.safetensors"))
    assert len(kept) == 4
    first, = (cache / "weights").glob("casia-webface.safetensors")
    given = load_file(first)
    trained = 0
    for path in kept:
        blocks = {name.split(".blocks.")[1]: value for name, value in load_file(path).items() if ".blocks." in name}
        assert {name.split(".")[0] for name in blocks} == {"repeat_3", "block8"}
        far = {name: np.abs(value - given[name]).max() for name, value in blocks.items()}
        assert max(v for name, v in far.items() if "running" in name) == 0, "the statistics stay"
        moved = [v for name, v in far.items() if name.endswith("conv.weight")]
        assert max(moved) < .1, "kernels begin where the backbone's are"
        if json.loads(path.with_suffix(".json").read_text())["epoch"] > 1:  # the first step warms up from a rate of 0
            assert min(moved) > 0, "all kernels were trained"
            trained += 1
    assert trained
    assert all(np.isfinite(said).all() and said.any(1).all() for said in book.logits.values())

    assert call(home, "stack", "--out", tmp_path / "preds.csv").exit_code == 0
    write_clip(tmp_path / "new", np.repeat([0, 1, 2], FRAMES // 3), np.random.default_rng(9))
    told = CliRunner().invoke(main, ["--cache", str(home / "cache"), "--stages", str(home / "recipes"), "predict",
                                     str(tmp_path / "new"), "--heads", str(folder), "--no-timelines", "--out",
                                     str(tmp_path / "told")], catch_exceptions=False)
    assert told.exit_code == 0, told.output
    assert len((tmp_path / "told" / "preds.csv").read_text().splitlines()) == 1 + FRAMES


def test_an_audit_retrains_the_backbones_blocks_from_the_caches_weights(home: Path, tmp_path: Path) -> None:
    """The heads are trained again in a scratch folder, which has no weights of its own."""
    recipe = home / "recipes" / "train-heads.toml"
    recipe.write_text(f'heads = ["frame"]\ntaps = ["{MAP}", "{POOLED}"]\nfinetune_tap = "{MAP}"\n'
                      "folds = 2\nepochs = 1\n"
                      "ensemble = 1\n")
    try:
        assert call(home, "train-heads").exit_code == 0
        done = call(home, "audit", "--full", "--out", tmp_path / "audit.json")
    finally:
        recipe.unlink()
    checks = {check["where"] for check in json.loads((tmp_path / "audit.json").read_text())["checks"]}
    assert done.exit_code in (0, 1) and "shuffled labels, heads and stacker" in checks, done.output


def test_a_tail_on_a_tap_that_is_not_read_is_refused(home: Path) -> None:
    for typed, said in ((("--finetune-tap", MAP, "--taps", POOLED), "not among the taps"),
                        (("--finetune-tap", "repeat_1-map", "--taps", f"{MAP},{POOLED}"), "not among the taps"),
                        (("--finetune-tap", POOLED, "--taps", f"{MAP},{POOLED}"), "cannot be fine-tuned from tap"),
                        (("--finetune-tap", MAP, "--taps", f"{MAP},{POOLED}", "--heads", "paper-gru"),
                         "no head uses finetune_tap")):
        done = call(home, "train-heads", *SMALL, "--epochs", "1", *typed)
        assert done.exit_code == 2 and said in done.stderr, done.stderr


LONG = (*SMALL, "--heads", "frame,gru", "--taps", POOLED, "--epochs", "30", "--patience", "0", "--threads", "2")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_ends_the_command_soon_and_keeps_what_is_finished(runner: Runner, home: Path,
                                                                 number: signal.Signals) -> None:
    """Ctrl-C goes to all processes of a terminal, SIGTERM to the command alone; then the same command goes on."""
    seed = ("--seed", int(number))
    before = heads_of(home)
    run = runner.start(*words(home, "train-heads", *LONG, *seed), cwd=home, small=False, session=True)
    while not (new := heads_of(home) - before):
        assert run.alive(), run.err()
        time.sleep(.02)
    sent = time.monotonic()
    (os.killpg if number == signal.SIGINT else os.kill)(run.pid, number)
    assert run.wait(60).code == 130, run.err()
    took_s = time.monotonic() - sent
    assert "run the same command again" in run.err()
    assert took_s < 10, "it waited for what was under way"
    kept = heads_of(home) - before
    assert new <= kept and len(kept) < 8, "some were finished, not all"
    stamps = {path: path.stat().st_mtime_ns for path in kept}
    assert call(home, "train-heads", *LONG, *seed).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == stamps, "what was there is not trained again"
    assert len(heads_of(home) - before) == 8
    assert not list((home / "cache" / "heads").rglob(".tmp-*")), "what the killed ones were writing is gone"


def test_info_tells_the_cost_before_anything_is_extracted(home: Path, tmp_path: Path) -> None:
    """By the recipe of `extract`: bytes by the layout, and time where a rate is known."""
    (tmp_path / "extract.toml").write_text(f'taps = ["{POOLED}", "repeat_1-3x3"]\n')
    places = ["--cache", str(tmp_path / "cache"), "--stages", str(tmp_path)]
    typed = words(home, "info", "--json")
    ahead = CliRunner().invoke(main, [*places, *typed[typed.index("info"):]], catch_exceptions=False)
    said = json.loads(ahead.stdout)
    assert said["store"] is None and said["cost"]["frames"] == 9 * FRAMES
    assert said["cost"]["bytes_a_frame"] == 2 * (256 + 9 * 256) + 9 * 8
    assert said["cost"]["bytes"] == 9 * FRAMES * said["cost"]["bytes_a_frame"]
    told = CliRunner().invoke(main, [*places, *typed[typed.index("info"):-1]], catch_exceptions=False).stdout
    assert "nothing was extracted yet" in told and "5,192 bytes a frame" in told and "fercache check" in told
    held = json.loads(call(home, "info", "--json").stdout)
    assert held["bytes_a_frame"] == 2 * (1792 * 9 + 256) and held["frames"] == 9 * FRAMES


def test_the_papers_protocol_as_its_recipes_have_it(home: Path, tmp_path: Path) -> None:
    """The commands of the README, quicker by one epoch and two folds; every other setting is the recipe's."""
    recipes = Path(__file__).resolve().parents[1] / "stages" / "mao2021"

    def typed(command: str, *more: object) -> Result:
        line = words(home, command, *more)
        line[line.index("--stages") + 1] = str(recipes)
        return CliRunner().invoke(main, line, catch_exceptions=False)

    assert typed("extract").exit_code == 0
    done = typed("train-heads", "--epochs", "1", "--folds", "2")
    assert done.exit_code == 0, done.output
    assert typed("stack", "--out", tmp_path / "preds.csv").exit_code == 0
    book = book_of(home)
    assert book.heads == ("paper-frame", "paper-gru", "paper-transformer")
    for record in book.provenance.records:
        settings = record.settings
        assert [part.tap for part in record.input_taps] == ["block8"] and record.member == 0
        assert (settings.loss, settings.label_smoothing, settings.temporal_input) == ("plain", 0, False)
        if record.head != "paper-frame":
            assert (settings.window_s, settings.width, settings.lr, settings.batch) == (.3, 768, 1e-3, 96)
    metrics = json.loads((tmp_path / "preds.metrics.json").read_text())
    assert metrics["final"]["column"] == "mean"
