"""Prediction tables: what is written is read again, and a damaged row is refused with its line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from books import simulate
from predsfile import EIGHT, SEVEN, draw, write
from pyarrow import parquet, table

from fercache.config import StackConfig
from fercache.data import tables
from fercache.errors import InputError
from fercache.results import io
from fercache.stacking import stack

LENGTHS = {"a": 30, "b,2": 20, 'c "x"': 1}


@pytest.mark.parametrize("ending", [".csv", ".csv.gz"])
def test_written_table_is_read(tmp_path: Path, ending: str) -> None:
    made = draw(LENGTHS)
    given = io.PredictionsFile(write(tmp_path / f"p{ending}", made, faceless={"a": [2, 3]}))
    assert given.classes == EIGHT
    for _ in range(2):
        found = {clip.name: clip for clip in given.clips()}
        assert sorted(found) == sorted(LENGTHS)
        for name, clip in found.items():
            np.testing.assert_allclose(clip.probs, made[name], atol=1e-9)
            np.testing.assert_array_equal(clip.label_pred, made[name].argmax(1))
            np.testing.assert_array_equal(clip.frame, np.arange(1, LENGTHS[name] + 1))
            np.testing.assert_allclose(clip.time_s, (clip.frame - 1) / 30, atol=1e-6)
            assert (clip.label == -1).all()
        assert list(np.flatnonzero(~found["a"].valid)) == [1, 2]


def test_batch_size_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "p.csv", draw(LENGTHS))
    whole = list(io.PredictionsFile(path).clips())
    monkeypatch.setattr(tables, "BLOCK_BYTES", 300)
    for one, other in zip(whole, io.PredictionsFile(path).clips(), strict=True):
        np.testing.assert_array_equal(one.probs, other.probs)
        np.testing.assert_array_equal(one.frame, other.frame)


def test_what_the_stack_writes_is_read(tmp_path: Path) -> None:
    """The writer and the reader use one format."""
    found = stack.run_stack(simulate(groups=5, frames=60), StackConfig(threads=1, bootstrap=0), tmp_path)
    book = found.oof
    given = io.PredictionsFile(found.save(tmp_path / "preds.csv")[0])
    assert given.classes == book.classes
    clips = list(given.clips())
    np.testing.assert_array_equal(np.concatenate([clip.label_pred for clip in clips]), found.ppm.argmax(1))
    np.testing.assert_array_equal(np.concatenate([clip.valid for clip in clips]), book.valid)
    np.testing.assert_array_equal(np.concatenate([clip.label for clip in clips]), book.label)
    np.testing.assert_allclose(np.concatenate([clip.probs for clip in clips]), found.ppm / 1e6, atol=1e-9)


def test_parquet_of_other_types_is_read(tmp_path: Path) -> None:
    path = tmp_path / "preds.parquet"
    made = draw({"a": 40}, SEVEN)["a"]
    parquet.write_table(table({"clip": ["a"] * 40, "frame": np.arange(1, 41, dtype=np.int32), "time_s": np.arange(40.),
                               "valid": np.arange(40) > 3, "label": [None] * 40, "prediction": made.argmax(1),
                               **{f"p_{name}": made[:, i] for i, name in enumerate(SEVEN)}}), path)
    clip = next(io.PredictionsFile(path).clips())
    np.testing.assert_allclose(clip.probs, made)
    assert list(np.flatnonzero(~clip.valid)) == [0, 1, 2, 3] and (clip.label == -1).all()


@pytest.mark.parametrize(("old", "new", "problem"), [
    ("clip,frame", "clip,number", "columns frame are missing"), ("p_", "q_", "p_<Class>"),
    ("p_Other", "Other", "not in 0 to 6"),
    ("p_Anger", "p_Neutral", "duplicate"), ("a,7,", "a,9,", "line 9: its frame"),
    ("a,7,", "a,x,", "clip 'a', from line 2"),
    ("a,1,", "a,0,", "line 2: its frame"), ("a,7,", "z,7,", "line 9: clip 'a' is in two places"),
    ("a,7,0.200000,1,,", "a,7,0.200000,1,8,", "line 8: its label"), ("a,7,0.200000,1,,", "a,7,0.200000,1,,1", "line 8"),
    ("a,7,0.200000,1,,", "a,7,0.200000,1,", "line 8 has 13 values"), ("a,3,", '"a,3,', "line 4 has 1 values"),
])
def test_damage_is_refused_with_its_line(tmp_path: Path, old: str, new: str, problem: str) -> None:
    path = write(tmp_path / "p.csv", draw({"a": 30}))
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1) if old != "p_" else text.replace(old, new))
    with pytest.raises(InputError) as caught:
        list(io.PredictionsFile(path).clips())
    assert problem in str(caught.value) and "next: " in str(caught.value)


def test_nan_probability_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", {"a": np.eye(8)})
    path.write_text(path.read_text().replace("1.000000", "nan", 1))
    with pytest.raises(InputError, match="probabilities"):
        list(io.PredictionsFile(path).clips())


@pytest.mark.parametrize(("name", "data", "problem"), [
    ("gone.csv", None, "predictions not found"), ("p.txt", b"x", "unknown file format"), ("p.csv", b"", "empty"),
    ("p.csv", b"\xff\xfe\0", "not readable"), ("p.csv.gz", b"no gzip", "not readable")])
def test_unreadable_file_is_refused(tmp_path: Path, name: str, data: bytes | None, problem: str) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=problem):
        io.PredictionsFile(tmp_path / name)


def test_truncated_gzip_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv.gz", draw({"a": 3000}))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(InputError, match="not readable"):
        list(io.PredictionsFile(path).clips())


def test_a_clip_is_the_mean_of_its_frames_with_a_face(tmp_path: Path) -> None:
    made = draw({"a": 9, "b": 4})
    path = write(tmp_path / "p.csv", made, faceless={"a": [1, 2, 3], "b": [1, 2, 3, 4]})
    a, b = io.PredictionsFile(path).clips()
    np.testing.assert_allclose(a.pooled(a.probs), made["a"][3:].mean(0))
    np.testing.assert_allclose(b.pooled(b.probs), made["b"].mean(0))
