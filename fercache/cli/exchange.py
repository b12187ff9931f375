"""Commands that exchange data with other tools: export, import, logits import."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import click

from fercache.cli.context import LOCATION, CommaList, Context, HeadedCommand, config_options, location_options
from fercache.config import DatasetConfig, LogitsConfig
from fercache.errors import InputError
from fercache.runtime.uri import Location
from fercache.workspace import Features

log = logging.getLogger("fercache")


FORMATS = ("h5", "npz", "parquet")


@click.command("export", cls=HeadedCommand)
@config_options(DatasetConfig)
@click.option("--store", type=LOCATION, help="Embedding store, a path or URL.  [default: the last one extracted]")
@click.option("--to", type=click.Choice(FORMATS), required=True,
              help="h5 and parquet write one file, npz writes a folder.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File or folder; must not be there yet.")
@click.option("--only", type=CommaList(), default=(), help="Clips to export.  [default: all]")
@click.option("--taps", type=CommaList(), default=(), help="Taps to export.  [default: all]")
@location_options
def export_command(context: Context, store: Location | None, to: str, out: Path, only: tuple[str, ...],
                   taps: tuple[str, ...],
           **typed: Any) -> int:
    """Write features and clock of a store as files that other tools read, bit for bit."""
    from fercache.extraction import job
    from fercache.maintenance import export
    from fercache.store.embedding_store import EmbeddingStore

    path = store or job.current_store(context.features, context.dataset(typed).name)
    report = export.export_store(EmbeddingStore.open(path), to, out, clips=only, taps=taps)
    log.info("%d clips, %d frames written", report.clips, report.frames)
    click.echo(report.out)
    return 0


@click.command("import", cls=HeadedCommand)
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--as", "as_", required=True, metavar="NAME",
              help="Name of the store; `train-heads --join NAME` uses it.")
@click.option("--fps", type=click.FloatRange(1e-3, 1e6), default=30.0, show_default=True,
              help="Frames a second, where the file holds no clock.")
@config_options(DatasetConfig)
@location_options
def import_command(context: Context, path: Path, as_: str, fps: float, **typed: Any) -> int:
    """Make a store of features that were made elsewhere, beside the extracted ones, on the same frame clock.

    PATH is an HDF5 file (file[clip]['00001'], or file[clip] of one row a frame), a folder of one .npz or .npy a clip,
    a .csv or .parquet table with columns clip and frame, or what `fercache export` wrote. Frames count from 1; frames
    that are not given get zeros. Values are kept as float16. A pickle is never loaded.
    """
    from fercache.maintenance import importer

    dataset = context.dataset(typed)
    report = importer.import_features(path, as_, Features(context.features).folder(dataset.name), fps=fps)
    log.info("%d clips imported (%d frames), %d cached, %d failed", len(report.clips), report.frames,
             len(report.cached), len(report.failed))
    strange = {*report.clips, *report.cached} - {trial.name for trial in dataset.trials}
    if strange:
        log.warning("%d clips are not in the data set: %s", len(strange), ", ".join(sorted(strange)[:3]))
    click.echo(report.store)
    return 1 if report.failed else 0


# The command logits import.

@click.group()
def logits_group() -> None:
    """Logits from elsewhere: any model's predictions as one more head of the stack."""


@logits_group.command("import", cls=HeadedCommand)
@click.argument("logits_name", metavar="NAME")
@config_options(DatasetConfig)
@config_options(LogitsConfig)
@location_options
def logits_import_command(context: Context, logits_name: str, **typed: Any) -> int:
    """Keep the predictions of a table as NAME, for `fercache stack --logits NAME`.

    \b
    A row is a frame (clip,frame[,person]) or a whole clip (clip); then p_CLASS or logit_CLASS for each class.
    With --dataset logits --name SET the tables are all there is: label, split and group come from their columns.
    """
    from fercache import logits_import

    config = context.config(LogitsConfig, "logits-import", typed)
    if not config.table or not config.provenance:
        raise InputError("say where the predictions are, and who made them", where="logits import",
                         hint="--table FILE --provenance out-of-fold|held-out|in-sample")
    path, _ = logits_import.import_logits(logits_name, config, context.dataset_name(typed), context.cache)
    click.echo(path)
    return 0
