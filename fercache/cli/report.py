"""The commands that show: report, overlay, card, doctor."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from fercache.cli.home import Home, places
from fercache.cli.options import config_options
from fercache.config import DatasetConfig
from fercache.errors import InputError

log = logging.getLogger("fercache")

FILE = click.Path(path_type=Path)
preds_option = click.option("--preds", type=FILE, default=Path("preds.csv"), show_default=True,
                            help="Predictions that `stack` wrote, .csv or .csv.gz.")


@click.command()
@preds_option
@click.option("--out", type=FILE, default=Path("report.html"), show_default=True, help="The page.")
@click.option("--check", type=FILE, help="What `fercache check --json` printed.")
@click.option("--ablation", type=FILE, help="What `fercache ablation` wrote, .json or .csv.")
@places
def report(home: Home, preds: Path, out: Path, check: Path | None, ablation: Path | None) -> int:
    """One page to look at: the run, the scores, and every clip over time; it needs no network."""
    from fercache import report as room

    made = room.make(preds, out, home.cache, check=check, ablation=ablation)
    log.info("%d clips, %d frames, %.1f MB; %s", made.clips, made.frames, made.bytes / 1e6,
             "holds pictures of faces" if made.pictures else "holds no picture of a face")
    click.echo(made.path)
    return 0


@click.command()
@config_options(DatasetConfig)
@click.option("--clip", required=True, help="Name of the clip, as it stands in the predictions.")
@preds_option
@click.option("--store", type=FILE, help="Embedding store.  [default: the last one extracted]")
@click.option("--out", type=FILE, default=Path("overlay.mp4"), show_default=True, help="Ends in .mp4, .mov or .mkv.")
@places
def overlay(home: Home, clip: str, preds: Path, store: Path | None, out: Path, **typed: Any) -> int:
    """The clip again with box, expression, probability bars and a running timeline; its sound is kept."""
    from fercache import datasets, told
    from fercache import extract as stage_one
    from fercache import overlay as room
    from fercache.store import EmbeddingStore

    dataset = home.dataset(typed)
    held = EmbeddingStore.open(store or stage_one.current(home.features, dataset.name))
    dataset = datasets.present(dataset, held)
    trial = next((trial for trial in dataset.trials if trial.name == clip), None)
    rows = next((rows for name, rows in told.each(preds) if name == clip), None)
    if trial is None or rows is None:
        raise InputError(f"no clip {clip!r}", where=preds if rows is None else dataset.name,
                         hint="the names are in the first column of the predictions")
    frames = room.render(trial.path, trial.kind, rows, room.boxes_of(held[clip].clock, len(rows.time_s)),
                         told.classes(preds), out, fps=float(held.settings.get("crop_fps", 30.0)))
    log.info("%d frames", frames)
    click.echo(out)
    return 0


@click.command()
@preds_option
@click.option("--out", type=FILE, help="File of the card.  [default: print it]")
@places
def card(home: Home, preds: Path, out: Path | None) -> int:
    """A model card in Markdown, from what the runs recorded."""
    from fercache import card as room
    from fercache import durable

    text = room.write(preds, home.cache)
    if out is None:
        click.echo(text, nl=False)
    else:
        durable.write_bytes(out, text.encode())
        click.echo(out)
    return 0


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@places
def doctor(home: Home, as_json: bool) -> int:
    """What is installed, which device and weights are at hand, and what to type next."""
    from rich.console import Console

    from fercache import doctor as room

    lines = room.look(home.cache)
    step = room.next_step(home.cache, lines)
    if as_json:
        click.echo(json.dumps({"lines": [asdict(line) for line in lines], "next": step}, indent=1))
    else:
        Console().print(room.screen(lines, step))
    return 1 if any(line.state == room.MISSING for line in lines) else 0


COMMANDS: tuple[click.Command, ...] = (report, overlay, card, doctor)
