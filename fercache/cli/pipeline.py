"""Commands of the pipeline: extract, train-heads, stack, predict, submit."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import click

import fercache
from fercache.cli.context import FILE, LOGITS_FILE, PREDS, STORE, command, config_options, show
from fercache.config import FAST, DatasetConfig, ExtractConfig, StackConfig, SubmitConfig, TrainConfig
from fercache.recipe import Context, log_issues
from fercache.runtime.uri import Location

log = logging.getLogger("fercache")

ENGINES = ("here", "dask")
FAST_FLAG = click.option("--fast", is_flag=True, help="As " + " ".join(
    f"--{name.replace('_', '-')} {value}" for name, value in FAST.items()) + ". `fercache check` tells what it saves.")


@command("extract", DatasetConfig, ExtractConfig)
@FAST_FLAG
@click.option("--time-limit", metavar="TIME", default="", help="Stop cleanly after 3600 (seconds), 90m or 1:30:00. "
              "Run the same command again to continue.")
@click.option("--workers", metavar="N|auto", default="0", help="Worker processes on this machine, each with its own "
              "device and part of the threads. auto: one per GPU.  [default: no worker processes]")
@click.option("--shard", metavar="I/N|auto", default="", help="Extract part I of N only. auto: from the variables "
              "of a Slurm array or torchrun.")
@click.option("--engine", type=click.Choice(ENGINES), default="here", help="What schedules clips: fercache "
              "or Dask (extra `dask`).  [default: here]")
@click.option("--scheduler", metavar="ADDRESS", default="", help="Address of a running Dask scheduler, such as "
              "tcp://host:8786. Without it, --engine dask starts its workers on this machine.")
def extract_command(context: Context, **typed: Any) -> int:
    """Stage one: run the face CNN once over every frame of every clip and store its features."""
    report = fercache.extract(**context.places, **typed)
    log.info("%d clips computed (%d frames in %.0f s), %d cached, %d failed", report.count("computed"),
             report.frames("computed"), report.seconds, report.count("cached"), report.count("failed"))
    if report.count("left"):
        log.warning("stopped by the time limit; %d clips (about %d frames) are left: run the same command again",
                    report.count("left"), report.frames("left"))
    if report.failures():
        log.error("failed clips are listed in %s", report.failures_at)
    click.echo(report.store)
    return 1 if report.failures() else 0


@command("train-heads", DatasetConfig, TrainConfig)
@STORE
def train_heads_command(context: Context, store: Location | None, **typed: Any) -> int:
    """Stage two: train every head on every fold, and store the heads and their out-of-fold logits."""
    report = fercache.train_heads(store=store, **context.places, **typed)
    log.info("%s (%.0f s)", "nothing to do: trained before" if report.cached else f"{report.trained} heads trained",
             report.seconds)
    click.echo(report.logits_file)
    return 1 if report.missing or any(problem.is_error for problem in report.problems) else 0


@command("stack", DatasetConfig, StackConfig)
@LOGITS_FILE
@click.option("--out", type=FILE, default=Path("preds.csv"), show_default=True,
              help="File of predictions: .csv, .csv.gz or .parquet. NAME.metrics.json is written beside it.")
def stack_command(context: Context, logits_file: Path | None, out: Path, **typed: Any) -> int:
    """Stage two: combine the heads' out-of-fold logits into final predictions, and print all scores."""
    show(fercache.stack(logits_file=logits_file, out=out, **context.places, **typed))
    click.echo(out)
    return 0


@command("predict", DatasetConfig)
@click.argument("paths", nargs=-1, metavar="[CLIP]...", type=FILE)
@click.option("--out", type=FILE, required=True, help="Folder for preds.csv and timelines.")
@click.option("--heads", type=FILE,
              help="Trained heads: their folder in cache/heads, their logits file, or starter for the shipped ones.  "
                   "[default: the last trained, else starter]")
@click.option("--stack", type=FILE,
              help="A stack run of these heads: its folder in cache/stack.  [default: the last one]")
@click.option("--store", type=FILE, help="Use the features of this store and extract nothing.")
@click.option("--force", is_flag=True, help="Predict even if the features differ from those that the heads were "
                                            "trained on.")
@click.option("--causal/--no-causal", default=None, help="Use no frame later than the predicted one. With heads of "
              "your own this takes a stack run made with --causal.  [default: as the recipe of stack]")
@click.option("--timelines/--no-timelines", default=True, show_default=True, help="Draw one picture per clip.")
@click.option("--overlay/--no-overlay", default=False, show_default=True,
              help="Also write each clip with predictions drawn in; its sound is kept.")
@config_options(ExtractConfig, default="as for the heads")
@FAST_FLAG
def predict_command(context: Context, paths: tuple[Path, ...], out: Path, **typed: Any) -> int:
    """Predict new clips: CLIPs (videos, folders of crops, folders of clips) or a data set named by flags.

    Features are extracted with the settings that the heads were trained on. If the data set has labels, the heads and
    the stack are scored as `fercache stack` scores them.
    """
    from fercache.data.base import Issue

    result = fercache.predict(*paths, out=out, **context.places, **typed)
    show(result)
    log_issues(Issue(where=failed.clip, message=failed.message) for failed in result.failed)
    click.echo(out / "preds.csv")
    return 1 if result.failed else 0


@command("submit", SubmitConfig)
@click.option("--template", type=FILE, required=True, help="The organizers' file: the rows to fill, or the test list.")
@PREDS
@click.option("--out", type=FILE, required=True, help="File to write; for a test list (ABAW1 to 3) a new folder.")
@click.option("--frames", type=FILE, help="For a test list: table clip,frames with the lengths of the videos.")
@click.option("--videos", type=FILE, help="For a test list: folder of the videos, to read their lengths.")
def submit_command(context: Context, template: Path, preds: Path, out: Path, frames: Path | None, videos: Path | None,
                   **typed: Any) -> int:
    """Write predictions in the organizers' format, with the rows of their template."""
    from fercache.results import submit

    config = context.config(SubmitConfig, "submit", typed)
    written = submit.write_submission(submit.SubmissionPaths(template, preds, out, frames, videos), config)
    for note in written.notes:
        log.info("%s", note)
    log.info("%d rows of %d trials written", written.rows, written.trials)
    click.echo(written.out)
    return 0
