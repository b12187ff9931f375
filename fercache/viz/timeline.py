"""A picture a clip: the face, the truth, the prediction and the probabilities over time."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fercache import media
from fercache.data.base import Dataset, Trial
from fercache.errors import ClipError
from fercache.faces.crops import crop_face
from fercache.results.io import ClipSeries, each_clip, file_name
from fercache.results.io import classes as classes_of
from fercache.runtime import atomic_io
from fercache.store.clip import Clip
from fercache.store.layout import FRAME_TABLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes


# One colour a class, wherever classes are drawn.

COLOURS = ("#999999", "#d55e00", "#009e73", "#56b4e9", "#f0e442", "#0072b2", "#cc79a7", "#000000")
"""Okabe and Ito's palette, which colour-blind readers can tell apart; one colour a class, in order."""


FORMAT = 1
"""Raised whenever the code changes how a picture looks."""
OURS = "fercache"
"""The PNG text that says what a picture was drawn of."""
GAP = "#ffffff"
FACES = 12
FACE_PX = 96
MOST_POINTS = 2000
"""Points of time drawn; a longer clip is drawn as the mean of equal stretches, and says so."""


def draw_timelines(preds: Path, dataset: Dataset, store: Mapping[str, Clip], folder: Path) -> list[Path]:
    """Return the paths of one PNG a clip of `preds`, drawn into `folder`.

    Parameters
    ----------
    dataset : the trials of the store (`datasets.present`).

    Raises
    ------
    InputError
        `preds` is absent or no table of predictions.

    Notes
    -----
    Faces are decoded again through the stored boxes; no picture is kept anywhere else. A picture that was drawn of the
    same rows is left as it is.
    """
    classes = classes_of(preds)
    trials = {trial.name: trial for trial in dataset.trials}
    made = []
    for name, series in each_clip(preds):
        clip = store[name] if name in trials and name in store else None
        path = folder / file_name(name, ".png")
        drawn_of = series.digest([FORMAT, name, classes, clip.manifest.arrays[FRAME_TABLE].digest if clip else ""])
        if _drawn_of(path) != drawn_of:
            faces = _faces(trials[name], clip) if clip is not None else []
            atomic_io.write_bytes(path, _png(name, classes, series, faces, drawn_of))
        made.append(path)
    return made


def _drawn_of(path: Path) -> str:
    """Return the digest of what a picture was drawn of, as it stands in the picture; "" where there is none."""
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            return str(picture.info.get(OURS, ""))
    except (OSError, SyntaxError, ValueError):
        return ""


def _faces(trial: Trial, clip: Clip) -> list[tuple[float, NDArray[np.uint8]]]:
    """Return up to FACES pictures, (96, 96, 3), with their times; spread evenly over the frames with a face."""
    seen = np.flatnonzero(clip.frame_table["valid"] > 0)
    rows = seen[np.linspace(0, len(seen) - 1, min(FACES, len(seen))).round().astype(int)] if len(seen) else seen
    boxes = np.column_stack([clip.frame_table[side] for side in ("x1", "y1", "x2", "y2")])
    try:
        frames = media.open_source(trial.path, trial.kind, damaged="keep").pick(rows.tolist())
        return [(float(clip.frame_table["time_s"][f.index - 1]), crop_face(f.image, boxes[f.index - 1], FACE_PX))
                for f in frames if f.image is not None]
    except ClipError:  # the source has gone; the timeline is drawn without faces
        return []


def _png(name: str, classes: Sequence[str], series: ClipSeries, faces: list[tuple[float, NDArray[np.uint8]]],
         drawn_of: str) -> bytes:
    """Return the picture of one clip, with `drawn_of` among its texts."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # a second that a picture drawn before saves
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    strip, truth, prediction, lines = figure.subplots(4, 1, height_ratios=[2.2, .5, .5, 4])
    figure.suptitle(f"{_safe(name)}: {len(series.time_s)} frames, {int(series.valid.sum())} with a face", fontsize=11)
    step = max(1, -(-len(series.time_s) // MOST_POINTS))
    _strip(strip, faces)
    _bar(truth, series, np.where(series.label < 0, len(classes), series.label), "truth", len(classes))
    _bar(prediction, series, series.label_pred, "prediction", len(classes))
    _lines(lines, classes, series, step)
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


def _bar(axes: Axes, series: ClipSeries, value: NDArray[np.int64], title: str, classes: int) -> None:
    """Draw one class a frame as a coloured strip; white where it is unknown."""
    from matplotlib.colors import ListedColormap

    colours = ListedColormap([*_palette(classes), GAP])
    axes.imshow(value[None], aspect="auto", cmap=colours, vmin=0, vmax=classes, interpolation="nearest",
                extent=(*_span(series), 0, 1))
    axes.set_yticks([])
    axes.set_xticks([])
    axes.set_ylabel(title, rotation=0, ha="right", va="center", fontsize=9)


def _lines(axes: Axes, classes: Sequence[str], series: ClipSeries, step: int) -> None:
    """Draw the probabilities over time; stretches without a face are hatched."""
    from matplotlib.patches import Patch

    starts = np.arange(0, len(series.time_s), step)
    means = np.add.reduceat(series.probs, starts) / np.diff(np.append(starts, len(series.time_s)))[:, None]
    colours = _palette(len(classes))
    for place, label in enumerate(classes):
        axes.plot(series.time_s[starts], means[:, place], color=colours[place], lw=1.8, label=label)
    axes.fill_between(series.time_s, 0, 1, where=~series.valid, facecolor="none", edgecolor="#bbbbbb", hatch="///",
                      lw=0,
                      step="mid")
    axes.set(xlim=_span(series), ylim=(0, 1), ylabel="probability", xlabel="time in seconds" + (
        f" (lines: means of {step} frames)" if step > 1 else ""))
    handles: list[Any] = [*axes.get_lines(), Patch(facecolor="none", edgecolor="#bbbbbb", hatch="///", label="no face")]
    axes.legend(handles=handles, ncols=len(handles), fontsize=8, loc="upper center", bbox_to_anchor=(.5, -.16),
                frameon=False)


def _span(series: ClipSeries) -> tuple[float, float]:
    """Return the first and last second of the picture; a single frame gets some room."""
    return float(series.time_s[0]), float(max(series.time_s[-1], series.time_s[0] + .04))


def _palette(classes: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(classes)]
