"""The sections of the report, each from the records of a run; a missing record is replaced by a hint how to get it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from fercache import __version__, metrics
from fercache.backbones import weights
from fercache.errors import shorten_list
from fercache.metrics import PairedDifference, Scores
from fercache.runtime.progress import format_bytes
from fercache.stacking.calibration import BINS
from fercache.stacking.run_metrics import SplitMetrics, StackMetrics
from fercache.viz.report import figures
from fercache.viz.report.collect import ALL, STAGES, WIDTHS_S, ReportData, RunInfo
from fercache.viz.report.figures import Block, NoteBlock, ReportSection, TableBlock, TableCell, cells, missing_note
from fercache.workspace import Workspace

TITLES = {"train": "train, out of fold", "validation": "validation", "test": "test", ALL: "all annotated frames"}
NO_METRICS = ("There are no metrics beside the predictions.",
              "`fercache stack --out preds.csv` writes preds.metrics.json; keep the two together.")
NO_LOGITS = ("The logits behind these predictions are not in this cache.",
             "Name the right cache with --cache, or run `fercache train-heads` and `fercache stack`.")
IMPORTANCES = 25


def scored(run: RunInfo, data: ReportData) -> Iterator[Block]:
    """Yield the scores of each split as a figure and a table, with paired differences."""
    if not run.splits:
        yield missing_note(*NO_METRICS)
    for split, record in run.splits.items():
        metric = run.metrics.metric if run.metrics else "macro_f1"
        if not record.all_frames:
            yield NoteBlock(text=f"{_title(split)}: no score; {record.predicted}.")
            continue
        yield NoteBlock(text=f"{_title(split)}: predicted {record.predicted}.")
        yield figures.scores(f"scores-{split}", record.all_frames, metric, metrics.METRICS[metric].title, run.final)
        yield from (_score_table(split, record, run), _paired_table(split, record.paired, run))


def _score_table(split: str, record: SplitMetrics, run: RunInfo) -> TableBlock:
    def interval_cell(scores: Scores, name: str) -> TableCell:
        span = (scores.intervals or {}).get(name)
        return TableCell(text=f"{scores.figures[name]:.4f}" + (f" [{span[0]:.3f}, {span[1]:.3f}]" if span else ""),
                         value=scores.figures[name])
    rows = [[TableCell(text=column, strong=column == run.final),
             *(interval_cell(scores, name) for name in metrics.DISTINCT), *cells(scores.frames, scores.groups)]
            for column, scores in sorted(record.all_frames.items(), key=lambda item: -item[1].figures["macro_f1"])]
    why = next((scores.why_none for scores in record.all_frames.values() if scores.why_none), "")
    ends = f" No interval: {why}." if why else " In brackets: 95 % interval by bootstrap over groups."
    return TableBlock(name=f"table-scores-{split}", rows=rows,
                      head=["column", *(metrics.METRICS[name].title for name in metrics.DISTINCT), "frames", "groups"],
                      caption=f"{_title(split)}: all annotated frames count, also those without a face; preds.csv "
                              f"holds the column in bold.{ends}")


def _paired_table(split: str, paired: dict[str, PairedDifference], run: RunInfo) -> Block:
    rows = []
    for pair, record in paired.items():
        # Every pair is recorded in both directions: the stack's and the final column's rows are enough.
        if pair.split(" - ")[0] not in ("stack", run.final):
            continue
        span = record.interval
        sure = span is not None and (span[0] > 0 or span[1] < 0)
        rows.append([TableCell(text=pair, strong=sure),
                     TableCell(text=f"{record.difference:+.4f}", value=record.difference),
                     TableCell(text=f"[{span[0]:+.4f}, {span[1]:+.4f}]" if span else "none")])
    why = next((record.why_none for record in paired.values() if record.why_none), "")
    return TableBlock(name=f"table-paired-{split}", head=["difference", "macro F1", "95 % interval"], rows=rows,
                      caption=f"{_title(split)}: macro F1 of the first column minus that of the second, on the same "
                              "draws of groups; " + (f"no interval: {why}." if why else
                                                     "bold if the interval excludes zero."))


def _title(split: str) -> str:
    return TITLES.get(split, split).capitalize()


def confusions(run: RunInfo, data: ReportData) -> Iterator[Block]:
    """Yield the confusion matrix of each split."""
    for split, matrix in data.matrix.items():
        yield NoteBlock(text=f"{_title(split)}: {int(matrix.sum()):,} annotated frames, "
                             f"macro F1 {float(metrics.macro_f1(matrix)):.4f}, "
                             f"accuracy {float(metrics.accuracy(matrix)):.4f}.")
        yield figures.confusion(f"confusion-{split}", matrix, data.classes)


def per_class(run: RunInfo, data: ReportData) -> Iterator[Block]:
    """Yield the F1 of each class with its support."""
    for split, matrix in data.matrix.items():
        f1 = dict(zip(data.classes, metrics.f1_per_class(matrix).tolist(), strict=True))
        support = dict(zip(data.classes, matrix.sum(1).tolist(), strict=True))
        yield from (NoteBlock(text=f"{_title(split)}."), figures.per_class(f"f1-{split}", f1, support))


def reliability(run: RunInfo, data: ReportData) -> Iterator[Block]:
    """Yield how well the probabilities agree with the accuracy."""
    if not data.bins:
        return
    errors = []
    for split, (number, prob, hit) in data.bins.items():
        errors.append(f"{TITLES.get(split, split)} {float(np.abs(prob - hit).sum() / number.sum()):.4f}")
    yield NoteBlock(text=f"Expected calibration error ({BINS} equal bins): {'; '.join(errors)}. It is the mean "
                         "distance from the dotted line, weighted by frames: 0 is perfect.")
    # As `stack` recorded it: of every column, and of the final one before its temperature.
    for split, scores in run.splits.items():
        recorded = scores.calibration
        rows = [cells(TableCell(text=name, strong=name == run.final), error)
                for name, error in recorded.ece.items()]
        if rows:
            final = recorded.final
            change = (f" Of the final column, {final.before.ece:.4f} before its temperature and {final.after.ece:.4f} "
                      "after." if final else "")
            yield TableBlock(name=f"table-calibration-{split}", head=["column", "expected calibration error"],
                             rows=rows,
                             caption=f"{_title(split)}, as `fercache stack` recorded it: smaller is better.{change}")
    yield figures.reliability("reliability-all", data.bins, TITLES)


def smoothed(run: RunInfo, data: ReportData) -> Iterator[Block]:
    """Yield the score against the half-width of smoothing."""
    if data.curve is None:
        yield missing_note(*NO_LOGITS)
    elif not data.curve.counts.any():
        yield missing_note("No annotated frame is out of fold.", "Train on a data set with labels first.")
    else:
        yield figures.curve("smoothing-curve", WIDTHS_S, data.curve.scores(), metrics.METRICS[data.curve.metric].title,
                            int(data.curve.counts[0].sum()))


def ablation(run: RunInfo, data: ReportData) -> Iterator[Block]:
    """Yield the table that `fercache ablation` wrote, and its differences from the default."""
    rows = [line for row in records(run.ablation, "rows") for line in _lines(row)]
    if not rows:
        yield missing_note("No ablation was given.",
                           "Run `fercache ablation`, then `fercache report --ablation FILE` with its table.")
        return
    # The differences of the first column that has them.
    columns = [row.get("column") for row in rows]
    shown = next((name for name in (run.final, "stack", "mean") if name in columns), None)
    found = [(str(row["row"]), float(row["difference"]), row.get("difference_low"), row.get("difference_high"))
             for row in rows
             if row.get("column") == shown and isinstance(row.get("difference"), float) and "row" in row]
    if shown is not None and found:
        yield figures.differences("ablation-differences", found, shown)
    head = list(dict.fromkeys(key for row in rows for key in row if not isinstance(row[key], dict | list)))
    yield TableBlock(name="table-ablation", head=head, rows=[cells(*(row.get(key) for key in head)) for row in rows],
                     caption="One row per variant and column; differences are from the first variant.")


def _lines(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a line for each column of a row of an ablation, from JSON (with nested figures) or CSV."""
    nested = row.get("figures")
    if not isinstance(nested, dict):
        # The cells of a CSV are text: numbers are parsed, and an empty cell becomes None.
        yield {key: _number(value) for key, value in row.items()}
        return
    plain = {"row" if key == "name" else key: value for key, value in row.items()
             if not isinstance(value, dict | list | bool)}
    for column, figure in nested.items():
        spans = {key.removesuffix("interval") + end: value[i] for key, value in figure.items()
                 if isinstance(value, list) and len(value) == 2 for i, end in enumerate(("low", "high"))}
        yield {**plain, "column": column, **{key: v for key, v in figure.items() if not isinstance(v, list)}, **spans}


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value or None


def importances(run: RunInfo, data: ReportData) -> Iterator[Block]:
    """Yield how much the stacker uses each feature."""
    found = list(run.metrics.importances) if run.metrics else []
    caption = (f"Fraction of the total gain of LightGBM's trees by feature (the {min(IMPORTANCES, len(found))} largest "
               f"of {len(found)}). It shows what the stacker uses, not what is right.")
    yield figures.bars("importances-all", found[:IMPORTANCES], "fraction of total gain", caption) if found else (
        missing_note("The stacker has no importances: there were too few groups to train it.",
                     "With four groups or more, `fercache stack` records them."))


def records(value: Any, key: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table that came as JSON: a list of objects, or an object that holds one at `key`."""
    rows = value.get(key) if isinstance(value, dict) else value
    yield from (row for row in (rows if isinstance(rows, list) else ()) if isinstance(row, dict))


MAX_ROWS, MAX_NAMES = 200, 6


def run_section(run: RunInfo, data: ReportData) -> Iterator[Block]:
    """Yield the data set, the groups and folds, the fingerprints, the versions, and the time that it took."""
    record = run.metrics
    if record is None:
        yield missing_note(*NO_METRICS)
        return
    if record.notice:
        yield NoteBlock(text=f"Note on the data: {record.notice}.")
    folds = {head.fold for head in record.logits.provenance.records} - {-1}
    rows = [cells("data set", record.dataset), cells("predictions", run.preds.name),
            cells("clips", len(data.clips)), cells("frames", data.frames),
            cells("groups", len({clip.group for clip in data.clips if clip.group}) or None),
            cells("folds", len(folds) or None), cells("heads", ", ".join(data.heads) or None),
            cells("final column", f"{run.final}: {record.final.why}"),
            cells("metric of the data set", record.metric),
            *(cells(name, value) for name, value in [*fingerprints(run, record), *versions(run, record)])]
    yield TableBlock(name="table-run", head=["name", "value"], rows=rows,
                     caption="Equal fingerprints mean equal settings and inputs.")
    rows = [cells(stage, int(took["runs"]), f"{took['seconds']:,.1f}", int(took["frames"]) or None,
                  f"{took['frames'] / took['seconds']:,.1f}" if took["frames"] and took["seconds"] else None)
            for stage in STAGES if (took := run.durations.get(stage, {})).get("runs")]
    yield TableBlock(name="table-times", head=["stage", "runs", "seconds", "frames", "frames/s"], rows=rows,
                     caption="Wall time of the runs that computed something and were not killed.") if rows else (
        missing_note("No run recorded its time.", "Run the three commands on an empty cache to measure it."))


def fingerprints(run: RunInfo, record: StackMetrics) -> Iterator[tuple[str, str]]:
    """Yield the backbone, and the fingerprints of the features, logits and stack behind the predictions."""
    if run.store is not None:
        yield "backbone", weights.verification_of(run.store.settings, Workspace(run.cache).weights)
        yield "fingerprint of the features", run.store.fingerprint
    yield "fingerprint of the logits", record.logits.fingerprint
    yield "fingerprint of the stack", record.fingerprint


def versions(run: RunInfo, record: StackMetrics) -> Iterator[tuple[str, str]]:
    """Yield the versions and the device that computed the numbers."""
    yield "fercache", f"{record.fercache} (this page: {__version__})"
    store = run.store
    manifest = next((store.manifest(clip) for clip in store), None) if store is not None else None
    if manifest is not None:
        provenance = manifest.provenance
        yield "device of stage one", ", ".join(str(provenance.get(key, "?")) for key in ("device", "machine"))
        yield "versions of stage one", ", ".join(f"{k} {v}" for k, v in dict(provenance.get("versions", {})).items())


def health_section(run: RunInfo, data: ReportData) -> Iterator[Block]:
    """Yield whether the clips are complete, and how many frames have a face."""
    share = [clip.seen / clip.frames for clip in data.clips]
    blind = sum(value == 0 for value in share)
    yield NoteBlock(text=f"{len(share):,} clips, {data.frames:,} frames, a face in "
                         f"{sum(c.seen for c in data.clips) / max(data.frames, 1):.1%} of them; "
                         f"{blind:,} clips without any face.")
    yield from (_stored(run, data), figures.seen("health-seen", share))
    if run.failures:
        yield TableBlock(name="table-failures", head=["clip", "error"],
                         rows=[cells(*row) for row in run.failures[:MAX_ROWS]],
                         caption=f"{len(run.failures)} clips failed in the last `fercache extract` and are missing in "
                                 "everything below.")
    yield _checked(run)


def _stored(run: RunInfo, data: ReportData) -> NoteBlock:
    if run.store is None:
        return missing_note("The features behind these predictions are not in this cache.",
                            "Name the right cache with --cache.")
    stored = set(run.store)
    lost = [clip.name for clip in data.clips if clip.name not in stored]
    complete = (f"it lacks {len(lost)} clips of the predictions, such as {lost[0]}" if lost
                else "it has every clip of the predictions")
    return NoteBlock(text=f"Store {run.store.path.name}: {len(stored):,} clips, "
                          f"{format_bytes(run.store.size().bytes)}; {complete}. `fercache verify` checks every byte.")


def _checked(run: RunInfo) -> Block:
    if run.check is None:
        return missing_note("The issues of `fercache check` are not in this page.",
                            "Run `fercache check --json > check.json`, then `fercache report --check check.json`.")
    rows = list(records(run.check, "issues"))
    if not rows:
        return NoteBlock(text="`fercache check` found no issues.")
    # `where` only summarizes `details`.
    head = list(dict.fromkeys(key for row in rows for key in row if key != "where"))
    more = f" The first {MAX_ROWS} of {len(rows)}." if len(rows) > MAX_ROWS else ""
    return TableBlock(name="table-check", head=head, caption=f"Issues that `fercache check` found.{more}",
                      rows=[cells(*(_flat(row.get(key)) for key in head)) for row in rows[:MAX_ROWS]])


def _flat(value: Any) -> Any:
    """Return a value as a cell; of a list, the first MAX_NAMES values and the number of others."""
    if isinstance(value, list):
        return shorten_list(value, MAX_NAMES)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) if isinstance(value, dict) else value


SECTIONS: dict[str, tuple[str, Callable[[RunInfo, ReportData], Iterator[Block]]]] = {
    "run": ("Run", run_section), "health": ("Data health", health_section), "scores": ("Scores", scored),
    "confusions": ("Confusion matrix", confusions), "f1": ("F1 per class", per_class),
    "reliability": ("Calibration", reliability), "smoothing": ("Smoothing", smoothed),
    "ablation": ("Ablation", ablation), "importances": ("Feature importance", importances)}
"""Name, heading and content of each section, in the order of the page; the timelines follow the third one."""


def all_sections(run: RunInfo, data: ReportData) -> list[ReportSection]:
    """Return the sections of the page; one without content needs labels."""
    unlabelled = missing_note("No frame of these predictions is annotated.",
                              "Add labels to the data set (`--labels`) and run the three commands again.")
    return [ReportSection(name=name, title=title, blocks=list(blocks(run, data)) or [unlabelled])
            for name, (title, blocks) in SECTIONS.items()]
