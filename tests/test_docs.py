"""The README is a tested object: every command it names is there, with every flag it names."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from fercache.cli import main

ROOT = Path(__file__).resolve().parent.parent
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
         for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))}
README = "\n".join(text for name, text in PAGES.items() if not name.startswith("docs/results/"))
USES = sorted({use.removeprefix("fercache ") for use in [*re.findall(r"`(fercache [^`]+)`", README),
               *re.findall(r"^(fercache [a-z-]+(?: --\S+ \S+)*)  ", README, re.M)]})


CONTEXT = click.Context(main)
COMMANDS = main.list_commands(CONTEXT)


def command_of(words: list[str]) -> click.Command:
    """Return the command that the words name."""
    command: click.Command = main
    for word in words:
        inner = command.get_command(CONTEXT, word) if isinstance(command, click.Group) else None
        if inner is None:
            break
        command = inner
    return command


def test_the_readme_uses_commands() -> None:
    assert len(USES) >= 5, USES


@pytest.mark.parametrize("use", USES)
def test_commands_of_the_readme_are_there(use: str) -> None:
    words = use.split()
    assert words[0] in COMMANDS, use
    flags = {flag for option in command_of(words).params for flag in option.opts}
    assert {word for word in words if word.startswith("--")} <= flags | {"--help"}, use


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_is_in_the_readme_and_has_help(name: str) -> None:
    assert f"fercache {name}" in README
    done = CliRunner().invoke(main, [name, "--help"])
    assert done.exit_code == 0 and len(done.output.splitlines()) > 5


def test_make_targets_of_the_readme_are_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"make ([a-z-]+)", README)) <= targets
    wanted = "help setup demo extract train-heads stack all test test-full ci bench clean"
    assert set(wanted.split()) <= targets


@pytest.mark.parametrize("name", PAGES)
def test_links_between_pages_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", PAGES[name]):
        if "://" not in target:
            assert (ROOT / name).parent.joinpath(target).exists(), f"{name}: {target}"


def test_the_readme_is_short_enough_to_be_read() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 250
