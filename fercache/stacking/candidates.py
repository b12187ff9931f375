"""Candidates for the final predictions: each head, their mean and the learned columns; and the choice among them.

A setting that does not fit the heads, such as --causal without a causal head, is an InputError.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from fercache import metrics
from fercache.errors import InputError
from fercache.heads.registry import HEADS
from fercache.oof import MIN_GROUPS_TO_CHOOSE, OofLogits
from fercache.results import missing_faces
from fercache.stacking.features import FLOOR, POOLED, log_softmax
from fercache.stacking.nested_cv import ALL, NestedResult, Probs, predict_new
from fercache.stacking.run_metrics import FinalRecord

log = logging.getLogger(__name__)


def drop_lookahead_heads(oof: OofLogits) -> OofLogits:
    """Return the logits without the heads that use later frames."""
    if oof.pooled:
        raise InputError("--causal needs one prediction per frame, not per clip", where="stack",
                         hint="drop --causal, or choose --level frame")
    # The user who imports logits decides that they are causal; a head that is unknown counts as one that looks ahead.
    causal_heads = tuple(head for head in oof.heads
                         if (not HEADS[head].lookahead if head in HEADS else head in oof.declared))
    if not causal_heads:
        raise InputError(f"--causal: every head uses later frames: {', '.join(oof.heads)}",
                         where="stack", hint="train the head `frame`, or import logits of a causal model")
    if set(causal_heads) - set(oof.declared) and oof.provenance.setting("normalize") == "clip":
        raise InputError("--causal: the heads' features were normalized over whole clips, including later frames",
                         where="stack", hint="train heads with another --normalize")
    if len(causal_heads) < len(oof.heads):
        log.info("causal: leaving out %s, which use later frames",
                 ", ".join(head for head in oof.heads if head not in causal_heads))
    return replace(oof, heads=causal_heads, logits={head: oof.logits[head] for head in causal_heads})


DESCRIPTIONS = {"mean": "plain mean of the heads' probabilities",
        "smoothed-mean": "mean of the heads' log-probabilities, smoothed over time, with a bias for each class",
        "logistic": "logistic regression on the stacker's features",
        "geometric-mean": "geometric mean of `smoothed-mean` and `logistic`",
        "stack": "LightGBM on the stacker's features, starting from `smoothed-mean`; with many groups its geometric "
                 "mean with `logistic`"}


@dataclass(frozen=True, kw_only=True)
class GapFiller:
    """Fills the frames without a face."""

    policy: str  # one of `missing_faces.POLICIES`
    sources: missing_faces.GapSources  # the rows that each row is filled from, (R,)
    # The rows that each row of a head itself is taken from, (R,). A head's logits of a frame without a face may be a
    # copy of the nearest face. In a causal run that could be a later one, so an earlier face is taken.
    head_sources: missing_faces.GapSources
    faceless: NDArray[np.bool_]  # (R,) the rows without a face in clips that have faces
    before_first_face: NDArray[np.bool_]  # (R,) in a causal run, the rows before a clip's first face; else all False

    @classmethod
    def of(cls, oof: OofLogits, policy: str = "nearest", *, causal: bool = False) -> GapFiller:
        """Return the filler of these logits; a `causal` one uses no later frame."""
        every = np.arange(len(oof.label))
        filled_from, head_from = (missing_faces.GapSources(every.copy(), every.copy(), np.zeros(len(every)))
                                  for _ in range(2))
        faceless, before_first_face = np.zeros((2, len(every)), bool)
        for trial in np.flatnonzero(np.diff(oof.offsets)).tolist():
            rows = oof.rows(trial)
            valid = oof.valid[rows]
            before_first_face[rows] = causal & ~np.logical_or.accumulate(valid)
            if valid.all() or not valid.any():  # no gap, or no face to copy from: rows stay as they are
                continue
            for target, how in ((filled_from, policy), (head_from, "nearest" if causal else "none")):
                here = missing_faces.gap_sources(oof.time_s[rows], valid, how, causal=causal)
                target.before[rows], target.after[rows] = here.before + rows.start, here.after + rows.start
                target.weight[rows] = here.weight
            faceless[rows] = ~valid
        return cls(policy=policy, sources=filled_from, head_sources=head_from, faceless=faceless,
                   before_first_face=before_first_face)

    def refill(self, probs: Probs) -> Probs:
        """Fill the gaps again, after the probabilities of frames with a face changed."""
        # A temperature is not linear in the probabilities, so the interpolation has to follow it.
        return np.asarray(self.sources.apply(probs), np.float32) if self.policy in missing_faces.COPIED else probs


def gather_candidates(oof: OofLogits, nested: NestedResult, filler: GapFiller | None = None) -> dict[str, Probs]:
    """Return candidate -> probabilities, ``(R, C)`` float32, of every row.

    `filler`: fills frames without a face; by default from the nearest frame that has one. In a causal run, heads and
    mean are uniform before the first face.
    """
    filler = filler or GapFiller.of(oof)
    # Logits of 0 are uniform probabilities.
    logits = {head: oof.logits[head] * ~filler.before_first_face[:, None] for head in oof.heads}
    heads = {head: filler.head_sources.apply(softmax(values, axis=1).astype(np.float32))
             for head, values in logits.items()}
    values = {**heads, "mean": _mean(heads), **nested.columns}
    filled = {name: filler.sources.apply(values) for name, values in values.items()}
    if filler.policy in missing_faces.COPIED:
        return filled
    unfilled = missing_faces.unfilled_heads(oof.heads, filler.policy)
    if not unfilled:
        raise InputError("no temporal head can fill the frames without a face",
                         where="stack, missing_faces = temporal-heads",
                         hint=f"train one of {', '.join(missing_faces.TEMPORAL)}, or choose another policy with "
                              f"--missing-faces")
    temporal_mean = _mean({head: heads[head][filler.faceless] for head in unfilled})
    for name in filled:
        if name not in unfilled:
            filled[name][filler.faceless] = temporal_mean
    return filled


def _mean(heads: dict[str, Probs]) -> Probs:
    first = next(iter(heads.values()))
    return np.asarray(sum(heads.values(), np.zeros(first.shape, np.float32)) / len(heads), np.float32)


def choose_final(oof: OofLogits, columns: dict[str, Probs], requested: str, metric: str,
                 rejected: Mapping[str, str] | None = None) -> FinalRecord:
    """Return the requested candidate, or with "auto" the one with the best out-of-fold score.

    `rejected`: candidates that "auto" skips, such as those of `find_contradictions`. Raises InputError if there is no
    candidate of that name.
    """
    # Columns with an in-sample source have no out-of-fold score, so "auto" skips them. If the heads are not above
    # chance (`chance_p_value`), a learned candidate that scores higher has luck or the bias of the folds, so "auto"
    # takes a head or the mean, and the mean only if new clips repeat its predictions at least as often as those of some
    # head. Of equal scores, the one with the higher mean log-probability of the labels is taken.
    if requested != "auto":
        if requested not in columns:
            raise InputError(f"no candidate {requested!r}", where="stack",
                             hint=f"this run gives {', '.join(columns)}")
        return FinalRecord(column=requested, why="selected with --select")
    groups = len(oof.fold_groups())
    skipped = {*leaky_heads(oof, columns), *(rejected or {})}
    eligible = [name for name in columns if name not in skipped]
    if not eligible:
        raise InputError("every candidate has a source that was fitted on the training rows; none can be chosen",
                         where="stack", hint="name one with --select, or leave the in-sample source out of --logits")
    # The best of several scores over few groups is mostly luck.
    if oof.epochs_fixed or groups < MIN_GROUPS_TO_CHOOSE:
        return FinalRecord(column="mean" if "mean" in eligible else eligible[0],
                           why=f"{groups} groups: with fewer than {MIN_GROUPS_TO_CHOOSE} nothing is chosen by score, "
                               "and the plain mean is final")
    p = chance_p_value(oof)
    simple = [name for name in eligible if name in oof.heads or (name == "mean" and _mean_repeats(oof))]
    at_chance = p >= MOST_P and bool(simple)
    eligible = simple if at_chance else eligible
    scores = score_out_of_fold(oof, {name: columns[name] for name in eligible}, metric)
    rows = np.flatnonzero(oof.scored)
    # Few clips often have equal scores.
    best = max(scores, key=lambda name: (scores[name], float(
        np.log(np.maximum(columns[name][rows, oof.label[rows]], FLOOR)).mean())))
    why = f"best {metric} out of fold ({scores[best]:.4f}) on the training groups"
    if at_chance:
        why += f", of heads and mean only: the heads are not above chance (p = {p:.3f}, labels permuted by group)"
    return FinalRecord(column=best, why=why)


def score_out_of_fold(oof: OofLogits, columns: Mapping[str, Probs], metric: str) -> dict[str, float]:
    """Return column -> its score on the labeled rows of the folds."""
    figure, scored = metrics.official(metric), oof.scored
    return {name: float(figure(metrics.confusion(oof.label[scored], values[scored].argmax(1), len(oof.classes))))
            for name, values in columns.items()}


PERMUTATIONS = 199
# Of 400 draws of noise, 11 have p < .05, and in one of these a candidate is .26 above the best head.
MOST_P = 0.01  # heads with a p value of this or more count as heads at chance


def chance_p_value(oof: OofLogits) -> float:
    """Return the p value of the hypothesis that the heads' out-of-fold log-probabilities do not depend on labels."""
    # One-sided permutation test of the sum over labeled rows of the heads' mean log-probability of the label, centered
    # over rows. A permutation gives each group the label sequence of another group, repeated or cut to its length:
    # frames of a group are not exchangeable. Heads below chance have a p value near 1.
    part = oof.subset(_spread_trials(oof))
    rows = np.flatnonzero(part.valid & (part.label >= 0))
    label, group = part.label[rows].astype(int), part.per_row(part.group_number)[rows]
    values, at = _centered(sum(log_softmax(part.logits[head][rows]) for head in part.heads)), np.arange(len(rows))
    least = values[at, label].sum() - 1e-9 * len(rows)  # equal permutations differ by rounding
    as_high = sum(values[at, permuted].sum() >= least
                  for permuted in metrics.permute_by_group(label, group, PERMUTATIONS, seed=0))
    return float(1 + as_high) / (PERMUTATIONS + 1)


def _spread_trials(oof: OofLogits) -> NDArray[np.int64]:
    """Return trials of the folds, evenly spread, with up to about `MOST_ROWS_COMPARED` rows."""
    inside = np.flatnonzero((oof.fold >= 0) & (np.diff(oof.offsets) > 0))
    return inside[::max(1, -(-int(np.diff(oof.offsets)[inside].sum()) // MOST_ROWS_COMPARED))]


# A candidate that contradicts its heads, or the models that will predict new clips.

MOST_ROWS_COMPARED = 60_000  # heads and candidates are compared on whole clips with about this many rows
MOST_LOST = 0.1  # predicted as new clips are, the training rows may score this much less than out of fold


def find_contradictions(oof: OofLogits, nested: NestedResult, columns: Mapping[str, Probs], metric: str, *,
                        causal: bool = False) -> dict[str, str]:
    """Return learned candidate -> reason, for each one whose out-of-fold predictions new clips will not repeat.

    It is rejected if its log-probabilities and the mean of its heads' have a negative correlation over the training
    rows; or if, predicted as new clips are, its predictions change more often than those of its heads, and it scores
    less than out of fold by more than `MOST_LOST`.
    """
    # New clips are predicted by the mean over the folds' heads, in which the bias of the single folds cancels. The
    # training rows are predicted in the same way: each fold's mean log-probabilities are replaced by the mean over all
    # folds, and the stacker of all folds is used. Changes alone prove nothing: on few groups the stackers of two folds
    # differ, also where heads complement each other.
    if ALL not in nested.fold_models:
        return {}
    trials = _spread_trials(oof)
    part, rows = oof.subset(trials), oof.rows_of(trials)
    as_new = _without_fold_means(part)
    predicted = predict_new(as_new, nested.fold_models[ALL], causal).columns
    seen = part.valid & (part.label >= 0)
    heads_agree = min(_agreement(part.logits[head][seen], as_new.logits[head][seen]) for head in part.heads)
    heads_log_probs = _centered(sum(log_softmax(part.logits[head][seen]) for head in part.heads))
    rejected, figure = {}, metrics.official(metric)
    for name, values in predicted.items():
        new_probs, oof_probs = values[seen], columns[name][rows][seen]
        agrees = _agreement(oof_probs, new_probs)
        new_score, oof_score = (float(figure(metrics.confusion(part.label[seen], probs.argmax(1), len(oof.classes))))
                                for probs in (new_probs, oof_probs))
        if float((_centered(np.log(np.maximum(oof_probs, FLOOR))) * heads_log_probs).sum()) < 0:
            rejected[name] = "contradicts its heads: it is likely where they are unlikely"
        elif agrees < heads_agree and new_score < oof_score - MOST_LOST:
            rejected[name] = (f"new clips will not repeat its score: predicted as new clips are, the training rows "
                              f"have {new_score:.3f} {metric}, out of fold {oof_score:.3f}; {agrees:.0%} of the "
                              f"predictions are the same (heads: at least {heads_agree:.0%})")
    return rejected


def _mean_repeats(oof: OofLogits) -> bool:
    """Return whether the mean's predictions are repeated by new clips at least as often as those of some head."""
    part = oof.subset(_spread_trials(oof))
    if not part.valid.any():
        return True
    as_new, rows = _without_fold_means(part), np.flatnonzero(part.valid)
    old, new = ({head: softmax(one.logits[head][rows], axis=1) for head in one.heads} for one in (part, as_new))
    return _agreement(_mean(old), _mean(new)) >= min(_agreement(old[head], new[head]) for head in part.heads)


def _without_fold_means(oof: OofLogits) -> OofLogits:
    """Return the logits as new clips, with the mean log-probabilities of each fold replaced by those of all folds."""
    fold = oof.per_row(oof.fold)
    logits, pooled = {}, {}
    for head in oof.heads:
        values = log_softmax(oof.logits[head])
        means = {k: values[(fold == k) & oof.valid].mean(0) for k in np.unique(fold[oof.valid]).tolist()}
        shift = np.zeros(values.shape)
        for k, mean in means.items():
            shift[fold == k] = np.mean(list(means.values()), axis=0) - mean
        logits[head] = (values + shift).astype(np.float32)
        if oof.pooled:
            # Statistics of a clip: all but the spread, which is the second one, move with the level.
            moves = np.array([what != "spread" for what in POOLED], float)
            pooled[head] = (oof.pooled[head] + moves[:, None] * shift[:, None]).astype(np.float32)
    return replace(oof, logits=logits, pooled=pooled, fold=np.full_like(oof.fold, -1))


def _agreement(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    return float((one.argmax(1) == other.argmax(1)).mean())


def _centered(log_probs: Any) -> NDArray[np.float64]:
    """Return log-probabilities, ``(n, C)``, minus their means over the classes and over the rows."""
    values = np.asarray(log_probs, float)
    values = values - values.mean(1, keepdims=True)
    return np.asarray(values - values.mean(0))


def leaky_heads(oof: OofLogits, columns: Iterable[str]) -> dict[str, str]:
    """Return column -> reason, for each column whose training rows are not out of fold."""
    leaky = oof.leaky_heads
    return {name: f"declared in-sample: {name if name in leaky else 'learned with ' + ', '.join(leaky)}"
            for name in columns if leaky and (name in leaky or name not in oof.heads)}


def to_ppm(probabilities: Probs) -> NDArray[np.int32]:
    """Return probabilities, ``(R, C)``, as integers in parts per million; each row sums to 1,000,000."""
    # Largest-remainder rounding: six decimals in a table then sum to exactly 1.
    exact = probabilities.astype(float)
    exact *= 1e6 / exact.sum(1, keepdims=True)
    ppm = np.floor(exact).astype(np.int32)
    missing = 1_000_000 - ppm.sum(1)
    rank = np.argsort(np.argsort(ppm - exact, axis=1, kind="stable"), axis=1, kind="stable")
    return np.asarray(ppm + (rank < missing[:, None]), np.int32)
