"""The book of logits: what is written is read, and a torn file is told."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from fercache.errors import InputError, StoreError
from fercache.oof import OofLogits, Provenance
from fercache.workspace import Workspace


def book() -> OofLogits:
    rng = np.random.default_rng(0)
    return OofLogits(dataset="d", classes=("a", "b"), metric="macro_f1", notice="ü", heads=("gru",),
                     trials=("v 1", "v\\2", "ß"), group=("g", "g", "h"), split=("train", "train", "test"),
                     fold=np.array([0, 0, -1], np.int16), offsets=np.array([0, 2, 5, 6]),
                     index=np.array([1, 2, 1, 2, 3, 1], np.int32), time_s=rng.random(6), valid=rng.random(6) > .5,
                     label=np.array([0, 1, -1, 1, 0, -1], np.int16),
                     logits={"gru": rng.normal(size=(6, 2)).astype(np.float32)},
                     provenance=Provenance(store="x", settings={"y": [1]}),
                     fingerprint="abc", epochs_fixed=True)


def test_round_trip(tmp_path: Path) -> None:
    made = book()
    made.save(tmp_path / "b.h5")
    read = OofLogits.load(tmp_path / "b.h5")
    for entry in fields(made):
        a, b = getattr(made, entry.name), getattr(read, entry.name)
        if entry.name == "logits":
            assert a.keys() == b.keys() and all((a[h] == b[h]).all() and a[h].dtype == b[h].dtype for h in a)
        elif isinstance(a, np.ndarray):
            assert (a == b).all() and a.dtype == b.dtype, entry.name
        else:
            assert a == b, entry.name


def test_rows_of_a_trial() -> None:
    made = book()
    assert made.index[made.rows(1)].tolist() == [1, 2, 3]
    assert made.per_row(made.group).tolist() == ["g", "g", "g", "g", "g", "h"]


@pytest.mark.parametrize("cut", [0, 10, 500, -1])
def test_a_torn_file_is_told(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "b.h5"
    book().save(path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(StoreError, match="readable file of logits"):
        OofLogits.load(path)


def test_an_absent_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="readable file of logits"):
        OofLogits.load(tmp_path / "none.h5")


def test_a_pointer_with_a_name_that_no_file_can_have_is_damaged(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    pointer = workspace.logits("demo") / "current.json"
    pointer.parent.mkdir(parents=True)
    pointer.write_text('{"logits_file": "\\ud800.h5"}')
    with pytest.raises(InputError, match="damaged"):
        workspace.current_logits_file("demo")
