"""Logits from elsewhere: what a table says reaches the stack, what it declares is kept, and in-sample is refused."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from books import CLASSES, predict_new, simulate
from click.testing import CliRunner
from scipy.special import softmax

from fercache import logits_import
from fercache.cli import main
from fercache.config import LogitsConfig, StackConfig
from fercache.errors import InputError
from fercache.oof import OofLogits
from fercache.stacking import inputs, stack

CONFIG = StackConfig(threads=1, bootstrap=50)


def table_of(book: OofLogits, path: Path, head: str, prefix: str = "p_", **columns: Any) -> Path:
    """Write what a head says of a book as a table; `columns`: name -> value by row."""
    said = book.logits[head] if prefix == "logit_" else softmax(book.logits[head], axis=-1)
    clip = np.repeat(book.trials, np.diff(book.offsets))
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["clip", "frame", *columns, *(prefix + name for name in book.classes)])
        for row in np.flatnonzero(book.valid).tolist():
            out.writerow([clip[row], book.index[row], *(values[row] for values in columns.values()), *said[row]])
    return path


def bring(table: Path, cache: Path, name: str = "other", **more: Any) -> OofLogits:
    return logits_import.import_logits(name, LogitsConfig(**{"table": str(table), "provenance": "held-out", **more}),
                                       "d",
                             cache)[1]


@pytest.mark.parametrize("prefix", ["p_", "logit_", "a_"])
def test_a_table_is_the_head_it_was_written_from(tmp_path: Path, prefix: str) -> None:
    book = simulate(groups=4, validation=2, frames=40)
    split = book.per_row(np.array(book.split))
    table = table_of(book, tmp_path / "t.csv", "gru", prefix, label=book.label, split=split)
    made = bring(table, tmp_path)
    assert made.classes == CLASSES and made.declared == {"other": "held-out"}
    joined = inputs.merge_logits(book, [made])
    seen = book.valid
    np.testing.assert_allclose(softmax(joined.logits["other"][seen], axis=-1),
                               softmax(book.logits["gru"][seen], axis=-1), atol=1e-5)
    even = softmax(joined.logits["other"][~seen], axis=-1)
    np.testing.assert_allclose(even, 1 / 7, atol=1e-6)
    assert [made.fold[i] >= 0 for i in range(6)] == [True] * 4 + [False] * 2


def test_a_book_of_its_own_is_stacked_without_any_extraction(tmp_path: Path) -> None:
    book = simulate(groups=10, validation=3, frames=90)
    rows = {"label": book.label, "split": book.per_row(np.array(book.split))}
    bring(table_of(book, tmp_path / "t.csv", "gru", **rows), tmp_path)
    found = stack.run_stack(logits_import.load(tmp_path, "d", ["other"])[0], CONFIG, tmp_path)
    said = found.report.splits["validation"].all_frames
    assert said["smoothed-mean"].figures["macro_f1"] > said["other"].figures["macro_f1"]


@pytest.mark.parametrize(("text", "says"), [
    ("clip,frame,p_a\nx,1,1\n", "not a table of predictions"),
    ("clip,frame,p_a,q_b\nx,1,1,0\n", "not a table of predictions"),
    ("clip,frame,p_a,p_b\nx,1,.7,.7\n", "sum to 1.4"),
    ("clip,frame,p_a,p_b\nx,1,1.2,-.2\n", "below 0"),
    ("clip,frame,p_a,p_b\nx,1,nan,1\n", "not a number"),
    ("clip,frame,p_a,p_b\nx,1,.5,.5\nx,1,.5,.5\n", "twice"),
    ("clip,frame,p_a,p_b\nx,0,.5,.5\n", "count from 1"),
    ("clip,frame,p_a,p_b\nx,one,.5,.5\n", "line 2"),
    ("clip,frame,p_a,p_b\nx,1,.5\n", "line 2"),
    ("clip,frame,label,p_a,p_b\nx,1,c,.5,.5\n", "label 'c'"),
    ("clip,frame,split,p_a,p_b\nx,1,evil,.5,.5\n", "split 'evil'"),
    ("clip,frame,p_a,p_b\n", "no row"), ("", "is empty")])
def test_tables_that_are_none(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=says):
        bring(tmp_path / "t.csv", tmp_path)
    assert not list(tmp_path.rglob("*.h5"))


def test_sources_that_do_not_fit(tmp_path: Path) -> None:
    book = simulate(groups=3, frames=30)
    made = bring(table_of(book, tmp_path / "t.csv", "gru"), tmp_path)
    with pytest.raises(InputError, match="classes"):
        inputs.merge_logits(book, [replace(made, classes=("a", "b"))])
    with pytest.raises(InputError, match="no frame"):
        inputs.merge_logits(book, [replace(made, trials=("x", "y", "z"), clip=())])
    with pytest.raises(InputError, match="two sources have the name"):
        inputs.merge_logits(book, [made, made])
    with pytest.raises(InputError, match="imported logits 'none'"):
        logits_import.load(tmp_path, "d", ["none"])
    with pytest.raises(InputError, match="cannot name"):
        bring(tmp_path / "t.csv", tmp_path, "stack")


def test_in_sample_is_refused_left_out_and_flagged_for_good(tmp_path: Path) -> None:
    book = simulate(groups=10, validation=4, frames=90)
    right = replace(book, logits={**book.logits, "gru": (9 * np.eye(7)[book.label]).astype(np.float32)})
    made = bring(table_of(right, tmp_path / "t.csv", "gru"), tmp_path, provenance="in-sample")
    both = inputs.merge_logits(book, [made])
    with pytest.raises(InputError, match="in-sample: other"):
        stack.run_stack(both, replace(CONFIG, logits=("other",)), tmp_path)
    found = stack.run_stack(both, replace(CONFIG, logits=("other",), force=True), tmp_path)
    assert found.final in ("frame", "gru", "transformer"), "no column with the source in it may win"
    out = found.save(tmp_path / "p.csv")[1]
    flags = json.loads(out.read_text())["flags"]
    assert any(flag.startswith("other: ") for flag in flags) and any(flag.startswith("stack: ") for flag in flags)


def clip_table(path: Path, people: int = 2) -> Path:
    """Write frames of 40 clips with several people each; the second half of each class's clips is validation."""
    rng = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["split", "clip", "person", "frame", "label", "p_a", "p_b", "p_c"])
        for clip in range(40):
            label = clip % 3
            for person in range(people):
                for frame in range(1 + 7 * person, 1 + 7 * person + int(rng.integers(1, 12))):
                    p = softmax((np.eye(3)[label] + rng.normal(0, 1, 3))[None], axis=-1)[0]
                    out.writerow(["val" if clip > 25 else "train", f"c{clip:02d}", person, frame, label, *p])
    return path


def test_clip_level_pools_frames_and_people(tmp_path: Path) -> None:
    made = bring(clip_table(tmp_path / "t.csv"), tmp_path)
    assert len(made.trials) == 80 and len(set(made.clips)) == 40
    found = stack.run_stack(made, replace(CONFIG, level="clip", metric="uar"), tmp_path)
    with found.save(tmp_path / "p.csv")[0].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["clip"] for row in rows] == [f"c{i:02d}" for i in range(40)]
    mine = np.isin(np.repeat(made.clips, np.diff(made.offsets)), ["c07"]) & made.valid
    mean = softmax(made.logits["other"][mine], axis=-1).mean(0)
    said = softmax(found.oof.logits["other"], axis=-1)[7]
    np.testing.assert_allclose(said, mean, atol=1e-5)
    one = found.report.splits["validation"].all_frames["mean"]
    assert one.frames == one.groups == 14 and {"war", "uar"} <= set(one.figures)


def test_new_frames_get_what_a_clip_level_run_says_of_their_clip(tmp_path: Path) -> None:
    made = bring(clip_table(tmp_path / "t.csv"), tmp_path)
    found = stack.run_stack(made, replace(CONFIG, level="clip", select="smoothed-mean"), tmp_path)
    said = predict_new(found.folder, replace(made, fold=np.full_like(made.fold, -1)))
    assert said.shape == (len(made.label), 3)
    held = [i for i, split in enumerate(found.oof.split) if split == "validation"]
    for i in held:
        rows = np.repeat(np.array(made.clips) == found.oof.trials[i], np.diff(made.offsets))
        assert np.abs(said[rows] - found.ppm[i]).max() <= 2


def test_a_label_that_changes_is_no_clip_level_set(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="changes within"):
        stack.run_stack(simulate(groups=5, frames=200), replace(CONFIG, level="clip"), tmp_path)


def test_commands(tmp_path: Path) -> None:
    table, clips = clip_table(tmp_path / "t.csv"), tmp_path / "clips.csv"
    clips.write_text("clip,a_a,a_b,a_c\n" + "".join(f"c{i:02d},.2,.3,.5\n" for i in range(40)))
    base = ["--cache", str(tmp_path / "cache")]
    which = ["--dataset", "logits", "--name", "set"]

    def call(*words: str) -> Any:
        return CliRunner().invoke(main, [*base, *words, *which])

    assert call("logits", "import", "video", "--table", str(table), "--provenance", "held-out").exit_code == 0
    assert call("logits", "import", "audio", "--table", str(clips), "--provenance", "in-sample").exit_code == 0
    assert call("logits", "import", "audio", "--table", str(clips)).exit_code == 2
    stacked = ["stack", "--level", "clip", "--metric", "accuracy", "--threads", "1", "--out", str(tmp_path / "p.csv")]
    done = call(*stacked, "--logits", "video")
    assert done.exit_code == 0 and "final: " in done.output and "UAR" in done.output
    refused = call(*stacked, "--logits", "video,audio")
    assert refused.exit_code == 2 and "--force" in refused.output
    forced = call(*stacked, "--logits", "video,audio", "--force")
    assert forced.exit_code == 0 and "FLAG" in forced.output
    audited = call("audit", "--out", str(tmp_path / "a.json"), "--threads", "1")
    assert audited.exit_code == 1 and "audio: declared in-sample" in audited.output


def test_the_real_posteriors(shared: Path, tmp_path: Path) -> None:
    """Film clips with gaps and several people: fitted on train, the clips of the other split are better than the mean.
    """
    folder = shared / "data" / "afew_posteriors"
    if not (folder / "frames.csv").is_file():
        pytest.skip("no afew_posteriors in ../shared")
    made = bring(folder / "frames.csv", tmp_path, "video", fps=25.0)
    found = stack.run_stack(made, replace(CONFIG, level="clip", metric="accuracy", bootstrap=500), tmp_path)
    said = found.report.splits["validation"].all_frames
    assert said["mean"].groups == 194 and said["mean"].figures["accuracy"] == pytest.approx(.320, abs=.001)
    assert said[found.final].figures["accuracy"] >= .36
    audio = bring(folder / "clips_audio.csv", tmp_path, "audio", provenance="in-sample")
    with pytest.raises(InputError, match="audio"):
        stack.run_stack(inputs.merge_logits(made, [audio]), CONFIG, tmp_path)


@pytest.mark.parametrize(("column", "one", "other"), [("split", "train", "validation"), ("group", "anna", "bert"),
                                                      ("subject", "anna", "bert")])
def test_a_clip_in_two_splits_or_groups_is_refused_by_name(tmp_path: Path, column: str, one: str, other: str) -> None:
    table = tmp_path / "t.csv"
    table.write_text(f"clip,frame,{column},p_A,p_B\nvideo7,1,{one},.5,.5\nvideo8,1,{one},.5,.5\nvideo7,2,{other},.5,.5\n")
    done = CliRunner().invoke(main, ["logits", "import", "x", "--table", str(table), "--provenance", "held-out",
                                     "--dataset", "logits", "--cache", str(tmp_path / "cache")])
    assert done.exit_code == 2, done.output
    assert all(word in done.output for word in ("video7", one, other))
    assert not list(tmp_path.glob("cache/**/*.h5"))
