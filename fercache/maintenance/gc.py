"""Garbage collection: list the parts of the cache that no recipe or data set needs, and remove them on request."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fercache import data, logits_import, recipe
from fercache.backbones import weights
from fercache.backbones.registry import KNOWN_WEIGHTS
from fercache.config import (
    AblationConfig,
    DatasetConfig,
    ExtractConfig,
    StackConfig,
    TrainConfig,
    fingerprint_of,
)
from fercache.data.base import Dataset, stored_trials
from fercache.diagnostics import ablation
from fercache.errors import FercacheError, StoreError, WeightsError
from fercache.extraction import job
from fercache.runtime import atomic_io
from fercache.stacking import inputs, stack
from fercache.store.embedding_store import EmbeddingStore
from fercache.store.integrity import unfinished
from fercache.store.layout import META, decode_name, encode_name
from fercache.store.local import LocalStoreFiles, StoreSize
from fercache.store.locks import locked_clips, work_folder
from fercache.store.multi_store import join_stores
from fercache.training import train
from fercache.workspace import (
    HEADS,
    LOCK_SUFFIX,
    LOGITS,
    MAPPED_FEATURES,
    METRICS,
    STACK,
    STORE_SUFFIX,
    WORK_SUFFIX,
    Workspace,
    heads_of,
)

log = logging.getLogger(__name__)

UNNAMED, LOST, UNKNOWN = "no recipe names it", "left half done, and cannot go on", "not in the data set"
TORN, ORPHAN, OF_CLIP = "left by a run that was killed", "of a store that is gone", "of a clip that is gone"
PICTURES = ".npz"
"""Ending of a clip's thumbnails."""
SETTLED_S = 3600.0
"""Age from which a temporary file is abandoned: writing one file never takes this long."""


@dataclass(frozen=True, kw_only=True)
class Unreferenced:
    """Something that can be removed.

    Attributes
    ----------
    path : a store, a book, a folder of heads or of a stack run; or the store that holds `folder`.
    folder : of one clip in the store at `path`; empty for all of `path`.
    clip : its name, as far as it is known.
    """

    path: Path
    reason: str
    size: StoreSize
    folder: str = ""
    clip: str = ""


def find_unreferenced(cache: Path, keep: Iterable[Path], clips: Mapping[Path, Collection[str]]) -> tuple[Unreferenced,
                                                                                                         ...]:
    """Return what can go, sorted by path; nothing is touched.

    Parameters
    ----------
    keep : stores, books, folders of heads and of stack runs that a recipe names.
    clips : store -> the clips that its data set names; a store that is not in it keeps all its clips.

    Notes
    -----
    What a live process is writing is never in the list.
    """
    kept = {path.resolve() for path in keep} | {path.resolve() for path in clips}
    found = [item for path in Workspace(cache).results()
             if path.resolve() not in kept and (item := _whole(path)) is not None]
    for path, named in clips.items():
        found += _clips(path, named)
    found += _pictures(cache, found)
    return tuple(sorted(found, key=lambda unreferenced: (unreferenced.path, unreferenced.folder)))


def remove_unreferenced(unreferenced: Iterable[Unreferenced]) -> StoreSize:
    """Remove what `find_unreferenced` listed; return the freed size.

    Raises
    ------
    StoreError
        Somebody began to write it meanwhile.
    """
    freed = []
    for item in unreferenced:
        if item.folder:
            store = EmbeddingStore.open(item.path, mode="a")
            if item.reason == LOST and store.files.stat(f"{item.folder}/{META}") is not None:
                continue  # another process has committed the clip in the meantime
            store.remove_folder(item.folder)
        else:
            _remove(item.path)
        freed.append(item.size)
    return StoreSize(sum(size.bytes for size in freed), sum(size.files for size in freed))


def _pictures(cache: Path, unreferenced: Sequence[Unreferenced]) -> list[Unreferenced]:
    """Return the pictures of stores and clips that are gone, or that go."""
    going = {(item.path.resolve(), item.folder) for item in unreferenced}
    found = []
    for folder, store in Workspace(cache).thumbnail_folders():
        if not store.exists() or (store.resolve(), "") in going:
            found.append(Unreferenced(path=folder, reason=ORPHAN, size=LocalStoreFiles(folder).size()))
            continue
        for path in sorted(folder.glob(f"*{PICTURES}")):
            clip = path.name.removesuffix(PICTURES)
            if (store.resolve(), clip) in going or not (store / clip).exists():
                found.append(Unreferenced(path=path, reason=OF_CLIP, size=StoreSize(path.stat().st_size, 1)))
    return found


def _whole(path: Path) -> Unreferenced | None:
    """Return why a result that no recipe names can go; None where it belongs to something that stays or is at work."""
    why = UNNAMED
    if path.suffix == WORK_SUFFIX:
        if path.with_suffix(STORE_SUFFIX).exists():
            return None
        why = ORPHAN
    elif path.name.startswith(atomic_io.TEMPORARY):
        if time.time() - path.stat().st_mtime < SETTLED_S:
            return None
        why = TORN
    if _at_work(path):
        return None
    linked = path.is_symlink()
    size = LocalStoreFiles(path).size() if path.is_dir() and not linked else StoreSize(path.lstat().st_size, 1)
    return Unreferenced(path=path, reason=why, size=size)


def _at_work(path: Path) -> bool:
    """Return whether a live process is making or reading a result: it holds a clip's claim, or a lock of the result."""
    if path.suffix in (STORE_SUFFIX, WORK_SUFFIX):
        return bool(locked_clips(path.with_suffix(STORE_SUFFIX)))
    if path.match(MAPPED_FEATURES):  # any training of the data set may map them: which one, their name does not say
        return any(_held(lock) for folder in (path.parent, path) for lock in folder.glob(f"*{LOCK_SUFFIX}"))
    return _held(path.with_suffix(LOCK_SUFFIX))


def _held(lock: Path) -> bool:
    if not lock.is_file():
        return False
    with atomic_io.lock(lock) as free:
        return not free


def _clips(path: Path, named: Collection[str]) -> Iterator[Unreferenced]:
    """Yield clips that the data set does not name, and half-done ones that nobody can go on with."""
    store, folders = EmbeddingStore.open(path), {encode_name(clip) for clip in named}
    live = locked_clips(path)
    open_ends = unfinished(store)
    for folder in sorted({*store.files.folders(), *open_ends} - live):
        lost = not open_ends.get(folder, True)
        if folder not in folders or lost:
            yield Unreferenced(path=path, folder=folder, clip=decode_name(folder) or folder, reason=LOST if lost
                               else UNKNOWN,
                        size=store.files.size(folder))


def _remove(path: Path) -> None:
    """Remove a result; a store's root first, so that nobody opens a half-removed store. Of a link, only the link."""
    if _at_work(path):
        raise StoreError("is being written by another process", where=path, hint="wait for it to end")
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        if path.suffix == STORE_SUFFIX:
            LocalStoreFiles(path).remove(META)
            shutil.rmtree(work_folder(path), ignore_errors=True)
        shutil.rmtree(path)
    atomic_io.fsync(path.parent)


# Artifacts that the recipes and their data sets still need: `gc` must not remove them.

@dataclass
class LiveArtifacts:
    """Artifacts that `gc` must not remove.

    Attributes
    ----------
    keep : stores, logits files, folders of heads and of stack runs.
    clips : store -> the clips that its data set names.
    datasets : data sets that a recipe (or a flag) names.
    """

    keep: set[Path] = field(default_factory=set)
    clips: dict[Path, set[str]] = field(default_factory=dict)
    datasets: set[str] = field(default_factory=set)


def live_artifacts(cache: Path, stages: Path, typed: Mapping[str, Any]) -> LiveArtifacts:
    """Return what the recipes in `stages`, and in every folder of recipes in it, would compute today.

    Parameters
    ----------
    typed : flags that name another data set than the recipes do.

    Raises
    ------
    InputError
        A recipe or its data set cannot be read, so it is unknown which artifacts it needs.
    """
    found = LiveArtifacts()
    # A folder below it, such as stages/mao2021, is another set of recipes.
    inner = [path for path in sorted(stages.glob("*")) if path.is_dir() and any(path.glob("*.toml"))]
    for recipes in [stages, *inner]:
        config = recipe.make_config(DatasetConfig, "dataset", recipes, typed)
        if config.dataset == "logits":  # such a data set has no clips and no store, only imported logits
            name = data.logits_name(config)
            found.datasets.add(name)
            found.keep.update([Workspace(cache).imported_logits(name), *_stack_runs(cache, name, None, recipes)])
            continue
        dataset = data.load_dataset(config, cache)
        found.datasets.add(dataset.name)
        found.keep.add(Workspace(cache).imported_logits(dataset.name))
        for path in _stores(cache, dataset, recipes):
            found.keep.add(path)
            store = _open_or_none(path)
            if store is not None and _is_extracted(store):  # imported clips cannot be computed again: all are needed
                names = {trial.name for trial in stored_trials(dataset, store).trials}
                # A clip that cannot be read today is in the issues, not in the trials: its features stay.
                names |= {issue.where for issue in dataset.problems}
                found.clips[path] = found.clips.get(path, set()) | names
                found.keep.update(_trained(cache, dataset, store, recipes))
    return found


def _stores(cache: Path, dataset: Dataset, stages: Path) -> Iterator[Path]:
    """Yield the path of the recipe's store, and of stores with imported features."""
    folder = Workspace(cache).features(dataset.name)
    config = recipe.make_config(ExtractConfig, "extract", stages, {})
    try:
        cnn = weights.resolve_weights(config.weights, Workspace(cache).weights)
    except WeightsError as error:
        log.warning("%s; keeping every store that may use these weights", error.what)
        yield from folder.glob(f"{config.weights}-*.zarr" if config.weights in KNOWN_WEIGHTS else "*.zarr")
    else:
        settings = job.settings_of(config, job.resolve_faces(dataset, config), cnn)
        yield Path(str(job.store_path(cache, dataset.name, settings)))
    for path in sorted(folder.glob("*.zarr")):
        store = _open_or_none(path)
        if store is not None and not _is_extracted(store):
            yield path


def _is_extracted(store: EmbeddingStore) -> bool:
    """Return whether `extract` wrote the store; imports write an integer format."""
    return isinstance(store.settings.get("format"), dict)


def _open_or_none(path: Path) -> EmbeddingStore | None:
    try:
        return EmbeddingStore.open(path)
    except StoreError:  # absent, or its root is damaged and `extract` will rewrite it
        return None


def _trained(cache: Path, dataset: Dataset, store: EmbeddingStore, stages: Path) -> Iterator[Path]:
    """Yield the logits, heads and stack runs that the recipes would compute from a store today."""
    usual = recipe.make_config(TrainConfig, "train-heads", stages, {})
    settings = TrainingSettings(cache, dataset, store)
    try:
        logits_file = settings.logits_file(usual)
    except FercacheError as error:
        log.warning("%s; keeping all logits and heads of %s", error.what, dataset.name)
        yield from (path for stage in (LOGITS, HEADS, STACK) for path in (cache / stage / dataset.name).glob("*"))
        return
    yield from (logits_file, heads_of(logits_file))
    for config in ablation.trained_default(usual, recipe.make_config(AblationConfig, "ablation", stages, {})):
        with suppress(FercacheError):  # this store cannot train the row, so the row has no logits
            row_file = settings.logits_file(config)
            yield from (row_file, heads_of(row_file))
    if logits_file.is_file():
        yield from _stack_runs(cache, dataset.name, logits_file, stages)


class TrainingSettings:
    """Paths of the logits of training settings on one store; each combination of joined stores is digested once."""

    def __init__(self, cache: Path, dataset: Dataset, store: EmbeddingStore) -> None:
        dataset = stored_trials(dataset, store)
        self.cache, self.dataset, self.store = cache, dataset, store
        self.trials = [trial for trial in dataset.trials if trial.name in store]
        self.settings_by_join: dict[tuple[str, ...], dict[str, Any]] = {}

    def logits_file(self, config: TrainConfig) -> Path:
        """Return the path of the logits of these settings.

        Raises
        ------
        FercacheError
            The store lacks a tap, or a joined store is missing.
        """
        joined, taps = join_stores(self.store, config.join, config.taps)
        config = replace(config, taps=taps)
        if config.join not in self.settings_by_join:
            record = train.settings_of(self.dataset, self.trials, joined, config)
            # Without the training settings: they leave out a key at its default, so an old one would not be replaced.
            self.settings_by_join[config.join] = {key: record[key] for key in record.keys() - config.settings().keys()}
        digest = fingerprint_of({**self.settings_by_join[config.join], **config.settings()})
        return Workspace(self.cache).logits_file(self.dataset.name, digest)


def _stack_runs(cache: Path, dataset: str, logits_file: Path | None, stages: Path) -> Iterator[Path]:
    """Yield the recipe's stack runs of a logits file (None: imported logits only), with and without imported logits.

    Notes
    -----
    A finished run records its imported logits; it is needed if the recipe would compute the same run with them.
    """
    folder, usual = Workspace(cache).stack_runs(dataset), recipe.make_config(StackConfig, "stack", stages, {})
    choices = {(usual.logits, usual.force)}
    for path in folder.glob("*"):
        with suppress(FercacheError, OSError, KeyError, TypeError):  # an unfinished run has no such record
            record = atomic_io.read_json(path / METRICS)["config"]
            choices.add((tuple(record["logits"]), bool(record["force"])))
    for logits, force in sorted(choices):
        config = replace(usual, logits=logits, force=force)
        try:
            names = logits if logits_file or logits else tuple(logits_import.imported_names(cache, dataset))
            loaded = inputs.load_logits(cache, dataset, logits_file, names)
        except FercacheError as error:
            if logits != usual.logits:
                continue  # its logits are gone, or another recipe wrote it: nothing needs this run
            log.warning("%s: %s; keeping every stack run of %s", error.where, error.what, dataset)
            yield from folder.glob("*")
        else:
            yield Workspace(cache).stack_run(dataset, stack.fingerprint(loaded, config))
