"""Simulated books of logits: heads that err for a while at a time, lean to the common class, and lose the face."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fercache.heads.registry import HeadSettings
from fercache.oof import HeadRecord, OofLogits, Provenance, RequestedHeads, assign_folds
from fercache.stacking import stack

CLASSES = ("Neutral", "Anger", "Disgust", "Fear", "Happiness", "Sadness", "Surprise")
PRIOR = np.array([0.40, 0.10, 0.05, 0.08, 0.16, 0.12, 0.09])
HEADS = ("frame", "gru", "transformer")
FPS = 30


def simulate(*, groups: int = 20, frames: int = 240, validation: int = 0, heads: tuple[str, ...] = HEADS,
             skill: float = 1.6, seed: int = 0, **more: Any) -> OofLogits:
    """Return a book of one trial a group, the last `validation` groups in no fold.

    Parameters
    ----------
    skill : how far the heads' logits of the right class stand out of noise of about 1.5, which is shared in part.
    more : fields of the book that shall be otherwise.
    """
    rng = np.random.default_rng(seed)
    total = groups + validation
    lengths = rng.integers(frames * 2 // 3, frames * 4 // 3 + 1, total)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    label = np.concatenate([_labels(n, rng) for n in lengths])
    said = {head: np.concatenate([_logits(label[a:b], skill, rng) for a, b in pairwise(offsets)])
            for head in heads}
    valid = np.concatenate([_seen(n, rng) for n in lengths])
    index = np.concatenate([np.arange(1, n + 1) for n in lengths]).astype(np.int32)
    names = tuple(f"video{i:05d}" for i in range(total))
    counts = np.array([np.bincount(label[a:b], minlength=7) for a, b in pairwise(offsets)])
    counts[groups:] = 0
    book = OofLogits(dataset="simulated", classes=CLASSES, metric="macro_f1", notice="simulated", heads=heads,
                     trials=names, group=names, split=("train",) * groups + ("validation",) * validation,
                     fold=assign_folds(names, counts, 5,
                                             0), offsets=offsets, index=index, time_s=(index - 1) / FPS,
                     valid=valid, label=label.astype(np.int16), logits=said, provenance=Provenance(),
                     fingerprint=hashlib.sha256(repr((groups, frames, validation, skill, seed)).encode()).hexdigest())
    return replace(book, **more)


def head_record(head: str, fold: int, train_groups: Sequence[str] = ()) -> HeadRecord:
    """Return the record of a trained head."""
    return HeadRecord(head=head, fold=fold, member=0, seed=0, classes=CLASSES, settings=HeadSettings(), taps=(),
                      requested=RequestedHeads(heads=(head,), needs=(head,), folds=5, ensemble=1), input_taps=(),
                      normalize="train", frame_s=.04, train_groups=tuple(train_groups), val_groups=(), store={},
                      store_digest="", epoch=1, val_macro_f1=None)


def _labels(frames: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return a label a frame, in stretches of about two seconds."""
    lengths = np.maximum(12, rng.lognormal(3.8, 0.6, frames // 12 + 1)).astype(int)
    return np.repeat(rng.choice(7, len(lengths), p=PRIOR), lengths)[:frames]


def _logits(label: NDArray[np.int64], skill: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return logits, ``(T, 7)``, whose errors last about half a second."""
    noise = rng.normal(0, 1.5, (len(label) // 15 + 2, 7))
    slow = np.repeat(noise, 15, axis=0)[:len(label)]
    fast = rng.normal(0, 0.7, (len(label), 7))
    return (skill * np.eye(7)[label] + slow + fast + 0.7 * np.log(PRIOR)).astype(np.float32)


def _seen(frames: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    seen = np.ones(frames, bool)
    for start in rng.integers(0, frames, 2):
        seen[start:start + rng.integers(1, 25)] = False
    return seen


def predict_new(folder: Path, oof: OofLogits) -> NDArray[np.int32]:
    """Return the final predictions of the stack run in `folder` for new trials, in parts per million."""
    return stack.StackInference.of(folder, oof).probs_ppm(oof)
