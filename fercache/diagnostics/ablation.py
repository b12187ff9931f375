"""Ablation: train the heads with one change of the recipe per row and compare each row with the default."""
# All comparisons use out-of-fold rows of the training groups. Only the default is scored on the other splits, so no row
# can be chosen by them. The cache holds the logits of each row under their own fingerprint: a stopped run resumes, and
# another table with the same rows reuses them.

from __future__ import annotations

import csv
import io
import logging
import time
import typing
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from fercache import metrics
from fercache.backbones.taps import tap_views
from fercache.config import HEAD_KEYS, TEMPORAL_KEYS, AblationConfig, TrainConfig
from fercache.data.base import Dataset
from fercache.errors import FercacheError, InputError
from fercache.oof import OofLogits
from fercache.recipe import refuse_unknown
from fercache.runtime import atomic_io
from fercache.store.embedding_store import EmbeddingStore
from fercache.training import train

log = logging.getLogger(__name__)

ROWS = ("taps=embedding", "taps=block8", "taps=repeat_2", "taps=block8+repeat_2", "taps=block8+repeat_2+repeat_1-3x3")
"""Changes that are always tried. `offered_rows` adds every other choice of each switch that has a list of choices."""
STEPS = {"window_s": ("1", "2", "4", "8", "16"), "step_s": ("0", "0.1", "0.3"), "ensemble": ("1",),
         "label_smoothing": ("0", "0.1"), "mixup": ("0.2",), "noise": ("0.2",), "time_mask_s": ("0.5",),
         "ema": ("0.99",), "dropout": ("0.2", "0.5")}
"""Values to try for switches that are numbers."""
NO_ROW = ("heads", "taps", "folds", "seed", "precision", "level", "finetune_tap", "refit")
"""Keys without rows of their own: they are not ablated, or `ROWS` covers them."""


def offered_rows(base: TrainConfig) -> tuple[str, ...]:
    """Return the rows to try when the user names none: taps, and each other choice of every switch."""
    rows = list(ROWS)
    for entry in fields(TrainConfig):
        if entry.name in NO_ROW or not entry.metadata["numbers"]:
            continue
        values = entry.metadata["choices"] if isinstance(getattr(base, entry.name), str) else STEPS.get(entry.name, ())
        rows += [f"{entry.name}={value}" for value in values]
    return tuple(rows)


def parse_rows(rows: Sequence[str], base: TrainConfig) -> dict[str, dict[str, Any]]:
    """Return name -> changed keys of `base` of each row; rows that change nothing are left out.

    `rows`: ``key=value``; semicolons separate several changes, plus signs the items of a list:
    ``taps=block8+repeat_2``.
    """
    changes = {}
    for row in rows:
        changed = dict(_pair(part.strip(), row) for part in row.split(";"))
        if replace(base, **changed).fingerprint() != base.fingerprint():
            changes[row] = changed
    return changes


def has_no_effect(changed: dict[str, Any], base: TrainConfig) -> bool:
    """Return whether a change affects no head: it repeats a head's own setting, or sets what no head uses."""
    from fercache.training.cross_validation import settings_for

    if not changed.keys() <= {*HEAD_KEYS, *TEMPORAL_KEYS}:
        return False
    default, other = ([settings_for(head, config, "cpu", oof_input=oof_input, few_groups=False) for head in base.heads
                       for oof_input in (True, False)] for config in (base, replace(base, **changed)))
    return default == other


def _pair(text: str, row: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    refuse_unknown([key], [TrainConfig], f"row {row}")
    if not equals:
        raise InputError(f"{text!r} names no value", where=f"row {row}", hint=f"a row is key=value: {key}=..")
    hint = typing.get_type_hints(TrainConfig)[key]
    try:
        return key, tuple(value.split("+")) if typing.get_origin(hint) is tuple else hint(value)
    except ValueError as error:
        raise InputError(f"{key} cannot be {value!r}", where=f"row {row}", hint="a row is key=value") from error


@dataclass(frozen=True, kw_only=True)
class AblationFigure:
    """Out-of-fold macro F1 of one column of a row, averaged over seeds."""

    macro_f1: float
    spread: float  # standard deviation over seeds (0 for one)
    # `interval`, `difference_interval`: 95 % bootstrap intervals over groups (the second one paired); None: too few
    # groups
    interval: tuple[float, float] | None
    difference: float  # this score minus the default's score in the same column
    difference_interval: tuple[float, float] | None

    @property
    def sure(self) -> bool:
        """Whether the interval of the difference excludes 0."""
        span = self.difference_interval
        return span is not None and not span[0] <= 0 <= span[1]


@dataclass(frozen=True, kw_only=True)
class AblationScores:
    """A row's confusion matrices: column -> one (G, C, C) array per seed."""

    oofs: tuple[OofLogits, ...]
    matrices: dict[str, list[metrics.Counts]]


def scored(dataset: Dataset, store: EmbeddingStore, config: TrainConfig, repeats: int, cache: Path) -> AblationScores:
    """Return the out-of-fold scores of a setting, one per seed; reuse heads that the cache holds."""
    oofs = []
    for repeat in range(repeats):
        seeded = replace(config, seed=config.seed + repeat)
        oofs.append(OofLogits.load(train.train_heads(dataset, store, seeded, cache, make_current=False).logits_file))
    each = [fold_confusions(oof) for oof in oofs]
    return AblationScores(oofs=tuple(oofs), matrices={column: [m[column] for m in each] for column in each[0]})


def fold_confusions(oof: OofLogits, split: str = "") -> dict[str, metrics.Counts]:
    """Return column -> (G, C, C), one confusion matrix per group, for the out-of-fold rows or those of `split`."""
    from fercache.stacking import candidates, nested_cv

    rows = (oof.label >= 0) & oof.per_row(np.array(oof.split) == split) if split else oof.scored
    by_candidate = candidates.gather_candidates(oof, nested_cv.NestedResult())
    return {name: oof.confusions(probs.argmax(1), rows) for name, probs in by_candidate.items()}


def figure_of(matrices: Sequence[metrics.Counts], default: Sequence[metrics.Counts],
              sampler: metrics.Resampler) -> AblationFigure:
    """Return a column's figures from its matrices and the default's, one (G, C, C) array per seed."""
    scores = np.array([float(metrics.macro_f1(counts.sum(0))) for counts in matrices])
    default_score = np.mean([float(metrics.macro_f1(counts.sum(0))) for counts in default])
    interval = difference_interval = None
    if not sampler.why_none:
        # Both use the same draws of groups, so the difference is paired and its interval is narrower.
        drawn, drawn_default = (np.mean([metrics.macro_f1(sampler.draw(counts)) for counts in per_seed], axis=0)
                                for per_seed in (matrices, default))
        interval, difference_interval = metrics.percentiles(drawn), metrics.percentiles(drawn - drawn_default)
    return AblationFigure(macro_f1=float(scores.mean()), spread=float(scores.std(ddof=1)) if len(scores) > 1 else 0.0,
                          interval=interval, difference=float(scores.mean() - default_score),
                          difference_interval=difference_interval)


def reported(oofs: Sequence[OofLogits]) -> dict[str, dict[str, float]]:
    """Return split -> column -> macro F1 of the default on the splits outside the folds."""
    by_split: dict[str, dict[str, float]] = {}
    for split in ("validation", "test"):
        each = [fold_confusions(oof, split) for oof in oofs]
        if next(iter(each[0].values())).sum():
            by_split[split] = {column: float(np.mean([metrics.macro_f1(one[column].sum(0)) for one in each]))
                               for column in each[0]}
    return by_split


@dataclass(frozen=True, kw_only=True)
class AblationRow:
    """One change of the recipe with the figures of each column, or the reason for having none (`skipped`)."""

    name: str
    changed: dict[str, Any]
    figures: dict[str, AblationFigure]
    bytes_a_frame: int
    logits_files: tuple[str, ...]
    skipped: str = ""
    failed: bool = False


@dataclass(frozen=True, kw_only=True)
class AblationTable:
    """All rows, the default first, and the data that they were scored on."""

    dataset: str
    notice: str
    store: str
    groups: int
    frames: int
    seeds: int
    rows: tuple[AblationRow, ...]
    # split -> column -> macro F1 of the default on the other splits, mean over seeds; never used to compare
    reported: dict[str, dict[str, float]]
    why_none: str  # why there are no intervals; empty if there are some


DEFAULT = "default"
QUICK_FOLDS = 3


def run_ablation(dataset: Dataset, store: EmbeddingStore, base: TrainConfig, config: AblationConfig,
                 cache: Path) -> AblationTable:
    """Return the table that compares each change of `base` with `base` on the store.

    Raises InputError if the default cannot be trained, or a row names a key or value that `train-heads` does not have.
    """
    # A change without effect would train the default again, under another name.
    rows = {name: changed for name, changed in parse_rows(config.rows or offered_rows(base), base).items()
            if not has_no_effect(changed, base)}
    started = time.monotonic()
    default = scored(dataset, store, base, config.repeats, cache)
    log.info("the default took %.0f s; each of the %d rows takes about as long as an untrained default",
             time.monotonic() - started, len(rows))
    first = next(iter(default.matrices.values()))[0]
    sampler = metrics.Resampler(len(first), config.bootstrap, base.seed)
    table_rows = [_row(DEFAULT, {}, base, default, default, store, sampler)]
    for number, (name, changed) in enumerate(rows.items(), 2):
        log.info("row %d of %d: %s", number, len(rows) + 1, name)
        row_config = replace(base, **changed)
        missing = [tap for tap in row_config.taps if tap not in store.taps]
        if changed.keys() == {"augmentations"} and not any(tap_views(tap) in store.taps for tap in row_config.taps):
            missing = ["augmentations"]
        row = AblationRow(name=name, changed=changed, figures={}, bytes_a_frame=0, logits_files=(),
                          skipped=f"the store lacks {', '.join(missing)}")
        try:
            if not missing:
                scores = scored(dataset, store, row_config, config.repeats, cache)
                row = _row(name, changed, row_config, scores, default, store, sampler)
        except FercacheError as error:  # the other rows still run
            log.error("%s: %s", name, error)
            row = replace(row, skipped=error.what, failed=True)
        table_rows.append(row)
    return AblationTable(dataset=dataset.name, notice=dataset.notice, store=store.path.name, groups=len(first),
                         frames=int(first.sum()), seeds=config.repeats, rows=tuple(table_rows),
                         reported=reported(default.oofs), why_none=sampler.why_none)


def trained_default(base: TrainConfig, config: AblationConfig) -> Iterator[TrainConfig]:
    """Yield the settings of every training run behind this table and behind its `--quick` version."""
    for default, table in ((base, config), quick_config(base, config)):
        for changed in [{}, *parse_rows(table.rows or offered_rows(default), default).values()]:
            row = replace(default, **changed)
            yield from (replace(row, seed=row.seed + repeat) for repeat in range(table.repeats))


def quick_config(base: TrainConfig, config: AblationConfig) -> tuple[TrainConfig, AblationConfig]:
    """Return the configurations of `--quick`: one seed, three folds."""
    return replace(base, folds=min(base.folds, QUICK_FOLDS)), replace(config, repeats=1)


def _row(name: str, changed: dict[str, Any], config: TrainConfig, scores: AblationScores, default: AblationScores,
         store: EmbeddingStore, sampler: metrics.Resampler) -> AblationRow:
    """Return the row of a change with its scores."""
    figures = {column: figure_of(matrices, default.matrices.get(column, matrices), sampler)
               for column, matrices in scores.matrices.items()}
    read = [*config.taps, *(tap_views(tap) for tap in config.taps if config.augmentations == "draw")]
    return AblationRow(name=name, changed=changed, figures=figures,
                       logits_files=tuple(oof.fingerprint[:12] for oof in scores.oofs),
                       bytes_a_frame=2 * sum(prod(store.taps[tap]) for tap in read if tap in store.taps))


def write_ablation(table: AblationTable, out: Path) -> None:
    """Write the table to `out` (.csv) and to a JSON file beside it."""
    check_out(out)
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["row", "column", "macro_f1", "sd_over_seeds", "low", "high", "difference", "difference_low",
                    "difference_high", "bytes_a_frame", "seeds", "skipped"])
    for row in table.rows:
        for column, figure in row.figures.items() or [("", None)]:
            numbers: list[float | None] = [None] * 7
            if figure is not None:
                numbers = [figure.macro_f1, figure.spread, *(figure.interval or (None, None)), figure.difference,
                           *(figure.difference_interval or (None, None))]
            cells = ["" if number is None else f"{number:.6f}" for number in numbers]
            lines.writerow([row.name, column, *cells, row.bytes_a_frame or "", table.seeds, row.skipped])
    atomic_io.write_bytes(out, text.getvalue().encode())
    atomic_io.write_json(out.with_suffix(".json"), asdict(table))


def check_out(out: Path) -> None:
    """Raise InputError if `out` does not end in .csv, before the training starts."""
    if out.suffix != ".csv":
        raise InputError("unknown file type", where=out, hint="end --out in .csv; the JSON is written beside it")
