"""New clips through all of it: extraction as the heads' own store was made, heads, stacker, predictions, timelines."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fercache.backbones import weights
from fercache.config import ExtractConfig, StackConfig
from fercache.data.base import Dataset, Trial
from fercache.data.persons_part import people_held, present
from fercache.errors import ClipError, FercacheError, InputError
from fercache.extraction import done_part, job
from fercache.extraction.done_part import ClipDone
from fercache.inference import clips_part, ensemble, known_part, match_part
from fercache.inference.choice_part import Chosen
from fercache.oof import LogitBook
from fercache.runtime import atomic_io
from fercache.stacking import stack
from fercache.stacking.stack import StackResult
from fercache.store.embedding_store import EmbeddingStore

log = logging.getLogger(__name__)


PREDS, TIMELINES, OVERLAYS, FAILURES = "preds.csv", "timelines", "overlays", "failures.csv"
BY_MODELS = "by the mean over the folds' models, which saw none of these groups"


@dataclass(frozen=True, kw_only=True)
class Order:
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
    chosen: Chosen
    out: Path
    usual: ExtractConfig
    typed: Mapping[str, Any]
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
    failed: tuple[ClipDone, ...]
    known: tuple[str, ...]
    paths: tuple[Path, ...]


def run(order: Order, cache: Path) -> PredictReport:
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
    dataset = ensemble.labelled_as(order.dataset, order.chosen.book.classes)
    heads = _heads(order.chosen)
    store, failed, extracted, forced = _features(order, dataset, heads, cache)
    dataset = present(dataset, store)
    trials = [trial for trial in dataset.trials if trial.name in store]
    done_part.write_failures(order.out / FAILURES, failed)
    if not trials:
        raise FercacheError(f"not one clip could be predicted: {failed[0].message if failed else 'the set is empty'}",
                            where=failed[0].clip if failed else dataset.name, hint=f"see {order.out / FAILURES}")
    speakers = ensemble.Speakers(folder=order.chosen.heads, book=order.chosen.book, device=order.usual.device,
                              threads=order.usual.threads)
    book, cached = ensemble.book_of(dataset, trials, store, speakers, cache / "logits" / dataset.name)
    seen = known_part.trained_on(trials, store, order.chosen.book, dataset.name,
                            order.chosen.heads.parents[2] / "features" / order.chosen.book.dataset)
    result = _judged(order, dataset, book, seen, forced)
    paths = stack.write(result, order.out / PREDS)
    if order.timelines:
        paths += _draw(order, dataset, trials, store)
    if order.overlay:
        annotated, lost = _annotate(order, dataset, store)
        paths, failed = paths + annotated, failed + lost
    return PredictReport(result=result, extracted=extracted, cached=cached, failed=tuple(failed), paths=tuple(paths),
                         known=tuple(sorted(seen)))


def _heads(chosen: Chosen) -> dict[str, Any]:
    """Return what the JSON of a trained head says of all of them: store and taps."""
    for path in sorted(chosen.heads.glob("[!.]*-fold*.json")):
        said: dict[str, Any] = atomic_io.read_json(path)
        return said
    raise InputError("no trained heads", where=chosen.heads, hint="run `fercache train-heads` again")


def _features(order: Order, dataset: Dataset, heads: dict[str, Any],
              cache: Path) -> tuple[EmbeddingStore, list[ClipDone], int, tuple[str, ...]]:
    """Return the store of the clips, those that are not in it and why, how many were computed, and what was forced."""
    wanted, taps = heads["store"], [part["tap"] for part in heads["taps"]]
    if order.store is not None:
        store = EmbeddingStore.open(order.store)
        forced = match_part.check(wanted, store.settings, taps=taps, held=list(store.taps), where=order.chosen.heads,
                             force=order.force)
        lost = [ClipDone(clip=t.name, state="failed", message=f"not in the store {order.store}")
                for t in dataset.trials if not people_held(t, store)]
        lost += [ClipDone(clip=p.where, state="failed", message=p.what) for p in dataset.problems if p.lost]
        return store, lost, 0, forced
    config = match_part.config_of(wanted, order.usual, order.typed)
    cnn = weights.ensure(config.weights, cache / "weights")
    have = job.settings_of(config, job.faces_of(dataset, config), cnn)
    forced = match_part.check(wanted, have, taps=taps, held=config.taps, where=order.chosen.heads, force=order.force)
    report = job.run(dataset, config, cache)
    lost = [clip for clip in report.clips if clip.state in ("failed", "busy")]
    log.info("%d clips computed, %d cached, %d failed", report.count("computed"), report.count("cached"), len(lost))
    return EmbeddingStore.open(report.store), lost, report.count("computed"), forced


def _judged(order: Order, dataset: Dataset, book: LogitBook, seen: frozenset[str],
            forced: tuple[str, ...]) -> StackResult:
    """Return predictions and scores, the trials called as they are shown."""
    from fercache.stacking.judge_part import judge  # LightGBM

    judged = judge(order.chosen.stack, known_part.unscored(book, seen), order.stack)
    names = clips_part.shown(dataset)
    for split, scores in judged.report["splits"].items():
        scores |= {"predicted": BY_MODELS, "title": f"{split}, new to the heads"}
    notices = [book.notice, *(f"features differ from the heads' own (forced): {one}" for one in forced)]
    if seen:
        notices.append(f"{len(seen)} of these clips were trained on: the heads saw them, and they are not scored")
    paths = {names[trial.name]: str(trial.path) for trial in dataset.trials}
    said = {"heads": str(order.chosen.heads), "stack": str(order.chosen.stack), "trained_on": order.chosen.book.dataset,
            "clips": {names[trial]: paths[names[trial]] for trial in book.trials}, "forced": list(forced),
            "known": sorted(names[trial] for trial in seen)}
    return replace(judged, book=replace(book, trials=tuple(names[trial] for trial in book.trials)),
                   report={**judged.report, "notice": "; ".join(filter(None, notices)), "predict": said})


def _draw(order: Order, dataset: Dataset, trials: list[Trial], store: EmbeddingStore) -> list[Path]:
    """Draw the timelines and return their paths."""
    from fercache.viz import timeline  # matplotlib: half a second

    names = clips_part.shown(dataset)
    held = {names[trial.name]: store[trial.name] for trial in trials}
    return timeline.draw(order.out / PREDS, clips_part.as_shown(dataset), held, order.out / TIMELINES)


def _annotate(order: Order, dataset: Dataset, store: EmbeddingStore) -> tuple[list[Path], list[ClipDone]]:
    """Write each clip again with what was told of it; return the paths, and the clips that could not be."""
    from fercache.results import told_part
    from fercache.viz import overlay  # Pillow's fonts and an encoder: for those who ask

    names = clips_part.shown(dataset)
    trials = {names[trial.name]: trial for trial in dataset.trials}
    classes, fps = told_part.classes(order.out / PREDS), float(store.settings.get("crop_fps", order.usual.crop_fps))
    made: list[Path] = []
    lost: list[ClipDone] = []
    for name, rows in told_part.each(order.out / PREDS):
        trial, path = trials[name], order.out / OVERLAYS / told_part.file_name(name, ".mp4")
        boxes = overlay.boxes_of(store[trial.name].clock, len(rows.time_s))
        try:
            overlay.render(trial.path, trial.kind, rows, boxes, classes, path, fps=fps)
            made.append(path)
        except ClipError as error:
            lost.append(ClipDone(clip=name, state="failed", message=f"no overlay: {error}"))
    return made, lost
