"""Choose trained models, predict logits of new trials with them, and check that the features match.

These functions work on stored features; `predict.py` runs stage one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from fercache.backbones.registry import KNOWN_WEIGHTS, PREFIXES
from fercache.config import PRECISIONS, ExtractConfig, fingerprint_of
from fercache.data import labels
from fercache.data.base import UNKNOWN, Dataset, Trial
from fercache.data.demo import DEMO
from fercache.errors import InputError
from fercache.inference import starter
from fercache.oof import ROWS, OofLogits, Provenance
from fercache.runtime.uri import Location
from fercache.stacking.run_metrics import StackMetrics, read_metrics
from fercache.store.embedding_store import EmbeddingStore
from fercache.store.multi_store import IMPORTED, JOINED, ReadableStore, clip_identity, siblings
from fercache.workspace import METRICS, Workspace, heads_of, logits_file_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SelectedModels:
    """A trained set of heads and the stacker that was trained on their out-of-fold logits."""

    logits_file: OofLogits  # the out-of-fold logits; they list the heads and the trials that these were trained on
    # `heads`, `stack`: folders of the heads and of the stack run; the starter heads have no stacker
    heads: Path
    stack: Path | None


def find_heads(cache: Path, heads: Path | None = None, dataset: str = "") -> Path | None:
    """Return the logits file of the heads to predict with, None for the starter heads; `select_models` has the rule."""
    if heads is not None:
        return None if heads == Path(starter.STARTER) else logits_file_of(heads)
    # Heads that learned from the three people of the demo must not take the place of the starter heads.
    trained = [name for name in Workspace(cache).trained_datasets() if name != DEMO or dataset == DEMO]
    if not trained:
        return None
    return Workspace(cache).current_logits_file(dataset if dataset in trained else trained[-1])


def select_models(cache: Path, heads: Path | None = None, stack: Path | None = None, dataset: str = "", *,
                  causal: bool = False) -> SelectedModels:
    """Return the heads and the stacker to predict with.

    `heads`: their folder, their file of out-of-fold logits, or "starter"; by default those of `dataset`, without any
    those that were trained last in this cache, and before any training but the demo's the starter heads. `stack`:
    folder of a stack run of these heads, by default the last one, if `causal` of those that use no later frame.

    Raises InputError if the models do not exist, do not belong together, or use later frames in spite of `causal`;
    StoreError if the file of logits is damaged.
    """
    if stack is not None and heads is None:
        metrics = _metrics(stack)
        heads = Workspace(cache).logits_file(metrics.dataset, metrics.logits.fingerprint)
    path = find_heads(cache, heads, dataset)
    if path is None:
        if stack is not None:
            raise InputError("the starter heads have no stacker", where=stack, hint="leave --stack or --heads out")
        card = starter.load_card()
        log.info("%sthe starter heads predict; %s", "" if heads else "no heads were trained in this cache yet, so ",
                 card.terms)
        return SelectedModels(logits_file=starter.starter_logits(card), heads=starter.FOLDER, stack=None)
    if not path.is_file():
        raise InputError("no trained heads", where=path, hint="run `fercache train-heads`, or name others with --heads")
    oof, folder = OofLogits.load(path), heads_of(path)
    if stack is None:
        runs = [(file.stat().st_mtime_ns, file.parent)
                for file in Workspace.holding(path).stack_runs(oof.dataset).glob(f"*/{METRICS}")
                if _reads(file, oof.fingerprint, causal)]
        if not runs:
            raise InputError(f"these heads have no {'causal ' * causal}stacker yet",
                             where=Workspace.holding(path).stack_runs(oof.dataset),
                             hint=f"run `fercache stack{' --causal' * causal}` on the data set they were trained on")
        stack = max(runs)[1]
    metrics = _metrics(stack)
    if causal and not metrics.causal:
        raise InputError("this stack run uses later frames", where=stack,
                         hint="run `fercache stack --causal`, or leave --causal out here and in the recipe of stack")
    # A stacker knows its inputs by column only: with other heads it would predict without an error, but wrongly.
    if metrics.logits.fingerprint != oof.fingerprint:
        raise InputError("this stack run was trained on the logits of other heads", where=stack,
                         hint=f"name a run of the heads {folder}, or leave --stack out")
    log.info("heads %s, stack %s, trained on %s", folder, stack.name, oof.dataset)
    return SelectedModels(logits_file=oof, heads=folder, stack=stack)


def _reads(file: Path, fingerprint: str, causal: bool) -> bool:
    """Return whether a stack run of this version read these logits, and is causal if that is asked for."""
    try:
        run = read_metrics(file)
    except InputError as error:
        log.debug("%s", error)
        return False
    return run.logits.fingerprint == fingerprint and (run.causal or not causal)


def _metrics(folder: Path) -> StackMetrics:
    """Return the metrics of a finished stack run."""
    if not (folder / METRICS).is_file():
        raise InputError("no finished stack run", where=folder,
                         hint="run `fercache stack`, or name a run in cache/stack with --stack")
    return read_metrics(folder / METRICS)


@dataclass(frozen=True, kw_only=True)
class LoadedHeads:
    """Trained heads that predict from stored features."""

    folder: Path
    heads: tuple[str, ...]
    classes: tuple[str, ...]  # that they predict
    taps: dict[str, tuple[int, ...]]  # tap -> shape of one frame; what they read
    settings: Mapping[str, Any]  # of the features that they were trained on

    @classmethod
    def find(cls, cache: Path, heads: Path | None = None, dataset: str = "") -> LoadedHeads:
        """Return the heads in a folder or behind a logits file, or those of a data set, or those trained last.

        Raises InputError if there are no trained heads, or some are missing.
        """
        from fercache.training.inference import load_trained  # torch

        path = (Workspace(cache).current_logits_file(dataset) if heads is None and dataset else
                find_heads(cache, heads))
        folder = starter.FOLDER if path is None else heads_of(path)
        if path is not None and heads is not None and heads.is_dir():
            folder = heads  # one that was copied out of a cache has no logits file
        record = load_trained(folder).record
        return cls(folder=folder, heads=record.requested.heads, classes=record.classes, settings=record.store,
                   taps={part.tap: part.shape for part in record.taps})

    def predict_proba(self, store: ReadableStore, clip: str, *, device: str = "auto",
                      force: bool = False) -> dict[str, NDArray[np.float64]]:
        """Return head -> probabilities of each frame of a stored clip, ``(T, C)``, the mean over the folds' models.

        Raises InputError if the store has other features than the heads were trained on, unless `force`; NotInStore if
        the store has no such clip.
        """
        from fercache.runtime.devices import resolve_device  # torch
        from fercache.training.inference import load_trained, predict_new

        check_match(self.settings, store.settings, taps=list(self.taps), stored_taps=list(store.taps),
                    where=self.folder, force=force)
        store[clip]  # raises if the clip is not stored
        trained = load_trained(self.folder)
        trial = Trial(name=clip, path=Path(clip), kind="crops", parent=clip, group=clip, split="test")
        log_probs = predict_new(trained, trained.load_features(store, [trial]), resolve_device(device))
        return {head: softmax(values.astype(float), axis=1) for head, values in log_probs.items()}


FORMAT = 1  # part of the fingerprint; increased whenever the code changes the logits of new trials
# Bytes of features in memory at once, so that memory does not grow with the number of trials.
MOST_BYTES = 256 << 20
# Decimals to which the frame interval of clips (seconds) must agree for one batch: equal intervals, equal windows.
RATE_DIGITS = 6


def labelled_as(dataset: Dataset, classes: Sequence[str]) -> Dataset:
    """Return the data set with labels as indices into the heads' `classes`, matched by name.

    Labels of other classes are dropped; the notice of the data set lists them. Raises InputError if no class is shared.
    """
    if tuple(dataset.classes) == tuple(classes):
        return dataset
    if not dataset.classes:
        return replace(dataset, classes=tuple(classes))
    canonical = {labels.canonical_class_name(name) for name in classes}
    if not any(labels.canonical_class_name(name) in canonical for name in dataset.classes):
        raise InputError(f"is labelled with {', '.join(dataset.classes)}, which the heads do not know",
                         where=dataset.name,
                         hint=f"the heads predict {', '.join(classes)}; leave the labels out, or train on such labels")
    names = labels.map_class_names(dataset.classes, classes)
    index = np.array([*names.to, UNKNOWN], np.int16)  # the last entry maps -1 (not annotated) to itself
    trials = tuple(replace(t, labels=None if t.labels is None else index[t.labels], clip_label=int(index[t.clip_label]))
                   for t in dataset.trials)
    dropped = (f"labels of {', '.join(names.source_only)} are left out: the heads do not know them"
               if names.source_only else "")
    return replace(dataset, classes=tuple(classes), trials=trials,
                   notice="; ".join(filter(None, (dataset.notice, dropped))))


def predict_logits(dataset: Dataset, trials: Sequence[Trial], store: ReadableStore,
                   models: SelectedModels, cache: Path, *, device: str, threads: int) -> tuple[OofLogits, bool]:
    """Return the heads' logits of `trials`, all outside the folds, and whether they came from the cache."""
    features = fingerprint_of([clip_identity(store, trial.name) for trial in trials])
    fingerprint = fingerprint_of({"heads": models.logits_file.fingerprint, "features": features,
                                  "settings": store.settings, "dataset": dataset.digest(),
                                  "trials": [t.name for t in trials], "format": FORMAT,
                                  **({"causal": True} if store.causal and "embed_every" in store.settings else {})})
    path = Workspace(cache).logits_file(dataset.name, fingerprint)
    if path.is_file():
        return OofLogits.load(path), True
    rows, trained = _predict_rows(trials, store, models, device, threads), models.logits_file
    provenance = Provenance(heads=trained.fingerprint, trained_on=trained.dataset, store=store.path.name,
                            features=features)
    oof = OofLogits(dataset=dataset.name, classes=trained.classes, heads=trained.heads, notice=dataset.notice,
                    metric=trained.metric if dataset.layout == "clips" else dataset.metric,
                    trials=tuple(t.name for t in trials), group=tuple(t.group for t in trials),
                    split=tuple(t.split for t in trials), fold=np.full(len(trials), UNKNOWN, np.int16),
                    provenance=provenance, fingerprint=fingerprint, epochs_fixed=trained.epochs_fixed, **rows)
    oof.save(path)
    return oof, False


def _predict_rows(trials: Sequence[Trial], store: ReadableStore, models: SelectedModels, device: str,
                  threads: int) -> dict[str, Any]:
    """Return the per-frame arrays of `OofLogits` (times, labels, logits) of all trials, in their order."""
    # These imports load torch, which takes seconds; a cached result does not need it.
    from fercache.runtime.devices import resolve_device, set_torch_threads
    from fercache.training.inference import load_trained, predict_new

    set_torch_threads(threads)
    device, heads = resolve_device(device), load_trained(models.heads)
    requested = heads.record.requested.heads
    if requested != models.logits_file.heads or heads.record.classes != models.logits_file.classes:
        raise InputError(f"holds the heads {', '.join(requested)}; the stacker reads "
                         f"{', '.join(models.logits_file.heads)}", where=models.heads,
                         hint="to predict new clips, stack the logits of trained heads only")
    parts: dict[int, dict[str, Any]] = {}
    for batch in _batches(trials, store, 2 * sum(prod(part.shape) for part in heads.record.taps)):
        features = heads.load_features(store, [trials[i] for i in batch])
        predicted = predict_new(heads, features, device)
        for i, start, stop in zip(batch, features.offsets[:-1], features.offsets[1:], strict=True):
            rows = slice(int(start), int(stop))
            parts[i] = {"logits": {head: values[rows] for head, values in predicted.items()},
                        **{name: getattr(features, name)[rows] for name in ROWS}}
        log.info("%d of %d clips predicted", len(parts), len(trials))
    ordered = [parts[i] for i in range(len(trials))]  # batches follow the frame rate, not the order of the trials
    return {"offsets": np.concatenate([[0], np.cumsum([len(part["label"]) for part in ordered])]).astype(np.int64),
            "logits": {head: np.concatenate([part["logits"][head] for part in ordered]) for head in requested},
            **{name: np.concatenate([part[name] for part in ordered]) for name in ROWS}}


def _batches(trials: Sequence[Trial], store: ReadableStore, row_bytes: int) -> Iterator[list[int]]:
    """Yield indices of trials of one frame rate, as many as fit into `MOST_BYTES`."""
    # The length of a window in frames follows from the median rate of the loaded features. With one rate per batch,
    # the predictions of a clip do not depend on the other clips in it.
    by_rate: dict[float, list[int]] = {}
    for i, trial in enumerate(trials):
        steps = np.diff(store[trial.name].frame_table["time_s"])
        rate = round(float(np.median(steps[steps > 0])), RATE_DIGITS) if (steps > 0).any() else 0.0
        by_rate.setdefault(rate, []).append(i)
    for indices in by_rate.values():
        batch: list[int] = []
        size = 0
        for i in indices:
            # Annotations may be longer than the clip, and their extra rows take memory too.
            need = row_bytes * max(store[trials[i].name].frames, len(trials[i].frame_labels(0)))
            if batch and size + need > MOST_BYTES:
                yield batch
                batch, size = [], 0
            batch.append(i)
            size += need
        yield batch


# Matching features: heads are valid only for features that were extracted with the settings of their training data.

FREE = ("augmentations", "augmentation_version", "calibration", "embed_version", "taps", "crop_fps", "on_truncated",
        "people", "people_version")
"""Settings that may differ: they do not change the features of a frame, or others decide (taps have a check of their
own, the calibration belongs to the precision, the version to embed-every)."""
SMALL_LOSS = {"precision": PRECISIONS, "embed_every": ("1", "2", "3", "4", "5", "auto")}
"""Values between which all heads lose little; docs/results/extract.md has the measured losses."""
LATER = {entry.name: entry.default for entry in fields(ExtractConfig) if entry.metadata["later"]}
NOT_COPIED = ("faces", "weights", "augmentations")  # from the heads' store: the new clips or the user decide
OF_IMPORT = (IMPORTED, "content", "fps", "first_frame")  # may differ: new clips come from another file


def extract_config_of(wanted: Mapping[str, Any], defaults: ExtractConfig,
                      overrides: Mapping[str, Any]) -> ExtractConfig:
    """Return the settings of stage one: those of the heads' store, overridden by the user's.

    `wanted`: of the heads' store. `defaults`: has the device, the threads, and the path of custom weights.
    """
    # Augmentations are for training only, so none are computed. The face policy follows from the clips; `check_match`
    # compares it later.
    numbers = {entry.name for entry in fields(ExtractConfig) if entry.metadata["numbers"]}
    # A complete record without a setting has it at its default, whatever the recipe of stage one holds.
    wanted = {**LATER, **wanted} if "precision" in wanted else wanted
    settings = {name: tuple(value) if isinstance(value, list) else value for name, value in wanted.items()
                if name in numbers and name not in NOT_COPIED}
    # Others are files and folders of this machine, which the user names.
    if wanted.get("backbone") in KNOWN_WEIGHTS or ("card" in wanted and wanted.get("backbone") not in PREFIXES):
        settings["weights"] = wanted["backbone"]
    return replace(defaults, **{**settings, "faces": "auto", "augmentations": 1, **overrides, "modality": "picture"})


def find_joined(base: Location, wanted: Mapping[str, Any], clips: Sequence[str], *,
                causal: bool = False) -> dict[str, EmbeddingStore]:
    """Return label -> the store beside the one at `base` that was made like the one which the heads read as this label.

    `wanted`: settings of the features that the heads were trained on. Of several stores that fit equally, the one with
    the most of the `clips` is taken. Raises InputError if none fits; imported ones must be imported first.
    """
    others: dict[str, EmbeddingStore] = {}
    beside = siblings(base, causal) if wanted.get(JOINED) else []
    for label, settings in wanted.get(JOINED, {}).items():
        differ = [settings_differences(settings, store.settings) for store in beside]
        fits = [(-len(accepted), sum(clip in store for clip in clips), place)
                for place, (store, (refused, accepted)) in enumerate(zip(beside, differ, strict=True))
                if not refused and set(settings.get("taps", ())) <= store.taps.keys()]
        if not fits and IMPORTED in settings:
            raise InputError(f"the heads read the imported features {label}, which these clips do not have",
                             where=base.parent,
                             hint=f"run `fercache import PATH --as {settings['backbone']}` with features of these "
                                  "clips, named by a table (--clips), and predict with the same table")
        if not fits:
            raise InputError(f"the heads read {label} too, and no store beside {base.name} was made like it",
                             where=base.parent, hint="leave --store out: the store is then made for these clips")
        others[label] = beside[max(fits)[2]]
    return others


def check_match(wanted: Mapping[str, Any], have: Mapping[str, Any], *, taps: Sequence[str], stored_taps: Sequence[str],
                where: Path, force: bool) -> tuple[str, ...]:
    """Return the differences between the features that the heads at `where` were trained on and the new ones.

    `wanted`, `taps`: settings and taps of the heads' features; `have`, `stored_taps`: of the new ones. Raises
    InputError if a setting differs and `force` is off, or a tap that the heads read is missing.
    """
    missing = [tap for tap in taps if tap not in stored_taps]
    if missing:
        raise InputError(f"the heads read the tap {missing[0]}, the features have {', '.join(stored_taps)}",
                         where=where, hint="leave --taps out to use the taps of the heads; --force does not help here")
    differ, small = settings_differences(wanted, have)
    if differ and not force:
        raise InputError("the heads were trained on other features: " + "; ".join(differ), where=where,
                         hint="train heads on features extracted like these, or predict nevertheless with --force "
                              "(on another crop policy heads fell from F1 .384 to .214 in a published case)")
    for difference in differ:
        log.warning("forced: %s", difference)
    if small:
        log.info("the heads accept these features, which cost them little: %s", "; ".join(small))
    return differ


def settings_differences(wanted: Mapping[str, Any], have: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return a phrase for each setting that differs and changes a frame's features: refused ones, accepted ones."""
    same_policy = wanted.get("faces") == have.get("faces")
    # Cropped and detected faces have different settings; only those that both have can be compared.
    names = wanted.keys() | have.keys() if same_policy else wanted.keys() & have.keys()
    names -= set(OF_IMPORT) if IMPORTED in wanted and IMPORTED in have else set()
    refused: list[str] = []
    accepted: list[str] = []
    for name in sorted(names - {*FREE, JOINED}):
        there, here = (settings.get(name, LATER.get(name)) for settings in (wanted, have))
        if there != here:
            small = there in SMALL_LOSS.get(name, ()) and here in SMALL_LOSS.get(name, ())
            (accepted if small else refused).append(f"{name} = {_short(there)} there, {_short(here)} here")
    for label, theirs in sorted(wanted.get(JOINED, {}).items()):
        joined = have.get(JOINED, {}).get(label)
        of_label = settings_differences(theirs, joined) if joined is not None else (("not joined here",), ())
        refused += [f"{label}: {difference}" for difference in of_label[0]]
        accepted += [f"{label}: {difference}" for difference in of_label[1]]
    return tuple(refused), tuple(accepted)


def _short(value: Any) -> str:
    """Return a value for a message; a SHA-256 is cut to 12 digits."""
    text = str(value)
    return text[:12] if len(text) == 64 else text
