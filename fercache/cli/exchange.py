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
@click.option("--out", type=click.Path(path_type=Path), required=True,
              help="File or folder to write; it must not exist.")
@click.option("--only", type=CommaList(), default=(), help="Clips to export.  [default: all]")
@click.option("--taps", type=CommaList(), default=(), help="Taps to export.  [default: all]")
@location_options
def export_command(context: Context, store: Location | None, to: str, out: Path, only: tuple[str, ...],
                   taps: tuple[str, ...], **typed: Any) -> int:
    """Write a store's features and frame tables, unchanged, as files that other tools read."""
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
              help="Frames a second, if the file has no times.")
@config_options(DatasetConfig)
@location_options
def import_command(context: Context, path: Path, as_: str, fps: float, **typed: Any) -> int:
    """Make a store of features from another tool, with the same frame numbers as the extracted ones.

    PATH is an HDF5 file (file[clip]['00001'], or file[clip] of one row a frame), a folder of one .npz or .npy a clip,
    a .csv or .parquet table with columns clip and frame, or what `fercache export` wrote. Frames count from 1; frames
    that are not given get zeros. Values are kept as float16. A pickle is never loaded.
    """
    from fercache.maintenance import importer

    dataset = context.dataset(typed)
    report = importer.import_features(path, as_, Features(context.features).folder(dataset.name), fps=fps)
    log.info("%d clips imported (%d frames), %d cached, %d failed", len(report.clips), report.frames,
             len(report.cached), len(report.failed))
    extra = {*report.clips, *report.cached} - {trial.name for trial in dataset.trials}
    if extra:
        log.warning("%d clips are not in the data set: %s", len(extra), ", ".join(sorted(extra)[:3]))
    click.echo(report.store)
    return 1 if report.failed else 0


# The command logits import.

@click.group()
def logits_group() -> None:
    """Import predictions of any other model as one more head of the stack."""


@logits_group.command("import", cls=HeadedCommand)
@click.argument("logits_name", metavar="NAME")
@config_options(DatasetConfig)
@config_options(LogitsConfig)
@location_options
def logits_import_command(context: Context, logits_name: str, **typed: Any) -> int:
    """Import the predictions in a table as NAME, for `fercache stack --logits NAME`.

    A row is a frame (clip,frame[,person]) or a whole clip (clip), with a column p_CLASS or logit_CLASS for each class.
    With --dataset logits --name SET there are no clips: label, split and group are columns of the tables.
    """
    from fercache import logits_import

    config = context.config(LogitsConfig, "logits-import", typed)
    if not config.table or not config.provenance:
        raise InputError("the table or its provenance is missing", where="logits import",
                         hint="add --table FILE --provenance out-of-fold|held-out|in-sample")
    path, _ = logits_import.import_logits(logits_name, config, context.dataset_name(typed), context.cache)
    click.echo(path)
    return 0
