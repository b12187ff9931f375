"""Configuration and recipes: what changes numbers is in the fingerprint, what is unknown is refused."""

from __future__ import annotations

import ast
import re
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import click
import pytest

import fercache
from fercache import recipe
from fercache.cli import main
from fercache.config import Config, DatasetConfig, ExtractConfig, StackConfig, TrainConfig
from fercache.errors import InputError

KINDS: list[type[Config]] = [DatasetConfig, ExtractConfig, TrainConfig, StackConfig]


def other(entry: object, value: object) -> object:
    """Return another allowed value of a field."""
    choices = entry.metadata["choices"]
    if choices:
        return tuple(choices[:1]) if isinstance(value, tuple) else next(c for c in choices if c != value)
    if isinstance(value, tuple):
        return ("x",)
    return value + "x" if isinstance(value, str) else value * 1.5 if isinstance(value, float) and value else 37


@pytest.mark.parametrize("kind", KINDS)
def test_the_fingerprint_covers_exactly_what_changes_numbers(kind: type[Config]) -> None:
    usual = kind()
    for entry in fields(kind):
        try:
            changed = replace(usual, **{entry.name: other(entry, getattr(usual, entry.name))})
        except InputError:
            changed = replace(usual, **{entry.name: getattr(usual, entry.name) / 2 or .5})
        assert (changed.fingerprint() != usual.fingerprint()) == entry.metadata["numbers"], entry.name


def test_bounds_and_choices() -> None:
    for wrong in ({"precision": "auto"}, {"min_score": 2.0}, {"crop_fps": 0.0}, {"threads": -1}):
        with pytest.raises(InputError, match=next(iter(wrong)).replace("_", "-")):
            ExtractConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("command", recipe.RECIPES)
def test_the_delivered_recipes_are_the_defaults(command: str) -> None:
    root = Path(__file__).resolve().parent.parent
    said = recipe.load_recipe(root / "stages", command)
    assert said or command == "dataset", "the recipe is not there"  # the data set is the one used last
    kind = recipe.RECIPES[command]
    assert recipe.make_config(kind, command, root / "stages", {}).fingerprint() == kind().fingerprint()


def test_precedence(tmp_path: Path) -> None:
    (tmp_path / "extract.toml").write_text('min_face_px = 33\ncrop_fps = 25\ntaps = ["block8"]\n')
    made = recipe.make_config(ExtractConfig, "extract", tmp_path, {"crop_fps": 50.0, "precision": None})
    assert (made.min_face_px, made.crop_fps, made.taps, made.precision) == (33, 50.0, ("block8",), "float32")


@pytest.mark.parametrize(("text", "said"), [
    ('precison = "bf16"', "did you mean 'precision'"), ("min_face_px = 'x'", "not of type int"), ("a = {b = 1}",
                                                                                                  "unknown"),
    ("taps = [", "not readable"), ("min_face_px = true", "not of type int"), ("x" * (2 << 20), "larger"),
])
def test_a_wrong_recipe_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "extract.toml").write_text(text)
    with pytest.raises(InputError, match=said):
        try:
            recipe.make_config(ExtractConfig, "extract", tmp_path, {})
        except InputError as error:
            raise InputError(str(error)) from error


def test_a_typed_data_set_puts_the_recipe_aside(tmp_path: Path) -> None:
    (tmp_path / "dataset.toml").write_text('dataset = "affwild2"\nroot = "/data"\nedition = "6th"\n')
    made = recipe.make_config(DatasetConfig, "dataset", tmp_path, {"clips": "x.csv"})
    assert (made.root, made.edition, made.clips) == ("", "", "x.csv")
    assert recipe.make_config(DatasetConfig, "dataset", tmp_path, {"name": "n"}).root == "/data"


def test_every_flag_that_a_hint_names_is_there_and_works_as_typed() -> None:
    """Hints and help are typed by those who read them; a flag that is given once takes a list with commas."""
    options: dict[str, bool] = dict.fromkeys(("--help", "--no-deps", "--array"), False)  # of click, pip, sbatch
    waiting: list[click.Command] = [main]
    while waiting:
        command = waiting.pop()
        if isinstance(command, click.Group):
            context = click.Context(command)
            waiting += [inner for name in command.list_commands(context)
                        if (inner := command.get_command(context, name))]
        for one in command.params:
            if isinstance(one, click.Option):
                options |= {name: one.multiple or options.get(name, False) for name in (*one.opts, *one.secondary_opts)}
    wrong = []
    for path in sorted(Path(fercache.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg in ("hint", "help"):
                said = "".join(part.value for part in ast.walk(node.value)
                               if isinstance(part, ast.Constant) and isinstance(part.value, str))
                flags = Counter(re.findall(r"(?<![\w-])--[a-z][a-z-]*", said))
                twice = {flag for flag in re.findall(r"(--[a-z-]+) \S+ \1\b", said) if not options.get(flag)}
                wrong += [f"{path.name}:{node.value.lineno} {flag}" for flag in {*flags - options.keys(), *twice}]
    assert not wrong


def test_a_value_out_of_bounds_names_its_flag() -> None:
    with pytest.raises(InputError) as caught:
        DatasetConfig(fold=-1)
    assert "--fold" in str(caught.value) and "Config" not in str(caught.value)
