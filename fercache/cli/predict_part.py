"""The command for new clips: predict."""

from __future__ import annotations

import logging
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fercache.cli.context import Home, places
from fercache.cli.options_part import config_options, make
from fercache.config import DatasetConfig, ExtractConfig, StackConfig
from fercache.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from fercache.data.base import Dataset
    from fercache.inference.choice_part import Chosen
    from fercache.inference.predict import PredictReport

log = logging.getLogger('fercache')


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
@places
def predict_command(home: Home, paths: tuple[Path, ...], out: Path, heads: Path | None, stack: Path | None, store: Path | None,
            force: bool, timelines: bool, overlay: bool, **typed: Any) -> int:
    """New clips through all of it: CLIPs (videos, folders of crops or of clips), or a set named by flags.

    Trained heads and their stacker speak; features are extracted into the cache as theirs were. Where the set has
    labels, every column is scored as `fercache stack` scores it.
    """
    from fercache.inference import predict
    from fercache.inference.choice_part import choose

    _check(paths, typed)
    chosen = choose(home.cache, heads, stack, _own(home))
    order = predict.Order(dataset=_dataset(home, paths, typed, chosen), chosen=chosen, out=out, store=store, force=force,
                       usual=make(ExtractConfig, "extract", home.stages, _only(typed, "device", "threads", "weights")),
                       typed=_only(typed, *(entry.name for entry in fields(ExtractConfig))), timelines=timelines,
                       overlay=overlay,
                       stack=make(StackConfig, "stack", home.stages, {}))
    report = predict.run(order, home.cache)
    _say(report)
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


def _own(home: Home) -> str:
    """Return the name in the cache of the data set that the recipe names; nothing for the demo, or if it is gone."""
    from fercache import data

    config = make(DatasetConfig, "dataset", home.stages, {})
    if config.dataset == "demo" and not (config.root or config.clips):
        return ""
    try:
        return data.load(config, home.cache).name
    except InputError:  # its clips need not be where new ones are predicted
        return ""


def _dataset(home: Home, paths: tuple[Path, ...], typed: dict[str, Any], chosen: Chosen) -> Dataset:
    """Return what is to be predicted; labels that are numbers mean the heads' classes."""
    from fercache.inference.clips_part import named

    if not paths:
        return home.dataset({**typed, "classes": typed["classes"] or chosen.book.classes})
    found = named(paths)
    for problem in found.problems:
        log.warning("%s", problem)
    return found


def _say(report: PredictReport) -> None:
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

    book, said = report.result.book, report.result.units.argmax(1)
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
