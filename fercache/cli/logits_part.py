"""The command that brings in other people's predictions: logits import."""

from __future__ import annotations

from typing import Any

import click

from fercache.cli.context import Home, places
from fercache.cli.options_part import config_options
from fercache.config import DatasetConfig, LogitsConfig
from fercache.errors import InputError


@click.group()
def logits_group() -> None:
    """Logits from elsewhere: any model's predictions as one more head of the stack."""


@logits_group.command("import")
@click.argument("source", metavar="NAME")
@config_options(DatasetConfig)
@config_options(LogitsConfig)
@places
def logits_import_command(home: Home, source: str, **typed: Any) -> int:
    """Keep the predictions of a table as NAME, for `fercache stack --logits NAME`.

    \b
    A row is a frame (clip,frame[,person]) or a whole clip (clip); then p_CLASS or logit_CLASS for each class.
    With --dataset logits --name SET the tables are all there is: label, split and group come from their columns.
    """
    from fercache import logits_import

    config = home.config(LogitsConfig, "logits-import", typed)
    if not config.table or not config.provenance:
        raise InputError("say where the predictions are, and who made them", where="logits import",
                         hint="--table FILE --provenance out-of-fold|held-out|in-sample")
    path, _ = logits_import.run(source, config, home.dataset_name(typed), home.cache)
    click.echo(path)
    return 0


LOGITS_COMMANDS: tuple[click.Command, ...] = (logits_group,)
