"""Every column of the table: each head, their plain mean, and what was learnt; and which one is final."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fercache import metrics
from fercache.data.folds import MIN_GROUPS_TO_CHOOSE
from fercache.errors import InputError
from fercache.heads import registry as head_registry
from fercache.oof import OofLogits
from fercache.results import missing_faces
from fercache.stacking.nested_cv import NestedResult, Probs
from fercache.stacking.smoothed_mean import softmax

log = logging.getLogger(__name__)


# Without the future: which heads a causal stack may listen to.

def uses_later_frames(head: str, book: OofLogits) -> bool:
    """Return whether a head's prediction of a frame depends on later frames.

    Notes
    -----
    The user who imports logits decides that they are causal. A head that is neither registered nor imported is unknown,
    and counts as one that uses later frames.
    """
    spec = head_registry.HEADS.get(head)
    return spec.lookahead if spec is not None else head not in book.declared


def drop_lookahead_heads(book: OofLogits) -> OofLogits:
    """Return the book without the heads that look at later frames.

    Raises
    ------
    InputError
        No other head is there, or rows are whole clips.
    """
    if book.pooled:
        raise InputError("a clip's prediction looks at the whole clip", where="stack",
                         hint="drop --causal, or choose --level frame")
    kept = tuple(head for head in book.heads if not uses_later_frames(head, book))
    if not kept:
        raise InputError(f"--causal: {', '.join(book.heads)} look at later frames, and there is no other head",
                         where="stack", hint="train the head `frame`, or import logits of a causal model")
    settings = book.provenance.get("settings", {})
    if set(kept) - set(book.declared) and isinstance(settings, dict) and settings.get("normalize") == "clip":
        raise InputError("--causal: the heads' features were standardised over whole clips, later frames included",
                         where="stack", hint="train heads with another --normalize")
    if len(kept) < len(book.heads):
        log.info("causal: without %s, which look at later frames",
                 ", ".join(head for head in book.heads if head not in kept))
    return replace(book, heads=kept, logits={head: book.logits[head] for head in kept})


DESCRIPTIONS = {"mean": "plain mean of the heads' probabilities",
        "chain": "the heads' log-probabilities as evidence for a Markov chain of the classes",
        "smoothed-mean": "the heads' log-probabilities, each smoothed over time, and `chain`, with a weight each and a bias a "
                  "class",
        "logistic": "logistic regression on the stacker's features",
        "geometric-mean": "geometric mean of `smoothed-mean` and `logistic`",
        "stack": "LightGBM on the stacker's features, starting from `smoothed-mean`"}


@dataclass(frozen=True, kw_only=True)
class FinalCandidate:
    """The column that preds.csv holds, and why."""

    name: str
    why: str


@dataclass(frozen=True, kw_only=True)
class GapFiller:
    """What becomes of a book's frames without a face, worked out once.

    Attributes
    ----------
    sources : the rows that each row is filled from, ``(R,)``.
    head_sources : the rows that each row of a head itself is taken from, ``(R,)``. A head's logits of a frame without a
        face may be a copy of the nearest face. In a causal run that could be a later one, so an earlier face is taken.
    blind : (R,) the rows without a face in clips that have faces.
    early : (R,) where nothing may look ahead, the rows before their clip's first face.
    """

    policy: str
    sources: missing_faces.GapSources
    head_sources: missing_faces.GapSources
    faceless: NDArray[np.bool_]
    before_first_face: NDArray[np.bool_]

    @classmethod
    def of(cls, book: OofLogits, policy: str = "nearest", *, causal: bool = False) -> GapFiller:
        """Return how a book is filled.

        Parameters
        ----------
        policy : see `fercache.gaps`.
        causal : take nothing from a later frame.

        Raises
        ------
        InputError
            A line is to be causal.
        """
        every = np.arange(len(book.label))
        found, own = (missing_faces.GapSources(every.copy(), every.copy(), np.zeros(len(every))) for _ in range(2))
        blind, early = np.zeros((2, len(every)), bool)
        for trial in np.flatnonzero(np.diff(book.offsets)).tolist():
            rows = book.rows(trial)
            valid = book.valid[rows]
            early[rows] = causal & ~np.logical_or.accumulate(valid)
            if valid.all() or not valid.any():
                continue
            for target, how in ((found, policy), (own, "nearest" if causal else "none")):
                here = missing_faces.gap_sources(book.time_s[rows], valid, how, causal=causal)
                target.before[rows], target.after[rows] = here.before + rows.start, here.after + rows.start
                target.weight[rows] = here.weight
            blind[rows] = ~valid
        return cls(policy=policy, sources=found, head_sources=own, faceless=blind, before_first_face=early)

    def refill(self, probs: Probs) -> Probs:
        """Return probabilities whose frames without a face are filled once more, after those with one were changed.

        Notes
        -----
        A temperature bends probabilities: the line between two frames is drawn after that, else it is no line any more.
        """
        return np.asarray(self.sources.apply(probs), np.float32) if self.policy in missing_faces.COPIED else probs


def gather_candidates(book: OofLogits, nested: NestedResult, filling: GapFiller | None = None) -> dict[str, Probs]:
    """Return column -> probabilities, ``(R, C)`` float32, of every row of the book.

    Parameters
    ----------
    filling : what becomes of frames without a face; by default they have what the nearest one with a face has. Where
        nothing may look ahead, heads and mean have even odds before the first face.

    Raises
    ------
    InputError
        Frames are left to the temporal heads, and the book has none.
    """
    filling = filling or GapFiller.of(book)
    heads = {head: filling.head_sources.apply(
        softmax(book.logits[head] * ~filling.before_first_face[:, None]).astype(np.float32)) for head in book.heads}
    values = {**heads, "mean": _mean(heads), **nested.columns}
    filled = {name: filling.sources.apply(values) for name, values in values.items()}
    if filling.policy in missing_faces.COPIED:
        return filled
    unfilled = missing_faces.unfilled_heads(book.heads, filling.policy)
    if not unfilled:
        raise InputError("no temporal head to leave the frames without a face to",
                         where="stack, missing_faces = temporal-heads",
                         hint=f"train one of {', '.join(missing_faces.TEMPORAL)}, or choose another policy with --missing-faces")
    temporal_mean = _mean({head: heads[head][filling.faceless] for head in unfilled})
    for name in filled:
        if name not in unfilled:
            filled[name][filling.faceless] = temporal_mean
    return filled


def _mean(heads: dict[str, Probs]) -> Probs:
    """Return the plain mean of the heads' probabilities."""
    first = next(iter(heads.values()))
    return np.asarray(sum(heads.values(), np.zeros(first.shape, np.float32)) / len(heads), np.float32)


def choose_final(book: OofLogits, columns: dict[str, Probs], wanted: str, metric: str) -> FinalCandidate:
    """Return the final column: the one that was asked for, or the one that scored best out of fold.

    Raises
    ------
    InputError
        The column that was asked for is not there.

    Notes
    -----
    Columns with a source in them that was fitted on the training rows have no out-of-fold score and are no candidates.
    """
    if wanted != "auto":
        if wanted not in columns:
            raise InputError(f"no column {wanted!r} to be final", where="stack",
                             hint=f"this book gives {', '.join(columns)}")
        return FinalCandidate(name=wanted, why="asked for")
    held = (book.per_row(book.fold) >= 0) & (book.label >= 0)
    groups = len({g for g, f in zip(book.group, book.fold, strict=True) if f >= 0})
    clean = [name for name in columns if name not in leaky_heads(book, columns)]
    if not clean:
        raise InputError("every column has a source that was fitted on the training rows; nothing can be chosen",
                         where="stack", hint="name one with --select, or leave the in-sample source out of --logits")
    if book.epochs_fixed or groups < MIN_GROUPS_TO_CHOOSE:
        return FinalCandidate(name="mean" if "mean" in clean else clean[0],
                     why=f"{groups} groups: with fewer than {MIN_GROUPS_TO_CHOOSE} nothing is chosen by score, and the "
                         "plain mean is final")
    figure = metrics.official(metric)
    scores = {name: float(figure(metrics.confusion(book.label[held], columns[name][held].argmax(1),
                                                   len(book.classes)))) for name in clean}
    best = max(scores, key=lambda name: scores[name])
    return FinalCandidate(name=best, why=f"best {metric} out of fold ({scores[best]:.4f}) on the training groups")


def leaky_heads(book: OofLogits, columns: Iterable[str]) -> dict[str, str]:
    """Return column -> why its training rows are not out of fold, for those of which that is so."""
    bad = book.leaky_heads
    return {name: f"declared in-sample: {name if name in bad else 'learnt with ' + ', '.join(bad)}" for name in columns
            if bad and (name in bad or name not in book.heads)}


def to_ppm(probabilities: Probs) -> NDArray[np.int32]:
    """Return probabilities, ``(R, C)``, in millionths that sum to a million in each row.

    Notes
    -----
    Largest remainder: what is lost by rounding down goes to the classes that lost most, so that six decimals sum to 1.
    """
    exact = probabilities.astype(float)
    exact *= 1e6 / exact.sum(1, keepdims=True)
    units = np.floor(exact).astype(np.int32)
    missing = 1_000_000 - units.sum(1)
    rank = np.argsort(np.argsort(units - exact, axis=1, kind="stable"), axis=1, kind="stable")
    return np.asarray(units + (rank < missing[:, None]), np.int32)
