"""The table on the screen: who is right how often."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

TITLES = {"train": "train, out of fold", "validation": "validation", "test": "test"}
FIGURES = {"macro_f1": "macro F1", "accuracy": "accuracy", "abaw2": ".67 F1 + .33 acc"}
CLASS_WIDTH = 7


def table(report: dict[str, Any]) -> RenderableType:
    """Return what a run's metrics look like in 80 columns."""
    final = report["final"]
    parts: list[RenderableType] = []
    for split, title in TITLES.items():
        if report["splits"].get(split, {}).get("all_frames"):
            title = report["splits"][split].get("title", title)  # `predict` says that all of a set is new
            parts += [_scores(report, split, title), _classes(report, split)]
        elif split in report["splits"]:
            parts.append(Text(f"{title}: {report['splits'][split]['predicted']}", "yellow"))
    parts += [_gain(report, split, title) for split, title in TITLES.items()
              if report["splits"].get(split, {}).get("paired")]
    parts.append(Text.assemble(("final: ", "bold"), (final["column"], "bold green"), f"  ({final['why']})"))
    parts += [Text(line, "yellow") for line in report.get("told", ())]
    parts += [Text(f"FLAG  {flag}", "bold red") for flag in report["flags"]]
    parts.append(Text.assemble(("gaps: ", "bold"), report["config"]["gaps"], (
        f"  (of {report['frames']:,} frames {report['frames_without_face']:,} have no face)", "dim")))
    if report["notice"]:
        parts.append(Text(report["notice"], "yellow"))
    return Group(*parts)


def _scores(report: dict[str, Any], split: str, title: str) -> Table:
    """Return the figures of every column on one split, with their intervals."""
    rows, seen = (report["splits"][split][name] for name in ("all_frames", "frames_with_face"))
    any_ = next(iter(rows.values()))
    note = any_["why_none"] and f"no intervals: {any_['why_none']}"
    made = Table(title=f"{title}: {any_['frames']:,} {report['level']}s of {any_['groups']} groups",
                 box=box.SIMPLE_HEAD, title_justify="left", title_style="bold",
                 caption=note or "brackets: 95 % by bootstrap over groups", caption_justify="left",
                 padding=(0, 1, 0, 0), pad_edge=False)
    made.add_column("")
    for heading in (*FIGURES.values(), "UAR" if report["level"] == "clip" else "F1 with face"):
        made.add_column(heading, justify="right")
    for name, scores in _ordered(report, rows):
        style = "bold green" if name == report["final"]["column"] else ""
        made.add_row(name, *(_figure(scores, key) for key in FIGURES),
                     f"{scores['uar'] if report['level'] == 'clip' else seen[name]['macro_f1']:.3f}", style=style)
    return made


def _ordered(report: dict[str, Any], rows: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return (column, scores) in the columns' order, which a JSON file does not keep."""
    return [(name, rows[name]) for name in report["order"] if name in rows]


def _gain(report: dict[str, Any], split: str, title: str) -> Text:
    """Return how much more the final column has than the best single head and the plain mean, with paired intervals."""
    said, final, metric = report["splits"][split], report["final"]["column"], report["metric"]
    heads = [name for name, what in report["columns"].items() if what == "head"]
    best = max(heads, key=lambda name: float(said["all_frames"][name]["official"]))
    lines = []
    for other in dict.fromkeys([best, "mean"]):
        pair = said["paired"].get(f"{final} - {other}")
        if pair:
            found = pair["official"]
            title = said.get("title", title)
            span = "[{:+.3f}, {:+.3f}]".format(*found["interval"]) if found["interval"] else "no interval"
            lines.append(f"{title}: {final} - {other}  {found['difference']:+.3f} {metric} {span} paired")
    return Text("\n".join(lines), "dim")


def _figure(scores: dict[str, Any], key: str) -> Text:
    """Return a figure and its interval."""
    span = (scores["intervals"] or {}).get(key)
    around = Text(f" {_short(span[0])}-{_short(span[1])}", "dim") if span else Text()
    return Text(f"{scores[key]:.3f}") + around


def _short(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def _classes(report: dict[str, Any], split: str) -> Table:
    """Return the F1 of each class, and how many frames each has."""
    rows = report["splits"][split]["all_frames"]
    support = next(iter(rows.values()))["support"]
    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    made.add_column("F1 by class")
    for name in _shortened(report["classes"]):
        made.add_column(name, justify="right", no_wrap=True)
    for column, scores in _ordered(report, rows):
        style = "bold green" if column == report["final"]["column"] else ""
        made.add_row(column, *(f"{scores['f1'][name]:.3f}" for name in report["classes"]), style=style)
    made.add_row("frames", *(f"{support[name]}" for name in report["classes"]), style="dim")
    return made


def _shortened(classes: Sequence[str]) -> list[str]:
    return [name if len(name) <= CLASS_WIDTH else name[:CLASS_WIDTH - 1] + "." for name in classes]
