"""The commands that keep the cache honest: verify, diff, gc, forget."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fercache.cli.context import Home, places
from fercache.cli.options_part import PLACE, config_options
from fercache.config import DatasetConfig
from fercache.errors import InputError
from fercache.runtime.uri import Place

if TYPE_CHECKING:
    from fercache.maintenance.diff_part import ClipDiff, DiffReport
    from fercache.maintenance.gc import Waste
    from fercache.maintenance.verify import VerifyReport

log = logging.getLogger('fercache')


SHOWN = 20
"""Lines of one kind that are printed for people; --json has them all."""
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
STORE = click.option("--store", type=PLACE, help="Embedding store.  [default: the last one extracted]")


@click.command("verify")
@config_options(DatasetConfig)
@STORE
@click.option("--repair", is_flag=True, help="Drop the harmed clips; the next extract does them again.")
@JSON
@places
def verify_command(home: Home, store: Place | None, repair: bool, as_json: bool, **typed: Any) -> int:
    """Read every byte of a store and compare it with the digests in the commit marks.

    Finds a changed bit, a missing or torn chunk, a clip of another store. Exits with 1 if there is any.
    """
    from fercache.extraction import job
    from fercache.maintenance import verify

    report = verify.verify(store or job.current(home.features, home.dataset(typed).name), repair=repair)
    click.echo(_dump(_verified(report)) if as_json else _verify_text(report, repair))
    return 0 if report.whole else 1


def _verified(report: VerifyReport) -> dict[str, Any]:
    faults = [{"clip": f.clip, "file": f.where, "what": f.what, "stray": f.stray} for f in report.faults]
    return {"store": report.store, "whole": report.whole, "clips": report.clips, "frames": report.frames,
            "unfinished": report.unfinished, "faults": faults, "dropped": report.dropped, "cleared": report.cleared}


def _verify_text(report: VerifyReport, repair: bool) -> str:
    lines = [shown(f"{report.store}: {report.clips} clips read, {report.frames} frames whole")]
    lines += some([f"  {f.where}\n    {f.what}" for f in report.faults])
    if report.unfinished:
        lines.append(f"{len(report.unfinished)} clips are on their way or left half done; no reader sees them")
    if repair:
        lines += some([f"dropped {clip}" for clip in report.dropped]) + some([f"cleared {p}" for p in report.cleared])
    if report.whole:
        return "\n".join([*lines, "whole: every byte is the one that was written"])
    harmed = len({f.folder for f in report.faults if not f.stray})
    lines.append(f"NOT whole: {harmed} clips harmed" if report.clips else "NOT whole")
    lines.append("next: " + ("`fercache extract` does the dropped clips again" if report.dropped else
                             "`fercache extract`" if not report.clips else "`fercache verify --repair`"))
    return "\n".join(lines)


@click.command("diff")
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@JSON
@places
def diff_command(home: Home, first: Path, second: Path, as_json: bool) -> int:
    """Say which settings, taps and clips the stores FIRST and SECOND differ in; exits with 1 if they do.

    Reads the commit marks only; `fercache verify` is what proves that the arrays are those of the marks.
    """
    from fercache.maintenance import diff_part

    report = diff_part.diff(first, second)
    if as_json:
        click.echo(_dump({"equal": report.equal, "settings": report.settings, "taps": report.taps,
                          "only_first": report.only_first, "only_second": report.only_second, "same": report.same,
                          "differ": [vars(entry) for entry in report.differ]}))
    else:
        click.echo(_diff_text(report))
    return 0 if report.equal else 1


def _diff_text(report: DiffReport) -> str:
    lines = [shown(f"first   {report.stores[0]}"), shown(f"second  {report.stores[1]}")]
    for what, values in (("setting", report.settings), ("tap", report.taps)):
        lines += [shown(f"{what} {key}\n  first   {one}\n  second  {other}") for key, (one, other) in values.items()]
    for what, clips in (("first", report.only_first), ("second", report.only_second)):
        lines += some([f"only in the {what}: {clip}" for clip in clips])
    lines += some([_clip_text(entry) for entry in report.differ])
    ends = "equal" if report.equal else f"{len(report.differ)} clips differ"
    return "\n".join([*lines, f"{report.same} clips are the same, {ends}"])


def _local_only(home: Home, hint: str) -> None:
    """Refuse features at a URL: a proof that looked past them would be none."""
    if home.remote is not None:
        raise InputError("gc and forget look through features on this machine only", where=home.remote, hint=hint)


def _clip_text(entry: ClipDiff) -> str:
    frames = "" if entry.frames[0] == entry.frames[1] else f", {entry.frames[0]} and {entry.frames[1]} frames"
    made = "".join(f"\n    {key}: {one} and {other}" for key, (one, other) in entry.provenance.items())
    return f"differs: {entry.clip}{frames}: {', '.join(entry.arrays)}{made}"


@click.command("gc")
@config_options(DatasetConfig)
@click.option("--all", "everything", is_flag=True, help="Also the data sets that no recipe here names.")
@click.option("--yes", is_flag=True, help="Remove without asking.")
@JSON
@places
def gc_command(home: Home, everything: bool, yes: bool, as_json: bool, **typed: Any) -> int:
    """List what no recipe or data set names any more, and remove it if you say so.

    Named are what the recipes in --stages, and in the folders of recipes in it, make of their data set as it is now: a
    store, a book of logits, heads, a stack run. What a live process is writing is left alone.
    """
    from fercache.cli.named_part import named
    from fercache.maintenance import gc

    _local_only(home, "take clips out of a far store with fercache.open_store(URL, mode=\"a\").remove(CLIP)")
    stays = named(home, typed)
    found = gc.garbage(home.cache, stays.keep, stays.clips)
    waste = [item for item in found if everything or _dataset(home.cache, item) in stays.datasets]
    others = sorted({_dataset(home.cache, item) for item in found} - stays.datasets)
    if as_json:
        click.echo(_dump({"waste": [_waste(item) for item in waste], "removed": yes,
                          "left_alone": [] if everything else others}))
    else:
        click.echo("\n".join(_gc_lines(home.cache, waste)))
    if others and not everything:
        log.info("left alone, no recipe here names the data set: %s (--all takes it too)", ", ".join(others))
    if waste and (yes or (not as_json and _agreed())):
        freed = gc.collect(waste)
        log.info("removed %d files, %s", freed.files, amount(freed.bytes))
    elif waste:
        log.info("nothing was removed")
    return 0


def _dataset(cache: Path, item: Waste) -> str:
    return item.path.relative_to(cache).parts[1]


def _waste(item: Waste) -> dict[str, Any]:
    return {"path": item.path, "clip": item.clip or None, "why": item.why, "bytes": item.size.bytes,
            "files": item.size.files}


def _gc_lines(cache: Path, waste: Sequence[Waste]) -> list[str]:
    if not waste:
        return ["nothing to remove: all there is has a name in a recipe or a data set"]
    lines = []
    for item in waste:
        clip = f" clip {item.clip}" if item.folder else ""
        lines.append(shown(f"{item.path.relative_to(cache)}{clip}"))
        lines.append(f"  {amount(item.size.bytes)} in {item.size.files} files: {item.why}")
    return [*lines, f"{len(waste)} to remove, {amount(sum(item.size.bytes for item in waste))}"]


def _agreed() -> bool:
    """Return whether the user says yes; without anybody to ask, no."""
    try:
        return click.confirm("remove all of this?", err=True)
    except click.Abort:
        click.echo(err=True)
        return False


@click.command("forget")
@click.argument("clip")
@click.option("--name", help="Data set's folder in the cache.  [default: the one that holds the clip]")
@click.option("--everywhere", is_flag=True, help="In every data set that holds a clip of this name.")
@JSON
@places
def forget_command(home: Home, clip: str, name: str | None, everywhere: bool, as_json: bool) -> int:
    """Remove CLIP from every stage of the cache, then look everywhere for a trace of it; exits with 1 if one is left.

    Heads, logits and stack runs of its data set go too: they learnt from it. The clip's own video, and what was written
    outside the cache, are yours to remove.
    """
    from fercache.maintenance import forget_part

    _local_only(home, "remove the clip there with fercache.open_store(URL, mode=\"a\").remove(CLIP), then `fercache "
                "forget` without the URL for what was learnt from it")
    found = forget_part.holding(home.cache, clip) if name is None else [name]
    if len(found) > 1 and not everywhere:
        raise InputError(f"{len(found)} data sets hold a clip {clip!r}", where=home.cache,
                         hint=f"--everywhere, or --name with one of {', '.join(found)}")
    report = forget_part.forget(home.cache, clip, None if everywhere or not found else found[0])
    if as_json:
        click.echo(_dump({"clip": clip, "datasets": report.datasets, "removed": report.removed,
                          "traces": report.traces, "forgotten": not report.traces}))
    else:
        click.echo("\n".join([*(shown(f"removed {path}") for path in report.removed),
                              *(shown(f"STILL NAMED in {path}") for path in report.traces),
                              shown(f"{clip}: " + ("not forgotten" if report.traces else "no trace is left"))]))
    log.info("a data set that still names the clip brings it back: take it out there before the next extract")
    return 1 if report.traces else 0


def some(lines: Sequence[str]) -> list[str]:
    """Return the first lines for people, and how many more there are."""
    more = [f"... and {len(lines) - SHOWN} more (--json lists all)"] if len(lines) > SHOWN else []
    return [*map(shown, lines[:SHOWN]), *more]


def shown(text: str) -> str:
    """Return text that any terminal takes: names of clips may hold control characters or be no Unicode at all."""
    safe = "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
    return safe.encode("utf-8", "backslashreplace").decode()


def amount(size: int) -> str:
    """Return a number of bytes as people read it."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} bytes"


def _dump(value: dict[str, Any]) -> str:
    """Return JSON; paths as text."""
    return json.dumps(value, indent=1, default=_plain)


def _plain(value: object) -> object:
    return list(value) if isinstance(value, Iterable) else str(value)


UPKEEP_COMMANDS: tuple[click.Command, ...] = (verify_command, diff_command, gc_command, forget_command)
"""In the order of `fercache --help`."""
