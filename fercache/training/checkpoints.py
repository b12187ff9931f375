"""A trained head on disk: its weights, and the JSON that describes it and marks it as complete."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fercache.backbones.taps import TapSlice
from fercache.errors import StoreError
from fercache.heads.base import Head, build_head
from fercache.heads.registry import HeadSettings
from fercache.runtime import atomic_io

RETRAIN_HINT = "run `fercache train-heads` again: finished heads are kept, missing ones are trained"


@dataclass(frozen=True, kw_only=True)
class RunKey:
    """One training: a head, the fold that it is not trained on, and the number of the ensemble member."""

    head: str
    fold: int
    member: int

    def path(self, folder: Path) -> Path:
        """Return the JSON that marks the training as finished."""
        return folder / f"{self.head}-fold{self.fold}-{self.member}.json"


@dataclass(frozen=True, kw_only=True)
class TrainedHead:
    """A loaded head with its settings and the content of its JSON."""

    head: Head
    settings: HeadSettings
    record: dict[str, Any]


def save_checkpoint(head: Head, record: dict[str, Any], path: Path) -> None:
    """Write a head's weights, then the JSON at `path`."""
    with atomic_io.replacing(path.with_suffix(".safetensors")) as temporary:
        save_file({n: v.detach().cpu().contiguous() for n, v in head.state_dict().items()}, temporary)
    # The JSON is last: a kill between the two leaves weights that the next run trains again.
    atomic_io.write_json(path, record)


def load_checkpoint(path: Path, device: str = "cpu") -> TrainedHead:
    """Return the head whose JSON is at `path`, ready to predict.

    Raises
    ------
    StoreError
        Its weights are missing or damaged.
    """
    record = atomic_io.read_json(path)
    settings = HeadSettings(**record["settings"])
    net = build_head(record["head"], layout_of(record["reads"]), len(record["classes"]), settings)
    weights = path.with_suffix(".safetensors")
    try:
        net.load_state_dict(load_file(weights))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise StoreError(f"a head's weights are not readable ({str(error).partition(chr(10))[0]})", where=weights,
                         hint=f"remove {path.name} beside it and {RETRAIN_HINT}") from error
    return TrainedHead(head=net.to(device).eval(), settings=settings, record=record)


def layout_of(taps: list[dict[str, Any]]) -> tuple[TapSlice, ...]:
    """Return the taps that a head's JSON names."""
    return tuple(TapSlice(**{**part, "shape": tuple(part["shape"])}) for part in taps)
