"""Predict new clips: extract features with the settings of the heads' training data, run heads and stacker, write.

`predict_dataset` is the main function; the functions above it name the clips and find those used in training.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from fercache.backbones import weights
from fercache.config import ExtractConfig, StackConfig
from fercache.data.base import Dataset, Issue, Kind, Trial, people_stored, stored_trials
from fercache.data.scan import kind_at, scan, unnamable
from fercache.errors import ClipError, FercacheError, InputError, StoreError
from fercache.extraction import job
from fercache.extraction.job import ClipResult
from fercache.inference import ensemble, starter
from fercache.inference.ensemble import SelectedModels
from fercache.oof import HeadRecord, OofLogits
from fercache.stacking import stack
from fercache.stacking.run_metrics import PredictRecord
from fercache.stacking.stack import StackResult
from fercache.store.embedding_store import EmbeddingStore
from fercache.training import checkpoints
from fercache.workspace import FAILURES, Workspace

log = logging.getLogger(__name__)

NAME = "predict"
"""Name of the data set, and so of its folder in the cache, of all clips given on the command line."""
MISSING_PATH = "no such file or folder"


def clips_dataset(paths: Sequence[Path]) -> Dataset:
    """Return the clips at `paths` as a data set of test trials, each named by its full path.

    Raises
    ------
    InputError
        No path is a clip or contains one.

    Notes
    -----
    Two clips of the same file name do not collide in the cache, because the full path is the name. A path without
    clips is recorded as a problem; the others are used.
    """
    clips: dict[Path, Kind] = {}
    problems: list[Issue] = []
    for path in paths:
        new_clips, new_problems = _scan_path(path)
        clips.update(new_clips)
        problems += new_problems
    if not clips:
        first = problems[0] if problems else Issue(where="predict", message="no clip was named")
        raise InputError(first.message, where=first.where,
                         hint=first.hint or "name video files, folders of crops, or folders of clips")
    trials = [Trial(name=str(path), path=path, kind=kind, parent=str(path), group=str(path), split="test")
              for path, kind in clips.items()]
    return Dataset(name=NAME, layout="clips", classes=(), trials=tuple(sorted(trials, key=lambda trial: trial.name)),
                   problems=tuple(problems))


def display_names(dataset: Dataset) -> dict[str, str]:
    """Return trial name -> name in the predictions: the stem of the file, or more of its path if that is ambiguous."""
    if dataset.layout != "clips":
        return {trial.name: trial.name for trial in dataset.trials}
    options = {trial.name: _name_options(trial) for trial in dataset.trials}
    names = {trial: next(option) for trial, option in options.items()}
    # Every clip of an ambiguous name gets a longer one; full paths are unique, so the loop ends.
    while duplicates := {name for name, count in Counter(names.values()).items() if count > 1}:
        names |= {trial: next(options[trial]) for trial, name in names.items() if name in duplicates}
    return names


def _name_options(trial: Trial) -> Iterator[str]:
    """Yield names for a clip, or for one person of it, each longer than the one before, the full path last."""
    person = trial.name.removeprefix(str(trial.path))
    if trial.kind == "video":
        yield trial.path.stem + person
    parts = trial.path.parts
    for count in range(1, len(parts)):
        yield "/".join(parts[-count:]) + person
    while True:
        yield trial.name


def _scan_path(path: Path) -> tuple[dict[Path, Kind], list[Issue]]:
    """Return the clips at a path, and its problems."""
    kind = kind_at(path)
    if kind is None:
        return {}, [Issue(where=str(path), message=MISSING_PATH, hint="check the path")]
    if kind == "video":
        return {path.resolve(): kind}, []
    try:
        scanned = scan(path.resolve())
    except InputError as error:
        return {}, [Issue(where=str(path), message=error.what, hint=error.hint)]
    problems = [*scanned.problems, *unnamable(scanned)]
    clips = dict(scanned.clips())
    if not clips:
        problems.append(Issue(where=str(path), message="no clip in this folder",
                                hint="a clip is a video file or a folder of pictures 00001.jpg, 00002.jpg .."))
    return clips, problems


# Clips that the heads were trained on: a score on them would be too high, so they are not scored.

def training_sources(trials: Sequence[Trial], store: EmbeddingStore, oof: OofLogits, dataset: str,
                     features: Path) -> frozenset[str]:
    """Return the names of the trials whose group, or whose file, the heads of `oof` were trained on.

    Parameters
    ----------
    store : features of the trials.
    dataset : name of the data set of the trials.
    features : folder of the stores of the data set that the heads were trained on.

    Notes
    -----
    Groups are compared within one data set only: two sets may both have a `video1`. Files are compared by the SHA-256
    in the clip's manifest, so a renamed file is recognized as long as the store of the heads exists.
    """
    groups = {group for group, fold in zip(oof.group, oof.fold, strict=True) if fold >= 0}
    sources: set[Any] = set()
    try:
        trained_store = EmbeddingStore.open(features / oof.provenance.store)
        sources |= {trained_store.manifest(trial).source.get("sha256")
                    for trial, fold in zip(oof.trials, oof.fold, strict=True) if fold >= 0 and trial in trained_store}
    except StoreError:
        log.debug("the store of the heads is gone: only groups are compared")
    return frozenset(trial.name for trial in trials
                     if (dataset == oof.dataset and trial.group in groups)
                     or store.manifest(trial.name).source.get("sha256", "") in sources)


def without_labels(oof: OofLogits, names: frozenset[str]) -> OofLogits:
    """Return the logits without the labels of these trials."""
    unseen: NDArray[np.bool_] = oof.per_row(np.array([trial not in names for trial in oof.trials], bool))
    return replace(oof, label=np.where(unseen, oof.label, -1).astype(np.int16))


PREDS, TIMELINES, OVERLAYS = "preds.csv", "timelines", "overlays"
BY_MODELS = "by the mean over the folds' models, which saw none of these groups"


@dataclass(frozen=True, kw_only=True)
class PredictJob:
    """The clips to predict, the models, and the options.

    Attributes
    ----------
    models : the heads and the stacker.
    out : folder of the results.
    defaults : recipe of stage one: device, threads, custom weights.
    overrides : settings of stage one given by flag; they take precedence over those of the heads' store.
    stack : number of bootstrap draws, for the scores.
    store : existing features to use instead of extraction.
    force : predict even if the features differ from those that the heads were trained on.
    timelines : draw a timeline of each clip.
    overlay : write an annotated copy of each clip.
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
    """Results of a run of `predict`.

    Attributes
    ----------
    result : predictions, and scores where there are labels.
    extracted : number of clips whose features were computed.
    cached : whether the logits came from the cache.
    failed : clips without a prediction, without their labels or without an overlay, and why.
    training_clips : trials that the heads were trained on; they are not scored.
    paths : all files that were written.
    """

    result: StackResult
    extracted: int
    cached: bool
    failed: tuple[ClipResult, ...]
    training_clips: tuple[str, ...]
    paths: tuple[Path, ...]


def predict_dataset(request: PredictJob, cache: Path) -> PredictReport:
    """Predict all clips of a job; a clip that cannot be read is recorded, and the others are predicted.

    Raises
    ------
    InputError
        The features or the classes of the labels do not match those that the heads were trained on.
    FercacheError
        No clip could be predicted.

    Notes
    -----
    Features and logits are cached like those of any data set, so a second run computes neither.
    """
    dataset = ensemble.labelled_as(request.dataset, request.models.logits_file.classes)
    files = checkpoints.record_files(request.models.heads)
    if not files:
        raise InputError("no trained heads", where=request.models.heads, hint="run `fercache train-heads` again")
    heads = checkpoints.load_record(files[0])
    store, failed, extracted, forced = _features(request, dataset, heads, cache)
    dataset = stored_trials(dataset, store)
    trials = [trial for trial in dataset.trials if trial.name in store]
    job.write_failures(request.out / FAILURES, failed)  # before the error below, whose hint names this file
    if not trials:
        raise FercacheError(f"no clip could be predicted: {failed[0].message if failed else 'the set is empty'}",
                            where=failed[0].clip if failed else dataset.name, hint=f"see {request.out / FAILURES}")
    oof, cached = ensemble.predict_logits(dataset, trials, store, request.models, cache,
                                          device=request.defaults.device, threads=request.defaults.threads)
    seen = training_sources(trials, store, request.models.logits_file, dataset.name,
                            Workspace.holding(request.models.heads).features(request.models.logits_file.dataset))
    result = _evaluate(request, dataset, oof, seen, forced)
    paths = stack.write_stack(result, request.out / PREDS)
    if request.timelines:
        from fercache.viz import timeline  # loads matplotlib: half a second

        names = display_names(dataset)
        renamed = replace(dataset, trials=tuple(replace(trial, name=names[trial.name]) for trial in dataset.trials))
        paths += timeline.draw_timelines(request.out / PREDS, renamed,
                                         {names[trial.name]: store[trial.name] for trial in trials},
                                         request.out / TIMELINES)
    if request.overlay:
        annotated, lost = _annotate(request, dataset, store)
        paths, failed = paths + annotated, failed + lost
    return PredictReport(result=result, extracted=extracted, cached=cached, failed=tuple(failed), paths=tuple(paths),
                         training_clips=tuple(sorted(seen)))


def _features(request: PredictJob, dataset: Dataset, heads: HeadRecord,
              cache: Path) -> tuple[EmbeddingStore, list[ClipResult], int, tuple[str, ...]]:
    """Return the store, the clips missing in it, the number of computed clips, and the differences that were forced."""
    wanted, taps = heads.store, [part.tap for part in heads.taps]
    if request.store is not None:
        store = EmbeddingStore.open(request.store)
        forced = ensemble.check_match(wanted, store.settings, taps=taps, stored_taps=list(store.taps),
                                      where=request.models.heads, force=request.force)
        lost = [ClipResult(clip=t.name, state="failed", message=f"not in the store {request.store}")
                for t in dataset.trials if not people_stored(t, store)]
        lost += [ClipResult(clip=p.where, state="failed", message=p.message) for p in dataset.problems if p.is_error]
        return store, lost, 0, forced
    config = ensemble.extract_config_of(wanted, request.defaults, request.overrides)
    cnn = weights.ensure_weights(config.weights, Workspace(cache).weights)
    have = job.settings_of(config, job.resolve_faces(dataset, config), cnn)
    # Check the settings before the extraction, which may take hours.
    forced = ensemble.check_match(wanted, have, taps=taps, stored_taps=config.taps, where=request.models.heads,
                                  force=request.force)
    report = job.extract_dataset(dataset, config, cache)
    lost = [clip for clip in report.clips if clip.state in ("failed", "busy")]
    log.info("%d clips computed, %d cached, %d failed", report.count("computed"), report.count("cached"), len(lost))
    return EmbeddingStore.open(report.store), lost, report.count("computed"), forced


def _evaluate(request: PredictJob, dataset: Dataset, oof: OofLogits, seen: frozenset[str],
              forced: tuple[str, ...]) -> StackResult:
    """Return predictions and scores, with display names."""
    from fercache.stacking.stack import evaluate  # LightGBM

    if request.models.stack is None:
        result = starter.evaluate_starter(without_labels(oof, seen), request.stack)
    else:
        result = evaluate(request.models.stack, without_labels(oof, seen), request.stack)
    names = display_names(dataset)
    splits = {split: msgspec.structs.replace(scores, predicted=BY_MODELS, title=f"{split}, new to the heads")
              for split, scores in result.report.splits.items()}
    notices = [oof.notice, *(f"features differ from the heads' own (forced): {difference}" for difference in forced)]
    if seen:
        notices.append(f"{len(seen)} of these clips are not scored: the heads were trained on them")
    paths = {names[trial.name]: str(trial.path) for trial in dataset.trials}
    record = PredictRecord(heads=str(request.models.heads), stack=str(request.models.stack or ""),
                           trained_on=request.models.logits_file.dataset, forced=forced,
                           clips={names[trial]: paths[names[trial]] for trial in oof.trials},
                           known=tuple(sorted(names[trial] for trial in seen)))
    return replace(result, oof=replace(oof, trials=tuple(names[trial] for trial in oof.trials)),
                   report=msgspec.structs.replace(result.report, splits=splits, predict=record,
                                                  notice="; ".join(filter(None, notices))))


def _annotate(request: PredictJob, dataset: Dataset, store: EmbeddingStore) -> tuple[list[Path], list[ClipResult]]:
    """Write an annotated copy of each clip; return the paths, and the clips that failed."""
    from fercache.results import io
    from fercache.viz import overlay  # loads fonts and a video encoder, which few runs need

    names = display_names(dataset)
    trials = {names[trial.name]: trial for trial in dataset.trials}
    classes, fps = io.classes(request.out / PREDS), float(store.settings.get("crop_fps", request.defaults.crop_fps))
    written: list[Path] = []
    lost: list[ClipResult] = []
    for name, rows in io.each_clip(request.out / PREDS):
        trial, path = trials[name], request.out / OVERLAYS / io.file_name(name, ".mp4")
        boxes = overlay.boxes_of(store[trial.name].frame_table, len(rows.time_s))
        try:
            overlay.render_overlay(trial.path, trial.kind, rows, boxes, classes, path, fps=fps)
            written.append(path)
        except ClipError as error:
            lost.append(ClipResult(clip=name, state="failed", message=f"no overlay: {error}"))
    return written, lost
