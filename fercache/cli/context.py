"""Shared by all commands: options made from the configuration, cache and recipes, errors and exit codes."""

from __future__ import annotations

import dataclasses
import functools
import logging
import signal
import sys
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from fercache import recipe, run_log
from fercache.config import Config, DatasetConfig, ExtractConfig, TrainConfig
from fercache.errors import BrokenOff, FercacheError, InputError
from fercache.runtime.uri import Location, Url, as_location
from fercache.workspace import Workspace

if TYPE_CHECKING:
    from fercache.data.base import Dataset, Issue
    from fercache.oof import OofLogits

log = logging.getLogger("fercache")
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
LOCAL_STORE = click.option("--store", type=FILE, help="Embedding store.  [default: the last one extracted]")
LOGITS_FILE = click.option("--logits-file", type=FILE, help="Out-of-fold logits.  [default: of the last training]")
PREDS = click.option("--preds", type=FILE, default=Path("preds.csv"), show_default=True,
                     help="Predictions of `fercache stack`: .csv, .csv.gz or .parquet.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

HEADINGS: dict[str, tuple[type[Config] | None, tuple[str, ...]]] = {
    "Options": (None, ()),
    "Data set": (DatasetConfig, tuple(entry.name for entry in dataclasses.fields(DatasetConfig))),
    "Faces": (ExtractConfig, ("faces", "detect_every", "detect_px", "min_face_px", "min_score", "margin", "people")),
    "Sources": (ExtractConfig, ("on_truncated", "crop_fps", "verify_sources", "thumbnails")),
    "Training": (TrainConfig, ("loss", "label_smoothing", "epochs", "patience", "width", "dropout", "lr", "ema",
                               "mixup", "noise", "time_mask_s", "window_s", "step_s", "precision")),
    "Machine": (None, ("device", "threads", "concurrent_clips", "memory", "workers", "engine", "scheduler", "shard",
                       "time_limit", "cache", "local_cache", "stages")),
}
"""Heading in a command's help -> the options below it, and the configuration that they belong to (None: any)."""

EXPLAINED_ONCE = {"Data set": "Which clips and labels to read", "Faces": "How faces are found",
                  "Sources": "How clips are read"}
"""Headings whose options the help of `extract` explains, and a summary for the help of all other commands."""


def _heading(name: str | None, kind: type[Config] | None) -> str:
    return next((heading for heading, (owner, names) in HEADINGS.items() if name in names and owner in (None, kind)),
                "Options")


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
                sections[_heading(param.name, getattr(param, "kind", None))].append(record)
        for heading, records in sections.items():
            if records and heading in EXPLAINED_ONCE and self.name != "extract":
                flags = " ".join(flag.split()[0] for flag, _ in records)
                records = [(flags, f"{EXPLAINED_ONCE[heading]}: see `fercache extract --help`.")]
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
        for entry in reversed(dataclasses.fields(kind)):  # click adds options from the last to the first
            flag = "--" + entry.name.replace("_", "-")
            # No defaults in click: None means that the flag was not given, and the recipe decides.
            if hints[entry.name] is bool:
                function = click.option(f"{flag}/--no-{flag[2:]}", entry.name, default=None, cls=ConfigOption,
                                        kind=kind, help=str(entry.metadata["help"]), show_default=False)(function)
                continue
            function = click.option(flag, entry.name, type=_type(hints[entry.name], entry), default=None,
                                    cls=ConfigOption, kind=kind, help=_help(entry, default),
                                    show_default=False)(function)
        return function
    return add


def _type(hint: Any, entry: dataclasses.Field[Any]) -> click.ParamType[Any]:
    """Return click's type for a field."""
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


@dataclass
class Context:
    """Paths of the cache and the recipes.

    Attributes
    ----------
    cache : the folder of everything that is generated.
    remote : URL of the features if ``--cache`` is a URL.
    """

    cache: Path = Path("cache")
    stages: Path = Path("stages")
    remote: Url | None = None
    noted: bool = False  # whether the log names the data set of the last command

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

    def config(self, kind: type[recipe.C], command: str, typed: dict[str, Any]) -> recipe.C:
        """Return the configuration of a command from flags, recipe and defaults, and log which recipe it is."""
        config = recipe.make_config(kind, command, self.stages, typed)
        log.info("%s: %s, fingerprint %s", command, recipe.recipe_path(self.stages, command), config.fingerprint()[:12])
        return config

    def dataset_config(self, typed: dict[str, Any]) -> DatasetConfig:
        """Return the options of the data set that flags or `dataset.toml` name, else those of the one used last.

        Raises
        ------
        InputError
            None is named, and several were used in this cache.
        """
        config = recipe.make_config(DatasetConfig, "dataset", self.stages, typed)
        if config.dataset or config.root or config.clips:
            return config
        used = [one for one in run_log.load_run_log(self.cache).datasets if one.options.get("dataset") != "demo"]
        # A data set that was only checked does not count beside one with results.
        results = [one for one in used if self.workspace.features(one.name).exists()
                   or self.workspace.logits(one.name).exists()] or used
        named = [one for one in used if one.name == config.name] or results
        if len(named) > 1:
            raise InputError(f"{len(named)} data sets were used in this cache, and none is named", where=self.cache,
                             hint="name one of them: " + "; ".join(f"--name {one.name} ({_flags(one.options)})"
                                                                   for one in named[::-1]))
        if not named:
            return config
        # What is typed changes single options of the recorded data set, such as its labels.
        options = {**named[0].options, **{key: value for key, value in typed.items() if value is not None}}
        if not self.noted:
            log.info("data set of the last command in this cache: %s", _flags(named[0].options))
            self.noted = True
        return recipe.make_config(DatasetConfig, "dataset", self.stages, options)

    def is_logits(self, typed: dict[str, Any]) -> bool:
        """Return whether the data set consists of imported logits alone."""
        return self.dataset_config(typed).dataset == "logits"

    def dataset_name(self, typed: dict[str, Any]) -> str:
        """Return the name in the cache of the data set that flags or `dataset.toml` name; imported logits are one."""
        from fercache import data

        config = self.dataset_config(typed)
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
        # Without heads, no names mean all imported logits: there is nothing else to stack.
        if not names and self.is_logits(typed):
            names = tuple(logits_import.imported_names(self.cache, dataset))
            if not trained and not names:
                raise InputError("no logits were imported yet", where=self.workspace.imported_logits(dataset),
                                 hint="run `fercache logits import` first")
        if not trained and not names:
            self.workspace.current_logits_file(dataset)  # raises, naming the command that is missing
        return inputs.load_logits(self.cache, dataset, trained, names)

    def dataset(self, typed: dict[str, Any], report_issues: bool = True, record: bool = False) -> Dataset:
        """Return the data set that flags or `dataset.toml` name; problems with its clips are logged once.

        Parameters
        ----------
        record : remember it as the last one used in this cache.
        """
        from fercache import data
        from fercache.data import demo

        config = self.dataset_config(typed)
        if config.dataset in ("", "demo") and not (config.root or config.clips or config.labels):
            if not config.dataset:
                log.info("no data set is named, and none was used in this cache: taking the demo")
            demo.fetch_demo_clips(self.workspace.clips)
        found = data.load_dataset(config, self.cache)
        log.info("data set %s: %d clips", found.name, len(found.trials))
        if found.notice:
            log.info("note: %s", found.notice)
        log_issues(found.problems if report_issues else ())
        if record:
            self.record(found.name, config)
        return found

    def record(self, name: str, config: DatasetConfig) -> None:
        """Remember a data set, by its name in the cache, as the last one used."""
        options = {entry.name: value for entry in dataclasses.fields(config)
                   if (value := getattr(config, entry.name)) != entry.default}
        options |= {key: str(Path(options[key]).resolve()) for key in ("root", "clips", "labels") if key in options}
        options |= {key: list(value) for key, value in options.items() if isinstance(value, tuple)}
        run_log.record_dataset(self.cache, name, options)


def _flags(options: dict[str, Any]) -> str:
    """Return options of a data set as flags."""
    return " ".join(f"--{key.replace('_', '-')} {','.join(value) if isinstance(value, list) else value}"
                    for key, value in options.items()) or "--dataset demo"


def log_issues(issues: Iterable[Issue]) -> None:
    """Log the issues, alike ones once."""
    from fercache.data import base

    for issue in base.group_issues(issues):
        log.log(logging.INFO if issue.kind == "one-clip" else logging.WARNING, "%s", issue)


def location_options(function: F) -> F:
    """Give a command --cache, --local-cache and --stages, and turn expected errors into a message and an exit code."""
    @click.option("--cache", type=LOCATION, default=None,
                  help="Folder for everything that is generated, or a URL for the features.")
    @click.option("--local-cache", type=FILE, default=None, help="See `fercache --help`.")
    @click.option("--stages", type=FILE, default=None, help="Folder of recipes.")
    @functools.wraps(function)
    def command(cache: Location | None, local_cache: Path | None, stages: Path | None, **typed: Any) -> None:
        context = (click.get_current_context().find_object(Context) or Context()).moved(cache, local_cache, stages)
        recipe.check_folder(context.stages, stages is not None)
        end_command(function, context, typed)
    return cast(F, command)


def end_command(function: Callable[..., Any], context: Context, typed: dict[str, Any]) -> None:
    """Run a command and exit with its code."""
    # Slurm and kill send SIGTERM: it ends a run as cleanly as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = function(context, **typed)
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


def print_error(text: str) -> None:
    """Print an error on stderr."""
    click.echo(click.style("error: ", fg="red", bold=True) + text, err=True)
