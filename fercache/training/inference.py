"""Trained heads out of their folder, and what they say of trials that they have never seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fercache.backbones.taps_part import TapSlice
from fercache.data.base import Trial
from fercache.errors import InputError
from fercache.runtime import atomic_io
from fercache.training import checkpoints, evidence_part
from fercache.training.checkpoints import Kept, Part
from fercache.training.data import Store, preload
from fercache.training.features_part import Features
from fercache.training.say_part import predict


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a folder of trained heads holds.

    Attributes
    ----------
    heads : the names that were asked for, in that order; `record` is the JSON of one of them.
    layout : the taps side by side that a row of features must be; `standardise` says how they must be read.
    store : settings of the embedding store they were trained on.
    folds, members : how often each head was trained.
    needs : the heads that are run: the frame head too where others read its evidence.
    """

    folder: Path
    heads: tuple[str, ...]
    classes: tuple[str, ...]
    layout: tuple[TapSlice, ...]
    standardise: str
    store: dict[str, Any]
    folds: int
    members: int
    needs: tuple[str, ...]
    record: dict[str, Any]

    @property
    def taps(self) -> tuple[str, ...]:
        """The taps to preload, in order."""
        return tuple(part.tap for part in self.layout)

    def preload(self, store: Store, trials: Sequence[Trial]) -> Features:
        """Return the features of new trials, read as those were that the heads learnt from."""
        return preload(store, trials, self.taps, standardise=self.standardise)


def trained(folder: Path) -> Trained:
    """Return what the folder holds.

    Raises
    ------
    InputError
        There are no trained heads, or not all that were asked for.
    """
    found = sorted(folder.glob("[!.]*-fold*.json"))
    if not found:
        raise InputError("no trained heads", where=folder, hint="run `fercache train-heads` first")
    said = atomic_io.read_json(found[0])
    asked = said["asked"]
    parts = [Part(head=h, fold=k, member=m) for h in asked["needs"] for k in range(asked["folds"])
             for m in range(asked["members"])]
    missing = [part.path(folder).name for part in parts if not part.path(folder).is_file()]
    if missing:
        raise InputError(f"the training was not finished ({missing[0]} and {len(missing) - 1} more are missing)",
                         where=folder, hint=checkpoints.AGAIN)
    return Trained(folder=folder, heads=tuple(asked["heads"]), needs=tuple(asked["needs"]), folds=asked["folds"],
                   members=asked["members"], classes=tuple(said["classes"]), layout=checkpoints.layout_of(said["taps"]),
                   standardise=said["standardise"], store=said["store"], record=said)


def speak(heads: Trained | Path, features: Features, device: str = "cpu") -> dict[str, NDArray[np.float32]]:
    """Return head -> (R, C) log-probabilities of every row of `features`, the mean over the folds' models.

    Parameters
    ----------
    heads : what `trained` found, or its folder.
    features : of new trials, as `Trained.preload` gives them.

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
    total = {head: np.zeros((len(features.label), len(known.classes)), np.float32) for head in known.heads}
    for fold in range(known.folds):
        frame: Features | None = None
        for head in sorted(known.needs, key=lambda name: name != "frame"):
            members = [checkpoints.load(Part(head=head, fold=fold, member=m).path(known.folder), device)
                       for m in range(known.members)]
            reads = frame if members[0].settings.evidence and frame is not None else features
            said = mean_of(members, reads, range(len(features.offsets) - 1), device)
            if head == "frame" and len(known.needs) > 1:
                frame = evidence_part.features_of(said, features)
            if head in total:
                total[head] += said / known.folds
    return total


def mean_of(members: Sequence[Kept], features: Features, trials: Sequence[int], device: str) -> NDArray[np.float32]:
    """Return (R, C): the members' mean log-probabilities of the trials' rows, 0 elsewhere."""
    total = np.zeros((len(features.label), len(members[0].record["classes"])), np.float32)
    for one in members:
        for trial, said in predict(one.head, one.settings, features, trials, device).items():
            total[features.rows(trial)] += said / len(members)
    return total
