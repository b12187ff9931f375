"""Folds by group: the only module that decides which trial is held out in which fold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fercache.errors import InputError

MIN_GROUPS_TO_CHOOSE = 4
"""With fewer groups nothing is selected by held-out score: epochs are fixed and the plain mean is final."""


def assign_folds(groups: Sequence[str], counts: NDArray[np.int64], k: int, seed: int) -> NDArray[np.int16]:
    """Return the fold of each trial, ``(N,)``; all trials of a group are in the same fold.

    Parameters
    ----------
    groups : (N,) the group (parent video or subject) of each trial.
    counts : (N, C) labelled frames of each class. A trial without any is in its group's fold; a group without any gets
        fold -1.
    k : number of folds; fewer if there are fewer labelled groups.

    Raises
    ------
    InputError
        Fewer than two groups have labels.
    """
    # Greedy stratification: groups in falling order of labelled frames (ties in random order), each to the fold where
    # it keeps the class distributions of the folds most alike (the criterion of scikit-learn's StratifiedGroupKFold:
    # the mean over classes of the folds' standard deviation), then to the fold with the fewest frames.
    names = sorted({g for g, n in zip(groups, counts.sum(1), strict=True) if n})
    if len(names) < 2:
        raise InputError(f"{len(names)} group(s) with labels; folds need two", where="the data set",
                         hint="label clips of at least two people, or name the people with `subject` or `group`")
    k = min(k, len(names))
    position = {name: i for i, name in enumerate(names)}
    member = np.array([position.get(g, -1) for g in groups])
    totals = np.zeros((len(names), counts.shape[1]))  # (G, C)
    np.add.at(totals, member[member >= 0], counts[member >= 0])
    fraction = totals / np.maximum(totals.sum(0), 1)
    # The stable sort keeps the random order among groups of equal size.
    order = np.random.default_rng(seed).permutation(len(totals))
    order = order[np.argsort(-totals[order].sum(1), kind="stable")]
    in_fold = np.zeros((k, totals.shape[1]))
    fold = np.zeros(len(totals), np.int16)
    size = np.zeros(k, int)
    for place, g in enumerate(order):
        # The last groups go to folds that are still empty, so that no fold is without a group.
        allowed = size == 0 if len(order) - place <= (size == 0).sum() else np.ones(k, bool)
        costs = [(np.std(in_fold + fraction[g] * (np.arange(k) == f)[:, None], axis=0).mean(), in_fold[f].sum(), f)
                 for f in np.flatnonzero(allowed)]
        fold[g] = min(costs)[2]
        in_fold[fold[g]] += fraction[g]
        size[fold[g]] += 1
    return np.where(member >= 0, fold[member], -1).astype(np.int16)


def inner_groups(groups: Sequence[str], share: float, seed: int) -> set[str]:
    """Return the validation groups among a fold's training groups, to choose epochs by; empty if there are too few.

    Parameters
    ----------
    share : fraction of the groups, at least one group.
    """
    names = sorted(set(groups))
    if len(names) < MIN_GROUPS_TO_CHOOSE - 1:
        return set()
    count = max(1, round(share * len(names)))
    return set(np.random.default_rng(seed).permutation(np.array(names, object))[:count].tolist())
