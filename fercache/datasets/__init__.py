"""Data sets: one reader a layout, one contract (`Dataset`, `Trial`, `Problem`), labels by frame number."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from fercache.config import DatasetConfig
from fercache.datasets import affwild2, demo, table
from fercache.datasets.base import Dataset, Kind, Labels, Problem, Split, Trial, on_clock
from fercache.datasets.scan import describe, scan
from fercache.errors import InputError

__all__ = ["Dataset", "Kind", "Labels", "Problem", "Split", "Trial", "load", "on_clock"]

log = logging.getLogger(__name__)


def load(config: DatasetConfig, cache: Path) -> Dataset:
    """Return the data set that `config` names, its trials sorted by name.

    Parameters
    ----------
    cache : the cache folder (the demo's clips lie in it).

    Raises
    ------
    InputError
        There is no such folder or table, it is empty, or its layout is not the one named; says what was found there.

    Notes
    -----
    What is wrong with single clips is in the result's `problems`; the others are read. No crop folder is listed and no
    video opened: 561 trials with 2.8 million labels take about a second.
    """
    if config.dataset == "logits":
        raise InputError("a data set of imported logits has no clips to look at", where="dataset",
                         hint="`stack` and `audit` can work on it; name clips for anything else")
    config = replace(config, dataset=_layout(config))
    if config.dataset == "affwild2":
        return affwild2.read(config)
    if config.dataset == "table":
        return table.read(config)
    return demo.read(config, cache)


def _layout(config: DatasetConfig) -> str:
    """Return the layout to read: the demo only where no place is given."""
    if config.dataset != "demo" or not (config.root or config.clips or config.labels):
        return config.dataset
    if config.clips:
        return "table"
    if not config.root:
        raise InputError("labels are given without clips", where=config.labels, hint="give --clips too")
    found = scan(Path(config.root))
    if affwild2.looks_like(found):
        return "affwild2"
    if any(found.clips()):
        return "table"
    raise InputError("no layout that is known", where=config.root,
                     hint=f"--dataset affwild2 or table; {describe(found)}")
