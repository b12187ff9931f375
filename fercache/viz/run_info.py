"""The records of the runs behind a table of predictions; a part without a record is None or empty."""

from __future__ import annotations

import csv
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fercache import run_log
from fercache.errors import FercacheError, InputError
from fercache.extraction import thumbnails
from fercache.oof import Provenance
from fercache.results import io
from fercache.runtime import atomic_io
from fercache.stacking import inputs
from fercache.stacking.run_metrics import SplitMetrics, StackMetrics, read_metrics
from fercache.store.embedding_store import EmbeddingStore
from fercache.workspace import FAILURES_OF_ANY_PART, Workspace

STAGES = ("extract", "train-heads", "stack")


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """The records of the runs behind a table of predictions.

    Attributes
    ----------
    metrics : ``preds.metrics.json``; None if there is no such file.
    store, oof : the features and the logits file behind the predictions; None if they are not in this cache.
    imported : files of the imported logits that the stack merged with those at `oof`.
    durations : stage -> seconds, frames and runs behind its result.
    check, ablation : JSON values that those commands wrote; None if not given.
    failures : (clip, error) of the last `extract`.
    """

    preds: Path
    cache: Path
    metrics: StackMetrics | None
    store: EmbeddingStore | None
    oof: Path | None
    imported: tuple[Path, ...] = ()
    durations: dict[str, dict[str, float]] = field(default_factory=dict)
    check: Any = None
    ablation: Any = None
    failures: tuple[tuple[str, str], ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in order."""
        return self.metrics.classes if self.metrics else ()

    @property
    def final(self) -> str:
        """Name of the column that the predictions are from."""
        return self.metrics.final.column if self.metrics else ""

    @property
    def splits(self) -> dict[str, SplitMetrics]:
        """The scores by split."""
        return self.metrics.splits if self.metrics else {}

    @property
    def faces_stored(self) -> bool:
        """Whether stage one stored any picture of a face."""
        return self.store is not None and thumbnails.any_stored(self.cache, self.store)


def gather_run_info(preds: Path, cache: Path, check: Path | None = None, ablation: Path | None = None) -> RunInfo:
    """Return the records of the runs behind `preds`.

    Parameters
    ----------
    check : file with the output of ``fercache check --json``.
    ablation : table of ``fercache ablation``, JSON or CSV.

    Raises
    ------
    InputError
        A named file is missing or unreadable.
    """
    path = io.metrics_path(preds)
    metrics = read_metrics(path) if path.is_file() else None
    dataset = metrics.dataset if metrics else ""
    fingerprint, provenance = (metrics.logits.fingerprint, metrics.logits.provenance) if metrics else ("", Provenance())
    store, store_path = None, Workspace(cache).features(dataset) / provenance.store
    # A damaged store must not stop the report of the rest.
    with suppress(FercacheError):
        store = EmbeddingStore.open(store_path) if store_path.suffix == ".zarr" and store_path.is_dir() else None
    oof, imported = Workspace(cache).logits_file(dataset, fingerprint), list[Path]()
    if metrics and not oof.is_file():
        # The fingerprint depends on the order of merging, which is that of --logits. A run on imported logits alone
        # merged all of them, sorted.
        names = metrics.config.get("logits") or sorted(provenance.merged)
        merged = [name for name in names if name in provenance.merged]
        oof, *imported = inputs.find_logits_files(cache, dataset, fingerprint, merged) or (oof,)
    results = {"extract": store.path.name if store else "", "train-heads": oof.name,
               "stack": metrics.fingerprint[:12] if metrics else ""}
    runs = run_log.recorded_runs(cache, dataset) if dataset else []
    failures: dict[str, str] = {}
    # One file for a whole run, or one for each part of it.
    for path in sorted(Workspace(cache).features(dataset).glob(FAILURES_OF_ANY_PART)) if store else ():
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            failures |= {row[0]: row[1] for row in list(csv.reader(file))[1:] if len(row) == 2}
    return RunInfo(preds=preds, cache=cache, metrics=metrics, store=store, oof=oof if oof.is_file() else None,
                   imported=tuple(imported), check=_table(check), ablation=_table(ablation),
                   durations={stage: run_log.total_seconds(runs, stage, results[stage]) for stage in STAGES},
                   failures=tuple(failures.items()))


def _table(path: Path | None) -> Any:
    """Return a JSON file's value, or a CSV table's rows as dictionaries."""
    if path is None:
        return None
    if not path.is_file():
        raise InputError("no such file", where=path)
    if path.suffix != ".csv":
        return atomic_io.read_json(path)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"not readable ({error})", where=path) from error
