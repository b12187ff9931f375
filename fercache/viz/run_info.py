"""What the runs recorded, gathered in one place; each part is None or empty where nothing was recorded."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fercache import run_log
from fercache.errors import FercacheError, InputError
from fercache.extraction import thumbnails
from fercache.results import io
from fercache.runtime import atomic_io
from fercache.stacking import inputs
from fercache.store.embedding_store import EmbeddingStore
from fercache.workspace import FAILURES_OF_ANY_PART, Workspace

STAGES = ("extract", "train-heads", "stack")


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What is known of the run behind a table of predictions.

    Attributes
    ----------
    metrics : ``preds.metrics.json``; empty where it is not there.
    store, book : of the features and logits that the predictions go back to; None where they are not in this cache.
    imported : files of the imported logits that the stack merged with those at `oof`.
    took : stage -> seconds, frames and runs that went into its result.
    check, ablation : JSON values that those commands wrote; None where they were not given or found.
    failures : (clip, what happened) of the last `extract`.
    """

    preds: Path
    cache: Path
    metrics: dict[str, Any]
    store: EmbeddingStore | None
    oof: Path | None
    imported: tuple[Path, ...] = ()
    took: dict[str, dict[str, float]] = field(default_factory=dict)
    check: Any = None
    ablation: Any = None
    failures: tuple[tuple[str, str], ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes' names, in order."""
        return tuple(self.metrics.get("classes", ()))

    @property
    def final(self) -> str:
        """The name of the column that the predictions are."""
        return str(self.metrics.get("final", {}).get("column", ""))

    @property
    def splits(self) -> dict[str, Any]:
        """The scores by split."""
        return dict(self.metrics.get("splits", {}))

    @property
    def faces_kept(self) -> bool:
        """Whether stage one kept any picture of a face."""
        return self.store is not None and thumbnails.any_stored(self.cache, self.store)


def gather_run_info(preds: Path, cache: Path, check: Path | None = None, ablation: Path | None = None) -> RunInfo:
    """Return what the runs behind `preds` recorded.

    Parameters
    ----------
    check : what ``fercache check --json`` printed, kept in a file.
    ablation : what ``fercache ablation`` wrote as JSON or CSV.

    Raises
    ------
    InputError
        A file that was named is absent or not readable.
    """
    metrics = _metrics(preds)
    dataset, logits = str(metrics.get("dataset", "")), metrics.get("logits", {})
    store = _store(Workspace(cache).features(dataset) / str(logits.get("provenance", {}).get("store", "")))
    print_, provenance = str(logits.get("fingerprint", "")), logits.get("provenance", {})
    book, imported = Workspace(cache).logits_file(dataset, print_), list[Path]()
    if print_ and not book.is_file():
        # the order of the names is the order of merging; a run on imported logits alone took all of them, sorted
        names = metrics.get("config", {}).get("logits") or sorted(
            key.removeprefix(inputs.IMPORTED) for key in provenance if key.startswith(inputs.IMPORTED))
        merged = [name for name in names if f"{inputs.IMPORTED}{name}" in provenance]
        book, *imported = inputs.find_logits_files(cache, dataset, print_, merged) or (book,)
    made = {"extract": store.path.name if store else "", "train-heads": book.name,
            "stack": str(metrics.get("fingerprint", ""))[:12]}
    noted = run_log.recorded_runs(cache, dataset) if dataset else []
    return RunInfo(preds=preds, cache=cache, metrics=metrics, store=store, oof=book if book.is_file() else None,
                 imported=tuple(imported),
                 took={stage: run_log.total_seconds(noted, stage, made[stage]) for stage in STAGES},
                 check=_table(check), ablation=_table(ablation),
                 failures=_failures(Workspace(cache).features(dataset)) if store else ())


def _metrics(preds: Path) -> dict[str, Any]:
    path = io.metrics_path(preds)
    value = atomic_io.read_json(path) if path.is_file() else {}
    if not isinstance(value, dict):
        raise InputError("no metrics of fercache's", where=path, hint="run `fercache stack` again")
    return value


def _store(path: Path) -> EmbeddingStore | None:
    try:
        return EmbeddingStore.open(path) if path.suffix == ".zarr" and path.is_dir() else None
    except FercacheError:  # damaged: `fercache verify` says so; the page says that it is not there
        return None


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


def _failures(folder: Path) -> tuple[tuple[str, str], ...]:
    """Return what the lists of failures in a folder say: one of a whole run, or one for each part."""
    found: dict[str, str] = {}
    for path in sorted(folder.glob(FAILURES_OF_ANY_PART)):
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            found |= {row[0]: row[1] for row in list(csv.reader(file))[1:] if len(row) == 2}
    return tuple(found.items())
