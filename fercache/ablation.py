"""What each choice of stage two is worth on a store: one row a change of the recipe, paired with the default.

Notes
-----
Everything compared is out of fold on the training groups. The reported splits are scored for the default alone, after
the fact: no row is ever chosen by them. Each row's books lie in the cache under their own fingerprints, so a run that
was stopped goes on where it was, and another table with some of the rows finds them done.
"""

from __future__ import annotations

import csv
import difflib
import io
import logging
import typing
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fercache import durable, metrics, train_heads
from fercache.config import AblationConfig, TrainConfig
from fercache.datasets import Dataset
from fercache.errors import FercacheError, InputError
from fercache.logits import LogitBook
from fercache.store import EmbeddingStore

log = logging.getLogger(__name__)

DEFAULT = "default"
ROWS = ("taps=embedding", "taps=block8", "taps=repeat_2", "taps=block8+repeat_2", "taps=block8+repeat_2+repeat_1-3x3")
"""Changes that are always tried; beside them every other choice of each switch that has a list of choices."""
STEPS: dict[str, tuple[str, ...]] = {}
"""Values tried of switches that are numbers, as far as `train-heads` has them."""
NO_ROW = ("heads", "taps", "folds", "seed")
"""Choices that the table is not about, or that `ROWS` tries."""
QUICK_FOLDS = 3

Values = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """What one column of a row scored, macro F1 out of fold: the mean over seeds.

    Attributes
    ----------
    spread : standard deviation over seeds (0 for one).
    interval, difference_interval : 95 % by bootstrap over groups, that of the difference paired; None: too few groups.
    difference : from the default's same column.
    """

    macro_f1: float
    spread: float
    interval: tuple[float, float] | None
    difference: float
    difference_interval: tuple[float, float] | None

    @property
    def sure(self) -> bool:
        """Whether the difference's interval leaves 0 out."""
        span = self.difference_interval
        return span is not None and not span[0] <= 0 <= span[1]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table: a change of the recipe, and each column's figures; or why there are none (`skipped`)."""

    name: str
    changed: dict[str, Any]
    figures: dict[str, Figure]
    bytes_a_frame: int
    books: tuple[str, ...]
    skipped: str = ""
    failed: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """All rows, the default first, and what they were scored on.

    Attributes
    ----------
    reported : split -> column -> macro F1 of the default on the other splits, mean over seeds; shown, never compared.
    why_none : why there are no intervals, if so.
    """

    dataset: str
    notice: str
    store: str
    groups: int
    frames: int
    seeds: int
    rows: tuple[Row, ...]
    reported: dict[str, dict[str, float]]
    why_none: str


@dataclass(frozen=True, kw_only=True)
class _Scored:
    """A row's confusion matrices: column -> one a seed of (G, C, C)."""

    books: tuple[LogitBook, ...]
    matrices: dict[str, list[metrics.Counts]]


def run(dataset: Dataset, store: EmbeddingStore, base: TrainConfig, config: AblationConfig, cache: Path) -> Table:
    """Return the table of what each change of `base` is worth on the store.

    Raises
    ------
    InputError
        The default cannot be trained, or a row names a key or value that `train-heads` does not have.
    """
    rows = parse(config.rows or offered(base), base)
    usual = _scored(dataset, store, base, config.repeats, cache)
    groups = len(next(iter(usual.matrices.values()))[0])
    sampler = metrics.Resampler(groups, config.bootstrap, base.seed)
    made = [_row(DEFAULT, {}, base, store, usual, usual, sampler)]
    for place, (name, changed) in enumerate(rows.items(), 2):
        log.info("row %d of %d: %s", place, len(rows) + 1, name)
        made.append(_tried(name, changed, dataset, store, base, config.repeats, cache, usual, sampler))
    frames = int(next(iter(usual.matrices.values()))[0].sum())
    return Table(dataset=dataset.name, notice=dataset.notice, store=store.path.name, groups=groups, frames=frames,
                 seeds=config.repeats, rows=tuple(made), reported=_reported(usual.books), why_none=sampler.why_none)


def quick(base: TrainConfig, config: AblationConfig) -> tuple[TrainConfig, AblationConfig]:
    """Return the two for a first look: one seed, three folds."""
    return replace(base, folds=min(base.folds, QUICK_FOLDS)), replace(config, repeats=1)


def offered(base: TrainConfig) -> tuple[str, ...]:
    """Return the rows that are tried where none is named: taps, and each other choice of every switch."""
    rows = list(ROWS)
    for entry in fields(TrainConfig):
        if entry.name in NO_ROW or not entry.metadata["numbers"]:
            continue
        values = entry.metadata["choices"] if isinstance(getattr(base, entry.name), str) else STEPS.get(entry.name, ())
        rows += [f"{entry.name}={value}" for value in values]
    return tuple(rows)


def parse(rows: Sequence[str], base: TrainConfig) -> dict[str, dict[str, Any]]:
    """Return name -> changed keys of `base` of each row; rows that change nothing are left out.

    Parameters
    ----------
    rows : ``key=value``, several with semicolons between them; a list has plus signs: ``taps=block8+repeat_2``.

    Raises
    ------
    InputError
        No such key, or no such value.
    """
    found = {}
    for row in rows:
        changed = dict(_pair(part.strip(), row) for part in row.split(";"))
        if replace(base, **changed).fingerprint() != base.fingerprint():
            found[row] = changed
    return found


def _pair(text: str, row: str) -> tuple[str, Any]:
    """Return key and value of ``key=value``."""
    key, equals, value = text.partition("=")
    hints = typing.get_type_hints(TrainConfig)
    if not equals or key not in hints:
        near = difflib.get_close_matches(key, hints, 1)
        raise InputError(f"{text!r} changes no key of train-heads", where=f"row {row}",
                         hint=f"did you mean {near[0]}=..?" if near else f"known keys: {', '.join(hints)}")
    try:
        return key, _value(hints[key], value)
    except ValueError as error:
        raise InputError(f"{key} cannot be {value!r}", where=f"row {row}", hint="a row is key=value") from error


def _value(hint: Any, text: str) -> Any:
    """Return a text as a value of the field's type."""
    if typing.get_origin(hint) is tuple:
        return tuple(text.split("+"))
    if hint is bool:
        return bool(("false", "true").index(text.casefold()))  # another word is a ValueError
    return hint(text)


def _tried(name: str, changed: dict[str, Any], dataset: Dataset, store: EmbeddingStore, base: TrainConfig, repeats: int,
           cache: Path, usual: _Scored, sampler: metrics.Resampler) -> Row:
    """Return the row of a change; a row that cannot be trained says why, and the others are done."""
    config = replace(base, **changed)
    lacking = [tap for tap in config.taps if tap not in store.taps]
    if lacking:
        return _none(name, changed, f"the store does not hold {', '.join(lacking)}", failed=False)
    try:
        return _row(name, changed, config, store, _scored(dataset, store, config, repeats, cache), usual, sampler)
    except FercacheError as error:
        log.error("%s: %s", name, error)
        return _none(name, changed, error.what, failed=True)


def _none(name: str, changed: dict[str, Any], why: str, failed: bool) -> Row:
    return Row(name=name, changed=changed, figures={}, bytes_a_frame=0, books=(), skipped=why, failed=failed)


def _row(name: str, changed: dict[str, Any], config: TrainConfig, store: EmbeddingStore, scored: _Scored,
         usual: _Scored, sampler: metrics.Resampler) -> Row:
    return Row(name=name, changed=changed, books=tuple(book.fingerprint[:12] for book in scored.books),
               figures={column: _figure(matrices, usual.matrices.get(column, matrices), sampler)
                        for column, matrices in scored.matrices.items()},
               bytes_a_frame=2 * sum(prod(store.taps[tap]) for tap in config.taps))


def _scored(dataset: Dataset, store: EmbeddingStore, config: TrainConfig, repeats: int, cache: Path) -> _Scored:
    """Return what a setting scored out of fold, seed by seed; what was trained before is not trained again."""
    books = []
    for repeat in range(repeats):
        seeded = replace(config, seed=config.seed + repeat)
        books.append(LogitBook.load(train_heads.run(dataset, store, seeded, cache, point=False).book))
    each = [_matrices(book) for book in books]
    return _Scored(books=tuple(books), matrices={column: [one[column] for one in each] for column in each[0]})


def _matrices(book: LogitBook, split: str = "") -> dict[str, metrics.Counts]:
    """Return column -> (G, C, C), one confusion matrix a group, out of fold or of another split's rows."""
    from fercache.stack import columns, nested  # LightGBM and scikit-learn: a second

    rows = book.label >= 0
    rows &= book.spread(np.array([s == split for s in book.split]) if split else book.fold >= 0)
    _, group = np.unique(book.spread(np.unique(book.group, return_inverse=True)[1])[rows], return_inverse=True)
    said = columns.gather(book, nested.Nested(members={}, columns={}))
    return {name: metrics.confusions(book.label[rows], shares[rows].argmax(1), group, len(book.classes),
                                     int(group.max(initial=-1)) + 1) for name, shares in said.items()}


def _figure(ours: Sequence[metrics.Counts], usual: Sequence[metrics.Counts], sampler: metrics.Resampler) -> Figure:
    """Return a column's figures from its matrices and the default's, each one a seed of (G, C, C)."""
    scores = np.array([float(metrics.macro_f1(m.sum(0))) for m in ours])
    theirs = np.mean([float(metrics.macro_f1(m.sum(0))) for m in usual])
    drawn, other = (_drawn(m, sampler) for m in (ours, usual))
    return Figure(macro_f1=float(scores.mean()), spread=float(scores.std(ddof=1)) if len(scores) > 1 else 0.0,
                  interval=metrics.percentiles(drawn) if len(drawn) else None,
                  difference=float(scores.mean() - theirs),
                  difference_interval=metrics.percentiles(drawn - other) if len(drawn) else None)


def _drawn(matrices: Sequence[metrics.Counts], sampler: metrics.Resampler) -> Values:
    """Return the mean over seeds of the macro F1 of each draw of groups; empty where there are too few groups."""
    if sampler.why_none:
        return np.empty(0)
    return np.asarray(np.mean([metrics.macro_f1(sampler.draw(m)) for m in matrices], axis=0))


def _reported(books: Sequence[LogitBook]) -> dict[str, dict[str, float]]:
    """Return split -> column -> macro F1 of the default on the splits that no fold holds."""
    found: dict[str, dict[str, float]] = {}
    for split in ("validation", "test"):
        each = [_matrices(book, split) for book in books]
        if next(iter(each[0].values())).sum():
            found[split] = {column: float(np.mean([metrics.macro_f1(one[column].sum(0)) for one in each]))
                            for column in each[0]}
    return found


def write(table: Table, out: Path) -> list[Path]:
    """Put the table at `out` (.csv), a line a row and column, and all of it as JSON beside it; return both paths.

    Raises
    ------
    InputError
        Another ending, or nothing can be written there.
    """
    check(out)
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["row", "column", "macro_f1", "sd_over_seeds", "low", "high", "difference", "difference_low",
                    "difference_high", "bytes_a_frame", "seeds", "skipped"])
    for row in table.rows:
        for column, figure in row.figures.items() or [("", None)]:
            lines.writerow([row.name, column, *_cells(figure), row.bytes_a_frame or "", table.seeds, row.skipped])
    durable.write_bytes(out, text.getvalue().encode())
    beside = out.with_suffix(".json")
    durable.write_json(beside, asdict(table))
    return [out, beside]


def check(out: Path) -> None:
    """Refuse a path that no table can be written to, before hours are spent.

    Raises
    ------
    InputError
        Another ending than .csv.
    """
    if out.suffix != ".csv":
        raise InputError("unknown kind of file", where=out, hint="end --out in .csv; the JSON is written beside it")


def _cells(figure: Figure | None) -> list[str]:
    """Return the numbers of a line of the CSV, six decimals each, empty where there are none."""
    if figure is None:
        return [""] * 7
    spans = [figure.interval or ("", ""), figure.difference_interval or ("", "")]
    values = (figure.macro_f1, figure.spread, *spans[0], figure.difference, *spans[1])
    return [value if isinstance(value, str) else f"{value:.6f}" for value in values]
