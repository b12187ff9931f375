"""The logits that a stack reads: the heads' own, merged with imported ones, and aggregated to clips.

Raises InputError where logits are absent or do not match each other, and StoreError where a file is damaged.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from fercache import logits_import
from fercache.config import fingerprint_of
from fercache.errors import InputError, StoreError
from fercache.oof import OofLogits, open_oof
from fercache.recipe import Context
from fercache.stacking.features import FLOOR, log_softmax
from fercache.workspace import Workspace

log = logging.getLogger(__name__)


def merge_logits(oof: OofLogits, sources: Sequence[OofLogits]) -> OofLogits:
    """Return the logits with the imported sources as further heads, matched by clip, person and frame."""
    return reduce(_with, sources, oof)


def load_logits(cache: Path, dataset: str, trained: Path | None, names: Sequence[str]) -> OofLogits:
    """Return the logits that a stack learns from: those of the heads merged with imported ones, or imported ones only.

    `trained`: the file of the heads' logits. `names`: of imported logits, at least one if `trained` is None.
    """
    sources = logits_import.load(cache, dataset, names)
    if trained:
        return merge_logits(OofLogits.load(trained), sources)
    if not sources:
        raise InputError("neither heads nor imported logits", where=f"data set {dataset}",
                         hint="run `fercache train-heads`, or `fercache logits import`")
    # A source by clip has no frames: with a source by frame first, its rows are spread over that one's frames.
    first = next((s for s in sources if s.provenance.level != "clip"), sources[0])
    return merge_logits(first, [source for source in sources if source is not first])


def choose_logits(context: Context, typed: Mapping[str, Any], path: Path | None, names: Sequence[str]) -> OofLogits:
    """Return the logits at `path` or of the last training, with the imported logits `names` beside the heads.

    `typed`: keys that name the data set; the recipe has the others.
    """
    dataset = context.dataset_name(typed)
    trained = path or context.workspace.current_logits_file_or_none(dataset)
    # Without heads, no names mean all imported logits: there is nothing else to stack.
    if not names and context.dataset_config(typed).dataset == "logits":
        names = tuple(logits_import.imported_names(context.cache, dataset))
        if not trained and not names:
            raise InputError("no logits were imported yet", where=context.workspace.imported_logits(dataset),
                             hint="run `fercache logits import` first")
    if not trained and not names:
        context.workspace.current_logits_file(dataset)  # raises, naming the command that is missing
    return load_logits(context.cache, dataset, trained, names)


def find_logits_files(cache: Path, dataset: str, fingerprint: str, names: Sequence[str]) -> tuple[Path, ...]:
    """Return the file of the logits of a fingerprint, then those of the imported logits that were merged with it.

    Empty where a part is not in the cache, or is no longer what it was. `names`: the imported logits, in the order in
    which `load_logits` merged them.
    """
    # Merged logits have no file of their own. Their fingerprint is made of those of the parts, so it proves which heads
    # the parts were merged with.
    sources = [logits_import.path_of(cache, dataset, name) for name in names]
    # Without heads of its own, a stack begins with imported logits, so these can be the first part too.
    for first in sorted(Workspace(cache).logits(dataset).glob("*.h5")) + sorted(
            Workspace(cache).imported_logits(dataset).glob("*.h5")):
        try:
            prints = []
            for path in (first, *sources):
                with open_oof(path) as reader:
                    prints.append(reader.fingerprint)
        except StoreError:
            continue
        if reduce(lambda merged, part: fingerprint_of([merged, part]), prints) == fingerprint:
            return (first, *sources)
    return ()


@contextmanager
def open_merged(path: Path, imported: Sequence[Path]) -> Iterator[OofLogits]:
    """Yield the logits at `path`, merged with imported ones, to be read trial by trial.

    Merged logits are in memory, as in the stack; without imported ones only the trial at hand is.
    """
    if imported:
        yield merge_logits(OofLogits.load(path), [OofLogits.load(one) for one in imported])
        return
    with open_oof(path) as reader:
        yield reader


def _with(oof: OofLogits, source: OofLogits) -> OofLogits:
    (name,) = source.heads
    if name in oof.heads:
        raise InputError(f"two sources have the name {name!r}", where="stack, logits",
                         hint="import it under another name")
    if sorted(source.classes) != sorted(oof.classes):
        raise InputError(f"its classes are {', '.join(source.classes)}, those of the heads {', '.join(oof.classes)}",
                         where=f"imported logits {name!r}", hint="import a table with the same classes")
    log_probs = source.logits[name][:, [source.classes.index(c) for c in oof.classes]]
    source_row = _matched(oof, source)
    missing = int((source_row < 0).sum())
    if missing == len(source_row):
        raise InputError("it has no frame of this data set", where=f"imported logits {name!r}",
                         hint=f"clips there: {', '.join(source.trials[:3])}; here: {', '.join(oof.trials[:3])}")
    if missing:
        log.warning("imported logits %s: %d of %d rows have no logits; using uniform probabilities", name, missing,
                    len(source_row))
    even = np.float32(-np.log(len(oof.classes)))  # uniform probabilities: no opinion in the mean of the heads
    values = np.where((source_row >= 0)[:, None], log_probs[np.maximum(source_row, 0)], even).astype(np.float32)
    return replace(oof, heads=(*oof.heads, name), logits={**oof.logits, name: values},
                   declared={**oof.declared, **source.declared},
                   fingerprint=fingerprint_of([oof.fingerprint, source.fingerprint]),
                   provenance=msgspec.structs.replace(oof.provenance, merged={**oof.provenance.merged,
                                                                              name: source.provenance}))


def _matched(oof: OofLogits, source: OofLogits) -> NDArray[np.int64]:
    """Return the row of `source` that matches each row, ``(R,)``; -1 without a match."""
    place = {trial: i for i, trial in enumerate(source.trials)}
    clip_level = source.provenance.level == "clip"
    source_row = np.full(len(oof.label), -1, np.int64)
    for trial, name in enumerate(oof.trials):
        source_trial = place.get(name, place.get(oof.clips[trial]))
        if source_trial is None:
            continue
        rows, own_rows = source.rows(source_trial), oof.rows(trial)
        if clip_level:
            source_row[own_rows] = rows.start
            continue
        frames = source.index[rows]
        at = np.clip(np.searchsorted(frames, oof.index[own_rows]), 0, len(frames) - 1)
        hit = (frames[at] == oof.index[own_rows]) & source.valid[rows][at]
        source_row[own_rows] = np.where(hit, rows.start + at, -1)
    return source_row


def aggregate_clips(oof: OofLogits) -> OofLogits:
    """Return one row per clip: the mean of each head's probabilities over all frames of all people.

    Only frames with a face are used, or all frames if none has one. `pooled` holds the statistics of the
    log-probabilities (`features.POOLED`) that the learned columns use.
    """
    trials_of: dict[str, list[int]] = {}
    for trial, clip in enumerate(oof.clips):
        trials_of.setdefault(clip, []).append(trial)
    names = sorted(trials_of)
    firsts = np.array([trials_of[name][0] for name in names], int)
    rows, label = [], []
    for name in names:
        # One row cannot be on both sides of a fold: it would be trained on and scored.
        if len({(oof.group[i], oof.split[i], int(oof.fold[i])) for i in trials_of[name]}) > 1:
            raise InputError("the people of one clip are in different groups, splits or folds", where=name,
                             hint="give them one group, or stack with --level frame")
        every = oof.rows_of(trials_of[name])
        values = np.unique(oof.label[every][oof.label[every] >= 0])
        if len(values) > 1:
            raise InputError("the label changes within the clip", where=name,
                             hint="--level clip is for sets with one label a clip; stack with --level frame")
        label.append(int(values[0]) if len(values) else -1)
        seen = every[oof.valid[every]]
        rows.append(seen if len(seen) else every)
    means, stats = {}, {}
    for head in oof.heads:
        aggregated = [_aggregate(oof.logits[head][own_rows]) for own_rows in rows]
        means[head] = np.stack([mean for mean, _ in aggregated])
        stats[head] = np.stack([stat for _, stat in aggregated])
    return replace(oof, trials=tuple(names), clip=(), group=tuple(oof.group[i] for i in firsts),
                   split=tuple(oof.split[i] for i in firsts), fold=oof.fold[firsts],
                   offsets=np.arange(len(names) + 1), index=np.ones(len(names), np.int32), time_s=np.zeros(len(names)),
                   valid=np.array([bool(oof.valid[own_rows].any()) for own_rows in rows]),
                   label=np.array(label, np.int16), logits=means, pooled=stats)


def _aggregate(logits: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the log of the mean probability, ``(C,)``, and the statistics, ``(S, C)``, of a clip's frames."""
    if not len(logits):
        even = np.full(logits.shape[1], -np.log(logits.shape[1]))
        return even.astype(np.float32), np.stack([even, 0 * even, even, even]).astype(np.float32)
    log_probs = log_softmax(logits)
    mean = np.log(np.maximum(np.exp(log_probs).mean(0), FLOOR))
    stats = np.stack([log_probs.mean(0), log_probs.std(0), log_probs.max(0), log_probs.min(0)])
    return mean.astype(np.float32), stats.astype(np.float32)
