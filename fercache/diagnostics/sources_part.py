"""Where the out-of-fold rows come from: what the records say, and what the rows themselves betray."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fercache import metrics
from fercache.diagnostics.finding_part import FAILED, FINE, SKIPPED, Finding
from fercache.oof import LogitBook

MARGIN = 0.1
"""Training rows may be right so much more often than validation rows (splits differ) before it counts as memory."""
PERFECT = 0.99
DRAWS = 1000


def provenance(book: LogitBook) -> Finding:
    """Return, for every head and fold, which model spoke and whether it had seen one of the fold's groups."""
    bad: list[str] = []
    fine: list[str] = []
    k = int(book.fold.max(initial=-1)) + 1
    for head in book.heads:
        declared = book.declared.get(head)
        if declared:
            (bad if head in book.tainted else fine).append(f"{head}: declared {declared}")
            continue
        for fold in range(k):
            wrong, right = _one(book, head, fold)
            bad += wrong
            fine += right
    own = sum(head not in book.declared for head in book.heads)
    said = f"{own * k} models on record, {len(book.heads) - own} sources by declaration"
    return Finding(check="who predicted what", state=FAILED if bad else FINE, said=said, lines=tuple(bad or fine))


def _one(book: LogitBook, head: str, fold: int) -> tuple[list[str], list[str]]:
    """Return what is wrong with the record of a head of a fold, and what is right."""
    records = [r for r in _records(book) if r.get("head") == head and r.get("fold") == fold]
    if not records:
        return [f"{head}, fold {fold}: no record of the model that spoke"], []
    held = {g for g, f in zip(book.group, book.fold.tolist(), strict=True) if f == fold}
    found, fine = [], []
    for record in records:
        if "trained_on" not in record:
            found.append(f"{head}, fold {fold}: the record does not say what the model was trained on")
            continue
        known = {*record["trained_on"], *record.get("watched", [])}
        seen = held & known
        if not seen:
            fine.append(f"{head}, fold {fold}: speaks of {len(held)} groups, saw {len(known)} others and none of them")
        else:
            found.append(f"{head}, fold {fold}: its model saw {len(seen)} of the {len(held)} groups it speaks of: "
                         f"{', '.join(sorted(seen)[:5])}")
    return found, fine


def _records(book: LogitBook) -> list[dict[str, Any]]:
    records = book.provenance.get("heads", [])
    return [r for r in records if isinstance(r, dict)] if isinstance(records, list) else []


def memory(book: LogitBook, seed: int) -> Finding:
    """Return which heads are right on training rows so much more often than elsewhere that they must remember them."""
    check = "memory of training rows"
    held = (book.spread(book.fold) >= 0) & (book.label >= 0)
    other = (book.spread(book.fold) < 0) & (book.label >= 0)
    few = min(len(set(np.array(book.group)[np.unique(_trial(book)[rows])])) for rows in (held, other))
    if few < metrics.MIN_GROUPS_FOR_INTERVAL:
        return Finding(check=check, state=SKIPPED, said=f"{few} labelled groups outside (or inside) the folds; "
                       f"{metrics.MIN_GROUPS_FOR_INTERVAL} are needed on both sides to compare")
    lines, bad = [], []
    for head in book.heads:
        inside, outside = (_by_group(book, head, rows) for rows in (held, other))
        gap = _low(inside, outside, seed)
        text = (f"{head}: right on {float(metrics.accuracy(inside.sum(0))):.3f} of the training rows, "
                f"{float(metrics.accuracy(outside.sum(0))):.3f} of the others")
        bad += [text + f"; the gap is at least {gap:.3f} (95 %)"] if gap > MARGIN else []
        lines.append(text)
    return Finding(check=check, state=FAILED if bad else FINE, lines=tuple(bad or lines),
                   said=f"{len(bad)} of {len(book.heads)} heads say more of training rows than a model can that never "
                        "saw them")


def _low(inside: metrics.Counts, outside: metrics.Counts, seed: int) -> float:
    """Return the lower end of the 95 % interval of how much more accurate the one is, by bootstrap over groups."""
    drawn = [metrics.accuracy(metrics.Resampler(len(m), DRAWS, seed + i).draw(m))
             for i, m in enumerate((inside, outside))]
    return float(np.quantile(drawn[0] - drawn[1], 0.025))


def truth(book: LogitBook) -> Finding:
    """Return which heads are so right out of fold that they must be made of the labels."""
    rows = (book.spread(book.fold) >= 0) & (book.label >= 0)
    lines = []
    for head in book.heads:
        matrix = _by_group(book, head, rows).sum(0)
        right = float(metrics.accuracy(matrix))
        if right >= PERFECT and (matrix.sum(1) > 0).sum() > 1:
            lines.append(f"{head}: right on {right:.4f} of the out-of-fold rows: it is made of the labels")
    return Finding(check="heads made of labels", state=FAILED if lines else FINE, lines=tuple(lines),
                   said=f"{len(lines)} of {len(book.heads)} heads are right nearly always out of fold")


def _trial(book: LogitBook) -> NDArray[np.int64]:
    return np.asarray(book.spread(np.arange(len(book.trials))))


def _by_group(book: LogitBook, head: str, rows: NDArray[np.bool_]) -> metrics.Counts:
    """Return a confusion matrix for each group that has one of the rows, ``(G, C, C)``."""
    number = book.spread(np.unique(np.array(book.group), return_inverse=True)[1])[rows]
    _, group = np.unique(number, return_inverse=True)
    said = book.logits[head][rows].argmax(1)
    return metrics.confusions(book.label[rows], said, group, len(book.classes), int(group.max(initial=-1)) + 1)
