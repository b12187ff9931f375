"""Timelines: what is drawn is what stands in the table, and bad tables are told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fercache.data.base import Dataset
from fercache.errors import InputError
from fercache.results import io
from fercache.store.embedding_store import EmbeddingStore
from fercache.viz import timeline

HEAD = "clip,frame,time_s,valid,label,prediction,p_Neutral,p_Anger\n"
ROWS = "".join(f"a $b$,{i + 1},{i / 30:.6f},{int(i % 7 > 1)},{'' if i < 5 else 1},{i % 2},0.250000,0.750000\n"
               for i in range(60))


def test_a_picture_a_clip(tmp_path: Path) -> None:
    (tmp_path / "preds.csv").write_text(HEAD + ROWS)
    store = EmbeddingStore.create(tmp_path / "s.zarr", {}, {"block8": (4,)})
    empty = Dataset(name="d", layout="table", classes=("Neutral", "Anger"), trials=())
    made = timeline.draw_timelines(tmp_path / "preds.csv", empty, store, tmp_path / "out")
    assert [path.parent for path in made] == [tmp_path / "out"]
    picture = np.asarray(Image.open(made[0]).convert("RGB"))
    anger = (213, 94, 0)
    assert (picture == anger).all(-1).sum() > 2000, "the truth strip and the probability line of Anger"


def test_a_picture_is_drawn_again_only_for_other_rows(tmp_path: Path) -> None:
    (tmp_path / "preds.csv").write_text(HEAD + ROWS + ROWS.replace("a $b$", "a /b/"))
    store = EmbeddingStore.create(tmp_path / "s.zarr", {}, {"block8": (4,)})
    empty = Dataset(name="d", layout="table", classes=("Neutral", "Anger"), trials=())

    def inodes() -> list[int]:
        made = timeline.draw_timelines(tmp_path / "preds.csv", empty, store, tmp_path / "out")
        assert len(set(made)) == 2, "names that differ in odd letters only do not meet"
        return [path.stat().st_ino for path in made]

    first = inodes()
    assert inodes() == first
    other = ROWS.replace("a $b$", "a /b/").replace("0.25", "0.24").replace("0.75", "0.76")
    (tmp_path / "preds.csv").write_text(HEAD + ROWS + other)
    again = inodes()
    assert again[0] == first[0] and again[1] != first[1]
    next((tmp_path / "out").glob("*.png")).write_bytes(b"torn")
    assert len(set(inodes()) - set(again)) == 1


def test_rows_are_read_as_they_stand(tmp_path: Path) -> None:
    (tmp_path / "preds.csv").write_text(HEAD + ROWS)
    table = io.PredictionsFile(tmp_path / "preds.csv")
    classes, clips = table.classes, {clip.name: clip for clip in table.clips()}
    rows = clips["a $b$"]
    assert classes == ("Neutral", "Anger")
    assert rows.label[:6].tolist() == [-1] * 5 + [1]
    assert rows.label_pred[:3].tolist() == [0, 1, 0]
    assert rows.valid[:3].tolist() == [False, False, True]
    assert rows.probs[0].tolist() == [.25, .75]


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "\xff\xfe"])
def test_a_wrong_table_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "preds.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError):
        list(io.PredictionsFile(tmp_path / "preds.csv").clips())


def test_an_absent_table_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="predictions not found"):
        list(io.PredictionsFile(tmp_path / "preds.csv").clips())


def test_names_of_any_length_become_files_that_do_not_meet(tmp_path: Path) -> None:
    clips = ["顔" * 84, "顔" * 140, "顔" * 140 + "x", "x" * 150, "short"]
    names = [io.file_name(clip, ".png") for clip in clips]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    assert len(set(names)) == len(clips)
    assert names[-2:] == ["x" * 150 + ".png", "short.png"]
    assert all(name.startswith("顔") for name in names[:3]), "what was cut still begins as the clip's name does"
