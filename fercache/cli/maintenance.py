"""Commands that inspect and maintain the cache: verify, diff, gc, forget, weights, info."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fercache.backbones.registry import KNOWN_WEIGHTS
from fercache.cli.context import LOCATION, Context, HeadedCommand, config_options, location_options, make_config
from fercache.config import AblationConfig, DatasetConfig, ExtractConfig, StackConfig, TrainConfig
from fercache.errors import FercacheError, InputError, StoreError, WeightsError
from fercache.runtime import atomic_io
from fercache.runtime.progress import format_bytes
from fercache.runtime.uri import Location
from fercache.workspace import HEADS, LOGITS, METRICS, STACK, Workspace, heads_of

if TYPE_CHECKING:
    from fercache.data.base import Dataset
    from fercache.maintenance.gc import Unreferenced
    from fercache.maintenance.verify import ClipDiff, DiffReport, VerifyReport
    from fercache.store.embedding_store import EmbeddingStore

log = logging.getLogger("fercache")


SHOWN = 20
"""Most lines of one kind in the printed text; --json prints all of them."""
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
STORE = click.option("--store", type=LOCATION, help="Embedding store.  [default: the last one extracted]")


@click.command("verify", cls=HeadedCommand)
@config_options(DatasetConfig)
@STORE
@click.option("--repair", is_flag=True, help="Drop the damaged clips; the next extract computes them again.")
@JSON
@location_options
def verify_command(context: Context, store: Location | None, repair: bool, as_json: bool, **typed: Any) -> int:
    """Read every byte of a store and compare it with the digests in the clip manifests.

    Finds changed bits, missing or torn chunks, and clips of another store. The exit code is 1 if it finds any.
    """
    from fercache.extraction import job
    from fercache.maintenance import verify

    report = verify.verify_store(store or job.current_store(context.features, context.dataset(typed).name),
                                 repair=repair)
    click.echo(_dump(_verified(report)) if as_json else _verify_text(report, repair))
    return 0 if report.whole else 1


def _verified(report: VerifyReport) -> dict[str, Any]:
    return {"store": report.store, "whole": report.whole, "clips": report.clips, "frames": report.frames,
            "unfinished": report.unfinished, "issues": [asdict(issue) for issue in report.issues],
            "dropped": report.dropped, "cleared": report.cleared}


def _verify_text(report: VerifyReport, repair: bool) -> str:
    lines = [shown(f"{report.store}: {report.clips} clips read, {report.frames} frames whole")]
    lines += some([f"  {issue.where}\n    {issue.message}" for issue in report.issues])
    if report.unfinished:
        lines.append(f"{len(report.unfinished)} clips are unfinished; readers do not see them")
    if repair:
        lines += some([f"dropped {clip}" for clip in report.dropped]) + some([f"cleared {p}" for p in report.cleared])
    if report.whole:
        return "\n".join([*lines, "whole: every byte is the one that was written"])
    harmed = len({issue.details for issue in report.issues if issue.is_error})
    lines.append(f"NOT whole: {harmed} clips damaged" if report.clips else "NOT whole")
    lines.append("next: " + ("`fercache extract` computes the dropped clips again" if report.dropped else
                             "`fercache extract`" if not report.clips else "`fercache verify --repair`"))
    return "\n".join(lines)


@click.command("diff", cls=HeadedCommand)
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@JSON
@location_options
def diff_command(context: Context, first: Path, second: Path, as_json: bool) -> int:
    """List the settings, taps and clips in which the stores FIRST and SECOND differ; the exit code is 1 if they do.

    Reads only the clip manifests. Run `fercache verify` to check the arrays against the manifests.
    """
    from fercache.maintenance import verify

    report = verify.diff_stores(first, second)
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


def _local_only(context: Context, hint: str) -> None:
    """Refuse features at a URL: gc and forget cannot see them, so their result would be incomplete."""
    if context.remote is not None:
        raise InputError("gc and forget work on local features only", where=context.remote, hint=hint)


def _clip_text(entry: ClipDiff) -> str:
    frames = "" if entry.frames[0] == entry.frames[1] else f", {entry.frames[0]} and {entry.frames[1]} frames"
    made = "".join(f"\n    {key}: {one} and {other}" for key, (one, other) in entry.provenance.items())
    return f"differs: {entry.clip}{frames}: {', '.join(entry.arrays)}{made}"


@click.command("gc", cls=HeadedCommand)
@config_options(DatasetConfig)
@click.option("--all", "everything", is_flag=True, help="Include data sets that no recipe here names.")
@click.option("--yes", is_flag=True, help="Remove without asking.")
@JSON
@location_options
def gc_command(context: Context, everything: bool, yes: bool, as_json: bool, **typed: Any) -> int:
    """List stores, logits, heads and stack runs that no recipe needs, and remove them after confirmation.

    The recipes in --stages and in its subfolders need what they would compute from their data sets today. Files that a
    running process writes are never listed.
    """

    from fercache.maintenance import gc

    _local_only(context, "remove clips of a remote store with fercache.open_store(URL, mode=\"a\").remove(CLIP)")
    live = live_artifacts(context, typed)
    found = gc.find_unreferenced(context.cache, live.keep, live.clips)
    unreferenced = [item for item in found if everything or _dataset(context.cache, item) in live.datasets]
    others = sorted({_dataset(context.cache, item) for item in found} - live.datasets)
    if as_json:
        listed = [{"path": item.path, "clip": item.clip or None, "why": item.reason, "bytes": item.size.bytes,
                   "files": item.size.files} for item in unreferenced]
        click.echo(_dump({"waste": listed, "removed": yes,
                          "left_alone": [] if everything else others}))
    else:
        click.echo("\n".join(_gc_lines(context.cache, unreferenced)))
    if others and not everything:
        log.info("skipped, no recipe here names the data set: %s (use --all to include it)", ", ".join(others))
    if unreferenced and (yes or (not as_json and _agreed())):
        freed = gc.remove_unreferenced(unreferenced)
        log.info("removed %d files, %s", freed.files, format_bytes(freed.bytes))
    elif unreferenced:
        log.info("nothing was removed")
    return 0


def _dataset(cache: Path, item: Unreferenced) -> str:
    return item.path.relative_to(cache).parts[1]


def _gc_lines(cache: Path, unreferenced: Sequence[Unreferenced]) -> list[str]:
    if not unreferenced:
        return ["nothing to remove: a recipe or a data set names everything"]
    lines = []
    for item in unreferenced:
        clip = f" clip {item.clip}" if item.folder else ""
        lines.append(shown(f"{item.path.relative_to(cache)}{clip}"))
        lines.append(f"  {format_bytes(item.size.bytes)} in {item.size.files} files: {item.reason}")
    return [*lines, f"{len(unreferenced)} to remove, {format_bytes(sum(item.size.bytes for item in unreferenced))}"]


def _agreed() -> bool:
    """Return whether the user confirms; False without a terminal."""
    try:
        return click.confirm("remove all of this?", err=True)
    except click.Abort:
        click.echo(err=True)
        return False


@click.command("forget", cls=HeadedCommand)
@click.argument("clip")
@click.option("--name", help="Data set's folder in the cache.  [default: the one that holds the clip]")
@click.option("--everywhere", is_flag=True, help="In every data set that holds a clip of this name.")
@JSON
@location_options
def forget_command(context: Context, clip: str, name: str | None, everywhere: bool, as_json: bool) -> int:
    """Remove CLIP from every stage of the cache, then search for references to it; the exit code is 1 if one is left.

    Also removes the heads, logits and stack runs of its data set, because they were trained on it. You must remove the
    clip's own video and files outside the cache yourself.
    """
    from fercache.maintenance import forget

    _local_only(context, "remove the clip there with fercache.open_store(URL, mode=\"a\").remove(CLIP), then `fercache "
                "forget` without the URL for what was learnt from it")
    found = forget.datasets_with_clip(context.cache, clip) if name is None else [name]
    if len(found) > 1 and not everywhere:
        raise InputError(f"{len(found)} data sets hold a clip {clip!r}", where=context.cache,
                         hint=f"--everywhere, or --name with one of {', '.join(found)}")
    report = forget.forget_clip(context.cache, clip, None if everywhere or not found else found[0])
    if as_json:
        click.echo(_dump({"clip": clip, "datasets": report.datasets, "removed": report.removed,
                          "traces": report.references, "forgotten": not report.references}))
    else:
        click.echo("\n".join([*(shown(f"removed {path}") for path in report.removed),
                              *(shown(f"STILL NAMED in {path}") for path in report.references),
                              shown(f"{clip}: " + ("not forgotten" if report.references else "no trace is left"))]))
    log.info("remove the clip from the data set before the next extract, or it is extracted again")
    return 1 if report.references else 0


def some(lines: Sequence[str]) -> list[str]:
    """Return the first lines, and the number of omitted ones."""
    more = [f"... and {len(lines) - SHOWN} more (--json lists all)"] if len(lines) > SHOWN else []
    return [*map(shown, lines[:SHOWN]), *more]


def shown(text: str) -> str:
    """Return text that is safe to print: names of clips may hold control characters or invalid Unicode."""
    safe = "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
    return safe.encode("utf-8", "backslashreplace").decode()


def _dump(value: dict[str, Any]) -> str:
    """Return JSON text; paths become strings."""
    return json.dumps(value, indent=1, default=_plain)


def _plain(value: object) -> object:
    return list(value) if isinstance(value, Iterable) else str(value)

# The commands weights and info.

@click.group()
def weights_group() -> None:
    """List or download pretrained CNNs."""


@weights_group.command("list", cls=HeadedCommand)
@location_options
def weights_list(context: Context) -> int:
    """List the known weights and their paths."""
    from fercache.backbones import weights

    for row in weights.list_weights(context.workspace.weights):
        click.echo(f"{row.name}: {row.path or f'not here ({row.download_mb} MB to pull)'}")
        click.echo(f"  {row.source}; {row.terms}")
    return 0


@weights_group.command("pull", cls=HeadedCommand)
@click.argument("name")
@location_options
def weights_pull(context: Context, name: str) -> int:
    """Download the weights NAME, check their digest and store them as safetensors."""
    from fercache.backbones import weights

    click.echo(weights.download_weights(name, context.workspace.weights).path)
    return 0


@click.command("info", cls=HeadedCommand)
@config_options(DatasetConfig)
@click.option("--store", type=LOCATION, help="Embedding store.  [default: the last one extracted]")
@click.option("--list", "listed", is_flag=True, help="Also each clip and its frames.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@location_options
def info_command(context: Context, store: Location | None, listed: bool, as_json: bool, **typed: Any) -> int:
    """Print the contents of an embedding store: clips, frames, bytes, taps, fingerprint, digest.

    Without a store, print the bytes and the time that `extract` will need.
    """
    from fercache.extraction import job
    from fercache.store.embedding_store import EmbeddingStore

    dataset = None if store else context.dataset(typed)
    if dataset is not None and job.current_store_or_none(context.features, dataset.name) is None:
        return _print_cost(context, dataset, as_json)
    path = store or job.current_store(context.features, dataset.name if dataset else "")
    opened = EmbeddingStore.open(path)
    frames = {clip: opened.manifest(clip).frames for clip in opened}
    record = _store_summary(opened, str(path), frames)
    if as_json:
        click.echo(json.dumps(record | ({"frames_of": frames} if listed else {}), indent=1))
        return 0
    show(record)
    for clip in frames if listed else ():
        click.echo(shown(f"{frames[clip]:9d} {clip}"))
    return 0


def _store_summary(store: EmbeddingStore, path: str, frames: dict[str, int]) -> dict[str, Any]:
    """Return the summary of a store."""
    from fercache.config import fingerprint_of

    size = store.size()
    return {"store": path, "clips": len(frames), "frames": sum(frames.values()), "bytes": size.bytes,
            "files": size.files, "taps": {tap: list(shape) for tap, shape in store.taps.items()},
            "bytes_a_frame": 2 * sum(prod(shape) for shape in store.taps.values()),
            "fingerprint": fingerprint_of(store.settings), "digest": store.digest()}


def _print_cost(context: Context, dataset: Dataset, as_json: bool) -> int:
    """Print the cost of extraction."""
    from fercache.diagnostics import check

    cost = check.predict_cost(dataset, context.config(ExtractConfig, "extract", {}), context.cache)
    if as_json:
        click.echo(json.dumps({"store": None, "ahead": asdict(cost)}, indent=1))
    else:
        click.echo("\n".join([f"{dataset.name}: nothing was extracted yet", *check.cost_lines(cost),
                              "next: `fercache extract`; `fercache check --taps ..` compares other taps"]))
    return 0


def show(record: dict[str, Any]) -> None:
    """Print a record as a table for 80 columns and up; long values wrap."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    table.add_column("what", style="bold", no_wrap=True)
    table.add_column("value", overflow="fold")
    for key, value in record.items():
        table.add_row(Text(key.replace("_", " ")), Text(_readable(key, value)))
    Console().print(table)


def _readable(key: str, value: Any) -> str:
    if key == "bytes":
        return f"{value:,} ({value / 1e9:.2f} GB)"
    if key == "taps":
        return "\n".join(f"{tap} {' x '.join(str(side) for side in shape)}" for tap, shape in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)


# Artifacts that the recipes and their data sets still need: `gc` must not remove them.

@dataclass
class LiveArtifacts:
    """Artifacts that `gc` must not remove.

    Attributes
    ----------
    keep : stores, books, folders of heads and of stack runs.
    clips : store -> the clips that its data set names.
    datasets : data sets that a recipe (or a flag) names.
    """

    keep: set[Path] = field(default_factory=set)
    clips: dict[Path, set[str]] = field(default_factory=dict)
    datasets: set[str] = field(default_factory=set)


def live_artifacts(context: Context, typed: dict[str, Any]) -> LiveArtifacts:
    """Return what the recipes in the folder of recipes, and in every folder of recipes in it, name.

    Parameters
    ----------
    typed : flags that name another data set than the recipes do.

    Raises
    ------
    InputError
        A recipe or its data set cannot be read, so it is unknown which artifacts it needs.
    """
    from fercache import data
    from fercache.data import base

    found = LiveArtifacts()
    for stages in recipe_folders(context.stages):
        config = make_config(DatasetConfig, "dataset", stages, typed)
        if config.dataset == "logits":  # such a data set has no clips and no store, only imported logits
            name = data.logits_name(config)
            found.datasets.add(name)
            found.keep.update([context.workspace.imported_logits(name),
                               *stack_runs(context.cache, name, None, stages)])
            continue
        dataset = data.load_dataset(config, context.cache)
        found.datasets.add(dataset.name)
        found.keep.add(context.workspace.imported_logits(dataset.name))
        for path in _stores(context.cache, dataset, stages):
            found.keep.add(path)
            store = _opened(path)
            if store is not None and is_ours(store):  # imported ones cannot be computed again
                stored = base.stored_trials(dataset, store)
                names = {trial.name for trial in stored.trials} | {problem.where for problem in dataset.problems}
                found.clips[path] = found.clips.get(path, set()) | names
                found.keep.update(_learnt(context.cache, dataset, store, stages))
    return found


def recipe_folders(stages: Path) -> list[Path]:
    """Return a folder of recipes and the folders of recipes in it."""
    inner = [path for path in sorted(stages.glob("*")) if path.is_dir() and any(path.glob("*.toml"))]
    return [stages, *inner]


def _stores(cache: Path, dataset: Dataset, stages: Path) -> Iterator[Path]:
    """Yield the path of the recipe's store, and of stores with imported features."""
    from fercache.backbones import weights
    from fercache.extraction import job

    folder = Workspace(cache).features(dataset.name)
    config = make_config(ExtractConfig, "extract", stages, {})
    try:
        cnn = weights.resolve_weights(config.weights, Workspace(cache).weights)
    except WeightsError as error:
        log.warning("%s; keeping every store that may use these weights", error.what)
        yield from folder.glob(f"{config.weights}-*.zarr" if config.weights in KNOWN_WEIGHTS else "*.zarr")
    else:
        settings = job.settings_of(config, job.resolve_faces(dataset, config), cnn)
        yield Path(str(job.store_path(cache, dataset.name, settings)))
    for path in sorted(folder.glob("*.zarr")):
        store = _opened(path)
        if store is not None and not is_ours(store):
            yield path


def is_ours(store: EmbeddingStore) -> bool:
    """Return whether `extract` wrote the store; imports write an integer format."""
    return isinstance(store.settings.get("format"), dict)


def _opened(path: Path) -> EmbeddingStore | None:
    from fercache.store.embedding_store import EmbeddingStore

    try:
        return EmbeddingStore.open(path)
    except StoreError:  # absent, or its root is damaged and `extract` will rewrite it
        return None


def _learnt(cache: Path, dataset: Dataset, store: EmbeddingStore, stages: Path) -> Iterator[Path]:
    """Yield the logits, heads and stack runs that the recipes would compute from a store today."""
    from fercache.diagnostics import ablation

    usual = make_config(TrainConfig, "train-heads", stages, {})
    trains = TrainingSettings(cache, dataset, store)
    try:
        logits_file = trains.logits_file(usual)
    except FercacheError as error:
        log.warning("%s; keeping all logits and heads of %s", error.what, dataset.name)
        yield from (path for stage in (LOGITS, HEADS, STACK) for path in (cache / stage / dataset.name).glob("*"))
        return
    yield from (logits_file, heads_of(logits_file))
    for config in ablation.trained_default(usual, make_config(AblationConfig, "ablation", stages, {})):
        with suppress(FercacheError):  # this store cannot train the row, so the row has no logits
            tried = trains.logits_file(config)
            yield from (tried, heads_of(tried))
    if logits_file.is_file():
        yield from stack_runs(cache, dataset.name, logits_file, stages)


class TrainingSettings:
    """Paths of the logits and heads of training settings; reads each store's settings once."""

    def __init__(self, cache: Path, dataset: Dataset, store: EmbeddingStore) -> None:
        from fercache.data import base

        dataset = base.stored_trials(dataset, store)
        self.cache, self.dataset, self.store = cache, dataset, store
        self.trials = [trial for trial in dataset.trials if trial.name in store]
        self.settings_by_join: dict[tuple[str, ...], dict[str, Any]] = {}

    def logits_file(self, config: TrainConfig) -> Path:
        """Return the path of the logits of these settings.

        Raises
        ------
        FercacheError
            The store lacks a tap, or a joined store is missing.
        """
        from fercache.config import fingerprint_of
        from fercache.store.multi_store import join_stores
        from fercache.training import train

        joined, taps = join_stores(self.store, config.join, config.taps)
        config = replace(config, taps=taps)
        if config.join not in self.settings_by_join:
            record = train.settings_of(self.dataset, self.trials, joined, config)
            self.settings_by_join[config.join] = {key: record[key] for key in record.keys() - config.settings().keys()}
        digest = fingerprint_of({**self.settings_by_join[config.join], **config.settings()})
        return Workspace(self.cache).logits_file(self.dataset.name, digest)


def stack_runs(cache: Path, dataset: str, logits_file: Path | None, stages: Path) -> Iterator[Path]:
    """Yield the recipe's stack runs of a logits file (None: imported logits only), with and without imported logits.

    Notes
    -----
    A finished run records its imported logits; it live if the recipe would compute the same run with them.
    """
    from fercache import logits_import
    from fercache.stacking import inputs, stack

    folder, usual = Workspace(cache).stack_runs(dataset), make_config(StackConfig, "stack", stages, {})
    asked = {(usual.logits, usual.force)} | {record for path in folder.glob("*") if (record := _logits_of(path))}
    for logits, force in sorted(asked):
        config = replace(usual, logits=logits, force=force)
        try:
            names = logits if logits_file or logits else tuple(logits_import.imported_names(cache, dataset))
            loaded = inputs.load_logits(cache, dataset, logits_file, names)
        except FercacheError as error:
            if logits != usual.logits:
                continue  # its logits are gone, or another recipe wrote it: nothing needs this run
            log.warning("%s: %s; keeping every stack run of %s", error.where, error.what, dataset)
            yield from folder.glob("*")
        else:
            yield Workspace(cache).stack_run(dataset, stack.fingerprint(loaded, config))


def _logits_of(run: Path) -> tuple[tuple[str, ...], bool] | None:
    """Return the imported logits of a finished stack run, and its `force` flag; None: unknown."""
    try:
        record = atomic_io.read_json(run / METRICS)["config"]
        return tuple(record["logits"]), bool(record["force"])
    except (FercacheError, OSError, KeyError, TypeError):
        return None
