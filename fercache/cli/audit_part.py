"""The command that proves that nothing leaks: audit."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import click

from fercache.cli.context import Home, places
from fercache.cli.options_part import config_options
from fercache.config import AuditConfig, DatasetConfig, TrainConfig

log = logging.getLogger('fercache')


SHOWN = 5
COLOURS = {"ok": "green", "look": "yellow", "FAIL": "red", "skipped": "blue"}


@click.command("audit")
@config_options(DatasetConfig)
@config_options(AuditConfig)
@click.option("--book", type=click.Path(path_type=Path), help="Book of logits.  [default: the last one trained]")
@click.option("--logits", default="", help="Imported logits to look at too, with commas between them.")
@click.option("--store", type=click.Path(path_type=Path), help="Embedding store.  [default: the last one extracted]")
@click.option("--out", type=click.Path(path_type=Path), default=Path("audit.json"), show_default=True,
              help="Every finding with all its lines.")
@places
def audit_command(home: Home, book: Path | None, logits: str, store: Path | None, out: Path, **typed: Any) -> int:
    """Prove that no group crosses folds and that shuffled labels give chance; exit code 1 where something leaks."""
    from fercache import logits_import
    from fercache.diagnostics import audit
    from fercache.extraction import job
    from fercache.store.embedding_store import EmbeddingStore

    config = home.config(AuditConfig, "audit", typed)
    name = home.dataset_name(typed)
    names = tuple(word.strip() for word in logits.split(",") if word.strip()) or tuple(logits_import.names(home.cache, name))
    alone = home.is_logits(typed)
    path = None if alone else store or job.current(home.features, name)
    with tempfile.TemporaryDirectory() as scratch:
        subject = audit.Subject(book=home.book(typed, book, names), store=EmbeddingStore.open(path) if path else None,
                               dataset=None if alone else home.dataset(typed), scratch=Path(scratch),
                               training=home.config(TrainConfig, "train-heads", {}) if config.full else TrainConfig())
        findings = []
        for found in audit.run(subject, config):
            findings.append(found)
            _show(found)
    audit.write(findings, out)
    click.echo(out)
    return 1 if audit.failed(findings) else 0


def _show(found: Any) -> None:
    """Print one finding, its first lines below it."""
    click.echo(click.style(f"{found.state:8}", fg=COLOURS[found.state], bold=True) + f"{found.check}: {found.said}")
    for line in found.lines[:SHOWN]:
        click.echo(f"          {line}")
    if len(found.lines) > SHOWN:
        click.echo(f"          and {len(found.lines) - SHOWN} more, see --out")


AUDIT_COMMANDS: tuple[click.Command, ...] = (audit_command,)
