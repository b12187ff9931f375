"""`fercache extract`: stage one, in this process or in several."""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Any

import click

from fercache.cli.context import Home, places
from fercache.cli.options_part import config_options
from fercache.config import DatasetConfig, ExtractConfig

if TYPE_CHECKING:
    from fercache.extraction.done_part import ExtractReport

log = logging.getLogger('fercache')


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
@places
def extract_command(home: Home, **typed: Any) -> int:
    """Stage one: run the CNN once over every frame of every clip and keep what it saw."""
    began_s = time.time()
    from fercache import run_log
    from fercache.extraction import distributed

    way = distributed.Typed(**{name: typed.pop(name) for name in FLAGS}).way(os.environ, began_s)
    config, dataset = home.config(ExtractConfig, "extract", typed), home.dataset(typed, told=way.tells)
    report = way.run(dataset, config, home.cache, home.remote)
    if report.count("computed"):
        run_log.note(home.cache, dataset.name, "extract", report.store.name, report.seconds,
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
