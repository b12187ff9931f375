"""The commands that leave the house: submit (the organisers' format) and score (another set's labels)."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import click

from fercache.cli.context import Home, places
from fercache.cli.options_part import config_options
from fercache.config import DatasetConfig, ScoreConfig, SubmitConfig

log = logging.getLogger('fercache')


PREDS = click.option("--preds", type=click.Path(path_type=Path), default=Path("preds.csv"), show_default=True,
                     help="Predictions: .csv, .csv.gz or .parquet.")


@click.command("submit")
@config_options(SubmitConfig)
@click.option("--template", type=click.Path(path_type=Path), required=True,
              help="The organisers' file: the rows to be filled, or the test list.")
@PREDS
@click.option("--out", type=click.Path(path_type=Path), required=True,
              help="File to write; for a test list (ABAW1 to 3) a new folder.")
@click.option("--frames", type=click.Path(path_type=Path), help="For a test list: table clip,frames of true lengths.")
@click.option("--videos", type=click.Path(path_type=Path), help="For a test list: folder of the videos, for lengths.")
@places
def submit_command(home: Home, template: Path, preds: Path, out: Path, frames: Path | None, videos: Path | None,
           **typed: Any) -> int:
    """Write predictions in the organisers' format, row for row as their template asks."""
    from fercache.results import submit

    config = home.config(SubmitConfig, "submit", typed)
    made = submit.run(submit.Places(template, preds, out, frames, videos), config)
    for note in made.notes:
        log.info("%s", note)
    log.info("%d rows of %d trials written", made.rows, made.trials)
    click.echo(made.out)
    return 0


@click.command("score")
@config_options(DatasetConfig)
@config_options(ScoreConfig)
@PREDS
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@places
def score_command(home: Home, preds: Path, as_json: bool, **typed: Any) -> int:
    """Score predictions on a set's labels, also where the set has other classes."""
    from rich.console import Console

    from fercache.results import score
    from fercache.results.io import Predictions

    config = home.config(ScoreConfig, "score", typed)
    report = score.run(home.dataset(typed), Predictions(preds), config)
    if as_json:
        click.echo(json.dumps(report, indent=1))
    else:
        Console().print(score.table(report))
    for warning in score.warnings(report):
        log.warning("%s", warning)
    return 1 if score.warnings(report) else 0


SUBMIT_COMMANDS: tuple[click.Command, ...] = (submit_command, score_command)
