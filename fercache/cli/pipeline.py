"""Commands of the pipeline: extract, train-heads, stack, predict, submit."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fercache import recipe
from fercache.cli.context import (
    FILE,
    LOGITS_FILE,
    PREDS,
    STORE,
    Context,
    HeadedCommand,
    config_options,
    location_options,
    log_issues,
)
from fercache.config import DatasetConfig, ExtractConfig, StackConfig, SubmitConfig, TrainConfig
from fercache.errors import InputError
from fercache.runtime.uri import Location

if TYPE_CHECKING:
    from rich.table import Table

    from fercache.data.base import Dataset
    from fercache.extraction.job import ExtractReport
    from fercache.inference.ensemble import SelectedModels
    from fercache.inference.predict import PredictReport

log = logging.getLogger("fercache")

ENGINES = ("here", "dask")
LAUNCH_FLAGS = ("engine", "scheduler", "workers", "shard", "time_limit")


@click.command("extract", cls=HeadedCommand)
@config_options(DatasetConfig)
@config_options(ExtractConfig)
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
@location_options
def extract_command(context: Context, **typed: Any) -> int:
    """Stage one: run the face CNN once over every frame of every clip and store its features."""
    began_s = time.time()  # before the imports, which take seconds: a time limit counts from the start
    from fercache import run_log
    from fercache.extraction import distributed

    plan = distributed.LaunchPlan.from_flags(os.environ, began_s, **{name: typed.pop(name) for name in LAUNCH_FLAGS})
    config = context.config(ExtractConfig, "extract", typed)
    # Logged and recorded once, not by every shard.
    dataset = context.dataset(typed, report_issues=plan.is_coordinator, record=plan.is_coordinator)
    report = plan.run(dataset, config, context.cache, context.remote)
    # A run that found everything in the cache took no time: it would spoil the measured rate.
    if report.count("computed"):
        run_log.record_run(context.cache, dataset.name, "extract", report.store.name, report.seconds,
                           frames=report.frames("computed"))
    _log_summary(report)
    click.echo(report.store)
    return 1 if report.failures() else 0


def _log_summary(report: ExtractReport) -> None:
    """Log what was computed, and what is left to do."""
    log.info("%d clips computed (%d frames in %.0f s), %d cached, %d failed", report.count("computed"),
             report.frames("computed"), report.seconds, report.count("cached"), report.count("failed"))
    if report.count("left"):
        log.warning("stopped by the time limit; %d clips (about %d frames) are left: run the same command again",
                    report.count("left"), report.frames("left"))
    if report.failures():
        log.error("failed clips are listed in %s", report.failures_at)


@click.command("train-heads", cls=HeadedCommand)
@config_options(DatasetConfig)
@config_options(TrainConfig)
@STORE
@location_options
def train_heads_command(context: Context, store: Location | None, **typed: Any) -> int:
    """Stage two: train every head on every fold, and store the heads and their out-of-fold logits."""
    from fercache import run_log
    from fercache.data.base import Issue
    from fercache.extraction import job
    from fercache.store.embedding_store import EmbeddingStore
    from fercache.training import train

    config = context.config(TrainConfig, "train-heads", typed)
    dataset = context.dataset(typed, record=True)
    path = store or job.current_store(context.features, dataset.name)
    log.info("store %s", path)
    # Heads go to the local cache, even if the features are at a URL.
    report = train.train_heads(dataset, EmbeddingStore.open(path), config, context.cache)
    if not report.cached:
        run_log.record_run(context.cache, dataset.name, "train-heads", report.logits_file.name, report.seconds,
                           fits=report.trained)
    log_issues(Issue(where=clip, message="not in the store, skipped", hint="run `fercache extract`")
               for clip in report.missing)
    log.info("%s (%.0f s)", "nothing to do: trained before" if report.cached else f"{report.trained} heads trained",
             report.seconds)
    click.echo(report.logits_file)
    return 1 if report.missing or any(problem.is_error for problem in dataset.problems) else 0


@click.command("stack", cls=HeadedCommand)
@config_options(DatasetConfig)
@config_options(StackConfig)
@LOGITS_FILE
@click.option("--out", type=FILE, default=Path("preds.csv"), show_default=True,
              help="File of predictions: .csv, .csv.gz or .parquet. NAME.metrics.json is written beside it.")
@location_options
def stack_command(context: Context, logits_file: Path | None, out: Path, **typed: Any) -> int:
    """Stage two: combine the heads' out-of-fold logits into final predictions, and print all scores."""
    from rich.console import Console

    from fercache import run_log
    from fercache.stacking import stack

    config = context.config(StackConfig, "stack", typed)
    result = stack.run_stack(context.load_logits(typed, logits_file, config.logits), config, context.cache)
    stack.write_stack(result, out)
    if not result.cached:
        run_log.record_run(context.cache, result.oof.dataset, "stack", result.folder.name, result.seconds,
                           frames=len(result.oof.label))
    Console().print(stack.table(result))
    click.echo(out)
    return 0


MAX_CLIPS_SHOWN = 40
"""Clips listed on the screen; the table of predictions holds all of them."""
MAX_CLASSES_SHOWN = 3


@click.command("predict", cls=HeadedCommand)
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
@click.option("--timelines/--no-timelines", default=True, show_default=True, help="Draw one picture per clip.")
@click.option("--overlay/--no-overlay", default=False, show_default=True,
              help="Also write each clip with predictions drawn in; its sound is kept.")
@config_options(DatasetConfig)
@config_options(ExtractConfig, default="as for the heads")
@location_options
def predict_command(context: Context, paths: tuple[Path, ...], out: Path, heads: Path | None, stack: Path | None,
                    store: Path | None, force: bool, timelines: bool, overlay: bool, **typed: Any) -> int:
    """Predict new clips: CLIPs (videos, folders of crops, folders of clips) or a data set named by flags.

    Features are extracted with the settings that the heads were trained on. If the data set has labels, the heads and
    the stack are scored as `fercache stack` scores them.
    """
    from fercache.data.base import Issue
    from fercache.inference import predict
    from fercache.inference.ensemble import select_models

    if bool(paths) == (named := any(typed[name] for name in ("dataset", "root", "clips"))):
        raise InputError("clips are named both as arguments and as a data set" if named else "no clip is named",
                         where="predict", hint="give CLIP... (videos, folders) or a data set: --dataset NAME --root "
                                               "DIR, or --clips TABLE")
    models = select_models(context.cache, heads, stack, _recipe_dataset(context))
    job = predict.PredictJob(
        dataset=_dataset(context, paths, typed, models), models=models, out=out, store=store, force=force,
        # All other settings of extraction are those that the heads were trained on.
        defaults=recipe.make_config(ExtractConfig, "extract", context.stages,
                                    _only(typed, "device", "threads", "weights")),
        overrides=_only(typed, *(entry.name for entry in fields(ExtractConfig))), timelines=timelines, overlay=overlay,
        stack=recipe.make_config(StackConfig, "stack", context.stages, {}))
    report = predict.predict_dataset(job, context.cache)
    _print_summary(report)
    log_issues(Issue(where=failed.clip, message=failed.message) for failed in report.failed)
    click.echo(out / predict.PREDS)
    return 1 if report.failed else 0


def _only(typed: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: typed[name] for name in names if typed.get(name) is not None}


def _recipe_dataset(context: Context) -> str:
    """Return the recipe's data set by its name in the cache, "" for the demo or if the data set cannot be read."""
    from fercache import data

    try:
        config = context.dataset_config({})
        if config.dataset in ("", "demo") and not (config.root or config.clips):
            return ""
        return data.load_dataset(config, context.cache).name
    except InputError:  # predicting new clips does not need the old ones
        return ""


def _dataset(context: Context, paths: tuple[Path, ...], typed: dict[str, Any], models: SelectedModels) -> Dataset:
    """Return the clips to predict; labels that are numbers are indices of the heads' classes."""
    from fercache.inference.predict import clips_dataset

    if not paths:
        return context.dataset({**typed, "classes": typed["classes"] or models.logits_file.classes})
    dataset = clips_dataset(paths)
    log_issues(dataset.problems)
    return dataset


def _print_summary(report: PredictReport) -> None:
    """Print the predictions per clip, or the scores if there are labels."""
    from rich.console import Console

    from fercache.stacking import stack

    if not report.result.report["splits"]:  # no labels, so there are no scores to show
        Console().print(_clips(report))
    Console().print(stack.table(report.result))


def _clips(report: PredictReport) -> Table:
    """Return a table with a line per clip: its frames, and the most frequent predicted classes."""
    import numpy as np
    from rich import box
    from rich.table import Table

    clips, predicted = report.result.oof, report.result.ppm.argmax(1)
    table = Table("clip", "frames", "with a face", "predicted", box=box.SIMPLE_HEAD, pad_edge=False)
    for trial in range(min(len(clips.trials), MAX_CLIPS_SHOWN)):
        rows = clips.rows(trial)
        fraction = np.bincount(predicted[rows], minlength=len(clips.classes)) / max(len(predicted[rows]), 1)
        # Under half a percent a class would be printed as 0 %.
        top = [i for i in np.argsort(-fraction)[:MAX_CLASSES_SHOWN] if fraction[i] >= 0.005]
        table.add_row(clips.trials[trial], f"{len(predicted[rows])}", f"{int(clips.valid[rows].sum())}",
                      ", ".join(f"{clips.classes[i]} {fraction[i]:.0%}" for i in top))
    if len(clips.trials) > MAX_CLIPS_SHOWN:
        table.caption = f"and {len(clips.trials) - MAX_CLIPS_SHOWN} more"
    return table


@click.command("submit", cls=HeadedCommand)
@config_options(SubmitConfig)
@click.option("--template", type=FILE, required=True, help="The organizers' file: the rows to fill, or the test list.")
@PREDS
@click.option("--out", type=FILE, required=True, help="File to write; for a test list (ABAW1 to 3) a new folder.")
@click.option("--frames", type=FILE, help="For a test list: table clip,frames with the lengths of the videos.")
@click.option("--videos", type=FILE, help="For a test list: folder of the videos, to read their lengths.")
@location_options
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
