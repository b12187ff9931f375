"""What can be chosen, once: frozen dataclasses that make the options, the recipe keys and the fingerprints."""

from __future__ import annotations

import hashlib
import json
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from fercache.errors import InputError

MAX_THREADS = 256
PRECISIONS = ("float32", "bf16", "fp16")


def option(default: Any, help: str, *, choices: tuple[str, ...] = (), numbers: bool = True, low: float | None = None,
           high: float | None = None) -> Any:
    """Return a dataclass field that is also a command-line option and a recipe key.

    Parameters
    ----------
    numbers : whether the field changes numbers beyond float noise, that is, belongs to the fingerprint.
    low, high : inclusive bounds of a number.
    """
    return field(default=default, metadata={"help": help, "choices": choices, "numbers": numbers, "low": low,
                                            "high": high})


def digest(value: Any) -> str:
    """Return the sha256 (hex) of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Config:
    """A set of choices, checked when it is made."""

    def __post_init__(self) -> None:
        for entry in fields(self):
            _check(type(self).__name__, entry.name, getattr(self, entry.name), entry.metadata)

    def settings(self) -> dict[str, Any]:
        """Return the choices that change numbers, as JSON values."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.metadata.get("numbers", True)}

    def fingerprint(self, **more: Any) -> str:
        """Return the sha256 (hex) over every choice that changes numbers, and over `more` (JSON values)."""
        return digest({**self.settings(), **more})


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _check(owner: str, name: str, value: Any, meta: Any) -> None:
    """Refuse a value outside the field's choices or bounds."""
    choices, low, high = (meta.get(key) for key in ("choices", "low", "high"))
    for one in value if isinstance(value, tuple) else (value,):
        if choices and one not in choices:
            raise InputError(f"{name} = {one!r} is not one of {', '.join(choices)}", where=owner)
        if low is not None and not low <= one:
            raise InputError(f"{name} = {one!r} is below {low}", where=owner)
        if high is not None and not one <= high:
            raise InputError(f"{name} = {one!r} is above {high}", where=owner)


def default_of(entry: Any) -> Any:
    """Return a dataclass field's default."""
    return None if entry.default is MISSING else entry.default


@dataclass(frozen=True, kw_only=True)
class DatasetConfig(Config):
    """Where the clips and labels are (`stages/dataset.toml`)."""

    dataset: str = option("demo", "Which layout: demo, affwild2, table.", choices=("demo", "affwild2", "table"))
    root: str = option("", "Folder of a known layout (Aff-Wild2).", numbers=False)
    clips: str = option("", "Table clip,path[,label][,subject][,group][,split], or a folder of clips.", numbers=False)
    labels: str = option("", "Per-frame labels: a table clip,frame,label or a folder of text files.", numbers=False)
    classes: tuple[str, ...] = option((), "Class names in order, where labels are numbers without names.")
    edition: str = option("", "Aff-Wild2 annotation folder to use, where the root holds several (e.g. 6th_ABAW).")
    name: str = option("", "Name of this data set in the cache (default: made from the layout and the path).",
                       numbers=False)


@dataclass(frozen=True, kw_only=True)
class ExtractConfig(Config):
    """Stage one (`stages/extract.toml`)."""

    weights: str = option("casia-webface", "casia-webface, vggface2, PATH (.safetensors, .pt) or onnx:PATH.")
    taps: tuple[str, ...] = option(("embedding", "block8", "repeat_2", "repeat_1-3x3"),
                                   "What is kept of the CNN: BLOCK (mean), BLOCK-3x3 (grid) or BLOCK-map.")
    precision: str = option("float32", "Arithmetic of the CNN.", choices=PRECISIONS)
    faces: str = option("auto", "mtcnn finds them; cropped takes each picture as a face; auto: by the clip's kind.",
                        choices=("auto", "mtcnn", "cropped"))
    min_face_px: int = option(40, "Smallest face looked for, in pixels of the frame.", low=10, high=4096)
    min_score: float = option(0.9, "Detections under this score are no face.", low=0, high=1)
    margin: float = option(0.0, "Room around a box, as a share of its longer side.", low=0, high=2)
    damaged: str = option("fail", "A video that ends before its stated length: fail the clip, or keep what decodes.",
                          choices=("fail", "keep"))
    crop_fps: float = option(30.0, "Frames a second of crop folders, which have no clock.", low=1e-3, high=1e6)
    device: str = option("auto", "auto, cpu, cuda or cuda:N.", numbers=False)
    threads: int = option(0, "CPU threads (0: all cores).", numbers=False, low=0, high=MAX_THREADS)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """Stage two, a (`stages/train-heads.toml`)."""

    heads: tuple[str, ...] = option(("frame", "gru", "transformer"), "Which heads to train.",
                                    choices=("frame", "gru", "transformer"))
    taps: tuple[str, ...] = option(("block8", "repeat_2", "repeat_1-3x3"), "Which taps the heads see.")
    join: tuple[str, ...] = option((), "Stores of other features (`fercache import`) to join: NAME or path; all their "
                                   "taps are seen, or those that --taps names as NAME/tap.", numbers=False)
    folds: int = option(5, "Folds by group (fewer where there are fewer groups).", low=2, high=100)
    seed: int = option(0, "Seed of everything random.", low=0, high=2**31 - 1)
    device: str = option("auto", "auto, cpu, cuda or cuda:N.", numbers=False)
    threads: int = option(0, "CPU threads (0: all cores).", numbers=False, low=0, high=MAX_THREADS)


@dataclass(frozen=True, kw_only=True)
class StackConfig(Config):
    """Stage two, b (`stages/stack.toml`)."""

    final: str = option("auto", "What preds.csv holds: what won out of fold, or one of the columns.",
                        choices=("auto", "stack", "mean", "frame", "gru", "transformer"))
    seed: int = option(0, "Seed of everything random.", low=0, high=2**31 - 1)
    bootstrap: int = option(1000, "Draws of the bootstrap over groups.", low=0, high=1_000_000)
    threads: int = option(0, "CPU threads (0: all cores).", numbers=False, low=0, high=MAX_THREADS)
