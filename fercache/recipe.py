"""Recipes: `stages/<command>.toml` has the options of a command, `stages/dataset.toml` the location of the clips.

`Context` joins recipes, a cache folder, and what the user gave by flag or keyword; every command begins with one.
"""

from __future__ import annotations

import difflib
import logging
import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import GenericAlias
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from fercache import run_log
from fercache.config import RECIPES, Config, DatasetConfig
from fercache.errors import InputError
from fercache.runtime.uri import Location, Url, as_location
from fercache.workspace import Workspace

if TYPE_CHECKING:
    from fercache.data.base import Dataset, Issue

log = logging.getLogger(__name__)
C = TypeVar("C", bound=Config)

LIMIT_BYTES = 1 << 20
NOT_USED = {"demo", "predict"}  # data sets in the cache that are no reason against the demo
CHOOSES_DATA = ("root", "clips")  # keys that name a data set: if one is typed, the recipe's is ignored as a whole


def load_recipe(stages: Path, command: str) -> dict[str, Any]:
    """Return the keys of the recipe of `command`; ``{}`` if there is none.

    `stages`: folder of recipes; `dataset.toml` is searched there, then in the default folder ``stages``.
    """
    path = stages / f"{command}.toml"
    if command == "dataset" and not path.is_file():
        path = Path("stages/dataset.toml")
    if not path.is_file():
        return {}
    if path.stat().st_size > LIMIT_BYTES:
        raise InputError(f"larger than {LIMIT_BYTES} bytes", where=path, hint="this is not a recipe")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"not readable as TOML ({error})", where=path, hint="fix the line it names") from error
    refuse_unknown(values, [RECIPES[command]], path)
    for key, value in values.items():
        if not all(isinstance(part, str | int | float) for part in (value if isinstance(value, list) else [value])):
            raise InputError(f"{key} must be text, a number, true/false or a list of those", where=path)
    return values


def from_keywords(keywords: Mapping[str, Any], *kinds: type[Config]) -> dict[str, Any]:
    """Return the keywords of a Python call as keys of the configurations `kinds`; None means not given."""
    refuse_unknown(keywords, kinds, "keyword arguments")
    owners = {entry.name: kind for kind in kinds for entry in fields(kind)}
    return {name: _as_type(owners[name], name, os.fspath(value) if isinstance(value, os.PathLike) else value)
            for name, value in keywords.items() if value is not None}


def refuse_unknown(keys: Iterable[str], kinds: Sequence[type[Config]], where: object) -> None:
    """Raise InputError for a key that none of the configurations has."""
    known = [entry.name for kind in kinds for entry in fields(kind)]
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            raise InputError(f"unknown key {key!r}", where=where,
                             hint=f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}")


def make_config(kind: type[C], command: str, stages: Path, typed: Mapping[str, Any]) -> C:
    """Return the configuration: what was `typed` beats the recipe of `command`, which beats the default."""
    typed = {entry.name: typed[entry.name] for entry in fields(kind) if typed.get(entry.name) is not None}
    values = load_recipe(stages, command)
    if kind is DatasetConfig and (typed.get("dataset") == "demo" or any(name in typed for name in CHOOSES_DATA)):
        values = {}  # a mixture of the recipe's data set and the user's would be neither
    return kind(**{name: _as_type(kind, name, value) for name, value in {**values, **typed}.items()})


def _as_type(kind: type[Config], name: str, value: Any) -> Any:
    """Return a value as the field's type: a number as a float, a list or a text with commas as names."""
    hint = get_type_hints(kind)[name]
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is str and isinstance(value, int) and not isinstance(value, bool):  # embed_every = 3
        return str(value)
    if isinstance(hint, GenericAlias):
        wanted, fits = "list of names", isinstance(value, str | list | tuple)
    else:
        wanted, fits = hint.__name__, isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
    if not fits:
        raise InputError(f"{name} = {value!r} is not of type {wanted}", where=kind.__name__,
                         hint="fix the recipe, or the argument of the call")
    return split_names(value) if isinstance(hint, GenericAlias) else value


def split_names(value: Any) -> tuple[str, ...]:
    """Return the names in a text with commas between them, or in a list."""
    if isinstance(value, str):
        return tuple(name.strip() for name in value.split(",") if name.strip())
    return tuple(str(name) for name in value)


@dataclass
class Context:
    """Paths of the cache and the recipes, and what they name."""

    cache: Path = Path("cache")  # the folder of everything that is generated
    stages: Path = Path("stages")
    remote: Url | None = None  # URL of the features if ``--cache`` is a URL
    noted: bool = False  # whether the log names the data set of the last command

    @classmethod
    def of(cls, cache: str | os.PathLike[str] | Url, local_cache: str | os.PathLike[str] | None = None,
           stages: str | os.PathLike[str] | None = None) -> Context:
        """Return the context of a Python call; `local_cache` matters only if `cache` is a URL."""
        return cls().moved(as_location(cache if isinstance(cache, Url) else os.fspath(cache)),
                           None if local_cache is None else Path(local_cache), None if stages is None else Path(stages))

    @property
    def places(self) -> dict[str, Any]:
        """The arguments of `of` that give this context."""
        return {"cache": self.features, "local_cache": self.cache,
                "stages": self.stages if self.stages.is_dir() else None}

    @property
    def workspace(self) -> Workspace:
        """The paths below the cache folder."""
        return Workspace(self.cache)

    @property
    def features(self) -> Location:
        """Where features are: the cache folder, or the URL."""
        return self.remote or self.cache

    def moved(self, cache: Location | None, local: Path | None, stages: Path | None) -> Context:
        """Return the context with a command's own flags applied; raise InputError if there is no folder `stages`."""
        if stages is not None and not stages.is_dir():
            raise InputError("no such folder of recipes", where=stages, hint="check --stages")
        remote = cache if isinstance(cache, Url) else self.remote if cache is None else None
        folder = local or (cache if isinstance(cache, Path) else None) or self.cache
        return Context(folder, stages or self.stages, remote)

    def config(self, kind: type[C], command: str, typed: Mapping[str, Any]) -> C:
        """Return the configuration of a command from flags, recipe and defaults, and log which recipe it is."""
        config = make_config(kind, command, self.stages, typed)
        path = self.stages / f"{command}.toml"
        log.info("%s: %s, fingerprint %s", command, path if path.is_file() else "built-in defaults",
                 config.fingerprint()[:12])
        return config

    def dataset_config(self, typed: Mapping[str, Any]) -> DatasetConfig:
        """Return the options of the data set that flags or `dataset.toml` name, else those of the one used last.

        Raises InputError if none is named, and several were used in this cache.
        """
        config = make_config(DatasetConfig, "dataset", self.stages, typed)
        if config.dataset or config.root or config.clips:
            return config
        used = [one for one in run_log.load_run_log(self.cache).datasets if one.options.get("dataset") != "demo"]
        # A data set that was only checked does not count beside one with results.
        results = [one for one in used if self.workspace.features(one.name).exists()
                   or self.workspace.logits(one.name).exists()] or used
        named = [one for one in used if one.name == config.name] or results
        if len(named) > 1:
            raise InputError(f"{len(named)} data sets were used in this cache, and none is named", where=self.cache,
                             hint="name one of them: " + "; ".join(f"--name {one.name} ({_flags(one.options)})"
                                                                   for one in named[::-1]))
        if not named:
            # An older version recorded no data sets.
            others = sorted({path.parent.name for path in self.workspace.results()} - NOT_USED)
            if others and not config.name:
                raise InputError("no data set is named, and this cache holds results of " + ", ".join(others),
                                 where=self.cache, hint="name its clips (--clips, --root) or --dataset demo")
            return config
        # What is typed changes single options of the recorded data set, such as its labels.
        options = {**named[0].options, **{key: value for key, value in typed.items() if value is not None}}
        if not self.noted:
            log.info("data set of the last command in this cache: %s", _flags(named[0].options))
            self.noted = True
        return make_config(DatasetConfig, "dataset", self.stages, options)

    def dataset_name(self, typed: Mapping[str, Any]) -> str:
        """Return the name in the cache of the data set that flags or `dataset.toml` name; imported logits are one."""
        from fercache import data

        config = self.dataset_config(typed)
        return data.logits_name(config) if config.dataset == "logits" else self.dataset(typed).name

    def dataset(self, typed: Mapping[str, Any], report_issues: bool = True, record: bool = False) -> Dataset:
        """Return the data set that flags or `dataset.toml` name; problems with its clips are logged once.

        `record`: remember it as the last one used in this cache.
        """
        from fercache import data
        from fercache.data import demo

        config = self.dataset_config(typed)
        if config.dataset in ("", "demo") and not (config.root or config.clips or config.labels):
            if not config.dataset:
                log.info("no data set is named, and none was used in this cache: taking the demo")
            demo.fetch_demo_clips(self.workspace.clips)
        found = data.load_dataset(config, self.cache)
        log.info("data set %s: %d clips", found.name, len(found.trials))
        if found.notice:
            log.info("note: %s", found.notice)
        log_issues(found.problems if report_issues else ())
        if record:
            self.record(found.name, config)
        return found

    def record(self, name: str, config: DatasetConfig) -> None:
        """Remember a data set, by its name in the cache, as the last one used."""
        options = {entry.name: value for entry in fields(config)
                   if (value := getattr(config, entry.name)) != entry.default}
        options |= {key: str(Path(options[key]).resolve()) for key in ("root", "clips", "labels") if key in options}
        options |= {key: list(value) for key, value in options.items() if isinstance(value, tuple)}
        run_log.record_dataset(self.cache, name, options)


def _flags(options: dict[str, Any]) -> str:
    return " ".join(f"--{key.replace('_', '-')} {','.join(value) if isinstance(value, list) else value}"
                    for key, value in options.items()) or "--dataset demo"


def log_issues(issues: Iterable[Issue]) -> None:
    """Log the issues, alike ones once."""
    from fercache.data import base

    for issue in base.group_issues(issues):
        log.log(logging.INFO if issue.kind == "one-clip" else logging.WARNING, "%s", issue)
