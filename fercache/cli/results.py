"""Commands that present results: report, overlay, card, doctor, submit, score."""

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
PREDS = click.option("--preds", type=FILE, default=Path("preds.csv"), show_default=True,
                     help="Predictions of `fercache stack`: .csv, .csv.gz or .parquet.")


@click.command("report", cls=HeadedCommand)
@PREDS
@click.option("--out", type=FILE, default=Path("report.html"), show_default=True, help="HTML file to write.")
@click.option("--check", type=FILE, help="File with the output of `fercache check --json`.")
@click.option("--ablation", type=FILE, help="Table of `fercache ablation`, .json or .csv.")
@location_options
def report_command(context: Context, preds: Path, out: Path, check: Path | None, ablation: Path | None) -> int:
    """Build one HTML page about a run: settings, scores, and every clip over time. It needs no network."""
    from fercache.viz import report

    made = report.make_report(preds, out, context.cache, check=check, ablation=ablation)
    log.info("%d clips, %d frames, %.1f MB; %s", made.clips, made.frames, made.bytes / 1e6,
             "with pictures of faces" if made.pictures else "without pictures of faces")
    click.echo(made.path)
    return 0


@click.command("overlay", cls=HeadedCommand)
@config_options(DatasetConfig)
@click.option("--clip", required=True, help="Name of the clip in the predictions.")
@PREDS
@click.option("--store", type=FILE, help="Embedding store.  [default: the last one extracted]")
@click.option("--out", type=FILE, default=Path("overlay.mp4"), show_default=True,
              help="Video to write: .mp4, .mov or .mkv.")
@location_options
def overlay_command(context: Context, clip: str, preds: Path, store: Path | None, out: Path, **typed: Any) -> int:
    """Write a clip with box, expression, probability bars and a running timeline drawn in; its sound is kept."""
    from fercache.data import base
    from fercache.extraction import job
    from fercache.results import io
    from fercache.store.embedding_store import EmbeddingStore
    from fercache.viz import overlay

    dataset = context.dataset(typed)
    held = EmbeddingStore.open(store or job.current_store(context.features, dataset.name))
    dataset = base.stored_trials(dataset, held)  # a store holds one trial per person of a clip
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
@PREDS
@click.option("--out", type=FILE, help="File of the card.  [default: print it]")
@location_options
def card_command(context: Context, preds: Path, out: Path | None) -> int:
    """Write a model card in Markdown from the records of the runs."""
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
    """Show installed packages, device, weights and cache contents, and the next command to run."""
    from rich.console import Console

    from fercache.diagnostics import doctor

    lines = doctor.inspect_machine(context.cache)
    step = doctor.next_step(context.cache, lines)
    if as_json:
        click.echo(json.dumps({"lines": [asdict(line) for line in lines], "next": step}, indent=1))
    else:
        Console().print(doctor.doctor_screen(lines, step))
    return 1 if any(line.state == doctor.MISSING for line in lines) else 0


@click.command("submit", cls=HeadedCommand)
@config_options(SubmitConfig)
@click.option("--template", type=FILE, required=True,
              help="The organizers' file: the rows to fill, or the test list.")
@PREDS
@click.option("--out", type=FILE, required=True,
              help="File to write; for a test list (ABAW1 to 3) a new folder.")
@click.option("--frames", type=FILE,
              help="For a test list: table clip,frames with the lengths of the videos.")
@click.option("--videos", type=FILE,
              help="For a test list: folder of the videos, to read their lengths.")
@location_options
def submit_command(context: Context, template: Path, preds: Path, out: Path, frames: Path | None, videos: Path | None,
                   **typed: Any) -> int:
    """Write predictions in the organizers' format, with the rows of their template."""
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
    """Score predictions on a data set's labels, which may have other class names."""
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
