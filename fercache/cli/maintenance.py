"""Commands that inspect and maintain the cache, and exchange its data with other tools."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fercache import recipe
from fercache.cli.context import FILE, JSON, STORE, CommaList, command, open_store, show
from fercache.config import DatasetConfig, ExtractConfig, LogitsConfig
from fercache.errors import InputError
from fercache.recipe import Context, log_issues, split_names
from fercache.runtime.progress import format_bytes
from fercache.runtime.uri import Location
from fercache.workspace import features_folder

if TYPE_CHECKING:
    from fercache.maintenance.gc import Unreferenced
    from fercache.maintenance.verify import DiffReport, VerifyReport

log = logging.getLogger("fercache")

MAX_LINES = 20  # most lines of one kind in the printed text; --json prints all of them


@command("verify", DatasetConfig)
@STORE
@click.option("--repair", is_flag=True, help="Drop the damaged clips; the next extract computes them again.")
@JSON
def verify_command(context: Context, store: Location | None, repair: bool, as_json: bool, **typed: Any) -> int:
    """Read every byte of a store and compare it with the digests in the clip manifests.

    Finds changed bits, missing or torn chunks, and clips of another store. The exit code is 1 if it finds any.
    """
    from fercache.extraction import job
    from fercache.maintenance import verify

    report = verify.verify_store(store or job.current_store(context.features, context.dataset(typed).name),
                                 repair=repair)
    show(_verify_text(report, repair), {"whole": report.whole, **vars(report)}, as_json)
    return 0 if report.whole else 1


def _verify_text(report: VerifyReport, repair: bool) -> str:
    lines = [printable(f"{report.store}: {report.clips} clips read, {report.frames} frames whole")]
    lines += first_lines([f"  {issue.where}\n    {issue.message}" for issue in report.issues])
    if report.unfinished:
        lines.append(f"{len(report.unfinished)} clips are unfinished; readers do not see them")
    if repair:
        lines += first_lines([f"dropped {clip}" for clip in report.dropped])
        lines += first_lines([f"cleared {path}" for path in report.cleared])
    if report.whole:
        return "\n".join([*lines, "whole: every byte is the one that was written"])
    damaged = len({issue.details for issue in report.issues if issue.is_error})
    lines.append(f"NOT whole: {damaged} clips damaged" if report.clips else "NOT whole")
    lines.append("next: " + ("`fercache extract` computes the dropped clips again" if report.dropped else
                             "`fercache extract`" if not report.clips else "`fercache verify --repair`"))
    return "\n".join(lines)


@command("diff")
@click.argument("first", type=FILE)
@click.argument("second", type=FILE)
@JSON
def diff_command(context: Context, first: Path, second: Path, as_json: bool) -> int:
    """List the settings, taps and clips in which the stores FIRST and SECOND differ; the exit code is 1 if they do.

    Reads only the clip manifests. Run `fercache verify` to check the arrays against the manifests.
    """
    from fercache.maintenance import verify

    report = verify.diff_stores(first, second)
    show(_diff_text(report), {"equal": report.equal, **vars(report)}, as_json)
    return 0 if report.equal else 1


def _diff_text(report: DiffReport) -> str:
    lines = [printable(f"first   {report.stores[0]}"), printable(f"second  {report.stores[1]}")]
    for kind, values in (("setting", report.settings), ("tap", report.taps)):
        lines += [printable(f"{kind} {key}\n  first   {one}\n  second  {other}")
                  for key, (one, other) in values.items()]
    for which, clips in (("first", report.only_first), ("second", report.only_second)):
        lines += first_lines([f"only in the {which}: {clip}" for clip in clips])
    texts = []
    for clip in report.differ:
        frames = "" if clip.frames[0] == clip.frames[1] else f", {clip.frames[0]} and {clip.frames[1]} frames"
        provenance = "".join(f"\n    {key}: {one} and {other}" for key, (one, other) in clip.provenance.items())
        texts.append(f"differs: {clip.clip}{frames}: {', '.join(clip.arrays)}{provenance}")
    end = "equal" if report.equal else f"{len(report.differ)} clips differ"
    return "\n".join([*lines, *first_lines(texts), f"{report.same} clips are the same, {end}"])


def _require_local(context: Context, hint: str) -> None:
    """Refuse features at a URL: gc and forget cannot see them, so their result would be incomplete."""
    if context.remote is not None:
        raise InputError("gc and forget work on local features only", where=context.remote, hint=hint)


@command("gc", DatasetConfig)
@click.option("--all", "everything", is_flag=True, help="Include data sets that no recipe here names.")
@click.option("--yes", is_flag=True, help="Remove without asking.")
@JSON
def gc_command(context: Context, everything: bool, yes: bool, as_json: bool, **typed: Any) -> int:
    """List stores, logits, heads and stack runs that no recipe needs, and remove them after confirmation.

    The recipes in --stages and in its subfolders need what they would compute from their data sets today. Files that a
    running process writes are never listed.
    """
    from fercache.maintenance import gc

    _require_local(context, "remove clips of a remote store with fercache.open_store(URL, mode=\"a\").remove(CLIP)")
    live = gc.live_artifacts(context.cache, context.stages, typed)
    found = gc.find_unreferenced(context.cache, live.keep, live.clips)
    # The second folder below the cache is the data set: cache/STAGE/DATASET/...
    dataset_of = {item: item.path.relative_to(context.cache).parts[1] for item in found}
    unreferenced = [item for item in found if everything or dataset_of[item] in live.datasets]
    others = sorted(set(dataset_of.values()) - live.datasets)
    listed = [{"path": item.path, "clip": item.clip or None, "why": item.reason, "bytes": item.size.bytes,
               "files": item.size.files} for item in unreferenced]
    show("\n".join(_gc_lines(context.cache, unreferenced)),
         {"unreferenced": listed, "removed": yes, "skipped": [] if everything else others}, as_json)
    if others and not everything:
        log.info("skipped, no recipe here names the data set: %s (use --all to include it)", ", ".join(others))
    # --json is for scripts: a question in its output could not be parsed.
    if unreferenced and (yes or (not as_json and _confirmed())):
        freed = gc.remove_unreferenced(unreferenced)
        log.info("removed %d files, %s", freed.files, format_bytes(freed.bytes))
    elif unreferenced:
        log.info("nothing was removed")
    return 0


def _gc_lines(cache: Path, unreferenced: Sequence[Unreferenced]) -> list[str]:
    if not unreferenced:
        return ["nothing to remove: a recipe or a data set names everything"]
    lines = []
    for item in unreferenced:
        clip = f" clip {item.clip}" if item.folder else ""
        lines.append(printable(f"{item.path.relative_to(cache)}{clip}"))
        lines.append(f"  {format_bytes(item.size.bytes)} in {item.size.files} files: {item.reason}")
    return [*lines, f"{len(unreferenced)} to remove, {format_bytes(sum(item.size.bytes for item in unreferenced))}"]


def _confirmed() -> bool:
    """Return whether the user confirms; False without a terminal."""
    try:
        return click.confirm("remove all of this?", err=True)
    except click.Abort:  # Ctrl-C, or no terminal to ask at
        click.echo(err=True)
        return False


@command("forget")
@click.argument("clip")
@click.option("--name", help="Data set's folder in the cache.  [default: the one that holds the clip]")
@click.option("--everywhere", is_flag=True, help="In every data set that holds a clip of this name.")
@JSON
def forget_command(context: Context, clip: str, name: str | None, everywhere: bool, as_json: bool) -> int:
    """Remove CLIP from every stage of the cache, then search for references to it; the exit code is 1 if one is left.

    Also removes the heads, logits and stack runs of its data set, because they were trained on it. You must remove the
    clip's own video and files outside the cache yourself.
    """
    from fercache.maintenance import forget

    _require_local(context, "remove the clip there with fercache.open_store(URL, mode=\"a\").remove(CLIP), then use "
                   "`fercache forget` without the URL for what was trained on it")
    found = forget.datasets_with_clip(context.cache, clip) if name is None else [name]
    if len(found) > 1 and not everywhere:
        raise InputError(f"{len(found)} data sets hold a clip {clip!r}", where=context.cache,
                         hint=f"use --everywhere, or --name with one of {', '.join(found)}")
    report = forget.forget_clip(context.cache, clip, None if everywhere or not found else found[0])
    lines = [*(f"removed {path}" for path in report.removed), *(f"STILL NAMED in {path}" for path in report.references),
             f"{clip}: " + ("not forgotten" if report.references else "no reference is left")]
    show("\n".join(map(printable, lines)), {"clip": clip, "forgotten": not report.references, **vars(report)}, as_json)
    # `forget` cannot edit the user's own files, so the next extraction would bring the clip back.
    log.info("remove the clip from the data set before the next extract, or it is extracted again")
    return 1 if report.references else 0


def first_lines(lines: Sequence[str]) -> list[str]:
    """Return the first lines, and the number of omitted ones."""
    more = [f"... and {len(lines) - MAX_LINES} more (--json lists all)"] if len(lines) > MAX_LINES else []
    return [*map(printable, lines[:MAX_LINES]), *more]


def printable(text: str) -> str:
    """Return text that is safe to print: names of clips may hold control characters or invalid Unicode."""
    # Control characters first: an escape sequence in a file name could rewrite the terminal.
    safe = "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
    return safe.encode("utf-8", "backslashreplace").decode()


@click.group()
def weights_command() -> None:
    """List, download, add or check pretrained nets."""


@command("list", group=weights_command)
def weights_list(context: Context) -> int:
    """List the known weights and their paths."""
    from fercache.backbones import weights

    for row in weights.list_weights(context.workspace.weights):
        size = f" ({row.download_mb} MB to pull)" if row.download_mb else ""
        click.echo(f"{row.name}: {row.path or f'not here{size}'}{'' if row.verified else ' (not verified)'}")
        click.echo(f"  {row.source}; {row.terms}")
    return 0


@command("pull", group=weights_command)
@click.argument("name")
def weights_pull(context: Context, name: str) -> int:
    """Download the weights NAME; known ones are checked by digest and stored as safetensors."""
    from fercache.backbones import weights

    click.echo(weights.ensure_weights(name, context.workspace.weights).path)
    return 0


def _numbers(_: click.Context, __: click.Parameter, text: str | None) -> list[float] | None:
    """Return three numbers, separated by commas or spaces, or one for all channels."""
    if text is None:
        return None
    try:
        values = [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        values = []
    if len(values) not in (1, 3):
        raise click.BadParameter("takes one number, or three: red,green,blue")
    return values if len(values) == 3 else values * 3


@command("add", group=weights_command)
@click.argument("name")
@click.option("--net", required=True, help="Where the net comes from: onnx:PATH, timm:NAME, hf:REPO, or a folder of "
              "those two.")
@click.option("--size", type=int, help="Side of its input in pixels.")
@click.option("--resize", type=int, help="Side that the face is scaled to, if the net sees the middle of it only.")
@click.option("--mean", callback=_numbers, help="Mean of each channel, for pixels from 0 to 1.")
@click.option("--std", callback=_numbers, help="Standard deviation of each channel.")
@click.option("--channels", type=click.Choice(["rgb", "bgr"]), help="Order of the channels.")
@click.option("--interpolation", type=click.Choice(["bilinear", "bicubic", "lanczos"]), help="How faces are scaled.")
@click.option("--crop", type=click.Choice(["box", "square", "aligned"]), help="The box stretched, the square around "
              "it, or aligned by landmarks.")
@click.option("--template", type=click.Choice(["arcface112", "dlib150"]), help="Where the landmarks go.")
@click.option("--margin", type=float, help="Margin around the box, as a fraction of its longer side.")
@click.option("--scales", type=float, multiple=True, help="Relative sizes of the region, over which taps are "
              "averaged; give it once for each.")
@click.option("--taps", help="Taps to store by default, separated by commas.")
@click.option("--identity", help="Tap whose cosine tells people apart.")
@click.option("--source", help="Where the net comes from, for people.")
@click.option("--terms", help="What it may be used for.")
@click.option("--reference", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Vectors of the "
              "pictures of `weights check --pictures`, made by the net's own library: .npy, a row for each face.")
def weights_add(context: Context, name: str, net: str, taps: str | None, reference: Path | None, **keys: Any) -> int:
    """Write a card for a net of your own, so that --weights NAME uses it with its preprocessing."""
    from fercache.backbones import weights
    from fercache.diagnostics import check_weights as check

    given = {key: list(value) if isinstance(value, tuple) else value for key, value in keys.items()
             if value not in (None, ())}
    if taps:
        given["taps"] = list(split_names(taps))
    if reference is not None:
        given["reference"] = {(given.get("taps") or ["pooled"])[0]: check.read_reference(reference)}
    click.echo(weights.add_card(name, net, given, context.workspace.weights, check.check_runs))
    return 0


@command("check", group=weights_command)
@click.argument("name")
@click.option("--pictures", type=click.Path(path_type=Path, file_okay=False), help="Write the test pictures to this "
              "folder, for vectors by the net's own library.")
def weights_check(context: Context, name: str, pictures: Path | None) -> int:
    """Compare a net's vectors of test pictures with those of its own library, and name a wrong preprocessing.

    A difference is relative to that between the faces. Without reference vectors in its card (`weights add
    --reference`), a net is not verified. Exit code 1: the vectors differ.
    """
    from fercache.backbones import weights
    from fercache.diagnostics import check_weights as check

    if pictures is not None:
        for path in check.write_pictures(pictures):
            click.echo(path)
    result = check.check_weights(weights.ensure_weights(name, context.workspace.weights))
    if result.error != result.error:
        click.echo(f"{name}: not verified: its card has no reference vectors")
        return 0
    click.echo(f"{name}: {'verified' if result.verified else 'differs from its own library'}: difference "
               f"{result.error:.2g}, at most {check.TOLERANCE:g} is allowed")
    for mistake in result.mistakes:
        click.echo(f"  it fits {'' if result.best <= check.TOLERANCE else 'better '}with {mistake}")
    if result.mistakes and result.best <= check.TOLERANCE:
        click.echo(f"  with that the difference is {result.best:.2g}: change the card")
    elif not result.verified:
        click.echo("  no usual mistake explains it: compare the whole preprocessing with the library's")
    return 0 if result.verified else 1


@command("info", DatasetConfig)
@STORE
@click.option("--list", "with_clips", is_flag=True, help="List each clip and its number of frames.")
@JSON
def info_command(context: Context, store: Location | None, with_clips: bool, as_json: bool, **typed: Any) -> int:
    """Print the contents of an embedding store: clips, frames, bytes, taps, fingerprint, digest.

    If nothing was extracted yet, print the bytes and the time that `extract` will need.
    """
    from fercache.backbones import weights
    from fercache.config import fingerprint_of
    from fercache.extraction import job

    dataset = None if store else context.dataset(typed)  # a named store needs no data set
    if dataset is not None and job.current_store_or_none(context.features, dataset.name) is None:
        from fercache.diagnostics import check

        config = recipe.make_config(ExtractConfig, "extract", context.stages, {})
        cost = check.predict_cost(dataset, config, context.cache)
        show("\n".join([f"{dataset.name}: nothing was extracted yet", *check.cost_lines(cost),
                        "next: `fercache extract`; `fercache check --taps ..` compares other taps"]),
             {"store": None, "cost": cost}, as_json)
        return 0
    opened = open_store(context, store, dataset.name if dataset else "")
    frames = {clip: opened.manifest(clip).frames for clip in opened}
    size = opened.size()
    backbone = weights.verification_of(opened.settings, context.workspace.weights)
    summary = {"store": str(opened.path), **({"backbone": backbone} if backbone else {}), "clips": len(frames),
               "frames": sum(frames.values()), "bytes": size.bytes,
               "files": size.files, "taps": {tap: list(shape) for tap, shape in opened.taps.items()},
               "bytes_a_frame": 2 * sum(prod(shape) for shape in opened.taps.values()),
               "fingerprint": fingerprint_of(opened.settings), "digest": opened.digest()}
    show(_summary_text(summary), summary | ({"frames_of": frames} if with_clips else {}), as_json)
    for clip in frames if with_clips and not as_json else ():
        click.echo(printable(f"{frames[clip]:9d} {clip}"))
    return 0


def _summary_text(summary: dict[str, Any]) -> str:
    lines = []
    for key, value in summary.items():
        text = f"{value:,}" if isinstance(value, int) else str(value)
        if key == "bytes":
            text += f" ({format_bytes(value)})"
        elif key == "taps":
            text = ", ".join(f"{tap} {' x '.join(map(str, shape))}" for tap, shape in value.items())
        # Only the taps are wrapped: a path in two lines cannot be copied.
        parts = textwrap.wrap(text, 65, break_on_hyphens=False) if key == "taps" else [printable(text)]
        lines.append(f"{key.replace('_', ' '):15}" + ("\n" + " " * 15).join(parts))
    return "\n".join(lines)


@command("export", DatasetConfig)
@STORE
@click.option("--to", type=click.Choice(("h5", "npz", "parquet")), required=True,
              help="h5 and parquet write one file, npz writes a folder.")
@click.option("--out", type=FILE, required=True, help="File or folder to write; it must not exist.")
@click.option("--only", type=CommaList(), default=(), help="Clips to export.  [default: all]")
@click.option("--taps", type=CommaList(), default=(), help="Taps to export.  [default: all]")
def export_command(context: Context, store: Location | None, to: str, out: Path, only: tuple[str, ...],
                   taps: tuple[str, ...], **typed: Any) -> int:
    """Write a store's features and frame tables, unchanged, as files that other tools read."""
    from fercache.maintenance import export

    opened = open_store(context, store, "" if store else context.dataset(typed).name)
    log.info("%d clips, %d frames written", *export.export_store(opened, to, out, clips=only, taps=taps))
    click.echo(out)
    return 0


@command("import", DatasetConfig)
@click.argument("path", type=FILE)
@click.option("--as", "as_", required=True, metavar="NAME",
              help="Name of the store; `train-heads --join NAME` uses it.")
@click.option("--fps", type=click.FloatRange(1e-3, 1e6), default=30.0, show_default=True,
              help="Frames a second, if the file has no times.")
def import_command(context: Context, path: Path, as_: str, fps: float, **typed: Any) -> int:
    """Make a store of features from another tool, with the same frame numbers as the extracted ones.

    PATH is an HDF5 file (file[clip]['00001'], or file[clip] of one row a frame), a folder of one .npz or .npy a clip,
    a .csv or .parquet table with columns clip and frame (also of OpenFace or py-feat; a folder of .csv has one a clip),
    or what `fercache export` wrote. Frames count from 1, or from --first-frame; frames that are not given get zeros.
    Values are kept as float16. A pickle is never loaded.
    """
    from fercache.data.base import Issue
    from fercache.maintenance import importer

    first_frame = typed.pop("first_frame")  # of the imported table, not of the data set's labels
    dataset = context.dataset(typed, record=True)
    report = importer.import_features(path, as_, features_folder(context.features, dataset.name), fps=fps,
                                      first_frame=first_frame)
    log_issues(Issue(where=clip, message=message.removeprefix(f"{clip}: ")) for clip, message in report.failed.items())
    log.info("%d clips imported (%d frames), %d cached, %d failed", len(report.clips), report.frames,
             len(report.cached), len(report.failed))
    # Names that differ from the data set's are imported, but no training will find them.
    extra = {clip for clip in (*report.clips, *report.cached)
             if clip.partition("#")[0] not in {trial.name for trial in dataset.trials}}
    if extra:
        log.warning("%d clips are not in the data set: %s", len(extra), ", ".join(sorted(extra)[:3]))
    click.echo(report.store)
    return 1 if report.failed else 0


@click.group()
def logits_command() -> None:
    """Import predictions of any other model as one more head of the stack."""


@command("import", DatasetConfig, LogitsConfig, group=logits_command)
@click.argument("logits_name", metavar="NAME")
def logits_import_command(context: Context, logits_name: str, **typed: Any) -> int:
    """Import the predictions in a table as NAME, for `fercache stack --logits NAME`.

    A row is a frame (clip,frame[,person]) or a whole clip (clip), with a column p_CLASS or logit_CLASS for each class.
    With --dataset logits --name SET there are no clips: label, split and group are columns of the tables.
    """
    from fercache import logits_import

    config = context.config(LogitsConfig, "logits-import", typed)
    if not config.table or not config.provenance:
        raise InputError("the table or its provenance is missing", where="logits import",
                         hint="add --table FILE --provenance out-of-fold|held-out|in-sample")
    first_frame = typed.pop("first_frame")  # of the imported table, not of the data set's labels
    name = context.dataset_name(typed)
    path, _ = logits_import.import_logits(logits_name, config, name, context.cache,
                                          1 if first_frame is None else first_frame)
    context.record(name, context.dataset_config(typed))
    click.echo(path)
    return 0
