"""The stacker's models: logistic regression with bounds, and trees (LightGBM) that correct the smoothed mean."""

from __future__ import annotations

from dataclasses import dataclass

import lightgbm
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, minimize
from scipy.special import log_softmax

from fercache.config import StackConfig
from fercache.oof import inner_groups
from fercache.stacking.features import FLOOR, FeatureColumns, TrainingSample

Floats = NDArray[np.float64]

STRENGTH = 0.03
"""Weight of the loss per effective row, against half of the squared weights: many near copies of a frame must not
outweigh the penalty."""
MOST_STEPS = 500
MOST_ROWS = 50_000
MANY_GROUPS = 60
"""From this many groups on, weights have no bounds. In the simulation of ``docs/results/few-groups.md``, free weights
are never .25 above the best head of noise from 20 groups on; the limit is three times that, as a trace remains."""


@dataclass(frozen=True, kw_only=True)
class LinearModel:
    """Weights ``(C, F)`` and bias ``(C,)`` for standardised features; absent classes have a bias of log `FLOOR`."""

    mean: Floats
    scale: Floats
    weights: Floats
    bias: Floats

    def logits(self, x: NDArray[np.float32]) -> Floats:
        """Return ``(n, C)`` for features ``(n, F)``."""
        return np.asarray((x - self.mean) / self.scale @ self.weights.T + self.bias)


def fit_linear(sample: TrainingSample, balance: float, columns: FeatureColumns, groups: int) -> LinearModel:
    """Return multinomial logistic regression fitted to a sample; above `MOST_ROWS` rows to an even subsample.

    `groups`: of all folds, so that the models of all folds have bounds, or none has.
    """
    # With fewer than `MANY_GROUPS` groups, a higher level of a head's log-probability of a class never lowers that
    # class. The heads of a fold are biased against the labels that the fold holds out, and free weights turn that into
    # a score that new clips do not have (``docs/results/few-groups.md``). Contrasts within a clip do not have this
    # bias, so their weights are free.
    every = -(-len(sample.rows) // MOST_ROWS)
    part = sample.where(np.arange(len(sample.rows)) % every == 0) if every > 1 else sample
    x, class_of, n_features = part.x.astype(float), columns.class_of, part.x.shape[1]
    bias, weights = np.full(part.classes, np.log(FLOOR)), np.zeros((part.classes, n_features))
    center, unit = x.mean(0), np.ones(n_features)
    seen_classes = np.unique(part.label)
    if len(seen_classes) == 1:
        bias[seen_classes] = 0.0
        return LinearModel(mean=center, scale=unit, weights=weights, bias=bias)
    few = groups < MANY_GROUPS
    contrast = np.flatnonzero(few & (columns.anchors >= 0) & (columns.anchors != np.arange(n_features)))
    x -= center
    x[:, contrast] -= x[:, columns.anchors[contrast]]  # no anchor is a contrast itself
    scale = x.std(0) + 0.1
    x /= scale
    row_weight = part.weights(balance) * STRENGTH * part.effective_n() / len(x)
    k, target = len(seen_classes), part.label[:, None] == seen_classes

    def loss(values: Floats) -> tuple[float, Floats]:
        w, b = values[:-k].reshape(k, n_features), values[-k:]
        log_probs = log_softmax(x @ w.T + b, axis=1)
        error = (np.exp(log_probs) - target) * row_weight[:, None]
        value = (w**2).sum() / 2 - (row_weight * log_probs[target]).sum()
        return float(value), np.concatenate([(error.T @ x + w).ravel(), error.sum(0)])

    bound = few & (class_of >= 0)
    bound[contrast] = False
    own, free = class_of == seen_classes[:, None], np.full(k, np.inf)
    low, high = np.where(bound & own, 0.0, -np.inf), np.where(bound & ~own, 0.0, np.inf)
    found = minimize(loss, np.zeros(k * n_features + k), jac=True, method="L-BFGS-B",
                     bounds=Bounds(np.r_[low.ravel(), -free], np.r_[high.ravel(), free]),
                     options={"maxiter": MOST_STEPS, "gtol": 1e-5}).x
    # Back to weights of the features themselves, so that prediction needs no contrasts.
    fitted = found[:-k].reshape(k, n_features) / scale
    for f in contrast.tolist():
        fitted[:, columns.anchors[f]] -= fitted[:, f]
    weights[seen_classes], bias[seen_classes] = fitted, found[-k:]
    return LinearModel(mean=center, scale=unit, weights=weights, bias=bias)


LEAVES = 4
LEARNING_RATE = 0.1
MOST_ROUNDS = 150
PATIENCE = 15
FEW_GROUPS_ROUNDS = 10  # number of rounds if there are too few groups for early stopping
VAL_FRACTION = 0.25  # of the groups chooses the number of rounds; all groups are then fitted with that number
EFFECTIVE_N_A_LEAF = 2  # a leaf holds at least the mean number of rows of this many blocks (`features.BLOCK_S`)
SHRINK_EFFECTIVE_N = 20.0  # the L2 penalty of a leaf, in blocks; multiplied by the mean rows per block
ROWS_FOR_THREADS = 20_000  # with fewer rows, threads cost more than they save


def correction(trees: lightgbm.Booster, x: NDArray[np.float32], threads: int) -> NDArray[np.float32]:
    """Return the correction of the start's log-probabilities, ``(n, C)``, for features ``(n, F)``."""
    if not len(x):
        return np.zeros((0, trees.num_model_per_iteration()), np.float32)
    return np.asarray(trees.predict(x, raw_score=True, num_threads=threads), np.float32)


def gains(trees: lightgbm.Booster) -> Floats:
    """Return each feature's share of the gain of all splits, ``(F,)``."""
    gain = np.asarray(trees.feature_importance("gain"), float)
    return np.asarray(gain / max(gain.sum(), 1e-12))


def fit_trees(sample: TrainingSample, start: Floats, config: StackConfig, balance: float
              ) -> tuple[lightgbm.Booster, int, int]:
    """Return trees fitted to a sample, their number of rounds, and that of the groups that chose it (0: fixed).

    `start`: log-probabilities that they start from, ``(n, C)``. `balance`: a row weighs one over its class's share to
    this power.
    """
    # Trees start from the calibrated smoothed mean (LightGBM's `init_score`), so that with few groups they can do
    # little harm. Macro F1, mean of six sets of real faces with 28 to 390 groups, out of fold and on held-out trials:
    # plain mean .248 and .242, calibrated smoothed mean .276 and .282, trees on top of it .276 and .281. Trees without
    # a start lost to the plain mean on every set of streams.
    rounds, val_groups = _rounds(sample, start, config, balance)
    return lightgbm.train(_settings(sample, config), _data(sample, start, balance), rounds), rounds, val_groups


def _rounds(sample: TrainingSample, start: Floats, config: StackConfig, balance: float) -> tuple[int, int]:
    """Return the best number of rounds on validation groups, and the number of those groups (0: none, fixed rounds)."""
    val_names = sorted(inner_groups([str(g) for g in np.unique(sample.group)], VAL_FRACTION, config.seed))
    is_val = np.isin(sample.group, np.array(val_names, int))
    if not val_names or not is_val.any() or is_val.all():
        return FEW_GROUPS_ROUNDS, 0
    fit_part, val_groups = sample.where(~is_val), sample.where(is_val)
    stop = lightgbm.early_stopping(PATIENCE, verbose=False)
    booster = lightgbm.train(_settings(fit_part, config), _data(fit_part, start[~is_val], balance), MOST_ROUNDS,
                             valid_sets=[_data(val_groups, start[is_val], balance)], callbacks=[stop])
    return max(1, int(booster.best_iteration)), len(val_names)


def _data(sample: TrainingSample, start: Floats, balance: float) -> lightgbm.Dataset:
    return lightgbm.Dataset(sample.x, sample.label, weight=sample.weights(balance), init_score=start.ravel("F"),
                            params={"feature_pre_filter": False, "verbosity": -1})


def _settings(sample: TrainingSample, config: StackConfig) -> dict[str, object]:
    """Return LightGBM's parameters: small trees, strong regularization."""
    rows_per_block = len(sample.rows) / sample.effective_n()
    return {"objective": "multiclass", "num_class": sample.classes, "learning_rate": LEARNING_RATE,
            "num_leaves": LEAVES, "min_data_in_leaf": max(5, round(EFFECTIVE_N_A_LEAF * rows_per_block)),
            "lambda_l2": SHRINK_EFFECTIVE_N * rows_per_block, "feature_fraction": 0.3, "bagging_fraction": 0.6,
            "bagging_freq": 1,
            # Both are needed for the same bytes with any number of threads.
            "seed": config.seed, "deterministic": True, "force_row_wise": True, "verbosity": -1,
            "num_threads": config.threads if len(sample.rows) >= ROWS_FOR_THREADS else 1}
