"""Which changes of the recipe are tried: rows as data, ``key=value``."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from fercache.config import TrainConfig
from fercache.errors import InputError

ROWS = ("taps=embedding", "taps=block8", "taps=repeat_2", "taps=block8+repeat_2", "taps=block8+repeat_2+repeat_1-3x3")
"""Changes that are always tried; beside them every other choice of each switch that has a list of choices."""
STEPS = {"window_s": ("1", "2", "4", "8", "16"), "step_s": ("0", "0.1", "0.3"), "members": ("1",),
         "label_smoothing": ("0", "0.1"), "mixup": ("0.2",), "noise": ("0.2",), "hide_s": ("0.5",), "ema": ("0.99",),
         "dropout": ("0.2", "0.5")}
"""Values tried of switches that are numbers."""
NO_ROW = ("heads", "taps", "folds", "seed", "precision", "level", "tail", "refit")
"""Choices that the table is not about, or that `ROWS` tries."""


def offered(base: TrainConfig) -> tuple[str, ...]:
    """Return the rows that are tried where none is named: taps, and each other choice of every switch."""
    rows = list(ROWS)
    for entry in fields(TrainConfig):
        if entry.name in NO_ROW or not entry.metadata["numbers"]:
            continue
        values = entry.metadata["choices"] if isinstance(getattr(base, entry.name), str) else STEPS.get(entry.name, ())
        rows += [f"{entry.name}={value}" for value in values]
    return tuple(rows)


def parse(rows: Sequence[str], base: TrainConfig) -> dict[str, dict[str, Any]]:
    """Return name -> changed keys of `base` of each row; rows that change nothing are left out.

    Parameters
    ----------
    rows : ``key=value``, several with semicolons between them; a list has plus signs: ``taps=block8+repeat_2``.

    Raises
    ------
    InputError
        No such key, or no such value.
    """
    found = {}
    for row in rows:
        changed = dict(_pair(part.strip(), row) for part in row.split(";"))
        if replace(base, **changed).fingerprint() != base.fingerprint():
            found[row] = changed
    return found


def idle(changed: dict[str, Any], base: TrainConfig) -> bool:
    """Return whether a change leaves every head as it is: it says what the heads do anyway, or speaks to others."""
    from fercache.training.choices_part import (
        OWN,
        TEMPORAL,
        settings_for,  # torch: seconds that a wrong call saves
    )

    if not changed.keys() <= OWN.keys() | TEMPORAL.keys():
        return False
    usual, other = ([settings_for(head, config, "cpu", evidence=evidence, fixed=False) for head in base.heads
                     for evidence in (True, False)] for config in (base, replace(base, **changed)))
    return usual == other


def _pair(text: str, row: str) -> tuple[str, Any]:
    """Return key and value of ``key=value``."""
    key, equals, value = text.partition("=")
    hints = typing.get_type_hints(TrainConfig)
    if not equals or key not in hints:
        near = difflib.get_close_matches(key, hints, 1)
        raise InputError(f"{text!r} changes no key of train-heads", where=f"row {row}",
                         hint=f"did you mean {near[0]}=..?" if near else f"known keys: {', '.join(hints)}")
    try:
        return key, _value(hints[key], value)
    except ValueError as error:
        raise InputError(f"{key} cannot be {value!r}", where=f"row {row}", hint="a row is key=value") from error


def _value(hint: Any, text: str) -> Any:
    """Return a text as a value of the field's type."""
    if typing.get_origin(hint) is tuple:
        return tuple(text.split("+"))
    if hint is bool:
        return bool(("false", "true").index(text.casefold()))  # another word is a ValueError
    return hint(text)
