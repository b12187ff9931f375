"""No score of the stacker has seen what it is scored on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from books import simulate

from fercache.config import StackConfig
from fercache.oof import OofLogits
from fercache.stacking import candidates, models, nested_cv, stack
from fercache.stacking.features import TrainingSample

CONFIG = StackConfig(threads=1, bootstrap=0)


def relabelled(book: OofLogits, rows: np.ndarray) -> OofLogits:
    """Return the book with other labels in these rows."""
    return replace(book, label=np.where(rows & (book.label >= 0), (book.label + 3) % 7, book.label).astype(np.int16))


@pytest.mark.parametrize("fold", [0, 3])
def test_the_labels_of_a_fold_have_no_say_in_what_is_said_of_it(fold: int) -> None:
    """Not one bit of any column: the width, the number of trees and the trees themselves come from elsewhere."""
    book = simulate(groups=10, frames=120)
    held = book.per_row(book.fold) == fold
    before, after = (candidates.gather_candidates(b, nested_cv.run_nested_cv(b, CONFIG))
                     for b in (book, relabelled(book, held)))
    for name, said in before.items():
        np.testing.assert_array_equal(said[held], after[name][held], err_msg=name)
    assert not np.array_equal(before["stack"][~held], after["stack"][~held]), "labels do matter to the other folds"


def test_labels_of_other_splits_have_no_say_at_all() -> None:
    book = simulate(groups=8, validation=3, frames=100)
    outside = book.per_row(book.fold) < 0
    before, after = (candidates.gather_candidates(b, nested_cv.run_nested_cv(b, CONFIG))
                     for b in (book, relabelled(book, outside)))
    for name, said in before.items():
        np.testing.assert_array_equal(said, after[name], err_msg=name)


def test_the_final_column_is_not_chosen_on_the_reported_split(tmp_path: Path) -> None:
    book = simulate(groups=8, validation=4, frames=100)
    outside = book.per_row(book.fold) < 0
    one, two = (stack.run_stack(b, CONFIG, tmp_path) for b in (book, relabelled(book, outside)))
    assert (one.final, one.report.final) == (two.final, two.report.final)


def test_shuffled_labels_give_chance(tmp_path: Path) -> None:
    """Labels dealt out by group: what is left out of fold is what always saying one class scores, or a draw."""
    book = simulate(groups=20, validation=10)
    order = np.random.default_rng(0).permutation(len(book.trials))
    dealt = [np.resize(book.label[book.rows(int(other))], int(np.diff(book.offsets)[i]))
             for i, other in enumerate(order)]
    found = stack.run_stack(replace(book, label=np.concatenate(dealt)), CONFIG, tmp_path)
    for split in ("train", "validation"):
        for name, one in found.report.splits[split].all_frames.items():
            assert one.figures["macro_f1"] < 0.2, (split, name)


def test_groups_watched_for_stopping_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Early stopping looks at groups that the trees are not fitted on, never at other frames of the same ones."""
    book = simulate(groups=10, frames=90)
    pairs: list[tuple[set[int], set[int]]] = []
    data = models._data

    def watched(sample: TrainingSample, start: np.ndarray, balance: float) -> object:
        pairs.append((set(sample.group.tolist()), set(sample.rows.tolist())))
        return data(sample, start, balance)

    monkeypatch.setattr(models, "_data", watched)
    nested_cv.run_nested_cv(book, CONFIG)
    seen = [(pairs[i][0], pairs[i + 1][0]) for i in range(0, len(pairs), 3)]  # fitted, watched, then the refit on both
    assert len(seen) == 6
    for fitted, aside in seen:
        assert aside and fitted and not fitted & aside


def test_two_trials_of_one_group_stay_together() -> None:
    """Left and right of one video: the one's labels have no say in what is said of the other."""
    book = simulate(groups=10, frames=90)
    group = tuple(f"video{i // 2}" for i in range(10))
    fold = np.repeat(np.arange(5), 2).astype(np.int16)
    book = replace(book, group=group, fold=fold)
    left = book.per_row(np.arange(10)) == 0
    right = book.per_row(np.arange(10)) == 1
    before, after = (nested_cv.run_nested_cv(b, CONFIG).columns["stack"] for b in (book, relabelled(book, left)))
    np.testing.assert_array_equal(before[right], after[right])
