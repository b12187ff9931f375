"""Predictions scored on a set's labels: the same figures as by hand, also where the set has other classes."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from predsfile import EIGHT, SEVEN, draw, write
from rich.console import Console
from sklearn.metrics import balanced_accuracy_score, f1_score

from fercache.config import ScoreConfig
from fercache.data.base import Dataset, Split, Trial
from fercache.errors import InputError
from fercache.results import score
from fercache.results.io import PredictionsFile

CONFIG = ScoreConfig(bootstrap=200)
LENGTHS = {f"v{i:02d}": 40 + i for i in range(12)}


def trial(name: str, split: Split = "train", labels: Any = None, clip_label: int = -1) -> Trial:
    return Trial(name=name, path=Path(name), kind="crops", parent=name, group=name[:3], split=split, labels=labels,
                 clip_label=clip_label)


def dataset(classes: tuple[str, ...], trials: list[Trial], metric: str = "macro_f1") -> Dataset:
    return Dataset(name="other", layout="table", classes=classes, trials=tuple(trials), metric=metric)


def labelled(classes: int, seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.integers(-1, classes, many).astype(np.int16) for name, many in LENGTHS.items()}


def test_a_second_figure_leaves_out_copies_of_photos_in_other_splits(tmp_path: Path) -> None:
    made, labels = draw(LENGTHS, SEVEN), labelled(7)
    preds = PredictionsFile(write(tmp_path / "preds.csv", made, SEVEN))
    trials = [replace(trial(name, labels=values), group=name, copied=name > "v09") for name, values in labels.items()]
    report = score.score_file(dataset(SEVEN, trials), preds, CONFIG)
    truth = np.concatenate([labels[name] for name in labels if name <= "v09"])
    predicted = np.concatenate([made[name].argmax(1) for name in labels if name <= "v09"])
    second = report["without_copies"]
    assert second["accuracy"] == pytest.approx((truth == predicted)[truth >= 0].mean()) != report["all"]["accuracy"]
    assert second["intervals"]["macro_f1"][0] < second["macro_f1"]
    copies = sum(int((labels[name] >= 0).sum()) for name in labels if name > "v09")
    screen = Console(width=80, file=io.StringIO(), record=True)
    screen.print(score.score_table_lines(report))
    assert f"without {copies} copies" in screen.export_text()
    unmarked = [replace(one, copied=False) for one in trials]
    assert "without_copies" not in score.score_file(dataset(SEVEN, unmarked), preds, CONFIG)
    every = [replace(one, copied=True) for one in trials]
    assert "without_copies" not in score.score_file(dataset(SEVEN, every), preds, CONFIG)


def test_the_figures_are_scikit_learns(tmp_path: Path) -> None:
    made, labels = draw(LENGTHS, SEVEN), labelled(7)
    given = PredictionsFile(write(tmp_path / "preds.csv", made, SEVEN))
    found = score.score_file(dataset(SEVEN, [trial(name, labels=values) for name, values in labels.items()]), given,
                             CONFIG)
    truth = np.concatenate(list(labels.values()))
    said = np.concatenate([made[name].argmax(1) for name in labels])
    known = truth >= 0
    whole = found["all"]
    assert whole["macro_f1"] == pytest.approx(f1_score(truth[known], said[known], average="macro", labels=range(7)))
    assert whole["accuracy"] == whole["war"] == pytest.approx((truth == said)[known].mean())
    assert whole["uar"] == pytest.approx(balanced_accuracy_score(truth[known], said[known]))
    assert whole["frames"] == known.sum() and whole["groups"] == 12 and found["shared"]["macro_f1"] == whole["macro_f1"]
    assert whole["intervals"]["macro_f1"][0] < whole["macro_f1"] < whole["intervals"]["macro_f1"][1]
    recall = [(said[truth == c] == c).mean() for c in range(7)]
    np.testing.assert_allclose(list(whole["recall"].values()), recall)
    assert not score.score_warnings(found)


def test_seven_classes_on_a_set_of_eight(tmp_path: Path) -> None:
    """Other is never predicted: its F1 is 0 in the full figure, and the shared one leaves its rows out."""
    made, labels = draw(LENGTHS, SEVEN), labelled(8)
    given = PredictionsFile(write(tmp_path / "preds.csv", made, SEVEN))
    found = score.score_file(dataset(EIGHT, [trial(name, labels=values) for name, values in labels.items()]), given,
                             CONFIG)
    truth = np.concatenate(list(labels.values()))
    said = np.concatenate([made[name].argmax(1) for name in labels])
    known, shared = truth >= 0, (truth >= 0) & (truth < 7)
    assert found["never"] == ["Other"] and not found["lost"] and found["all"]["f1"]["Other"] == 0
    assert found["all"]["macro_f1"] == pytest.approx(f1_score(truth[known], said[known], average="macro",
                                                              labels=range(8), zero_division=0))
    assert found["shared"]["macro_f1"] == pytest.approx(f1_score(truth[shared], said[shared], average="macro",
                                                                 labels=range(7)))
    assert found["shared"]["frames"] == shared.sum() and "Other" not in found["shared"]["f1"]


def test_another_order_and_a_lost_class(tmp_path: Path) -> None:
    ours = ("Calm", "Happy", "Angry", "Sad")
    made = draw(LENGTHS, ours)
    theirs = ("Sadness", "Anger", "Happiness")
    labels = labelled(3)
    given = PredictionsFile(write(tmp_path / "preds.csv", made, ours))
    data = dataset(theirs, [trial(name, labels=values) for name, values in labels.items()])
    found = score.score_file(data, given, CONFIG)
    truth = np.concatenate(list(labels.values()))
    said = np.concatenate([made[name][:, [3, 2, 1]].argmax(1) for name in labels])
    assert found["lost"] == ["Calm"] and found["all"]["accuracy"] == pytest.approx((truth == said)[truth >= 0].mean())
    other = score.score_file(data, given, replace(CONFIG, map="Calm=Sadness"))
    assert not other["lost"] and other["all"]["accuracy"] != found["all"]["accuracy"]


def test_clips_are_scored_as_clips(tmp_path: Path) -> None:
    made = draw(LENGTHS, SEVEN)
    given = PredictionsFile(write(tmp_path / "preds.csv", made, SEVEN))
    truth = dict(zip(LENGTHS, np.random.default_rng(3).integers(0, 7, 12).tolist(), strict=True))
    data = dataset(SEVEN, [trial(name, clip_label=label) for name, label in truth.items()], metric="uar")
    found = score.score_file(data, given, CONFIG)
    said = {name: int(values.mean(0).argmax()) for name, values in made.items()}
    assert found["level"] == "clip" and found["all"]["frames"] == 12
    assert found["all"]["war"] == pytest.approx(np.mean([said[name] == truth[name] for name in truth]))
    assert found["all"]["official"] == found["all"]["uar"]
    assert score.score_file(data, given, replace(CONFIG, level="frame"))["all"]["frames"] == sum(LENGTHS.values())


def test_splits_and_what_has_no_prediction(tmp_path: Path) -> None:
    made, labels = draw(LENGTHS, SEVEN), labelled(7)
    short = {name: values[:30] if name == "v03" else values for name, values in made.items() if name != "v05"}
    given = PredictionsFile(write(tmp_path / "preds.csv", short, SEVEN))
    data = dataset(SEVEN, [trial(name, "train" if name < "v06" else "validation", values)
                           for name, values in labels.items()])
    found = score.score_file(data, given, CONFIG)
    lost = int((labels["v03"][30:] >= 0).sum())
    assert found["trials_without_prediction"] == ["v05"] and found["unscored_frames"] == lost > 0
    assert score.score_warnings(found)[0].endswith("no prediction: v05") and str(lost) in score.score_warnings(found)[1]
    held = score.score_file(data, given, replace(CONFIG, split="validation"))
    assert held["trials"] == 6 and not score.score_warnings(held) and held["all"]["why_none"]
    with pytest.raises(InputError, match="no labelled trial in the split test"):
        score.score_file(data, given, replace(CONFIG, split="test"))
    with pytest.raises(InputError, match="none of the 1 labelled"):
        score.score_file(dataset(SEVEN, [trial("x", labels=labels["v01"])]), given, CONFIG)
    with pytest.raises(InputError, match="--level frame"):
        score.score_file(data, given, replace(CONFIG, level="clip"))


def test_the_table_fits_eighty_columns(tmp_path: Path) -> None:
    given = PredictionsFile(write(tmp_path / "preds.csv", draw(LENGTHS, SEVEN), SEVEN))
    found = score.score_file(dataset(EIGHT, [trial(name, labels=values) for name, values in labelled(8).items()]),
                             given,
                      CONFIG)
    screen = Console(width=80, file=io.StringIO(), record=True)
    screen.print(score.score_table_lines(found))
    text = screen.export_text()
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text
    for word in ("macro F1", "UAR", "WAR", "the 7 shared ones", "never predicted: Other", "Happiness", "12 groups"):
        assert word in text


def test_the_command(tmp_path: Path) -> None:
    made = draw({"a": 20, "b": 15}, SEVEN)
    write(tmp_path / "preds.csv", made, SEVEN)
    rows = [f"{name},{frame},{SEVEN[label]}" for name, values in made.items()
            for frame, label in enumerate(values.argmax(1), 1)]
    (tmp_path / "labels.csv").write_text("clip,frame,label\n" + "\n".join(rows) + "\n")
    for name in made:
        (tmp_path / name).mkdir()
        (tmp_path / name / "00001.jpg").write_bytes(b"")
    (tmp_path / "clips.csv").write_text("clip,path\na,a\nb,b\n")
    words = [sys.executable, "-m", "fercache", "score", "--clips", "clips.csv", "--labels", "labels.csv"]
    done = subprocess.run([*words, "--json"], cwd=tmp_path, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["all"]["accuracy"] == 1 and found["all"]["frames"] == 35
    done = subprocess.run([*words, "--map", "Fear"], cwd=tmp_path, text=True, capture_output=True, check=False)
    assert done.returncode == 2 and "not a pair" in done.stderr and "Traceback" not in done.stderr
