"""What each choice of stage two is worth on a store: one row a change of the recipe, paired with the default.

Notes
-----
Everything compared is out of fold on the training groups. The reported splits are scored for the default alone, after
the fact: no row is ever chosen by them. Each row's books lie in the cache under their own fingerprints, so a run that
was stopped goes on where it was, and another table with some of the rows finds them done.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from fercache import metrics
from fercache.backbones.taps_part import views_of
from fercache.config import AblationConfig, TrainConfig
from fercache.data.base import Dataset
from fercache.diagnostics.rows_part import idle, offered, parse
from fercache.diagnostics.score_part import Scored, figure, reported, scored
from fercache.diagnostics.table_part import Row, Table
from fercache.errors import FercacheError
from fercache.store.embedding_store import EmbeddingStore

log = logging.getLogger(__name__)


DEFAULT = "default"
QUICK_FOLDS = 3


def run(dataset: Dataset, store: EmbeddingStore, base: TrainConfig, config: AblationConfig, cache: Path) -> Table:
    """Return the table of what each change of `base` is worth on the store.

    Raises
    ------
    InputError
        The default cannot be trained, or a row names a key or value that `train-heads` does not have.
    """
    rows = {name: changed for name, changed in parse(config.rows or offered(base), base).items()
            if not idle(changed, base)}
    started = time.monotonic()
    usual = scored(dataset, store, base, config.repeats, cache)
    log.info("the default: %.0f s; each of %d rows takes about as long as the default when that is trained anew",
             time.monotonic() - started, len(rows))
    first = next(iter(usual.matrices.values()))[0]
    bench = _Bench(dataset=dataset, store=store, base=base, repeats=config.repeats, cache=cache, usual=usual,
                   sampler=metrics.Resampler(len(first), config.bootstrap, base.seed))
    made = [bench.row(DEFAULT, {}, base, usual)]
    for place, (name, changed) in enumerate(rows.items(), 2):
        log.info("row %d of %d: %s", place, len(rows) + 1, name)
        made.append(bench.tried(name, changed))
    return Table(dataset=dataset.name, notice=dataset.notice, store=store.path.name, groups=len(first),
                 frames=int(first.sum()), seeds=config.repeats, rows=tuple(made), reported=reported(usual.books),
                 why_none=bench.sampler.why_none)


def trained(base: TrainConfig, config: AblationConfig) -> Iterator[TrainConfig]:
    """Yield the settings of every training that a table of these rows is made of, and those of a first look at it."""
    for usual, table in ((base, config), quick(base, config)):
        for changed in [{}, *parse(table.rows or offered(usual), usual).values()]:
            row = replace(usual, **changed)
            yield from (replace(row, seed=row.seed + repeat) for repeat in range(table.repeats))


def quick(base: TrainConfig, config: AblationConfig) -> tuple[TrainConfig, AblationConfig]:
    """Return the two for a first look: one seed, three folds."""
    return replace(base, folds=min(base.folds, QUICK_FOLDS)), replace(config, repeats=1)


@dataclass(frozen=True, kw_only=True)
class _Bench:
    """Where rows are tried, and what the default (`usual`) scored there."""

    dataset: Dataset
    store: EmbeddingStore
    base: TrainConfig
    repeats: int
    cache: Path
    usual: Scored
    sampler: metrics.Resampler

    def tried(self, name: str, changed: dict[str, Any]) -> Row:
        """Return the row of a change; a row that cannot be trained says why, and the others are done."""
        config = replace(self.base, **changed)
        lacking = [tap for tap in config.taps if tap not in self.store.taps]
        if changed.keys() == {"views"} and not any(views_of(tap) in self.store.taps for tap in config.taps):
            lacking = ["views"]
        if lacking:
            return _none(name, changed, f"the store does not hold {', '.join(lacking)}", failed=False)
        try:
            return self.row(name, changed, config, scored(self.dataset, self.store, config, self.repeats, self.cache))
        except FercacheError as error:
            log.error("%s: %s", name, error)
            return _none(name, changed, error.what, failed=True)

    def row(self, name: str, changed: dict[str, Any], config: TrainConfig, found: Scored) -> Row:
        """Return the row of what a change scored."""
        figures = {column: figure(matrices, self.usual.matrices.get(column, matrices), self.sampler)
                   for column, matrices in found.matrices.items()}
        read = [*config.taps, *(views_of(tap) for tap in config.taps if config.views == "draw")]
        return Row(name=name, changed=changed, figures=figures, books=tuple(b.fingerprint[:12] for b in found.books),
                   bytes_a_frame=2 * sum(prod(self.store.taps[name]) for name in read if name in self.store.taps))


def _none(name: str, changed: dict[str, Any], why: str, failed: bool) -> Row:
    return Row(name=name, changed=changed, figures={}, bytes_a_frame=0, books=(), skipped=why, failed=failed)
