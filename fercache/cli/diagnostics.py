"""Commands that check data and present results, from `check` to `doctor`."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fercache import recipe
from fercache.cli.context import FILE, JSON, LOGITS_FILE, PREDS, STORE, CommaList, command, open_store, show
from fercache.config import AblationConfig, AuditConfig, DatasetConfig, ExtractConfig, ScoreConfig, TrainConfig
from fercache.errors import InputError
from fercache.recipe import Context
from fercache.runtime.progress import format_bytes
from fercache.runtime.uri import Location

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fercache.diagnostics.ablation import AblationRow, AblationTable

log = logging.getLogger("fercache")

MAX_DETAILS = 5
SEVERITY_STYLES = {"ok": ("ok", "green"), "warning": ("look", "yellow"), "error": ("FAIL", "red"),
                   "skipped": ("skipped", "blue")}
"""Printed word and color of a severity."""


@command("audit", DatasetConfig, AuditConfig)
@LOGITS_FILE
@click.option("--logits", type=CommaList(), default=(), help="Imported logits to check too.  [default: all]")
@STORE
@click.option("--out", type=FILE, default=Path("audit.json"), show_default=True,
              help="JSON file for all results with all details.")
def audit_command(context: Context, logits_file: Path | None, logits: tuple[str, ...], store: Location | None,
                  out: Path, **typed: Any) -> int:
    """Check that no group crosses folds and that shuffled labels give chance; the exit code is 1 if something leaks."""
    from fercache import logits_import
    from fercache.diagnostics import audit
    from fercache.stacking import inputs

    config = context.config(AuditConfig, "audit", typed)
    name = context.dataset_name(typed)
    names = logits or tuple(logits_import.imported_names(context.cache, name))
    alone = context.dataset_config(typed).dataset == "logits"  # such a data set has no clips and no store to audit
    features = None if alone else open_store(context, store, name)
    with tempfile.TemporaryDirectory() as scratch:
        results = []
        for result in audit.run_audit(
                inputs.choose_logits(context, typed, logits_file, names), config,
                features, None if alone else context.dataset(typed),
                context.config(TrainConfig, "train-heads", {}) if config.full else None, Path(scratch),
                context.workspace.weights):
            results.append(result)
            # Printed at once: a check can take minutes.
            word, color = SEVERITY_STYLES[result.severity]
            click.echo(click.style(f"{word:8}", fg=color, bold=True) + f"{result.where}: {result.message}")
            for line in result.details[:MAX_DETAILS]:
                click.echo(f"          {line}")
            if len(result.details) > MAX_DETAILS:
                click.echo(f"          and {len(result.details) - MAX_DETAILS} more, see --out")
    audit.write_audit(results, out)
    click.echo(out)
    return 1 if any(result.is_error for result in results) else 0


@command("check", DatasetConfig, ExtractConfig)
@click.option("--fresh", is_flag=True, help="Read every folder again, not only the changed ones.")
@click.option("--rate", type=click.FloatRange(min=0), default=0.0,
              help="Frames a second to assume for the time of extraction.  [default: as measured]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON with every clip that differs.")
def check_command(context: Context, fresh: bool, rate: float, as_json: bool, **typed: Any) -> int:
    """Compare a data set with its clips, and print every mismatch and the cost of extraction; no CNN is run.

    The exit code is 1 if an issue loses data or spoils a score, and 2 if all training labels are of one class.
    """
    from fercache.diagnostics import check

    config = recipe.make_config(ExtractConfig, "extract", context.stages, typed)
    # The report lists the issues itself, so the log does not.
    dataset = context.dataset(typed, report_issues=False, record=True)
    report = check.check_dataset(dataset, config, context.cache, fresh=fresh, rate=rate)
    show("\n".join(check.report_lines(report)), report.json(), as_json)
    # One class is an error of the input: no head can be trained, as `train-heads` says too.
    return 2 if any(issue.kind == "one-class" for issue in report.issues) else 1 if report.lost else 0


@command("ablation", DatasetConfig, AblationConfig, TrainConfig)
@STORE
@click.option("--quick", is_flag=True, help="Use one seed and three folds.")
@click.option("--out", type=FILE, default=Path("ablation.csv"), show_default=True,
              help="File of the table, NAME.csv; NAME.json is written beside it.")
def ablation_command(context: Context, store: Location | None, quick: bool, out: Path, **typed: Any) -> int:
    """Train the heads with one change of the recipe at a time, and compare each with the default.

    All scores are out of fold on the training groups. Rows that were trained before are not trained again.
    """
    from fercache.diagnostics import ablation

    ablation.check_out(out)  # before the training, which takes hours
    base, config = context.config(TrainConfig, "train-heads", typed), context.config(AblationConfig, "ablation", typed)
    if quick:
        base, config = ablation.quick_config(base, config)
    dataset = context.dataset(typed)
    features = open_store(context, store, dataset.name)
    log.info("store %s", features.path)
    table = ablation.run_ablation(dataset, features, base, config, context.cache)
    ablation.write_ablation(table, out)
    show(_screen(table))
    click.echo(out)
    # A skipped row lacks a tap in the store, which is no failure.
    return 1 if any(row.failed for row in table.rows) else 0


def _screen(table: AblationTable) -> RenderableType:
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    columns = list(table.rows[0].figures)
    title = f"macro F1 out of fold: {table.frames:,} frames of {table.groups} groups, {table.seeds} seed(s)"
    caption = (f"no intervals: {table.why_none}" if table.why_none else
               "* and brackets: paired difference from the default, 95 % by bootstrap over groups; * leaves 0 out")
    screen = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0),
                   pad_edge=False, caption_justify="left", caption=caption)
    screen.add_column("", overflow="fold")
    for name in (*(name[:8] for name in columns), "mean - default"):
        screen.add_column(name, justify="right", no_wrap=True)
    for row in table.rows:
        screen.add_row(*_line(row, columns), style="bold" if row is table.rows[0] else "")
    parts: list[RenderableType] = [screen]
    for split, scores in table.reported.items():
        scores_text = ", ".join(f"{name} {score:.3f}" for name, score in scores.items())
        parts.append(Text(f"the default on {split} (shown, never used to choose): {scores_text}"))
    if table.notice:
        parts.append(Text(table.notice, "yellow"))
    return Group(*parts)


def _line(row: AblationRow, columns: list[str]) -> list[str]:
    if row.skipped:
        return [f"{row.name} ({row.skipped})", *[""] * (len(columns) + 1)]
    figures = [row.figures.get(name) for name in columns]
    cells = ["" if figure is None else f"{figure.macro_f1:.3f}{'*' if figure.sure else ' '}" for figure in figures]
    mean = row.figures.get("mean")
    difference = ""
    if mean is not None and row.changed:
        span = mean.difference_interval
        difference = f"{mean.difference:+.3f}" + (f" [{span[0]:+.3f} {span[1]:+.3f}]" if span else "")
    return [row.name, *cells, difference]


@command("timeline", DatasetConfig)
@PREDS
@STORE
@click.option("--out", type=FILE, default=Path("timelines"), show_default=True, help="Folder for the pictures.")
def timeline_command(context: Context, preds: Path, store: Location | None, out: Path, **typed: Any) -> int:
    """Draw one picture per clip: faces, labels, predictions and probabilities over time."""
    from fercache.data import base
    from fercache.viz import timeline

    dataset = context.dataset(typed)
    features = open_store(context, store, dataset.name)
    for path in timeline.draw_timelines(preds, base.stored_trials(dataset, features), features, out):
        click.echo(path)
    return 0


@command("report")
@PREDS
@click.option("--out", type=FILE, default=Path("report.html"), show_default=True, help="HTML file to write.")
@click.option("--check", type=FILE, help="File with the output of `fercache check --json`.")
@click.option("--ablation", type=FILE, help="Table of `fercache ablation`, .json or .csv.")
def report_command(context: Context, preds: Path, out: Path, check: Path | None, ablation: Path | None) -> int:
    """Build one HTML page about a run: settings, scores, and every clip over time. It needs no network."""
    from fercache.viz import report

    result = report.make_report(preds, out, context.cache, check=check, ablation=ablation)
    log.info("%d clips, %d frames, %s; %s", result.clips, result.frames, format_bytes(result.bytes),
             "with pictures of faces" if result.pictures else "without pictures of faces")
    click.echo(out)
    return 0


@command("overlay", DatasetConfig)
@click.option("--clip", required=True, help="Name of the clip in the predictions.")
@PREDS
@STORE
@click.option("--out", type=FILE, default=Path("overlay.mp4"), show_default=True,
              help="Video to write: .mp4, .mov or .mkv.")
def overlay_command(context: Context, clip: str, preds: Path, store: Location | None, out: Path, **typed: Any) -> int:
    """Write a clip with box, expression, probability bars and a running timeline drawn in; its sound is kept."""
    from fercache.data import base
    from fercache.results.io import PredictionsFile
    from fercache.viz import overlay

    dataset = context.dataset(typed)
    features = open_store(context, store, dataset.name)
    dataset = base.stored_trials(dataset, features)  # a store holds one trial per person of a clip
    trial = next((trial for trial in dataset.trials if trial.name == clip), None)
    table = PredictionsFile(preds)
    rows = next((rows for rows in table.clips() if rows.name == clip), None)
    if trial is None or rows is None:
        raise InputError(f"no clip {clip!r}", where=preds if rows is None else dataset.name,
                         hint="the names are in the first column of the predictions")
    frames = overlay.render_overlay(trial.path, trial.kind, rows,
                                    overlay.boxes_of(features[clip].frame_table, len(rows.time_s)),
                                    table.classes, out, fps=float(features.settings.get("crop_fps", 30.0)))
    log.info("%d frames", frames)
    click.echo(out)
    return 0


@command("card")
@PREDS
@click.option("--out", type=FILE, help="File of the card.  [default: print it]")
def card_command(context: Context, preds: Path, out: Path | None) -> int:
    """Write a model card in Markdown from the records of the runs."""
    from fercache.runtime import atomic_io
    from fercache.viz import model_card

    text = model_card.write_card(preds, context.cache)
    if out is None:
        click.echo(text, nl=False)
    else:
        atomic_io.write_bytes(out, text.encode())
        click.echo(out)
    return 0


@command("doctor")
@JSON
def doctor_command(context: Context, as_json: bool) -> int:
    """Show installed packages, device, weights and cache contents, and the next command to run."""
    from fercache.diagnostics import doctor

    lines = doctor.inspect_machine(context.cache)
    step = doctor.next_step(context.cache, lines)
    show(doctor.doctor_screen(lines, step), {"lines": lines, "next": step}, as_json)
    return 1 if any(line.state == doctor.MISSING for line in lines) else 0


@command("score", DatasetConfig, ScoreConfig)
@PREDS
@JSON
def score_command(context: Context, preds: Path, as_json: bool, **typed: Any) -> int:
    """Score predictions on a data set's labels, which may have other class names."""
    from fercache.results import score
    from fercache.results.io import PredictionsFile

    config = context.config(ScoreConfig, "score", typed)
    report = score.score_file(context.dataset(typed), PredictionsFile(preds), config)
    show(score.score_table_lines(report), report, as_json)
    # On stderr too, so that --json does not hide what could not be scored.
    for warning in score.score_warnings(report):
        log.warning("%s", warning)
    return 1 if score.score_warnings(report) else 0
