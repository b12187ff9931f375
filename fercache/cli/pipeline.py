"""The commands that users type all day, after `extract`: train-heads, stack, timeline."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import click

from fercache.cli.context import Home, places
from fercache.cli.options_part import PLACE, config_options
from fercache.config import DatasetConfig, StackConfig, TrainConfig
from fercache.runtime.uri import Place

log = logging.getLogger('fercache')


@click.command("train-heads")
@config_options(DatasetConfig)
@config_options(TrainConfig)
@click.option("--store", type=PLACE, help="Embedding store.  [default: the last one extracted]")
@places
def train_heads_command(home: Home, store: Place | None, **typed: Any) -> int:
    """Stage two: train every head on every fold; keep out-of-fold logits and the heads."""
    from fercache import run_log
    from fercache.extraction import job
    from fercache.store.embedding_store import EmbeddingStore
    from fercache.training import train

    config = home.config(TrainConfig, "train-heads", typed)
    dataset = home.dataset(typed)
    path = store or job.current(home.features, dataset.name)
    log.info("store %s", path)
    report = train.run(dataset, EmbeddingStore.open(path), config, home.cache)
    if not report.cached:
        run_log.note(home.cache, dataset.name, "train-heads", report.book.name, report.seconds, fits=report.trained)
    for clip in report.missing:
        log.warning("%s: not in the store, left out (run `fercache extract`)", clip)
    log.info("%s (%.0f s)", "nothing to do: trained before" if report.cached else f"{report.trained} heads trained",
             report.seconds)
    click.echo(report.book)
    return 1 if report.missing or any(problem.lost for problem in dataset.problems) else 0


@click.command("stack")
@config_options(DatasetConfig)
@config_options(StackConfig)
@click.option("--book", type=click.Path(path_type=Path), help="Book of logits.  [default: the last one trained]")
@click.option("--out", type=click.Path(path_type=Path), default=Path("preds.csv"), show_default=True,
              help="Predictions: .csv, .csv.gz or .parquet; NAME.metrics.json is written beside them.")
@places
def stack_command(home: Home, book: Path | None, out: Path, **typed: Any) -> int:
    """Final predictions from every head's out-of-fold logits, and the table of who is right how often."""
    from rich.console import Console

    from fercache import run_log
    from fercache.stacking import stack

    config = home.config(StackConfig, "stack", typed)
    result = stack.run(home.book(typed, book, config.logits), config, home.cache / "stack")
    stack.write(result, out)
    if not result.cached:
        run_log.note(home.cache, result.book.dataset, "stack", result.folder.name, result.seconds,
                  frames=len(result.book.label))
    Console().print(stack.table(result))
    click.echo(out)
    return 0


@click.command("timeline")
@config_options(DatasetConfig)
@click.option("--preds", type=click.Path(path_type=Path), default=Path("preds.csv"), show_default=True,
              help="Predictions that `stack` wrote.")
@click.option("--store", type=PLACE, help="Embedding store.  [default: the last one extracted]")
@click.option("--out", type=click.Path(path_type=Path), default=Path("timelines"), show_default=True,
              help="Folder for the pictures.")
@places
def timeline_command(home: Home, preds: Path, store: Place | None, out: Path, **typed: Any) -> int:
    """Draw a picture a clip: the face, the truth, the prediction and the probabilities over time."""
    from fercache.data import persons_part
    from fercache.extraction import job
    from fercache.store.embedding_store import EmbeddingStore
    from fercache.viz import timeline

    dataset = home.dataset(typed)
    held = EmbeddingStore.open(store or job.current(home.features, dataset.name))
    for made in timeline.draw(preds, persons_part.present(dataset, held), held, out):
        click.echo(made)
    return 0


PIPELINE_COMMANDS = (train_heads_command, stack_command, timeline_command)
