"""Processor time of decoding, version 0.1 beside this checkout, and what HDR costs a frame.

    python tests/bench/bench_decode.py CLIP... [--rounds 5]

Each clip is decoded by one process after the other, in turn; the least time of the rounds counts.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VERSION_0_1 = "85e55ee"
READ = """
import sys, time
from pathlib import Path
from fercache import media
for path in [sys.argv[1], *sys.argv[1:]]:  # the first one twice: a process's first clip pays for imports
    started = time.process_time()
    frames = sum(1 for _ in media.open_source(Path(path), "video").frames())
    print(time.process_time() - started, frames)
"""


def read(code: Path, clips: list[str]) -> list[tuple[float, int]]:
    """Return the seconds of processor time and the frames of each clip."""
    done = subprocess.run([sys.executable, "-c", READ, *clips], env={**os.environ, "PYTHONPATH": str(code)}, text=True,
                          capture_output=True, check=True, cwd=code)
    return [(float(seconds), int(frames)) for seconds, frames in map(str.split, done.stdout.splitlines()[1:])]


def main() -> None:
    """Print a line a clip, and one for all clips."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    clips = [str(Path(clip).resolve()) for clip in args.clips]
    with tempfile.TemporaryDirectory() as folder:
        packed = subprocess.run(["git", "archive", VERSION_0_1, "fercache"], cwd=ROOT, capture_output=True, check=True)
        with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
            archive.extractall(folder, filter="data")
        rounds = [(read(Path(folder), clips), read(ROOT, clips)) for _ in range(args.rounds)]
    totals = [0.0, 0.0]
    for number, clip in enumerate(clips):
        old, new = (min(one[side][number][0] for one in rounds) for side in (0, 1))
        frames = rounds[0][1][number][1]
        totals = [totals[0] + old, totals[1] + new]
        print(f"{Path(clip).name:28} {frames:5} frames, ms per frame: 0.1 {1000 * old / frames:.2f}, here "
              f"{1000 * new / frames:.2f}, ratio {new / old:.3f}")
    print(f"all: ratio {totals[1] / totals[0]:.3f}")


if __name__ == "__main__":
    main()
