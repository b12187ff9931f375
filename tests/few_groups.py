"""Simulated logits of few groups, whose heads have the bias of leave-group-out: each fold lacks its own labels."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax

from fercache.oof import OofLogits, Provenance, assign_folds

HEADS = ("frame", "gru", "transformer")
LABELS = ("group", "half", "free")
SETTINGS = tuple({"labels": labels, "balanced": balanced, "pull": pull}
                 for labels in LABELS for pull in (1.0, 0.0) for balanced in (True, False))
"""The kinds of labelings that must not give a score from nowhere, the hardest one first."""


def draw(groups: int, *, seed: int, classes: int = 2, frames: int = 12, labels: str = "group", balanced: bool = True,
         pull: float = 1.0, skill: float = 0.0, noise: float = 0.15, experts: bool = False) -> OofLogits:
    """Return logits of one clip a group.

    Parameters
    ----------
    labels : constant in a group, constant in half a group, or free (another one every two frames).
    balanced : whether all classes are equally frequent; else the first class has .7 of the labels.
    pull : how strongly a head repeats the logarithm of the class shares of its fold's training part; 0 is no bias.
    skill : the logit that the right class has above the others.
    noise : standard deviation of the logits between groups, and of a frame around its group; half is common to heads.
    experts : each head knows other classes, so that together they know all of them.
    """
    rng = np.random.default_rng([groups, seed, classes])
    names = tuple(f"g{i:03d}" for i in range(groups))
    parts = {"group": 1, "half": 2, "free": max(frames // 2, 1)}[labels]
    share = np.full(classes, 1 / classes) if balanced else np.r_[0.7, np.full(classes - 1, 0.3 / (classes - 1))]
    # An even sequence of quantiles, shuffled, has the stated shares in every draw.
    exact = np.searchsorted(np.cumsum(share), (np.arange(groups * parts) + 0.5) / (groups * parts))
    by_part = rng.permutation(np.minimum(exact, classes - 1)).reshape(groups, parts)
    label = np.repeat(by_part, -(-frames // parts), axis=1).reshape(groups, -1)[:, :frames]
    counts = np.stack([np.bincount(row, minlength=classes) for row in label])
    fold = assign_folds(names, counts, 5, 0)
    row_fold, row_label = np.repeat(fold, frames), label.ravel()
    shared = _noise(groups, frames, classes, rng)
    logits = {}
    for number, head in enumerate(HEADS):
        known = np.arange(classes) % len(HEADS) == number if experts else np.ones(classes, bool)
        values = noise * (shared + _noise(groups, frames, classes, rng)) / np.sqrt(2)
        values += skill * np.eye(classes)[row_label] * known[row_label][:, None]
        values += pull * log_shares(counts, fold)[row_fold]
        logits[head] = values.astype(np.float32)
    index = np.tile(np.arange(1, frames + 1), groups).astype(np.int32)
    key = repr((groups, seed, classes, frames, labels, balanced, pull, skill, noise, experts))
    return OofLogits(dataset="few", classes=tuple("abcdefgh"[:classes]), metric="macro_f1", notice="", heads=HEADS,
                     trials=names, group=names, split=("train",) * groups, fold=fold,
                     offsets=np.arange(groups + 1) * frames, index=index, time_s=(index - 1) / 30,
                     valid=np.ones(groups * frames, bool), label=row_label.astype(np.int16), logits=logits,
                     provenance=Provenance(), fingerprint=hashlib.sha256(key.encode()).hexdigest())


def train_heads(oof: OofLogits, *, seed: int, skill: float = 0.0, experts: bool = False, dims: int = 32,
                ) -> tuple[OofLogits, OofLogits]:
    """Return logits of heads that are trained on each fold: out of fold, and as for new clips, the mean over folds.

    A head is a logistic regression on `dims` features of its own, which contain noise of a group and of a frame, and
    `skill` times a direction for each class that the head knows (`experts`: other classes than the other heads).
    """
    rng, classes, fold = np.random.default_rng([seed, 99]), len(oof.classes), oof.per_row(oof.fold)
    logits, new = {}, {}
    for number, head in enumerate(oof.heads):
        known = np.arange(classes) % len(oof.heads) == number if experts else np.ones(classes, bool)
        directions = rng.normal(size=(classes, dims))
        directions *= skill * known[:, None] / np.linalg.norm(directions, axis=1, keepdims=True)
        noise = _noise(len(oof.trials), len(fold) // len(oof.trials), dims, rng) / np.sqrt(2)
        x = np.c_[directions[oof.label] + noise, np.ones(len(fold))]
        by_fold = np.stack([x @ _fit(x[fold != k], oof.label[fold != k], classes).T for k in range(fold.max() + 1)])
        logits[head] = by_fold[fold, np.arange(len(fold))].astype(np.float32)
        new[head] = by_fold.mean(0).astype(np.float32)
    trained = replace(oof, logits=logits, fingerprint=hashlib.sha256(f"{oof.fingerprint} {seed}".encode()).hexdigest())
    return trained, replace(trained, logits=new, fold=np.full_like(oof.fold, -1))


def _fit(x: NDArray[np.float64], label: NDArray[np.int16], classes: int) -> NDArray[np.float64]:
    """Return weights of logistic regression with a ridge of 1, ``(C, D)``."""
    target = np.eye(classes)[label]

    def loss(values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights = values.reshape(classes, -1)
        log_probs = log_softmax(x @ weights.T, axis=1)
        slope = (np.exp(log_probs) - target).T @ x + weights
        return float((weights**2).sum() / 2 - (log_probs * target).sum()), slope.ravel()

    found = minimize(loss, np.zeros(classes * x.shape[1]), jac=True, method="L-BFGS-B").x
    return np.asarray(found).reshape(classes, -1)


def log_shares(counts: NDArray[np.int64], fold: NDArray[np.int16]) -> NDArray[np.float64]:
    """Return the log class shares, ``(folds, C)``, of what the heads of each fold are trained on."""
    rest = np.stack([counts[fold != k].sum(0) for k in range(int(fold.max()) + 1)]) + 0.5
    return np.asarray(np.log(rest / rest.sum(1, keepdims=True)))


def _noise(groups: int, frames: int, classes: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return noise, ``(groups * frames, C)``: one draw a group, and one a frame."""
    between = np.repeat(rng.normal(size=(groups, classes)), frames, axis=0)
    return np.asarray(between + rng.normal(size=(groups * frames, classes)))
