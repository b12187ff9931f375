"""The commands that look after the cache: info, weights."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from math import prod
from typing import TYPE_CHECKING, Any

import click

from fercache.cli.context import Home, places
from fercache.cli.maintenance import shown
from fercache.cli.options_part import PLACE, config_options
from fercache.config import DatasetConfig, ExtractConfig
from fercache.runtime.uri import Place

if TYPE_CHECKING:
    from fercache.data.base import Dataset
    from fercache.store.embedding_store import EmbeddingStore

log = logging.getLogger('fercache')


@click.group()
def weights_command() -> None:
    """Pretrained CNNs: which are known, which are here."""


@weights_command.command("list")
@places
def weights_list(home: Home) -> int:
    """List the known weights and where they lie."""
    from fercache.backbones import weights

    for row in weights.listing(home.cache / "weights"):
        click.echo(f"{row.name}: {row.path or f'not here ({row.download_mb} MB to pull)'}")
        click.echo(f"  {row.source}; {row.terms}")
    return 0


@weights_command.command("pull")
@click.argument("name")
@places
def weights_pull(home: Home, name: str) -> int:
    """Download the weights NAME, check them and keep them as safetensors."""
    from fercache.backbones import weights

    click.echo(weights.pull(name, home.cache / "weights").path)
    return 0


@click.command("info")
@config_options(DatasetConfig)
@click.option("--store", type=PLACE, help="Embedding store.  [default: the last one extracted]")
@click.option("--list", "listed", is_flag=True, help="Also each clip and its frames.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@places
def info_command(home: Home, store: Place | None, listed: bool, as_json: bool, **typed: Any) -> int:
    """Say what an embedding store holds: clips, frames, bytes, taps, fingerprint, digest.

    Before anything was extracted: what the recipe of `extract` will cost, in bytes and time.
    """
    from fercache.extraction import job
    from fercache.store.embedding_store import EmbeddingStore

    dataset = None if store else home.dataset(typed)
    if dataset is not None and job.current_or_none(home.features, dataset.name) is None:
        return _ahead(home, dataset, as_json)
    path = store or job.current(home.features, dataset.name if dataset else "")
    held = EmbeddingStore.open(path)
    frames = {clip: held.mark(clip).frames for clip in held}
    said = _held(held, str(path), frames)
    if as_json:
        click.echo(json.dumps(said | ({"frames_of": frames} if listed else {}), indent=1))
        return 0
    show(said)
    for clip in frames if listed else ():
        click.echo(shown(f"{frames[clip]:9d} {clip}"))
    return 0


def _held(held: EmbeddingStore, path: str, frames: dict[str, int]) -> dict[str, Any]:
    """Return what is said of a store."""
    from fercache.config import digest

    size = held.size()
    return {"store": path, "clips": len(frames), "frames": sum(frames.values()), "bytes": size.bytes,
            "files": size.files, "taps": {tap: list(shape) for tap, shape in held.taps.items()},
            "bytes_a_frame": 2 * sum(prod(shape) for shape in held.taps.values()),
            "fingerprint": digest(held.settings), "digest": held.digest()}


def _ahead(home: Home, dataset: Dataset, as_json: bool) -> int:
    """Say what stage one will cost."""
    from fercache.diagnostics import check, text_part

    cost = check.cost_ahead(dataset, home.config(ExtractConfig, "extract", {}), home.cache)
    if as_json:
        click.echo(json.dumps({"store": None, "ahead": asdict(cost)}, indent=1))
    else:
        click.echo("\n".join([f"{dataset.name}: nothing was extracted yet", *text_part.cost_lines(cost),
                              "next: `fercache extract`; `fercache check --taps ..` compares other taps"]))
    return 0


def show(said: dict[str, Any]) -> None:
    """Print what is said of something as a table, for 80 columns and up; long values go on in the next line."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    table.add_column("what", style="bold", no_wrap=True)
    table.add_column("value", overflow="fold")
    for key, value in said.items():
        table.add_row(Text(key.replace("_", " ")), Text(_readable(key, value)))
    Console().print(table)


def _readable(key: str, value: Any) -> str:
    if key == "bytes":
        return f"{value:,} ({value / 1e9:.2f} GB)"
    if key == "taps":
        return "\n".join(f"{tap} {' x '.join(str(side) for side in shape)}" for tap, shape in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)


CARE_COMMANDS: tuple[click.Command, ...] = (info_command, weights_command)
