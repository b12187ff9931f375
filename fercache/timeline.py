"""A picture a clip: the face, the truth, the prediction and the probabilities over time."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fercache import durable, media
from fercache.config import digest
from fercache.crops import crop
from fercache.datasets import Dataset, Trial
from fercache.errors import ClipError, InputError
from fercache.store import CLOCK_NAME, Clip

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMAT = 1
"""Raised whenever the code changes how a picture looks."""
OURS = "fercache"
"""The PNG text that says what a picture was drawn of."""
COLOURS = ("#999999", "#d55e00", "#009e73", "#56b4e9", "#f0e442", "#0072b2", "#cc79a7", "#000000")
"""Okabe and Ito's palette, which colour-blind readers can tell apart; one colour a class, in order."""
GAP = "#ffffff"
FACES = 12
FACE_PX = 96
MOST_POINTS = 2000
"""Points of time drawn; a longer clip is drawn as the mean of equal stretches, and says so."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """The rows of one clip in `preds.csv`.

    Attributes
    ----------
    time_s, valid : (T,); label : (T,) int, -1 unknown; said : (T,) int; shares : (T, C).
    """

    time_s: NDArray[np.float64]
    valid: NDArray[np.bool_]
    label: NDArray[np.int64]
    said: NDArray[np.int64]
    shares: NDArray[np.float64]

    def digest(self, more: Sequence[Any]) -> str:
        """Return the sha256 (hex) over all rows and over `more` (JSON values)."""
        rows = [hashlib.sha256(np.ascontiguousarray(column).data).hexdigest()
                for column in (self.time_s, self.valid, self.label, self.said, self.shares)]
        return digest([rows, list(more)])


def draw(preds: Path, dataset: Dataset, store: Mapping[str, Clip], folder: Path) -> list[Path]:
    """Return the paths of one PNG a clip of `preds`, drawn into `folder`.

    Raises
    ------
    InputError
        `preds` is absent or no table of predictions.

    Notes
    -----
    Faces are decoded again through the stored boxes; no picture is kept anywhere else. A picture that was drawn of the
    same rows is left as it is.
    """
    classes, clips = read(preds)
    trials = {trial.name: trial for trial in dataset.trials}
    made = []
    for name, told in clips.items():
        clip = store[name] if name in trials and name in store else None
        path = folder / _file(name)
        drawn_of = told.digest([FORMAT, name, classes, clip.mark.arrays[CLOCK_NAME].digest if clip else ""])
        if _drawn_of(path) != drawn_of:
            faces = _faces(trials[name], clip) if clip is not None else []
            durable.write_bytes(path, _png(name, classes, told, faces, drawn_of))
        made.append(path)
    return made


def _file(name: str) -> str:
    """Return the file name of a clip's picture: its name where that is plain, else with a digest, so that none meet."""
    plain = re.sub(r"[^\w.-]", "_", name)[:150]
    return f"{plain}.png" if plain == name else f"{plain}-{digest(name)[:8]}.png"


def _drawn_of(path: Path) -> str:
    """Return the digest of what a picture was drawn of, as it stands in the picture; "" where there is none."""
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            return str(picture.info.get(OURS, ""))
    except (OSError, SyntaxError, ValueError):
        return ""


def read(preds: Path) -> tuple[tuple[str, ...], dict[str, Told]]:
    """Return the classes, and the rows of each clip, of a `preds.csv` or `preds.csv.gz`."""
    if not preds.is_file():
        raise InputError("no such predictions", where=preds, hint="run `fercache stack --out preds.csv` first")
    try:
        data = gzip.decompress(preds.read_bytes()) if preds.suffix == ".gz" else preds.read_bytes()
        rows = csv.DictReader(io.StringIO(data.decode(), newline=""))
        columns = set(rows.fieldnames or ())
    except (UnicodeDecodeError, EOFError, OSError, csv.Error) as error:
        raise InputError(f"not readable ({error})", where=preds) from error
    classes = tuple(column[2:] for column in rows.fieldnames or () if column.startswith("p_"))
    if not classes or not {"clip", "time_s", "valid", "label", "prediction"} <= columns:
        raise InputError("no table of predictions", where=preds, hint="give a .csv or .csv.gz that `stack` wrote")
    clips: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        clips.setdefault(row["clip"], []).append(row)
    return classes, {name: _told(found, classes) for name, found in clips.items()}


def _told(rows: Sequence[dict[str, str]], classes: Sequence[str]) -> Told:
    return Told(time_s=np.array([float(r["time_s"]) for r in rows]),
                valid=np.array([r["valid"] == "1" for r in rows]),
                label=np.array([int(r["label"] or -1) for r in rows]),
                said=np.array([int(r["prediction"]) for r in rows]),
                shares=np.array([[float(r["p_" + name]) for name in classes] for r in rows]))


def _faces(trial: Trial, clip: Clip) -> list[tuple[float, NDArray[np.uint8]]]:
    """Return up to FACES pictures, (96, 96, 3), with their times; spread evenly over the frames with a face."""
    seen = np.flatnonzero(clip.clock["valid"] > 0)
    rows = seen[np.linspace(0, len(seen) - 1, min(FACES, len(seen))).round().astype(int)] if len(seen) else seen
    boxes = np.column_stack([clip.clock[side] for side in ("x1", "y1", "x2", "y2")])
    try:
        frames = media.open_source(trial.path, trial.kind, damaged="keep").pick(rows.tolist())
        return [(float(clip.clock["time_s"][f.index - 1]), crop(f.image, boxes[f.index - 1], FACE_PX))
                for f in frames if f.image is not None]
    except ClipError:  # the source has gone; the timeline is drawn without faces
        return []


def _png(name: str, classes: Sequence[str], told: Told, faces: list[tuple[float, NDArray[np.uint8]]],
         drawn_of: str) -> bytes:
    """Return the picture of one clip, with `drawn_of` among its texts."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # a second that a picture drawn before saves
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    strip, truth, said, shares = figure.subplots(4, 1, height_ratios=[2.2, .5, .5, 4])
    figure.suptitle(f"{_safe(name)}: {len(told.time_s)} frames, {int(told.valid.sum())} with a face", fontsize=11)
    step = max(1, -(-len(told.time_s) // MOST_POINTS))
    _strip(strip, faces)
    _bar(truth, told, np.where(told.label < 0, len(classes), told.label), "truth", len(classes))
    _bar(said, told, told.said, "prediction", len(classes))
    _lines(shares, classes, told, step)
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None, OURS: drawn_of})
    return out.getvalue()


def _safe(name: str) -> str:
    """Return a clip's name as plain text: a dollar sign would start a formula."""
    return name.replace("$", r"\$")


def _strip(axes: Axes, faces: list[tuple[float, NDArray[np.uint8]]]) -> None:
    """Draw the faces in a row, each over its time."""
    axes.axis("off")
    for place, (time_s, face) in enumerate(faces):
        inset = axes.inset_axes((place / FACES, 0, 1 / FACES, 1))
        inset.imshow(face)
        inset.set_title(f"{time_s:.1f} s", fontsize=8, pad=2)
        inset.axis("off")
    if not faces:
        axes.text(.5, .5, "no face was seen in this clip", ha="center", va="center", transform=axes.transAxes)


def _bar(axes: Axes, told: Told, value: NDArray[np.int64], title: str, classes: int) -> None:
    """Draw one class a frame as a coloured strip; white where it is unknown."""
    from matplotlib.colors import ListedColormap

    colours = ListedColormap([*_palette(classes), GAP])
    axes.imshow(value[None], aspect="auto", cmap=colours, vmin=0, vmax=classes, interpolation="nearest",
                extent=(*_span(told), 0, 1))
    axes.set_yticks([])
    axes.set_xticks([])
    axes.set_ylabel(title, rotation=0, ha="right", va="center", fontsize=9)


def _lines(axes: Axes, classes: Sequence[str], told: Told, step: int) -> None:
    """Draw the probabilities over time; stretches without a face are hatched."""
    from matplotlib.patches import Patch

    starts = np.arange(0, len(told.time_s), step)
    means = np.add.reduceat(told.shares, starts) / np.diff(np.append(starts, len(told.time_s)))[:, None]
    colours = _palette(len(classes))
    for place, label in enumerate(classes):
        axes.plot(told.time_s[starts], means[:, place], color=colours[place], lw=1.8, label=label)
    axes.fill_between(told.time_s, 0, 1, where=~told.valid, facecolor="none", edgecolor="#bbbbbb", hatch="///", lw=0,
                      step="mid")
    axes.set(xlim=_span(told), ylim=(0, 1), ylabel="probability", xlabel="time in seconds" + (
        f" (lines: means of {step} frames)" if step > 1 else ""))
    handles: list[Any] = [*axes.get_lines(), Patch(facecolor="none", edgecolor="#bbbbbb", hatch="///", label="no face")]
    axes.legend(handles=handles, ncols=len(handles), fontsize=8, loc="upper center", bbox_to_anchor=(.5, -.16),
                frameon=False)


def _span(told: Told) -> tuple[float, float]:
    """Return the first and last second of the picture; a single frame gets some room."""
    return float(told.time_s[0]), float(max(told.time_s[-1], told.time_s[0] + .04))


def _palette(classes: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(classes)]
