"""Commands that check data and results: audit, check, ablation."""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fercache.cli.context import Context, HeadedCommand, config_options, location_options
from fercache.config import AblationConfig, AuditConfig, DatasetConfig, ExtractConfig, TrainConfig

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fercache.data.base import Issue
    from fercache.diagnostics.ablation import AblationFigure, AblationRow, AblationTable

log = logging.getLogger("fercache")


# The command audit.

SHOWN = 5
SEVERITY_STYLES = {"ok": ("ok", "green"), "warning": ("look", "yellow"), "error": ("FAIL", "red"),
                   "skipped": ("skipped", "blue")}
"""Printed word and color of a severity."""


@click.command("audit", cls=HeadedCommand)
@config_options(DatasetConfig)
@config_options(AuditConfig)
@click.option("--logits-file", type=click.Path(path_type=Path), help="Book of logits.  [default: the last one trained]")
@click.option("--logits", default="", help="Imported logits to look at too, with commas between them.")
@click.option("--store", type=click.Path(path_type=Path), help="Embedding store.  [default: the last one extracted]")
@click.option("--out", type=click.Path(path_type=Path), default=Path("audit.json"), show_default=True,
              help="Every finding with all its lines.")
@location_options
def audit_command(context: Context, logits_file: Path | None, logits: str, store: Path | None, out: Path,
                  **typed: Any) -> int:
    """Prove that no group crosses folds and that shuffled labels give chance; exit code 1 where something leaks."""
    from fercache import logits_import
    from fercache.diagnostics import audit
    from fercache.extraction import job
    from fercache.store.embedding_store import EmbeddingStore

    config = context.config(AuditConfig, "audit", typed)
    name = context.dataset_name(typed)
    names = tuple(word.strip() for word in logits.split(",")
                  if word.strip()) or tuple(logits_import.imported_names(context.cache, name))
    alone = context.is_logits(typed)
    path = None if alone else store or job.current_store(context.features, name)
    with tempfile.TemporaryDirectory() as scratch:
        subject = audit.AuditSubject(
            oof=context.load_logits(typed, logits_file, names), store=EmbeddingStore.open(path) if path else None,
            dataset=None if alone else context.dataset(typed), scratch=Path(scratch), weights=context.workspace.weights,
            training=context.config(TrainConfig, "train-heads", {}) if config.full else TrainConfig())
        findings = []
        for found in audit.run_audit(subject, config):
            findings.append(found)
            _show(found)
    audit.write_audit(findings, out)
    click.echo(out)
    return 1 if audit.any_failed(findings) else 0


def _show(found: Issue) -> None:
    """Print one finding, its first lines below it."""
    word, color = SEVERITY_STYLES[found.severity]
    click.echo(click.style(f"{word:8}", fg=color, bold=True) + f"{found.where}: {found.message}")
    for line in found.details[:SHOWN]:
        click.echo(f"          {line}")
    if len(found.details) > SHOWN:
        click.echo(f"          and {len(found.details) - SHOWN} more, see --out")


# The commands check and ablation.

@click.command("check", cls=HeadedCommand)
@config_options(DatasetConfig)
@config_options(ExtractConfig)
@click.option("--fresh", is_flag=True, help="Read every folder again, whatever an earlier check found.")
@click.option("--rate", type=click.FloatRange(min=0), default=0.0,
              help="Frames a second to assume for the time of extraction.  [default: as measured here]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, every clip that differs in it.")
@location_options
def check_command(context: Context, fresh: bool, rate: float, as_json: bool, **typed: Any) -> int:
    """The data set against its clips: every mismatch, and what extraction will cost. No CNN is run.

    \b
    Exit code 0: nothing wrong; 1: something loses data or spoils a score; 2: wrong usage.
    """
    from fercache.diagnostics import check

    config = context.config(ExtractConfig, "extract", typed)
    report = check.check_dataset(context.dataset(typed, report_issues=False), config, context.cache, fresh=fresh,
                                 rate=rate)
    click.echo(json.dumps(report.json(), indent=1) if as_json else "\n".join(check.report_lines(report)))
    return 1 if report.lost else 0


@click.command("ablation", cls=HeadedCommand)
@config_options(DatasetConfig)
@config_options(AblationConfig)
@config_options(TrainConfig)
@click.option("--store", type=click.Path(path_type=Path), help="Embedding store.  [default: the last one extracted]")
@click.option("--quick", is_flag=True, help="A first look: one seed, three folds.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("ablation.csv"), show_default=True,
              help="Table: NAME.csv, and NAME.json beside it.")
@location_options
def ablation_command(context: Context, store: Path | None, quick: bool, out: Path, **typed: Any) -> int:
    """What each choice of stage two is worth on a store: taps, switches and heads, paired with the default.

    Everything is out of fold on the training groups. Rows that were trained before are not trained again.
    """
    from rich.console import Console

    from fercache.diagnostics import ablation
    from fercache.extraction import job
    from fercache.store.embedding_store import EmbeddingStore

    ablation.check_out(out)
    base, config = context.config(TrainConfig, "train-heads", typed), context.config(AblationConfig, "ablation", typed)
    if quick:
        base, config = ablation.quick_config(base, config)
    dataset = context.dataset(typed)
    path = store or job.current_store(context.features, dataset.name)
    log.info("store %s", path)
    table = ablation.run_ablation(dataset, EmbeddingStore.open(path), base, config, context.cache)
    ablation.write_ablation(table, out)
    Console().print(_shown(table))
    click.echo(out)
    return 1 if any(row.failed for row in table.rows) else 0


def _shown(table: AblationTable) -> RenderableType:
    """Return the table for 80 columns."""
    from rich import box
    from rich.console import Group
    from rich.table import Table as Drawn
    from rich.text import Text

    columns = list(table.rows[0].figures)
    title = f"macro F1 out of fold: {table.frames:,} frames of {table.groups} groups, {table.seeds} seed(s)"
    drawn = Drawn(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0),
                  pad_edge=False, caption_justify="left", caption=_caption(table))
    drawn.add_column("", overflow="fold")
    for name in (*(name[:8] for name in columns), "mean - default"):
        drawn.add_column(name, justify="right", no_wrap=True)
    for row in table.rows:
        drawn.add_row(*_line(row, columns), style="bold" if row is table.rows[0] else "")
    parts: list[RenderableType] = [drawn]
    for split, scores in table.reported.items():
        scores_text = ", ".join(f"{name} {score:.3f}" for name, score in scores.items())
        parts.append(Text(f"the default on {split} (shown, never used to choose): {scores_text}"))
    if table.notice:
        parts.append(Text(table.notice, "yellow"))
    return Group(*parts)


def _caption(table: AblationTable) -> str:
    return (f"no intervals: {table.why_none}" if table.why_none else
            "* and brackets: paired difference from the default, 95 % by bootstrap over groups; * leaves 0 out")


def _line(row: AblationRow, columns: list[str]) -> list[str]:
    """Return the cells of a row."""
    if row.skipped:
        return [f"{row.name} ({row.skipped})", *[""] * (len(columns) + 1)]
    return [row.name, *(_score(row.figures.get(name)) for name in columns), _difference(row)]


def _score(figure: AblationFigure | None) -> str:
    return "" if figure is None else f"{figure.macro_f1:.3f}{'*' if figure.sure else ' '}"


def _difference(row: AblationRow) -> str:
    """Return the difference of the heads' mean from the default's, with its interval."""
    figure = row.figures.get("mean")
    if figure is None or not row.changed:
        return ""
    span = figure.difference_interval
    return f"{figure.difference:+.3f}" + (f" [{span[0]:+.3f} {span[1]:+.3f}]" if span else "")
