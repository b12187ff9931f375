"""Trained heads out of their folder, and what they say of trials that they have never seen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file

from fercache import durable
from fercache.errors import InputError, StoreError
from fercache.heads import Head, HeadSettings, build
from fercache.taps import TapSlice
from fercache.train_heads.fit import predict
from fercache.windows import Features

AGAIN = "run `fercache train-heads` again: what is there is kept, what is missing is trained"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a folder of trained heads holds.

    Attributes
    ----------
    heads : names, in the order they were trained in; `records` has the JSON of each of their fits.
    layout : the taps side by side that a row of features must be.
    store : settings of the embedding store they were trained on.
    """

    folder: Path
    heads: tuple[str, ...]
    classes: tuple[str, ...]
    layout: tuple[TapSlice, ...]
    store: dict[str, Any]
    records: dict[str, tuple[dict[str, Any], ...]]

    @property
    def taps(self) -> tuple[str, ...]:
        """The taps to preload, in order."""
        return tuple(part.tap for part in self.layout)


def trained(folder: Path) -> Trained:
    """Return what the folder holds.

    Raises
    ------
    InputError
        There are no trained heads, or not all that were asked for.
    """
    found = [durable.read_json(path) | {"file": path.name} for path in sorted(folder.glob("*-fold*.json"))]
    if not found:
        raise InputError("no trained heads", where=folder, hint="run `fercache train-heads` first")
    asked: list[str] = found[0]["heads"]
    records = {head: tuple(r for r in found if r["head"] == head) for head in asked}
    short = [head for head, fits in records.items() if len(fits) < found[0]["fits"]]
    if short:
        raise InputError(f"the training of {', '.join(short)} was not finished", where=folder, hint=AGAIN)
    return Trained(folder=folder, heads=tuple(asked), classes=tuple(found[0]["classes"]), store=found[0]["store"],
                   layout=layout_of(found[0]), records=records)


def layout_of(record: dict[str, Any]) -> tuple[TapSlice, ...]:
    """Return the taps that a head's JSON names."""
    return tuple(TapSlice(**{**part, "shape": tuple(part["shape"])}) for part in record["taps"])


def load_head(path: Path, record: dict[str, Any], device: str = "cpu") -> Head:
    """Return the head whose JSON at `path` says `record`, ready to predict.

    Raises
    ------
    StoreError
        Its weights are missing or damaged.
    """
    net = build(record["head"], layout_of(record), len(record["classes"]), HeadSettings(**record["settings"]))
    weights = path.with_suffix(".safetensors")
    try:
        net.load_state_dict(load_file(weights))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise StoreError(f"a head's weights are not readable ({str(error).partition(chr(10))[0]})", where=weights,
                         hint=f"remove {path.name} beside it and {AGAIN}") from error
    return net.to(device).eval()


def speak(heads: Trained | Path, features: Features, device: str = "cpu") -> dict[str, NDArray[np.float32]]:
    """Return head -> (R, C) log-probabilities of every row of `features`, the mean over the folds' models.

    Parameters
    ----------
    heads : what `trained` found, or its folder.
    features : of new trials, preloaded with the taps of the heads in the same order.

    Raises
    ------
    InputError
        The features are other taps than the heads were trained on.
    """
    known = heads if isinstance(heads, Trained) else trained(heads)
    if features.layout != known.layout:
        had = ", ".join(part.tap for part in features.layout)
        raise InputError(f"the heads were trained on {', '.join(known.taps)}, the features are {had}",
                         where=known.folder, hint="preload the taps that the heads name")
    return {head: _mean(known, head, features, device) for head in known.heads}


def _mean(known: Trained, head: str, features: Features, device: str) -> NDArray[np.float32]:
    everything = range(len(features.offsets) - 1)
    total = np.zeros((len(features.label), len(known.classes)), np.float32)
    for record in known.records[head]:
        net = load_head(known.folder / record["file"], record, device)
        said = predict(net, HeadSettings(**record["settings"]), features, everything, device)
        total += np.concatenate([said[trial] for trial in everything])
    return np.asarray(total / len(known.records[head]), np.float32)
