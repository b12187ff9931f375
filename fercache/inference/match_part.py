"""New features must be made as those were that the heads learnt from: the settings to do so, and what differs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from fercache.backbones.weights import known_part
from fercache.config import ExtractConfig
from fercache.errors import InputError

log = logging.getLogger(__name__)


FREE = ("views", "view_policy", "taps", "crop_fps", "damaged", "people", "people_policy")
"""Settings that may differ: they do not change what one frame's features are (taps are looked at by themselves)."""
BY_THE_CLIPS = ("faces", "weights", "views")
"""Settings of the heads' store that are not simply taken over."""


def config_of(wanted: Mapping[str, Any], usual: ExtractConfig, typed: Mapping[str, Any]) -> ExtractConfig:
    """Return how stage one is to be run: as for the store that the heads learnt from, but for what was `typed`.

    Parameters
    ----------
    wanted : settings of that store.
    usual : gives the device, the threads, and the path of weights that are the user's own.

    Notes
    -----
    Views are for training: none are made. Whether faces are looked for follows from the clips, and is compared.
    """
    numbers = {entry.name for entry in fields(ExtractConfig) if entry.metadata["numbers"]}
    told = {name: tuple(value) if isinstance(value, list) else value for name, value in wanted.items()
            if name in numbers and name not in BY_THE_CLIPS}
    if wanted.get("backbone") in known_part.KNOWN:
        told["weights"] = wanted["backbone"]
    return replace(usual, **{**told, "faces": "auto", "views": 1, **typed})


def check(wanted: Mapping[str, Any], have: Mapping[str, Any], *, taps: Sequence[str], held: Sequence[str],
          where: Path, force: bool) -> tuple[str, ...]:
    """Return what differs between the features that the heads learnt from and those at hand.

    Parameters
    ----------
    wanted, have : settings of the two stores.
    taps : what the heads read; held : the taps at hand.
    where : folder of the heads.
    force : go on in spite of differences.

    Raises
    ------
    InputError
        Something differs and `force` is off, or a tap that the heads read is not there.
    """
    lacking = [tap for tap in taps if tap not in held]
    if lacking:
        raise InputError(f"the heads read the tap {lacking[0]}, the features at hand are {', '.join(held)}",
                         where=where, hint="leave --taps out: the heads' own are taken then; this cannot be forced")
    differ = differences(wanted, have)
    if differ and not force:
        raise InputError("the heads were trained on other features: " + "; ".join(differ), where=where,
                         hint="train heads on features that are made like these, or predict nevertheless with --force "
                              "(on another crop policy heads fell from F1 .384 to .214 in a published case)")
    for one in differ:
        log.warning("forced: %s", one)
    return differ


def differences(wanted: Mapping[str, Any], have: Mapping[str, Any]) -> tuple[str, ...]:
    """Return, in words, each setting that changes a frame's features and differs."""
    same_policy = wanted.get("faces") == have.get("faces")
    names = wanted.keys() | have.keys() if same_policy else wanted.keys() & have.keys()
    return tuple(f"{name} = {_short(wanted.get(name))} there, {_short(have.get(name))} here"
                 for name in sorted(names - set(FREE)) if wanted.get(name) != have.get(name))


def _short(value: Any) -> str:
    """Return a value for a message; of a hash the first digits."""
    text = str(value)
    return text[:12] if len(text) == 64 else text
