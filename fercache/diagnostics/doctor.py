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

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fercache.runtime.progress import format_bytes
from fercache.workspace import CURRENT, FEATURES, LOGITS, METRICS, STACK, STORE_SUFFIX, Workspace

REQUIRED = ("torch", "facenet-pytorch", "av", "zarr", "h5py", "lightgbm", "scikit-learn", "plotly", "matplotlib")
# Users of the package do not need these extras, so they are not listed.
DEVELOPER_EXTRAS = ("dev", "docs")
GPU_FILES = ("/dev/nvidiactl", "/dev/dxg")
# About 17 hours of video, at 1.2 GB an hour.
MIN_DISK_BYTES = 20e9
OK, MISSING, WARN, OFF = "ok", "missing", "look", "-"
STYLES = {OK: "green", MISSING: "red", WARN: "yellow", OFF: "dim"}


@dataclass(frozen=True)
class DoctorLine:
    """One line of the screen: the checked thing, its state, and details."""

    what: str
    state: str  # ok, missing, look (it works, but may be wrong), or - (optional and absent)
    found: str


def inspect_machine(cache: Path) -> list[DoctorLine]:
    """Return a line for each check; a check that fails adds a line, and the others still run."""
    checks: tuple[Callable[[], Iterator[DoctorLine]], ...] = (
        _python, _packages, _device, _machine, lambda: _weights(cache), lambda: _cache(cache))
    lines: list[DoctorLine] = []
    for check in checks:
        try:
            lines += check()
        except Exception as error:  # noqa: BLE001  # a broken installation raises anything, and doctor must report it
            lines.append(DoctorLine("trouble", WARN, f"{type(error).__name__}: {error}"))
    return lines


def _python() -> Iterator[DoctorLine]:
    good = sys.version_info >= (3, 11)
    yield DoctorLine("Python", OK if good else MISSING,
                     f"{platform.python_version()} on {platform.system()} {platform.machine()}"
                     + ("" if good else "; 3.11 or newer is needed"))


def _packages() -> Iterator[DoctorLine]:
    versions = {name: _version(name) for name in REQUIRED}
    missing = [name for name, number in versions.items() if not number]
    yield DoctorLine("packages", MISSING if missing else OK,
                     ", ".join(f"{name} {number}" for name, number in versions.items() if number)
                     + (f"; missing: {', '.join(missing)}" if missing else ""))
    extras: dict[str, list[str]] = {}
    for line in requires("fercache") or []:
        package, extra_name = re.match(r"[\w.-]+", line), re.search(r"\bextra\s*==\s*[\"']([^\"']+)", line)
        if package and extra_name and extra_name[1] not in DEVELOPER_EXTRAS:
            extras.setdefault(extra_name[1], []).append(package[0])
    installed = {extra: {name: _version(name) for name in names} for extra, names in sorted(extras.items())}
    complete = [f"{extra} ({', '.join(f'{name} {number}' for name, number in versions.items())})"
                for extra, versions in installed.items() if all(versions.values())]
    absent = [extra for extra, versions in installed.items() if not all(versions.values())]
    if complete:
        yield DoctorLine("extras", OK, ", ".join(complete))
    if absent:
        yield DoctorLine("extras", OFF, f"not installed: {', '.join(absent)}; pip install 'fercache[{absent[0]}]'")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _device() -> Iterator[DoctorLine]:
    # Without a driver there is no GPU to find, and importing torch takes seconds.
    if not any(Path(name).exists() for name in GPU_FILES) and shutil.which("nvidia-smi") is None:
        yield DoctorLine("device", OK, "cpu (no NVIDIA driver)")
        return
    from fercache.runtime.devices import resolve_device

    device = resolve_device("auto")
    hint = f": an NVIDIA driver is installed, but torch {_version('torch')} finds no GPU (is it the CPU build?)"
    yield DoctorLine("device", WARN, device + hint) if device == "cpu" else DoctorLine("device", OK, device)


def _machine() -> Iterator[DoctorLine]:
    cores = len(os.sched_getaffinity(0))  # not cpu_count: a container or Slurm may allow fewer
    memory, free = (format_bytes(os.sysconf("SC_PAGE_SIZE") * os.sysconf(f"SC_{pages}_PAGES")) for pages in
                    ("PHYS", "AVPHYS"))
    yield DoctorLine("machine", OK, f"{cores} cores, {memory} of memory ({free} unused)")


def _weights(cache: Path) -> Iterator[DoctorLine]:
    from fercache.backbones import weights  # imported here, so that a broken installation costs this line alone

    for row in weights.list_weights(Workspace(cache).weights):
        if row.path is None and not row.download_mb:
            continue  # a card alone
        state = "downloaded" if row.path else f"not downloaded ({row.download_mb} MB)"
        yield DoctorLine("weights", OK if row.path else OFF, f"{row.name}: {state}; {row.terms}")


def _cache(cache: Path) -> Iterator[DoctorLine]:
    counts = {name: len(list(cache.glob(pattern)))
              for name, pattern in (("stores", f"{FEATURES}/*/*{STORE_SUFFIX}"), ("logits files", f"{LOGITS}/*/*.h5"),
                                    ("stack runs", f"{STACK}/*/*/{METRICS}"))}
    yield DoctorLine("cache", OK, f"{cache}: " + ", ".join(f"{number} {name}" for name, number in counts.items()))
    # The cache need not exist yet: its disk is that of the nearest folder above it.
    existing = next(path for path in (cache.absolute(), *cache.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    yield DoctorLine("disk", OK if free >= MIN_DISK_BYTES else WARN,
                     f"{format_bytes(free)} free (11 kB per frame, 1.2 GB per hour of video)")


def next_step(cache: Path, lines: list[DoctorLine], preds: Path = Path("preds.csv")) -> str:
    """Return the next command to run."""
    if any(line.what == "packages" and line.state == MISSING for line in lines):
        return "make setup"
    if not any(cache.glob(f"{FEATURES}/*/{CURRENT}")):
        return "make demo (six short clips, to see it work), or name your data in stages/dataset.toml: fercache extract"
    if not any(cache.glob(f"{LOGITS}/*/*.h5")):
        return "fercache train-heads"
    return "fercache report --out report.html" if preds.is_file() else f"fercache stack --out {preds}"


def doctor_screen(lines: list[DoctorLine], step: str) -> RenderableType:
    """Return the screen, for 80 columns and up."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column("what", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("found", overflow="fold")
    for line in lines:
        table.add_row(Text(line.what), Text(line.state, style=STYLES[line.state]), Text(line.found))
    return Group(table, Text.assemble("next: ", (step, "bold")))
