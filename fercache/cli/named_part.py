"""What the recipes and the data sets they name would make of the cache: all that `gc` must leave alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fercache.cli.context import Home
from fercache.cli.options_part import make
from fercache.config import AblationConfig, DatasetConfig, ExtractConfig, StackConfig, TrainConfig
from fercache.errors import FercacheError, StoreError, WeightsError
from fercache.runtime import atomic_io

if TYPE_CHECKING:
    from fercache.data.base import Dataset
    from fercache.store.embedding_store import EmbeddingStore

log = logging.getLogger('fercache')


@dataclass
class Named:
    """What stays.

    Attributes
    ----------
    keep : stores, books, folders of heads and of stack runs.
    clips : store -> the clips that its data set names.
    datasets : data sets that a recipe (or a flag) names.
    """

    keep: set[Path] = field(default_factory=set)
    clips: dict[Path, set[str]] = field(default_factory=dict)
    datasets: set[str] = field(default_factory=set)


def named(home: Home, typed: dict[str, Any]) -> Named:
    """Return what the recipes in the folder of recipes, and in every folder of recipes in it, name.

    Parameters
    ----------
    typed : flags that name another data set than the recipes do.

    Raises
    ------
    InputError
        A recipe or its data set cannot be read: what it names is not known, so nothing can be called waste.
    """
    from fercache import data, logits_import
    from fercache.data import persons_part

    found = Named()
    for stages in recipe_folders(home.stages):
        config = make(DatasetConfig, "dataset", stages, typed)
        if config.dataset == "logits":  # imported logits are all there is of it
            name = data.logits_name(config)
            found.datasets.add(name)
            found.keep.update([logits_import.folder_of(home.cache, name), *stack_runs(home.cache, name, None, stages)])
            continue
        dataset = data.load(config, home.cache)
        found.datasets.add(dataset.name)
        found.keep.add(logits_import.folder_of(home.cache, dataset.name))
        for path in _stores(home.cache, dataset, stages):
            found.keep.add(path)
            store = _opened(path)
            if store is not None and is_ours(store):  # what was brought from elsewhere nothing here makes anew
                held = persons_part.present(dataset, store)
                names = {trial.name for trial in held.trials} | {problem.where for problem in dataset.problems}
                found.clips[path] = found.clips.get(path, set()) | names
                found.keep.update(_learnt(home.cache, dataset, store, stages))
    return found


def recipe_folders(stages: Path) -> list[Path]:
    """Return a folder of recipes and the folders of recipes in it."""
    inner = [path for path in sorted(stages.glob("*")) if path.is_dir() and any(path.glob("*.toml"))]
    return [stages, *inner]


def _stores(cache: Path, dataset: Dataset, stages: Path) -> Iterator[Path]:
    """Yield where the recipe's store lies, and stores that no `extract` made (features brought from elsewhere)."""
    from fercache.backbones import weights
    from fercache.backbones.weights import known_part
    from fercache.extraction import job

    folder = cache / "features" / dataset.name
    config = make(ExtractConfig, "extract", stages, {})
    try:
        cnn = weights.resolve(config.weights, cache / "weights")
    except WeightsError as error:
        log.warning("%s; every store that may be theirs stays", error.what)
        yield from folder.glob(f"{config.weights}-*.zarr" if config.weights in known_part.KNOWN else "*.zarr")
    else:
        settings = job.settings_of(config, job.faces_of(dataset, config), cnn)
        yield Path(str(job.store_path(cache, dataset.name, settings)))
    for path in sorted(folder.glob("*.zarr")):
        store = _opened(path)
        if store is not None and not is_ours(store):
            yield path


def is_ours(store: EmbeddingStore) -> bool:
    """Return whether `extract` makes stores of such settings."""
    return isinstance(store.settings.get("format"), dict)


def _opened(path: Path) -> EmbeddingStore | None:
    from fercache.store.embedding_store import EmbeddingStore

    try:
        return EmbeddingStore.open(path)
    except StoreError:  # not there yet, or its root is damaged and `extract` will write it anew
        return None


def _learnt(cache: Path, dataset: Dataset, store: EmbeddingStore, stages: Path) -> Iterator[Path]:
    """Yield the books, the heads and the stack runs that the recipes make of a store as it is now."""
    from fercache.diagnostics import ablation

    usual = make(TrainConfig, "train-heads", stages, {})
    trains = Trains(cache, dataset, store)
    try:
        book = trains.book(usual)
    except FercacheError as error:
        log.warning("%s; every book and all heads of %s stay", error.what, dataset.name)
        yield from (path for stage in ("logits", "heads", "stack") for path in (cache / stage / dataset.name).glob("*"))
        return
    yield from (book, trains.heads(book))
    for config in ablation.trained(usual, make(AblationConfig, "ablation", stages, {})):
        with suppress(FercacheError):  # a row that this store cannot be trained with has no book
            tried = trains.book(config)
            yield from (tried, trains.heads(tried))
    if book.is_file():
        yield from stack_runs(cache, dataset.name, book, stages)


class Trains:
    """Where books and heads of settings lie; what is asked of a store is asked once."""

    def __init__(self, cache: Path, dataset: Dataset, store: EmbeddingStore) -> None:
        from fercache.data import persons_part

        dataset = persons_part.present(dataset, store)
        self.cache, self.dataset, self.store = cache, dataset, store
        self.held = [trial for trial in dataset.trials if trial.name in store]
        self.known: dict[tuple[str, ...], dict[str, Any]] = {}

    def book(self, config: TrainConfig) -> Path:
        """Return where the book of these settings lies.

        Raises
        ------
        FercacheError
            The store lacks a tap, or what is joined to it is not there.
        """
        from fercache.config import digest
        from fercache.store.multi_store import join
        from fercache.training import train

        joined, taps = join(self.store, config.join, config.taps)
        config = replace(config, taps=taps)
        if config.join not in self.known:
            said = train.settings_of(self.dataset, self.held, joined, config)
            self.known[config.join] = {key: said[key] for key in said.keys() - config.settings().keys()}
        print_ = digest({**self.known[config.join], **config.settings()})[:12]
        return self.cache / "logits" / self.dataset.name / f"{print_}.h5"

    def heads(self, book: Path) -> Path:
        """Return where the heads of a book lie."""
        return self.cache / "heads" / self.dataset.name / book.stem


def stack_runs(cache: Path, dataset: str, book: Path | None, stages: Path) -> Iterator[Path]:
    """Yield the recipe's stack run of a book (None: of imported logits alone), with and without imported logits.

    Notes
    -----
    Which logits a finished run was made with it says itself; it stays if it is what the recipe makes with those.
    """
    from fercache import logits_import
    from fercache.stacking import inputs, stack

    folder, usual = cache / "stack" / dataset, make(StackConfig, "stack", stages, {})
    asked = {(usual.logits, usual.force)} | {said for path in folder.glob("*") if (said := _logits_of(path))}
    for logits, force in sorted(asked):
        config = replace(usual, logits=logits, force=force)
        try:
            names = logits if book or logits else tuple(logits_import.names(cache, dataset))
            held = inputs.book_of(cache, dataset, book, names)
        except FercacheError as error:
            if logits != usual.logits:
                continue  # its logits are gone, or it is a run of something else: no recipe makes it any more
            log.warning("%s: %s; every stack run of %s stays", error.where, error.what, dataset)
            yield from folder.glob("*")
        else:
            yield folder / stack.fingerprint(held, config)[:12]


def _logits_of(run: Path) -> tuple[tuple[str, ...], bool] | None:
    """Return which imported logits a finished stack run was made with, and whether it was forced to; None: unknown."""
    try:
        said = atomic_io.read_json(run / "metrics.json")["config"]
        return tuple(said["logits"]), bool(said["force"])
    except (FercacheError, OSError, KeyError, TypeError):
        return None
