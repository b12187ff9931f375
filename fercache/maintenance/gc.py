"""Garbage collection: list the parts of the cache that no recipe or data set needs, and remove them on request."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fercache import data, recipe, run_log
from fercache.backbones import weights
from fercache.backbones.registry import KNOWN_WEIGHTS
from fercache.backbones.taps import AUDIO
from fercache.config import AblationConfig, DatasetConfig, ExtractConfig, StackConfig, TrainConfig, fingerprint_of
from fercache.data.base import Dataset, stored_trials
from fercache.diagnostics import ablation
from fercache.errors import FercacheError, InputError, MissingExtra, StoreError, WeightsError
from fercache.extraction import job
from fercache.maintenance.verify import unfinished
from fercache.oof import open_oof
from fercache.runtime import atomic_io
from fercache.stacking import inputs
from fercache.stacking.run_metrics import read_metrics
from fercache.store.embedding_store import EmbeddingStore
from fercache.store.layout import META, decode_name, encode_name
from fercache.store.local import LocalStoreFiles, StoreSize
from fercache.store.locks import locked_clips, work_folder
from fercache.store.multi_store import SEPARATOR
from fercache.training import checkpoints, train
from fercache.workspace import LOCK_SUFFIX, MAPPED_FEATURES, METRICS, PHOTOS, STORE_SUFFIX, WORK_SUFFIX, Workspace

log = logging.getLogger(__name__)

UNNAMED, LOST, UNKNOWN = "no recipe names it", "unfinished, and cannot be resumed", "not in the data set"
TORN, ORPHAN, OF_CLIP = "left by a run that was killed", "of a store that is gone", "of a clip that is gone"
# Age from which a temporary file is abandoned: writing one file never takes this long.
SETTLED_S = 3600.0

# Parents: logits record their store, the digest of its content and the settings of their training; logits of new clips
# record the heads that predicted them; heads bear the name of their logits; a stack run records its logits. A result is
# live if its parents are, and if a recipe has its settings. Where a record cannot be read, the result stays.

def _live_results(cache: Path, dataset: str, store: EmbeddingStore | None, trainings: Iterable[TrainConfig],
                 stack: StackConfig) -> set[Path]:
    """Return the logits, heads and stack runs of a data set that descend from live inputs by a recipe's settings."""
    workspace = Workspace(cache)
    # Imported logits are roots because no recipe can make them again; the current ones because later stages read them.
    live = set(workspace.imported_logits(dataset).glob("*.h5"))
    if (current := workspace.current_logits_file_or_none(dataset)) is not None:
        live.add(current)
    if store is not None:
        digest = store.digest()
        wanted = {_training_key(config.settings() | {"format": train.FORMAT}) for config in trainings}
        live = _live_logits(workspace, dataset, store.path.name, digest, wanted, live)
        live |= {heads for heads in workspace.all_heads(dataset)
                 if (logits := workspace.logits_file(dataset, heads.name)) in live
                 or (not logits.is_file() and _is_resumable(heads, digest))}
    return live | {run for run in workspace.stack_runs(dataset).glob("*") if _is_live_run(run, cache, stack, live)}


def _live_logits(workspace: Workspace, dataset: str, store: str, digest: str, wanted: Collection[str],
                 roots: set[Path]) -> set[Path]:
    live = set(roots)
    parents: dict[Path, Path] = {}
    for path in workspace.logits(dataset).glob("[!.]*.h5"):
        try:
            with open_oof(path) as reader:
                provenance = reader.provenance
            settings = provenance.settings
            if provenance.trained_on is not None and isinstance(provenance.heads, str):
                if provenance.store == store:
                    parents[path] = workspace.logits_file(provenance.trained_on, provenance.heads)
            elif not provenance.store or settings is None or (
                    provenance.store == store and _training_key(settings) in wanted
                    and _same_content(settings["taps"], settings["store"], digest)):
                live.add(path)
        except (StoreError, KeyError, TypeError):
            live.add(path)
    return live | {path for path, parent in parents.items() if parent in live}


def _training_key(settings: Mapping[str, Any]) -> str:
    """Return a digest of a training's settings without its data and without the taps of joined stores."""
    own = {key: value for key, value in settings.items() if key not in train.DATA_KEYS}
    return fingerprint_of(own | {"taps": [tap for tap in settings["taps"] if SEPARATOR not in tap]})


def _same_content(taps: Iterable[str], recorded: str, digest: str) -> bool:
    """Return whether a training read this content of the store; the digest of joined stores is another, and passes."""
    return recorded == digest or any(SEPARATOR in tap for tap in taps)


def _is_resumable(heads: Path, digest: str) -> bool:
    """Return whether `train-heads` can go on with an unfinished training: it read this content of the store."""
    try:
        return any(_same_content((tap.tap for tap in record.taps), record.store_digest, digest)
                   for record in map(checkpoints.load_record, checkpoints.record_files(heads)[:1]))
    except FercacheError:
        return False  # `train-heads` refuses such a folder


def _is_live_run(run: Path, cache: Path, stack: StackConfig, live: set[Path]) -> bool:
    """Return whether a stack run has the recipe's settings, except for other imported logits, and live parents."""
    if not (run / METRICS).is_file():
        return False  # unfinished runs start again
    try:
        record = read_metrics(run / METRICS)
        config, logits = record.config, record.logits
        if config != stack.settings() | {"logits": config["logits"], "force": config["force"]}:
            return False
        # Imported logits were merged in the order in which they were named, or sorted where all were taken.
        merged = sorted(logits.provenance.merged)
        names = [name for name in config["logits"] if name in merged] or merged
        parents = inputs.find_logits_files(cache, run.parent.name, logits.fingerprint, names)
        return bool(parents) and live.issuperset(parents)
    except (FercacheError, KeyError):
        return True


@dataclass(frozen=True, kw_only=True)
class Unreferenced:
    """Something that can be removed."""

    path: Path  # a store, a file of logits, a folder of heads or of a stack run; or the store that holds `folder`
    reason: str
    size: StoreSize
    folder: str = ""  # of one clip in the store at `path`; empty for all of `path`
    clip: str = ""  # the clip's name, or its folder where that is a hash of the name


def find_unreferenced(cache: Path, keep: Iterable[Path],
                      clips: Mapping[Path, Collection[str]]) -> tuple[Unreferenced, ...]:
    """Return what can be removed, sorted by path, but no file that a live process is writing; removes nothing.

    `keep`: stores, logits, folders of heads and of stack runs that are live. `clips`: store -> the clips that its data
    set names; a store that is not in it keeps all its clips.
    """
    # Resolved, because a data set's folder may be a link to another disk.
    live = {path.resolve() for path in keep} | {path.resolve() for path in clips}
    found = [item for path in Workspace(cache).results()
             if path.resolve() not in live and (item := _unreferenced_result(path)) is not None]
    for path, named in clips.items():
        found += _unreferenced_clips(path, named)
    found += _unreferenced_thumbnails(cache, found)
    return tuple(sorted(found, key=lambda unreferenced: (unreferenced.path, unreferenced.folder)))


def remove_unreferenced(unreferenced: Iterable[Unreferenced]) -> StoreSize:
    """Remove the items that `find_unreferenced` listed, and return the freed size.

    Raises StoreError if another process has begun to write one of them.
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


def _unreferenced_thumbnails(cache: Path, unreferenced: Sequence[Unreferenced]) -> list[Unreferenced]:
    going = {(item.path.resolve(), item.folder) for item in unreferenced}
    found = []
    for folder, store in Workspace(cache).thumbnail_folders():
        if not store.exists() or (store.resolve(), "") in going:
            found.append(Unreferenced(path=folder, reason=ORPHAN, size=LocalStoreFiles(folder).size()))
            continue
        for path in sorted(folder.glob("*.npz")):
            clip = path.name.removesuffix(".npz")
            if (store.resolve(), clip) in going or not (store / clip).exists():
                found.append(Unreferenced(path=path, reason=OF_CLIP, size=StoreSize(path.stat().st_size, 1)))
    return found


def _unreferenced_result(path: Path) -> Unreferenced | None:
    """Return a result that is not live, with the reason; None if it belongs to a store that stays, or is in use."""
    reason = UNNAMED
    if path.suffix == WORK_SUFFIX:
        if path.with_suffix(STORE_SUFFIX).exists():
            return None
        reason = ORPHAN
    elif path.name.startswith(atomic_io.TEMPORARY):
        if time.time() - path.stat().st_mtime < SETTLED_S:
            return None
        reason = TORN
    if _in_use(path):
        return None
    # Only the link is removed, so only the link is measured.
    measured = path.is_dir() and not path.is_symlink()
    size = LocalStoreFiles(path).size() if measured else StoreSize(path.lstat().st_size, 1)
    return Unreferenced(path=path, reason=reason, size=size)


def _in_use(path: Path) -> bool:
    """Return whether a live process writes or maps a result: it holds the lock of a clip, or that of the result."""
    if path.suffix in (STORE_SUFFIX, WORK_SUFFIX):
        return bool(locked_clips(path.with_suffix(STORE_SUFFIX)))
    if path.parent.parent.name == PHOTOS:  # an extraction that no recipe names may read through the links
        stores = Workspace.holding(path).features(path.parent.name)
        return any(locked_clips(store) for store in stores.glob(f"*{STORE_SUFFIX}"))
    if path.match(MAPPED_FEATURES):  # their name does not show which training of the data set maps them
        return any(_is_locked(lock) for folder in (path.parent, path) for lock in folder.glob(f"*{LOCK_SUFFIX}"))
    return _is_locked(path.with_suffix(LOCK_SUFFIX))


def _is_locked(lock: Path) -> bool:
    if not lock.is_file():
        return False
    with atomic_io.lock(lock) as free:
        return not free


def _unreferenced_clips(path: Path, named: Collection[str]) -> Iterator[Unreferenced]:
    """Yield clips that the data set does not name, and unfinished ones that no run can resume."""
    store, folders = EmbeddingStore.open(path), {encode_name(clip) for clip in named}
    live = locked_clips(path)
    resumable = unfinished(store)
    for folder in sorted({*store.files.folders(), *resumable} - live):
        lost = not resumable.get(folder, True)
        if folder not in folders or lost:
            yield Unreferenced(path=path, folder=folder, clip=folder if (name := decode_name(folder)) is None else name,
                               reason=LOST if lost else UNKNOWN, size=store.files.size(folder))


def _remove(path: Path) -> None:
    # Checked again: a process may have begun while the user read the list.
    if _in_use(path):
        raise StoreError("is being written by another process", where=path, hint="wait for it to end")
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        if path.suffix == STORE_SUFFIX:
            # The root goes first: without it no process can open a half-removed store.
            LocalStoreFiles(path).remove(META)
            shutil.rmtree(work_folder(path), ignore_errors=True)
        shutil.rmtree(path)
    atomic_io.fsync(path.parent)


@dataclass
class LiveArtifacts:
    """Artifacts that `gc` must not remove."""

    keep: set[Path] = field(default_factory=set)  # stores, logits files, folders of heads and of stack runs
    clips: dict[Path, set[str]] = field(default_factory=dict)  # store -> the clips that its data set names
    datasets: set[str] = field(default_factory=set)  # data sets that a recipe (or a flag) names


def live_artifacts(cache: Path, stages: Path, typed: Mapping[str, Any]) -> LiveArtifacts:
    """Return what the recipes in `stages`, and in every folder of recipes in it, would compute today.

    `typed`: flags that name another data set than the recipes do. Raises InputError if a recipe or its data set cannot
    be read, so it is unknown which artifacts it needs.
    """
    found = LiveArtifacts()
    # A folder below it, such as stages/mao2021, is another set of recipes.
    inner = [path for path in sorted(stages.glob("*")) if path.is_dir() and any(path.glob("*.toml"))]
    for recipes, config in [(folder, config) for folder in [stages, *inner]
                            for config in _dataset_configs(cache, folder, typed)]:
        usual = recipe.make_config(TrainConfig, "train-heads", recipes, {})
        stack = recipe.make_config(StackConfig, "stack", recipes, {})
        rows = ablation.trained_default(usual, recipe.make_config(AblationConfig, "ablation", recipes, {}))
        trainings = (usual, *rows)
        if config.dataset == "logits":  # such a data set has no clips and no store, only imported logits
            name = data.logits_name(config)
            found.datasets.add(name)
            found.keep.update([Workspace(cache).imported_logits(name),
                               *_live_results(cache, name, None, trainings, stack)])
            continue
        try:
            dataset = data.load_dataset(config, cache)
        except InputError as error:
            if recipe.make_config(DatasetConfig, "dataset", recipes, typed) == config:
                raise
            # Its table or folder may have been deleted since; a recipe that names it would be an error.
            log.warning("a data set that was used here cannot be read any more: %s", error)
            continue
        found.datasets.add(dataset.name)
        found.keep.add(Workspace(cache).imported_logits(dataset.name))
        # A data set of photos reads its clips from a folder of links in the cache.
        links = Workspace(cache).photos(dataset.name)
        found.keep |= {trial.path.parent for trial in dataset.trials if trial.path.is_relative_to(links)}
        for path in _stores(cache, dataset, recipes):
            found.keep.add(path)
            store = EmbeddingStore.open_or_none(path)
            if store is not None and _is_extracted(store):  # imported clips cannot be computed again: all are needed
                names = {trial.name for trial in stored_trials(dataset, store).trials}
                # A clip that cannot be read today is in the issues, not in the trials: its features stay.
                names |= {issue.where for issue in dataset.problems}
                found.clips[path] = found.clips.get(path, set()) | names
                found.keep |= _live_results(cache, dataset.name, store, trainings, stack)
    return found


def _dataset_configs(cache: Path, recipes: Path, typed: Mapping[str, Any]) -> list[DatasetConfig]:
    """Return the data set that flags or the recipes name; without one, the demo and all that were used here."""
    config = recipe.make_config(DatasetConfig, "dataset", recipes, typed)
    if config.dataset or config.root or config.clips:
        return [config]
    used = [recipe.make_config(DatasetConfig, "dataset", recipes, one.options)
            for one in run_log.load_run_log(cache).datasets]
    return list({repr(one): one for one in (config, *used)}.values())


def _stores(cache: Path, dataset: Dataset, stages: Path) -> Iterator[Path]:
    """Yield the path of the recipe's store, and of those beside it that may be joined: imported, of sound, or named."""
    folder = Workspace(cache).features(dataset.name)
    config = recipe.make_config(ExtractConfig, "extract", stages, {})
    try:
        cnn = weights.resolve_weights(config.weights, Workspace(cache).weights)
    except (WeightsError, MissingExtra) as error:
        log.warning("%s; keeping every store that may use these weights", error.what)
        yield from folder.glob(f"{config.weights}-*.zarr" if config.weights in KNOWN_WEIGHTS else "*.zarr")
    else:
        settings = job.settings_of(config, job.resolve_faces(dataset, config), cnn)
        yield Path(str(job.store_path(cache, dataset.name, settings)))
    join = recipe.make_config(TrainConfig, "train-heads", stages, {}).join
    for path in sorted(folder.glob("*.zarr")):
        store = EmbeddingStore.open_or_none(path)
        named = {path.stem, path.stem.rpartition("-")[0], str(path)} & set(join)
        if store is not None and (named or not _is_extracted(store) or store.settings.get("modality") == AUDIO):
            yield path


def _is_extracted(store: EmbeddingStore) -> bool:
    """Return whether `extract` wrote the store; imports write an integer format."""
    return isinstance(store.settings.get("format"), dict)
