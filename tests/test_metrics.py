"""Figures against scikit-learn, and what a bootstrap over groups must do."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from fercache import metrics
from fercache.errors import InputError

CLASSES = ("Neutral", "Anger", "Disgust", "Fear", "Happiness", "Sadness", "Surprise")


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(st.integers(-1, 6), st.integers(0, 6)), min_size=1, max_size=80))
def test_figures_are_scikit_learns_over_the_full_class_list(rows: list[tuple[int, int]]) -> None:
    label, said = np.array(rows).T
    known = label >= 0
    if not known.any():
        return
    matrix = metrics.confusion(label, said, 7)
    truth, guess = label[known], said[known]
    f1 = reference.f1_score(truth, guess, labels=range(7), average=None, zero_division=0)
    np.testing.assert_allclose(metrics.f1_per_class(matrix), f1)
    assert float(metrics.macro_f1(matrix)) == pytest.approx(f1.mean())
    assert float(metrics.accuracy(matrix)) == pytest.approx((truth == guess).mean())
    recall = reference.recall_score(truth, guess, labels=np.unique(truth), average="macro", zero_division=0)
    assert float(metrics.uar(matrix)) == pytest.approx(recall)


def test_an_absent_class_counts_as_zero() -> None:
    matrix = metrics.confusion(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1]), 4)
    assert float(metrics.macro_f1(matrix)) == pytest.approx(0.5)
    assert float(metrics.uar(matrix)) == 1


def test_unlabelled_rows_do_not_count() -> None:
    assert metrics.confusion(np.array([-1, -1, 2]), np.array([0, 1, 2]), 3).sum() == 1


def test_official_metrics() -> None:
    matrix = np.array([[3, 1], [2, 4]])
    expected = 0.67 * float(metrics.macro_f1(matrix)) + 0.33 * 0.7
    assert float(metrics.official("abaw2")(matrix)) == pytest.approx(expected)
    with pytest.raises(InputError, match=r"macro_f1.*abaw2"):
        metrics.official("auc")


def test_many_matrices_at_once_are_the_same_as_one_by_one() -> None:
    many = np.random.default_rng(0).integers(0, 9, (5, 4, 4))
    for name, metric in metrics.METRICS.items():
        figure = metric.function
        np.testing.assert_allclose(figure(many), [float(figure(one)) for one in many], err_msg=name)


def _groups(count: int, skill: float, seed: int) -> metrics.Counts:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 7, count * 50)
    said = np.where(rng.random(len(label)) < skill, label, rng.integers(0, 7, len(label)))
    return metrics.confusions(label, said, np.repeat(np.arange(count), 50), 7, count)


def test_groups_add_up() -> None:
    assert _groups(10, 0.5, 0).sum() == 500
    assert _groups(10, 0.5, 0).shape == (10, 7, 7)


def test_an_interval_holds_the_figure_and_is_the_same_twice() -> None:
    matrices = _groups(20, 0.5, 1)
    one, two = (metrics.score_predictions(matrices, CLASSES, "macro_f1", metrics.Resampler(20, 500, 0))
                for _ in range(2))
    assert one == two and one.intervals is not None
    low, high = one.intervals["macro_f1"]
    assert low < one.figures["macro_f1"] < high
    assert one.official == one.figures["macro_f1"] and one.figures["war"] == one.figures["accuracy"]
    json.dumps(one.json(), allow_nan=False)


def test_the_bootstrap_draws_groups_not_frames() -> None:
    """Fifty copies of each frame add nothing: the interval stays as wide."""
    matrices = _groups(20, 0.5, 1)
    sampler = metrics.Resampler(20, 2000, 0)
    one, many = sampler.intervals(matrices), sampler.intervals(matrices * 50)
    assert one is not None and many is not None and one["accuracy"] == many["accuracy"]


@pytest.mark.parametrize(("groups", "draws", "says"), [(7, 100, "7 groups"), (8, 0, "no bootstrap"), (8, 100, "")])
def test_few_groups_have_no_interval_and_a_reason(groups: int, draws: int, says: str) -> None:
    scores = metrics.score_predictions(_groups(groups, 0.5, 0), CLASSES, "abaw2", metrics.Resampler(groups, draws, 0))
    assert (scores.intervals is None) == bool(says)
    assert says in scores.why_none and bool(scores.why_none) == bool(says)


def test_a_paired_difference_is_narrower_than_the_two_intervals() -> None:
    better, worse = _groups(20, 0.6, 1), _groups(20, 0.4, 1)
    sampler = metrics.Resampler(20, 1000, 0)
    said = sampler.difference(better, worse, metrics.macro_f1)
    assert said.interval is not None and said.interval[0] > 0.05 and said.difference > 0.1
    assert sampler.difference(better, better, metrics.macro_f1) == metrics.Difference(
        difference=0.0, interval=(0.0, 0.0), why_none="")


def test_no_rows_give_zeros_not_nan() -> None:
    empty = metrics.score_predictions(np.zeros((0, 7, 7), np.int64), CLASSES, "abaw2", metrics.Resampler(0, 100, 0))
    assert empty.frames == 0 and not any(empty.figures.values()) and empty.intervals is None
