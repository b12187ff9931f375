"""What the recipes and the data sets they name would make of the cache: all that `gc` must leave alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fercache.cli.home import Home
from fercache.cli.options import make
from fercache.config import DatasetConfig, ExtractConfig, StackConfig, TrainConfig
from fercache.errors import FercacheError, StoreError, WeightsError

if TYPE_CHECKING:
    from fercache.datasets import Dataset
    from fercache.store import EmbeddingStore

log = logging.getLogger("fercache")


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
    from fercache import datasets

    found = Named()
    for stages in recipe_folders(home.stages):
        dataset = datasets.load(make(DatasetConfig, "dataset", stages, typed), home.cache)
        found.datasets.add(dataset.name)
        for path in _stores(home.cache, dataset, stages):
            found.keep.add(path)
            store = _opened(path)
            if store is not None and is_ours(store):  # what was brought from elsewhere nothing here makes anew
                held = datasets.present(dataset, store)
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
    from fercache import extract, weights

    folder = cache / "features" / dataset.name
    config = make(ExtractConfig, "extract", stages, {})
    try:
        cnn = weights.resolve(config.weights, cache / "weights")
    except WeightsError as error:
        log.warning("%s; every store that may be theirs stays", error.what)
        yield from folder.glob(f"{config.weights}-*.zarr" if config.weights in weights.KNOWN else "*.zarr")
    else:
        settings = extract.settings_of(config, extract.faces_of(dataset, config), cnn)
        yield Path(str(extract.store_path(cache, dataset.name, settings)))
    for path in sorted(folder.glob("*.zarr")):
        store = _opened(path)
        if store is not None and not is_ours(store):
            yield path


def is_ours(store: EmbeddingStore) -> bool:
    """Return whether `extract` makes stores of such settings."""
    return isinstance(store.settings.get("format"), dict)


def _opened(path: Path) -> EmbeddingStore | None:
    from fercache.store import EmbeddingStore

    try:
        return EmbeddingStore.open(path)
    except StoreError:  # not there yet, or its root is damaged and `extract` will write it anew
        return None


def _learnt(cache: Path, dataset: Dataset, store: EmbeddingStore, stages: Path) -> Iterator[Path]:
    """Yield the book, the heads and the stack run that the recipes make of a store as it is now."""
    from fercache import datasets, train_heads
    from fercache.config import digest
    from fercache.logits import LogitBook
    from fercache.store import join

    dataset = datasets.present(dataset, store)
    held = [trial for trial in dataset.trials if trial.name in store]
    heads = make(TrainConfig, "train-heads", stages, {})
    try:
        joined, taps = join(store, heads.join, heads.taps)
    except FercacheError as error:
        log.warning("%s; every book and all heads of %s stay", error.what, dataset.name)
        yield from (path for stage in ("logits", "heads", "stack") for path in (cache / stage / dataset.name).glob("*"))
        return
    settings = train_heads.settings_of(dataset, held, joined, replace(heads, taps=taps))
    print_ = digest(settings)[:12]
    book = cache / "logits" / dataset.name / f"{print_}.h5"
    yield from (book, cache / "heads" / dataset.name / print_)
    if book.is_file():
        from fercache import stack  # lightgbm: only where there is a run to name

        config = make(StackConfig, "stack", stages, {})
        try:
            run = config.fingerprint(book=stack.kept.digest(LogitBook.load(book)), format=stack.FORMAT)
        except StoreError as error:
            log.warning("%s: %s; every stack run of %s stays", book, error.what, dataset.name)
            yield from (cache / "stack" / dataset.name).glob("*")
        else:
            yield cache / "stack" / dataset.name / run[:12]
