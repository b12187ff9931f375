"""The commands that show: report, overlay, card, doctor."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from fercache.cli.context import Context, HeadedCommand, config_options, location_options
from fercache.config import DatasetConfig, ScoreConfig, SubmitConfig
from fercache.errors import InputError

log = logging.getLogger("fercache")


FILE = click.Path(path_type=Path)
preds_option = click.option("--preds", type=FILE, default=Path("preds.csv"), show_default=True,
                            help="Predictions that `stack` wrote, .csv or .csv.gz.")


@click.command("report", cls=HeadedCommand)
@preds_option
@click.option("--out", type=FILE, default=Path("report.html"), show_default=True, help="The page.")
@click.option("--check", type=FILE, help="What `fercache check --json` printed.")
@click.option("--ablation", type=FILE, help="What `fercache ablation` wrote, .json or .csv.")
@location_options
def report_command(context: Context, preds: Path, out: Path, check: Path | None, ablation: Path | None) -> int:
    """One page to look at: the run, the scores, and every clip over time; it needs no network."""
    from fercache.viz import report

    made = report.make_report(preds, out, context.cache, check=check, ablation=ablation)
    log.info("%d clips, %d frames, %.1f MB; %s", made.clips, made.frames, made.bytes / 1e6,
             "holds pictures of faces" if made.pictures else "holds no picture of a face")
    click.echo(made.path)
    return 0


@click.command("overlay", cls=HeadedCommand)
@config_options(DatasetConfig)
@click.option("--clip", required=True, help="Name of the clip, as it stands in the predictions.")
@preds_option
@click.option("--store", type=FILE, help="Embedding store.  [default: the last one extracted]")
@click.option("--out", type=FILE, default=Path("overlay.mp4"), show_default=True, help="Ends in .mp4, .mov or .mkv.")
@location_options
def overlay_command(context: Context, clip: str, preds: Path, store: Path | None, out: Path, **typed: Any) -> int:
    """The clip again with box, expression, probability bars and a running timeline; its sound is kept."""
    from fercache.data import base
    from fercache.extraction import job
    from fercache.results import io
    from fercache.store.embedding_store import EmbeddingStore
    from fercache.viz import overlay

    dataset = context.dataset(typed)
    held = EmbeddingStore.open(store or job.current_store(context.features, dataset.name))
    dataset = base.stored_trials(dataset, held)
    trial = next((trial for trial in dataset.trials if trial.name == clip), None)
    rows = next((rows for name, rows in io.each_clip(preds) if name == clip), None)
    if trial is None or rows is None:
        raise InputError(f"no clip {clip!r}", where=preds if rows is None else dataset.name,
                         hint="the names are in the first column of the predictions")
    frames = overlay.render_overlay(trial.path, trial.kind, rows,
                                    overlay.boxes_of(held[clip].frame_table, len(rows.time_s)),
                         io.classes(preds), out, fps=float(held.settings.get("crop_fps", 30.0)))
    log.info("%d frames", frames)
    click.echo(out)
    return 0


@click.command("card", cls=HeadedCommand)
@preds_option
@click.option("--out", type=FILE, help="File of the card.  [default: print it]")
@location_options
def card_command(context: Context, preds: Path, out: Path | None) -> int:
    """A model card in Markdown, from what the runs recorded."""
    from fercache.runtime import atomic_io
    from fercache.viz import model_card

    text = model_card.write_card(preds, context.cache)
    if out is None:
        click.echo(text, nl=False)
    else:
        atomic_io.write_bytes(out, text.encode())
        click.echo(out)
    return 0


@click.command("doctor", cls=HeadedCommand)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@location_options
def doctor_command(context: Context, as_json: bool) -> int:
    """What is installed, which device and weights are at hand, and what to type next."""
    from rich.console import Console

    from fercache.diagnostics import doctor

    lines = doctor.inspect_machine(context.cache)
    step = doctor.next_step(context.cache, lines)
    if as_json:
        click.echo(json.dumps({"lines": [asdict(line) for line in lines], "next": step}, indent=1))
    else:
        Console().print(doctor.doctor_screen(lines, step))
    return 1 if any(line.state == doctor.MISSING for line in lines) else 0


# The commands that leave the house: submit (the organisers' format) and score (another set's labels).

PREDS = click.option("--preds", type=click.Path(path_type=Path), default=Path("preds.csv"), show_default=True,
                     help="Predictions: .csv, .csv.gz or .parquet.")


@click.command("submit", cls=HeadedCommand)
@config_options(SubmitConfig)
@click.option("--template", type=click.Path(path_type=Path), required=True,
              help="The organisers' file: the rows to be filled, or the test list.")
@PREDS
@click.option("--out", type=click.Path(path_type=Path), required=True,
              help="File to write; for a test list (ABAW1 to 3) a new folder.")
@click.option("--frames", type=click.Path(path_type=Path), help="For a test list: table clip,frames of true lengths.")
@click.option("--videos", type=click.Path(path_type=Path), help="For a test list: folder of the videos, for lengths.")
@location_options
def submit_command(context: Context, template: Path, preds: Path, out: Path, frames: Path | None, videos: Path | None,
           **typed: Any) -> int:
    """Write predictions in the organisers' format, row for row as their template asks."""
    from fercache.results import submit

    config = context.config(SubmitConfig, "submit", typed)
    made = submit.write_submission(submit.SubmissionPaths(template, preds, out, frames, videos), config)
    for note in made.notes:
        log.info("%s", note)
    log.info("%d rows of %d trials written", made.rows, made.trials)
    click.echo(made.out)
    return 0


@click.command("score", cls=HeadedCommand)
@config_options(DatasetConfig)
@config_options(ScoreConfig)
@PREDS
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@location_options
def score_command(context: Context, preds: Path, as_json: bool, **typed: Any) -> int:
    """Score predictions on a set's labels, also where the set has other classes."""
    from rich.console import Console

    from fercache.results import score
    from fercache.results.io import PredictionsFile

    config = context.config(ScoreConfig, "score", typed)
    report = score.score_file(context.dataset(typed), PredictionsFile(preds), config)
    if as_json:
        click.echo(json.dumps(report, indent=1))
    else:
        Console().print(score.score_table_lines(report))
    for warning in score.score_warnings(report):
        log.warning("%s", warning)
    return 1 if score.score_warnings(report) else 0
