"""Options made from the configuration: one field is one flag, one recipe key and one default."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from fercache import recipe
from fercache.config import Config, DatasetConfig
from fercache.errors import InputError
from fercache.runtime.uri import Place, as_place

C = TypeVar("C", bound=Config)
F = TypeVar("F", bound=Callable[..., Any])

CHOOSES_DATA = ("root", "clips")
"""Flags that name a data set: when one is typed, the recipe's data set is put aside as a whole."""


class Names(click.ParamType[tuple[str, ...]]):
    """Several words with commas between them."""

    name = "a,b,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Return the words."""
        if isinstance(value, str):
            return tuple(word.strip() for word in value.split(",") if word.strip())
        return tuple(str(word) for word in value)


class PlaceType(click.ParamType[Place]):
    """A path, or a URL that fsspec opens (s3://, gs://)."""

    name = "place"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Place:
        """Return the path or URL."""
        try:
            return as_place(value)
        except InputError as error:
            self.fail(str(error), param, ctx)


PLACE = PlaceType()


def config_options(kind: type[Config], default: str = "") -> Callable[[F], F]:
    """Return a decorator that gives a command one option for each field of the configuration `kind`.

    Parameters
    ----------
    default : what help says instead of the defaults of the fields that change numbers.
    """
    hints = typing.get_type_hints(kind)

    def add(function: F) -> F:
        for entry in reversed(dataclasses.fields(kind)):
            flag = "--" + entry.name.replace("_", "-")
            if hints[entry.name] is bool:
                function = click.option(f"{flag}/--no-{flag[2:]}", entry.name, default=None,
                                        help=str(entry.metadata["help"]), show_default=False)(function)
                continue
            function = click.option(flag, entry.name, type=_type(hints[entry.name], entry), default=None,
                                    help=_help(entry, default), show_default=False)(function)
        return function
    return add


def _type(hint: Any, entry: dataclasses.Field[Any]) -> click.ParamType[Any]:
    """Return click's type for a field."""
    if isinstance(hint, types.GenericAlias):
        return Names()
    if entry.metadata["choices"]:
        return click.Choice(entry.metadata["choices"])
    return {str: click.STRING, int: click.INT, float: click.FLOAT}[hint]


def _help(entry: dataclasses.Field[Any], instead: str) -> str:
    if instead and entry.metadata["numbers"]:
        return f"{entry.metadata['help']}  [default: {instead}]"
    default = ",".join(entry.default) if isinstance(entry.default, tuple) else entry.default
    return f"{entry.metadata['help']}  [default: {default}]" if default != "" else str(entry.metadata["help"])


def make(kind: type[C], command: str, stages: Path, typed: dict[str, Any]) -> C:
    """Return the configuration: what was `typed` beats the recipe of `command`, which beats the default.

    Raises
    ------
    InputError
        A recipe names an unknown key, or a value is out of its choices or bounds.
    """
    typed = {name: typed[name] for name in (f.name for f in dataclasses.fields(kind)) if typed.get(name) is not None}
    said = recipe.load(stages, command)
    if kind is DatasetConfig and (typed.get("dataset") == "demo" or any(name in typed for name in CHOOSES_DATA)):
        said = {}
    hints = typing.get_type_hints(kind)
    return kind(**{name: _typed(kind, name, hints[name], value) for name, value in {**said, **typed}.items()})


def _typed(kind: type[Config], name: str, hint: Any, value: Any) -> Any:
    """Return a recipe's value as the field's type.

    Raises
    ------
    InputError
        It is of another type.
    """
    if isinstance(hint, types.GenericAlias):
        return Names().convert(value, None, None)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise InputError(f"{name} = {value!r} is no {hint.__name__}", where=kind.__name__,
                                hint="mend the recipe")
    return value
