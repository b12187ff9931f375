"""Proof that no score has seen what it is scored on: every check says what it looked at, and names what it found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fercache.config import AuditConfig, TrainConfig
from fercache.data.base import Dataset
from fercache.diagnostics import copies_part, full_part, groups_part, probe_part, sources_part
from fercache.diagnostics.finding_part import FAILED, Finding
from fercache.errors import InputError
from fercache.oof import LogitBook
from fercache.runtime import atomic_io
from fercache.store.embedding_store import EmbeddingStore


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is audited: a book of logits, and where they are at hand the store and the data set it was made of.

    Attributes
    ----------
    training : how `--full` trains the heads again.
    scratch : a folder that `--full` may fill.
    """

    book: LogitBook
    store: EmbeddingStore | None = None
    dataset: Dataset | None = None
    training: TrainConfig = field(default_factory=TrainConfig)
    scratch: Path | None = None


def run(subject: Subject, config: AuditConfig) -> Iterator[Finding]:
    """Yield what each check found, as soon as it is known.

    Raises
    ------
    InputError
        Heads are to be trained again, and there is no store or data set to train them on.
    """
    yield groups_part.splits(subject.book)
    yield groups_part.folds(subject.book)
    yield sources_part.provenance(subject.book)
    yield sources_part.memory(subject.book, config.seed)
    yield sources_part.truth(subject.book)
    yield probe_part.stacker(subject.book, config)
    if subject.store is None:
        return
    sample = probe_part.draw(subject.book, subject.store)
    yield probe_part.labels_as_features(sample)
    yield probe_part.shuffled(sample, config)
    yield copies_part.across_groups(subject.book, subject.store, config.similar)
    if config.full:
        if subject.dataset is None or subject.scratch is None:
            raise InputError("there is no data set to train heads on", where="audit --full",
                             hint="name it with --dataset and --root or --clips")
        yield full_part.retrained(subject.dataset, subject.store, subject.training, subject.scratch, config.seed)


def failed(findings: list[Finding]) -> bool:
    """Return whether a check found a leak."""
    return any(finding.state == FAILED for finding in findings)


def write(findings: list[Finding], path: Path) -> None:
    """Put the findings at `path` as JSON, every one with all its lines."""
    value: list[dict[str, Any]] = [finding.json() for finding in findings]
    atomic_io.write_json(path, {"leaks": failed(findings), "checks": value})
