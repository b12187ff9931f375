"""Scores of predictions, all from the confusion matrix ``(C, C)``: rows are labels, columns are predictions.

Absent classes count as the organizers of ABAW count them: F1 is taken over the full class list, and a class that is
neither annotated nor predicted has an F1 of 0 (scikit-learn's ``f1_score(labels=all, zero_division=0)``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from fercache.errors import InputError

MIN_GROUPS_FOR_INTERVAL = 8  # with fewer groups a bootstrap over groups is not reliable, so there is no interval
LEVEL = 0.95

Counts = NDArray[np.int64]
Values = NDArray[np.float64]


def confusion(label: NDArray[Any], predicted: NDArray[Any], classes: int) -> Counts:
    """Return the confusion matrix, ``(C, C)``; rows labeled -1 do not count."""
    return np.asarray(confusions(label, predicted, np.zeros(len(label), np.int64), classes, 1)[0])


def confusions(label: NDArray[Any], predicted: NDArray[Any], group: NDArray[Any], classes: int, groups: int) -> Counts:
    """Return one confusion matrix per group, ``(G, C, C)``; `group` is ``(R,)`` in 0..G-1, labels -1 do not count."""
    known = label >= 0
    # One bincount over (group, label, prediction) instead of a loop over groups.
    cell = (group[known].astype(np.int64) * classes + label[known]) * classes + predicted[known]
    return np.bincount(cell, minlength=groups * classes * classes).reshape(groups, classes, classes)


def f1_per_class(matrix: ArrayLike) -> Values:
    """Return the F1 of each class, ``(..., C)``, from confusion matrices ``(..., C, C)``."""
    m = np.asarray(matrix, float)
    hit = np.diagonal(m, axis1=-2, axis2=-1)
    return _ratio(2 * hit, m.sum(-1) + m.sum(-2))


def macro_f1(matrix: ArrayLike) -> Values:
    """Return the mean of the classes' F1, ``(...)``, over the full class list."""
    return np.asarray(f1_per_class(matrix).mean(-1))


def accuracy(matrix: ArrayLike) -> Values:
    """Return the accuracy, ``(...)``; clip-level data sets call it WAR."""
    m = np.asarray(matrix, float)
    return _ratio(np.diagonal(m, axis1=-2, axis2=-1).sum(-1), m.sum((-2, -1)))


def uar(matrix: ArrayLike) -> Values:
    """Return the mean recall, ``(...)``, over the classes that occur among the labels."""
    m = np.asarray(matrix, float)
    support = m.sum(-1)
    return _ratio(_ratio(np.diagonal(m, axis1=-2, axis2=-1), support).sum(-1), (support > 0).sum(-1))


def abaw2(matrix: ArrayLike) -> Values:
    """Return .67 macro F1 + .33 accuracy, ``(...)``: the expression metric of ABAW 2020 and 2021."""
    return np.asarray(0.67 * macro_f1(matrix) + 0.33 * accuracy(matrix))


Metric = Callable[[ArrayLike], Values]


class RegisteredMetric(NamedTuple):
    """A metric of confusion matrices ``(..., C, C)``."""

    function: Metric
    title: str  # heading in tables and reports
    balance: float  # when this metric selects, the stacker weighs a row by one over its class's share to this power
    alias: bool = False  # whether it is another name of a metric before it, so that tables leave it out


# Macro F1 out of fold of the smoothed mean on five sets of real faces: .238 at .5, .266 at .75, .258 at 1.
METRICS = {
    "macro_f1": RegisteredMetric(macro_f1, "macro F1", balance=0.75),
    "accuracy": RegisteredMetric(accuracy, "accuracy (WAR)", balance=0.0),
    "uar": RegisteredMetric(uar, "UAR", balance=1.0),
    "abaw2": RegisteredMetric(abaw2, ".67 F1 + .33 acc", balance=0.75),
    "war": RegisteredMetric(accuracy, "WAR", balance=0.0, alias=True),
}
"""The one place where a metric is registered: options, scores, intervals, tables and reports follow from it."""
DISTINCT = tuple(name for name, metric in METRICS.items() if not metric.alias)
EDITIONS = {"ABAW1": "abaw2", "ABAW2": "abaw2", "ABAW3": "macro_f1", "ABAW5": "macro_f1", "ABAW6": "macro_f1",
            "ABAW8": "macro_f1"}
"""The official metric of each edition's expression track: 2020 and 2021 over 7 classes, from 2022 macro F1 over 8. A
class that is absent counts as an F1 of 0 in all of them."""


def official(name: str) -> Metric:
    """Return the metric of that name, a function of matrices ``(..., C, C)``; raise InputError if there is none."""
    if name not in METRICS:
        raise InputError(f"unknown metric {name!r}", where="the data set", hint=f"known: {', '.join(METRICS)}")
    return METRICS[name].function


def _ratio(above: ArrayLike, below: ArrayLike) -> Values:
    """Return the quotient, or 0 where `below` is 0."""
    top, bottom = np.asarray(above, float), np.asarray(below, float)
    return np.asarray(np.divide(top, bottom, out=np.zeros(np.broadcast_shapes(top.shape, bottom.shape)),
                                where=bottom > 0))


class Scores(msgspec.Struct, frozen=True, kw_only=True):
    """The scores of one candidate on one set of rows."""

    # `frames`, `groups`: labelled rows, and the groups they come from
    frames: int
    groups: int
    figures: dict[str, float]  # metric -> its value, for each of `METRICS`
    official: float  # the value of the data set's own metric
    # `f1`, `support`: by class name: F1, and how many labelled rows there are of it
    f1: dict[str, float]
    support: dict[str, int]
    # metric -> (low, high), 95 % by bootstrap over groups; None where `why_none` gives a reason
    intervals: dict[str, tuple[float, float]] | None
    why_none: str

    def json(self) -> dict[str, Any]:
        """Return the scores as a JSON value; each metric is a key of its own."""
        fields = msgspec.structs.asdict(self)
        return {**fields.pop("figures"), **fields}


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """A column's score minus another's, with its paired 95 % interval; None where `why_none` gives a reason."""

    difference: float
    interval: tuple[float, float] | None
    why_none: str


class PairedDifference(Difference, frozen=True, kw_only=True):
    """The difference in macro F1, and in further metrics; `official` is the data set's own."""

    official: Difference
    accuracy: Difference
    uar: Difference


class Resampler:
    """Bootstrap samples of whole groups, the same for every candidate, so that candidates can be compared in pairs.

    `groups` and `draws`: number of groups, and of bootstrap samples.
    """

    def __init__(self, groups: int, draws: int, seed: int) -> None:
        self.why_none = "" if draws else "no bootstrap was requested"
        if draws and groups < MIN_GROUPS_FOR_INTERVAL:
            self.why_none = f"{groups} groups; an interval over groups needs at least {MIN_GROUPS_FOR_INTERVAL}"
        rng = np.random.default_rng(seed)
        share = np.full(max(groups, 1), 1 / max(groups, 1))
        drawn = np.zeros((0, groups)) if self.why_none else rng.multinomial(groups, share, size=draws)
        self.times = drawn.astype(float)

    def draw(self, matrices: Counts) -> Counts:
        """Return one confusion matrix per draw, ``(draws, C, C)``, from one a group, ``(G, C, C)``."""
        groups, classes = matrices.shape[:2]
        # Whole numbers in float64 are exact, and BLAS is fast on them.
        counts = self.times @ matrices.reshape(groups, -1)
        return counts.astype(np.int64).reshape(-1, classes, classes)

    def intervals(self, matrices: Counts) -> dict[str, tuple[float, float]] | None:
        """Return metric -> its 95 % percentile interval, None where there are too few groups."""
        if self.why_none:
            return None
        drawn = self.draw(matrices)
        return {name: percentiles(METRICS[name].function(drawn)) for name in DISTINCT}

    def difference(self, ours: Counts, theirs: Counts, metric: Metric) -> Difference:
        """Return the score of `ours` minus that of `theirs`."""
        span = None if self.why_none else percentiles(metric(self.draw(ours)) - metric(self.draw(theirs)))
        return Difference(difference=float(metric(ours.sum(0)) - metric(theirs.sum(0))), interval=span,
                          why_none=self.why_none)

    def pairs(self, matrices: dict[str, Counts], metric: str) -> dict[str, PairedDifference]:
        """Return for any two columns, ``"a - b"``, the difference of their scores with its paired interval.

        `matrices`: column -> (G, C, C). `metric`: the data set's own; macro F1, accuracy and UAR are compared besides.
        """
        figures = {"macro_f1": macro_f1, "official": official(metric), "accuracy": accuracy, "uar": uar}
        # Each column is drawn once, with the draws of all others, so that every difference is paired.
        draws = {} if self.why_none else {name: self.draw(m) for name, m in matrices.items()}
        drawn = {name: {f: figure(d) for f, figure in figures.items()} for name, d in draws.items()}
        once = {name: {f: float(figure(m.sum(0))) for f, figure in figures.items()} for name, m in matrices.items()}

        def one(a: str, b: str, f: str) -> Difference:
            span = None if self.why_none else percentiles(drawn[a][f] - drawn[b][f])
            return Difference(difference=once[a][f] - once[b][f], interval=span, why_none=self.why_none)

        return {f"{a} - {b}": PairedDifference(**msgspec.structs.asdict(one(a, b, "macro_f1")),
                                               official=one(a, b, "official"), accuracy=one(a, b, "accuracy"),
                                               uar=one(a, b, "uar"))
                for a in matrices for b in matrices if a != b}


def percentiles(values: Values) -> tuple[float, float]:
    """Return the ends of the 95 % percentile interval of the draws."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def score_predictions(matrices: Counts, classes: Sequence[str], metric: str, resampler: Resampler) -> Scores:
    """Return all scores of a candidate from its confusion matrices, one per group, ``(G, C, C)``."""
    total = matrices.sum(0)
    figures = {name: float(metric_.function(total)) for name, metric_ in METRICS.items()}
    return Scores(frames=int(total.sum()), groups=len(matrices), official=float(official(metric)(total)),
                  f1=dict(zip(classes, f1_per_class(total).tolist(), strict=True)),
                  support=dict(zip(classes, total.sum(1).tolist(), strict=True)),
                  intervals=resampler.intervals(matrices), why_none=resampler.why_none, figures=figures)


def permute_by_group(label: NDArray[Any], group: NDArray[np.int64], times: int, seed: int) -> Iterator[NDArray[Any]]:
    """Yield labels, ``(n,)``, in which each group has the label sequence of a random group, repeated or cut to length.

    `group`: (n,) the group of each row. Rows of a group are permuted together: they are not exchangeable.
    """
    order = np.argsort(group, kind="stable")
    sequence = label[order]
    _, start, count = np.unique(group[order], return_index=True, return_counts=True)
    of_row, rng = np.repeat(np.arange(len(start)), count), np.random.default_rng(seed)
    place = np.arange(len(order)) - start[of_row]
    for _ in range(times):
        source = rng.permutation(len(start))[of_row]
        permuted = np.empty_like(label)
        permuted[order] = sequence[start[source] + place % count[source]]
        yield permuted
