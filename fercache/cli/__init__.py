"""The command line, one file for each heading of `fercache --help`; each command opens, does, prints.

Open `context.py` first: it has what all commands share.
"""

from __future__ import annotations

import importlib
import logging
import sys
from pathlib import Path

import click

from fercache import __version__
from fercache.cli.context import FILE, LOCATION
from fercache.errors import FercacheError
from fercache.recipe import Context
from fercache.runtime.uri import Location

COMMANDS = {
    "Pipeline": {
        "extract": "Stage one: run the face CNN once over every frame.",
        "train-heads": "Stage two: train the heads on every fold.",
        "stack": "Stage two: combine the heads into final predictions.",
        "predict": "Run new clips through all stages.",
        "submit": "Write predictions in the organizers' format.",
    },
    "Data and diagnostics": {
        "check": "Compare a data set with its clips before extraction.",
        "audit": "Test folds, logits and scores for leakage.",
        "ablation": "Measure what each training choice is worth.",
        "score": "Score predictions on a data set's labels.",
        "report": "Build one HTML page about a run.",
        "card": "Write a model card in Markdown.",
        "timeline": "Draw each clip's predictions over time.",
        "overlay": "Write a clip with box and predictions drawn in.",
        "doctor": "Show what is installed and what to run next.",
    },
    "Upkeep": {
        "info": "Show what a store holds and what extraction costs.",
        "weights": "List, download, add or check pretrained nets.",
        "verify": "Check every byte of a store.",
        "diff": "Compare two stores.",
        "gc": "List and remove what nothing refers to.",
        "forget": "Remove a clip from every stage.",
        "export": "Write features as files for other tools.",
        "import": "Bring in features made elsewhere.",
        "logits": "Bring in predictions made elsewhere.",
    },
}
"""Heading -> command -> its line in `fercache --help`, which reads this table and imports none of the modules."""
MODULES = {"Pipeline": "pipeline", "Data and diagnostics": "diagnostics", "Upkeep": "maintenance"}
"""Heading -> the module with its commands; `train-heads` is the function `train_heads_command`."""


class LazyGroup(click.Group):
    """A group that imports a command's module when the command runs, and lists commands under headings."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return [name for commands in COMMANDS.values() for name in commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, or None if there is none of that name."""
        for heading, commands in COMMANDS.items():
            if cmd_name in commands:
                # Imported for the command that runs only: torch, zarr and lightgbm take seconds.
                module = importlib.import_module(f"fercache.cli.{MODULES[heading]}")
                command: click.Command = getattr(module, f"{cmd_name.replace('-', '_')}_command")
                return command
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands, a section for each heading."""
        for heading, commands in COMMANDS.items():
            with formatter.section(heading):
                formatter.write_dl(list(commands.items()))


# click wraps help at 80 columns, on wider terminals too, unless max_content_width allows more.
@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--cache", type=LOCATION, default=None, help="Folder for everything that is generated. With a URL "
              "(s3://, gs://) only the features go there.  [default: cache]")
@click.option("--local-cache", type=FILE, default=None,
              help="Folder for weights, logits, heads and stacks if --cache is a URL.  [default: cache]")
@click.option("--stages", type=FILE, default=None, help="Folder of recipes.  [default: stages]")
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
        ctx.obj = Context().moved(cache, local_cache, stages)
    except FercacheError as error:
        raise click.UsageError(str(error)) from error
