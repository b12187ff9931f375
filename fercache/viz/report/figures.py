"""The figures, made with plotly in colors that color-blind readers can distinguish; the page sets their theme."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike, NDArray

from fercache.metrics import Scores


@dataclass(frozen=True, kw_only=True)
class TableCell:
    """One cell of a table; `value` is the recorded number behind the text."""

    text: str
    value: float | int | None = None
    strong: bool = False


@dataclass(frozen=True, kw_only=True)
class TableBlock:
    """A table; `caption` explains how to read it, `name` is its id in the page."""

    name: str
    head: Sequence[str]
    rows: Sequence[Sequence[TableCell]]
    caption: str
    kind: str = "table"


@dataclass(frozen=True, kw_only=True)
class FigureBlock:
    """A plotly figure as JSON; `caption` explains how to read it."""

    name: str
    json: str
    caption: str
    height: int = 380
    kind: str = "figure"


@dataclass(frozen=True, kw_only=True)
class NoteBlock:
    """A sentence; if something is `missing`, it explains how to get it."""

    text: str
    missing: bool = False
    kind: str = "note"


Block = TableBlock | FigureBlock | NoteBlock


@dataclass(frozen=True, kw_only=True)
class ReportSection:
    """A part of the page."""

    name: str
    title: str
    blocks: Sequence[Block]


def cells(*values: Any) -> list[TableCell]:
    """Return a cell for each value: numbers keep their value, None is a dash."""
    row = []
    for value in values:
        if isinstance(value, TableCell):
            row.append(value)
        elif isinstance(value, bool) or not isinstance(value, int | float):
            row.append(TableCell(text="–" if value is None else str(value)))
        else:
            row.append(TableCell(text=f"{value:,}" if isinstance(value, int) else f"{value:.4f}", value=value))
    return row


def missing_note(what: str, how: str) -> NoteBlock:
    """Return the note about a missing record, and how to get it."""
    return NoteBlock(text=f"{what} {how}", missing=True)


BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#8a8a8a"
LIGHT_BLUE, PINK = "#56b4e9", "#cc79a7"
SERIES = (BLUE, ORANGE, GREEN, PINK, LIGHT_BLUE, GREY)
MARKS = ("circle", "diamond", "square", "triangle-up", "x", "star")
# Readable with and without color vision (Nunez, Anderton and Renslow 2018).
SCALE = "Cividis"
ROW_PX, FRAME_PX = 24, 150

plain = partial(escape, quote=False)  # plotly interprets some HTML tags


def figure(name: str, traces: Sequence[Any], caption: str, *, x: Mapping[str, Any], y: Mapping[str, Any],
           height: int = 380, **layout: Any) -> FigureBlock:
    """Return a figure with named axes. `x` and `y`: the axes; each has a ``title`` with its unit."""
    drawing = go.Figure(traces)
    legend = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}
    xaxis, yaxis = ({"automargin": True, "zeroline": False, **axis, "title": {"text": axis["title"], "standoff": 8}}
                    for axis in (x, y))
    drawing.update_layout(template="none", height=height, margin={"l": 8, "r": 8, "t": 30, "b": 8}, legend=legend,
                          xaxis=xaxis, yaxis=yaxis, **layout)
    return FigureBlock(name=name, json=str(drawing.to_json()), caption=caption, height=height)


def scores(name: str, split: Mapping[str, Scores], figure_name: str, title: str, final: str) -> FigureBlock:
    """Return each column's score as a dot with its interval, the best on top."""
    rows = [(column, one.figures[figure_name], *(one.intervals or {}).get(figure_name, (None, None)))
            for column, one in sorted(split.items(), key=lambda item: item[1].figures[figure_name])]
    colours = [ORANGE if column == final else BLUE for column, *_ in rows]
    # The final column has its own symbol too, for readers who cannot see the color.
    dots = _dots(rows, {"size": 11, "color": colours, "symbol": [MARKS[c == ORANGE] for c in colours]}, ".4f")
    return figure(name, [dots], f"Each dot is the {title} of a column; the orange diamond is the column in preds.csv. "
                  "Lines are 95 % intervals by bootstrap over groups (none: too few groups).",
                  x={"title": f"{title} (0 to 1)"}, y={"title": "column", "type": "category"},
                  height=FRAME_PX + ROW_PX * len(rows), showlegend=False)


def _dots(rows: Sequence[tuple[str, float, float | None, float | None]], marker: Mapping[str, Any],
          digits: str) -> go.Scatter:
    """Return a dot with its interval, None for none, of each (label, value, low, high); the last one is on top."""
    error = {"type": "data", "symmetric": False, "array": [0 if high is None else high - v for _, v, _, high in rows],
             "arrayminus": [0 if low is None else v - low for _, v, low, _ in rows]}
    return go.Scatter(x=[v for _, v, *_ in rows], y=[plain(label) for label, *_ in rows], mode="markers", error_x=error,
                      marker=marker, hovertemplate=f"%{{y}}: %{{x:{digits}}}<extra></extra>")


def confusion(name: str, matrix: NDArray[np.int64], classes: Sequence[str]) -> FigureBlock:
    """Return a confusion matrix: the fraction of each true class that is predicted as each class."""
    support = matrix.sum(1, keepdims=True)
    share = np.divide(matrix, support, out=np.full(matrix.shape, np.nan), where=support > 0)
    names = [plain(label) for label in classes]
    text = [["" if np.isnan(s) else f"{100 * s:.0f}" for s in row] for row in share]
    heat = go.Heatmap(z=share, x=names, y=names, text=text, customdata=matrix, texttemplate="%{text}", zmin=0, zmax=1,
                      colorscale=SCALE, xgap=1, ygap=1,
                      colorbar={"title": {"text": "fraction of row"}, "thickness": 12},
                      hovertemplate="truth %{y}, predicted %{x}: %{customdata} frames, %{z:.1%} of the row"
                                    "<extra></extra>")
    return figure(name, [heat], "Each row is a true class: a cell is the percentage of its frames that were predicted "
                  "as the column's class. The diagonal is correct; an empty row has no annotated frames.",
                  x={"title": "prediction (class)", "type": "category", "tickangle": -40, "constrain": "domain"},
                  y={"title": "truth (class)", "type": "category", "autorange": "reversed"},
                  height=max(360, 170 + 40 * len(classes)))


def per_class(name: str, f1: Mapping[str, float], support: Mapping[str, int]) -> FigureBlock:
    """Return the F1 of each class as bars, with its number of frames."""
    names = list(f1)[::-1]  # plotly draws the first category at the bottom
    bars = go.Bar(x=[f1[c] for c in names], y=[plain(c) for c in names], orientation="h", marker={"color": BLUE},
                  text=[f"{f1[c]:.3f} · {support[c]:,} frames" for c in names], textposition="outside",
                  cliponaxis=False, hovertemplate="%{y}: F1 %{x:.4f}<extra></extra>")
    return figure(name, [bars], "Beside each bar are the F1 and the number of annotated frames of the class; the F1 of "
                  "a class with few frames is uncertain.",
                  # The range leaves room for the text beside the longest bar.
                  x={"title": "F1 (0 to 1)", "range": [0, 1.32], "tickvals": [0, .2, .4, .6, .8, 1]},
                  y={"title": "class", "type": "category"}, height=FRAME_PX + ROW_PX * len(names), showlegend=False)


def reliability(name: str, bins: Mapping[str, NDArray[np.float64]], titles: Mapping[str, str]) -> FigureBlock:
    """Return the accuracy against the predicted probability."""
    traces: list[Any] = [go.Scatter(x=[0, 1], y=[0, 1], mode="lines", line={"dash": "dot", "color": GREY},
                                    name="perfectly calibrated", hoverinfo="skip")]
    for i, (split, (number, share, hit)) in enumerate(bins.items()):
        filled = number > 0
        # The square root makes the area of a point, not its width, grow with its frames.
        sizes = [round(6 + 10 * float(part) ** .5, 1) for part in number[filled] / number.max()]
        traces.append(go.Scatter(x=share[filled] / number[filled], y=hit[filled] / number[filled],
                                 mode="lines+markers", name=titles.get(split, split), customdata=number[filled],
                                 line={"color": SERIES[i % len(SERIES)]},
                                 marker={"symbol": MARKS[i % len(MARKS)], "size": sizes},
                                 hovertemplate="probability %{x:.2f}: correct in %{y:.1%} of %{customdata:,} frames"
                                               "<extra></extra>"))
    return figure(name, traces, "Points below the dotted line are overconfident, points above it underconfident; "
                  "larger points stand for more frames.",
                  x={"title": "probability of the predicted class (0 to 1)", "range": [0, 1.02]},
                  y={"title": "fraction of correct frames", "range": [0, 1.02]})


def curve(name: str, width_s: ArrayLike, score: ArrayLike, metric: str, frames: int) -> FigureBlock:
    """Return the score against the half-width of smoothing."""
    x = np.asarray(width_s, float)
    # Equal steps on the axis: on a linear one the small widths would lie on top of each other.
    line = go.Scatter(x=np.arange(len(x)), y=np.asarray(score, float), mode="lines+markers", line={"color": BLUE},
                      marker={"size": 8}, customdata=x, hovertemplate="±%{customdata} s: %{y:.4f}<extra></extra>")
    return figure(name, [line], "Score of the mean of the heads, averaged over so many seconds before and after each "
                  f"frame ({frames:,} out-of-fold frames).",
                  x={"title": "half-width of smoothing (seconds)", "tickvals": list(range(len(x))),
                     "ticktext": [f"{v:g}" for v in x]},
                  y={"title": f"{metric} (0 to 1)"}, height=320, showlegend=False)


def bars(name: str, rows: Sequence[tuple[str, float]], unit: str, caption: str) -> FigureBlock:
    """Return named amounts as bars, the largest on top."""
    shown = list(rows)[::-1]
    made = go.Bar(x=[v for _, v in shown], y=[plain(label) for label, _ in shown], orientation="h",
                  marker={"color": BLUE}, hovertemplate="%{y}: %{x:.4f}<extra></extra>")
    return figure(name, [made], caption, x={"title": unit},
                  y={"title": "feature", "type": "category", "tickfont": {"size": 11}},
                  height=FRAME_PX - 40 + ROW_PX * len(shown), showlegend=False)


def differences(name: str, rows: Sequence[tuple[str, float, Any, Any]], column: str) -> FigureBlock:
    """Return the difference of each variant of an ablation from the default, with its interval."""
    dots = _dots(rows[::-1], {"size": 10, "color": BLUE}, "+.4f")
    return figure(name, [dots], f"Right of zero a change improves the column `{column}`. Lines are paired 95 % "
                  "intervals (none: too few groups); a difference whose line crosses zero may be chance.",
                  x={"title": "difference of macro F1 from the default", "zeroline": True},
                  y={"title": "variant", "type": "category"}, height=FRAME_PX + ROW_PX * len(rows), showlegend=False)


def seen(name: str, share: Sequence[float]) -> FigureBlock:
    """Return a histogram of clips over the fraction of their frames with a face."""
    counts, edges = np.histogram(np.asarray(share, float), bins=20, range=(0, 1))
    made = go.Bar(x=(edges[:-1] + edges[1:]) / 2, y=counts, width=.045, marker={"color": BLUE},
                  customdata=np.stack([edges[:-1], edges[1:]], 1),
                  hovertemplate="%{y} clips with a face in %{customdata[0]:.0%} to %{customdata[1]:.0%} of their frames"
                                "<extra></extra>")
    return figure(name, [made], "Number of clips by the fraction of their frames with a face. Check clips far to the "
                  "left: no model can learn from them.",
                  x={"title": "fraction of a clip's frames with a face", "tickformat": ".0%", "range": [-.01, 1.01]},
                  y={"title": "clips (number)", "rangemode": "tozero"}, height=280, showlegend=False)
