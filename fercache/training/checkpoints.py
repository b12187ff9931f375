"""A trained head on disk: its weights, and the JSON record that describes it and marks it as complete.

Raises StoreError where one of them is missing, damaged or of another version.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fercache.errors import InputError, StoreError, first_line
from fercache.heads.registry import FRAME, STARTER_FOLDER
from fercache.oof import HeadRecord
from fercache.runtime import atomic_io

if TYPE_CHECKING:
    from fercache.heads.base import Head

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
    """A loaded head and its record."""

    head: Head
    record: HeadRecord


def save_checkpoint(head: Head, record: HeadRecord, path: Path) -> None:
    """Write a head's weights, then its record at `path`."""
    # Imported here because torch takes seconds to load, and records are read without it.
    from safetensors.torch import save_file

    with atomic_io.replacing(path.with_suffix(".safetensors")) as temporary:
        save_file({n: v.detach().cpu().contiguous() for n, v in head.state_dict().items()}, temporary)
    # The JSON is last: a kill between the two leaves weights that the next run trains again.
    atomic_io.write_json(path, record)


def load_record(path: Path) -> HeadRecord:
    """Return the record of a head."""
    try:
        return atomic_io.read_record(path, HeadRecord)
    except InputError as error:
        raise StoreError(f"not a readable head record: {error.what}", where=path,
                         hint=f"remove the folder {path.parent} and the logits of the same name, and {RETRAIN_HINT}"
                         ) from error


def record_files(folder: Path) -> list[Path]:
    """Return the records in a folder of heads; the heads of one training differ in head, fold and member only."""
    # A leading dot marks the temporary file of a writer that was killed.
    return sorted(folder.glob("[!.]*-fold*.json"))


def starter_files(folder: str) -> list[Path]:
    """Return the records of the frame heads in a folder of starter heads, "" for the one that is shipped."""
    place = Path(folder) if folder else STARTER_FOLDER
    files = [path for path in record_files(place) if load_record(path).head == FRAME]
    if not files:
        raise InputError("no frame head to begin with", where=place,
                         hint="name a folder of heads with --init-from, or use --init scratch")
    return files


def load_checkpoint(path: Path, device: str = "cpu") -> TrainedHead:
    """Return the head whose record is at `path`, ready to predict."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from fercache.heads.base import build_head

    record = load_record(path)
    net = build_head(record.head, record.input_taps, len(record.classes), record.settings)
    weights = path.with_suffix(".safetensors")
    try:
        net.load_state_dict(load_file(weights))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise StoreError(f"a head's weights are not readable ({first_line(error)})", where=weights,
                         hint=f"remove {path.name} beside it and {RETRAIN_HINT}") from error
    return TrainedHead(head=net.to(device).eval(), record=record)
