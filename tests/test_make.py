"""`make all` itself, with a `fercache` that only writes down how it was called and ends as it is told."""

from __future__ import annotations

import os
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RECORDER = """#!/usr/bin/env bash
for word in "$@"; do case $word in extract|train-heads|stack) step=$word; esac; done
printf '%s\\n' "$*" >> calls
exit $(sed -n "s/^$step //p" codes)
"""


def make_all(folder: Path, *codes: int) -> tuple[int, list[str], str]:
    """Return make's exit code, the steps' command lines, and what was printed, with steps that end with `codes`."""
    made = folder / "env"
    (made / "bin").mkdir(parents=True)
    for stamp in (".made", ".ready"):
        (made / stamp).touch()
    (made / "bin" / "fercache").write_text(RECORDER)
    (made / "bin" / "fercache").chmod(0o755)
    steps = ("extract", "train-heads", "stack")
    (folder / "codes").write_text("".join(f"{step} {code}\n" for step, code in zip(steps, codes, strict=True)))
    alone = {k: v for k, v in os.environ.items() if not k.startswith("MAKE") and k != "MFLAGS"}  # `make test` runs this
    done = subprocess.run(["make", "-f", ROOT / "Makefile", "--old-file", made / ".ready", f"VENV={made}", "DATA=a b",
                           "all"], cwd=folder, env=alone, capture_output=True, text=True, check=False)
    calls = (folder / "calls").read_text().splitlines()
    return done.returncode, calls, done.stdout + done.stderr


@pytest.mark.parametrize("codes, steps, ends, says", [
    ((0, 0, 0), 3, 0, ""), ((1, 1, 0), 3, 2, "some clips failed"), ((0, 0, 1), 3, 2, "some clips failed"),
    ((2, 0, 0), 1, 2, "Error 2"), ((3, 0, 0), 1, 2, "Error 3"), ((130, 0, 0), 1, 2, "Error 130"),
    ((1, 2, 0), 2, 2, "Error 2")])
def test_clips_that_fail_do_not_stop_the_walk(tmp_path: Path, codes: tuple[int, int, int], steps: int, ends: int,
                                              says: str) -> None:
    code, calls, said = make_all(tmp_path, *codes)
    assert (code, len(calls)) == (ends, steps), said
    assert says in said and (says or not said)
    assert all("--root a b" in call for call in calls)


def test_the_wheel_holds_every_file_of_the_package() -> None:
    """Whatever is no module must match a pattern of `package_data`, or an installed package lacks it."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    package = ROOT / "fercache"
    patterns = setup["options.package_data"]["fercache"].split()
    packed = {path for pattern in patterns for path in package.glob(pattern)}
    files = {path for path in package.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert package / "viz" / "report" / "page.html" in packed
    assert not files - packed
    assert not [path for path in package.rglob("*.py") if not (path.parent / "__init__.py").exists()]
