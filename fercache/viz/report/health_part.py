"""The first two sections: what was run on what, and whether the data are sound."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fercache import __version__
from fercache.viz.report import figures
from fercache.viz.report.blocks_part import Block, Note, Section, Table, cells, missing
from fercache.viz.report.sections import NO_METRICS, records
from fercache.viz.report.walk import Walk
from fercache.viz.run_info import STAGES, Facts

MOST_ROWS, NAMED = 200, 6


def run(facts: Facts, walk: Walk) -> Section:
    """Return the data set, the groups and folds, the fingerprints, the versions, and the time that it took."""
    said = facts.metrics
    if not said:
        return Section(name="run", title="The run", blocks=[missing(*NO_METRICS)])
    heads = said.get("logits", {}).get("provenance", {}).get("heads", [])
    folds = {head.get("fold") for head in heads if isinstance(head, dict)} - {None, -1}
    rows = [cells("data set", said.get("dataset")), cells("predictions", facts.preds.name),
            cells("clips", len(walk.clips)), cells("frames", walk.frames),
            cells("groups", len({clip.group for clip in walk.clips if clip.group}) or None),
            cells("folds", len(folds) or None), cells("heads", ", ".join(walk.heads) or None),
            cells("final column", f"{facts.final}: {said.get('final', {}).get('why', '')}"),
            cells("metric of the data set", said.get("metric")),
            *(cells(name, value) for name, value in prints(facts)),
            *(cells(name, value) for name, value in versions(facts))]
    table = Table(name="table-run", head=["what", "value"], rows=rows,
                  says="What was run on what; equal fingerprints mean equal settings and inputs.")
    notice = [Note(text=f"Note on the data: {said['notice']}.")] if said.get("notice") else []
    return Section(name="run", title="The run", blocks=[*notice, table, times(facts)])


def prints(facts: Facts) -> Iterator[tuple[str, str]]:
    """Yield the name and the fingerprint of each thing that the predictions go back to."""
    if facts.store is not None:
        yield "fingerprint of the features", facts.store.fingerprint
    yield "fingerprint of the logits", str(facts.metrics.get("logits", {}).get("fingerprint", ""))
    yield "fingerprint of the stack", str(facts.metrics.get("fingerprint", ""))


def versions(facts: Facts) -> Iterator[tuple[str, str]]:
    """Yield what the numbers were made with."""
    yield "fercache", f"{facts.metrics.get('fercache', '?')} (this page: {__version__})"
    store = facts.store
    mark = next((store.mark(clip) for clip in store), None) if store is not None else None
    if mark is not None:
        made = mark.provenance
        yield "device of stage one", ", ".join(str(made.get(key, "?")) for key in ("device", "machine"))
        yield "versions of stage one", ", ".join(f"{k} {v}" for k, v in dict(made.get("versions", {})).items())


def times(facts: Facts) -> Block:
    """Return the time that each stage took, as its runs noted it."""
    rows = [cells(stage, int(took["runs"]), f"{took['seconds']:,.1f}", int(took["frames"]) or None,
                  f"{took['frames'] / took['seconds']:,.1f}" if took["frames"] and took["seconds"] else None)
            for stage in STAGES if (took := facts.took.get(stage, {})).get("runs")]
    if not rows:
        return missing("No run noted its time.", "Runs of this version on do: type the three commands again on an "
                       "empty cache to have it measured.")
    return Table(name="table-times", head=["stage", "runs", "seconds", "frames", "frames/s"], rows=rows,
                 says="Wall time of the runs that did the work; runs that found everything done are left out, and so "
                      "are runs that were killed.")


def health(facts: Facts, walk: Walk) -> Section:
    """Return whether the clips are whole, and in how many frames a face was seen."""
    share = [clip.seen / clip.frames for clip in walk.clips]
    blind = sum(value == 0 for value in share)
    blocks: list[Block] = [Note(text=f"{len(share):,} clips, {walk.frames:,} frames, a face in "
                                     f"{sum(c.seen for c in walk.clips) / max(walk.frames, 1):.1%} of them; "
                                     f"{blind:,} clips without any face.")]
    blocks += [_stored(facts, walk), figures.seen("health-seen", share)]
    if facts.failures:
        blocks.append(Table(name="table-failures", head=["clip", "what happened"],
                            rows=[cells(*row) for row in facts.failures[:MOST_ROWS]],
                            says=f"{len(facts.failures)} clips failed in the last `fercache extract` and are missing "
                                 "in everything below."))
    return Section(name="health", title="Whether the data are sound", blocks=[*blocks, _checked(facts)])


def _stored(facts: Facts, walk: Walk) -> Note:
    """Say whether the store holds what the predictions speak of."""
    if facts.store is None:
        return missing("The features behind these predictions are not in this cache.",
                       "Give the cache they are in with --cache to see whether they are whole.")
    held = {clip: facts.store.mark(clip).frames for clip in facts.store}
    lost = [clip.name for clip in walk.clips if held.get(clip.name) is None]
    size = facts.store.size()
    whole = "every clip of the predictions is committed in it" if not lost else (
        f"{len(lost)} clips of the predictions are not in it, such as {lost[0]}")
    return Note(text=f"Store {facts.store.path.name}: {len(held):,} clips, {size.bytes / 1e6:,.1f} MB; {whole}. "
                     "`fercache verify` reads every byte of it again.")


def _checked(facts: Facts) -> Block:
    if facts.check is None:
        return missing("What `fercache check` found is not in this page.",
                       "Run `fercache check --json > check.json`, then `fercache report --check check.json`.")
    rows = list(records(facts.check, "findings"))
    if not rows:
        return Note(text="`fercache check` found nothing wrong.")
    head = list(dict.fromkeys(key for row in rows for key in row if key != "amounts"))
    more = f" The first {MOST_ROWS} of {len(rows)}." if len(rows) > MOST_ROWS else ""
    return Table(name="table-check", head=head, says=f"What `fercache check` found, a line a mismatch.{more}",
                 rows=[cells(*(_flat(row.get(key)) for key in head)) for row in rows[:MOST_ROWS]])


def _flat(value: Any) -> Any:
    """Return a value as a cell: of a list the first NAMED and how many more there are."""
    if isinstance(value, list):
        more = f" and {len(value) - NAMED:,} more" if len(value) > NAMED else ""
        return ", ".join(map(str, value[:NAMED])) + more
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) if isinstance(value, dict) else value
