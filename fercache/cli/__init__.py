"""The command line: each command opens, does, prints.

Open `context.py` first: it holds what all commands share. Each other file holds one group of commands.
"""

from __future__ import annotations

import importlib
import logging
import sys
from pathlib import Path
from typing import NamedTuple

import click

from fercache import __version__, recipe
from fercache.cli.context import LOCATION, Context
from fercache.errors import FercacheError
from fercache.runtime.uri import Location


class LazyCommand(NamedTuple):
    """Where a command is defined, and its line in `fercache --help`."""

    module: str
    function: str
    summary: str


COMMANDS = {
    "Pipeline": {
        "extract": LazyCommand("pipeline", "extract_command", "Stage one: run the face CNN once over every frame."),
        "train-heads": LazyCommand("pipeline", "train_heads_command", "Stage two: train the heads on every fold."),
        "stack": LazyCommand("pipeline", "stack_command", "Stage two: combine the heads into final predictions."),
        "predict": LazyCommand("pipeline", "predict_command", "Run new clips through all stages."),
        "submit": LazyCommand("results", "submit_command", "Write predictions in the organizers' format."),
    },
    "Data and diagnostics": {
        "check": LazyCommand("diagnostics", "check_command", "Compare a data set with its clips before extraction."),
        "audit": LazyCommand("diagnostics", "audit_command", "Test folds, logits and scores for leakage."),
        "ablation": LazyCommand("diagnostics", "ablation_command", "Measure what each training choice is worth."),
        "score": LazyCommand("results", "score_command", "Score predictions on a data set's labels."),
        "report": LazyCommand("results", "report_command", "Build one HTML page about a run."),
        "card": LazyCommand("results", "card_command", "Write a model card in Markdown."),
        "timeline": LazyCommand("pipeline", "timeline_command", "Draw each clip's predictions over time."),
        "overlay": LazyCommand("results", "overlay_command", "Write a clip with box and predictions drawn in."),
        "doctor": LazyCommand("results", "doctor_command", "Show what is installed and what to run next."),
    },
    "Upkeep": {
        "info": LazyCommand("maintenance", "info_command", "Show what a store holds and what extraction costs."),
        "weights": LazyCommand("maintenance", "weights_group", "List or download pretrained CNNs."),
        "verify": LazyCommand("maintenance", "verify_command", "Check every byte of a store."),
        "diff": LazyCommand("maintenance", "diff_command", "Compare two stores."),
        "gc": LazyCommand("maintenance", "gc_command", "List and remove what nothing refers to."),
        "forget": LazyCommand("maintenance", "forget_command", "Remove a clip from every stage."),
        "export": LazyCommand("exchange", "export_command", "Write features as files for other tools."),
        "import": LazyCommand("exchange", "import_command", "Bring in features made elsewhere."),
        "logits": LazyCommand("exchange", "logits_group", "Bring in predictions made elsewhere."),
    },
}
"""Heading -> command -> where it is: `fercache --help` reads this table and imports none of the modules."""


class LazyGroup(click.Group):
    """A group that imports a command's module when the command runs, and lists commands under headings."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return [name for commands in COMMANDS.values() for name in commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, or None if there is none of that name."""
        for commands in COMMANDS.values():
            if entry := commands.get(cmd_name):
                command: click.Command = getattr(importlib.import_module(f"fercache.cli.{entry.module}"),
                                                 entry.function)
                return command
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands, a section for each heading."""
        for heading, commands in COMMANDS.items():
            with formatter.section(heading):
                formatter.write_dl([(name, entry.summary) for name, entry in commands.items()])


# click wraps help at 80 columns, on wider terminals too, unless max_content_width allows more.
@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--cache", type=LOCATION, default=None, help="Folder for everything that is generated. With a URL "
              "(s3://, gs://) only the features go there.  [default: cache]")
@click.option("--local-cache", type=click.Path(path_type=Path), default=None,
              help="Folder for weights, logits, heads and stacks if --cache is a URL.  [default: cache]")
@click.option("--stages", type=click.Path(path_type=Path), default=None, help="Folder of recipes.  [default: stages]")
@click.option("-v", "--verbose", is_flag=True, help="Print more on stderr.")
@click.option("-q", "--quiet", is_flag=True, help="Print warnings and errors only.")
@click.version_option(__version__, prog_name="fercache")
@click.pass_context
def main(ctx: click.Context, cache: Location | None, local_cache: Path | None, stages: Path | None, verbose: bool,
         quiet: bool) -> None:
    """Recognize facial expressions in videos: run a face CNN once, then train and compare models all day.

    \b
    fercache extract                  stage one: clips -> features
    fercache train-heads              stage two: features -> heads and their logits
    fercache stack --out preds.csv    stage two: logits -> final predictions
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("fercache").setLevel(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)
    try:
        recipe.check_folder(stages or Path("stages"), stages is not None)
    except FercacheError as error:
        raise click.UsageError(str(error)) from error
    ctx.obj = Context().moved(cache, local_cache, stages)
