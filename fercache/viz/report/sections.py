"""The sections of the page, each from what was recorded; where something was not, a sentence says how to get it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fercache import __version__, metrics
from fercache.viz.report import figures
from fercache.viz.report.figures import Block, NoteBlock, ReportSection, TableBlock, TableCell, cells, missing_note
from fercache.viz.report.walk import ALL, BINS, WIDTHS_S, PredictionsWalk
from fercache.viz.run_info import STAGES, RunInfo

TITLES = {"train": "train, out of fold", "validation": "validation", "test": "test", ALL: "all annotated frames"}
FIGURES = {"macro_f1": "macro F1", "accuracy": "accuracy", "uar": "UAR", "abaw2": ".67 F1 + .33 accuracy",
           "war": "WAR (accuracy)"}
SHOWN = ("macro_f1", "accuracy", "uar", "abaw2")
NO_METRICS = ("No metrics lie beside the predictions.",
              "`fercache stack --out preds.csv` writes preds.metrics.json; keep the two together.")
NO_LOGITS = ("The book of logits behind these predictions is not in this cache.",
           "Give the cache it was made in with --cache, or run `fercache train-heads` and `fercache stack`.")
IMPORTANCES = 25


def scored(facts: RunInfo, walk: PredictionsWalk) -> ReportSection:
    """Return the scores: a figure and a table a split, and the paired differences."""
    blocks: list[Block] = [] if facts.splits else [missing_note(*NO_METRICS)]
    for split, record in facts.splits.items():
        metric = str(facts.metrics.get("metric", "macro_f1"))
        if not record["all_frames"]:
            blocks.append(NoteBlock(text=f"{_title(split)}: no score; {record['predicted']}."))
            continue
        blocks.append(NoteBlock(text=f"{_title(split)}: predicted {record['predicted']}."))
        blocks.append(figures.scores(f"scores-{split}", record["all_frames"], metric, FIGURES.get(metric, metric),
                                     facts.final))
        blocks.append(_score_table(split, record, facts))
        blocks.append(_paired_table(split, record.get("paired", {}), facts))
    return ReportSection(name="scores", title="Scores", blocks=blocks)


def _score_table(split: str, record: dict[str, Any], facts: RunInfo) -> TableBlock:
    rows = [[TableCell(text=column, strong=column == facts.final), *(_interval_cell(scores, name) for name in SHOWN),
             *cells(scores["frames"], scores["groups"])]
            for column, scores in sorted(record["all_frames"].items(), key=lambda item: -item[1]["macro_f1"])]
    why = next((scores["why_none"] for scores in record["all_frames"].values() if scores.get("why_none")), "")
    ends = f" No interval: {why}." if why else " In brackets: 95 % interval by bootstrap over groups."
    return TableBlock(name=f"table-scores-{split}", rows=rows,
                 head=["column", *(FIGURES[name] for name in SHOWN), "frames", "groups"],
                 caption=f"{_title(split)}: every annotated frame counts, also those without a face; the column in "
                         f"bold "
                      f"is what preds.csv holds.{ends}")


def _interval_cell(scores: dict[str, Any], name: str) -> TableCell:
    span = (scores.get("intervals") or {}).get(name)
    return TableCell(text=f"{scores[name]:.4f}" + (f" [{span[0]:.3f}, {span[1]:.3f}]" if span else ""),
                     value=scores[name])


def _paired_table(split: str, paired: dict[str, Any], facts: RunInfo) -> Block:
    rows = []
    for pair, record in paired.items():
        if pair.split(" - ")[0] not in ("stack", facts.final):
            continue
        span = record.get("interval")
        sure = bool(span) and (span[0] > 0 or span[1] < 0)
        rows.append([TableCell(text=pair, strong=sure),
                     TableCell(text=f"{record['difference']:+.4f}", value=record["difference"]),
                     TableCell(text=f"[{span[0]:+.4f}, {span[1]:+.4f}]" if span else "none")])
    why = next((record["why_none"] for record in paired.values() if record.get("why_none")), "")
    return TableBlock(name=f"table-paired-{split}", head=["difference", "macro F1", "95 % interval"], rows=rows,
                 caption=f"{_title(split)}: how much more macro F1 the first column has than the second on the same "
                         f"draws "
                      "of groups; " + (f"no interval: {why}." if why else
                                       "bold where the interval leaves out zero: the difference is hardly chance."))


def _title(split: str) -> str:
    return TITLES.get(split, split).capitalize()


def confusions(facts: RunInfo, walk: PredictionsWalk) -> ReportSection:
    """Return what is taken for what, a figure a split."""
    blocks: list[Block] = []
    for split, matrix in walk.matrix.items():
        blocks.append(NoteBlock(text=f"{_title(split)}: {int(matrix.sum()):,} annotated frames, "
                                f"macro F1 {float(metrics.macro_f1(matrix)):.4f}, "
                                f"accuracy {float(metrics.accuracy(matrix)):.4f}."))
        blocks.append(figures.confusion(f"confusion-{split}", matrix, walk.classes))
    return ReportSection(name="confusions", title="Confusion matrix", blocks=blocks or [_unlabelled()])


def per_class(facts: RunInfo, walk: PredictionsWalk) -> ReportSection:
    """Return the F1 of each class with its support."""
    blocks: list[Block] = []
    for split, matrix in walk.matrix.items():
        f1 = dict(zip(walk.classes, metrics.f1_per_class(matrix).tolist(), strict=True))
        support = dict(zip(walk.classes, matrix.sum(1).tolist(), strict=True))
        blocks += [NoteBlock(text=f"{_title(split)}."), figures.per_class(f"f1-{split}", f1, support)]
    return ReportSection(name="f1", title="F1 per class", blocks=blocks or [_unlabelled()])


def reliability(facts: RunInfo, walk: PredictionsWalk) -> ReportSection:
    """Return whether the probabilities mean what they say."""
    if not walk.bins:
        return ReportSection(name="reliability", title="Calibration",
                             blocks=[_unlabelled()])
    text = "; ".join(f"{TITLES.get(split, split)} {_ece(bins):.4f}" for split, bins in walk.bins.items())
    record = NoteBlock(text=f"Expected calibration error ({BINS} equal bins): {text}. It is the mean distance from the "
                            f"dotted "
                     "line, weighted by frames: 0 is perfect.")
    return ReportSection(name="reliability", title="Calibration",
                   blocks=[record, *_recorded(facts), figures.reliability("reliability-all", walk.bins, TITLES)])


def _recorded(facts: RunInfo) -> Iterator[Block]:
    """Yield the calibration that `stack` recorded, where it did: of every column, and before its temperature."""
    for split, scores in facts.splits.items():
        held = scores.get("calibration") or {}
        rows = [cells(TableCell(text=name, strong=name == facts.final), error)
                for name, error in held.get("ece", {}).items()]
        if rows:
            final = held.get("final", {})
            mended = (f" Of the final column, {final['before']['ece']:.4f} before its temperature and "
                      f"{final['after']['ece']:.4f} after." if final else "")
            yield TableBlock(name=f"table-calibration-{split}", head=["column", "expected calibration error"],
                             rows=rows,
                        caption=f"{_title(split)}, as `fercache stack` recorded it: smaller is better.{mended}")


def _ece(bins: Any) -> float:
    number, share, hit = bins
    return float(np.abs(share - hit).sum() / number.sum())


def _unlabelled() -> NoteBlock:
    return missing_note("No frame of these predictions is annotated.",
                        "Give the data set labels (`--labels`) and run the "
                   "three commands again.")


def smoothed(facts: RunInfo, walk: PredictionsWalk) -> ReportSection:
    """Return the score against the half-width of smoothing."""
    blocks: list[Block] = []
    if walk.curve is None:
        blocks.append(missing_note(*NO_LOGITS))
    elif not walk.curve.counts.any():
        blocks.append(missing_note("No annotated frame is out of fold.", "Train on a data set with labels first."))
    else:
        name = FIGURES.get(walk.curve.metric, walk.curve.metric)
        blocks.append(figures.curve("smoothing-curve", WIDTHS_S, walk.curve.scores(), name,
                                    int(walk.curve.counts[0].sum())))
    return ReportSection(name="smoothing", title="Smoothing", blocks=blocks)


def ablation(facts: RunInfo, walk: PredictionsWalk) -> ReportSection:
    """Return the table of what each choice is worth, as the ablation wrote it."""
    rows = [line for row in records(facts.ablation, "rows") for line in _lines(row)]
    if not rows:
        return ReportSection(name="ablation", title="Ablation", blocks=[missing_note(
            "No ablation was given.", "Run `fercache ablation`, then `fercache report --ablation FILE` with what it "
            "wrote.")])
    head = list(dict.fromkeys(key for row in rows for key in row if not isinstance(row[key], dict | list)))
    table = TableBlock(name="table-ablation", head=head, rows=[cells(*(row.get(key) for key in head)) for row in rows],
                  caption="One row a variant and column, as the ablation wrote it; a difference is from the first row.")
    return ReportSection(name="ablation", title="Ablation", blocks=[*_differences(rows, facts), table])


def _lines(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a line a column of one row of an ablation, whether it came as JSON (figures inside) or as CSV."""
    held = row.get("figures")
    if not isinstance(held, dict):
        yield {key: _number(value) for key, value in row.items()}
        return
    plain = {"row" if key == "name" else key: value for key, value in row.items()
             if not isinstance(value, dict | list | bool)}
    for column, figure in held.items():
        spans = {key.removesuffix("interval") + end: value[i] for key, value in figure.items()
                 if isinstance(value, list) and len(value) == 2 for i, end in enumerate(("low", "high"))}
        yield {**plain, "column": column, **{key: v for key, v in figure.items() if not isinstance(v, list)}, **spans}


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value or None


def _differences(rows: Sequence[dict[str, Any]], facts: RunInfo) -> Iterator[Block]:
    """Yield the figure of the differences from the default, where the ablation has them for one column."""
    columns = [row.get("column") for row in rows]
    shown = next((name for name in (facts.final, "stack", "mean") if name in columns), None)
    found = [(str(row["row"]), float(row["difference"]), row.get("difference_low"), row.get("difference_high"))
             for row in rows
             if row.get("column") == shown and isinstance(row.get("difference"), float) and "row" in row]
    if shown is not None and found:
        yield figures.differences("ablation-differences", found, shown)


def importances(facts: RunInfo, walk: PredictionsWalk) -> ReportSection:
    """Return what the stacker looks at."""
    found = [(str(name), float(gain)) for name, gain in facts.metrics.get("importances", [])]
    caption = (f"Longer is used more: the share of all gain that each feature brought LightGBM's trees (the "
            f"{min(IMPORTANCES, len(found))} largest of {len(found)}). It says what the stacker looked at, not what "
            "is right.")
    block = figures.bars("importances-all", found[:IMPORTANCES], "share of total gain (0 to 1)",
                         caption) if found else (
        missing_note("The stacker has no importances: it learnt nothing, or too few groups were there.",
                "With four groups or more, `fercache stack` records them."))
    return ReportSection(name="importances", title="Feature importance", blocks=[block])


def records(value: Any, key: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table that came as JSON: a list of objects, or an object that holds one at `key`."""
    held = value.get(key) if isinstance(value, dict) else value
    yield from (row for row in (held if isinstance(held, list) else ()) if isinstance(row, dict))


def report_sections(facts: RunInfo, walk: PredictionsWalk) -> Sequence[ReportSection]:
    """Return the sections between health and timelines, in order."""
    makers = (scored, confusions, per_class, reliability, smoothed, ablation, importances)
    return [maker(facts, walk) for maker in makers]


# The first two sections: what was run on what, and whether the data are sound.

MOST_ROWS, NAMED = 200, 6


def run_section(facts: RunInfo, walk: PredictionsWalk) -> ReportSection:
    """Return the data set, the groups and folds, the fingerprints, the versions, and the time that it took."""
    record = facts.metrics
    if not record:
        return ReportSection(name="run", title="Run", blocks=[missing_note(*NO_METRICS)])
    heads = record.get("logits", {}).get("provenance", {}).get("heads", [])
    folds = {head.get("fold") for head in heads if isinstance(head, dict)} - {None, -1}
    rows = [cells("data set", record.get("dataset")), cells("predictions", facts.preds.name),
            cells("clips", len(walk.clips)), cells("frames", walk.frames),
            cells("groups", len({clip.group for clip in walk.clips if clip.group}) or None),
            cells("folds", len(folds) or None), cells("heads", ", ".join(walk.heads) or None),
            cells("final column", f"{facts.final}: {record.get('final', {}).get('why', '')}"),
            cells("metric of the data set", record.get("metric")),
            *(cells(name, value) for name, value in prints(facts)),
            *(cells(name, value) for name, value in versions(facts))]
    table = TableBlock(name="table-run", head=["what", "value"], rows=rows,
                  caption="What was run on what; equal fingerprints mean equal settings and inputs.")
    notice = [NoteBlock(text=f"Note on the data: {record['notice']}.")] if record.get("notice") else []
    return ReportSection(name="run", title="Run", blocks=[*notice, table, times(facts)])


def prints(facts: RunInfo) -> Iterator[tuple[str, str]]:
    """Yield the name and the fingerprint of each thing that the predictions go back to."""
    if facts.store is not None:
        yield "fingerprint of the features", facts.store.fingerprint
    yield "fingerprint of the logits", str(facts.metrics.get("logits", {}).get("fingerprint", ""))
    yield "fingerprint of the stack", str(facts.metrics.get("fingerprint", ""))


def versions(facts: RunInfo) -> Iterator[tuple[str, str]]:
    """Yield what the numbers were made with."""
    yield "fercache", f"{facts.metrics.get('fercache', '?')} (this page: {__version__})"
    store = facts.store
    mark = next((store.manifest(clip) for clip in store), None) if store is not None else None
    if mark is not None:
        made = mark.provenance
        yield "device of stage one", ", ".join(str(made.get(key, "?")) for key in ("device", "machine"))
        yield "versions of stage one", ", ".join(f"{k} {v}" for k, v in dict(made.get("versions", {})).items())


def times(facts: RunInfo) -> Block:
    """Return the time that each stage took, as its runs noted it."""
    rows = [cells(stage, int(took["runs"]), f"{took['seconds']:,.1f}", int(took["frames"]) or None,
                  f"{took['frames'] / took['seconds']:,.1f}" if took["frames"] and took["seconds"] else None)
            for stage in STAGES if (took := facts.took.get(stage, {})).get("runs")]
    if not rows:
        return missing_note("No run noted its time.", "Runs of this version on do: type the three commands again on an "
                       "empty cache to have it measured.")
    return TableBlock(name="table-times", head=["stage", "runs", "seconds", "frames", "frames/s"], rows=rows,
                 caption="Wall time of the runs that did the work; runs that found everything done are left out, and "
                         "so "
                      "are runs that were killed.")


def health_section(facts: RunInfo, walk: PredictionsWalk) -> ReportSection:
    """Return whether the clips are whole, and in how many frames a face was seen."""
    share = [clip.seen / clip.frames for clip in walk.clips]
    blind = sum(value == 0 for value in share)
    blocks: list[Block] = [NoteBlock(text=f"{len(share):,} clips, {walk.frames:,} frames, a face in "
                                     f"{sum(c.seen for c in walk.clips) / max(walk.frames, 1):.1%} of them; "
                                     f"{blind:,} clips without any face.")]
    blocks += [_stored(facts, walk), figures.seen("health-seen", share)]
    if facts.failures:
        blocks.append(TableBlock(name="table-failures", head=["clip", "what happened"],
                            rows=[cells(*row) for row in facts.failures[:MOST_ROWS]],
                            caption=f"{len(facts.failures)} clips failed in the last `fercache extract` and are "
                                    f"missing "
                                 "in everything below."))
    return ReportSection(name="health", title="Data health", blocks=[*blocks, _checked(facts)])


def _stored(facts: RunInfo, walk: PredictionsWalk) -> NoteBlock:
    """Say whether the store holds what the predictions speak of."""
    if facts.store is None:
        return missing_note("The features behind these predictions are not in this cache.",
                       "Give the cache they are in with --cache to see whether they are whole.")
    held = {clip: facts.store.manifest(clip).frames for clip in facts.store}
    lost = [clip.name for clip in walk.clips if held.get(clip.name) is None]
    size = facts.store.size()
    whole = "every clip of the predictions is committed in it" if not lost else (
        f"{len(lost)} clips of the predictions are not in it, such as {lost[0]}")
    return NoteBlock(text=f"Store {facts.store.path.name}: {len(held):,} clips, {size.bytes / 1e6:,.1f} MB; {whole}. "
                     "`fercache verify` reads every byte of it again.")


def _checked(facts: RunInfo) -> Block:
    if facts.check is None:
        return missing_note("What `fercache check` found is not in this page.",
                       "Run `fercache check --json > check.json`, then `fercache report --check check.json`.")
    rows = list(records(facts.check, "issues"))
    if not rows:
        return NoteBlock(text="`fercache check` found nothing wrong.")
    head = list(dict.fromkeys(key for row in rows for key in row if key != "where"))
    more = f" The first {MOST_ROWS} of {len(rows)}." if len(rows) > MOST_ROWS else ""
    return TableBlock(name="table-check", head=head, caption=f"What `fercache check` found, a line a mismatch.{more}",
                 rows=[cells(*(_flat(row.get(key)) for key in head)) for row in rows[:MOST_ROWS]])


def _flat(value: Any) -> Any:
    """Return a value as a cell: of a list the first NAMED and how many more there are."""
    if isinstance(value, list):
        more = f" and {len(value) - NAMED:,} more" if len(value) > NAMED else ""
        return ", ".join(map(str, value[:NAMED])) + more
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) if isinstance(value, dict) else value
