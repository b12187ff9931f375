"""One picture per clip: faces, labels, predictions and probabilities over time."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fercache.data.base import Dataset, Trial
from fercache.errors import ClipError
from fercache.extraction.thumbnails import stored_faces
from fercache.results.io import ClipPredictions, PredictionsFile, file_name
from fercache.runtime import atomic_io
from fercache.store.clip import Clip
from fercache.store.layout import FRAME_TABLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#999999", "#d55e00", "#009e73", "#56b4e9", "#f0e442", "#0072b2", "#cc79a7", "#000000")
"""Okabe and Ito's palette, which color-blind readers can distinguish; one color per class, in order."""
# Increment this when the code changes how a picture looks: pictures of an older format are drawn again.
FORMAT = 1
DIGEST_KEY = "fercache"  # PNG text entry with the digest of the rows that a picture shows
GAP = "#ffffff"
FACES = 12
FACE_PX = 96
MOST_POINTS = 2000  # points of time drawn; of a longer clip, means over equal intervals


def draw_timelines(preds: Path, dataset: Dataset, store: Mapping[str, Clip], folder: Path) -> list[Path]:
    """Return the paths of one PNG per clip of `preds`, drawn into `folder`.

    `dataset`: the trials of the store (`data.base.stored_trials`). Raises InputError if `preds` is missing or not a
    table of predictions.
    """
    # Faces are decoded again from the source through the stored boxes. A picture that shows the same rows is not drawn
    # again.
    table = PredictionsFile(preds)
    trials = {trial.name: trial for trial in dataset.trials}
    paths = []
    for series in table.clips():
        name = series.name
        clip = store[name] if name in trials and name in store else None
        path = folder / file_name(name, ".png")
        digest = series.digest([FORMAT, name, table.classes, clip.manifest.arrays[FRAME_TABLE].digest if clip else ""])
        if _drawn_digest(path) != digest:
            figure = draw_clip(name, table.classes, series, trials.get(name), clip)
            atomic_io.write_bytes(path, _png(figure, digest))
        paths.append(path)
    return paths


def _drawn_digest(path: Path) -> str:
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            return str(picture.info.get(DIGEST_KEY, ""))
    except (OSError, SyntaxError, ValueError):
        return ""


def _faces(trial: Trial, clip: Clip) -> list[tuple[float, NDArray[np.uint8]]]:
    """Return up to FACES pictures, (96, 96, 3), with their times; spread evenly over the frames with a face."""
    seen = np.flatnonzero(clip.frame_table["valid"] > 0)
    rows = seen[np.linspace(0, len(seen) - 1, min(FACES, len(seen))).round().astype(int)] if len(seen) else seen
    try:
        return [(float(clip.frame_table["time_s"][row]), face)
                for row, face in stored_faces(trial, clip, rows, FACE_PX)]
    except ClipError:  # the source has gone; the timeline is drawn without faces
        return []


def draw_clip(name: str, classes: Sequence[str], series: ClipPredictions, trial: Trial | None,
              clip: Clip | None) -> Figure:
    """Return the timeline of one clip. `trial`, `clip`: source and boxes of the faces; without them none are drawn."""
    # Imported here: matplotlib takes a second to load, which a run with nothing to draw saves.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Not through pyplot, which holds every figure until it is closed and may look for a display.
    figure = Figure(figsize=(11, 5.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    faces = _faces(trial, clip) if trial is not None and clip is not None else []
    strip, truth, prediction, lines = figure.subplots(4, 1, height_ratios=[2.2, .5, .5, 4])
    safe_name = name.replace("$", r"\$")  # a dollar sign would start a formula
    figure.suptitle(f"{safe_name}: {len(series.time_s)} frames, {int(series.valid.sum())} with a face", fontsize=11)
    step = max(1, -(-len(series.time_s) // MOST_POINTS))
    _strip(strip, faces)
    _bar(truth, series, np.where(series.label < 0, len(classes), series.label), "truth", len(classes))
    _bar(prediction, series, series.label_pred, "prediction", len(classes))
    _lines(lines, classes, series, step)
    # A notebook shows figures of pyplot only, and any object with this method.
    setattr(figure, "_repr_png_", lambda: _png(figure))  # noqa: B010  (matplotlib's type has no such attribute)
    return figure


def _png(figure: Figure, digest: str | None = None) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None, DIGEST_KEY: digest})
    return out.getvalue()


def _strip(axes: Axes, faces: list[tuple[float, NDArray[np.uint8]]]) -> None:
    axes.axis("off")
    for i, (time_s, face) in enumerate(faces):
        inset = axes.inset_axes((i / FACES, 0, 1 / FACES, 1))
        inset.imshow(face)
        inset.set_title(f"{time_s:.1f} s", fontsize=8, pad=2)
        inset.axis("off")
    if not faces:
        axes.text(.5, .5, "no face was found in this clip", ha="center", va="center", transform=axes.transAxes)


def _bar(axes: Axes, series: ClipPredictions, value: NDArray[np.int64], title: str, classes: int) -> None:
    """Draw the class of each frame as a colored strip; unknown ones are white."""
    from matplotlib.colors import ListedColormap

    colors = ListedColormap([*_palette(classes), GAP])
    # "nearest": a blend of two neighbors would show the color of a third class.
    axes.imshow(value[None], aspect="auto", cmap=colors, vmin=0, vmax=classes, interpolation="nearest",
                extent=(*_span(series), 0, 1))
    axes.set_yticks([])
    axes.set_xticks([])
    axes.set_ylabel(title, rotation=0, ha="right", va="center", fontsize=9)


def _lines(axes: Axes, classes: Sequence[str], series: ClipPredictions, step: int) -> None:
    """Draw the probabilities over time; intervals without a face are hatched."""
    from matplotlib.patches import Patch

    starts = np.arange(0, len(series.time_s), step)
    means = np.add.reduceat(series.probs, starts) / np.diff(np.append(starts, len(series.time_s)))[:, None]
    for i, (label, color) in enumerate(zip(classes, _palette(len(classes)), strict=True)):
        axes.plot(series.time_s[starts], means[:, i], color=color, lw=1.8, label=label)
    axes.fill_between(series.time_s, 0, 1, where=~series.valid, facecolor="none", edgecolor="#bbbbbb", hatch="///",
                      lw=0, step="mid")
    axes.set(xlim=_span(series), ylim=(0, 1), ylabel="probability", xlabel="time in seconds" + (
        f" (lines: means of {step} frames)" if step > 1 else ""))
    handles: list[Any] = [*axes.get_lines(), Patch(facecolor="none", edgecolor="#bbbbbb", hatch="///", label="no face")]
    axes.legend(handles=handles, ncols=len(handles), fontsize=8, loc="upper center", bbox_to_anchor=(.5, -.16),
                frameon=False)


def _span(series: ClipPredictions) -> tuple[float, float]:
    """Return the first and last second of the picture; a single frame gets some room."""
    return float(series.time_s[0]), float(max(series.time_s[-1], series.time_s[0] + .04))


def _palette(classes: int) -> list[str]:
    return [COLORS[i % len(COLORS)] for i in range(classes)]
