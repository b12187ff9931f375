"""The doors for other tools: export, import."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import click

from fercache.cli.context import Home, places
from fercache.cli.options_part import PLACE, Names, config_options
from fercache.config import DatasetConfig
from fercache.runtime.uri import Place

log = logging.getLogger('fercache')


FORMATS = ("h5", "npz", "parquet", "npy")


@click.command("export")
@config_options(DatasetConfig)
@click.option("--store", type=PLACE, help="Embedding store, a path or URL.  [default: the last one extracted]")
@click.option("--to", type=click.Choice(FORMATS), required=True,
              help="h5 and parquet write one file, npz and npy a folder.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File or folder; must not be there yet.")
@click.option("--only", type=Names(), default=(), help="Clips to export.  [default: all]")
@click.option("--taps", type=Names(), default=(), help="Taps to export.  [default: all]")
@places
def export_command(home: Home, store: Place | None, to: str, out: Path, only: tuple[str, ...], taps: tuple[str, ...],
           **typed: Any) -> int:
    """Write features and clock of a store as files that other tools read, bit for bit."""
    from fercache.extraction import job
    from fercache.maintenance import export
    from fercache.store.embedding_store import EmbeddingStore

    path = store or job.current(home.features, home.dataset(typed).name)
    report = export.export(EmbeddingStore.open(path), to, out, clips=only, taps=taps)
    log.info("%d clips, %d frames written", report.clips, report.frames)
    click.echo(report.out)
    return 0


@click.command("import")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--as", "as_", required=True, metavar="NAME",
              help="Name of the store; `train-heads --join NAME` uses it.")
@click.option("--fps", type=click.FloatRange(1e-3, 1e6), default=30.0, show_default=True,
              help="Frames a second, where the file holds no clock.")
@config_options(DatasetConfig)
@places
def import_command(home: Home, path: Path, as_: str, fps: float, **typed: Any) -> int:
    """Make a store of features that were made elsewhere, beside the extracted ones, on the same frame clock.

    PATH is an HDF5 file (file[clip]['00001'], or file[clip] of one row a frame), a folder of one .npz or .npy a clip,
    a .csv or .parquet table with columns clip and frame, or what `fercache export` wrote. Frames count from 1; frames
    that are not given get zeros. Values are kept as float16. A pickle is never loaded.
    """
    from fercache.maintenance import importer

    dataset = home.dataset(typed)
    report = importer.import_features(path, as_, home.features / "features" / dataset.name, fps=fps)
    log.info("%d clips imported (%d frames), %d cached, %d failed", len(report.clips), report.frames,
             len(report.cached), len(report.failed))
    strange = {*report.clips, *report.cached} - {trial.name for trial in dataset.trials}
    if strange:
        log.warning("%d clips are not in the data set: %s", len(strange), ", ".join(sorted(strange)[:3]))
    click.echo(report.store)
    return 1 if report.failed else 0


TRANSFER_COMMANDS: tuple[click.Command, ...] = (export_command, import_command)
