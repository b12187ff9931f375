"""Data sets: a reader for each layout, which turns folders and labels into trials (`Dataset`, `Trial`).

Open `base.py` first for what a data set is; then `clip_level.py` or `affwild2.py` for how one is read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from fercache.config import DatasetConfig
from fercache.data import affwild2, clip_level, demo, photos, table
from fercache.data.base import Dataset
from fercache.data.scan import Scan, describe, scan
from fercache.errors import InputError

log = logging.getLogger(__name__)

DEPTH = 5  # folders down to which a layout is recognized (lists are deeper down than clips)


class Reader(NamedTuple):
    """One layout: the function that reads it, and one whose result is true for a folder of that layout."""

    read: Callable[[DatasetConfig], Dataset]
    matches_layout: Callable[[Scan], object]


READERS = {
    "affwild2": Reader(affwild2.read, affwild2.find_tracks),
    "mtl": Reader(affwild2.read_mtl, affwild2.matches_mtl),
    **{spec.name: Reader(spec.read, spec.matches_layout)
       for spec in (clip_level.DFEW, clip_level.FERV39K, clip_level.MAFW, clip_level.CKPLUS, clip_level.CREMAD,
                    clip_level.RAVDESS, clip_level.AFEW)},
}
"""Layouts with folders of their own, in the order in which a folder is compared with them. A new data set is one entry
here: the choices of `--dataset` and the recognition of folders follow from it."""

PHOTO_READERS = {"fer2013": photos.read_fer2013, "photos": photos.read_photos}
"""Sets of still photos; their readers link the photos of each clip in the cache."""

DATASETS = ("demo", *READERS, *PHOTO_READERS, "table", "logits")
"""What `--dataset` and `dataset.toml` can name; "logits" has no clips, only imported logits."""


def load_dataset(config: DatasetConfig, cache: Path) -> Dataset:
    """Return the data set that `config` names, its trials sorted by name; `cache` holds the demo's clips.

    Problems of single clips are in the result's `problems`; the other clips are read. Raises InputError if there is no
    such data set, folder or table, it is empty, it has another layout, or it has no such fold.
    """
    # No crop folder is listed to its end and no video is opened: 561 trials with 2.8 million labels take a second.
    config = replace(config, dataset=config.dataset or "demo")
    if config.dataset not in DATASETS:
        raise InputError(f"dataset = {config.dataset!r} is not one of {', '.join(DATASETS)}", where="dataset",
                         hint="correct --dataset or stages/dataset.toml")
    # Imported logits have rows and labels but no clips, so nothing that reads pictures can use them.
    if config.dataset == "logits":
        raise InputError("a data set of imported logits has no clips", where="dataset",
                         hint="use it with `stack` and `audit`; name clips for anything else")
    config = replace(config, dataset=_layout(config))
    dataset = _read(config, cache)
    # A fold that is silently ignored would give a score that looks like the published one.
    if config.fold and not dataset.folds:
        raise InputError(f"{dataset.layout} publishes no folds, so there is no fold {config.fold}", where="fold",
                         hint="leave --fold out; stage two makes folds by group (--folds)")
    return dataset


def logits_name(config: DatasetConfig) -> str:
    """Return the name in the cache of a data set that consists of imported logits only."""
    return config.name or "logits"


def _read(config: DatasetConfig, cache: Path) -> Dataset:
    """Return the data set; an error about a wrong layout names the layout of the folder."""
    if config.dataset == "table":
        return table.read_clip_table(config)
    if config.dataset == "demo":
        return demo.read_demo(config, cache)
    if config.dataset in PHOTO_READERS:
        return PHOTO_READERS[config.dataset](config, cache)
    try:
        return READERS[config.dataset].read(config)
    except InputError as error:
        fits: list[str] = []
        with suppress(InputError):  # the folder cannot be read, which is what the first error is about
            fits = _fits(scan(Path(config.root), DEPTH)) if config.root else []
        if not fits or config.dataset in fits:
            raise
        raise InputError(error.what, where=error.where,
                         hint=f"the folder has the layout of {fits[0]}: --dataset {fits[0]}; {error.hint}") from error


def _fits(found: Scan) -> list[str]:
    return [name for name, reader in READERS.items() if reader.matches_layout(found)]


def _layout(config: DatasetConfig) -> str:
    """Return the layout to read, recognized from the folder if only a place is given."""
    if config.dataset != "demo" or not (config.root or config.clips or config.labels):
        return config.dataset
    if config.clips:
        return "table"
    if not config.root:
        raise InputError("labels are given without clips", where=config.labels, hint="give --clips too")
    root = Path(config.root)
    if photos.is_fer2013(root):
        return "fer2013"
    found = scan(root, DEPTH)
    fits = _fits(found)
    # Nothing is guessed: reading another layout than the user meant gives other labels without an error.
    if fits[:2] == ["affwild2", "mtl"]:  # the organizers' folder holds both tracks; most users want expressions
        log.info("note: %s holds the multi-task table too; --dataset mtl reads it", root)
    elif len(fits) > 1:
        raise InputError(f"it matches several sets: {', '.join(fits)}", where=root,
                         hint="choose one with --dataset, or give the folder of one of them")
    if not fits and any(found.clips()):
        fits = ["table"]
    if not fits:
        raise InputError("unknown layout", where=root,
                         hint=f"--dataset {', '.join(READERS)} or table; {describe(found)}")
    log.info("%s: read as %s (recognized by its folders; --dataset overrides)", root, fits[0])
    return fits[0]
