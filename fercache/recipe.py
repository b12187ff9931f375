"""Recipes: `stages/<command>.toml` has the options of a command, `stages/dataset.toml` the location of the clips."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import GenericAlias
from typing import Any, TypeVar, get_type_hints

from fercache.config import (
    AblationConfig,
    AuditConfig,
    Config,
    DatasetConfig,
    ExtractConfig,
    LogitsConfig,
    ScoreConfig,
    StackConfig,
    SubmitConfig,
    TrainConfig,
)
from fercache.errors import InputError

C = TypeVar("C", bound=Config)

LIMIT_BYTES = 1 << 20
RECIPES: dict[str, type[Config]] = {"dataset": DatasetConfig, "extract": ExtractConfig, "train-heads": TrainConfig,
                                    "stack": StackConfig, "submit": SubmitConfig, "score": ScoreConfig,
                                    "ablation": AblationConfig, "audit": AuditConfig, "logits-import": LogitsConfig}

CHOOSES_DATA = ("root", "clips")
"""Keys that name a data set: if one is typed, the recipe's data set is ignored as a whole."""


def load_recipe(stages: Path, command: str) -> dict[str, Any]:
    """Return the keys of the recipe of `command`; ``{}`` if there is none.

    Parameters
    ----------
    stages : folder of recipes; `dataset.toml` is searched there, then in the default folder ``stages``.

    Raises
    ------
    InputError
        The file is not TOML, is too large, or has a key that the command does not have.
    """
    path = stages / f"{command}.toml"
    if command == "dataset" and not path.is_file():
        path = Path("stages/dataset.toml")
    if not path.is_file():
        return {}
    values = _parse(path)
    known = [entry.name for entry in fields(RECIPES[command])]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            raise InputError(f"unknown key {key!r}", where=path,
                             hint=f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}")
    return {key: _checked(path, key, value) for key, value in values.items()}


def make_config(kind: type[C], command: str, stages: Path, typed: Mapping[str, Any]) -> C:
    """Return the configuration: what was `typed` beats the recipe of `command`, which beats the default.

    Raises
    ------
    InputError
        A recipe names an unknown key, or a value is of another type or out of its choices or bounds.
    """
    typed = {entry.name: typed[entry.name] for entry in fields(kind) if typed.get(entry.name) is not None}
    values = load_recipe(stages, command)
    if kind is DatasetConfig and (typed.get("dataset") == "demo" or any(name in typed for name in CHOOSES_DATA)):
        values = {}  # a mixture of the recipe's data set and the user's would be neither
    hints = get_type_hints(kind)
    return kind(**{name: _as_type(kind, name, hints[name], value) for name, value in {**values, **typed}.items()})


def _as_type(kind: type[Config], name: str, hint: Any, value: Any) -> Any:
    """Return a value as the field's type: a number as a float, a list or a text with commas as names."""
    if isinstance(hint, GenericAlias):
        return split_names(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise InputError(f"{name} = {value!r} is not of type {hint.__name__}", where=kind.__name__,
                         hint="fix the recipe")
    return value


def split_names(value: Any) -> tuple[str, ...]:
    """Return the names in a text with commas between them, or in a list."""
    if isinstance(value, str):
        return tuple(name.strip() for name in value.split(",") if name.strip())
    return tuple(str(name) for name in value)


def recipe_path(stages: Path, command: str) -> str:
    """Return the name of the recipe of `command` for the log."""
    path = stages / f"{command}.toml"
    return str(path) if path.is_file() else "built-in defaults"


def check_folder(stages: Path, chosen: bool) -> None:
    """Refuse a folder of recipes that the user chose and that does not exist.

    Raises
    ------
    InputError
        There is no such folder.
    """
    if chosen and not stages.is_dir():
        raise InputError("no such folder of recipes", where=stages, hint="check --stages")


def _parse(path: Path) -> Mapping[str, Any]:
    if path.stat().st_size > LIMIT_BYTES:
        raise InputError(f"larger than {LIMIT_BYTES} bytes", where=path, hint="this is not a recipe")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"not readable as TOML ({error})", where=path, hint="fix the line it names") from error


def _checked(path: Path, key: str, value: Any) -> Any:
    """Return a recipe's value if it is a scalar or a list of scalars."""
    scalar = (str, int, float, bool)
    if isinstance(value, scalar) or (isinstance(value, list) and all(isinstance(v, scalar) for v in value)):
        return value
    raise InputError(f"{key} must be text, a number, true/false or a list of those", where=path)
