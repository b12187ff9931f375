"""Which trial is held out when: folds by group. The one place that decides it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fercache.errors import InputError

MIN_GROUPS_TO_CHOOSE = 4
"""Under so many groups nothing is chosen by held-out score: epochs are fixed and the plain mean is final."""


def assign_folds(groups: Sequence[str], counts: NDArray[np.int64], k: int, seed: int) -> NDArray[np.int16]:
    """Return the fold of each trial, ``(N,)``; the trials of one group are never apart.

    Parameters
    ----------
    groups : (N,) the group (parent video or subject) of each trial.
    counts : (N, C) labelled frames of each class. A trial without any goes with its group; a group without any, to -1.
    k : folds wanted; fewer where there are fewer labelled groups.

    Raises
    ------
    InputError
        Fewer than two groups have labels.

    Notes
    -----
    Stratified as far as groups allow, greedily: groups in falling order of labelled frames (ties in random order), each
    to the fold where it keeps the class shares of the folds most alike (the criterion of scikit-learn's
    StratifiedGroupKFold: the mean over classes of the folds' standard deviation), then to the emptiest.
    """
    names = sorted({g for g, n in zip(groups, counts.sum(1), strict=True) if n})
    if len(names) < 2:
        raise InputError(f"{len(names)} group(s) with labels; folds need two", where="the data set",
                         hint="label clips of at least two persons, or say who is who with `subject` or `group`")
    k = min(k, len(names))
    position = {name: i for i, name in enumerate(names)}
    member = np.array([position.get(g, -1) for g in groups])
    totals = np.zeros((len(names), counts.shape[1]))
    np.add.at(totals, member[member >= 0], counts[member >= 0])
    chosen = _spread(totals, k, np.random.default_rng(seed))
    return np.where(member >= 0, chosen[member], -1).astype(np.int16)


def _spread(totals: NDArray[np.float64], k: int, rng: np.random.Generator) -> NDArray[np.int16]:
    """Return the fold of each group, ``(G,)``, from its class counts ``(G, C)``."""
    share = totals / np.maximum(totals.sum(0), 1)
    order = rng.permutation(len(totals))
    order = order[np.argsort(-totals[order].sum(1), kind="stable")]
    held = np.zeros((k, totals.shape[1]))
    chosen = np.zeros(len(totals), np.int16)
    members = np.zeros(k, int)
    for place, g in enumerate(order):
        open_ = members == 0 if len(order) - place <= (members == 0).sum() else np.ones(k, bool)
        costs = [(np.std(held + share[g] * (np.arange(k) == f)[:, None], axis=0).mean(), held[f].sum(), f)
                 for f in np.flatnonzero(open_)]
        chosen[g] = min(costs)[2]
        held[chosen[g]] += share[g]
        members[chosen[g]] += 1
    return chosen


def inner_groups(groups: Sequence[str], share: float, seed: int) -> set[str]:
    """Return the groups kept aside within a fold's training groups, to choose epochs by; empty where too few.

    Parameters
    ----------
    share : share of the groups to keep aside, at least one.
    """
    names = sorted(set(groups))
    if len(names) < MIN_GROUPS_TO_CHOOSE - 1:
        return set()
    many = max(1, round(share * len(names)))
    return set(np.random.default_rng(seed).permutation(np.array(names, object))[:many].tolist())
