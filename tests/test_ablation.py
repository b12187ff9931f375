"""The table of choices: rows as data, out of fold only, paired, resumable; the current heads stay what they are."""

from __future__ import annotations

import csv
import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from streams import CLASSES, write_set

from fercache import metrics
from fercache.cli import main
from fercache.config import AblationConfig, TrainConfig
from fercache.diagnostics import ablation
from fercache.errors import FercacheError, InputError

TAPS = "conv2d_4b,repeat_1"
BASE = TrainConfig()


def test_rows_are_changes_of_the_recipe() -> None:
    assert ablation.parse_rows(["taps=block8+repeat_2;seed=3", "seed=0"], BASE) == {
        "taps=block8+repeat_2;seed=3": {"taps": ("block8", "repeat_2"), "seed": 3}}, "seed 0 is the default"
    for row, said in (("tap=block8", "did you mean 'taps'"), ("seed=x", "cannot be 'x'"), ("seed", "names no value"),
                      ("folds=1", "below")):
        with pytest.raises(InputError, match=said):
            ablation.parse_rows([row], BASE)


def test_every_switch_is_offered() -> None:
    offered = ablation.parse_rows(ablation.offered_rows(BASE), BASE)
    tried = {key for changed in offered.values() for key in changed}
    for entry in fields(TrainConfig):
        one_of_several = entry.metadata["choices"] and isinstance(getattr(BASE, entry.name), str)
        if one_of_several and entry.metadata["numbers"] and entry.name not in ablation.NO_ROW:
            others = set(entry.metadata["choices"]) - {getattr(BASE, entry.name), ""}
            assert others <= {changed.get(entry.name) for changed in offered.values()}, entry.name
    assert {"taps", "loss", "normalize", "window_s", "augmentations"} <= tried
    assert set(ablation.STEPS) <= {entry.name for entry in fields(TrainConfig)}
    assert {"taps": ("embedding",)} in offered.values()


def test_rows_that_leave_every_head_as_it_is_are_not_trained() -> None:
    for changed, left in (({"window_s": 8.0}, True), ({"label_smoothing": 0.05}, True), ({"loss": "weighted"}, False),
                          ({"loss": "focal"}, False), ({"window_s": 2.0}, False), ({"taps": ("block8",)}, False),
                          ({"ensemble": 1}, False)):
        assert ablation.has_no_effect(changed, BASE) == left, changed
    assert ablation.has_no_effect({"window_s": 2.0}, replace(BASE, heads=("frame",))), "a frame has no window"


def test_figures_are_paired_over_groups() -> None:
    """A column that errs on the same rows as the default but for a few is surely better; the interval is the pair's."""
    rng = np.random.default_rng(0)
    usual = [rng.integers(0, 40, (20, 3, 3)) for _ in range(2)]
    better = [m + 6 * np.eye(3, dtype=np.int64) for m in usual]
    sampler = metrics.Resampler(20, 400, 0)
    same, figure = (ablation.figure_of(ours, usual, sampler) for ours in (usual, better))
    assert same.difference == 0 and same.difference_interval == (0, 0) and not same.sure
    assert figure.sure and figure.difference_interval is not None and figure.interval is not None
    low, high = figure.difference_interval
    assert low <= figure.difference <= high and high - low < .5 * (figure.interval[1] - figure.interval[0])
    each = [float(metrics.macro_f1(m.sum(0))) for m in better]
    assert figure.macro_f1 == pytest.approx(np.mean(each)) and figure.spread == pytest.approx(np.std(each, ddof=1))
    few = ablation.figure_of(better, usual, metrics.Resampler(5, 400, 0))
    assert few.interval is None and few.difference_interval is None and not few.sure


@pytest.fixture(scope="module")
def home(linked: Path, tiny_cnn: None) -> Path:
    """A folder with a set of nine clips and its features."""
    (linked / "recipes").mkdir()
    write_set(linked / "set", train=9, test=2, frames=24)
    assert call(linked, "extract", "--taps", TAPS).exit_code == 0
    return linked


def call(folder: Path, command: str, *words: object) -> Result:
    flags = ["--clips", folder / "set" / "clips.csv", "--labels", folder / "set" / "labels.csv", "--classes",
             ",".join(CLASSES)]
    return CliRunner().invoke(main, ["--cache", str(folder / "cache"), "--stages", str(folder / "recipes"), command,
                                     *map(str, [*flags, *words])], catch_exceptions=False)


TRAINING = ("--heads", "frame", "--taps", TAPS, "--folds", "2", "--ensemble", "1")
BASICS = (*TRAINING, "--bootstrap", "50", "--repeats", "2")


def test_the_table(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(home, "train-heads", *TRAINING).exit_code == 0
    pointer, = (home / "cache" / "logits").glob("*/current.json")
    before = pointer.read_bytes()
    words = ("ablation", *BASICS, "--rows", "taps=conv2d_4b,taps=block8,folds=3,augmentations=off", "--out",
             tmp_path / "t.csv")
    done = call(home, *words)
    assert done.exit_code == 0, done.output
    assert pointer.read_bytes() == before, "the current heads are still the user's"
    assert max(len(line) for line in done.stdout.splitlines()[:-1]) <= 80
    assert "lacks block8" in " ".join(done.stdout.split()) and "on test (shown, never used" in done.stdout
    with (tmp_path / "t.csv").open() as handle:
        lines = list(csv.DictReader(handle))
    assert [(row["row"], row["column"]) for row in lines] == [
        ("default", "frame"), ("default", "mean"), ("taps=conv2d_4b", "frame"), ("taps=conv2d_4b", "mean"),
        ("taps=block8", ""), ("folds=3", "frame"), ("folds=3", "mean"), ("augmentations=off", "")]
    assert lines[0]["difference"] == "0.000000" and lines[4]["skipped"] and float(lines[2]["low"]) > 0
    assert [row["bytes_a_frame"] for row in lines[::2]] == ["1024", "512", "", "1024"]
    said = json.loads((tmp_path / "t.json").read_text())
    assert set(said["reported"]) == {"test"} and said["seeds"] == 2 and said["groups"] == 9
    assert len(said["rows"][0]["logits_files"]) == 2

    def none(*args: object) -> None:
        raise AssertionError("trained again")

    print(done.stdout)
    monkeypatch.setattr("fercache.training.train._train", none)
    assert call(home, *words).stdout == done.stdout


def test_labels_of_reported_splits_have_no_say(home: Path, tmp_path: Path) -> None:
    """Not one figure of the table moves when every label of the test split is another."""
    words = ("ablation", *BASICS[:-1], "1", "--rows", "taps=conv2d_4b")
    first = call(home, *words, "--out", tmp_path / "a.csv")
    labels = home / "set" / "labels.csv"
    text = labels.read_text()
    try:
        labels.write_text("\n".join(line.rsplit(",", 1)[0] + ",Neutral" if line.startswith(("s0-09", "s0-10")) else line
                                    for line in text.splitlines()) + "\n")
        second = call(home, *words, "--out", tmp_path / "b.csv")
    finally:
        labels.write_text(text)
    assert first.exit_code == second.exit_code == 0
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    shown = [json.loads((tmp_path / name).read_text())["reported"] for name in ("a.json", "b.json")]
    assert shown[0] != shown[1]


def test_a_row_that_fails_does_not_stop_the_others(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fercache.training import train

    real = train.train_heads

    def fails(dataset: object, store: object, config: TrainConfig, *more: object, **named: object) -> object:
        if config.taps == ("repeat_1",):
            raise FercacheError("a training process was killed")
        return real(dataset, store, config, *more, **named)

    monkeypatch.setattr(train, "train_heads", fails)
    done = call(home, "ablation", *BASICS[:-1], "1", "--rows", "taps=repeat_1,taps=conv2d_4b", "--out",
                tmp_path / "t.csv")
    assert done.exit_code == 1
    made = json.loads((tmp_path / "t.json").read_text())["rows"]
    assert made[1]["failed"] and "killed" in made[1]["skipped"] and made[2]["figures"]


def test_quick_and_wrong_calls(home: Path, tmp_path: Path) -> None:
    base, config = ablation.quick_config(replace(BASE, folds=5), AblationConfig())
    assert (base.folds, config.repeats) == (3, 1)
    assert "end --out in .csv" in call(home, "ablation", *BASICS, "--out", "t.txt").stderr
    done = call(home, "ablation", "--rows", "tapes=x", "--out", tmp_path / "t.csv")
    assert done.exit_code == 2 and "did you mean 'taps'" in done.stderr
