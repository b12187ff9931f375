"""Predict new clips: extract features with the settings of the heads' training data, run heads and stacker, write.

`predict_clips` is the main function; the functions above it name the clips and find those used in training.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from fercache import data, recipe
from fercache.backbones import weights
from fercache.backbones.taps import AUDIO
from fercache.config import ExtractConfig, StackConfig
from fercache.data.base import Dataset, Issue, Kind, Trial, people_of, people_stored, person_name, stored_trials
from fercache.data.scan import kind_at, scan
from fercache.errors import ClipError, FercacheError, InputError, StoreError
from fercache.extraction import job, sound
from fercache.extraction.job import ClipResult
from fercache.inference import ensemble, starter
from fercache.inference.ensemble import SelectedModels
from fercache.oof import HeadRecord, OofLogits
from fercache.recipe import Context
from fercache.results import io
from fercache.stacking import stack
from fercache.stacking.report import as_text
from fercache.stacking.run_metrics import PredictRecord, read_metrics
from fercache.stacking.stack import StackResult
from fercache.store.embedding_store import EmbeddingStore
from fercache.store.multi_store import IMPORTED, JOINED, SEPARATOR, MultiStoreView
from fercache.training import checkpoints
from fercache.workspace import FAILURES, METRICS, Workspace

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

log = logging.getLogger(__name__)

NAME = "predict"  # name of the data set, and so of its folder in the cache, of all clips given on the command line


def clips_dataset(paths: Sequence[Path]) -> Dataset:
    """Return the clips at `paths` as a data set of test trials, each named by its full path.

    A path without clips is recorded as a problem; the others are used. Raises InputError if no path has any.
    """
    # Two clips of the same file name do not collide in the cache, because the full path is the name.
    clips: dict[Path, Kind] = {}
    problems: list[Issue] = []
    for path in paths:
        kind = kind_at(path)
        if kind == "video":
            clips[path.resolve()] = kind
            continue
        try:
            if kind is None:
                raise InputError("no such file or folder", hint="check the path")
            scanned = scan(path.resolve())
        except InputError as error:
            problems.append(Issue(where=str(path), message=error.what, hint=error.hint))
            continue
        problems += scanned.problems
        clips.update(found := dict(scanned.clips()))
        if not found:
            problems.append(Issue(where=str(path), message="no clip in this folder",
                                  hint="a clip is a video file or a folder of pictures 00001.jpg, 00002.jpg .."))
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


# Clips that the heads were trained on: a score on them would be too high, so they are not scored.

def training_sources(trials: Sequence[Trial], store: EmbeddingStore, oof: OofLogits, dataset: str,
                     features: Path) -> frozenset[str]:
    """Return the names of the trials whose group, or whose file, the heads of `oof` were trained on.

    `dataset`: of the trials, whose features are in `store`. `features`: folder of the stores of the heads' data set.
    """
    # Groups are compared within one data set only: two sets may both have a `video1`. Files are compared by the SHA-256
    # in the clip's manifest, so a renamed file is recognized as long as the store of the heads exists.
    groups = oof.fold_groups()
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
    """The clips to predict, the models, and the options."""

    dataset: Dataset
    models: SelectedModels  # the heads and the stacker
    defaults: ExtractConfig  # recipe of stage one: device, threads, custom weights
    # settings of stage one given by flag; they take precedence over those of the heads' store
    overrides: Mapping[str, Any]
    # bootstrap draws for the scores; for the starter heads also gaps, and whether later frames may be used
    stack: StackConfig
    store: Path | None = None  # existing features to use instead of extraction
    force: bool = False  # predict even if the features differ from those that the heads were trained on
    out: Path | None = None  # folder for the list of failed clips if no clip can be predicted


MAX_CLIPS_SHOWN = 40  # clips listed on the screen; the table of predictions holds all of them
MAX_CLASSES_SHOWN = 3


@dataclass(kw_only=True, eq=False)
class Predictions:
    """Predictions of clips, one row per frame."""

    result: StackResult  # predictions, and scores where there are labels
    models: SelectedModels  # the heads and the stacker that predicted
    # `dataset`, `store`: the clips, and their features; both have the full names of the trials
    dataset: Dataset
    store: EmbeddingStore
    extracted: int  # number of clips whose features were computed
    cached: bool  # whether the logits came from the cache
    failed: list[ClipResult]  # clips without a prediction or, once saved, without an overlay, and why
    training_clips: tuple[str, ...]  # trials that the heads were trained on; they are not scored

    @cached_property
    def trials(self) -> dict[str, Trial]:
        """Name in the predictions -> trial."""
        names = display_names(self.dataset)
        return {names[trial.name]: trial for trial in self.dataset.trials}

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the columns ``p_CLASS``."""
        return self.result.oof.classes

    @property
    def clips(self) -> tuple[str, ...]:
        """The names of the predicted clips; of several people, one name each."""
        return self.result.oof.trials

    @property
    def frame(self) -> DataFrame:
        """One row per frame as a pandas DataFrame; see `StackResult.frame`."""
        return self.result.frame

    def to_arrow(self) -> pa.Table:
        """Return one row per frame as a pyarrow table; see `StackResult.to_arrow`."""
        return self.result.to_arrow()

    def plot(self, clip: str = "") -> Figure:
        """Return the timeline of a clip as a matplotlib figure: faces, labels, predictions and probabilities.

        `clip`: one of `clips`; not needed if there is only one. Raises InputError if there is no such clip, or several
        and none is named.
        """
        from fercache.viz import timeline  # loads matplotlib: half a second

        name = self.clips[0] if not clip and len(self.clips) == 1 else clip
        if name not in self.clips:
            raise InputError(f"no clip {clip!r} was predicted" if clip else "there are several clips", where="plot",
                             hint=f"name one: {', '.join(self.clips[:MAX_CLIPS_SHOWN])}")
        trial = self.trials[name]
        return timeline.draw_clip(name, self.classes, self.result.series(name), trial, self.store[trial.name])

    def save(self, path: str | PathLike[str], *, timelines: bool = True, overlay: bool = False) -> list[Path]:
        """Write the predictions; return the paths of all files. Raises InputError if the place cannot be written.

        `path`: a table (.csv, .csv.gz, .parquet), beside which the metrics are written; or a folder, which gets
        preds.csv, preds.metrics.json, the list of failed clips, a timeline of each clip, and (`overlay`) a copy of each
        clip with its predictions drawn in; a clip for which that fails is added to `failed`.
        """
        path = Path(path)
        if path.name.endswith(io.ENDINGS):
            return self.result.save(path)
        job.write_failures(path / FAILURES, self.failed)
        paths = self.result.save(path / PREDS)
        if timelines:
            from fercache.viz import timeline  # loads matplotlib: half a second

            renamed = tuple(replace(trial, name=name) for name, trial in self.trials.items())
            features = {name: self.store[self.trials[name].name] for name in self.clips}
            paths += timeline.draw_timelines(path / PREDS, replace(self.dataset, trials=renamed), features,
                                             path / TIMELINES)
        if overlay:
            paths += self._annotate(path)
        return paths

    def _annotate(self, folder: Path) -> list[Path]:
        """Write an annotated copy of each clip, and return the paths."""
        from fercache.viz import overlay  # loads fonts and a video encoder, which few runs need

        fps = float(self.store.settings.get("crop_fps", ExtractConfig().crop_fps))
        written = []
        for name in self.clips:
            trial, rows = self.trials[name], self.result.series(name)
            path = folder / OVERLAYS / io.file_name(name, ".mp4")
            boxes = overlay.boxes_of(self.store[trial.name].frame_table, len(rows.time_s))
            try:
                overlay.render_overlay(trial.path, trial.kind, rows, boxes, self.classes, path, fps=fps)
                written.append(path)
            except ClipError as error:
                self.failed.append(ClipResult(clip=name, state="failed", message=f"no overlay: {error}"))
        return written

    def __rich__(self) -> RenderableType:
        shown = self.result.__rich__()
        # Without labels there are no scores to show.
        return shown if self.result.report.splits else Group(self._summary(), shown)

    def _summary(self) -> Table:
        """Return a table with a line per clip: its frames, and the most frequent predicted classes."""
        oof, predicted = self.result.oof, self.result.ppm.argmax(1)
        table = Table("clip", "frames", "with a face", "predicted", box=box.SIMPLE_HEAD, pad_edge=False)
        for trial in range(min(len(oof.trials), MAX_CLIPS_SHOWN)):
            rows = oof.rows(trial)
            fraction = np.bincount(predicted[rows], minlength=len(oof.classes)) / max(len(predicted[rows]), 1)
            # Under half a percent a class would be printed as 0 %.
            top = [i for i in np.argsort(-fraction)[:MAX_CLASSES_SHOWN] if fraction[i] >= 0.005]
            table.add_row(oof.trials[trial], f"{len(predicted[rows])}", f"{int(oof.valid[rows].sum())}",
                          ", ".join(f"{oof.classes[i]} {fraction[i]:.0%}" for i in top))
        if len(oof.trials) > MAX_CLIPS_SHOWN:
            table.caption = f"and {len(oof.trials) - MAX_CLIPS_SHOWN} more"
        return table

    def __repr__(self) -> str:
        terms = "" if self.models.stack else f"; {self.models.logits_file.notice}"
        heads = starter.STARTER if self.models.stack is None else self.models.heads
        count = f"{len(self.clips)} clip{'s' * (len(self.clips) != 1)}"
        return f"{count} predicted by heads {heads}{terms}\n{as_text(self.__rich__())}"


def _predict_dataset(request: PredictJob, cache: Path) -> Predictions:
    """Predict all clips of a job; features and logits are cached like those of any data set."""
    dataset = ensemble.labelled_as(request.dataset, request.models.logits_file.classes)
    files = checkpoints.record_files(request.models.heads)
    if not files:
        raise InputError("no trained heads", where=request.models.heads, hint="run `fercache train-heads` again")
    heads = checkpoints.load_record(files[0])
    store, others, failed, extracted, forced = _features(request, dataset, heads, cache)
    dataset = stored_trials(dataset, store)
    trials = [trial for trial in dataset.trials if all(trial.name in place for place in (store, *others.values()))]
    if not trials:
        if request.out is not None:
            job.write_failures(request.out / FAILURES, failed)  # the hint below names this file
        raise FercacheError(f"no clip could be predicted: {failed[0].message if failed else 'the set is empty'}",
                            where=failed[0].clip if failed else dataset.name,
                            hint=f"see {request.out / FAILURES}" if request.out else "name other clips")
    oof, cached = ensemble.predict_logits(dataset, trials, MultiStoreView(store, others) if others else store,
                                          request.models, cache, device=request.defaults.device,
                                          threads=request.defaults.threads)
    seen = training_sources(trials, store, request.models.logits_file, dataset.name,
                            Workspace.holding(request.models.heads).features(request.models.logits_file.dataset))
    of_sound = [other for other in others.values() if _is_sound(other.settings)]
    silent = {trial.name for trial in trials
              if of_sound and not any(other[trial.name].frame_table["valid"].any() for other in of_sound)}
    return Predictions(result=_evaluate(request, dataset, oof, seen, forced, silent), models=request.models,
                       dataset=dataset, store=store, extracted=extracted, cached=cached, failed=failed,
                       training_clips=tuple(sorted(seen)))


def predict_clips(context: Context, paths: Sequence[Path], typed: Mapping[str, Any], *, heads: Path | None = None,
                  stack_run: Path | None = None, store: Path | None = None, force: bool = False,
                  causal: bool | None = None, out: Path | None = None) -> Predictions:
    """Predict the clips at `paths`, or the data set that `typed` names; a clip that cannot be read is recorded.

    Raises as `select_models` does, InputError if clips are named both ways, or not at all, or if features or classes do
    not match those that the heads were trained on, and FercacheError if no clip could be predicted. The keys of stage
    one that the user did not type are those of the heads' own features. `causal`: by default as the recipe of `stack`;
    `heads`, `stack_run`: see `select_models`; `store`, `force`, `out`: see `PredictJob`.
    """
    if bool(paths) == (named := any(typed.get(name) for name in ("dataset", "root", "clips"))):
        raise InputError("clips are named both as arguments and as a data set" if named else "no clip is named",
                         where="predict", hint="give CLIP... (videos, folders) or a data set: --dataset NAME --root "
                                               "DIR, or --clips TABLE")
    for name in ("modality", "audio_window_s"):
        if typed.get(name) is not None:
            raise InputError("predict reads sound as the heads do", where=f"--{name.replace('_', '-')}",
                             hint="leave it out: it belongs to `fercache extract`")
    config = recipe.make_config(StackConfig, "stack", context.stages, {"causal": causal})
    models = ensemble.select_models(context.cache, heads, stack_run, _recipe_dataset(context), causal=config.causal)
    if paths:
        dataset = clips_dataset(paths)
        recipe.log_issues(dataset.problems)
    else:  # labels that are numbers are indices of the heads' classes
        dataset = context.dataset({**typed, "classes": typed.get("classes") or models.logits_file.classes})
    # All other settings of extraction are those that the heads were trained on.
    machine = {name: typed.get(name) for name in ("device", "threads", "weights")}
    names = [entry.name for entry in fields(ExtractConfig)]
    return _predict_dataset(PredictJob(
        dataset=dataset, models=models, out=out, store=store, force=force, stack=config,
        defaults=recipe.make_config(ExtractConfig, "extract", context.stages, machine),
        overrides={name: value for name, value in typed.items() if name in names}), context.cache)


def _recipe_dataset(context: Context) -> str:
    """Return the recipe's data set by its name in the cache, "" for the demo or if the data set cannot be read."""
    try:
        config = context.dataset_config({})
        if config.dataset in ("", "demo") and not (config.root or config.clips):
            return ""
        return data.load_dataset(config, context.cache).name
    except InputError:  # predicting new clips does not need the old ones
        return ""


def _features(request: PredictJob, dataset: Dataset, heads: HeadRecord, cache: Path
              ) -> tuple[EmbeddingStore, dict[str, EmbeddingStore], list[ClipResult], int, tuple[str, ...]]:
    """Return the store, those to join with it, the clips missing in any, the number of computed clips, differences."""
    wanted, taps, where = heads.store, [part.tap for part in heads.taps], request.models.heads
    clips, causal = [trial.name for trial in dataset.trials], request.stack.causal
    lost, computed = list[ClipResult](), 0
    if request.store is not None:
        store = EmbeddingStore.open(request.store, causal=causal)
        others = ensemble.find_joined(store.path, wanted, clips, causal=causal)
        joined = MultiStoreView(store, others) if others else store
        forced = ensemble.check_match(wanted, joined.settings, taps=taps, stored_taps=list(joined.taps), where=where,
                                      force=request.force)
        lost += [ClipResult(clip=p.where, state="failed", message=p.message) for p in dataset.problems if p.is_error]
    else:
        # "": the store that the others are joined with. It comes after other pictures, so that it becomes the current
        # one, and before sound, whose rows are its frames.
        recorded = dict(sorted([("", wanted), *wanted.get(JOINED, {}).items()],
                               key=lambda one: (_is_sound(one[1]), not one[0])))
        configs = {label: _config_of(request, settings, cache, joined=bool(label))
                   for label, settings in recorded.items() if IMPORTED not in settings}
        have = recorded | {label: _settings_of(dataset, config, cache) for label, config in configs.items()}
        stored = [tap for tap in taps if tap.partition(SEPARATOR)[0] in recorded.keys() - configs.keys()]  # imported
        stored += [f"{label}{SEPARATOR}{tap}" if label else tap for label, one in configs.items() for tap in one.taps]
        # Check everything before the extraction, which may take hours.
        base = have.pop("")
        forced = ensemble.check_match(wanted, {**base, JOINED: have}, taps=taps, stored_taps=stored, where=where,
                                      force=request.force)
        path = job.store_path(cache, dataset.name, base)
        imported = {label: settings for label, settings in have.items() if label not in configs}
        ensemble.find_joined(path, {JOINED: imported}, clips)
        for label, config in configs.items():
            report = (sound.extract_sound(dataset, config, cache, pictures=path if label else None)
                      if config.modality == "audio" else job.extract_dataset(dataset, config, cache))
            lost += [clip for clip in report.clips if clip.state in ("failed", "busy")]
            computed = computed if label else report.count("computed")
            log.info("%s%d clips computed, %d cached, %d failed", f"{label}: " if label else "",
                     report.count("computed"), report.count("cached"), report.count("failed"))
        store = EmbeddingStore.open(path, causal=causal)
        others = ensemble.find_joined(path, wanted, clips, causal=causal)
    for trial in dataset.trials:
        people = range(1, people_stored(trial, store) + 1)
        names = {person_name(trial, people_of(store.settings), number) for number in people}
        absent = [place.path for place in (store, *others.values()) if not names or not all(n in place for n in names)]
        lost += [ClipResult(clip=trial.name, state="failed", message=f"not in the store {path}") for path in absent[:1]]
    # The first message of a clip is the reason why it is in no store.
    return store, others, list({clip.clip: clip for clip in reversed(lost)}.values())[::-1], computed, forced


def _is_sound(settings: Mapping[str, Any]) -> bool:
    return settings.get("modality") == AUDIO


def _config_of(request: PredictJob, settings: Mapping[str, Any], cache: Path, *, joined: bool) -> ExtractConfig:
    """Return the settings of stage one that make a store like the one of these settings."""
    overrides = request.overrides
    if joined or _is_sound(settings):  # flags that change numbers are for pictures, and for the store that is joined to
        free = {*ensemble.FREE, *(entry.name for entry in fields(ExtractConfig) if not entry.metadata["numbers"])}
        overrides = {name: value for name, value in overrides.items() if name in free - {"taps", "augmentations"}}
    if _is_sound(settings):
        return sound.config_of(settings, cache, replace(request.defaults, **overrides))
    config = ensemble.extract_config_of(settings, request.defaults, overrides)
    own, sha256 = config.weights != settings.get("backbone"), str(settings.get("weights", ""))
    # A flag names the weights of the store that the others are joined with; without one it is enough to have used them.
    known = "weights" not in overrides and Workspace(cache).weights_source(sha256).is_file()
    return replace(config, weights=job.recorded_weights(cache, sha256)) if own and (joined or known) else config


def _settings_of(dataset: Dataset, config: ExtractConfig, cache: Path) -> dict[str, Any]:
    """Return the settings of the store that this configuration makes."""
    if config.modality == "audio":
        return sound.settings_of(config, sound.resolve_sound(config, cache))
    cnn = weights.ensure_weights(config.weights, Workspace(cache).weights)
    return job.settings_of(config, job.resolve_faces(dataset, config), cnn)


def _evaluate(request: PredictJob, dataset: Dataset, oof: OofLogits, seen: frozenset[str],
              forced: tuple[str, ...], silent: Collection[str]) -> StackResult:
    """Return predictions and scores, with display names."""
    if request.models.stack is None:
        result = starter.evaluate_starter(without_labels(oof, seen), request.stack)
    else:
        config = msgspec.convert(read_metrics(request.models.stack / METRICS).config, StackConfig)
        cache = Workspace.holding(request.models.heads).root
        # The stack run for clips without sound is made if it is missing; None if no head reads sound.
        mute = stack.run_without_sound(request.models.logits_file, config, cache) if silent else None
        result = stack.evaluate(request.models.stack, without_labels(oof, seen), request.stack, mute=mute,
                                silent=silent)
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
