"""No group stands on two sides."""

from __future__ import annotations

from fercache.diagnostics.finding_part import FAILED, FINE, Finding
from fercache.oof import LogitBook


def splits(book: LogitBook) -> Finding:
    """Return which groups stand in the training split and in another one."""
    sides: dict[str, set[str]] = {}
    for group, split in zip(book.group, book.split, strict=True):
        sides.setdefault(group, set()).add(split)
    crossed = sorted(g for g, found in sides.items() if "train" in found and len(found) > 1)
    return Finding(check="groups and splits", state=FAILED if crossed else FINE,
                   said=f"{len(crossed)} of {len(sides)} groups are in train and in another split",
                   lines=tuple(f"group {g!r} is in {', '.join(sorted(sides[g]))}" for g in crossed))


def folds(book: LogitBook) -> Finding:
    """Return which groups, and which clips, are held out by one fold and learnt from by another one."""
    lines = []
    for what, names in (("group", book.group), ("clip", book.clips)):
        held: dict[str, set[int]] = {}
        for name, fold in zip(names, book.fold.tolist(), strict=True):
            if fold >= 0:
                held.setdefault(name, set()).add(fold)
        lines += [f"{what} {name!r} is in folds {', '.join(map(str, sorted(f)))}" for name, f in sorted(held.items())
                  if len(f) > 1]
    k = int(book.fold.max(initial=-1)) + 1
    return Finding(check="groups and folds", state=FAILED if lines else FINE,
                   said=f"{len(lines)} groups or clips stand in two of {k} folds", lines=tuple(lines))
