"""Folds: groups whole, classes spread, the same seed the same folds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fercache.errors import InputError
from fercache.oof import assign_folds, inner_groups


@given(st.lists(st.tuples(st.integers(0, 11), st.lists(st.integers(0, 50), min_size=3, max_size=3)), min_size=2,
                max_size=40), st.integers(2, 7), st.integers(0, 5))
def test_no_group_is_on_two_sides(trials: list[tuple[int, list[int]]], k: int, seed: int) -> None:
    groups = [f"g{g}" for g, _ in trials]
    counts = np.array([c for _, c in trials])
    labelled = {g for g, n in zip(groups, counts.sum(1), strict=True) if n}
    if len(labelled) < 2:
        with pytest.raises(InputError, match="two"):
            assign_folds(groups, counts, k, seed)
        return
    fold = assign_folds(groups, counts, k, seed)
    sides = {g: {f for f, h in zip(fold, groups, strict=True) if h == g} for g in groups}
    assert all(len(side) == 1 for side in sides.values())
    assert {g for g in groups if sides[g] != {-1}} == labelled
    assert set(fold[fold >= 0]) == set(range(min(k, len(labelled)))), "a fold is empty"
    assert (fold == assign_folds(groups, counts, k, seed)).all()


def test_classes_are_spread() -> None:
    rng = np.random.default_rng(0)
    counts = rng.multinomial(100, [.7, .2, .1], size=60)
    counts[:10, 2] += 300  # a rare class that ten groups hold
    fold = assign_folds([f"g{i}" for i in range(60)], counts, 5, 0)
    share = np.array([counts[fold == k, 2].sum() for k in range(5)]) / counts[:, 2].sum()
    assert share.min() > .15, share


def test_watched_groups_are_some_but_not_all() -> None:
    groups = [f"g{i}" for i in range(20)]
    watched = inner_groups(groups, .2, 3)
    assert len(watched) == 4 and watched < set(groups)
    assert watched == inner_groups(groups * 5, .2, 3)
    assert inner_groups(["a", "b"], .2, 0) == set()
