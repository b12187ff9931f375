"""Seconds and peak memory of a submission of Aff-Wild2's test set: 228 trials, 1,022,655 frames, both forms.

    python tests/bench/bench_submit.py --small     a twentieth of it
    python tests/bench/bench_submit.py
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from predsfile import EIGHT, draw, write

TRIALS, FRAMES = 228, 1_022_655
ONE = """
import resource, sys, time
from pathlib import Path
from fercache import submit
from fercache.config import SubmitConfig
folder, name = Path(sys.argv[1]), sys.argv[2]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
started = time.monotonic()
made = submit.run(submit.Places(folder / f"{name}.txt", folder / "preds.csv", folder / name), SubmitConfig())
print(f"{name:6} {made.rows:,} rows: {time.monotonic() - started:.1f} s, peak "
      f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB ({before:.0f} MB before)")
"""


def main() -> None:
    """Print one line a form."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a twentieth of the size")
    frames = FRAMES // 20 if parser.parse_args().small else FRAMES
    rng = np.random.default_rng(0)
    cuts = np.sort(rng.choice(np.arange(1, frames), TRIALS - 1, replace=False))
    lengths = {f"video{i}": int(n) for i, n in enumerate(np.diff([0, *cuts, frames]))}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "preds.csv", draw(lengths))
        rows = (f"{trial}/{frame:05d}.jpg," for trial, many in lengths.items() for frame in range(1, many + 1))
        (folder / "frames.txt").write_text("image_location," + ",".join(EIGHT) + "\n" + "\n".join(rows) + "\n")
        (folder / "list.txt").write_text("\n".join(lengths) + "\n")
        size = (folder / "preds.csv").stat().st_size / 2**20
        started = time.monotonic()
        with (folder / "preds.csv").open("rb") as file:
            lines = sum(1 for _ in file)
        print(f"preds.csv: {size:.0f} MB, {lines:,} lines, counted in {time.monotonic() - started:.1f} s")
        for form in ("frames", "list"):
            subprocess.run([sys.executable, "-c", ONE, name, form], check=True)


if __name__ == "__main__":
    main()
