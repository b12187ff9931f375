"""Stage one in several processes: seconds, frames a second, and whether the store is the one that one process makes.

    python tests/bench/bench_engines.py [--clips FOLDER] [--ways one,workers,parts,threads,dask,killed,limit]

The real command, over the demo's clips (1,100 frames) or a folder of yours, each time into an empty cache. All ways use
one thread a process, but for `threads`, where one process uses them all. `killed` kills a Dask worker that has a clip
at work; `limit` runs again and again for 20 seconds.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from fercache.backbones import weights
from fercache.cli.pipeline import ENGINES
from fercache.data import demo
from fercache.store.embedding_store import EmbeddingStore

ROOT = Path(__file__).resolve().parents[2]
CORES = len(os.sched_getaffinity(0))
PARTS, LIMIT_S = 4, 20
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}


def start(home: Path, *words: object) -> subprocess.Popen[str]:
    """Begin the command over the clips in `home`."""
    command = [sys.executable, "-m", "fercache", "extract", "--clips", "clips", *map(str, words)]
    return subprocess.Popen(command, cwd=home, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(run: subprocess.Popen[str]) -> str:
    """Return what a run said; it must have ended well."""
    said = run.communicate()[1]
    if run.returncode:
        raise SystemExit(said)
    return said


def alone(home: Path) -> str:
    ended(start(home, "--threads", 1))
    return ""


def threads(home: Path) -> str:
    ended(start(home, "--threads", CORES))
    return f"{CORES} threads"


def workers(home: Path) -> str:
    ended(start(home, "--threads", CORES, "--workers", CORES))
    return f"{CORES} processes"


def parts(home: Path) -> str:
    runs = [start(home, "--threads", 1, "--shard", f"{i + 1}/{PARTS}") for i in range(PARTS)]
    for run in runs:
        ended(run)
    return f"{PARTS} processes at once"


def dask(home: Path) -> str:
    ended(start(home, "--threads", CORES, "--workers", CORES, "--engine", ENGINES[1]))
    return f"{CORES} workers"


def killed(home: Path) -> str:
    """Kill a worker once a segment's worth of its clip is in the journal."""
    run = start(home, "--threads", CORES, "--workers", CORES, "--engine", ENGINES[1])
    victim = ""
    while run.poll() is None and not victim:
        time.sleep(.05)
        for claim in (home / "cache" / "features").glob("*/*.work/*.claim"):
            journal = claim.with_suffix(".journal")
            if journal.is_file() and journal.stat().st_size > 4096 and (pid := holder(claim)):
                os.kill(pid, signal.SIGKILL)
                victim = claim.stem
    ended(run)
    if not victim:
        raise SystemExit("no worker was found to be killed")
    return f"{CORES} workers, one killed in {victim}"


def limit(home: Path) -> str:
    runs = 1
    while "stopped by the time limit" in ended(start(home, "--threads", 1, "--time-limit", LIMIT_S)):
        runs += 1
    return f"{runs} runs of {LIMIT_S} s"


def holder(path: Path) -> int:
    """Return the process that has a file open, 0 if there is none."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if link.readlink() == path.resolve():
                return int(link.parents[1].name)
        except OSError:
            continue
    return 0


WAYS: dict[str, Callable[[Path], str]] = {"one": alone, "threads": threads, "workers": workers, "parts": parts,
                                          "dask": dask, "killed": killed, "limit": limit}


def measured(clips: Path, kept: Path, way: str) -> tuple[float, int, str, str]:
    """Return seconds, frames, the store's digest and a remark of one way."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "cache").mkdir()
        (home / "cache" / "weights").symlink_to(kept)
        (home / "clips").symlink_to(clips)
        began = time.monotonic()
        says = WAYS[way](home)
        took = time.monotonic() - began
        (path,) = (home / "cache" / "features").glob("*/*.zarr")
        store = EmbeddingStore.open(path)
        return took, sum(store.manifest(clip).frames for clip in store), store.digest(), says


def main() -> None:
    """Print a line a way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=Path)
    parser.add_argument("--ways", default="one,workers,parts")
    given = parser.parse_args()
    cache = ROOT / "cache"
    weights.ensure_weights("casia-webface", cache / "weights")
    clips = (given.clips or demo.fetch_demo_clips(cache / "clips")).resolve()
    first: tuple[float, str] | None = None
    for way in given.ways.split(","):
        took, frames, digest, says = measured(clips, (cache / "weights").resolve(), way)
        first = first or (took, digest)
        print(f"{way:8} {took:6.1f} s {frames / took:7.1f} frames/s  {first[0] / took:5.2f} times  "
              f"{'same store' if digest == first[1] else 'ANOTHER STORE'} {digest[:12]}  {says}", flush=True)


if __name__ == "__main__":
    main()
