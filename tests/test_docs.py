"""The documentation is a tested object: commands, flags, recipe keys, links, imports and diffs in it work."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import click
import pytest
from click.testing import CliRunner

from fercache.cli import main
from fercache.recipe import RECIPES

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
         for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "cache" / "README.md",
                      *sorted(DOCS.rglob("*.md")))}
CURRENT = {name: text for name, text in PAGES.items() if name != "CHANGELOG.md"}
"""Pages about the present state; the changelog names commands and files that are gone."""
NOT_FROM_0_1 = {name: text for name, text in CURRENT.items() if not name.startswith("docs/results/")}
"""Pages without results, which name the test files of their time."""

CONTEXT = click.Context(main)
COMMANDS = main.list_commands(CONTEXT)


def blocks(text: str, language: str = "") -> list[str]:
    """Return the blocks of code in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def uses(text: str) -> set[str]:
    """Return every call of fercache in code spans and blocks, without comments and explanations."""
    lines = [line.removeprefix("$ ").removeprefix(".venv/bin/") for block in [*blocks(text), *blocks(text, "bash")]
             for line in block.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    spans = [" ".join(span.split()) for span in re.findall(r"`(fercache [^`]+)`", prose)]
    # An explanation stands behind at least two blanks, a comment behind #; a name such as CLIP#1 has no blank before.
    calls = [re.split(r"\s{2,}|\s#", line)[0] for line in [*lines, *spans] if line.startswith("fercache ")]
    return {call for call in calls if not re.match(r"fercache [A-Z0-9/]", call)}


USES = {name: sorted(uses(text)) for name, text in CURRENT.items()}


def check_call(call: str) -> None:
    """Fail unless the command of a call exists and has all its flags."""
    command: click.Command = main
    flags = {flag for option in main.params for flag in option.opts} | {"--help"}
    for word in shlex.split(call.replace("...", ""))[1:]:
        if isinstance(command, click.Group) and not word.startswith("-"):
            inner = command.get_command(CONTEXT, word)
            if inner is not None:
                command = inner
                flags |= {flag for option in inner.params for flag in [*option.opts, *option.secondary_opts]}
        if word.startswith("--"):
            assert word.partition("=")[0] in flags, f"{call}: {word}"
    assert command is not main or "--" in call, call


def test_the_documentation_uses_commands() -> None:
    assert sum(map(len, USES.values())) > 100


@pytest.mark.parametrize("name", [name for name, calls in USES.items() if calls])
def test_commands_and_flags_exist(name: str) -> None:
    for call in USES[name]:
        check_call(call)


@pytest.mark.parametrize("call", ["fercache sing", "fercache extract --sing", "fercache --cache X extract --lr 1"])
def test_a_wrong_call_is_noticed(call: str) -> None:
    with pytest.raises(AssertionError):
        check_call(call)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_is_explained_and_has_help(name: str) -> None:
    assert any(f"fercache {name}" in text for page, text in NOT_FROM_0_1.items() if "/reference/" not in page)
    done = CliRunner().invoke(main, [name, "--help"])
    assert done.exit_code == 0 and len(done.output.splitlines()) > 5


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    code = [code for text in CURRENT.values() for code in [*blocks(text), *re.findall(r"`([^`\n]+)`", text)]]
    assert set(re.findall(r"^make ([a-z-]+)", "\n".join(code), re.M)) <= targets
    wanted = "help setup demo extract train-heads stack all test test-full lint types ci hooks docs bench clean"
    assert set(wanted.split()) <= targets


# Links.

def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and the site make them."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    found: list[str] = []
    for heading in re.findall(r"^#{1,6} (.+)$", prose, re.M):
        slug = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return set(found)


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[name]):
        if "://" in target:
            continue
        place, _, anchor = target.partition("#")
        path = (ROOT / name).parent / place if place else ROOT / name
        assert path.exists(), f"{name}: {target}"
        if anchor:
            assert anchor in anchors(path.read_text(encoding="utf-8")), f"{name}: {target}"


@pytest.mark.parametrize("name", [name for name in PAGES if name.startswith("docs/")])
def test_links_of_the_site_stay_in_it(name: str) -> None:
    """The site has no file outside of docs/; what it needs from there, it includes."""
    for target in re.findall(r"\]\(([^)#\s]+)", PAGES[name]):
        if "://" not in target:
            assert (ROOT / name).parent.joinpath(target).resolve().is_relative_to(DOCS), f"{name}: {target}"


def test_every_page_is_in_the_contents() -> None:
    listed = {"docs/index.md"}
    for name, text in PAGES.items():
        for entry in "\n".join(blocks(text, r"\{toctree\}")).splitlines():
            if entry and not entry.startswith(":"):
                listed.add((Path(name).parent / f"{entry}.md").as_posix())
    assert listed == {name for name in PAGES if name.startswith("docs/")}


@pytest.mark.parametrize("name", PAGES)
def test_nothing_points_to_a_folder_that_users_lack(name: str) -> None:
    assert not re.search(r"\.\./shared\b|(?<![\w.])/(work|tmp|root|home)/", PAGES[name])


@pytest.mark.parametrize("name", NOT_FROM_0_1)
def test_files_named_in_code_spans_exist(name: str) -> None:
    prose = re.sub(r"^```.*?^```", "", NOT_FROM_0_1[name], flags=re.M | re.S)
    for path in re.findall(r"`(?:python )?((?:fercache|tests|stages|docs)/[\w./-]+)[^`]*`", prose):
        # The recipe of a command is optional: the command has defaults without it.
        optional = path.startswith("stages/") and Path(path).stem in RECIPES
        assert optional or (ROOT / path).exists(), f"{name}: {path}"


# Length.

def test_the_readme_is_short_enough_to_be_read() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 250


def test_contributing_is_one_page() -> None:
    assert len(PAGES["CONTRIBUTING.md"].splitlines()) <= 130


# Code.

def test_recipes_have_known_keys() -> None:
    known = {entry.name for kind in RECIPES.values() for entry in fields(kind)}
    examples = [block for text in CURRENT.values() for block in blocks(text, "toml")]
    assert examples
    assert {key for example in examples for key in tomllib.loads(example)} <= known


def test_imports_of_the_python_examples_exist() -> None:
    examples = [block for text in CURRENT.values() for block in blocks(text, "python")]
    assert examples
    for example in examples:
        for node in ast.walk(ast.parse(example)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fercache"):
                module = importlib.import_module(node.module or "")
                assert all(hasattr(module, alias.name) for alias in node.names), example


def generator() -> ModuleType:
    """Return `docs/generate_reference.py` as a module."""
    spec = importlib.util.spec_from_file_location("generate_reference", DOCS / "generate_reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_generated_reference_is_up_to_date() -> None:
    for path, text in generator().pages().items():
        assert path.read_text(encoding="utf-8") == text, "run: python docs/generate_reference.py"


def test_the_reference_has_every_command_option_and_key() -> None:
    commands, recipes = (PAGES[f"docs/reference/{name}.md"] for name in ("commands", "recipes"))
    for name in COMMANDS:
        assert f"### `fercache {name}`" in commands
    for name, kind in RECIPES.items():
        section = recipes.partition(f"## `stages/{name}.toml`")[2].partition("\n## ")[0]
        assert all(f"| `{entry.name}` |" in section for entry in fields(kind)), name


def test_the_site_builds(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="needs the extra docs (make docs)")
    pytest.importorskip("myst_parser", reason="needs the extra docs (make docs)")
    subprocess.run([sys.executable, "-m", "sphinx", "--fail-on-warning", "--quiet", DOCS, tmp_path / "site"],
                   check=True, timeout=250)
    assert (tmp_path / "site" / "reference" / "commands.html").is_file()


# The diffs of CONTRIBUTING.md.

@pytest.fixture
def patched(tmp_path: Path) -> Path:
    """A copy of the package with every diff of CONTRIBUTING.md applied."""
    shutil.copytree(ROOT / "fercache", tmp_path / "fercache", ignore=shutil.ignore_patterns("__pycache__"))
    diffs = blocks(PAGES["CONTRIBUTING.md"], "diff")
    assert len(diffs) == 3
    for diff in diffs:
        done = subprocess.run(["git", "apply", "-"], input=diff, text=True, cwd=tmp_path, capture_output=True,
                              check=False)
        assert done.returncode == 0, f"a diff of CONTRIBUTING.md does not apply: {done.stderr}"
    return tmp_path


TRY = """
import numpy as np, torch
from pathlib import Path
from PIL import Image
from click.testing import CliRunner
from fercache.cli import main
from fercache.backbones.registry import DEFAULT_WEIGHTS, KNOWN_WEIGHTS
from fercache.backbones.taps import TapSlice
from fercache.config import DatasetConfig, TrainConfig
from fercache.data import load_dataset
from fercache.heads.base import build_head
from fercache.heads.registry import HEADS

TrainConfig(heads=("frame", "linear"))
head = build_head("linear", [TapSlice(tap="block8", shape=(12,), start=0, stop=12)], 7, HEADS["linear"].settings)
assert head(torch.rand(2, 3, 12), torch.ones(2, 3, dtype=torch.bool), torch.rand(2, 3)).shape == (2, 3, 7)

for clip in ("anna_hap_01", "anna_neu_02", "ben_sad_01"):
    Path("clips", clip).mkdir(parents=True)
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(Path("clips", clip, "1.jpg"))
dataset = load_dataset(DatasetConfig(root="clips"), Path("cache"))
assert dataset.layout == "mylab" and dataset.classes == ("Neutral", "Happy", "Sad")
assert [(trial.group, trial.clip_label) for trial in dataset.trials] == [("anna", 1), ("anna", 0), ("ben", 2)]

assert "mylab-faces" in KNOWN_WEIGHTS and DEFAULT_WEIGHTS != "mylab-faces"
for words, choice in ((["train-heads", "--heads", "no-such-head"], "linear"), (["extract", "--help"], "mylab"),
                      (["weights", "list"], "mylab-faces")):
    shown = CliRunner().invoke(main, words).output
    assert choice in shown, shown
"""


def test_the_diffs_of_contributing_work(patched: Path) -> None:
    """A head, a data set and a backbone are registered in one place each, and the command line offers them."""
    done = subprocess.run([sys.executable, "-c", TRY], cwd=patched, env={**os.environ, "PYTHONPATH": str(patched)},
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# Hooks.

def test_hooks_are_local_and_run_what_ci_runs() -> None:
    config = (ROOT / ".pre-commit-config.yaml").read_text()
    assert set(re.findall(r"repo: (\S+)", config)) == {"local"}
    assert re.findall(r"entry: make --silent (\S+)", config) == ["lint", "types"]
