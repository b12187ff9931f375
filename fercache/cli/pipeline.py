"""The commands that users type all day, after `extract`: train-heads, stack, timeline."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fercache.cli.context import LOCATION, Context, config_options, location_options, make_config
from fercache.config import DatasetConfig, ExtractConfig, StackConfig, TrainConfig
from fercache.errors import InputError
from fercache.runtime.uri import Location

if TYPE_CHECKING:
    from rich.table import Table

    from fercache.data.base import Dataset
    from fercache.extraction.job import ExtractReport
    from fercache.inference.ensemble import SelectedModels
    from fercache.inference.predict import PredictReport

log = logging.getLogger('fercache')


# `fercache extract`: stage one, in this process or in several.

ENGINES = ("here", "dask")
FLAGS = ("engine", "scheduler", "workers", "shard", "time_limit")


@click.command("extract")
@config_options(DatasetConfig)
@config_options(ExtractConfig)
@click.option("--time-limit", metavar="TIME", default="", help="Stop cleanly after 3600 (seconds), 90m or 1:30:00; "
              "the same command goes on from there.")
@click.option("--workers", metavar="N|auto", default="0", help="Processes on this machine, each with a device of its "
              "own and its share of the threads; auto: one for each GPU.  [default: this process alone]")
@click.option("--shard", metavar="I/N|auto", default="", help="Do part I of N and no other clip; auto: as a Slurm "
              "array or torchrun says.")
@click.option("--engine", type=click.Choice(ENGINES), default="here", help="Who gives the clips out: fercache, "
              "or Dask (an extra).  [default: here]")
@click.option("--scheduler", metavar="ADDRESS", default="", help="A running Dask scheduler, such as tcp://host:8786; "
              "without it --engine dask starts its workers here.")
@location_options
def extract_command(context: Context, **typed: Any) -> int:
    """Stage one: run the CNN once over every frame of every clip and keep what it saw."""
    began_s = time.time()
    from fercache import run_log
    from fercache.extraction import distributed

    way = distributed.LaunchOptions(**{name: typed.pop(name) for name in FLAGS}).way(os.environ, began_s)
    config, dataset = context.config(ExtractConfig, "extract", typed), context.dataset(typed, told=way.is_coordinator)
    report = way.run(dataset, config, context.cache, context.remote)
    if report.count("computed"):
        run_log.record_run(context.cache, dataset.name, "extract", report.store.name, report.seconds,
                  frames=report.frames("computed"))
    _sum_up(report)
    click.echo(report.store)
    return 1 if report.failures() else 0


def _sum_up(report: ExtractReport) -> None:
    """Say what was done, and what is left."""
    log.info("%d clips computed (%d frames in %.0f s), %d cached, %d failed", report.count("computed"),
             report.frames("computed"), report.seconds, report.count("cached"), report.count("failed"))
    if report.count("left"):
        log.warning("stopped by the time limit: %d clips are left, about %d frames: run the same command again",
                    report.count("left"), report.frames("left"))
    if report.failures():
        log.error("failed clips are listed in %s", report.failures_at)


EXTRACT_COMMANDS = (extract_command,)


@click.command("train-heads")
@config_options(DatasetConfig)
@config_options(TrainConfig)
@click.option("--store", type=LOCATION, help="Embedding store.  [default: the last one extracted]")
@location_options
def train_heads_command(context: Context, store: Location | None, **typed: Any) -> int:
    """Stage two: train every head on every fold; keep out-of-fold logits and the heads."""
    from fercache import run_log
    from fercache.extraction import job
    from fercache.store.embedding_store import EmbeddingStore
    from fercache.training import train

    config = context.config(TrainConfig, "train-heads", typed)
    dataset = context.dataset(typed)
    path = store or job.current_store(context.features, dataset.name)
    log.info("store %s", path)
    report = train.train_heads(dataset, EmbeddingStore.open(path), config, context.cache)
    if not report.cached:
        run_log.record_run(context.cache, dataset.name, "train-heads", report.logits_file.name, report.seconds,
                           fits=report.trained)
    for clip in report.missing:
        log.warning("%s: not in the store, left out (run `fercache extract`)", clip)
    log.info("%s (%.0f s)", "nothing to do: trained before" if report.cached else f"{report.trained} heads trained",
             report.seconds)
    click.echo(report.logits_file)
    return 1 if report.missing or any(problem.lost for problem in dataset.problems) else 0


@click.command("stack")
@config_options(DatasetConfig)
@config_options(StackConfig)
@click.option("--logits-file", type=click.Path(path_type=Path), help="Book of logits.  [default: the last one trained]")
@click.option("--out", type=click.Path(path_type=Path), default=Path("preds.csv"), show_default=True,
              help="Predictions: .csv, .csv.gz or .parquet; NAME.metrics.json is written beside them.")
@location_options
def stack_command(context: Context, logits_file: Path | None, out: Path, **typed: Any) -> int:
    """Final predictions from every head's out-of-fold logits, and the table of who is right how often."""
    from rich.console import Console

    from fercache import run_log
    from fercache.stacking import stack

    config = context.config(StackConfig, "stack", typed)
    result = stack.run_stack(context.load_logits(typed, logits_file, config.logits), config, context.cache / "stack")
    stack.write_stack(result, out)
    if not result.cached:
        run_log.record_run(context.cache, result.oof.dataset, "stack", result.folder.name, result.seconds,
                  frames=len(result.oof.label))
    Console().print(stack.table(result))
    click.echo(out)
    return 0


@click.command("timeline")
@config_options(DatasetConfig)
@click.option("--preds", type=click.Path(path_type=Path), default=Path("preds.csv"), show_default=True,
              help="Predictions that `stack` wrote.")
@click.option("--store", type=LOCATION, help="Embedding store.  [default: the last one extracted]")
@click.option("--out", type=click.Path(path_type=Path), default=Path("timelines"), show_default=True,
              help="Folder for the pictures.")
@location_options
def timeline_command(context: Context, preds: Path, store: Location | None, out: Path, **typed: Any) -> int:
    """Draw a picture a clip: the face, the truth, the prediction and the probabilities over time."""
    from fercache.data import base
    from fercache.extraction import job
    from fercache.store.embedding_store import EmbeddingStore
    from fercache.viz import timeline

    dataset = context.dataset(typed)
    held = EmbeddingStore.open(store or job.current_store(context.features, dataset.name))
    for made in timeline.draw_timelines(preds, base.stored_trials(dataset, held), held, out):
        click.echo(made)
    return 0


PIPELINE_COMMANDS = (train_heads_command, stack_command, timeline_command)


# The command for new clips: predict.

NAMES_A_SET = ("dataset", "root", "clips")
MOST_LINES = 40
"""Clips listed on the screen; all of them are in the table of predictions."""
MOST_CLASSES = 3


@click.command("predict")
@click.argument("paths", nargs=-1, metavar="[CLIP]...", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for preds.csv and timelines.")
@click.option("--heads", type=click.Path(path_type=Path),
              help="Trained heads: their folder in cache/heads, or their book.  [default: the last ones trained]")
@click.option("--stack", type=click.Path(path_type=Path),
              help="A stack run of these heads: its folder in cache/stack.  [default: the last one]")
@click.option("--store", type=click.Path(path_type=Path), help="Features that are there already; extracts nothing.")
@click.option("--force", is_flag=True, help="Predict also from features unlike those that the heads were trained on.")
@click.option("--timelines/--no-timelines", default=True, show_default=True, help="Draw a picture a clip.")
@click.option("--overlay/--no-overlay", default=False, show_default=True,
              help="Write each clip again, annotated, its sound kept.")
@config_options(DatasetConfig)
@config_options(ExtractConfig, default="as for the heads")
@location_options
def predict_command(context: Context, paths: tuple[Path, ...], out: Path, heads: Path | None, stack: Path | None,
                    store: Path | None,
            force: bool, timelines: bool, overlay: bool, **typed: Any) -> int:
    """New clips through all of it: CLIPs (videos, folders of crops or of clips), or a set named by flags.

    Trained heads and their stacker speak; features are extracted into the cache as theirs were. Where the set has
    labels, every column is scored as `fercache stack` scores it.
    """
    from fercache.inference import predict
    from fercache.inference.ensemble import select_models

    _check(paths, typed)
    chosen = select_models(context.cache, heads, stack, _own(context))
    order = predict.PredictJob(dataset=_dataset(context, paths, typed, chosen), models=chosen, out=out, store=store,
                          force=force,
                       defaults=make_config(ExtractConfig, "extract", context.stages,
                                         _only(typed, "device", "threads", "weights")),
                       overrides=_only(typed, *(entry.name for entry in fields(ExtractConfig))), timelines=timelines,
                       overlay=overlay,
                       stack=make_config(StackConfig, "stack", context.stages, {}))
    report = predict.predict_dataset(order, context.cache)
    _print_summary(report)
    for failed in report.failed:
        log.error("%s: %s", failed.clip, failed.message)
    click.echo(out / predict.PREDS)
    return 1 if report.failed else 0


def _check(paths: tuple[Path, ...], typed: dict[str, Any]) -> None:
    """Refuse a call that names nothing, or two things."""
    named = any(typed[name] for name in NAMES_A_SET)
    if bool(paths) == named:
        raise InputError("clips are named one by one and as a set" if named else "no clip is named", where="predict",
                         hint="give CLIP... (videos, folders), or a set: --dataset NAME --root DIR, or --clips TABLE")


def _only(typed: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: typed[name] for name in names if typed.get(name) is not None}


def _own(context: Context) -> str:
    """Return the name in the cache of the data set that the recipe names; nothing for the demo, or if it is gone."""
    from fercache import data

    config = make_config(DatasetConfig, "dataset", context.stages, {})
    if config.dataset == "demo" and not (config.root or config.clips):
        return ""
    try:
        return data.load_dataset(config, context.cache).name
    except InputError:  # its clips need not be where new ones are predicted
        return ""


def _dataset(context: Context, paths: tuple[Path, ...], typed: dict[str, Any], chosen: SelectedModels) -> Dataset:
    """Return what is to be predicted; labels that are numbers mean the heads' classes."""
    from fercache.inference.predict import clips_dataset

    if not paths:
        return context.dataset({**typed, "classes": typed["classes"] or chosen.logits_file.classes})
    found = clips_dataset(paths)
    for problem in found.problems:
        log.warning("%s", problem)
    return found


def _print_summary(report: PredictReport) -> None:
    """Print the scores, or without labels what was said of each clip."""
    from rich.console import Console

    from fercache.stacking import stack

    if not report.result.report["splits"]:
        Console().print(_clips(report))
    Console().print(stack.table(report.result))


def _clips(report: PredictReport) -> Table:
    """Return a line a clip: its frames, and which expressions were seen in how many of them."""
    import numpy as np
    from rich import box
    from rich.table import Table

    book, said = report.result.oof, report.result.units.argmax(1)
    made = Table("clip", "frames", "with a face", "what is said", box=box.SIMPLE_HEAD, pad_edge=False)
    for trial in range(min(len(book.trials), MOST_LINES)):
        rows = book.rows(trial)
        share = np.bincount(said[rows], minlength=len(book.classes)) / max(len(said[rows]), 1)
        most = [i for i in np.argsort(-share)[:MOST_CLASSES] if share[i] >= 0.005]
        made.add_row(book.trials[trial], f"{len(said[rows])}", f"{int(book.valid[rows].sum())}",
                     ", ".join(f"{book.classes[i]} {share[i]:.0%}" for i in most))
    if len(book.trials) > MOST_LINES:
        made.caption = f"and {len(book.trials) - MOST_LINES} more"
    return made


PREDICT_COMMANDS = (predict_command,)
