"""The command line: each command opens, does, prints. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import click

from fercache import __version__, recipe
from fercache.cli import diagnostics, exchange, maintenance, pipeline, results
from fercache.cli.context import LOCATION, Context
from fercache.errors import FercacheError
from fercache.runtime.uri import Location


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--cache", type=LOCATION, default=None, help="Folder of everything that is generated, or a URL (s3://, "
              "gs://): then the features lie there, all else in --local-cache.  [default: cache]")
@click.option("--local-cache", type=click.Path(path_type=Path), default=None,
              help="Folder of weights, logits, heads and stacks when --cache is a URL.  [default: cache]")
@click.option("--stages", type=click.Path(path_type=Path), default=None, help="Folder of recipes.  [default: stages]")
@click.option("-v", "--verbose", is_flag=True, help="Say more on stderr.")
@click.option("-q", "--quiet", is_flag=True, help="Say only what went wrong.")
@click.version_option(__version__, prog_name="fercache")
@click.pass_context
def main(ctx: click.Context, cache: Location | None, local_cache: Path | None, stages: Path | None, verbose: bool,
         quiet: bool) -> None:
    """Run a face CNN once over every frame, keep what it saw, train expression models on it all day.

    \b
    fercache extract                  stage one: clips -> the embedding store
    fercache train-heads              stage two: store -> out-of-fold logits and heads
    fercache stack --out preds.csv    logits -> final predictions
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("fercache").setLevel(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)
    try:
        recipe.check_folder(stages or Path("stages"), stages is not None)
    except FercacheError as error:
        raise click.UsageError(str(error)) from error
    ctx.obj = Context().moved(cache, local_cache, stages)


for command in (*pipeline.EXTRACT_COMMANDS, *pipeline.PIPELINE_COMMANDS, *pipeline.PREDICT_COMMANDS,
                *diagnostics.ABLATION_COMMANDS, *diagnostics.AUDIT_COMMANDS, *diagnostics.CHECK_COMMANDS,
                *results.SUBMIT_COMMANDS, *results.REPORT_COMMANDS, *exchange.LOGITS_COMMANDS,
                *exchange.TRANSFER_COMMANDS, *maintenance.CARE_COMMANDS, *maintenance.UPKEEP_COMMANDS):
    main.add_command(command)
