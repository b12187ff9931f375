"""New clips through all of it: extraction as the heads' own store was made, heads, stacker, predictions, timelines."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fercache.backbones import weights
from fercache.config import ExtractConfig, StackConfig
from fercache.data.base import Dataset, Kind, Problem, Trial, people_stored, stored_trials
from fercache.data.scan import kind_at, scan, unnamable
from fercache.errors import ClipError, FercacheError, InputError, StoreError
from fercache.extraction import job
from fercache.extraction.job import ClipResult
from fercache.inference import ensemble
from fercache.inference.ensemble import SelectedModels
from fercache.oof import OofLogits
from fercache.runtime import atomic_io
from fercache.stacking import stack
from fercache.stacking.stack import StackResult
from fercache.store.embedding_store import EmbeddingStore

log = logging.getLogger(__name__)


# Clips named one by one, as a data set: a file, a folder of crops, or a folder with clips in it.

NAME = "predict"
"""Folder in the cache of all clips that were named one by one."""
LACKING = "no such file or folder"


def clips_dataset(paths: Sequence[Path]) -> Dataset:
    """Return the clips at `paths` as a data set of test trials, each called by its full path.

    Raises
    ------
    InputError
        Not one of them is a clip or holds one.

    Notes
    -----
    The full path is the name in the cache, so that two clips of one file name never meet, wherever they are named
    from. A path that holds nothing is recorded as a problem, and the others are read.
    """
    clips: dict[Path, Kind] = {}
    problems: list[Problem] = []
    for path in paths:
        found, wrong = _at(path)
        clips.update(found)
        problems += wrong
    if not clips:
        first = problems[0] if problems else Problem(where="predict", what="no clip was named")
        raise InputError(first.what, where=first.where,
                         hint=first.hint or "name video files, folders of crops, or folders of clips")
    trials = [Trial(name=str(path), path=path, kind=kind, parent=str(path), group=str(path), split="test")
              for path, kind in clips.items()]
    return Dataset(name=NAME, layout="clips", classes=(), trials=tuple(sorted(trials, key=lambda trial: trial.name)),
                   problems=tuple(problems))


def display_names(dataset: Dataset) -> dict[str, str]:
    """Return trial name -> the name that predictions carry: the file's stem, with more of its path where needed."""
    if dataset.layout != "clips":
        return {trial.name: trial.name for trial in dataset.trials}
    waiting = {trial.name: _names(trial) for trial in dataset.trials}
    chosen = {name: next(names) for name, names in waiting.items()}
    while twice := {name for name, count in Counter(chosen.values()).items() if count > 1}:
        chosen |= {name: next(waiting[name]) for name, record in chosen.items() if record in twice}
    return chosen


def with_display_names(dataset: Dataset) -> Dataset:
    """Return the data set with its trials called as predictions call them."""
    names = display_names(dataset)
    return replace(dataset, trials=tuple(replace(trial, name=names[trial.name]) for trial in dataset.trials))


def _names(trial: Trial) -> Iterator[str]:
    """Yield names for a clip, or for one person of it, each longer than the one before, the full path last."""
    person = trial.name.removeprefix(str(trial.path))
    if trial.kind == "video":
        yield trial.path.stem + person
    parts = trial.path.parts
    for many in range(1, len(parts)):
        yield "/".join(parts[-many:]) + person
    while True:
        yield trial.name


def _at(path: Path) -> tuple[dict[Path, Kind], list[Problem]]:
    """Return the clips at a path, and what is wrong there."""
    kind = kind_at(path)
    if kind is None:
        return {}, [Problem(where=str(path), what=LACKING, hint="check the path")]
    if kind == "video":
        return {path.resolve(): kind}, []
    try:
        found = scan(path.resolve())
    except InputError as error:
        return {}, [Problem(where=str(path), what=error.what, hint=error.hint)]
    problems = [*found.problems, *unnamable(found)]
    clips = dict(found.clips())
    if not clips:
        problems.append(Problem(where=str(path), what="no clip in this folder",
                                hint="a clip is a video file or a folder of pictures 00001.jpg, 00002.jpg .."))
    return clips, problems


# Which new trials are not new: the heads were trained on them, so that a score of theirs would say nothing.

def training_sources(trials: Sequence[Trial], store: EmbeddingStore, book: OofLogits, dataset: str,
               features: Path) -> frozenset[str]:
    """Return the names of the trials whose group, or whose very file, the heads of `book` were trained on.

    Parameters
    ----------
    store : of the trials.
    dataset : name of the trials' data set.
    features : folder of the stores of the data set that the heads were trained on.

    Notes
    -----
    Groups are compared within one data set only: two sets may both have a `video1`. A file is known by the digest that
    its clip's mark keeps, also under another name, as long as the heads' store is there.
    """
    groups = {group for group, fold in zip(book.group, book.fold, strict=True) if fold >= 0}
    sources = _sources(book, features / str(book.provenance.get("store", "")))
    return frozenset(trial.name for trial in trials
                     if (dataset == book.dataset and trial.group in groups)
                     or store.manifest(trial.name).source.get("sha256", "") in sources)


def without_labels(book: OofLogits, names: frozenset[str]) -> OofLogits:
    """Return the book with no label on the trials of these names."""
    keep: NDArray[np.bool_] = book.per_row(np.array([trial not in names for trial in book.trials], bool))
    return replace(book, label=np.where(keep, book.label, -1).astype(np.int16))


def _sources(book: OofLogits, path: Path) -> frozenset[str]:
    """Return the digests of the files of the trials that the heads were trained on; none where their store is gone."""
    try:
        store = EmbeddingStore.open(path)
    except StoreError:
        return frozenset()
    trained = [trial for trial, fold in zip(book.trials, book.fold, strict=True) if fold >= 0 and trial in store]
    return frozenset(str(store.manifest(trial).source.get("sha256")) for trial in trained) - {"None"}


PREDS, TIMELINES, OVERLAYS, FAILURES = "preds.csv", "timelines", "overlays", "failures.csv"
BY_MODELS = "by the mean over the folds' models, which saw none of these groups"


@dataclass(frozen=True, kw_only=True)
class PredictJob:
    """What is to be predicted, and how.

    Attributes
    ----------
    chosen : the heads and the stacker.
    usual : stage one's recipe: device, threads, the user's own weights; typed : choices of stage one made by flag,
        which beat what the heads' store was made with.
    store : features at hand, instead of extraction.
    stack : draws of the bootstrap.
    force : predict also where the features differ from those that the heads were trained on.
    timelines : draw a picture a clip.
    overlay : write each clip again, annotated.
    """

    dataset: Dataset
    models: SelectedModels
    out: Path
    defaults: ExtractConfig
    overrides: Mapping[str, Any]
    stack: StackConfig
    store: Path | None = None
    force: bool = False
    timelines: bool = True
    overlay: bool = False


@dataclass(frozen=True, kw_only=True)
class PredictReport:
    """What a run of `predict` did.

    Attributes
    ----------
    result : predictions, and scores where there are labels.
    extracted : clips that stage one had to compute.
    cached : whether the heads had spoken of these clips before.
    failed : clips without a prediction, or that lost their labels, and why.
    known : trials that the heads were trained on; they are not scored.
    paths : everything that was written.
    """

    result: StackResult
    extracted: int
    cached: bool
    failed: tuple[ClipResult, ...]
    training_clips: tuple[str, ...]
    paths: tuple[Path, ...]


def predict_dataset(order: PredictJob, cache: Path) -> PredictReport:
    """Return what was predicted; a clip that cannot be read is recorded, and the others are done.

    Raises
    ------
    InputError
        The features are, or would be, other than those that the heads were trained on; or the labels are.
    FercacheError
        Not one clip could be predicted.

    Notes
    -----
    Features go into the cache like those of any data set, and what the heads say into `logits`: a second run computes
    neither.
    """
    dataset = ensemble.labelled_as(order.dataset, order.models.logits_file.classes)
    heads = _heads(order.models)
    store, failed, extracted, forced = _features(order, dataset, heads, cache)
    dataset = stored_trials(dataset, store)
    trials = [trial for trial in dataset.trials if trial.name in store]
    job.write_failures(order.out / FAILURES, failed)
    if not trials:
        raise FercacheError(f"not one clip could be predicted: {failed[0].message if failed else 'the set is empty'}",
                            where=failed[0].clip if failed else dataset.name, hint=f"see {order.out / FAILURES}")
    speakers = ensemble.HeadEnsemble(folder=order.models.heads, logits_file=order.models.logits_file,
                                     device=order.defaults.device,
                              threads=order.defaults.threads)
    book, cached = ensemble.predict_logits(dataset, trials, store, speakers, cache / "logits" / dataset.name)
    seen = training_sources(trials, store, order.models.logits_file, dataset.name,
                            order.models.heads.parents[2] / "features" / order.models.logits_file.dataset)
    result = _evaluated(order, dataset, book, seen, forced)
    paths = stack.write_stack(result, order.out / PREDS)
    if order.timelines:
        paths += _draw(order, dataset, trials, store)
    if order.overlay:
        annotated, lost = _annotate(order, dataset, store)
        paths, failed = paths + annotated, failed + lost
    return PredictReport(result=result, extracted=extracted, cached=cached, failed=tuple(failed), paths=tuple(paths),
                         training_clips=tuple(sorted(seen)))


def _heads(chosen: SelectedModels) -> dict[str, Any]:
    """Return what the JSON of a trained head says of all of them: store and taps."""
    for path in sorted(chosen.heads.glob("[!.]*-fold*.json")):
        record: dict[str, Any] = atomic_io.read_json(path)
        return record
    raise InputError("no trained heads", where=chosen.heads, hint="run `fercache train-heads` again")


def _features(order: PredictJob, dataset: Dataset, heads: dict[str, Any],
              cache: Path) -> tuple[EmbeddingStore, list[ClipResult], int, tuple[str, ...]]:
    """Return the store of the clips, those that are not in it and why, how many were computed, and what was forced."""
    wanted, taps = heads["store"], [part["tap"] for part in heads["taps"]]
    if order.store is not None:
        store = EmbeddingStore.open(order.store)
        forced = ensemble.check_match(wanted, store.settings, taps=taps, held=list(store.taps),
                                      where=order.models.heads,
                             force=order.force)
        lost = [ClipResult(clip=t.name, state="failed", message=f"not in the store {order.store}")
                for t in dataset.trials if not people_stored(t, store)]
        lost += [ClipResult(clip=p.where, state="failed", message=p.what) for p in dataset.problems if p.lost]
        return store, lost, 0, forced
    config = ensemble.extract_config_of(wanted, order.defaults, order.overrides)
    cnn = weights.ensure_weights(config.weights, cache / "weights")
    have = job.settings_of(config, job.resolve_faces(dataset, config), cnn)
    forced = ensemble.check_match(wanted, have, taps=taps, held=config.taps, where=order.models.heads,
                                  force=order.force)
    report = job.extract_dataset(dataset, config, cache)
    lost = [clip for clip in report.clips if clip.state in ("failed", "busy")]
    log.info("%d clips computed, %d cached, %d failed", report.count("computed"), report.count("cached"), len(lost))
    return EmbeddingStore.open(report.store), lost, report.count("computed"), forced


def _evaluated(order: PredictJob, dataset: Dataset, book: OofLogits, seen: frozenset[str],
            forced: tuple[str, ...]) -> StackResult:
    """Return predictions and scores, the trials called as they are shown."""
    from fercache.stacking.stack import evaluate  # LightGBM

    judged = evaluate(order.models.stack, without_labels(book, seen), order.stack)
    names = display_names(dataset)
    for split, scores in judged.report["splits"].items():
        scores |= {"predicted": BY_MODELS, "title": f"{split}, new to the heads"}
    notices = [book.notice, *(f"features differ from the heads' own (forced): {one}" for one in forced)]
    if seen:
        notices.append(f"{len(seen)} of these clips were trained on: the heads saw them, and they are not scored")
    paths = {names[trial.name]: str(trial.path) for trial in dataset.trials}
    record = {"heads": str(order.models.heads), "stack": str(order.models.stack),
            "trained_on": order.models.logits_file.dataset,
            "clips": {names[trial]: paths[names[trial]] for trial in book.trials}, "forced": list(forced),
            "known": sorted(names[trial] for trial in seen)}
    return replace(judged, oof=replace(book, trials=tuple(names[trial] for trial in book.trials)),
                   report={**judged.report, "notice": "; ".join(filter(None, notices)), "predict": record})


def _draw(order: PredictJob, dataset: Dataset, trials: list[Trial], store: EmbeddingStore) -> list[Path]:
    """Draw the timelines and return their paths."""
    from fercache.viz import timeline  # matplotlib: half a second

    names = display_names(dataset)
    held = {names[trial.name]: store[trial.name] for trial in trials}
    return timeline.draw_timelines(order.out / PREDS, with_display_names(dataset), held, order.out / TIMELINES)


def _annotate(order: PredictJob, dataset: Dataset, store: EmbeddingStore) -> tuple[list[Path], list[ClipResult]]:
    """Write each clip again with what was told of it; return the paths, and the clips that could not be."""
    from fercache.results import io
    from fercache.viz import overlay  # Pillow's fonts and an encoder: for those who ask

    names = display_names(dataset)
    trials = {names[trial.name]: trial for trial in dataset.trials}
    classes, fps = io.classes(order.out / PREDS), float(store.settings.get("crop_fps", order.defaults.crop_fps))
    made: list[Path] = []
    lost: list[ClipResult] = []
    for name, rows in io.each_clip(order.out / PREDS):
        trial, path = trials[name], order.out / OVERLAYS / io.file_name(name, ".mp4")
        boxes = overlay.boxes_of(store[trial.name].frame_table, len(rows.time_s))
        try:
            overlay.render_overlay(trial.path, trial.kind, rows, boxes, classes, path, fps=fps)
            made.append(path)
        except ClipError as error:
            lost.append(ClipResult(clip=name, state="failed", message=f"no overlay: {error}"))
    return made, lost
