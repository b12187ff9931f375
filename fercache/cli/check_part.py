"""The command that looks before anybody leaps: check."""

from __future__ import annotations

import json
import logging
from typing import Any

import click

from fercache.cli.context import Home, places
from fercache.cli.options_part import config_options
from fercache.config import DatasetConfig, ExtractConfig

log = logging.getLogger('fercache')


@click.command("check")
@config_options(DatasetConfig)
@config_options(ExtractConfig)
@click.option("--fresh", is_flag=True, help="Read every folder again, whatever an earlier check found.")
@click.option("--rate", type=click.FloatRange(min=0), default=0.0,
              help="Frames a second to assume for the time of extraction.  [default: as measured here]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, every clip that differs in it.")
@places
def check_command(home: Home, fresh: bool, rate: float, as_json: bool, **typed: Any) -> int:
    """The data set against its clips: every mismatch, and what extraction will cost. No CNN is run.

    \b
    Exit code 0: nothing wrong; 1: something loses data or spoils a score; 2: wrong usage.
    """
    from fercache.diagnostics import check, text_part

    config = home.config(ExtractConfig, "extract", typed)
    report = check.run(home.dataset(typed, told=False), config, home.cache, fresh=fresh, rate=rate)
    click.echo(json.dumps(report.json(), indent=1) if as_json else "\n".join(text_part.lines(report)))
    return 1 if report.lost else 0


CHECK_COMMANDS: tuple[click.Command, ...] = (check_command,)
