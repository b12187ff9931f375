"""A check's report as text for a terminal of 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from fercache.diagnostics.check import Report
from fercache.diagnostics.check_issues import Finding
from fercache.diagnostics.cost_part import Cost
from fercache.diagnostics.lengths_part import Comparison
from fercache.runtime.progress import duration

WIDTH = 80
MOST = 5
UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def lines(report: Report) -> Iterator[str]:
    """Yield the lines of the report."""
    fold = f", fold {report.fold or 'none chosen'} of {report.folds}" if report.folds else ""
    yield f"{report.dataset}: {report.layout}{fold}, metric {report.metric}"
    yield from _splits(report)
    for compared in report.lengths:
        yield from _lengths(compared)
    yield ""
    yield from cost_lines(report.cost)
    yield ""
    for finding in report.findings:
        yield from _finding(finding)
    lost = sum(one.lost for one in report.findings)
    notes = len(report.findings) - lost
    yield (f"{lost} found that lose data or spoil a score, {notes} good to know" if report.findings
           else "nothing wrong found")
    yield (f"{report.clips_read} clips read, {report.clips_known} known from an earlier check, "
           f"{report.seconds:.1f} s")


def _splits(report: Report) -> Iterator[str]:
    """Yield the table of splits, and below it that of classes."""
    yield ""
    yield f"{'':12}{'clips':>8}{'labelled':>9}{'groups':>8}{'frames':>12}{'labelled':>11}{'no crop':>9}{'labelled':>10}"
    for name, split in report.splits.items():
        yield (f"{name:12}{split.trials:>8,}{split.labelled_trials:>9,}{split.groups:>8,}{split.frames:>12,}"
               f"{split.labelled:>11,}{split.bare:>9,}{split.bare_labelled:>10,}")
    yield ""
    unit = "clips" if report.by_clip else "frames"
    yield f"{unit + ' of':16}" + "".join(f"{name:>12}" for name in report.splits)
    for label in next(iter(report.splits.values())).counts:
        yield f"  {label[:13]:14}" + "".join(f"{split.counts[label]:>12,}" for split in report.splits.values())


def _lengths(compared: Comparison) -> Iterator[str]:
    yield ""
    yield f"{compared.name}: {compared.trials:,} trials"
    yield (f"  {compared.equal:,} equal, {compared.more:,} more (by {compared.extra:,} in all), "
           f"{compared.fewer:,} fewer ({compared.missing:,} missing)")
    for one in compared.differences[:MOST]:
        sign = f"{one.missing:,} missing" if one.missing > 0 else f"{-one.missing:,} too many"
        yield f"    {one.trial[:40]:40} {one.there:>7,} of {one.expected:>7,}  {sign}"
    if len(compared.differences) > MOST:
        yield f"    and {len(compared.differences) - MOST:,} more (--json lists all)"


def cost_lines(cost: Cost) -> Iterator[str]:
    """Yield what extraction will take."""
    unknown = f"; {cost.unknown} clips state no length and are not counted" if cost.unknown else ""
    faces = cost.faces or "mixed kinds: say --faces"
    yield f"extraction: {cost.clips:,} clips, {cost.frames:,} frames ({faces}){unknown}"
    if cost.bytes is not None and cost.bytes_a_frame is not None:
        yield f"  disk: {size(cost.bytes)} ({cost.bytes_a_frame:,} bytes a frame, and the padding of last chunks)"
    else:
        yield "  disk: not known before the model is opened"
    time = "not known" if cost.seconds is None else duration(cost.seconds)
    yield from textwrap.wrap(f"time: {time}; {cost.basis}", WIDTH, initial_indent="  ", subsequent_indent="        ")


def _finding(finding: Finding) -> Iterator[str]:
    mark = "LOST" if finding.lost else "note"
    yield from textwrap.wrap(f"{mark}  {finding.what}: {finding.where}", WIDTH, subsequent_indent="      ",
                             break_on_hyphens=False)
    if finding.hint:
        yield from textwrap.wrap(f"next: {finding.hint}", WIDTH, initial_indent="      ", subsequent_indent="      ",
                                 break_on_hyphens=False)


def size(count: int) -> str:
    """Return bytes in words: ``31.2 GB``."""
    for unit, name in UNITS:
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} bytes"
