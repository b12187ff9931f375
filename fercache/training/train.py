"""Stage two, a: the embedding store -> out-of-fold logits of every head, and the trained heads."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fercache.backbones.taps import AUDIO, EMBEDDING, is_audio
from fercache.config import TrainConfig, fingerprint_of
from fercache.data.base import Dataset, Issue, Trial, groups_by_class, in_several, stored_trials
from fercache.data.labels import canonical_class_name
from fercache.data.photos import fer2013_pictures
from fercache.errors import InputError
from fercache.heads.registry import FRAME, HEADS, TEMPORAL_HEADS
from fercache.oof import HeadRecord, OofLogits, Provenance, StarterInit, without_sound
from fercache.runtime import atomic_io
from fercache.store.embedding_store import EmbeddingStore
from fercache.store.multi_store import ReadableStore, join_stores
from fercache.training import checkpoints
from fercache.workspace import Workspace

log = logging.getLogger(__name__)

FORMAT = 3  # raised whenever the code changes the result of a training run
DATA_KEYS = ("store", "features", "dataset", "trials", "classes", "init")  # keys of `settings_of` of the data
INIT_FORMAT = 1  # raised whenever the code changes the result of a training that begins with starter weights
SOUND_FORMAT = 1  # the same of a training of heads that read sound beside pictures
STARTER_MAX_GROUPS = 164
"""Most training groups with which `init = "auto"` begins with the starter: docs/results/heads.md has the scores."""
STARTER_FEATURES = ("backbone", "weights")
"""Settings of the store that must be the starter's. Heads that learnt from given crops read detected faces too."""
MIN_CLASSES = 2  # common classes without which starter weights are of no use


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """The result of `train_heads`."""

    logits_file: Path  # the out-of-fold logits
    heads: Path  # folder of the heads
    cached: bool  # whether the same run was finished before
    trained: int  # number of heads trained now
    missing: tuple[str, ...]  # trials of the data set that are not in the store
    problems: tuple[Issue, ...]  # what is wrong with single clips of the data set
    seconds: float


def taps_to_read(config: TrainConfig, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the taps of a store that heads read: the default ones are facenet-pytorch's, of any other net all are.

    `settings`: of the store. The identity vector is left out where there is another tap.
    """
    if config.taps != TrainConfig().taps or not ("card" in settings or settings.get("modality") == AUDIO):
        return config.taps
    return tuple(tap for tap in settings["taps"] if tap != EMBEDDING) or tuple(settings["taps"])


def train_heads(dataset: Dataset, base: EmbeddingStore, config: TrainConfig, cache: Path, *,
                make_current: bool = True, weights: Path | None = None) -> TrainReport:
    """Train all heads and write their out-of-fold logits; a run that was finished before is not repeated.

    `make_current`: the later stages read these logits by default. `weights`: folder of CNN weights, for heads that
    train the backbone's last blocks; by default the cache's own.

    Raises InputError if there is nothing to train on: no labels, fewer than two groups with labels, or a group in two
    splits.
    """
    started = time.monotonic()
    # The joined store's settings, digest and taps include the stores that were joined.
    store, taps = join_stores(base, config.join, taps_to_read(config, base.settings))
    config = replace(config, taps=taps)
    dataset = stored_trials(dataset, base)
    trials = [trial for trial in dataset.trials if trial.name in store]
    missing = tuple(t.name for t in dataset.trials if t.name not in store)
    check_splits(trials)
    check_clock(dataset, config.heads)
    settings = settings_of(dataset, trials, store, config)
    name = fingerprint_of(settings)
    workspace = Workspace(cache)
    logits_file, heads = workspace.logits_file(dataset.name, name), workspace.heads(dataset.name, name)
    trained = 0
    cached = logits_file.is_file()
    if not cached:
        with atomic_io.lock(heads.with_suffix(".lock"), wait=True):
            # Under the lock no other process writes these files, so leftovers are those of killed runs.
            atomic_io.remove_temporary(heads)
            atomic_io.remove_temporary(logits_file.parent, logits_file.name)
            # Checked again: another process may have finished the same run while this one waited for the lock.
            if not logits_file.is_file():
                trained = _train(dataset, trials, store, config, settings, logits_file, heads,
                                 weights or workspace.weights)
    if make_current:
        workspace.set_current_logits_file(logits_file)
    return TrainReport(logits_file=logits_file, heads=heads, cached=cached, trained=trained, missing=missing,
                       problems=dataset.problems, seconds=time.monotonic() - started)


def check_splits(trials: Sequence[Trial]) -> None:
    """Refuse a group with trials both in the training split and in another one."""
    several = in_several((trial.group, trial.split) for trial in trials)
    crossed = [group for group, splits in several.items() if "train" in splits]
    if crossed:
        raise InputError(f"group {crossed[0]!r} is in train and in another split ({len(crossed)} such groups)",
                         where="the data set", hint="put all clips of a group (person, parent video) into one split")


def check_clock(dataset: Dataset, heads: Sequence[str]) -> None:
    """Refuse temporal heads for a data set of still photos."""
    temporal = [head for head in heads if head in TEMPORAL_HEADS]
    if temporal and not dataset.has_clock:
        raise InputError(f"photos do not follow each other in time, so {', '.join(temporal)} cannot read them",
                         where=dataset.name, hint="use --heads frame")


def check_classes(dataset: Dataset, trials: Sequence[Trial]) -> None:
    """Refuse training labels of one class only, and log the classes that occur in one group only."""
    groups = groups_by_class(trials)
    if len(groups) == 1:
        raise InputError(f"all training labels are of one class, {dataset.classes[next(iter(groups))]}",
                         where="the data set", hint="label clips of another class too: there is nothing to tell apart")
    single = [dataset.classes[code] for code in groups if len(groups[code]) == 1]
    if single:
        log.warning("only one group has labels of %s: where it is held out, no model has seen the class",
                    ", ".join(single))


def settings_of(dataset: Dataset, trials: Sequence[Trial], store: ReadableStore, config: TrainConfig) -> dict[str, Any]:
    """Return everything that changes the logits, as a JSON value; its digest names the logits file and the heads."""
    init = starter_init(dataset, trials, store, config)
    # Without a starter the key is left out, so that the names of older runs do not change.
    started = {"init": [init.digest, INIT_FORMAT]} if init else {}
    if any(HEADS[head].sound == "joins" for head in config.heads) and any(map(is_audio, config.taps)):
        started |= {"sound": [SOUND_FORMAT]}
    return {**config.settings(), **started, "store": store.digest(), "features": fingerprint_of(store.settings),
            "format": FORMAT, "dataset": dataset.digest(), "trials": fingerprint_of([t.name for t in trials]),
            "classes": list(dataset.classes)}


def starter_init(dataset: Dataset, trials: Sequence[Trial], store: ReadableStore,
                 config: TrainConfig) -> StarterInit | None:
    """Return the starter that the frame head begins with; None if it begins with random weights."""
    groups = len({t.group for t in trials if t.split in config.learns_from and t.labelled})
    if config.init == "scratch" or (config.init == "auto" and groups > STARTER_MAX_GROUPS):
        return None
    files = checkpoints.starter_files(config.init_from)
    starter, folder = checkpoints.load_record(files[0]), files[0].parent
    problem = _starter_problem(starter, dataset, store, config)
    if problem and config.init == "starter":
        raise InputError(f"the frame head cannot begin with the starter: {problem}", where=dataset.name,
                         hint="use --init scratch, or another starter with --init-from")
    shared = fer2013_pictures(dataset)
    if problem or (config.init == "auto" and (shared or config.width not in {0, starter.settings.width})):
        return None
    card = folder / "card.json"
    data = str(atomic_io.read_json(card)["data"]) if card.is_file() else f"the training clips of {folder}"
    digests = [atomic_io.file_sha256(path.with_suffix(".safetensors")) for path in files]
    return StarterInit(digest=fingerprint_of(digests), data=data, classes=_common_classes(starter, dataset),
                       shared=shared)


def _starter_problem(starter: HeadRecord, dataset: Dataset, store: ReadableStore, config: TrainConfig) -> str:
    """Return why the frame head cannot begin with a starter, "" if it can."""
    reads_frame = FRAME in config.heads or (config.temporal_input == "oof-logits" and
                                            any(HEADS[head].settings.temporal_input for head in config.heads))
    shapes = {tap.tap: tap.shape for tap in starter.input_taps}
    common = _common_classes(starter, dataset)
    problems = (
        (not reads_frame, "no head of the recipe is the frame head or reads its predictions"),
        (dataset.layout == "fer2013", "starter heads are trained on FER2013's photos, so scores would be too high"),
        (starter.store_digest == store.digest(), "it was trained on clips of the same store: their scores would leak"),
        (config.finetune_tap, "finetune_tap replaces the net that the starter has"),
        (shapes != {tap: store.taps.get(tap) for tap in config.taps if not is_audio(tap)},  # the frame head reads none
         f"it reads the taps {', '.join(shapes)}, and the recipe names {', '.join(config.taps)}"),
        (any(starter.store.get(key) != store.settings.get(key) for key in STARTER_FEATURES),
         f"it reads features of {starter.store.get('backbone')}, and the store has those of other weights"),
        (starter.normalize != config.normalize, f"it reads features with normalize = {starter.normalize!r}"),
        (len(common) < MIN_CLASSES, f"of its classes ({', '.join(starter.classes)}) the data set has {len(common)}"))
    return next((text for applies, text in problems if applies), "")


def _common_classes(starter: HeadRecord, dataset: Dataset) -> tuple[str, ...]:
    """Return the data set's classes that the starter has too, in whatever common spelling."""
    theirs = {canonical_class_name(name) for name in starter.classes}
    return tuple(name for name in dataset.classes if canonical_class_name(name) in theirs)


def _train(dataset: Dataset, trials: Sequence[Trial], store: ReadableStore, config: TrainConfig,
           settings: dict[str, Any], logits_file: Path, heads: Path, weights: Path) -> int:
    # Imported here because torch takes seconds to load, which a cached run saves.
    from fercache.training.cross_validation import CrossValidatedTraining

    if not any(t.labelled for t in trials if t.split in config.learns_from):
        raise InputError("no labelled frame in the training split", where="the data set",
                         hint="name labels with --labels (or a `label` column), or read what `fercache extract` logs "
                              "about the annotations")
    check_classes(dataset, [t for t in trials if t.split in config.learns_from])
    init = starter_init(dataset, trials, store, config)
    if init:
        files = checkpoints.starter_files(config.init_from)
        # In the order of the starter's input, whose weights belong to columns.
        config = replace(config, taps=(*(tap.tap for tap in checkpoints.load_record(files[0]).input_taps),
                                       *filter(is_audio, config.taps)))
        log.info("the frame head begins with starter weights (trained on %s)", init.data)
        if init.shared:
            log.warning("%s: out-of-fold scores are too high if the starter was trained on them; use --init scratch",
                        init.shared)
    training = CrossValidatedTraining.prepare(dataset, trials, store, config, heads, weights, init)
    logits = training.run()
    features = training.features
    oof = OofLogits(
        dataset=dataset.name, classes=dataset.classes, metric=dataset.metric, notice=dataset.notice,
        heads=config.heads, trials=tuple(t.name for t in trials), group=tuple(t.group for t in trials),
        split=tuple(t.split for t in trials), fold=training.splits.fold, offsets=features.offsets,
        index=features.index, time_s=features.time_s, valid=features.valid, label=features.label,
        logits=logits, fingerprint=fingerprint_of(settings), epochs_fixed=training.splits.epochs_fixed,
        provenance=Provenance(settings=settings, store=store.path.name, heads=tuple(training.records)))
    mute = training.run_without_sound(logits)
    if mute:
        fingerprint, path = without_sound(logits_file, settings)
        replace(oof, heads=tuple(mute), logits=mute, fingerprint=fingerprint).save(path)
    oof.save(logits_file)
    return training.trained
