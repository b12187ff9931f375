"""Doctor: print installed packages, device, weights, cache contents, and the next command."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fercache.workspace import FEATURES, LOGITS, METRICS, STACK, STORE_SUFFIX, Workspace

NEEDED = ("torch", "facenet-pytorch", "av", "zarr", "h5py", "lightgbm", "scikit-learn", "plotly", "matplotlib")
OF_DEVELOPERS = "dev"
"""The extra that nobody needs who uses the package only."""
GPU_FILES = ("/dev/nvidiactl", "/dev/dxg")
LITTLE_DISK_GB = 20.0
OK, MISSING, WARN, OFF = "ok", "missing", "look", "-"
STYLES = {OK: "green", MISSING: "red", WARN: "yellow", OFF: "dim"}


@dataclass(frozen=True, kw_only=True)
class DoctorLine:
    """One line of the screen: what was looked at, how it stands, and what was found.

    Attributes
    ----------
    state : ok, missing, look (works, but look at it), or - (may be missing).
    """

    what: str
    state: str
    found: str


def inspect_machine(cache: Path) -> list[DoctorLine]:
    """Return a line for each thing that was looked at; nothing that is missing or broken stops it."""
    parts: tuple[Callable[[], Iterator[DoctorLine]], ...] = (
        _python, _packages, _device, _machine, lambda: _weights(cache), lambda: _held(cache))
    lines: list[DoctorLine] = []
    for part in parts:
        try:
            lines += part()
        except Exception as error:  # noqa: BLE001  # whatever is broken here is what the screen is for
            lines.append(DoctorLine(what="trouble", state=WARN, found=f"{type(error).__name__}: {error}"))
    return lines


def _python() -> Iterator[DoctorLine]:
    good = sys.version_info >= (3, 11)
    yield DoctorLine(what="Python", state=OK if good else MISSING,
               found=f"{platform.python_version()} on {platform.system()} {platform.machine()}"
                     + ("" if good else "; 3.11 or newer is needed"))


def _packages() -> Iterator[DoctorLine]:
    found = {name: _version(name) for name in NEEDED}
    lost = [name for name, number in found.items() if not number]
    yield DoctorLine(what="packages", state=MISSING if lost else OK,
               found=", ".join(f"{name} {number}" for name, number in found.items() if number)
                     + (f"; missing: {', '.join(lost)}" if lost else ""))
    for extra, names in _extras().items():
        numbers = {name: _version(name) for name in names}
        whole = all(numbers.values())
        yield DoctorLine(what=f"extra {extra}", state=OK if whole else OFF,
                   found=", ".join(f"{name} {number}" for name, number in numbers.items()) if whole
                   else f"not installed: pip install 'fercache[{extra}]'")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _extras() -> dict[str, list[str]]:
    """Return the extras that the installed package declares, each with the packages that it brings."""
    found: dict[str, list[str]] = {}
    for line in requires("fercache") or []:
        needed, extra = re.match(r"[\w.-]+", line), re.search(r"\bextra\s*==\s*[\"']([^\"']+)", line)
        if needed and extra and extra[1] != OF_DEVELOPERS:
            found.setdefault(extra[1], []).append(needed[0])
    return dict(sorted(found.items()))


def _device() -> Iterator[DoctorLine]:
    """Yield the device that works; torch is imported only where a GPU may be there."""
    if not any(Path(name).exists() for name in GPU_FILES) and shutil.which("nvidia-smi") is None:
        yield DoctorLine(what="device", state=OK, found="cpu (no NVIDIA driver here)")
        return
    from fercache.runtime.devices import resolve_device

    found = resolve_device("auto")
    yield DoctorLine(what="device", state=WARN if found == "cpu" else OK,
               found=found + (f": a driver is there, but torch {_version('torch')} finds no GPU (is it the CPU build?)"
                              if found == "cpu" else ""))


def _machine() -> Iterator[DoctorLine]:
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") / 1e9
    yield DoctorLine(what="machine", state=OK, found=f"{cores} cores, {memory:.0f} GB of memory ({free:.0f} GB unused)")


def _weights(cache: Path) -> Iterator[DoctorLine]:
    from fercache.backbones import weights  # in here, so that a broken installation costs this line alone

    for row in weights.list_weights(Workspace(cache).weights):
        here = "here" if row.path else f"not here ({row.download_mb} MB to pull)"
        yield DoctorLine(what="weights", state=OK if row.path else OFF, found=f"{row.name}: {here}; {row.terms}")


def _held(cache: Path) -> Iterator[DoctorLine]:
    """Yield the contents of the cache and the free disk space."""
    stores, books = sorted(cache.glob(f"{FEATURES}/*/*{STORE_SUFFIX}")), sorted(cache.glob(f"{LOGITS}/*/*.h5"))
    stacks = sorted(cache.glob(f"{STACK}/*/*/{METRICS}"))
    yield DoctorLine(what="cache", state=OK,
                     found=f"{cache}: {_many(len(stores), 'store')}, {_many(len(books), 'logits file')}, "
                           f"{_many(len(stacks), 'stack run')}")
    there = next(path for path in (cache.absolute(), *cache.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free / 1e9
    yield DoctorLine(what="disk", state=OK if free >= LITTLE_DISK_GB else WARN,
               found=f"{free:,.0f} GB free (11 kB per frame, 1.2 GB per hour of video)")


def _many(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"


def next_step(cache: Path, lines: list[DoctorLine], preds: Path = Path("preds.csv")) -> str:
    """Return what to type next."""
    if any(line.what == "packages" and line.state == MISSING for line in lines):
        return "make setup"
    steps = ((any(cache.glob("features/*/current.json")), "fercache extract"),
             (any(cache.glob("logits/*/*.h5")), "fercache train-heads"),
             (preds.is_file(), f"fercache stack --out {preds}"))
    if not steps[0][0]:
        return "make demo (six short clips, to see it work), or name your data in stages/dataset.toml: fercache extract"
    return next((command for done, command in steps if not done), "fercache report --out report.html")


def doctor_screen(lines: list[DoctorLine], step: str) -> RenderableType:
    """Return the screen, for 80 columns and up."""
    table = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    table.add_column("what", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("found", overflow="fold")
    for line in lines:
        table.add_row(Text(line.what), Text(line.state, style=STYLES[line.state]), Text(line.found))
    return Group(table, Text.assemble("next: ", (step, "bold")))
