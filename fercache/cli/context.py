"""Shared by all commands: options made from the configuration, cache and recipes, errors and exit codes."""

from __future__ import annotations

import dataclasses
import functools
import json
import signal
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

import fercache
from fercache import recipe
from fercache.config import HEAD_KEYS, TEMPORAL_KEYS, Config, DatasetConfig, ExtractConfig, TrainConfig
from fercache.errors import BrokenOff, FercacheError, InputError
from fercache.recipe import Context
from fercache.runtime.uri import Location, Url, as_location

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fercache.store.embedding_store import EmbeddingStore

F = TypeVar("F", bound=Callable[..., Any])


class CommaList(click.ParamType[tuple[str, ...]]):
    """A list of names with commas between them."""

    name = "a,b,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Return the names."""
        return recipe.split_names(value)


class LocationType(click.ParamType[Location]):
    """A path, or a URL that fsspec opens (s3://, gs://)."""

    name = "place"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Location:
        """Return the path or URL."""
        try:
            return as_location(value)
        except InputError as error:
            self.fail(str(error), param, ctx)


LOCATION, FILE = LocationType(), click.Path(path_type=Path)
STORE = click.option("--store", type=LOCATION, help="Embedding store.  [default: the last one extracted]")
LOGITS_FILE = click.option("--logits-file", type=FILE, help="Out-of-fold logits.  [default: of the last training]")
PREDS = click.option("--preds", type=FILE, default=Path("preds.csv"), show_default=True,
                     help="Predictions of `fercache stack`: .csv, .csv.gz or .parquet.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

HEADINGS: dict[str, tuple[type[Config] | None, tuple[str, ...]]] = {
    "Options": (None, ()),
    "Data set": (DatasetConfig, tuple(entry.name for entry in dataclasses.fields(DatasetConfig))),
    "Faces": (ExtractConfig, ("faces", "detect_every", "detect_px", "min_face_px", "min_score", "margin", "people")),
    "Sound": (ExtractConfig, ("modality", "audio_window_s")),
    "Sources": (ExtractConfig, ("on_truncated", "crop_fps", "verify_sources", "thumbnails")),
    "Training": (TrainConfig, (*HEAD_KEYS, *TEMPORAL_KEYS, "precision")),
    "Machine": (None, ("device", "threads", "concurrent_clips", "memory", "workers", "engine", "scheduler", "shard",
                       "time_limit", "cache", "local_cache", "stages")),
}
"""Heading in a command's help -> the options below it, and the configuration that they belong to (None: any)."""

EXPLAINED_ONCE = {"Data set": "Which clips and labels to read", "Faces": "How faces are found",
                  "Sound": "Sound beside the picture", "Sources": "How clips are read"}
"""Headings whose options the help of `extract` explains, and a summary for the help of all other commands."""


class ConfigOption(click.Option):
    """An option made from a field of the configuration `kind`."""

    def __init__(self, *args: Any, kind: type[Config], **settings: Any) -> None:
        self.kind = kind
        super().__init__(*args, **settings)


class HeadedCommand(click.Command):
    """A command whose help lists its options under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, a section for each heading that has any."""
        sections: dict[str, list[tuple[str, str]]] = {heading: [] for heading in HEADINGS}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            # Arguments are in the usage line and in the command's text; click gives them a record without help.
            if record is not None and isinstance(param, click.Option):
                kind = getattr(param, "kind", None)
                sections[next((heading for heading, (owner, names) in HEADINGS.items()
                               if param.name in names and owner in (None, kind)), "Options")].append(record)
        for heading, records in sections.items():
            if records and heading in EXPLAINED_ONCE and self.name != "extract":
                flags = " ".join(flag.split()[0] for flag, _ in records)
                records = [(flags, f"{EXPLAINED_ONCE[heading]}: see `fercache extract --help`.")]
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


def config_options(kind: type[Config], default: str = "") -> Callable[[F], F]:
    """Return a decorator that gives a command one option for each field of the configuration `kind`.

    `default`: what help shows in place of the defaults of the fields that change numbers.
    """
    hints = typing.get_type_hints(kind)

    def add(function: F) -> F:
        for entry in reversed(dataclasses.fields(kind)):  # click adds options from the last to the first
            flag = "--" + entry.name.replace("_", "-")
            switch = hints[entry.name] is bool
            # No defaults in click: None means that the flag was not given, and the recipe decides.
            function = click.option(f"{flag}/--no-{flag[2:]}" if switch else flag, entry.name, default=None,
                                    type=None if switch else _type(hints[entry.name], entry), cls=ConfigOption,
                                    kind=kind, help=entry.metadata["help"] if switch else _help(entry, default),
                                    show_default=False)(function)
        return function
    return add


def _type(hint: Any, entry: dataclasses.Field[Any]) -> click.ParamType[Any]:
    if isinstance(hint, types.GenericAlias):  # tuple[str, ...], the only generic type of the configurations
        return CommaList()
    if entry.metadata["choices"]:
        return click.Choice(entry.metadata["choices"])
    if entry.name == "dataset":
        # Imported here, so that commands without a data set do not load its readers.
        from fercache.data import DATASETS

        return click.Choice(DATASETS)
    return {str: click.STRING, int: click.INT, float: click.FLOAT}[hint]


def _help(entry: dataclasses.Field[Any], instead: str) -> str:
    if instead and entry.metadata["numbers"]:
        return f"{entry.metadata['help']}  [default: {instead}]"
    default = ",".join(entry.default) if isinstance(entry.default, tuple) else entry.default
    return f"{entry.metadata['help']}  [default: {default}]" if default != "" else str(entry.metadata["help"])


# Shells use this exit code for Ctrl-C.
STOPPED = 130
LOCATIONS = (
    click.Option(["--cache"], type=LOCATION,
                 help="Folder for everything that is generated, or a URL for the features."),
    click.Option(["--local-cache"], type=FILE, help="See `fercache --help`."),
    click.Option(["--stages"], type=FILE, help="Folder of recipes."))
"""Options of all commands."""


def command(name: str, *kinds: type[Config], group: click.Group | None = None
            ) -> Callable[[Callable[..., int]], click.Command]:
    """Return a decorator that makes a command of a function, with an option for each field of the configurations.

    The function takes the context of the command's caches and recipes, and returns the exit code. Expected errors end
    it with a message and an exit code.
    """
    def make(function: Callable[..., int]) -> click.Command:
        for kind in reversed(kinds):
            function = config_options(kind)(function)
        made = (group.command if group else click.command)(name, cls=HeadedCommand)(function)
        made.params += LOCATIONS
        made.callback = functools.partial(_run, function)
        return made
    return make


def _run(function: Callable[..., int], cache: Location | None, local_cache: Path | None, stages: Path | None,
         **typed: Any) -> None:
    # Slurm and kill send SIGTERM: it ends a run as cleanly as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    context = click.get_current_context().find_object(Context) or Context()
    try:
        code = function(context.moved(cache, local_cache, stages), **typed)
    except FercacheError as error:
        print_error(str(error))
        code = error.exit_code
    except KeyboardInterrupt:
        print_error("stopped; everything committed is kept, run the same command again to continue")
        code = STOPPED
    except OSError as error:  # disk full, permission lost, file system gone: not a bug of the program
        print_error(f"{error.filename or 'the file system'}: {error.strerror or error}\n"
                    "  next: free disk space or fix permissions, then run the same command again; "
                    "everything committed is kept")
        code = BrokenOff.exit_code
    if code:
        sys.exit(code)


def show(screen: str | RenderableType, value: Any = None, as_json: bool = False) -> None:
    """Print text or what rich draws or, `as_json`, a value: paths and URLs become strings, records objects."""
    if as_json:
        screen = json.dumps(value, indent=1, default=lambda part: str(part) if isinstance(part, Path | Url)
                            else vars(part))
    if isinstance(screen, str):
        click.echo(screen)
        return
    from rich.console import Console  # takes a tenth of a second

    Console().print(screen)


def open_store(context: Context, store: Location | None, dataset: str) -> EmbeddingStore:
    """Return the store that a flag names, else the last one that was extracted of a data set."""
    from fercache.extraction import job  # loads the libraries of stage one, which `fercache --help` does not need

    return fercache.open_store(store or job.current_store(context.features, dataset))


def print_error(text: str) -> None:
    """Print an error on stderr."""
    click.echo(click.style("error: ", fg="red", bold=True) + text, err=True)
