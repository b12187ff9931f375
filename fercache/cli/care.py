"""The commands that look after the cache: info, weights."""

from __future__ import annotations

import json
import logging
from math import prod
from typing import Any

import click

from fercache.cli.home import Home, places
from fercache.cli.options import PLACE, config_options
from fercache.cli.upkeep import shown
from fercache.config import DatasetConfig
from fercache.place import Place

log = logging.getLogger("fercache")


@click.group()
def weights() -> None:
    """Pretrained CNNs: which are known, which are here."""


@weights.command("list")
@places
def weights_list(home: Home) -> int:
    """List the known weights and where they lie."""
    from fercache import weights as room

    for row in room.listing(home.cache / "weights"):
        click.echo(f"{row.name}: {row.path or f'not here ({row.download_mb} MB to pull)'}")
        click.echo(f"  {row.source}; {row.terms}")
    return 0


@weights.command("pull")
@click.argument("name")
@places
def weights_pull(home: Home, name: str) -> int:
    """Download the weights NAME, check them and keep them as safetensors."""
    from fercache import weights as room

    click.echo(room.pull(name, home.cache / "weights").path)
    return 0


@click.command()
@config_options(DatasetConfig)
@click.option("--store", type=PLACE, help="Embedding store.  [default: the last one extracted]")
@click.option("--list", "listed", is_flag=True, help="Also each clip and its frames.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@places
def info(home: Home, store: Place | None, listed: bool, as_json: bool, **typed: Any) -> int:
    """Say what an embedding store holds: clips, frames, bytes, taps, fingerprint, digest."""
    from fercache import extract
    from fercache.config import digest
    from fercache.store import EmbeddingStore

    path = store or extract.current(home.features, home.dataset(typed).name)
    held = EmbeddingStore.open(path)
    frames, size = {clip: held.mark(clip).frames for clip in held}, held.size()
    said = {"store": str(path), "clips": len(frames), "frames": sum(frames.values()), "bytes": size.bytes,
            "files": size.files, "taps": {tap: list(shape) for tap, shape in held.taps.items()},
            "bytes_a_frame": 2 * sum(prod(shape) for shape in held.taps.values()),
            "fingerprint": digest(held.settings), "digest": held.digest()}
    if as_json:
        click.echo(json.dumps(said | ({"frames_of": frames} if listed else {}), indent=1))
        return 0
    show(said)
    for clip in frames if listed else ():
        click.echo(shown(f"{frames[clip]:9d} {clip}"))
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


COMMANDS: tuple[click.Command, ...] = (info, weights)
