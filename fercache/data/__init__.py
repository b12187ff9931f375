"""Data sets: one reader a layout, one contract (`Dataset`, `Trial`, `Problem`), labels by frame number.

Open `base.py` first for what a data set is; this file registers all layouts. One module reads each.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from fercache.config import DatasetConfig
from fercache.data import affwild2, clip_level, demo, mtl, table
from fercache.data.base import Dataset
from fercache.data.scan import Scan, describe, scan
from fercache.errors import InputError

log = logging.getLogger(__name__)


DEPTH = 5
"""Folders down to which a layout is looked for (lists lie deeper than clips)."""


class Reader(NamedTuple):
    """One layout: how it is read, and how it is told from a folder."""

    read: Callable[[DatasetConfig], Dataset]
    looks_like: Callable[[Scan], bool]


READERS = {
    "affwild2": Reader(affwild2.read, affwild2.looks_like), "mtl": Reader(mtl.read, mtl.looks_like),
    "dfew": Reader(clip_level.read_dfew, clip_level.looks_like_dfew), "ferv39k": Reader(clip_level.read_ferv39k,
                                                                                        clip_level.looks_like_ferv39k),
    "mafw": Reader(clip_level.read_mafw, clip_level.looks_like_mafw), "ckplus": Reader(clip_level.read_ckplus,
                                                                                       clip_level.looks_like_ckplus),
    "cremad": Reader(clip_level.read_cremad, clip_level.looks_like_cremad), "ravdess": Reader(clip_level.read_ravdess,
                                                                                              clip_level.looks_like_ravdess),
    "afew": Reader(clip_level.read_afew, clip_level.looks_like_afew)}
"""Layouts with folders of their own, in the order in which a folder is asked for them."""


def load_dataset(config: DatasetConfig, cache: Path) -> Dataset:
    """Return the data set that `config` names, its trials sorted by name.

    Parameters
    ----------
    cache : the cache folder (the demo's clips lie in it).

    Raises
    ------
    InputError
        There is no such folder or table, it is empty, its layout is not the one named, or it has no such fold; says
        what was found there.

    Notes
    -----
    What is wrong with single clips is in the result's `problems`; the others are read. No crop folder is listed to its
    end and no video opened: 561 trials with 2.8 million labels take about a second.
    """
    if config.dataset == "logits":
        raise InputError("a data set of imported logits has no clips to look at", where="dataset",
                         hint="`stack` and `audit` can work on it; name clips for anything else")
    config = replace(config, dataset=_layout(config))
    found = _read(config, cache)
    if config.fold and not found.folds:
        raise InputError(f"{found.layout} publishes no folds, and fold {config.fold} is asked for", where="fold",
                         hint="leave --fold out; stage two makes folds by group (--folds)")
    return found


def logits_name(config: DatasetConfig) -> str:
    """Return the name in the cache of a data set that is nothing but imported logits."""
    return config.name or "logits"


def _read(config: DatasetConfig, cache: Path) -> Dataset:
    """Return the data set; an error of a wrong layout names the layout that the folder has."""
    if config.dataset == "table":
        return table.read_clip_table(config)
    if config.dataset == "demo":
        return demo.read_demo(config, cache)
    try:
        return READERS[config.dataset].read(config)
    except InputError as error:
        others = [name for name in _guesses(config.root) if name != config.dataset] if config.root else []
        if not others or config.dataset in _guesses(config.root):
            raise
        raise InputError(error.what, where=error.where,
                         hint=f"it looks like {others[0]}: --dataset {others[0]}; {error.hint}") from error


def _guesses(root: str) -> list[str]:
    """Return the layouts that a folder looks like; none where it cannot be read."""
    try:
        found = scan(Path(root), DEPTH)
    except InputError:
        return []
    return [name for name, reader in READERS.items() if reader.looks_like(found)]


def _layout(config: DatasetConfig) -> str:
    """Return the layout to read: the demo only where no place is given."""
    if config.dataset != "demo" or not (config.root or config.clips or config.labels):
        return config.dataset
    if config.clips:
        return "table"
    if not config.root:
        raise InputError("labels are given without clips", where=config.labels, hint="give --clips too")
    return _report_problems(Path(config.root))


def _report_problems(root: Path) -> str:
    """Return the layout that a folder has, and say in the log that it was guessed.

    Raises
    ------
    InputError
        None is known, or several fit.
    """
    found = scan(root, DEPTH)
    fits = [name for name, reader in READERS.items() if reader.looks_like(found)]
    if fits[:2] == ["affwild2", "mtl"]:
        log.info("note: %s holds the multi-task table too; --dataset mtl reads it", root)
    elif len(fits) > 1:
        raise InputError(f"it looks like several sets: {', '.join(fits)}", where=root,
                         hint="say which with --dataset, or give the folder of one of them")
    if not fits and any(found.clips()):
        fits = ["table"]
    if not fits:
        known = f"{', '.join(READERS)} or table"
        raise InputError("no layout that is known", where=root, hint=f"--dataset {known}; {describe(found)}")
    log.info("%s: read as %s (by its folders; --dataset says otherwise)", root, fits[0])
    return fits[0]
