"""The comparison with version 0.1 notices what differs; the comparison itself is a script, run by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent / "bench"))  # the benches are scripts, no package
from bench_candidates import join
from books import simulate
from safety_net import compare, differences, left_out, old_name

ONE = {"clip/block8": np.arange(6, dtype=np.float16).reshape(2, 3), "names": np.array(["a", "b"], object)}


def test_equal_arrays_give_no_line() -> None:
    assert not list(differences(ONE, {name: values.copy() for name, values in ONE.items()}))


def test_a_changed_value_a_changed_type_and_a_missing_array_give_a_line_each() -> None:
    other = {"clip/block8": ONE["clip/block8"] + np.float16(.5)}
    value, missing = differences(ONE, other)
    assert "largest difference 0.5" in value
    assert missing == "names: only in 0.1"
    kind, _ = differences(ONE, {"clip/block8": ONE["clip/block8"].astype(np.float32)})
    assert "float32" in kind


def test_a_comparison_of_too_little_is_no_agreement(capsys: pytest.CaptureFixture[str]) -> None:
    assert compare("store", ONE, ONE, 2)
    assert not compare("store", ONE, ONE, 3)
    assert "at least 3" in capsys.readouterr().out


def test_names_are_told_back_whole_or_by_the_folder_above() -> None:
    renamed = {"trial": "clip", "trial/offsets": "clip/starts", "voice": ""}
    assert old_name("clip/starts", renamed) == "trial/offsets"
    assert old_name("clip/fold", renamed) == "trial/fold"
    assert old_name("other/clip", renamed) == "other/clip"
    assert list(left_out({"voice": ONE["names"], "s1/voice": ONE["names"], "kept": ONE["names"]}, renamed)) == ["kept"]


def test_joined_sets_keep_folds_and_labels_apart() -> None:
    """New groups are the validation rows of both sets; equal names of groups stay two groups."""
    trained, new = (simulate(groups=4, validation=2, frames=30, seed=seed, dataset=f"set{seed}") for seed in (1, 2))
    joined = join(trained, [new])
    assert joined.fold.tolist() == [*trained.fold, -1, -1]
    assert [group.split("/")[0] for group in joined.group] == ["set1"] * 6 + ["set2"] * 2
    rows = new.rows_of([4, 5])
    assert np.array_equal(joined.label[-len(rows):], new.label[rows])
    assert np.array_equal(joined.logits["gru"][-len(rows):], new.logits["gru"][rows])
    with pytest.raises(SystemExit, match="set2"):
        join(trained, [simulate(groups=4, heads=("frame",), dataset="set2")])
