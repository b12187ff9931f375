"""Logits from elsewhere beside the heads: rows are matched by clip, person and frame number."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import reduce
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fercache import logits_import
from fercache.config import fingerprint_of
from fercache.errors import InputError, StoreError
from fercache.oof import IN_SAMPLE, LoadedOofReader, OofLogits, OofReader, open_oof
from fercache.stacking.features import FLOOR, log_softmax

log = logging.getLogger(__name__)


CLIP_LEVEL = "clip"
IMPORTED = "logits "
"""Before the names of imported logits in the provenance of merged ones."""


def merge_logits(book: OofLogits, sources: Sequence[OofLogits]) -> OofLogits:
    """Return the book with the imported logits as further heads.

    Raises
    ------
    InputError
        A source has other classes, has a head's name, or speaks of none of the book's frames.
    """
    for source in sources:
        book = _with(book, source)
    return book


def load_logits(cache: Path, dataset: str, trained: Path | None, names: Sequence[str]) -> OofLogits:
    """Return the book that a stack learns from: the heads' one, imported logits beside it; or imported logits alone.

    Parameters
    ----------
    trained : the heads' book; None where there is none.
    names : of imported logits; at least one where there are no heads.

    Raises
    ------
    InputError
        There are no such logits, or two sources do not fit together.
    StoreError
        A book cannot be read.
    """
    sources = logits_import.load(cache, dataset, names)
    if trained:
        return merge_logits(OofLogits.load(trained), sources)
    if not sources:
        raise InputError("neither heads nor imported logits", where=f"data set {dataset}",
                         hint="run `fercache train-heads`, or `fercache logits import`")
    first = next((s for s in sources if s.provenance.get("level") != CLIP_LEVEL), sources[0])
    return merge_logits(first, [source for source in sources if source is not first])


def find_logits_files(cache: Path, dataset: str, fingerprint: str, names: Sequence[str]) -> tuple[Path, ...]:
    """Return the file of the logits of a fingerprint, then those of the imported logits that were merged with it.

    Parameters
    ----------
    names : the imported logits, in the order in which `load_logits` merged them.

    Notes
    -----
    Merged logits have no file of their own. Their fingerprint is made of those of the parts, so it proves which heads
    the parts were merged with. Empty where a part is not in the cache, or is no longer what it was.
    """
    sources = [logits_import.path_of(cache, dataset, name) for name in names]
    for first in sorted((cache / "logits" / dataset).glob("*.h5")) + sorted(
            logits_import.folder_of(cache, dataset).glob("*.h5")):
        try:
            prints = []
            for path in (first, *sources):
                with open_oof(path) as reader:
                    prints.append(reader.fingerprint)
        except StoreError:
            continue
        if reduce(lambda whole, part: fingerprint_of([whole, part]), prints) == fingerprint:
            return (first, *sources)
    return ()


@contextmanager
def open_merged(path: Path, imported: Sequence[Path]) -> Iterator[OofReader]:
    """Yield the logits at `path`, merged with imported ones, to be read trial by trial.

    Raises
    ------
    StoreError
        A file is absent, torn, or holds no logits.

    Notes
    -----
    Merged logits are held in memory, as the stack held them; without imported ones only the trial at hand is.
    """
    if imported:
        yield LoadedOofReader(merge_logits(OofLogits.load(path), [OofLogits.load(one) for one in imported]))
        return
    with open_oof(path) as reader:
        yield reader


def refuse_in_sample(book: OofLogits, force: bool) -> None:
    """Refuse sources that were fitted on the rows that the stacker is to learn from.

    Raises
    ------
    InputError
        There is one, and it is not forced.
    """
    if book.leaky_heads and not force:
        raise InputError(f"declared {IN_SAMPLE}: {', '.join(book.leaky_heads)} saw the labels of the training rows, so "
                         "what the stacker would learn is how far to trust a memory", where="stack, logits",
                         hint="leave it out of --logits, or import out-of-fold logits of that model; --force learns "
                              "from it all the same, keeps it out of `--select auto` and says so in the output")


def _with(book: OofLogits, source: OofLogits) -> OofLogits:
    (name,) = source.heads
    if name in book.heads:
        raise InputError(f"two sources are called {name!r}", where="stack, logits", hint="import it by another name")
    if sorted(source.classes) != sorted(book.classes):
        raise InputError(f"its classes are {', '.join(source.classes)}, those of the book {', '.join(book.classes)}",
                         where=f"imported logits {name!r}", hint="import a table with the same classes")
    log_probs = source.logits[name][:, [source.classes.index(c) for c in book.classes]]
    found = _matched(book, source)
    missing = int((found < 0).sum())
    if missing == len(found):
        raise InputError("it speaks of no frame of this data set", where=f"imported logits {name!r}",
                         hint=f"clips there: {', '.join(source.trials[:3])}; here: {', '.join(book.trials[:3])}")
    if missing:
        log.warning("imported logits %s: nothing said of %d of %d rows; even odds there", name, missing, len(found))
    even = np.float32(-np.log(len(book.classes)))
    values = np.where((found >= 0)[:, None], log_probs[np.maximum(found, 0)], even).astype(np.float32)
    return replace(book, heads=(*book.heads, name), logits={**book.logits, name: values},
                   declared={**book.declared, **source.declared},
                   fingerprint=fingerprint_of([book.fingerprint, source.fingerprint]),
                   provenance={**book.provenance, f"{IMPORTED}{name}": source.provenance})


def _matched(book: OofLogits, source: OofLogits) -> NDArray[np.int64]:
    """Return the source's row for each row of the book, ``(R,)``, -1 where it has none."""
    place = {trial: i for i, trial in enumerate(source.trials)}
    whole = source.provenance.get("level") == CLIP_LEVEL
    found = np.full(len(book.label), -1, np.int64)
    for trial, name in enumerate(book.trials):
        there = place.get(name, place.get(book.clips[trial]))
        if there is None:
            continue
        rows, mine = source.rows(there), book.rows(trial)
        if whole:
            found[mine] = rows.start
            continue
        frames = source.index[rows]
        at = np.clip(np.searchsorted(frames, book.index[mine]), 0, len(frames) - 1)
        hit = (frames[at] == book.index[mine]) & source.valid[rows][at]
        found[mine] = np.where(hit, rows.start + at, -1)
    return found


# From frames to clips: one row a clip, for sets that have one label a clip.

def aggregate_clips(book: OofLogits) -> OofLogits:
    """Return the book with one row a clip: the mean of the heads' probabilities over the frames of all its people.

    Raises
    ------
    InputError
        A clip's people stand on two sides of a split, or its label changes within the clip.

    Notes
    -----
    Frames with a face count, all frames of a clip without any. Beside the mean stand mean, spread, most and least of
    the log-probabilities (`features.POOLED`), for those who learn.
    """
    members: dict[str, list[int]] = {}
    for trial, clip in enumerate(book.clips):
        members.setdefault(clip, []).append(trial)
    names = sorted(members)
    firsts = np.array([_one_side(book, name, members[name]) for name in names], int)
    rows = [_rows(book, members[name]) for name in names]
    means, stats = {}, {}
    for head in book.heads:
        both = [_aggregate(book.logits[head][mine]) for mine in rows]
        means[head] = np.stack([mean for mean, _ in both])
        stats[head] = np.stack([stat for _, stat in both])
    return replace(book, trials=tuple(names), clip=(), group=tuple(book.group[i] for i in firsts),
                   split=tuple(book.split[i] for i in firsts), fold=book.fold[firsts],
                   offsets=np.arange(len(names) + 1), index=np.ones(len(names), np.int32), time_s=np.zeros(len(names)),
                   valid=np.array([bool(book.valid[mine].any()) for mine in rows]),
                   label=np.array([_label(book, name, members[name]) for name in names], np.int16),
                   logits=means, pooled=stats)


def rows_of_clips(book: OofLogits, clips: OofLogits) -> NDArray[np.int64]:
    """Return the clip, as a row of the pooled book, of each row of the book, ``(R,)``."""
    place = {name: i for i, name in enumerate(clips.trials)}
    return np.asarray(book.per_row(np.array([place[name] for name in book.clips], np.int64)))


def _one_side(book: OofLogits, name: str, trials: list[int]) -> int:
    """Return the first trial of a clip, all of whose trials stand together."""
    sides = {(book.group[i], book.split[i], int(book.fold[i])) for i in trials}
    if len(sides) > 1:
        raise InputError("the people of one clip are in different groups, splits or folds", where=name,
                         hint="give them one group, or stack with --level frame")
    return trials[0]


def _rows(book: OofLogits, trials: list[int]) -> NDArray[np.int64]:
    """Return the rows of a clip that count."""
    rows = np.concatenate([np.arange(book.offsets[i], book.offsets[i + 1]) for i in trials])
    seen = rows[book.valid[rows]]
    return seen if len(seen) else rows


def _label(book: OofLogits, name: str, trials: list[int]) -> int:
    rows = np.concatenate([np.arange(book.offsets[i], book.offsets[i + 1]) for i in trials])
    known = np.unique(book.label[rows][book.label[rows] >= 0])
    if len(known) > 1:
        raise InputError("the label changes within the clip", where=name,
                         hint="--level clip is for sets with one label a clip; stack with --level frame")
    return int(known[0]) if len(known) else -1


def _aggregate(logits: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return log of the mean probability, ``(C,)``, and the statistics, ``(S, C)``, of a clip's frames."""
    if not len(logits):
        even = np.full(logits.shape[1], -np.log(logits.shape[1]))
        return even.astype(np.float32), np.stack([even, 0 * even, even, even]).astype(np.float32)
    log_probs = log_softmax(logits)
    mean = np.log(np.maximum(np.exp(log_probs).mean(0), FLOOR))
    stats = np.stack([log_probs.mean(0), log_probs.std(0), log_probs.max(0), log_probs.min(0)])
    return mean.astype(np.float32), stats.astype(np.float32)
