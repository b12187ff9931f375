"""Seconds and peak memory of a submission of Aff-Wild2's test set: 228 trials, 1,022,655 frames, both forms.

    python tests/bench/bench_submit.py --small     a twentieth of it
    python tests/bench/bench_submit.py
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from predsfile import EIGHT, draw, write

TRIALS, FRAMES = 228, 1_022_655
ONE = """
import csv, sys, time
from pathlib import Path
from fercache import submit
from fercache.config import SubmitConfig

def peak_mb():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024

folder, name = Path(sys.argv[1]), sys.argv[2]
started = time.process_time()
with (folder / "preds.csv").open(newline="") as file:
    lines = sum(1 for _ in csv.reader(file))
plain, before = time.process_time() - started, peak_mb()
started, clock = time.process_time(), time.monotonic()
made = submit.run(submit.Places(folder / f"{name}.txt", folder / "preds.csv", folder / name), SubmitConfig())
spent = time.process_time() - started
print(f"{name:6} {made.rows:,} rows: {time.monotonic() - clock:.1f} s ({spent:.1f} s of processor, {spent / plain:.1f} "
      f"times what csv.reader alone takes for preds.csv), peak {peak_mb():.0f} MB ({before:.0f} MB before)")
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
        print(f"preds.csv: {(folder / 'preds.csv').stat().st_size / 2**20:.0f} MB", flush=True)
        for form in ("frames", "list"):
            subprocess.run([sys.executable, "-c", ONE, name, form], check=True)


if __name__ == "__main__":
    main()
