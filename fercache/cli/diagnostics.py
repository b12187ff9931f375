"""The command that says what each choice is worth: ablation."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fercache.cli.context import Home, places
from fercache.cli.options_part import config_options
from fercache.config import AblationConfig, DatasetConfig, TrainConfig

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fercache.diagnostics.score_part import Figure
    from fercache.diagnostics.table_part import Row, Table

log = logging.getLogger('fercache')


@click.command("ablation")
@config_options(DatasetConfig)
@config_options(AblationConfig)
@config_options(TrainConfig)
@click.option("--store", type=click.Path(path_type=Path), help="Embedding store.  [default: the last one extracted]")
@click.option("--quick", is_flag=True, help="A first look: one seed, three folds.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("ablation.csv"), show_default=True,
              help="Table: NAME.csv, and NAME.json beside it.")
@places
def ablation_command(home: Home, store: Path | None, quick: bool, out: Path, **typed: Any) -> int:
    """What each choice of stage two is worth on a store: taps, switches and heads, paired with the default.

    Everything is out of fold on the training groups. Rows that were trained before are not trained again.
    """
    from rich.console import Console

    from fercache.diagnostics import ablation, files_part
    from fercache.extraction import job
    from fercache.store.embedding_store import EmbeddingStore

    files_part.check(out)
    base, config = home.config(TrainConfig, "train-heads", typed), home.config(AblationConfig, "ablation", typed)
    if quick:
        base, config = ablation.quick(base, config)
    dataset = home.dataset(typed)
    path = store or job.current(home.features, dataset.name)
    log.info("store %s", path)
    table = ablation.run(dataset, EmbeddingStore.open(path), base, config, home.cache)
    files_part.write(table, out)
    Console().print(_shown(table))
    click.echo(out)
    return 1 if any(row.failed for row in table.rows) else 0


def _shown(table: Table) -> RenderableType:
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
        said = ", ".join(f"{name} {score:.3f}" for name, score in scores.items())
        parts.append(Text(f"the default on {split} (shown, never used to choose): {said}"))
    if table.notice:
        parts.append(Text(table.notice, "yellow"))
    return Group(*parts)


def _caption(table: Table) -> str:
    return (f"no intervals: {table.why_none}" if table.why_none else
            "* and brackets: paired difference from the default, 95 % by bootstrap over groups; * leaves 0 out")


def _line(row: Row, columns: list[str]) -> list[str]:
    """Return the cells of a row."""
    if row.skipped:
        return [f"{row.name} ({row.skipped})", *[""] * (len(columns) + 1)]
    return [row.name, *(_score(row.figures.get(name)) for name in columns), _difference(row)]


def _score(figure: Figure | None) -> str:
    return "" if figure is None else f"{figure.macro_f1:.3f}{'*' if figure.sure else ' '}"


def _difference(row: Row) -> str:
    """Return the difference of the heads' mean from the default's, with its interval."""
    figure = row.figures.get("mean")
    if figure is None or not row.changed:
        return ""
    span = figure.difference_interval
    return f"{figure.difference:+.3f}" + (f" [{span[0]:+.3f} {span[1]:+.3f}]" if span else "")


ABLATION_COMMANDS = (ablation_command,)
