"""What all commands share: options made from the configuration, cache and recipes, errors and exit codes."""

from __future__ import annotations

import dataclasses
import functools
import logging
import signal
import sys
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from fercache import recipe
from fercache.config import Config, DatasetConfig
from fercache.errors import BrokenOff, FercacheError, InputError
from fercache.runtime.uri import Location, Url, as_location
from fercache.workspace import Workspace

if TYPE_CHECKING:
    from fercache.data.base import Dataset
    from fercache.oof import OofLogits

log = logging.getLogger("fercache")


C = TypeVar("C", bound=Config)
F = TypeVar("F", bound=Callable[..., Any])

CHOOSES_DATA = ("root", "clips")
"""Flags that name a data set: when one is typed, the recipe's data set is put aside as a whole."""


class CommaList(click.ParamType[tuple[str, ...]]):
    """A list of names with commas between them."""

    name = "a,b,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Return the names."""
        if isinstance(value, str):
            return tuple(word.strip() for word in value.split(",") if word.strip())
        return tuple(str(word) for word in value)


class LocationType(click.ParamType[Location]):
    """A path, or a URL that fsspec opens (s3://, gs://)."""

    name = "place"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Location:
        """Return the path or URL."""
        try:
            return as_location(value)
        except InputError as error:
            self.fail(str(error), param, ctx)


LOCATION = LocationType()


HEADINGS: dict[str, tuple[str, ...]] = {
    "Data set": tuple(entry.name for entry in dataclasses.fields(DatasetConfig)),
    "Faces": ("faces", "detect_every", "detect_px", "min_face_px", "min_score", "margin", "people"),
    "Sources": ("on_truncated", "crop_fps", "verify_sources", "thumbnails"),
    "Training": ("loss", "label_smoothing", "epochs", "patience", "width", "dropout", "lr", "ema", "mixup", "noise",
                 "time_mask_s", "window_s", "step_s", "precision"),
    "Machine": ("device", "threads", "concurrent_clips", "memory", "workers", "engine", "scheduler", "shard",
                "time_limit", "cache", "local_cache", "stages"),
}
"""Heading in a command's help -> the options below it; all others come first, without a heading of their own."""

EXPLAINS_DATA = ("extract", "check")
"""Commands whose help explains every data set option; the help of the others points to the first."""


class HeadedCommand(click.Command):
    """A command whose help lists its options under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, a section for each heading that has any."""
        sections: dict[str, list[tuple[str, str]]] = {"Options": [], **{heading: [] for heading in HEADINGS}}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                # The encoder's `precision` belongs to the CNN, the heads' to training: only train-heads has the latter.
                heading = next((h for h, names in HEADINGS.items() if param.name in names), "Options")
                sections["Options" if heading == "Training" and self.name == "extract" else heading].append(record)
        if len(sections["Data set"]) > 1 and self.name not in EXPLAINS_DATA:
            flags = " ".join(flag.split()[0] for flag, _ in sections["Data set"])
            sections["Data set"] = [(flags, f"Which clips and labels: see `fercache {EXPLAINS_DATA[0]} --help`.")]
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


def config_options(kind: type[Config], default: str = "") -> Callable[[F], F]:
    """Return a decorator that gives a command one option for each field of the configuration `kind`.

    Parameters
    ----------
    default : what help shows in place of the defaults of the fields that change numbers.
    """
    hints = typing.get_type_hints(kind)

    def add(function: F) -> F:
        for entry in reversed(dataclasses.fields(kind)):
            flag = "--" + entry.name.replace("_", "-")
            if hints[entry.name] is bool:
                function = click.option(f"{flag}/--no-{flag[2:]}", entry.name, default=None,
                                        help=str(entry.metadata["help"]), show_default=False)(function)
                continue
            function = click.option(flag, entry.name, type=_type(hints[entry.name], entry), default=None,
                                    help=_help(entry, default), show_default=False)(function)
        return function
    return add


def _type(hint: Any, entry: dataclasses.Field[Any]) -> click.ParamType[Any]:
    """Return click's type for a field."""
    if isinstance(hint, types.GenericAlias):
        return CommaList()
    if entry.metadata["choices"]:
        return click.Choice(entry.metadata["choices"])
    if entry.name == "dataset":
        from fercache.data import DATASETS

        return click.Choice(DATASETS)
    return {str: click.STRING, int: click.INT, float: click.FLOAT}[hint]


def _help(entry: dataclasses.Field[Any], instead: str) -> str:
    if instead and entry.metadata["numbers"]:
        return f"{entry.metadata['help']}  [default: {instead}]"
    default = ",".join(entry.default) if isinstance(entry.default, tuple) else entry.default
    return f"{entry.metadata['help']}  [default: {default}]" if default != "" else str(entry.metadata["help"])


def make_config(kind: type[C], command: str, stages: Path, typed: dict[str, Any]) -> C:
    """Return the configuration: what was `typed` beats the recipe of `command`, which beats the default.

    Raises
    ------
    InputError
        A recipe names an unknown key, or a value is out of its choices or bounds.
    """
    typed = {name: typed[name] for name in (f.name for f in dataclasses.fields(kind)) if typed.get(name) is not None}
    values = recipe.load_recipe(stages, command)
    if kind is DatasetConfig and (typed.get("dataset") == "demo" or any(name in typed for name in CHOOSES_DATA)):
        values = {}  # half a recipe's data set and half the user's would be a third that nobody meant
    hints = typing.get_type_hints(kind)
    return kind(**{name: _typed(kind, name, hints[name], value) for name, value in {**values, **typed}.items()})


def _typed(kind: type[Config], name: str, hint: Any, value: Any) -> Any:
    """Return a recipe's value as the field's type.

    Raises
    ------
    InputError
        It is of another type.
    """
    if isinstance(hint, types.GenericAlias):
        return CommaList().convert(value, None, None)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise InputError(f"{name} = {value!r} is not of type {hint.__name__}", where=kind.__name__,
                         hint="fix the recipe")
    return value


STOPPED = 130
"""Exit code of a command that the user stopped, as shells use it for Ctrl-C."""


@dataclass
class Context:
    """Where the cache and the recipes are.

    Attributes
    ----------
    cache : the folder of everything that is generated.
    remote : where the features are instead, when ``--cache`` is a URL.
    """

    cache: Path = Path("cache")
    stages: Path = Path("stages")
    remote: Url | None = None

    @property
    def workspace(self) -> Workspace:
        """The paths below the cache folder."""
        return Workspace(self.cache)

    @property
    def features(self) -> Location:
        """Where features are: the cache folder, or the URL."""
        return self.remote or self.cache

    def moved(self, cache: Location | None, local: Path | None, stages: Path | None) -> Context:
        """Return the context with a command's own flags applied."""
        remote = cache if isinstance(cache, Url) else self.remote if cache is None else None
        folder = local or (cache if isinstance(cache, Path) else None) or self.cache
        return Context(folder, stages or self.stages, remote)

    def config(self, kind: type[C], command: str, typed: dict[str, Any]) -> C:
        """Return the configuration of a command from flags, recipe and defaults, and log which recipe it is."""
        config = make_config(kind, command, self.stages, typed)
        log.info("%s: %s, fingerprint %s", command, recipe.recipe_path(self.stages, command), config.fingerprint()[:12])
        return config

    def is_logits(self, typed: dict[str, Any]) -> bool:
        """Return whether the data set consists of imported logits alone."""
        return make_config(DatasetConfig, "dataset", self.stages, typed).dataset == "logits"

    def dataset_name(self, typed: dict[str, Any]) -> str:
        """Return the name in the cache of the data set that flags or `dataset.toml` name; imported logits are one."""
        from fercache import data

        config = make_config(DatasetConfig, "dataset", self.stages, typed)
        return data.logits_name(config) if config.dataset == "logits" else self.dataset(typed).name

    def load_logits(self, typed: dict[str, Any], path: Path | None, names: tuple[str, ...]) -> OofLogits:
        """Return out-of-fold logits from `path` or of the last training, with imported logits beside the heads.

        Raises
        ------
        InputError
            There are neither heads nor imported logits, or they do not belong to the same data set.
        """
        from fercache import logits_import
        from fercache.stacking import inputs

        dataset = self.dataset_name(typed)
        trained = path or self.workspace.current_logits_file_or_none(dataset)
        if not names and self.is_logits(typed):
            names = tuple(logits_import.imported_names(self.cache, dataset))
        if not trained and not names:
            self.workspace.current_logits_file(dataset)  # raises, naming the command that is missing
        return inputs.load_logits(self.cache, dataset, trained, names)

    def dataset(self, typed: dict[str, Any], report_issues: bool = True) -> Dataset:
        """Return the data set that flags or `dataset.toml` name; problems with its clips are logged once."""
        from fercache import data
        from fercache.data import base, demo

        config = make_config(DatasetConfig, "dataset", self.stages, typed)
        if config.dataset == "demo" and not (config.root or config.clips):
            demo.fetch_demo_clips(self.workspace.clips)
        found = data.load_dataset(config, self.cache)
        log.info("data set %s: %d clips", found.name, len(found.trials))
        if found.notice:
            log.info("note: %s", found.notice)
        for issue in base.group_issues(found.problems) if report_issues else ():
            log.warning("%s", issue)
        return found


def location_options(function: F) -> F:
    """Give a command --cache and --stages, and turn every expected error into a message and an exit code."""
    @click.option("--cache", type=LOCATION, default=None,
                  help="Folder for everything that is generated, or a URL for the features.")
    @click.option("--local-cache", type=click.Path(path_type=Path), default=None, help="See `fercache --help`.")
    @click.option("--stages", type=click.Path(path_type=Path), default=None, help="Folder of recipes.")
    @functools.wraps(function)
    def command(cache: Location | None, local_cache: Path | None, stages: Path | None, **typed: Any) -> None:
        context = (click.get_current_context().find_object(Context) or Context()).moved(cache, local_cache, stages)
        recipe.check_folder(context.stages, stages is not None)
        end_command(function, context, typed)
    return cast(F, command)


def end_command(function: Callable[..., Any], context: Context, typed: dict[str, Any]) -> None:
    """Run a command and exit with its code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = function(context, **typed)
    except FercacheError as error:
        print_error(str(error))
        code = error.exit_code
    except KeyboardInterrupt:
        print_error("stopped; everything committed is kept, run the same command again to continue")
        code = STOPPED
    except OSError as error:  # disk full, permission lost, file system gone: not a fault of the program
        print_error(f"{error.filename or 'the file system'}: {error.strerror or error}\n"
                    "  next: free disk space or fix permissions, then run the same command again; "
                    "everything committed is kept")
        code = BrokenOff.exit_code
    if code:
        sys.exit(code)


def print_error(text: str) -> None:
    """Print an error on stderr."""
    click.echo(click.style("error: ", fg="red", bold=True) + text, err=True)
